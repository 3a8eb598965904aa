//! The configuration of a GGUF file: its metadata as the members of a `config.json`, resolved by the same rules. Errors
//! name the file's own keys.

use std::collections::BTreeMap;

use super::gguf_experts::{self, GgufExperts};
use super::gguf_members::{LAYER_EPS, Members, RMS_EPS};
use super::{Architecture, FAMILIES, Family, check_decoder};
use crate::config::{Activation, Config, Experts, GenerationConfig, IS_CAUSAL, Rope, RopeScaling};
use crate::error::Result;
use crate::json::Fields;
use crate::json::{Object, Value};
use crate::weights::Checkpoint;
use crate::weights::gguf::{Metadata, write::Entries};

/// Divisors of frequencies: `rope_freqs.weight` and its like.
const FACTOR: std::ops::RangeInclusive<f32> = 1e-6..=1e6;

/// Writes what a family has of its own, or says what llama.cpp has no form for.
type WriteEntries = fn(&Config, &mut Entries) -> Result<(), &'static str>;

/// A family's form in GGUF.
pub(crate) struct Gguf {
    /// `general.architecture`, and the prefix of the family's keys.
    pub architecture: &'static str,
    /// Another that files of the family may have.
    pub also: Option<&'static str>,
    /// Whether a file of this architecture is of this family, where several share it.
    pub claims: fn(&Metadata) -> Result<bool>,
    /// The key of what is added to the variance in norms.
    pub eps: &'static str,
    /// Activations of the feed-forward part that llama.cpp gives the architecture.
    pub activations: &'static [Activation],
    /// What scores are divided by the root of there, where no key says it.
    pub scalar: Option<fn(&Config) -> f32>,
    /// Numbers that other families do not have: the field of the configuration, and the key.
    pub numbers: &'static [(&'static str, &'static str)],
    /// What files say of its experts.
    pub experts: Option<GgufExperts>,
    /// Reads the widths of a head, and gives back the elements of which those that rotate are a part.
    pub head_dim: fn(&mut Members<'_>, hidden: u64, heads: u64) -> Result<u64>,
    /// Whether layers may have other numbers of key/value heads, and other widths of the feed-forward part, than the first: `members`
    /// reads those of all.
    pub by_layer: bool,
    /// Whether layers may be without attention, or without a feed-forward part, which numbers of 0 say: `members` reads those of all.
    pub parts: bool,
    /// Whether heads rotate.
    pub rotates: bool,
    /// Reads what else the family has.
    pub members: fn(&mut Members<'_>, &Checkpoint) -> Result<()>,
    /// Writes what else llama.cpp wants to know, or says what it has no form for; none where files are read and not written.
    pub entries: Option<WriteEntries>,
}

impl Gguf {
    /// The form of a family that has nothing beside what all share, and no window.
    pub const fn plain(architecture: &'static str) -> Self {
        Self {
            architecture,
            also: None,
            claims: |_| Ok(true),
            eps: RMS_EPS,
            activations: &[Activation::Silu],
            scalar: None,
            numbers: &[],
            experts: None,
            head_dim,
            by_layer: false,
            parts: false,
            rotates: true,
            members: |_, _| Ok(()),
            entries: Some(no_window),
        }
    }

    /// The form of an encoder: layer norms, and what is read and not written.
    pub const fn encoder(architecture: &'static str) -> Self {
        Self {
            eps: LAYER_EPS,
            activations: &[Activation::Gelu],
            rotates: false,
            entries: None,
            ..Self::plain(architecture)
        }
    }

    /// Every `general.architecture` of the family's files.
    pub fn architectures(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.architecture).chain(self.also)
    }

    /// The key `key` of this architecture.
    pub fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }
}

/// What all writers refuse: windows that llama.cpp would not apply.
pub(crate) fn no_window(config: &Config, _: &mut Entries) -> Result<(), &'static str> {
    match config.windows.iter().any(Option::is_some) {
        true => Err("has layers with a window of attention"),
        false => Ok(()),
    }
}

/// The experts of a family to which llama.cpp gives some in every layer, their weights made to add up to one where
/// `normalised`.
pub(crate) fn experts_everywhere(config: &Config, normalised: bool) -> Result<Experts, &'static str> {
    let experts = config.experts.ok_or("has no experts")?;
    match (experts.everywhere, experts.normalised == normalised) {
        (true, true) => Ok(experts),
        (false, _) => Err("has layers without experts"),
        (_, false) if normalised => Err("has experts whose weights do not add up to one"),
        (_, false) => Err("has experts whose weights are made to add up to one"),
    }
}

/// What is said of windows that are written, but not applied.
pub(crate) fn window_that_llama_cpp_ignores(config: &Config, _: &mut Entries) -> Result<(), &'static str> {
    if let Some(window) = config.windows.iter().flatten().next() {
        tracing::warn!(
            "llama.cpp applies no window to this architecture: past {window} tokens its answers differ"
        );
    }
    Ok(())
}

