//! What files say of Mamba 2, and of layers that are one.

use super::experts::{read, uint, without};
use super::{ARRAY, BOOL, File, list, model, open};
use crate::backend::ops::{RecurrentShape, StateSpec};
use crate::forward::Architecture;

const U32: u32 = 4;
/// Four heads of 5, two groups of 3 rows, three taps.
const MATRIX: StateSpec =
    StateSpec::Recurrent(RecurrentShape { taps: 2, channels: 20 + 12, heads: 4, rows: 3, columns: 5 });

fn kv(heads: usize) -> StateSpec {
    StateSpec::Kv { heads, k_dim: 4, v_dim: 4, window: None }
}

/// A model to be read but for what a test changes.
fn mamba(arch: &str) -> File {
    let keys = [
        ("ssm.conv_kernel", 3),
        ("ssm.state_size", 3),
        ("ssm.group_count", 2),
        ("ssm.time_step_rank", 4),
        ("ssm.inner_size", 20),
    ];
    keys.iter().fold(model(arch), |file, &(key, n)| uint(file, arch, key, n))
}

fn by_layer(file: File, arch: &str, key: &str, all: &[u32]) -> File {
    file.with(&format!("{arch}.{key}"), ARRAY, list(U32, all))
}

/// Granite's heads are twice as wide as the model together.
fn granite(kv: &[u32]) -> File {
    const ARCH: &str = "granitehybrid";
    let file = uint(uint(mamba(ARCH), ARCH, "ssm.inner_size", 16), ARCH, "block_count", kv.len() as u32);
    let file = file.with(&format!("{ARCH}.rope.scaling.finetuned"), BOOL, [0u8]);
    by_layer(file, ARCH, "attention.head_count_kv", kv)
}

fn nemotron(arch: &str, kv: &[u32], inner: &[u32]) -> File {
    let file = uint(mamba(arch), arch, "block_count", kv.len() as u32);
    let file = by_layer(file, arch, "attention.head_count_kv", kv);
    by_layer(file, arch, "feed_forward_length", inner)
}

/// One of experts, with a latent vector.
fn routed(kv: &[u32], inner: &[u32]) -> File {
    const ARCH: &str = "nemotron_h_moe";
    let keys = [
        ("expert_count", 4),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 6),
        ("expert_shared_feed_forward_length", 7),
        ("expert_shared_count", 1),
        ("moe_latent_size", 9),
    ];
    keys.iter().fold(nemotron(ARCH, kv, inner), |file, &(key, n)| uint(file, ARCH, key, n))
}

#[track_caller]
fn refused(file: &File, what: &str) {
    let error = read(file).unwrap_err().to_string();
    assert!(error.starts_with("m.gguf: ") && error.contains(what), "{error}, expected {what}");
}

#[test]
fn numbers_of_0_say_which_layers_are_which() {
    let granite = read(&granite(&[0, 0, 1])).unwrap();
    let StateSpec::Recurrent(shape) = MATRIX else { unreachable!() };
    let narrow = StateSpec::Recurrent(RecurrentShape { channels: 16 + 12, columns: 4, ..shape });
    assert_eq!(granite.states(), [narrow, narrow, kv(1)]);
    assert_eq!((granite.config().experts, granite.config().intermediate_size), (None, 8));

    let dense = read(&nemotron("nemotron_h", &[0, 0, 2, 0], &[0, 8, 0, 0])).unwrap();
    assert_eq!(dense.states(), [MATRIX, kv(2), MATRIX]);
    assert!(dense.weights().get("backbone.layers.1.mixer.up_proj").is_some());
    let experts = read(&routed(&[0, 0, 2], &[0, 6, 0])).unwrap();
    assert_eq!((experts.config().model_type, &experts.states()[..]), ("nemotron_h", &[MATRIX, kv(2)][..]));
    let weights = experts.weights();
    let shape = |name: &str| weights.get(&format!("backbone.layers.1.mixer.{name}")).unwrap().shape();
    assert_eq!(shape("experts.3.up_proj")[..], [6, 9]);
    assert_eq!(shape("shared_experts.down_proj")[..], [8, 7]);
    assert_eq!(shape("fc2_latent_proj")[..], [8, 9]);

    let alone =
        uint(uint(mamba("mamba2"), "mamba2", "attention.head_count", 0), "mamba2", "feed_forward_length", 0);
    let alone = uint(uint(alone, "mamba2", "context_length", 1 << 20), "mamba2", "block_count", 2);
    assert_eq!(read(&alone).unwrap().states(), [MATRIX; 2]);
    // Beside attention in each layer, with a norm where the file has one.
    let both = mamba("falcon-h1");
    assert_eq!(read(&both).unwrap().states(), [MATRIX, kv(2)]);
    const NORM: &str = "model.layers.0.mamba.norm";
    assert!(read(&both).unwrap().weights().get(NORM).is_none());
    let normed = both.tensor("blk.0.ssm_norm.weight", &[10, 2], 0, 1024);
    assert!(read(&normed).unwrap().weights().get(NORM).is_some());
}

