//! `qwen3`: Llama with an RMS norm of each query and key head before the rotary embedding.
//! Yang et al. 2025, "Qwen3 Technical Report".

use super::blocks::{Attention, HeadNorm, Mlp, RmsNorm};
use super::{Forward, Loader, llama};
use crate::error::Result;

pub(super) fn load(loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
    let attention = |loader: &Loader<'_>, layer: usize, prefix: &str| {
        let norm = |name: &str| {
            RmsNorm::load(loader, &format!("{prefix}.{name}"), loader.config.head_dim).map(HeadNorm::Rms)
        };
        Ok(Attention::load(loader, layer, prefix)?.with_norms([norm("q_norm")?, norm("k_norm")?]))
    };
    llama::load_with(loader, attention, Mlp::gated)
}
