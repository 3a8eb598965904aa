//! What GGUF files say of Gemma 3n: how many streams there are, which layers share keys and values, and where gates are cut.

use super::gguf_members::Members;
use super::normal::below;
use crate::error::Result;
use crate::json::Value;
use crate::weights::Checkpoint;

/// The layers that llama.cpp takes for those with keys and values of their own, where no key says it.
const LAYERS_OF_OWN: u64 = 20;

/// Reads it into the members of a `config.json`.
pub(super) fn members(members: &mut Members<'_>, checkpoint: &Checkpoint) -> Result<()> {
    let metadata = members.metadata;
    members.window(false)?;
    members.window_pattern(5)?;
    let layers = members.uint("num_hidden_layers");
    let key = members.key("attention.shared_kv_layers");
    let shared = metadata.uint(&key)?.unwrap_or(layers.saturating_sub(LAYERS_OF_OWN));
    members.put("num_kv_shared_layers", key, Value::UInt(shared));
    for (name, key) in [
        ("altup_num_inputs", "altup.num_inputs"),
        ("altup_active_idx", "altup.active_idx"),
        ("hidden_size_per_layer_input", "embedding_length_per_layer_input"),
    ] {
        let key = members.key(key);
        if let Some(count) = metadata.uint(&key)? {
            members.put(name, key, Value::UInt(count));
        }
    }
    for (name, tensor) in [
        ("vocab_size_per_layer_input", "per_layer_token_embd.weight"),
        ("laurel_rank", "blk.0.laurel_l.weight"),
    ] {
        if let Some(&rows) = checkpoint.find(tensor).and_then(|info| info.shape().first()) {
            members.put(name, tensor, Value::UInt(rows as u64));
        }
    }
    let key = members.key("activation_sparsity_scale");
    if let Some(deviations) = metadata.floats(&key)? {
        // The share that lies below as many deviations: as it was before convert_hf_to_gguf.py turned it, in `f32`.
        let share = |deviations: f32| Value::Float(f64::from(below(f64::from(deviations)) as f32));
        let shares = deviations.into_iter().map(share).collect();
        members.put("activation_sparsity_pattern", key, Value::Array(shares));
    }
    Ok(())
}
