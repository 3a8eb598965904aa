//! The blocks that families are built of. Each loads itself from the checkpoint and says which ops it is.

use super::Loader;
use super::step::Step;
use crate::backend::ops::{Backend, KvRows, MatrixOperand, Projection};
use crate::backend::{LlmBackendDispatch, Op, PreparedMatrix, PreparedVector, Tensor};
use crate::config::Activation;
use crate::error::Result;
use crate::quant::Matrix;
use crate::tensor::Weight;

/// `x · Wᵀ + b`; the bias is there where the checkpoint has one.
#[derive(Debug)]
pub struct Linear {
    weight: PreparedMatrix,       // [N, K]
    bias: Option<PreparedVector>, // [N]
}

impl Linear {
    /// `<name>.weight` `[rows, columns]` and, if present, `<name>.bias` `[rows]`.
    pub fn load(loader: &Loader<'_>, name: &str, rows: usize, columns: usize) -> Result<Self> {
        let weight = loader.matrix(name, [rows, columns])?;
        let weight = loader.ops.matrix(&weight);
        Ok(Self::of(loader, weight, loader.optional(&format!("{name}.bias"), &[rows])?))
    }

    fn of(loader: &Loader<'_>, weight: PreparedMatrix, bias: Option<Weight>) -> Self {
        loader.linears.borrow_mut().push(weight.clone());
        Self { weight, bias: bias.map(|bias| loader.ops.vector(&bias)) }
    }

    /// The parts of a fused projection, whose rows follow each other in the order of `parts`.
    pub fn split<const N: usize>(
        loader: &Loader<'_>,
        name: &str,
        parts: [(&str, usize); N],
        columns: usize,
    ) -> Result<[Self; N]> {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let whole = loader.matrix(name, [rows, columns])?;
        let bias = loader.optional(&format!("{name}.bias"), &[rows])?;
        let mut row = 0;
        Ok(parts.map(|(part, rows)| {
            let range = row..row + rows;
            row += rows;
            let bias = bias.as_ref().map(|bias| bias.rows(part, range.clone()));
            Self::of(loader, loader.ops.matrix(&whole.rows(part, range)), bias)
        }))
    }

    fn projection(&self) -> Projection<'_, LlmBackendDispatch> {
        Projection { weight: &self.weight, bias: self.bias.as_ref() }
    }

    /// `[T, K]` → `[T, N]`.
    pub fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        step.run(&Op::Linear { x, projection: self.projection() })
    }
}

/// The norm of rows, or of heads where its weight is as long as a head.
#[derive(Debug)]
pub struct RmsNorm {
    weight: PreparedVector, // [D]
    eps: f32,
    offset: f32,
}

impl RmsNorm {
    /// `<name>.weight` `[dim]`.
    pub fn load(loader: &Loader<'_>, name: &str, dim: usize) -> Result<Self> {
        Self::with_offset(loader, name, dim, 0.0)
    }

    /// A norm whose checkpoint holds `weight − offset` (Gemma's 1).
    pub fn with_offset(loader: &Loader<'_>, name: &str, dim: usize, offset: f32) -> Result<Self> {
        let weight = loader.ops.vector(&loader.get(&format!("{name}.weight"), &[dim])?);
        Ok(Self { weight, eps: loader.config.norm_eps, offset })
    }

    /// `[T, D]` → `[T, D]`.
    pub fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        step.run(&Op::RmsNorm { x, weight: &self.weight, eps: self.eps, offset: self.offset })
    }

    /// `(a + b, norm(a + b))`.
    pub fn add_forward(&self, step: &Step<'_>, a: &Tensor, b: &Tensor) -> Result<[Tensor; 2]> {
        step.run_all(&Op::AddRmsNorm { a, b, weight: &self.weight, eps: self.eps, offset: self.offset })
    }
}

/// Layer norm with weight and, where the checkpoint has one, bias.
#[derive(Debug)]
pub struct LayerNorm {
    weight: PreparedVector,       // [D]
    bias: Option<PreparedVector>, // [D]
    eps: f32,
}

