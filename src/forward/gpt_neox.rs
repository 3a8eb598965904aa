//! `gpt_neox`: attention and feed-forward side by side, each under a norm of its own, a projection that is fused by head, and
//! partial rotary embedding: Pythia, GPT-NeoX.
//! Black et al. 2022, "GPT-NeoX-20B: An Open-Source Autoregressive Language Model".

use super::dense::{Dense, MlpNames, NormKind, Qkv};
use super::gguf_members::{LAYER_EPS, Members};
use super::{Arguments, Family, Gguf};
use crate::config::rope::RopeRules;
use crate::config::{Activation, Config, Names, Shared};
use crate::error::Result;
use crate::json::Fields;
use crate::json::Value;
use crate::weights::Checkpoint;
use crate::weights::gguf::write::Entries;

pub(super) static FAMILY: Family = Family {
    model_type: "gpt_neox",
    shared: Shared {
        names: Names { kv_heads: None, eps: "layer_norm_eps", ..Names::LLAMA },
        eps: 1e-5,
        act: "gelu",
        rope: RopeRules {
            partial_name: "rotary_pct",
            theta_name: "rotary_emb_base",
            ..RopeRules::partial(0.25)
        },
        bos: Some(0),
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        eps: LAYER_EPS,
        // llama.cpp computes the second, whatever the model was trained with: they hardly differ.
        activations: &[Activation::Gelu, Activation::GeluTanh],
        members,
        entries: Some(entries),
        ..Gguf::plain("gptneox")
    }),
    prefixes: &[
        ("model.embed_out.", "embed_out."),
        ("model.h.", "gpt_neox.layers."),
        ("model.", "gpt_neox."),
        ("lm_head.", "embed_out."),
    ],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    config.parallel = fields.flag("use_parallel_residual")?.unwrap_or(true);
    Dense {
        embed_tokens: ("gpt_neox.embed_in", "token_embd"),
        layers: "gpt_neox.layers",
        norm: ("gpt_neox.final_layer_norm", "output_norm"),
        lm_head: ("embed_out", "output"),
        norms: NormKind::Layer { offset: 0.0 },
        parallel: config.parallel,
        qkv: Qkv::Fused { name: ("attention.query_key_value", "attn_qkv"), by_head: true },
        output: ("attention.dense", "attn_output"),
        mlp: MlpNames::Plain([("mlp.dense_h_to_4h", "ffn_up"), ("mlp.dense_4h_to_h", "ffn_down")]),
        ..Dense::llama(config)
    }
    .boxed()
}

const PARALLEL: &str = "use_parallel_residual";

fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    let key = members.key(PARALLEL);
    if let Some(parallel) = members.metadata.flag(&key)? {
        members.put(PARALLEL, key, Value::Bool(parallel));
    }
    // The file does not say which; llama.cpp computes this one.
    members.put("hidden_act", "general.architecture", Value::String("gelu_new".to_owned()));
    Ok(())
}

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    if config.rope.theta != 10_000.0 {
        return Err("has a rotary base that llama.cpp does not give its architecture");
    }
    if config.hidden_act == Activation::Gelu {
        tracing::warn!("llama.cpp approximates this model's GELU by tanh: its answers differ a little");
    }
    entries.flag("gptneox.use_parallel_residual", config.parallel);
    Ok(())
}
