//! Decoders of GGUF blocks, in the arithmetic of the `gguf` Python package: each product and each difference is rounded
//! to `f32` once, in its order, so that values are equal to the bit.
//!
//! Layouts: `ggml-common.h` and `ggml-quants.c` of ggml. `d` and `dmin` are `f16`.

use half::f16;

use super::block::{BlockFormat, Integers, MAX_ELEMENTS, MAX_GROUPS, Scales, Values};

/// What the codes of IQ4_NL and IQ4_XS stand for.
pub(crate) const IQ4_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// e2m1, doubled so that its values are integers.
pub(crate) const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(crate) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Half of 2^(e - 127), the scale of doubled e2m1.
pub(crate) fn e8m0_half(e: u8) -> f32 {
    let e = u32::from(e);
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
}

/// The sixteen scales and mins of Q2_K, four bits each.
pub(super) fn q2_k_integers(block: &[u8]) -> Integers {
    let both = &block[..16];
    Integers { scales: std::array::from_fn(|i| both[i] & 15), mins: std::array::from_fn(|i| both[i] >> 4) }
}

/// The sixteen scales of Q3_K, six bits each in 12 bytes, 32 taken off.
pub(super) fn q3_k_integers(block: &[u8]) -> Integers {
    let packed = &block[96..108];
    let scale = |i: usize| {
        let low = packed[i % 8] >> (4 * (i / 8)) & 15;
        let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        (low | high << 4).wrapping_sub(32)
    };
    Integers { scales: std::array::from_fn(scale), mins: [0; MAX_GROUPS] }
}

/// The eight scales and mins of Q4_K and Q5_K, six bits each in 12 bytes.
pub(super) fn q4_k_integers(block: &[u8]) -> Integers {
    let packed = &block[4..16];
    let (mut scales, mut mins) = ([0; MAX_GROUPS], [0; MAX_GROUPS]);
    for j in 0..4 {
        let (d, m, high) = (packed[j], packed[j + 4], packed[j + 8]);
        (scales[j], mins[j]) = (d & 63, m & 63);
        (scales[j + 4], mins[j + 4]) = (high & 15 | d >> 2 & 48, high >> 4 | m >> 2 & 48);
    }
    Integers { scales, mins }
}

/// The sixteen scales of Q6_K, a signed byte each.
pub(super) fn q6_k_integers(block: &[u8]) -> Integers {
    Integers { scales: std::array::from_fn(|i| block[192 + i]), mins: [0; MAX_GROUPS] }
}

/// The eight scales of IQ4_XS, six bits each, 32 taken off.
pub(super) fn iq4_xs_integers(block: &[u8]) -> Integers {
    let high = u16::from_le_bytes([block[2], block[3]]);
    let mut scales = [0; MAX_GROUPS];
    for (i, scale) in scales[..8].iter_mut().enumerate() {
        let low = block[4 + i / 2] >> (4 * (i % 2)) & 15;
        *scale = (low | ((high >> (2 * i)) as u8 & 3) << 4).wrapping_sub(32);
    }
    Integers { scales, mins: [0; MAX_GROUPS] }
}

/// Codes of 32 elements, the low nibbles of 16 bytes and then the high ones.
#[inline]
pub(crate) fn halves(bytes: &[u8]) -> [u8; 32] {
    let mut codes = [0; 32];
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(&bytes[..16]) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    codes
}

/// `bytes` shifted right by `SHIFT` and cut to `mask`, for each of `codes`: a loop over neighbours, which becomes vectors.
#[inline]
fn part<const SHIFT: u32>(codes: &mut [u8], bytes: &[u8], mask: u8) {
    codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte >> SHIFT & mask);
}

/// Bits of `bytes` from `SHIFT` on put above the codes that are there, from bit `AT` on.
#[inline]
fn above<const SHIFT: u32, const AT: u32>(codes: &mut [u8], bytes: &[u8], mask: u8) {
    codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code |= (byte >> SHIFT & mask) << AT);
}

/// Codes of four bits from byte `AT` on, in groups of 32.
pub(super) fn nibbles<const AT: usize>(block: &[u8], codes: &mut [u8]) {
    for (codes, bytes) in codes.chunks_exact_mut(32).zip(block[AT..].chunks_exact(16)) {
        codes.copy_from_slice(&halves(bytes));
    }
}

/// 32 codes of five bits: the fifth ones are a little-endian mask at byte `AT`, the nibbles follow it.
pub(super) fn nibbles_and_mask<const AT: usize>(block: &[u8], codes: &mut [u8]) {
    let (mask, low) = (&block[AT..AT + 4], halves(&block[AT + 4..]));
    codes.iter_mut().enumerate().for_each(|(i, code)| *code = low[i] | (mask[i / 8] >> (i % 8) & 1) << 4);
}

/// 32 signed bytes from byte 2 on, as codes from 0 to 255.
pub(super) fn signed_bytes(block: &[u8], codes: &mut [u8]) {
    codes.iter_mut().zip(&block[2..]).for_each(|(code, &q)| *code = q ^ 128);
}

