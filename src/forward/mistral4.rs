//! `mistral4`: latent attention whose queries grow with their positions, and experts that a softmax chooses: Mistral Small 4.

use super::dense::{Dense, Qkv};
use super::sparse::Sparse;
use super::{Arguments, Family, gguf_latent, glm4_moe, latent};
use crate::backend::ops::{Router, Scores};
use crate::config::rope::{self, RopeRules};
use crate::config::{Config, QueryScaling, Rope, RopeScaling, Shared};
use crate::error::Result;
use crate::json::Fields;

/// Tokens of the training before it was extended, where nothing is said.
const ORIGINAL: usize = 8192;

pub(super) static FAMILY: Family = Family {
    model_type: "mistral4",
    shared: Shared {
        context: 1_048_576,
        bos: Some(1),
        eos: &[2],
        rope: RopeRules { own_width: true, ..RopeRules::WHOLE },
        ..latent::SHARED
    },
    arguments,
    gguf: Some(gguf_latent::form("mistral4", 1)),
    prefixes: super::TEXT_PART,
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    latent::read(fields, &mut config, [1024, 256], [64, 128])?;
    latent::interleave(fields, &mut config)?;
    match rope::parameters(fields)? {
        None => {
            let scaling = RopeScaling::Yarn {
                factor: 128.0,
                original: ORIGINAL,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate: true,
                attention_factor: 1.0,
            };
            config.rope = Rope { scaling, ..config.rope };
            config.query_scaling = Some(QueryScaling::growing(0.1, ORIGINAL));
            latent::scale_scores(&mut config, 1.0, 128.0);
        }
        Some(params) => config.query_scaling = QueryScaling::of_parameters(&params, &config.rope)?,
    }
    let sparse = glm4_moe::described(fields, &config, [Some(128), Some(4), Some(1), Some(0)], true)?;
    let sparse = glm4_moe::grouped(fields, sparse, [1, 1], 2)?;
    let routing = Router { scores: Scores::Softmax, ..sparse.routing };
    let sparse = Sparse { bias: None, routing, ..sparse };
    Dense { qkv: Qkv::Latent, sparse: Some(sparse), ..Dense::llama(config) }.boxed()
}
