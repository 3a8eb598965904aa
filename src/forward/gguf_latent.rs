//! What GGUF files say of latent attention: its widths, and how its scores grow where contexts were stretched.

use super::gguf_members::{LLAMA_CPP, Members, RMS_EPS};
use super::{Gguf, GgufExperts, glm4_moe};
use crate::error::Result;
use crate::json::Value;
use crate::weights::Checkpoint;
use crate::weights::gguf::Metadata;

/// The architecture of most such models, of several families.
pub(super) const DEEPSEEK2: &str = "deepseek2";

/// The form of a family of an architecture, whose experts have this gating function.
pub(super) const fn form(architecture: &'static str, gating: u64) -> Gguf {
    Gguf {
        experts: Some(GgufExperts { gating, reads: &["nextn_predict_layers"], ..glm4_moe::EXPERTS }),
        head_dim: dims,
        members: match gating {
            1 => of_softmax,
            _ => members,
        },
        entries: None,
        ..Gguf::plain(architecture)
    }
}

/// Whether a sigmoid chooses the experts of a file of [`DEEPSEEK2`]. Of those that do not say, llama.cpp knows GLM 4.7 Flash by its
/// size.
pub(super) fn is_sigmoid(metadata: &Metadata) -> Result<bool> {
    let uint =
        |key: &str| Ok::<_, crate::error::Error>(metadata.uint(&format!("{DEEPSEEK2}.{key}"))?.unwrap_or(0));
    match uint("expert_gating_func")? {
        0 => {
            let layers = uint("block_count")?.saturating_sub(uint("nextn_predict_layers")?);
            let vocabulary = match metadata.strings("tokenizer.ggml.tokens")? {
                _ if metadata.has("deepseek2.vocab_size") => uint("vocab_size")?,
                Some(tokens) => tokens.len() as u64,
                None => 0,
            };
            Ok((47..=48).contains(&layers) && vocabulary == 154_880)
        }
        gating => Ok(gating == 2),
    }
}

/// Reads the widths, of which that of what rotates is given back.
pub(super) fn dims(members: &mut Members<'_>, _hidden: u64, _heads: u64) -> Result<u64> {
    let metadata = members.metadata;
    members.put(LLAMA_CPP, members.key(RMS_EPS), Value::Bool(true));
    members.required("kv_lora_rank", "attention.kv_lora_rank")?;
    let key = members.key("attention.q_lora_rank");
    let query = metadata.uint(&key)?.filter(|&rank| rank > 0).map_or(Value::Null, Value::UInt);
    members.put("q_lora_rank", key, query);
    let rope = members.required("qk_rope_head_dim", "rope.dimension_count")?;
    // Where these are there, keys and values without the ending are what is kept of a token.
    let [of_keys, of_values] = match metadata.uint(&members.key("attention.key_length_mla"))? {
        Some(1..) => ["attention.key_length_mla", "attention.value_length_mla"],
        _ => ["attention.key_length", "attention.value_length"],
    };
    let whole = members.required("qk_nope_head_dim", of_keys)?;
    let Some(nope) = whole.checked_sub(rope).filter(|&nope| nope > 0) else {
        let expected = format!("more than {rope}, what rotates of a key");
        return Err(metadata.refuse(&members.key(of_keys), expected));
    };
    members.put("qk_nope_head_dim", members.key(of_keys), Value::UInt(nope));
    members.required("v_head_dim", of_values)?;
    Ok(rope)
}

/// Reads what else files have.
fn members(members: &mut Members<'_>, _: &Checkpoint) -> Result<()> {
    glm4_moe::own_layers(members)?;
    stretched(members)?;
    growing(members)?;
    // Absent parameters stand for Mistral's own in a directory, and for none in a file.
    if !members.has_scaling("rope_type") {
        let kind = members.key("rope.scaling.type");
        members.put_scaling("rope_type", kind, Value::String("default".to_owned()));
    }
    Ok(())
}

/// The same of those whose experts a softmax chooses, to which these families add nothing.
fn of_softmax(of: &mut Members<'_>, checkpoint: &Checkpoint) -> Result<()> {
    match checkpoint.tensors().find(|tensor| tensor.name().contains(".exp_probs_b.")) {
        Some(tensor) => Err(tensor.fail("is there, and a softmax chooses the experts".to_owned())),
        None => members(of, checkpoint),
    }
}

/// What stretched contexts multiply cos and sin by, and scores, which llama.cpp has of one number.
fn stretched(members: &mut Members<'_>) -> Result<()> {
    let metadata = members.metadata;
    let key = members.key("rope.scaling.attn_factor");
    if metadata.number(&key)?.is_some_and(|factor| factor != 1.0) {
        return Err(metadata.refuse(&key, "1 or absent in this architecture"));
    }
    if !members.has_scaling("rope_type") {
        return Ok(());
    }
    let kind = members.key("rope.scaling.type");
    if metadata.string(&kind)? != Some("yarn") {
        return Err(metadata.refuse(&kind, "none or yarn in this architecture"));
    }
    let factor = members.scaling_number("factor").unwrap_or(1.0);
    members.put_scaling("factor", members.key("rope.scaling.factor"), Value::Float(factor));
    // A tenth of `mscale_all_dim`, which llama.cpp divides in 32 bits.
    let key = members.key("rope.scaling.yarn_log_multiplier");
    let all = metadata.number(&key)?.map_or(0.0, |tenth| f64::from(tenth as f32 / 0.1));
    if !(0.0..=1e6).contains(&all) {
        return Err(metadata.refuse(&key, "a number from 0 to 100000"));
    }
    let grown = |by: f64| if factor > 1.0 { 0.1 * by * factor.ln() + 1.0 } else { 1.0 };
    let (attention, all) = match all {
        0.0 => (grown(1.0), 1.0),
        // Of `mscale`, which no file has, it takes for granted that it is the same here, and 1 elsewhere.
        _ if members.arch == DEEPSEEK2 => (1.0, all),
        _ => (grown(1.0) / grown(all), 1.0),
    };
    members.put_scaling("attention_factor", key.clone(), Value::Float(attention));
    members.put_scaling("mscale_all_dim", key, Value::Float(all));
    Ok(())
}

/// How queries grow with their positions.
fn growing(members: &mut Members<'_>) -> Result<()> {
    let metadata = members.metadata;
    let key = members.key("attention.temperature_scale");
    let Some(beta) = metadata.number(&key)?.filter(|&beta| beta != 0.0) else { return Ok(()) };
    let original = metadata.uint(&members.key("rope.scaling.original_context_length"))?;
    let original = original.unwrap_or_else(|| members.uint("max_position_embeddings"));
    let floor = members.key("attention.temperature_length");
    if metadata.uint(&floor)? != Some(original) {
        return Err(metadata.refuse(&floor, format!("{original}, the original length of a context")));
    }
    members.put_scaling("llama_4_scaling_beta", key, Value::Float(beta));
    Ok(())
}
