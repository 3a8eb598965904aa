//! What files say of latent attention, and of experts beside it.

use super::experts::{read, uint, with_experts, without};
use super::{BOOL, F32, File, STRING, U64, open, string};
use crate::config::{LatentDims, QueryScaling, RopeScaling};
use crate::forward::Architecture;

/// A model of one layer with an expert that every token goes to, to be read but for what a test changes.
fn latent(arch: &str) -> File {
    let keys = [
        ("attention.head_count_kv", 1),
        ("attention.q_lora_rank", 5),
        ("attention.kv_lora_rank", 6),
        ("attention.key_length", 10),
        ("attention.value_length", 6),
        ("attention.key_length_mla", 7),
        ("attention.value_length_mla", 3),
        ("rope.dimension_count", 4),
        ("expert_shared_count", 1),
    ];
    keys.iter().fold(with_experts(arch), |file, &(key, n)| uint(file, arch, key, n))
}

fn number(file: File, key: &str, x: f32) -> File {
    file.with(key, F32, x.to_le_bytes())
}

/// With a context that was stretched four times.
fn stretched(arch: &str) -> File {
    let file = latent(arch).with(&format!("{arch}.rope.scaling.type"), STRING, string("yarn"));
    let file = number(file, &format!("{arch}.rope.scaling.factor"), 4.0);
    uint(file, arch, "rope.scaling.original_context_length", 16)
}

/// How its router chooses.
fn routing(file: &File) -> String {
    let all = format!("{:?}", read(file).unwrap());
    let (_, rest) = all.split_once("Router { ").unwrap();
    rest.split_once(" }, scales: ").unwrap().0.to_owned()
}

#[test]
fn a_file_is_of_the_family_of_its_router() {
    let family = |file: &File| read(file).unwrap().config().model_type;
    let gating = |n: u32| uint(latent("deepseek2"), "deepseek2", "expert_gating_func", n);
    assert_eq!(family(&latent("deepseek2")), "deepseek_v2");
    assert_eq!(family(&gating(0)), "deepseek_v2");
    assert_eq!(family(&gating(1)), "deepseek_v2");
    assert_eq!(family(&gating(2)), "deepseek_v3");
    assert_eq!(family(&latent("mistral4")), "mistral4");

    // GLM 4.7 Flash does not say, and is known by its size.
    let sized = |layers: u32, vocabulary: u32| {
        let mut file = uint(latent("deepseek2"), "deepseek2", "block_count", layers);
        file.tensors.retain(|(name, ..)| name != "token_embd.weight");
        uint(file, "deepseek2", "vocab_size", vocabulary)
    };
    assert_eq!(family(&sized(47, 154_880)), "deepseek_v3");
    assert_eq!(family(&sized(47, 154_881)), "deepseek_v2");
    assert_eq!(family(&sized(46, 154_880)), "deepseek_v2");
    assert_eq!(family(&uint(sized(49, 154_880), "deepseek2", "nextn_predict_layers", 1)), "deepseek_v3");
}

#[test]
fn what_files_do_not_say_of_routers_is_what_llama_cpp_takes_for_granted() {
    let sigmoid = |file: File| uint(file, "deepseek2", "expert_gating_func", 2);
    let none = "used: 2, groups: None, normalise: None, scale: 1.0";
    assert_eq!(routing(&sigmoid(latent("deepseek2"))), format!("scores: Sigmoid, {none}"));
    for arch in ["deepseek2", "mistral4"] {
        assert_eq!(routing(&latent(arch)), format!("scores: Softmax, {none}"), "{arch}");
        let file = latent(arch).with(&format!("{arch}.expert_weights_norm"), BOOL, [1u8]);
        let file = number(file, &format!("{arch}.expert_weights_scale"), 2.5);
        let file = uint(uint(file, arch, "expert_group_count", 4), arch, "expert_group_used_count", 2);
        let groups = "groups: Some(ExpertGroups { count: 4, used: 2, best: 2 })";
        let all = format!("scores: Softmax, used: 2, {groups}, normalise: Some(1e-20), scale: 2.5");
        assert_eq!(routing(&file), all, "{arch}");
    }
}

