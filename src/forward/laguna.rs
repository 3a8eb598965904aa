//! `laguna`: heads of queries and rotation by the kind of layer, a gate behind attention, and experts that a sigmoid and a bias choose.
//! Poolside 2026, Laguna.

use super::dense::{AttentionGate, Dense};
use super::glm4_moe_lite::mlp_layer_types;
use super::sparse::{ExpertNames, SharedExpert, Sparse, experts};
use super::{Arguments, Family, qwen3};
use crate::backend::ops::{GateKind, Router, Scores};
use crate::config::rope::{self, RopeRules};
use crate::config::{Config, Shared, only, sliding_window};
use crate::error::Result;
use crate::json::{Fields, Value};

/// Of layers that see everything, and of those with a window.
const FULL: RopeRules = RopeRules { by_layer_type: true, partial: Some(1.0), ..RopeRules::theta(500_000.0) };
const SLIDING: RopeRules = RopeRules { theta: 10_000.0, ..FULL };

pub(super) static FAMILY: Family = Family {
    model_type: "laguna",
    shared: Shared {
        heads: Some(48),
        kv_heads: Some(8),
        head_dim: Some(128),
        context: 131_072,
        rope: FULL,
        bos: None,
        eos: &[],
        ..Shared::LLAMA
    },
    arguments,
    gguf: None,
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    only(fields, "moe_apply_router_weight_on_input", false, "weights multiply what experts give")?;
    let layers = config.num_hidden_layers;
    config.heads_by_layer = heads(fields, &config)?;
    config.set_windows(fields, sliding_window(fields, Some(512))?, |_| false)?;
    let (head_dim, context) = (config.head_dim, config.max_position_embeddings);
    let of = |kind, rules| rope::of_layer_type(fields, kind, rules, head_dim, context);
    let plain = |part: f64, theta| {
        let dims = (head_dim as f64 * part) as usize;
        crate::config::Rope { theta, dims, scaling: crate::config::RopeScaling::None }
    };
    config.rope = of("full_attention", FULL)?.unwrap_or_else(|| plain(0.5, FULL.theta));
    let sliding = of("sliding_attention", SLIDING)?.unwrap_or_else(|| plain(1.0, SLIDING.theta));
    config.set_local_rope(sliding);

    let size =
        experts(fields, ["num_experts", "num_experts_per_tok", "moe_intermediate_size"], [256, 8, 512])?;
    let softmax = Sparse::softmax(layers, size, config.hidden_act);
    let scale = fields.number("moe_routed_scaling_factor", -1e6, 1e6)?.unwrap_or(1.0) as f32;
    let cap = fields.number("moe_router_logit_softcapping", 0.0, 1e6)?.filter(|&cap| cap != 0.0);
    let sparse = Sparse {
        layers: mlp_layer_types(fields, layers)?
            .unwrap_or_else(|| (0..layers).map(|layer| layer > 0).collect()),
        bias: Some(("mlp.experts.e_score_correction_bias", "exp_probs_b")),
        routing: Router { scores: Scores::Sigmoid, normalise: Some(0.0), scale, ..softmax.routing },
        cap: cap.map(|cap| cap as f32),
        shared: Some(SharedExpert {
            names: [
                ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
                ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
                ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
            ],
            inner: fields.size_or("shared_expert_intermediate_size", Some(512), 1 << 24)?,
            field: "shared_expert_intermediate_size",
            gate: None,
        }),
        names: ExpertNames::PLAIN,
        ..softmax
    };
    let by_head = match fields.get("gating") {
        None | Some(Value::Bool(true)) => true,
        Some(Value::String(kind)) => kind == "per-head",
        // Whatever else it says, transformers has a gate for each number.
        Some(_) => false,
    };
    Dense {
        attention_gate: Some(AttentionGate {
            name: ("self_attn.g_proj", "attn_gate"),
            kind: GateKind::Softplus,
            by_head,
        }),
        sparse: Some(sparse),
        ..qwen3::described(config)
    }
    .boxed()
}

/// Heads of queries of each layer.
fn heads(fields: &Fields<'_>, config: &Config) -> Result<Vec<usize>> {
    const NAME: &str = "num_attention_heads_per_layer";
    let Some(each) = fields.list(NAME)? else { return Ok(Vec::new()) };
    let (layers, kv_heads) = (config.num_hidden_layers, config.num_key_value_heads);
    if each.len() != layers {
        let expected = format!("a list of num_hidden_layers, {layers}");
        return Err(fields.error(NAME, format!("a list of {}", each.len()), expected));
    }
    let heads = |(i, value): (usize, &Value)| match value {
        Value::UInt(heads) if (1..=1 << 16).contains(heads) && heads.is_multiple_of(kv_heads as u64) => {
            Ok(*heads as usize)
        }
        other => {
            let expected = format!("a multiple of num_key_value_heads, {kv_heads}");
            Err(fields.error(format!("{NAME}[{i}]"), other, expected))
        }
    };
    each.iter().enumerate().map(heads).collect()
}
