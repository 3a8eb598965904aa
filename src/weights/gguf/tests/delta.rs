//! What files say of gated delta nets, and of experts beside them.

use super::experts::{read, uint, with_experts, without};
use super::{ARRAY, BOOL, F32, File, STRING, U64, list, model, open, string};
use crate::backend::ops::{RecurrentShape, StateSpec};
use crate::forward::Architecture;

const ALL: [&str; 3] = ["qwen35", "qwen35moe", "qwen3next"];
const I32: u32 = 5;

/// A model of four layers, the last of which has attention, to be read but for what a test changes.
fn delta(arch: &str) -> File {
    let keys = [
        ("block_count", 4),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", 2),
        ("ssm.conv_kernel", 3),
        ("ssm.state_size", 4),
        ("ssm.group_count", 2),
        ("ssm.time_step_rank", 6),
        ("ssm.inner_size", 30),
    ];
    let file = if arch == "qwen35" { model(arch) } else { with_experts(arch) };
    let file = keys.iter().fold(file, |file, &(key, n)| uint(file, arch, key, n));
    if arch == "qwen35" { file } else { uint(file, arch, "expert_shared_feed_forward_length", 5) }
}

fn flags(file: File, arch: &str, flags: &[bool]) -> File {
    let head = [BOOL.to_le_bytes().to_vec(), (flags.len() as u64).to_le_bytes().to_vec()].concat();
    let bytes: Vec<u8> = flags.iter().map(|&flag| flag.into()).collect();
    file.with(&format!("{arch}.attention.recurrent_layers"), ARRAY, [head, bytes].concat())
}

/// Which layers are delta nets.
fn linear(file: &File) -> Vec<bool> {
    let states = read(file).unwrap().states();
    states.iter().map(|state| matches!(state, StateSpec::Recurrent(_))).collect()
}

#[track_caller]
fn refused(file: &File, what: &str) {
    let error = read(file).unwrap_err().to_string();
    assert!(error.starts_with("m.gguf: ") && error.contains(what), "{error}, expected {what}");
}

#[test]
fn each_architecture_of_delta_nets_is_read() {
    let shape = RecurrentShape { taps: 2, channels: 46, heads: 6, rows: 4, columns: 5 };
    let attention = StateSpec::Kv { heads: 1, k_dim: 4, v_dim: 4, window: None };
    for (arch, family) in ALL.into_iter().zip(["qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"]) {
        let of = read(&delta(arch)).unwrap();
        assert_eq!((of.config().model_type, of.config().rope.dims), (family, 2));
        let recurrent = StateSpec::Recurrent(shape);
        assert_eq!(of.states(), [recurrent, recurrent, recurrent, attention], "{arch}");
        let list = of.weights();
        let has = |part: &str| list.get(&format!("model.layers.0.linear_attn.{part}")).is_some();
        assert!(has("in_proj_qkv") && has("in_proj_z") && !has("in_proj_qkvz"), "{arch}");
        let joined = arch == "qwen3next";
        assert_eq!(
            [has("in_proj_ba"), has("in_proj_a"), has("in_proj_b")],
            [joined, !joined, !joined],
            "{arch}"
        );
        assert_eq!(list.get("model.layers.0.mlp.gate_proj").is_some(), arch == "qwen35");
        assert!(list.get("model.layers.3.self_attn.q_proj").is_some(), "{arch}");
    }
}

/// A flag for each layer, if there are any; else all but one of so many.
#[test]
fn files_say_which_layers_are_delta_nets() {
    for arch in ALL {
        assert_eq!(linear(&delta(arch)), [true, true, true, false], "{arch}");
        let every = |n: u32| uint(delta(arch), arch, "full_attention_interval", n);
        assert_eq!(linear(&every(2)), [true, false, true, false], "{arch}");
        let own = [false, true, true, false];
        assert_eq!(linear(&flags(every(2), arch, &own)), own, "{arch}");
        let key = format!("{arch}.attention.recurrent_layers");
        assert_eq!(linear(&delta(arch).with(&key, ARRAY, list(I32, &own.map(u32::from)))), own, "{arch}");

        refused(&every(0), &format!("{arch}.full_attention_interval is 0, expected 1 or more"));
        refused(
            &flags(delta(arch), arch, &own[1..]),
            &format!("{key} is a list of 3, expected a flag for each of 4 layers"),
        );
        refused(&delta(arch).with(&key, BOOL, [1u8]), &format!("{key} is true, expected a list of flags"));
        let texts = list(F32, &[0; 4]);
        refused(&delta(arch).with(&key, ARRAY, texts), &format!("{key} is a list of 4 numbers, expected"));
    }
}