impl LayerNorm {
    /// `<name>.weight` and `<name>.bias`, `[dim]`.
    pub fn load(loader: &Loader<'_>, name: &str, dim: usize) -> Result<Self> {
        let bias = loader.optional(&format!("{name}.bias"), &[dim])?;
        Ok(Self {
            weight: loader.ops.vector(&loader.get(&format!("{name}.weight"), &[dim])?),
            bias: bias.map(|bias| loader.ops.vector(&bias)),
            eps: loader.config.norm_eps,
        })
    }

    /// `[T, D]` → `[T, D]`.
    pub fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        step.run(&Op::LayerNorm { x, weight: &self.weight, bias: self.bias.as_ref(), eps: self.eps })
    }
}

/// The norm of each head, as long as one.
#[derive(Debug)]
pub enum HeadNorm {
    /// Qwen 3's.
    Rms(RmsNorm),
    /// Phi's.
    Layer(LayerNorm),
}

impl HeadNorm {
    fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms(norm) => norm.forward(step, x),
            Self::Layer(norm) => norm.forward(step, x),
        }
    }
}

/// Self-attention with rotary embedding over the KV cache.
#[derive(Debug)]
pub struct Attention {
    layer: usize,
    qkv: [Linear; 3],
    output: Linear,
    /// Norms of the query and key heads, before the rotary embedding.
    norms: Option<[HeadNorm; 2]>,
    head_dim: usize,
    window: Option<usize>,
    scale: f32,
    soft_cap: Option<f32>,
}

impl Attention {
    /// `<prefix>.{q,k,v,o}_proj` of layer `layer`.
    pub fn load(loader: &Loader<'_>, layer: usize, prefix: &str) -> Result<Self> {
        let config = loader.config;
        let (hidden, width) = (config.hidden_size, config.num_attention_heads * config.head_dim);
        let kv_width = config.num_key_value_heads * config.head_dim;
        let qkv = [
            Linear::load(loader, &format!("{prefix}.q_proj"), width, hidden)?,
            Linear::load(loader, &format!("{prefix}.k_proj"), kv_width, hidden)?,
            Linear::load(loader, &format!("{prefix}.v_proj"), kv_width, hidden)?,
        ];
        let output = Linear::load(loader, &format!("{prefix}.o_proj"), hidden, width)?;
        Ok(Self::of(loader, layer, qkv, output))
    }

    /// Attention of projections that a family loads under other names.
    pub fn of(loader: &Loader<'_>, layer: usize, qkv: [Linear; 3], output: Linear) -> Self {
        let config = loader.config;
        let scale = config.query_pre_attn_scalar.unwrap_or(config.head_dim as f32).powf(-0.5);
        Self {
            layer,
            qkv,
            output,
            norms: None,
            head_dim: config.head_dim,
            window: config.windows.get(layer).copied().flatten(),
            scale,
            soft_cap: config.attn_logit_softcapping,
        }
    }

    /// With norms of each query and each key head.
    pub fn with_norms(mut self, norms: [HeadNorm; 2]) -> Self {
        self.norms = Some(norms);
        self
    }

    /// `[T, D]` → `[T, D]`; caches this step's keys and values.
    pub fn forward(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        let projections = [self.qkv[0].projection(), self.qkv[1].projection(), self.qkv[2].projection()];
        let [mut q, mut k, v] = step.run_all(&Op::Qkv { x, projections })?; // [T, H*D], [T, KH*D] twice
        if let Some([q_norm, k_norm]) = &self.norms {
            q = q_norm.forward(step, &q)?;
            k = k_norm.forward(step, &k)?;
        }
        let q = step.rope(&q, self.head_dim)?;
        let k = step.rope(&k, self.head_dim)?;
        step.kv_write(self.layer, KvRows { k: &k, v: &v })?;
        let attended = step.attention(self.layer, &q, self.window, self.scale, self.soft_cap)?; // [T, H*D]
        self.output.forward(step, &attended)
    }
}

