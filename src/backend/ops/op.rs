//! The ops and their operands.

use std::fmt;
use std::ops::Range;

use smallvec::{SmallVec, smallvec};

use super::experts::{ExpertProjection, GateKind, Gating, Router};
use super::{Mask, MatrixOperand, OpKind, Operands, RopeStep, StackOperand, State, TensorOperand};
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
    /// `x · Wᵀ` of each head with a matrix of its own: `[T, H * K]` → `[T, H * (N + R)]`, where the `R` elements of each head
    /// are those of what stands beside it.
    HeadLinear {
        /// `[T, H * K]`.
        x: &'a B::Tensor,
        /// `[H, N, K]`.
        weight: &'a B::Stack,
        /// `[T, H * R]`, put behind the product of each head; `R` is 0 without it.
        beside: Option<&'a B::Tensor>,
    },
    /// `x / √(mean(x²) + eps) · (weight + offset)` over each stretch of `N` elements of a row.
    RmsNorm {
        /// `[T, D]`.
        x: &'a B::Tensor,
        /// `[N]`, `N` dividing `D` (the head dimension for a norm per head); or `[G, N]` with `G · N = D`, weights for each stretch.
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
    /// `x[t] · by[t]`.
    ScaleRows {
        /// `[T, D]`.
        x: &'a B::Tensor,
        /// `[T]`.
        by: &'a [f32],
    },
    /// `x ∘ f(gate)`, an element of the gate for each stretch of `D / G` of a row.
    Gate {
        /// `[T, D]`.
        x: &'a B::Tensor,
        /// `[T, G]`, `G` dividing `D`.
        gate: &'a B::Tensor,
        /// `f`.
        kind: GateKind,
    },
    /// `into[r] + Σ_s by[r, s] · x[s]` over the `S` stretches of `width` elements of each row, for each of `R` results:
    /// `[T, S * width]` → `[T, R * width]`.
    Mix {
        /// `[T, S * width]`.
        x: &'a B::Tensor,
        /// `[T, R * S]`, those of the first result first.
        by: &'a B::Tensor,
        /// `[T, R * width]`; zeros without it.
        into: Option<&'a B::Tensor>,
        /// Elements of a stretch.
        width: usize,
    },
    /// `max(x − (mean + deviations · √var), 0)` over each row, of whose elements mean and variance are.
    Cut {
        /// `[T, D]`.
        x: &'a B::Tensor,
        /// Standard deviations from the mean up to the bound.
        deviations: f32,
    },
    /// The rows of `a`, each followed by the same row of `b`: `[T, A + B]`.
    Join {
        /// `[T, A]`.
        a: &'a B::Tensor,
        /// `[T, B]`.
        b: &'a B::Tensor,
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
        /// `[H]`, a score of each head that stands beside those of its keys and has no value.
        sinks: Option<&'a B::Vector>,
        /// `[H * (2 r + 1)]`, what each head adds to the scaled score of a key by how far it lies behind its query, from `-r` to
        /// `r`; those that are farther away have the first and the last. None beside a cap.
        bias: Option<&'a B::Vector>,
    },
    /// Rows `rows` of `x`.
    TakeRows {
        /// `[T, D]`.
        x: &'a B::Tensor,
        /// Indices below `T`.
        rows: &'a [usize],
    },
    /// The experts of each row, the best first, as ids `[T, k]` of `u32`, and their weights `[T, k]`; two outputs.
    Route {
        /// `[T, E]`.
        logits: &'a B::Tensor,
        /// `[E]`, added to the scores where experts are chosen, and not to their weights.
        bias: Option<&'a B::Vector>,
        /// `[E]`, by which the weight of each expert is multiplied after all else.
        scales: Option<&'a B::Vector>,
        /// How.
        router: Router,
    },
    /// `Σ_j weights[t, j] · down(gating(gate(x), up(x)))` by the matrices of expert `ids[t, j]`: `[T, D]` → `[T, N]`. A row's
    /// experts are added in the order of its ids. Without a gate, an expert is `down(act(up(x)))`; with weights on the input, it is given
    /// `weights[t, j] · x`, and what it gives is added as it is.
    Experts {
        /// `[T, D]`.
        x: &'a B::Tensor,
        /// `[T, k]` of `u32`, below `E`.
        ids: &'a B::Tensor,
        /// `[T, k]`.
        weights: &'a B::Tensor,
        /// `[E, I, D]` and `[E, I]`.
        gate: Option<ExpertProjection<'a, B>>,
        /// `[E, I, D]` and `[E, I]`.
        up: ExpertProjection<'a, B>,
        /// `[E, N, I]` and `[E, N]`.
        down: ExpertProjection<'a, B>,
        /// Between them.
        gating: Gating,
        /// Whether weights multiply what goes to an expert, in place of what it gives.
        on_input: bool,
    },
    /// The sum of what every rank has for `x`, added in an order that is the same for all of them: of equal shapes, and without a
    /// fallback.
    AllSum {
        /// `[T, D]`.
        x: &'a B::Tensor,
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
    /// Fused: what an adapter makes of the product `into` of `x` in its rows `R`, `(into[R] + scale · (x[R] · Aᵀ) · Bᵀ) ∘ c + d`,
    /// and `into` in the others: `[T, K]` and `[T, N]` → `[T, N]`.
    Adapt {
        /// `[T, K]`.
        x: &'a B::Tensor,
        /// `[T, N]`.
        into: &'a B::Tensor,
        /// `R`, of the rows.
        rows: &'a Range<usize>,
        /// `A`, `[r, K]`.
        low: &'a B::Matrix,
        /// `B`, `[N, r]`.
        high: &'a B::Matrix,
        /// Of what is added.
        scale: f32,
        /// `c` and `d`, the second row of `[2, N]` each, below one of ones and one of zeros; ones and zeros without them.
        columns: Option<[&'a B::Matrix; 2]>,
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
            Self::HeadLinear { .. } => OpKind::HeadLinear,
            Self::RmsNorm { .. } => OpKind::RmsNorm,
            Self::LayerNorm { .. } => OpKind::LayerNorm,
            Self::Activate { activation: Activation::Silu, .. } => OpKind::Silu,
            Self::Activate { activation: Activation::Relu2, .. } => OpKind::Relu2,
            Self::Activate { .. } => OpKind::Gelu,
            Self::Add { .. } => OpKind::Add,
            Self::Mul { .. } => OpKind::Mul,
            Self::Scale { .. } => OpKind::Scale,
            Self::ScaleRows { .. } => OpKind::ScaleRows,
            Self::Gate { .. } => OpKind::Gate,
            Self::Mix { .. } => OpKind::Mix,
            Self::Cut { .. } => OpKind::Cut,
            Self::Join { .. } => OpKind::Join,
            Self::SoftCap { .. } => OpKind::SoftCap,
            Self::Rope { .. } => OpKind::Rope,
            Self::Attention { .. } => OpKind::Attention,
            Self::TakeRows { .. } => OpKind::TakeRows,
            Self::Route { .. } => OpKind::Route,
            Self::Experts { .. } => OpKind::Experts,
            Self::AllSum { .. } => OpKind::AllSum,
            Self::GateUp { .. } => OpKind::GateUp,
            Self::AddRmsNorm { .. } => OpKind::AddRmsNorm,
            Self::Adapt { .. } => OpKind::Adapt,
            Self::Qkv { .. } => OpKind::Qkv,
        }
    }

    /// Whether it reads a matrix in blocks.
    pub fn is_quantized(&self) -> bool {
        let in_blocks = |projection: &Projection<'_, B>| projection.weight.is_quantized();
        match self {
            Self::Embedding { table, .. } => table.is_quantized(),
            Self::Linear { projection, .. } => in_blocks(projection),
            Self::HeadLinear { weight, .. } => weight.is_quantized(),
            Self::GateUp { gate, up, .. } => in_blocks(gate) || in_blocks(up),
            Self::Qkv { projections, .. } => projections.iter().any(in_blocks),
            Self::Adapt { low, high, .. } => low.is_quantized() || high.is_quantized(),
            Self::Experts { gate, up, down, .. } => {
                let gate = gate.is_some_and(|gate| gate.weight.is_quantized());
                gate || up.weight.is_quantized() || down.weight.is_quantized()
            }
            _ => false,
        }
    }

    /// The activations that the op reads.
    pub fn inputs(&self) -> SmallVec<[&'a B::Tensor; 3]> {
        match *self {
            Self::Embedding { tokens: Ids::Pending(ids), .. } => smallvec![ids],
            Self::Embedding { .. } => smallvec![],
            Self::Linear { x, .. }
            | Self::RmsNorm { x, .. }
            | Self::LayerNorm { x, .. }
            | Self::Activate { x, .. }
            | Self::Scale { x, .. }
            | Self::ScaleRows { x, .. }
            | Self::Cut { x, .. }
            | Self::SoftCap { x, .. }
            | Self::Rope { x, .. }
            | Self::TakeRows { x, .. }
            | Self::AllSum { x }
            | Self::GateUp { x, .. }
            | Self::Qkv { x, .. } => smallvec![x],
            Self::Attention { q, .. } => smallvec![q],
            Self::Gate { x, gate, .. } => smallvec![x, gate],
            Self::Adapt { x, into, .. } => smallvec![x, into],
            Self::Mix { x, by, into, .. } => [x, by].into_iter().chain(into).collect(),
            Self::HeadLinear { x, beside, .. } => std::iter::once(x).chain(beside).collect(),
            Self::Route { logits, .. } => smallvec![logits],
            Self::Experts { x, ids, weights, .. } => smallvec![x, ids, weights],
            Self::Add { a, b } | Self::Mul { a, b } | Self::Join { a, b } | Self::AddRmsNorm { a, b, .. } => {
                smallvec![a, b]
            }
        }
    }

    /// The states that the op reads.
    pub fn states(&self) -> &'a [&'a B::State] {
        match self {
            Self::Attention { kv, .. } => kv,
            _ => &[],
        }
    }

    /// The same op for another backend, on what it has of the operands; `states` are those of [`Self::states`], in their order.
    ///
    /// # Errors
    /// Those of `tensor`, `matrix`, `stack` and `vector`.
    pub(crate) fn on<'b, C: Operands>(
        &self,
        states: &'b [&'b C::State],
        tensor: impl Fn(&'a B::Tensor) -> Result<&'b C::Tensor>,
        matrix: impl Fn(&'a B::Matrix) -> Result<&'b C::Matrix>,
        stack: impl Fn(&'a B::Stack) -> Result<&'b C::Stack>,
        vector: impl Fn(&'a B::Vector) -> Result<&'b C::Vector>,
    ) -> Result<Op<'b, C>>
    where
        'a: 'b,
    {
        let of = |projection: Projection<'a, B>| {
            let bias = projection.bias.map(&vector).transpose()?;
            Ok::<_, Error>(Projection { weight: matrix(projection.weight)?, bias })
        };
        let expert = |projection: ExpertProjection<'a, B>| {
            let bias = projection.bias.map(&vector).transpose()?;
            Ok::<_, Error>(ExpertProjection { weight: stack(projection.weight)?, bias })
        };
        Ok(match *self {
            Self::Embedding { table, tokens, scale } => {
                let tokens = match tokens {
                    Ids::Known(ids) => Ids::Known(ids),
                    Ids::Pending(ids) => Ids::Pending(tensor(ids)?),
                };
                Op::Embedding { table: matrix(table)?, tokens, scale }
            }
            Self::Linear { x, projection } => Op::Linear { x: tensor(x)?, projection: of(projection)? },
            Self::HeadLinear { x, weight, beside } => {
                let beside = beside.map(&tensor).transpose()?;
                Op::HeadLinear { x: tensor(x)?, weight: stack(weight)?, beside }
            }
            Self::RmsNorm { x, weight, eps, offset } => {
                Op::RmsNorm { x: tensor(x)?, weight: vector(weight)?, eps, offset }
            }
            Self::LayerNorm { x, weight, bias, eps } => Op::LayerNorm {
                x: tensor(x)?,
                weight: vector(weight)?,
                bias: bias.map(&vector).transpose()?,
                eps,
            },
            Self::Activate { x, activation } => Op::Activate { x: tensor(x)?, activation },
            Self::Add { a, b } => Op::Add { a: tensor(a)?, b: tensor(b)? },
            Self::Mul { a, b } => Op::Mul { a: tensor(a)?, b: tensor(b)? },
            Self::Scale { x, by } => Op::Scale { x: tensor(x)?, by },
            Self::ScaleRows { x, by } => Op::ScaleRows { x: tensor(x)?, by },
            Self::Gate { x, gate, kind } => Op::Gate { x: tensor(x)?, gate: tensor(gate)?, kind },
            Self::Mix { x, by, into, width } => {
                let into = into.map(&tensor).transpose()?;
                Op::Mix { x: tensor(x)?, by: tensor(by)?, into, width }
            }
            Self::Cut { x, deviations } => Op::Cut { x: tensor(x)?, deviations },
            Self::Join { a, b } => Op::Join { a: tensor(a)?, b: tensor(b)? },
            Self::SoftCap { x, cap } => Op::SoftCap { x: tensor(x)?, cap },
            Self::Rope { x, head_dim, rope } => Op::Rope { x: tensor(x)?, head_dim, rope },
            Self::Attention { q, mask, scale, soft_cap, sinks, bias, .. } => {
                let (sinks, bias) = (sinks.map(&vector).transpose()?, bias.map(&vector).transpose()?);
                Op::Attention { q: tensor(q)?, kv: states, mask, scale, soft_cap, sinks, bias }
            }
            Self::TakeRows { x, rows } => Op::TakeRows { x: tensor(x)?, rows },
            Self::Route { logits, bias, scales, router } => {
                let (bias, scales) = (bias.map(&vector).transpose()?, scales.map(&vector).transpose()?);
                Op::Route { logits: tensor(logits)?, bias, scales, router }
            }
            Self::Experts { x, ids, weights, gate, up, down, gating, on_input } => Op::Experts {
                x: tensor(x)?,
                ids: tensor(ids)?,
                weights: tensor(weights)?,
                gate: gate.map(&expert).transpose()?,
                up: expert(up)?,
                down: expert(down)?,
                gating,
                on_input,
            },
            Self::AllSum { x } => Op::AllSum { x: tensor(x)? },
            Self::GateUp { x, gate, up, activation } => {
                Op::GateUp { x: tensor(x)?, gate: of(gate)?, up: of(up)?, activation }
            }
            Self::AddRmsNorm { a, b, weight, eps, offset } => {
                Op::AddRmsNorm { a: tensor(a)?, b: tensor(b)?, weight: vector(weight)?, eps, offset }
            }
            Self::Adapt { x, into, rows, low, high, scale, columns } => Op::Adapt {
                x: tensor(x)?,
                into: tensor(into)?,
                rows,
                low: matrix(low)?,
                high: matrix(high)?,
                scale,
                columns: columns
                    .map(|[by, more]| Ok::<_, Error>([matrix(by)?, matrix(more)?]))
                    .transpose()?,
            },
            Self::Qkv { x, projections: [q, k, v] } => {
                Op::Qkv { x: tensor(x)?, projections: [of(q)?, of(k)?, of(v)?] }
            }
        })
    }

    /// Calls `each` with the shape of each output, for an op that [`Self::check`] accepts.
    pub fn each_output(&self, mut each: impl FnMut(&[usize])) {
        let projected = |x: &B::Tensor, projection: &Projection<'_, B>| -> [usize; 2] {
            [x.shape()[0], projection.weight.shape()[0]]
        };
        match *self {
            Self::Embedding { table, tokens, .. } => each(&[tokens.len(), table.shape()[1]]),
            Self::Linear { x, projection } => each(&projected(x, &projection)),
            Self::HeadLinear { x, weight, beside } => {
                let [heads, width, _] = weight.shape();
                each(&[x.shape()[0], heads * width + beside.map_or(0, |beside| beside.shape()[1])]);
            }
            Self::GateUp { x, gate, .. } => each(&projected(x, &gate)),
            Self::Qkv { x, projections } => {
                projections.iter().for_each(|projection| each(&projected(x, projection)));
            }
            Self::TakeRows { x, rows } => each(&[rows.len(), x.shape()[1]]),
            Self::Mix { x, by, width, .. } => {
                let stretches = x.shape()[1] / width;
                each(&[x.shape()[0], by.shape()[1] / stretches * width]);
            }
            Self::Route { logits, router, .. } => {
                let shape = [logits.shape()[0], router.used];
                each(&shape);
                each(&shape);
            }
            Self::Experts { x, down, .. } => each(&[x.shape()[0], down.weight.shape()[1]]),
            Self::AddRmsNorm { a, .. } => {
                each(a.shape());
                each(a.shape());
            }
            Self::Add { a, .. } | Self::Mul { a, .. } => each(a.shape()),
            Self::Join { a, b } => each(&[a.shape()[0], a.shape()[1] + b.shape()[1]]),
            Self::Adapt { into, .. } => each(into.shape()),
            Self::Attention { q, kv, .. } => {
                let &[rows, width] = q.shape() else { return each(q.shape()) };
                let of = kv.first().map(|state| state.shape());
                each(&[rows, of.map_or(width, |of| width / of.k_dim * of.v_dim)]);
            }
            Self::RmsNorm { x, .. }
            | Self::LayerNorm { x, .. }
            | Self::Activate { x, .. }
            | Self::Scale { x, .. }
            | Self::ScaleRows { x, .. }
            | Self::Gate { x, .. }
            | Self::Cut { x, .. }
            | Self::SoftCap { x, .. }
            | Self::AllSum { x }
            | Self::Rope { x, .. } => each(x.shape()),
        }
    }

    /// The shape of each output, for an op that [`Self::check`] accepts.
    pub fn output_shapes(&self) -> SmallVec<[Shape; 1]> {
        let mut shapes = SmallVec::new();
        self.each_output(|shape| shapes.push(Shape::from_slice(shape)));
        shapes
    }
}

impl<B: Operands> fmt::Debug for Op<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.kind(), self.inputs())
    }
}
