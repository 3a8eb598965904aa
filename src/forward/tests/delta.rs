//! What gated delta nets are, by their configurations.

use std::sync::Arc;

use super::*;
use crate::backend::Routing;
use crate::backend::batch::Batch;
use crate::backend::cpu::CpuBackend;
use crate::backend::kv::KvType;
use crate::backend::ops::RecurrentShape;
use crate::config::Rotation;
use crate::engine::Runtime;

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

/// Members of a `config.json` of four layers of Kimi Linear.
fn kimi(fields: Value) -> Value {
    let linear = json!({
        "kda_layers": [1, 2, 4], "full_attn_layers": [3], "num_heads": 3, "head_dim": 4, "short_conv_kernel_size": 5,
    });
    with(json!({"linear_attn_config": linear, "num_experts": 8, "head_dim": null}), fields)
}

#[test]
fn kimi_linear_says_its_layers_in_two_ways() {
    let read = |fields: Value| {
        let config = with(tiny("kimi_linear"), fields).to_string();
        Architecture::parse(Path::new("config.json"), config.as_bytes()).unwrap()
    };
    let net = |taps: usize, heads: usize, dim: usize| {
        let channels = 3 * heads * dim;
        StateSpec::Recurrent(RecurrentShape { taps, channels, heads, rows: dim, columns: dim })
    };
    let (own, latent) = (net(4, 3, 4), StateSpec::Latent { rank: 512, rope_dim: 64 });
    assert_eq!(read(kimi(json!({}))).states(), [own, own, latent, own]);
    // What transformers saves, which holds where both are there.
    let types = json!(["full_attention", "linear_attention", "full_attention", "linear_attention"]);
    let saved = json!({"layer_types": types, "linear_num_heads": 2, "linear_head_dim": 6, "linear_conv_kernel_dim": 2});
    assert_eq!(read(saved.clone()).states(), [latent, net(1, 2, 6), latent, net(1, 2, 6)]);
    assert_eq!(read(kimi(saved)).states(), [latent, own, latent, own]);
    // The first of five layers is one, whatever its number.
    let absent = read(json!({"num_hidden_layers": 6}));
    let own = net(3, 32, 128);
    assert_eq!(absent.states(), [own, own, own, own, latent, own]);
    let config = absent.config();
    assert_eq!(config.rotations, [Rotation::None; 6]);
    assert_eq!((config.max_position_embeddings, config.norm_eps), (1 << 20, 1e-5));
    assert_eq!((config.bos_token_id, &*config.eos_token_ids), (Some(163_584), &[163_586][..]));
    let experts = config.experts.unwrap();
    assert_eq!((experts.count, experts.used, experts.inner, experts.shared), (256, 8, 1024, 1024));
    assert_eq!((experts.everywhere, experts.normalised), (false, true));
    let dims = config.latent.unwrap();
    assert_eq!((dims.query_rank, dims.nope_dim, dims.value_dim, dims.eps), (None, 128, 128, 1e-6));
    let some = json!({"q_lora_rank": 24, "num_shared_experts": 0, "first_k_dense_replace": 0});
    let some = read(kimi(some));
    assert_eq!(some.config().latent.unwrap().query_rank, Some(24));
    assert_eq!(some.config().experts.map(|experts| (experts.shared, experts.everywhere)), Some((0, true)));
    assert!(read(kimi(json!({"num_experts": null}))).config().experts.is_none());
}

