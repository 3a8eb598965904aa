//! `gpt_oss`: sinks beside the keys of attention, windows in every other layer, and experts whose gates and rest are clamped.
//! OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card".

use super::dense::Dense;
use super::sparse::{ExpertNames, Sparse, experts};
use super::{Arguments, Family, Gguf, GgufExperts, GgufNorm};
use crate::backend::ops::{Gating, Router, Scores};
use crate::config::rope::{self, RopeRules};
use crate::config::{Config, Rope, RopeScaling, Shared, sliding_window};
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::weights::Form;

pub(super) static FAMILY: Family = Family {
    model_type: "gpt_oss",
    shared: Shared {
        kv_heads: Some(8),
        head_dim: Some(64),
        context: 131_072,
        eps: 1e-5,
        rope: RopeRules::theta(150_000.0),
        bos: None,
        eos: &[],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        experts: Some(GgufExperts {
            count: "num_local_experts",
            width: Some("intermediate_size"),
            norm: GgufNorm::Always(false),
            gating: 3,
            ..GgufExperts::SOFTMAX
        }),
        members: |members, _| {
            members.window(false)?;
            members.window_pattern(2)?;
            // What is not stretched there says nothing, which elsewhere is what the family has.
            if !members.has_scaling("rope_type") {
                let key = members.key("rope.scaling.type");
                members.put_scaling("rope_type", key, Value::String("default".to_owned()));
            }
            Ok(())
        },
        entries: None,
        ..Gguf::plain("gpt-oss")
    }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    if rope::parameters(fields)?.is_none() {
        // What the family has where nothing is said.
        let factor = 32.0_f64;
        let attention_factor = (0.1 * factor.ln() + 1.0) as f32;
        let scaling = RopeScaling::Yarn {
            factor,
            original: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: false,
            attention_factor,
        };
        config.rope = Rope { scaling, ..config.rope };
    }
    let window = sliding_window(fields, Some(128))?;
    config.set_windows(fields, window, |layer| layer % 2 == 0)?;
    let names = ["num_local_experts", "num_experts_per_tok", "intermediate_size"];
    let size = experts(fields, names, [128, 4, config.intermediate_size])?;
    let softmax = Sparse::softmax(config.num_hidden_layers, size, config.hidden_act);
    let number = |name: &str, absent: f64| {
        Ok::<_, crate::Error>(fields.number(name, 1e-6, 1e6)?.unwrap_or(absent) as f32)
    };
    let sparse = Sparse {
        router: ("mlp.router", "ffn_gate_inp"),
        routing: Router { scores: Scores::SoftmaxOfChosen, ..softmax.routing },
        biases: true,
        turned: Some((Form::Alternating, ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])),
        gating: Gating::Clamped {
            alpha: number("swiglu_alpha", 1.702)?,
            limit: number("swiglu_limit", 7.0)?,
        },
        names: ExpertNames { stacks: "mlp.experts", ..ExpertNames::PLAIN },
        ..softmax
    };
    let sinks = Some(("self_attn.sinks", "attn_sinks"));
    let mlp_norm = Some(("post_attention_layernorm", "post_attention_norm"));
    Dense { sinks, mlp_norm, sparse: Some(sparse), ..Dense::llama(config) }.boxed()
}
