//! What gated delta nets are, by their configurations.

use super::*;
use crate::backend::ops::RecurrentShape;
use crate::config::Rotation;

#[test]
fn delta_nets_take_their_sizes_from_others_where_they_are_absent() {
    let states = |family: &str, fields: Value| {
        let config = with(tiny(family), fields).to_string();
        Architecture::parse(Path::new("config.json"), config.as_bytes()).unwrap().states()
    };
    let net = |taps: usize, heads: [usize; 2], rows: usize, columns: usize| {
        let channels = 2 * heads[0] * rows + heads[1] * columns;
        StateSpec::Recurrent(RecurrentShape { taps, channels, heads: heads[1], rows, columns })
    };
    let kv = StateSpec::Kv { heads: 2, k_dim: 4, v_dim: 4, window: None };
    // 3/4 of the width for keys of as many heads as attention has, twice that for values.
    let own = net(3, [4, 4], 3, 6);
    assert_eq!(states("olmo_hybrid", json!({})), [own, own, own, kv]);
    let null =
        json!({"linear_num_key_heads": null, "linear_num_value_heads": null, "linear_key_head_dim": null});
    assert_eq!(states("olmo_hybrid", null), [own, own, own, kv]);
    assert_eq!(states("olmo_hybrid", json!({"num_hidden_layers": 3})), [own, own, kv]);
    let types = json!(["linear_attention", "full_attention", "full_attention", "linear_attention"]);
    let some = json!({"layer_types": types, "linear_num_key_heads": 2, "linear_conv_kernel_dim": 2});
    let own = net(1, [2, 4], 6, 12);
    assert_eq!(states("olmo_hybrid", some), [own, kv, kv, own]);

    // A base that is null turns nothing; one that is absent does.
    let rotations = |fields: Value| resolve("olmo_hybrid", fields).rotations;
    assert_eq!(rotations(json!({"rope_parameters": {"rope_type": null}})), [Rotation::None; 4]);
    assert_eq!(rotations(json!({"rope_parameters": {"rope_theta": null}})), [Rotation::None; 4]);
    assert_eq!(rotations(json!({"rope_parameters": null})), [Rotation::Global; 4]);

    refused_in("olmo_hybrid", json!({"clip_qkv": 8.0}), "clip_qkv is 8.0, expected null");
    refused_in(
        "olmo_hybrid",
        json!({"linear_num_key_heads": 3}),
        "linear_num_value_heads is 4, expected a multiple of linear_num_key_heads, 3",
    );
    refused_in(
        "olmo_hybrid",
        json!({"linear_conv_kernel_dim": 1}),
        "linear_conv_kernel_dim is 1, expected from 2 to 64",
    );
    refused_in(
        "olmo_hybrid",
        json!({"layer_types": ["mamba", "mamba", "mamba", "mamba"]}),
        "layer_types[0] is \"mamba\", expected linear_attention",
    );
}