#[test]
fn kimi_linear_refuses_what_is_not_built() {
    let wrong = |fields: Value, expected: &str| refused_in("kimi_linear", kimi(fields), expected);
    wrong(
        json!({"mla_use_nope": false}),
        "mla_use_nope is false, expected true: attention rotates in no model",
    );
    wrong(json!({"hidden_act": "gelu"}), "hidden_act is \"gelu\", expected silu, which is behind");
    wrong(json!({"moe_layer_freq": 2}), "moe_layer_freq is 2, expected 1: experts in each layer behind");
    wrong(
        json!({"moe_router_activation_func": "softmax"}),
        "moe_router_activation_func is \"softmax\", expected sigmoid",
    );
    wrong(
        json!({"num_expert_group": 3}),
        "num_expert_group is 3, expected groups of 2 or more that make up 8 experts",
    );
    wrong(
        json!({"num_expert_group": 4, "topk_group": 5}),
        "topk_group is 5, expected at most 4, the number of groups",
    );
    wrong(
        json!({"num_expert_group": 4, "num_experts_per_token": 3}),
        "num_experts_per_token is 3, expected at most those of 1 groups",
    );
    wrong(
        json!({"num_experts_per_token": 9}),
        "num_experts_per_token is 9, expected at most 8, of 8 experts",
    );
    wrong(json!({"kv_lora_rank": 0}), "kv_lora_rank is 0, expected an integer from 1 to 65536");
    let linear = |fields: Value, expected: &str| {
        let linear = with(kimi(json!({}))["linear_attn_config"].clone(), fields);
        wrong(json!({"linear_attn_config": linear}), &format!("linear_attn_config.{expected}"));
    };
    linear(json!({"num_heads": 0}), "num_heads is 0, expected an integer from 1 to 65536");
    linear(json!({"head_dim": "4"}), "head_dim is \"4\", expected an integer from 1 to 65536");
    linear(json!({"short_conv_kernel_size": 1}), "short_conv_kernel_size is 1, expected from 2 to 64");
    linear(json!({"kda_layers": [-1]}), "kda_layers[0] is -1, expected a token id");
    linear(
        json!({"full_attn_layers": [3, 4]}),
        "full_attn_layers is [3, 4], expected the layers that kda_layers does not name, and it is wrong of 4",
    );
    linear(json!({"full_attn_layers": []}), "full_attn_layers is [], expected the layers");
    wrong(json!({"linear_attn_config": 3}), "linear_attn_config is 3, expected an object");
}

