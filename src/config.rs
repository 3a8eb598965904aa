//! `config.json` and `generation_config.json` as transformers 4 and 5 write them, resolved and checked: what comes out
//! can be run, and what cannot is refused by field, value and the values accepted.
//!
//! A field that is absent gets the default of its family's configuration class in transformers. Only the five
//! dimensions that every writer stores (`vocab_size`, `hidden_size`, `intermediate_size`, `num_hidden_layers`,
//! `num_attention_heads`) must be there. Code that `auto_map` names is never run.

mod check;
mod fields;
mod generation;
mod gguf;
mod quantization;
mod rope;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

pub use generation::GenerationConfig;
pub use quantization::{MlxFormat, MlxMode, MlxQuantization, Quantization};
pub use rope::{Rope, RopeScaling};

use crate::error::Result;
use crate::json::{self, Value, quote};
use crate::tensor::DType;
use fields::Fields;

/// The architectures that this version runs, each a `model_type` of transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 1 to 3.2, and the many models of its shape.
    Llama,
    /// Mistral: llama with a sliding window.
    Mistral,
    /// Qwen2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: norms on q and k.
    Qwen3,
    /// Phi 1 to 2: partial rotary, LayerNorm, a parallel block.
    Phi,
    /// Phi 3 to 4: fused projections, longrope.
    Phi3,
    /// Gemma 2: four norms a layer, soft caps, alternating windows.
    Gemma2,
}

impl Family {
    /// Every family, in the order errors list them.
    pub const ALL: [Self; 7] =
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Phi, Self::Phi3, Self::Gemma2];

    /// The `model_type` of `config.json`.
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi => "phi",
            Self::Phi3 => "phi3",
            Self::Gemma2 => "gemma2",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

/// The non-linearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · sigmoid(x)`: `silu`, `swish`.
    Silu,
    /// `x · Φ(x)`, with erf: `gelu`.
    Gelu,
    /// The tanh approximation of GELU: `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`.
    GeluTanh,
}

impl Activation {
    /// The activation of a name in transformers' `ACT2FN`.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => {
                Self::GeluTanh
            }
            _ => return None,
        })
    }
}

/// A model's configuration, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The architecture.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Elements of one head; not necessarily `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Tokens that the model was trained for.
    pub max_position_embeddings: usize,
    /// Added to the variance in norms: `rms_norm_eps`, or phi's `layer_norm_eps`.
    pub norm_eps: f32,
    /// The MLP's activation; gemma2's is `hidden_activation`.
    pub hidden_act: Activation,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Rotary embeddings.
    pub rope: Rope,
    /// The window that applies to the layers that have one: a token sees itself and the `window - 1` before it.
    /// `None` where the family has none, or `use_sliding_window` is off.
    pub sliding_window: Option<usize>,
    /// The window of each layer, `[num_hidden_layers]`; `None` sees everything before it.
    pub windows: Vec<Option<usize>>,
    /// gemma2: `cap · tanh(score / cap)` on attention scores, before the mask.
    pub attn_logit_softcapping: Option<f32>,
    /// gemma2: `cap · tanh(logit / cap)` on logits.
    pub final_logit_softcapping: Option<f32>,
    /// gemma2: scores are multiplied by `query_pre_attn_scalar^-0.5` instead of `head_dim^-0.5`.
    pub query_pre_attn_scalar: Option<f32>,
    /// phi: LayerNorm on the heads of queries and keys.
    pub qk_layernorm: bool,
    /// The type that the weights were saved in, as the file says; each weight keeps its own.
    pub dtype: Option<DType>,
    /// How its matrices are quantized, where the file says so.
    pub quantization: Option<Quantization>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text; `generation_config.json` has precedence.
    pub eos_token_ids: Vec<u32>,
}

/// What a family's configuration class in transformers says about absent fields.
struct Defaults {
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    context: usize,
    eps: f64,
    act: &'static str,
    tied: bool,
    window: Option<usize>,
    bos: Option<u32>,
    eos: &'static [u32],
}

