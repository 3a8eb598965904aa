//! The configuration of a GGUF file: its metadata as the members of a `config.json`, resolved by the same rules. Errors
//! name the file's own keys.

use std::collections::BTreeMap;

use super::fields::Fields;
use super::{Config, Family, GenerationConfig, RopeScaling};
use crate::error::Result;
use crate::json::{Object, Value};
use crate::weights::Checkpoint;
use crate::weights::gguf::{Architecture, Metadata};

/// Divisors of frequencies: `rope_freqs.weight` and its like.
const FACTOR: std::ops::RangeInclusive<f32> = 1e-6..=1e6;
/// Layers of Gemma 2's 27B, the one size whose scores are not divided by the root of a head's length.
const GEMMA2_27B_LAYERS: u64 = 46;

/// Members of a `config.json`, and the keys that they come from.
struct Members<'a> {
    metadata: &'a Metadata,
    arch: &'static str,
    object: Object,
    scaling: Object,
    names: BTreeMap<String, String>,
}

impl Members<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn put(&mut self, name: &str, key: impl Into<String>, value: Value) {
        self.names.insert(name.to_owned(), key.into());
        self.object.insert(name.to_owned(), value);
    }

    fn put_scaling(&mut self, name: &str, key: impl Into<String>, value: Value) {
        self.names.insert(format!("rope_scaling.{name}"), key.into());
        self.scaling.insert(name.to_owned(), value);
    }

    /// A positive integer that may differ from layer to layer, and does not.
    fn size(&mut self, name: &str, key: &str) -> Result<Option<u64>> {
        let key = self.key(key);
        let value = self.metadata.per_layer(&key)?;
        match value {
            Some(0) => return Err(self.metadata.refuse(&key, "1 or more")),
            Some(n) => self.put(name, key, Value::UInt(n)),
            None => {}
        }
        Ok(value)
    }

    fn required(&mut self, name: &str, key: &str) -> Result<u64> {
        self.size(name, key)?.ok_or_else(|| self.metadata.refuse(&self.key(key), "an integer"))
    }

    fn number(&mut self, name: &str, key: &str) -> Result<Option<f64>> {
        let key = self.key(key);
        let value = self.metadata.number(&key)?;
        if let Some(x) = value {
            self.put(name, key, Value::Float(x));
        }
        Ok(value)
    }
}

impl Config {
    /// Resolves the metadata of a GGUF model.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for a value that is missing, mistyped or cannot be run.
    ///
    /// # Panics
    /// Where the checkpoint is not of GGUF files.
    pub fn from_gguf(checkpoint: &Checkpoint) -> Result<Self> {
        #[allow(clippy::expect_used)]
        let metadata = checkpoint.gguf().expect("a checkpoint of GGUF files");
        let architecture = Architecture::of(metadata)?;
        let arch = architecture.name();
        let mut members =
            Members { metadata, arch, object: Object::new(), scaling: Object::new(), names: BTreeMap::new() };
        let window = window(&mut members, architecture)?;
        let family = match architecture {
            Architecture::Llama if window => Family::Mistral,
            Architecture::Llama => Family::Llama,
            Architecture::Qwen2 => Family::Qwen2,
            Architecture::Qwen3 => Family::Qwen3,
            Architecture::Phi2 => Family::Phi,
            Architecture::Phi3 => Family::Phi3,
            Architecture::Gemma2 => Family::Gemma2,
        };
        members.put("model_type", "general.architecture", Value::String(family.model_type().to_owned()));
        let experts = members.key("expert_count");
        if metadata.uint(&experts)?.is_some_and(|experts| experts > 0) {
            return Err(metadata.refuse(&experts, "0 or absent: mixtures of experts are not supported"));
        }
        let context = members.required("max_position_embeddings", "context_length")?;
        let hidden = members.required("hidden_size", "embedding_length")?;
        let layers = members.required("num_hidden_layers", "block_count")?;
        members.required("intermediate_size", "feed_forward_length")?;
        let heads = members.required("num_attention_heads", "attention.head_count")?;
        if members.size("num_key_value_heads", "attention.head_count_kv")?.is_none() {
            members.put("num_key_value_heads", members.key("attention.head_count_kv"), Value::UInt(heads));
        }
        let head_dim = head_dim(&mut members, hidden, heads)?;
        let eps = match family {
            Family::Phi => ("layer_norm_eps", "attention.layer_norm_epsilon"),
            _ => ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        };
        if members.number(eps.0, eps.1)?.is_none() {
            return Err(metadata.refuse(&members.key(eps.1), "a number"));
        }
        if family == Family::Gemma2 {
            members.number("attn_logit_softcapping", "attn_logit_softcapping")?;
            members.number("final_logit_softcapping", "final_logit_softcapping")?;
            let scalar =
                if layers == GEMMA2_27B_LAYERS { hidden as f64 / heads as f64 } else { head_dim as f64 };
            members.put("query_pre_attn_scalar", members.key("attention.key_length"), Value::Float(scalar));
        }
        vocabulary(&mut members, checkpoint)?;
        rope(&mut members, checkpoint, family, head_dim, context)?;
        if !members.scaling.is_empty() {
            let scaling = std::mem::take(&mut members.scaling);
            members.object.insert("rope_scaling".to_owned(), Value::Object(scaling));
        }
        let fields = Fields::renamed(metadata.path(), &members.object, &members.names);
        let mut config = Self::resolve(&fields)?;
        if let Some(factors) = factors(checkpoint, "rope_freqs.weight", config.rope.dims)? {
            if config.rope.scaling != RopeScaling::None {
                let expected = "none, or no tensor rope_freqs.weight beside it";
                return Err(metadata.refuse(&format!("{arch}.rope.scaling.type"), expected));
            }
            config.rope.scaling = RopeScaling::Factors { factors };
        }
        Ok(config)
    }
}

