//! The KV cache of a layer in host memory.
//!
//! A host page holds [`PAGE`] tokens at absolute positions `page * PAGE ..`, which is also the tile that the attention
//! kernel visits: the order of every reduction is fixed by the position alone. K and V are rounded to the cache's type
//! when they are written, before anything reads them.

mod codes;
mod kind;
mod stored;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use half::{bf16, f16};

pub use codes::{Code, CodeRows, Codes};
pub use kind::KvType;

use crate::alloc;
use crate::error::{Error, Result};
use crate::tensor::MatrixView;
use codes::CodePage;

/// Tokens of a page: 64 keys of one head dimension are 2 cache lines of a 16-bit type and 4 AVX-512 registers of `f32`.
pub const PAGE: usize = 64;

/// Elements of a head that share a scale in a quantized cache: the smallest group that MLX has.
pub const GROUP: usize = 32;

/// Tokens by which the arrays of a cache on MLX grow: as mlx-lm's, few enough to waste little, enough to make copies rare.
pub const MLX_GROWTH: usize = 256;

/// What memory is taken for.
const WHAT: &str = "pages of the KV cache";

/// What a layer's cache holds for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads.
    pub heads: usize,
    /// Elements of a head of K.
    pub k_dim: usize,
    /// Elements of a head of V.
    pub v_dim: usize,
    /// The type that K and V are kept in.
    pub kind: KvType,
    /// Whether V is the first `v_dim` elements of K, which are kept once: a latent vector, and behind it the part of K that
    /// rotates. There is then one head.
    pub latent: bool,
}

impl KvShape {
    /// Heads of `head_dim` elements, of K and of V.
    pub const fn new(heads: usize, head_dim: usize, kind: KvType) -> Self {
        Self { heads, k_dim: head_dim, v_dim: head_dim, kind, latent: false }
    }

    /// A latent vector of `rank` elements, and `rope_dim` elements of K that rotate.
    pub const fn latent(rank: usize, rope_dim: usize, kind: KvType) -> Self {
        Self { heads: 1, k_dim: rank + rope_dim, v_dim: rank, kind, latent: true }
    }

    /// Elements of the two rows that are written of a token: its K and its V, or its latent vector and what rotates.
    pub const fn widths(&self) -> [usize; 2] {
        match self.latent {
            true => [self.v_dim, self.k_dim - self.v_dim],
            false => [self.heads * self.k_dim, self.heads * self.v_dim],
        }
    }

    /// Elements of a head of K and of V.
    pub const fn dims(&self) -> [usize; 2] {
        [self.k_dim, self.v_dim]
    }

    /// Bytes of one token in one layer, K and V, with their scales.
    pub const fn token_bytes(&self) -> usize {
        let v = if self.latent { 0 } else { self.kind.head_bytes(self.v_dim) };
        self.heads * (self.kind.head_bytes(self.k_dim) + v)
    }

    /// The same on MLX, where a quantized head is filled up to whole groups.
    pub const fn mlx_token_bytes(&self) -> usize {
        let (k_dim, v_dim) = match self.kind.bits() {
            Some(_) => (self.k_dim.next_multiple_of(GROUP), self.v_dim.next_multiple_of(GROUP)),
            None => (self.k_dim, self.v_dim),
        };
        Self { k_dim, v_dim, ..*self }.token_bytes()
    }

    /// Elements of one head's K and V in a page: of a latent cache V's are all, and K's are none of its own.
    fn blocks(&self) -> [usize; 2] {
        match self.latent {
            true => [0, self.k_dim * PAGE],
            false => [self.k_dim * PAGE, self.v_dim * PAGE],
        }
    }

    /// Elements between the values of two tokens in a page.
    pub(crate) const fn value_stride(&self) -> usize {
        if self.latent { self.k_dim } else { self.v_dim }
    }
}

/// One page of one layer: for each head, K transposed `[k_dim, PAGE]` and then V `[PAGE, v_dim]`; of latent vectors, `[PAGE, k_dim]`.
#[derive(Debug, Clone)]
enum Page {
    F32(Box<[f32]>),
    F16(Box<[f16]>),
    BF16(Box<[bf16]>),
    Q8(CodePage<u8>),
    Q4(CodePage<u32>),
}

