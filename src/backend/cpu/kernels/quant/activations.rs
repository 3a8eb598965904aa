//! Activations laid out for the tiles: rounded to eight bits, or as they are.
//!
//! Rows of `x` are cut into tiles; a tile holds, block after block, what each of its rows has there.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Zeroable;
use smallvec::SmallVec;

use super::{BLOCK, PackedMatrix, Rows};
use crate::alloc;
use crate::backend::cpu::isa::{IntKernel, IntSimd, Isa, Simd, place};
use crate::backend::cpu::pool::{Parts, Pool};
use crate::error::Result;

/// How some rows are cut into tiles: as many of the largest size as there are, then one of each power of two that is left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    first: usize,
    total: usize,
    max: usize,
}

impl Tiles {
    /// `max` is a power of two.
    pub(super) fn new(rows: Range<usize>, max: usize) -> Self {
        debug_assert!(max.is_power_of_two());
        Self { first: rows.start, total: rows.len(), max }
    }

    /// The first row.
    #[inline(always)]
    pub(super) fn first(&self) -> usize {
        self.first
    }

    /// Rows.
    pub(super) fn len_rows(&self) -> usize {
        self.total
    }

    pub(super) fn len(&self) -> usize {
        self.total / self.max + (self.total % self.max).count_ones() as usize
    }

    /// The rows of tile `i`.
    #[inline(always)]
    pub(super) fn rows(&self, i: usize) -> Range<usize> {
        let (large, mut left) = (self.total / self.max, self.total % self.max);
        let (mut start, mut size) = (i.min(large) * self.max, self.max);
        for _ in large..=i {
            size = 1 << left.ilog2();
            left -= size;
            start += size;
        }
        let start = self.first + start - if i < large { 0 } else { size };
        start..start + size
    }

    /// How many bands of about `bytes` each there are, at `cols` bytes a row.
    pub(super) fn bands(&self, cols: usize, bytes: usize) -> usize {
        let rows = (bytes / cols.max(1)).max(1);
        self.total.div_ceil(rows).min(self.len())
    }

    /// The tiles of band `i` of `count`.
    pub(super) fn band(&self, i: usize, count: usize) -> Range<usize> {
        i * self.len() / count..(i + 1) * self.len() / count
    }
}

/// The rows of `x` in stretches that are cut into tiles, each by itself: those of each expert.
#[derive(Debug)]
pub(super) struct Segments {
    each: SmallVec<[Tiles; 1]>,
    /// Tiles up to the end of each.
    ends: SmallVec<[usize; 1]>,
    max: usize,
}

impl Segments {
    /// `max` as for [`Tiles::new`].
    pub(super) fn new(max: usize) -> Self {
        Self { each: SmallVec::new(), ends: SmallVec::new(), max }
    }

    /// Adds a stretch, unless it is the last one again.
    ///
    /// # Panics
    /// Where it begins before the end of the last.
    pub(super) fn push(&mut self, rows: Range<usize>) {
        if rows.is_empty() {
            return;
        }
        if let Some(last) = self.each.last() {
            if (last.first, last.total) == (rows.start, rows.len()) {
                return;
            }
            assert!(last.first + last.total <= rows.start, "linear: rows {rows:?} out of order");
        }
        let tiles = self.tiles(rows);
        self.ends.push(self.len_tiles() + tiles.len());
        self.each.push(tiles);
    }

    /// How rows of a stretch are cut.
    pub(super) fn tiles(&self, rows: Range<usize>) -> Tiles {
        Tiles::new(rows, self.max)
    }

    /// Stretches.
    pub(super) fn len(&self) -> usize {
        self.each.len()
    }

    /// The end of the last.
    fn rows_end(&self) -> usize {
        self.each.last().map_or(0, |last| last.first + last.total)
    }

