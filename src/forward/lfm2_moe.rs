//! `lfm2_moe`: LFM2 with experts behind the first layers, which a sigmoid and a bias choose: LFM2-8B-A1B, LFM2-24B-A2B.
//! Liquid AI 2025, "LFM2 Technical Report".

use super::dense::Dense;
use super::list::InMlx;
use super::sparse::{ExpertNames, Sparse, experts};
use super::{Arguments, Family, Gguf, GgufExperts, lfm2};
use crate::backend::ops::{Router, Scores};
use crate::config::Config;
use crate::error::Result;
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "lfm2_moe",
    shared: lfm2::SHARED,
    arguments,
    // llama.cpp multiplies no weights of these experts.
    gguf: Some(Gguf {
        architecture: "lfm2moe",
        experts: Some(GgufExperts { dense: Some("num_dense_layers"), ..GgufExperts::SIGMOID }),
        ..lfm2::GGUF
    }),
    // What mlx-lm calls them.
    prefixes: &[
        (".feed_forward.gate_proj.", ".feed_forward.w1."),
        (".feed_forward.up_proj.", ".feed_forward.w3."),
        (".feed_forward.down_proj.", ".feed_forward.w2."),
    ],
};

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    let size =
        experts(fields, ["num_experts", "num_experts_per_tok", "moe_intermediate_size"], [32, 4, 1792])?;
    let layers = config.num_hidden_layers;
    let dense = fields.size("num_dense_layers", 0, 1 << 20)?.unwrap_or(2);
    let biased = fields.flag("use_expert_bias")?.unwrap_or(true);
    let normalised = fields.flag("norm_topk_prob")?.unwrap_or(true);
    let scale = fields.number("routed_scaling_factor", -1e6, 1e6)?.unwrap_or(1.0) as f32;
    let softmax = Sparse::softmax(layers, size, config.hidden_act);
    let sparse = Sparse {
        layers: (0..layers).map(|layer| layer >= dense).collect(),
        router: ("feed_forward.gate", "ffn_gate_inp"),
        bias: biased.then_some(("feed_forward.expert_bias", "exp_probs_b")),
        routing: Router {
            scores: Scores::Sigmoid,
            normalise: normalised.then_some(1e-6),
            scale,
            ..softmax.routing
        },
        names: ExpertNames {
            each: "feed_forward.experts",
            parts: ["w1", "w3", "w2"],
            fused: "feed_forward.experts.gate_up_proj",
            fused_down: "feed_forward.experts.down_proj",
            stacks: "feed_forward.switch_mlp",
        },
        in_mlx: InMlx { eight_bits: &["feed_forward.gate"], ..InMlx::default() },
        ..softmax
    };
    let inner = fields.size_or("intermediate_size", Some(7168), 1 << 24)?;
    Dense { sparse: Some(sparse), ..lfm2::described(fields, config, inner)? }.boxed()
}