/// Codes of two bits, four in a byte, 32 bytes for each 128.
fn quarters(bytes: &[u8], codes: &mut [u8]) {
    for (codes, bytes) in codes.chunks_exact_mut(128).zip(bytes.chunks_exact(32)) {
        part::<0>(&mut codes[..32], bytes, 3);
        part::<2>(&mut codes[32..64], bytes, 3);
        part::<4>(&mut codes[64..96], bytes, 3);
        part::<6>(&mut codes[96..], bytes, 3);
    }
}

/// One more bit of each code, bit `i` of 32 bytes for the `i`-th 32 codes, put above those that are there as bit `AT`.
fn bit_planes<const AT: u32>(bytes: &[u8], codes: &mut [u8]) {
    for (i, codes) in codes.chunks_exact_mut(32).enumerate() {
        codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code |= (byte >> i & 1) << AT);
    }
}

/// Codes of four bits, 32 bytes for each 64: the low nibbles, then the high ones.
fn pairs(bytes: &[u8], codes: &mut [u8]) {
    for (codes, bytes) in codes.chunks_exact_mut(64).zip(bytes.chunks_exact(32)) {
        part::<0>(&mut codes[..32], bytes, 15);
        part::<4>(&mut codes[32..], bytes, 15);
    }
}

pub(super) fn q2_k(block: &[u8], codes: &mut [u8]) {
    quarters(&block[16..80], codes);
}

pub(super) fn q3_k(block: &[u8], codes: &mut [u8]) {
    quarters(&block[32..96], codes);
    bit_planes::<2>(&block[..32], codes);
}

pub(super) fn q4_k(block: &[u8], codes: &mut [u8]) {
    pairs(&block[16..], codes);
}

pub(super) fn q5_k(block: &[u8], codes: &mut [u8]) {
    pairs(&block[48..], codes);
    bit_planes::<4>(&block[16..48], codes);
}

pub(super) fn q6_k(block: &[u8], codes: &mut [u8]) {
    let (low, high) = (&block[..128], &block[128..192]);
    let halves = codes.chunks_exact_mut(128).zip(low.chunks_exact(64).zip(high.chunks_exact(32)));
    for (codes, (low, high)) in halves {
        part::<0>(&mut codes[..64], low, 15);
        part::<4>(&mut codes[64..], low, 15);
        above::<0, 4>(&mut codes[..32], high, 3);
        above::<2, 4>(&mut codes[32..64], high, 3);
        above::<4, 4>(&mut codes[64..96], high, 3);
        above::<6, 4>(&mut codes[96..], high, 3);
    }
}

/// What the codes of each group are multiplied with, and what is added to the product where groups have mins.
pub(super) fn scales(row: &BlockFormat, block: &[u8], scales: &mut [f32], mins: &mut [f32]) {
    match row.scales {
        Scales::Half => {
            scales[0] = half_at(block, 0);
            if row.has_min() {
                mins[0] = half_at(block, 2);
            }
        }
        Scales::E8m0 => scales[0] = e8m0_half(block[0]),
        Scales::Super { d, read, .. } => {
            let (integers, d, dmin) = (read(block), d, d + 2);
            let d = half_at(block, d);
            if row.has_min() {
                let dmin = half_at(block, dmin);
                for i in 0..row.groups() {
                    scales[i] = d * f32::from(integers.scales[i]);
                    mins[i] = -(dmin * f32::from(integers.mins[i]));
                }
            } else {
                for (scale, &q) in scales[..row.groups()].iter_mut().zip(&integers.scales) {
                    *scale = d * f32::from(q as i8);
                }
            }
        }
    }
}

/// The codes of a block's elements and the scale and bias of each group: `w = q · scale + bias`. Not for codes that index a
/// table.
///
/// Groups are those of the format. Where the block has no bias of its own, the offset of the codes is in it.
pub(super) fn affine_block(
    row: &BlockFormat,
    block: &[u8],
    codes: &mut [u8],
    scales: &mut [f32],
    biases: &mut [f32],
) {
    (row.codes)(block, codes);
    self::scales(row, block, scales, biases);
    if let Values::Offset(offset) = row.values {
        let offset = f32::from(offset);
        biases.iter_mut().zip(scales).for_each(|(bias, scale)| *bias = -offset * *scale);
    }
}

/// Decodes one block.
pub(super) fn decode_block(row: &BlockFormat, block: &[u8], out: &mut [f32]) {
    let mut codes = [0; MAX_ELEMENTS];
    let codes = &mut codes[..out.len()];
    (row.codes)(block, codes);
    let (mut scales, mut mins) = ([0.0; MAX_GROUPS], [0.0; MAX_GROUPS]);
    self::scales(row, block, &mut scales, &mut mins);
    let groups = out.chunks_exact_mut(row.group()).zip(codes.chunks_exact(row.group()));
    for ((out, codes), (scale, min)) in groups.zip(scales.into_iter().zip(mins)) {
        let pairs = out.iter_mut().zip(codes);
        match row.values {
            // The codes as they are signed: a bias would round a product of more bits than `f32` has.
            Values::Offset(offset) => {
                let offset = f32::from(offset);
                pairs.for_each(|(w, &code)| *w = scale * (f32::from(code) - offset));
            }
            Values::Min => pairs.for_each(|(w, &code)| *w = scale * f32::from(code) + min),
            Values::Table(table) => {
                pairs.for_each(|(w, &code)| *w = scale * f32::from(table[usize::from(code)]));
            }
        }
    }
}
