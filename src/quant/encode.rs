//! Quantizers: rows of values → the planes of a format, with the bits of MLX's `quantize` and of the `gguf` package's.

pub(super) mod k;
pub(super) mod signed;

use std::ops::Add;

use half::{bf16, f16};

use super::affine::{pack, read_floats};
use super::{Format, for_rows};
use crate::tensor::DType;

/// 1.5 · 2^23: added to a value of magnitude below 2^22, it leaves the nearest integer, ties to even, in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Elements of a block of the K-quants.
const BLOCK: usize = 256;
/// Rounds of choosing a block's factors anew: later ones change nothing that can be measured.
const ROUNDS: usize = 3;
/// The weights of columns of which nothing is known.
const ONES: [f32; BLOCK] = [1.0; BLOCK];
/// The least weight of a column, as a part of the mean: a text that never uses a column does not say that none will.
const LEAST: f32 = 1e-4;

/// The nearest integer of a value of magnitude below 2^22.
fn nearest(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

/// The sum of terms, a power of two of them, half added to half: so processors have them side by side.
fn sum<const G: usize, T: Copy + Add<Output = T>>(mut terms: [T; G]) -> T {
    let mut half = G / 2;
    while half > 0 {
        let (low, high) = terms.split_at_mut(half);
        for (low, &high) in low.iter_mut().zip(&*high) {
            *low = *low + high;
        }
        half /= 2;
    }
    terms[0]
}

/// `x` as `f16` has it.
fn narrow(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

impl Format {
    /// Whether [`encode`](Self::encode) writes it.
    pub const fn has_encoder(self) -> bool {
        match self {
            Self::Affine { .. } | Self::Mxfp4 => true,
            Self::Ggml(of) => of.has_encoder(),
            Self::Mxfp8 | Self::Nvfp4 | Self::Fp8 { .. } | Self::Fp4 { .. } => false,
        }
    }

    /// Quantizes `values`, little-endian and row-major, `[N, columns]` of `dtype`, over the machine's cores. The planes are
    /// those that the format names.
    ///
    /// - Affine (of a group, in `f32`): `scale = max((max - min) / (2^bits - 1), 1e-7)`, with the sign that lets the edge of
    ///   larger magnitude have a whole code `q0`; then `scale = edge / q0`, `bias = edge`; scales and biases are rounded to
    ///   `dtype` after the codes are chosen. Equals `mx.quantize` to the bit.
    /// - MXFP4: the scale is the smallest power of two that is at least `max / 6` (rounded to `dtype`), the codes are the
    ///   nearest, ties to zero. Equals `mx.quantize`, but for groups below `6 · 2^-126`, where its exponent may wrap.
    /// - `Q8_0`, `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`: equal those of the `gguf` Python package to the bit.
    /// - The K-quants, `IQ4_NL` and `IQ4_XS`: a square error below that of ggml's own quantizer.
    ///
    /// Gives back the first row that holds a NaN or an infinity, if any: its codes mean nothing.
    ///
    /// # Panics
    /// Where the format has no encoder, `columns` is no multiple of its group, affine scales are of another type than
    /// `dtype`, or a slice has another length.
    pub fn encode(
        self,
        dtype: DType,
        columns: usize,
        values: &[u8],
        planes: [&mut [u8]; 3],
    ) -> Option<usize> {
        self.encode_weighed(dtype, columns, values, None, planes)
    }

    /// As [`encode`](Self::encode), with the square error of each column multiplied by its `importance`, the mean square of its
    /// inputs `[columns]`: what the error of a product is made of. Affine groups are then searched for, and are no longer MLX's. MXFP4 and
    /// `Q8_0` have no use for it.
    ///
    /// # Panics
    /// As [`encode`](Self::encode), and where `importance` has another length.
    pub fn encode_weighed(
        self,
        dtype: DType,
        columns: usize,
        values: &[u8],
        importance: Option<&[f32]>,
        planes: [&mut [u8]; 3],
    ) -> Option<usize> {
        let weights = importance.map(weights);
        assert!(
            weights.as_ref().is_none_or(|weights| weights.len() == columns),
            "weights of {columns} columns"
        );
        assert!(self.has_encoder(), "{self} has no encoder");
        assert!(columns.is_multiple_of(self.group()), "{columns} columns in {self}");
        if let Self::Affine { scales, .. } = self {
            assert_eq!(scales, dtype, "scales of {self}");
        }
        let rows = values.len().checked_div(columns * dtype.size()).unwrap_or(0);
        assert_eq!(values.len(), rows * columns * dtype.size(), "values of {rows} rows of {columns}");
        let mut widths = self.row_bytes(columns);
        widths.resize(3, 0);
        let mut outputs = planes.into_iter().zip(widths.iter().copied());
        let outputs = std::array::from_fn::<_, 3, _>(|_| outputs.next().unwrap_or_default());
        // Beyond it scales in f16 are infinite.
        let largest = match self {
            Self::Ggml(of) if of.ends_as_f16() => f16::MAX.to_f32(),
            _ => f32::MAX,
        };
        let wrong = parking_lot::Mutex::new(None);
        for_rows(rows, outputs, |range, parts| {
            let mut row = vec![0.0; columns];
            let mut codes = vec![0; columns];
            let mut parts = parts.into_iter().zip(&widths);
            let mut parts = std::array::from_fn::<_, 3, _>(|_| match parts.next() {
                Some((part, &width)) => (part, width),
                None => (Default::default(), 0),
            });
            for at in range.clone() {
                let width = columns * dtype.size();
                read_floats(dtype, &values[at * width..][..width], &mut row);
                if row.iter().any(|x| x.is_nan() || x.abs() > largest) {
                    let mut first: parking_lot::MutexGuard<'_, Option<usize>> = wrong.lock();
                    *first = Some(first.map_or(at, |first| first.min(at)));
                    return;
                }
                let [one, two, three] = parts.each_mut().map(|(part, width)| {
                    let (row, rest) = std::mem::take(part).split_at_mut(*width);
                    *part = rest;
                    row
                });
                match self {
                    Self::Affine { bits, group, .. } => {
                        let weights = weights.as_deref();
                        affine(bits, usize::from(group), dtype, (&row, weights), &mut codes, two, three);
                        pack(bits, &codes, one);
                    }
                    Self::Mxfp4 => mxfp4(dtype, &row, one, two),
                    Self::Ggml(of) => {
                        let (elements, size) = of.block();
                        let Some(encode) = of.row().encode else { unreachable!("checked above") };
                        let blocks = row.chunks_exact(elements).zip(one.chunks_exact_mut(size));
                        for (i, (values, block)) in blocks.enumerate() {
                            let weights =
                                weights.as_ref().map(|weights| &weights[i * elements..(i + 1) * elements]);
                            encode(values, weights, block);
                        }
                    }
                    Self::Mxfp8 | Self::Nvfp4 | Self::Fp8 { .. } | Self::Fp4 { .. } => {
                        unreachable!("checked above")
                    }
                }
            }
        });
        wrong.into_inner()
    }
}

/// What square errors are multiplied with: 1 on average.
fn weights(importance: &[f32]) -> Vec<f32> {
    let mean = importance.iter().map(|&x| f64::from(x)).sum::<f64>() / importance.len().max(1) as f64;
    if mean <= 0.0 || !mean.is_finite() {
        return vec![1.0; importance.len()];
    }
    importance.iter().map(|&x| ((f64::from(x) / mean) as f32).max(LEAST)).collect()
}

/// `values` in `dtype`, little-endian, to nearest, ties to even.
pub fn write_floats(dtype: DType, values: &[f32], out: &mut [u8]) {
    let pairs = values.iter().zip(out.chunks_exact_mut(dtype.size()));
    match dtype {
        DType::F32 => pairs.for_each(|(v, out)| out.copy_from_slice(&v.to_le_bytes())),
        DType::F16 => pairs.for_each(|(&v, out)| out.copy_from_slice(&f16::from_f32(v).to_le_bytes())),
        DType::BF16 => pairs.for_each(|(&v, out)| out.copy_from_slice(&bf16::from_f32(v).to_le_bytes())),
    }
}

fn affine(
    bits: u8,
    group: usize,
    dtype: DType,
    (row, weights): (&[f32], Option<&[f32]>),
    codes: &mut [u8],
    scales: &mut [u8],
    biases: &mut [u8],
) {
    let outputs = codes
        .chunks_exact_mut(group)
        .zip(scales.chunks_exact_mut(dtype.size()).zip(biases.chunks_exact_mut(dtype.size())));
    for (at, (values, (codes, (scale_out, bias_out)))) in row.chunks_exact(group).zip(outputs).enumerate() {
        let weights = weights.map(|weights| &weights[at * group..(at + 1) * group]);
        let (scale, bias) = match weights {
            Some(weights) => affine_weighed(bits, dtype, values, weights, codes),
            None => affine_group(bits, values, codes),
        };
        write_floats(dtype, &[scale], scale_out);
        write_floats(dtype, &[bias], bias_out);
    }
}

/// The codes of one group whose columns have weights, and its scale and bias: MLX's where nothing that is searched for is nearer.
fn affine_weighed(bits: u8, dtype: DType, values: &[f32], weights: &[f32], codes: &mut [u8]) -> (f32, f32) {
    fn of<const G: usize>(
        values: &[f32],
        weights: &[f32],
        most: f32,
        round: impl Fn(f32) -> f32,
        codes: &mut [u8],
    ) -> Option<(f32, f32, f32)> {
        let (values, weights) = (values.as_chunks::<G>().0.first()?, weights.as_chunks::<G>().0.first()?);
        Some(k::affine_group(values, weights, most, round, codes))
    }
    let most = ((1_u32 << bits) - 1) as f32;
    let round = |x: f32| match dtype {
        DType::F32 => x,
        DType::F16 => narrow(x),
        DType::BF16 => bf16::from_f32(x).to_f32(),
    };
    let found = match values.len() {
        32 => of::<32>(values, weights, most, round, codes),
        64 => of::<64>(values, weights, most, round, codes),
        128 => of::<128>(values, weights, most, round, codes),
        _ => None,
    };
    let mut plain = [0; 128];
    let plain = &mut plain[..codes.len()];
    let (scale, bias) = affine_group(bits, values, plain);
    let each = plain.iter().zip(values).zip(weights);
    let off = |code: u8, x: f32| f32::from(code) * round(scale) + round(bias) - x;
    let error: f32 = each.map(|((&code, &x), &weight)| weight * off(code, x).powi(2)).sum();
    match found {
        Some((scale, bias, searched)) if searched < error => (scale, bias),
        _ => {
            codes.copy_from_slice(plain);
            (scale, bias)
        }
    }
}

/// The codes of one group, and its scale and bias before they are rounded to the type that they are kept in.
pub(crate) fn affine_group(bits: u8, values: &[f32], codes: &mut [u8]) -> (f32, f32) {
    let most = ((1_u32 << bits) - 1) as f32;
    let min = values.iter().fold(f32::INFINITY, |min, &x| if x < min { x } else { min });
    let max = values.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    let step = ((max - min) / most).max(1e-7);
    let (step, edge) = if min.abs() > max.abs() { (step, min) } else { (-step, max) };
    let q0 = (edge / step).round_ties_even();
    let (scale, bias) = if q0 == 0.0 { (step, 0.0) } else { (edge / q0, edge) };
    for (code, &x) in codes.iter_mut().zip(values) {
        let q = ((x - bias) / scale).max(0.0).min(most);
        *code = (q + ROUND).to_bits() as u8;
    }
    (scale, bias)
}

fn mxfp4(dtype: DType, row: &[f32], codes: &mut [u8], scales: &mut [u8]) {
    for ((values, codes), scale) in row.chunks_exact(32).zip(codes.chunks_exact_mut(16)).zip(scales) {
        let max = values.iter().fold(0.0_f32, |max, x| max.max(x.abs())) / 6.0;
        // MLX computes in the type of the matrix; only f16 rounds near its smallest numbers.
        let least = match dtype {
            DType::F32 => max,
            DType::F16 => f16::from_f32(max).to_f32(),
            DType::BF16 => bf16::from_f32(max).to_f32(),
        };
        let bits = least.to_bits();
        // A group of zeros has a scale of 1. A fraction beside the exponent asks for the next power of two.
        let exponent = if bits == 0 { 127 } else { (bits >> 23) + u32::from(bits & 0x007f_ffff != 0) };
        *scale = exponent.min(254) as u8;
        // 2^(127 - scale) in two factors, each of which f32 has, the product too small to matter where it is subnormal.
        let half = (127 - i32::from(*scale)) / 2;
        let power = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
        let (one, two) = (power(half), power(127 - i32::from(*scale) - half));
        for (pair, byte) in values.chunks_exact(2).zip(codes) {
            *byte = e2m1(pair[0] * one * two) | e2m1(pair[1] * one * two) << 4;
        }
    }
}

/// The nearest e2m1 code, ties to zero; zero has no sign.
fn e2m1(x: f32) -> u8 {
    let between = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    let magnitude = between.iter().map(|&edge| u8::from(x.abs() > edge)).sum::<u8>();
    if x < 0.0 && magnitude > 0 { magnitude | 8 } else { magnitude }
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// `w = q · d`, `q` from -127 to 127.
pub(super) fn q8_0(values: &[f32], _: Option<&[f32]>, block: &mut [u8]) {
    let scale = values.iter().fold(0.0_f32, |max, x| max.max(x.abs())) / 127.0;
    let inverse = inverse(scale);
    let (head, codes) = block.split_at_mut(2);
    write_floats(DType::F16, &[scale], head);
    for (code, &x) in codes.iter_mut().zip(values) {
        *code = (x * inverse).round() as i8 as u8;
    }
}

/// The first of the largest magnitude, as in ggml.
fn edge(values: &[f32]) -> f32 {
    values.iter().fold(0.0_f32, |edge, &x| if x.abs() > edge.abs() { x } else { edge })
}

/// Codes of four bits: element `i` beside `i + 16`, low nibble first.
fn put_nibbles(codes: &[u8; 32], out: &mut [u8]) {
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = codes[i] & 15 | codes[i + 16] << 4;
    }
}

/// The fifth bits of 32 codes, little-endian.
fn fifth_bits(codes: &[u8; 32]) -> [u8; 4] {
    codes.iter().enumerate().fold(0_u32, |bits, (i, &code)| bits | u32::from(code >> 4) << i).to_le_bytes()
}

/// `w = (q - 8) · d`, the value of largest magnitude having the code 0.
pub(super) fn q4_0(values: &[f32], weights: Option<&[f32]>, block: &mut [u8]) {
    let (scale, codes) = match weights {
        Some(weights) => signed::four_bits(values, weights),
        None => {
            let scale = edge(values) / -8.0;
            let inverse = inverse(scale);
            (scale, std::array::from_fn(|i| ((values[i] * inverse + 8.5) as u8).min(15)))
        }
    };
    let (head, low) = block.split_at_mut(2);
    write_floats(DType::F16, &[scale], head);
    put_nibbles(&codes, low);
}

/// `w = (q - 16) · d`, the value of largest magnitude having the code 0; the fifth bits before the nibbles.
pub(super) fn q5_0(values: &[f32], weights: Option<&[f32]>, block: &mut [u8]) {
    let (scale, codes) = match weights {
        Some(weights) => signed::five_bits(values, weights),
        None => {
            let scale = edge(values) / -16.0;
            let inverse = inverse(scale);
            (scale, std::array::from_fn(|i| ((values[i] * inverse + 16.5) as u8).min(31)))
        }
    };
    let (head, rest) = block.split_at_mut(2);
    write_floats(DType::F16, &[scale], head);
    let (fifth, low) = rest.split_at_mut(4);
    fifth.copy_from_slice(&fifth_bits(&codes));
    put_nibbles(&codes, low);
}

/// Scale and codes of `w = q · d + m` between the least and the largest value; writes `d` and `m`.
fn with_min(values: &[f32], weights: Option<&[f32]>, most: u8, head: &mut [u8]) -> [u8; 32] {
    let groups = (values.as_chunks::<32>().0.first(), weights.and_then(|of| of.as_chunks::<32>().0.first()));
    if let (Some(values), Some(weights)) = groups {
        let (scale, min, codes) = k::one_group(values, weights, f32::from(most));
        write_floats(DType::F16, &[scale, min], head);
        return codes;
    }
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (max - min) / f32::from(most);
    let inverse = inverse(scale);
    write_floats(DType::F16, &[scale, min], head);
    std::array::from_fn(|i| (((values[i] - min) * inverse + 0.5) as u8).min(most))
}

/// `w = q · d + m`.
pub(super) fn q4_1(values: &[f32], weights: Option<&[f32]>, block: &mut [u8]) {
    let (head, low) = block.split_at_mut(4);
    put_nibbles(&with_min(values, weights, 15, head), low);
}

/// `w = q · d + m`, the fifth bits before the nibbles.
pub(super) fn q5_1(values: &[f32], weights: Option<&[f32]>, block: &mut [u8]) {
    let (head, rest) = block.split_at_mut(4);
    let codes = with_min(values, weights, 31, head);
    let (fifth, low) = rest.split_at_mut(4);
    fifth.copy_from_slice(&fifth_bits(&codes));
    put_nibbles(&codes, low);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Plane, QuantWeight};

    /// Where columns have weights, no row is further from its values than MLX's groups, and all together are nearer.
    #[test]
    fn weighed_groups_are_nearer_than_those_of_mlx() {
        let (columns, rows) = (384, 24);
        let mut seed = 3_u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1 << 24) as f32
        };
        // Sums of a few are about normal; some columns count a hundred times as much as others.
        let mut values: Vec<f32> =
            (0..columns * rows).map(|_| (0..4).map(|_| next()).sum::<f32>() * 0.05 - 0.1).collect();
        let importance: Vec<f32> = (0..columns).map(|_| 10_f32.powf(4.0 * next() - 2.0)).collect();
        let by = weights(&importance);
        // A row of one value, and one of few.
        values[..columns].fill(0.25);
        values[columns..2 * columns].iter_mut().for_each(|x| *x = x.signum());
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let mut bytes = vec![0; values.len() * dtype.size()];
            write_floats(dtype, &values, &mut bytes);
            let mut stored = vec![0.0; values.len()];
            read_floats(dtype, &bytes, &mut stored);
            for (bits, group) in [(2, 64), (3, 64), (4, 32), (4, 64), (4, 128), (6, 64), (8, 32)] {
                let format = Format::Affine { bits, group, scales: dtype };
                let errors = |importance: Option<&[f32]>| -> Vec<f64> {
                    let mut planes: [Vec<u8>; 3] = Default::default();
                    for (plane, width) in planes.iter_mut().zip(format.row_bytes(columns)) {
                        plane.resize(width * rows, 0);
                    }
                    let out = planes.each_mut().map(|plane| &mut plane[..]);
                    assert_eq!(format.encode_weighed(dtype, columns, &bytes, importance, out), None);
                    let weight = QuantWeight::new("w", format, [rows, columns], planes.map(Plane::owned));
                    let decoded = weight.to_f32();
                    let weighed = |(got, wanted): (&[f32], &[f32])| -> f64 {
                        let offs = got.iter().zip(wanted).map(|(a, b)| f64::from(a - b).powi(2));
                        offs.zip(&by).map(|(off, &weight)| f64::from(weight) * off).sum()
                    };
                    decoded.chunks(columns).zip(stored.chunks(columns)).map(weighed).collect()
                };
                let (plain, searched) = (errors(None), errors(Some(&importance)));
                for (row, (plain, searched)) in plain.iter().zip(&searched).enumerate() {
                    assert!(
                        *searched <= plain * (1.0 + 1e-5),
                        "{format}, row {row}: {searched} over {plain}"
                    );
                }
                let ratio = searched.iter().sum::<f64>() / plain.iter().sum::<f64>();
                assert!(ratio < 0.9, "{format}: {ratio}");
            }
        }
    }
}
