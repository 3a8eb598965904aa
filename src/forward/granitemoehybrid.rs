//! `granitemoehybrid`: Granite whose layers are Mamba 2 or attention, each with an MLP, which stands beside experts where there are any:
//! Granite 4.0. IBM Granite Team 2025, "Granite 4.0".

use super::gguf::has_experts;
use super::gguf_mamba::{self, MambaMembers};
use super::gguf_members::Members;
use super::hybrid::{Hybrid, MlpParts, Part};
use super::list::{InMlx, Name};
use super::mamba::{Mamba, MambaFields};
use super::sparse::{SharedExpert, Sparse, experts};
use super::{Arguments, Family, Gguf, GgufExperts, granite, granitemoe};
use crate::backend::ops::{Router, Scores};
use crate::config::{Config, Rotation, Shared};
use crate::error::Result;
use crate::json::{Fields, Value, quote};
use crate::weights::Checkpoint;

pub(super) static FAMILY: Family = Family {
    model_type: "granitemoehybrid",
    shared: Shared::LLAMA,
    arguments,
    gguf: Some(Gguf {
        parts: true,
        rotates: false,
        experts: Some(GgufExperts {
            count: "num_local_experts",
            width: None,
            optional: true,
            reads: &[SHARED_LENGTH],
            ..GgufExperts::SOFTMAX
        }),
        members,
        entries: None,
        ..Gguf::plain("granitehybrid")
    }),
    prefixes: &[],
};

const MIXER_NORM: Name = ("input_layernorm", "attn_norm");
const MLP_NORM: Name = ("post_attention_layernorm", "ffn_norm");
const INNER: &str = "shared_intermediate_size";

const FIELDS: MambaFields = MambaFields {
    heads: "mamba_n_heads",
    groups: "mamba_n_groups",
    state: "mamba_d_state",
    kernel: "mamba_d_conv",
    inner: "mamba_n_heads * mamba_d_head",
    channels: "mamba_n_heads * mamba_d_head + 2 * mamba_n_groups * mamba_d_state",
    all: "2 * mamba_n_heads * mamba_d_head + 2 * mamba_n_groups * mamba_d_state + mamba_n_heads",
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    const POSITIONS: &str = "position_embedding_type";
    granite::set_multipliers(fields, &mut config)?;
    match fields.string(POSITIONS)? {
        Some("rope") => {}
        None | Some("nope") => config.rotations = vec![Rotation::None; config.num_hidden_layers],
        Some(other) => return Err(fields.error(POSITIONS, quote(other), "rope, nope or null")),
    }
    let inner = fields.size_or(INNER, Some(1024), 1 << 24)?;
    let sparse = sparse(fields, &config, inner)?;
    config.intermediate_size = inner;
    let mamba =
        Mamba::read(fields, "mamba", FIELDS, [128, 1, 256, 4], |heads| head_dim(fields, &config, heads))?;
    let fed = if sparse.is_some() { Part::Experts } else { Part::Mlp };
    let layer = |mixer: Part| vec![(mixer, MIXER_NORM), (fed, MLP_NORM)];
    Hybrid {
        embed_tokens: ("model.embed_tokens", "token_embd"),
        layers: "model.layers",
        norm: ("model.norm", "output_norm"),
        lm_head: ("lm_head", "output"),
        parts: mixers(fields, config.num_hidden_layers)?.into_iter().map(layer).collect(),
        mamba,
        attention: [
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
        ],
        mlp: MlpParts::Gated {
            names: [("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down")],
            fused: Some(["shared_mlp.input_linear", "shared_mlp.output_linear"]),
        },
        inner: INNER,
        sparse,
        multipliers: None,
        config,
    }
    .boxed()
}

/// The key of the width of the MLP beside experts.
const SHARED_LENGTH: &str = "expert_shared_feed_forward_length";

