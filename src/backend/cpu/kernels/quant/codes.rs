//! How codes lie in a panel, and how a block of them comes into registers.
//!
//! A block is [`BLOCK`] columns of [`ROWS`] rows. Planes hold the low and the high bits of codes; byte
//! `4 r + b` of a 64-byte line belongs to row `r` and to columns `k ≡ b (mod 4)`; the bits of one byte are those of quads
//! that follow one another, `k / 4`.

use crate::backend::cpu::isa::{IntSimd, Simd, array_of, unrolled};

use super::scales::ScaleKind;
use super::{BLOCK, ROWS};

/// Bytes of a line: four columns of a panel's rows, a byte each.
pub(super) const LINE: usize = 4 * ROWS;

/// How the codes of a weight are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeKind {
    /// Unsigned integers of 2, 3, 4, 5, 6 or 8 bits.
    Bits(u8),
    /// Four bits that index a table of signed bytes, 128 added.
    Table,
    /// Four bits that index a table of a few levels, [`Self::LEVEL_ZERO`] added, which then have five bits.
    Levels,
    /// e4m3 floats.
    E4m3,
}

impl CodeKind {
    /// What is added to the values of a table of levels.
    pub(super) const LEVEL_ZERO: i8 = 16;

    /// The kind that four bits of `table` are, and what is added to its values.
    pub(super) fn of_table(table: &[i8; 16]) -> (Self, i32) {
        let is_narrow = table.iter().all(|value| (-Self::LEVEL_ZERO..Self::LEVEL_ZERO).contains(value));
        if is_narrow { (Self::Levels, i32::from(Self::LEVEL_ZERO)) } else { (Self::Table, 128) }
    }

    /// Widths of the planes, low bits first.
    const fn planes(self) -> &'static [u32] {
        match self {
            Self::Bits(2) => &[2],
            Self::Bits(3) => &[2, 1],
            Self::Bits(4) | Self::Table | Self::Levels => &[4],
            Self::Bits(5) => &[4, 1],
            Self::Bits(6) => &[4, 2],
            Self::Bits(_) | Self::E4m3 => &[8],
        }
    }

    /// Bytes of a block.
    pub(super) fn block_bytes(self) -> usize {
        self.planes().iter().map(|bits| *bits as usize * LINE).sum()
    }

    /// Puts the codes of a row, `[K]`, into the lines of row `row` of a panel.
    pub(super) fn scatter(self, codes: &[u8], row: usize, panel: &mut [u8]) {
        match self.planes() {
            [2] => put_row(codes, row, panel, 2 * LINE, put::<2, 0>),
            [4] => put_row(codes, row, panel, 4 * LINE, put::<4, 0>),
            [2, 1] => put_row(codes, row, panel, 3 * LINE, |quads, at| {
                put::<2, 0>(quads, at);
                put::<1, 2>(quads, &mut at[2 * LINE..]);
            }),
            [4, 1] => put_row(codes, row, panel, 5 * LINE, |quads, at| {
                put::<4, 0>(quads, at);
                put::<1, 4>(quads, &mut at[4 * LINE..]);
            }),
            [4, 2] => put_row(codes, row, panel, 6 * LINE, |quads, at| {
                put::<4, 0>(quads, at);
                put::<2, 4>(quads, &mut at[4 * LINE..]);
            }),
            _ => put_row(codes, row, panel, 8 * LINE, put::<8, 0>),
        }
    }
}

/// Gives `put` the quads of each block of a row's codes, and what of the block lies from the row's first bytes on.
#[inline(always)]
fn put_row(
    codes: &[u8],
    row: usize,
    panel: &mut [u8],
    block_bytes: usize,
    put: impl Fn(&[u32; BLOCK / 4], &mut [u8]),
) {
    let blocks = panel.chunks_exact_mut(block_bytes);
    for (codes, block) in codes.chunks(BLOCK).zip(blocks) {
        let mut whole = [0; BLOCK];
        if let Ok(codes) = <&[u8; BLOCK]>::try_from(codes) {
            whole = *codes;
        } else {
            whole[..codes.len()].copy_from_slice(codes);
        }
        // A quad is a word, a code in each byte.
        let quads = std::array::from_fn(|q| u32::from_le_bytes(std::array::from_fn(|b| whole[4 * q + b])));
        put(&quads, &mut block[4 * row..]);
    }
}

