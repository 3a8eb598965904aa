//! `exaone4`: norms after each part and norms of heads; the 32B has a window in three of four layers, and those alone rotate.
//! LG AI Research 2025, "EXAONE 4.0".

use super::gguf_members::Members;
use super::olmo2::norms_after;
use super::{Arguments, Family, Gguf, qwen3};
use crate::config::{Config, Rotation, Shared, sliding_window};
use crate::error::Result;
use crate::json::Fields;
use crate::json::Value;
use crate::weights::Checkpoint;
use crate::weights::gguf::write::Entries;

/// Layers of the 32B: llama.cpp applies windows to it alone.
const LAYERS_32B: u64 = 64;

pub(super) static FAMILY: Family = Family {
    model_type: "exaone4",
    shared: Shared { kv_heads: Some(32), eps: 1e-5, bos: Some(0), ..Shared::LLAMA },
    arguments,
    gguf: Some(Gguf { members, entries: Some(entries), ..Gguf::plain("exaone4") }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    let window = sliding_window(fields, Some(4096))?;
    let letters: Option<Vec<u8>> = match fields.get("sliding_window_pattern") {
        Some(Value::String(letters))
            if !letters.is_empty() && letters.bytes().all(|b| b"LG".contains(&b)) =>
        {
            Some(letters.bytes().collect())
        }
        Some(Value::String(other)) => {
            let got = crate::json::quote(other);
            return Err(fields.error("sliding_window_pattern", got, "a number, or letters L and G"));
        }
        _ => None,
    };
    match letters {
        Some(letters) => {
            config.set_windows(fields, window, |layer| letters[layer % letters.len()] == b'L')?;
        }
        None => {
            let every = fields.size("sliding_window_pattern", 0, 1024)?.unwrap_or(4);
            config.set_windows(fields, window, |layer| every > 0 && !(layer + 1).is_multiple_of(every))?;
        }
    }
    if window.is_some() {
        let rotation =
            |window: &Option<usize>| if window.is_some() { Rotation::Global } else { Rotation::None };
        config.rotations = config.windows.iter().map(rotation).collect();
    }
    norms_after(qwen3::described(config)).boxed()
}

fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    let pattern = members.key("attention.sliding_window_pattern");
    let listed = members.metadata.flags(&pattern)?.is_some();
    match listed || members.uint("num_hidden_layers") == LAYERS_32B {
        true => {
            members.window(false)?;
            members.window_pattern(4)
        }
        false => {
            members.put("sliding_window", members.key("attention.sliding_window"), Value::Null);
            Ok(())
        }
    }
}

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    let slides: Vec<bool> = config.windows.iter().map(Option::is_some).collect();
    if slides.contains(&true) {
        if config.num_hidden_layers as u64 != LAYERS_32B {
            tracing::warn!("llama.cpp applies windows to EXAONE's 32B alone: its answers differ");
        }
        entries.flags("exaone4.attention.sliding_window_pattern", &slides);
    }
    Ok(())
}
