//! `stablelm`: Llama with layer norms and partial rotary embedding; the 12B has its parts side by side.
//! Bellagente et al. 2024, "Stable LM 2 1.6B Technical Report".

use super::dense::{Dense, HeadNormOf, HeadNorms, NormKind};
use super::gguf_members::{LAYER_EPS, Members};
use super::{Arguments, Family, Gguf};
use crate::config::rope::RopeRules;
use crate::config::{Config, Names, Shared};
use crate::error::Result;
use crate::json::Fields;
use crate::json::Value;
use crate::weights::Checkpoint;
use crate::weights::gguf::write::Entries;

pub(super) static FAMILY: Family = Family {
    model_type: "stablelm",
    shared: Shared {
        names: Names { eps: "layer_norm_eps", ..Names::LLAMA },
        kv_heads: Some(32),
        context: 4096,
        eps: 1e-5,
        rope: RopeRules::partial(0.25),
        bos: Some(0),
        eos: &[0],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf { eps: LAYER_EPS, members, entries: Some(entries), ..Gguf::plain("stablelm") }),
    prefixes: &[],
};

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    let norms = NormKind::Layer { offset: 0.0 };
    let head_norms = fields.flag("qk_layernorm")?.unwrap_or(false).then_some(HeadNorms {
        names: [
            ("self_attn.q_layernorm.norms", "attn_q_norm"),
            ("self_attn.k_layernorm.norms", "attn_k_norm"),
        ],
        kind: norms,
        of: HeadNormOf::EachHead,
        after_rope: false,
    });
    config.parallel = fields.flag("use_parallel_residual")?.unwrap_or(false);
    let mlp_norm = (!config.parallel).then_some(("post_attention_layernorm", "ffn_norm"));
    let parallel = config.parallel;
    Dense { norms, mlp_norm, parallel, head_norms, ..Dense::llama(config) }.boxed()
}

/// llama.cpp tells by the norm, whatever the key says.
fn members(members: &mut Members<'_>, checkpoint: &Checkpoint) -> Result<()> {
    let norms = checkpoint.find("blk.0.attn_q_norm.weight").is_some();
    members.put("qk_layernorm", "blk.0.attn_q_norm.weight", Value::Bool(norms));
    let parallel = checkpoint.find("blk.0.ffn_norm.weight").is_none();
    members.put("use_parallel_residual", members.key("use_parallel_residual"), Value::Bool(parallel));
    Ok(())
}

fn entries(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    if config.rope.theta != 10_000.0 {
        return Err("has a rotary base that llama.cpp does not give its architecture");
    }
    if config.tie_word_embeddings {
        return Err("shares its embedding with its output head");
    }
    if config.has_head_norms {
        return Err("has norms that differ from head to head");
    }
    entries.flag("stablelm.use_parallel_residual", config.parallel);
    Ok(())
}
