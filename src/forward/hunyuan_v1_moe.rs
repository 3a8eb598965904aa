//! `hunyuan_v1_moe`: Hunyuan with experts in place of the MLP, one of which every token goes to.
//! Tencent 2025, "Hunyuan-A13B Technical Report".

use super::dense::Dense;
use super::gguf_members::Members;
use super::sparse::{MOST, SharedExpert, Sparse, experts_of};
use super::{Arguments, Family, Gguf, GgufExperts, hunyuan_v1_dense};
use crate::backend::ops::Router;
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::weights::Checkpoint;

pub(super) static FAMILY: Family = Family {
    model_type: "hunyuan_v1_moe",
    shared: Shared { eps: 1e-5, ..Shared::LLAMA },
    arguments,
    gguf: Some(Gguf {
        experts: Some(GgufExperts {
            used: USED,
            width: None,
            reads: &["expert_shared_count", SHARED_WIDTH],
            ..GgufExperts::SOFTMAX
        }),
        members,
        entries: None,
        ..Gguf::plain("hunyuan-moe")
    }),
    prefixes: &[],
};

/// A key of files.
const SHARED_WIDTH: &str = "expert_shared_feed_forward_length";

const USED: &str = "moe_topk";

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    let used = used(fields, config.num_hidden_layers)?;
    let most = used.iter().copied().max().unwrap_or(1);
    let size = experts_of(
        fields,
        ["num_experts", "intermediate_size"],
        [1, config.intermediate_size],
        (USED, most),
    )?;
    let softmax = Sparse::softmax(config.num_hidden_layers, size, config.hidden_act);
    let sparse = Sparse {
        router: ("mlp.gate.wg", "ffn_gate_inp"),
        used,
        routing: Router { normalise: Some(0.0), ..softmax.routing },
        shared: Some(SharedExpert {
            names: [
                ("mlp.shared_mlp.gate_proj", "ffn_gate_shexp"),
                ("mlp.shared_mlp.up_proj", "ffn_up_shexp"),
                ("mlp.shared_mlp.down_proj", "ffn_down_shexp"),
            ],
            inner: config.intermediate_size,
            field: "intermediate_size",
            gate: None,
        }),
        ..softmax
    };
    Dense { sparse: Some(sparse), ..hunyuan_v1_dense::described(fields, config)? }.boxed()
}

/// One number, or one for each layer.
fn used(fields: &Fields<'_>, layers: usize) -> Result<Vec<usize>> {
    let Some(Value::Array(each)) = fields.get(USED) else {
        return Ok(vec![fields.size_or(USED, Some(1), MOST)?; layers]);
    };
    let number = |value: &Value| match value {
        Value::UInt(used) => usize::try_from(*used).ok().filter(|used| (1..=MOST).contains(used)),
        _ => None,
    };
    let used: Option<Vec<usize>> = each.iter().map(number).collect();
    used.filter(|used| used.len() == layers).ok_or_else(|| {
        let expected = format!("a number from 1 on, or one for each of {layers} layers");
        fields.error(USED, format!("a list of {}", each.len()), expected)
    })
}

fn members(members: &mut Members<'_>, checkpoint: &Checkpoint) -> Result<()> {
    hunyuan_v1_dense::members(members, checkpoint)?;
    let (key, inner) = (members.key(SHARED_WIDTH), members.uint("intermediate_size"));
    match members.metadata.uint(&key)? {
        Some(width) if width != 0 && width != inner => {
            Err(members.metadata.refuse(&key, format!("{inner}, the width of each expert, 0 or absent")))
        }
        _ => Ok(()),
    }
}
