//! Decoders of GGUF blocks, in the arithmetic of the `gguf` Python package: each product and each difference is rounded
//! to `f32` once, in its order, so that values are equal to the bit.
//!
//! Layouts: `ggml-common.h` and `ggml-quants.c` of ggml. `d` and `dmin` are `f16`.

use half::f16;

use super::GgmlType;

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

/// The eight scales and mins of Q4_K and Q5_K, six bits each in 12 bytes.
pub(crate) fn scales_and_mins(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let mut scales = [0; 8];
    let mut mins = [0; 8];
    for j in 0..4 {
        let (d, m, high) = (packed[j], packed[j + 4], packed[j + 8]);
        (scales[j], mins[j]) = (d & 63, m & 63);
        (scales[j + 4], mins[j + 4]) = (high & 15 | d >> 2 & 48, high >> 4 | m >> 2 & 48);
    }
    (scales, mins)
}

/// The sixteen scales of Q3_K, six bits each in 12 bytes, 32 taken off.
pub(crate) fn q3_k_scales(packed: &[u8]) -> [i8; 16] {
    std::array::from_fn(|i| {
        let low = packed[i % 8] >> (4 * (i / 8)) & 15;
        let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The eight scales of IQ4_XS, six bits each, 32 taken off.
pub(crate) fn iq4_xs_scales(block: &[u8]) -> [i8; 8] {
    let high = u16::from_le_bytes([block[2], block[3]]);
    std::array::from_fn(|i| {
        let low = block[4 + i / 2] >> (4 * (i % 2)) & 15;
        (low | ((high >> (2 * i)) as u8 & 3) << 4) as i8 - 32
    })
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

/// Codes of 32 elements of five bits, the fifth ones in a little-endian mask.
fn halves_and_mask(mask: &[u8], bytes: &[u8]) -> [u8; 32] {
    let low = halves(bytes);
    std::array::from_fn(|i| low[i] | (mask[i / 8] >> (i % 8) & 1) << 4)
}

/// The codes of a block's elements and the scale and bias of each group: `w = q · scale + bias`. Not for IQ4 and MXFP4,
/// whose codes index a table.
///
/// Groups are of [`GgmlType::affine`]. Where the block has no bias of its own, the offset of the codes is in it.
pub(crate) fn affine_block(
    of: GgmlType,
    block: &[u8],
    codes: &mut [u8],
    scales: &mut [f32],
    biases: &mut [f32],
) {
    affine_codes(of, block, codes);
    match of {
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => scales[0] = half_at(block, 0),
        GgmlType::Q4_1 | GgmlType::Q5_1 => (scales[0], biases[0]) = (half_at(block, 0), half_at(block, 2)),
        GgmlType::Q2_K => {
            let (d, dmin) = (half_at(block, 80), half_at(block, 82));
            for (i, &both) in block[..16].iter().enumerate() {
                (scales[i], biases[i]) = (d * f32::from(both & 15), -(dmin * f32::from(both >> 4)));
            }
        }
        GgmlType::Q3_K => {
            let d = half_at(block, 108);
            let packed = q3_k_scales(&block[96..108]);
            scales.iter_mut().zip(packed).for_each(|(scale, q)| *scale = d * f32::from(q));
        }
        GgmlType::Q4_K | GgmlType::Q5_K => {
            let (d, dmin) = (half_at(block, 0), half_at(block, 2));
            let (packed_scales, packed_mins) = scales_and_mins(&block[4..16]);
            for i in 0..8 {
                scales[i] = d * f32::from(packed_scales[i]);
                biases[i] = -(dmin * f32::from(packed_mins[i]));
            }
        }
        GgmlType::Q6_K => {
            let d = half_at(block, 208);
            scales.iter_mut().zip(&block[192..208]).for_each(|(scale, &q)| *scale = d * f32::from(q as i8));
        }
        GgmlType::IQ4_NL | GgmlType::IQ4_XS | GgmlType::MXFP4 => {}
    }
    if let Some(offset) = of.code_offset() {
        biases.iter_mut().zip(scales).for_each(|(bias, scale)| *bias = -offset * *scale);
    }
}

/// The codes of a block's elements, as in [`affine_block`].
pub(crate) fn affine_codes(of: GgmlType, block: &[u8], codes: &mut [u8]) {
    match of {
        GgmlType::Q4_0 => codes.copy_from_slice(&halves(&block[2..])),
        GgmlType::Q4_1 => codes.copy_from_slice(&halves(&block[4..])),
        GgmlType::Q5_0 => codes.copy_from_slice(&halves_and_mask(&block[2..6], &block[6..])),
        GgmlType::Q5_1 => codes.copy_from_slice(&halves_and_mask(&block[4..8], &block[8..])),
        GgmlType::Q8_0 => codes.iter_mut().zip(&block[2..]).for_each(|(code, &q)| *code = q ^ 128),
        GgmlType::Q2_K => {
            for (codes, quants) in codes.chunks_exact_mut(128).zip(block[16..80].chunks_exact(32)) {
                part::<0>(&mut codes[..32], quants, 3);
                part::<2>(&mut codes[32..64], quants, 3);
                part::<4>(&mut codes[64..96], quants, 3);
                part::<6>(&mut codes[96..], quants, 3);
            }
        }
        GgmlType::Q3_K => {
            let (high, low) = (&block[..32], &block[32..96]);
            for (codes, low) in codes.chunks_exact_mut(128).zip(low.chunks_exact(32)) {
                part::<0>(&mut codes[..32], low, 3);
                part::<2>(&mut codes[32..64], low, 3);
                part::<4>(&mut codes[64..96], low, 3);
                part::<6>(&mut codes[96..], low, 3);
            }
            for (i, codes) in codes.chunks_exact_mut(32).enumerate() {
                codes.iter_mut().zip(high).for_each(|(code, byte)| *code |= (byte >> i & 1) << 2);
            }
        }
        GgmlType::Q4_K | GgmlType::Q5_K => {
            let (high, low) = match of {
                GgmlType::Q4_K => (None, &block[16..]),
                _ => (Some(&block[16..48]), &block[48..]),
            };
            for (codes, low) in codes.chunks_exact_mut(64).zip(low.chunks_exact(32)) {
                part::<0>(&mut codes[..32], low, 15);
                part::<4>(&mut codes[32..], low, 15);
            }
            for (i, codes) in codes.chunks_exact_mut(32).enumerate() {
                if let Some(high) = high {
                    codes.iter_mut().zip(high).for_each(|(code, byte)| *code |= (byte >> i & 1) << 4);
                }
            }
        }
        GgmlType::Q6_K => {
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
        GgmlType::IQ4_NL | GgmlType::IQ4_XS | GgmlType::MXFP4 => {
            unreachable!("the codes of {} index a table", of.name())
        }
    }
}

/// Decodes one block.
pub(super) fn decode_block(of: GgmlType, block: &[u8], out: &mut [f32]) {
    match of {
        GgmlType::IQ4_NL => {
            let d = half_at(block, 0);
            let codes = halves(&block[2..]);
            out.iter_mut().zip(codes).for_each(|(w, code)| *w = d * f32::from(IQ4_VALUES[usize::from(code)]));
        }
        GgmlType::IQ4_XS => {
            let d = half_at(block, 0);
            let groups = out.chunks_exact_mut(32).zip(block[8..].chunks_exact(16));
            for ((out, bytes), scale) in groups.zip(iq4_xs_scales(block)) {
                let scale = d * f32::from(scale);
                out.iter_mut()
                    .zip(halves(bytes))
                    .for_each(|(w, code)| *w = scale * f32::from(IQ4_VALUES[usize::from(code)]));
            }
        }
        GgmlType::MXFP4 => {
            let scale = e8m0_half(block[0]);
            let codes = halves(&block[1..]);
            out.iter_mut()
                .zip(codes)
                .for_each(|(w, code)| *w = scale * f32::from(E2M1_DOUBLED[usize::from(code)]));
        }
        _ => {
            let (mut codes, mut scales, mut biases) = ([0; 256], [0.0; 16], [0.0; 16]);
            let Some((_, group)) = of.affine() else { unreachable!("{} is affine", of.name()) };
            let groups = out.len() / group;
            let codes = &mut codes[..out.len()];
            affine_block(of, block, codes, &mut scales[..groups], &mut biases[..groups]);
            for (i, (w, &code)) in out.iter_mut().zip(&*codes).enumerate() {
                let (scale, bias) = (scales[i / group], biases[i / group]);
                *w = match of.code_offset() {
                    // The codes as they are signed: the bias would round a product of more bits than `f32` has.
                    Some(offset) => scale * (f32::from(code) - offset),
                    None => scale * f32::from(code) + bias,
                };
            }
        }
    }
}

impl GgmlType {
    /// Bits of a code and elements of a group, where `w = q · scale + bias` in groups. The scales and biases of the
    /// K-quants are products, which `f32` holds exactly.
    pub const fn affine(self) -> Option<(u8, usize)> {
        Some(match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => (4, 32),
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => (5, 32),
            Self::Q8_0 => (8, 32),
            Self::Q2_K => (2, 16),
            Self::Q3_K => (3, 16),
            Self::Q6_K => (6, 16),
            Self::IQ4_NL | Self::IQ4_XS | Self::MXFP4 => return None,
        })
    }

    /// What is taken off a code where the format has no biases.
    const fn code_offset(self) -> Option<f32> {
        match self {
            Self::Q4_0 => Some(8.0),
            Self::Q5_0 => Some(16.0),
            Self::Q8_0 => Some(128.0),
            Self::Q3_K => Some(4.0),
            Self::Q6_K => Some(32.0),
            _ => None,
        }
    }
}
