//! `qwen3`: Llama with an RMS norm of each query and key head before the rotary embedding.
//! Yang et al. 2025, "Qwen3 Technical Report".

use super::dense::{Dense, HeadNormOf, HeadNorms, NormKind};
use super::{Arguments, Family, Gguf, qwen2};
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3",
    shared: Shared { head_dim: Some(128), ..qwen2::SHARED },
    arguments,
    gguf: Some(Gguf::plain("qwen3")),
    prefixes: super::BARE,
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    qwen2::set_windows(fields, &mut config, 28)?;
    described(config).boxed()
}

/// Llama with norms of heads.
pub(super) fn described(config: Config) -> Dense {
    Dense { head_norms: Some(HEAD_NORMS), ..Dense::llama(config) }
}

/// A norm for each head, before the rotary embedding.
pub(super) const HEAD_NORMS: HeadNorms = HeadNorms {
    names: [("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm")],
    kind: NormKind::Rms { offset: 0.0 },
    of: HeadNormOf::Head,
    after_rope: false,
};
