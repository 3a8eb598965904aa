//! `nemotron_h`: layers of one part each, which is a Mamba 2, attention without positions, an MLP with a squared activation, or experts of
//! such: Nemotron-H, Nemotron Nano 2, Nemotron 3. NVIDIA 2025, "Nemotron-H".

use super::gguf::has_experts;
use super::gguf_mamba::{self, MambaMembers};
use super::gguf_members::Members;
use super::hybrid::{Hybrid, MlpParts, Part};
use super::list::{InMlx, Name};
use super::mamba::{Mamba, MambaFields};
use super::sparse::{ExpertLatent, ExpertNames, MOST, SharedExpert, Sparse, experts};
use super::{Arguments, Family, Gguf, GgufExperts, GgufNorm, glm4_moe};
use crate::backend::ops::{Router, Scores};
use crate::config::{Config, Names, Rotation, Shared};
use crate::error::Result;
use crate::json::{Fields, Value, quote};
use crate::weights::Checkpoint;

pub(super) static FAMILY: Family = Family {
    model_type: "nemotron_h",
    shared: Shared {
        names: Names { eps: "layer_norm_epsilon", act: "mlp_hidden_act", ..Names::LLAMA },
        layers: Some(ABSENT.len()),
        kv_heads: Some(8),
        head_dim: Some(128),
        context: 4096,
        eps: 1e-5,
        act: "relu2",
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        also: Some("nemotron_h_moe"),
        parts: true,
        rotates: false,
        experts: Some(GgufExperts {
            count: "n_routed_experts",
            shared: Some("n_shared_experts"),
            scale: Some("routed_scaling_factor"),
            norm: GgufNorm::Said("norm_topk_prob"),
            optional: true,
            reads: &[SHARED_LENGTH, "nextn_predict_layers"],
            ..GgufExperts::SIGMOID
        }),
        members,
        entries: None,
        ..Gguf::plain("nemotron_h")
    }),
    prefixes: &[],
};

/// The layers where nothing says which.
const ABSENT: [Part; 4] = [Part::Mamba, Part::Experts, Part::Attention, Part::Mlp];

/// The fields that list the layers.
const LIST: [&str; 2] = ["layers_block_type", "layer_types"];

const NORM: Name = ("norm", "attn_norm");

const FIELDS: MambaFields = MambaFields {
    heads: "mamba_num_heads",
    groups: "n_groups",
    state: "ssm_state_size",
    kernel: "conv_kernel",
    inner: "mamba_num_heads * mamba_head_dim",
    channels: "mamba_num_heads * mamba_head_dim + 2 * n_groups * ssm_state_size",
    all: "2 * mamba_num_heads * mamba_head_dim + 2 * n_groups * ssm_state_size + mamba_num_heads",
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    const ACTIVATION: &str = "mamba_hidden_act";
    if let Some(other) = fields.string(ACTIVATION)?.filter(|name| !["silu", "swish"].contains(name)) {
        return Err(fields.error(ACTIVATION, quote(other), "silu"));
    }
    let parts = parts(fields)?;
    config.num_hidden_layers = parts.len();
    config.rotations = vec![Rotation::None; parts.len()];
    config.windows = vec![None; parts.len()];
    if !parts.contains(&Part::Mlp) {
        config.intermediate_size = 0;
    }
    let named =
        |other: &'static str, own: &'static str| if fields.get(other).is_some() { other } else { own };
    let names = MambaFields {
        groups: named("mamba_n_groups", FIELDS.groups),
        kernel: named("mamba_d_conv", FIELDS.kernel),
        ..FIELDS
    };
    let mamba = Mamba::read(fields, "mixer", names, [128, 8, 128, 4], |_| {
        fields.size_or("mamba_head_dim", Some(64), 1 << 16)
    })?;
    Hybrid {
        embed_tokens: ("backbone.embeddings", "token_embd"),
        layers: "backbone.layers",
        norm: ("backbone.norm_f", "output_norm"),
        lm_head: ("lm_head", "output"),
        sparse: sparse(fields, &config, &parts)?,
        parts: parts.into_iter().map(|part| vec![(part, NORM)]).collect(),
        mamba,
        attention: [
            ("mixer.q_proj", "attn_q"),
            ("mixer.k_proj", "attn_k"),
            ("mixer.v_proj", "attn_v"),
            ("mixer.o_proj", "attn_output"),
        ],
        mlp: MlpParts::Plain([("mixer.up_proj", "ffn_up"), ("mixer.down_proj", "ffn_down")]),
        inner: "intermediate_size",
        multipliers: None,
        config,
    }
    .boxed()
}

/// The key of the width of the expert that every token goes to.
const SHARED_LENGTH: &str = "expert_shared_feed_forward_length";
const SHARED: &str = "moe_shared_expert_intermediate_size";
const LATENT: &str = "moe_latent_size";

