//! The blocks that families are built of. Each loads itself from the checkpoint and says which ops it is.

use std::ops::Range;

use super::adapt::PlaceId;
use super::list::{Dim, GgufSpec, ModuleSpec};
use super::loader::Loader;
use super::step::Step;
use crate::alloc;
use crate::backend::ops::{Backend, GateKind, KvRows, MatrixOperand, Projection};
use crate::backend::{LlmBackendDispatch, Op, PreparedMatrix, PreparedVector, Tensor};
use crate::config::{Activation, Config, Rotation};
use crate::error::{Error, Result};
use crate::quant::Matrix;
use crate::tensor::{DType, Weight};
use crate::weights::Form;

/// `x · Wᵀ + b`; the bias is there where the checkpoint has one.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: PreparedMatrix,       // [N, K]
    bias: Option<PreparedVector>, // [N]
    /// Where adapters may add to it.
    place: Option<PlaceId>,
    /// Whether it is a part of the columns, whose products are summed over the ranks.
    summed: bool,
}

impl Linear {
    /// `<name>.weight` and, where the checkpoint has one, `<name>.bias`, of the shape that the list of weights says.
    pub fn load(loader: &Loader<'_>, name: &str) -> Result<Self> {
        Ok(Self::fixed(loader, name)?.placed(loader, name, 0))
    }

    /// The same, to which no adapter adds.
    pub fn fixed(loader: &Loader<'_>, name: &str) -> Result<Self> {
        let whole = Self::of(loader, loader.ops.matrix(&loader.matrix(name)?), loader.bias(name)?);
        Ok(Self { summed: loader.is_summed(name), ..whole })
    }

    /// With a place for adapters of the module `name`, whose rows these are from row `first` on.
    fn placed(mut self, loader: &Loader<'_>, name: &str, first: usize) -> Self {
        self.place = Some(loader.place(name, first, &self.weight, self.bias.as_ref()));
        self
    }

    /// The same whose products are summed with others.
    pub fn unsummed(self) -> Self {
        Self { summed: false, ..self }
    }

    /// The same with its bias times `by`.
    pub fn with_bias_by(loader: &Loader<'_>, name: &str, by: f32) -> Result<Self> {
        let mut bias = loader.bias(name)?;
        if let Some(plain) = bias.as_ref().filter(|_| by != 1.0) {
            let mut values = plain.widened()?;
            values.iter_mut().for_each(|x| *x *= by);
            bias = Some(Weight::of_values(plain.name(), plain.shape(), values));
        }
        Ok(Self::of(loader, loader.ops.matrix(&loader.matrix(name)?), bias).placed(loader, name, 0))
    }

    /// The same of few rows, from which something is chosen: in blocks or not, it is multiplied by without rounding.
    pub fn exact(loader: &Loader<'_>, name: &str) -> Result<Self> {
        let weight = exact(loader.matrix(name)?)?;
        Ok(Self::of(loader, loader.ops.matrix(&weight), loader.bias(name)?))
    }

    /// The same of parts of a fused projection, as [`Self::split`].
    pub fn exact_split<const N: usize>(
        loader: &Loader<'_>,
        name: &str,
        parts: [(&str, usize); N],
    ) -> Result<[Self; N]> {
        let (whole, bias) = (exact(loader.matrix(name)?)?, loader.bias(name)?);
        Ok(Self::parts(loader, &whole, bias.as_ref(), name, parts))
    }

    fn of(loader: &Loader<'_>, weight: PreparedMatrix, bias: Option<Weight>) -> Self {
        loader.multiplies(&weight);
        Self { weight, bias: bias.map(|bias| loader.ops.vector(&bias)), place: None, summed: false }
    }

    /// The parts of a fused projection, whose rows follow each other in the order of `parts`.
    pub fn split<const N: usize>(
        loader: &Loader<'_>,
        name: &str,
        parts: [(&str, usize); N],
    ) -> Result<[Self; N]> {
        let (whole, bias) = (loader.whole(name)?, loader.whole_bias(name)?);
        let mut row = 0;
        Ok(Self::parts(loader, &whole, bias.as_ref(), name, parts).map(|part| {
            let first = row;
            row += part.weight.shape()[0];
            part.placed(loader, name, first)
        }))
    }

