//! MLX's affine codes: `w = q · scale + bias`, the codes a little-endian bit stream along the row.

use half::{bf16, f16};

use crate::tensor::DType;

/// Codes of a stream of `bits` each: element `i` is bits `[i · bits, (i + 1) · bits)`.
pub fn unpack(bits: u8, stream: &[u8], out: &mut [u8]) {
    let mask = ((1_u32 << bits) - 1) as u8;
    match bits {
        8 => out.copy_from_slice(stream),
        4 => {
            for (pair, &byte) in out.chunks_exact_mut(2).zip(stream) {
                (pair[0], pair[1]) = (byte & mask, byte >> 4);
            }
        }
        2 => {
            for (four, &byte) in out.chunks_exact_mut(4).zip(stream) {
                for (i, code) in four.iter_mut().enumerate() {
                    *code = byte >> (2 * i) & mask;
                }
            }
        }
        // Eight codes are a whole number of bytes at any width.
        _ => {
            for (eight, bytes) in out.chunks_exact_mut(8).zip(stream.chunks_exact(usize::from(bits))) {
                let word = bytes.iter().rev().fold(0_u64, |word, &byte| word << 8 | u64::from(byte));
                for (i, code) in eight.iter_mut().enumerate() {
                    *code = (word >> (i * usize::from(bits))) as u8 & mask;
                }
            }
        }
    }
}

/// The stream of codes of `bits` each: the inverse of [`unpack`].
pub fn pack(bits: u8, codes: &[u8], out: &mut [u8]) {
    for (eight, bytes) in codes.chunks_exact(8).zip(out.chunks_exact_mut(usize::from(bits))) {
        let word = eight.iter().rev().fold(0_u64, |word, &code| word << bits | u64::from(code));
        bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (word >> (8 * i)) as u8);
    }
}

/// Little-endian values of `dtype`, at any alignment, as `f32`.
pub fn read_floats(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let values = out.iter_mut().zip(bytes.chunks_exact(dtype.size()));
    match dtype {
        DType::F32 => values.for_each(|(v, b)| *v = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        DType::F16 => values.for_each(|(v, b)| *v = f16::from_le_bytes([b[0], b[1]]).to_f32()),
        DType::BF16 => values.for_each(|(v, b)| *v = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
    }
}
