//! Formats in the forms that MLX has kernels for.

use std::sync::Arc;

use half::f16;

use super::block::{OnMlx, Scales, Values};
use super::{Format, GgmlType, Plane, QuantWeight, affine, for_rows, ggml, ocp};
use crate::tensor::DType;

/// What MLX computes a format with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlxForm {
    /// The planes as they are.
    Native,
    /// Another format with equal values.
    Equal(Format),
    /// Another format with the nearest values: at most half a step of 8 bits over each group's range off.
    Nearest(Format),
}

/// Groups of MLX's affine kernels, the largest first.
const GROUPS: [u16; 3] = [128, 64, 32];

impl Format {
    /// The form that MLX computes it in; `None` for affine groups of which 32 columns are not a multiple, and for small
    /// floats with scales in `f32`, where the row is not a multiple of 32.
    pub fn on_mlx(self, columns: usize) -> Option<MlxForm> {
        let wide = |bits, group| Self::Affine { bits, group, scales: DType::F32 };
        Some(match self {
            Self::Mxfp4 | Self::Mxfp8 | Self::Nvfp4 => MlxForm::Native,
            Self::Affine { group, .. } if GROUPS.contains(&group) => MlxForm::Native,
            Self::Affine { bits, group, scales } => {
                match GROUPS.into_iter().find(|&of| group.is_multiple_of(of)) {
                    Some(part) => MlxForm::Equal(Self::Affine { bits, group: part, scales }),
                    None if columns.is_multiple_of(32) => MlxForm::Nearest(wide(8, 32)),
                    None => return None,
                }
            }
            // Its small floats have scales of fewer bits.
            Self::Fp8 { .. } | Self::Fp4 { .. } if !columns.is_multiple_of(32) => return None,
            Self::Fp8 { .. } | Self::Fp4 { .. } => MlxForm::Nearest(wide(8, 32)),
            Self::Ggml(of) => of.on_mlx(),
        })
    }

    /// The format of the planes that MLX holds in place of a matrix of `columns` in this one, where activations are `f16` if
    /// `narrow`; `None` where MLX has no form for it.
    ///
    /// It is what [`repack`] makes of every matrix but one whose scales, turned into MLX's, leave the range of `f16`: that
    /// one has them in `f32`.
    pub fn kept_on_mlx(self, columns: usize, narrow: bool) -> Option<Self> {
        Some(match self.on_mlx(columns)? {
            MlxForm::Native => self,
            MlxForm::Equal(Self::Affine { bits, group, .. }) => {
                let scales = if narrow && self.has_f16_scales() { DType::F16 } else { DType::F32 };
                Self::Affine { bits, group, scales }
            }
            MlxForm::Equal(to) | MlxForm::Nearest(to) => to,
        })
    }

    /// Whether the scales and biases of its affine form are numbers of the file in `f16`, times powers of two. Those of the
    /// other formats are products, which have more bits.
    fn has_f16_scales(self) -> bool {
        match self {
            Self::Affine { scales, .. } => scales == DType::F16,
            Self::Ggml(of) => of.has_f16_scales(),
            _ => false,
        }
    }
}

impl GgmlType {
    /// The form that MLX computes it in.
    fn on_mlx(self) -> MlxForm {
        let wide = |bits, group| Format::Affine { bits, group, scales: DType::F32 };
        match self.mlx() {
            OnMlx::Mxfp4 => MlxForm::Equal(Format::Mxfp4),
            OnMlx::Codes => MlxForm::Equal(wide(self.row().bits, 32)),
            OnMlx::Integers => MlxForm::Equal(wide(8, 32)),
            OnMlx::Products => MlxForm::Equal(wide(8, 128)),
            OnMlx::Nearest => MlxForm::Nearest(wide(8, 32)),
        }
    }
}

/// Codes, scales and biases of a row, in the target's format.
struct Row<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [f32],
    biases: &'a mut [f32],
}

