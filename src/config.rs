//! What the configurations of all families share: `config.json` and `generation_config.json` as transformers 4 and 5 write
//! them, read and checked field by field. What a value that cannot be run is refused for are the field, the value and the
//! values accepted.
//!
//! Which fields a family has beside these, and what their absence means, is said in the family's own file,
//! `src/forward/<model_type>.rs`. Code that `auto_map` names is never run.

mod generation;
mod quantization;
pub(crate) mod rope;

pub use generation::GenerationConfig;
pub use rope::{Rope, RopeScaling};

use crate::error::Result;
use crate::json::Fields;
use crate::json::{Value, quote};
use crate::quant::Quantization;
use crate::tensor::DType;
use rope::RopeRules;

/// The non-linearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · sigmoid(x)`: `silu`, `swish`.
    Silu,
    /// `x · Φ(x)`, with erf: `gelu`.
    Gelu,
    /// The tanh approximation of GELU: `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`.
    GeluTanh,
    /// `max(x, 0)²`: `relu2`.
    Relu2,
}

impl Activation {
    /// The activation of a name in transformers' `ACT2FN`.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" | "gelu_python" => Self::Gelu,
            "relu2" => Self::Relu2,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => {
                Self::GeluTanh
            }
            _ => return None,
        })
    }
}

/// How the heads of a layer are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// By [`Config::rope`].
    Global,
    /// By [`Config::local_rope`].
    Local,
    /// Not at all.
    None,
}

/// Queries grow with their positions (Llama 4's, Ministral 3's): by `1 + beta · ln(1 + ⌊position / floor⌋)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryScaling {
    /// How fast.
    pub beta: f64,
    /// Positions that share a factor.
    pub floor: usize,
    /// What is added to a position.
    pub offset: usize,
    /// Whether it is the queries of layers that do not rotate that grow, and not those of all.
    pub unrotated: bool,
}

impl QueryScaling {
    /// Growth of the queries of all layers.
    pub const fn growing(beta: f64, floor: usize) -> Self {
        Self { beta, floor, offset: 0, unrotated: false }
    }

    /// What the parameters of `rope` say of it.
    pub(crate) fn of_parameters(params: &Fields<'_>, rope: &Rope) -> Result<Option<Self>> {
        const NAME: &str = "llama_4_scaling_beta";
        let beta = params.number(NAME, 0.0, 1e6)?.filter(|&beta| beta != 0.0);
        match (beta, &rope.scaling) {
            (None, _) => Ok(None),
            (Some(beta), RopeScaling::Yarn { original, .. }) => Ok(Some(Self::growing(beta, *original))),
            (Some(beta), _) => Err(params.error(NAME, beta, "absent, or rope_type yarn beside it")),
        }
    }

    /// The factor of a query at `position`.
    pub fn at(self, position: usize) -> f32 {
        let steps = ((position + self.offset) / self.floor.max(1)) as f64;
        (1.0 + self.beta * steps.ln_1p()) as f32
    }
}