/// What GGUF files say of it: a layer without heads of keys is a Mamba 2.
fn members(members: &mut Members<'_>, checkpoint: &Checkpoint) -> Result<()> {
    let metadata = members.metadata;
    granite::members(members, checkpoint)?;
    let key = members.key("rope.scaling.finetuned");
    // Rows of heads that rotate lie in another order there.
    if metadata.flag(&key)? != Some(false) {
        return Err(metadata.refuse(&key, "false: heads of this architecture do not rotate"));
    }
    members.put("position_embedding_type", key, Value::String("nope".to_owned()));
    gguf_mamba::kinds(members, "layer_types", |has_keys, _| if has_keys { "attention" } else { "mamba" })?;
    let names = MambaMembers {
        heads: FIELDS.heads,
        groups: FIELDS.groups,
        state: FIELDS.state,
        kernel: FIELDS.kernel,
        head_dim: "mamba_d_head",
    };
    let (inner, twice) = (gguf_mamba::widths(members, &names)?, 2 * members.uint("hidden_size"));
    if inner != twice {
        let expected = format!("{twice}, twice the width of the model");
        return Err(metadata.refuse(&members.key("ssm.inner_size"), expected));
    }
    if has_experts(metadata, members.arch)? {
        members.required(INNER, SHARED_LENGTH)?;
    } else {
        members.put("num_local_experts", members.key("expert_count"), Value::UInt(0));
        members.required(INNER, "feed_forward_length")?;
    }
    Ok(())
}

/// What each layer has in the place of attention.
fn mixers(fields: &Fields<'_>, layers: usize) -> Result<Vec<Part>> {
    let name = if fields.get("layer_types").is_none() { "layers_block_type" } else { "layer_types" };
    let Some(types) = fields.list(name)? else { return Ok(vec![Part::Mamba; layers]) };
    if types.len() != layers {
        let expected = format!("a list of num_hidden_layers, {layers}");
        return Err(fields.error(name, format!("a list of {}", types.len()), expected));
    }
    let part = |(i, kind): (usize, &Value)| match kind {
        Value::String(kind) if kind == "mamba" || kind == "linear_attention" => Ok(Part::Mamba),
        Value::String(kind) if kind == "attention" || kind == "full_attention" => Ok(Part::Attention),
        other => Err(fields.error(format!("{name}[{i}]"), other, "mamba or attention")),
    };
    types.iter().enumerate().map(part).collect()
}

/// Elements of each of `heads` heads, which together are `mamba_expand` times as wide as the model.
fn head_dim(fields: &Fields<'_>, config: &Config, heads: usize) -> Result<usize> {
    const NAME: &str = "mamba_d_head";
    let inner = config.hidden_size * fields.size_or("mamba_expand", Some(2), 1 << 10)?;
    if !inner.is_multiple_of(heads) {
        let expected = format!("a divisor of mamba_expand * hidden_size, {inner}");
        return Err(fields.error(FIELDS.heads, heads, expected));
    }
    let dim = inner / heads;
    match fields.get(NAME) {
        None => Ok(dim),
        Some(Value::String(word)) if word == "auto" => Ok(dim),
        Some(_) => match fields.size(NAME, 1, 1 << 24)? {
            Some(got) if got != dim => {
                Err(fields.error(NAME, got, format!("{dim}, mamba_expand * hidden_size / mamba_n_heads")))
            }
            _ => Ok(dim),
        },
    }
}

