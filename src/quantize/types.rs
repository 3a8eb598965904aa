//! The types of a GGUF file's matrices: one for all, or the mixtures that llama.cpp calls `_M`.

use crate::quant::GgmlType;
use crate::tensor::DType;
use crate::weights::gguf::TensorType;

/// What the matrices of a GGUF file are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)]
pub enum GgufType {
    F16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q5_1,
    Q5_0,
    Q4_K_M,
    Q4_1,
    Q4_0,
    IQ4_NL,
    IQ4_XS,
    Q3_K_M,
    Q2_K,
}

/// What of a model decides which types its matrices get.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traits {
    /// Layers.
    pub layers: usize,
    /// Whether the embedding is the output head.
    pub tied: bool,
    /// Experts of a layer.
    pub experts: usize,
    /// Query heads that share keys and values.
    pub sharing: usize,
    /// Whether it is known what columns are worth.
    pub weighed: bool,
}

impl GgufType {
    /// Every type, the largest first.
    pub const ALL: [Self; 13] = [
        Self::F16,
        Self::Q8_0,
        Self::Q6_K,
        Self::Q5_K_M,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_K_M,
        Self::Q4_1,
        Self::Q4_0,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::Q3_K_M,
        Self::Q2_K,
    ];

    /// The name that llama.cpp prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::Q8_0 => "Q8_0",
            Self::Q6_K => "Q6_K",
            Self::Q5_K_M => "Q5_K_M",
            Self::Q5_1 => "Q5_1",
            Self::Q5_0 => "Q5_0",
            Self::Q4_K_M => "Q4_K_M",
            Self::Q4_1 => "Q4_1",
            Self::Q4_0 => "Q4_0",
            Self::IQ4_NL => "IQ4_NL",
            Self::IQ4_XS => "IQ4_XS",
            Self::Q3_K_M => "Q3_K_M",
            Self::Q2_K => "Q2_K",
        }
    }

    /// Its number as `general.file_type`: `enum llama_ftype`.
    pub(super) const fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q2_K => 10,
            Self::Q3_K_M => 12,
            Self::Q4_K_M => 15,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::IQ4_NL => 25,
            Self::IQ4_XS => 30,
        }
    }

    /// The type of most matrices; none of F16.
    const fn base(self) -> Option<GgmlType> {
        Some(match self {
            Self::F16 => return None,
            Self::Q8_0 => GgmlType::Q8_0,
            Self::Q6_K => GgmlType::Q6_K,
            Self::Q5_K_M => GgmlType::Q5_K,
            Self::Q5_1 => GgmlType::Q5_1,
            Self::Q5_0 => GgmlType::Q5_0,
            Self::Q4_K_M => GgmlType::Q4_K,
            Self::Q4_1 => GgmlType::Q4_1,
            Self::Q4_0 => GgmlType::Q4_0,
            Self::IQ4_NL => GgmlType::IQ4_NL,
            Self::IQ4_XS => GgmlType::IQ4_XS,
            Self::Q3_K_M => GgmlType::Q3_K,
            Self::Q2_K => GgmlType::Q2_K,
        })
    }

    /// The type of the matrix `name` of a GGUF file, with rows of `columns`. In the mixtures, what costs the most accuracy has more
    /// bits, as `llama_tensor_get_type` of llama.cpp chooses it, attention beside eight experts with it; where 256 do not divide a
    /// row, a type of 32.
    pub(super) fn of(self, name: &str, columns: usize, model: Traits) -> TensorType {
        let Some(base) = self.base() else { return TensorType::Dense(DType::F16) };
        let of = if self.is_mixture() { self.mixed(base, name, model) } else { base };
        fitting(of, columns)
    }

    /// Whether matrices of one model have several types.
    const fn is_mixture(self) -> bool {
        matches!(self, Self::Q4_K_M | Self::Q5_K_M | Self::IQ4_NL | Self::IQ4_XS | Self::Q3_K_M | Self::Q2_K)
    }

    fn mixed(self, base: GgmlType, name: &str, model: Traits) -> GgmlType {
        let part = |part: &str| name.contains(part);
        let (value, down) = (part(".attn_v."), part(".ffn_down"));
        let layer = layer_of(name).unwrap_or(usize::MAX);
        if model.experts == 8 && (value || part(".attn_k.")) {
            GgmlType::Q8_0
        } else if model.experts == 8 && part(".attn_output.") && self != Self::Q5_K_M {
            GgmlType::Q5_K
        } else if name.starts_with("output.") || model.tied && name.starts_with("token_embd.") {
            GgmlType::Q6_K
        } else if value || down || part(".attn_output.") || part(".attn_qkv.") {
            match self {
                Self::Q4_K_M | Self::Q5_K_M if (value || down) && needs_more_bits(name, model.layers) => {
                    GgmlType::Q6_K
                }
                Self::Q4_K_M if part(".attn_qkv.") => GgmlType::Q5_K,
                Self::Q5_K_M if part(".attn_qkv.") => GgmlType::Q6_K,
                Self::IQ4_NL | Self::IQ4_XS if value && model.sharing >= 4 => GgmlType::Q5_K,
                Self::IQ4_NL | Self::IQ4_XS if down && !model.weighed && layer < model.layers / 8 => {
                    GgmlType::Q5_K
                }
                Self::Q3_K_M if value && layer < 2 => GgmlType::Q5_K,
                Self::Q3_K_M if down && layer < model.layers / 16 => GgmlType::Q5_K,
                Self::Q3_K_M => GgmlType::Q4_K,
                Self::Q2_K if value && model.sharing >= 4 => GgmlType::Q4_K,
                Self::Q2_K if !part(".attn_qkv.") => GgmlType::Q3_K,
                _ => base,
            }
        } else {
            base
        }
    }
}

