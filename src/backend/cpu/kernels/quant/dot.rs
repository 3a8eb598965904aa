//! Integer dot products: rounded activations against codes, block by block.

use std::marker::PhantomData;

use super::activations::Quantized;
use super::codes::{Any, Codes, Int, LINE, Route, Table};
use super::scales::{CHUNK, HELD, Wide};
use super::{BLOCK, PanelPart, ROWS, Task, max_tile};
use crate::backend::cpu::isa::{IntKernel, IntSimd, Isa, Simd, array_of, place, unrolled};

/// How far ahead of its use a line of codes is asked for into L2: at a core's 10 to 20 GB/s and 100 ns to memory, 2 KB are in
/// flight; four times that covers the unevenness of shared machines. Straight into L1 it would occupy one of a core's 12 to
/// 16 buffers for lines to come from memory, and there are too few of them for that rate.
const AHEAD: usize = 8192;
/// The same from L2 into L1.
const NEAR: usize = 1024;

/// What a panel's loop asks memory for: its codes some blocks ahead, and the next panel's codes and scales.
struct Ahead {
    /// The block from which on [`AHEAD`] reaches past the panel's codes.
    last: usize,
    /// Bytes of its scales, which lie between its codes and those of the next panel.
    scales: usize,
    scale_bytes: *const u8,
    /// From a block's scales to the next panel's.
    panel: usize,
    /// Bytes of scales a block.
    each: usize,
}

impl Ahead {
    #[inline(always)]
    fn new(codes: &[u8], scales: &[u8], blocks: usize, bytes: usize) -> Self {
        Self {
            last: blocks.saturating_sub(AHEAD / bytes),
            scales: scales.len(),
            scale_bytes: scales.as_ptr(),
            panel: codes.len() + scales.len(),
            each: scales.len() / blocks.max(1),
        }
    }

    /// For block `block`, whose codes are at `at`.
    #[inline(always)]
    fn prefetch<F: Simd>(&self, f: F, at: *const u8, block: usize, bytes: usize) {
        let far = at.wrapping_add(AHEAD + if block >= self.last { self.scales } else { 0 });
        for line in 0..bytes / LINE {
            f.prefetch_l2(far.wrapping_add(line * LINE));
            f.prefetch(at.wrapping_add(NEAR + line * LINE));
        }
        f.prefetch_l2(self.scale_bytes.wrapping_add(self.panel + block * self.each));
    }
}

/// Multiplies a task's panels and tiles.
pub(super) fn run(isa: Isa, task: &Task<'_>) {
    match task.part.weight.route() {
        Route::Four { min: true } => Of::<Int<4>, 1, true>::run(isa, task),
        Route::Four { min: false } => Of::<Int<4>, 1, false>::run(isa, task),
        Route::Five { min: true } => Of::<Int<5>, 1, true>::run(isa, task),
        Route::Five { min: false } => Of::<Int<5>, 1, false>::run(isa, task),
        Route::Eight { min: true } => Of::<Int<8>, 1, true>::run(isa, task),
        Route::Eight { min: false } => Of::<Int<8>, 1, false>::run(isa, task),
        Route::Six => Of::<Int<6>, 2, false>::run(isa, task),
        Route::Table => Of::<Table<8>, 1, false>::run(isa, task),
        Route::Levels => Of::<Table<5>, 1, false>::run(isa, task),
        Route::FineLevels => Of::<Table<5>, 2, false>::run(isa, task),
        Route::Any => Of::<Any, 2, true>::run(isa, task),
    }
}

/// A task whose kind of codes is known. Each kind is a function of its own on each instruction set, which profiles tell apart.
struct Of<'a, C, const SUBS: usize, const MIN: bool> {
    task: &'a Task<'a>,
    codes: PhantomData<C>,
}

impl<'a, C: Codes, const SUBS: usize, const MIN: bool> Of<'a, C, SUBS, MIN> {
    fn run(isa: Isa, task: &'a Task<'a>) {
        isa.dispatch_int(Self { task, codes: PhantomData });
    }
}

impl<C: Codes, const SUBS: usize, const MIN: bool> IntKernel for Of<'_, C, SUBS, MIN> {
    type Out = ();

    #[inline(always)]
    fn run<S: IntSimd>(self, s: S) {
        with::<S, C, SUBS, MIN>(s, self.task);
    }
}