/// Puts the bits of codes from `SHIFT` on into a plane of `BITS`, whose lines begin at `at` for the row.
#[inline(always)]
fn put<const BITS: usize, const SHIFT: u32>(quads: &[u32; BLOCK / 4], at: &mut [u8]) {
    // What a shift moves into a byte's neighbour the mask takes away.
    let mask = 0x0101_0101 * ((1 << BITS) - 1);
    for (line, quads) in quads.chunks_exact(8 / BITS).enumerate() {
        let parts = quads.iter().enumerate();
        let word = parts.fold(0, |word, (j, quad)| word | (quad >> SHIFT & mask) << (BITS * j));
        at[line * LINE..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

/// In which order a file holds codes of four bits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Nibbles {
    /// A block's one after another, the low nibble of a byte first: MLX's.
    Sequential,
    /// A block's first sixteen in the low nibbles of its bytes, the others in the high ones: most of GGUF's.
    Halves,
    /// A block in the low nibbles of 32 bytes, the next one in the high ones: the K-quants'.
    Pairs,
}

/// Puts a row's codes of four bits, as they are in a file, where [`CodeKind::scatter`] puts them: a few operations on words
/// instead of some on each code. `parts` are of 16 bytes, those of [`Nibbles::Pairs`] of 32.
#[inline(always)]
pub(super) fn put_nibbles<'a>(
    order: Nibbles,
    parts: impl Iterator<Item = &'a [u8]>,
    row: usize,
    panel: &mut [u8],
) {
    const LOW: u32 = 0x0f0f_0f0f;
    // The nibbles of half a word, one to a byte.
    let spread = |half: u32| (half & 0xff) | (half & 0xff00) << 8;
    let spread = |half: u32| (spread(half) | spread(half) << 4) & LOW;
    let mut lines = bytemuck::cast_slice_mut::<u8, [u32; ROWS]>(panel).iter_mut();
    let mut put = |words: [u32; 4]| {
        for (line, word) in lines.by_ref().take(4).zip(words) {
            line[row] = word.to_le();
        }
    };
    for part in parts {
        match order {
            Nibbles::Sequential => {
                put(words::<4>(part).map(|word| spread(word & 0xffff) | spread(word >> 16) << 4));
            }
            Nibbles::Halves => {
                let [a, b, c, d] = words::<4>(part);
                let (low, high) = (|x: u32| x & LOW, |x: u32| x >> 4 & LOW);
                put([
                    low(a) | low(b) << 4,
                    low(c) | low(d) << 4,
                    high(a) | high(b) << 4,
                    high(c) | high(d) << 4,
                ]);
            }
            Nibbles::Pairs => {
                let all = words::<8>(part);
                put(std::array::from_fn(|i| all[2 * i] & LOW | (all[2 * i + 1] & LOW) << 4));
                put(std::array::from_fn(|i| all[2 * i] >> 4 & LOW | all[2 * i + 1] & !LOW));
            }
        }
    }
}

/// The same for super-blocks of Q6_K, whose nibbles and pairs of bits a file has apart, as a panel does.
pub(super) fn put_q6_k<'a>(blocks: impl Iterator<Item = &'a [u8]>, row: usize, panel: &mut [u8]) {
    const LOW: [u32; 2] = [0x0303_0303, 0x0f0f_0f0f];
    let mut lines = bytemuck::cast_slice_mut::<u8, [u32; ROWS]>(panel).iter_mut();
    for block in blocks {
        for (low, high) in block[..128].chunks_exact(64).zip(block[128..192].chunks_exact(32)) {
            let (low, high) = (words::<16>(low), words::<8>(high));
            for quarter in 0..4 {
                let nibbles = |i: usize| low[8 * (quarter % 2) + i] >> (4 * (quarter / 2)) & LOW[1];
                let pairs = |i: usize| high[i] >> (2 * quarter) & LOW[0];
                let of_nibbles = (0..4).map(|i| nibbles(2 * i) | nibbles(2 * i + 1) << 4);
                let of_pairs = (0..2).map(|i| (0..4).fold(0, |word, j| word | pairs(4 * i + j) << (2 * j)));
                for (line, word) in lines.by_ref().take(6).zip(of_nibbles.chain(of_pairs)) {
                    line[row] = word.to_le();
                }
            }
        }
    }
}

/// The same for codes of a byte, each with its bits in `flip` turned over; `parts` are of 32.
#[inline(always)]
pub(super) fn put_bytes<'a>(parts: impl Iterator<Item = &'a [u8]>, flip: u8, row: usize, panel: &mut [u8]) {
    let flip = u32::from_ne_bytes([flip; 4]);
    let mut lines = bytemuck::cast_slice_mut::<u8, [u32; ROWS]>(panel).iter_mut();
    for part in parts {
        for (line, word) in lines.by_ref().take(8).zip(words::<8>(part)) {
            line[row] = (word ^ flip).to_le();
        }
    }
}

