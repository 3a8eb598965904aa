//! What Gemma 3n is, by its configuration.

use super::*;

fn architecture(fields: Value) -> Architecture {
    let config = with(tiny("gemma3n_text"), fields).to_string();
    Architecture::parse(Path::new("config.json"), config.as_bytes()).unwrap()
}

/// The shape of the weight of a module, where there is one.
fn shape(of: &Architecture, name: &str) -> Option<Vec<usize>> {
    of.weights().get(name).map(|module| module.shape().to_vec())
}

/// Most of its configurations name fewer layers than share keys and values by default.
fn own(fields: Value) -> Value {
    with(json!({"num_kv_shared_layers": 0}), fields)
}

#[test]
fn gemma3n_is_what_transformers_takes_absent_fields_for() {
    let of = architecture(json!({"num_hidden_layers": 21}));
    let config = of.config();
    assert_eq!((config.final_logit_softcapping, config.attention_multiplier), (Some(30.0), Some(1.0)));
    assert_eq!((config.max_position_embeddings, config.hidden_act), (32_768, Activation::GeluTanh));
    assert_eq!((config.bos_token_id, &*config.eos_token_ids), (Some(2), &[1][..]));
    assert!(config.tie_word_embeddings);
    let plain = |theta| Rope { theta, dims: 4, scaling: RopeScaling::None };
    assert_eq!((&config.rope, &config.local_rope), (&plain(1e6), &Some(plain(1e4))));
    // Four layers with a window to each without one; the last 15 use keys and values of those before them.
    let kv = |window| StateSpec::Kv { heads: 2, k_dim: 4, v_dim: 4, window };
    let states = of.states();
    assert_eq!(states[..6], [[kv(Some(512)); 4].as_slice(), &[kv(None), kv(Some(512))]].concat());
    let sources = states[6..].iter().enumerate().all(|(i, state)| {
        let source = if (i + 7).is_multiple_of(5) { 4 } else { 5 };
        *state == StateSpec::SharedWith(source)
    });
    assert!(sources, "{states:?}");

    let of = architecture(own(json!({})));
    assert_eq!(shape(&of, "model.altup_projections.2"), Some(vec![16, 16]));
    assert_eq!(shape(&of, "model.altup_projections.3"), None);
    let layer = |name: &str| shape(&of, &format!("model.layers.1.{name}"));
    assert_eq!(layer("altup.modality_router"), Some(vec![4, 16]));
    assert_eq!(layer("altup.prediction_coefs"), Some(vec![16, 4]));
    assert_eq!(layer("altup.correction_coefs"), Some(vec![4, 4]));
    assert_eq!(layer("altup.correct_output_scale"), Some(vec![16]));
    assert_eq!(layer("laurel.linear_left"), Some(vec![64, 16]));
    assert_eq!(layer("per_layer_input_gate"), Some(vec![256, 16]));
    assert_eq!(shape(&of, "model.embed_tokens_per_layer"), Some(vec![262_144, 4 * 256]));
    // Four layers cut no gate, eleven do; what is null caps nothing.
    let cuts = |of: &Architecture| format!("{of:?}").matches("Some(1.644").count();
    assert_eq!(cuts(&of), 0);
    assert_eq!(cuts(&architecture(own(json!({"num_hidden_layers": 11})))), 10);
    assert_eq!(cuts(&architecture(own(json!({"activation_sparsity_pattern": [0.95, 0, 0.95, 0.0]})))), 2);
    assert_eq!(
        architecture(own(json!({"final_logit_softcapping": null}))).config().final_logit_softcapping,
        None
    );
}