impl Family {
    fn defaults(self) -> Defaults {
        let llama = Defaults {
            kv_heads: None,
            head_dim: None,
            context: 2048,
            eps: 1e-6,
            act: "silu",
            tied: false,
            window: None,
            bos: Some(1),
            eos: &[2],
        };
        let qwen =
            Defaults { kv_heads: Some(32), context: 32768, window: Some(4096), bos: None, eos: &[], ..llama };
        match self {
            Self::Llama => llama,
            Self::Mistral => Defaults { kv_heads: Some(8), context: 131_072, window: Some(4096), ..llama },
            Self::Qwen2 => qwen,
            Self::Qwen3 => Defaults { head_dim: Some(128), ..qwen },
            Self::Phi => Defaults { eps: 1e-5, act: "gelu_new", ..llama },
            Self::Phi3 => Defaults { context: 4096, eps: 1e-5, eos: &[32_000], ..llama },
            Self::Gemma2 => Defaults {
                kv_heads: Some(4),
                head_dim: Some(256),
                context: 8192,
                act: "gelu_pytorch_tanh",
                tied: true,
                window: Some(4096),
                bos: Some(2),
                eos: &[1],
                ..llama
            },
        }
    }
}

impl Config {
    /// Tokens that a sequence may hold at most: what the model was trained for, stretched where the rotary scaling
    /// is applied on top of it (dynamic).
    pub fn max_context(&self) -> usize {
        match self.rope.scaling {
            RopeScaling::Dynamic { factor, original } => {
                ((original as f64 * factor) as usize).max(self.max_position_embeddings)
            }
            _ => self.max_position_embeddings,
        }
    }

    /// Reads and resolves a `config.json`.
    ///
    /// # Errors
    /// As [`Config::parse`]; [`crate::Error::Io`] where the file cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(path, &json::read(path)?)
    }

    /// Resolves the bytes of a `config.json`; `path` is for errors.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for what is not one JSON object without duplicate keys; [`crate::Error::Config`] for a
    /// value that is missing, mistyped or cannot be run, methods of quantization included.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let object = json::parse_object(path, bytes)?;
        let fields = Fields::new(path, &object);
        Self::resolve(&fields)
    }

    fn resolve(fields: &Fields<'_>) -> Result<Self> {
        let family = family(fields)?;
        let quantization = quantization::resolve(fields)?;
        let defaults = family.defaults();

        let vocab_size = fields.required("vocab_size", 1, 1 << 30)?;
        let hidden_size = fields.required("hidden_size", 1, 1 << 20)?;
        let intermediate_size = fields.required("intermediate_size", 1, 1 << 24)?;
        let num_hidden_layers = fields.required("num_hidden_layers", 1, 1024)?;
        let num_attention_heads = fields.required("num_attention_heads", 1, 1 << 16)?;
        let num_key_value_heads = kv_heads(fields, &defaults, num_attention_heads)?;
        let head_dim = head_dim(fields, &defaults, hidden_size, num_attention_heads)?;
        let max_position_embeddings =
            fields.size("max_position_embeddings", 1, 1 << 27)?.unwrap_or(defaults.context);

        let eps_field = if family == Family::Phi { "layer_norm_eps" } else { "rms_norm_eps" };
        let norm_eps = fields.number(eps_field, 1e-30, 1.0)?.unwrap_or(defaults.eps) as f32;
        let act_field = if family == Family::Gemma2 { "hidden_activation" } else { "hidden_act" };
        let act = fields.string(act_field)?.unwrap_or(defaults.act);
        let hidden_act = Activation::named(act).ok_or_else(|| {
            fields.error(act_field, quote(act), "silu, swish, gelu, gelu_new, gelu_pytorch_tanh or gelu_fast")
        })?;

        let gemma2 = family == Family::Gemma2;
        if gemma2 && fields.flag("use_bidirectional_attention")? == Some(true) {
            return Err(fields.error("use_bidirectional_attention", true, "false: attention is causal"));
        }
        let softcap = |name, default| -> Result<Option<f32>> {
            if !gemma2 || fields.is_null(name) {
                return Ok(None);
            }
            Ok(Some(fields.number(name, 1e-6, 1e6)?.unwrap_or(default) as f32))
        };
        let query_pre_attn_scalar =
            fields.number("query_pre_attn_scalar", 1e-6, 1e9)?.unwrap_or(256.0) as f32;

        let sliding_window = window(fields, family, &defaults)?;
        Ok(Self {
            family,
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            norm_eps,
            hidden_act,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
            rope: rope::resolve(fields, family, head_dim, max_position_embeddings)?,
            sliding_window,
            windows: windows(fields, family, num_hidden_layers, sliding_window)?,
            attn_logit_softcapping: softcap("attn_logit_softcapping", 50.0)?,
            final_logit_softcapping: softcap("final_logit_softcapping", 30.0)?,
            query_pre_attn_scalar: gemma2.then_some(query_pre_attn_scalar),
            qk_layernorm: family == Family::Phi && fields.flag("qk_layernorm")?.unwrap_or(false),
            dtype: dtype(fields)?,
            quantization,
            bos_token_id: match fields.token("bos_token_id")? {
                None if !fields.is_null("bos_token_id") => defaults.bos,
                id => id,
            },
            eos_token_ids: match fields.tokens("eos_token_id")? {
                None if !fields.is_null("eos_token_id") => defaults.eos.to_vec(),
                ids => ids.unwrap_or_default(),
            },
        })
    }
}