/// The task's panels and tiles.
#[inline(always)]
fn with<S: IntSimd, C: Codes, const SUBS: usize, const MIN: bool>(s: S, task: &Task<'_>) {
    const { assert!(ROWS / S::F::LANES <= 2) };
    match const { ROWS / S::F::LANES } {
        1 => in_halves::<S, C, SUBS, MIN, 1>(s, task),
        _ => in_halves::<S, C, SUBS, MIN, 2>(s, task),
    }
}

/// The same with vectors of a `HALVES`-th of a panel's rows.
#[inline(always)]
fn in_halves<S: IntSimd, C: Codes, const SUBS: usize, const MIN: bool, const HALVES: usize>(
    s: S,
    task: &Task<'_>,
) {
    let mut scales = Wide::new();
    let weight = task.part.weight;
    let held = task.band.len() > 1 && SUBS * weight.blocks() <= HELD;
    for panel in task.panels.clone() {
        if HALVES > 1 && task.band.len() == 1 {
            // Once through the panel: a second pass would leave the memory idle.
            let rows = task.part.tiles.rows(task.band.start);
            let of = Tile {
                part: task.part,
                x: task.x.quantized,
                panel,
                half: 0,
                row: rows.start,
                is_first: true,
                held,
            };
            of.of_rows::<S, C, SUBS, MIN, HALVES>(s, rows.len(), &mut scales);
            continue;
        }
        for half in 0..HALVES {
            if held {
                // SAFETY: the panel has these blocks, no more parts than HELD, and this half.
                unsafe {
                    let bytes = weight.panel(panel).1.as_ptr();
                    scales.widen::<SUBS, MIN>(s, weight.scale_kind(), bytes, 0..weight.blocks(), half, 0);
                }
            }
            for tile in task.band.clone() {
                let rows = task.part.tiles.rows(tile);
                let (row, is_first) = (rows.start, half == 0 && tile == task.band.start);
                let of = Tile { part: task.part, x: task.x.quantized, panel, half, row, is_first, held };
                of.of_rows::<S, C, SUBS, MIN, 1>(s, rows.len(), &mut scales);
            }
        }
    }
}

/// Codes, scales and biases of a block in registers.
type Block<'a, S, const SUBS: usize> = (&'a [<S as IntSimd>::I; 8], [Float<S>; SUBS], [Float<S>; SUBS]);
type Float<S> = <<S as IntSimd>::F as Simd>::V;

/// A panel against some rows of `x`.
struct Tile<'a> {
    part: &'a PanelPart<'a>,
    x: Quantized<'a>,
    panel: usize,
    /// The rows of the panel from `half * LANES` on, as many as a vector has lanes.
    half: usize,
    /// The first row of `x`.
    row: usize,
    /// Whether the panel's codes come from memory now; for those behind it they are in a cache.
    is_first: bool,
    /// Whether the panel's scales are wide.
    held: bool,
}

