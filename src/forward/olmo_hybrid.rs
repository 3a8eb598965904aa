//! `olmo_hybrid`: gated delta nets in three of four layers, with norms before their parts, and Olmo 3's attention in the others: Olmo
//! Hybrid. A change of what is held for a key may turn it around (Grazzi et al. 2024, "Unlocking State-Tracking in Linear RNNs Through
//! Negative Eigenvalues").

use super::delta::{DeltaNet, Projections};
use super::dense::Dense;
use super::{Arguments, Family, olmo2, qwen3_5_text};
use crate::config::{Config, Rotation, Shared, rope};
use crate::error::Result;
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "olmo_hybrid",
    shared: Shared { context: 65_536, bos: None, eos: &[100_257], ..Shared::LLAMA },
    arguments,
    gguf: None,
    // As transformers writes them, whichever kind of layer they are of.
    prefixes: &[
        (".attention_layer_norm.", ".input_layernorm."),
        (".feedforward_layer_norm.", ".post_attention_layernorm."),
    ],
};

/// Added to the mean squares of what the rule gives, whatever `rms_norm_eps` says.
const EPS: f32 = 1e-5;

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    let (layers, heads) = (config.num_hidden_layers, config.num_attention_heads);
    // One of them has attention, however few there are.
    let absent = |layer: usize| if layers < 4 { layer + 1 < layers } else { !(layer + 1).is_multiple_of(4) };
    let linear = qwen3_5_text::linear_layers(fields, layers, absent)?;
    let key_dim = |key_heads: usize| (3 * config.hidden_size / (4 * key_heads)).max(1);
    let net = DeltaNet::read_or(fields, linear, [heads; 2], key_dim, |key_dim| 2 * key_dim)?;
    let negative = fields.flag("linear_allow_neg_eigval")?.unwrap_or(true);
    let llama = Dense::llama(config.clone());
    let delta = DeltaNet {
        projections: Projections::Apart("linear_attn"),
        strength: if negative { 2.0 } else { 1.0 },
        eps: Some(fields.number("layer_norm_epsilon", 1e-30, 1.0)?.map_or(EPS, |eps| eps as f32)),
        norms: Some([llama.input_norm, llama.attention_norm, llama.mlp_norm, llama.mlp_out_norm]),
        ..net
    };
    config.mixer_width = delta.width();
    // A base, or a kind, that is there and null says that nothing rotates.
    if rope::parameters(fields)?.is_some_and(|of| of.is_null("rope_theta") || of.is_null("rope_type")) {
        config.rotations = vec![Rotation::None; layers];
    }
    Dense { delta: Some(delta), ..olmo2::described(fields, config)? }.boxed()
}
