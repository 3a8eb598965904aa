//! `hunyuan_v1_dense`: Llama with norms of heads after the rotary embedding, whose base is stretched once and for all.
//! Tencent Hunyuan Team 2025, "Hunyuan-MT Technical Report".

use super::dense::{Dense, HeadNorms};
use super::gguf::no_window;
use super::gguf_members::Members;
use super::{Arguments, Family, Gguf, qwen3};
use crate::config::{Config, Rope, RopeScaling, Shared, only, rope};
use crate::error::Result;
use crate::json::Fields;
use crate::json::Value;
use crate::weights::Checkpoint;

pub(super) static FAMILY: Family = Family {
    model_type: "hunyuan_v1_dense",
    shared: Shared { eps: 1e-5, ..Shared::LLAMA },
    arguments,
    gguf: Some(Gguf { members, entries: Some(no_window), ..Gguf::plain("hunyuan-dense") }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    if fields.size("num_experts", 0, 1 << 16)?.is_some_and(|experts| experts > 1) {
        let got = fields.size("num_experts", 0, 1 << 16)?.unwrap_or(0);
        return Err(fields.error("num_experts", got, "1: the dense family has no experts"));
    }
    described(fields, config)?.boxed()
}

/// Without what is said of experts.
pub(super) fn described(fields: &Fields<'_>, mut config: Config) -> Result<Dense> {
    for (name, fine) in [
        ("use_qk_norm", true),
        ("mlp_bias", false),
        ("use_cla", false),
        ("use_mla", false),
        ("use_rotary_pos_emb", true),
    ] {
        only(fields, name, fine, "the family has no other block")?;
    }
    if let (Some(params), RopeScaling::Dynamic { .. }) = (rope::parameters(fields)?, &config.rope.scaling)
        && let Some(alpha) = params.number("alpha", 0.0, 1e6)?.filter(|&alpha| alpha != 0.0)
    {
        let dims = config.rope.dims as f64;
        let theta = config.rope.theta * alpha.powf(dims / (dims - 2.0));
        config.rope = Rope { theta, scaling: RopeScaling::None, ..config.rope };
    }
    let names = [("self_attn.query_layernorm", "attn_q_norm"), ("self_attn.key_layernorm", "attn_k_norm")];
    let head_norms = HeadNorms { names, after_rope: true, ..qwen3::HEAD_NORMS };
    Ok(Dense { head_norms: Some(head_norms), ..Dense::llama(config) })
}

pub(super) fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    let key = members.key("rope.scaling.alpha");
    if let Some(alpha) = members.metadata.number(&key)?.filter(|&alpha| alpha > 0.0) {
        members.put_scaling("rope_type", key.clone(), Value::String("dynamic".to_owned()));
        members.put_scaling("factor", key.clone(), Value::Float(1.0));
        members.put_scaling("alpha", key, Value::Float(alpha));
    }
    Ok(())
}
