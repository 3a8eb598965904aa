//! `modernbert`: norms before each part, GeGLU, rotary positions, and windows in all layers but every third.
//! Warner et al. 2024, "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder".

use super::encoder::{self, Encoder, EncoderMlp, EncoderQkv};
use super::pooling::{Head, HeadStage, Pool, Squash};
use super::{Arguments, Family};
use crate::config::rope::{self, RopeRules};
use crate::config::{Config, Names, Shared};
use crate::error::Result;
use crate::json::{Fields, quote};

const ROPE: RopeRules =
    RopeRules { by_layer_type: true, theta_name: "global_rope_theta", ..RopeRules::theta(160_000.0) };
/// Of layers with a window.
const LOCAL_ROPE: RopeRules =
    RopeRules { by_layer_type: true, theta_name: "local_rope_theta", ..RopeRules::WHOLE };

pub(super) static FAMILY: Family = Family {
    model_type: "modernbert",
    shared: Shared {
        names: Names { kv_heads: None, eps: "norm_eps", act: "hidden_activation", ..Names::LLAMA },
        vocab: Some(50_368),
        heads: Some(12),
        context: 8192,
        eps: 1e-5,
        act: "gelu",
        tied: true,
        rope: ROPE,
        bos: Some(50_281),
        eos: &[50_282],
        ..Shared::LLAMA
    },
    arguments,
    gguf: None,
    prefixes: &[("model.", "")],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    let every = fields.size_or("global_attn_every_n_layers", Some(3), 1024)?;
    let window = fields.size_or("local_attention", Some(128), 1 << 30)?;
    config.set_windows(fields, Some(window), |layer| !layer.is_multiple_of(every))?;
    let (head_dim, context) = (config.head_dim, config.max_position_embeddings);
    if let Some(rope) = rope::of_layer_type(fields, "full_attention", ROPE, head_dim, context)? {
        config.rope = rope;
    }
    let local = match rope::of_layer_type(fields, "sliding_attention", LOCAL_ROPE, head_dim, context)? {
        Some(local) => local,
        // What is said of no kind of layer is of both, but for the base.
        None => rope::resolve(fields, LOCAL_ROPE, head_dim, context)?,
    };
    config.set_local_rope(local);
    config.labels = encoder::labels(fields)?;
    let head = config.labels.map(|labels| head(fields, &config, labels)).transpose()?;
    Encoder {
        config,
        words: "embeddings.tok_embeddings",
        positions: None,
        segments: None,
        relative: None,
        embedding_norm: "embeddings.norm",
        layers: "layers",
        qkv: EncoderQkv::Fused("attn.Wqkv"),
        output: "attn.Wo",
        attention_norm: "attn_norm",
        mlp: EncoderMlp::GatedFused(["mlp.Wi", "mlp.Wo"]),
        mlp_norm: "mlp_norm",
        last_norm: Some("final_norm"),
        head,
    }
    .boxed()
}

fn head(fields: &Fields<'_>, config: &Config, labels: usize) -> Result<Head> {
    let pool = match fields.string("classifier_pooling")? {
        None | Some("cls") => Pool::First,
        Some("mean") => Pool::Mean,
        Some(other) => return Err(fields.error("classifier_pooling", quote(other), "cls or mean")),
    };
    let squash = match fields.string("classifier_activation")? {
        None | Some("gelu") => Squash::Gelu,
        Some("tanh") => Squash::Tanh,
        Some("relu") => Squash::Relu,
        Some(other) => return Err(fields.error("classifier_activation", quote(other), "gelu, tanh or relu")),
    };
    let hidden = || config.hidden_dim();
    let dense = HeadStage::Dense { module: "head.dense", rows: hidden(), columns: hidden(), squash };
    let norm = HeadStage::Norm { module: "head.norm", dim: hidden(), eps: config.norm_eps };
    let classifier = HeadStage::Dense {
        module: "classifier",
        rows: encoder::labels_dim(labels),
        columns: hidden(),
        squash: Squash::Identity,
    };
    Ok(Head { pool, stages: vec![dense, norm, classifier] })
}
