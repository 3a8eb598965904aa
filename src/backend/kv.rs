//! The KV cache of a layer: pages in host memory, or arrays on MLX.
//!
//! A host page holds [`PAGE`] tokens at absolute positions `page * PAGE ..`, which is also the tile that the attention
//! kernel visits: the order of every reduction is fixed by the position alone. K and V are rounded to the cache's type
//! when they are written, before anything reads them.

use half::{bf16, f16};

use super::batch::Run;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Tokens of a page: 64 keys of one head dimension are 2 cache lines of a 16-bit type and 4 AVX-512 registers of `f32`.
pub const PAGE: usize = 64;

/// What a layer's cache holds for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The type that K and V are kept in.
    pub dtype: DType,
}

impl KvShape {
    /// Bytes of one token in one layer, K and V.
    pub fn token_bytes(&self) -> usize {
        2 * self.heads * self.head_dim * self.dtype.size()
    }

    /// Elements of one head's K (or V) in a page.
    fn block(&self) -> usize {
        self.head_dim * PAGE
    }
}

/// One page of one layer: for each head, K transposed `[head_dim, PAGE]` and then V `[PAGE, head_dim]`.
#[derive(Debug, Clone)]
enum Page {
    F32(Box<[f32]>),
    F16(Box<[f16]>),
    BF16(Box<[bf16]>),
}

impl Page {
    fn new(shape: &KvShape) -> Self {
        let len = 2 * shape.heads * shape.block();
        match shape.dtype {
            DType::F32 => Self::F32(vec![0.0; len].into()),
            DType::F16 => Self::F16(vec![f16::ZERO; len].into()),
            DType::BF16 => Self::BF16(vec![bf16::ZERO; len].into()),
        }
    }
}

/// A page's elements of one head, in the cache's type.
#[derive(Debug, Clone, Copy)]
pub enum Block<'a> {
    /// `f32` elements.
    F32(&'a [f32]),
    /// `f16` elements.
    F16(&'a [f16]),
    /// `bf16` elements.
    BF16(&'a [bf16]),
}

impl Block<'_> {
    fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(values) => values[i],
            Self::F16(values) => values[i].to_f32(),
            Self::BF16(values) => values[i].to_f32(),
        }
    }
}

/// The KV cache of one layer and one sequence in host memory.
#[derive(Debug, Clone)]
pub struct HostKv {
    shape: KvShape,
    pages: Vec<Page>,
    len: usize,
}

impl HostKv {
    /// An empty cache.
    pub fn new(shape: KvShape) -> Self {
        Self { shape, pages: Vec::new(), len: 0 }
    }

