//! Linear layers on quantized weights: `out = x Wᵀ + bias`, `x` `[T, K]`, `W` `[N, K]` in blocks, `out` `[T, N]`.
//!
//! A weight is packed once into panels of [`ROWS`] rows: a vector holds four columns (a quad) of as many rows as it has
//! lanes, so that no sum ever crosses lanes, and one layout serves one row of `x` and many. Two ways to multiply:
//!
//! - [`Activations::Int8`] (`dot`): `x` is rounded to eight bits in blocks of 32 columns, `x ≈ dx · q`. Within a block
//!   products are summed as integers, exactly, in whatever order suits the machine; blocks are added in `f32` in the
//!   order of columns. Error of an output against exact arithmetic on the unrounded `x`: at most
//!   `Σ_blocks ½ dx Σ|w|` from rounding `x`, and `(2 B + 2) 2⁻²⁴ Σ_blocks (|d Σ q| + |m| |Σ x|) dx` from `B` blocks.
//! - [`Activations::F32`] (`exact`): weights are widened, and four chains of FMA (columns `k ≡ 0..3 mod 4`) add them up:
//!   at most `(K / 4 + 4) 2⁻²⁴ Σ |x w|`.
//!
//! Either way the bits of `out[t, n]` depend on row `t` of `x`, row `n` of `W` and `bias[n]` alone, with `Int8` not even
//! on the instruction set where it has FMA.

mod activations;
mod codes;
mod dot;
mod exact;
mod pack;
mod scales;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::backend::cpu::isa::{IntKernel, IntSimd, Isa, Simd};
use crate::backend::cpu::pool::{Parts, Pool};
use crate::error::Result;
pub use activations::ActivationScratch;
use activations::{Exact, Quantized, Segments, Tiles};
pub use pack::PackedMatrix;

/// Rows of a panel: the lanes of an AVX-512 register, two registers of AVX2, four of NEON.
pub const ROWS: usize = 16;
/// Columns that share the scale of their activations, and that codes are unpacked by.
pub const BLOCK: usize = 32;

/// What becomes of activations before they meet quantized weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// Rounded to eight bits in blocks of 32 columns.
    #[default]
    Int8,
    /// As they are.
    F32,
}

impl Activations {
    /// What [`parse`](str::parse) takes, `f32` last.
    pub const NAMES: [&str; 2] = ["int8", "f32"];
}

impl std::str::FromStr for Activations {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "int8" => Ok(Self::Int8),
            "f32" => Ok(Self::F32),
            _ => Err(format!("expected one of {}", Self::NAMES.join(", "))),
        }
    }
}

/// One product of a group: a weight, the rows that it multiplies, and where its result goes.
#[derive(Debug)]
pub struct QuantProjection<'a> {
    /// `[N, K]`.
    pub weight: &'a PackedMatrix,
    /// `[N]`.
    pub bias: Option<&'a [f32]>,
    /// Rows of `x`.
    pub rows: Range<usize>,
    /// `[rows, N]`, overwritten.
    pub out: &'a mut [f32],
}

/// Rows `[T, K]` that are multiplied.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// `[_, K]`.
    pub data: &'a [f32],
    /// K.
    pub cols: usize,
    /// Which of `data` each row is, `[T]`, where they are not all of them in their order.
    pub pick: Option<&'a [u32]>,
}

impl<'a> Rows<'a> {
    /// T.
    pub fn count(self) -> usize {
        self.pick.map_or_else(|| self.data.len().checked_div(self.cols).unwrap_or(0), <[u32]>::len)
    }

    /// Row `t`.
    #[inline(always)]
    pub fn row(self, t: usize) -> &'a [f32] {
        let at = self.pick.map_or(t, |pick| pick[t] as usize);
        &self.data[at * self.cols..][..self.cols]
    }
}

/// Bytes of packed activations that stay in L2 (2 MB; Zen 3's 512 KB hold a part) while a task's panels pass.
const BAND_BYTES: usize = 768 << 10;
/// Fewest bytes of weights in a task: reading them takes 3 µs, beside which claiming it (0.1 µs) is nothing.
const TASK_BYTES: usize = 48 << 10;
/// Rows of `x` whose products take about as long as reading a panel from memory.
const READING: usize = 16;

