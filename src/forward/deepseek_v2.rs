//! `deepseek_v2`: latent attention, and experts that a softmax chooses, with some that every token goes to: DeepSeek V2, V2 Lite.
//! DeepSeek-AI 2024, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model".

use super::dense::{Dense, Qkv};
use super::gguf_members::LLAMA_CPP;
use super::sparse::Sparse;
use super::{Arguments, Family, Gguf, gguf_latent, glm4_moe, latent};
use crate::backend::ops::{Router, Scores};
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::{Fields, quote};

pub(super) static FAMILY: Family = Family {
    model_type: "deepseek_v2",
    shared: Shared { bos: Some(0), eos: &[1], ..latent::SHARED },
    arguments,
    gguf: Some(Gguf {
        claims: |metadata| Ok(!gguf_latent::is_sigmoid(metadata)?),
        ..gguf_latent::form(gguf_latent::DEEPSEEK2, 1)
    }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    latent::read(fields, &mut config, [1536, 512], [128, 128])?;
    let sparse = glm4_moe::described(fields, &config, [Some(64), None, Some(2), Some(0)], false)?;
    let best = match fields.string("topk_method")?.unwrap_or("greedy") {
        "greedy" => None,
        "group_limited_greedy" => Some(1),
        other => return Err(fields.error("topk_method", quote(other), "greedy or group_limited_greedy")),
    };
    // llama.cpp rates groups by their two best, and divides weights by their sum, where a file says so.
    let as_llama_cpp = fields.flag(LLAMA_CPP)?.unwrap_or(false);
    let sparse = match best.filter(|_| !as_llama_cpp).or(as_llama_cpp.then_some(2)) {
        Some(best) => glm4_moe::grouped(fields, sparse, [1, 1], best)?,
        None => sparse,
    };
    // `norm_topk_prob` is not read elsewhere.
    let normalise = sparse.routing.normalise.filter(|_| as_llama_cpp);
    let routing = Router { scores: Scores::Softmax, normalise, ..sparse.routing };
    let sparse = Sparse { bias: None, routing, ..sparse };
    Dense { qkv: Qkv::Latent, sparse: Some(sparse), ..Dense::llama(config) }.boxed()
}
