//! How the matrices of a directory of safetensors are quantized: MLX's way, GPTQ's, AWQ's, or beside their scales.

use std::collections::BTreeMap;

/// The quantization that a `config.json` declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Quantization {
    /// MLX's formats: `<module>.weight` holds packed codes where `<module>.scales` is there.
    Mlx(MlxQuantization),
    /// GPTQ: `qweight`, `qzeros`, `scales` and `g_idx`, packed along the input.
    Gptq {
        /// Whether zero points are stored as they are (`gptq_v2`), not less one.
        v2: bool,
    },
    /// AWQ's GEMM layout: `qweight`, `qzeros` and `scales`, packed along the output.
    Awq,
    /// Codes beside their scales, whose types and shapes say what they are.
    Published(Published),
}

/// Codes beside their scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Who names the tensors.
    pub by: Publisher,
    /// Rows and columns of the blocks that share a scale, where scales may be those of blocks.
    pub block: Option<[usize; 2]>,
    /// Whether all scales are powers of two, in whatever type they are stored.
    pub powers: bool,
}

/// Who names the tensors of codes and scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publisher {
    /// `transformers`: `weight` and `weight_scale_inv` of DeepSeek's FP8.
    Transformers,
    /// compressed-tensors: `weight` or `weight_packed`, and `weight_scale`.
    CompressedTensors,
    /// ModelOpt: `weight`, `weight_scale` and `weight_scale_2`.
    ModelOpt,
}

impl Publisher {
    /// The tensor of a module's scales.
    pub(crate) const fn scales(self) -> &'static str {
        match self {
            Self::Transformers => "weight_scale_inv",
            Self::CompressedTensors | Self::ModelOpt => "weight_scale",
        }
    }

    /// The tensor that e4m3 scales of e2m1 codes are to be read with, the scale of a module's whole matrix.
    pub(crate) const fn global_scale(self) -> Option<&'static str> {
        match self {
            Self::Transformers => None,
            Self::CompressedTensors => Some("weight_global_scale"),
            Self::ModelOpt => Some("weight_scale_2"),
        }
    }
}

/// MLX's quantization: one for the model, and others for modules by their full path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MlxQuantization {
    /// For modules that are not named.
    pub default: MlxFormat,
    /// Modules of another format; `None` for those that are not quantized.
    pub modules: BTreeMap<String, Option<MlxFormat>>,
}

/// How MLX quantizes a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlxFormat {
    /// What the codes stand for.
    pub mode: MlxMode,
    /// Bits of a code.
    pub bits: u8,
    /// Elements that share a scale.
    pub group: u16,
}

/// What codes stand for, by MLX's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MlxMode {
    Affine,
    Mxfp4,
    Mxfp8,
    Nvfp4,
}

impl MlxMode {
    pub(crate) const ALL: [Self; 4] = [Self::Affine, Self::Mxfp4, Self::Mxfp8, Self::Nvfp4];

    /// As MLX writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// Groups and bits that there are, MLX's defaults first.
    pub(crate) const fn accepted(self) -> (&'static [u16], &'static [u8]) {
        match self {
            Self::Affine => (&[64, 32, 128], &[4, 2, 3, 5, 6, 8]),
            Self::Mxfp4 => (&[32], &[4]),
            Self::Mxfp8 => (&[32], &[8]),
            Self::Nvfp4 => (&[16], &[4]),
        }
    }
}
