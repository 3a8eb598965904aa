//! Linear layers: `out = x Wᵀ + bias` with `x` `[T, K]`, `W` `[N, K]` in its own type, `out` `[T, N]`.
//!
//! One order of reduction, whatever `T`, the threads and the tile: lane `l` of a vector accumulates the products of
//! columns `k ≡ l (mod LANES)` in increasing `k` by FMA (the columns past `K` are zeros times zeros), the lanes are added
//! in the tree of [`reduce_add`](crate::backend::cpu::isa::Simd::reduce_add), then comes the bias. So a row of a long prefill has the bits of a decode step.
//!
//! - Few rows of `x` (`direct`): the weights stream through once, four rows at a time, and are widened in registers.
//! - Many (`blocked`): `x` is packed once, weights are widened once per block into a panel, and register tiles of
//!   lanes over `K` run over both; where `K` is cut, whole accumulator vectors are spilled, never sums.

mod blocked;
mod direct;
#[cfg(test)]
mod tests;

use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::pool::{Parts, Pool, Scratch};
use crate::error::Result;
use crate::tensor::{DType, Weight};

/// Rows of `W` in a register tile: they share each vector of `x`, and their sums leave by
/// `reduce_add4`.
const NR: usize = 4;

/// Rows of `x` in a register tile: 6 x 4 accumulators + 4 + 1 operands of AVX-512's 32 registers, 3 x 4 + 3 + 1 of 16.
const fn max_tile_rows(registers: usize) -> usize {
    if registers >= 32 { 6 } else { 3 }
}

/// `W` `[rows, cols]`, row-major, little-endian, at any alignment.
#[derive(Debug, Clone, Copy)]
pub struct WeightView<'a> {
    bytes: &'a [u8],
    dtype: DType,
    rows: usize,
    cols: usize,
}

impl<'a> WeightView<'a> {
    /// # Panics
    /// Where `bytes` is not `rows * cols` elements long.
    pub fn new(bytes: &'a [u8], dtype: DType, rows: usize, cols: usize) -> Self {
        let len = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size()));
        assert_eq!(Some(bytes.len()), len, "linear: bytes of a weight [{rows}, {cols}] of {dtype}");
        Self { bytes, dtype, rows, cols }
    }

    /// `rows`, N: the width of the output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `cols`, K: the width of the input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The bytes of all rows.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl<'a> From<&'a Weight> for WeightView<'a> {
    /// The last dimension is K, the product of those before it N.
    fn from(weight: &'a Weight) -> Self {
        let cols = weight.shape().last().copied().unwrap_or(1);
        let rows = weight.shape().iter().rev().skip(1).product();
        Self::new(weight.bytes(), weight.dtype(), rows, cols)
    }
}

/// One product of a group: a weight and where its result goes.
#[derive(Debug)]
pub struct Projection<'a> {
    /// `[N, K]`.
    pub weight: WeightView<'a>,
    /// `[N]`.
    pub bias: Option<&'a [f32]>,
    /// `[T, N]`, overwritten.
    pub out: &'a mut [f32],
}

/// `out[t, n] = Σ_k x[t, k] W[n, k] + bias[n]`, computed in `f32`.
///
/// Error: at most `(⌈K / LANES⌉ + log2 LANES + 1) 2⁻²⁴ Σ |x W|` (twice the first term without FMA) plus the rounding of
/// the bias. The bits of `out[t, n]` depend on row `t` of `x`, row `n` of `W`, `bias[n]` and the instruction set alone.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory), before anything is computed.
///
/// # Panics
/// Where the lengths of `x` `[T, K]`, `bias` `[N]` and `out` `[T, N]` do not fit each other.
pub fn linear(
    pool: &Pool,
    isa: Isa,
    x: &[f32],
    weight: WeightView<'_>,
    bias: Option<&[f32]>,
    out: &mut [f32],
    scratch: &mut Scratch,
) -> Result<()> {
    linear_group(pool, isa, x, &mut [Projection { weight, bias, out }], scratch)
}

