//! `seed_oss`: Llama with biases on the query, key and value projections, which the checkpoint holds.
//! ByteDance Seed 2025, Seed-OSS.

use super::dense::Dense;
use super::{Family, Gguf};
use crate::config::Shared;

pub(super) static FAMILY: Family = Family {
    model_type: "seed_oss",
    shared: Shared {
        kv_heads: Some(8),
        head_dim: Some(128),
        context: 524_288,
        bos: Some(0),
        ..Shared::LLAMA
    },
    arguments: |_, config| {
        Dense { mlp_norm: Some(("post_attention_layernorm", "post_attention_norm")), ..Dense::llama(config) }
            .boxed()
    },
    gguf: Some(Gguf::plain("seed_oss")),
    prefixes: &[],
};
