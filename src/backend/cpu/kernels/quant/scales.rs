//! Scales and biases of a panel, `w = d q + m`: how they lie beside the codes, and how they come into registers.

use std::mem::MaybeUninit;
use std::ops::Range;

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
    #[inline]
    pub(super) fn put_plain(self, scales: &mut [u8], record: usize, row: usize, [d, m]: [&[u8]; 2]) {
        let Self::Plain { dtype, min, .. } = self else { unreachable!("plain scales") };
        let record = &mut scales[record * self.record().1..][..self.record().1];
        let put = |record: &mut [u8], i: usize, value: &[u8]| match dtype {
            DType::F32 => record[(i * ROWS + row) * 4..][..4].copy_from_slice(&value[..4]),
            DType::F16 | DType::BF16 => record[(i * ROWS + row) * 2..][..2].copy_from_slice(&value[..2]),
        };
        put(record, 0, d);
        if min {
            put(record, 1, m);
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

/// Blocks whose scales are widened at once where they are not held: few enough for L1, whole records of most kinds.
pub(super) const CHUNK: usize = 32;
/// Parts of blocks whose scales can be held wide, for several tiles of one panel: they come back from L1 or L2 for each. As many
/// as a K of 5,120 has in halves of blocks.
pub(super) const HELD: usize = 320;
const _: () = assert!(2 * CHUNK <= HELD);

type Vector<S> = <<S as IntSimd>::F as Simd>::V;

/// Scales and biases of blocks of half a panel in `f32`: `d` and `m` of the `SUBS` parts of each, up to [`HELD`] in all.
///
/// Kinds of scales differ here alone: the loop over blocks, which is run for each code, knows none of them.
pub(super) struct Wide<S: IntSimd> {
    d: [MaybeUninit<Vector<S>>; HELD],
    m: [MaybeUninit<Vector<S>>; HELD],
}

impl<S: IntSimd> Wide<S> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { d: [MaybeUninit::uninit(); HELD], m: [MaybeUninit::uninit(); HELD] }
    }

    /// `d` and, with `MIN`, `m` of the parts of the block at `i` of those that were widened last; zeros for `m` without.
    ///
    /// # Safety
    /// As many must have been widened, with the same `SUBS` and `MIN`.
    #[inline(always)]
    pub(super) unsafe fn at<const SUBS: usize, const MIN: bool>(
        &self,
        s: S,
        i: usize,
    ) -> [[Vector<S>; SUBS]; 2] {
        // SAFETY: the caller's contract.
        let of = |all: &[MaybeUninit<Vector<S>>; HELD]| unsafe {
            all.as_ptr().add(i * SUBS).cast::<[Vector<S>; SUBS]>().read()
        };
        [of(&self.d), if MIN { of(&self.m) } else { [s.float().zero(); SUBS] }]
    }

    /// Widens the scales of `blocks`, which begin at a multiple of [`CHUNK`], for the rows from `half * LANES` on; they lie from `to`
    /// on, in blocks, then. `m` is left
    /// alone without `MIN`. `SUBS` and `MIN` are those of `kind`, or 2 and true for any: a scale of the whole block comes twice
    /// then, and biases that are not there are zero.
    ///
    /// # Safety
    /// `scales` must be valid for the records of a panel that has these blocks, which must end at [`HELD`] parts at most, and
    /// `half * LANES < ROWS`.
    #[inline(always)]
    pub(super) unsafe fn widen<const SUBS: usize, const MIN: bool>(
        &mut self,
        s: S,
        kind: ScaleKind,
        scales: *const u8,
        blocks: Range<usize>,
        half: usize,
        to: usize,
    ) {
        let lane = half * S::F::LANES;
        debug_assert!(blocks.start.is_multiple_of(CHUNK) && (to + blocks.len()) * SUBS <= HELD);
        // SAFETY: the caller's contract.
        unsafe {
            match kind {
                ScaleKind::Plain { dtype: DType::F32, group, min } => {
                    self.plain::<f32, SUBS, MIN>(s, group, min, scales, blocks, [lane, to]);
                }
                ScaleKind::Plain { dtype: DType::F16, group, min } => {
                    self.plain::<f16, SUBS, MIN>(s, group, min, scales, blocks, [lane, to]);
                }
                ScaleKind::Plain { dtype: DType::BF16, group, min } => {
                    self.plain::<bf16, SUBS, MIN>(s, group, min, scales, blocks, [lane, to]);
                }
                ScaleKind::Super { sub, min, signed } => {
                    self.super_blocks::<SUBS, MIN>(s, sub, min, signed, scales, blocks, [lane, to]);
                }
            }
        }
    }

    /// A record for each `group` columns.
    ///
    /// # Safety
    /// As [`widen`](Self::widen).
    #[inline(always)]
    unsafe fn plain<E: Element, const SUBS: usize, const MIN: bool>(
        &mut self,
        s: S,
        group: usize,
        min: bool,
        scales: *const u8,
        blocks: Range<usize>,
        [lane, to]: [usize; 2],
    ) {
        let f = s.float();
        let kinds = 1 + usize::from(MIN && min);
        let mut record = blocks.start * BLOCK / group;
        // Columns of the record that have gone by.
        let mut used = blocks.start * BLOCK % group;
        let (mut d, mut m) = (f.zero(), f.zero());
        let mut stale = true;
        for i in 0..blocks.len() {
            for sub in 0..SUBS {
                if stale {
                    // SAFETY: the caller's contract; a record holds `ROWS` elements of each kind.
                    unsafe {
                        let at = scales.cast::<E>().add(record * ROWS * kinds + lane);
                        d = E::load(f, at);
                        if MIN && min {
                            m = E::load(f, at.add(ROWS));
                        }
                    }
                }
                // SAFETY: the caller's contract.
                unsafe {
                    self.d.get_unchecked_mut((to + i) * SUBS + sub).write(d);
                    if MIN {
                        self.m.get_unchecked_mut((to + i) * SUBS + sub).write(m);
                    }
                }
                used += BLOCK / SUBS;
                stale = used == group;
                if stale {
                    (record, used) = (record + 1, 0);
                }
            }
        }
    }

    /// A record for each 256 columns.
    ///
    /// # Safety
    /// As [`widen`](Self::widen).
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // the fields of a kind
    unsafe fn super_blocks<const SUBS: usize, const MIN: bool>(
        &mut self,
        s: S,
        columns: usize,
        min: bool,
        signed: bool,
        scales: *const u8,
        blocks: Range<usize>,
        [lane, to]: [usize; 2],
    ) {
        const BLOCKS: usize = SUPER / BLOCK;
        let f = s.float();
        let (subs, kinds) = (SUPER / columns, 1 + usize::from(MIN && min));
        // Parts of blocks that share a scale: two where a scale has the whole block.
        let shared = u32::from(columns * SUBS > BLOCK);
        for first in (0..blocks.len()).step_by(BLOCKS) {
            // SAFETY: the caller's contract.
            unsafe {
                let record = scales.add((blocks.start + first) / BLOCKS * (2 + subs) * ROWS * kinds);
                for i in 0..1 + usize::from(MIN) {
                    let out = if i == 0 { &mut self.d } else { &mut self.m };
                    // Without biases there are no bytes of theirs.
                    let bytes = record.wrapping_add((2 * kinds + i * subs) * ROWS + lane);
                    let d = if i == kinds {
                        f.zero()
                    } else {
                        f16::load(f, record.add((i * ROWS + lane) * 2).cast())
                    };
                    let d = if i == 0 { d } else { f.neg(d) };
                    for block in 0..BLOCKS.min(blocks.len() - first) {
                        for sub in 0..SUBS {
                            let out = out.get_unchecked_mut((to + first + block) * SUBS + sub);
                            let scale = if i == kinds {
                                d
                            } else {
                                let at = bytes.add(((block * SUBS + sub) >> shared) * ROWS);
                                if signed { s.load_i8(at) } else { s.load_u8(at) }
                            };
                            out.write(f.mul(d, scale));
                        }
                    }
                }
            }
        }
    }
}