impl Page {
    fn new(shape: &KvShape) -> Result<Self> {
        let [k, v] = shape.blocks();
        let len = shape.heads * (k + v);
        Ok(match shape.kind {
            KvType::F32 => Self::F32(alloc::zeroed(len, WHAT)?.into()),
            KvType::F16 => Self::F16(alloc::zeroed(len, WHAT)?.into()),
            KvType::BF16 => Self::BF16(alloc::zeroed(len, WHAT)?.into()),
            KvType::Q8 => Self::Q8(CodePage::new(shape)?),
            KvType::Q4 => Self::Q4(CodePage::new(shape)?),
        })
    }

    fn copy(&self) -> Result<Self> {
        Ok(match self {
            Self::F32(values) => Self::F32(alloc::copy_of(values, WHAT)?.into()),
            Self::F16(values) => Self::F16(alloc::copy_of(values, WHAT)?.into()),
            Self::BF16(values) => Self::BF16(alloc::copy_of(values, WHAT)?.into()),
            Self::Q8(page) => Self::Q8(page.copy()?),
            Self::Q4(page) => Self::Q4(page.copy()?),
        })
    }

    /// Bytes of its elements.
    #[cfg(any(test, feature = "fuzzing"))]
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
    #[cfg(any(test, feature = "fuzzing"))]
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
    fn value(&self, slot: usize, d: usize, v_dim: usize) -> f32 {
        let at = slot * v_dim + d;
        match self {
            Self::F32(values) => values[at],
            Self::F16(values) => values[at].to_f32(),
            Self::BF16(values) => values[at].to_f32(),
            Self::Q8(codes) => codes::decode(codes.value(slot, d, v_dim)),
            Self::Q4(codes) => codes::decode(codes.value(slot, d, v_dim)),
        }
    }
}

/// The KV cache of one layer and one sequence in host memory. Its clones share their pages: one that others hold, too,
/// is copied before it is written to.
#[derive(Debug, Clone)]
pub struct HostKv {
    shape: KvShape,
    /// The last keys that a token sees, where there is a window.
    window: Option<usize>,
    /// Pages before those of `pages`, which were given back.
    gone: usize,
    pages: Vec<Arc<Page>>,
    len: usize,
}

impl HostKv {
    /// An empty cache.
    pub fn new(shape: KvShape) -> Self {
        Self { shape, window: None, gone: 0, pages: Vec::new(), len: 0 }
    }

    /// Of whose tokens each sees the last `window`, its own included: what lies behind can be given back.
    pub fn with_window(mut self, window: Option<usize>) -> Self {
        self.window = window;
        self
    }

    /// The last keys that a token sees, where there is a window.
    pub fn window(&self) -> Option<usize> {
        self.window
    }

    /// The first position that is still held.
    pub fn first(&self) -> usize {
        self.gone * PAGE
    }

    /// Frees the pages that lie more than `margin` tokens behind the window of the next token.
    pub fn give_back(&mut self, margin: usize) {
        let Some(window) = self.window else { return };
        let first = (self.len + 1).saturating_sub(window.saturating_add(margin));
        self.forget_before(first);
    }

    /// Whether everything is held that a token at `position` sees before itself.
    fn has_what_is_seen_from(&self, position: usize) -> bool {
        (position + 1).saturating_sub(self.window.unwrap_or(usize::MAX)) >= self.first()
    }

    /// Frees the pages of positions that all lie before `first`.
    pub fn forget_before(&mut self, first: usize) {
        let gone = (first.min(self.len) / PAGE).max(self.gone);
        self.pages.drain(..gone - self.gone);
        self.gone = gone;
    }

    /// A cache of the first `len` tokens, of which `pages` are the pages from `first` on: what is seen of those before was given
    /// back. It shares them, but for the last one where `len` ends in it: there it will be written to.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for the copy of the last one.
    pub fn from_pages(
        shape: KvShape,
        first: usize,
        pages: impl Iterator<Item = HostPage>,
        len: usize,
    ) -> Result<Self> {
        let mut pages: Vec<Arc<Page>> = pages.map(|page| page.0).collect();
        if !len.is_multiple_of(PAGE)
            && let Some(last) = pages.last_mut()
        {
            *last = Arc::new(last.copy()?);
        }
        Ok(Self { pages, len, gone: first, ..Self::new(shape) })
    }

