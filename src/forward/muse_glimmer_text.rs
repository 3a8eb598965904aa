//! `muse_glimmer_text`, the text of `muse_glimmer`: an embedding behind a norm, norms of heads without weights, a gate behind attention,
//! and windows in the layers that rotate, three to each that does neither. Meta 2026, Muse Glimmer.

use super::dense::{AttentionGate, Dense, NormKind, Pairs, PlainHeadNorms};
use super::gguf_members::{LLAMA_CPP, Members, RMS_EPS};
use super::{Arguments, Family, Gguf, gemma2, qwen3};
use crate::backend::ops::GateKind;
use crate::config::{Config, Names, Rotation, Shared, sliding_window};
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::weights::Checkpoint;

/// Layers to each that has no window and does not rotate, which the last one is.
const EVERY: usize = 4;

pub(super) static FAMILY: Family = Family {
    model_type: "muse_glimmer_text",
    shared: Shared {
        names: Names { act: "hidden_activation", ..Names::LLAMA },
        vocab: Some(202_048),
        layers: Some(52),
        heads: Some(32),
        kv_heads: Some(2),
        head_dim: Some(128),
        context: 131_072,
        eps: 1e-5,
        bos: Some(200_000),
        eos: &[200_001],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        numbers: &[("output_multiplier", "logit_scale")],
        members,
        // Norms of heads have weights there.
        entries: None,
        ..Gguf::plain("muse-glimmer")
    }),
    prefixes: super::TEXT_PART,
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    let number =
        |name, default: f64| -> Result<f32> { Ok(fields.number(name, 1e-6, 1e6)?.unwrap_or(default) as f32) };
    config.logits_multiplier = number("output_multiplier", 0.196_116_135_138_184_04)?;
    config.final_logit_softcapping = match fields.is_null("final_logit_softcapping") {
        true => None,
        false => Some(number("final_logit_softcapping", 20.0)?),
    };
    let queries = number("qk_scale_factor", 3.87)?;
    let out_eps = fields.number("post_norm_eps", 1e-30, 1.0)?.unwrap_or(1e-8) as f32;
    let last = config.num_hidden_layers - 1;
    let is_local = |layer: usize| !(last - layer).is_multiple_of(EVERY);
    config.set_windows(fields, sliding_window(fields, Some(2048))?, is_local)?;
    let is_gguf = fields.flag(LLAMA_CPP)?.unwrap_or(false);
    config.rotations = match is_gguf {
        true => config.windows.iter().map(|window| rotation(window.is_some())).collect(),
        false => rotations(fields, &config, is_local)?,
    };
    // llama.cpp's files have all of these norms as weights, the factor of queries, too.
    let plain = PlainHeadNorms { after_rope: false, queries };
    let (head_norms, plain) = match is_gguf {
        true => (Some(qwen3::HEAD_NORMS), None),
        false => (None, Some(plain)),
    };
    Dense {
        embed_norm: true,
        last_norm: Some(NormKind::Rms { offset: 0.0 }),
        out_eps: Some(out_eps),
        attention_gate: Some(AttentionGate {
            name: ("self_attn.gate_proj", "attn_gate"),
            kind: GateKind::Sigmoid,
            by_head: false,
        }),
        head_norms,
        plain_head_norms: plain,
        pairs: Pairs::Gguf,
        root_scale: false,
        ..gemma2::described(config)
    }
    .boxed()
}

fn rotation(rotates: bool) -> Rotation {
    if rotates { Rotation::Global } else { Rotation::None }
}

/// Which layers rotate: those whose base is not 0. The others have the base of all, in transformers and in mlx-lm.
fn rotations(
    fields: &Fields<'_>,
    config: &Config,
    is_local: impl Fn(usize) -> bool,
) -> Result<Vec<Rotation>> {
    const NAME: &str = "layer_rope_theta";
    let layers = config.num_hidden_layers;
    let Some(bases) = fields.list(NAME)? else {
        return Ok((0..layers).map(is_local).map(rotation).collect());
    };
    if bases.len() != layers {
        let expected = format!("a list of num_hidden_layers, {layers}");
        return Err(fields.error(NAME, format!("a list of {}", bases.len()), expected));
    }
    let theta = config.rope.theta;
    let rotates = |(layer, base): (usize, &Value)| match base {
        Value::UInt(0) => Ok(false),
        Value::UInt(base) if *base as f64 == theta => Ok(true),
        Value::Float(base) if *base == 0.0 || *base == theta => Ok(*base != 0.0),
        other => {
            let expected = format!("0, or {theta}, the base of all layers that rotate");
            Err(fields.error(format!("{NAME}[{layer}]"), other, expected))
        }
    };
    bases.iter().enumerate().map(|base| rotates(base).map(rotation)).collect()
}

fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    const CAP: &str = "final_logit_softcapping";
    let scale = members.key("logit_scale");
    if members.metadata.number(&scale)?.is_none() {
        return Err(members.metadata.refuse(&scale, "a number"));
    }
    if !members.window(false)? {
        return Err(members.metadata.refuse(&members.key("attention.sliding_window"), "1 or more"));
    }
    members.window_pattern(EVERY as u64)?;
    // Layers without a window do not rotate.
    members.number("rope_theta", "rope.freq_base_swa")?;
    // 0 stands for none.
    let key = members.key(CAP);
    let cap = members.metadata.number(&key)?.filter(|&cap| cap != 0.0);
    members.put(CAP, key, cap.map_or(Value::Null, Value::Float));
    members.put(LLAMA_CPP, members.key(RMS_EPS), Value::Bool(true));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use crate::config::{Activation, Config, Rotation};
    use crate::error::Result;
    use crate::forward::Architecture;

    fn parse(fields: Value) -> Result<Architecture> {
        let mut config = json!({
            "model_type": "muse_glimmer_text", "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 6,
        });
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        Architecture::parse(Path::new("config.json"), config.to_string().as_bytes())
    }

    /// Which layers have a window, and which rotate.
    fn layers(config: &Config) -> [Vec<bool>; 2] {
        let rotate = config.rotations.iter().map(|rotation| *rotation != Rotation::None);
        [config.windows.iter().map(Option::is_some).collect(), rotate.collect()]
    }

    #[test]
    fn what_is_absent_means_what_transformers_makes_of_it() {
        let of = parse(json!({})).unwrap();
        let config = of.config();
        assert_eq!((config.vocab_size, config.head_dim, config.hidden_act), (202_048, 128, Activation::Silu));
        assert_eq!((config.num_attention_heads, config.num_key_value_heads), (32, 2));
        assert_eq!((config.max_position_embeddings, config.norm_eps), (131_072, 1e-5));
        assert_eq!((config.bos_token_id, &config.eos_token_ids[..]), (Some(200_000), &[200_001][..]));
        assert_eq!((config.logits_multiplier, config.final_logit_softcapping), (0.196_116_13, Some(20.0)));
        assert!(!config.tie_word_embeddings);
        assert_eq!((config.sliding_window, config.rope.theta), (Some(2048), 10_000.0));
        // The last layer sees everything and does not rotate, nor does every fourth before it.
        let local = vec![true, false, true, true, true, false];
        assert_eq!(layers(config), [local.clone(), local]);
        let shown = format!("{of:?}");
        for part in ["queries: 3.87", "after_rope: false", "out_eps: Some(1e-8)", "embed_norm: true"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(of.weights().get("model.layers.0.self_attn.q_norm").is_none());
        // Whatever the kinds of layers are, it is by their places that they rotate.
        let full = parse(json!({"layer_types": vec!["full_attention"; 6]})).unwrap();
        assert_eq!(layers(full.config()), [vec![false; 6], vec![true, false, true, true, true, false]]);
        let bases = parse(json!({
            "layer_rope_theta": [0, 500_000.0, 500_000, 0.0, 0, 500_000],
            "rope_parameters": {"rope_theta": 500_000.0},
        }));
        assert_eq!(layers(bases.unwrap().config())[1], [false, true, true, false, false, true]);
        let uncapped = parse(json!({"final_logit_softcapping": null})).unwrap();
        assert_eq!(uncapped.config().final_logit_softcapping, None);
    }

    #[test]
    fn the_text_of_a_whole_is_read() {
        let text = json!({
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "qk_scale_factor": 2.5,
        });
        let vision = json!({"num_hidden_layers": 1});
        let whole = json!({"model_type": "muse_glimmer", "text_config": text, "vision_config": vision});
        let mut flat = text.clone();
        flat["model_type"] = "muse_glimmer".into();
        for config in [whole, flat] {
            let of = Architecture::parse(Path::new("config.json"), config.to_string().as_bytes()).unwrap();
            assert_eq!(of.config().model_type, "muse_glimmer_text");
            assert!(format!("{of:?}").contains("queries: 2.5"));
        }
    }

    #[test]
    fn hostile_fields_are_refused() {
        for (fields, expected) in [
            (json!({"qk_scale_factor": 0}), "qk_scale_factor is 0, expected a number from 1e-6 to 1000000.0"),
            (json!({"output_multiplier": "x"}), "output_multiplier is \"x\", expected a number from 1e-6"),
            (
                json!({"final_logit_softcapping": 0.0}),
                "final_logit_softcapping is 0.0, expected a number from 1e-6",
            ),
            (json!({"post_norm_eps": 2}), "post_norm_eps is 2, expected a number from 1e-30 to 1.0"),
            (json!({"layer_rope_theta": 0}), "layer_rope_theta is 0, expected a list"),
            (
                json!({"layer_rope_theta": [0]}),
                "layer_rope_theta is a list of 1, expected a list of num_hidden_layers, 6",
            ),
            (
                json!({"layer_rope_theta": [0, 10_000, 0, 20_000, 0, 0]}),
                "layer_rope_theta[3] is 20000, expected 0, or 10000, the base of all layers that rotate",
            ),
            (
                json!({"layer_rope_theta": [0, 0, true, 0, 0, 0]}),
                "layer_rope_theta[2] is true, expected 0, or 10000, the base",
            ),
            (
                json!({"layer_types": vec!["chunked_attention"; 6]}),
                "layer_types[0] is \"chunked_attention\", expected",
            ),
            (json!({"hidden_activation": "tanh"}), "hidden_activation is \"tanh\", expected silu"),
        ] {
            let error = parse(fields).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {expected}")), "{error}");
        }
    }
}
