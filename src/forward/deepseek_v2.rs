//! `deepseek_v2`: latent attention, and experts that a softmax chooses, with some that every token goes to: DeepSeek V2, V2 Lite.
//! DeepSeek-AI 2024, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model".

use super::dense::{Dense, Qkv};
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
    let groups = match best {
        Some(best) => glm4_moe::groups(fields, [sparse.size.count, sparse.size.used], [1, 1], best)?,
        None => None,
    };
    let (groups, normalise) = match fields.flag(latent::LLAMA_CPP)?.unwrap_or(false) {
        // llama.cpp rates groups by their two best, and divides weights by their sum, where a file says so.
        true => (sparse.routing.groups, sparse.routing.normalise),
        // `norm_topk_prob` is not read.
        false => (groups, None),
    };
    let routing = Router { scores: Scores::Softmax, groups, normalise, ..sparse.routing };
    let sparse = Sparse { bias: None, routing, ..sparse };
    Dense { qkv: Qkv::Latent, sparse: Some(sparse), ..Dense::llama(config) }.boxed()
}