/// Several [`linear`] layers of the same `x` as one parallel region: Q, K and V, or gate and up.
///
/// # Errors
/// As [`linear`].
///
/// # Panics
/// As [`linear`], for each projection.
pub fn linear_group(
    pool: &Pool,
    isa: Isa,
    x: &[f32],
    projections: &mut [Projection<'_>],
    scratch: &mut Scratch,
) -> Result<()> {
    let Some(first) = projections.iter().find(|p| p.weight.rows > 0) else { return Ok(()) };
    let cols = first.weight.cols;
    let t = first.out.len() / first.weight.rows;
    assert_eq!(x.len(), t * cols, "linear: x against T = {t} rows of K = {cols}");
    for p in projections.iter() {
        let rows = p.weight.rows;
        assert_eq!(p.weight.cols, cols, "linear: K of the weights of a group");
        assert_eq!(p.out.len(), t * rows, "linear: out against [T, N] = [{t}, {rows}]");
        assert!(p.bias.is_none_or(|b| b.len() == rows), "linear: bias against N = {rows}");
    }
    if t == 0 {
        return Ok(());
    }
    let x = Input { data: x, t, cols };
    let parts: smallvec::SmallVec<[OutputPart<'_>; 4]> = projections
        .iter_mut()
        .filter(|p| p.weight.rows > 0)
        .map(|p| OutputPart { weight: p.weight, bias: p.bias, out: Parts::new(p.out) })
        .collect();
    if t <= direct::max_rows(isa) {
        direct::run(pool, isa, x, &parts);
        Ok(())
    } else {
        blocked::run(pool, isa, x, &parts, scratch)
    }
}

/// `x` `[T, K]`, its length checked.
#[derive(Clone, Copy)]
struct Input<'a> {
    data: &'a [f32],
    t: usize,
    cols: usize,
}

/// A projection whose tasks write disjoint parts of `out`; lengths checked, no dimension of `out` is zero.
struct OutputPart<'a> {
    weight: WeightView<'a>,
    bias: Option<&'a [f32]>,
    out: Parts<'a, f32>,
}

impl<'a> OutputPart<'a> {
    /// The bytes of the weight from row `n` on.
    fn row_bytes(&self, n: usize) -> &'a [u8] {
        &self.weight.bytes[n * self.weight.cols * self.weight.dtype.size()..]
    }

    /// Writes `sums + bias` to `out[t, n..]`, as far as row `n + i` is below `end`.
    ///
    /// # Safety
    /// No other task may have `out[t, n..end]`.
    #[inline(always)]
    unsafe fn store(&self, t: usize, n: usize, end: usize, sums: [f32; NR]) {
        let len = NR.min(end - n);
        // SAFETY: the caller's contract.
        let out = unsafe { self.out.slice(t * self.weight.rows + n, len) };
        match self.bias {
            None => out.copy_from_slice(&sums[..len]),
            Some(bias) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[n..]) {
                    *out = sum + bias;
                }
            }
        }
    }
}

/// Which task of a group works on which rows of which weight: blocks of `rows` rows, the weights one after another.
struct Blocks {
    rows: usize,
}

impl Blocks {
    fn count(&self, parts: &[OutputPart<'_>]) -> usize {
        parts.iter().map(|p| p.weight.rows.div_ceil(self.rows)).sum()
    }

    /// The part of block `index`, and its first and last + 1 row.
    fn find<'p, 'a>(
        &self,
        parts: &'p [OutputPart<'a>],
        mut index: usize,
    ) -> (&'p OutputPart<'a>, usize, usize) {
        for part in parts {
            let blocks = part.weight.rows.div_ceil(self.rows);
            if index < blocks {
                let start = index * self.rows;
                return (part, start, part.weight.rows.min(start + self.rows));
            }
            index -= blocks;
        }
        unreachable!("a task beyond the last block");
    }
}

/// Calls a generic function with the element type of a weight's bytes.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 => {
                type $E = f32;
                $body
            }
            $crate::tensor::DType::F16 => {
                type $E = half::f16;
                $body
            }
            $crate::tensor::DType::BF16 => {
                type $E = half::bf16;
                $body
            }
        }
    };
}
use with_element;

/// Calls a function whose first const parameter is the number of rows in a tile. Only what the registers hold is
/// compiled.
macro_rules! with_tile_rows {
    ($S:ident, $rows:expr, $M:ident => $body:expr) => {
        match $rows {
            1 => {
                const $M: usize = 1;
                $body
            }
            2 => {
                const $M: usize = 2;
                $body
            }
            3 => {
                const $M: usize = 3;
                $body
            }
            4 if $S::REGISTERS >= 32 => {
                const $M: usize = 4;
                $body
            }
            5 if $S::REGISTERS >= 32 => {
                const $M: usize = 5;
                $body
            }
            6 if $S::REGISTERS >= 32 => {
                const $M: usize = 6;
                $body
            }
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
use with_tile_rows;