/// Its norms may go by the name of others.
#[test]
fn either_number_of_norms_will_do() {
    let file = nemotron("nemotron_h", &[0, 2], &[0, 0]);
    for key in ["layer_norm_rms_epsilon", "layer_norm_epsilon"] {
        let one = without(file.clone(), &format!("nemotron_h.attention.{key}"));
        assert_eq!(read(&one).unwrap().config().norm_eps, 1e-5);
    }
    let none = ["layer_norm_rms_epsilon", "layer_norm_epsilon"]
        .iter()
        .fold(file, |file, key| without(file, &format!("nemotron_h.attention.{key}")));
    refused(&none, "nemotron_h.attention.layer_norm_rms_epsilon is missing");
}

#[test]
fn layers_that_predict_further_tokens_are_left_out() {
    let file = uint(routed(&[0, 0, 2, 2], &[0, 6, 0, 6]), "nemotron_h_moe", "nextn_predict_layers", 1);
    assert_eq!(read(&file).unwrap().states(), [MATRIX, kv(2)]);
    assert_eq!(read(&file).unwrap().config().num_hidden_layers, 3);
}

/// A row for each head, or for each group; and a norm whose name has no end.
#[test]
fn vectors_may_have_rows() {
    let mut file = mamba("falcon-h1");
    for (i, (name, dims)) in [
        ("blk.0.ssm_a", vec![1, 4]),
        ("blk.0.ssm_d", vec![1, 4]),
        ("blk.0.ssm_norm.weight", vec![10, 2]),
        ("blk.0.ffn_norm", vec![8]),
    ]
    .into_iter()
    .enumerate()
    {
        file = file.tensor(name, &dims, 0, 1024 + 128 * i as u64);
    }
    let mut checkpoint = open(File { data: 4096, ..file }.bytes()).unwrap();
    Architecture::from_gguf(&checkpoint).unwrap().adopt(&mut checkpoint).unwrap();
    for (name, size) in [("mamba.A_log", 4), ("mamba.D", 4), ("mamba.norm", 20), ("pre_ff_layernorm", 8)] {
        let found = checkpoint.find(&format!("model.layers.0.{name}.weight")).unwrap();
        assert_eq!(found.shape(), [size], "{name}");
    }
}

#[test]
fn hostile_numbers_are_refused() {
    let dense = |kv: &[u32], inner: &[u32]| nemotron("nemotron_h", kv, inner);
    refused(
        &dense(&[1, 0, 2], &[0, 8, 0]),
        "nemotron_h.attention.head_count_kv is a list of 3 integers, expected the same integer for each layer that has any",
    );
    refused(
        &dense(&[0, 2, 0], &[8, 0]),
        "feed_forward_length is a list of 2, expected a number for each of 3 layers",
    );
    refused(
        &dense(&[0, 0], &[8, 0]).with("nemotron_h.ssm.inner_size", U32, 21u32.to_le_bytes()),
        "ssm.inner_size is 21, expected a multiple of 4",
    );
    refused(
        &uint(mamba("mamba2"), "mamba2", "ssm.group_count", 3),
        "mamba2.ssm.group_count is 3, expected a divisor of",
    );
    refused(&without(mamba("falcon-h1"), "falcon-h1.ssm.state_size"), "falcon-h1.ssm.state_size is missing");
    refused(
        &uint(dense(&[0], &[0]), "nemotron_h", "block_count", 1 << 31),
        "expected an integer from 1 to 1024",
    );
    refused(
        &without(granite(&[0, 2]), "granitehybrid.rope.scaling.finetuned"),
        "granitehybrid.rope.scaling.finetuned is missing, expected false: heads",
    );
    refused(
        &uint(granite(&[0, 2]), "granitehybrid", "ssm.inner_size", 20),
        "granitehybrid.ssm.inner_size is 20, expected 16, twice",
    );
    refused(
        &uint(granite(&[0, 2]), "granitehybrid", "expert_count", 4),
        "granitehybrid.expert_used_count is missing",
    );
    refused(
        &uint(routed(&[0, 0], &[0, 6]), "nemotron_h_moe", "expert_group_count", 2),
        "expert_group_count is 2, expected 0, 1 or absent",
    );
    refused(
        &without(routed(&[0, 0], &[0, 6]), "nemotron_h_moe.expert_shared_feed_forward_length"),
        "expert_shared_feed_forward_length is missing",
    );
}