    /// What is kept for each token.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Tokens cached.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.pages.len() * PAGE * self.shape.token_bytes()
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            self.pages.truncate(len.div_ceil(PAGE));
        }
    }

    /// Head `head` of page `page`: K transposed, `[head_dim, PAGE]`, with keys at absolute positions
    /// `page * PAGE ..`. Positions from [`Self::len`] on hold finite values of no meaning.
    pub fn keys(&self, page: usize, head: usize) -> Block<'_> {
        self.block(page, 2 * head)
    }

    /// Head `head` of page `page`: V, `[PAGE, head_dim]`.
    pub fn values(&self, page: usize, head: usize) -> Block<'_> {
        self.block(page, 2 * head + 1)
    }

    fn block(&self, page: usize, block: usize) -> Block<'_> {
        let len = self.shape.block();
        let range = block * len..(block + 1) * len;
        match &self.pages[page] {
            Page::F32(values) => Block::F32(&values[range]),
            Page::F16(values) => Block::F16(&values[range]),
            Page::BF16(values) => Block::BF16(&values[range]),
        }
    }

    /// Writes the keys and values of the tokens at positions `start ..`, rounded to nearest even in the cache's type;
    /// what was cached from `start` on is forgotten.
    ///
    /// `k` and `v` are `[n, heads * head_dim]`, row-major.
    ///
    /// # Errors
    /// Where `start` leaves a gap, or the lengths do not fit the cache's shape.
    pub fn write(&mut self, start: usize, k: &[f32], v: &[f32]) -> Result<()> {
        let KvShape { heads, head_dim, .. } = self.shape;
        let width = heads * head_dim;
        if start > self.len || width == 0 || k.len() != v.len() || !k.len().is_multiple_of(width) {
            return Err(Error::shape(
                "kv_write",
                format!(
                    "k has {} and v {} elements at position {start}, expected rows of {width} for a cache of {} tokens",
                    k.len(),
                    v.len(),
                    self.len
                ),
            ));
        }
        let rows = k.len() / width;
        self.truncate(start);
        let pages = (start + rows).div_ceil(PAGE);
        let shape = self.shape;
        self.pages.resize_with(pages, || Page::new(&shape));
        for row in 0..rows {
            let (page, slot) = ((start + row) / PAGE, (start + row) % PAGE);
            let k = &k[row * width..(row + 1) * width];
            let v = &v[row * width..(row + 1) * width];
            match &mut self.pages[page] {
                Page::F32(page) => write_token(page, &shape, slot, k, v, |x| x),
                Page::F16(page) => write_token(page, &shape, slot, k, v, f16::from_f32),
                Page::BF16(page) => write_token(page, &shape, slot, k, v, bf16::from_f32),
            }
        }
        self.len = start + rows;
        Ok(())
    }

    /// All keys and values, each `[len, heads * head_dim]`, row-major: for a move to another backend.
    pub fn read(&self) -> (Vec<f32>, Vec<f32>) {
        let KvShape { heads, head_dim, .. } = self.shape;
        let mut k = Vec::with_capacity(self.len * heads * head_dim);
        let mut v = Vec::with_capacity(self.len * heads * head_dim);
        for position in 0..self.len {
            let (page, slot) = (position / PAGE, position % PAGE);
            for head in 0..heads {
                let (keys, values) = (self.keys(page, head), self.values(page, head));
                k.extend((0..head_dim).map(|d| keys.get(d * PAGE + slot)));
                v.extend((0..head_dim).map(|d| values.get(slot * head_dim + d)));
            }
        }
        (k, v)
    }
}

/// Writes one token's K (transposed) and V into a page.
fn write_token<T: Copy>(
    page: &mut [T],
    shape: &KvShape,
    slot: usize,
    k: &[f32],
    v: &[f32],
    round: impl Fn(f32) -> T,
) {
    let (block, head_dim) = (shape.block(), shape.head_dim);
    for (head, (k, v)) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
        let (keys, values) = page[2 * head * block..2 * (head + 1) * block].split_at_mut(block);
        for (d, &k) in k.iter().enumerate() {
            keys[d * PAGE + slot] = round(k);
        }
        for (to, &v) in values[slot * head_dim..(slot + 1) * head_dim].iter_mut().zip(v) {
            *to = round(v);
        }
    }
}

/// The KV cache of one layer and one sequence, where the backend that wrote it keeps it.
#[derive(Debug)]
pub enum KvLayer {
    /// Pages in host memory.
    Host(HostKv),
    /// Arrays on MLX.
    #[cfg(has_mlx)]
    Mlx(crate::backend::mlx::MlxKv),
}

impl KvLayer {
    /// Tokens cached.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(kv) => kv.len(),
            #[cfg(has_mlx)]
            Self::Mlx(kv) => kv.len(),
        }
    }

    /// Whether no token is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is kept for each token.
    pub fn shape(&self) -> &KvShape {
        match self {
            Self::Host(kv) => kv.shape(),
            #[cfg(has_mlx)]
            Self::Mlx(kv) => kv.shape(),
        }
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        match self {
            Self::Host(kv) => kv.truncate(len),
            #[cfg(has_mlx)]
            Self::Mlx(kv) => kv.truncate(len),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Host(kv) => kv.bytes(),
            #[cfg(has_mlx)]
            Self::Mlx(kv) => kv.bytes(),
        }
    }
}

