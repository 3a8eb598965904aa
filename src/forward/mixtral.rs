//! `mixtral`: Mistral with experts in place of the MLP, two of which each token goes to.
//! Jiang et al. 2024, "Mixtral of Experts".

use super::dense::{Dense, Pairs};
use super::gguf::has_experts;
use super::sparse::{ExpertNames, Sparse, experts};
use super::{Arguments, Family, Gguf, GgufExperts};
use crate::backend::ops::Router;
use crate::config::rope::RopeRules;
use crate::config::{Config, Shared, sliding_window};
use crate::error::Result;
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "mixtral",
    shared: Shared {
        kv_heads: Some(8),
        context: 131_072,
        eps: 1e-5,
        rope: RopeRules { theta: 1e6, ..Shared::LLAMA.rope },
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        claims: |metadata| has_experts(metadata, "llama"),
        experts: Some(GgufExperts { count: "num_local_experts", width: None, ..GgufExperts::SOFTMAX }),
        members: |members, _| members.window(true).map(drop),
        entries: Some(super::gguf::window_that_llama_cpp_ignores),
        ..Gguf::plain("llama")
    }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    config.set_all_windows(sliding_window(fields, None)?);
    let size = experts(
        fields,
        ["num_local_experts", "num_experts_per_tok", "intermediate_size"],
        [8, 2, config.intermediate_size],
    )?;
    let softmax = Sparse::softmax(config.num_hidden_layers, size, config.hidden_act);
    let sparse = Sparse {
        router: ("block_sparse_moe.gate", "ffn_gate_inp"),
        names: ExpertNames::BLOCK,
        // Of those that are chosen, which is the softmax over them.
        routing: Router { normalise: Some(0.0), ..softmax.routing },
        ..softmax
    };
    Dense { pairs: Pairs::Gguf, sparse: Some(sparse), ..Dense::llama(config) }.boxed()
}
