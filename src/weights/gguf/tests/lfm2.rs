//! What files say of short convolutions.

use super::experts::{read, uint, without};
use super::{ARRAY, BOOL, F32, File, U32, list, model};
use crate::backend::ops::{RecurrentShape, StateSpec};

const CONV: StateSpec =
    StateSpec::Recurrent(RecurrentShape { taps: 2, channels: 8, heads: 0, rows: 0, columns: 0 });
const KV: StateSpec = StateSpec::Kv { heads: 1, k_dim: 4, v_dim: 4, window: None };

/// Layers with so many heads of keys each.
fn lfm2(arch: &str, kv: &[u32]) -> File {
    let file = uint(uint(model(arch), arch, "block_count", kv.len() as u32), arch, "shortconv.l_cache", 3);
    file.with(&format!("{arch}.attention.head_count_kv"), ARRAY, list(U32, kv))
}

/// Two of four experts behind one dense layer.
fn routed() -> File {
    let keys = [
        ("expert_count", 4),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 6),
        ("leading_dense_block_count", 1),
        ("expert_gating_func", 2),
    ];
    keys.iter().fold(lfm2("lfm2moe", &[0, 1, 0]), |file, &(key, n)| uint(file, "lfm2moe", key, n))
}

#[test]
fn layers_without_heads_of_keys_are_convolutions() {
    let dense = read(&lfm2("lfm2", &[0, 0, 1])).unwrap();
    assert_eq!((dense.config().model_type, &dense.states()[..]), ("lfm2", &[CONV, CONV, KV][..]));
    // The width is what the file says, not two thirds of it.
    assert_eq!((dense.config().intermediate_size, dense.config().experts), (8, None));
    let experts = read(&routed()).unwrap();
    assert_eq!((experts.config().model_type, &experts.states()[..]), ("lfm2_moe", &[CONV, KV, CONV][..]));
    let weights = experts.weights();
    let shape =
        |name: &str| weights.get(&format!("model.layers.{name}")).map(|module| module.shape().to_vec());
    assert_eq!(shape("0.feed_forward.w1"), Some(vec![8, 8]));
    assert_eq!(shape("1.feed_forward.w1"), None);
    assert_eq!(shape("1.feed_forward.experts.3.w2"), Some(vec![8, 6]));
    assert_eq!(shape("2.feed_forward.expert_bias"), Some(vec![4]));
    assert_eq!(read(&lfm2("lfm2", &[2, 2])).unwrap().states().len(), 2);
}

#[test]
fn what_convolutions_have_no_form_for_is_refused() {
    let plain = || lfm2("lfm2", &[0, 1]);
    let flag = |key: &str, is: u8| plain().with(&format!("lfm2.{key}"), BOOL, [is]);
    read(&flag("attention.causal", 1)).unwrap();
    read(&uint(plain(), "lfm2", "attention.sliding_window", 0)).unwrap();
    for (file, expected) in [
        (uint(plain(), "lfm2", "shortconv.l_cache", 1), "lfm2.shortconv.l_cache is 1, expected from 2 to 64"),
        (
            without(plain(), "lfm2.shortconv.l_cache"),
            "lfm2.shortconv.l_cache is missing, expected an integer",
        ),
        (
            without(plain(), "lfm2.feed_forward_length"),
            "lfm2.feed_forward_length is missing, expected an integer",
        ),
        (
            flag("attention.causal", 0),
            "lfm2.attention.causal is false, expected true or absent: convolutions",
        ),
        (
            uint(plain(), "lfm2", "attention.sliding_window", 6),
            "lfm2.attention.sliding_window is 6, expected 0 or absent: attention beside",
        ),
        (
            lfm2("lfm2", &[0, 1, 2]),
            "lfm2.attention.head_count_kv is a list of 3 integers, expected the same integer for each layer that has any",
        ),
        (
            uint(lfm2("lfm2", &[0, 1]), "lfm2", "block_count", 3),
            "is a list of 2, expected a number for each of 3 layers",
        ),
        (
            uint(plain(), "lfm2", "block_count", 1 << 31),
            "lfm2.block_count is 2147483648, expected an integer from 1 to 1024",
        ),
        (uint(plain(), "lfm2", "expert_count", 4), "lfm2.expert_count is 4, expected 0 or absent: experts"),
        (
            uint(routed(), "lfm2moe", "expert_gating_func", 1),
            "lfm2moe.expert_gating_func is 1, expected 2 or absent",
        ),
        (
            routed().with("lfm2moe.expert_weights_scale", F32, 1.7f32.to_le_bytes()),
            "lfm2moe.expert_weights_scale is 1.7",
        ),
    ] {
        let error = read(&file).unwrap_err().to_string();
        assert!(error.starts_with("m.gguf: ") && error.contains(expected), "{error}, expected {expected}");
    }
}
