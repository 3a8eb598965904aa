//! `smollm3`: Llama, of which every fourth layer does not rotate.
//! Bakouch et al. 2025, "SmolLM3: smol, multilingual, long-context reasoner".

use super::dense::{Dense, Pairs, without_every};
use super::gguf::no_window;
use super::{Arguments, Family, Gguf};
use crate::config::rope::RopeRules;
use crate::config::{Config, Rotation, Shared, layer_types, sliding_window};
use crate::error::Result;
use crate::json::Fields;
use crate::json::Value;
use crate::weights::gguf::write::Entries;

/// Which layers do not rotate: every one of this number; llama.cpp knows no other.
const EVERY: usize = 4;

pub(super) static FAMILY: Family = Family {
    model_type: "smollm3",
    shared: Shared {
        kv_heads: Some(4),
        context: 32_768,
        tied: true,
        rope: RopeRules::theta(2_000_000.0),
        bos: Some(128_000),
        eos: &[128_001],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf { entries: Some(entries), ..Gguf::plain("smollm3") }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    let layers = config.num_hidden_layers;
    config.rotations = match fields.list("no_rope_layers")? {
        None => without_every(layers, fields.size("no_rope_layer_interval", 1, 1024)?.unwrap_or(EVERY)),
        Some(list) if list.len() != layers => {
            let expected = format!("a list of num_hidden_layers, {layers}");
            return Err(fields.error("no_rope_layers", format!("a list of {}", list.len()), expected));
        }
        Some(list) => list
            .iter()
            .enumerate()
            .map(|(layer, rotates)| match rotates {
                Value::UInt(0) => Ok(Rotation::None),
                Value::UInt(1) => Ok(Rotation::Global),
                other => Err(fields.error(format!("no_rope_layers[{layer}]"), other, "0 or 1")),
            })
            .collect::<Result<_>>()?,
    };
    let window = sliding_window(fields, None)?;
    let windowed = fields.flag("use_sliding_window")?.unwrap_or(false);
    let named = layer_types(fields, layers)?.is_some();
    let rotations = config.rotations.clone();
    let slides = |layer: usize| windowed && rotations[layer] == Rotation::None;
    config.set_windows(fields, window, slides)?;
    if named && window.is_none() && layer_types(fields, layers)?.is_some_and(|slides| slides.contains(&true))
    {
        return Err(fields.missing("sliding_window", "the window of the layers that layer_types names"));
    }
    Dense { pairs: Pairs::Gguf, ..Dense::llama(config) }.boxed()
}

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    if config.rotations != without_every(config.num_hidden_layers, EVERY) {
        return Err("rotates other layers than all but every fourth");
    }
    no_window(config, entries)
}