    fn parts<const N: usize>(
        loader: &Loader<'_>,
        whole: &Matrix,
        bias: Option<&Weight>,
        name: &str,
        parts: [(&str, usize); N],
    ) -> [Self; N] {
        let mut row = 0;
        parts.map(|(part, rows)| {
            let range = loader.rows_of(name, row..row + rows);
            row += rows;
            let bias = bias.map(|bias| bias.rows(part, range.clone()));
            Self::of(loader, loader.ops.matrix(&whole.rows(part, range)), bias)
        })
    }

    /// Rows `rows` of a fused projection, as [`Self::exact`].
    pub fn exact_rows(loader: &Loader<'_>, name: &str, rows: Range<usize>) -> Result<Self> {
        let weight = exact(loader.matrix(name)?.rows("part", rows.clone()))?;
        let bias = loader.bias(name)?.map(|bias| bias.rows("part", rows));
        Ok(Self::of(loader, loader.ops.matrix(&weight), bias))
    }

    /// The equal parts of `rows` rows each that follow each other in a projection.
    pub fn equal_parts(loader: &Loader<'_>, name: &str, rows: usize) -> Result<Vec<Self>> {
        let (whole, bias) = (loader.matrix(name)?, loader.bias(name)?);
        let all = whole.as_ref().shape()[0];
        let part = |first: usize| {
            let bias = bias.as_ref().map(|bias| bias.rows("part", first..first + rows));
            Self::of(loader, loader.ops.matrix(&whole.rows("part", first..first + rows)), bias)
        };
        Ok((0..all).step_by(rows.max(1)).map(part).collect())
    }

    /// The mean of `len` elements.
    pub fn mean(loader: &Loader<'_>, len: usize) -> Self {
        let weight = Weight::of_values("mean", &[1, len], vec![1.0 / len as f32; len]);
        Self::of(loader, loader.ops.matrix(&Matrix::Dense(weight)), None)
    }

    /// The same with `more` added to each of `rows` products, of a projection without a bias.
    pub fn plus(mut self, loader: &Loader<'_>, rows: usize, more: f32) -> Self {
        self.bias = Some(loader.ops.vector(&Weight::of_values("more", &[rows], vec![more; rows])));
        self
    }

    /// As an op takes it.
    pub(super) fn projection(&self) -> Projection<'_, LlmBackendDispatch> {
        Projection { weight: &self.weight, bias: self.bias.as_ref() }
    }

    /// Where adapters may add to it.
    pub(super) fn place(&self) -> Option<PlaceId> {
        self.place
    }

    /// `[T, K]` → `[T, N]`.
    pub fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        let product = step.adapted(self, x, step.run(&Op::Linear { x, projection: self.projection() })?)?;
        if self.summed { step.run(&Op::AllSum { x: &product }) } else { Ok(product) }
    }
}

