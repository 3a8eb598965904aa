//! What files say of experts, rightly and wrongly.

use super::{BOOL, F32, File, STRING, U32, model, open, string};
use crate::error::Result;
use crate::forward::Architecture;

/// A model of one layer of eight experts, to be read but for what a test changes.
pub(super) fn with_experts(arch: &str) -> File {
    let keys = [
        ("expert_count", 8),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 6),
        ("expert_shared_count", 0),
        ("interleave_moe_layer_step", 1),
        ("attention.sliding_window", 6),
    ];
    let file = keys.iter().fold(model(arch), |file, &(key, n)| uint(file, arch, key, n));
    match arch {
        "afmoe" => file.with("afmoe.expert_weights_norm", BOOL, [1u8]),
        _ => file,
    }
}

pub(super) fn uint(file: File, arch: &str, key: &str, n: u32) -> File {
    file.with(&format!("{arch}.{key}"), U32, n.to_le_bytes())
}

pub(super) fn without(mut file: File, key: &str) -> File {
    file.entries.retain(|(other, ..)| other != key.as_bytes());
    file
}

pub(super) fn read(file: &File) -> Result<Architecture> {
    Architecture::from_gguf(&open(file.bytes()).unwrap())
}

#[test]
fn each_architecture_of_experts_is_read() {
    for (arch, family, inner) in [
        ("llama", "mixtral", 8),
        ("qwen2moe", "qwen2_moe", 6),
        ("qwen3moe", "qwen3_moe", 6),
        ("gpt-oss", "gpt_oss", 6),
        ("olmoe", "olmoe", 8),
        ("granitemoe", "granitemoe", 8),
        ("glm4moe", "glm4_moe", 6),
        ("dots1", "dots1", 6),
        ("ernie4_5-moe", "ernie4_5_moe", 6),
        ("minimax-m2", "minimax_m2", 8),
        ("hunyuan-moe", "hunyuan_v1_moe", 8),
        ("qwen3vlmoe", "qwen3_vl_moe_text", 6),
        ("afmoe", "afmoe", 6),
    ] {
        let of = read(&with_experts(arch)).unwrap_or_else(|error| panic!("{arch}: {error}"));
        let experts = of.config().experts.unwrap();
        assert_eq!(of.config().model_type, family);
        assert_eq!((experts.count, experts.used, experts.inner), (8, 2, inner), "{arch}");
        assert!(of.weights().get("model.layers.0.mlp.gate_proj").is_none(), "{arch}");
    }
}

#[test]
fn what_would_change_experts_is_refused_by_the_files_keys() {
    let refused = |file: File, what: &str| {
        let error = read(&file).unwrap_err().to_string();
        assert!(error.starts_with("m.gguf: ") && error.contains(what), "{error}");
    };
    let with = |arch: &str, key: &str, n: u32| uint(with_experts(arch), arch, key, n);
    let flag =
        |arch: &str, is: u8| with_experts(arch).with(&format!("{arch}.expert_weights_norm"), BOOL, [is]);
    refused(with("olmoe", "expert_gating_func", 2), "olmoe.expert_gating_func is 2, expected 1 or absent");
    refused(with("glm4moe", "expert_gating_func", 1), "glm4moe.expert_gating_func is 1, expected 2");
    read(&with("afmoe", "expert_gating_func", 0)).unwrap();
    refused(flag("qwen3moe", 0), "qwen3moe.expert_weights_norm is false, expected true or absent");
    refused(flag("olmoe", 1), "olmoe.expert_weights_norm is true, expected false or absent");
    let unsaid = without(with_experts("afmoe"), "afmoe.expert_weights_norm");
    refused(unsaid, "afmoe.expert_weights_norm is missing, expected true");
    let float = |arch: &str, key: &str, x: f32| {
        with_experts(arch).with(&format!("{arch}.{key}"), F32, x.to_le_bytes())
    };
    refused(
        float("minimax-m2", "expert_weights_scale", 2.5),
        "minimax-m2.expert_weights_scale is 2.5, expected 1, 0 or absent",
    );
    read(&float("minimax-m2", "expert_weights_scale", 1.0)).unwrap();
    refused(float("dots1", "expert_weights_scale", f32::NAN), "dots1.expert_weights_scale is NaN");
    refused(float("olmoe", "attention.clamp_kqv", 8.0), "olmoe.attention.clamp_kqv is 8.0, expected 0");
    for (arch, key) in [
        ("granitemoe", "expert_shared_feed_forward_length"),
        ("qwen2moe", "leading_dense_block_count"),
        ("qwen3moe", "expert_shared_count"),
        ("minimax-m2", "nextn_predict_layers"),
    ] {
        refused(with(arch, key, 2), &format!("{arch}.{key} is 2, expected 0 or absent"));
    }
    refused(
        with("qwen3moe", "interleave_moe_layer_step", 2),
        "interleave_moe_layer_step is 2, expected 1 or absent",
    );
    refused(
        with("hunyuan-moe", "expert_shared_feed_forward_length", 6),
        "expert_shared_feed_forward_length is 6, expected 8, the width of each expert",
    );
    refused(with("olmoe", "expert_group_count", 2), "olmoe.expert_group_count is 2, expected 0, 1");
    let groups = with("glm4moe", "expert_group_count", 2);
    refused(groups.clone(), "glm4moe.expert_group_used_count is missing, expected an integer");
    refused(
        uint(groups.clone(), "glm4moe", "expert_group_used_count", 3),
        "glm4moe.expert_group_used_count is 3, expected at most 2",
    );
    read(&uint(groups, "glm4moe", "expert_group_used_count", 1)).unwrap();
    refused(with("dots1", "expert_group_count", 3), "expert_group_used_count is missing");
    refused(
        without(with_experts("dots1"), "dots1.expert_shared_count"),
        "dots1.expert_shared_count is missing, expected an integer",
    );
    refused(
        without(with_experts("ernie4_5-moe"), "ernie4_5-moe.interleave_moe_layer_step"),
        "ernie4_5-moe.interleave_moe_layer_step is missing, expected an integer",
    );
    refused(with("ernie4_5-moe", "expert_shared_feed_forward_length", 9), "is 9, expected a multiple of 6");
    refused(
        without(with_experts("afmoe"), "afmoe.attention.sliding_window"),
        "afmoe.attention.sliding_window is missing, expected 1 or more",
    );
    refused(with("glm4moe", "nextn_predict_layers", 1), "nextn_predict_layers is 1, expected less than 1");
    let text = with_experts("olmoe").with("olmoe.expert_gating_func", STRING, string("sigmoid"));
    refused(text, "olmoe.expert_gating_func is \"sigmoid\", expected an integer");
}

