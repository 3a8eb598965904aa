//! `falcon_h1`: a Mamba 2 and attention side by side in each layer, behind one norm, then an MLP; and multipliers of most of what is inside
//! (maximal update parametrization): Falcon-H1. Falcon LLM Team 2025, "Falcon-H1".

use super::gguf_mamba::{self, MambaMembers};
use super::gguf_members::Members;
use super::hybrid::{Hybrid, MlpParts, Multipliers, Part};
use super::list::Name;
use super::mamba::{Mamba, MambaFields, MambaNorm, MambaScales};
use super::{Arguments, Family, Gguf};
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::weights::Checkpoint;

pub(super) static FAMILY: Family = Family {
    model_type: "falcon_h1",
    shared: Shared { kv_heads: Some(8), context: 8192, eps: 1e-5, ..Shared::LLAMA },
    arguments,
    // Conversion multiplies all weights.
    gguf: Some(Gguf { members, entries: None, ..Gguf::plain("falcon-h1") }),
    prefixes: &[],
};

const MIXER_NORM: Name = ("input_layernorm", "attn_norm");
const MLP_NORM: Name = ("pre_ff_layernorm", "ffn_norm");

const FIELDS: MambaFields = MambaFields {
    heads: "mamba_n_heads",
    groups: "mamba_n_groups",
    state: "mamba_d_state",
    kernel: "mamba_d_conv",
    inner: "mamba_d_ssm",
    channels: "mamba_d_ssm + 2 * mamba_n_groups * mamba_d_state",
    all: "2 * mamba_d_ssm + 2 * mamba_n_groups * mamba_d_state + mamba_n_heads",
};

/// Bounds of multipliers: what is divided by one again stays finite.
const BOUNDS: (f64, f64) = (1e-6, 1e6);

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    let number = |name: &str| {
        Ok::<_, crate::error::Error>(fields.number(name, BOUNDS.0, BOUNDS.1)?.unwrap_or(1.0) as f32)
    };
    config.embedding_multiplier = number("embedding_multiplier")?;
    config.logits_multiplier = number("lm_head_multiplier")?;
    // A factor of keys is one of scores.
    config.attention_multiplier = Some(number("key_multiplier")? * (config.head_dim as f32).powf(-0.5));
    let multipliers = Multipliers {
        mamba: MambaScales {
            input: number("ssm_in_multiplier")?,
            parts: numbers(fields, "ssm_multipliers")?,
            output: number("ssm_out_multiplier")?,
        },
        attention: [number("attention_in_multiplier")?, number("attention_out_multiplier")?],
        mlp: numbers(fields, "mlp_multipliers")?,
    };
    let mamba = Mamba::read(fields, "mamba", FIELDS, [128, 1, 256, 4], |heads| {
        head_dim(fields, config.hidden_size, heads)
    })?;
    let mamba = Mamba {
        norm: match (fields.flag("mamba_rms_norm")?, fields.flag("mamba_norm_before_gate")?) {
            (None | Some(false), _) => MambaNorm::None,
            (Some(true), None | Some(true)) => MambaNorm::First,
            (Some(true), Some(false)) => MambaNorm::Last,
        },
        ..mamba
    };
    Hybrid {
        embed_tokens: ("model.embed_tokens", "token_embd"),
        layers: "model.layers",
        norm: ("model.final_layernorm", "output_norm"),
        lm_head: ("lm_head", "output"),
        parts: vec![
            vec![(Part::MambaAttention, MIXER_NORM), (Part::Mlp, MLP_NORM)];
            config.num_hidden_layers
        ],
        mamba,
        attention: [
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
        ],
        mlp: MlpParts::Gated {
            names: [
                ("feed_forward.gate_proj", "ffn_gate"),
                ("feed_forward.up_proj", "ffn_up"),
                ("feed_forward.down_proj", "ffn_down"),
            ],
            fused: None,
        },
        inner: "intermediate_size",
        sparse: None,
        multipliers: Some(multipliers),
        config,
    }
    .boxed()
}

/// What GGUF files say of it. Whether there is a norm, the tensors do; it is the last.
fn members(members: &mut Members<'_>, checkpoint: &Checkpoint) -> Result<()> {
    const NORM: &str = "blk.0.ssm_norm.weight";
    let names = MambaMembers {
        heads: FIELDS.heads,
        groups: FIELDS.groups,
        state: FIELDS.state,
        kernel: FIELDS.kernel,
        head_dim: "mamba_d_head",
    };
    let inner = gguf_mamba::widths(members, &names)?;
    members.put(FIELDS.inner, members.key("ssm.inner_size"), Value::UInt(inner));
    members.put("mamba_rms_norm", NORM, Value::Bool(checkpoint.find(NORM).is_some()));
    members.put("mamba_norm_before_gate", NORM, Value::Bool(false));
    Ok(())
}

/// The multipliers in a list of them, ones where there is none.
fn numbers<const N: usize>(fields: &Fields<'_>, name: &str) -> Result<[f32; N]> {
    let Some(found) = fields.numbers(name, BOUNDS.0, BOUNDS.1)? else { return Ok([1.0; N]) };
    let many = found.len();
    <[f32; N]>::try_from(found)
        .map_err(|_| fields.error(name, format!("a list of {many}"), format!("a list of {N}")))
}