/// What GGUF files say of it: a layer that has neither heads of keys nor a width is a Mamba 2.
fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    glm4_moe::own_layers(members)?;
    let experts = has_experts(members.metadata, members.arch)?;
    gguf_mamba::kinds(members, LIST[0], |has_keys, is_fed| match (has_keys, is_fed) {
        (_, true) if experts => "moe",
        (_, true) => "mlp",
        (true, false) => "attention",
        (false, false) => "mamba",
    })?;
    let names = MambaMembers {
        heads: FIELDS.heads,
        groups: FIELDS.groups,
        state: FIELDS.state,
        kernel: FIELDS.kernel,
        head_dim: "mamba_head_dim",
    };
    gguf_mamba::widths(members, &names)?;
    if experts {
        members.required(SHARED, SHARED_LENGTH)?;
        members.size(LATENT, LATENT)?;
    }
    Ok(())
}

/// What each layer is: words in a list, or letters of a pattern. Their number is that of the layers, whatever else says so.
fn parts(fields: &Fields<'_>) -> Result<Vec<Part>> {
    const PATTERN: &str = "hybrid_override_pattern";
    let list = if fields.get(LIST[0]).is_some() { LIST[0] } else { LIST[1] };
    let (name, parts) = if let Some(words) = fields.list(list)? {
        let part = |(i, word): (usize, &Value)| match word {
            Value::String(word) if word == "mamba" || word == "linear_attention" => Ok(Part::Mamba),
            Value::String(word) if word == "attention" || word == "full_attention" => Ok(Part::Attention),
            Value::String(word) if word == "mlp" => Ok(Part::Mlp),
            Value::String(word) if word == "moe" => Ok(Part::Experts),
            other => Err(fields.error(format!("{list}[{i}]"), other, "mamba, attention, mlp or moe")),
        };
        (list, words.iter().enumerate().map(part).collect::<Result<Vec<Part>>>()?)
    } else if let Some(letters) = fields.string(PATTERN)? {
        let part = |letter: char| match letter {
            'M' => Ok(Part::Mamba),
            '*' => Ok(Part::Attention),
            '-' => Ok(Part::Mlp),
            'E' => Ok(Part::Experts),
            _ => Err(fields.error(PATTERN, quote(letters), "letters M, *, - and E, one for each layer")),
        };
        (PATTERN, letters.chars().map(part).collect::<Result<Vec<Part>>>()?)
    } else {
        return Ok(ABSENT.to_vec());
    };
    if !(1..=1024).contains(&parts.len()) {
        return Err(fields.error(name, format!("of {} layers", parts.len()), "from 1 to 1024"));
    }
    if !parts.iter().any(|part| matches!(part, Part::Mamba | Part::Attention)) {
        return Err(fields.error(name, "without one", "a layer of Mamba 2, or of attention"));
    }
    Ok(parts)
}

