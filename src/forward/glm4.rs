//! `glm4`: norms before and after each part, half of each head rotated in neighbouring pairs, a fused gate.
//! GLM Team 2024, "ChatGLM"; GLM-4-0414.

use super::dense::{Dense, MlpNames, Pairs};
use super::gguf_members::Members;
use super::{Family, Gguf};
use crate::config::Shared;
use crate::config::rope::RopeRules;
use crate::error::Result;
use crate::weights::Checkpoint;

pub(super) static FAMILY: Family = Family {
    model_type: "glm4",
    shared: Shared {
        kv_heads: Some(2),
        head_dim: Some(128),
        context: 131_072,
        eps: 1.5625e-7,
        rope: RopeRules::partial(0.5),
        bos: None,
        eos: &[151_329, 151_336, 151_338],
        ..Shared::LLAMA
    },
    arguments: |_, config| {
        Dense {
            attention_norm: Some(("post_self_attn_layernorm", "post_attention_norm")),
            mlp_out_norm: Some(("post_mlp_layernorm", "post_ffw_norm")),
            mlp: MlpNames::GatedFused([("mlp.gate_up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down")]),
            pairs: Pairs::Everywhere,
            ..Dense::llama(config)
        }
        .boxed()
    },
    gguf: Some(Gguf { members, ..Gguf::plain("glm4") }),
    prefixes: &[],
};

fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    refuse_sections(members)?;
    let more = members.key("nextn_predict_layers");
    match members.metadata.uint(&more)? {
        None | Some(0) => Ok(()),
        Some(_) => Err(members
            .metadata
            .refuse(&more, "0 or absent: layers that predict further tokens are not supported")),
    }
}

/// Positions that are not one for each token.
pub(super) fn refuse_sections(members: &Members<'_>) -> Result<()> {
    let sections = members.key("rope.dimension_sections");
    if members
        .metadata
        .ints(&sections)?
        .is_some_and(|sections| sections.iter().filter(|&&n| n > 0).count() > 1)
    {
        return Err(members.metadata.refuse(&sections, "absent: positions in sections are not supported"));
    }
    Ok(())
}
