//! `dots1`: Qwen 3 with the experts of GLM 4.5.
//! rednote-hilab 2025, "dots.llm1 Technical Report".

use super::dense::Dense;
use super::sparse::{ExpertNames, Sparse};
use super::{Arguments, Family, Gguf, glm4_moe, qwen3};
use crate::config::{Config, Shared, sliding_window};
use crate::error::Result;
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "dots1",
    shared: Shared { bos: None, eos: &[], ..Shared::LLAMA },
    arguments,
    gguf: Some(Gguf {
        experts: Some(glm4_moe::EXPERTS),
        members: |members, _| members.window(true).map(drop),
        entries: None,
        ..Gguf::plain("dots1")
    }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    let first = fields.size("max_window_layers", 0, 1 << 20)?.unwrap_or(62);
    let window = sliding_window(fields, Some(4096))?;
    config.set_windows(fields, window, |layer| layer >= first)?;
    let sparse = glm4_moe::described(fields, &config, [None, None, None, Some(0)], false)?;
    let sparse = glm4_moe::grouped(fields, sparse, [1, 1], 2)?;
    let sparse = Sparse { names: ExpertNames { stacks: "mlp.experts", ..ExpertNames::PLAIN }, ..sparse };
    Dense { sparse: Some(sparse), ..qwen3::described(config) }.boxed()
}
