//! What a backend is.

use smallvec::SmallVec;

use super::write::KvRows;
use super::{Op, OpKind, Operands, Recur, RecurrentShape, Run};
use crate::backend::kv::KvShape;
use crate::error::{Error, Result};
use crate::quant::{Matrix, Stack};
use crate::tensor::{HostTensor, Weight};

/// The results of an op: one for plain ops, which are moved about a lot, up to three for fused ones.
pub type Outputs<B> = SmallVec<[<B as Operands>::Tensor; 1]>;

/// The op name of an evaluation that failed: [`Error::Op`] of this name asks for the step to be replayed, and never for the
/// fallback of one op.
pub const EVAL: &str = "eval";

/// What computes ops: a backend, or the dispatch over them. One thread owns it.
pub trait Backend: Operands {
    /// The device and what runs on it, for the summary: `cpu (avx512, 2 threads)`.
    fn describe(&self) -> String;

    /// Prepares a matrix. What costs time or memory may wait for its first use, or for [`Self::ready`].
    fn matrix(&self, matrix: &Matrix) -> Self::Matrix;

    /// Prepares the matrices of a layer's experts, each of which may wait until a row goes to it.
    fn stack(&self, stack: &Stack) -> Self::Stack;

    /// Prepares a norm's weight or a bias.
    fn vector(&self, weight: &Weight) -> Self::Vector;

    /// Does now what the first product with a matrix would wait for.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn ready(&self, _matrix: &Self::Matrix) -> Result<()> {
        Ok(())
    }

    /// Whether a fused op is one kernel here; else it is [composed](super::compose()).
    fn fuses(&self, op: OpKind) -> bool;

    /// Whether the backend can run an op, said before it is tried.
    ///
    /// # Errors
    /// [`Error::Op`] with what it cannot do.
    fn supports(&self, op: &Op<'_, Self>) -> Result<()>;

    /// Runs one op that [`Op::check`] accepts, and returns its outputs in the order of its documentation.
    ///
    /// # Errors
    /// Whatever kept the backend from computing it.
    fn run(&self, op: &Op<'_, Self>) -> Result<Outputs<Self>>;

    /// Runs an op with one output.
    ///
    /// # Errors
    /// As [`Self::run`], and an op with another number of outputs.
    fn run1(&self, op: &Op<'_, Self>) -> Result<Self::Tensor> {
        let mut outputs = self.run(op)?;
        match (outputs.pop(), outputs.len()) {
            (Some(output), 0) => Ok(output),
            (last, before) => {
                let count = before + usize::from(last.is_some());
                Err(Error::shape(op.kind().name(), format!("{count} outputs, expected 1")))
            }
        }
    }

    /// Starts a step: what was derived from the last step's masks and tables is dropped.
    fn begin_step(&self) {}

    /// A state of `shape` that has seen nothing, and of which tokens see the last `window`.
    fn state(&self, shape: &KvShape, window: Option<usize>) -> Self::State;

    /// Writes a run's keys and values, of shapes that [`KvRows::check`] accepts, into a layer's state.
    ///
    /// # Errors
    /// Whatever kept the backend from writing them; the state then holds what it held.
    fn write(&self, state: &mut Self::State, rows: KvRows<'_, Self>, run: &Run) -> Result<()>;

    /// A state of a recurrent layer that has seen nothing.
    fn recurrent(&self, shape: &RecurrentShape) -> Self::Recurrent;

    /// Runs a recurrence, of shapes that [`Recur::check`] accepts, over all runs of a step, each with its state, and returns what their
    /// rows get. States go back to where their runs begin first, where they are one step further.
    ///
    /// # Errors
    /// Whatever kept the backend from computing it; the states then hold what they held.
    fn recur(
        &self,
        states: &mut [&mut Self::Recurrent],
        op: &Recur<'_, Self>,
        runs: &[Run],
    ) -> Result<Self::Tensor>;

    /// Runs what a step leaves lazy, once: its results and the states that it wrote. Without `wait`, returns once that has
    /// begun. Nothing where ops are computed at once.
    ///
    /// # Errors
    /// [`Error::Op`] of [`EVAL`]; without `wait` it may also come when a result is read.
    fn evaluate(
        &self,
        results: &[&Self::Tensor],
        states: &[&Self::State],
        recurrent: &[&Self::Recurrent],
        wait: bool,
    ) -> Result<()>;

    /// The values of a tensor where ops take them, floats rounded to the type of activations (to nearest even).
    ///
    /// # Errors
    /// Where the backend cannot hold the shape.
    fn to_backend(&self, tensor: HostTensor) -> Result<Self::Tensor>;

    /// A copy of a tensor in host memory, evaluated where it was still lazy; floats as `f32`, ids as they are.
    ///
    /// # Errors
    /// An evaluation that failed, as [`Error::Op`] of [`EVAL`].
    fn to_host(&self, tensor: &Self::Tensor) -> Result<HostTensor>;
}
