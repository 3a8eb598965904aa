//! `bert`: positions in a table of their own, norms behind each part. MiniLM, BGE, E5 and their like.
//! Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers".

use super::encoder::{self, Encoder, EncoderMlp, EncoderQkv};
use super::gguf_members::Members;
use super::pooling::{Head, HeadStage, Pool, Squash};
use super::{Arguments, Family, Gguf};
use crate::config::{Config, Names, Shared, only};
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::weights::Checkpoint;

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

/// What files of before 2019 call the two vectors of a norm.
pub(super) const OLD_NORMS: [(&str, &str); 2] =
    [(".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")];

pub(super) static FAMILY: Family = Family {
    model_type: "bert",
    shared: SHARED,
    arguments,
    gguf: Some(Gguf { members, ..Gguf::encoder("bert") }),
    prefixes: &[("bert.", ""), OLD_NORMS[0], OLD_NORMS[1]],
};

/// A file of this architecture may be of any of its kin: positions begin at the first row, and segments are there or not.
fn members(members: &mut Members<'_>, checkpoint: &Checkpoint) -> Result<()> {
    const TYPES: &str = "token_types.weight";
    let rows = checkpoint.find(TYPES).and_then(|info| info.shape().first().copied());
    members.put("type_vocab_size", TYPES, Value::UInt(rows.unwrap_or(0) as u64));
    Ok(())
}

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
    let segments = fields.size("type_vocab_size", 0, 1 << 16)?.unwrap_or(2);
    config.labels = encoder::labels(fields)?;
    encoder::unrotated(&mut config);
    Ok(Encoder {
        config,
        words: "embeddings.word_embeddings",
        positions: Some("embeddings.position_embeddings"),
        segments: (segments > 0).then_some(("embeddings.token_type_embeddings", segments)),
        relative: None,
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