/// The product of each row of a matrix with `x`.
fn product(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

fn normed(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x / (mean + eps).sqrt() * w).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn a_layer_of_kimi_linear_is_what_naive_loops_make_of_it() {
    const TOKENS: [u32; 11] = [1, 7, 9, 30, 12, 50, 7, 3, 22, 41, 64];
    const EPS: f64 = 1e-2;
    let (heads, dim, taps) = (2, 8, 4);
    // The first layer of a model, and none behind it.
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/kimi_linear-experts");
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["num_hidden_layers"] = json!(1);
    let mut own = Architecture::parse(&path, config.to_string().as_bytes()).unwrap();
    let mut checkpoint = Checkpoint::open(&dir).unwrap();
    own.adopt(&mut checkpoint).unwrap();
    let dispatch = LlmBackendDispatch::cpu(CpuBackend::new(Some(1), None), Routing::default());
    let forward = own.load(&checkpoint, &dispatch, false).unwrap().forward;
    let runtime = Runtime::new(Arc::new(own.config().clone()), forward, dispatch, KvType::F32).unwrap();
    let mut got = Vec::new();
    let mut tap = |name: &str, value: &_| {
        if name == "layers.0" {
            got.extend_from_slice(runtime.dispatch().to_host(value)?.data());
        }
        Ok(())
    };
    let mut sequence = runtime.sequence(TOKENS.len());
    runtime
        .build(&Batch::of(&[(0, &TOKENS[..])]), std::slice::from_mut(&mut sequence), Some(&mut tap))
        .unwrap();

    let weight = |name: &str| -> Vec<f64> {
        let shape = checkpoint.find(name).unwrap().shape().to_vec();
        let values = checkpoint.get(name, &shape).unwrap().widened().unwrap();
        values.into_iter().map(f64::from).collect()
    };
    let of = |name: &str| weight(&format!("model.layers.0.{name}.weight"));
    let attn = |name: &str| of(&format!("self_attn.{name}"));
    let embedding = weight("model.embed_tokens.weight");
    let shift = weight("model.layers.0.self_attn.dt_bias.bias");
    let (rate, width) = (attn("A_log"), own.config().hidden_size);
    let mut seen: Vec<[Vec<f64>; 3]> = Vec::new();
    let mut held = vec![vec![vec![0.0; dim]; dim]; heads]; // of each head, a row for each element of a key
    for (t, &token) in TOKENS.iter().enumerate() {
        let mut x = embedding[token as usize * width..][..width].to_vec();
        let h = normed(&x, &of("input_layernorm"), EPS);
        let through = |down: &str, up: &str| product(&attn(up), &product(&attn(down), &h));
        seen.push(["q_proj", "k_proj", "v_proj"].map(|name| product(&attn(name), &h)));
        let convolved = |which: usize, name: &str| -> Vec<f64> {
            let by = attn(name);
            let channel = |c: usize| {
                let before =
                    |tap: usize| (t + tap + 1).checked_sub(taps).map_or(0.0, |at| seen[at][which][c]);
                let sum: f64 = (0..taps).map(|tap| by[c * taps + tap] * before(tap)).sum();
                sum * sigmoid(sum)
            };
            (0..heads * dim).map(channel).collect()
        };
        let [q, k, v] = [convolved(0, "q_conv1d"), convolved(1, "k_conv1d"), convolved(2, "v_conv1d")];
        let (gate, open) = (through("f_a_proj", "f_b_proj"), through("g_a_proj", "g_b_proj"));
        let beta = product(&attn("b_proj"), &h);
        let mut out = Vec::new();
        for (head, held) in held.iter_mut().enumerate() {
            let part = |of: &[f64]| of[head * dim..][..dim].to_vec();
            let unit = |of: &[f64]| normed(&part(of), &vec![(dim as f64).powf(-0.5); dim], 1e-6 / dim as f64);
            let (q, k, v) = (unit(&q), unit(&k), part(&v));
            for (row, (gate, shift)) in held.iter_mut().zip(part(&gate).into_iter().zip(part(&shift))) {
                let decay = (-rate[head].exp() * (gate + shift).exp().ln_1p()).exp();
                row.iter_mut().for_each(|x| *x *= decay);
            }
            for c in 0..dim {
                let found: f64 = held.iter().zip(&k).map(|(row, k)| row[c] * k).sum();
                let change = sigmoid(beta[head]) * (v[c] - found);
                held.iter_mut().zip(&k).for_each(|(row, k)| row[c] += k * change);
            }
            let read = |c: usize| -> f64 { held.iter().zip(&q).map(|(row, q)| row[c] * q).sum() };
            let given: Vec<f64> = (0..dim).map(|c| read(c) * (dim as f64).powf(-0.5)).collect();
            let given = normed(&given, &attn("o_norm"), EPS);
            out.extend(given.into_iter().zip(part(&open)).map(|(x, open)| x * sigmoid(open)));
        }
        x.iter_mut().zip(product(&attn("o_proj"), &out)).for_each(|(x, y)| *x += y);
        let h = normed(&x, &of("post_attention_layernorm"), EPS);
        let (gate, up) = (product(&of("mlp.gate_proj"), &h), product(&of("mlp.up_proj"), &h));
        let inner: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate * sigmoid(*gate) * up).collect();
        x.iter_mut().zip(product(&of("mlp.down_proj"), &inner)).for_each(|(x, y)| *x += y);
        for (i, (got, x)) in got[t * width..][..width].iter().zip(&x).enumerate() {
            assert!((f64::from(*got) - x).abs() < 1e-5 * (1.0 + x.abs()), "token {t}, {i}: {got} for {x}");
        }
    }
    assert_eq!(got.len(), TOKENS.len() * width);
}
