mod delta;
mod encoders;
mod gemma3n;
mod quantization;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::config::{Activation, GenerationConfig, Rope, RopeScaling};
use crate::quant::{MlxFormat, MlxMode, Published, Publisher};
use crate::tensor::DType;

fn tiny(family: &str) -> Value {
    json!({
        "model_type": family, "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    })
}

fn with(mut config: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

fn parse(config: &Value) -> Result<Config> {
    parse_bytes(config.to_string().as_bytes())
}

fn parse_bytes(bytes: &[u8]) -> Result<Config> {
    Architecture::parse(Path::new("config.json"), bytes).map(|architecture| architecture.config().clone())
}

fn resolve(family: &str, fields: Value) -> Config {
    parse(&with(tiny(family), fields)).unwrap()
}

#[track_caller]
fn refused_in(family: &str, fields: Value, expected: &str) {
    let error = parse(&with(tiny(family), fields)).unwrap_err().to_string();
    assert!(error.starts_with(&format!("config.json: {expected}")), "{error}");
}

#[track_caller]
fn refused(fields: Value, expected: &str) {
    refused_in("llama", fields, expected);
}

#[test]
fn hostile_dimensions_are_refused() {
    let mut config = tiny("llama");
    config.as_object_mut().unwrap().remove("hidden_size");
    let error = parse(&config).unwrap_err().to_string();
    assert_eq!(error, "config.json: hidden_size is missing, expected an integer from 1 to 1048576");
    refused(json!({"vocab_size": "32"}), "vocab_size is \"32\", expected an integer from 1 to 1073741824");
    refused(json!({"vocab_size": 32.0}), "vocab_size is 32.0, expected an integer");
    refused(json!({"vocab_size": -1}), "vocab_size is -1, expected an integer");
    refused(json!({"vocab_size": true}), "vocab_size is true, expected an integer");
    refused(
        json!({"num_attention_heads": 0}),
        "num_attention_heads is 0, expected an integer from 1 to 65536",
    );
    refused(json!({"num_key_value_heads": 0}), "num_key_value_heads is 0, expected an integer from 1 to 4");
    refused(json!({"num_key_value_heads": 8}), "num_key_value_heads is 8, expected an integer from 1 to 4");
    refused(
        json!({"num_key_value_heads": 3}),
        "num_key_value_heads is 3, expected a divisor of num_attention_heads, 4",
    );
    refused(
        json!({"head_dim": 5}),
        "head_dim is 5, of which 5 elements are rotated, expected an even number",
    );
    refused(json!({"head_dim": 0}), "head_dim is 0, expected an integer from 1 to 65536");
    refused(
        json!({"head_dim": null, "hidden_size": 18}),
        "num_attention_heads is 4, expected a divisor of hidden_size, 18",
    );
    refused(json!({"num_hidden_layers": 0}), "num_hidden_layers is 0, expected an integer from 1 to 1024");
    refused(json!({"num_hidden_layers": 1025}), "num_hidden_layers is 1025");
    refused(
        json!({"hidden_size": (1 << 20) + 1}),
        "hidden_size is 1048577, expected an integer from 1 to 1048576",
    );
    refused(
        json!({"max_position_embeddings": (1 << 27) + 1}),
        "max_position_embeddings is 134217729, expected",
    );
    refused(json!({"rms_norm_eps": 0}), "rms_norm_eps is 0, expected a number from 1e-30 to 1.0");
    refused(json!({"rms_norm_eps": -1e-5}), "rms_norm_eps is -1e-5, expected");
    refused_in("phi", json!({"layer_norm_eps": 0.0}), "layer_norm_eps is 0.0, expected");
}

#[test]
fn hostile_fields_are_refused() {
    refused(
        json!({"model_type": "mamba"}),
        "model_type is \"mamba\", expected one of llama, mistral, qwen2, qwen3, phi",
    );
    refused(json!({"model_type": null}), "model_type is missing, expected llama, mistral");
    refused(json!({"model_type": 7}), "model_type is 7, expected a string");
    refused(json!({"hidden_act": "relu"}), "hidden_act is \"relu\", expected silu, swish, gelu");
    refused(
        json!({"torch_dtype": "float64"}),
        "torch_dtype is \"float64\", expected float32, float16 or bfloat16",
    );
    refused(json!({"dtype": "int8"}), "dtype is \"int8\", expected float32");
    refused(json!({"tie_word_embeddings": 1}), "tie_word_embeddings is 1, expected true or false");
    refused(json!({"eos_token_id": [1, -2]}), "eos_token_id[1] is -2, expected a token id");
    refused(json!({"bos_token_id": "<s>"}), "bos_token_id is \"<s>\", expected a token id");
    refused_in("mistral", json!({"sliding_window": 0}), "sliding_window is 0, expected an integer from 1");
    refused_in(
        "gemma2",
        json!({"layer_types": ["full_attention"]}),
        "layer_types is a list of 1, expected a list of num_hidden_layers, 4",
    );
    let odd = json!({"layer_types": ["full_attention", "conv", "conv", "conv"]});
    refused_in("qwen3", odd, "layer_types[1] is \"conv\", expected full_attention or sliding_attention");
    refused_in("gemma2", json!({"attn_logit_softcapping": 0.0}), "attn_logit_softcapping is 0.0, expected");
    refused_in("gemma2", json!({"query_pre_attn_scalar": -1}), "query_pre_attn_scalar is -1, expected");
    refused_in("gemma2", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention is true");
    let classifier = json!({"architectures": ["LlamaForSequenceClassification"]});
    refused(
        classifier,
        "architectures is \"LlamaForSequenceClassification\", expected a class that generates",
    );
    refused(json!({"is_causal": "no"}), "is_causal is \"no\", expected true or false");
}

#[test]
fn tokens_see_both_sides_where_the_configuration_says_so() {
    for (fields, both) in
        [(json!({}), false), (json!({"is_causal": true}), false), (json!({"is_causal": false}), true)]
    {
        assert_eq!(resolve("qwen3", fields).bidirectional, both);
    }
    let both = json!({"is_causal": false});
    for family in ["gemma2", "olmo_hybrid", "lfm2"] {
        let both = with(both.clone(), json!({"full_attn_idxs": [1]}));
        refused_in(family, both, "is_causal is false, expected true: layers with a window, latent");
    }
    let windowed = with(both, json!({"sliding_window": 8}));
    refused_in("mistral", windowed, "is_causal is false, expected true: layers with a window, latent");
}

#[test]
fn hostile_ropes_are_refused() {
    let scaling = |params: Value| json!({"rope_scaling": params});
    refused(json!({"rope_theta": 0}), "rope_theta is 0, expected a number from 1e-6 to 1000000000000.0");
    refused(json!({"rope_parameters": {"rope_theta": -1.0}}), "rope_parameters.rope_theta is -1.0, expected");
    refused(
        scaling(json!({"type": "linear", "factor": 0})),
        "rope_scaling.factor is 0, expected a number from 1e-6",
    );
    refused(scaling(json!({"type": "linear", "factor": -2.0})), "rope_scaling.factor is -2.0");
    refused(
        scaling(json!({"type": "linear", "factor": "2"})),
        "rope_scaling.factor is \"2\", expected a number",
    );
    refused(scaling(json!({"type": "linear"})), "rope_scaling.factor is missing, expected a number");
    refused(
        scaling(json!({"type": "dynamic", "factor": 0.5})),
        "rope_scaling.factor is 0.5, expected a number from 1.0",
    );
    refused(
        scaling(json!({"rope_type": "mrope"})),
        "rope_scaling.rope_type is \"mrope\", expected one of default, linear",
    );
    refused(json!({"rope_scaling": 2}), "rope_scaling is 2, expected an object");
    refused_in(
        "phi3",
        scaling(json!({"type": "linear", "factor": 2.0})),
        "rope_scaling.type is \"linear\", expected default or longrope",
    );
    let list =
        |short: Value| scaling(json!({"type": "longrope", "short_factor": short, "long_factor": [1.0, 1.0]}));
    refused(list(json!([1.0])), "rope_scaling.short_factor is a list of 1, expected a list of 2 numbers");
    refused(list(json!([1.0, 0.0])), "rope_scaling.short_factor[1] is 0.0, expected a number from 1e-6");
    refused(list(json!(null)), "rope_scaling.short_factor is missing, expected a list of 2");
    let llama3 = json!({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4});
    refused(
        scaling(llama3),
        "rope_scaling.high_freq_factor is 4, expected a number above low_freq_factor, 4.0",
    );
    refused(
        json!({"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 2}}),
        "rope_theta is 1, expected a number above 1.0",
    );
    refused(
        json!({"rope_parameters": {"full_attention": {}}}),
        "rope_parameters.full_attention is an object",
    );
    refused_in(
        "phi",
        json!({"partial_rotary_factor": 1.5}),
        "partial_rotary_factor is 1.5, expected a number from 1e-6 to 1.0",
    );
    refused_in(
        "phi",
        json!({"partial_rotary_factor": 0.3}),
        "head_dim is 4, of which 1 elements are rotated",
    );
    let theta = |token: &str| {
        let text = tiny("llama").to_string().replacen('{', &format!("{{\"rope_theta\": {token},"), 1);
        parse_bytes(text.as_bytes()).unwrap_err().to_string()
    };
    // As transformers 5 writes it.
    assert!(theta("Infinity").starts_with("config.json: rope_theta is "), "{}", theta("Infinity"));
    for token in ["NaN", "-Infinity", "1e999"] {
        let error = theta(token);
        assert!(error.starts_with("config.json: not valid JSON: ") && error.contains("line 1"), "{error}");
    }
}

#[test]
fn absent_fields_get_the_family_s_defaults() {
    let absent = |family: &str| {
        let mut config = tiny(family);
        config.as_object_mut().unwrap().retain(|name, _| name != "num_key_value_heads" && name != "head_dim");
        parse(&with(config, json!({"num_attention_heads": 32, "hidden_size": 128}))).unwrap()
    };
    let of = |family: &str| {
        let c = absent(family);
        (
            c.num_key_value_heads,
            c.head_dim,
            c.max_position_embeddings,
            c.norm_eps,
            c.bos_token_id,
            c.eos_token_ids,
        )
    };
    assert_eq!(of("llama"), (32, 4, 2048, 1e-6, Some(1), vec![2]));
    assert_eq!(of("mistral"), (8, 4, 131_072, 1e-6, Some(1), vec![2]));
    assert_eq!(of("qwen2"), (32, 4, 32_768, 1e-6, None, vec![]));
    assert_eq!(of("qwen3"), (32, 128, 32_768, 1e-6, None, vec![]));
    assert_eq!(of("phi"), (32, 4, 2048, 1e-5, Some(1), vec![2]));
    assert_eq!(of("phi3"), (32, 4, 4096, 1e-5, Some(1), vec![32_000]));
    assert_eq!(of("gemma2"), (4, 256, 8192, 1e-6, Some(2), vec![1]));
    let gemma2 = absent("gemma2");
    assert_eq!((gemma2.attn_logit_softcapping, gemma2.final_logit_softcapping), (Some(50.0), Some(30.0)));
    assert_eq!((gemma2.query_pre_attn_scalar, gemma2.hidden_act), (Some(256.0), Activation::GeluTanh));
    assert!(gemma2.tie_word_embeddings && !absent("llama").tie_word_embeddings);
    assert_eq!((absent("phi").hidden_act, absent("phi").rope.dims), (Activation::GeluTanh, 2));
    assert_eq!(resolve("gemma2", json!({"attn_logit_softcapping": null})).attn_logit_softcapping, None);
    assert_eq!(
        resolve("llama", json!({"eos_token_id": null, "bos_token_id": null})).eos_token_ids,
        [0u32; 0]
    );
    assert_eq!(resolve("llama", json!({"eos_token_id": [3, 5]})).eos_token_ids, [3, 5]);
    assert_eq!(resolve("mistral", json!({"num_key_value_heads": null})).num_key_value_heads, 4);
}

#[test]
fn windows_follow_each_family_s_rule() {
    let windows = |family, fields| resolve(family, fields).windows;
    let (none, all) = (vec![None; 4], vec![Some(7); 4]);
    assert_eq!(windows("llama", json!({"sliding_window": 7})), none);
    assert_eq!(windows("phi", json!({"sliding_window": 7})), none);
    assert_eq!(windows("mistral", json!({"sliding_window": 7})), all);
    assert_eq!(windows("mistral", json!({"sliding_window": null})), none);
    assert_eq!(windows("mistral", json!({})), [Some(4096); 4]);
    assert_eq!(windows("phi3", json!({"sliding_window": 7})), all);
    assert_eq!(windows("phi3", json!({})), none);
    assert_eq!(windows("qwen2", json!({"sliding_window": 7, "max_window_layers": 2})), none);
    let on = json!({"use_sliding_window": true, "sliding_window": 7, "max_window_layers": 2});
    assert_eq!(windows("qwen2", on.clone()), [None, None, Some(7), Some(7)]);
    assert_eq!(windows("qwen3", json!({"use_sliding_window": true})), none);
    let types =
        json!({"layer_types": ["sliding_attention", "full_attention", "attention", "sliding_attention"]});
    assert_eq!(windows("qwen3", with(on, types.clone())), [Some(7), None, None, Some(7)]);
    assert_eq!(windows("qwen3", with(json!({"sliding_window": 7}), types.clone())), none);
    assert_eq!(windows("gemma2", json!({"sliding_window": 7})), [Some(7), None, Some(7), None]);
    assert_eq!(windows("gemma2", with(json!({"sliding_window": 7}), types)), [Some(7), None, None, Some(7)]);
}

#[test]
fn gemma4_s_layers_keep_what_their_types_say() {
    let architecture = |fields: Value| {
        let config = with(tiny("gemma4_text"), fields).to_string();
        Architecture::parse(Path::new("config.json"), config.as_bytes()).unwrap()
    };
    let states = |fields: Value| architecture(fields).states();
    let kv = |heads, dim, window| StateSpec::Kv { heads, k_dim: dim, v_dim: dim, window };
    // Five with a window to each without, which the last never has.
    let sliding = kv(2, 4, Some(512));
    assert_eq!(states(json!({})), [sliding, sliding, sliding, kv(2, 512, None)]);
    let types = json!({"layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
        "sliding_window": 7, "global_head_dim": 8, "num_global_key_value_heads": 1});
    let (sliding, full) = (kv(2, 4, Some(7)), kv(2, 8, None));
    assert_eq!(states(types.clone()), [sliding, full, sliding, full]);
    let shared = with(types.clone(), json!({"num_kv_shared_layers": 2}));
    assert_eq!(states(shared), [sliding, full, StateSpec::SharedWith(0), StateSpec::SharedWith(1)]);
    let full = kv(1, 8, None);
    let keys = with(types.clone(), json!({"attention_k_eq_v": true}));
    assert_eq!(states(keys.clone()), [sliding, full, sliding, full]);
    let own = json!({"head_dim": 6, "num_key_value_heads": 1});
    let each = with(keys.clone(), json!({"per_layer_config": {"1": own, "3": own}}));
    let full = kv(1, 6, None);
    assert_eq!(states(each), [sliding, full, sliding, full]);

    let values = |fields: Value| {
        let list = architecture(fields).weights();
        let has = |layer: usize| list.get(&format!("model.layers.{layer}.self_attn.v_proj")).is_some();
        [0, 1, 2, 3].map(has)
    };
    assert_eq!(values(keys), [true, false, true, false]);
    assert_eq!(values(with(types, json!({"num_kv_shared_layers": 1}))), [true, true, true, false]);

    let list = architecture(json!({})).weights();
    assert!(list.is_of_table("model.embed_tokens_per_layer.weight"));
    assert!(!list.is_of_table("model.embed_tokens.weight"));
    let is_bare = |name: &str| list.get(&format!("model.layers.1.{name}")).unwrap().is_bare();
    assert!(is_bare("layer_scalar") && !is_bare("input_layernorm"));
    let none = architecture(json!({"hidden_size_per_layer_input": null})).weights();
    assert!(none.get("model.embed_tokens_per_layer").is_none());

    let config = resolve("gemma4_text", json!({}));
    let scaling = RopeScaling::Proportional { turning: 64, factor: 1.0 };
    assert_eq!(config.rope, Rope { theta: 1e6, dims: 512, scaling });
    assert_eq!(config.local_rope, Some(Rope { theta: 1e4, dims: 4, scaling: RopeScaling::None }));
    let frequencies = config.rope.frequencies(1).inv_freq;
    assert_eq!(frequencies.iter().position(|&f| f == 0.0), Some(64));
    assert!(frequencies[0] == 1.0 && frequencies[64..].iter().all(|&f| f == 0.0));
}

#[test]
fn what_gemma4_has_no_form_for_is_refused() {
    let refused = |fields: Value, expected: &str| refused_in("gemma4_text", fields, expected);
    let each = |layers: Value| json!({ "per_layer_config": layers });
    refused(each(json!({"9": {}})), "per_layer_config.9 is there, expected the number of a layer, below 4");
    refused(
        each(json!({"1": {"head_dim": 8}})),
        "per_layer_config.1 is 2 heads of 8, expected 2 heads of 4, as others of its type have",
    );
    refused(
        each(json!({"3": {"sliding_window": 3}})),
        "per_layer_config.3.sliding_window is there, expected",
    );
    refused(
        json!({"num_kv_shared_layers": 1}),
        "num_kv_shared_layers is 1, expected a layer of each type before these",
    );
    refused(json!({"num_kv_shared_layers": 4}), "num_kv_shared_layers is 4, expected an integer from 0 to 3");
    refused(
        json!({"use_bidirectional_attention": "all"}),
        "use_bidirectional_attention is \"all\", expected null or \"vision\"",
    );
    refused(json!({"global_head_dim": 7}), "global_head_dim is 7, expected an even number");
    refused(
        json!({"num_global_key_value_heads": 3, "attention_k_eq_v": true}),
        "num_global_key_value_heads is 3, expected a divisor of num_attention_heads, 4",
    );
    refused(
        json!({"vocab_size_per_layer_input": 31}),
        "vocab_size_per_layer_input is 31, expected at least vocab_size, 32",
    );
    refused(json!({"enable_moe_block": true}), "num_experts is missing, expected an integer from 1");
}

#[test]
fn both_generations_of_transformers_resolve_alike() {
    let scaling = json!({"type": "linear", "factor": 2.0});
    let v4 = resolve(
        "phi",
        json!({
            "rope_theta": 5e5, "rope_scaling": scaling, "partial_rotary_factor": 1.0, "torch_dtype": "bfloat16"
        }),
    );
    let v5 = resolve(
        "phi",
        json!({
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5, "partial_rotary_factor": 1.0},
            "dtype": "bfloat16"
        }),
    );
    assert_eq!(v4, v5);
    assert_eq!(v4.rope, Rope { theta: 5e5, dims: 4, scaling: RopeScaling::Linear { factor: 2.0 } });
    assert_eq!(v4.dtype, Some(DType::BF16));
}

fn models() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    let entries = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).collect()
}

#[test]
fn every_fixture_s_configuration_fits_its_weights() {
    assert!(models().len() >= 30);
    for dir in models() {
        let mut own = Architecture::read(&dir.join("config.json")).unwrap();
        let mut checkpoint = Checkpoint::open(&dir).unwrap();
        own.adopt(&mut checkpoint).unwrap();
        let config = own.config().clone();
        GenerationConfig::load(&dir.join("generation_config.json")).unwrap();
        let wrong = |change: fn(&mut Config)| {
            let mut other = Architecture::read(&dir.join("config.json")).unwrap();
            change(other.config_mut());
            other.check_weights(&checkpoint).unwrap_err().to_string()
        };
        let vocab = wrong(|c| c.vocab_size += 1);
        let said =
            format!("vocab_size is {}, expected {}, the rows of ", config.vocab_size + 1, config.vocab_size);
        let shape = format!(".weight [{}, {}]", config.vocab_size, config.hidden_size);
        assert!(vocab.contains(&said) && vocab.ends_with(&shape), "{vocab}");
        assert!(wrong(|c| c.hidden_size += 1).contains("hidden_size is "));
        // A Mamba has nothing beside its own part.
        if config.model_type == "mamba2" {
            continue;
        }
        let head_dim = |c: &mut Config| match &mut c.latent {
            Some(latent) => latent.value_dim += 2,
            None => c.head_dim += 2,
        };
        let named = if config.latent.is_some() { "v_head_dim) is " } else { "head_dim is " };
        assert!(wrong(head_dim).contains(named), "{}", wrong(head_dim));
        // Gemma 3n has a width for each layer.
        if config.model_type == "gemma3n_text" {
            continue;
        }
        // Of experts, where every layer has them.
        let inner = |c: &mut Config| match &mut c.experts {
            Some(experts) => experts.inner += 1,
            None => c.intermediate_size += 1,
        };
        assert!(wrong(inner).contains("intermediate_size is "));
    }
}

#[test]
fn generation_config_reads_defaults_and_refuses_nonsense() {
    let path = Path::new("generation_config.json");
    let parse = |value: Value| GenerationConfig::parse(path, value.to_string().as_bytes());
    assert_eq!(
        GenerationConfig::load(Path::new("/nonexistent/generation_config.json")).unwrap(),
        Default::default()
    );
    let full = parse(json!({
        "eos_token_id": 2, "bos_token_id": 1, "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
        "min_p": 0.0, "repetition_penalty": 1.05, "max_new_tokens": 2048, "max_length": 4096,
        "transformers_version": "4.51.0", "pad_token_id": null
    }))
    .unwrap();
    assert_eq!((full.eos_token_ids, full.temperature, full.top_k), (vec![2], Some(0.6), Some(20)));
    assert_eq!((full.max_new_tokens, full.max_length), (Some(2048), Some(4096)));
    assert_eq!(parse(json!({"eos_token_id": [1, 107]})).unwrap().eos_token_ids, [1, 107]);
    assert_eq!(parse(json!({"suppress_tokens": [9, 3, 9]})).unwrap().suppress_tokens, [3, 9]);
    for (value, expected) in [
        (json!({"temperature": -1}), "temperature is -1, expected a number from 0.0 to 100.0"),
        (json!({"top_p": 1.5}), "top_p is 1.5, expected a number from 0.0 to 1.0"),
        (json!({"top_k": -1}), "top_k is -1, expected an integer from 0"),
        (json!({"min_p": "x"}), "min_p is \"x\", expected a number"),
        (json!({"repetition_penalty": 0}), "repetition_penalty is 0, expected a number"),
        (json!({"max_new_tokens": 0}), "max_new_tokens is 0, expected an integer from 1"),
        (json!({"max_new_tokens": -1}), "max_new_tokens is -1, expected an integer from 1"),
        (json!({"max_length": 1u64 << 63}), "max_length is 9223372036854775808, expected an integer from 1"),
        (json!({"do_sample": "yes"}), "do_sample is \"yes\", expected true or false"),
        (json!({"eos_token_id": 1.5}), "eos_token_id is 1.5, expected a token id"),
        (json!({"suppress_tokens": [1, "a"]}), "suppress_tokens[1] is \"a\", expected a token id"),
    ] {
        let error = parse(value).unwrap_err().to_string();
        assert!(error.starts_with(&format!("generation_config.json: {expected}")), "{error}");
    }
}

/// Seeded mutations of valid files: an error or a configuration whose frequencies are finite, never a panic.
#[test]
fn mutations_never_panic() {
    let files: Vec<Vec<u8>> =
        models().iter().map(|dir| std::fs::read(dir.join("config.json")).unwrap()).collect();
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let mut accepted = 0;
    for _ in 0..6000 {
        let mut bytes = files[random(files.len())].clone();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = b"{}[],:\"0123456789-.e"[random(20)],
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"0123456789-.e"[random(13)]),
            }
        }
        if let Ok(config) = parse_bytes(&bytes) {
            accepted += 1;
            for prompt_len in [1, config.max_position_embeddings + 1] {
                let frequencies = config.rope.frequencies(prompt_len);
                assert_eq!(frequencies.inv_freq.len(), config.rope.dims / 2);
                assert!(frequencies.inv_freq.iter().all(|f| f.is_finite()), "{:?}", config.rope);
                assert!(frequencies.attention_factor.is_finite(), "{:?}", config.rope);
            }
        }
    }
    assert!(accepted > 100, "{accepted}");
}