impl GenerationConfig {
    /// The defaults of sampling in the metadata of a GGUF model.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for a value that is mistyped or out of range.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let mut object = Object::new();
        let mut names = BTreeMap::new();
        for (name, key) in [
            ("temperature", "general.sampling.temp"),
            ("top_p", "general.sampling.top_p"),
            ("min_p", "general.sampling.min_p"),
            ("repetition_penalty", "general.sampling.penalty_repeat"),
        ] {
            if let Some(x) = metadata.number(key)? {
                object.insert(name.to_owned(), Value::Float(x));
                names.insert(name.to_owned(), key.to_owned());
            }
        }
        const TOP_K: &str = "general.sampling.top_k";
        if let Some(k) = metadata.uint(TOP_K)? {
            object.insert("top_k".to_owned(), Value::UInt(k));
            names.insert("top_k".to_owned(), TOP_K.to_owned());
        }
        if object.contains_key("temperature") {
            object.insert("do_sample".to_owned(), Value::Bool(true));
        }
        Self::resolve(&Fields::renamed(metadata.path(), &object, &names))
    }
}

/// The window; whether a llama has one, and so is a Mistral. Files of qwen do not say which layers have it, and those
/// of models that use none may name one; theirs is not read.
fn window(members: &mut Members<'_>, architecture: Architecture) -> Result<bool> {
    if matches!(architecture, Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Phi2) {
        return Ok(false);
    }
    const NAME: &str = "sliding_window";
    let key = members.key("attention.sliding_window");
    match members.metadata.uint(&key)? {
        Some(0) => members.put(NAME, key, Value::Null),
        Some(window) => {
            members.put(NAME, key, Value::UInt(window));
            return Ok(true);
        }
        None if architecture != Architecture::Gemma2 => members.put(NAME, key, Value::Null),
        None => {}
    }
    Ok(false)
}

fn head_dim(members: &mut Members<'_>, hidden: u64, heads: u64) -> Result<u64> {
    const NAME: &str = "head_dim";
    let key = members.key("attention.key_length");
    let dim = match members.metadata.uint(&key)? {
        Some(dim) => dim,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let expected = format!("an integer: {heads} heads do not divide {hidden}");
            return Err(members.metadata.refuse(&key, expected));
        }
    };
    let values = members.key("attention.value_length");
    if members.metadata.uint(&values)?.is_some_and(|values| values != dim) {
        return Err(members.metadata.refuse(&values, format!("{dim}, the length of a key")));
    }
    members.put(NAME, key, Value::UInt(dim));
    Ok(dim)
}

/// The vocabulary is as large as the embedding; a head of its own is there or is not; bos and eos.
fn vocabulary(members: &mut Members<'_>, checkpoint: &Checkpoint) -> Result<()> {
    let metadata = members.metadata;
    let rows = checkpoint.find("model.embed_tokens.weight").and_then(|info| info.shape().first().copied());
    let key = members.key("vocab_size");
    let declared = metadata.uint(&key)?;
    let rows = match (rows.map(|rows| rows as u64), declared) {
        (Some(rows), Some(declared)) if rows != declared => {
            return Err(metadata.refuse(&key, format!("{rows}, the rows of token_embd.weight")));
        }
        (Some(rows), _) | (None, Some(rows)) => rows,
        (None, None) => return Err(metadata.refuse(&key, "an integer, or a tensor token_embd.weight")),
    };
    members.put("vocab_size", key, Value::UInt(rows));
    let tied = checkpoint.find("lm_head.weight").is_none();
    members.put("tie_word_embeddings", "output.weight", Value::Bool(tied));
    let (bos, eos) = crate::weights::gguf::ends(metadata, rows)?;
    let ids = eos.into_iter().map(|id| Value::UInt(id.into())).collect();
    members.put("eos_token_id", "tokenizer.ggml.eos_token_id", Value::Array(ids));
    let bos = bos.map_or(Value::Null, |id| Value::UInt(id.into()));
    members.put("bos_token_id", "tokenizer.ggml.bos_token_id", bos);
    Ok(())
}

