//! The ops and their operands.

use std::fmt;

use smallvec::{SmallVec, smallvec};

use super::{Mask, MatrixOperand, OpKind, Operands, RopeStep, State, TensorOperand};
use crate::config::Activation;
use crate::error::{Error, Result};
use crate::tensor::Shape;

/// Token ids that an op reads, `[T]`.
pub enum Ids<'a, T> {
    /// Ids that the host knows.
    Known(&'a [u32]),
    /// Ids that are a tensor of `u32`, `[T]`, which may still be lazy.
    Pending(&'a T),
}

impl<T> Clone for Ids<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Ids<'_, T> {}

impl<T: TensorOperand> Ids<'_, T> {
    /// Number of ids.
    pub fn len(&self) -> usize {
        match self {
            Self::Known(ids) => ids.len(),
            Self::Pending(ids) => ids.shape().first().copied().unwrap_or(0),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A projection: a weight `[N, K]` and, where the checkpoint has one, a bias `[N]`.
pub struct Projection<'a, B: Operands> {
    /// `[N, K]`, row-major or in blocks.
    pub weight: &'a B::Matrix,
    /// `[N]`.
    pub bias: Option<&'a B::Vector>,
}

impl<B: Operands> Clone for Projection<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Operands> Copy for Projection<'_, B> {}

/// One op with its operands. Activations are `[T, …]`: the rows of all runs of the step.
pub enum Op<'a, B: Operands> {
    /// Rows `tokens` of `table` `[V, D]`, times `scale` → `[T, D]`.
    Embedding {
        /// The embedding table.
        table: &'a B::Matrix,
        /// Ids below `V`.
        tokens: Ids<'a, B::Tensor>,
        /// Multiplies the rows (Gemma's √D), 1 elsewhere.
        scale: f32,
    },
    /// `x · Wᵀ + b`: `[T, K]` → `[T, N]`.
    Linear {
        /// `[T, K]`.
        x: &'a B::Tensor,
        /// `[N, K]` and `[N]`.
        projection: Projection<'a, B>,
    },
    /// `x / √(mean(x²) + eps) · (weight + offset)` over each stretch of `weight.len()` elements of a row.
    RmsNorm {
        /// `[T, D]`.
        x: &'a B::Tensor,
        /// `[N]`, `N` dividing `D` (the head dimension for a norm per head).
        weight: &'a B::Vector,
        /// Added to the mean square.
        eps: f32,
        /// Added to the weight: 1 for Gemma, else 0.
        offset: f32,
    },
    /// `(x − mean) / √(var + eps) · weight + bias` over each stretch of `N` elements of a row.
    LayerNorm {
        /// `[T, D]`.
        x: &'a B::Tensor,
        /// `[N]`, `N` dividing `D`; or `[H, N]` with `H · N = D`, weights for each head, and then without a bias.
        weight: &'a B::Vector,
        /// `[N]`.
        bias: Option<&'a B::Vector>,
        /// Added to the variance.
        eps: f32,
    },
    /// An activation function, elementwise.
    Activate {
        /// Any shape.
        x: &'a B::Tensor,
        /// Which.
        activation: Activation,
    },
    /// `a + b`, equal shapes.
    Add {
        /// Any shape.
        a: &'a B::Tensor,
        /// As `a`.
        b: &'a B::Tensor,
    },
    /// `a ∘ b`, equal shapes.
    Mul {
        /// Any shape.
        a: &'a B::Tensor,
        /// As `a`.
        b: &'a B::Tensor,
    },
    /// `x · by`.
    Scale {
        /// Any shape.
        x: &'a B::Tensor,
        /// The factor.
        by: f32,
    },
    /// `cap · tanh(x / cap)`.
    SoftCap {
        /// Any shape.
        x: &'a B::Tensor,
        /// Above 0.
        cap: f32,
    },
    /// Rotates the first `rope.dims` elements of each head, pairs `(i, i + dims/2)`.
    Rope {
        /// `[T, H * head_dim]`.
        x: &'a B::Tensor,
        /// Elements of a head.
        head_dim: usize,
        /// The step's tables.
        rope: &'a RopeStep,
    },
    /// Softmax(scale · q kᵀ, soft-capped, masked) · v → `[T, H * v_dim]` over the cache, query head `h` reading key/value head
    /// `h / (H / KH)`.
    Attention {
        /// `[T, H * k_dim]`.
        q: &'a B::Tensor,
        /// The layer's cache of each run's sequence, in the order of the mask's runs, this step's keys included.
        kv: &'a [&'a B::State],
        /// What each row may see.
        mask: &'a Mask,
        /// Multiplies the scores.
        scale: f32,
        /// `cap · tanh(score / cap)` after the scale.
        soft_cap: Option<f32>,
    },
    /// Rows `rows` of `x`.
    TakeRows {
        /// `[T, D]`.
        x: &'a B::Tensor,
        /// Indices below `T`.
        rows: &'a [usize],
    },
    /// Fused `act(x · Wgᵀ + bg) ∘ (x · Wuᵀ + bu)`: `[T, K]` → `[T, N]`.
    GateUp {
        /// `[T, K]`.
        x: &'a B::Tensor,
        /// `[N, K]`.
        gate: Projection<'a, B>,
        /// `[N, K]`.
        up: Projection<'a, B>,
        /// Applied to the gate.
        activation: Activation,
    },
    /// Fused: `sum = a + b`, and its RMS norm; two outputs.
    AddRmsNorm {
        /// `[T, D]`.
        a: &'a B::Tensor,
        /// `[T, D]`.
        b: &'a B::Tensor,
        /// `[N]`, `N` dividing `D`.
        weight: &'a B::Vector,
        /// Added to the mean square.
        eps: f32,
        /// Added to the weight.
        offset: f32,
    },
    /// Fused: three projections of one input; three outputs.
    Qkv {
        /// `[T, K]`.
        x: &'a B::Tensor,
        /// Query, key and value projections.
        projections: [Projection<'a, B>; 3],
    },
}

impl<B: Operands> Clone for Op<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Operands> Copy for Op<'_, B> {}

impl<'a, B: Operands> Op<'a, B> {
    /// What this op is called.
    pub fn kind(&self) -> OpKind {
        match self {
            Self::Embedding { .. } => OpKind::Embedding,
            Self::Linear { .. } => OpKind::Linear,
            Self::RmsNorm { .. } => OpKind::RmsNorm,
            Self::LayerNorm { .. } => OpKind::LayerNorm,
            Self::Activate { activation: Activation::Silu, .. } => OpKind::Silu,
            Self::Activate { activation: Activation::Relu2, .. } => OpKind::Relu2,
            Self::Activate { .. } => OpKind::Gelu,
            Self::Add { .. } => OpKind::Add,
            Self::Mul { .. } => OpKind::Mul,
            Self::Scale { .. } => OpKind::Scale,
            Self::SoftCap { .. } => OpKind::SoftCap,
            Self::Rope { .. } => OpKind::Rope,
            Self::Attention { .. } => OpKind::Attention,
            Self::TakeRows { .. } => OpKind::TakeRows,
            Self::GateUp { .. } => OpKind::GateUp,
            Self::AddRmsNorm { .. } => OpKind::AddRmsNorm,
            Self::Qkv { .. } => OpKind::Qkv,
        }
    }

    /// Whether it reads a matrix in blocks.
    pub fn is_quantized(&self) -> bool {
        let in_blocks = |projection: &Projection<'_, B>| projection.weight.is_quantized();
        match self {
            Self::Embedding { table, .. } => table.is_quantized(),
            Self::Linear { projection, .. } => in_blocks(projection),
            Self::GateUp { gate, up, .. } => in_blocks(gate) || in_blocks(up),
            Self::Qkv { projections, .. } => projections.iter().any(in_blocks),
            _ => false,
        }
    }

    /// The activations that the op reads, in the order that [`Self::on`] takes them.
    pub fn inputs(&self) -> SmallVec<[&'a B::Tensor; 2]> {
        match *self {
            Self::Embedding { tokens: Ids::Pending(ids), .. } => smallvec![ids],
            Self::Embedding { .. } => smallvec![],
            Self::Linear { x, .. }
            | Self::RmsNorm { x, .. }
            | Self::LayerNorm { x, .. }
            | Self::Activate { x, .. }
            | Self::Scale { x, .. }
            | Self::SoftCap { x, .. }
            | Self::Rope { x, .. }
            | Self::TakeRows { x, .. }
            | Self::GateUp { x, .. }
            | Self::Qkv { x, .. } => smallvec![x],
            Self::Attention { q, .. } => smallvec![q],
            Self::Add { a, b } | Self::Mul { a, b } | Self::AddRmsNorm { a, b, .. } => smallvec![a, b],
        }
    }

    /// The states that the op reads.
    pub fn states(&self) -> &'a [&'a B::State] {
        match self {
            Self::Attention { kv, .. } => kv,
            _ => &[],
        }
    }

    /// The same op for another backend, on what it has of the operands.
    ///
    /// # Errors
    /// Those of `matrix` and `vector`.
    ///
    /// # Panics
    /// Where there are not as many inputs as [`Self::inputs`] gave.
    pub(crate) fn on<'b, C: Operands>(
        &self,
        inputs: &[&'b C::Tensor],
        states: &'b [&'b C::State],
        matrix: impl Fn(&'a B::Matrix) -> Result<&'b C::Matrix>,
        vector: impl Fn(&'a B::Vector) -> Result<&'b C::Vector>,
    ) -> Result<Op<'b, C>>
    where
        'a: 'b,
    {
        let of = |projection: Projection<'a, B>| {
            let bias = projection.bias.map(&vector).transpose()?;
            Ok::<_, Error>(Projection { weight: matrix(projection.weight)?, bias })
        };
        Ok(match *self {
            Self::Embedding { table, tokens, scale } => {
                let tokens = match tokens {
                    Ids::Known(ids) => Ids::Known(ids),
                    Ids::Pending(_) => Ids::Pending(inputs[0]),
                };
                Op::Embedding { table: matrix(table)?, tokens, scale }
            }
            Self::Linear { projection, .. } => Op::Linear { x: inputs[0], projection: of(projection)? },
            Self::RmsNorm { weight, eps, offset, .. } => {
                Op::RmsNorm { x: inputs[0], weight: vector(weight)?, eps, offset }
            }
            Self::LayerNorm { weight, bias, eps, .. } => Op::LayerNorm {
                x: inputs[0],
                weight: vector(weight)?,
                bias: bias.map(&vector).transpose()?,
                eps,
            },
            Self::Activate { activation, .. } => Op::Activate { x: inputs[0], activation },
            Self::Add { .. } => Op::Add { a: inputs[0], b: inputs[1] },
            Self::Mul { .. } => Op::Mul { a: inputs[0], b: inputs[1] },
            Self::Scale { by, .. } => Op::Scale { x: inputs[0], by },
            Self::SoftCap { cap, .. } => Op::SoftCap { x: inputs[0], cap },
            Self::Rope { head_dim, rope, .. } => Op::Rope { x: inputs[0], head_dim, rope },
            Self::Attention { mask, scale, soft_cap, .. } => {
                Op::Attention { q: inputs[0], kv: states, mask, scale, soft_cap }
            }
            Self::TakeRows { rows, .. } => Op::TakeRows { x: inputs[0], rows },
            Self::GateUp { gate, up, activation, .. } => {
                Op::GateUp { x: inputs[0], gate: of(gate)?, up: of(up)?, activation }
            }
            Self::AddRmsNorm { weight, eps, offset, .. } => {
                Op::AddRmsNorm { a: inputs[0], b: inputs[1], weight: vector(weight)?, eps, offset }
            }
            Self::Qkv { projections: [q, k, v], .. } => {
                Op::Qkv { x: inputs[0], projections: [of(q)?, of(k)?, of(v)?] }
            }
        })
    }

    /// The shape of each output, for an op that [`Self::check`] accepts.
    pub fn output_shapes(&self) -> SmallVec<[Shape; 1]> {
        let projected = |x: &B::Tensor, projection: &Projection<'_, B>| -> Shape {
            smallvec![x.shape()[0], projection.weight.shape()[0]]
        };
        match *self {
            Self::Embedding { table, tokens, .. } => smallvec![smallvec![tokens.len(), table.shape()[1]]],
            Self::Linear { x, projection } => smallvec![projected(x, &projection)],
            Self::GateUp { x, gate, .. } => smallvec![projected(x, &gate)],
            Self::Qkv { x, projections } => {
                projections.iter().map(|projection| projected(x, projection)).collect()
            }
            Self::TakeRows { x, rows } => smallvec![smallvec![rows.len(), x.shape()[1]]],
            Self::AddRmsNorm { a, .. } => smallvec![a.shape().into(), a.shape().into()],
            Self::Add { a, .. } | Self::Mul { a, .. } => smallvec![a.shape().into()],
            Self::Attention { q, kv, .. } => {
                let mut shape = Shape::from_slice(q.shape());
                if let Some(of) = kv.first().map(|state| state.shape()) {
                    shape[1] = shape[1] / of.k_dim * of.v_dim;
                }
                smallvec![shape]
            }
            Self::RmsNorm { x, .. }
            | Self::LayerNorm { x, .. }
            | Self::Activate { x, .. }
            | Self::Scale { x, .. }
            | Self::SoftCap { x, .. }
            | Self::Rope { x, .. } => smallvec![x.shape().into()],
        }
    }
}

impl<B: Operands> fmt::Debug for Op<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.kind(), self.inputs())
    }
}