/// `weight` in the format `to`, which [`Format::on_mlx`] named for it. Scales and biases become `f16` where `narrow` asks
/// for it, [`Format::kept_on_mlx`] says so, and all of them are exact in it.
///
/// # Panics
/// Where `to` is not what `on_mlx` named.
pub fn repack(weight: &QuantWeight, to: Format, narrow: bool) -> QuantWeight {
    let repacked = match to {
        Format::Mxfp4 => mxfp4(weight),
        Format::Affine { bits, group, .. } => {
            let kept = weight.format().kept_on_mlx(weight.shape()[1], narrow);
            let narrow = narrow && matches!(kept, Some(Format::Affine { scales: DType::F16, .. }));
            to_affine(weight, bits, group, narrow)
        }
        other => panic!("nothing is repacked into {other}"),
    };
    match weight.order() {
        Some(order) => repacked.with_order(Arc::clone(order)),
        None => repacked,
    }
}

/// Codes and scales of MXFP4 → GGUF's blocks of the same values.
///
/// # Panics
/// Where the slices are not of one number of blocks.
pub(crate) fn mxfp4_blocks(codes: &[u8], scales: &[u8], blocks: &mut [u8]) {
    let size = GgmlType::MXFP4.block().1;
    assert!(
        codes.len() == 16 * scales.len() && blocks.len() == size * scales.len(),
        "codes, scales and blocks of mxfp4: {}, {} and {} bytes",
        codes.len(),
        scales.len(),
        blocks.len()
    );
    for ((block, codes), &scale) in blocks.chunks_exact_mut(size).zip(codes.chunks_exact(16)).zip(scales) {
        let mut elements = [0; 32];
        ocp::nibbles(codes, &mut elements);
        block[0] = scale;
        for (i, byte) in block[1..].iter_mut().enumerate() {
            *byte = elements[i] | elements[i + 16] << 4;
        }
    }
}

/// GGUF's blocks hold a scale and the low and the high nibbles of halves; MLX's rows hold codes in order.
fn mxfp4(weight: &QuantWeight) -> QuantWeight {
    let [rows, columns] = *weight.shape();
    assert_eq!(weight.format(), Format::Ggml(GgmlType::MXFP4), "what is repacked into mxfp4");
    let (mut codes, mut scales) = (vec![0; rows * columns / 2], vec![0; rows * columns / 32]);
    for_rows(rows, [(&mut codes, columns / 2), (&mut scales, columns / 32)], |at, [codes, scales]| {
        let rows = codes.chunks_exact_mut(columns / 2).zip(scales.chunks_exact_mut(columns / 32));
        for (row, (codes, scales)) in at.zip(rows) {
            let blocks = weight.row_bytes(0, row).chunks_exact(GgmlType::MXFP4.block().1);
            for ((block, codes), scale) in blocks.zip(codes.chunks_exact_mut(16)).zip(scales) {
                *scale = block[0];
                affine::pack(4, &ggml::halves(&block[1..]), codes);
            }
        }
    });
    QuantWeight::new(weight.name(), Format::Mxfp4, [rows, columns], [codes, scales].map(Plane::owned))
}

fn to_affine(weight: &QuantWeight, bits: u8, group: u16, narrow: bool) -> QuantWeight {
    let [rows, columns] = *weight.shape();
    let (width, groups) = (columns * usize::from(bits) / 8, columns / usize::from(group));
    let mut packed = vec![0_u8; rows * width];
    let (mut scales, mut biases) = (vec![0.0_f32; rows * groups], vec![0.0_f32; rows * groups]);
    let floats = scales.chunks_exact_mut(groups.max(1)).zip(biases.chunks_exact_mut(groups.max(1)));
    let mut planes: Vec<_> = packed.chunks_exact_mut(width.max(1)).zip(floats).collect();
    for_rows(rows, [(&mut planes, 1)], |at, [planes]| {
        let mut codes = vec![0; columns];
        for (row, (packed, (scales, biases))) in at.zip(planes) {
            fill(weight, row, usize::from(group), Row { codes: &mut codes, scales, biases });
            affine::pack(bits, &codes, packed);
        }
    });
    drop(planes);
    let exact = |values: &[f32]| values.iter().all(|&v| f16::from_f32(v).to_f32().to_bits() == v.to_bits());
    let (dtype, scales, biases) = if narrow && exact(&scales) && exact(&biases) {
        let bytes = |values: &[f32]| values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        (DType::F16, bytes(&scales), bytes(&biases))
    } else {
        let bytes = |values: &[f32]| -> Vec<u8> { bytemuck::cast_slice(values).to_vec() };
        (DType::F32, bytes(&scales), bytes(&biases))
    };
    let format = Format::Affine { bits, group, scales: dtype };
    QuantWeight::new(weight.name(), format, [rows, columns], [packed, scales, biases].map(Plane::owned))
}

