//! `kimi_linear`: delta nets with a decay for each element of a key, beside latent attention that does not rotate, and experts that a
//! sigmoid and a bias choose: Kimi Linear 48B-A3B. Kimi Team 2025, "Kimi Linear: An Expressive, Efficient Attention Architecture".

use super::delta::{DeltaNet, Projections, taps};
use super::dense::{Dense, Qkv};
use super::list::InMlx;
use super::sparse::{ExpertNames, SharedExpert, Sparse, experts};
use super::{Arguments, Family, glm4_moe, latent};
use crate::backend::ops::{Router, Scores};
use crate::config::{Config, LatentDims, Names, Rotation, Shared, only};
use crate::error::Result;
use crate::json::{Fields, quote};

pub(super) static FAMILY: Family = Family {
    model_type: "kimi_linear",
    shared: Shared {
        names: Names { context: "model_max_length", ..latent::SHARED.names },
        context: 1 << 20,
        bos: Some(1),
        eos: &[2],
        ..latent::SHARED
    },
    arguments,
    gguf: None,
    // What mlx-lm calls them.
    prefixes: &[
        (".mlp.switch_mlp.", ".block_sparse_moe.switch_mlp."),
        (".mlp.shared_experts.", ".block_sparse_moe.shared_experts."),
        (".mlp.gate.", ".block_sparse_moe.gate."),
        (".mlp.e_score_correction_bias", ".block_sparse_moe.gate.e_score_correction_bias"),
        (".self_attn.q_conv.conv.", ".self_attn.q_conv1d."),
        (".self_attn.k_conv.conv.", ".self_attn.k_conv1d."),
        (".self_attn.v_conv.conv.", ".self_attn.v_conv1d."),
    ],
};

/// What the fields of the delta nets stand in.
const LINEAR: &str = "linear_attn_config";
const NOPE: &str = "mla_use_nope";

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    only(fields, NOPE, true, "latent attention does not rotate")?;
    if let Some(rank) = fields.get("q_lora_rank") {
        return Err(fields.error("q_lora_rank", rank, "null: queries are made of the residual stream"));
    }
    let width = |name: &str, absent: usize| fields.size_or(name, Some(absent), 1 << 16);
    let dims = LatentDims {
        query_rank: None,
        rank: width("kv_lora_rank", 512)?,
        nope_dim: width("qk_nope_head_dim", 128)?,
        rope_dim: config.head_dim,
        value_dim: width("v_head_dim", 128)?,
        pairs: false,
        eps: latent::EPS,
    };
    config.head_dim = dims.nope_dim + dims.rope_dim;
    config.latent = Some(dims);
    latent::check_heads(fields, &config)?;
    config.rotations = vec![Rotation::None; config.num_hidden_layers];
    let delta = delta(fields, &config)?;
    config.mixer_width = delta.width();
    let sparse = sparse(fields, &config)?;
    Dense { qkv: Qkv::Latent, delta: Some(delta), sparse, ..Dense::llama(config) }.boxed()
}

/// The delta nets, in the layers that `kda_layers` counts from 1.
fn delta(fields: &Fields<'_>, config: &Config) -> Result<DeltaNet> {
    const LAYERS: &str = "kda_layers";
    let own = fields.object(LINEAR)?.ok_or_else(|| fields.missing(LINEAR, "an object"))?;
    let expected = "a list of the layers that are delta nets, from 1";
    let numbers = own.tokens(LAYERS)?.ok_or_else(|| own.missing(LAYERS, expected))?;
    let layers = config.num_hidden_layers;
    if let Some(&wrong) = numbers.iter().find(|&&number| number == 0 || number as usize > layers) {
        return Err(own.error(LAYERS, wrong, format!("layers from 1 to {layers}")));
    }
    let is_net = |layer: usize| numbers.contains(&(layer as u32 + 1));
    let size = |name: &str| own.required(name, 1, 1 << 12);
    let (heads, dim) = (size("num_heads")?, size("head_dim")?);
    let kernel = taps(&own, "short_conv_kernel_size")?;
    Ok(DeltaNet {
        projections: Projections::Apart("self_attn"),
        gate_rank: Some(dim),
        sigmoid: true,
        ..DeltaNet::of((0..layers).map(is_net).collect(), [heads; 2], [dim; 2], kernel)
    })
}

