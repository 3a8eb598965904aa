//! `gpt_oss`: sinks beside the keys of attention, windows in every other layer, and experts whose gates and rest are clamped.
//! OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card".

use super::dense::Dense;
use super::list::InMlx;
use super::sparse::{ExpertNames, Sparse, experts};
use super::{Arguments, Family, Gguf, GgufExperts, GgufNorm};
use crate::backend::ops::{Gating, Router, Scores};
use crate::config::rope::{self, RopeRules};
use crate::config::{Config, Rope, RopeScaling, Shared, sliding_window};
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::quant::Format;
use crate::weights::Form;
use crate::weights::gguf::write::Entries;

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
        entries: Some(entries),
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
        Ok::<_, crate::error::Error>(fields.number(name, 1e-6, 1e6)?.unwrap_or(absent) as f32)
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
        published: Some(Format::Mxfp4),
        in_mlx: InMlx { eight_bits: &["mlp.router"], ..InMlx::default() },
        ..softmax
    };
    let sinks = Some(("self_attn.sinks", "attn_sinks"));
    let mlp_norm = Some(("post_attention_layernorm", "post_attention_norm"));
    Dense { sinks, mlp_norm, sparse: Some(sparse), ..Dense::llama(config) }.boxed()
}

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    if config.experts.and_then(|experts| experts.clamp) != Some([1.702, 7.0]) {
        return Err("has experts that are clamped otherwise than llama.cpp clamps them");
    }
    let slides: Vec<bool> = config.windows.iter().map(Option::is_some).collect();
    if !slides.contains(&true) {
        return Err("has no window of attention");
    }
    if slides.iter().enumerate().any(|(layer, &slides)| slides != (layer % 2 == 0)) {
        entries.flags("gpt-oss.attention.sliding_window_pattern", &slides);
    }
    if let RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor } =
        config.rope.scaling
    {
        let plain = 0.1 * factor.max(1.0).ln() + 1.0;
        if (beta_fast, beta_slow) != (32.0, 1.0) || (f64::from(attention_factor) - plain).abs() >= 1e-6 {
            return Err("stretches its rotary embedding in a way that llama.cpp has no form for");
        }
        if !truncate {
            tracing::warn!(
                "llama.cpp rounds the bounds of YaRN, which this model does not: its frequencies differ a little there"
            );
        }
        let original = u32::try_from(original).map_err(|_| "has a size over 32 bits")?;
        entries.string("gpt-oss.rope.scaling.type", "yarn");
        entries.float("gpt-oss.rope.scaling.factor", factor as f32);
        entries.uint("gpt-oss.rope.scaling.original_context_length", original);
    }
    Ok(())
}
