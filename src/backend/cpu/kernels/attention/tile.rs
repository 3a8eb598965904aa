//! The arithmetic of attention: register tiles of products, packing, and the softmax of a segment's scores.

use crate::backend::cpu::isa::{Element, Kernel, Simd};
use crate::backend::cpu::kernels::math;
use crate::backend::kv::{Code, PAGE};

/// Rows of a register tile: with [`panel`] vectors, 24 accumulators, 4 operands and a broadcast in 32 registers, or
/// 12, 2 and 1 in 16.
pub(super) const ROWS: usize = 6;

/// Vectors in a row of a register tile.
#[inline(always)]
pub(super) const fn panel<S: Simd>() -> usize {
    if S::REGISTERS >= 32 { 4 } else { 2 }
}

/// What `B` is kept in: how a vector of a row is made floats.
pub(super) trait Operand: bytemuck::Pod {
    /// Rows that one stored row holds.
    const ROWS: usize;

    /// `LANES` elements of row `row < ROWS` of the stored row at `p`, which need not be aligned.
    ///
    /// # Safety
    /// `p` must be valid for reads of `LANES` elements.
    unsafe fn widen<S: Simd>(s: S, p: *const Self, row: usize) -> S::V;

    /// The first `n <= LANES` of them, and what zeros stand for in the other lanes.
    ///
    /// # Safety
    /// `p` must be valid for reads of `n` elements, `n <= LANES`.
    #[inline(always)]
    unsafe fn widen_partial<S: Simd>(s: S, p: *const Self, row: usize, n: usize) -> S::V {
        let mut all: [Self; 16] = bytemuck::Zeroable::zeroed();
        // SAFETY: the caller vouches for n elements at p; LANES <= 16, so `all` has room for n and for a vector.
        unsafe {
            std::ptr::copy_nonoverlapping(
                p.cast::<u8>(),
                all.as_mut_ptr().cast::<u8>(),
                n * size_of::<Self>(),
            );
            Self::widen(s, all.as_ptr(), row)
        }
    }
}

impl<T: Element> Operand for T {
    const ROWS: usize = 1;

    #[inline(always)]
    unsafe fn widen<S: Simd>(s: S, p: *const Self, _: usize) -> S::V {
        // SAFETY: the caller's contract is the same.
        unsafe { <T as Element>::load(s, p) }
    }
}

/// Codes of eight bits.
impl Operand for u8 {
    const ROWS: usize = Self::COUNT;

    #[inline(always)]
    unsafe fn widen<S: Simd>(s: S, p: *const Self, _: usize) -> S::V {
        // SAFETY: the caller's contract is the same.
        unsafe { s.load_u8_ptr(p) }
    }
}

/// Eight codes of four bits.
impl Operand for u32 {
    const ROWS: usize = Self::COUNT;

    #[inline(always)]
    unsafe fn widen<S: Simd>(s: S, p: *const Self, row: usize) -> S::V {
        // SAFETY: the caller's contract is the same.
        unsafe { s.load_u4_ptr(p, row) }
    }
}

/// `C += A · B`, or `C = A · B`: each element of `C` is one chain of `fma` over `k`, in increasing order, whatever
/// tile it is computed in.
#[derive(Clone, Copy)]
pub(super) struct Product<T> {
    /// `[rows, k]`.
    pub a: *const f32,
    /// Elements between rows of `a`.
    pub lda: usize,
    /// `[k, vectors * LANES]`, in panels of [`panel`] vectors; `k` is a multiple of [`Operand::ROWS`].
    pub b: *const T,
    /// Elements between stored rows of a panel.
    pub ldb: usize,
    /// Elements between panels.
    pub panel_stride: usize,
    /// `[rows, vectors * LANES]`.
    pub c: *mut f32,
    /// Elements between rows of `c`.
    pub ldc: usize,
    pub rows: usize,
    pub vectors: usize,
    pub k: usize,
    /// Whether the chains go on from `c`, or start at zero.
    pub resume: bool,
    /// What will be read next, as large as `b`: asked for while `b` is read, because pages and heads are too short for
    /// the processor to foresee it. Prefetching the same memory twice, or `b` itself, costs next to nothing.
    pub ahead: *const u8,
}

impl<T: Operand> Product<T> {
    /// The same product over the packed copy of `B`, row length `ldb`.
    #[inline(always)]
    pub(super) fn with<U: Operand>(self, b: *const U, ldb: usize, panel_stride: usize) -> Product<U> {
        let Self { a, lda, c, ldc, rows, vectors, k, resume, .. } = self;
        Product { a, lda, b, ldb, panel_stride, c, ldc, rows, vectors, k, resume, ahead: b.cast() }
    }

