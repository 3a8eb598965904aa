//! What GGUF files say of Mamba 2: its widths, and which layers have one.

use super::gguf_members::Members;
use crate::error::Result;
use crate::json::Value;

/// The families' names of what is read here.
pub(super) struct MambaMembers {
    pub heads: &'static str,
    pub groups: &'static str,
    pub state: &'static str,
    pub kernel: &'static str,
    /// Elements of a head.
    pub head_dim: &'static str,
}

/// Most layers of a model.
const LAYERS: u64 = 1024;

/// Reads the widths, and gives back heads times their elements.
pub(super) fn widths(members: &mut Members<'_>, names: &MambaMembers) -> Result<u64> {
    members.required(names.kernel, "ssm.conv_kernel")?;
    members.required(names.state, "ssm.state_size")?;
    members.required(names.groups, "ssm.group_count")?;
    let heads = members.required(names.heads, "ssm.time_step_rank")?;
    let key = members.key("ssm.inner_size");
    match members.metadata.uint(&key)? {
        Some(inner) if inner > 0 && inner.is_multiple_of(heads) => {
            members.put(names.head_dim, key, Value::UInt(inner / heads));
            Ok(inner)
        }
        _ => Err(members.metadata.refuse(&key, format!("a multiple of {heads}, the number of heads"))),
    }
}

/// Reads what each layer is, as `word` calls one with so many heads of keys, and an MLP so wide.
pub(super) fn kinds(
    members: &mut Members<'_>,
    name: &str,
    word: impl Fn(bool, bool) -> &'static str,
) -> Result<()> {
    const KV: &str = "attention.head_count_kv";
    let key = members.key("block_count");
    let all = members.metadata.uint(&key)?.unwrap_or(0);
    if all > LAYERS {
        return Err(members.metadata.refuse(&key, format!("an integer from 1 to {LAYERS}")));
    }
    let own = members.uint("num_hidden_layers") as usize;
    let (kv, inner) = (members.by_layer(KV, all)?, members.by_layer("feed_forward_length", all)?);
    let kind = |(kv, inner): (u64, u64)| Value::String(word(kv > 0, inner > 0).to_owned());
    let kinds = kv.into_iter().zip(inner).take(own).map(kind).collect();
    members.put(name, members.key(KV), Value::Array(kinds));
    Ok(())
}
