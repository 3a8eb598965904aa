//! Recurrences: what a token gets of all tokens before it by way of a state of fixed size, which it changes.

use std::fmt;

use smallvec::{SmallVec, smallvec};

use super::{OpKind, Operands, Recurrent, RecurrentShape, Run, TensorOperand, VectorOperand};
use crate::config::Activation;
use crate::error::{Error, Result};

/// A recurrence with its operands. Activations are `[T, …]`: the rows of all runs of the step.
pub enum Recur<'a, B: Operands> {
    /// `act(Σ_j weight[j] ∘ x[t - taps + j] + bias)`, zeros before the first token: `[T, C]` → `[T, C]`.
    Convolution {
        /// `[T, C]`, or the first of its columns.
        x: &'a B::Tensor,
        /// The columns behind these, where they are tensors of their own.
        beside: [Option<&'a B::Tensor>; 2],
        /// `[taps + 1, C]`, the oldest row first.
        weight: &'a B::Vector,
        /// `[C]`.
        bias: Option<&'a B::Vector>,
        /// Applied to the sum.
        activation: Option<Activation>,
    },
    /// The gated delta rule (Yang et al. 2024, "Gated Delta Networks"), of each head with its matrix `S`, in `f32`:
    /// `S ← decay S`, `S ← S + k (strength · sigmoid(beta) (v - Sᵀ k))ᵀ`, `y = Sᵀ q`, with
    /// `decay = exp(rate · softplus(gate + shift))`; `q` and `k` of length 1, `q` divided by the root of its elements. A head has one
    /// decay, or one for each row of its matrix (Kimi Team 2025, "Kimi Linear"). → `[T, H · columns]`.
    Delta {
        /// Queries and keys of `key_heads` heads, and values of `H`: `[T, 2 · key_heads · rows + H · columns]`.
        qkv: &'a B::Tensor,
        /// `[T, H]`.
        beta: &'a B::Tensor,
        /// What `beta` is at most: 2 where `S` may turn what it holds for a key around.
        strength: f32,
        /// `[T, H]`, or `[T, H · rows]`.
        gate: &'a B::Tensor,
        /// `[H]`, below 0.
        rate: &'a B::Vector,
        /// As long as a row of the gate.
        shift: &'a B::Vector,
        /// Heads of queries and keys, a divisor of `H`.
        key_heads: usize,
        /// Whether heads of values take those of keys in turn, `j mod key_heads`, as llama.cpp has them; where not, those of one
        /// follow each other.
        in_turn: bool,
    },
    /// The selective scan of Mamba 2 (Dao & Gu 2024, "Transformers are SSMs", section 2), of each head with its matrix `S`, in `f32`:
    /// `S ← decay S + k (δ v)ᵀ`, `y = Sᵀ q + skip v`, with `δ = softplus(dt + shift)` within `limits` and `decay = exp(rate δ)`;
    /// the paper's `x`, `B` and `C` are `v`, `k` and `q`. → `[T, H · columns]`.
    Scan {
        /// Values of `H` heads, and keys and queries of `groups`: `[T, H · columns + 2 · groups · rows]`.
        vkq: &'a B::Tensor,
        /// `[T, H]`.
        dt: &'a B::Tensor,
        /// `[H]`, below 0.
        rate: &'a B::Vector,
        /// `[H]`.
        shift: &'a B::Vector,
        /// `[H]`.
        skip: &'a B::Vector,
        /// Heads of keys and queries, a divisor of `H`; those of values follow each other by their keys.
        groups: usize,
        /// The least and the largest `δ`.
        limits: [f32; 2],
    },
}

impl<B: Operands> Clone for Recur<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Operands> Copy for Recur<'_, B> {}

impl<'a, B: Operands> Recur<'a, B> {
    /// What it is called.
    pub fn kind(&self) -> OpKind {
        match self {
            Self::Convolution { .. } => OpKind::Convolution,
            Self::Delta { .. } => OpKind::DeltaRule,
            Self::Scan { .. } => OpKind::Scan,
        }
    }

    /// The activations that it reads.
    pub fn inputs(&self) -> SmallVec<[&'a B::Tensor; 3]> {
        match *self {
            Self::Convolution { x, beside, .. } => {
                std::iter::once(x).chain(beside.into_iter().flatten()).collect()
            }
            Self::Delta { qkv, beta, gate, .. } => smallvec![qkv, beta, gate],
            Self::Scan { vkq, dt, .. } => smallvec![vkq, dt],
        }
    }

    /// Elements of a row of what it gives, for states of `shape`.
    pub fn width(&self, shape: &RecurrentShape) -> usize {
        match self {
            Self::Convolution { .. } => shape.channels,
            Self::Delta { .. } | Self::Scan { .. } => shape.heads * shape.columns,
        }
    }