#[test]
fn gemma3n_s_layers_are_what_their_fields_say() {
    let of = architecture(own(json!({
        "altup_num_inputs": 1, "altup_correct_scale": false, "laurel_rank": 3, "hidden_size_per_layer_input": 5,
        "vocab_size_per_layer_input": 7, "intermediate_size": [8, 9, 11, 10], "tie_word_embeddings": false,
    })));
    assert_eq!(of.config().intermediate_size, 11);
    let inner = |layer: usize| shape(&of, &format!("model.layers.{layer}.mlp.up_proj")).unwrap();
    assert_eq!([0, 1, 2, 3].map(|layer| inner(layer)[0]), [8, 9, 11, 10]);
    assert_eq!(shape(&of, "model.altup_projections.0"), None);
    assert_eq!(shape(&of, "model.layers.0.altup.correct_output_scale"), None);
    assert_eq!(shape(&of, "model.layers.0.laurel.linear_right"), Some(vec![16, 3]));
    assert_eq!(shape(&of, "model.embed_tokens_per_layer"), Some(vec![7, 20]));
    assert_eq!(shape(&of, "lm_head"), Some(vec![32, 16]));
    assert!(of.weights().is_of_table("model.embed_tokens_per_layer.weight"));

    let types = json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"]);
    let shared = architecture(json!({"layer_types": types, "num_kv_shared_layers": 2, "sliding_window": 7}));
    let kv = |window| StateSpec::Kv { heads: 2, k_dim: 4, v_dim: 4, window };
    let sources = [StateSpec::SharedWith(1), StateSpec::SharedWith(0)];
    assert_eq!(shared.states(), [kv(Some(7)), kv(None), sources[0], sources[1]]);
    let has = |layer: usize| shape(&shared, &format!("model.layers.{layer}.self_attn.k_proj")).is_some();
    assert_eq!([0, 1, 2, 3].map(has), [true, true, false, false]);

    // Both generations of transformers.
    let before = json!({"rope_theta": 3e3, "rope_local_base_freq": 50.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}});
    let after = json!({"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e3}}});
    let [before, after] = [before, after].map(|fields| architecture(own(fields)).config().clone());
    assert_eq!(before, after);
    assert_eq!(before.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(before.local_rope, Some(Rope { theta: 50.0, dims: 4, scaling: RopeScaling::None }));

    let whole = json!({"model_type": "gemma3n", "text_config": with(tiny("gemma3n_text"), own(json!({})))});
    assert_eq!(parse(&whole).unwrap(), *architecture(own(json!({}))).config());
}

#[test]
fn what_gemma3n_has_no_form_for_is_refused() {
    let refused = |fields: Value, expected: &str| refused_in("gemma3n_text", own(fields), expected);
    refused_in("gemma3n_text", json!({}), "num_kv_shared_layers is missing, expected an integer from 0 to 3");
    refused(json!({"num_kv_shared_layers": 4}), "num_kv_shared_layers is 4, expected an integer from 0 to 3");
    refused(
        json!({"num_kv_shared_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]}),
        "num_kv_shared_layers is 3, expected a layer of each type before these",
    );
    refused(json!({"altup_num_inputs": 0}), "altup_num_inputs is 0, expected an integer from 1 to 16");
    refused(json!({"altup_num_inputs": 17}), "altup_num_inputs is 17, expected an integer from 1 to 16");
    refused(json!({"altup_active_idx": 4}), "altup_active_idx is 4, expected an integer from 0 to 3");
    refused(json!({"altup_correct_scale": 1}), "altup_correct_scale is 1, expected true or false");
    refused(json!({"laurel_rank": 0}), "laurel_rank is 0, expected an integer from 1 to 65536");
    refused(
        json!({"hidden_size_per_layer_input": 0}),
        "hidden_size_per_layer_input is 0, expected an integer from 1 to 65536",
    );
    refused(
        json!({"vocab_size_per_layer_input": 1 << 30, "num_hidden_layers": 5}),
        "vocab_size_per_layer_input is 1073741824, expected at most 858993459",
    );
    refused(
        json!({"activation_sparsity_pattern": [0.5]}),
        "activation_sparsity_pattern is a list of 1, expected a list of num_hidden_layers, 4",
    );
    refused(
        json!({"activation_sparsity_pattern": 0.5}),
        "activation_sparsity_pattern is 0.5, expected a list",
    );
    refused(
        json!({"activation_sparsity_pattern": [0.5, 1.0, 0.0, 0.0]}),
        "activation_sparsity_pattern[1] is 1.0, expected a number from 0.0 to 0.999999",
    );
    refused(
        json!({"intermediate_size": [8, 8]}),
        "intermediate_size is a list of 2, expected a list of num_hidden_layers, 4",
    );
    refused(
        json!({"intermediate_size": []}),
        "intermediate_size is a list of 0, expected an integer from 1 to",
    );
    refused(
        json!({"intermediate_size": [8, 0, 8, 8]}),
        "intermediate_size[1] is 0, expected an integer from 1 to 16777216",
    );
    refused(json!({"final_logit_softcapping": 0}), "final_logit_softcapping is 0, expected a number from");
    refused_in(
        "llama",
        json!({"intermediate_size": [8, 8, 8, 8]}),
        "intermediate_size is a list of 4, expected an integer",
    );
}
