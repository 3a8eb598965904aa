//! `gemma3_text`, the text part of `gemma3`: Gemma 2 with norms of queries and keys in place of soft caps, five layers with a
//! window to each without one, and a rotary base for each kind.
//! Gemma Team 2025, "Gemma 3 Technical Report".

use super::dense::{Dense, HeadNorms, NormKind};
use super::gguf_members::Members;
use super::{Arguments, Family, Gguf, gemma2, qwen3};
use crate::config::rope::{self, RopeRules};
use crate::config::{Activation, Config, Names, Rope, RopeScaling, Shared, sliding_window};
use crate::error::Result;
use crate::json::Fields;
use crate::json::Value;
use crate::weights::Checkpoint;
use crate::weights::gguf::write::Entries;

/// Layers of the 27B, the one size whose scores are not divided by the root of a head's length.
const LAYERS_27B: usize = 62;

const ROPE: RopeRules = RopeRules { by_layer_type: true, ..RopeRules::theta(1_000_000.0) };
/// Of layers with a window.
const LOCAL_ROPE: RopeRules = RopeRules { theta_name: "rope_local_base_freq", ..RopeRules::WHOLE };

pub(super) static FAMILY: Family = Family {
    model_type: "gemma3_text",
    shared: Shared {
        names: Names { act: "hidden_activation", ..Names::LLAMA },
        vocab: Some(262_208),
        heads: Some(8),
        kv_heads: Some(4),
        head_dim: Some(256),
        context: 131_072,
        act: "gelu_pytorch_tanh",
        tied: true,
        rope: ROPE,
        bos: Some(2),
        eos: &[1],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        activations: &[Activation::GeluTanh],
        numbers: &[
            ("final_logit_softcapping", "final_logit_softcapping"),
            ("rope_local_base_freq", "rope.freq_base_swa"),
        ],
        members,
        entries: Some(entries),
        scalar: Some(scalar),
        ..Gguf::plain("gemma3")
    }),
    prefixes: super::TEXT_PART,
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    // EmbeddingGemma's.
    config.bidirectional |= fields.flag("use_bidirectional_attention")?.unwrap_or(false);
    if let Some(cap) = fields.get("attn_logit_softcapping") {
        let expected = "null: transformers reads the field and caps no score";
        return Err(fields.error("attn_logit_softcapping", cap, expected));
    }
    config.final_logit_softcapping =
        fields.number("final_logit_softcapping", 1e-6, 1e6)?.map(|cap| cap as f32);
    let scalar = fields.number("query_pre_attn_scalar", 1e-6, 1e9)?.unwrap_or(256.0);
    config.query_pre_attn_scalar = Some(scalar as f32);
    let pattern = fields.size("sliding_window_pattern", 1, 1024)?.unwrap_or(6);
    let window = sliding_window(fields, Some(4096))?;
    config.set_windows(fields, window, |layer| !(layer + 1).is_multiple_of(pattern))?;
    let (head_dim, context) = (config.head_dim, config.max_position_embeddings);
    if let Some(rope) = rope::of_layer_type(fields, "full_attention", ROPE, head_dim, context)? {
        config.rope = rope;
    }
    let local = rope::of_layer_type(fields, "sliding_attention", LOCAL_ROPE, head_dim, context)?;
    let theta = fields.number(LOCAL_ROPE.theta_name, 1e-6, 1e12)?.unwrap_or(LOCAL_ROPE.theta);
    let plain = Rope { theta, dims: config.rope.dims, scaling: RopeScaling::None };
    config.set_local_rope(local.unwrap_or(plain));
    let kind = NormKind::Rms { offset: 1.0 };
    Dense { head_norms: Some(HeadNorms { kind, ..qwen3::HEAD_NORMS }), ..gemma2::described(config) }.boxed()
}

fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    if members.window(true)? {
        members.window_pattern(6)?;
    }
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
    if config.bidirectional {
        return Err("sees the tokens behind each");
    }
    if let Some(cap) = config.final_logit_softcapping {
        entries.float("gemma3.final_logit_softcapping", cap);
    }
    if let Some(local) = &config.local_rope {
        if local.scaling != RopeScaling::None {
            return Err("stretches the rotary embedding of layers with a window");
        }
        entries.float("gemma3.rope.freq_base_swa", local.theta as f32);
    }
    let slides: Vec<bool> = config.windows.iter().map(Option::is_some).collect();
    if slides.contains(&true) {
        entries.flags("gemma3.attention.sliding_window_pattern", &slides);
    }
    Ok(())
}
