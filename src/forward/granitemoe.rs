//! `granitemoe`: Granite with experts in place of the MLP.
//! Granite Team 2024, "Granite 3.0 Language Models".

use super::dense::{Dense, Pairs};
use super::list::InMlx;
use super::sparse::{ExpertNames, Sparse, experts};
use super::{Arguments, Family, Gguf, GgufExperts, granite};
use crate::backend::ops::{Router, Scores};
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "granitemoe",
    shared: Shared::LLAMA,
    arguments,
    gguf: Some(Gguf {
        experts: Some(GgufExperts { count: "num_local_experts", width: None, ..GgufExperts::SOFTMAX }),
        members: granite::members,
        entries: None,
        ..Gguf::plain("granitemoe")
    }),
    prefixes: &[],
};

pub(super) const NAMES: ExpertNames = ExpertNames {
    fused: "block_sparse_moe.input_linear",
    fused_down: "block_sparse_moe.output_linear",
    parts: ExpertNames::PLAIN.parts,
    ..ExpertNames::BLOCK
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    granite::set_multipliers(fields, &mut config)?;
    let names = ["num_local_experts", "num_experts_per_tok", "intermediate_size"];
    let size = experts(fields, names, [8, 2, config.intermediate_size])?;
    let softmax = Sparse::softmax(config.num_hidden_layers, size, config.hidden_act);
    let sparse = Sparse {
        router: ("block_sparse_moe.router.layer", "ffn_gate_inp"),
        names: NAMES,
        in_mlx: InMlx {
            eight_bits: &["block_sparse_moe.router.layer", "self_attn.o_proj", "lm_head"],
            ..InMlx::default()
        },
        routing: Router { scores: Scores::SoftmaxOfChosen, ..softmax.routing },
        ..softmax
    };
    Dense { pairs: Pairs::Gguf, sparse: Some(sparse), ..Dense::llama(config) }.boxed()
}
