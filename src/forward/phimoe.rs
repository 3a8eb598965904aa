//! `phimoe`: Mixtral with layer norms and biases, whose router weighs each expert against those that are near it: Phi 3.5 MoE.
//! Abdin et al. 2024, "Phi-3 Technical Report", and Liu et al. 2024, "GRIN: GRadient-INformed MoE".

use super::dense::{Dense, NormKind};
use super::sparse::{ExpertNames, Sparse, experts_of};
use super::{Arguments, Family};
use crate::backend::ops::{Router, Scores};
use crate::config::rope::{self, RopeRules};
use crate::config::{Config, RopeScaling, Shared, sliding_window};
use crate::error::Result;
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "phimoe",
    shared: Shared {
        kv_heads: Some(8),
        context: 131_072,
        eps: 1e-5,
        rope: RopeRules::theta(1_000_000.0),
        ..Shared::LLAMA
    },
    arguments,
    gguf: None,
    prefixes: &[],
};

/// Experts of each token, whatever the configuration says.
const USED: usize = 2;

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    config.set_all_windows(sliding_window(fields, None)?);
    stretch(fields, &mut config)?;
    let names = ["num_local_experts", "intermediate_size"];
    let size = experts_of(fields, names, [16, config.intermediate_size], ("num_experts_per_tok", USED))?;
    let noise = fields.number("router_jitter_noise", 0.0, 1e6)?.unwrap_or(0.01);
    let softmax = Sparse::softmax(config.num_hidden_layers, size, config.hidden_act);
    let sparse = Sparse {
        router: ("block_sparse_moe.gate", "ffn_gate_inp"),
        names: ExpertNames::BLOCK,
        routing: Router { scores: Scores::SparseMixer { near: (2.0 * noise) as f32 }, ..softmax.routing },
        ..softmax
    };
    Dense { norms: NormKind::Layer { offset: 0.0 }, sparse: Some(sparse), ..Dense::llama(config) }.boxed()
}

/// Cosines and sines are multiplied by factors that the configuration states, in place of what longrope gives.
fn stretch(fields: &Fields<'_>, config: &mut Config) -> Result<()> {
    let RopeScaling::LongRope { attention_factor, .. } = &mut config.rope.scaling else { return Ok(()) };
    let Some(params) = rope::parameters(fields)? else { return Ok(()) };
    let (short, long) = (params.number("short_mscale", 1e-6, 1e6)?, params.number("long_mscale", 1e-6, 1e6)?);
    match (short, long) {
        (Some(short), Some(long)) if short == long => *attention_factor = short as f32,
        (Some(short), Some(long)) => {
            return Err(params.error("long_mscale", long, format!("{short}, as short_mscale")));
        }
        _ => return Err(params.missing("short_mscale and long_mscale", "two numbers (of phimoe)".to_owned())),
    }
    Ok(())
}
