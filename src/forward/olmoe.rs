//! `olmoe`: Llama with norms of whole rows of queries and keys, and experts in place of the MLP.
//! Muennighoff et al. 2024, "OLMoE: Open Mixture-of-Experts Language Models".

use super::dense::{Dense, HeadNormOf, HeadNorms};
use super::gguf_members::Members;
use super::sparse::{Sparse, experts};
use super::{Arguments, Family, Gguf, GgufExperts, GgufNorm, qwen3};
use crate::backend::ops::Router;
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::Fields;
use crate::weights::Checkpoint;

pub(super) static FAMILY: Family = Family {
    model_type: "olmoe",
    shared: Shared { context: 4096, eps: 1e-5, bos: None, eos: &[50_279], ..Shared::LLAMA },
    arguments,
    gguf: Some(Gguf {
        experts: Some(GgufExperts { width: None, norm: GgufNorm::Always(false), ..GgufExperts::SOFTMAX }),
        members,
        entries: None,
        ..Gguf::plain("olmoe")
    }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    if let Some(clip) = fields.get("clip_qkv") {
        return Err(fields.error("clip_qkv", clip, "null: queries, keys and values are not clipped"));
    }
    let names = ["num_experts", "num_experts_per_tok", "intermediate_size"];
    let size = experts(fields, names, [64, 8, config.intermediate_size])?;
    let softmax = Sparse::softmax(config.num_hidden_layers, size, config.hidden_act);
    let normalise = fields.flag("norm_topk_prob")?.unwrap_or(false).then_some(0.0);
    let sparse = Sparse { routing: Router { normalise, ..softmax.routing }, ..softmax };
    let head_norms = HeadNorms { of: HeadNormOf::Row, ..qwen3::HEAD_NORMS };
    Dense { head_norms: Some(head_norms), sparse: Some(sparse), ..Dense::llama(config) }.boxed()
}

fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    let key = members.key("attention.clamp_kqv");
    match members.metadata.number(&key)?.filter(|&clip| clip != 0.0) {
        Some(_) => {
            Err(members.metadata.refuse(&key, "0 or absent: queries, keys and values are not clipped"))
        }
        None => Ok(()),
    }
}