/// Experts, where there are any, beside the MLP that every token goes to.
fn sparse(fields: &Fields<'_>, config: &Config, inner: usize) -> Result<Option<Sparse>> {
    const NAMES: [&str; 3] = ["num_local_experts", "num_experts_per_tok", "intermediate_size"];
    if fields.is_null(NAMES[0]) || fields.size(NAMES[0], 0, 1 << 16)? == Some(0) {
        return Ok(None);
    }
    let size = experts(fields, NAMES, [8, 2, config.intermediate_size])?;
    let softmax = Sparse::softmax(config.num_hidden_layers, size, config.hidden_act);
    Ok(Some(Sparse {
        router: ("block_sparse_moe.router.layer", "ffn_gate_inp"),
        names: granitemoe::NAMES,
        in_mlx: InMlx { eight_bits: &["block_sparse_moe.router.layer"], ..InMlx::default() },
        routing: Router { scores: Scores::SoftmaxOfChosen, ..softmax.routing },
        shared: Some(SharedExpert {
            names: [
                ("shared_mlp.gate_proj", "ffn_gate_shexp"),
                ("shared_mlp.up_proj", "ffn_up_shexp"),
                ("shared_mlp.output_linear", "ffn_down_shexp"),
            ],
            inner,
            field: INNER,
            gate: None,
        }),
        shared_fused: Some("shared_mlp.input_linear"),
        ..softmax
    }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use crate::backend::ops::{RecurrentShape, StateSpec};
    use crate::config::Rotation;
    use crate::forward::Architecture;

    fn parse(fields: &Value) -> crate::error::Result<Architecture> {
        let mut config = json!({
            "model_type": "granitemoehybrid", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "mamba_n_heads": 4,
        });
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        Architecture::parse(Path::new("config.json"), config.to_string().as_bytes())
    }

    #[test]
    fn what_is_absent_means_what_transformers_makes_of_it() {
        let absent = parse(&json!({})).unwrap();
        // Heads of 8, one group of 256 rows, four taps.
        let shape = RecurrentShape { taps: 3, channels: 32 + 512, heads: 4, rows: 256, columns: 8 };
        assert_eq!(absent.states(), [StateSpec::Recurrent(shape); 3]);
        assert_eq!(absent.config().rotations, [Rotation::None; 3]);
        assert_eq!(
            absent.config().experts.map(|of| (of.count, of.used, of.inner, of.shared)),
            Some((8, 2, 24, 1024))
        );
        let none = parse(&json!({"num_local_experts": 0, "position_embedding_type": "rope"})).unwrap();
        assert_eq!((none.config().experts, none.config().intermediate_size), (None, 1024));
        assert_eq!(none.config().rotations, [Rotation::Global; 3]);
    }

    #[test]
    fn layers_are_what_their_types_say() {
        let kv = StateSpec::Kv { heads: 2, k_dim: 4, v_dim: 4, window: None };
        for (name, types) in [
            ("layer_types", ["mamba", "attention", "mamba"]),
            ("layers_block_type", ["linear_attention", "full_attention", "mamba"]),
        ] {
            let states = parse(&json!({ name: types })).unwrap().states();
            assert!(matches!(states[..], [StateSpec::Recurrent(_), of, StateSpec::Recurrent(_)] if of == kv));
        }
    }

    #[test]
    fn hostile_fields_are_refused() {
        for (fields, expected) in [
            (
                json!({"layer_types": ["mamba"]}),
                "layer_types is a list of 1, expected a list of num_hidden_layers, 3",
            ),
            (
                json!({"layer_types": ["mamba", "conv", "mamba"]}),
                "layer_types[1] is \"conv\", expected mamba or attention",
            ),
            (
                json!({"mamba_n_heads": 5}),
                "mamba_n_heads is 5, expected a divisor of mamba_expand * hidden_size, 32",
            ),
            (json!({"mamba_d_head": 16}), "mamba_d_head is 16, expected 8, "),
            (json!({"mamba_d_head": "half"}), "mamba_d_head is \"half\", expected an integer"),
            (json!({"mamba_n_groups": 3}), "mamba_n_groups is 3, expected a divisor of mamba_n_heads, 4"),
            (json!({"mamba_d_conv": 1}), "mamba_d_conv is 1, expected from 2 to 64"),
            (json!({"mamba_d_state": 0}), "mamba_d_state is 0, expected an integer"),
            (json!({"time_step_limit": [0.1]}), "time_step_limit is a list of 1, expected two numbers"),
            (json!({"time_step_limit": [1, 0.5]}), "time_step_limit is a list of 2, expected two numbers"),
            (
                json!({"time_step_limit": [0.0, "inf"]}),
                "time_step_limit is a list of 2, expected two numbers",
            ),
            (
                json!({"position_embedding_type": "alibi"}),
                "position_embedding_type is \"alibi\", expected rope",
            ),
            (json!({"num_experts_per_tok": 9}), "num_experts_per_tok is 9, expected at most 8"),
        ] {
            let error = parse(&fields).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {expected}")), "{error}");
        }
        let infinite = json!({"time_step_limit": [0.001, {"__float__": "Infinity"}]});
        parse(&infinite).unwrap();
    }
}