/// One row in affine codes of groups of `group`.
fn fill(weight: &QuantWeight, row: usize, group: usize, into: Row<'_>) {
    let Row { codes, scales, biases } = into;
    match weight.format() {
        Format::Ggml(of) if of.mlx() == OnMlx::Integers => {
            let Some(table) = of.row().table() else { unreachable!("{} has a table", of.name()) };
            let (elements, size) = of.block();
            let blocks = weight.row_bytes(0, row).chunks_exact(size);
            let groups = scales.chunks_exact_mut(of.row().groups());
            for ((block, codes), scales) in blocks.zip(codes.chunks_exact_mut(elements)).zip(groups) {
                (of.row().codes)(block, codes);
                ggml::scales(of.row(), block, scales, &mut []);
                codes.iter_mut().for_each(|code| *code = (i16::from(table[usize::from(*code)]) + 128) as u8);
            }
            biases.iter_mut().zip(scales).for_each(|(bias, scale)| *bias = -128.0 * *scale);
        }
        Format::Ggml(of) if of.mlx() == OnMlx::Products => {
            let (Values::Offset(offset), Scales::Super { group: own, d, read }) =
                (of.row().values, of.row().scales)
            else {
                unreachable!("{} has products", of.name())
            };
            let (elements, size) = of.block();
            let blocks = weight.row_bytes(0, row).chunks_exact(size);
            let groups =
                scales.chunks_exact_mut(elements / group).zip(biases.chunks_exact_mut(elements / group));
            for ((block, codes), (scales, biases)) in blocks.zip(codes.chunks_exact_mut(elements)).zip(groups)
            {
                (of.row().codes)(block, codes);
                for (codes, scale) in codes.chunks_exact_mut(own).zip(read(block).scales) {
                    for code in codes {
                        let product = i16::from(scale as i8) * (i16::from(*code) - i16::from(offset));
                        // From −124 to 128: taken from 128 it is a code, and the bias is as exact as `d` in any type.
                        *code = (128 - product) as u8;
                    }
                }
                let d = ggml::half_at(block, d);
                scales.fill(-d);
                biases.fill(128.0 * d);
            }
        }
        Format::Affine { group: own, .. } if usize::from(own).is_multiple_of(group) => {
            let parts = usize::from(own) / group;
            let mut whole = (vec![0.0; scales.len() / parts], vec![0.0; scales.len() / parts]);
            weight.affine_row(row, codes, &mut whole.0, &mut whole.1);
            for g in 0..scales.len() {
                (scales[g], biases[g]) = (whole.0[g / parts], whole.1[g / parts]);
            }
        }
        format if format.affine().is_some_and(|(_, own)| own == group) => {
            weight.affine_row(row, codes, scales, biases);
        }
        _ => {
            let mut values = vec![0.0; codes.len()];
            weight.dequantize_row(row, &mut values);
            for (g, values) in values.chunks_exact(group).enumerate() {
                (scales[g], biases[g]) = nearest(values, &mut codes[g * group..][..group]);
            }
        }
    }
}

