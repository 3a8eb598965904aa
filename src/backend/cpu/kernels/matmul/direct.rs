//! Few rows of `x`: weights stream from memory once and are widened in registers.

use super::{Blocks, Input, NR, OutputPart, max_tile_rows, with_element, with_tile_rows};
use crate::backend::cpu::isa::{Element, Isa, Kernel, Simd, array_of, unrolled};
use crate::backend::cpu::pool::Pool;

/// How far ahead of its use a cache line of each of the [`NR`] rows is asked for into L2: at a core's 10 to 20 GB/s and 100 ns
/// to memory, 2 KB are in flight; four times that covers the unevenness of shared machines. Pages end every 4 KB, where the
/// hardware's own prefetcher stops.
const AHEAD: usize = 2048;
/// The same from L2 into L1, whose 12 to 16 buffers for lines to come are too few for what memory takes.
const NEAR: usize = 512;

/// A task's weights: long enough that claiming it (0.1 µs) is nothing, short enough that threads end together.
const TASK_BYTES: std::ops::RangeInclusive<usize> = 16 << 10..=256 << 10;

/// One tile: a second pass that widens the weights again costs more than going through a panel.
pub(super) fn max_rows(isa: Isa) -> usize {
    struct Registers;
    impl Kernel for Registers {
        type Out = usize;
        fn run<S: Simd>(self, _: S) -> usize {
            S::REGISTERS
        }
    }
    max_tile_rows(isa.dispatch(Registers))
}

pub(super) fn run(pool: &Pool, isa: Isa, x: Input<'_>, parts: &[OutputPart<'_>]) {
    let bytes: usize = parts.iter().map(|p| p.weight.bytes.len()).sum();
    let rows: usize = parts.iter().map(|p| p.weight.rows).sum();
    let task = (bytes / (8 * pool.threads())).clamp(*TASK_BYTES.start(), *TASK_BYTES.end());
    let row = (bytes / rows).max(1);
    let blocks = Blocks { rows: (task / row).next_multiple_of(NR).max(NR) };
    pool.run(blocks.count(parts), |index| {
        let (part, start, end) = blocks.find(parts, index);
        isa.dispatch(Stream { x, part, start, end });
    });
}

/// Rows `start..end` of a weight against all of `x`.
struct Stream<'a> {
    x: Input<'a>,
    part: &'a OutputPart<'a>,
    start: usize,
    end: usize,
}

impl Kernel for Stream<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_element!(self.part.weight.dtype, E => self.stream::<S, E>(s))
    }
}

impl Stream<'_> {
    #[inline(always)]
    fn stream<S: Simd, E: Element>(&self, s: S) {
        let k = self.x.cols;
        let w = self.part.weight.bytes.as_ptr().cast::<E>();
        let tiles = self.x.t.div_ceil(max_tile_rows(S::REGISTERS));
        for n in (self.start..self.end).step_by(NR) {
            // Past the end the last row stands in; its sums are not stored.
            let rows = std::array::from_fn(|i| w.wrapping_add((n + i).min(self.end - 1) * k));
            for tile in 0..tiles {
                let t = tile * self.x.t / tiles;
                let x = &self.x.data[t * k..];
                with_tile_rows!(S, (tile + 1) * self.x.t / tiles - t, M => {
                    assert!(x.len() >= M * k);
                    // SAFETY: x holds M rows of k, as asserted; each of the rows is below N, so k elements follow.
                    let sums = unsafe { dot::<S, E, M>(s, rows, x.as_ptr(), k) };
                    for (i, sums) in sums.into_iter().enumerate() {
                        // SAFETY: rows start..end of the weight are this task's alone.
                        unsafe { self.part.store(t + i, n, self.end, sums) };
                    }
                });
            }
        }
    }
}

/// The products of `M` rows of `x`, `k` apart, with [`NR`] rows of weights.
///
/// # Safety
/// `x` must be valid for `M * k` elements, each of `w` for `k`.
// Indices name registers here: iterators over both sides would hide the tile.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn dot<S: Simd, E: Element, const M: usize>(
    s: S,
    w: [*const E; NR],
    x: *const f32,
    k: usize,
) -> [[f32; NR]; M] {
    let mut acc = [[s.zero(); NR]; M];
    let line = 64 / size_of::<E>();
    let mut at = 0;
    while at + line <= k {
        // The line that far from this one: in this row or, past its end, in the one that follows it NR rows on.
        let [far, near] = [AHEAD, NEAR].map(|bytes| {
            let ahead = at + bytes / size_of::<E>();
            if ahead < k { ahead } else { ahead + (NR - 1) * k }
        });
        for w in w {
            s.prefetch_l2(w.wrapping_add(far).cast());
            s.prefetch(w.wrapping_add(near).cast());
        }
        for v in 0..line / S::LANES {
            // SAFETY: at + line <= k.
            unsafe { step::<S, E, M>(s, &mut acc, w, x, k, at + v * S::LANES) };
        }
        at += line;
    }
    while at + S::LANES <= k {
        // SAFETY: at + LANES <= k.
        unsafe { step::<S, E, M>(s, &mut acc, w, x, k, at) };
        at += S::LANES;
    }
    if at < k {
        // SAFETY: k - at < LANES elements are left of every row.
        unsafe {
            let x = array_of!(M, |m| s.load_partial_ptr(x.add(m * k + at), k - at));
            for r in 0..NR {
                let w = E::load_partial(s, w[r].add(at), k - at);
                for m in 0..M {
                    acc[m][r] = s.fma(w, x[m], acc[m][r]);
                }
            }
        }
    }
    array_of!(M, |m| s.reduce_add4(acc[m]))
}

/// One vector of each row: columns `at..at + LANES`.
///
/// # Safety
/// As [`dot`], and `at + LANES <= k`.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn step<S: Simd, E: Element, const M: usize>(
    s: S,
    acc: &mut [[S::V; NR]; M],
    w: [*const E; NR],
    x: *const f32,
    k: usize,
    at: usize,
) {
    let mut xv = [s.zero(); M];
    for (m, xv) in xv.iter_mut().enumerate() {
        // SAFETY: at + LANES <= k, inside row m of x.
        *xv = unsafe { s.load_ptr(x.add(m * k + at)) };
    }
    for r in 0..NR {
        // SAFETY: at + LANES <= k, inside row r of the weights.
        let w = unsafe { E::load(s, w[r].add(at)) };
        for m in 0..M {
            acc[m][r] = s.fma(w, xv[m], acc[m][r]);
        }
    }
}
