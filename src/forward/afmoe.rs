//! `afmoe`: a gate behind attention, windows in the layers that rotate, norms before and after each part, and experts that a
//! sigmoid and a bias choose. Arcee AI 2025, Trinity.

use super::dense::{AttentionGate, Dense};
use super::gguf_members::Members;
use super::list::InMlx;
use super::sparse::{ExpertNames, SharedExpert, Sparse, experts};
use super::{Arguments, Family, Gguf, GgufExperts, qwen3};
use crate::backend::ops::{GateKind, Router, Scores};
use crate::config::{Config, Rotation, Shared, sliding_window};
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::weights::Checkpoint;

pub(super) static FAMILY: Family = Family {
    model_type: "afmoe",
    shared: Shared { head_dim: Some(128), context: 16_384, eps: 1e-5, bos: None, eos: &[], ..Shared::LLAMA },
    arguments,
    gguf: Some(Gguf {
        experts: Some(GgufExperts {
            shared: Some("num_shared_experts"),
            dense: Some("num_dense_layers"),
            scale: Some("route_scale"),
            ..GgufExperts::SIGMOID
        }),
        members,
        entries: None,
        ..Gguf::plain("afmoe")
    }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    let every = fields.size_or("global_attn_every_n_layers", Some(4), 1 << 20)?;
    let window = sliding_window(fields, Some(1024))?;
    config.set_windows(fields, window, |layer| !(layer + 1).is_multiple_of(every))?;
    let rotation = |window: &Option<usize>| if window.is_some() { Rotation::Global } else { Rotation::None };
    config.rotations = config.windows.iter().map(rotation).collect();
    if fields.flag("mup_enabled")?.unwrap_or(false) {
        config.embedding_multiplier = (config.hidden_size as f32).sqrt();
    }
    let size =
        experts(fields, ["num_experts", "num_experts_per_tok", "moe_intermediate_size"], [64, 6, 1408])?;
    let layers = config.num_hidden_layers;
    let softmax = Sparse::softmax(layers, size, config.hidden_act);
    let dense = fields.size("num_dense_layers", 0, 1 << 20)?.unwrap_or(1);
    let shared = fields.size("num_shared_experts", 0, 1 << 10)?.unwrap_or(2);
    let scale = fields.number("route_scale", -1e6, 1e6)?.unwrap_or(1.0) as f32;
    let sparse = Sparse {
        layers: (0..layers).map(|layer| layer >= dense).collect(),
        router: ("mlp.router.gate", "ffn_gate_inp"),
        bias: Some(("mlp.expert_bias", "exp_probs_b")),
        routing: Router { scores: Scores::Sigmoid, normalise: Some(1e-20), scale, ..softmax.routing },
        shared: (shared > 0).then_some(SharedExpert {
            names: SharedExpert::PLURAL,
            inner: shared * size.inner,
            field: "num_shared_experts * moe_intermediate_size",
            gate: None,
        }),
        names: ExpertNames { stacks: "mlp.experts", ..ExpertNames::PLAIN },
        in_mlx: InMlx { eight_bits: &["router.gate"], ..InMlx::default() },
        ..softmax
    };
    Dense {
        attention_gate: Some(AttentionGate {
            name: ("self_attn.gate_proj", "attn_gate"),
            kind: GateKind::Sigmoid,
            by_head: false,
        }),
        attention_norm: Some(("post_attention_layernorm", "post_attention_norm")),
        mlp_norm: Some(("pre_mlp_layernorm", "ffn_norm")),
        mlp_out_norm: Some(("post_mlp_layernorm", "post_ffw_norm")),
        sparse: Some(sparse),
        ..qwen3::described(config)
    }
    .boxed()
}

fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    // Where it is absent, llama.cpp does not divide weights by their sum.
    let norm = members.key("expert_weights_norm");
    if members.metadata.flag(&norm)?.is_none() {
        return Err(members.metadata.refuse(&norm, "true"));
    }
    if !members.window(false)? {
        return Err(members.metadata.refuse(&members.key("attention.sliding_window"), "1 or more"));
    }
    members.window_pattern(4)?;
    // Layers without a window do not rotate.
    members.number("rope_theta", "rope.freq_base_swa")?;
    // llama.cpp knows no other.
    members.put("mup_enabled", "general.architecture", Value::Bool(true));
    Ok(())
}