    /// Computes the product in a function of its own, so that its tiles exist once per element type.
    ///
    /// # Safety
    /// The pointers must be valid for the stated extents, and `c` must not overlap the others.
    #[inline(always)]
    pub(super) unsafe fn compute<S: Simd>(self, s: S) {
        s.isa().dispatch(self);
    }

    /// # Safety
    /// As [`Self::compute`], for `M` rows at `row` and `N` vectors of panel `j`.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // the indices address memory as well as the tile
    unsafe fn tile<S: Simd, const M: usize, const N: usize>(&self, s: S, row: usize, j: usize) {
        // SAFETY: the caller vouches for rows `row..row + M` and vectors `j * panel .. + N` of all operands.
        unsafe {
            let a = self.a.add(row * self.lda);
            let b = self.b.add(j * self.panel_stride);
            let c = self.c.add(row * self.ldc + j * panel::<S>() * S::LANES);
            let mut acc = [[s.zero(); N]; M];
            if self.resume {
                for m in 0..M {
                    for n in 0..N {
                        acc[m][n] = s.load_ptr(c.add(m * self.ldc + n * S::LANES));
                    }
                }
            }
            let ahead = self.ahead.wrapping_add(j * self.panel_stride * size_of::<T>());
            for stored in 0..self.k / T::ROWS {
                let from = stored * self.ldb;
                for line in (0..N * S::LANES * size_of::<T>()).step_by(64) {
                    s.prefetch_l2(ahead.wrapping_add(from * size_of::<T>() + line));
                }
                for row in 0..T::ROWS {
                    let mut x = [s.zero(); N];
                    for n in 0..N {
                        x[n] = T::widen(s, b.add(from + n * S::LANES), row);
                    }
                    for m in 0..M {
                        let y = s.splat(*a.add(m * self.lda + stored * T::ROWS + row));
                        for n in 0..N {
                            acc[m][n] = s.fma(y, x[n], acc[m][n]);
                        }
                    }
                }
            }
            for m in 0..M {
                for n in 0..N {
                    s.store_ptr(c.add(m * self.ldc + n * S::LANES), acc[m][n]);
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::compute`].
    #[inline(always)]
    unsafe fn panel<S: Simd, const N: usize>(&self, s: S, j: usize) {
        let mut row = 0;
        // SAFETY: row + M <= rows in each branch.
        unsafe {
            while self.rows - row >= ROWS {
                self.tile::<S, ROWS, N>(s, row, j);
                row += ROWS;
            }
            if self.rows - row >= 4 {
                self.tile::<S, 4, N>(s, row, j);
                row += 4;
            }
            if self.rows - row >= 2 {
                self.tile::<S, 2, N>(s, row, j);
                row += 2;
            }
            if row < self.rows {
                self.tile::<S, 1, N>(s, row, j);
            }
        }
    }
}

impl<T: Operand> Kernel for Product<T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let whole = self.vectors / panel::<S>();
        let rest = self.vectors % panel::<S>();
        // SAFETY: `compute`'s caller vouches for the extents; the panels cover `vectors` and no more. A rest of three
        // is one of two and one of one: the second starts two vectors on.
        unsafe {
            for j in 0..whole {
                if panel::<S>() == 4 { self.panel::<S, 4>(s, j) } else { self.panel::<S, 2>(s, j) }
            }
            if rest >= 2 {
                self.panel::<S, 2>(s, whole);
            }
            if rest % 2 == 1 {
                let skip = (rest - 1) * S::LANES;
                let last = Self { b: self.b.add(skip), c: self.c.add(skip), ..self };
                last.panel::<S, 1>(s, whole);
            }
        }
    }
}

/// Widens all of `from`.
#[inline(always)]
pub(super) fn widen<S: Simd, T: Operand>(s: S, from: &[T], to: &mut [f32]) {
    assert_eq!((from.len(), T::ROWS), (to.len(), 1), "as many elements as are stored");
    for (from, to) in from.chunks(S::LANES).zip(to.chunks_mut(S::LANES)) {
        // SAFETY: `from` has as many elements as are read.
        let v = unsafe {
            match from.len() == S::LANES {
                true => T::widen(s, from.as_ptr(), 0),
                false => T::widen_partial(s, from.as_ptr(), 0, from.len()),
            }
        };
        s.store_partial(to, v);
    }
}

/// Widens `rows` rows of `width` elements, the stored ones `ld` apart, into panels of [`panel`] vectors, the last vector of
/// a row filled with zeros; returns the elements between panels. `rows` is a multiple of [`Operand::ROWS`].
#[inline(always)]
pub(super) fn pack<S: Simd, T: Operand>(
    s: S,
    from: &[T],
    rows: usize,
    [width, ld]: [usize; 2],
    to: &mut [f32],
) -> usize {
    let wide = panel::<S>() * S::LANES;
    let stride = rows * wide;
    assert!(width <= ld && from.len() >= rows / T::ROWS * ld && to.len() >= width.div_ceil(wide) * stride);
    for (j, column) in (0..width).step_by(wide).enumerate() {
        for row in 0..rows {
            for n in (0..wide).step_by(S::LANES).take_while(|n| column + n < width) {
                let left = width - column - n;
                let (stored, part) = (row / T::ROWS, row % T::ROWS);
                // SAFETY: `left` elements of the row begin here; `to` holds `rows` rows of `wide` for each panel.
                unsafe {
                    let p = from.as_ptr().add(stored * ld + column + n);
                    let v = if left >= S::LANES {
                        T::widen(s, p, part)
                    } else {
                        T::widen_partial(s, p, part, left)
                    };
                    s.store_ptr(to.as_mut_ptr().add(j * stride + row * wide + n), v);
                }
            }
        }
    }
    stride
}

/// Four vectors are the chains of the sum, and what hides the latency of `exp`.
const CHAINS: usize = 4;

const _: () = assert!(PAGE.is_multiple_of(CHAINS * 16), "blocks of chains must not leave a page");

pub(super) const LANE: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// Turns products `row[lo..hi]` into `exp(score - max)`, and returns the largest score and the sum of exponentials.
/// What lies outside `lo..hi` in the blocks it touches becomes 0, whatever it was.
///
/// A key's chain in the sum depends on its position in the row alone, and an excluded key adds exactly 0.
#[inline(always)]
pub(super) fn softmax<S: Simd>(
    s: S,
    row: &mut [f32],
    lo: usize,
    hi: usize,
    scale: f32,
    soft_cap: Option<f32>,
) -> (f32, f32) {
    let block = CHAINS * S::LANES;
    let (first, end) = (lo / block * block, hi.next_multiple_of(block));
    let row = &mut row[first..end];
    let masked = s.splat(f32::NEG_INFINITY);
    // The lowest finite number: where every score is -inf, the exponentials are 0 and not NaN.
    let mut top = [s.splat(f32::MIN); CHAINS];
    for (b, part) in row.chunks_exact_mut(block).enumerate() {
        let at = first + b * block;
        let inside = at >= lo && at + block <= hi;
        for n in 0..CHAINS {
            let part = &mut part[n * S::LANES..(n + 1) * S::LANES];
            let mut v = s.mul(s.load(part), s.splat(scale));
            if let Some(cap) = soft_cap {
                let cap = s.splat(cap);
                v = s.mul(cap, math::tanh(s, s.div(v, cap)));
            }
            if !inside {
                // Positions in a segment are small integers: exact.
                let lane = s.add(s.load(&LANE), s.splat((at + n * S::LANES) as f32));
                v = s.select_lt(lane, s.splat(lo as f32), masked, v);
                v = s.select_lt(lane, s.splat(hi as f32), v, masked);
            }
            top[n] = s.max(top[n], v);
            s.store(part, v);
        }
    }
    let max = s.reduce_max(s.max(s.max(top[0], top[1]), s.max(top[2], top[3])));
    let shift = s.splat(max);
    let mut sum = [s.zero(); CHAINS];
    for part in row.chunks_exact_mut(block) {
        for n in 0..CHAINS {
            let part = &mut part[n * S::LANES..(n + 1) * S::LANES];
            let v = math::exp(s, s.sub(s.load(part), shift));
            sum[n] = s.add(sum[n], v);
            s.store(part, v);
        }
    }
    (max, s.reduce_add(s.add(s.add(sum[0], sum[1]), s.add(sum[2], sum[3]))))
}

/// A softmax under way: the largest score so far, the sum of exponentials and the weighted values, both relative to
/// it.
pub(super) struct State<'a> {
    pub max: &'a mut f32,
    pub sum: &'a mut f32,
    pub acc: &'a mut [f32],
}

/// The largest of both scores, and what exponentials relative to either are multiplied by to be relative to it: in each lane
/// for a row of its own.
#[inline(always)]
pub(super) fn factors<S: Simd>(s: S, before: S::V, next: S::V) -> [S::V; 3] {
    let joint = s.max(before, next);
    [joint, math::exp(s, s.sub(before, joint)), math::exp(s, s.sub(next, joint))]
}

/// Takes the next segment of the same row into `state`: its `sum` and `acc`, with the [`factors`]. The accumulators are of
/// whole vectors.
#[inline(always)]
pub(super) fn merge<S: Simd>(s: S, state: State<'_>, [joint, old, new]: [f32; 3], sum: f32, acc: &[f32]) {
    *state.max = joint;
    *state.sum = *state.sum * old + sum * new;
    let (old, new) = (s.splat(old), s.splat(new));
    for (to, from) in state.acc.chunks_exact_mut(S::LANES).zip(acc.chunks_exact(S::LANES)) {
        let v = s.fma(s.load(from), new, s.mul(s.load(to), old));
        s.store(to, v);
    }
}