/// Layers that predict further tokens are at the end, and counted with the others. One of other shapes is left out.
#[test]
fn layers_that_predict_further_tokens_are_left_out() {
    const DRAFTS: &str = "blk.4.nextn.eh_proj.weight";
    for arch in ALL {
        let file = uint(uint(delta(arch), arch, "block_count", 5), arch, "nextn_predict_layers", 1);
        let file = file.tensor(DRAFTS, &[16, 4], 0, 512).tensor("blk.4.attn_norm.weight", &[8], 0, 768);
        assert_eq!(linear(&file), [true, true, true, false], "{arch}");
        let own = [true, false, true, false];
        let said = flags(file, arch, &[true, false, true, false, false]);
        assert_eq!(linear(&said), own, "{arch}");
        let mut checkpoint = open(said.bytes()).unwrap();
        let mut architecture = Architecture::from_gguf(&checkpoint).unwrap();
        architecture.adopt(&mut checkpoint).unwrap();
        assert!(architecture.ahead().is_none() && checkpoint.find("mtp.fc.weight").is_some(), "{arch}");
        refused(&flags(said, arch, &own), "recurrent_layers is a list of 4, expected a flag for each of 5");
        let all = uint(delta(arch), arch, "nextn_predict_layers", 4);
        refused(&all, &format!("{arch}.nextn_predict_layers is 4, expected less than 4"));
    }
}

#[test]
fn widths_of_experts_may_be_all_that_files_say() {
    const UP: &str = "model.layers.0.mlp.shared_expert.up_proj";
    let shared = |file: &File| read(file).unwrap().weights().get(UP).unwrap().rows.size;
    for arch in &ALL[1..] {
        let file = delta(arch);
        assert_eq!(read(&file).unwrap().config().experts.unwrap().inner, 6, "{arch}");
        assert_eq!(shared(&file), 5, "{arch}");
        let unsaid = without(file.clone(), &format!("{arch}.expert_shared_feed_forward_length"));
        assert_eq!(shared(&unsaid), 8, "{arch}");
        assert_eq!(shared(&uint(file, arch, "expert_shared_feed_forward_length", 0)), 8, "{arch}");
    }
    let file = without(delta("qwen35moe"), "qwen35moe.feed_forward_length");
    let config = read(&file).unwrap().config().clone();
    assert_eq!((config.intermediate_size, config.experts.unwrap().inner), (6, 6));
    refused(
        &without(file.clone(), "qwen35moe.expert_shared_feed_forward_length"),
        "qwen35moe.expert_shared_feed_forward_length is missing, expected an integer",
    );
    refused(
        &without(file, "qwen35moe.expert_feed_forward_length"),
        "qwen35moe.feed_forward_length is missing, expected an integer",
    );
    for arch in ["qwen35", "qwen3next"] {
        let file = without(delta(arch), &format!("{arch}.feed_forward_length"));
        refused(&file, &format!("{arch}.feed_forward_length is missing, expected an integer"));
    }
}