/// `4 N` bytes as words.
#[inline(always)]
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_le_bytes(words[i]))
}

/// Codes of one kind in registers.
pub(super) trait Codes {
    /// Below `2^BITS`.
    const BITS: u32;

    /// Bytes of a block of `kind`, of which the codes are: a constant where the kind is.
    fn block_bytes(kind: CodeKind) -> usize;

    /// The eight quads of a block, for the rows from `half * LANES` on.
    ///
    /// # Safety
    /// `block` must be valid for reads of a block of `kind`, of which the codes are; `half * LANES < ROWS`.
    unsafe fn load<S: IntSimd>(s: S, kind: CodeKind, block: *const u8, half: usize, table: S::I)
    -> [S::I; 8];
}

/// Line `i` of a block, for the rows of `half`.
///
/// # Safety
/// As [`Codes::load`].
#[inline(always)]
unsafe fn line<S: IntSimd>(s: S, block: *const u8, i: usize, half: usize) -> S::I {
    // SAFETY: the caller's contract.
    unsafe { s.load_bytes(block.add(i * LINE + half * 4 * S::F::LANES)) }
}

#[inline(always)]
fn bytes<S: IntSimd>(s: S, x: u8) -> S::I {
    s.splat_i32(i32::from_ne_bytes([x; 4]))
}

/// The quads of a four-bit plane.
///
/// # Safety
/// As [`Codes::load`].
#[inline(always)]
unsafe fn fours<S: IntSimd>(s: S, block: *const u8, half: usize) -> [S::I; 8] {
    let mask = bytes(s, 15);
    let mut out = [mask; 8];
    for i in 0..4 {
        // SAFETY: the caller's contract.
        let v = unsafe { line(s, block, i, half) };
        out[2 * i] = s.and(v, mask);
        out[2 * i + 1] = s.high_nibbles(v);
    }
    out
}

/// The quads of a two-bit plane, shifted left by `LEFT`.
///
/// # Safety
/// As [`Codes::load`].
#[inline(always)]
unsafe fn twos<S: IntSimd, const LEFT: u32>(s: S, block: *const u8, half: usize) -> [S::I; 8] {
    let mask = bytes(s, 3 << LEFT);
    let mut out = [mask; 8];
    for i in 0..2 {
        // SAFETY: the caller's contract.
        let v = unsafe { line(s, block, i, half) };
        let parts = if LEFT == 0 {
            [v, s.shr::<2>(v), s.shr::<4>(v), s.shr::<6>(v)]
        } else {
            [s.shl::<4>(v), s.shl::<2>(v), v, s.shr::<2>(v)]
        };
        for (j, part) in parts.into_iter().enumerate() {
            out[4 * i + j] = s.and(part, mask);
        }
    }
    out
}

/// The quads of a one-bit plane, shifted left by `LEFT`, 2 or 4.
///
/// # Safety
/// As [`Codes::load`].
#[inline(always)]
unsafe fn ones<S: IntSimd, const LEFT: u32>(s: S, block: *const u8, half: usize) -> [S::I; 8] {
    let mask = bytes(s, 1 << LEFT);
    // SAFETY: the caller's contract.
    let v = unsafe { line(s, block, 0, half) };
    let parts = if LEFT == 4 {
        [
            s.shl::<4>(v),
            s.shl::<3>(v),
            s.shl::<2>(v),
            s.shl::<1>(v),
            v,
            s.shr::<1>(v),
            s.shr::<2>(v),
            s.shr::<3>(v),
        ]
    } else {
        [
            s.shl::<2>(v),
            s.shl::<1>(v),
            v,
            s.shr::<1>(v),
            s.shr::<2>(v),
            s.shr::<3>(v),
            s.shr::<4>(v),
            s.shr::<5>(v),
        ]
    };
    array_of!(8, |i| s.and(parts[i], mask))
}

#[inline(always)]
fn join<S: IntSimd>(s: S, low: [S::I; 8], high: [S::I; 8]) -> [S::I; 8] {
    array_of!(8, |i| s.or(low[i], high[i]))
}

/// Unsigned integers of `B` bits.
pub(super) struct Int<const B: u32>;

impl<const B: u32> Codes for Int<B> {
    const BITS: u32 = B;

    #[inline(always)]
    fn block_bytes(_: CodeKind) -> usize {
        B as usize * LINE
    }

