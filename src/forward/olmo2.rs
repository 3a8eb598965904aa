//! `olmo2`: norms after each part and none before, and norms of all queries and of all keys as one row each.
//! OLMo Team 2025, "2 OLMo 2 Furious".

use super::dense::{Dense, HeadNormOf, HeadNorms};
use super::{Family, Gguf, qwen3};
use crate::config::{Config, Shared, only};
use crate::error::Result;
use crate::json::Fields;
use crate::weights::gguf::Metadata;

pub(super) const SHARED: Shared = Shared { eps: 1e-5, bos: None, eos: &[50_279], ..Shared::LLAMA };

pub(super) static FAMILY: Family = Family {
    model_type: "olmo2",
    shared: SHARED,
    arguments: |fields, config| described(fields, config)?.boxed(),
    gguf: Some(Gguf { claims: |metadata| has_window(metadata).map(|has| !has), ..Gguf::plain("olmo2") }),
    prefixes: &[],
};

/// Whether a file of the architecture `olmo2` has a window, and so is an Olmo 3.
pub(super) fn has_window(metadata: &Metadata) -> Result<bool> {
    Ok(metadata.uint("olmo2.attention.sliding_window")?.is_some_and(|window| window > 0))
}

/// A block of Olmo 2 and 3.
pub(super) fn described(fields: &Fields<'_>, config: Config) -> Result<Dense> {
    only(fields, "mlp_bias", false, "the family has none")?;
    if let Some(clip) = fields.get("clip_qkv") {
        return Err(fields.error("clip_qkv", clip, "null: the family clips nothing"));
    }
    Ok(Dense {
        head_norms: Some(HeadNorms { of: HeadNormOf::Row, ..qwen3::HEAD_NORMS }),
        ..norms_after(Dense::llama(config))
    })
}

/// With norms after each part, and none before.
pub(super) fn norms_after(dense: Dense) -> Dense {
    Dense {
        input_norm: None,
        attention_norm: Some(("post_attention_layernorm", "post_attention_norm")),
        mlp_norm: None,
        mlp_out_norm: Some(("post_feedforward_layernorm", "post_ffw_norm")),
        ..dense
    }
}
