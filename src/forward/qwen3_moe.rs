//! `qwen3_moe`: Qwen 3 with experts in place of the MLP, in all layers but those that the configuration names.
//! Yang et al. 2025, "Qwen3 Technical Report".

use super::dense::Dense;
use super::gguf::{experts_everywhere, no_window};
use super::list::InMlx;
use super::sparse::{Sparse, experts, sparse_layers};
use super::{Arguments, Family, Gguf, GgufExperts, qwen3};
use crate::backend::ops::Router;
use crate::config::{Config, Shared, sliding_window};
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::weights::gguf::write::Entries;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3_moe",
    shared: Shared { kv_heads: Some(4), context: 32_768, bos: None, eos: &[], ..Shared::LLAMA },
    arguments,
    gguf: Some(Gguf {
        experts: Some(GgufExperts::SOFTMAX),
        // llama.cpp knows no other.
        members: |members, _| {
            members.put("norm_topk_prob", "expert_weights_norm", Value::Bool(true));
            Ok(())
        },
        entries: Some(entries),
        ..Gguf::plain("qwen3moe")
    }),
    prefixes: &[],
};

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    experts_everywhere(config, true)?;
    no_window(config, entries)
}

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    if fields.flag("use_sliding_window")? == Some(true) {
        config.set_all_windows(sliding_window(fields, Some(4096))?);
    }
    let sparse = described(fields, &config, [128, 8, 768])?;
    Dense { sparse: Some(sparse), ..qwen3::described(config) }.boxed()
}

/// Experts that are chosen by the softmax over all; `absent` as for [`experts`].
pub(super) fn described(fields: &Fields<'_>, config: &Config, absent: [usize; 3]) -> Result<Sparse> {
    let size = experts(fields, ["num_experts", "num_experts_per_tok", "moe_intermediate_size"], absent)?;
    let layers = config.num_hidden_layers;
    let softmax = Sparse::softmax(layers, size, config.hidden_act);
    let normalise = fields.flag("norm_topk_prob")?.unwrap_or(false).then_some(0.0);
    let routing = Router { normalise, ..softmax.routing };
    let in_mlx = InMlx { eight_bits: &["mlp.gate"], ..InMlx::default() };
    Ok(Sparse { layers: sparse_layers(fields, layers)?, routing, in_mlx, ..softmax })
}