    #[inline(always)]
    unsafe fn load<S: IntSimd>(s: S, _: CodeKind, block: *const u8, half: usize, _: S::I) -> [S::I; 8] {
        // SAFETY: the caller's contract; the second plane follows the lines of the first.
        unsafe {
            match B {
                2 => twos::<S, 0>(s, block, half),
                3 => join(s, twos::<S, 0>(s, block, half), ones::<S, 2>(s, block.add(2 * LINE), half)),
                4 => fours(s, block, half),
                5 => join(s, fours(s, block, half), ones::<S, 4>(s, block.add(4 * LINE), half)),
                6 => join(s, fours(s, block, half), twos::<S, 4>(s, block.add(4 * LINE), half)),
                _ => array_of!(8, |i| line(s, block, i, half)),
            }
        }
    }
}

/// Four bits that index a table of codes of `B`.
pub(super) struct Table<const B: u32>;

impl<const B: u32> Codes for Table<B> {
    const BITS: u32 = B;

    #[inline(always)]
    fn block_bytes(_: CodeKind) -> usize {
        4 * LINE
    }

    #[inline(always)]
    unsafe fn load<S: IntSimd>(s: S, _: CodeKind, block: *const u8, half: usize, table: S::I) -> [S::I; 8] {
        // SAFETY: the caller's contract.
        let indices = unsafe { fours(s, block, half) };
        array_of!(8, |i| s.lookup(table, indices[i]))
    }
}

/// Codes of any kind, which is asked block by block: for the kinds that are not worth code of their own.
pub(super) struct Any;

impl Codes for Any {
    const BITS: u32 = 8;

    #[inline(always)]
    fn block_bytes(kind: CodeKind) -> usize {
        kind.block_bytes()
    }

    #[inline(always)]
    unsafe fn load<S: IntSimd>(
        s: S,
        kind: CodeKind,
        block: *const u8,
        half: usize,
        table: S::I,
    ) -> [S::I; 8] {
        // SAFETY: the caller's contract.
        unsafe {
            match kind {
                CodeKind::Bits(2) => Int::<2>::load(s, kind, block, half, table),
                CodeKind::Bits(3) => Int::<3>::load(s, kind, block, half, table),
                CodeKind::Bits(4) => Int::<4>::load(s, kind, block, half, table),
                CodeKind::Bits(5) => Int::<5>::load(s, kind, block, half, table),
                CodeKind::Bits(6) => Int::<6>::load(s, kind, block, half, table),
                CodeKind::Table | CodeKind::Levels => Table::<8>::load(s, kind, block, half, table),
                CodeKind::Bits(_) | CodeKind::E4m3 => Int::<8>::load(s, kind, block, half, table),
            }
        }
    }
}

/// Which code multiplies a weight by rounded activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Four bits, 32 columns a scale.
    Four { min: bool },
    /// Five bits, 32 columns a scale.
    Five { min: bool },
    /// Eight bits, 32 columns a scale.
    Eight { min: bool },
    /// Q6_K: six bits, 16 columns a scale.
    Six,
    /// A table, 32 columns a scale.
    Table,
    /// A table of levels, 32 columns a scale.
    Levels,
    /// The same, 16 columns a scale.
    FineLevels,
    /// All others, as if a scale had 16 columns and there were biases.
    Any,
}

impl Route {
    pub(super) fn of(codes: CodeKind, scales: ScaleKind) -> Self {
        match (codes, scales.sub() == BLOCK, scales.min()) {
            (CodeKind::Bits(4), true, min) => Self::Four { min },
            (CodeKind::Bits(5), true, min) => Self::Five { min },
            (CodeKind::Bits(8), true, min) => Self::Eight { min },
            (CodeKind::Bits(6), false, false) => Self::Six,
            (CodeKind::Table, true, false) => Self::Table,
            (CodeKind::Levels, true, false) => Self::Levels,
            (CodeKind::Levels, false, false) => Self::FineLevels,
            _ => Self::Any,
        }
    }

    /// Scales of a block.
    pub(super) fn subs(self) -> usize {
        match self {
            Self::Four { .. } | Self::Five { .. } | Self::Eight { .. } | Self::Table | Self::Levels => 1,
            Self::Six | Self::FineLevels | Self::Any => 2,
        }
    }

    /// Whether codes are multiplied as if they had eight bits.
    pub(super) fn wide(self) -> bool {
        matches!(self, Self::Eight { .. } | Self::Table | Self::Any)
    }
}