fn rope(
    members: &mut Members<'_>,
    checkpoint: &Checkpoint,
    family: Family,
    head_dim: u64,
    context: u64,
) -> Result<()> {
    let metadata = members.metadata;
    members.number("rope_theta", "rope.freq_base")?;
    let key = members.key("rope.dimension_count");
    let dims = metadata.uint(&key)?.unwrap_or(head_dim);
    let whole = !matches!(family, Family::Phi | Family::Phi3);
    if dims == 0 || dims > head_dim || (whole && dims != head_dim) {
        let least = if whole { head_dim } else { 2 };
        return Err(metadata.refuse(&key, format!("from {least} to {head_dim}, the length of a head")));
    }
    if !whole {
        // Half an element more, so that the product with the head's length rounds down to `dims` exactly.
        let part = if dims == head_dim { 1.0 } else { (dims as f64 + 0.5) / head_dim as f64 };
        members.put("partial_rotary_factor", key, Value::Float(part));
    }

    let original = members.key("rope.scaling.original_context_length");
    if let Some(original_context) = metadata.uint(&original)? {
        members.put("original_max_position_embeddings", original, Value::UInt(original_context));
    } else if family == Family::Phi3 {
        members.put("original_max_position_embeddings", original, Value::UInt(context));
    }
    let kind_key = members.key("rope.scaling.type");
    let kind = metadata.string(&kind_key)?;
    let factor_key = members.key("rope.scaling.factor");
    let linear_key = members.key("rope.scale_linear");
    let factor = match metadata.number(&factor_key)? {
        Some(factor) => Some((factor_key, factor)),
        None => metadata.number(&linear_key)?.map(|factor| (linear_key, factor)),
    };
    // Zero and one stand for no scaling.
    let factor = factor.filter(|(_, factor)| *factor != 0.0 && *factor != 1.0);
    let long = checkpoint.find("rope_factors_long.weight").is_some();
    match kind {
        _ if long => longrope(members, checkpoint, dims)?,
        None | Some("none" | "longrope") if factor.is_none() => {}
        None | Some("linear") => {
            if let Some((key, factor)) = factor {
                members.put_scaling("rope_type", kind_key, Value::String("linear".to_owned()));
                members.put_scaling("factor", key, Value::Float(factor));
            }
        }
        Some("yarn") => {
            members.put_scaling("rope_type", kind_key, Value::String("yarn".to_owned()));
            if let Some((key, factor)) = factor {
                yarn_attention(members, factor)?;
                members.put_scaling("factor", key, Value::Float(factor));
            }
            for (name, key) in
                [("beta_fast", "rope.scaling.yarn_beta_fast"), ("beta_slow", "rope.scaling.yarn_beta_slow")]
            {
                let key = members.key(key);
                if let Some(beta) = metadata.number(&key)? {
                    members.put_scaling(name, key, Value::Float(beta));
                }
            }
        }
        Some("none") => {}
        Some(_) => return Err(metadata.refuse(&kind_key, "none, linear, yarn, or longrope with its factors")),
    }
    Ok(())
}

/// llama.cpp multiplies YaRN's own factor of cos and sin by this one.
fn yarn_attention(members: &mut Members<'_>, factor: f64) -> Result<()> {
    for key in ["rope.scaling.yarn_attn_factor", "rope.scaling.attn_factor"] {
        let key = members.key(key);
        if let Some(attention) = members.metadata.number(&key)?.filter(|&attention| attention != 1.0) {
            let whole = attention * if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            members.put_scaling("attention_factor", key, Value::Float(whole));
            break;
        }
    }
    Ok(())
}

fn longrope(members: &mut Members<'_>, checkpoint: &Checkpoint, dims: u64) -> Result<()> {
    let kind = members.key("rope.scaling.type");
    members.put_scaling("rope_type", kind, Value::String("longrope".to_owned()));
    for (name, tensor) in
        [("short_factor", "rope_factors_short.weight"), ("long_factor", "rope_factors_long.weight")]
    {
        if let Some(list) = factors(checkpoint, tensor, dims as usize)? {
            let list = list.into_iter().map(|x| Value::Float(x.into())).collect();
            members.put_scaling(name, tensor, Value::Array(list));
        } else {
            return Err(members.metadata.error(tensor, "missing", "a tensor beside the other factors"));
        }
    }
    let key = members.key("rope.scaling.attn_factor");
    if let Some(attention) = members.metadata.number(&key)? {
        members.put_scaling("attention_factor", key, Value::Float(attention));
    }
    Ok(())
}

/// A divisor of each rotated pair's frequency.
fn factors(checkpoint: &Checkpoint, tensor: &str, dims: usize) -> Result<Option<Vec<f32>>> {
    if checkpoint.find(tensor).is_none() {
        return Ok(None);
    }
    let factors = checkpoint.get(tensor, &[dims / 2])?.to_f32();
    match factors.iter().find(|factor| !FACTOR.contains(factor)) {
        Some(factor) => {
            let expected = format!("numbers from {:?} to {:?}", FACTOR.start(), FACTOR.end());
            Err(crate::Error::config(checkpoint.path(), tensor, format!("{factor:?}"), expected))
        }
        None => Ok(Some(factors)),
    }
}