impl Tile<'_> {
    /// The tile's `count` rows, for `HALVES` halves.
    #[inline(always)]
    fn of_rows<S: IntSimd, C: Codes, const SUBS: usize, const MIN: bool, const HALVES: usize>(
        &self,
        s: S,
        count: usize,
        scales: &mut Wide<S>,
    ) {
        match count {
            1 => self.multiply::<S, C, SUBS, MIN, 1, HALVES>(s, scales),
            2 => self.multiply::<S, C, SUBS, MIN, 2, HALVES>(s, scales),
            4 => self.multiply::<S, C, SUBS, MIN, 4, HALVES>(s, scales),
            8 => self.multiply::<S, C, SUBS, MIN, 8, HALVES>(s, scales),
            16 if const { max_tile::<S>() == 16 } => self.multiply::<S, C, SUBS, MIN, 16, HALVES>(s, scales),
            rows => debug_assert!(false, "tiles of {rows} rows"),
        }
    }

    /// `HALVES` halves of the panel, side by side.
    #[inline(always)]
    fn multiply<
        S: IntSimd,
        C: Codes,
        const SUBS: usize,
        const MIN: bool,
        const M: usize,
        const HALVES: usize,
    >(
        &self,
        s: S,
        scales: &mut Wide<S>,
    ) {
        let f = s.float();
        let (weight, half) = (self.part.weight, self.half);
        let (codes, scale_bytes) = weight.panel(self.panel);
        let blocks = weight.blocks();
        let (kind, scale_kind) = (weight.codes(), weight.scale_kind());
        let bytes = C::block_bytes(kind);
        assert!(codes.len() >= blocks * bytes, "codes of a panel");
        // SAFETY: a table has 16 bytes.
        let table = unsafe { s.load_table(weight.table().as_ptr()) };
        let (x, dx) = (self.x.codes(self.row), self.x.scales(self.row));
        let (inits, sums) = self.x.correction(weight, self.row);
        let ahead = Ahead::new(codes, scale_bytes, blocks, bytes);
        let (codes, scale_bytes) = (codes.as_ptr(), scale_bytes.as_ptr());
        let mut acc = [[f.zero(); M]; HALVES];
        let chunk = if self.held { blocks.max(1) } else { CHUNK };
        for start in (0..blocks).step_by(chunk) {
            let len = chunk.min(blocks - start);
            if !self.held {
                for h in 0..HALVES {
                    let blocks = start..start + len;
                    // SAFETY: the panel has these blocks, a chunk at most of each of its halves, for which there are places.
                    unsafe {
                        scales.widen::<SUBS, MIN>(s, scale_kind, scale_bytes, blocks, half + h, h * CHUNK);
                    }
                }
            }
            for i in 0..len {
                let block = start + i;
                // SAFETY: `codes` holds `blocks` blocks, whose scales were widened just now or are held; activations were laid out for as many blocks of M rows.
                unsafe {
                    let at = codes.add(block * bytes);
                    if M < 16 && self.is_first {
                        ahead.prefetch(f, at, block, bytes);
                    }
                    unrolled!(h < HALVES => {
                        let w = C::load(s, kind, at, half + h, table);
                        let [d, m] = scales.at::<SUBS, MIN>(s, h * CHUNK + i);
                        // All rows side by side: a sum waits for itself alone. Where registers run out it is `acc` that goes to
                        // memory, once a block.
                        let x = (x, dx, inits, sums);
                        self.rows::<S, C, SUBS, MIN, M>(s, &mut acc[h], (&w, d, m), x, block * M);
                    });
                }
            }
        }
        for (h, acc) in acc.into_iter().enumerate() {
            let n = self.panel * ROWS + (half + h) * S::F::LANES;
            for (t, acc) in s.apart(acc).into_iter().enumerate() {
                // SAFETY: panels of different tasks are different rows of the weight.
                unsafe { self.part.store(f, self.row + t, n, acc) };
            }
        }
    }

    /// A block of the panel against `G` rows of `x`, whose activations begin at `at`.
    ///
    /// # Safety
    /// The activations must be valid for reads of `G` rows.
    #[inline(always)]
    unsafe fn rows<S: IntSimd, C: Codes, const SUBS: usize, const MIN: bool, const G: usize>(
        &self,
        s: S,
        acc: &mut [Float<S>; G],
        (w, d, m): Block<'_, S, SUBS>,
        (x, dx, inits, sums): (*const i8, *const f32, *const i32, *const f32),
        at: usize,
    ) {
        let f = s.float();
        // SAFETY: the caller's contract.
        unsafe {
            let dx = s.each::<G>(dx.add(at), 1);
            unrolled!(sub < SUBS, of 0 1 => {
                let init = s.each_i32::<G>(inits.add(at * SUBS + sub), SUBS);
                let eight = sub * BLOCK / SUBS / 8;
                let x = array_of!(G, |t| x.add(at * BLOCK + place::<S>(BLOCK, G, t, eight)));
                let products = if const { SUBS == 1 } {
                    s.dot::<8, G>(C::BITS, init, w, x)
                } else {
                    let w = array_of!(4, |q| w[sub * 4 + q]);
                    s.dot::<4, G>(C::BITS, init, &w, x)
                };
                let (d, m) = (s.beside::<G>(d[sub]), s.beside::<G>(m[sub]));
                let sums = if MIN { s.each::<G>(sums.add(at * SUBS + sub), SUBS) } else { dx };
                unrolled!(t < G => {
                    acc[t] = f.fma(s.to_float(products[t]), f.mul(d[t], dx[t]), acc[t]);
                    if MIN {
                        acc[t] = f.fma(m[t], sums[t], acc[t]);
                    }
                });
            });
        }
    }
}