/// A matrix that is not in blocks: in `f32` where it was.
fn exact(matrix: Matrix) -> Result<Matrix> {
    match matrix {
        Matrix::Quantized(weight) => {
            Ok(Matrix::Dense(Weight::of_values(weight.name(), weight.shape(), weight.widened()?)))
        }
        dense => Ok(dense),
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
    /// `<name>.weight`, which is less by `offset` than what is multiplied by (Gemma's 1).
    pub fn load(loader: &Loader<'_>, name: &str, offset: f32) -> Result<Self> {
        Ok(Self { weight: loader.ops.vector(&loader.vector(name)?), eps: loader.config.norm_eps, offset })
    }

    /// `<name>.weight` times `by`.
    pub fn scaled(loader: &Loader<'_>, name: &str, by: f32) -> Result<Self> {
        let weight = loader.vector(name)?;
        let mut values = weight.widened()?;
        values.iter_mut().for_each(|x| *x *= by);
        let weight = Weight::of_values(weight.name(), weight.shape(), values);
        Ok(Self { weight: loader.ops.vector(&weight), eps: loader.config.norm_eps, offset: 0.0 })
    }

    /// `<name>.weight`, which has weights for each of the `stretches` that a row is of.
    pub fn of_stretches(loader: &Loader<'_>, name: &str, stretches: usize) -> Result<Self> {
        let mut weight = loader.vector(name)?;
        if stretches > 1 {
            weight = weight.in_rows_of(weight.len() / stretches);
        }
        Ok(Self { weight: loader.ops.vector(&weight), eps: loader.config.norm_eps, offset: 0.0 })
    }

    /// The norm of stretches of `len` elements that has no weights.
    pub fn plain(loader: &Loader<'_>, len: usize) -> Self {
        Self::constant(loader, len, 1.0)
    }

    /// The same, multiplied by `by`.
    pub fn constant(loader: &Loader<'_>, len: usize, by: f32) -> Self {
        let weight = Weight::of_values("constant", &[len], vec![by; len]);
        Self { weight: loader.ops.vector(&weight), eps: loader.config.norm_eps, offset: 0.0 }
    }

    /// With another number added to the mean square than the model's other norms have.
    pub fn with_eps(self, eps: f32) -> Self {
        Self { eps, ..self }
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
    /// `<name>.weight` and `<name>.bias`; the weight is less by `offset` than what is multiplied by.
    pub fn load(loader: &Loader<'_>, name: &str, offset: f32) -> Result<Self> {
        let mut weight = loader.vector(name)?;
        if offset != 0.0 {
            let mut values = weight.widened()?;
            values.iter_mut().for_each(|x| *x += offset);
            weight = Weight::of_values(weight.name(), weight.shape(), values);
        }
        let bias = loader.bias(name)?.map(|bias| loader.ops.vector(&bias));
        Ok(Self { weight: loader.ops.vector(&weight), bias, eps: loader.config.norm_eps })
    }

    /// `[T, D]` → `[T, D]`.
    pub fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        step.run(&Op::LayerNorm { x, weight: &self.weight, bias: self.bias.as_ref(), eps: self.eps })
    }
}

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum NormKind {
    /// Root mean square; the checkpoint holds the weight less `offset`, GGUF the whole.
    Rms { offset: f32 },
    /// Layer norm; with a bias where the checkpoint has one, and its weight as for [`Self::Rms`].
    Layer { offset: f32 },
}

impl NormKind {
    pub(super) const fn offset(self) -> f32 {
        match self {
            Self::Rms { offset } | Self::Layer { offset } => offset,
        }
    }
}

/// The vector of a norm, in a list of weights, and its bias where it has one.
pub(super) fn norm_spec([name, gguf]: [String; 2], dim: Dim, kind: NormKind) -> ModuleSpec {
    let form = if kind.offset() == 1.0 { Form::PlusOne } else { Form::Plain };
    ModuleSpec {
        name,
        rows: dim,
        columns: None,
        bias: matches!(kind, NormKind::Layer { .. }),
        form: Form::Plain,
        gguf: Some(GgufSpec { name: gguf, form, fused: Vec::new() }),
        stacked: Vec::new(),
    }
}

/// The norm of rows, or of stretches of them.
#[derive(Debug)]
pub enum Norm {
    /// Root mean square.
    Rms(RmsNorm),
    /// With mean and variance.
    Layer(LayerNorm),
}

impl Norm {
    /// The norm `name` of the kind that its family has.
    pub(super) fn load(loader: &Loader<'_>, name: &str, kind: NormKind) -> Result<Self> {
        match kind {
            NormKind::Rms { offset } => RmsNorm::load(loader, name, offset).map(Self::Rms),
            NormKind::Layer { offset } => LayerNorm::load(loader, name, offset).map(Self::Layer),
        }
    }

    /// The layer norms `name.0`, `name.1`, … of `heads` heads, which have no biases, as one.
    pub(super) fn of_heads(loader: &Loader<'_>, name: &str, heads: usize) -> Result<Self> {
        let mut values = Vec::new();
        for head in 0..heads {
            let of_head = loader.vector(&format!("{name}.{head}"))?.widened()?;
            alloc::reserve(&mut values, of_head.len(), "the values of a weight")?;
            values.extend(of_head);
        }
        let weight = Weight::of_values(name, &[heads, values.len() / heads.max(1)], values);
        let norm = LayerNorm { weight: loader.ops.vector(&weight), bias: None, eps: loader.config.norm_eps };
        Ok(Self::Layer(norm))
    }

    /// The norm of stretches of `len` elements that has no weights, multiplied by `by`.
    pub(super) fn plain(loader: &Loader<'_>, len: usize, by: f32) -> Self {
        Self::Rms(RmsNorm::constant(loader, len, by))
    }

    /// With another number added than the model's other norms have.
    pub(super) fn with_eps(self, eps: f32) -> Self {
        match self {
            Self::Rms(norm) => Self::Rms(norm.with_eps(eps)),
            Self::Layer(norm) => Self::Layer(LayerNorm { eps, ..norm }),
        }
    }

    /// `[T, D]` → `[T, D]`.
    pub fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms(norm) => norm.forward(step, x),
            Self::Layer(norm) => norm.forward(step, x),
        }
    }

    /// `(a + b, norm(a + b))`, the second where there is a norm.
    pub fn add_forward(
        norm: Option<&Self>,
        step: &Step<'_>,
        a: &Tensor,
        b: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>)> {
        match norm {
            Some(Self::Rms(norm)) => {
                let [sum, normed] = norm.add_forward(step, a, b)?;
                Ok((sum, Some(normed)))
            }
            Some(Self::Layer(norm)) => {
                let sum = step.add(a, b)?;
                let normed = norm.forward(step, &sum)?;
                Ok((sum, Some(normed)))
            }
            None => Ok((step.add(a, b)?, None)),
        }
    }
}

