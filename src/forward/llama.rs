//! `llama`: pre-norm, rotary grouped-query attention, SwiGLU: Llama 1 to 3.2, and the many models of its shape.
//! Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models".

use super::dense::{Dense, Pairs};
use super::gguf::has_experts;
use super::{Arguments, Family, Gguf};
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::Fields;
use crate::weights::gguf::Metadata;

pub(super) static FAMILY: Family = Family {
    model_type: "llama",
    shared: Shared::LLAMA,
    arguments,
    gguf: Some(Gguf {
        claims: |metadata| Ok(!has_window(metadata)? && !has_experts(metadata, "llama")?),
        ..Gguf::plain("llama")
    }),
    prefixes: super::BARE,
};

fn arguments(_: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    Dense { pairs: Pairs::Gguf, ..Dense::llama(config) }.boxed()
}

/// Whether a file of the architecture `llama` has a window, and so is a Mistral.
pub(super) fn has_window(metadata: &Metadata) -> Result<bool> {
    Ok(metadata.uint("llama.attention.sliding_window")?.is_some_and(|window| window > 0))
}
