//! The text of `qwen3_vl_moe`: Qwen 3's experts, in tensors whose rows are columns.
//! Bai et al. 2025, "Qwen3-VL Technical Report".

use super::dense::Dense;
use super::sparse::Sparse;
use super::{Arguments, Family, Gguf, GgufExperts, qwen3, qwen3_moe, qwen3_vl_text};
use crate::backend::ops::Router;
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::Fields;
use crate::weights::Form;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3_vl_moe_text",
    shared: Shared { kv_heads: Some(16), head_dim: None, ..qwen3_vl_text::SHARED },
    arguments,
    gguf: Some(Gguf { experts: Some(GgufExperts::SOFTMAX), entries: None, ..Gguf::plain("qwen3vlmoe") }),
    prefixes: super::TEXT_PART,
};

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    let sparse = qwen3_moe::described(fields, &config, [60, 4, 1408])?;
    let inner = sparse.size.inner;
    if [2 * inner, inner].contains(&config.hidden_size) {
        let expected = "neither hidden_size nor its half: shapes would not tell rows from columns";
        return Err(fields.error("moe_intermediate_size", inner, expected));
    }
    let sparse = Sparse {
        // Whatever `norm_topk_prob` says.
        routing: Router { normalise: Some(0.0), ..sparse.routing },
        turned: Some((Form::Transposed, ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])),
        ..sparse
    };
    Dense { sparse: Some(sparse), ..qwen3::described(config) }.boxed()
}
