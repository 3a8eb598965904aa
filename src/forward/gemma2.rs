//! `gemma2`: norms before and after each part, GeGLU, soft-capped scores and logits, windows on alternating layers.
//! Gemma Team 2024, "Gemma 2: Improving Open Language Models at a Practical Size".

use super::dense::{Dense, NormKind};
use super::gguf_members::Members;
use super::{Arguments, Family, Gguf};
use crate::config::{Activation, Config, Names, Shared, only, sliding_window};
use crate::error::Result;
use crate::json::Fields;
use crate::json::Value;
use crate::weights::Checkpoint;
use crate::weights::gguf::write::Entries;

/// Layers of the 27B, the one size whose scores are not divided by the root of a head's length.
const LAYERS_27B: usize = 46;

pub(super) static FAMILY: Family = Family {
    model_type: "gemma2",
    shared: Shared {
        names: Names { act: "hidden_activation", ..Names::LLAMA },
        kv_heads: Some(4),
        head_dim: Some(256),
        context: 8192,
        act: "gelu_pytorch_tanh",
        tied: true,
        bos: Some(2),
        eos: &[1],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        activations: &[Activation::GeluTanh],
        numbers: &[
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ],
        members,
        entries: Some(entries),
        scalar: Some(scalar),
        ..Gguf::plain("gemma2")
    }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    only(fields, "use_bidirectional_attention", false, "attention is causal")?;
    let soft_cap = |name, default: f64| -> Result<Option<f32>> {
        match fields.is_null(name) {
            true => Ok(None),
            false => Ok(Some(fields.number(name, 1e-6, 1e6)?.unwrap_or(default) as f32)),
        }
    };
    config.attn_logit_softcapping = soft_cap("attn_logit_softcapping", 50.0)?;
    config.final_logit_softcapping = soft_cap("final_logit_softcapping", 30.0)?;
    let scalar = fields.number("query_pre_attn_scalar", 1e-6, 1e9)?.unwrap_or(256.0);
    config.query_pre_attn_scalar = Some(scalar as f32);
    config.set_windows(fields, sliding_window(fields, Some(4096))?, |layer| layer.is_multiple_of(2))?;
    described(config).boxed()
}

/// Four norms a layer, whose weights are less by one; the embedding is multiplied by the root of its width.
pub(super) fn described(config: Config) -> Dense {
    Dense {
        norms: NormKind::Rms { offset: 1.0 },
        attention_norm: Some(("post_attention_layernorm", "post_attention_norm")),
        mlp_norm: Some(("pre_feedforward_layernorm", "ffn_norm")),
        mlp_out_norm: Some(("post_feedforward_layernorm", "post_ffw_norm")),
        root_scale: true,
        ..Dense::llama(config)
    }
}

fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    members.window(false)?;
    let (heads, hidden) = (members.uint("num_attention_heads"), members.uint("hidden_size"));
    let scalar = match members.uint("num_hidden_layers") == LAYERS_27B as u64 {
        true => hidden as f64 / heads.max(1) as f64,
        false => members.uint("head_dim") as f64,
    };
    members.put("query_pre_attn_scalar", members.key("attention.key_length"), Value::Float(scalar));
    Ok(())
}

/// What llama.cpp divides scores by the root of, whatever the checkpoint says.
fn scalar(config: &Config) -> f32 {
    match config.num_hidden_layers {
        LAYERS_27B => config.hidden_size as f32 / config.num_attention_heads as f32,
        _ => config.head_dim as f32,
    }
}

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    for (key, cap) in [
        ("gemma2.attn_logit_softcapping", config.attn_logit_softcapping),
        ("gemma2.final_logit_softcapping", config.final_logit_softcapping),
    ] {
        // llama.cpp has caps of its own where a file names none.
        entries.float(key, cap.ok_or("caps no scores or logits")?);
    }
    let every_other = |(layer, window): (usize, &Option<usize>)| window.is_some() == (layer % 2 == 0);
    match config.windows.iter().enumerate().all(every_other) {
        true => Ok(()),
        false => Err("has no window of attention in every other layer"),
    }
}
