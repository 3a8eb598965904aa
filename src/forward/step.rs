//! What a forward pass sees of a step: the ops, the batch, the caches, and the masks and rotary tables that are built
//! once and shared by all layers.

use std::borrow::BorrowMut;
use std::sync::Arc;

use smallvec::SmallVec;

use super::adapt::{Adapter, Adapters};
use crate::alloc;
use crate::backend::batch::{Batch, Mask, RopeStep, Run};
use crate::backend::ops::{Backend, Ids, KvRows, MatrixOperand, Recur};
use crate::backend::ranks::Told;
use crate::backend::rope::Frequencies;
use crate::backend::{
    LayerState, LlmBackendDispatch, Op, PreparedMatrix, PreparedVector, RecurrentState, SequenceKv, Tensor,
};
use crate::config::{Activation, Config, Rotation};
use crate::error::{Error, Result};

/// What a model keeps of one sequence between steps.
#[derive(Debug)]
pub struct SequenceState {
    /// The caches of its layers.
    pub kv: SequenceKv,
    /// Its rotary frequencies, set by the length of its prompt: those of [`Config::ropes`], in their order.
    pub frequencies: Arc<[Arc<Frequencies>]>,
    /// The tokens that the caches hold, oldest first.
    pub history: Vec<u32>,
    /// Where the tokens of a second text begin, of a pair; past all of them without one.
    pub second: usize,
    /// The adapter that it is computed with.
    pub adapter: Option<Arc<Adapter>>,
    /// The length of its prompt.
    pub prompt: usize,
    /// What other ranks know it by, once they do.
    pub told: Option<Told>,
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
    /// Whether windows are chunks.
    chunked: bool,
    /// Whether tokens see those behind them.
    bidirectional: bool,
    /// See [`Config::position_offset`].
    position_offset: usize,
    /// One for each of [`Config::ropes`].
    ropes: SmallVec<[RopeStep; 2]>,
    /// That of queries, where these are scaled by their positions.
    queries: Option<RopeStep>,
    /// What the queries of each row are multiplied by, where any is not 1.
    query_factors: Option<Vec<f32>>,
    tap: Option<Tap<'a>>,
    /// What the model made of the token before each, where the forward pass goes on with that. `[T, D]`
    carried: Option<Tensor>,
    /// Whether logits of the first tokens of the vocabulary are enough, where the forward pass can tell these apart.
    of_first: bool,
    /// Rows that have an adapter, in their order.
    pub(super) adapters: Adapters,
}

impl<'a> Step<'a> {
    /// A step of `batch` over `sequences`, which its runs index, rotated as `config` says.
    ///
    /// # Errors
    /// Where a run names no sequence, or begins past the end of its cache.
    pub fn new(
        ops: &'a LlmBackendDispatch,
        batch: &'a Batch,
        sequences: &'a mut [impl BorrowMut<SequenceState>],
        config: &Config,
    ) -> Result<Self> {
        ops.begin_step();
        let sequences: SmallVec<[&mut SequenceState; 16]> =
            sequences.iter_mut().map(BorrowMut::borrow_mut).collect();
        for run in &batch.runs {
            let held = sequences.get(run.sequence).map(|state| state.kv.len());
            if held.is_none_or(|len| run.start > len) {
                let what = format!("run {run:?} does not continue its cache of {held:?} tokens");
                return Err(Error::shape("step", what));
            }
            if config.bidirectional && run.start > 0 {
                let what = format!("run {run:?} is a part of a text, expected a whole one");
                return Err(Error::shape("step", what));
            }
        }
        let runs = |which: usize| {
            let of = |run: &Run| (run.clone(), Arc::clone(&sequences[run.sequence].frequencies[which]));
            batch.runs.iter().map(of).collect()
        };
        let ropes = config.ropes().enumerate();
        let ropes: SmallVec<[RopeStep; 2]> =
            ropes.map(|(which, rope)| RopeStep::new(rope, runs(which))).collect::<Result<_>>()?;
        let queries = match config.query_scaling {
            Some(scaling) if !scaling.unrotated => {
                let scale = |position: usize| scaling.at(position);
                Some(RopeStep::new(&config.rope, runs(0))?.scaled(batch.positions().map(scale)))
            }
            _ => None,
        };
        let query_factors = match config.query_scaling {
            Some(scaling) => {
                let mut factors = Vec::new();
                alloc::reserve(&mut factors, batch.rows(), "the positions of a step")?;
                factors.extend(batch.positions().map(|position| scaling.at(position)));
                Some(factors)
            }
            None => None,
        };
        let query_factors = query_factors.filter(|factors| factors.iter().any(|&factor| factor != 1.0));
        let chunked = config.chunked;
        Ok(Self {
            ops,
            batch,
            sequences,
            masks: Vec::new(),
            chunked,
            bidirectional: config.bidirectional,
            position_offset: config.position_offset,
            ropes,
            queries,
            query_factors,
            tap: None,
            carried: None,
            of_first: false,
            adapters: Adapters::new(),
        })
    }

