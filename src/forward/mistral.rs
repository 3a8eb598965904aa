//! `mistral`: Llama with a sliding window in every layer.
//! Jiang et al. 2023, "Mistral 7B".

use super::dense::{Dense, Pairs};
use super::gguf::has_experts;
use super::llama::has_window;
use super::{Arguments, Family, Gguf};
use crate::config::{Config, Shared, sliding_window};
use crate::error::Result;
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "mistral",
    shared: Shared { kv_heads: Some(8), context: 131_072, ..Shared::LLAMA },
    arguments,
    gguf: Some(Gguf {
        claims: |metadata| Ok(has_window(metadata)? && !has_experts(metadata, "llama")?),
        members: |members, _| members.window(true).map(drop),
        entries: Some(super::gguf::window_that_llama_cpp_ignores),
        ..Gguf::plain("llama")
    }),
    prefixes: super::BARE,
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    config.set_all_windows(sliding_window(fields, Some(4096))?);
    Dense { pairs: Pairs::Gguf, ..Dense::llama(config) }.boxed()
}
