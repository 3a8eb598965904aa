//! `deepseek_v3`: latent attention, and experts that a sigmoid and a bias choose in groups: DeepSeek V3, R1, V3.1.
//! DeepSeek-AI 2024, "DeepSeek-V3 Technical Report". GGUF files of Kimi K2 and GLM 4.7 Flash are of this family, too: they do not
//! say that they are others.

use super::dense::{AheadNames, Dense, Qkv};
use super::sparse::Sparse;
use super::{Arguments, Family, Gguf, gguf_latent, glm4_moe, latent};
use crate::backend::ops::Router;
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::Fields;

pub(super) const SHARED: Shared = Shared { context: 4096, bos: Some(0), eos: &[1], ..latent::SHARED };

pub(super) static FAMILY: Family = Family {
    model_type: "deepseek_v3",
    shared: SHARED,
    arguments,
    gguf: Some(Gguf { claims: gguf_latent::is_sigmoid, ..gguf_latent::form(gguf_latent::DEEPSEEK2, 2) }),
    prefixes: &[],
};

pub(super) fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    latent::read(fields, &mut config, [1536, 512], [128, 128])?;
    latent::interleave(fields, &mut config)?;
    let sparse = glm4_moe::described(fields, &config, [Some(256), Some(8), Some(1), Some(3)], true)?;
    let sparse = glm4_moe::grouped(fields, sparse, [8, 4], 2)?;
    let scale = fields.number("routed_scaling_factor", -1e6, 1e6)?.unwrap_or(2.5) as f32;
    let sparse = Sparse { routing: Router { scale, ..sparse.routing }, ..sparse };
    let ahead = Some(AheadNames::BEHIND);
    Dense { qkv: Qkv::Latent, sparse: Some(sparse), ahead, ..Dense::llama(config) }.boxed()
}
