//! The KV cache of a layer in host memory.
//!
//! A host page holds [`PAGE`] tokens at absolute positions `page * PAGE ..`, which is also the tile that the attention
//! kernel visits: the order of every reduction is fixed by the position alone. K and V are rounded to the cache's type
//! when they are written, before anything reads them.

mod codes;
mod kind;

use std::sync::Arc;

use half::{bf16, f16};

pub use codes::{Code, CodeRows, Codes};
pub use kind::KvType;

use crate::error::{Error, Result};
use codes::CodePage;

/// Tokens of a page: 64 keys of one head dimension are 2 cache lines of a 16-bit type and 4 AVX-512 registers of `f32`.
pub const PAGE: usize = 64;

/// Elements of a head that share a scale in a quantized cache: the smallest group that MLX has.
pub const GROUP: usize = 32;

/// Tokens by which the arrays of a cache on MLX grow: as mlx-lm's, few enough to waste little, enough to make copies rare.
pub const MLX_GROWTH: usize = 256;

/// What a layer's cache holds for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The type that K and V are kept in.
    pub kind: KvType,
}

impl KvShape {
    /// Bytes of one token in one layer, K and V, with their scales.
    pub const fn token_bytes(&self) -> usize {
        2 * self.heads * self.kind.head_bytes(self.head_dim)
    }

    /// The same on MLX, where a quantized head is filled up to whole groups.
    pub const fn mlx_token_bytes(&self) -> usize {
        let head_dim = match self.kind.bits() {
            Some(_) => self.head_dim.next_multiple_of(GROUP),
            None => self.head_dim,
        };
        Self { head_dim, ..*self }.token_bytes()
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
    Q8(CodePage<u8>),
    Q4(CodePage<u32>),
}

impl Page {
    fn new(shape: &KvShape) -> Self {
        let len = 2 * shape.heads * shape.block();
        match shape.kind {
            KvType::F32 => Self::F32(vec![0.0; len].into()),
            KvType::F16 => Self::F16(vec![f16::ZERO; len].into()),
            KvType::BF16 => Self::BF16(vec![bf16::ZERO; len].into()),
            KvType::Q8 => Self::Q8(CodePage::new(shape)),
            KvType::Q4 => Self::Q4(CodePage::new(shape)),
        }
    }

    /// Bytes of its elements.
    #[cfg(test)]
    fn bytes(&self) -> u64 {
        (match self {
            Self::F32(values) => size_of_val(&values[..]),
            Self::F16(values) => size_of_val(&values[..]),
            Self::BF16(values) => size_of_val(&values[..]),
            Self::Q8(page) => page.bytes(),
            Self::Q4(page) => page.bytes(),
        }) as u64
    }
}

/// A page apart from the sequence that wrote it. Clones share the memory.
#[derive(Debug, Clone)]
pub struct HostPage(Arc<Page>);

impl HostPage {
    /// Where its memory is, and bytes: for tests that count each page once.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> (usize, u64) {
        (Arc::as_ptr(&self.0) as usize, self.0.bytes())
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
    /// Codes of 8 bits.
    Q8(Codes<'a, u8>),
    /// Codes of 4 bits, eight to a word.
    Q4(Codes<'a, u32>),
}

impl Block<'_> {
    /// Element `d` of the key at `slot`.
    fn key(&self, slot: usize, d: usize) -> f32 {
        let at = d * PAGE + slot;
        match self {
            Self::F32(values) => values[at],
            Self::F16(values) => values[at].to_f32(),
            Self::BF16(values) => values[at].to_f32(),
            Self::Q8(codes) => codes::decode(codes.key(slot, d)),
            Self::Q4(codes) => codes::decode(codes.key(slot, d)),
        }
    }

    /// Element `d` of the value at `slot`.
    fn value(&self, slot: usize, d: usize, head_dim: usize) -> f32 {
        let at = slot * head_dim + d;
        match self {
            Self::F32(values) => values[at],
            Self::F16(values) => values[at].to_f32(),
            Self::BF16(values) => values[at].to_f32(),
            Self::Q8(codes) => codes::decode(codes.value(slot, d, head_dim)),
            Self::Q4(codes) => codes::decode(codes.value(slot, d, head_dim)),
        }
    }
}

/// The KV cache of one layer and one sequence in host memory. Its clones share their pages: one that others hold, too,
/// is copied before it is written to.
#[derive(Debug, Clone)]
pub struct HostKv {
    shape: KvShape,
    pages: Vec<Arc<Page>>,
    len: usize,
}

impl HostKv {
    /// An empty cache.
    pub fn new(shape: KvShape) -> Self {
        Self { shape, pages: Vec::new(), len: 0 }
    }