/// Resolves the metadata of a GGUF model, whose tensors have the names of the file.
///
/// # Errors
/// [`crate::Error::Config`] for a value that is missing, mistyped or cannot be run.
pub(crate) fn config_from_gguf(checkpoint: &Checkpoint) -> Result<Architecture> {
    let Some(metadata) = checkpoint.gguf() else {
        return Err(crate::error::Error::format(checkpoint.path(), "not a GGUF file"));
    };
    let (family, gguf, arch) = family(metadata)?;
    let (shared, names) = (&family.shared, &family.shared.names);
    let mut members = Members::new(metadata, arch);
    members.put("model_type", "general.architecture", Value::String(family.model_type.to_owned()));
    let context = members.required(names.context, "context_length")?;
    let hidden = members.required(names.hidden_size, "embedding_length")?;
    members.required(names.layers, "block_count")?;
    let size = |members: &mut Members<'_>, name: &str, key: &str| match (gguf.parts, gguf.by_layer) {
        (true, _) => members.size_of_some(name, key),
        (false, true) => members.size_of_first(name, key),
        (false, false) => members.size(name, key),
    };
    // Files whose layers have nothing but experts need not say how wide an MLP is.
    let of_experts = gguf.experts.as_ref().and_then(|experts| experts.width);
    let has_width = metadata.has(&members.key("expert_feed_forward_length"));
    if size(&mut members, names.intermediate_size, "feed_forward_length")?.is_none() {
        let key = members.key("feed_forward_length");
        if gguf.parts {
            // No layer has an MLP: it stands for nothing.
            members.put(names.intermediate_size, key, Value::UInt(1));
        } else if !(has_width && of_experts == Some(names.intermediate_size)) {
            return Err(metadata.refuse(&key, "an integer"));
        }
    }
    let heads = match gguf.parts {
        true => members.size_of_some(names.heads, "attention.head_count")?.unwrap_or(0),
        false => members.required(names.heads, "attention.head_count")?,
    };
    let kv = names.kv_heads.unwrap_or("num_key_value_heads");
    if size(&mut members, kv, "attention.head_count_kv")?.is_none() && heads > 0 {
        members.put(kv, members.key("attention.head_count_kv"), Value::UInt(heads));
    }
    let head_dim = (gguf.head_dim)(&mut members, hidden, heads)?;
    // Some of those with several kinds of parts have the one of layer norms.
    if members.number(names.eps, gguf.eps)?.is_none()
        && !(gguf.parts && members.number(names.eps, LAYER_EPS)?.is_some())
    {
        return Err(metadata.refuse(&members.key(gguf.eps), "a number"));
    }
    experts(&mut members, gguf, arch)?;
    for (name, key) in gguf.numbers {
        members.number(name, key)?;
    }
    vocabulary(&mut members, checkpoint)?;
    if gguf.rotates {
        rope(&mut members, checkpoint, family, head_dim, context)?;
    }
    let causal = members.key("attention.causal");
    if metadata.flag(&causal)? == Some(false) {
        members.put(IS_CAUSAL, causal, Value::Bool(false));
    }
    (gguf.members)(&mut members, checkpoint)?;
    let fields = members.fields();
    let config = shared.read(&fields, family.model_type)?;
    let mut arguments = (family.arguments)(&fields, config)?;
    if !arguments.is_encoder() {
        check_decoder(&fields, arguments.as_ref())?;
    }
    put_factors(arguments.config_mut(), checkpoint, arch)?;
    Ok(Architecture { family, prefixes: &[], arguments: arguments.into() })
}

/// Whether a file has experts.
pub(crate) fn has_experts(metadata: &Metadata, arch: &str) -> Result<bool> {
    Ok(metadata.uint(&format!("{arch}.expert_count"))?.is_some_and(|count| count > 0))
}

/// What files say of experts, of which dense families have none.
fn experts(members: &mut Members<'_>, gguf: &Gguf, arch: &str) -> Result<()> {
    match &gguf.experts {
        Some(experts) if experts.optional && !has_experts(members.metadata, arch)? => Ok(()),
        Some(experts) => gguf_experts::experts(members, experts),
        None if has_experts(members.metadata, arch)? => {
            let expected = "0 or absent: experts of this architecture are not supported";
            Err(members.metadata.refuse(&members.key("expert_count"), expected))
        }
        None => Ok(()),
    }
}

