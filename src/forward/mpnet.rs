//! `mpnet`: RoBERTa with what distance adds to the scores of attention. all-mpnet-base-v2 and its like.
//! Song et al. 2020, "MPNet: Masked and Permuted Pre-training for Language Understanding".

use super::encoder::{BUCKETS, Encoder, EncoderQkv};
use super::{Arguments, Family, bert, xlm_roberta};
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::Fields;

/// Positions before that of a text's first token, whatever a file says of padding.
const OFFSET: usize = 2;

pub(super) static FAMILY: Family = Family {
    model_type: "mpnet",
    shared: Shared { vocab: Some(30_527), ..xlm_roberta::SHARED },
    arguments,
    gguf: None,
    prefixes: &[("mpnet.", ""), bert::OLD_NORMS[0], bert::OLD_NORMS[1]],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    const NAME: &str = "relative_attention_num_buckets";
    if let Some(buckets) = fields.size(NAME, 1, 1 << 16)?.filter(|&buckets| buckets != BUCKETS) {
        return Err(fields.error(NAME, buckets, format!("{BUCKETS}: transformers reads no others")));
    }
    config.position_offset = OFFSET;
    if config.max_context() == 0 {
        let got = config.max_position_embeddings;
        return Err(fields.error("max_position_embeddings", got, format!("more than {OFFSET}")));
    }
    let mut encoder = bert::described(fields, config)?;
    encoder.head = encoder.config.labels.map(|labels| xlm_roberta::head(&encoder.config, labels));
    Encoder {
        segments: None,
        relative: Some("encoder.relative_attention_bias"),
        qkv: EncoderQkv::Apart(["attention.attn.q", "attention.attn.k", "attention.attn.v"]),
        output: "attention.attn.o",
        attention_norm: "attention.LayerNorm",
        ..encoder
    }
    .boxed()
}