/// `of`, or where it does not divide a row the type that llama.cpp takes then; in place of its `Q4_0` for those of two and three bits
/// `IQ4_NL`, which is as large and nearer.
pub(super) fn fitting(of: GgmlType, columns: usize) -> TensorType {
    let of = match of {
        of if columns.is_multiple_of(of.block().0) => of,
        GgmlType::Q4_K => GgmlType::Q5_0,
        GgmlType::Q5_K => GgmlType::Q5_1,
        GgmlType::Q6_K => GgmlType::Q8_0,
        GgmlType::Q2_K | GgmlType::Q3_K | GgmlType::IQ4_XS => GgmlType::IQ4_NL,
        of => of,
    };
    match columns.is_multiple_of(of.block().0) {
        true => TensorType::Blocks(of),
        false => TensorType::Dense(DType::F16),
    }
}

fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Whether a layer is of the first eighth, the last, or every third between them.
fn needs_more_bits(name: &str, layers: usize) -> bool {
    let Some(layer) = layer_of(name) else { return false };
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixtures_are_those_of_llama_cpp() {
        let model = Traits { layers: 16, tied: true, experts: 0, sharing: 3, weighed: false };
        let of = |kind: GgufType, name: &str, columns| match kind.of(name, columns, model) {
            TensorType::Blocks(of) => of.name(),
            TensorType::Dense(dtype) => dtype.name(),
        };
        let value = |layer: usize| format!("blk.{layer}.attn_v.weight");
        let finer: Vec<usize> =
            (0..16).filter(|&layer| of(GgufType::Q4_K_M, &value(layer), 256) == "Q6_K").collect();
        // As llama-quantize prints it for 16 layers.
        assert_eq!(finer, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(of(GgufType::Q5_K_M, &value(2), 256), "Q5_K");
        assert_eq!(of(GgufType::Q4_K_M, "token_embd.weight", 256), "Q6_K");
        assert_eq!(of(GgufType::Q4_K_M, "blk.2.attn_qkv.weight", 256), "Q5_K");
        // Rows that are not whole blocks of 256.
        assert_eq!(of(GgufType::Q4_K_M, &value(2), 576), "Q5_0");
        assert_eq!(of(GgufType::Q6_K, &value(2), 576), "Q8_0");
        assert_eq!(of(GgufType::Q5_K_M, &value(2), 96), "Q5_1");
        assert_eq!(of(GgufType::Q4_0, &value(2), 48), "f16");
        // Experts' down projections count as others do; beside eight of them, attention has more.
        for part in ["ffn_down", "ffn_down_exps", "ffn_down_shexp"] {
            assert_eq!(of(GgufType::Q4_K_M, &format!("blk.1.{part}.weight"), 256), "Q6_K", "{part}");
            assert_eq!(of(GgufType::Q4_K_M, &format!("blk.2.{part}.weight"), 256), "Q4_K", "{part}");
        }
        let beside_eight = |part: &str| {
            GgufType::Q4_K_M.of(&format!("blk.2.{part}.weight"), 256, Traits { experts: 8, ..model })
        };
        let expected = [
            ("attn_v", GgmlType::Q8_0),
            ("attn_k", GgmlType::Q8_0),
            ("attn_output", GgmlType::Q5_K),
            ("attn_q", GgmlType::Q4_K),
            ("ffn_up_exps", GgmlType::Q4_K),
        ];
        for (part, of) in expected {
            assert_eq!(beside_eight(part), TensorType::Blocks(of), "{part}");
        }
        // Those of fewer bits, by the heads that share keys and by whether columns have weights.
        let (few, many) = (model, Traits { sharing: 7, weighed: true, ..model });
        for (kind, name, of_few, of_many) in [
            (GgufType::IQ4_XS, "blk.0.attn_v.weight", GgmlType::IQ4_XS, GgmlType::Q5_K),
            (GgufType::IQ4_XS, "blk.0.ffn_down.weight", GgmlType::Q5_K, GgmlType::IQ4_XS),
            (GgufType::IQ4_NL, "blk.2.ffn_down.weight", GgmlType::IQ4_NL, GgmlType::IQ4_NL),
            (GgufType::IQ4_XS, "token_embd.weight", GgmlType::Q6_K, GgmlType::Q6_K),
            (GgufType::Q3_K_M, "blk.1.attn_v.weight", GgmlType::Q5_K, GgmlType::Q5_K),
            (GgufType::Q3_K_M, "blk.1.ffn_down.weight", GgmlType::Q4_K, GgmlType::Q4_K),
            (GgufType::Q3_K_M, "blk.1.ffn_up.weight", GgmlType::Q3_K, GgmlType::Q3_K),
            (GgufType::Q2_K, "blk.1.attn_v.weight", GgmlType::Q3_K, GgmlType::Q4_K),
            (GgufType::Q2_K, "blk.1.attn_output.weight", GgmlType::Q3_K, GgmlType::Q3_K),
            (GgufType::Q2_K, "blk.1.attn_q.weight", GgmlType::Q2_K, GgmlType::Q2_K),
        ] {
            assert_eq!(kind.of(name, 256, few), TensorType::Blocks(of_few), "{name}");
            assert_eq!(kind.of(name, 256, many), TensorType::Blocks(of_many), "{name}");
        }
        assert_eq!(of(GgufType::Q2_K, "blk.2.attn_q.weight", 576), "IQ4_NL");
    }
}