    /// Calls `tap` with the activations between layers.
    pub fn with_tap(mut self, tap: Tap<'a>) -> Self {
        self.tap = Some(tap);
        self
    }

    /// Behind what the model made of the token before each: `[T, D]`.
    pub(crate) fn carrying(mut self, hidden: Tensor) -> Self {
        self.carried = Some(hidden);
        self
    }

    /// Whose logits of the first tokens of the vocabulary are enough, where `first`.
    pub(crate) fn of_first(mut self, first: bool) -> Self {
        self.of_first = first;
        self
    }

    /// Whether these are enough.
    pub(crate) fn is_of_first(&self) -> bool {
        self.of_first
    }

    /// What the model made of the token before each: `[T, D]`.
    pub(crate) fn carried(&self) -> Result<&Tensor> {
        self.carried.as_ref().ok_or_else(|| Error::shape("step", "no hidden states to go on with"))
    }

    /// With adapters, of their rows.
    pub(crate) fn with_adapters(mut self, adapters: Adapters) -> Self {
        self.adapters = adapters;
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
        let outputs = self.ops.run(op)?;
        let got = outputs.len();
        <[Tensor; N]>::try_from(outputs.into_vec())
            .map_err(|_| Error::shape(op.kind().name(), format!("{got} outputs, expected {N}")))
    }

    /// Rows of the embedding table for the step's tokens, times `scale`: `[T, D]`.
    pub(crate) fn embedding(&self, table: &PreparedMatrix, scale: f32) -> Result<Tensor> {
        self.run(&Op::Embedding { table, tokens: self.batch.tokens.ids(), scale })
    }

    /// The one row of a table, for each of the step's tokens: `[T, D]`.
    pub(crate) fn repeated(&self, table: &PreparedMatrix) -> Result<Tensor> {
        let rows = alloc::zeroed(self.batch.rows(), "the rows of a step")?;
        self.run(&Op::Embedding { table, tokens: Ids::Known(&rows), scale: 1.0 })
    }

    /// Rows of a table of positions for the step's tokens: `[T, D]`.
    pub(crate) fn position_rows(&self, table: &PreparedMatrix) -> Result<Tensor> {
        let mut positions: Vec<u32> = Vec::new();
        alloc::reserve(
            &mut positions,
            self.batch.runs.iter().map(|run| run.len).sum(),
            "the positions of a step",
        )?;
        let offset = self.position_offset;
        positions.extend(self.batch.positions().map(|position| (position + offset) as u32));
        self.run(&Op::Embedding { table, tokens: Ids::Known(&positions), scale: 1.0 })
    }

    /// Rows of a table of segments, which of two texts each of the step's tokens is of: `[T, D]`. A table of one row says nothing.
    pub(crate) fn segment_rows(&self, table: &PreparedMatrix) -> Result<Tensor> {
        let last = table.shape().first().map_or(0, |rows| rows.saturating_sub(1));
        let mut segments: Vec<u32> = Vec::new();
        alloc::reserve(&mut segments, self.batch.rows(), "the segments of a step")?;
        for run in &self.batch.runs {
            let second = self.sequences[run.sequence].second;
            let segment = |position: usize| usize::from(position >= second).min(last) as u32;
            segments.extend((run.start..run.end()).map(segment));
        }
        self.run(&Op::Embedding { table, tokens: Ids::Known(&segments), scale: 1.0 })
    }

