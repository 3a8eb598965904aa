//! Many rows of `x`: packed operands, register tiles, accumulators that are spilled whole where K is cut.
//!
//! A task is a block of out, `TILES` tiles of rows by `COLUMNS` columns. For each cut of K it widens its part of the weights
//! into a panel and runs every tile over it. Both operands are laid out as the tile reads them, `[step][row][LANES]`: one
//! pointer each, no two lines on the same cache set.

use std::ops::Range;

use super::{Blocks, Input, NR, OutputPart, max_tile_rows, with_element, with_tile_rows};
use crate::backend::cpu::isa::{Element, Isa, Kernel, Simd, array_of, unrolled};
use crate::backend::cpu::pool::{Parts, Pool, Scratch};
use crate::error::Result;

/// Columns of W in a cut of K: [`GROUP`] tiles of x (24 KB on AVX-512, 12 on AVX2) and NR rows of the panel (8 KB) fit in
/// L1 (48 KB; 32 on Zen 3), and spilling the accumulators, twice a tile, costs a tenth of the tile's FMAs.
const CUT: usize = 512;
/// Tiles of x that stay in L1 while the panel passes.
const GROUP: usize = 2;
/// Tiles of rows in a task: weights are widened once per 192 rows of x (96 on AVX2), at 3 instructions per 192 FMAs.
const TILES: usize = 32;
/// Rows of W in a task. Panel 128 KB, accumulators 768 KB (192 on AVX2), x 384 KB (192): in L2 (2 MB; Zen 3's 512 KB just).
const COLUMNS: usize = 64;

/// How a problem is cut; the same for every task.
#[derive(Clone, Copy)]
struct Plan {
    /// K, and K rounded up to whole vectors.
    k: usize,
    k_padded: usize,
    /// Elements in a cut: whole vectors.
    cut: usize,
    t: usize,
    /// Tiles of x, of equal size to within a row.
    tiles: usize,
    columns: usize,
    lanes: usize,
    tile_rows: usize,
}

impl Plan {
    /// First row of tile `i`.
    #[inline(always)]
    fn row(&self, i: usize) -> usize {
        i * self.t / self.tiles
    }

    fn panel(&self) -> usize {
        self.columns * self.cut
    }

    fn accumulators(&self) -> usize {
        TILES.min(self.tiles) * self.tile_rows * self.columns * self.lanes
    }
}

struct MakePlan<'a> {
    x: Input<'a>,
    columns: usize,
}

impl Kernel for MakePlan<'_> {
    type Out = Plan;
    fn run<S: Simd>(self, _: S) -> Plan {
        let Input { t, cols: k, .. } = self.x;
        let k_padded = k.next_multiple_of(S::LANES);
        let cuts = k.div_ceil(CUT + CUT / 4).max(1);
        let cut = k.div_ceil(cuts).max(1).next_multiple_of(S::LANES);
        let tile_rows = max_tile_rows(S::REGISTERS);
        let tiles = t.div_ceil(tile_rows);
        Plan { k, k_padded, cut, t, tiles, columns: self.columns, lanes: S::LANES, tile_rows }
    }
}

pub(super) fn run(
    pool: &Pool,
    isa: Isa,
    x: Input<'_>,
    parts: &[OutputPart<'_>],
    scratch: &mut Scratch,
) -> Result<()> {
    let rows: usize = parts.iter().map(|p| p.weight.rows).sum();
    // At least eight tasks a thread, where the weights have the rows.
    let columns = rows.div_ceil(8 * pool.threads()).next_multiple_of(NR).min(COLUMNS);
    let plan = isa.dispatch(MakePlan { x, columns });
    let blocks = Blocks { rows: columns };
    let count = blocks.count(parts);

    scratch.reserve(pool, plan.panel() + plan.accumulators())?;
    let mut packed = scratch.take_shared(x.t * plan.k_padded)?;
    {
        let packed = Parts::new(packed.as_mut_slice());
        pool.run(plan.tiles, |tile| {
            let (start, end) = (plan.row(tile), plan.row(tile + 1));
            // SAFETY: the tiles' rows follow one another without overlap.
            let out = unsafe { packed.slice(start * plan.k_padded, (end - start) * plan.k_padded) };
            isa.dispatch(Pack { x: &x.data[start * x.cols..end * x.cols], k: x.cols, out });
        });
    }
    let bands = plan.tiles.div_ceil(TILES);
    pool.run_on(count * bands, |worker, index| {
        // All columns of a band of x before the next: the band stays in L2.
        let (band, block) = (index / count, index % count);
        let (part, start, end) = blocks.find(parts, block);
        let tiles = band * plan.tiles / bands..(band + 1) * plan.tiles / bands;
        scratch.with(worker, plan.panel() + plan.accumulators(), |memory| {
            let (panel, acc) = memory.split_at_mut(plan.panel());
            // Threads take turns: this one's next block is probably as many further as there are threads.
            let following = index % count + pool.threads();
            let next =
                (following < count).then(|| blocks.find(parts, following)).map(|(p, s, _)| p.row_bytes(s));
            isa.dispatch(Task { plan, x: packed.as_slice(), part, start, end, tiles, next, panel, acc });
        });
    });
    scratch.put_shared(packed);
    Ok(())
}

/// Rows of x, `k` apart, as `[step][row][LANES]`, the last step filled with zeros.
struct Pack<'a> {
    x: &'a [f32],
    k: usize,
    out: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.k == 0 {
            return;
        }
        let rows = self.x.len() / self.k;
        for (r, x) in self.x.chunks_exact(self.k).enumerate() {
            for (step, x) in x.chunks(S::LANES).enumerate() {
                let v = if x.len() == S::LANES { s.load(x) } else { s.load_partial(x) };
                s.store(&mut self.out[(step * rows + r) * S::LANES..], v);
            }
        }
    }
}

