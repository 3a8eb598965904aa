//! What GGUF files say of gated delta nets: their widths, and which layers they are.
//!
//! llama.cpp's norm of their queries and keys adds what the model's other norms do, and not 1e-6, as transformers has it; in published
//! models that is the same.

use super::dense::AheadNames;
use super::gguf_members::{LLAMA_CPP, Members, RMS_EPS};
use super::{Gguf, GgufExperts, glm4_moe};
use crate::error::Result;
use crate::json::Value;
use crate::weights::Checkpoint;

/// The field that says that queries, keys, values and gates lie by head of keys, as older files have them.
pub(super) const JOINED: &str = "llama.cpp.ssm_in";

/// The width of the expert that every token goes to.
const SHARED: &str = "expert_shared_feed_forward_length";

/// Keys of experts that are read here.
const READS: &[&str] = &[SHARED, "nextn_predict_layers"];

/// The form of a family that has experts in each layer.
pub(super) const fn with_experts(architecture: &'static str) -> Gguf {
    Gguf {
        experts: Some(GgufExperts { reads: READS, ..GgufExperts::SOFTMAX }),
        members: beside_experts,
        entries: None,
        ..Gguf::plain(architecture)
    }
}

/// Reads it into the members of a `config.json`.
pub(super) fn members(members: &mut Members<'_>, checkpoint: &Checkpoint) -> Result<()> {
    let metadata = members.metadata;
    members.put(LLAMA_CPP, members.key(RMS_EPS), Value::Bool(true));
    let joined = checkpoint.tensors().find(|tensor| tensor.name().ends_with(".ssm_in.weight"));
    if let Some(joined) = joined {
        members.put(JOINED, joined.name(), Value::Bool(true));
    }
    let all = members.uint("num_hidden_layers");
    let ahead = glm4_moe::own_layers(members)?;
    members.put(AheadNames::FIELD, members.key("nextn_predict_layers"), Value::UInt(ahead));
    let key = members.key("attention.recurrent_layers");
    match metadata.flags(&key)? {
        Some(flags) if flags.len() as u64 == all => {
            let kind = |linear| if linear { "linear_attention" } else { "full_attention" };
            let own = flags.into_iter().take(members.uint("num_hidden_layers") as usize);
            let types = own.map(|linear| Value::String(kind(linear).to_owned())).collect();
            members.put("layer_types", key, Value::Array(types));
        }
        Some(flags) => {
            let expected = format!("a flag for each of {all} layers");
            return Err(metadata.error(&key, format!("a list of {}", flags.len()), expected));
        }
        None if metadata.has(&key) => return Err(metadata.refuse(&key, "a list of flags")),
        None => _ = members.size("full_attention_interval", "full_attention_interval")?,
    }
    members.required("linear_conv_kernel_dim", "ssm.conv_kernel")?;
    members.required("linear_key_head_dim", "ssm.state_size")?;
    members.required("linear_num_key_heads", "ssm.group_count")?;
    let heads = members.required("linear_num_value_heads", "ssm.time_step_rank")?;
    let key = members.key("ssm.inner_size");
    match metadata.uint(&key)? {
        Some(inner) if inner > 0 && inner.is_multiple_of(heads) => {
            members.put("linear_value_head_dim", key, Value::UInt(inner / heads));
            Ok(())
        }
        _ => Err(metadata.refuse(&key, format!("a multiple of {heads}, the number of heads of values"))),
    }
}

/// The same, and the expert that every token goes to, which is as wide as an MLP where files do not say.
fn beside_experts(of: &mut Members<'_>, checkpoint: &Checkpoint) -> Result<()> {
    members(of, checkpoint)?;
    let (metadata, key) = (of.metadata, of.key(SHARED));
    let width = match metadata.uint(&key)?.filter(|&width| width > 0) {
        Some(width) => Some(width),
        None => metadata.per_layer(&of.key("feed_forward_length"))?,
    };
    match width {
        Some(width) => of.put("shared_expert_intermediate_size", key, Value::UInt(width)),
        None => return Err(metadata.refuse(&key, "an integer")),
    }
    Ok(())
}
