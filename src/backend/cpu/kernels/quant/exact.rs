//! Activations as they are: codes are widened to `f32` and multiplied by FMA.

use super::activations::Exact;
use super::codes::{Any, CodeKind, Codes};
use super::scales::{CHUNK, Wide};
use super::{BLOCK, PanelPart, ROWS, Task};
use crate::backend::cpu::isa::{IntKernel, IntSimd, Isa, Simd};

/// Multiplies a task's panels and tiles.
pub(super) fn run(isa: Isa, task: &Task<'_>) {
    isa.dispatch_int(Of(task));
}

struct Of<'a>(&'a Task<'a>);

impl IntKernel for Of<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: IntSimd>(self, s: S) {
        with(s, self.0);
    }
}

#[inline(always)]
fn with<S: IntSimd>(s: S, task: &Task<'_>) {
    let mut scales = Wide::new();
    for panel in task.panels.clone() {
        for tile in task.band.clone() {
            let rows = task.part.tiles.rows(tile);
            // Four sums a row of x: tiles of integer products are cut further. Their sizes are powers of two.
            let height = rows.len().min(4);
            for row in rows.clone().step_by(height) {
                let of = Tile {
                    part: task.part,
                    x: task.x.exact,
                    panel,
                    tile: rows.start,
                    height: rows.len(),
                    row,
                };
                for half in 0..ROWS / S::F::LANES {
                    match height {
                        4 => of.half::<S, 4>(s, half, &mut scales),
                        2 => of.half::<S, 2>(s, half, &mut scales),
                        _ => of.half::<S, 1>(s, half, &mut scales),
                    }
                }
            }
        }
    }
}

/// A panel against some rows of a tile of `x`.
struct Tile<'a> {
    part: &'a PanelPart<'a>,
    x: Exact<'a>,
    panel: usize,
    /// The first row of the tile, and their number.
    tile: usize,
    height: usize,
    /// The first row of `x`.
    row: usize,
}

impl Tile<'_> {
    /// The rows of the panel from `half * LANES` on: as many as a vector has lanes.
    #[inline(always)]
    fn half<S: IntSimd, const M: usize>(&self, s: S, half: usize, scales: &mut Wide<S>) {
        let f = s.float();
        let weight = self.part.weight;
        let (codes, scale_bytes) = weight.panel(self.panel);
        let (kind, scale_kind, blocks) = (weight.codes(), weight.scale_kind(), weight.blocks());
        let bytes = kind.block_bytes();
        assert!(codes.len() >= blocks * bytes, "codes of a panel");
        // SAFETY: a table has 16 bytes.
        let table = unsafe { s.load_table(weight.table().as_ptr()) };
        let offset = f.splat(weight.offset() as f32);
        let low = s.splat_i32(255);
        let x = self.x.values(self.tile);
        let mut acc = [[f.zero(); 4]; M];
        for block in 0..blocks {
            if block.is_multiple_of(CHUNK) {
                let blocks = block..blocks.min(block + CHUNK);
                // SAFETY: the panel has these blocks, a chunk at most, and this half.
                unsafe { scales.widen::<2, true>(s, scale_kind, scale_bytes.as_ptr(), blocks, half, 0) };
            }
            // SAFETY: `codes` holds `blocks` blocks, whose scales were widened just now; activations were laid out for as many
            // blocks of the tile's rows.
            unsafe {
                let w = Any::load(s, kind, codes.as_ptr().add(block * bytes), half, table);
                let [d, m] = scales.at::<2, true>(s, block % CHUNK);
                let x = x.add((block * self.height + self.row - self.tile) * BLOCK);
                for (quad, &w) in w.iter().enumerate() {
                    let (d, m) = (d[quad / 4], m[quad / 4]);
                    let bytes = [w, s.shr::<8>(w), s.shr::<16>(w), s.shr::<24>(w)];
                    for (b, code) in bytes.into_iter().enumerate() {
                        let code = s.and(code, low);
                        let q = if kind == CodeKind::E4m3 {
                            e4m3(s, code)
                        } else {
                            f.sub(s.to_float(code), offset)
                        };
                        let w = f.fma(q, d, m);
                        for (t, acc) in acc.iter_mut().enumerate() {
                            acc[b] = f.fma(w, f.splat(*x.add(t * BLOCK + 4 * quad + b)), acc[b]);
                        }
                    }
                }
            }
        }
        let n = self.panel * ROWS + half * S::F::LANES;
        for (t, [a, b, c, d]) in acc.into_iter().enumerate() {
            let sum = f.add(f.add(a, b), f.add(c, d));
            // SAFETY: panels of different tasks are different rows of the weight.
            unsafe { self.part.store(f, self.row + t, n, sum) };
        }
    }
}

/// e4m3 in the low byte of each lane, but for NaNs: exponent and fraction where binary32 has them, and a product that
/// moves the bias from 7 to 127, by which subnormal numbers become right as well.
#[inline(always)]
fn e4m3<S: IntSimd>(s: S, code: S::I) -> <S::F as Simd>::V {
    let f = s.float();
    let magnitude = s.as_float(s.shl::<20>(s.and(code, s.splat_i32(127))));
    let sign = s.as_float(s.shl::<24>(s.and(code, s.splat_i32(128))));
    f.copysign(f.mul(magnitude, f.splat(f32::from_bits((127 + 120) << 23))), sign)
}
