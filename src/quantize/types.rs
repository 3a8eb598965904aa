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
}

impl GgufType {
    /// Every type, the largest first.
    pub const ALL: [Self; 9] = [
        Self::F16,
        Self::Q8_0,
        Self::Q6_K,
        Self::Q5_K_M,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_K_M,
        Self::Q4_1,
        Self::Q4_0,
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
            Self::Q4_K_M => 15,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
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
        })
    }

    /// The type of the matrix `name` of a GGUF file, with rows of `columns`, in a model of `layers` layers. In
    /// the mixtures, what costs the most accuracy has more bits, as `llama_tensor_get_type` of llama.cpp chooses it, attention
    /// beside eight experts with it; where 256 do not divide a row, the type of 32 that llama.cpp takes then.
    pub(super) fn of(
        self,
        name: &str,
        columns: usize,
        layers: usize,
        tied: bool,
        experts: usize,
    ) -> TensorType {
        let Some(mut of) = self.base() else { return TensorType::Dense(DType::F16) };
        if matches!(self, Self::Q4_K_M | Self::Q5_K_M) {
            let head = name.starts_with("output.") || tied && name.starts_with("token_embd.");
            let part = |part: &str| name.contains(part);
            if experts == 8 && (part(".attn_v.") || part(".attn_k.")) {
                of = GgmlType::Q8_0;
            } else if experts == 8 && part(".attn_output.") {
                of = GgmlType::Q5_K;
            } else if head || (part(".attn_v.") || part(".ffn_down")) && needs_more_bits(name, layers) {
                of = GgmlType::Q6_K;
            } else if part(".attn_qkv.") {
                of = if of == GgmlType::Q4_K { GgmlType::Q5_K } else { GgmlType::Q6_K };
            }
        }
        if !columns.is_multiple_of(of.block().0) {
            of = match of {
                GgmlType::Q4_K => GgmlType::Q5_0,
                GgmlType::Q5_K => GgmlType::Q5_1,
                GgmlType::Q6_K => GgmlType::Q8_0,
                of => of,
            };
        }
        match columns.is_multiple_of(of.block().0) {
            true => TensorType::Blocks(of),
            false => TensorType::Dense(DType::F16),
        }
    }
}

/// Whether a layer is of the first eighth, the last, or every third between them.
fn needs_more_bits(name: &str, layers: usize) -> bool {
    let rest = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let Some(layer) = rest.and_then(|(layer, _)| layer.parse::<usize>().ok()) else { return false };
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixtures_are_those_of_llama_cpp() {
        let of = |kind: GgufType, name: &str, columns| match kind.of(name, columns, 16, true, 0) {
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
        let beside_eight =
            |part: &str| GgufType::Q4_K_M.of(&format!("blk.2.{part}.weight"), 256, 16, false, 8);
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
    }
}