    /// All tiles.
    fn len_tiles(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The rows of tile `i` of all.
    fn tile(&self, i: usize) -> Range<usize> {
        let at = self.ends.partition_point(|&end| end <= i);
        self.each[at].rows(i - if at == 0 { 0 } else { self.ends[at - 1] })
    }
}

/// What integer sums of one kind of codes start from, and what their biases multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Correction {
    /// Parts of a block that have scales of their own: 1 or 2.
    pub subs: usize,
    /// What is taken off the codes as they are multiplied.
    pub offset: i32,
}

impl Correction {
    fn of(weight: &PackedMatrix, wide_bias: i32) -> Self {
        let route = weight.route();
        Self { subs: route.subs(), offset: weight.offset() - if route.wide() { wide_bias } else { 0 } }
    }
}

/// Memory of the activations, kept between calls.
#[derive(Debug, Default)]
pub struct ActivationScratch {
    codes: Vec<i8>,
    /// `dx` of each block.
    scales: Vec<f32>,
    /// Σ q of each half block.
    sums: Vec<i32>,
    corrections: Vec<(Correction, Vec<i32>, Vec<f32>)>,
    exact: Vec<f32>,
    blocks: usize,
    wide_bias: i32,
}

/// Rounded activations: tile by tile, `[block][row]`.
#[derive(Clone, Copy)]
pub(super) struct Quantized<'a> {
    scratch: &'a ActivationScratch,
}

impl Quantized<'_> {
    /// `[block][row][32]` of the tile that begins at row `start`, a block's rows where [`place`] puts them.
    #[inline(always)]
    pub(super) fn codes(&self, start: usize) -> *const i8 {
        self.scratch.codes[start * self.scratch.blocks * BLOCK..].as_ptr()
    }

    /// `dx`, `[block][row]`.
    #[inline(always)]
    pub(super) fn scales(&self, start: usize) -> *const f32 {
        self.scratch.scales[start * self.scratch.blocks..].as_ptr()
    }

    /// For a weight's correction: what sums start from, and `dx Σ q`; `[block][row][sub]`.
    #[inline(always)]
    pub(super) fn correction(&self, weight: &PackedMatrix, start: usize) -> (*const i32, *const f32) {
        let wanted = Correction::of(weight, self.scratch.wide_bias);
        let Some((_, inits, sums)) = self.scratch.corrections.iter().find(|(of, ..)| *of == wanted) else {
            unreachable!("the corrections of every weight of the group were made")
        };
        let at = start * self.scratch.blocks * wanted.subs;
        (inits[at..].as_ptr(), sums[at..].as_ptr())
    }
}

/// Activations as they are: tile by tile, `[block][row][32]`.
#[derive(Clone, Copy)]
pub(super) struct Exact<'a> {
    scratch: &'a ActivationScratch,
}

impl Exact<'_> {
    /// `[block][row][32]` of the tile that begins at row `start`.
    #[inline(always)]
    pub(super) fn values(&self, start: usize) -> *const f32 {
        self.scratch.exact[start * self.scratch.blocks * BLOCK..].as_ptr()
    }
}

