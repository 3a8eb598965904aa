//! What GGUF files say of experts: how many there are, how they are chosen, and which layers have them.

use super::gguf_members::Members;
use crate::error::Result;
use crate::json::Value;

/// What a family calls what files say of its experts, and what llama.cpp takes for granted of the architecture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GgufExperts {
    /// The field of their number.
    pub count: &'static str,
    /// That of how many of them a token goes to.
    pub used: &'static str,
    /// That of their width, where it is not the width of the MLP.
    pub width: Option<&'static str>,
    /// That of the number of experts that every token goes to, where files must say it.
    pub shared: Option<&'static str>,
    /// That of the number of layers in front of those that have experts.
    pub dense: Option<&'static str>,
    /// That of what multiplies the weights.
    pub scale: Option<&'static str>,
    /// Those of the number of groups, and of how many of these a token's experts come from.
    pub groups: Option<[&'static str; 2]>,
    /// Whether the weights of a token's experts are divided by their sum.
    pub norm: GgufNorm,
    /// What becomes of the router's logits, by its number in `expert_gating_func`.
    pub gating: u64,
    /// Whether files of the architecture may have none.
    pub optional: bool,
    /// Those of [`RARE`] that the family itself reads.
    pub reads: &'static [&'static str],
}

/// Whether the weights of a token's experts are divided by their sum.
#[derive(Debug, Clone, Copy)]
pub(crate) enum GgufNorm {
    /// As files say, in the field of this name; where they do not, they are not.
    Said(&'static str),
    /// Whatever files say: those that say otherwise are refused.
    Always(bool),
}

impl GgufExperts {
    /// Experts of every layer that a softmax over all of them chooses, whose weights are divided by their sum.
    pub const SOFTMAX: Self = Self {
        count: "num_experts",
        used: "num_experts_per_tok",
        width: Some("moe_intermediate_size"),
        shared: None,
        dense: None,
        scale: None,
        groups: None,
        norm: GgufNorm::Always(true),
        gating: 1,
        optional: false,
        reads: &[],
    };

    /// The same, chosen by a sigmoid.
    pub const SIGMOID: Self = Self { gating: 2, ..Self::SOFTMAX };
}

/// Keys that change what experts do in some architectures, and the largest number that says nothing.
const RARE: [(&str, u64); 5] = [
    ("expert_shared_count", 0),
    ("expert_shared_feed_forward_length", 0),
    ("leading_dense_block_count", 0),
    ("interleave_moe_layer_step", 1),
    ("nextn_predict_layers", 0),
];

/// Reads them.
pub(super) fn experts(members: &mut Members<'_>, of: &GgufExperts) -> Result<()> {
    let metadata = members.metadata;
    members.required(of.count, "expert_count")?;
    let used = members.required(of.used, "expert_used_count")?;
    if let Some(width) = of.width
        && members.size(width, "expert_feed_forward_length")?.is_none()
    {
        // As llama.cpp has it.
        let key = members.key("feed_forward_length");
        let all = metadata.per_layer(&key)?.unwrap_or(0);
        members.put(width, key, Value::UInt(all / used.max(1)));
    }
    if let Some(shared) = of.shared {
        let key = members.key("expert_shared_count");
        let Some(count) = metadata.uint(&key)? else {
            return Err(metadata.refuse(&key, "an integer"));
        };
        members.put(shared, key, Value::UInt(count));
    }
    if let Some(dense) = of.dense {
        let key = members.key("leading_dense_block_count");
        let count = metadata.uint(&key)?.unwrap_or(0);
        members.put(dense, key, Value::UInt(count));
    }
    routing(members, of)?;
    for (name, nothing) in RARE {
        let read = match name {
            "expert_shared_count" => of.shared.is_some(),
            "leading_dense_block_count" => of.dense.is_some(),
            _ => false,
        };
        let key = members.key(name);
        if !read && !of.reads.contains(&name) && metadata.uint(&key)?.is_some_and(|n| n > nothing) {
            return Err(metadata.refuse(&key, format!("{nothing} or absent in this architecture")));
        }
    }
    Ok(())
}

/// How they are chosen, and what weighs them.
fn routing(members: &mut Members<'_>, of: &GgufExperts) -> Result<()> {
    let metadata = members.metadata;
    let key = members.key("expert_gating_func");
    // 0 stands for what the architecture has.
    if metadata.uint(&key)?.is_some_and(|gating| gating != 0 && gating != of.gating) {
        return Err(metadata.refuse(&key, format!("{} or absent", of.gating)));
    }
    let key = members.key("expert_weights_norm");
    let norm = metadata.flag(&key)?;
    match of.norm {
        GgufNorm::Said(name) => members.put(name, key, Value::Bool(norm.unwrap_or(false))),
        GgufNorm::Always(always) if norm.is_some_and(|norm| norm != always) => {
            return Err(metadata.refuse(&key, format!("{always} or absent")));
        }
        GgufNorm::Always(_) => {}
    }
    let key = members.key("expert_weights_scale");
    // 0 stands for none.
    let scale = metadata.number(&key)?.filter(|&scale| scale != 0.0).unwrap_or(1.0);
    match of.scale {
        Some(name) => members.put(name, key, Value::Float(scale)),
        None if scale != 1.0 => {
            return Err(metadata.refuse(&key, "1, 0 or absent: this architecture scales no weights"));
        }
        None => {}
    }
    let key = members.key("expert_group_count");
    let count = metadata.uint(&key)?.unwrap_or(0).max(1);
    match of.groups {
        Some([groups, used]) => {
            members.put(groups, key.clone(), Value::UInt(count));
            match count {
                1 => members.put(used, key, Value::UInt(1)),
                _ => _ = members.required(used, "expert_group_used_count")?,
            }
        }
        None if count > 1 => {
            return Err(
                metadata.refuse(&key, "0, 1 or absent: experts of this architecture are in no groups")
            );
        }
        None => {}
    }
    Ok(())
}
