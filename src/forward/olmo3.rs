//! `olmo3`: Olmo 2 with a window in three of four layers, whose rotary embedding is never stretched.
//! OLMo Team 2025, "Olmo 3".

use super::gguf_members::Members;
use super::olmo2::{self, has_window};
use super::{Arguments, Family, Gguf};
use crate::config::rope::{self, RopeRules};
use crate::config::{Config, Rope, RopeScaling, Shared, sliding_window};
use crate::error::Result;
use crate::json::Fields;
use crate::weights::Checkpoint;
use crate::weights::gguf::write::Entries;

const ROPE: RopeRules = RopeRules { by_layer_type: true, ..RopeRules::theta(500_000.0) };

pub(super) static FAMILY: Family = Family {
    model_type: "olmo3",
    shared: Shared { rope: ROPE, ..olmo2::SHARED },
    arguments,
    gguf: Some(Gguf { claims: has_window, members, entries: Some(entries), ..Gguf::plain("olmo2") }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    let window = sliding_window(fields, Some(4096))?;
    config.set_windows(fields, window, |layer| !(layer + 1).is_multiple_of(4))?;
    let (head_dim, context) = (config.head_dim, config.max_position_embeddings);
    if let Some(rope) = rope::of_layer_type(fields, "full_attention", ROPE, head_dim, context)? {
        config.rope = rope;
    }
    let local = rope::of_layer_type(fields, "sliding_attention", ROPE, head_dim, context)?;
    let plain = Rope { scaling: RopeScaling::None, ..config.rope.clone() };
    config.set_local_rope(local.unwrap_or(plain));
    olmo2::described(fields, config)?.boxed()
}

fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    members.window(true)?;
    members.window_pattern(4)
}

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    let plain = Rope { scaling: RopeScaling::None, ..config.rope.clone() };
    if config.local_rope.as_ref().is_some_and(|local| *local != plain) {
        return Err("rotates layers with a window by another base, or stretched");
    }
    let slides: Vec<bool> = config.windows.iter().map(Option::is_some).collect();
    entries.flags("olmo2.attention.sliding_window_pattern", &slides);
    Ok(())
}