/// Columns `start..end` of out, for the rows of `tiles`.
struct Task<'a> {
    plan: Plan,
    x: &'a [f32],
    part: &'a OutputPart<'a>,
    start: usize,
    end: usize,
    tiles: Range<usize>,
    /// The bytes of weights that will probably be wanted next, from their first row on.
    next: Option<&'a [u8]>,
    panel: &'a mut [f32],
    acc: &'a mut [f32],
}

impl Kernel for Task<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Plan { k, k_padded, cut, .. } = self.plan;
        let groups = (self.end - self.start).div_ceil(NR);
        let mut from = 0;
        loop {
            let to = (from + cut).min(k_padded);
            with_element!(self.part.weight.dtype, E => self.widen::<S, E>(s, from, to.min(k)));
            let ahead = self.ahead(to);
            let mut calls = 0;
            let mut tile = self.tiles.start;
            while tile < self.tiles.end {
                let last = (tile + GROUP).min(self.tiles.end);
                for group in 0..groups {
                    for tile in tile..last {
                        let rows = self.plan.row(tile + 1) - self.plan.row(tile);
                        let soon = ahead.rows(calls);
                        calls += 2;
                        with_tile_rows!(S, rows, M => self.tile::<S, M>(s, tile, group, from..to, soon));
                    }
                }
                tile = last;
            }
            from = to;
            if from >= k_padded {
                break;
            }
        }
    }
}

/// Weights of the next cut, a row's part by a tile: memory works while the tiles do.
struct Ahead {
    start: *const u8,
    stride: usize,
    rows: usize,
}

impl Ahead {
    /// The part of row `i`, which a tile asks for step by step; past the last row nothing.
    #[inline(always)]
    fn rows(&self, i: usize) -> Option<[*const u8; 2]> {
        let row = |i: usize| self.start.wrapping_add(i.min(self.rows) * self.stride);
        (i <= self.rows).then(|| [row(i), row(i + 1)])
    }
}