/// What the configurations of all families share, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The family's `model_type`.
    pub model_type: &'static str,
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
    /// Heads of queries of each layer, where they differ.
    pub heads_by_layer: Vec<usize>,
    /// Heads of keys and values; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Elements of one head; not necessarily `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Tokens that the model was trained for.
    pub max_position_embeddings: usize,
    /// Added to the variance in norms.
    pub norm_eps: f32,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Rotary embeddings of the layers that [`Self::rotations`] does not say otherwise of.
    pub rope: Rope,
    /// The rotary embeddings of some layers, where these are others.
    pub local_rope: Option<Rope>,
    /// How each layer rotates, `[num_hidden_layers]`.
    pub rotations: Vec<Rotation>,
    /// The window that applies to the layers that have one: a token sees itself and the `window - 1` before it.
    pub sliding_window: Option<usize>,
    /// The window of each layer, `[num_hidden_layers]`; `None` sees everything before it.
    pub windows: Vec<Option<usize>>,
    /// Whether windows are chunks: a token sees those since the last multiple of its layer's window.
    pub chunked: bool,
    /// Whether a token sees those behind it, too: the model reads whole texts, and generates none. A window then lies around its
    /// token, half of it on either side.
    pub bidirectional: bool,
    /// Rows of a table of positions before that of a text's first token.
    pub position_offset: usize,
    /// Numbers that a text, or a pair of them, is given by a head for that; none where the model has no such head.
    pub labels: Option<usize>,
    /// `cap · tanh(score / cap)` on attention scores, before the mask.
    pub attn_logit_softcapping: Option<f32>,
    /// `cap · tanh(logit / cap)` on logits.
    pub final_logit_softcapping: Option<f32>,
    /// Scores are multiplied by its root's inverse instead of that of `head_dim`.
    pub query_pre_attn_scalar: Option<f32>,
    /// What scores are multiplied by, where it is no root.
    pub attention_multiplier: Option<f32>,
    /// Whether scores are divided by the number of their layer, from 1 on.
    pub scores_by_layer: bool,
    /// How queries grow with their positions, where they do.
    pub query_scaling: Option<QueryScaling>,
    /// What the rows of the embedding are multiplied by.
    pub embedding_multiplier: f32,
    /// What each part of a block is multiplied by before it joins the residual stream.
    pub residual_multiplier: f32,
    /// What logits are multiplied by.
    pub logits_multiplier: f32,
    /// Elements of the widest row that a recurrent layer makes of a token; 0 where there is none.
    pub mixer_width: usize,
    /// The vectors that keys and values are made of, where they are.
    pub latent: Option<LatentDims>,
    /// Experts in place of the MLP, in layers that have them.
    pub experts: Option<Experts>,
    /// Whether queries and keys have norms.
    pub has_head_norms: bool,
    /// Whether the parts of a block stand side by side, in families that have both.
    pub parallel: bool,
    /// Whether the model is published without the head that it would need to generate: as an embedder.
    pub headless: bool,
    /// The type that the weights were saved in, as the file says; each weight keeps its own.
    pub dtype: Option<DType>,
    /// How its matrices are quantized, where the file says so.
    pub quantization: Option<Quantization>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text; `generation_config.json` has precedence.
    pub eos_token_ids: Vec<u32>,
}

/// Widths of latent attention, and what its norms add.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentDims {
    /// The vector that queries are made of; none where they are made of the residual stream.
    pub query_rank: Option<usize>,
    /// The vector that keys and values are made of.
    pub rank: usize,
    /// The part of a head of queries and keys that does not rotate.
    pub nope_dim: usize,
    /// The part that does; heads share that of the keys.
    pub rope_dim: usize,
    /// A head of values.
    pub value_dim: usize,
    /// Whether rows that rotate together lie side by side in the checkpoint.
    pub pairs: bool,
    /// Added to the mean squares of the norms of its vectors.
    pub eps: f32,
}

/// Experts of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Those that a token goes to.
    pub used: usize,
    /// Width inside one.
    pub inner: usize,
    /// The field that says so.
    pub(crate) field: &'static str,
    /// Whether every layer has them.
    pub(crate) everywhere: bool,
    /// Whether the weights of those that a token goes to are made to add up to one.
    pub(crate) normalised: bool,
    /// Width of what every token goes to beside them; 0 where there is nothing.
    pub(crate) shared: usize,
    /// Steepness and limit, where gates are clamped.
    pub(crate) clamp: Option<[f32; 2]>,
}

/// What a family calls the shared fields, and what their absence means: the defaults of its configuration class in
/// transformers. The dimensions that every writer stores have none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared {
    pub names: Names,
    pub vocab: Option<usize>,
    pub layers: Option<usize>,
    pub heads: Option<usize>,
    pub kv_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub context: usize,
    pub eps: f64,
    pub act: &'static str,
    pub tied: bool,
    pub rope: RopeRules,
    pub bos: Option<u32>,
    pub eos: &'static [u32],
}

/// The fields of the shared values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    pub hidden_size: &'static str,
    /// Absent, or `null`, in families where it is four times `hidden_size` then.
    pub intermediate_size: &'static str,
    pub four_times: bool,
    /// Whether it may be a list of one for each layer, which the family reads.
    pub inner_by_layer: bool,
    pub layers: &'static str,
    pub heads: &'static str,
    /// None where there are as many as heads of queries.
    pub kv_heads: Option<&'static str>,
    /// Of what rotates, where that is a part with a name of its own.
    pub head_dim: &'static str,
    pub context: &'static str,
    pub eps: &'static str,
    pub act: &'static str,
}

impl Names {
    /// Llama's.
    pub const LLAMA: Self = Self {
        hidden_size: "hidden_size",
        intermediate_size: "intermediate_size",
        four_times: false,
        inner_by_layer: false,
        layers: "num_hidden_layers",
        heads: "num_attention_heads",
        kv_heads: Some("num_key_value_heads"),
        head_dim: "head_dim",
        context: "max_position_embeddings",
        eps: "rms_norm_eps",
        act: "hidden_act",
    };
}