    /// The rotary embedding of `x` `[T, H * head_dim]`.
    pub(crate) fn rope(&self, x: &Tensor, head_dim: usize, rotation: Rotation) -> Result<Tensor> {
        let rope = match rotation {
            Rotation::Local => self.ropes.get(1),
            Rotation::Global | Rotation::None => self.ropes.first(),
        };
        match rope {
            Some(rope) if rope.dims > 0 => self.run(&Op::Rope { x, head_dim, rope }),
            _ => Err(Error::shape("rope", "no dimension is rotated")),
        }
    }

    /// The same of queries, which are scaled by their positions where the model says so.
    pub(crate) fn rope_queries(&self, x: &Tensor, head_dim: usize, rotation: Rotation) -> Result<Tensor> {
        match &self.queries {
            Some(rope) => self.run(&Op::Rope { x, head_dim, rope }),
            None => self.rope(x, head_dim, rotation),
        }
    }

    /// Queries that do not rotate, scaled by their positions where the model says so.
    pub(crate) fn scale_queries(&self, x: Tensor) -> Result<Tensor> {
        match &self.query_factors {
            Some(by) => self.run(&Op::ScaleRows { x: &x, by }),
            None => Ok(x),
        }
    }

    /// Caches `rows` in layer `layer` of each run's sequence.
    pub(crate) fn kv_write(&mut self, layer: usize, rows: KvRows<'_, LlmBackendDispatch>) -> Result<()> {
        for run in &self.batch.runs {
            let state = &mut self.sequences[run.sequence];
            self.ops.write(state.kv.layer_mut(layer), rows, run)?;
        }
        Ok(())
    }

    /// A recurrence of layer `layer`, over the state of each run's sequence.
    pub(crate) fn recur(&mut self, layer: usize, op: &Recur<'_, LlmBackendDispatch>) -> Result<Tensor> {
        let states = self.sequences.iter_mut().map(|state| Some(state.kv.recurrent_mut(layer)));
        let mut states: SmallVec<[Option<&mut RecurrentState>; 16]> = states.collect();
        let own = self.batch.runs.iter().filter_map(|run| states[run.sequence].take());
        let mut own: SmallVec<[&mut RecurrentState; 16]> = own.collect();
        self.ops.recur(&mut own, op, &self.batch.runs)
    }

    /// Attention of `q` `[T, H * head_dim]` over layer `layer`, seeing at most `window` keys.
    pub(crate) fn attention(
        &mut self,
        layer: usize,
        q: &Tensor,
        window: Option<usize>,
        (scale, soft_cap): (f32, Option<f32>),
        [sinks, bias]: [Option<&PreparedVector>; 2],
    ) -> Result<Tensor> {
        let index = match self.masks.iter().position(|(of, _)| *of == window) {
            Some(index) => index,
            None => {
                let runs = &self.batch.runs;
                let mask = match window {
                    window if self.bidirectional => Mask::around(runs, window)?,
                    Some(chunk) if self.chunked => Mask::chunked(runs, chunk)?,
                    window => Mask::causal(runs, window)?,
                };
                self.masks.push((window, mask));
                self.masks.len() - 1
            }
        };
        let mask = &self.masks[index].1;
        let kv: SmallVec<[&LayerState; 16]> =
            self.batch.runs.iter().map(|run| self.sequences[run.sequence].kv.layer(layer)).collect();
        self.ops.run1(&Op::Attention { q, kv: &kv, mask, scale, soft_cap, sinks, bias })
    }

    /// `act(x)`.
    pub(crate) fn activate(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.run(&Op::Activate { x, activation })
    }

    /// `x · by`.
    pub(crate) fn scale(&self, x: &Tensor, by: f32) -> Result<Tensor> {
        self.run(&Op::Scale { x, by })
    }

    /// The same, where `by` is not 1.
    pub(crate) fn scaled(&self, x: Tensor, by: f32) -> Result<Tensor> {
        if by == 1.0 { Ok(x) } else { self.scale(&x, by) }
    }

    /// `a + b`.
    pub(crate) fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.run(&Op::Add { a, b })
    }
}