/// Older files have no lengths of their own for what a token is multiplied by.
#[test]
fn both_kinds_of_lengths_are_read() {
    let dims = |file: &File| {
        let config = read(file).unwrap().config().clone();
        (config.latent.unwrap(), config.head_dim, config.rope.dims, config.num_key_value_heads)
    };
    let expected = LatentDims {
        query_rank: Some(5),
        rank: 6,
        nope_dim: 3,
        rope_dim: 4,
        value_dim: 3,
        pairs: true,
        eps: 1e-5,
    };
    for arch in ["deepseek2", "mistral4"] {
        let file = latent(arch);
        assert_eq!(dims(&file), (expected, 7, 4, 2), "{arch}");
        let older = without(file.clone(), &format!("{arch}.attention.key_length_mla"));
        let whole = LatentDims { nope_dim: 6, value_dim: 6, ..expected };
        assert_eq!(dims(&older), (whole, 10, 4, 2), "{arch}");
        let lite = LatentDims { query_rank: None, ..expected };
        assert_eq!(dims(&uint(file.clone(), arch, "attention.q_lora_rank", 0)).0, lite);
        assert_eq!(dims(&without(file, &format!("{arch}.attention.q_lora_rank"))).0, lite);
    }
}

/// One number stands for two of a configuration, and none for others than its absence does there.
#[test]
fn stretched_contexts_multiply_as_llama_cpp_has_it() {
    let grown = |by: f64| 0.1 * by * 4f64.ln() + 1.0;
    let (one, root) = (grown(1.0), 7f64.sqrt());
    for (arch, tenth, attention, scores) in [
        ("deepseek2", Some(0.0707), 1.0, grown(0.707)),
        ("deepseek2", Some(0.1), 1.0, one),
        ("deepseek2", Some(0.0), one, one),
        ("deepseek2", None, one, one),
        ("mistral4", Some(0.1), 1.0, one),
        ("mistral4", Some(0.05), one / grown(0.5), one),
        ("mistral4", None, one, one),
    ] {
        let key = format!("{arch}.rope.scaling.yarn_log_multiplier");
        let file = match tenth {
            Some(tenth) => number(stretched(arch), &key, tenth),
            None => stretched(arch),
        };
        let config = read(&file).unwrap().config().clone();
        let RopeScaling::Yarn { factor, original, attention_factor, .. } = config.rope.scaling else {
            panic!("{arch}: {:?}", config.rope.scaling)
        };
        assert_eq!((factor, original), (4.0, 16));
        let got = [f64::from(attention_factor), f64::from(config.attention_scale(0))];
        for (got, expected) in got.into_iter().zip([attention, scores * scores / root]) {
            assert!((got - expected).abs() < 1e-6, "{arch}, {tenth:?}: {got}, expected {expected}");
        }
    }
    for arch in ["deepseek2", "mistral4"] {
        let config = read(&latent(arch)).unwrap().config().clone();
        assert_eq!((config.rope.scaling.clone(), config.query_scaling), (RopeScaling::None, None), "{arch}");
        assert!((f64::from(config.attention_scale(0)) - 1.0 / root).abs() < 1e-6, "{arch}");
    }
}

#[test]
fn queries_grow_from_the_original_context_on() {
    for arch in ["deepseek2", "mistral4"] {
        let grow = |file: File| number(file, &format!("{arch}.attention.temperature_scale"), 0.25);
        let file = uint(grow(stretched(arch)), arch, "attention.temperature_length", 16);
        let scaling = read(&file).unwrap().config().query_scaling;
        assert_eq!(
            scaling,
            Some(QueryScaling { beta: 0.25, floor: 16, offset: 0, unrotated: false }),
            "{arch}"
        );
        let refused = |file: &File, what: &str| {
            let error = read(file).unwrap_err().to_string();
            assert!(error.contains(&format!("m.gguf: {arch}.attention.{what}")), "{error}");
        };
        refused(&grow(stretched(arch)), "temperature_length is missing, expected 16, the original");
        refused(
            &uint(file, arch, "attention.temperature_length", 32),
            "temperature_length is 32, expected 16",
        );
        let plain = uint(grow(latent(arch)), arch, "attention.temperature_length", 64);
        refused(&plain, "temperature_scale is 0.25, expected absent, or rope_type yarn beside it");
    }
}

