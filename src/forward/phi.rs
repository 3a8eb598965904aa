//! `phi`: attention and feed-forward side by side under one layer norm, biases everywhere, partial rotary embedding.
//! Li et al. 2023, "Textbooks Are All You Need II: phi-1.5".

use super::dense::{Dense, HeadNormOf, HeadNorms, MlpNames, NormKind};
use super::gguf_members::LAYER_EPS;
use super::{Arguments, Family, Gguf};
use crate::config::rope::RopeRules;
use crate::config::{Config, Names, Shared};
use crate::error::Result;
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "phi",
    shared: Shared {
        names: Names { eps: "layer_norm_eps", ..Names::LLAMA },
        eps: 1e-5,
        act: "gelu_new",
        rope: RopeRules::partial(0.5),
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf { eps: LAYER_EPS, entries: None, ..Gguf::plain("phi2") }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    let norms = NormKind::Layer { offset: 0.0 };
    let head_norms = fields.flag("qk_layernorm")?.unwrap_or(false).then_some(HeadNorms {
        names: [("self_attn.q_layernorm", "attn_q_norm"), ("self_attn.k_layernorm", "attn_k_norm")],
        kind: norms,
        of: HeadNormOf::Head,
        after_rope: false,
    });
    Dense {
        norm: ("model.final_layernorm", "output_norm"),
        norms,
        mlp_norm: None,
        parallel: true,
        output: ("self_attn.dense", "attn_output"),
        head_norms,
        mlp: MlpNames::Plain([("mlp.fc1", "ffn_up"), ("mlp.fc2", "ffn_down")]),
        ..Dense::llama(config)
    }
    .boxed()
}
