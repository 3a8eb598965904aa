//! `mamba2`: Mamba 2 in every layer, and nothing else: Mamba 2 130M to 2.7B, Mamba-Codestral.
//! Dao & Gu 2024, "Transformers are SSMs".

use super::gguf_mamba::{self, MambaMembers};
use super::hybrid::{Hybrid, MlpParts, Part};
use super::list::Name;
use super::mamba::{Mamba, MambaFields};
use super::{Arguments, Family, Gguf};
use crate::config::{Activation, Config, Names, Rotation, Shared};
use crate::error::Result;
use crate::json::{Fields, quote};

pub(super) static FAMILY: Family = Family {
    model_type: "mamba2",
    shared: Shared {
        // There is no attention, and no other feed-forward part: what they are called stands for nothing.
        names: Names {
            four_times: true,
            heads: "num_attention_heads",
            head_dim: "attention_head_dim",
            eps: "layer_norm_epsilon",
            ..Names::LLAMA
        },
        heads: Some(1),
        head_dim: Some(2),
        // It has no end; longer texts than these were not tested by their authors.
        context: 1 << 18,
        eps: 1e-5,
        bos: Some(0),
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        parts: true,
        rotates: false,
        // There is no attention.
        head_dim: |_, _, _| Ok(2),
        members: |members, _| gguf_mamba::widths(members, &MEMBERS).map(drop),
        entries: None,
        ..Gguf::plain("mamba2")
    }),
    prefixes: &[],
};

const NORM: Name = ("norm", "attn_norm");
/// What no layer has.
const NONE: Name = ("", "");

const FIELDS: MambaFields = MambaFields {
    heads: "num_heads",
    groups: "n_groups",
    state: "state_size",
    kernel: "conv_kernel",
    inner: "num_heads * head_dim",
    channels: "num_heads * head_dim + 2 * n_groups * state_size",
    all: "2 * num_heads * head_dim + 2 * n_groups * state_size + num_heads",
};

const MEMBERS: MambaMembers = MambaMembers {
    heads: FIELDS.heads,
    groups: FIELDS.groups,
    state: FIELDS.state,
    kernel: FIELDS.kernel,
    head_dim: "head_dim",
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    if config.hidden_act != Activation::Silu {
        let got = fields.string("hidden_act")?.unwrap_or_default();
        return Err(fields.error("hidden_act", quote(got), "silu"));
    }
    config.rotations = vec![Rotation::None; config.num_hidden_layers];
    config.intermediate_size = 0;
    let mamba = Mamba::read(fields, "mixer", FIELDS, [128, 8, 128, 4], |_| {
        fields.size_or("head_dim", Some(64), 1 << 16)
    })?;
    Hybrid {
        embed_tokens: ("backbone.embeddings", "token_embd"),
        layers: "backbone.layers",
        norm: ("backbone.norm_f", "output_norm"),
        lm_head: ("lm_head", "output"),
        parts: vec![vec![(Part::Mamba, NORM)]; config.num_hidden_layers],
        mamba,
        attention: [NONE; 4],
        mlp: MlpParts::Plain([NONE; 2]),
        inner: "",
        sparse: None,
        multipliers: None,
        config,
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use crate::backend::ops::{RecurrentShape, StateSpec};
    use crate::forward::Architecture;

    fn parse(fields: &Value) -> crate::error::Result<Architecture> {
        let mut config =
            json!({"model_type": "mamba2", "vocab_size": 32, "hidden_size": 15, "num_hidden_layers": 2});
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        Architecture::parse(Path::new("config.json"), config.to_string().as_bytes())
    }

    #[test]
    fn what_is_absent_means_what_transformers_makes_of_it() {
        let shape = |heads, columns| RecurrentShape {
            taps: 3,
            channels: heads * columns + 2048,
            heads,
            rows: 128,
            columns,
        };
        assert_eq!(parse(&json!({})).unwrap().states(), [StateSpec::Recurrent(shape(128, 64)); 2]);
        let odd = parse(&json!({"head_dim": 5, "num_heads": 24})).unwrap();
        assert_eq!(odd.states(), [StateSpec::Recurrent(shape(24, 5)); 2]);
    }

    #[test]
    fn hostile_fields_are_refused() {
        for (fields, expected) in [
            (json!({"hidden_act": "gelu"}), "hidden_act is \"gelu\", expected silu"),
            (json!({"n_groups": 3}), "n_groups is 3, expected a divisor of num_heads, 128"),
            (json!({"head_dim": 0}), "head_dim is 0, expected an integer from 1"),
            (json!({"conv_kernel": 65}), "conv_kernel is 65, expected from 2 to 64"),
            (json!({"time_step_limit": "all"}), "time_step_limit is \"all\", expected a list"),
        ] {
            let error = parse(&fields).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {expected}")), "{error}");
        }
    }
}
