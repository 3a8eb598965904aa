//! `ministral3`: Llama with YaRN, whose queries grow with their positions: Ministral 3, Devstral 2.
//! Mistral AI 2025, "Ministral 3"; the growth is that of Llama 4.

use super::dense::{Dense, Pairs};
use super::gguf_members::Members;
use super::{Arguments, Family, Gguf};
use crate::config::rope::{self, RopeRules};
use crate::config::{Config, QueryScaling, Rope, RopeScaling, Shared, sliding_window};
use crate::error::Result;
use crate::json::Fields;
use crate::json::Value;
use crate::weights::Checkpoint;
use crate::weights::gguf::write::Entries;

/// Tokens of the training before it was extended, where nothing is said.
const ORIGINAL: usize = 16_384;

pub(super) static FAMILY: Family = Family {
    model_type: "ministral3",
    shared: Shared {
        kv_heads: Some(8),
        head_dim: Some(128),
        context: 262_144,
        eps: 1e-5,
        rope: RopeRules::theta(1_000_000.0),
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf { members, entries: Some(entries), ..Gguf::plain("mistral3") }),
    prefixes: super::TEXT_PART,
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    config.set_all_windows(sliding_window(fields, None)?);
    let sliding = crate::config::layer_types(fields, config.num_hidden_layers)?;
    if sliding.is_some_and(|sliding| sliding.iter().any(|&slides| slides != config.sliding_window.is_some()))
    {
        let expected = "absent, or the same for all layers: sliding_window decides";
        return Err(fields.error("layer_types", "a list of others", expected));
    }
    match rope::parameters(fields)? {
        None => {
            let scaling = RopeScaling::Yarn {
                factor: 16.0,
                original: ORIGINAL,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate: true,
                attention_factor: 1.0,
            };
            config.rope = Rope { scaling, ..config.rope };
            config.query_scaling = Some(QueryScaling::growing(0.1, ORIGINAL));
        }
        Some(params) => config.query_scaling = QueryScaling::of_parameters(&params, &config.rope)?,
    }
    Dense { pairs: Pairs::Gguf, ..Dense::llama(config) }.boxed()
}

fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    let key = members.key("attention.temperature_scale");
    if let Some(beta) = members.metadata.number(&key)?.filter(|&beta| beta != 0.0) {
        members.put_scaling("llama_4_scaling_beta", key, Value::Float(beta));
    }
    let key = members.key("rope.scaling.yarn_log_multiplier");
    if let Some(all) = members.metadata.number(&key)?.filter(|&all| all != 0.0) {
        members.put_scaling("mscale", key.clone(), Value::Float(1.0));
        members.put_scaling("mscale_all_dim", key, Value::Float(all));
    }
    // Absent parameters stand for Ministral's own in a directory, and for none in a file.
    if !members.has_scaling("rope_type") {
        members.put_scaling("rope_type", members.key("rope.scaling.type"), Value::String("default".into()));
    }
    Ok(())
}

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    if let RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor } =
        config.rope.scaling
    {
        let plain = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
        let log_multiplier = match attention_factor {
            1.0 => 1.0,
            other if (f64::from(other) - plain).abs() < 1e-6 => 0.0,
            _ => return Err("has an attention factor that its file has no form for"),
        };
        if !truncate {
            return Err("does not round the bounds of YaRN, which llama.cpp does");
        }
        let original = u32::try_from(original).map_err(|_| "has a size over 32 bits")?;
        entries.string("mistral3.rope.scaling.type", "yarn");
        entries.float("mistral3.rope.scaling.factor", factor as f32);
        entries.uint("mistral3.rope.scaling.original_context_length", original);
        entries.float("mistral3.rope.scaling.yarn_beta_fast", beta_fast as f32);
        entries.float("mistral3.rope.scaling.yarn_beta_slow", beta_slow as f32);
        entries.float("mistral3.rope.scaling.yarn_log_multiplier", log_multiplier);
    }
    if let Some(scaling) = config.query_scaling {
        entries.float("mistral3.attention.temperature_scale", scaling.beta as f32);
    }
    super::gguf::no_window(config, entries)
}