/// The feed-forward part of a layer.
#[derive(Debug)]
pub enum Mlp {
    /// `down(act(gate(x)) ∘ up(x))`.
    Gated {
        /// `[I, D]`.
        gate: Linear,
        /// `[I, D]`.
        up: Linear,
        /// `[D, I]`.
        down: Linear,
        /// Applied to the gate.
        activation: Activation,
    },
    /// `fc2(act(fc1(x)))`.
    Plain {
        /// `[I, D]`.
        fc1: Linear,
        /// `[D, I]`.
        fc2: Linear,
        /// Between the two.
        activation: Activation,
    },
}

impl Mlp {
    /// `<prefix>.{gate,up,down}_proj`.
    pub fn gated(loader: &Loader<'_>, prefix: &str) -> Result<Self> {
        let (hidden, inner) = (loader.config.hidden_size, loader.config.intermediate_size);
        Ok(Self::Gated {
            gate: Linear::load(loader, &format!("{prefix}.gate_proj"), inner, hidden)?,
            up: Linear::load(loader, &format!("{prefix}.up_proj"), inner, hidden)?,
            down: Linear::load(loader, &format!("{prefix}.down_proj"), hidden, inner)?,
            activation: loader.config.hidden_act,
        })
    }

    /// `[T, D]` → `[T, D]`.
    pub fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gated { gate, up, down, activation } => {
                let (gate, up) = (gate.projection(), up.projection());
                let inner = step.run(&Op::GateUp { x, gate, up, activation: *activation })?; // [T, I]
                down.forward(step, &inner)
            }
            Self::Plain { fc1, fc2, activation } => {
                let inner = fc1.forward(step, x)?; // [T, I]
                fc2.forward(step, &step.activate(&inner, *activation)?)
            }
        }
    }
}

/// The embedding table and the head, tied or not.
#[derive(Debug)]
pub struct Vocabulary {
    table: PreparedMatrix, // [V, D]
    scale: f32,
    head: Linear, // [V, D]
    soft_cap: Option<f32>,
}

impl Vocabulary {
    /// `model.embed_tokens`, and `lm_head` unless the two are tied.
    pub fn load(loader: &Loader<'_>) -> Result<Self> {
        let config = loader.config;
        let (rows, columns) = (config.vocab_size, config.hidden_size);
        let table = loader.ops.matrix(&loader.matrix("model.embed_tokens", [rows, columns])?);
        let head = if config.tie_word_embeddings {
            Linear::of(loader, table.clone(), loader.optional("lm_head.bias", &[rows])?)
        } else {
            Linear::load(loader, "lm_head", rows, columns)?
        };
        Ok(Self { table, scale: 1.0, head, soft_cap: config.final_logit_softcapping })
    }

    /// With rows multiplied by `scale`.
    pub fn scaled(mut self, scale: f32) -> Self {
        self.scale = scale;
        self
    }

    /// The embedding table.
    pub fn table(&self) -> &Matrix {
        self.table.source()
    }

    /// The step's tokens → `[T, D]`.
    pub fn embed(&self, step: &Step<'_>) -> Result<Tensor> {
        step.embedding(&self.table, self.scale)
    }

    /// Hidden states `[T, D]` → logits `[S, V]` of the rows that the batch asks for.
    pub fn logits(&self, step: &Step<'_>, hidden: &Tensor) -> Result<Tensor> {
        let wanted;
        let rows = &step.batch.outputs;
        let all = rows.len() == step.batch.rows();
        let hidden = if all {
            hidden
        } else {
            wanted = step.run(&Op::TakeRows { x: hidden, rows })?;
            &wanted
        };
        let logits = self.head.forward(step, hidden)?;
        match self.soft_cap {
            Some(cap) => step.run(&Op::SoftCap { x: &logits, cap }),
            None => Ok(logits),
        }
    }
}