    /// A cache of the first `len` tokens of `pages`, which it shares, but for the last one where `len` ends in it: there it
    /// will be written to.
    pub fn from_pages(shape: KvShape, pages: impl Iterator<Item = HostPage>, len: usize) -> Self {
        let mut pages: Vec<Arc<Page>> = pages.map(|page| page.0).collect();
        if !len.is_multiple_of(PAGE)
            && let Some(last) = pages.last_mut()
        {
            *last = Arc::new(Page::clone(last));
        }
        Self { shape, pages, len }
    }

    /// Page `index`, as far as it is filled.
    pub fn page(&self, index: usize) -> Option<HostPage> {
        self.pages.get(index).cloned().map(HostPage)
    }

    /// Holds `page` in place of its own page `index` of the same tokens.
    pub fn set_page(&mut self, index: usize, page: HostPage) {
        if let Some(own) = self.pages.get_mut(index) {
            *own = page.0;
        }
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
    /// `page * PAGE ..`. Positions from [`Self::len`] on hold values of no meaning.
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
        match &*self.pages[page] {
            Page::F32(values) => Block::F32(&values[range]),
            Page::F16(values) => Block::F16(&values[range]),
            Page::BF16(values) => Block::BF16(&values[range]),
            Page::Q8(page) => Block::Q8(page.block(&self.shape, block)),
            Page::Q4(page) => Block::Q4(page.block(&self.shape, block)),
        }
    }

    /// Writes the keys and values of the tokens at positions `start ..`, rounded to the cache's type (floats to nearest
    /// even); what was cached from `start` on is forgotten.
    ///
    /// `k` and `v` are `[n, heads * head_dim]`, row-major.
    ///
    /// # Errors
    /// Where `start` leaves a gap, or the lengths do not fit the cache's shape.
    pub fn write(&mut self, start: usize, k: &[f32], v: &[f32]) -> Result<()> {
        let shape = self.shape;
        let width = shape.heads * shape.head_dim;
        let rows = self.make_room(start, k.len(), v.len())?;
        let mut codes = shape.kind.bits().map(|bits| (bits, [0; 2].map(|_| CodeRows::new(&shape, 1))));
        for row in 0..rows {
            let (page, slot) = ((start + row) / PAGE, (start + row) % PAGE);
            let k = &k[row * width..(row + 1) * width];
            let v = &v[row * width..(row + 1) * width];
            match Arc::make_mut(&mut self.pages[page]) {
                Page::F32(page) => write_token(page, &shape, slot, k, v, |x| x),
                Page::F16(page) => write_token(page, &shape, slot, k, v, f16::from_f32),
                Page::BF16(page) => write_token(page, &shape, slot, k, v, bf16::from_f32),
                page => {
                    let Some((bits, codes)) = &mut codes else { unreachable!("a page of another type") };
                    codes[0].encode(*bits, shape.head_dim, k);
                    codes[1].encode(*bits, shape.head_dim, v);
                    write_codes(page, &shape, slot, [&codes[0], &codes[1]], 0);
                }
            }
        }
        self.len = start + rows;
        Ok(())
    }

