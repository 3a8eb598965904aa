//! `bert`: positions in a table of their own, norms behind each part. MiniLM, BGE, E5 and their like.
//! Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers".

use super::encoder::{self, Encoder, EncoderMlp, EncoderQkv};
use super::pooling::{Head, HeadStage, Pool, Squash};
use super::{Arguments, Family};
use crate::config::{Config, Names, Shared, only};
use crate::error::Result;
use crate::json::{Fields, Value};

pub(super) const SHARED: Shared = Shared {
    names: Names { kv_heads: None, eps: "layer_norm_eps", ..Names::LLAMA },
    vocab: Some(30_522),
    heads: Some(12),
    context: 512,
    eps: 1e-12,
    act: "gelu",
    tied: true,
    bos: None,
    eos: &[],
    ..Shared::LLAMA
};

pub(super) static FAMILY: Family =
    Family { model_type: "bert", shared: SHARED, arguments, gguf: None, prefixes: &[("bert.", "")] };

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    let mut encoder = described(fields, config)?;
    encoder.head = encoder.config.labels.map(|labels| {
        let hidden = || encoder.config.hidden_dim();
        let pooler = HeadStage::Dense {
            module: "pooler.dense",
            rows: hidden(),
            columns: hidden(),
            squash: Squash::Tanh,
        };
        let classifier = HeadStage::Dense {
            module: "classifier",
            rows: encoder::labels_dim(labels),
            columns: hidden(),
            squash: Squash::Identity,
        };
        Head { pool: Pool::First, stages: vec![pooler, classifier] }
    });
    encoder.boxed()
}

/// BERT without a head, of which others say what differs.
pub(super) fn described(fields: &Fields<'_>, mut config: Config) -> Result<Encoder> {
    only(fields, "is_decoder", false, "it is an encoder here")?;
    only(fields, "add_cross_attention", false, "there is nothing else to attend to")?;
    if let Some(kind) =
        fields.get("position_embedding_type").filter(|kind| **kind != Value::String("absolute".into()))
    {
        return Err(fields.error("position_embedding_type", kind, "absolute"));
    }
    let segments = fields.size_or("type_vocab_size", Some(2), 1 << 16)?;
    config.labels = encoder::labels(fields)?;
    encoder::unrotated(&mut config);
    Ok(Encoder {
        config,
        words: "embeddings.word_embeddings",
        positions: Some("embeddings.position_embeddings"),
        segments: Some(("embeddings.token_type_embeddings", segments)),
        embedding_norm: "embeddings.LayerNorm",
        layers: "encoder.layer",
        qkv: EncoderQkv::Apart(["attention.self.query", "attention.self.key", "attention.self.value"]),
        output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        mlp: EncoderMlp::Plain(["intermediate.dense", "output.dense"]),
        mlp_norm: "output.LayerNorm",
        last_norm: None,
        head: None,
    })
}
