//! The text of `qwen3_5`: gated delta nets in three of four layers, attention with a gate in the others: Qwen 3.5 to 3.8.
//! Qwen Team 2026, "Qwen3.5".

use super::delta::DeltaNet;
use super::dense::{AheadNames, Dense, HeadNorms, NormKind};
use super::{Arguments, Family, Gguf, gguf_delta, qwen3};
use crate::config::rope::RopeRules;
use crate::config::{Config, Shared, only};
use crate::error::Result;
use crate::json::{Fields, Value};

pub(super) const SHARED: Shared = Shared {
    kv_heads: Some(4),
    head_dim: Some(256),
    context: 32_768,
    rope: RopeRules { sections: true, ..RopeRules::partial(0.25) },
    bos: None,
    eos: &[],
    ..Shared::LLAMA
};

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3_5_text",
    shared: SHARED,
    arguments,
    gguf: Some(Gguf { members: gguf_delta::members, entries: None, ..Gguf::plain("qwen35") }),
    prefixes: super::TEXT_PART,
};

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    described(fields, config)?.boxed()
}

/// Delta nets and gated attention, with an MLP in each layer.
pub(super) fn described(fields: &Fields<'_>, mut config: Config) -> Result<Dense> {
    only(fields, "attn_output_gate", true, "attention has a gate in every model of the family")?;
    let every = fields.size_or("full_attention_interval", Some(4), 1 << 20)?;
    let linear = linear_layers(fields, config.num_hidden_layers, |layer| !(layer + 1).is_multiple_of(every))?;
    let delta = DeltaNet::read(fields, linear)?;
    config.mixer_width = delta.width();
    let ahead = matches!(fields.get(AheadNames::FIELD), None | Some(Value::UInt(1)));
    let head_norms = HeadNorms { kind: NormKind::Rms { offset: 1.0 }, ..qwen3::HEAD_NORMS };
    Ok(Dense {
        mlp_norm: Some(("post_attention_layernorm", "post_attention_norm")),
        norms: NormKind::Rms { offset: 1.0 },
        head_norms: Some(head_norms),
        gated_queries: true,
        delta: Some(delta),
        ahead: ahead.then_some(AheadNames::APART),
        ..Dense::llama(config)
    })
}

/// The layers that are delta nets: as `layer_types` says, else those that `absent` names.
pub(super) fn linear_layers(
    fields: &Fields<'_>,
    layers: usize,
    absent: impl Fn(usize) -> bool,
) -> Result<Vec<bool>> {
    const NAME: &str = "layer_types";
    let Some(types) = fields.list(NAME)? else { return Ok((0..layers).map(absent).collect()) };
    if types.len() != layers {
        let expected = format!("a list of num_hidden_layers, {layers}");
        return Err(fields.error(NAME, format!("a list of {}", types.len()), expected));
    }
    let is_linear = |(i, kind): (usize, &Value)| match kind {
        Value::String(kind) if kind == "linear_attention" => Ok(true),
        Value::String(kind) if kind == "full_attention" => Ok(false),
        other => Err(fields.error(format!("{NAME}[{i}]"), other, "linear_attention or full_attention")),
    };
    types.iter().enumerate().map(is_linear).collect()
}