impl ActivationScratch {
    pub(super) fn quantized(&self) -> Quantized<'_> {
        Quantized { scratch: self }
    }

    pub(super) fn exact(&self) -> Exact<'_> {
        Exact { scratch: self }
    }

    /// Rounds `x` `[T, K]` for `weights`; stored column `j` is column `order[j]`.
    pub(super) fn quantize<'w>(
        &mut self,
        pool: &Pool,
        isa: Isa,
        x: Rows<'_>,
        order: Option<&Arc<[u32]>>,
        segments: &Segments,
        weights: impl Iterator<Item = &'w PackedMatrix>,
    ) -> Result<()> {
        let t = segments.rows_end();
        let blocks = x.cols.div_ceil(BLOCK);
        self.blocks = blocks;
        self.wide_bias = isa.dispatch_int(WideBias);
        grow(&mut self.codes, t * blocks * BLOCK)?;
        grow(&mut self.scales, t * blocks)?;
        grow(&mut self.sums, t * blocks * 2)?;
        let mut used = 0;
        for weight in weights {
            let wanted = Correction::of(weight, self.wide_bias);
            if self.corrections[..used].iter().any(|(of, ..)| *of == wanted) {
                continue;
            }
            if used == self.corrections.len() {
                self.corrections.push((wanted, Vec::new(), Vec::new()));
            }
            let (of, inits, sums) = &mut self.corrections[used];
            *of = wanted;
            grow(inits, t * blocks * wanted.subs)?;
            grow(sums, t * blocks * wanted.subs)?;
            used += 1;
        }

        let (codes, scales, sums) =
            (Parts::new(&mut self.codes), Parts::new(&mut self.scales), Parts::new(&mut self.sums));
        let corrections: smallvec::SmallVec<[_; 4]> = self
            .corrections
            .iter_mut()
            .take(used)
            .map(|(of, inits, sums)| (*of, Parts::new(inits), Parts::new(sums)))
            .collect();
        pool.run(segments.len_tiles(), |tile| {
            let rows = segments.tile(tile);
            let (at, len) = (rows.start * blocks, rows.len() * blocks);
            // SAFETY: tiles follow one another without overlap.
            let (codes, scales, sums) = unsafe {
                (codes.slice(at * BLOCK, len * BLOCK), scales.slice(at, len), sums.slice(2 * at, 2 * len))
            };
            isa.dispatch_int(Round { x, rows, order: order.map(|order| &**order), codes, scales, sums });
            for (of, inits, biased) in &corrections {
                // SAFETY: as above.
                let (inits, biased) = unsafe {
                    (inits.slice(at * of.subs, len * of.subs), biased.slice(at * of.subs, len * of.subs))
                };
                for i in 0..len {
                    for sub in 0..of.subs {
                        let sum =
                            if of.subs == 1 { sums[2 * i] + sums[2 * i + 1] } else { sums[2 * i + sub] };
                        inits[i * of.subs + sub] = -of.offset * sum;
                        biased[i * of.subs + sub] = scales[i] * sum as f32;
                    }
                }
            }
        });
        Ok(())
    }

    /// Lays out `x` `[T, K]` as it is; stored column `j` is column `order[j]`.
    pub(super) fn lay_out(
        &mut self,
        pool: &Pool,
        x: Rows<'_>,
        order: Option<&Arc<[u32]>>,
        segments: &Segments,
    ) -> Result<()> {
        let t = segments.rows_end();
        let blocks = x.cols.div_ceil(BLOCK);
        self.blocks = blocks;
        grow(&mut self.exact, t * blocks * BLOCK)?;
        let exact = Parts::new(&mut self.exact);
        pool.run(segments.len_tiles(), |tile| {
            let rows = segments.tile(tile);
            // SAFETY: tiles follow one another without overlap.
            let out = unsafe { exact.slice(rows.start * blocks * BLOCK, rows.len() * blocks * BLOCK) };
            for (r, row) in rows.clone().enumerate() {
                let x = x.row(row);
                for block in 0..blocks {
                    let out = &mut out[(block * rows.len() + r) * BLOCK..][..BLOCK];
                    gather(x, order.map(|order| &**order), block, out);
                }
            }
        });
        Ok(())
    }
}

/// At least `len` elements; what they hold is written before it is read.
fn grow<T: Copy + Zeroable>(v: &mut Vec<T>, len: usize) -> Result<()> {
    alloc::replace(v, len, "rounded activations of a step")
}

/// Block `block` of a row, zeros past its end.
#[inline(always)]
fn gather(x: &[f32], order: Option<&[u32]>, block: usize, out: &mut [f32]) {
    let from = block * BLOCK;
    let len = BLOCK.min(x.len() - from);
    match order {
        None => out[..len].copy_from_slice(&x[from..from + len]),
        Some(order) => {
            out.iter_mut().zip(&order[from..from + len]).for_each(|(out, &k)| *out = x[k as usize]);
        }
    }
    out[len..].fill(0.0);
}