#[test]
fn what_would_change_latent_attention_is_refused_by_the_files_keys() {
    for arch in ["deepseek2", "mistral4"] {
        let refused = |file: File, what: &str| {
            let error = read(&file).unwrap_err().to_string();
            assert!(error.starts_with("m.gguf: ") && error.contains(what), "{error}, expected {what}");
        };
        let with = |key: &str, n: u32| uint(latent(arch), arch, key, n);
        for key in ["attention.kv_lora_rank", "rope.dimension_count", "attention.value_length_mla"] {
            let what = format!("{arch}.{key} is missing, expected an integer");
            refused(without(latent(arch), &format!("{arch}.{key}")), &what);
        }
        refused(
            with("attention.key_length_mla", 4),
            "key_length_mla is 4, expected more than 4, what rotates",
        );
        refused(with("rope.dimension_count", 3), "an even number of rotated elements");
        refused(
            with("expert_gating_func", 3),
            &format!("{arch}.expert_gating_func is 3, expected 1 or absent"),
        );
        refused(with("nextn_predict_layers", 1), "nextn_predict_layers is 1, expected less than 1");
        refused(with("expert_group_count", 2), "expert_group_used_count is missing, expected an integer");
        refused(
            without(latent(arch), &format!("{arch}.expert_shared_count")),
            "expert_shared_count is missing, expected an integer",
        );
        let scaling = format!("{arch}.rope.scaling");
        refused(
            number(stretched(arch), &format!("{scaling}.attn_factor"), 2.0),
            &format!("{scaling}.attn_factor is 2.0, expected 1 or absent"),
        );
        refused(
            stretched(arch).with(&format!("{scaling}.type"), STRING, string("linear")),
            &format!("{scaling}.type is \"linear\", expected none or yarn"),
        );
        for wrong in [f32::NAN, -0.1, f32::INFINITY] {
            let file = number(stretched(arch), &format!("{scaling}.yarn_log_multiplier"), wrong);
            refused(file, &format!("{scaling}.yarn_log_multiplier is "));
        }
        refused(
            latent(arch).tensor("blk.0.exp_probs_b.bias", &[8], 0, 512),
            "blk.0.exp_probs_b.bias: is there, and a softmax chooses the experts",
        );
        let heads = uint(with("attention.head_count", 1 << 16), arch, "block_count", 2);
        refused(heads, &format!("{arch}.attention.head_count is 65536, expected at most 32768"));
    }
    let sigmoid = uint(latent("deepseek2"), "deepseek2", "expert_gating_func", 2);
    read(&sigmoid.tensor("blk.0.exp_probs_b.bias", &[8], 0, 512)).unwrap();
}

#[test]
fn numbers_at_the_limits_of_their_types_are_refused() {
    for arch in ["deepseek2", "mistral4"] {
        for key in [
            "attention.q_lora_rank",
            "attention.kv_lora_rank",
            "attention.key_length_mla",
            "attention.value_length_mla",
            "rope.dimension_count",
            "leading_dense_block_count",
            "nextn_predict_layers",
            "expert_shared_count",
            "expert_group_count",
        ] {
            for n in [u64::from(u32::MAX), 1 << 62, 1 << 63, u64::MAX - 1, u64::MAX] {
                let file = latent(arch).with(&format!("{arch}.{key}"), U64, n.to_le_bytes());
                let error = read(&file).unwrap_err().to_string();
                assert!(error.starts_with("m.gguf: "), "{arch}.{key} of {n}: {error}");
            }
        }
    }
}

/// Each head has its own rows of what is applied to queries and to what attention gives; each expert, of gate over up of all.
#[test]
fn stacks_are_cut_into_matrices() {
    let file = latent("mistral4").tensor("blk.0.attn_k_b.weight", &[3, 6, 2], 0, 320).tensor(
        "blk.0.attn_v_b.weight",
        &[6, 3, 2],
        0,
        480,
    );
    let of_experts = |count: u64| {
        let file = file.clone().tensor("blk.0.ffn_gate_up_exps.weight", &[8, 12, count], 0, 640);
        File { data: 640 + 12 * 8 * 4 * count as usize, ..file }
    };
    let adopted = |file: &File| {
        let mut checkpoint = open(file.bytes()).unwrap();
        Architecture::from_gguf(&checkpoint)?.adopt(&mut checkpoint)?;
        Ok::<_, crate::Error>(checkpoint)
    };
    let checkpoint = adopted(&of_experts(8)).unwrap();
    // The data are bytes 0, 1, 2, 3, … over and over.
    for (name, shape, start) in [
        ("self_attn.embed_q.0", [6, 3], 320),
        ("self_attn.embed_q.1", [6, 3], 320 + 72),
        ("self_attn.unembed_out.1", [3, 6], 480 + 72),
        ("mlp.experts.0.gate_proj", [6, 8], 640),
        ("mlp.experts.0.up_proj", [6, 8], 640 + 6 * 32),
        ("mlp.experts.5.up_proj", [6, 8], 640 + (5 * 12 + 6) * 32),
    ] {
        let got = checkpoint.get(&format!("model.layers.0.{name}.weight"), &shape).unwrap();
        let expected: Vec<u8> = (start..start + 4 * shape[0] * shape[1]).map(|i| i as u8).collect();
        assert_eq!(got.bytes(), expected, "{name}");
    }
    let error = adopted(&of_experts(9)).unwrap_err().to_string();
    assert!(error.contains("moe_intermediate_size is 6, expected 108, the rows of"), "{error}");
}
