//! `distilbert`: BERT in fewer layers, without segments.
//! Sanh et al. 2019, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter".

use super::encoder::{self, Encoder, EncoderMlp, EncoderQkv};
use super::pooling::{Head, HeadStage, Pool, Squash};
use super::{Arguments, Family, bert};
use crate::config::{Config, Names, Shared};
use crate::error::Result;
use crate::json::Fields;

/// What its norms add, whatever a file says.
const EPS: f64 = 1e-12;

pub(super) static FAMILY: Family = Family {
    model_type: "distilbert",
    shared: Shared {
        names: Names {
            hidden_size: "dim",
            intermediate_size: "hidden_dim",
            four_times: true,
            layers: "n_layers",
            heads: "n_heads",
            act: "activation",
            ..bert::SHARED.names
        },
        layers: Some(6),
        ..bert::SHARED
    },
    arguments,
    gguf: None,
    prefixes: &[("distilbert.", ""), bert::OLD_NORMS[0], bert::OLD_NORMS[1]],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    config.norm_eps = EPS as f32;
    let mut encoder = bert::described(fields, config)?;
    encoder.head = encoder.config.labels.map(|labels| {
        let hidden = || encoder.config.hidden_dim();
        let dense = HeadStage::Dense {
            module: "pre_classifier",
            rows: hidden(),
            columns: hidden(),
            squash: Squash::Relu,
        };
        let out = HeadStage::Dense {
            module: "classifier",
            rows: encoder::labels_dim(labels),
            columns: hidden(),
            squash: Squash::Identity,
        };
        Head { pool: Pool::First, stages: vec![dense, out] }
    });
    Encoder {
        segments: None,
        layers: "transformer.layer",
        qkv: EncoderQkv::Apart(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
        output: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        mlp: EncoderMlp::Plain(["ffn.lin1", "ffn.lin2"]),
        mlp_norm: "output_layer_norm",
        ..encoder
    }
    .boxed()
}