/// The KV cache of one sequence: a layer's cache for each layer of the model.
#[derive(Debug)]
pub struct SequenceKv {
    /// The layers, first to last.
    pub layers: Vec<KvLayer>,
}

impl SequenceKv {
    /// An empty cache in host memory; a backend takes a layer over when it first writes to it.
    pub fn new(shapes: &[KvShape]) -> Self {
        Self { layers: shapes.iter().map(|shape| KvLayer::Host(HostKv::new(*shape))).collect() }
    }

    /// Tokens cached in every layer.
    pub fn len(&self) -> usize {
        self.layers.iter().map(KvLayer::len).min().unwrap_or(0)
    }

    /// Whether no token is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(KvLayer::bytes).sum()
    }
}

/// The step's activations that a layer caches: K and V, `[T, heads * head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct KvRows<'a> {
    /// Keys, after the rotary embedding.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
}

impl KvRows<'_> {
    /// Checks every shape, so that backends need not.
    ///
    /// # Errors
    /// [`Error::Shape`] where `run` leaves a gap after what `layer` holds, or its rows are not those of `layer`'s heads.
    pub fn check(&self, layer: &KvLayer, run: &Run) -> Result<()> {
        let KvShape { heads, head_dim, .. } = *layer.shape();
        let width = heads * head_dim;
        let (k, v) = (self.k.shape(), self.v.shape());
        let fits =
            |shape: &[usize]| matches!(*shape, [rows, columns] if rows >= run.rows().end && columns == width);
        if width == 0 || k != v || !fits(k) {
            let rows = run.rows();
            return Err(Error::shape(
                "kv_write",
                format!("k is {k:?} and v {v:?}, expected rows {rows:?} of {heads} heads of {head_dim}"),
            ));
        }
        if run.start > layer.len() {
            let (start, len) = (run.start, layer.len());
            return Err(Error::shape(
                "kv_write",
                format!("position {start}, expected at most the {len} cached"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_rounded() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let shape = KvShape { heads: 2, head_dim: 3, dtype };
            let mut kv = HostKv::new(shape);
            let k: Vec<f32> = (0..70 * 6).map(|i| i as f32 * 0.37 - 3.0).collect();
            let v: Vec<f32> = k.iter().map(|x| -x).collect();
            kv.write(0, &k[..6 * 69], &v[..6 * 69]).unwrap();
            kv.write(69, &k[6 * 69..], &v[6 * 69..]).unwrap();
            let round = |x: f32| match dtype {
                DType::F32 => x,
                DType::F16 => f16::from_f32(x).to_f32(),
                DType::BF16 => bf16::from_f32(x).to_f32(),
            };
            let (k_back, v_back) = kv.read();
            assert_eq!(k_back, k.iter().map(|&x| round(x)).collect::<Vec<_>>());
            assert_eq!(v_back, v.iter().map(|&x| round(x)).collect::<Vec<_>>());
            kv.truncate(5);
            assert_eq!((kv.len(), kv.bytes()), (5, PAGE * shape.token_bytes()));
        }
    }

    #[test]
    fn a_gap_or_a_wrong_length_is_refused() {
        let mut kv = HostKv::new(KvShape { heads: 1, head_dim: 2, dtype: DType::F32 });
        let error = kv.write(1, &[0.0; 2], &[0.0; 2]).unwrap_err().to_string();
        assert!(error.contains("at position 1") && error.contains("a cache of 0 tokens"), "{error}");
        assert!(kv.write(0, &[0.0; 3], &[0.0; 3]).is_err());
        assert!(kv.write(0, &[0.0; 2], &[0.0; 4]).is_err());
        assert_eq!(kv.len(), 0);
    }
}
