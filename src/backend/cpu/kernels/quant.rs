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

use crate::backend::cpu::isa::{IntKernel, IntSimd, Isa, Simd};
use crate::backend::cpu::pool::{Parts, Pool};
use crate::error::Result;
pub use activations::ActivationScratch;
use activations::{Exact, Quantized, Tiles};
pub use pack::PackedMatrix;

/// Rows of a panel: the lanes of an AVX-512 register, two registers of AVX2.
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

/// One product of a group: a weight and where its result goes.
#[derive(Debug)]
pub struct QuantProjection<'a> {
    /// `[N, K]`.
    pub weight: &'a PackedMatrix,
    /// `[N]`.
    pub bias: Option<&'a [f32]>,
    /// `[T, N]`, overwritten.
    pub out: &'a mut [f32],
}

/// Bytes of packed activations that stay in L2 (2 MB; Zen 3's 512 KB hold a part) while a task's panels pass.
const BAND_BYTES: usize = 768 << 10;
/// Fewest bytes of weights in a task: reading them takes 3 µs, beside which claiming it (0.1 µs) is nothing.
const TASK_BYTES: usize = 48 << 10;

/// Several linear layers of the same `x` `[T, K]` as one parallel region.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory), before anything is computed.
///
/// # Panics
/// Where the lengths of `x`, a bias `[N]` or an `out` `[T, N]` do not fit each other.
pub fn linear_group(
    pool: &Pool,
    isa: Isa,
    activations: Activations,
    x: &[f32],
    projections: &mut [QuantProjection<'_>],
    scratch: &mut ActivationScratch,
) -> Result<()> {
    let Some(first) = projections.iter().find(|p| p.weight.rows() > 0) else { return Ok(()) };
    let cols = first.weight.cols();
    let t = first.out.len() / first.weight.rows();
    assert_eq!(x.len(), t * cols, "linear: x against T = {t} rows of K = {cols}");
    for p in projections.iter() {
        let rows = p.weight.rows();
        assert_eq!(p.weight.cols(), cols, "linear: K of the weights of a group");
        assert_eq!(p.out.len(), t * rows, "linear: out against [T, N] = [{t}, {rows}]");
        assert!(p.bias.is_none_or(|b| b.len() == rows), "linear: bias against N = {rows}");
    }
    if t == 0 {
        return Ok(());
    }
    let parts: smallvec::SmallVec<[PanelPart<'_>; 4]> = projections
        .iter_mut()
        .filter(|p| p.weight.rows() > 0)
        .map(|p| PanelPart { weight: p.weight, bias: p.bias, out: Parts::new(p.out) })
        .collect();
    let tiles = Tiles::new(t, isa.dispatch_int(MaxTile));
    let int8 = |part: &&PanelPart<'_>| activations == Activations::Int8 && part.weight.integral();
    let order = parts[0].weight.order();
    let quantized = parts.iter().any(|part| int8(&part));
    let exact = parts.iter().any(|part| !int8(&part));
    // Parts of one fused weight share an order; weights of different orders come in different groups.
    if quantized {
        scratch.quantize(pool, isa, x, order, &tiles, parts.iter().filter(int8).map(|p| p.weight))?;
    }
    if exact {
        scratch.lay_out(pool, x, order, &tiles)?;
    }
    let x = Inputs { quantized: scratch.quantized(), exact: scratch.exact() };

    let bytes: usize = parts.iter().map(|p| p.weight.bytes()).sum();
    let panels: usize = parts.iter().map(|p| p.weight.panels()).sum();
    let ends = shares(panels, pool.threads(), (TASK_BYTES * panels / bytes).max(1));
    let bands = tiles.bands(cols, BAND_BYTES);
    pool.run(ends.len() * bands, |index| {
        // All panels of a band of x before the next: the band stays in L2.
        let (band, share) = (tiles.band(index / ends.len(), bands), index % ends.len());
        let (start, end) = (if share == 0 { 0 } else { ends[share - 1] }, ends[share]);
        let mut before = 0;
        for part in &parts {
            let count = part.weight.panels();
            let panels = start.saturating_sub(before).min(count)..end.saturating_sub(before).min(count);
            before += count;
            if !panels.is_empty() {
                let int8 = int8(&part);
                isa.dispatch_int(Task { x: &x, part, tiles: &tiles, band: band.clone(), panels, int8 });
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

/// 16 sums, 8 vectors of codes, scale, bias and temporaries of 32 registers; 4 of 16, of which some then spill.
const fn max_tile<S: IntSimd>() -> usize {
    if S::F::REGISTERS >= 32 { 16 } else { 4 }
}

/// A projection whose tasks write disjoint parts of `out`; lengths checked.
struct PanelPart<'a> {
    weight: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    out: Parts<'a, f32>,
}

impl PanelPart<'_> {
    /// Writes `sums + bias` to `out[t, n..]`, as far as there are rows.
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
        let out = unsafe { self.out.slice(t * rows + n, len) };
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
    tiles: &'a Tiles,
    band: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
    int8: bool,
}

impl IntKernel for Task<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: IntSimd>(self, s: S) {
        if self.int8 {
            dot::run(s, &self);
        } else {
            exact::run(s, &self);
        }
    }
}