    /// Page `index`, as far as it is filled; none that was given back.
    pub fn page(&self, index: usize) -> Option<HostPage> {
        self.pages.get(index.checked_sub(self.gone)?).cloned().map(HostPage)
    }

    /// Holds `page` in place of its own page `index` of the same tokens, where that was not given back.
    pub fn set_page(&mut self, index: usize, page: HostPage) {
        let own = index.checked_sub(self.gone).and_then(|index| self.pages.get_mut(index));
        if let Some(own) = own {
            *own = page.0;
        }
    }

    /// Copies the last page where others hold it, too, and it is not full: it will be written to.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and it is shared still.
    pub fn own_last(&mut self) -> Result<()> {
        if !self.len.is_multiple_of(PAGE)
            && let Some(last) = self.pages.last_mut()
            && Arc::get_mut(last).is_none()
        {
            *last = Arc::new(last.copy()?);
        }
        Ok(())
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

    /// Forgets the tokens from `len` on; where what the next token would see of those before was given back, all of them.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        let len = if self.has_what_is_seen_from(len) { len } else { 0 };
        if len == 0 {
            self.gone = 0;
        }
        self.len = len;
        self.pages.truncate(len.div_ceil(PAGE) - self.gone);
    }

    /// Head `head` of page `page`: K transposed, `[k_dim, PAGE]`, with keys at absolute positions
    /// `page * PAGE ..`. Positions from [`Self::len`] on hold values of no meaning.
    pub fn keys(&self, page: usize, head: usize) -> Block<'_> {
        self.block(page, head, 0)
    }

    /// Head `head` of page `page`: V, `[PAGE, v_dim]`; of a latent cache `[PAGE, k_dim]`, which is K, too.
    pub fn values(&self, page: usize, head: usize) -> Block<'_> {
        self.block(page, head, 1)
    }

    /// K of a head where `of` is 0, its V where it is 1.
    fn block(&self, page: usize, head: usize, of: usize) -> Block<'_> {
        let blocks = self.shape.blocks();
        debug_assert!(of == 1 || !self.shape.latent, "the keys of a latent cache are its values");
        let start = head * (blocks[0] + blocks[1]) + of * blocks[0];
        let range = start..start + blocks[of];
        match &*self.pages[page - self.gone] {
            Page::F32(values) => Block::F32(&values[range]),
            Page::F16(values) => Block::F16(&values[range]),
            Page::BF16(values) => Block::BF16(&values[range]),
            Page::Q8(page) => Block::Q8(page.block(&self.shape, head, of)),
            Page::Q4(page) => Block::Q4(page.block(&self.shape, head, of)),
        }
    }

    /// Writes the keys and values of the tokens at positions `start ..`, rounded to the cache's type (floats to nearest
    /// even); what was cached from `start` on is forgotten.
    ///
    /// `k` is `[n, heads * k_dim]` and `v` `[n, heads * v_dim]`, row-major; of a latent cache, they are the latent vectors
    /// `[n, v_dim]` and what rotates `[n, k_dim - v_dim]`.
    ///
    /// # Errors
    /// Where `start` leaves a gap, or the lengths do not fit the cache's shape; [`Error::OutOfMemory`], and nothing is written.
    pub fn write(&mut self, start: usize, k: &[f32], v: &[f32]) -> Result<()> {
        let [k_width, v_width] = self.shape.widths();
        let rows = self.rows_of(start, k.len(), v.len())?;
        self.write_rows(start, MatrixView::new(k, [rows, k_width]), MatrixView::new(v, [rows, v_width]))
    }

    /// [`Self::write`] of `k` `[n, heads * k_dim]` and `v` `[n, heads * v_dim]`, which may be columns of one product.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_rows(&mut self, start: usize, k: MatrixView<'_>, v: MatrixView<'_>) -> Result<()> {
        let shape = self.shape;
        let [of_k, of_v] = [k, v].map(MatrixView::shape);
        if [of_k[1], of_v[1]] != shape.widths() {
            let what = format!("k is {of_k:?} and v {of_v:?}, expected rows of {:?}", shape.widths());
            return Err(Error::shape("kv_write", what));
        }
        let new = |dim| CodeRows::new(shape.heads, dim, 1);
        let mut codes = match shape.kind.bits() {
            Some(bits) => Some((bits, [new(shape.k_dim)?, new(shape.v_dim)?])),
            None => None,
        };
        let rows = self.make_room(start, of_k[0] * of_k[1], of_v[0] * of_v[1])?;
        for row in 0..rows {
            let (page, slot) = ((start + row) / PAGE, (start + row) % PAGE);
            let (k, v) = (k.row(row), v.row(row));
            match Arc::make_mut(&mut self.pages[page - self.gone]) {
                Page::F32(page) => write_token(page, &shape, slot, k, v, |x| x),
                Page::F16(page) => write_token(page, &shape, slot, k, v, f16::from_f32),
                Page::BF16(page) => write_token(page, &shape, slot, k, v, bf16::from_f32),
                page => {
                    let Some((bits, codes)) = &mut codes else { unreachable!("a page of another type") };
                    codes[0].encode(*bits, shape.k_dim, k);
                    codes[1].encode(*bits, shape.v_dim, v);
                    write_codes(page, &shape, slot, [&codes[0], &codes[1]], 0);
                }
            }
        }
        self.len = start + rows;
        Ok(())
    }

    /// How many rows `k` and `v` elements are, where they can be written from position `start` on.
    fn rows_of(&self, start: usize, k: usize, v: usize) -> Result<usize> {
        let [k_width, v_width] = self.shape.widths();
        let fits = k_width > 0 && v_width > 0 && k.is_multiple_of(k_width) && k / k_width * v_width == v;
        if start > self.len || !fits {
            return Err(Error::shape(
                "kv_write",
                format!(
                    "k has {k} and v {v} elements at position {start}, expected rows of {k_width} and {v_width} for a \
                     cache of {} tokens",
                    self.len
                ),
            ));
        }
        if start < self.len && !self.has_what_is_seen_from(start) {
            let what = format!("what position {start} sees was given back behind its window");
            return Err(Error::shape("kv_write", what));
        }
        Ok(k / k_width)
    }

    /// Room for rows of `k` and `v` elements from position `start` on, in place of what was there; the number of rows. Where that
    /// is not to be had, the tokens before `start` stay.
    fn make_room(&mut self, start: usize, k: usize, v: usize) -> Result<usize> {
        let rows = self.rows_of(start, k, v)?;
        self.truncate(start);
        // What others hold, too, is copied before it is written to: here, where that may fail.
        self.own_last()?;
        let (held, all) = (self.pages.len(), (start + rows).div_ceil(PAGE) - self.gone);
        alloc::reserve_more(&mut self.pages, all.saturating_sub(held), WHAT)?;
        while self.pages.len() < all {
            match Page::new(&self.shape) {
                Ok(page) => self.pages.push(Arc::new(page)),
                Err(error) => {
                    self.pages.truncate(held);
                    return Err(error);
                }
            }
        }
        Ok(rows)
    }

    /// All keys and values as [`Self::write`] takes them, zeros for those that were given back: for a move to another backend, and
    /// for tests.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn read(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let KvShape { heads, k_dim, v_dim, latent, .. } = self.shape;
        let ([k_width, v_width], [mut k, mut v]) = (self.shape.widths(), [Vec::new(), Vec::new()]);
        alloc::reserve(&mut k, self.len * k_width, WHAT)?;
        alloc::reserve(&mut v, self.len * v_width, WHAT)?;
        k.resize(self.first() * k_width, 0.0);
        v.resize(self.first() * v_width, 0.0);
        for position in self.first()..self.len {
            let (page, slot) = (position / PAGE, position % PAGE);
            if latent {
                let row = self.values(page, 0);
                k.extend((0..v_dim).map(|d| row.value(slot, d, k_dim)));
                v.extend((v_dim..k_dim).map(|d| row.value(slot, d, k_dim)));
                continue;
            }
            for head in 0..heads {
                let (keys, values) = (self.keys(page, head), self.values(page, head));
                k.extend((0..k_dim).map(|d| keys.key(slot, d)));
                v.extend((0..v_dim).map(|d| values.value(slot, d, v_dim)));
            }
        }
        Ok((k, v))
    }

    /// All keys and values of a quantized cache as they are kept, zeros for those that were given back; none of another one.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn read_codes(&self) -> Result<Option<[CodeRows; 2]>> {
        let KvShape { heads, k_dim, v_dim, kind, .. } = self.shape;
        if kind.bits().is_none() {
            return Ok(None);
        }
        let room = |dim| {
            let mut rows = CodeRows::new(heads, dim, self.first())?;
            rows.reserve(heads, dim, self.len - self.first())?;
            Ok(rows)
        };
        let mut rows = [room(k_dim)?, room(v_dim)?];
        for position in self.first()..self.len {
            let (page, slot) = (position / PAGE, position % PAGE);
            for head in 0..heads {
                for d in 0..k_dim {
                    rows[0].push(
                        d,
                        match self.keys(page, head) {
                            Block::Q8(codes) => codes.key(slot, d),
                            Block::Q4(codes) => codes.key(slot, d),
                            _ => unreachable!("a page of another type"),
                        },
                    );
                }
                for d in 0..v_dim {
                    rows[1].push(
                        d,
                        match self.values(page, head) {
                            Block::Q8(codes) => codes.value(slot, d, v_dim),
                            Block::Q4(codes) => codes.value(slot, d, v_dim),
                            _ => unreachable!("a page of another type"),
                        },
                    );
                }
            }
        }
        Ok(Some(rows))
    }

    /// Replaces what is cached by what [`Self::read_codes`] gave.
    ///
    /// # Errors
    /// Where the lengths do not fit the cache's shape, or it is not quantized.
    pub fn set_codes(&mut self, [k, v]: &[CodeRows; 2]) -> Result<()> {
        let shape = self.shape;
        let rows = self.make_room(0, k.codes.len(), v.codes.len())?;
        let [of_k, of_v] = shape.dims().map(|dim| rows * shape.heads * dim.div_ceil(GROUP));
        let lens = [k.scales.len(), k.biases.len(), v.scales.len(), v.biases.len()];
        if shape.kind.bits().is_none() || lens != [of_k, of_k, of_v, of_v] {
            self.truncate(0);
            let what = format!(
                "{lens:?} scales and biases for {rows} rows in {}, expected {of_k} of K and {of_v} of V",
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
    let (KvShape { k_dim, v_dim, .. }, [of_k, of_v]) = (*shape, shape.blocks());
    if shape.latent {
        for (to, &x) in page[slot * k_dim..(slot + 1) * k_dim].iter_mut().zip(k.iter().chain(v)) {
            *to = round(x);
        }
        return;
    }
    for (head, (k, v)) in k.chunks_exact(k_dim).zip(v.chunks_exact(v_dim)).enumerate() {
        let (keys, values) = page[head * (of_k + of_v)..(head + 1) * (of_k + of_v)].split_at_mut(of_k);
        for (d, &k) in k.iter().enumerate() {
            keys[d * PAGE + slot] = round(k);
        }
        for (to, &v) in values[slot * v_dim..(slot + 1) * v_dim].iter_mut().zip(v) {
            *to = round(v);
        }
    }
}

/// The same in codes, of row `row` of K and V.
fn write_codes(page: &mut Page, shape: &KvShape, slot: usize, rows: [&CodeRows; 2], row: usize) {
    let [k, v] = rows;
    let rows = [k.row(shape.heads, shape.k_dim, row), v.row(shape.heads, shape.v_dim, row)];
    match page {
        Page::Q8(page) => page.write(shape, slot, rows),
        Page::Q4(page) => page.write(shape, slot, rows),
        Page::F32(_) | Page::F16(_) | Page::BF16(_) => unreachable!("a page of another type"),
    }
}