/// Self-attention with rotary embedding over the KV cache.
#[derive(Debug)]
pub struct Attention {
    layer: usize,
    qkv: [Linear; 3],
    output: Linear,
    /// Norms of queries and keys.
    norms: Option<[Norm; 2]>,
    /// Whether these come after the rotary embedding.
    norms_after: bool,
    rotation: Rotation,
    head_dim: usize,
    window: Option<usize>,
    scale: f32,
    soft_cap: Option<f32>,
    /// `[H]`, beside the scores of each head's keys.
    sinks: Option<PreparedVector>,
    /// `[H * (2 r + 1)]`, added to scores by distance.
    bias: Option<PreparedVector>,
    /// Of the same input: its function weighs what attention gives.
    gate: Option<(Linear, GateKind)>,
    /// Whether queries grow with their positions where they do not rotate.
    grows: bool,
}

impl Attention {
    /// Attention of layer `layer`.
    pub fn of(config: &Config, layer: usize, qkv: [Linear; 3], output: Linear) -> Self {
        Self {
            layer,
            qkv,
            output,
            norms: None,
            norms_after: false,
            rotation: config.rotations.get(layer).copied().unwrap_or(Rotation::Global),
            head_dim: config.head_dim,
            window: config.windows.get(layer).copied().flatten(),
            scale: config.attention_scale(layer),
            soft_cap: config.attn_logit_softcapping,
            sinks: None,
            bias: None,
            gate: None,
            grows: config.query_scaling.is_some_and(|scaling| scaling.unrotated),
        }
    }

    /// Whose keys and values are the model's `state`-th, where layers and states do not go together.
    pub fn of_state(mut self, state: usize) -> Self {
        self.layer = state;
        self
    }

    /// With norms of queries and keys, before the rotary embedding or after it.
    pub fn with_norms(mut self, norms: [Norm; 2], after: bool) -> Self {
        (self.norms, self.norms_after) = (Some(norms), after);
        self
    }

    /// With a gate of what it gives, before the output.
    pub fn with_gate(mut self, gate: Linear, kind: GateKind) -> Self {
        self.gate = Some((gate, kind));
        self
    }

    /// With a sink for each head.
    pub fn with_sinks(mut self, sinks: PreparedVector) -> Self {
        self.sinks = Some(sinks);
        self
    }

    /// With what is added to the scores of a key by how far it lies behind its query.
    pub fn with_bias(mut self, bias: PreparedVector) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Norms of queries and keys, where this is the place of them.
    fn norm_heads(&self, step: &Step<'_>, heads: [Tensor; 2], after: bool) -> Result<[Tensor; 2]> {
        match &self.norms {
            Some([of_q, of_k]) if self.norms_after == after => {
                let [q, k] = heads;
                Ok([of_q.forward(step, &q)?, of_k.forward(step, &k)?])
            }
            _ => Ok(heads),
        }
    }

    /// `[T, D]` → `[T, D]`; caches this step's keys and values.
    pub fn forward(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        let [q, k, v] = step.project(self.qkv.each_ref(), x)?; // [T, H*D], [T, KH*D] twice
        let [mut q, mut k] = self.norm_heads(step, [q, k], false)?;
        if self.rotation != Rotation::None {
            q = step.rope_queries(&q, self.head_dim, self.rotation)?;
            k = step.rope(&k, self.head_dim, self.rotation)?;
        } else if self.grows {
            q = step.scale_queries(q)?;
        }
        let [q, k] = self.norm_heads(step, [q, k], true)?;
        step.kv_write(self.layer, KvRows { k: &k, v: &v })?;
        let scores = (self.scale, self.soft_cap);
        let vectors = [self.sinks.as_ref(), self.bias.as_ref()];
        let attended = step.attention(self.layer, &q, self.window, scores, vectors)?; // [T, H*D]
        let Some((gate, kind)) = &self.gate else { return self.output.forward(step, &attended) };
        let gated = step.run(&Op::Gate { x: &attended, gate: &gate.forward(step, x)?, kind: *kind })?;
        self.output.forward(step, &gated)
    }
}

