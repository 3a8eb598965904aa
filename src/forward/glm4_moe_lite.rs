//! `glm4_moe_lite`: DeepSeek V3's attention and experts in a smaller model: GLM 4.7 Flash.

use super::dense::{AheadNames, Dense, Qkv};
use super::sparse::Sparse;
use super::{Arguments, Family, glm4_moe, latent};
use crate::backend::ops::Router;
use crate::config::rope::RopeRules;
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::Fields;
use crate::json::Value;

pub(super) static FAMILY: Family = Family {
    model_type: "glm4_moe_lite",
    shared: Shared { context: 202_752, eps: 1e-5, rope: RopeRules::WHOLE, ..latent::SHARED },
    arguments,
    gguf: None,
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    latent::read(fields, &mut config, [768, 512], [192, 256])?;
    latent::interleave(fields, &mut config)?;
    let sparse = glm4_moe::described(fields, &config, [Some(64), Some(4), Some(1), Some(1)], true)?;
    let sparse = glm4_moe::grouped(fields, sparse, [1, 1], 2)?;
    let scale = fields.number("routed_scaling_factor", -1e6, 1e6)?.unwrap_or(1.8) as f32;
    let layers = match mlp_layer_types(fields, config.num_hidden_layers)? {
        Some(layers) => layers,
        // `first_k_dense_replace` is not read.
        None => (0..config.num_hidden_layers).map(|layer| layer > 0).collect(),
    };
    let sparse = Sparse { layers, routing: Router { scale, ..sparse.routing }, ..sparse };
    let ahead = Some(AheadNames::BEHIND);
    Dense { qkv: Qkv::Latent, sparse: Some(sparse), ahead, ..Dense::llama(config) }.boxed()
}

/// Whether each layer has experts, as `mlp_layer_types` says.
pub(super) fn mlp_layer_types(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    const NAME: &str = "mlp_layer_types";
    let Some(types) = fields.list(NAME)? else { return Ok(None) };
    if types.len() != layers {
        let expected = format!("a list of num_hidden_layers, {layers}");
        return Err(fields.error(NAME, format!("a list of {}", types.len()), expected));
    }
    let has_experts = |(i, kind): (usize, &Value)| match kind {
        Value::String(kind) if kind == "sparse" => Ok(true),
        Value::String(kind) if kind == "dense" => Ok(false),
        other => Err(fields.error(format!("{NAME}[{i}]"), other, "dense or sparse")),
    };
    types.iter().enumerate().map(has_experts).collect::<Result<_>>().map(Some)
}
