//! `granite`: Llama with four multipliers: of the embedding, of scores, of what joins the residual stream, and of logits.
//! Granite Team 2024, "Granite 3.0 Language Models".

use super::dense::{Dense, Pairs};
use super::gguf::no_window;
use super::gguf_members::Members;
use super::{Arguments, Family, Gguf};
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::Fields;
use crate::json::Value;
use crate::weights::Checkpoint;
use crate::weights::gguf::write::Entries;

pub(super) static FAMILY: Family = Family {
    model_type: "granite",
    shared: Shared::LLAMA,
    arguments,
    gguf: Some(Gguf { members, entries: Some(entries), ..Gguf::plain("granite") }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    set_multipliers(fields, &mut config)?;
    Dense { pairs: Pairs::Gguf, ..Dense::llama(config) }.boxed()
}

/// The four multipliers.
pub(super) fn set_multipliers(fields: &Fields<'_>, config: &mut Config) -> Result<()> {
    let number =
        |name: &str| Ok::<_, crate::error::Error>(fields.number(name, -1e6, 1e6)?.unwrap_or(1.0) as f32);
    config.embedding_multiplier = number("embedding_multiplier")?;
    config.attention_multiplier = Some(number("attention_multiplier")?);
    config.residual_multiplier = number("residual_multiplier")?;
    let divisor = fields.number("logits_scaling", 1e-6, 1e6)?.unwrap_or(1.0);
    config.logits_multiplier = (1.0 / divisor) as f32;
    Ok(())
}

/// Absent, or zero, stands for none.
pub(super) fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    let root = (members.uint("head_dim") as f64).powf(-0.5);
    for (name, key, none) in [
        ("attention_multiplier", "attention.scale", root),
        ("embedding_multiplier", "embedding_scale", 1.0),
        ("residual_multiplier", "residual_scale", 1.0),
        ("logits_scaling", "logit_scale", 1.0),
    ] {
        let key = members.key(key);
        let value = members.metadata.number(&key)?.filter(|&x| x != 0.0).unwrap_or(none);
        members.put(name, key, Value::Float(value));
    }
    Ok(())
}

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    entries.float("granite.attention.scale", config.attention_scale(0));
    entries.float("granite.embedding_scale", config.embedding_multiplier);
    entries.float("granite.residual_scale", config.residual_multiplier);
    entries.float("granite.logit_scale", config.logits_multiplier.recip());
    no_window(config, entries)
}
