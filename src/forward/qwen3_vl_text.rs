//! `qwen3_vl_text`: the text part of Qwen3-VL, which is Qwen3: the three positions of its rotary embedding are one for text.
//! Bai et al. 2025, "Qwen3-VL Technical Report".

use super::{Family, Gguf, qwen3};
use crate::config::rope::RopeRules;
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::weights::gguf::write::Entries;

pub(super) const SHARED: Shared = Shared {
    kv_heads: Some(32),
    head_dim: Some(128),
    context: 128_000,
    rope: RopeRules { sections: true, ..RopeRules::theta(500_000.0) },
    bos: None,
    eos: &[],
    ..Shared::LLAMA
};

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3_vl_text",
    shared: SHARED,
    arguments: |_, config| qwen3::described(config).boxed(),
    gguf: Some(Gguf { entries: Some(entries), ..Gguf::plain("qwen3vl") }),
    prefixes: super::TEXT_PART,
};

/// llama.cpp asks for the sections of positions, which are equal for text, and for the layers that pictures are added to.
fn entries(_: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    entries.ints("qwen3vl.rope.dimension_sections", &[24, 20, 20, 0]);
    entries.uint("qwen3vl.n_deepstack_layers", 0);
    Ok(())
}
