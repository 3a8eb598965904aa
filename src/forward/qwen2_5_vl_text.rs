//! `qwen2_5_vl_text`: the text part of Qwen2.5-VL, which is Qwen2: the three positions of its rotary embedding are one for
//! text. Bai et al. 2025, "Qwen2.5-VL Technical Report".

use super::dense::Dense;
use super::{Arguments, Family, Gguf, qwen2};
use crate::config::rope::RopeRules;
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::Fields;
use crate::weights::gguf::write::Entries;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen2_5_vl_text",
    shared: Shared {
        kv_heads: Some(8),
        context: 32_768,
        eps: 1e-5,
        rope: RopeRules { sections: true, ..RopeRules::theta(1_000_000.0) },
        bos: Some(151_643),
        eos: &[151_645],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf { entries: Some(entries), ..Gguf::plain("qwen2vl") }),
    prefixes: super::TEXT_PART,
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    qwen2::set_windows(fields, &mut config, 80)?;
    Dense::llama(config).boxed()
}

/// llama.cpp asks for the sections of positions, which are equal for text.
fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    entries.ints("qwen2vl.rope.dimension_sections", &[16, 24, 24, 0]);
    super::gguf::no_window(config, entries)
}