/// Several linear layers of rows of one `x` `[T, K]` as one parallel region. The weights share an order of their columns.
/// Projections of the same rows follow each other, those of later rows behind them.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory), before an output is written.
///
/// # Panics
/// Where the lengths of `x`, a bias `[N]` or an `out` `[rows, N]` do not fit each other, or rows are out of order.
pub fn linear_group(
    pool: &Pool,
    isa: Isa,
    activations: Activations,
    x: Rows<'_>,
    projections: &mut [QuantProjection<'_>],
    scratch: &mut ActivationScratch,
) -> Result<()> {
    let mut segments = Segments::new(isa.dispatch_int(MaxTile));
    for p in projections.iter() {
        let (n, t) = (p.weight.rows(), p.rows.len());
        assert_eq!(p.weight.cols(), x.cols, "linear: K of the weights of a group");
        assert!(p.rows.end <= x.count(), "linear: rows {:?} of {}", p.rows, x.count());
        assert_eq!(p.out.len(), t * n, "linear: out against [T, N] = [{t}, {n}]");
        assert!(p.bias.is_none_or(|b| b.len() == n), "linear: bias against N = {n}");
        segments.push(p.rows.clone());
    }
    let parts: smallvec::SmallVec<[PanelPart<'_>; 4]> = projections
        .iter_mut()
        .filter(|p| !p.out.is_empty())
        .map(|p| {
            let tiles = segments.tiles(p.rows.clone());
            PanelPart { weight: p.weight, bias: p.bias, tiles, out: Parts::new(p.out) }
        })
        .collect();
    if parts.is_empty() {
        return Ok(());
    }
    let int8 = |part: &&PanelPart<'_>| activations == Activations::Int8 && part.weight.integral();
    let order = parts[0].weight.order();
    let quantized = parts.iter().any(|part| int8(&part));
    let exact = parts.iter().any(|part| !int8(&part));
    // Parts of one fused weight share an order; weights of different orders come in different groups.
    if quantized {
        scratch.quantize(pool, isa, x, order, &segments, parts.iter().filter(int8).map(|p| p.weight))?;
    }
    if exact {
        scratch.lay_out(pool, x, order, &segments)?;
    }
    let x_cols = x.cols;
    let x = Inputs { quantized: scratch.quantized(), exact: scratch.exact() };

    let bytes: usize = parts.iter().map(|p| p.weight.bytes()).sum();
    let alone = segments.len() == 1;
    let cost = |part: &PanelPart<'_>| if alone { 1 } else { READING + part.tiles.len_rows() };
    let costs: usize = parts.iter().map(|p| p.weight.panels() * cost(p)).sum();
    let least = (TASK_BYTES as u128 * costs as u128 / bytes.max(1) as u128) as usize;
    let ends = shares(costs, pool.threads(), least.max(1));
    let bands_of = |part: &PanelPart<'_>| part.tiles.bands(x_cols, BAND_BYTES);
    let bands = parts.iter().map(bands_of).max().unwrap_or(1);
    pool.run(ends.len() * bands, |index| {
        // All panels of a band of x before the next: the band stays in L2.
        let (band, share) = (index / ends.len(), index % ends.len());
        let (start, end) = (if share == 0 { 0 } else { ends[share - 1] }, ends[share]);
        let mut before = 0;
        for part in &parts {
            let (count, cost) = (part.weight.panels(), cost(part));
            // A panel belongs to the task that its first share lies in.
            let first = |at: usize| at.saturating_sub(before).div_ceil(cost).min(count);
            let panels = first(start)..first(end);
            before += count * cost;
            let own = bands_of(part);
            if !panels.is_empty() && band < own {
                let task = Task { x: &x, part, band: part.tiles.band(band, own), panels };
                match int8(&part) {
                    true => dot::run(isa, &task),
                    false => exact::run(isa, &task),
                }
            }
        }
    });
    Ok(())
}

/// Where the tasks end that `panels` are cut into: each half of a thread's even share of what is left, so that there are
/// few of them (a task's first reads have nobody to ask for them ahead) and threads end together all the same; at least
/// `least` panels.
fn shares(panels: usize, threads: usize, least: usize) -> smallvec::SmallVec<[usize; 64]> {
    let mut ends = smallvec::SmallVec::new();
    let mut end = 0;
    while end < panels {
        end += ((panels - end) / (2 * threads)).max(least).min(panels - end);
        ends.push(end);
    }
    ends
}

/// Most rows of `x` in a register tile.
struct MaxTile;

impl IntKernel for MaxTile {
    type Out = usize;

    #[inline(always)]
    fn run<S: IntSimd>(self, _: S) -> usize {
        max_tile::<S>()
    }
}

/// 16 sums, 8 vectors of codes, scale, bias and temporaries of 32 registers; 8 of 16, where codes and sums come from L1 in turn.
const fn max_tile<S: IntSimd>() -> usize {
    if S::F::REGISTERS >= 32 { 16 } else { 8 }
}

/// A projection whose tasks write disjoint parts of `out`; lengths checked.
struct PanelPart<'a> {
    weight: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    /// Of the rows that it multiplies.
    tiles: Tiles,
    out: Parts<'a, f32>,
}

impl PanelPart<'_> {
    /// Writes `sums + bias` to the output's row of row `t` of `x`, from column `n` on, as far as there are any.
    ///
    /// # Safety
    /// No other task may have these elements.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, t: usize, n: usize, sums: S::V) {
        let rows = self.weight.rows();
        if n >= rows {
            return;
        }
        let len = S::LANES.min(rows - n);
        // SAFETY: the caller's contract.
        let out = unsafe { self.out.slice((t - self.tiles.first()) * rows + n, len) };
        let sums = match self.bias {
            None => sums,
            Some(bias) => s.add(sums, s.load_partial(&bias[n..n + len])),
        };
        s.store_partial(out, sums);
    }
}

/// Activations in the forms that the parts want.
struct Inputs<'a> {
    quantized: Quantized<'a>,
    exact: Exact<'a>,
}

/// Some panels of a part against a band of tiles.
struct Task<'a> {
    x: &'a Inputs<'a>,
    part: &'a PanelPart<'a>,
    band: Range<usize>,
    panels: Range<usize>,
}