/// Elements of each of `heads` heads, which together are `mamba_d_ssm`, or `mamba_expand` times as wide as the model where that is null.
fn head_dim(fields: &Fields<'_>, hidden: usize, heads: usize) -> Result<usize> {
    const NAME: &str = "mamba_d_head";
    let inner = if fields.is_null(FIELDS.inner) {
        hidden * fields.size_or("mamba_expand", Some(2), 1 << 10)?
    } else {
        fields.size_or(FIELDS.inner, Some(1024), 1 << 24)?
    };
    if !inner.is_multiple_of(heads) {
        let expected = format!("a divisor of mamba_d_ssm, {inner}");
        return Err(fields.error(FIELDS.heads, heads, expected));
    }
    let dim = inner / heads;
    match fields.get(NAME) {
        None => Ok(dim),
        Some(Value::String(word)) if word == "auto" => Ok(dim),
        Some(_) => match fields.size(NAME, 1, 1 << 24)? {
            Some(got) if got != dim => {
                Err(fields.error(NAME, got, format!("{dim}, mamba_d_ssm / mamba_n_heads")))
            }
            _ => Ok(dim),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use crate::backend::ops::{RecurrentShape, StateSpec};
    use crate::forward::Architecture;

    fn parse(fields: &Value) -> crate::error::Result<Architecture> {
        let mut config = json!({
            "model_type": "falcon_h1", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 8,
        });
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        Architecture::parse(Path::new("config.json"), config.to_string().as_bytes())
    }

    #[test]
    fn each_layer_keeps_a_matrix_and_keys() {
        // 128 heads of 8, one group of 256 rows, four taps; eight heads of keys.
        let shape = RecurrentShape { taps: 3, channels: 1024 + 512, heads: 128, rows: 256, columns: 8 };
        let kv = |heads, dim| StateSpec::Kv { heads, k_dim: dim, v_dim: dim, window: None };
        let absent = parse(&json!({})).unwrap();
        assert_eq!(absent.states(), [StateSpec::Recurrent(shape), kv(8, 2)].repeat(2));
        let config = absent.config();
        assert_eq!((config.norm_eps, config.max_position_embeddings), (1e-5, 8192));
        assert_eq!((config.embedding_multiplier, config.logits_multiplier), (1.0, 1.0));
        assert_eq!(config.attention_scale(0), 0.5_f32.sqrt());
        assert!(!config.tie_word_embeddings);

        let wide = parse(&json!({"mamba_d_ssm": null, "mamba_expand": 3, "mamba_n_heads": 4, "head_dim": 6}))
            .unwrap();
        let shape = RecurrentShape { channels: 48 + 512, heads: 4, columns: 12, ..shape };
        assert_eq!(wide.states(), [StateSpec::Recurrent(shape), kv(8, 6)].repeat(2));
        let scaled = parse(&json!({"key_multiplier": 0.5})).unwrap();
        assert_eq!(scaled.config().attention_scale(1), 0.5 * 0.5_f32.sqrt());
    }

    #[test]
    fn a_norm_is_there_where_the_configuration_says_so() {
        for (fields, is_there) in [
            (json!({}), false),
            (json!({"mamba_rms_norm": true}), true),
            (json!({"mamba_rms_norm": false}), false),
        ] {
            let weights = parse(&fields).unwrap().weights();
            assert_eq!(weights.get("model.layers.1.mamba.norm").is_some(), is_there);
        }
    }

    #[test]
    fn hostile_fields_are_refused() {
        for (fields, expected) in [
            (json!({"mamba_n_heads": 100}), "mamba_n_heads is 100, expected a divisor of mamba_d_ssm, 1024"),
            (json!({"mamba_d_head": 16}), "mamba_d_head is 16, expected 8, mamba_d_ssm / mamba_n_heads"),
            (json!({"mamba_d_head": "half"}), "mamba_d_head is \"half\", expected an integer"),
            (json!({"mamba_d_ssm": 0}), "mamba_d_ssm is 0, expected an integer from 1"),
            (json!({"mamba_n_groups": 3}), "mamba_n_groups is 3, expected a divisor of mamba_n_heads, 128"),
            (json!({"mamba_d_conv": 1}), "mamba_d_conv is 1, expected from 2 to 64"),
            (json!({"mamba_rms_norm": 1}), "mamba_rms_norm is 1, expected true or false"),
            (json!({"ssm_multipliers": [1.0, 1.0]}), "ssm_multipliers is a list of 2, expected a list of 5"),
            (
                json!({"mlp_multipliers": [0.0, 1.0]}),
                "mlp_multipliers[0] is 0.0, expected a number from 1e-6 to 1000000.0",
            ),
            (json!({"mlp_multipliers": 2}), "mlp_multipliers is 2, expected a list"),
            (json!({"key_multiplier": -1}), "key_multiplier is -1, expected a number from 1e-6 to 1000000.0"),
            (json!({"ssm_in_multiplier": "1"}), "ssm_in_multiplier is \"1\", expected a number"),
            (json!({"time_step_limit": [2, 1]}), "time_step_limit is a list of 2, expected two numbers"),
        ] {
            let error = parse(&fields).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {expected}")), "{error}");
        }
    }
}