/// The feed-forward part of a layer.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one value a layer, which is never moved")]
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
    /// `[T, D]` → `[T, D]`.
    pub fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gated { gate, up, down, activation } => {
                let inner = step.gate_up([gate, up], x, *activation)?; // [T, I]
                down.forward(step, &inner)
            }
            Self::Plain { fc1, fc2, activation } => {
                let inner = fc1.forward(step, x)?; // [T, I]
                fc2.forward(step, &step.activate(&inner, *activation)?)
            }
        }
    }
}

/// The root of a width in the type of the weights, as the authors of Gemma round it.
pub(super) fn root_in(dtype: DType, width: usize) -> f32 {
    let root = (width as f32).sqrt();
    match dtype {
        DType::F32 => root,
        DType::F16 => half::f16::from_f32(root).to_f32(),
        DType::BF16 => half::bf16::from_f32(root).to_f32(),
    }
}

/// The embedding table and the head, tied or not.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    table: PreparedMatrix, // [V, D]
    scale: f32,
    head: Option<Linear>, // [V, D]
    /// Of logits.
    multiplier: f32,
    soft_cap: Option<f32>,
}

impl Vocabulary {
    /// The embedding `table`, and the head `head` unless the two are tied.
    pub fn load(loader: &Loader<'_>, table: &str, head: &str) -> Result<Self> {
        let config = loader.config;
        let table = loader.ops.matrix(&loader.matrix(table)?);
        let head = match config.tie_word_embeddings {
            true if loader.lists(head) => Some(Linear::of(loader, table.clone(), loader.bias(head)?)),
            true => Some(Linear::of(loader, table.clone(), None)),
            false if config.headless => None,
            false => Some(Linear::fixed(loader, head)?),
        };
        let (scale, soft_cap) = (config.embedding_multiplier, config.final_logit_softcapping);
        Ok(Self { table, scale, head, multiplier: config.logits_multiplier, soft_cap })
    }

    /// With rows multiplied by the root of their width, rounded to the type of the weights.
    pub fn root_scaled(mut self) -> Self {
        let table = self.table();
        self.scale = root_in(table.dtype(), table.as_ref().shape()[1]);
        self
    }

    /// Of weights that are multiplied already: those of the table by what rows of it are multiplied by, those of a head of its own by what
    /// logits are.
    pub fn multiplied(mut self, tied: bool) -> Self {
        self.multiplier = if tied { self.multiplier / self.scale } else { 1.0 };
        self.scale = 1.0;
        self
    }

    /// The head over the first `rows` tokens alone, where it has more and no bias.
    pub fn first_rows(&self, loader: &Loader<'_>, rows: usize) -> Option<Linear> {
        let head = self.head.as_ref().filter(|head| head.bias.is_none())?;
        let whole = head.weight.source();
        let first = (whole.as_ref().shape()[0] > rows).then(|| whole.rows("first", 0..rows))?;
        Some(Linear::of(loader, loader.ops.matrix(&first), None))
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
        self.logits_by(self.head.as_ref(), step, hidden)
    }

    /// The same by another head.
    pub fn logits_by(&self, head: Option<&Linear>, step: &Step<'_>, hidden: &Tensor) -> Result<Tensor> {
        let wanted;
        let rows = &step.batch.outputs;
        let all = rows.len() == step.batch.rows();
        let hidden = if all {
            hidden
        } else {
            wanted = step.run(&Op::TakeRows { x: hidden, rows })?;
            &wanted
        };
        let head = head.ok_or_else(|| Error::no_head("this model"))?;
        let mut logits = head.forward(step, hidden)?;
        if self.multiplier != 1.0 {
            logits = step.scale(&logits, self.multiplier)?;
        }
        match self.soft_cap {
            Some(cap) => step.run(&Op::SoftCap { x: &logits, cap }),
            None => Ok(logits),
        }
    }
}