    /// Room for rows of `k` and `v` elements from position `start` on, in place of what was there; the number of rows.
    fn make_room(&mut self, start: usize, k: usize, v: usize) -> Result<usize> {
        let width = self.shape.heads * self.shape.head_dim;
        if start > self.len || width == 0 || k != v || !k.is_multiple_of(width) {
            return Err(Error::shape(
                "kv_write",
                format!(
                    "k has {k} and v {v} elements at position {start}, expected rows of {width} for a cache of {} tokens",
                    self.len
                ),
            ));
        }
        self.truncate(start);
        let (rows, shape) = (k / width, self.shape);
        self.pages.resize_with((start + rows).div_ceil(PAGE), || Arc::new(Page::new(&shape)));
        Ok(rows)
    }

    /// All keys and values, each `[len, heads * head_dim]`, row-major: for a move to another backend, and for tests.
    pub fn read(&self) -> (Vec<f32>, Vec<f32>) {
        let KvShape { heads, head_dim, .. } = self.shape;
        let mut k = Vec::with_capacity(self.len * heads * head_dim);
        let mut v = Vec::with_capacity(self.len * heads * head_dim);
        for position in 0..self.len {
            let (page, slot) = (position / PAGE, position % PAGE);
            for head in 0..heads {
                let (keys, values) = (self.keys(page, head), self.values(page, head));
                k.extend((0..head_dim).map(|d| keys.key(slot, d)));
                v.extend((0..head_dim).map(|d| values.value(slot, d, head_dim)));
            }
        }
        (k, v)
    }

    /// All keys and values of a quantized cache as they are kept; none of another one.
    pub fn read_codes(&self) -> Option<[CodeRows; 2]> {
        self.shape.kind.bits()?;
        let KvShape { heads, head_dim, .. } = self.shape;
        let mut rows = [CodeRows::default(), CodeRows::default()];
        for position in 0..self.len {
            let (page, slot) = (position / PAGE, position % PAGE);
            for head in 0..heads {
                let (keys, values) = (self.keys(page, head), self.values(page, head));
                for d in 0..head_dim {
                    let pair = match (keys, values) {
                        (Block::Q8(k), Block::Q8(v)) => [k.key(slot, d), v.value(slot, d, head_dim)],
                        (Block::Q4(k), Block::Q4(v)) => [k.key(slot, d), v.value(slot, d, head_dim)],
                        _ => unreachable!("a page of another type"),
                    };
                    for (rows, (code, [scale, bias])) in rows.iter_mut().zip(pair) {
                        rows.codes.push(code);
                        if d.is_multiple_of(GROUP) {
                            rows.scales.push(scale);
                            rows.biases.push(bias);
                        }
                    }
                }
            }
        }
        Some(rows)
    }