    /// The same for another backend, on what it has of the operands.
    ///
    /// # Errors
    /// Those of `tensor` and `vector`.
    pub(crate) fn on<'b, C: Operands>(
        &self,
        tensor: impl Fn(&'a B::Tensor) -> Result<&'b C::Tensor>,
        vector: impl Fn(&'a B::Vector) -> Result<&'b C::Vector>,
    ) -> Result<Recur<'b, C>>
    where
        'a: 'b,
    {
        Ok(match *self {
            Self::Convolution { x, beside: [second, third], weight, bias, activation } => {
                Recur::Convolution {
                    x: tensor(x)?,
                    beside: [second.map(&tensor).transpose()?, third.map(&tensor).transpose()?],
                    weight: vector(weight)?,
                    bias: bias.map(vector).transpose()?,
                    activation,
                }
            }
            Self::Delta { qkv, beta, strength, gate, rate, shift, key_heads, in_turn } => Recur::Delta {
                qkv: tensor(qkv)?,
                beta: tensor(beta)?,
                strength,
                gate: tensor(gate)?,
                rate: vector(rate)?,
                shift: vector(shift)?,
                key_heads,
                in_turn,
            },
            Self::Scan { vkq, dt, rate, shift, skip, groups, limits } => Recur::Scan {
                vkq: tensor(vkq)?,
                dt: tensor(dt)?,
                rate: vector(rate)?,
                shift: vector(shift)?,
                skip: vector(skip)?,
                groups,
                limits,
            },
        })
    }

    /// Checks every shape, so that backends need not: `states` are those of the runs, in their order.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the op, what was expected and what was got.
    pub fn check(&self, states: &[&mut B::Recurrent], runs: &[Run]) -> Result<()> {
        let op = self.kind().name();
        let refuse = |what: String| Err(Error::shape(op, what));
        let rows: usize = runs.iter().map(|run| run.len).sum();
        let Some(first) = states.first() else { return refuse("there is no run".to_owned()) };
        let shape = *first.shape();
        if states.len() != runs.len() || states.iter().any(|state| *state.shape() != shape) {
            return refuse(format!(
                "{} states for {} runs, expected as many of one shape",
                states.len(),
                runs.len()
            ));
        }
        let mut next = 0;
        for (state, run) in states.iter().zip(runs) {
            if run.row != next {
                return refuse(format!("a run starts at row {}, expected {next}", run.row));
            }
            next += run.len;
            if run.start > state.len() && run.start > 0 && !self.follows(state) {
                return refuse(format!("position {}, expected at most the {} seen", run.start, state.len()));
            }
        }
        self.inputs().into_iter().try_for_each(|input| super::check::floats::<B>(op, input))?;
        let RecurrentShape { taps, channels, heads, rows: keys, columns } = shape;
        let fits = |x: &B::Tensor, width: usize| x.shape() == [rows, width] && width > 0;
        match *self {
            Self::Convolution { x, weight, bias, .. } => {
                let bias = bias.is_none_or(|bias| bias.shape() == [channels]);
                let parts = self.inputs();
                let width = |part: &&B::Tensor| part.shape().get(1).copied().unwrap_or(0);
                let wide = parts.iter().map(width).sum::<usize>() == channels;
                let each = parts.iter().all(|&part| fits(part, width(&part)));
                if !wide || !each || weight.shape() != [taps + 1, channels] || !bias {
                    let (x, weight) = (x.shape(), weight.shape());
                    let beside: String =
                        parts.iter().skip(1).map(|part| format!(" beside {:?}", part.shape())).collect();
                    return refuse(format!(
                        "x is {x:?}{beside} and the weight {weight:?}, expected {rows} rows of {channels} and {} taps",
                        taps + 1
                    ));
                }
            }
            Self::Delta { qkv, beta, strength, gate, rate, shift, key_heads, .. } => {
                let whole = key_heads > 0 && heads % key_heads == 0;
                let width = 2 * key_heads * keys + heads * columns;
                let decays = [heads, heads * keys].into_iter().find(|&decays| fits(gate, decays));
                let small = rate.shape() == [heads] && decays.is_some_and(|decays| shift.shape() == [decays]);
                if !whole || !fits(qkv, width) || !fits(beta, heads) || !small {
                    let (qkv, beta, gate) = (qkv.shape(), beta.shape(), gate.shape());
                    return refuse(format!(
                        "q, k and v are {qkv:?}, beta {beta:?} and the gate {gate:?}, expected {rows} rows of {key_heads} \
                         heads of {keys} and {heads} of {columns}"
                    ));
                }
                if !strength.is_finite() {
                    return refuse(format!("beta is at most {strength}, expected a number"));
                }
            }
            Self::Scan { vkq, dt, rate, shift, skip, groups, limits: [least, most] } => {
                let whole = groups > 0 && heads % groups == 0;
                let width = heads * columns + 2 * groups * keys;
                let small = [rate, shift, skip].iter().all(|of| of.shape() == [heads]);
                if !whole || !fits(vkq, width) || !fits(dt, heads) || !small {
                    let (vkq, dt) = (vkq.shape(), dt.shape());
                    return refuse(format!(
                        "v, k and q are {vkq:?} and dt {dt:?}, expected {rows} rows of {heads} heads of {columns} and {groups} \
                         of {keys}"
                    ));
                }
                if least.is_nan() || most.is_nan() || least > most {
                    return refuse(format!("dt is from {least} to {most}, expected the least first"));
                }
            }
        }
        Ok(())
    }

    /// Whether the state is one whose other part comes first, and has seen the step already.
    fn follows(&self, state: &B::Recurrent) -> bool {
        let shape = state.shape();
        shape.taps > 0 && shape.heads > 0 && matches!(self, Self::Delta { .. } | Self::Scan { .. })
    }
}

impl<B: Operands> fmt::Debug for Recur<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.kind(), self.inputs())
    }
}