struct WideBias;

impl IntKernel for WideBias {
    type Out = i32;

    #[inline(always)]
    fn run<S: IntSimd>(self, _: S) -> i32 {
        S::WIDE_BIAS
    }
}

/// Rounds the rows of a tile, each block by itself: `dx = max |x| / 127`, `q = round(x / dx)`, ties to even.
///
/// A block that has an infinity or a NaN gets a `dx` of NaN, so that outputs show it.
struct Round<'a> {
    x: Rows<'a>,
    rows: Range<usize>,
    order: Option<&'a [u32]>,
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl IntKernel for Round<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: IntSimd>(self, s: S) {
        let f = s.float();
        let rows = self.rows.len();
        let blocks = self.x.cols.div_ceil(BLOCK);
        let mut values = [0.0f32; BLOCK];
        for (r, row) in self.rows.clone().enumerate() {
            let x = self.x.row(row);
            for block in 0..blocks {
                gather(x, self.order, block, &mut values);
                let at = block * rows + r;
                let (mut most, mut wrong) = (f.zero(), f.zero());
                for part in values.chunks_exact(S::F::LANES) {
                    let v = f.load(part);
                    most = f.max(f.abs(v), most);
                    // Zero where finite, NaN otherwise.
                    wrong = f.add(wrong, f.sub(v, v));
                }
                let most = f.reduce_max(most);
                let codes = &mut self.codes[block * rows * BLOCK..][..rows * BLOCK];
                let sums = &mut self.sums[2 * at..][..2];
                if f.reduce_add(wrong) != 0.0 || most == 0.0 || !most.is_finite() {
                    for eight in 0..BLOCK / 8 {
                        codes[place::<S>(BLOCK, rows, r, eight)..][..8].fill(0);
                    }
                    sums.fill(0);
                    self.scales[at] = if most == 0.0 && f.reduce_add(wrong) == 0.0 { 0.0 } else { f32::NAN };
                    continue;
                }
                let scale = most / 127.0;
                // A largest value near the smallest numbers has no reciprocal: all codes are zero then.
                let inverse = if scale > 1e-37 { 1.0 / scale } else { 0.0 };
                self.scales[at] = if inverse == 0.0 { 0.0 } else { scale };
                let by = f.splat(inverse);
                for (half, sum) in sums.iter_mut().enumerate() {
                    // Small integers: exact in any order.
                    let mut total = f.zero();
                    for at in (half * BLOCK / 2..(half + 1) * BLOCK / 2).step_by(S::F::LANES) {
                        let v = f.round(f.mul(f.load(&values[at..at + S::F::LANES]), by));
                        let v = f.max(f.splat(-127.0), f.min(v, f.splat(127.0)));
                        total = f.add(total, v);
                        let codes = &mut codes[place::<S>(BLOCK, rows, r, at / 8)..][..S::F::LANES];
                        // SAFETY: these are as many codes as lanes, and integers in -127..=127.
                        unsafe { s.store_i8(codes.as_mut_ptr(), v) };
                    }
                    *sum = f.reduce_add(total) as i32;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tiles;

    #[test]
    fn tiles_follow_one_another() {
        for max in [4, 16] {
            for total in 0..70 {
                let tiles = Tiles::new(5..5 + total, max);
                let rows: Vec<_> = (0..tiles.len()).map(|i| tiles.rows(i)).collect();
                let ends = rows.iter().fold(5, |end, rows| {
                    assert_eq!(rows.start, end, "{total} in {max}: {rows:?}");
                    rows.end
                });
                assert_eq!(ends, 5 + total);
                let sizes: Vec<usize> = rows.iter().map(ExactSizeIterator::len).collect();
                assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes.iter().all(|size| size.is_power_of_two()));
                assert!(sizes.iter().all(|&size| size <= max), "{sizes:?}");
            }
        }
    }
}
