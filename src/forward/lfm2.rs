//! `lfm2`: short convolutions in most layers, attention in the others: LFM2 and LFM2.5.
//! Liquid AI 2025, "LFM2 Technical Report".

use super::dense::{Dense, HeadNorms, MlpNames};
use super::gguf_members::Members;
use super::short_conv::{self, ShortConv};
use super::{Arguments, Family, Gguf, qwen3};
use crate::config::rope::RopeRules;
use crate::config::{Activation, Config, Names, Shared};
use crate::error::Result;
use crate::json::{Fields, Value, quote};
use crate::weights::Checkpoint;

pub(super) const SHARED: Shared = Shared {
    // The width of the MLP has several fields, and is read below.
    names: Names { four_times: true, eps: "norm_eps", ..Names::LLAMA },
    heads: Some(32),
    kv_heads: Some(8),
    context: 128_000,
    eps: 1e-5,
    tied: true,
    rope: RopeRules { theta: 1_000_000.0, ..RopeRules::WHOLE },
    ..Shared::LLAMA
};

pub(super) static FAMILY: Family =
    Family { model_type: "lfm2", shared: SHARED, arguments, gguf: Some(GGUF), prefixes: &[] };

pub(super) const GGUF: Gguf = Gguf { parts: true, members, entries: None, ..Gguf::plain("lfm2") };

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    let inner = inner(fields)?;
    described(fields, config, inner)?.boxed()
}

/// A decoder whose MLPs are so wide.
pub(super) fn described(fields: &Fields<'_>, mut config: Config, inner: usize) -> Result<Dense> {
    if config.hidden_act != Activation::Silu {
        let got = fields.string("hidden_act")?.unwrap_or_default();
        return Err(fields.error("hidden_act", quote(got), "silu"));
    }
    config.intermediate_size = inner;
    if let Some(tied) = fields.flag("tie_embedding")? {
        config.tie_word_embeddings = tied;
    }
    let conv = ShortConv::read(fields, config.num_hidden_layers)?;
    config.mixer_width = ShortConv::width(&config);
    let names = [("self_attn.q_layernorm", "attn_q_norm"), ("self_attn.k_layernorm", "attn_k_norm")];
    Ok(Dense {
        norm: ("model.embedding_norm", "token_embd_norm"),
        input_norm: Some(("operator_norm", "attn_norm")),
        mlp_norm: Some(("ffn_norm", "ffn_norm")),
        output: ("self_attn.out_proj", "attn_output"),
        head_norms: Some(HeadNorms { names, ..qwen3::HEAD_NORMS }),
        conv: Some(conv),
        mlp: MlpNames::Gated([
            ("feed_forward.w1", "ffn_gate"),
            ("feed_forward.w3", "ffn_up"),
            ("feed_forward.w2", "ffn_down"),
        ]),
        ..Dense::llama(config)
    })
}

/// What files say of it. The width of the MLP is what it is.
fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    const WIDTH: &str = "feed_forward_length";
    let projected = members.key("embedding_length_out");
    if members.metadata.has(&projected) {
        return Err(members
            .metadata
            .refuse(&projected, "none: a projection behind the last norm is not applied"));
    }
    members.required("intermediate_size", WIDTH)?;
    members.put("block_auto_adjust_ff_dim", members.key(WIDTH), Value::Bool(false));
    short_conv::members(members)
}

/// The width of the MLP, which is two thirds of what the fields say, rounded up, unless they say that it is not.
fn inner(fields: &Fields<'_>) -> Result<usize> {
    const MULTIPLIER: &str = "block_ffn_dim_multiplier";
    let all = match fields.size("block_ff_dim", 1, 1 << 24)? {
        Some(size) => size,
        None => fields.size_or("intermediate_size", Some(12_288), 1 << 24)?,
    };
    if !fields.flag("block_auto_adjust_ff_dim")?.unwrap_or(true) {
        return Ok(all);
    }
    let by = fields.number(MULTIPLIER, 0.0, 1e3)?.unwrap_or(1.0);
    let multiple = fields.size_or("block_multiple_of", Some(256), 1 << 20)?;
    let least = (by * (2 * all / 3) as f64) as usize;
    match least.next_multiple_of(multiple) {
        0 => Err(fields.error(MULTIPLIER, by, "a number that leaves the MLP a width")),
        size if size > 1 << 24 => Err(fields.error(MULTIPLIER, by, "an MLP of at most 16777216")),
        size => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use crate::backend::ops::{RecurrentShape, StateSpec};
    use crate::error::Result;
    use crate::forward::Architecture;

    fn parse(fields: &Value) -> Result<Architecture> {
        let mut config =
            json!({"model_type": "lfm2", "vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 3});
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        Architecture::parse(Path::new("config.json"), config.to_string().as_bytes())
    }

    #[test]
    fn what_is_absent_means_what_transformers_makes_of_it() {
        let absent = parse(&json!({})).unwrap();
        let kv = StateSpec::Kv { heads: 8, k_dim: 2, v_dim: 2, window: None };
        assert_eq!(absent.states(), [kv; 3]);
        let config = absent.config();
        assert!(config.tie_word_embeddings);
        assert_eq!((config.intermediate_size, config.rope.theta), (8192, 1e6));
        let convs = parse(&json!({"full_attn_idxs": [1]})).unwrap().states();
        let shape = RecurrentShape { taps: 2, channels: 64, heads: 0, rows: 0, columns: 0 };
        let conv = StateSpec::Recurrent(shape);
        assert_eq!(convs, [conv, kv, conv]);
    }

    #[test]
    fn widths_are_what_transformers_makes_of_their_fields() {
        for (fields, wanted) in [
            (json!({"intermediate_size": 100}), 256),
            (json!({"intermediate_size": 100, "block_ff_dim": 6656}), 4608),
            (json!({"block_ff_dim": 30, "block_ffn_dim_multiplier": 1.1, "block_multiple_of": 8}), 24),
            (json!({"block_ff_dim": 30, "block_auto_adjust_ff_dim": false}), 30),
        ] {
            assert_eq!(parse(&fields).unwrap().config().intermediate_size, wanted, "{fields}");
        }
    }

    #[test]
    fn hostile_fields_are_refused() {
        for (fields, expected) in [
            (
                json!({"layer_types": ["conv"]}),
                "layer_types is a list of 1, expected a list of num_hidden_layers, 3",
            ),
            (
                json!({"layer_types": ["conv", "mamba", "conv"]}),
                "layer_types[1] is \"mamba\", expected conv or full_attention",
            ),
            (json!({"conv_L_cache": 1}), "conv_L_cache is 1, expected from 2 to 64"),
            (json!({"conv_L_cache": 65}), "conv_L_cache is 65, expected from 2 to 64"),
            (json!({"conv_bias": 1}), "conv_bias is 1, expected true or false"),
            (json!({"hidden_act": "gelu"}), "hidden_act is \"gelu\", expected silu"),
            (
                json!({"block_ffn_dim_multiplier": 0.0}),
                "block_ffn_dim_multiplier is 0, expected a number that leaves",
            ),
            (
                json!({"block_ffn_dim_multiplier": -1}),
                "block_ffn_dim_multiplier is -1, expected a number from 0",
            ),
            (
                json!({"block_ff_dim": 16_777_216, "block_ffn_dim_multiplier": 900}),
                "block_ffn_dim_multiplier is 900, expected an MLP of at most 16777216",
            ),
            (json!({"block_multiple_of": 0}), "block_multiple_of is 0, expected an integer from 1"),
        ] {
            let error = parse(&fields).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {expected}")), "{error}");
        }
    }
}
