//! `qwen2`: Llama with biases on the query, key and value projections, which the checkpoint holds.
//! Yang et al. 2024, "Qwen2 Technical Report".

use super::dense::Dense;
use super::{Arguments, Family, Gguf};
use crate::config::{Config, Shared, sliding_window};
use crate::error::Result;
use crate::json::Fields;

pub(super) const SHARED: Shared =
    Shared { kv_heads: Some(32), context: 32_768, bos: None, eos: &[], ..Shared::LLAMA };

/// Files do not say which layers have the window, and those of models that use none may name one: theirs is not read.
pub(super) static FAMILY: Family = Family {
    model_type: "qwen2",
    shared: SHARED,
    arguments,
    gguf: Some(Gguf::plain("qwen2")),
    prefixes: super::BARE,
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    set_windows(fields, &mut config, 28)?;
    Dense::llama(config).boxed()
}

/// The window, where `use_sliding_window` is on: of the layers that `layer_types` names, else from `max_window_layers` on.
pub(super) fn set_windows(fields: &Fields<'_>, config: &mut Config, first: usize) -> Result<()> {
    let window = match fields.flag("use_sliding_window")? {
        Some(true) => sliding_window(fields, Some(4096))?,
        _ => None,
    };
    let first = fields.size("max_window_layers", 0, 1 << 20)?.unwrap_or(first);
    config.set_windows(fields, window, |layer| layer >= first)
}