impl Task<'_> {
    /// What follows the cut that ends at column `to`: the next columns of these rows, or the next rows.
    #[inline(always)]
    fn ahead(&self, to: usize) -> Ahead {
        let bytes = self.part.weight.bytes;
        let stride = self.plan.k * self.part.weight.dtype.size();
        let rows = self.end - self.start - 1;
        if to < self.plan.k {
            let first = self.start * stride + to * self.part.weight.dtype.size();
            return Ahead { start: bytes[first..].as_ptr(), stride, rows };
        }
        Ahead { start: self.next.unwrap_or(bytes).as_ptr(), stride, rows }
    }

    /// Widens columns `from..to` of the weights' rows into the panel, `[group][step][NR][LANES]`.
    #[inline(always)]
    fn widen<S: Simd, E: Element>(&mut self, s: S, from: usize, to: usize) {
        let k = self.plan.k;
        let w = self.part.weight.bytes.as_ptr().cast::<E>();
        let steps = (to - from).div_ceil(S::LANES);
        let full = (to - from) / S::LANES;
        for (group, panel) in self.panel.chunks_exact_mut(NR * self.plan.cut).enumerate() {
            let n = self.start + group * NR;
            if n >= self.end {
                break;
            }
            // Past the end the last row stands in; its sums are not stored.
            let rows: [*const E; NR] =
                std::array::from_fn(|i| w.wrapping_add((n + i).min(self.end - 1) * k + from));
            assert!(panel.len() >= steps * NR * S::LANES);
            let panel = panel.as_mut_ptr();
            for step in 0..full {
                for (r, w) in rows.iter().enumerate() {
                    // SAFETY: a full step lies inside columns from..to of a row below N; the panel was checked.
                    unsafe {
                        let v = E::load(s, w.add(step * S::LANES));
                        s.store_ptr(panel.add((step * NR + r) * S::LANES), v);
                    }
                }
            }
            if full < steps {
                for (r, w) in rows.iter().enumerate() {
                    // SAFETY: what is left of columns from..to is less than a vector; the panel was checked.
                    unsafe {
                        let left = to - from - full * S::LANES;
                        let v = E::load_partial(s, w.add(full * S::LANES), left);
                        s.store_ptr(panel.add((full * NR + r) * S::LANES), v);
                    }
                }
            }
        }
    }

    /// One register tile over one cut: accumulators come from the last cut and go to the next, or become sums.
    // Indices name registers here: iterators over both sides would hide the tile.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn tile<S: Simd, const M: usize>(
        &mut self,
        s: S,
        tile: usize,
        group: usize,
        cut: Range<usize>,
        soon: Option<[*const u8; 2]>,
    ) {
        let plan = self.plan;
        let Range { start: from, end: to } = cut;
        // Without rows to ask for, the tile asks for its own operand, which is in L1: no branch in the loop.
        let (soon, stride) = match soon {
            Some(rows) => (rows, S::LANES * self.part.weight.dtype.size()),
            None => ([self.panel[group * NR * plan.cut..].as_ptr().cast(); 2], 0),
        };
        let row = plan.row(tile);
        let x = &self.x[row * plan.k_padded + from * M..][..(to - from) * M];
        let w = &self.panel[group * NR * plan.cut..][..(to - from) * NR];
        let spill = ((tile - self.tiles.start) * plan.tile_rows * plan.columns + group * NR * plan.tile_rows)
            * S::LANES;
        let spill = &mut self.acc[spill..][..M * NR * S::LANES];
        let mut acc = [[s.zero(); NR]; M];
        if from > 0 {
            for m in 0..M {
                for r in 0..NR {
                    acc[m][r] = s.load(&spill[(m * NR + r) * S::LANES..]);
                }
            }
        }
        let (mut x, mut w) = (x.as_ptr(), w.as_ptr());
        let steps = (to - from) / S::LANES;
        // The next tile's accumulators follow these: spread over the steps, they come to L1 while this tile works.
        let following = spill.as_ptr().wrapping_add(spill.len()).cast::<u8>();
        let share = size_of_val(spill) / steps.max(1);
        for step in 0..steps {
            for line in soon {
                s.prefetch_l2(line.wrapping_add(step * stride));
            }
            s.prefetch(following.wrapping_add(step * share));
            // SAFETY: the slices above hold (to - from) / LANES steps of M and of NR vectors.
            unsafe {
                // The shorter side stays in registers, the longer passes through one.
                if M < NR {
                    let xv = array_of!(M, |m| s.load_ptr(x.add(m * S::LANES)));
                    for r in 0..NR {
                        let wv = s.load_ptr(w.add(r * S::LANES));
                        for m in 0..M {
                            acc[m][r] = s.fma(wv, xv[m], acc[m][r]);
                        }
                    }
                } else {
                    let wv = array_of!(NR, |r| s.load_ptr(w.add(r * S::LANES)));
                    for m in 0..M {
                        let xv = s.load_ptr(x.add(m * S::LANES));
                        for r in 0..NR {
                            acc[m][r] = s.fma(wv[r], xv, acc[m][r]);
                        }
                    }
                }
                x = x.add(M * S::LANES);
                w = w.add(NR * S::LANES);
            }
        }
        if to < plan.k_padded {
            for m in 0..M {
                for r in 0..NR {
                    s.store(&mut spill[(m * NR + r) * S::LANES..], acc[m][r]);
                }
            }
        } else {
            for (m, sums) in acc.into_iter().enumerate() {
                // SAFETY: columns start..end of the tile's rows are this task's alone.
                unsafe { self.part.store(row + m, self.start + group * NR, self.end, s.reduce_add4(sums)) };
            }
        }
    }
}
