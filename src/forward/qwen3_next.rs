//! `qwen3_next`: Qwen 3.5's layers before it, with projections that lie by heads of keys: Qwen3-Next, Qwen3-Coder-Next.
//! Qwen Team 2025, "Qwen3-Next".

use super::delta::{DeltaNet, Projections};
use super::dense::Dense;
use super::gguf_members::LLAMA_CPP;
use super::sparse::{Sparse, experts, sparse_layers};
use super::{Arguments, Family, gguf_delta, qwen3_5_moe_text, qwen3_5_text};
use crate::backend::ops::Router;
use crate::config::{Config, Shared};
use crate::error::{Error, Result};
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3_next",
    shared: Shared { kv_heads: Some(2), ..qwen3_5_text::SHARED },
    arguments,
    gguf: Some(gguf_delta::with_experts("qwen3next")),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    let layers = config.num_hidden_layers;
    let size =
        experts(fields, ["num_experts", "num_experts_per_tok", "moe_intermediate_size"], [512, 10, 512])?;
    let softmax = Sparse::softmax(layers, size, config.hidden_act);
    let normalise = fields.flag("norm_topk_prob")?.unwrap_or(true).then_some(0.0);
    let sparse = Sparse {
        layers: sparse_layers(fields, layers)?,
        routing: Router { normalise, ..softmax.routing },
        shared: Some(qwen3_5_moe_text::shared(fields)?),
        ..softmax
    };
    let dense = qwen3_5_text::described(fields, config)?;
    // llama.cpp keeps the order of heads, and has one of the projections in parts, but for older files.
    let is = |name: &str| Ok::<_, Error>(fields.flag(name)?.unwrap_or(false));
    let projections = match !is(LLAMA_CPP)? || is(gguf_delta::JOINED)? {
        true => Projections::ByKeyHead,
        false => Projections::FactorsByKeyHead,
    };
    let delta = dense.delta.map(|delta| DeltaNet { projections, in_turn: false, ..delta });
    Dense { delta, sparse: Some(sparse), ..dense }.boxed()
}