    /// Replaces what is cached by what [`Self::read_codes`] gave.
    ///
    /// # Errors
    /// Where the lengths do not fit the cache's shape, or it is not quantized.
    pub fn set_codes(&mut self, [k, v]: &[CodeRows; 2]) -> Result<()> {
        let shape = self.shape;
        let rows = self.make_room(0, k.codes.len(), v.codes.len())?;
        let scales = rows * shape.heads * shape.head_dim.div_ceil(GROUP);
        let lens = [k.scales.len(), k.biases.len(), v.scales.len(), v.biases.len()];
        if shape.kind.bits().is_none() || lens != [scales; 4] {
            self.truncate(0);
            let what = format!(
                "{lens:?} scales and biases for {rows} rows in {}, expected {scales} each",
                shape.kind
            );
            return Err(Error::shape("kv_write", what));
        }
        for row in 0..rows {
            write_codes(Arc::make_mut(&mut self.pages[row / PAGE]), &shape, row % PAGE, [k, v], row);
        }
        self.len = rows;
        Ok(())
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

/// The same in codes, of row `row` of K and V.
fn write_codes(page: &mut Page, shape: &KvShape, slot: usize, rows: [&CodeRows; 2], row: usize) {
    let rows = rows.map(|of| of.row(shape, row));
    match page {
        Page::Q8(page) => page.write(shape, slot, rows),
        Page::Q4(page) => page.write(shape, slot, rows),
        Page::F32(_) | Page::F16(_) | Page::BF16(_) => unreachable!("a page of another type"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_rounded() {
        for kind in KvType::ALL {
            // One group of a length that is no multiple of a word; two and a part.
            for head_dim in [3, 72] {
                let shape = KvShape { heads: 2, head_dim, kind };
                let width = 2 * head_dim;
                let mut kv = HostKv::new(shape);
                let k: Vec<f32> = (0..70 * width).map(|i| (i * 37 % 101) as f32 * 0.37 - 3.0).collect();
                let v: Vec<f32> = k.iter().map(|x| -x).collect();
                kv.write(0, &k[..width * 69], &v[..width * 69]).unwrap();
                kv.write(69, &k[width * 69..], &v[width * 69..]).unwrap();
                let (k_back, v_back) = kv.read();
                for (x, back) in k.iter().zip(&k_back).chain(v.iter().zip(&v_back)) {
                    match kind {
                        KvType::F32 => assert_eq!(back, x),
                        KvType::F16 => assert_eq!(*back, f16::from_f32(*x).to_f32()),
                        KvType::BF16 => assert_eq!(*back, bf16::from_f32(*x).to_f32()),
                        // The values span 37: half a step, and the roundings of scale and bias.
                        KvType::Q8 => assert!((x - back).abs() <= 37.0 / 255.0 / 2.0 + 0.04, "{x} {back}"),
                        KvType::Q4 => assert!((x - back).abs() <= 37.0 / 15.0 / 2.0 + 0.04, "{x} {back}"),
                    }
                }
                let mut moved = HostKv::new(shape);
                match kv.read_codes() {
                    Some(rows) => moved.set_codes(&rows).unwrap(),
                    None => moved.write(0, &k_back, &v_back).unwrap(),
                }
                assert_eq!(moved.read(), (k_back, v_back), "{kind}");
                kv.truncate(5);
                assert_eq!((kv.len(), kv.bytes()), (5, PAGE * shape.token_bytes()));
            }
        }
    }

    /// A group is rounded by itself, in the bits of [`affine_group`](crate::quant::affine_group), which equal those of
    /// `mx.quantize` (`tests/quantize.rs`); what is not finite stays so.
    #[test]
    fn a_group_has_the_codes_of_mlx_and_its_scale_in_f16() {
        let row: Vec<f32> = (0..40).map(|i| ((i * 29 % 40) as f32 - 11.3) * 0.013).collect();
        for (kind, bits) in [(KvType::Q8, 8), (KvType::Q4, 4)] {
            let mut kv = HostKv::new(KvShape { heads: 1, head_dim: 40, kind });
            let mut wrong = row.clone();
            wrong[33] = f32::NAN;
            kv.write(0, &row, &wrong).unwrap();
            let [k, v] = kv.read_codes().unwrap();
            for (group, values) in row.chunks(GROUP).enumerate() {
                let mut codes = vec![0; values.len()];
                let (scale, bias) = crate::quant::affine_group(bits, values, &mut codes);
                assert_eq!(k.codes[group * GROUP..][..values.len()], codes);
                assert_eq!((k.scales[group], k.biases[group]), (f16::from_f32(scale), f16::from_f32(bias)));
            }
            assert_eq!(k.scales[0], v.scales[0]);
            assert!(v.scales[1].is_nan() && kv.read().1[32..].iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn a_gap_or_a_wrong_length_is_refused() {
        let mut kv = HostKv::new(KvShape { heads: 1, head_dim: 2, kind: KvType::F32 });
        let error = kv.write(1, &[0.0; 2], &[0.0; 2]).unwrap_err().to_string();
        assert!(error.contains("at position 1") && error.contains("a cache of 0 tokens"), "{error}");
        assert!(kv.write(0, &[0.0; 3], &[0.0; 3]).is_err());
        assert!(kv.write(0, &[0.0; 2], &[0.0; 4]).is_err());
        assert!(kv.set_codes(&[CodeRows::default(), CodeRows::default()]).is_err());
        assert_eq!(kv.len(), 0);
    }
}
