//! `xlm-roberta`: BERT whose positions are counted from behind that of padding. BGE-M3, multilingual E5 and their like.
//! Conneau et al. 2019, "Unsupervised Cross-lingual Representation Learning at Scale".

use super::encoder;
use super::pooling::{Head, HeadStage, Pool, Squash};
use super::{Arguments, Family, bert};
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::Fields;

pub(super) const SHARED: Shared = Shared { bos: Some(0), eos: &[2], ..bert::SHARED };

pub(super) static FAMILY: Family = ROBERTA;

/// What its kin share, but for names and sizes.
pub(super) const ROBERTA: Family = Family {
    model_type: "xlm-roberta",
    shared: SHARED,
    arguments,
    gguf: None,
    prefixes: &[("roberta.", ""), bert::OLD_NORMS[0], bert::OLD_NORMS[1]],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    let padding = fields.token("pad_token_id")?.unwrap_or(1) as usize;
    config.position_offset = padding + 1;
    if config.max_context() == 0 {
        let most = config.max_position_embeddings;
        let expected = format!("less than max_position_embeddings, {most}, which are counted from behind it");
        return Err(fields.error("pad_token_id", padding, expected));
    }
    let mut encoder = bert::described(fields, config)?;
    encoder.head = encoder.config.labels.map(|labels| head(&encoder.config, labels));
    encoder.boxed()
}

/// What classifies by the first token, in two layers.
pub(super) fn head(config: &Config, labels: usize) -> Head {
    let hidden = || config.hidden_dim();
    let dense = HeadStage::Dense {
        module: "classifier.dense",
        rows: hidden(),
        columns: hidden(),
        squash: Squash::Tanh,
    };
    let out = HeadStage::Dense {
        module: "classifier.out_proj",
        rows: encoder::labels_dim(labels),
        columns: hidden(),
        squash: Squash::Identity,
    };
    Head { pool: Pool::First, stages: vec![dense, out] }
}
