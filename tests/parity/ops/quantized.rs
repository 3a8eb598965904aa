//! Linear layers and embeddings of matrices in blocks, against the product in `f64` of the values that they decode to.

use std::sync::Arc;

use backstop::backend::Op;
use backstop::backend::ops::Ids;
use backstop::quant::repack::{MlxForm, repack};
use backstop::quant::{Format, GgmlType, Plane, QuantWeight};
use backstop::tensor::{Bytes, DType};
use half::f16;

use super::rig::{Element, Rig, rigs, values, weight, with};

/// Every format; affine ones with the groups of MLX, GPTQ and AWQ, and each type of scales; small floats with scales of their own.
pub fn formats() -> Vec<Format> {
    let mut all: Vec<Format> = GgmlType::ALL.map(Format::Ggml).to_vec();
    all.extend([Format::Mxfp4, Format::Mxfp8, Format::Nvfp4]);
    let types = [DType::F32, DType::F16, DType::BF16];
    for (i, bits) in [2, 3, 4, 5, 6, 8].into_iter().enumerate() {
        for (j, group) in [32, 64, 128].into_iter().enumerate() {
            all.push(Format::Affine { bits, group, scales: types[(i + j) % 3] });
        }
    }
    for (bits, group) in [(4, 16), (4, 256), (8, 96), (8, 8)] {
        all.push(Format::Affine { bits, group, scales: DType::F32 });
    }
    all.extend([Format::Fp8 { group: 128 }, Format::Fp8 { group: 96 }, Format::Fp4 { group: 16 }]);
    all
}

/// Bytes at random, a function of `seed` alone.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    values(seed, len, 1.0).into_iter().map(|x| (x.to_bits() >> 7) as u8).collect()
}

fn plane(bytes: Vec<u8>) -> Plane {
    let len = bytes.len();
    Plane::new(Arc::new(bytes) as Arc<dyn Bytes>, 0..len)
}

