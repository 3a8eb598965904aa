//! The tensors' names: those of GGUF, and those of the Hugging Face checkpoints that the forward passes ask for.

use super::Metadata;
use crate::error::Result;

/// Every part of a block that some architecture has.
const PARTS: [&str; 14] = [
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "attn_q_norm",
    "attn_k_norm",
    "ffn_norm",
    "post_attention_norm",
    "post_ffw_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

/// The architectures that are read, as `general.architecture` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Architecture {
    /// Mistral's dense models, too.
    Llama,
    Qwen2,
    Qwen3,
    Phi2,
    /// Phi 3 to 4.
    Phi3,
    Gemma2,
}

impl Architecture {
    const ALL: [Self; 6] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Phi2, Self::Phi3, Self::Gemma2];

    /// The name in the metadata, and the prefix of the architecture's keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi2 => "phi2",
            Self::Phi3 => "phi3",
            Self::Gemma2 => "gemma2",
        }
    }

    /// That of a model.
    ///
    /// # Errors
    /// [`crate::Error::Config`] where it is missing or not one of these.
    pub fn of(metadata: &Metadata) -> Result<Self> {
        const KEY: &str = "general.architecture";
        let name = metadata.string(KEY)?;
        Self::ALL
            .into_iter()
            .find(|of| Some(of.name()) == name)
            .ok_or_else(|| metadata.refuse(KEY, format!("one of {}", Self::ALL.map(Self::name).join(", "))))
    }

    /// Whether rows of queries and keys lie in the order that rotates adjacent pairs.
    pub(super) const fn pairs_rows(self) -> bool {
        matches!(self, Self::Llama)
    }

    /// Whether 1 was added to the weights of norms.
    pub(super) const fn adds_one(self) -> bool {
        matches!(self, Self::Gemma2)
    }

    /// The name in a Hugging Face checkpoint of the tensor `name`, which stays as it is where there is none.
    pub(super) fn translate(self, name: &str) -> String {
        let Some((module, leaf)) = name.rsplit_once('.') else { return name.to_owned() };
        let whole = match module {
            "token_embd" => Some("model.embed_tokens"),
            "output" => Some("lm_head"),
            "output_norm" if self == Self::Phi2 => Some("model.final_layernorm"),
            "output_norm" => Some("model.norm"),
            _ => None,
        };
        if let Some(whole) = whole {
            return format!("{whole}.{leaf}");
        }
        let block = module.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let Some((layer, part)) = block else { return name.to_owned() };
        match self.part(part) {
            Some(part) => format!("model.layers.{layer}.{part}.{leaf}"),
            None => name.to_owned(),
        }
    }

    /// The name in a GGUF file of a Hugging Face checkpoint's tensor: the inverse of [`translate`](Self::translate).
    pub(crate) fn stored_name(self, name: &str) -> Option<String> {
        let (module, leaf) = name.rsplit_once('.')?;
        let candidates = match module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
            Some((layer, _)) => PARTS.map(|part| format!("blk.{layer}.{part}.{leaf}")).to_vec(),
            None => ["token_embd", "output", "output_norm"].map(|part| format!("{part}.{leaf}")).to_vec(),
        };
        candidates.into_iter().find(|stored| self.translate(stored) == name)
    }

    /// The parts of a block.
    fn part(self, part: &str) -> Option<&'static str> {
        Some(match part {
            "attn_norm" => "input_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_qkv" => "self_attn.qkv_proj",
            "attn_output" if self == Self::Phi2 => "self_attn.dense",
            "attn_output" => "self_attn.o_proj",
            "attn_q_norm" => "self_attn.q_norm",
            "attn_k_norm" => "self_attn.k_norm",
            "ffn_norm" if self == Self::Gemma2 => "pre_feedforward_layernorm",
            "ffn_norm" => "post_attention_layernorm",
            "post_attention_norm" => "post_attention_layernorm",
            "post_ffw_norm" => "post_feedforward_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" if self == Self::Phi2 => "mlp.fc1",
            "ffn_up" if self == Self::Phi3 => "mlp.gate_up_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" if self == Self::Phi2 => "mlp.fc2",
            "ffn_down" => "mlp.down_proj",
            _ => return None,
        })
    }
}
