//! `qwen2_moe`: Qwen 2 with experts in place of the MLP, one of which every token goes to, weighed by a gate.
//! Qwen Team 2024, "Qwen1.5-MoE: Matching 7B Model Performance with 1/3 Activated Parameters".

use super::dense::Dense;
use super::gguf::{experts_everywhere, no_window};
use super::sparse::{SharedExpert, Sparse, experts, sparse_layers};
use super::{Arguments, Family, Gguf, GgufExperts, GgufNorm, qwen2};
use crate::backend::ops::Router;
use crate::config::{Config, Shared, sliding_window};
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::weights::gguf::write::Entries;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen2_moe",
    shared: Shared { kv_heads: Some(16), context: 32_768, ..qwen2::SHARED },
    arguments,
    gguf: Some(Gguf {
        experts: Some(GgufExperts {
            norm: GgufNorm::Always(false),
            reads: &["expert_shared_feed_forward_length"],
            ..GgufExperts::SOFTMAX
        }),
        members: |members, _| {
            let key = members.key("expert_shared_feed_forward_length");
            let width = members.metadata.uint(&key)?.unwrap_or(members.uint("intermediate_size"));
            members.put(SHARED_WIDTH, key, Value::UInt(width));
            Ok(())
        },
        entries: Some(entries),
        ..Gguf::plain("qwen2moe")
    }),
    prefixes: &[],
};

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    let experts = experts_everywhere(config, false)?;
    let shared = u32::try_from(experts.shared).map_err(|_| "has a size over 32 bits")?;
    entries.uint("qwen2moe.expert_shared_feed_forward_length", shared);
    no_window(config, entries)
}

const SHARED_WIDTH: &str = "shared_expert_intermediate_size";

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    if fields.flag("use_sliding_window")? == Some(true) {
        // Every other layer, where `layer_types` does not say.
        let window = sliding_window(fields, Some(4096))?;
        let last = fields.size("max_window_layers", 0, 1 << 20)?.unwrap_or(28);
        config.set_windows(fields, window, |layer| layer % 2 == 0 && layer < last)?;
    }
    let size =
        experts(fields, ["num_experts", "num_experts_per_tok", "moe_intermediate_size"], [60, 4, 1408])?;
    let layers = config.num_hidden_layers;
    let softmax = Sparse::softmax(layers, size, config.hidden_act);
    let normalise = fields.flag("norm_topk_prob")?.unwrap_or(false).then_some(0.0);
    let shared = SharedExpert {
        names: [
            ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
            ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
            ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
        ],
        inner: fields.size_or(SHARED_WIDTH, Some(5632), 1 << 20)?,
        field: SHARED_WIDTH,
        gate: Some(("mlp.shared_expert_gate", "ffn_gate_inp_shexp")),
    };
    let sparse = Sparse {
        layers: sparse_layers(fields, layers)?,
        routing: Router { normalise, ..softmax.routing },
        shared: Some(shared),
        ..softmax
    };
    Dense { sparse: Some(sparse), ..Dense::llama(config) }.boxed()
}
