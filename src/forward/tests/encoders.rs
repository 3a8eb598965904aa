//! What encoders and embedders are, by their configurations.

use super::*;

#[test]
fn what_encoders_do_not_have_is_refused_by_name() {
    refused_in(
        "nomic_bert",
        json!({"moe_every_n_layers": 2, "num_experts": 8}),
        "moe_every_n_layers is 2, expected 0: layers of experts are not built in this family",
    );
    assert!(resolve("nomic_bert", json!({"moe_every_n_layers": 0})).bidirectional);
    refused_in(
        "roberta",
        json!({"max_position_embeddings": 2}),
        "pad_token_id is 1, expected less than max_position_embeddings, 2",
    );
    assert_eq!(resolve("camembert", json!({"max_position_embeddings": 514})).max_context(), 512);
}

#[test]
fn one_way_to_stretch_is_of_both_kinds_of_layers() {
    let ropes = |fields: Value| {
        let config = resolve("modernbert", fields);
        [config.rope, config.local_rope.unwrap()].map(|rope| (rope.theta, rope.scaling))
    };
    assert_eq!(ropes(json!({})), [(160_000.0, RopeScaling::None), (10_000.0, RopeScaling::None)]);
    let linear = RopeScaling::Linear { factor: 4.0 };
    let scaling = json!({"rope_type": "linear", "factor": 4.0});
    let both = json!({"rope_scaling": scaling, "global_rope_theta": 80_000.0, "local_rope_theta": 500.0});
    assert_eq!(ropes(both), [(80_000.0, linear.clone()), (500.0, linear.clone())]);
    let by_kind = json!({"rope_parameters": {"full_attention": scaling}});
    assert_eq!(ropes(by_kind), [(160_000.0, linear), (10_000.0, RopeScaling::None)]);
}

#[test]
fn classes_without_a_head_may_be_without_one() {
    let headless = |class: &str, tied: bool| {
        resolve("qwen3", json!({"architectures": [class], "tie_word_embeddings": tied})).headless
    };
    assert!(headless("Qwen3Model", false) && headless("MistralModel", false));
    assert!(!headless("Qwen3Model", true) && !headless("Qwen3ForCausalLM", false));
    assert!(!headless("GPT2LMHeadModel", false) && !resolve("qwen3", json!({})).headless);
}