#[test]
fn what_would_change_delta_nets_is_refused_by_the_files_keys() {
    for arch in ALL {
        let with = |key: &str, n: u32| uint(delta(arch), arch, key, n);
        for key in ["ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank"] {
            let full = format!("{arch}.{key}");
            refused(&without(delta(arch), &full), &format!("{full} is missing, expected an integer"));
            refused(&with(key, 0), &format!("{full} is 0, expected 1 or more"));
            let text = delta(arch).with(&full, STRING, string("4"));
            refused(&text, &format!("{full} is \"4\", expected an integer"));
        }
        let inner = format!("{arch}.ssm.inner_size");
        for n in [0, 31] {
            refused(&with("ssm.inner_size", n), &format!("{inner} is {n}, expected a multiple of 6"));
        }
        refused(&without(delta(arch), &inner), &format!("{inner} is missing, expected a multiple of 6"));
        refused(&with("ssm.conv_kernel", 1), &format!("{arch}.ssm.conv_kernel is 1, expected from 2 to 64"));
        refused(
            &with("ssm.group_count", 4),
            &format!("{arch}.ssm.time_step_rank is 6, expected a multiple of linear_num_key_heads, 4"),
        );
    }
    refused(
        &uint(delta("qwen35"), "qwen35", "expert_count", 8),
        "qwen35.expert_count is 8, expected 0 or absent",
    );
    for arch in &ALL[1..] {
        let with = |key: &str, n: u32| uint(delta(arch), arch, key, n);
        let norm = delta(arch).with(&format!("{arch}.expert_weights_norm"), BOOL, [0u8]);
        refused(&norm, &format!("{arch}.expert_weights_norm is false, expected true or absent"));
        for key in ["expert_shared_count", "leading_dense_block_count"] {
            refused(&with(key, 1), &format!("{arch}.{key} is 1, expected 0 or absent"));
        }
        refused(&with("expert_gating_func", 2), "expert_gating_func is 2, expected 1 or absent");
    }
}

#[test]
fn numbers_at_the_limits_of_their_types_are_refused() {
    for arch in ALL {
        for key in [
            "ssm.conv_kernel",
            "ssm.state_size",
            "ssm.group_count",
            "ssm.time_step_rank",
            "ssm.inner_size",
            "nextn_predict_layers",
        ] {
            for n in [u64::from(u32::MAX), 1 << 62, 1 << 63, u64::MAX - 1, u64::MAX] {
                let file = delta(arch).with(&format!("{arch}.{key}"), U64, n.to_le_bytes());
                let error = read(&file).unwrap_err().to_string();
                assert!(error.starts_with("m.gguf: "), "{arch}.{key} of {n}: {error}");
            }
        }
    }
}

/// Conversion parts queries, keys, values and gates of qwen3next; older files have them by head of keys, as all have the two
/// factors.
#[test]
fn what_lies_by_head_of_keys_is_put_in_order() {
    const START: usize = 64 + 9 * 256;
    // 38 rows of each head: 4, 4, 15 and 15.
    let file = delta("qwen3next").tensor("blk.0.ssm_in.weight", &[8, 76], 0, START as u64);
    let file = file.tensor("blk.0.ssm_ba.weight", &[8, 12], 0, (START + 76 * 32) as u64);
    let file = File { data: START + 88 * 32, ..file };
    let mut checkpoint = open(file.bytes()).unwrap();
    let mut of = Architecture::from_gguf(&checkpoint).unwrap();
    assert!(of.weights().get("model.layers.0.linear_attn.in_proj_qkv").is_none());
    of.adopt(&mut checkpoint).unwrap();
    let rows = |name: &str, rows: usize| {
        let weight =
            checkpoint.get(&format!("model.layers.0.linear_attn.{name}.weight"), &[rows, 8]).unwrap();
        weight.bytes().to_vec()
    };
    // The data are bytes 0, 1, 2, 3, … over and over: eight rows, then the same again.
    let begins = |start: usize, row: usize| (start + row * 32..start + (row + 1) * 32).map(|i| i as u8);
    let (qkvz, ba) = (rows("in_proj_qkvz", 76), rows("in_proj_ba", 12));
    for (row, stored) in
        [(0, 0), (4, 38), (7, 41), (8, 4), (12, 42), (16, 8), (31, 46), (46, 23), (61, 61), (75, 75)]
    {
        assert!(begins(START, stored).eq(qkvz[row * 32..][..32].iter().copied()), "{row}");
    }
    let start = START + 76 * 32;
    for (row, stored) in [(0, 0), (2, 2), (3, 6), (5, 8), (6, 3), (8, 5), (9, 9), (11, 11)] {
        assert!(begins(start, stored).eq(ba[row * 32..][..32].iter().copied()), "{row}");
    }
}