/// Layers that predict further tokens are at the end, and counted with the others.
#[test]
fn layers_that_predict_further_tokens_are_none_of_the_models() {
    let keys = [("block_count", 3), ("nextn_predict_layers", 1), ("leading_dense_block_count", 1)];
    let file = keys.iter().fold(with_experts("glm4moe"), |file, &(key, n)| uint(file, "glm4moe", key, n));
    let of = read(&file).unwrap();
    assert_eq!((of.config().num_hidden_layers, of.states().len()), (2, 2));
    let list = of.weights();
    for (name, is) in [
        ("model.layers.0.mlp.gate_proj", true),
        ("model.layers.0.mlp.gate", false),
        ("model.layers.1.mlp.gate_proj", false),
        ("model.layers.1.mlp.experts.7.up_proj", true),
        ("model.layers.1.self_attn.q_norm", false),
        ("model.layers.2.eh_proj", true),
        ("model.layers.2.input_layernorm", true),
        ("model.layers.3.input_layernorm", false),
    ] {
        assert_eq!(list.get(name).is_some(), is, "{name}");
    }
    let normed = file.tensor("blk.0.attn_q_norm.weight", &[4], 0, 512);
    assert!(read(&normed).unwrap().weights().get("model.layers.1.self_attn.q_norm").is_some());
}

/// The number is right where it is said; files that say none have the width.
#[test]
fn shared_experts_are_as_wide_as_all_of_them() {
    const UP: &str = "model.layers.0.mlp.shared_experts.up_proj";
    let width = |file: &File| read(file).unwrap().weights().get(UP).map(|module| module.rows.size);
    let ernie = |key: &str, n: u32| uint(with_experts("ernie4_5-moe"), "ernie4_5-moe", key, n);
    assert_eq!(width(&with_experts("ernie4_5-moe")), None);
    assert_eq!(width(&ernie("expert_shared_count", 2)), Some(12));
    assert_eq!(width(&ernie("expert_shared_feed_forward_length", 18)), Some(18));
    let both = uint(ernie("expert_shared_count", 2), "ernie4_5-moe", "expert_shared_feed_forward_length", 9);
    assert_eq!(width(&both), Some(12));
    assert_eq!(width(&uint(with_experts("dots1"), "dots1", "expert_shared_count", 3)), Some(18));
    assert_eq!(width(&uint(with_experts("afmoe"), "afmoe", "expert_shared_count", 1)), Some(6));
}

/// What is added to scores is a vector, or one row: conversion leaves it as a checkpoint has it.
#[test]
fn a_vector_may_be_one_row() {
    for sizes in [&[8][..], &[8, 1]] {
        let file = with_experts("ernie4_5-moe").tensor("blk.0.exp_probs_b.bias", sizes, 0, 512);
        let mut checkpoint = open(file.bytes()).unwrap();
        Architecture::from_gguf(&checkpoint).unwrap().adopt(&mut checkpoint).unwrap();
        let name = "model.layers.0.mlp.moe_statics.e_score_correction_bias.bias";
        let expected: Vec<u8> = (0..32).collect();
        assert_eq!(checkpoint.get(name, &[8]).unwrap().bytes(), expected, "{sizes:?}");
    }
}
