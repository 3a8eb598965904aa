//! `kimi_linear`: delta nets that decay by each element of a key in three of four layers, DeepSeek's latent attention without
//! rotation in the others, and experts that a sigmoid and a bias choose: Kimi Linear.
//! Kimi Team 2025, "Kimi Linear: An Expressive, Efficient Attention Architecture".

use super::delta::{DeltaNet, Projections};
use super::dense::{Dense, Qkv};
use super::gguf_members::{LLAMA_CPP, Members};
use super::list::InMlx;
use super::sparse::{ExpertNames, SharedExpert, Sparse, experts};
use super::taps::taps;
use super::{
    Arguments, Family, Gguf, GgufExperts, gguf_latent, gguf_mamba, glm4_moe, glm4_moe_lite, latent,
    qwen3_5_text,
};
use crate::backend::ops::{Router, Scores};
use crate::config::{Activation, Config, Names, Rotation, Shared, only};
use crate::error::Result;
use crate::json::{Fields, Value, quote};
use crate::weights::Checkpoint;

pub(super) static FAMILY: Family = Family {
    model_type: "kimi_linear",
    shared: Shared {
        names: Names { context: "model_max_length", ..latent::SHARED.names },
        vocab: Some(163_840),
        layers: Some(27),
        heads: Some(32),
        context: 1 << 20,
        eps: 1e-5,
        bos: Some(163_584),
        eos: &[163_586],
        ..latent::SHARED
    },
    arguments,
    gguf: Some(Gguf {
        experts: Some(GgufExperts {
            count: COUNT,
            used: EACH,
            shared: Some(SHARED),
            dense: Some("first_k_dense_replace"),
            scale: Some("routed_scaling_factor"),
            ..GgufExperts::SIGMOID
        }),
        head_dim: gguf_latent::dims,
        parts: true,
        rotates: false,
        members,
        entries: None,
        ..Gguf::plain("kimi-linear")
    }),
    // The list has mlx-lm's names of experts, and the published ones of the rest.
    prefixes: &[
        (".block_sparse_moe.", ".mlp."),
        (".mlp.gate.e_score_correction_bias", ".mlp.e_score_correction_bias"),
        (".q_conv.conv.", ".q_conv1d."),
        (".k_conv.conv.", ".k_conv1d."),
        (".v_conv.conv.", ".v_conv1d."),
    ],
};

/// The number of experts, how many a token goes to, and of those that each goes to.
const COUNT: &str = "num_experts";
const EACH: &str = "num_experts_per_token";
const SHARED: &str = "num_shared_experts";

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    only(fields, "mla_use_nope", true, "attention rotates in no model of the family")?;
    if config.hidden_act != Activation::Silu {
        let act = quote(fields.string("hidden_act")?.unwrap_or_default());
        return Err(fields.error("hidden_act", act, "silu, which is behind the convolutions, too"));
    }
    latent::read(fields, &mut config, [0, 512], [128, 128])?;
    if let Some(latent) = &mut config.latent {
        latent.pairs = false;
    }
    // Parameters of a rotation that there is not.
    config.attention_multiplier = None;
    config.rotations = vec![Rotation::None; config.num_hidden_layers];
    let delta = delta(fields, config.num_hidden_layers)?;
    config.mixer_width = delta.width();
    let sparse = sparse(fields, &config)?;
    Dense { qkv: Qkv::Latent, delta: Some(delta), sparse, ..Dense::llama(config) }.boxed()
}

