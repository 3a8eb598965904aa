//! Forward passes: one short file per `model_type`, built of the blocks, and the registry, a line per family.

pub mod blocks;
mod gemma2;
mod llama;
mod mistral;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
pub mod step;

use std::cell::RefCell;

use crate::backend::{LlmBackendDispatch, PreparedMatrix, Tensor};
use crate::config::{Config, Family};
use crate::error::Result;
use crate::quant::Matrix;
use crate::tensor::Weight;
use crate::weights::{Checkpoint, quantized};
use step::Step;

/// A loaded model's forward pass.
pub trait Forward: std::fmt::Debug {
    /// The step's tokens → hidden states `[T, D]`, the last norm applied; the caches hold the step's keys and values.
    ///
    /// # Errors
    /// Those of the ops.
    fn hidden(&self, step: &mut Step<'_>) -> Result<Tensor>;

    /// Hidden states → logits `[S, V]` of the rows that the batch asks for.
    ///
    /// # Errors
    /// Those of the ops.
    fn logits(&self, step: &Step<'_>, hidden: &Tensor) -> Result<Tensor>;
}

/// The registry: builds the forward pass of a checkpoint, its weights prepared for `ops`.
///
/// # Errors
/// A weight that is missing or does not have the configured shape.
pub fn load(config: &Config, checkpoint: &Checkpoint, ops: &LlmBackendDispatch) -> Result<Loaded> {
    let loader = Loader { config, ops, checkpoint, linears: RefCell::default() };
    let forward = match config.family {
        Family::Llama => llama::load(&loader),
        Family::Mistral => mistral::load(&loader),
        Family::Qwen2 => qwen2::load(&loader),
        Family::Qwen3 => qwen3::load(&loader),
        Family::Phi => phi::load(&loader),
        Family::Phi3 => phi3::load(&loader),
        Family::Gemma2 => gemma2::load(&loader),
    }?;
    Ok(Loaded { forward, linears: loader.linears.into_inner() })
}

/// A forward pass, and the matrices of its linear layers, which a backend may want to ready.
#[derive(Debug)]
pub struct Loaded {
    /// The forward pass.
    pub forward: Box<dyn Forward>,
    /// Every matrix that it multiplies by, in the order of the layers.
    pub linears: Vec<PreparedMatrix>,
}

/// What blocks load themselves from.
pub struct Loader<'a> {
    /// The model's configuration.
    pub config: &'a Config,
    /// Where the model will run: it prepares each weight, once.
    pub ops: &'a LlmBackendDispatch,
    checkpoint: &'a Checkpoint,
    linears: RefCell<Vec<PreparedMatrix>>,
}

impl Loader<'_> {
    /// The weight `name` of exactly this shape.
    fn get(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        self.checkpoint.get(name, shape)
    }

    /// The matrix of the module `name`, of exactly this shape, in the format that the checkpoint has it in.
    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        if let Some(quantization) = &self.config.quantization
            && let Some(matrix) = quantized::matrix(self.checkpoint, quantization, name, shape)?
        {
            return Ok(Matrix::Quantized(matrix));
        }
        self.checkpoint.matrix(name, shape)
    }

    /// The weight `name` of exactly this shape, or nothing where the checkpoint does not have it.
    fn optional(&self, name: &str, shape: &[usize]) -> Result<Option<Weight>> {
        self.checkpoint.find(name).is_some().then(|| self.get(name, shape)).transpose()
    }

    /// Loads every layer.
    fn layers<L>(&self, load: impl Fn(&Self, usize, &str) -> Result<L>) -> Result<Vec<L>> {
        (0..self.config.num_hidden_layers)
            .map(|layer| load(self, layer, &format!("model.layers.{layer}")))
            .collect()
    }
}
