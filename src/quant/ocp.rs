//! The small floats of the OCP microscaling formats and NVFP4, as MLX decodes them in `f32`.
//!
//! Source: OCP Microscaling Formats (MX) specification 1.0; OCP 8-bit floating point (E4M3).

/// e2m1: sign, two bits of exponent, one of fraction.
pub const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// e8m0: 2^(code - 127). 255 is infinite, as MLX has it; the specification calls it NaN, and no writer stores it.
pub fn e8m0(code: u8) -> f32 {
    // 2^-127 is subnormal: the exponent field alone cannot say it.
    f32::from_bits(if code == 0 { 0x0040_0000 } else { u32::from(code) << 23 })
}

/// e4m3 with a bias of 7: finite but for the two NaN codes 0x7f and 0xff.
pub fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (code >> 3 & 15, code & 7);
    let magnitude = match (exponent, fraction) {
        (15, 7) => f32::NAN,
        (0, fraction) => f32::from(fraction) / 512.0,
        // Moves exponent and fraction to where binary32 has them, and the bias from 7 to 127.
        _ => f32::from_bits((u32::from(code & 127) << 20) + ((127 - 7) << 23)),
    };
    if code & 128 == 0 { magnitude } else { -magnitude }
}

/// Two codes a byte, the low nibble first.
pub(crate) fn nibbles(bytes: &[u8], out: &mut [u8]) {
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        (pair[0], pair[1]) = (byte & 15, byte >> 4);
    }
}

/// `out = value of each code · scale of its group`.
pub(super) fn decode_row(
    codes: impl Iterator<Item = f32>,
    scales: impl Iterator<Item = f32>,
    group: usize,
    out: &mut [f32],
) {
    let mut codes = codes;
    for (out, scale) in out.chunks_exact_mut(group).zip(scales) {
        out.iter_mut().zip(&mut codes).for_each(|(w, code)| *w = code * scale);
    }
}