/// The delta nets, as `linear_attn_config` has them, which counts layers from 1 on, or fields beside it.
fn delta(fields: &Fields<'_>, layers: usize) -> Result<DeltaNet> {
    const LINEAR: &str = "kda_layers";
    const FULL: &str = "full_attn_layers";
    const KERNEL: &str = "short_conv_kernel_size";
    const MOST: usize = 1 << 16;
    let own = fields.object("linear_attn_config")?;
    let within = |name: &str| own.as_ref().filter(|own| own.get(name).is_some());
    let size = |name: &'static str, beside: &'static str, absent: usize| match within(name) {
        Some(own) => own.required(name, 1, MOST),
        None => fields.size_or(beside, Some(absent), MOST),
    };
    let heads = size("num_heads", "linear_num_heads", 32)?;
    let head_dim = size("head_dim", "linear_head_dim", 128)?;
    let kernel = match within(KERNEL) {
        Some(own) => taps(own, KERNEL)?,
        None => taps(fields, "linear_conv_kernel_dim")?,
    };
    let listed = match within(LINEAR).filter(|_| fields.get("layer_types").is_none()) {
        Some(own) => own.tokens(LINEAR)?.map(|listed| (own, listed)),
        None => None,
    };
    let is_in = |list: &[u32], layer: usize| list.contains(&(layer as u32 + 1));
    let linear: Vec<bool> = match listed {
        Some((own, listed)) => {
            let is: Vec<bool> = (0..layers).map(|layer| is_in(&listed, layer)).collect();
            if let Some(full) = own.tokens(FULL)?
                && let Some(layer) = (0..layers).find(|&layer| is_in(&full, layer) == is[layer])
            {
                let expected =
                    format!("the layers that {LINEAR} does not name, and it is wrong of {}", layer + 1);
                return Err(own.error(FULL, format!("{full:?}"), expected));
            }
            is
        }
        None => qwen3_5_text::linear_layers(fields, layers, |i| i == 0 || !i.is_multiple_of(4))?,
    };
    Ok(DeltaNet {
        projections: Projections::Apart("self_attn"),
        gate_rank: Some(head_dim),
        sigmoid: true,
        whole_rates: fields.flag(LLAMA_CPP)?.unwrap_or(false),
        ..DeltaNet::of(linear, [heads; 2], [head_dim; 2], kernel)
    })
}

/// Reads what files have of the delta nets: layers without heads of keys are such.
fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    let word = |has_keys, _| if has_keys { "full_attention" } else { "linear_attention" };
    gguf_mamba::kinds(members, "layer_types", word)?;
    let heads = members.uint("num_attention_heads");
    members.put("linear_num_heads", members.key("attention.head_count"), Value::UInt(heads));
    members.required("linear_head_dim", "kda.head_dim")?;
    members.required("linear_conv_kernel_dim", "ssm.conv_kernel")?;
    Ok(())
}

/// Experts, where the configuration does not say that there are none.
fn sparse(fields: &Fields<'_>, config: &Config) -> Result<Option<Sparse>> {
    const SCORES: &str = "moe_router_activation_func";
    const EVERY: &str = "moe_layer_freq";
    if fields.is_null(COUNT) {
        return Ok(None);
    }
    if let Some(other) = fields.string(SCORES)?.filter(|&scores| scores != "sigmoid") {
        return Err(fields.error(SCORES, quote(other), "sigmoid"));
    }
    if let Some(every) = fields.size(EVERY, 0, 1 << 16)?.filter(|&every| every != 1) {
        return Err(fields.error(EVERY, every, "1: experts in each layer behind the dense ones"));
    }
    let size = experts(fields, [COUNT, EACH, "moe_intermediate_size"], [256, 8, 1024])?;
    let layers = match glm4_moe_lite::mlp_layer_types(fields, config.num_hidden_layers)? {
        Some(layers) => layers,
        None => {
            let first = fields.size("first_k_dense_replace", 0, 1 << 16)?.unwrap_or(1);
            (0..config.num_hidden_layers).map(|layer| layer >= first).collect()
        }
    };
    let normalise = fields.flag("moe_renormalize")?.unwrap_or(true).then_some(1e-20);
    let scale = fields.number("routed_scaling_factor", -1e6, 1e6)?.unwrap_or(2.446) as f32;
    let groups = ["num_expert_group", "topk_group", EACH];
    let groups = glm4_moe::groups(fields, groups, [size.count, size.used], [1, 1], 2)?;
    let shared = fields.size(SHARED, 0, 1 << 10)?.unwrap_or(1);
    let softmax = Sparse::softmax(config.num_hidden_layers, size, config.hidden_act);
    Ok(Some(Sparse {
        layers,
        bias: Some(("mlp.e_score_correction_bias", "exp_probs_b")),
        routing: Router { scores: Scores::Sigmoid, groups, normalise, scale, ..softmax.routing },
        names: ExpertNames { parts: ExpertNames::BLOCK.parts, ..ExpertNames::PLAIN },
        shared: (shared > 0).then_some(SharedExpert {
            names: SharedExpert::PLURAL,
            inner: shared * size.inner,
            field: "num_shared_experts * moe_intermediate_size",
            gate: None,
        }),
        in_mlx: InMlx { eight_bits: &["mlp.gate"], ..InMlx::default() },
        ..softmax
    }))
}