/// The experts, where there are any.
fn sparse(fields: &Fields<'_>, config: &Config) -> Result<Option<Sparse>> {
    const ACTIVATION: &str = "moe_router_activation_func";
    const COUNT: &str = "num_experts";
    if fields.get(COUNT).is_none() || fields.size(COUNT, 0, 1 << 16)? == Some(0) {
        return Ok(None);
    }
    if let Some(other) = fields.string(ACTIVATION)?.filter(|&name| name != "sigmoid") {
        return Err(fields.error(ACTIVATION, quote(other), "sigmoid"));
    }
    let size = experts(fields, [COUNT, "num_experts_per_token", "moe_intermediate_size"], [0, 1, 0])?;
    let layers = config.num_hidden_layers;
    let first = fields.size("first_k_dense_replace", 0, 1 << 16)?.unwrap_or(0);
    let every = fields.size_or("moe_layer_freq", Some(1), 1 << 16)?;
    let shared = fields.size("num_shared_experts", 0, 1 << 10)?.unwrap_or(0);
    let normalise = fields.flag("moe_renormalize")?.unwrap_or(true).then_some(1e-20);
    let scale = fields.number("routed_scaling_factor", -1e6, 1e6)?.unwrap_or(1.0) as f32;
    let names = ["num_expert_group", "topk_group", "num_experts_per_token"];
    let groups = match fields.flag("use_grouped_topk")?.unwrap_or(true) {
        true => glm4_moe::groups(fields, names, [size.count, size.used], [1, 1], 2)?,
        false => None,
    };
    let softmax = Sparse::softmax(layers, size, config.hidden_act);
    Ok(Some(Sparse {
        layers: (0..layers).map(|layer| layer >= first && layer.is_multiple_of(every)).collect(),
        router: ("block_sparse_moe.gate", "ffn_gate_inp"),
        bias: Some(("block_sparse_moe.gate.e_score_correction_bias", "exp_probs_b")),
        names: ExpertNames::BLOCK,
        routing: Router { scores: Scores::Sigmoid, normalise, scale, groups, ..softmax.routing },
        shared: (shared > 0).then_some(SharedExpert {
            names: [
                ("block_sparse_moe.shared_experts.gate_proj", "ffn_gate_shexp"),
                ("block_sparse_moe.shared_experts.up_proj", "ffn_up_shexp"),
                ("block_sparse_moe.shared_experts.down_proj", "ffn_down_shexp"),
            ],
            inner: shared * size.inner,
            field: "num_shared_experts * moe_intermediate_size",
            gate: None,
        }),
        in_mlx: InMlx { eight_bits: &["block_sparse_moe.gate"], ..InMlx::default() },
        ..softmax
    }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use crate::backend::ops::{RecurrentShape, StateSpec};
    use crate::forward::Architecture;

    fn parse(fields: &Value) -> crate::error::Result<Architecture> {
        let mut config = json!({
            "model_type": "kimi_linear", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
            "num_attention_heads": 2, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5,
            "linear_attn_config": {"kda_layers": [1, 2, 3], "full_attn_layers": [4], "num_heads": 2, "head_dim": 4},
        });
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        Architecture::parse(Path::new("config.json"), config.to_string().as_bytes())
    }

    fn linear(change: &str, value: Value) -> Value {
        let mut own = json!({"kda_layers": [1], "num_heads": 2, "head_dim": 4});
        own[change] = value;
        json!({ "linear_attn_config": own })
    }

    #[test]
    fn layers_keep_what_their_kinds_say() {
        let shape = RecurrentShape { taps: 3, channels: 24, heads: 2, rows: 4, columns: 4 };
        let net = StateSpec::Recurrent(shape);
        let latent = StateSpec::Latent { rank: 8, rope_dim: 4 };
        let plain = parse(&json!({})).unwrap();
        assert_eq!(plain.states(), [net, net, net, latent]);
        assert_eq!(plain.config().experts, None);
        let experts = json!({"num_experts": 4, "moe_intermediate_size": 8, "first_k_dense_replace": 1, "num_shared_experts": 2});
        let experts = parse(&experts).unwrap().config().experts.unwrap();
        assert_eq!((experts.count, experts.used, experts.inner, experts.shared), (4, 1, 8, 16));
    }

    #[test]
    fn hostile_fields_are_refused() {
        let experts = |name: &str, value: Value| {
            let mut fields =
                json!({"num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 8});
            fields[name] = value;
            fields
        };
        for (fields, expected) in [
            (json!({"mla_use_nope": false}), "mla_use_nope is false, expected true"),
            (json!({"q_lora_rank": 8}), "q_lora_rank is 8, expected null"),
            (json!({"kv_lora_rank": 0}), "kv_lora_rank is 0, expected an integer from 1"),
            (json!({"linear_attn_config": null}), "linear_attn_config is missing, expected an object"),
            (
                linear("kda_layers", json!([0])),
                "linear_attn_config.kda_layers is 0, expected layers from 1 to 4",
            ),
            (
                linear("kda_layers", json!([5])),
                "linear_attn_config.kda_layers is 5, expected layers from 1 to 4",
            ),
            (linear("kda_layers", Value::Null), "linear_attn_config.kda_layers is missing, expected a list"),
            (linear("head_dim", json!(0)), "linear_attn_config.head_dim is 0, expected an integer from 1"),
            (
                linear("short_conv_kernel_size", json!(1)),
                "linear_attn_config.short_conv_kernel_size is 1, expected from 2",
            ),
            (
                experts("moe_router_activation_func", json!("softmax")),
                "moe_router_activation_func is \"softmax\", expected sigmoid",
            ),
            (experts("num_experts_per_token", json!(5)), "num_experts_per_token is 5, expected at most 4"),
            (experts("num_expert_group", json!(3)), "num_expert_group is 3, expected groups of 2"),
        ] {
            let error = parse(&fields).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {expected}")), "{error}");
        }
    }
}