/// The nearest codes of eight bits, between the least and the largest value.
fn nearest(values: &[f32], codes: &mut [u8]) -> (f32, f32) {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (most - least) / 255.0;
    let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = ((value - least) * inverse).round() as u8;
    }
    (scale, least)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix of `[3, columns]` whose bytes are all alike: as `f16` they are 0.065, which leaves no type's range.
    fn matrix(format: Format, columns: usize) -> QuantWeight {
        let planes = format.row_bytes(columns).into_iter().map(|row| Plane::owned(vec![0x2c; 3 * row]));
        QuantWeight::new("w", format, [3, columns], planes)
    }

    #[test]
    fn mxfp4_is_the_same_in_blocks() {
        let (rows, columns) = (3, 64);
        let codes: Vec<u8> = (0..rows * columns / 2).map(|i| (i * 37 % 256) as u8).collect();
        let scales: Vec<u8> = (0..rows * columns / 32).map(|i| 120 + i as u8).collect();
        let mut blocks = vec![0; scales.len() * 17];
        mxfp4_blocks(&codes, &scales, &mut blocks);
        let planes = [codes.clone(), scales.clone()].map(Plane::owned);
        let apart = QuantWeight::new("w", Format::Mxfp4, [rows, columns], planes);
        let format = Format::Ggml(GgmlType::MXFP4);
        let joined = QuantWeight::new("w", format, [rows, columns], [Plane::owned(blocks)]);
        assert_eq!(joined.to_f32(), apart.to_f32());
        let back = repack(&joined, Format::Mxfp4, false);
        assert_eq!((back.planes()[0].bytes(), back.planes()[1].bytes()), (&codes[..], &scales[..]));
    }

    /// What is counted before a model is loaded are the bytes that MLX is given.
    #[test]
    fn the_bytes_of_every_format_on_mlx_are_known_beforehand() {
        let columns = 768;
        let affine = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| {
            [16, 32, 64, 96, 128, 192, 256].into_iter().flat_map(move |group| {
                let of = |scales| Format::Affine { bits, group, scales };
                [DType::F32, DType::F16, DType::BF16].map(of)
            })
        });
        let wide = [Format::Fp8 { group: 128 }, Format::Fp8 { group: 768 }, Format::Fp4 { group: 16 }];
        let small = [Format::Mxfp4, Format::Mxfp8, Format::Nvfp4].into_iter().chain(wide);
        let formats: Vec<Format> = affine.chain(small).chain(GgmlType::ALL.map(Format::Ggml)).collect();
        for format in formats {
            let weight = matrix(format, columns);
            for narrow in [false, true] {
                let kept = format.kept_on_mlx(columns, narrow).unwrap();
                let made = match format.on_mlx(columns).unwrap() {
                    MlxForm::Native => weight.clone(),
                    MlxForm::Equal(to) | MlxForm::Nearest(to) => repack(&weight, to, narrow),
                };
                assert_eq!(made.format(), kept, "{format}, narrow {narrow}");
                let held: usize = made.planes().iter().map(|plane| plane.bytes().len()).sum();
                let counted: usize = kept.row_bytes(columns).iter().map(|row| 3 * row).sum();
                assert_eq!(held, counted, "{format}, narrow {narrow}");
            }
        }
        let affine16 = Format::Affine { bits: 4, group: 16, scales: DType::F16 };
        assert_eq!(affine16.kept_on_mlx(48, true), None);
    }

    #[test]
    fn blocks_grow_on_mlx_by_what_is_said_of_them() {
        let growth = |of: GgmlType, narrow: bool| {
            let bytes = |format: Format| format.row_bytes(256).iter().sum::<usize>() as f64;
            let format = Format::Ggml(of);
            bytes(format.kept_on_mlx(256, narrow).unwrap()) / bytes(format)
        };
        for (of, narrow, expected) in [
            (GgmlType::Q4_K, true, 1.33),
            (GgmlType::Q6_K, true, 1.52),
            (GgmlType::Q2_K, true, 3.81),
            (GgmlType::Q4_0, true, 1.11),
            (GgmlType::Q4_0, false, 1.33),
            (GgmlType::Q8_0, true, 1.06),
        ] {
            let got = growth(of, narrow);
            assert!((got - expected).abs() < 0.01, "{} grows {got:.3}, expected {expected}", of.name());
        }
    }
}
