//! `minimax_m2`: norms of whole rows of queries and keys, a part of each head that rotates, and experts that a sigmoid and a bias
//! choose. MiniMax 2025, MiniMax-M2.

use super::dense::{Dense, HeadNormOf, HeadNorms};
use super::list::InMlx;
use super::sparse::{ExpertNames, Sparse, experts};
use super::{Arguments, Family, Gguf, GgufExperts, qwen3};
use crate::backend::ops::{Router, Scores};
use crate::config::rope::RopeRules;
use crate::config::{Config, Rope, RopeScaling, Shared};
use crate::error::Result;
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "minimax_m2",
    shared: Shared {
        kv_heads: Some(8),
        head_dim: Some(128),
        context: 196_608,
        rope: RopeRules { theta: 5_000_000.0, ..RopeRules::partial(1.0) },
        bos: None,
        eos: &[],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        experts: Some(GgufExperts { count: "num_local_experts", width: None, ..GgufExperts::SIGMOID }),
        entries: None,
        ..Gguf::plain("minimax-m2")
    }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    if let Some(dims) = fields.size("rotary_dim", 2, config.head_dim)?
        && fields.get("partial_rotary_factor").is_none()
        && config.rope.dims == config.head_dim
    {
        let simple = matches!(
            config.rope.scaling,
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Yarn { .. }
        );
        if dims % 2 != 0 || !simple {
            return Err(fields.error("rotary_dim", dims, "an even number, and none, linear or yarn scaling"));
        }
        config.rope = Rope { dims, ..config.rope };
    }
    let names = ["num_local_experts", "num_experts_per_tok", "intermediate_size"];
    let size = experts(fields, names, [256, 8, config.intermediate_size])?;
    let softmax = Sparse::softmax(config.num_hidden_layers, size, config.hidden_act);
    let sparse = Sparse {
        router: ("block_sparse_moe.gate", "ffn_gate_inp"),
        bias: Some(("block_sparse_moe.e_score_correction_bias", "exp_probs_b")),
        names: ExpertNames::BLOCK,
        in_mlx: InMlx { eight_bits: &["block_sparse_moe.gate"], ..InMlx::default() },
        routing: Router { scores: Scores::Sigmoid, normalise: Some(0.0), ..softmax.routing },
        ..softmax
    };
    let head_norms = HeadNorms { of: HeadNormOf::Row, ..qwen3::HEAD_NORMS };
    Dense { head_norms: Some(head_norms), sparse: Some(sparse), ..Dense::llama(config) }.boxed()
}