/// A matrix `[n, k]` of codes at random, with scales that leave its values about as large as 1.
pub fn matrix(format: Format, seed: u64, n: usize, k: usize) -> QuantWeight {
    let lengths: Vec<usize> = format.row_bytes(k).iter().map(|row| row * n).collect();
    let mut parts: Vec<Vec<u8>> =
        lengths.iter().enumerate().map(|(i, &len)| bytes(seed + i as u64, len)).collect();
    let near = |seed: u64, len: usize, size: f32| -> Vec<f32> {
        values(seed, len, 0.2).into_iter().map(|x| size * (1.0 + x)).collect()
    };
    match format {
        Format::Affine { bits, scales, .. } => {
            let count = lengths[1] / scales.size();
            let step = 2.0 / (1 << bits) as f32;
            let typed = |values: &[f32]| weight(scales, &[count], values).bytes().to_vec();
            parts[1] = typed(&near(seed + 7, count, step));
            parts[2] = typed(&near(seed + 8, count, -1.0));
        }
        Format::Mxfp4 | Format::Mxfp8 => {
            let base = if format == Format::Mxfp4 { 125 } else { 120 };
            parts[1].iter_mut().for_each(|scale| *scale = base + *scale % 3);
            // No NaN among the codes.
            parts[0].iter_mut().filter(|code| **code & 127 == 127).for_each(|code| *code ^= 1);
        }
        Format::Nvfp4 => parts[1].iter_mut().for_each(|scale| *scale = 40 + *scale % 16),
        Format::Fp8 { .. } | Format::Fp4 { .. } => {
            let is_wide = matches!(format, Format::Fp8 { .. });
            let scales = near(seed + 7, lengths[1] / 4, if is_wide { 0.02 } else { 0.3 });
            parts[1] = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            if is_wide {
                parts[0].iter_mut().filter(|code| **code & 127 == 127).for_each(|code| *code ^= 1);
            }
        }
        Format::Ggml(of) => {
            let (_, size) = of.block();
            let (halves, d): (&[usize], f32) = match of {
                GgmlType::Q4_0 | GgmlType::Q4_1 => (&[0], 0.12),
                GgmlType::Q5_0 | GgmlType::Q5_1 => (&[0], 0.06),
                GgmlType::Q8_0 | GgmlType::IQ4_NL => (&[0], 0.01),
                GgmlType::Q2_K => (&[80, 82], 0.04),
                GgmlType::Q3_K => (&[108], 0.01),
                GgmlType::Q4_K => (&[0, 2], 0.002),
                GgmlType::Q5_K => (&[0, 2], 0.001),
                GgmlType::Q6_K => (&[208], 0.0005),
                GgmlType::IQ4_XS => (&[0], 0.0004),
                GgmlType::MXFP4 => (&[], 0.0),
            };
            for (i, block) in parts[0].chunks_exact_mut(size).enumerate() {
                for &at in halves {
                    let d = near(seed + i as u64, 1, d)[0];
                    block[at..at + 2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                }
                match of {
                    GgmlType::Q4_1 | GgmlType::Q5_1 => {
                        block[2..4].copy_from_slice(&f16::from_f32(-0.9).to_le_bytes());
                    }
                    GgmlType::MXFP4 => block[0] = 125 + block[0] % 3,
                    _ => {}
                }
            }
        }
    }
    QuantWeight::new("test", format, [n, k], parts.into_iter().map(plane))
}

/// The matrix as a backend computes it: MLX has other formats for some.
pub fn as_computed(rig: &Rig, weight: &QuantWeight) -> QuantWeight {
    match weight.format().on_mlx(weight.shape()[1]) {
        Some(MlxForm::Equal(to) | MlxForm::Nearest(to)) if !rig.is_cpu() => {
            repack(weight, to, rig.dtype == DType::F16)
        }
        _ => weight.clone(),
    }
}

/// The magnitudes that decoding rounds on its way to each value, `[N, K]` in the order of the input.
pub fn magnitudes(weight: &QuantWeight) -> Vec<f32> {
    let [rows, columns] = *weight.shape();
    let Some((_, group)) = weight.format().affine() else {
        return weight.to_f32().into_iter().map(f32::abs).collect();
    };
    let mut out = vec![0.0; rows * columns];
    let (mut codes, mut stored) = (vec![0; columns], vec![0.0; columns]);
    let (mut scales, mut biases) = (vec![0.0; columns / group], vec![0.0; columns / group]);
    for (row, out) in out.chunks_exact_mut(columns).enumerate() {
        weight.affine_row(row, &mut codes, &mut scales, &mut biases);
        for (k, stored) in stored.iter_mut().enumerate() {
            *stored = (f32::from(codes[k]) * scales[k / group]).abs() + biases[k / group].abs();
        }
        weight.restore_order(&stored, out);
    }
    out
}

/// `Σ_k x[t, k] w[n, k] + bias[n]`. MLX decodes a weight in the type of activations: each is rounded, and so is what it is
/// the sum of.
fn reference(rig: &Rig, x: &[f32], weight: &QuantWeight, bias: Option<&[f32]>) -> Vec<Element> {
    let [n, k] = *weight.shape();
    let weight = as_computed(rig, weight);
    let (w, sizes) = (weight.to_f32(), magnitudes(&weight));
    let mut out = Vec::with_capacity(x.len() / k * n);
    for x in x.chunks_exact(k) {
        for row in 0..n {
            let (mut value, mut decoded, mut summed) = (0.0, 0.0, 0.0);
            for (i, &x) in x.iter().enumerate() {
                let product = f64::from(x) * f64::from(w[row * k + i]);
                value += product;
                summed += product.abs();
                decoded += f64::from(x.abs()) * f64::from(sizes[row * k + i]);
            }
            let bias = bias.map_or(0.0, |bias| f64::from(bias[row]));
            let rounded = value.abs().max((value + bias).abs()) + decoded;
            out.push(Element { value: value + bias, rounded, summed: summed + bias.abs() });
        }
    }
    out
}

/// A permutation of `k` columns that is not its own inverse.
fn order(k: usize) -> Arc<[u32]> {
    (0..k).map(|j| ((j * 5 + 3) % k) as u32).collect()
}

#[test]
fn linear_of_every_format_agrees_with_its_decoded_values() {
    for rig in rigs() {
        for (i, format) in formats().into_iter().enumerate() {
            // Whole blocks of 256 and of 96, and not a multiple of 512, which MLX has other kernels for.
            let k = 768;
            for (t, n) in [(1, 33), (2, 64), (7, 8), (33, 40)] {
                let mut weight = matrix(format, (i * 100 + t) as u64, n, k);
                if t == 7 {
                    weight = weight.with_order(order(k));
                }
                let x = rig.values(t as u64, t * k, 1.0);
                let bias = (t == 2).then(|| rig.values(5, n, 0.5));
                let expected = reference(&rig, &x, &weight, bias.as_deref());
                let x = rig.tensor(&[t, k], &x);
                let bias = bias.map(|bias| rig.vector(&super::rig::weight(rig.dtype, &[n], &bias)));
                let weight = rig.matrix(&weight);
                let op = Op::Linear { x: &x, projection: with(&weight, bias.as_ref()) };
                rig.check(&op, &format!("T {t}, N {n}, {format}"), &expected);
            }
        }
    }
}

#[test]
fn embedding_of_every_format_gives_its_decoded_values() {
    for rig in rigs() {
        for (i, format) in formats().into_iter().enumerate() {
            let (vocab, width) = (37, 768);
            let table = matrix(format, i as u64, vocab, width);
            let table = if i % 4 == 0 { table.with_order(order(width)) } else { table };
            let ids: Vec<u32> = vec![36, 0, 5, 36, 17];
            let scale = if i % 2 == 0 { 1.0 } else { 27.7 };
            let of_rig = as_computed(&rig, &table);
            let (values, sizes) = (of_rig.to_f32(), magnitudes(&of_rig));
            let row = |id: &u32| *id as usize * width..(*id as usize + 1) * width;
            // Decoded in the type of the scales, where that is narrower than the activations'.
            let expected: Vec<Element> = ids
                .iter()
                .flat_map(row)
                .map(|j| Element {
                    value: f64::from(values[j]) * f64::from(scale),
                    rounded: f64::from(sizes[j]) * f64::from(scale),
                    summed: 0.0,
                })
                .collect();
            let table = rig.matrix(&table);
            let op = Op::Embedding { table: &table, tokens: Ids::Known(&ids), scale };
            rig.check(&op, &format!("{format}, scale {scale}"), &expected);
        }
    }
}

/// The parts of a fused projection are views of one matrix: no part may be taken for another.
#[test]
fn parts_of_a_matrix_are_their_own_weights() {
    for rig in rigs() {
        for format in
            [Format::Affine { bits: 4, group: 64, scales: DType::BF16 }, Format::Ggml(GgmlType::Q4_K)]
        {
            let whole = matrix(format, 3, 48, 256);
            let x = rig.values(4, 256, 1.0);
            for rows in [0..16, 16..40, 40..48, 0..48] {
                let part = whole.rows("part", rows.clone());
                let expected = reference(&rig, &x, &part, None);
                let tensor = rig.tensor(&[1, 256], &x);
                let part = rig.matrix(&part);
                let projection = with(&part, None);
                rig.check(&Op::Linear { x: &tensor, projection }, &format!("{format}, {rows:?}"), &expected);
            }
        }
    }
}