fn family(fields: &Fields<'_>) -> Result<Family> {
    let accepted = || Family::ALL.map(Family::model_type).join(", ");
    let name = fields.string("model_type")?.ok_or_else(|| fields.missing("model_type", accepted()))?;
    let found = Family::ALL.into_iter().find(|family| family.model_type() == name);
    found.ok_or_else(|| fields.error("model_type", quote(name), format!("one of {}", accepted())))
}

fn kv_heads(fields: &Fields<'_>, defaults: &Defaults, heads: usize) -> Result<usize> {
    const NAME: &str = "num_key_value_heads";
    let absent = if fields.is_null(NAME) { heads } else { defaults.kv_heads.unwrap_or(heads) };
    let got = fields.size(NAME, 1, heads)?.unwrap_or(absent);
    if got > heads || !heads.is_multiple_of(got) {
        return Err(fields.error(NAME, got, format!("a divisor of num_attention_heads, {heads}")));
    }
    Ok(got)
}

fn head_dim(fields: &Fields<'_>, defaults: &Defaults, hidden: usize, heads: usize) -> Result<usize> {
    if let Some(dim) = fields.size("head_dim", 1, 1 << 16)?.or(defaults.head_dim) {
        return Ok(dim);
    }
    if !hidden.is_multiple_of(heads) {
        let expected = format!("a divisor of hidden_size, {hidden}, or a head_dim beside it");
        return Err(fields.error("num_attention_heads", heads, expected));
    }
    Ok(hidden / heads)
}

/// The window of the layers that have one.
fn window(fields: &Fields<'_>, family: Family, defaults: &Defaults) -> Result<Option<usize>> {
    let off = match family {
        Family::Llama | Family::Phi => true,
        Family::Qwen2 | Family::Qwen3 => fields.flag("use_sliding_window")? != Some(true),
        Family::Mistral | Family::Phi3 | Family::Gemma2 => false,
    };
    if off || fields.is_null("sliding_window") {
        return Ok(None);
    }
    Ok(fields.size("sliding_window", 1, 1 << 30)?.or(defaults.window))
}

/// Which layers have the window: all of mistral's and phi3's; those that `layer_types` names of qwen's and gemma2's,
/// else qwen's from `max_window_layers` on, and gemma2's every other from the first.
fn windows(
    fields: &Fields<'_>,
    family: Family,
    layers: usize,
    window: Option<usize>,
) -> Result<Vec<Option<usize>>> {
    const NAME: &str = "layer_types";
    let qwen = matches!(family, Family::Qwen2 | Family::Qwen3);
    if !qwen && family != Family::Gemma2 {
        return Ok(vec![window; layers]);
    }
    let Some(types) = fields.list(NAME)? else {
        let first = if qwen { fields.size("max_window_layers", 0, 1 << 20)?.unwrap_or(28) } else { 0 };
        let slides = |i: usize| if qwen { i >= first } else { i.is_multiple_of(2) };
        return Ok((0..layers).map(|i| window.filter(|_| slides(i))).collect());
    };
    if types.len() != layers {
        let expected = format!("a list of num_hidden_layers, {layers}");
        return Err(fields.error(NAME, format!("a list of {}", types.len()), expected));
    }
    types
        .iter()
        .enumerate()
        .map(|(i, kind)| match kind {
            Value::String(kind) if kind == "sliding_attention" => Ok(window),
            Value::String(kind) if kind == "full_attention" || kind == "attention" => Ok(None),
            other => Err(fields.error(format!("{NAME}[{i}]"), other, "full_attention or sliding_attention")),
        })
        .collect()
}

/// `dtype` of transformers 5, or `torch_dtype` of transformers 4.
fn dtype(fields: &Fields<'_>) -> Result<Option<DType>> {
    for name in ["dtype", "torch_dtype"] {
        if let Some(value) = fields.string(name)? {
            return match value.strip_prefix("torch.").unwrap_or(value) {
                "float32" | "float" => Ok(Some(DType::F32)),
                "float16" | "half" => Ok(Some(DType::F16)),
                "bfloat16" => Ok(Some(DType::BF16)),
                "auto" => Ok(None),
                _ => Err(fields.error(name, quote(value), "float32, float16 or bfloat16")),
            };
        }
    }
    Ok(None)
}
