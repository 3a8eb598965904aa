//! `ernie4_5_moe`: Ernie 4.5 with experts in some layers, which a softmax and a bias choose.
//! Baidu 2025, "ERNIE 4.5 Technical Report".

use super::dense::{Dense, Pairs};
use super::gguf_members::Members;
use super::sparse::{SharedExpert, Sparse, experts};
use super::{Arguments, Family, Gguf, GgufExperts, ernie4_5};
use crate::backend::ops::Router;
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::weights::Checkpoint;

pub(super) static FAMILY: Family = Family {
    model_type: "ernie4_5_moe",
    shared: Shared { kv_heads: Some(4), head_dim: None, ..ernie4_5::SHARED },
    arguments,
    gguf: Some(Gguf {
        experts: Some(GgufExperts {
            count: "moe_num_experts",
            used: "moe_k",
            dense: Some("moe_layer_start_index"),
            reads: &["interleave_moe_layer_step", SHARED_COUNT, SHARED_WIDTH],
            ..GgufExperts::SOFTMAX
        }),
        members,
        entries: None,
        ..Gguf::plain("ernie4_5-moe")
    }),
    prefixes: &[],
};

/// Keys of files.
const SHARED_COUNT: &str = "expert_shared_count";
const SHARED_WIDTH: &str = "expert_shared_feed_forward_length";

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    let names = ["moe_num_experts", "moe_k", "moe_intermediate_size"];
    let size = experts(fields, names, [64, 6, 1536])?;
    if let Some(least) = fields.number("moe_norm_min", 0.0, 1.0)?.filter(|&least| least > 1e-9) {
        return Err(fields.error("moe_norm_min", least, "at most 1e-9: the sum of weights has no least"));
    }
    let layers = config.num_hidden_layers;
    let softmax = Sparse::softmax(layers, size, config.hidden_act);
    let first = fields.size("moe_layer_start_index", 0, 1 << 20)?.unwrap_or(1);
    // Of the last layer, where it is -1.
    let last = match fields.number("moe_layer_end_index", -1.0, 1e6)? {
        Some(last) if last >= 0.0 => last as usize,
        _ => layers,
    };
    let every = fields.size_or("moe_layer_interval", Some(1), 1 << 20)?;
    let is_sparse = |layer: usize| (first..=last).contains(&layer) && (layer + 1).is_multiple_of(every);
    let shared = fields.size("moe_num_shared_experts", 0, 1 << 10)?.unwrap_or(2);
    let sparse = Sparse {
        layers: (0..layers).map(is_sparse).collect(),
        bias: Some(("mlp.moe_statics.e_score_correction_bias", "exp_probs_b")),
        // Keeps a sum that underflows finite.
        routing: Router { normalise: Some(1e-20), ..softmax.routing },
        shared: (shared > 0).then_some(SharedExpert {
            names: SharedExpert::PLURAL,
            inner: shared * size.inner,
            field: "moe_num_shared_experts * moe_intermediate_size",
            gate: None,
        }),
        ..softmax
    };
    Dense { pairs: Pairs::Everywhere, tied_bias: true, sparse: Some(sparse), ..Dense::llama(config) }.boxed()
}

fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    members.required("moe_layer_interval", "interleave_moe_layer_step")?;
    let metadata = members.metadata;
    let (count, width) = (members.key(SHARED_COUNT), members.key(SHARED_WIDTH));
    let (all, inner) = (metadata.uint(&width)?.unwrap_or(0), members.uint("moe_intermediate_size"));
    // Scripts write the number, and as the width what is right of the published models alone.
    let shared = match metadata.uint(&count)?.unwrap_or(0) {
        0 if inner == 0 || !all.is_multiple_of(inner) => {
            return Err(metadata.refuse(&width, format!("a multiple of {inner}, the width of an expert")));
        }
        0 => all / inner,
        shared => shared,
    };
    members.put("moe_num_shared_experts", count, Value::UInt(shared));
    Ok(())
}
