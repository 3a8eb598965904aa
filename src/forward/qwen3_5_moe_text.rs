//! The text of `qwen3_5_moe`: Qwen 3.5 with experts in place of the MLP, one of which every token goes to, behind a gate.
//! Qwen Team 2026, "Qwen3.5".

use super::dense::Dense;
use super::sparse::{SharedExpert, Sparse, experts};
use super::{Arguments, Family, gguf_delta, qwen3_5_text};
use crate::backend::ops::Router;
use crate::config::{Config, Names, Shared};
use crate::error::Result;
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3_5_moe_text",
    shared: Shared {
        // There is no other MLP.
        names: Names { intermediate_size: "moe_intermediate_size", ..Names::LLAMA },
        kv_heads: Some(2),
        ..qwen3_5_text::SHARED
    },
    arguments,
    gguf: Some(gguf_delta::with_experts("qwen35moe")),
    prefixes: super::TEXT_PART,
};

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    let size =
        experts(fields, ["num_experts", "num_experts_per_tok", "moe_intermediate_size"], [256, 8, 512])?;
    let softmax = Sparse::softmax(config.num_hidden_layers, size, config.hidden_act);
    let routing = Router { normalise: Some(0.0), ..softmax.routing };
    let sparse = Sparse { routing, shared: Some(shared(fields)?), ..softmax };
    Dense { sparse: Some(sparse), ..qwen3_5_text::described(fields, config)? }.boxed()
}

/// The expert that every token goes to, and its gate.
pub(super) fn shared(fields: &Fields<'_>) -> Result<SharedExpert> {
    const FIELD: &str = "shared_expert_intermediate_size";
    Ok(SharedExpert {
        names: [
            ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
            ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
            ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
        ],
        inner: fields.size_or(FIELD, Some(512), 1 << 24)?,
        field: FIELD,
        gate: Some(("mlp.shared_expert_gate", "ffn_gate_inp_shexp")),
    })
}