/// Whether tokens see those before them alone: decoders that were trained to embed may say that they do not.
pub(crate) const IS_CAUSAL: &str = "is_causal";

impl Shared {
    /// Llama's.
    pub const LLAMA: Self = Self {
        names: Names::LLAMA,
        vocab: None,
        layers: None,
        heads: None,
        kv_heads: None,
        head_dim: None,
        context: 2048,
        eps: 1e-6,
        act: "silu",
        tied: false,
        rope: RopeRules::WHOLE,
        bos: Some(1),
        eos: &[2],
    };

    /// Reads the shared fields of a family's configuration. Windows, other rotations and multipliers are left to the family.
    pub fn read(&self, fields: &Fields<'_>, model_type: &'static str) -> Result<Config> {
        let names = &self.names;
        let quantization = quantization::resolve(fields)?;
        let vocab_size = fields.size_or("vocab_size", self.vocab, 1 << 30)?;
        let hidden_size = fields.required(names.hidden_size, 1, 1 << 20)?;
        let inner = match names.inner_by_layer {
            // The widest.
            true => fields.sizes(names.intermediate_size, 1, 1 << 24)?.and_then(|all| all.into_iter().max()),
            false => fields.size(names.intermediate_size, 1, 1 << 24)?,
        };
        let intermediate_size = match inner {
            Some(size) => size,
            None if names.four_times => 4 * hidden_size,
            None => fields.required(names.intermediate_size, 1, 1 << 24)?,
        };
        let num_hidden_layers = fields.size_or(names.layers, self.layers, 1024)?;
        let num_attention_heads = fields.size_or(names.heads, self.heads, 1 << 16)?;
        let num_key_value_heads = self.kv_heads(fields, num_attention_heads)?;
        let head_dim = self.head_dim(fields, hidden_size, num_attention_heads)?;
        let max_position_embeddings = fields.size(names.context, 1, 1 << 27)?.unwrap_or(self.context);
        let norm_eps = fields.number(names.eps, 1e-30, 1.0)?.unwrap_or(self.eps) as f32;
        let act = fields.string(names.act)?.unwrap_or(self.act);
        let hidden_act = Activation::named(act).ok_or_else(|| {
            fields.error(
                names.act,
                quote(act),
                "silu, swish, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast or relu2",
            )
        })?;
        let tie_word_embeddings = fields.flag("tie_word_embeddings")?.unwrap_or(self.tied);
        Ok(Config {
            model_type,
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            heads_by_layer: Vec::new(),
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            norm_eps,
            hidden_act,
            tie_word_embeddings,
            rope: rope::resolve(fields, self.rope, head_dim, max_position_embeddings)?,
            local_rope: None,
            rotations: vec![Rotation::Global; num_hidden_layers],
            sliding_window: None,
            windows: vec![None; num_hidden_layers],
            chunked: false,
            bidirectional: fields.flag(IS_CAUSAL)? == Some(false),
            position_offset: 0,
            labels: None,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            query_pre_attn_scalar: None,
            attention_multiplier: None,
            scores_by_layer: false,
            query_scaling: None,
            embedding_multiplier: 1.0,
            residual_multiplier: 1.0,
            logits_multiplier: 1.0,
            mixer_width: 0,
            latent: None,
            experts: None,
            has_head_norms: false,
            parallel: false,
            headless: !tie_word_embeddings && is_base(fields)?,
            dtype: dtype(fields)?,
            quantization,
            bos_token_id: match fields.token("bos_token_id")? {
                None if !fields.is_null("bos_token_id") => self.bos,
                id => id,
            },
            eos_token_ids: match fields.tokens("eos_token_id")? {
                None if !fields.is_null("eos_token_id") => self.eos.to_vec(),
                ids => ids.unwrap_or_default(),
            },
        })
    }

    fn kv_heads(&self, fields: &Fields<'_>, heads: usize) -> Result<usize> {
        let Some(name) = self.names.kv_heads else { return Ok(heads) };
        let absent = if fields.is_null(name) { heads } else { self.kv_heads.unwrap_or(heads) };
        let got = fields.size(name, 1, heads)?.unwrap_or(absent);
        if got > heads || !heads.is_multiple_of(got) {
            return Err(fields.error(name, got, format!("a divisor of {}, {heads}", self.names.heads)));
        }
        Ok(got)
    }

