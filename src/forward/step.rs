//! What a forward pass sees of a step: the ops, the batch, the caches, and the masks and rotary tables that are built
//! once and shared by all layers.

use std::borrow::BorrowMut;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::backend::LlmBackendDispatch;
use crate::backend::batch::{Batch, Mask, RopeStep};
use crate::backend::kv::{KvLayer, KvRows, SequenceKv};
use crate::backend::ops::{Op, Ops, Outputs};
use crate::backend::rope::Frequencies;
use crate::config::{Activation, Rope};
use crate::error::{Error, Result};
use crate::quant::MatrixRef;
use crate::tensor::Tensor;

/// What a model keeps of one sequence between steps.
#[derive(Debug)]
pub struct SequenceState {
    /// The caches of its layers.
    pub kv: SequenceKv,
    /// Its rotary frequencies, set by the length of its prompt.
    pub frequencies: Arc<Frequencies>,
    /// The tokens that the caches hold, oldest first.
    pub history: Vec<u32>,
}

/// Called with the name and the value of each activation that a layer hands on: `layers.3`, `[T, D]`.
pub type Tap<'a> = &'a mut dyn FnMut(&str, &Tensor) -> Result<()>;

/// One step of a forward pass.
pub struct Step<'a> {
    /// Where ops run.
    pub ops: &'a LlmBackendDispatch,
    /// The step's tokens and runs.
    pub batch: &'a Batch,
    sequences: SmallVec<[&'a mut SequenceState; 16]>,
    masks: Vec<(Option<usize>, Mask)>,
    rope: RopeStep,
    tap: Option<Tap<'a>>,
}

impl<'a> Step<'a> {
    /// A step of `batch` over `sequences`, which its runs index, rotated by `rope`.
    ///
    /// # Errors
    /// Where a run names no sequence, or begins past the end of its cache.
    pub fn new(
        ops: &'a LlmBackendDispatch,
        batch: &'a Batch,
        sequences: &'a mut [impl BorrowMut<SequenceState>],
        rope: &Rope,
    ) -> Result<Self> {
        ops.begin_step();
        let sequences: SmallVec<[&mut SequenceState; 16]> =
            sequences.iter_mut().map(BorrowMut::borrow_mut).collect();
        let mut rope_runs = Vec::with_capacity(batch.runs.len());
        for run in &batch.runs {
            let held = sequences.get(run.sequence).map(|state| (state.kv.len(), &state.frequencies));
            match held {
                Some((len, frequencies)) if run.start <= len => {
                    rope_runs.push((run.clone(), Arc::clone(frequencies)));
                }
                held => {
                    let held = held.map(|(len, _)| len);
                    let what = format!("run {run:?} does not continue its cache of {held:?} tokens");
                    return Err(Error::shape("step", what));
                }
            }
        }
        let rope = RopeStep::new(rope, rope_runs);
        Ok(Self { ops, batch, sequences, masks: Vec::new(), rope, tap: None })
    }

    /// Calls `tap` with the activations between layers.
    pub fn with_tap(mut self, tap: Tap<'a>) -> Self {
        self.tap = Some(tap);
        self
    }

    /// Hands an activation to the tap, if there is one.
    pub(crate) fn tap(&mut self, name: impl FnOnce() -> String, value: &Tensor) -> Result<()> {
        self.tap.as_mut().map_or(Ok(()), |tap| tap(&name(), value))
    }

    /// Runs an op with one output.
    pub(crate) fn run(&self, op: &Op<'_>) -> Result<Tensor> {
        self.ops.run1(op)
    }

    /// Runs an op with several outputs.
    pub(crate) fn run_all<const N: usize>(&self, op: &Op<'_>) -> Result<[Tensor; N]> {
        let outputs: Outputs = self.ops.run(op)?;
        let got = outputs.len();
        <[Tensor; N]>::try_from(outputs.into_vec())
            .map_err(|_| Error::shape(op.kind().name(), format!("{got} outputs, expected {N}")))
    }

    /// Rows of the embedding table for the step's tokens, times `scale`: `[T, D]`.
    pub(crate) fn embedding(&self, table: MatrixRef<'_>, scale: f32) -> Result<Tensor> {
        self.run(&Op::Embedding { table, tokens: &self.batch.tokens, scale })
    }

    /// The rotary embedding of `x` `[T, H * head_dim]`.
    pub(crate) fn rope(&self, x: &Tensor, head_dim: usize) -> Result<Tensor> {
        if self.rope.dims == 0 {
            return Err(Error::shape("rope", "no dimension is rotated"));
        }
        self.run(&Op::Rope { x, head_dim, rope: &self.rope })
    }

    /// Caches `rows` in layer `layer` of each run's sequence.
    pub(crate) fn kv_write(&mut self, layer: usize, rows: KvRows<'_>) -> Result<()> {
        for run in &self.batch.runs {
            let state = &mut self.sequences[run.sequence];
            self.ops.kv_write(&mut state.kv.layers[layer], rows, run)?;
        }
        Ok(())
    }

    /// Attention of `q` `[T, H * head_dim]` over layer `layer`, seeing at most `window` keys.
    pub(crate) fn attention(
        &mut self,
        layer: usize,
        q: &Tensor,
        window: Option<usize>,
        scale: f32,
        soft_cap: Option<f32>,
    ) -> Result<Tensor> {
        let index = match self.masks.iter().position(|(of, _)| *of == window) {
            Some(index) => index,
            None => {
                self.masks.push((window, Mask::causal(&self.batch.runs, window)));
                self.masks.len() - 1
            }
        };
        let mask = &self.masks[index].1;
        let kv: SmallVec<[&KvLayer; 4]> =
            self.batch.runs.iter().map(|run| &self.sequences[run.sequence].kv.layers[layer]).collect();
        self.ops.run1(&Op::Attention { q, kv: &kv, mask, scale, soft_cap })
    }

    /// `act(x)`.
    pub(crate) fn activate(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.run(&Op::Activate { x, activation })
    }

    /// `a + b`.
    pub(crate) fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.run(&Op::Add { a, b })
    }
}