/// The experts, where layers are of them: chosen by a sigmoid and a bias, without gates, and beside one that every token goes to.
fn sparse(fields: &Fields<'_>, config: &Config, parts: &[Part]) -> Result<Option<Sparse>> {
    const NAMES: [&str; 3] = ["n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"];
    let layers: Vec<bool> = parts.iter().map(|part| *part == Part::Experts).collect();
    let many = layers.iter().filter(|&&is| is).count();
    if many == 0 {
        return Ok(None);
    }
    let size = experts(fields, NAMES, [8, 2, 7688])?;
    if size.count.saturating_mul(many) > MOST {
        let expected = format!("at most {}: {MOST} in {many} layers", MOST / many);
        return Err(fields.error(NAMES[0], size.count, expected));
    }
    let softmax = Sparse::softmax(parts.len(), size, config.hidden_act);
    let normalise = fields.flag("norm_topk_prob")?.unwrap_or(true).then_some(1e-20);
    let scale = fields.number("routed_scaling_factor", -1e6, 1e6)?.unwrap_or(1.0) as f32;
    let shared = SharedExpert {
        names: [
            ("", ""),
            ("mixer.shared_experts.up_proj", "ffn_up_shexp"),
            ("mixer.shared_experts.down_proj", "ffn_down_shexp"),
        ],
        inner: fields.size_or(SHARED, Some(7688), 1 << 24)?,
        field: SHARED,
        gate: None,
    };
    let has_shared = fields.size("n_shared_experts", 0, 1 << 10)? != Some(0);
    let latent = fields.size(LATENT, 1, 1 << 20)?.map(|width| ExpertLatent {
        names: [("mixer.fc1_latent_proj", "ffn_latent_down"), ("mixer.fc2_latent_proj", "ffn_latent_up")],
        width,
        field: LATENT,
    });
    let sparse = Sparse {
        layers,
        router: ("mixer.gate", "ffn_gate_inp"),
        bias: Some(("mixer.gate.e_score_correction_bias", "exp_probs_b")),
        routing: Router { scores: Scores::Sigmoid, normalise, scale, ..softmax.routing },
        names: ExpertNames {
            each: "mixer.experts",
            fused: "mixer.experts.up_proj",
            fused_down: "mixer.experts.down_proj",
            stacks: "mixer.switch_mlp",
            ..ExpertNames::PLAIN
        },
        shared: has_shared.then_some(shared),
        gated: false,
        latent,
        in_mlx: InMlx { exact: &["mixer.gate"], ..InMlx::default() },
        ..softmax
    };
    glm4_moe::grouped(fields, sparse, [1, 1], 2).map(Some)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use crate::backend::ops::{RecurrentShape, StateSpec};
    use crate::forward::Architecture;

    fn parse(fields: &Value) -> crate::error::Result<Architecture> {
        let mut config = json!({
            "model_type": "nemotron_h", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        });
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        Architecture::parse(Path::new("config.json"), config.to_string().as_bytes())
    }

    #[test]
    fn layers_are_what_the_pattern_or_the_list_says_and_keep_what_they_need() {
        let shape = RecurrentShape { taps: 3, channels: 8192 + 2048, heads: 128, rows: 128, columns: 64 };
        let mamba = StateSpec::Recurrent(shape);
        let attention = StateSpec::Kv { heads: 2, k_dim: 6, v_dim: 6, window: None };
        let absent = parse(&json!({})).unwrap();
        assert_eq!(absent.states(), [mamba, attention]);
        assert_eq!((absent.config().num_hidden_layers, absent.config().windows.len()), (4, 4));
        let pattern = parse(&json!({"hybrid_override_pattern": "M-M*-", "num_hidden_layers": 7})).unwrap();
        assert_eq!(pattern.states(), [mamba, mamba, attention]);
        assert_eq!((pattern.config().num_hidden_layers, pattern.config().experts), (5, None));
        let words = ["full_attention", "moe", "mlp", "linear_attention"];
        let list = parse(&json!({"layers_block_type": words, "hybrid_override_pattern": "M"})).unwrap();
        assert_eq!(list.states(), [attention, mamba]);
        let weights = list.weights();
        for (module, is_there) in [
            ("backbone.layers.1.mixer.experts.7.up_proj", true),
            ("backbone.layers.1.mixer.experts.7.gate_proj", false),
            ("backbone.layers.1.mixer.fc1_latent_proj", false),
            ("backbone.layers.1.mixer.shared_experts.down_proj", true),
            ("backbone.layers.2.mixer.up_proj", true),
            ("backbone.layers.2.mixer.gate", false),
        ] {
            assert_eq!(weights.get(module).is_some(), is_there, "{module}");
        }
    }

    #[test]
    fn limits_may_be_as_python_writes_them() {
        let config = r#"{"model_type": "nemotron_h", "vocab_size": 8, "hidden_size": 16, "intermediate_size": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
            "hybrid_override_pattern": "M", "time_step_limit": [0.0, Infinity]}"#;
        assert_eq!(
            Architecture::parse(Path::new("config.json"), config.as_bytes()).unwrap().states().len(),
            1
        );
    }

    #[test]
    fn hostile_fields_are_refused() {
        for (fields, expected) in [
            (
                json!({"hybrid_override_pattern": "MX"}),
                "hybrid_override_pattern is \"MX\", expected letters M",
            ),
            (
                json!({"hybrid_override_pattern": ""}),
                "hybrid_override_pattern is of 0 layers, expected from 1",
            ),
            (
                json!({"hybrid_override_pattern": "-E"}),
                "hybrid_override_pattern is without one, expected a layer",
            ),
            (
                json!({"layers_block_type": ["mamba", "conv"]}),
                "layers_block_type[1] is \"conv\", expected mamba, attention, mlp or moe",
            ),
            (json!({"n_groups": 3}), "n_groups is 3, expected a divisor of mamba_num_heads, 128"),
            (json!({"mamba_hidden_act": "gelu"}), "mamba_hidden_act is \"gelu\", expected silu"),
            (json!({"n_group": 3}), "n_group is 3, expected groups of 2 or more that make up 8 experts"),
            (
                json!({"n_routed_experts": 65536, "hybrid_override_pattern": "MEE"}),
                "n_routed_experts is 65536, expected at most 32768",
            ),
            (json!({"moe_latent_size": 0}), "moe_latent_size is 0, expected an integer from 1"),
        ] {
            let error = parse(&fields).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {expected}")), "{error}");
        }
    }
}