    fn head_dim(&self, fields: &Fields<'_>, hidden: usize, heads: usize) -> Result<usize> {
        // Transformers' default stands for an absent field, not for null.
        let name = self.names.head_dim;
        let absent = if fields.is_null(name) { None } else { self.head_dim };
        if let Some(dim) = fields.size(name, 1, 1 << 16)?.or(absent) {
            return Ok(dim);
        }
        if !hidden.is_multiple_of(heads) {
            let expected =
                format!("a divisor of {}, {hidden}, or a head_dim beside it", self.names.hidden_size);
            return Err(fields.error(self.names.heads, heads, expected));
        }
        Ok(hidden / heads)
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
            _ => self.max_position_embeddings.saturating_sub(self.position_offset),
        }
    }

    /// Heads of queries of layer `layer`.
    pub fn heads(&self, layer: usize) -> usize {
        self.heads_by_layer.get(layer).copied().unwrap_or(self.num_attention_heads)
    }

    /// Heads of queries of the layer that has most.
    pub fn most_heads(&self) -> usize {
        self.heads_by_layer.iter().copied().max().unwrap_or(self.num_attention_heads)
    }

    /// What attention scores of layer `layer` are multiplied by.
    pub fn attention_scale(&self, layer: usize) -> f32 {
        let root = || self.query_pre_attn_scalar.unwrap_or(self.head_dim as f32).powf(-0.5);
        let scale = self.attention_multiplier.unwrap_or_else(root);
        if self.scores_by_layer { scale / (layer + 1) as f32 } else { scale }
    }

    /// The rotary embeddings that layers name: the global one, and the local one where there is one.
    pub fn ropes(&self) -> impl Iterator<Item = &Rope> {
        std::iter::once(&self.rope).chain(&self.local_rope)
    }

    /// One window for all layers, or none.
    pub(crate) fn set_all_windows(&mut self, window: Option<usize>) {
        self.windows = vec![window; self.num_hidden_layers];
        self.sliding_window = window;
    }

    /// Another rotary embedding for the layers with a window.
    pub(crate) fn set_local_rope(&mut self, rope: Rope) {
        let rotation =
            |window: &Option<usize>| if window.is_some() { Rotation::Local } else { Rotation::Global };
        self.rotations = self.windows.iter().map(rotation).collect();
        self.local_rope = Some(rope);
    }

    /// The window `sliding_window`, of the layers that `slides` names where `layer_types` does not say.
    pub(crate) fn set_windows(
        &mut self,
        fields: &Fields<'_>,
        window: Option<usize>,
        slides: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let sliding = layer_types(fields, self.num_hidden_layers)?
            .unwrap_or_else(|| (0..self.num_hidden_layers).map(slides).collect());
        self.windows = sliding.into_iter().map(|slides| window.filter(|_| slides)).collect();
        self.sliding_window = window;
        Ok(())
    }
}

/// Whether the class that was saved is one without a head.
fn is_base(fields: &Fields<'_>) -> Result<bool> {
    let classes = fields.list("architectures")?.unwrap_or_default();
    let base = |class: &Value| matches!(class, Value::String(name) if name.ends_with("Model") && !name.ends_with("HeadModel"));
    Ok(!classes.is_empty() && classes.iter().all(base))
}

/// `sliding_window`, `default` where it is absent; `null` is none.
pub(crate) fn sliding_window(fields: &Fields<'_>, default: Option<usize>) -> Result<Option<usize>> {
    if fields.is_null("sliding_window") {
        return Ok(None);
    }
    Ok(fields.size("sliding_window", 1, 1 << 30)?.or(default))
}

/// Whether each layer slides, as `layer_types` says.
pub(crate) fn layer_types(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    const NAME: &str = "layer_types";
    let Some(types) = fields.list(NAME)? else { return Ok(None) };
    if types.len() != layers {
        let expected = format!("a list of num_hidden_layers, {layers}");
        return Err(fields.error(NAME, format!("a list of {}", types.len()), expected));
    }
    let slides = |(i, kind): (usize, &Value)| match kind {
        Value::String(kind) if kind == "sliding_attention" => Ok(true),
        Value::String(kind) if kind == "full_attention" || kind == "attention" => Ok(false),
        other => Err(fields.error(format!("{NAME}[{i}]"), other, "full_attention or sliding_attention")),
    };
    types.iter().enumerate().map(slides).collect::<Result<_>>().map(Some)
}

/// Refuses a flag that would change the forward pass in a way that is not built: it may be absent or `fine`.
pub(crate) fn only(fields: &Fields<'_>, name: &str, fine: bool, why: &str) -> Result<()> {
    match fields.flag(name)? {
        Some(value) if value != fine => Err(fields.error(name, value, format!("{fine}: {why}"))),
        _ => Ok(()),
    }
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
