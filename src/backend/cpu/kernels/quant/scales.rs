//! Scales and biases of a panel, `w = d q + m`: how they lie beside the codes, and how they come into registers.

use half::{bf16, f16};

use super::{BLOCK, ROWS};
use crate::backend::cpu::isa::{Element, IntSimd, Simd};
use crate::tensor::DType;

/// Columns of a super-block of the K-quants.
const SUPER: usize = 256;

/// How the scales of a weight are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleKind {
    /// A record for each group: `d` of [`ROWS`] rows and, with `min`, `m` of as many.
    Plain {
        /// Their type.
        dtype: DType,
        /// Columns of a group: a multiple of 16.
        group: usize,
        /// Whether there are biases.
        min: bool,
    },
    /// A record for each 256 columns: `d` and, with `min`, `dmin` as `f16`, then bytes for each `sub` columns: a scale
    /// that multiplies `d` and, after all of those, with `min`, one that multiplies `-dmin`.
    Super {
        /// 16 or 32.
        sub: usize,
        /// Whether there are biases.
        min: bool,
        /// Whether the bytes of scales are signed.
        signed: bool,
    },
}

impl ScaleKind {
    /// Columns that share a scale, at most a block: 16 or 32.
    pub(super) fn sub(self) -> usize {
        match self {
            Self::Plain { group, .. } if group.is_multiple_of(BLOCK) => BLOCK,
            Self::Plain { .. } => BLOCK / 2,
            Self::Super { sub, .. } => sub,
        }
    }

    pub(super) fn min(self) -> bool {
        match self {
            Self::Plain { min, .. } | Self::Super { min, .. } => min,
        }
    }

    /// Columns and bytes of a record.
    pub(super) fn record(self) -> (usize, usize) {
        match self {
            Self::Plain { dtype, group, min } => (group, ROWS * dtype.size() * (1 + usize::from(min))),
            Self::Super { sub, min, .. } => (SUPER, (2 + SUPER / sub) * ROWS * (1 + usize::from(min))),
        }
    }

    /// Puts the scale and the bias of a row's group into record `record` of a panel.
    pub(super) fn put_plain(self, scales: &mut [u8], record: usize, row: usize, d: f32, m: f32) {
        let Self::Plain { dtype, min, .. } = self else { unreachable!("plain scales") };
        let record = &mut scales[record * self.record().1..][..self.record().1];
        let size = dtype.size();
        for (i, value) in [d, m].into_iter().take(1 + usize::from(min)).enumerate() {
            let out = &mut record[(i * ROWS + row) * size..][..size];
            match dtype {
                DType::F32 => out.copy_from_slice(&value.to_le_bytes()),
                DType::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                DType::BF16 => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            }
        }
    }

    /// Puts `d` and `dmin` of a row's super-block, and its bytes of scales and of mins, into record `record`.
    pub(super) fn put_super(
        self,
        scales: &mut [u8],
        record: usize,
        row: usize,
        halves: [[u8; 2]; 2],
        bytes: [&[u8]; 2],
    ) {
        let Self::Super { sub, min, .. } = self else { unreachable!("scales of a super-block") };
        let record = &mut scales[record * self.record().1..][..self.record().1];
        let kinds = 1 + usize::from(min);
        for (i, half) in halves.iter().take(kinds).enumerate() {
            record[(i * ROWS + row) * 2..][..2].copy_from_slice(half);
        }
        for (i, bytes) in bytes.iter().take(kinds).enumerate() {
            for (j, &byte) in bytes.iter().enumerate() {
                record[(2 * kinds + i * (SUPER / sub) + j) * ROWS + row] = byte;
            }
        }
    }
}

/// `d` and `m` of the `SUBS` parts of block `block`, for the rows from `half * LANES` on; `m` is zero without `MIN`.
///
/// # Safety
/// `scales` must be valid for the records of a panel that has this block, and `half * LANES < ROWS`.
///
/// `SUBS` and `MIN` are those of `kind`, or 2 and true for any: a scale of the whole block comes twice then, and biases that
/// are not there are zero.
#[inline(always)]
pub(super) unsafe fn load<S: IntSimd, const SUBS: usize, const MIN: bool>(
    s: S,
    kind: ScaleKind,
    scales: *const u8,
    block: usize,
    half: usize,
) -> [[<S::F as Simd>::V; SUBS]; 2] {
    let f = s.float();
    let lane = half * S::F::LANES;
    let mut out = [[f.zero(); SUBS]; 2];
    match kind {
        ScaleKind::Plain { dtype, group, min } => {
            let size = dtype.size();
            let kinds = 1 + usize::from(MIN && min);
            let bytes = ROWS * size * kinds;
            for sub in 0..SUBS {
                let record = (block * BLOCK + sub * BLOCK / SUBS) / group;
                for (i, out) in out.iter_mut().take(kinds).enumerate() {
                    // SAFETY: the caller's contract.
                    out[sub] = unsafe {
                        let at = scales.add(record * bytes + (i * ROWS + lane) * size);
                        match dtype {
                            DType::F32 => f32::load(f, at.cast()),
                            DType::F16 => f16::load(f, at.cast()),
                            DType::BF16 => bf16::load(f, at.cast()),
                        }
                    };
                }
            }
        }
        ScaleKind::Super { sub: columns, min, signed } => {
            let subs = SUPER / columns;
            let kinds = 1 + usize::from(MIN && min);
            // SAFETY: the caller's contract.
            unsafe {
                let record = scales.add(block / (SUPER / BLOCK) * (2 + subs) * ROWS * kinds);
                for (i, out) in out.iter_mut().take(kinds).enumerate() {
                    let d = f16::load(f, record.add((i * ROWS + lane) * 2).cast());
                    let d = if i == 0 { d } else { f.neg(d) };
                    for (sub, out) in out.iter_mut().enumerate() {
                        let column = block % (SUPER / BLOCK) * BLOCK + sub * BLOCK / SUBS;
                        let byte = 2 * kinds + i * subs + column / columns;
                        let at = record.add(byte * ROWS + lane);
                        let scale = if signed { s.load_i8(at) } else { s.load_u8(at) };
                        *out = f.mul(d, scale);
                    }
                }
            }
        }
    }
    out
}
