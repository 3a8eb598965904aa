//! GGUF files of random blocks: the tensor types that llama.cpp's own converter would choose, and a vocabulary of the
//! right size, so that llama.cpp loads them too.

mod layout;
mod metadata;

use std::path::Path;

use anyhow::Result;
use backstop::quant::{GgmlType, write_floats};
use backstop::tensor::DType;
use backstop::weights::writers::gguf::{Spec, TensorType, Writer};
use half::{bf16, f16};
use layout::tensors;
use metadata::entries;

use super::{ModelShape, Random, e8m0};

/// The types of a file, by the names that llama.cpp gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    F16,
    Bf16,
    Q4_0,
    Q8_0,
    Q4KM,
    /// Experts in MXFP4, and all other matrices in Q8_0.
    Mxfp4,
}

impl FileType {
    pub const ALL: [(&str, Self); 6] = [
        ("gguf-f16", Self::F16),
        ("gguf-bf16", Self::Bf16),
        ("q4_0", Self::Q4_0),
        ("q8_0", Self::Q8_0),
        ("q4_k_m", Self::Q4KM),
        ("gguf-mxfp4", Self::Mxfp4),
    ];

    /// `general.file_type`.
    fn number(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Bf16 => 32,
            Self::Mxfp4 => 38,
        }
    }
}

/// Overwrites the random bytes of a row of `columns` elements where not every value is a sensible one: with scales, so that
/// products keep the size of what the row multiplies.
fn settle(kind: TensorType, row: &mut [u8], columns: usize) {
    let deviation = 1.0 / (columns as f32).sqrt();
    // Uniform codes of ±`most` times a scale have a deviation of most / √3 scales.
    let scale = |most: f32| f16::from_f32(3.0_f32.sqrt() / most * deviation).to_le_bytes();
    let blocks = row.chunks_exact_mut(kind.block().1);
    match kind {
        // Sign and mantissa are random; the exponent is that of half the deviation.
        TensorType::Dense(DType::F16) => {
            let exponent = f16::from_f32(0.5 * deviation).to_le_bytes()[1] & 0x7c;
            blocks.for_each(|block| block[1] = block[1] & 0x83 | exponent);
        }
        TensorType::Dense(DType::BF16) => {
            let [low, high] = bf16::from_f32(0.5 * deviation).to_le_bytes();
            blocks.for_each(|block| {
                block[0] = block[0] & 0x7f | low & 0x80;
                block[1] = block[1] & 0x80 | high & 0x7f;
            });
        }
        // Codes of -8 become 0: with a mean of its own, every product would add to one direction, and all rows be alike.
        TensorType::Blocks(GgmlType::Q4_0) => blocks.for_each(|block| {
            block[..2].copy_from_slice(&scale(8.0));
            for byte in &mut block[2..] {
                let low = if *byte & 0x0f == 0 { 0x08 } else { 0 };
                *byte |= low | if *byte & 0xf0 == 0 { 0x80 } else { 0 };
            }
        }),
        TensorType::Blocks(GgmlType::Q5_0) => {
            blocks.for_each(|block| block[..2].copy_from_slice(&scale(16.0)))
        }
        TensorType::Blocks(GgmlType::Q8_0) => {
            blocks.for_each(|block| block[..2].copy_from_slice(&scale(128.0)))
        }
        // Sub-blocks have 6-bit scales and minimums, 31.5 on average; the minimums take what codes are on average, 7.5.
        TensorType::Blocks(GgmlType::Q4_K) => blocks.for_each(|block| {
            block[..2].copy_from_slice(&scale(8.0 * 32.0));
            block[2..4].copy_from_slice(&scale(8.0 * 32.0 / 7.5));
        }),
        // Sub-blocks have 8-bit scales of either sign.
        TensorType::Blocks(GgmlType::Q6_K) => {
            blocks.for_each(|block| block[208..].copy_from_slice(&scale(32.0 * 64.0)));
        }
        TensorType::Blocks(GgmlType::MXFP4) => blocks.for_each(|block| block[0] = e8m0(columns)),
        other => unreachable!("no matrix is written in {}", other.name()),
    }
}

/// The mean and the deviation of what a tensor in `f32` holds, whose rows have so many elements.
fn values_of(name: &str, columns: usize) -> (f32, f32) {
    match name {
        _ if name.ends_with("norm.weight") => (1.0, 0.06),
        // What decays is multiplied by it.
        _ if name.ends_with("ssm_a") => (-1.0, 0.06),
        // A router, whose experts are chosen as often, and a convolution: rows of a product.
        _ if name.ends_with("ffn_gate_inp.weight") || name.ends_with("ssm_conv1d.weight") => {
            (0.0, 1.0 / (columns as f32).sqrt())
        }
        // Biases and sinks.
        _ => (0.0, 0.01),
    }
}

/// Writes `shape` to the file `path`; the number of its tensors, and their bytes.
pub fn write(shape: &ModelShape, file_type: FileType, path: &Path) -> Result<(usize, u64)> {
    let tensors = tensors(shape, file_type);
    let mut writer = Writer::create(path, &entries(shape, file_type), &tensors)?;
    let mut random = Random::new();
    for Spec { name, kind, shape } in &tensors {
        let columns = shape[shape.len() - 1];
        let (elements, bytes) = kind.block();
        let mut row = vec![0; columns / elements * bytes];
        for _ in 0..shape.iter().product::<usize>() / columns {
            if *kind == TensorType::Dense(DType::F32) {
                let (mean, spread) = values_of(name, columns);
                let values: Vec<f32> = (0..columns).map(|_| mean + spread * random.unit()).collect();
                write_floats(DType::F32, &values, &mut row);
            } else {
                random.fill(&mut row);
                settle(*kind, &mut row, columns);
            }
            writer.write(&row)?;
        }
    }
    let bytes = writer.total();
    writer.finish()?;
    Ok((tensors.len(), bytes))
}
