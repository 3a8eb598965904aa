//! Experts: which of them a router's scores choose, and their feed-forward parts.

use super::Operands;
use crate::config::Activation;
use crate::error::{Error, Result};

/// What becomes of a router's logits before experts are chosen by them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scores {
    /// The softmax over all experts.
    Softmax,
    /// The logits choose, and the weights are the softmax over those that are chosen.
    SoftmaxOfChosen,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// The logits choose, and the weights are `1 / (1 + exp(-x))` of those that are chosen.
    SigmoidOfChosen,
    /// The logits choose. The weight of each that is chosen, with logit `m`, is its share of the softmax over the logits `x` of those that
    /// were not chosen before it and are not far: `(m - x) / max(|x|, m) > near`. Liu et al. 2024, "GRIN: GRadient-INformed MoE",
    /// section 2.2.
    SparseMixer {
        /// Twice the noise that the router was trained with.
        near: f32,
    },
    /// `√ log(1 + exp(x))`.
    SqrtSoftplus,
}

/// Groups that experts, of equal number in each, are chosen from: the best `used` of `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Groups.
    pub count: usize,
    /// Those that experts may come from.
    pub used: usize,
    /// How many of a group's best scores are summed to rate it: 1 or 2.
    pub best: usize,
}

/// How a router's logits become experts and their weights. All in `f32`; of equal scores, the lower id wins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Router {
    /// What becomes of the logits.
    pub scores: Scores,
    /// Experts of each token, from 1 to all.
    pub used: usize,
    /// Groups, where there are any.
    pub groups: Option<ExpertGroups>,
    /// Whether the weights are divided by their sum, and what is added to that.
    pub normalise: Option<f32>,
    /// Multiplies the weights at last.
    pub scale: f32,
}

/// The function of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateKind {
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `log(1 + exp(x))`.
    Softplus,
}

/// What joins the gate and the rest of an expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gating {
    /// `act(gate) ∘ up`.
    Plain(Activation),
    /// `g · sigmoid(alpha · g) · (u + 1)`, with `g = min(gate, limit)` and `u` the part that is up within `±limit`.
    Clamped {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// The largest gate, and magnitude of the rest.
        limit: f32,
    },
}

impl Gating {
    /// The activation of what has no gate.
    ///
    /// # Errors
    /// [`Error::Shape`] where it joins two.
    pub fn alone(self) -> Result<Activation> {
        match self {
            Self::Plain(activation) => Ok(activation),
            Self::Clamped { .. } => Err(Error::shape("experts", "clamps without a gate")),
        }
    }
}

/// The projections of all experts: matrices `[E, N, K]`, and biases `[E, N]` where there are any.
pub struct ExpertProjection<'a, B: Operands> {
    /// `[E, N, K]`.
    pub weight: &'a B::Stack,
    /// `[E, N]`.
    pub bias: Option<&'a B::Vector>,
}

impl<B: Operands> Clone for ExpertProjection<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Operands> Copy for ExpertProjection<'_, B> {}