/// The family of a file.
fn family(metadata: &Metadata) -> Result<(&'static Family, &'static Gguf, &'static str)> {
    const KEY: &str = "general.architecture";
    let name = metadata.string(KEY)?;
    for family in FAMILIES {
        if let Some(gguf) = &family.gguf
            && let Some(arch) = gguf.architectures().find(|&arch| Some(arch) == name)
            && (gguf.claims)(metadata)?
        {
            return Ok((family, gguf, arch));
        }
    }
    let all = FAMILIES.iter().filter_map(|family| family.gguf.as_ref());
    let mut known: Vec<&str> = all.flat_map(Gguf::architectures).collect();
    known.sort_unstable();
    known.dedup();
    Err(metadata.refuse(KEY, format!("one of {}", known.join(", "))))
}

fn put_factors(config: &mut Config, checkpoint: &Checkpoint, arch: &str) -> Result<()> {
    let Some(metadata) = checkpoint.gguf() else { return Ok(()) };
    // Its family has read them.
    if matches!(config.rope.scaling, RopeScaling::Proportional { .. }) {
        return Ok(());
    }
    if let Some(factors) = factors(checkpoint, "rope_freqs.weight", config.rope.dims)? {
        if config.rope.scaling != RopeScaling::None {
            let expected = "none, or no tensor rope_freqs.weight beside it";
            return Err(metadata.refuse(&format!("{arch}.rope.scaling.type"), expected));
        }
        config.rope = Rope { scaling: RopeScaling::Factors { factors }, ..config.rope.clone() };
    }
    Ok(())
}

/// The defaults of sampling in the metadata of a GGUF model.
///
/// # Errors
/// [`crate::Error::Config`] for a value that is mistyped or out of range.
pub(crate) fn generation_from_gguf(metadata: &Metadata) -> Result<GenerationConfig> {
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
    const SUPPRESSED: &str = "tokenizer.ggml.suppress_tokens";
    if let Some(ids) = metadata.ints(SUPPRESSED)? {
        let id = |id: i64| {
            let refused = || metadata.refuse(SUPPRESSED, "token ids");
            u64::try_from(id).map(Value::UInt).map_err(|_| refused())
        };
        let ids = ids.into_iter().map(id).collect::<Result<_>>()?;
        object.insert("suppress_tokens".to_owned(), Value::Array(ids));
        names.insert("suppress_tokens".to_owned(), SUPPRESSED.to_owned());
    }
    if object.contains_key("temperature") {
        object.insert("do_sample".to_owned(), Value::Bool(true));
    }
    GenerationConfig::resolve(&Fields::renamed(metadata.path(), &object, &names))
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
    let rows = checkpoint.find("token_embd.weight").and_then(|info| info.shape().first().copied());
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
    let tied = checkpoint.find("output.weight").is_none();
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
    family: &Family,
    head_dim: u64,
    context: u64,
) -> Result<()> {
    let metadata = members.metadata;
    let rules = family.shared.rope;
    members.number(rules.theta_name, "rope.freq_base")?;
    let key = members.key("rope.dimension_count");
    let dims = metadata.uint(&key)?.unwrap_or(head_dim);
    let whole = rules.partial.is_none();
    if dims == 0 || dims > head_dim || (whole && dims != head_dim) {
        let least = if whole { head_dim } else { 2 };
        return Err(metadata.refuse(&key, format!("from {least} to {head_dim}, the length of a head")));
    }
    if !whole {
        // Half an element more, so that the product with the head's length rounds down to `dims` exactly.
        let part = if dims == head_dim { 1.0 } else { (dims as f64 + 0.5) / head_dim as f64 };
        members.put(rules.partial_name, key, Value::Float(part));
    }

    let original = members.key("rope.scaling.original_context_length");
    if let Some(original_context) = metadata.uint(&original)? {
        members.put("original_max_position_embeddings", original, Value::UInt(original_context));
    } else if rules.longrope_only {
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

/// The factor of cos and sin: in full, as `convert_hf_to_gguf.py` writes it, or one by which llama.cpp multiplies YaRN's own.
fn yarn_attention(members: &mut Members<'_>, factor: f64) -> Result<()> {
    let whole = members.key("rope.scaling.yarn_attn_factor");
    if let Some(attention) = members.metadata.number(&whole)? {
        members.put_scaling("attention_factor", whole, Value::Float(attention));
        return Ok(());
    }
    let key = members.key("rope.scaling.attn_factor");
    if let Some(attention) = members.metadata.number(&key)?.filter(|&attention| attention != 1.0) {
        let whole = attention * if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
        members.put_scaling("attention_factor", key, Value::Float(whole));
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
    let factors = checkpoint.get(tensor, &[dims / 2])?.widened()?;
    match factors.iter().find(|factor| !FACTOR.contains(factor)) {
        Some(factor) => {
            let expected = format!("numbers from {:?} to {:?}", FACTOR.start(), FACTOR.end());
            Err(crate::error::Error::config(checkpoint.path(), tensor, format!("{factor:?}"), expected))
        }
        None => Ok(Some(factors)),
    }
}
