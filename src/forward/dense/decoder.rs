//! The forward pass of a dense decoder.

use super::super::Forward;
use super::super::blocks::{Attention, Mlp, Norm, Vocabulary};
use super::super::delta::DeltaLayer;
use super::super::latent::LatentAttention;
use super::super::short_conv::ShortConvLayer;
use super::super::sparse::SparseMlp;
use super::super::step::Step;
use crate::backend::ops::StateSpec;
use crate::backend::{Op, PreparedMatrix, Tensor};
use crate::error::Result;

/// One block.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) input_norm: Option<Norm>,
    pub(super) attention: AttentionPart,
    pub(super) attention_norm: Option<Norm>,
    pub(super) mlp_norm: Option<Norm>,
    pub(super) mlp: FeedForward,
    pub(super) mlp_out_norm: Option<Norm>,
}

/// The attention of a block.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one value a layer, which is never moved")]
pub(super) enum AttentionPart {
    Grouped(Attention),
    Latent(Box<LatentAttention>),
    Delta(Box<DeltaLayer>),
    Conv(Box<ShortConvLayer>),
}

impl AttentionPart {
    /// `[T, D]` → `[T, D]`.
    fn forward(&self, step: &mut Step<'_>, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Grouped(attention) => attention.forward(step, x),
            Self::Latent(attention) => attention.forward(step, x),
            Self::Delta(net) => net.forward(step, x),
            Self::Conv(conv) => conv.forward(step, x),
        }
    }
}

/// The feed-forward part of a block.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one value a layer, which is never moved")]
pub(super) enum FeedForward {
    Dense(Mlp),
    Sparse(Box<SparseMlp>),
}

impl FeedForward {
    /// `[T, D]` → `[T, D]`.
    fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(mlp) => mlp.forward(step, x),
            Self::Sparse(experts) => experts.forward(step, x),
        }
    }
}

/// The forward pass of a dense decoder.
#[derive(Debug)]
pub(super) struct Decoder {
    pub(super) states: Vec<StateSpec>,
    pub(super) vocabulary: Vocabulary,
    pub(super) embed_norm: Option<Norm>,
    pub(super) positions: Option<PreparedMatrix>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    pub(super) parallel: bool,
    pub(super) residual: f32,
    /// Whether both parallel parts are summed over the ranks, together.
    pub(super) summed: bool,
}

impl Decoder {
    /// What a part adds to the residual stream.
    fn part(&self, step: &Step<'_>, part: Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        let part = match norm {
            Some(norm) => norm.forward(step, &part)?,
            None => part,
        };
        if self.residual == 1.0 { Ok(part) } else { step.scale(&part, self.residual) }
    }

    /// The residual stream `[T, D]` through all layers and the last norm.
    pub(super) fn through(&self, step: &mut Step<'_>, mut x: Tensor) -> Result<Tensor> {
        // What the next part reads, where that is a norm of `x`.
        let first = self.layers.first().map_or(Some(&self.norm), |first| first.input_norm.as_ref());
        let mut h = first.map(|norm| norm.forward(step, &x)).transpose()?;
        for (i, layer) in self.layers.iter().enumerate() {
            let attended = layer.attention.forward(step, h.as_ref().unwrap_or(&x))?;
            let attended = self.part(step, attended, layer.attention_norm.as_ref())?;
            let next = match self.layers.get(i + 1) {
                Some(next) => next.input_norm.as_ref(),
                None => Some(&self.norm),
            };
            if self.parallel {
                let own = layer.mlp_norm.as_ref().map(|norm| norm.forward(step, &x)).transpose()?;
                let fed = layer.mlp.forward(step, own.as_ref().or(h.as_ref()).unwrap_or(&x))?;
                let fed = self.part(step, fed, layer.mlp_out_norm.as_ref())?;
                let mut both = step.add(&attended, &fed)?;
                if self.summed {
                    both = step.run(&Op::AllSum { x: &both })?;
                }
                (x, h) = Norm::add_forward(next, step, &both, &x)?;
            } else {
                (x, h) = Norm::add_forward(layer.mlp_norm.as_ref(), step, &x, &attended)?;
                let fed = layer.mlp.forward(step, h.as_ref().unwrap_or(&x))?;
                let fed = self.part(step, fed, layer.mlp_out_norm.as_ref())?;
                (x, h) = Norm::add_forward(next, step, &x, &fed)?;
            }
            step.tap(|| format!("layers.{i}"), &x)?;
        }
        Ok(h.unwrap_or(x))
    }
}

impl Forward for Decoder {
    fn states(&self) -> Vec<StateSpec> {
        self.states.clone()
    }

    fn hidden(&self, step: &mut Step<'_>) -> Result<Tensor> {
        let mut x = self.vocabulary.embed(step)?; // [T, D]
        if let Some(norm) = &self.embed_norm {
            x = norm.forward(step, &x)?;
        }
        if let Some(positions) = &self.positions {
            x = step.add(&x, &step.position_rows(positions)?)?;
        }
        step.tap(|| "embed_tokens".to_owned(), &x)?;
        self.through(step, x)
    }

    fn logits(&self, step: &Step<'_>, hidden: &Tensor) -> Result<Tensor> {
        self.vocabulary.logits(step, hidden)
    }

    fn vocabulary(&self) -> Option<&Vocabulary> {
        Some(&self.vocabulary)
    }
}
