//! `gemma4_unified_text`, the text of `gemma4_unified`: Gemma 4 without embeddings for each layer, with a window of twice the length.
//! Google DeepMind 2026, Gemma 4.

use super::{Family, gemma4_text};
use crate::config::Shared;

pub(super) static FAMILY: Family = Family {
    model_type: "gemma4_unified_text",
    shared: Shared { context: 262_144, ..gemma4_text::SHARED },
    arguments: |fields, config| gemma4_text::described(fields, config, 1024, 0),
    gguf: None,
    prefixes: super::TEXT_PART,
};
