//! What GGUF files say of Gemma 4: two sizes of heads, layers that share keys and values, and pairs of a head that stand still.

use super::gguf_members::Members;
use crate::error::{Error, Result};
use crate::json::{Object, Value};
use crate::weights::Checkpoint;

/// The factor of a pair that stands still is at least this: `convert_hf_to_gguf.py` writes 1e30.
const STILL: f32 = 1e20;

/// Reads it into the members of a `config.json`.
pub(super) fn members(members: &mut Members<'_>, checkpoint: &Checkpoint) -> Result<()> {
    let metadata = members.metadata;
    // More are refused, once all is read.
    let layers = members.uint("num_hidden_layers").min(1024) as usize;
    members.window(false)?;
    members.window_pattern(6)?;
    let flags = metadata.flags(&members.key("attention.sliding_window_pattern"))?;
    let slides = |layer: usize| match &flags {
        // The last layer sees everything, whatever the file says.
        Some(flags) => layer + 1 < layers && flags.get(layer).copied().unwrap_or(false),
        None => layer + 1 < layers && !(layer + 1).is_multiple_of(6),
    };

    let heads = members.key("attention.head_count_kv");
    let counts = metadata.layers(&heads)?.unwrap_or_else(|| vec![members.uint("num_key_value_heads")]);
    let count =
        |layer: usize| if counts.len() == 1 { counts[0] } else { counts.get(layer).copied().unwrap_or(0) };
    let own = (0..layers).find(|&layer| slides(layer)).map_or(count(0), count);
    let full = count(layers.saturating_sub(1));
    if (0..layers).any(|layer| count(layer) != if slides(layer) { own } else { full }) {
        return Err(metadata.refuse(&heads, "an integer for each layer, the same for layers of a type"));
    }
    // The generic length is that of layers that see everything.
    let dim = members.uint("head_dim");
    let own_dim = metadata.uint(&members.key("attention.key_length_swa"))?.unwrap_or(dim);
    let values = members.key("attention.value_length_swa");
    if metadata.uint(&values)?.is_some_and(|values| values != own_dim) {
        return Err(metadata.refuse(&values, format!("{own_dim}, the length of a key")));
    }
    members.put("num_key_value_heads", heads.as_str(), Value::UInt(own));
    members.put("head_dim", members.key("attention.key_length_swa"), Value::UInt(own_dim));
    let of_full = object([("head_dim", Value::UInt(dim)), ("num_key_value_heads", Value::UInt(full))]);
    let each: Object = (0..layers)
        .filter(|&layer| !slides(layer))
        .map(|layer| (layer.to_string(), Value::Object(of_full.clone())))
        .collect();
    members.put("per_layer_config", heads, Value::Object(each));
    let first = (0..layers).find(|&layer| !slides(layer)).unwrap_or(0);
    let values = format!("blk.{first}.attn_v.weight");
    let keys_are_values = checkpoint.find(&values).is_none();
    members.put("attention_k_eq_v", values, Value::Bool(keys_are_values));

    let key = members.key("attention.shared_kv_layers");
    let shared = metadata.uint(&key)?.unwrap_or(0);
    members.put("num_kv_shared_layers", key, Value::UInt(shared));
    let key = members.key("feed_forward_length");
    let widths = metadata.layers(&key)?.unwrap_or_default();
    if let Some(&first) = widths.first().filter(|first| widths.iter().any(|width| width != *first)) {
        let before = layers.saturating_sub(shared as usize);
        let wanted = |layer: usize| if layer < before { first } else { 2 * first };
        if widths.len() != layers || widths.iter().enumerate().any(|(layer, &width)| width != wanted(layer)) {
            let expected = "one integer, or twice that in layers that use the keys of others";
            return Err(metadata.refuse(&key, expected));
        }
        members.put("use_double_wide_mlp", key, Value::Bool(true));
    }

    let key = members.key("embedding_length_per_layer_input");
    let width = metadata.uint(&key)?.unwrap_or(0);
    members.put("hidden_size_per_layer_input", key, Value::UInt(width));
    const TABLE: &str = "per_layer_token_embd.weight";
    if let Some(&rows) = checkpoint.find(TABLE).and_then(|info| info.shape().first()) {
        members.put("vocab_size_per_layer_input", TABLE, Value::UInt(rows as u64));
    }
    let key = members.key("expert_count");
    let has_experts = metadata.uint(&key)?.is_some_and(|count| count > 0);
    members.put("enable_moe_block", key, Value::Bool(has_experts));
    rope(members, checkpoint, dim as usize)
}

/// The rotary embeddings of both types of layers; heads of those that see everything have `dim` elements.
fn rope(members: &mut Members<'_>, checkpoint: &Checkpoint, dim: usize) -> Result<()> {
    let metadata = members.metadata;
    if members.has_scaling("rope_type") || members.has_scaling("factor") {
        return Err(metadata.refuse(&members.key("rope.scaling.type"), "none"));
    }
    let base = |key: &str, absent: f64| Ok::<_, Error>(metadata.number(key)?.unwrap_or(absent));
    let (full, sliding) = (members.key("rope.freq_base"), members.key("rope.freq_base_swa"));
    let (theta, of_sliding) = (base(&full, 1e6)?, base(&sliding, 1e4)?);
    let turning = turning(checkpoint, dim)?;
    // Half a pair more, so that the product with the head's length rounds down to the number of pairs.
    let part = ((2 * turning + 1) as f64 / dim.max(1) as f64).min(1.0);
    let kind = |kind: &str| Value::String(kind.to_owned());
    let proportional = object([
        ("rope_type", kind("proportional")),
        ("rope_theta", Value::Float(theta)),
        ("partial_rotary_factor", Value::Float(part)),
    ]);
    let plain = object([("rope_type", kind("default")), ("rope_theta", Value::Float(of_sliding))]);
    let both = object([
        ("full_attention", Value::Object(proportional)),
        ("sliding_attention", Value::Object(plain)),
    ]);
    members.put("rope_parameters", full, Value::Object(both));
    Ok(())
}

/// Pairs of a head that turn: all, where the file has no factors.
fn turning(checkpoint: &Checkpoint, dim: usize) -> Result<usize> {
    const NAME: &str = "rope_freqs.weight";
    if checkpoint.find(NAME).is_none() {
        return Ok(dim / 2);
    }
    let factors = checkpoint.get(NAME, &[dim / 2])?.widened()?;
    let turning = factors.iter().take_while(|&&factor| factor == 1.0).count();
    match factors[turning..].iter().find(|&&factor| factor.is_nan() || factor < STILL) {
        None => Ok(turning),
        Some(other) => {
            let expected = "1 for pairs that turn, and 1e30 for those behind them";
            Err(Error::config(checkpoint.path(), NAME, format!("{other:?}"), expected))
        }
    }
}

fn object<const N: usize>(members: [(&str, Value); N]) -> Object {
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
