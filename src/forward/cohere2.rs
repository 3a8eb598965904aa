//! `cohere2`: attention and feed-forward side by side under one norm without bias; three of four layers rotate, in
//! neighbouring pairs, and have a window; logits are scaled.
//! Cohere 2025, "Command A: An Enterprise-Ready Large Language Model".

use super::dense::{Dense, NormKind, Pairs};
use super::gguf_members::{LAYER_EPS, Members};
use super::{Arguments, Family, Gguf};
use crate::config::{Config, Names, Rotation, Shared, only, sliding_window};
use crate::error::Result;
use crate::json::Fields;
use crate::weights::Checkpoint;
use crate::weights::gguf::write::Entries;

pub(super) static FAMILY: Family = Family {
    model_type: "cohere2",
    shared: Shared {
        names: Names { eps: "layer_norm_eps", ..Names::LLAMA },
        context: 8192,
        eps: 1e-5,
        tied: true,
        bos: Some(5),
        eos: &[255_001],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        eps: LAYER_EPS,
        numbers: &[("logit_scale", "logit_scale")],
        members,
        entries: Some(entries),
        ..Gguf::plain("cohere2")
    }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    for (name, fine) in [
        ("use_qk_norm", false),
        ("use_parallel_block", true),
        ("use_gated_activation", true),
        ("layer_norm_bias", false),
    ] {
        only(fields, name, fine, "the family has no other block")?;
    }
    config.logits_multiplier = fields.number("logit_scale", 1e-6, 1e6)?.unwrap_or(0.0625) as f32;
    let pattern = fields.size("sliding_window_pattern", 1, 1024)?.unwrap_or(4);
    let window = sliding_window(fields, Some(4096))?;
    config.set_windows(fields, window, |layer| !(layer + 1).is_multiple_of(pattern))?;
    if window.is_none() {
        return Err(fields.missing("sliding_window", "the window of the layers that slide"));
    }
    let rotation = |window: &Option<usize>| if window.is_some() { Rotation::Global } else { Rotation::None };
    config.rotations = config.windows.iter().map(rotation).collect();
    Dense {
        norms: NormKind::Layer { offset: 0.0 },
        mlp_norm: None,
        parallel: true,
        pairs: Pairs::Everywhere,
        ..Dense::llama(config)
    }
    .boxed()
}

fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    members.window(false)?;
    members.window_pattern(4)
}

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    if !config.tie_word_embeddings {
        return Err("has an output head of its own");
    }
    entries.float("cohere2.logit_scale", config.logits_multiplier);
    entries.string("cohere2.rope.scaling.type", "none");
    let slides: Vec<bool> = config.windows.iter().map(Option::is_some).collect();
    entries.flags("cohere2.attention.sliding_window_pattern", &slides);
    Ok(())
}
