//! `gpt2`: positions in a table of their own, layer norms, fused projections whose rows are columns.
//! Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".

use super::dense::{Dense, MlpNames, NormKind, Qkv};
use super::gguf_members::LAYER_EPS;
use super::{Arguments, Family, Gguf};
use crate::config::{Activation, Config, Names, Rotation, Shared, only};
use crate::error::Result;
use crate::json::Fields;
use crate::weights::gguf::write::Entries;

pub(super) static FAMILY: Family = Family {
    model_type: "gpt2",
    shared: Shared {
        names: Names {
            head_dim: "head_dim",
            hidden_size: "n_embd",
            intermediate_size: "n_inner",
            four_times: true,
            inner_by_layer: false,
            layers: "n_layer",
            heads: "n_head",
            kv_heads: None,
            context: "n_positions",
            eps: "layer_norm_epsilon",
            act: "activation_function",
        },
        context: 1024,
        eps: 1e-5,
        act: "gelu_new",
        tied: true,
        bos: Some(50_256),
        eos: &[50_256],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        eps: LAYER_EPS,
        activations: &[Activation::GeluTanh],
        entries: Some(entries),
        ..Gguf::plain("gpt2")
    }),
    prefixes: &[("transformer.", ""), ("model.", "")],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    only(fields, "add_cross_attention", false, "there is nothing else to attend to")?;
    config.scores_by_layer = fields.flag("scale_attn_by_inverse_layer_idx")?.unwrap_or(false);
    if fields.flag("scale_attn_weights")? == Some(false) {
        config.attention_multiplier = Some(1.0);
    }
    config.rotations = vec![Rotation::None; config.num_hidden_layers];
    Dense {
        embed_tokens: ("wte", "token_embd"),
        embed_positions: Some(("wpe", "position_embd")),
        layers: "h",
        norm: ("ln_f", "output_norm"),
        norms: NormKind::Layer { offset: 0.0 },
        input_norm: Some(("ln_1", "attn_norm")),
        mlp_norm: Some(("ln_2", "ffn_norm")),
        qkv: Qkv::Fused { name: ("attn.c_attn", "attn_qkv"), by_head: false },
        output: ("attn.c_proj", "attn_output"),
        mlp: MlpNames::Plain([("mlp.c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down")]),
        transposed: true,
        ..Dense::llama(config)
    }
    .boxed()
}

/// llama.cpp scales scores by the root of a head's length alone.
fn entries(config: &Config, _: &mut Entries) -> Result<(), &'static str> {
    match config.attention_multiplier.is_some() || config.scores_by_layer {
        true => Err("scales its scores in another way than by the root of a head's length"),
        false => Ok(()),
    }
}
