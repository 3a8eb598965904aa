//! `phi3`: Llama with fused projections, split here by rows without a copy.
//! Abdin et al. 2024, "Phi-3 Technical Report".

use super::blocks::{Attention, Linear, Mlp};
use super::{Forward, Loader, llama};
use crate::error::Result;

pub(super) fn load(loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
    llama::load_with(loader, attention, mlp)
}

/// `qkv_proj` is `[(H + 2 KH) * head_dim, D]`: the query rows, then the key rows, then the value rows.
fn attention(loader: &Loader<'_>, layer: usize, prefix: &str) -> Result<Attention> {
    let config = loader.config;
    let width = config.num_attention_heads * config.head_dim;
    let kv_width = config.num_key_value_heads * config.head_dim;
    let parts = [("q", width), ("k", kv_width), ("v", kv_width)];
    let qkv = Linear::split(loader, &format!("{prefix}.qkv_proj"), parts, config.hidden_size)?;
    let output = Linear::load(loader, &format!("{prefix}.o_proj"), config.hidden_size, width)?;
    Ok(Attention::of(loader, layer, qkv, output))
}

/// `gate_up_proj` is `[2 I, D]`: the gate's rows, then the rows of what it gates.
fn mlp(loader: &Loader<'_>, prefix: &str) -> Result<Mlp> {
    let (hidden, inner) = (loader.config.hidden_size, loader.config.intermediate_size);
    let parts = [("gate", inner), ("up", inner)];
    let [gate, up] = Linear::split(loader, &format!("{prefix}.gate_up_proj"), parts, hidden)?;
    let down = Linear::load(loader, &format!("{prefix}.down_proj"), hidden, inner)?;
    Ok(Mlp::Gated { gate, up, down, activation: loader.config.hidden_act })
}
