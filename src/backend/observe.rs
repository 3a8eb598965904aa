//! The inputs of matrices, as the dispatch sees them go by: for importance matrices.

use smallvec::SmallVec;

use super::cpu::CpuBackend;
use super::dispatch::{LlmBackendDispatch, Op};
use super::inputs::InputSums;
use super::ops::{self, MatrixOperand, Projection, StackOperand};
use super::values::Tensor;
use crate::error::Result;
use crate::quant::Matrix;

impl LlmBackendDispatch {
    /// Adds up the inputs of linear layers and experts from here on.
    pub fn start_inputs(&self) {
        self.routing().inputs.replace(Some(InputSums::default()));
    }

    /// Ends what [`Self::start_inputs`] began: the sums since.
    pub fn take_inputs(&self) -> InputSums {
        self.routing().inputs.take().unwrap_or_default()
    }

    /// Whether inputs are added up.
    pub(super) fn is_observing(&self) -> bool {
        self.routing().inputs.borrow().is_some()
    }

    /// Adds up the inputs of an op of shapes that fit. Never inlined: every op steps over it.
    #[cold]
    pub(super) fn observe(&self, op: &Op<'_>) -> Result<()> {
        match *op {
            Op::Linear { x, projection } => self.observe_rows(x, &[projection]),
            Op::GateUp { x, gate, up, .. } => self.observe_rows(x, &[gate, up]),
            Op::Qkv { x, projections } => self.observe_rows(x, &projections),
            Op::Experts { .. } => self.observe_experts(op),
            _ => Ok(()),
        }
    }

    fn observe_rows(&self, x: &Tensor, projections: &[Projection<'_, Self>]) -> Result<()> {
        let x = self.to_host(x)?;
        let columns = x.shape().last().copied().unwrap_or(0);
        // Parts of one tensor count once.
        let mut names: SmallVec<[&str; 3]> =
            projections.iter().map(|projection| name(projection.weight.source())).collect();
        names.dedup();
        if let Some(sums) = &mut *self.routing().inputs.borrow_mut() {
            names.iter().for_each(|name| sums.add(name, columns, x.data()));
        }
        Ok(())
    }

    /// What experts are given, and what is between their projections, by the CPU's kernels.
    fn observe_experts(&self, op: &Op<'_>) -> Result<()> {
        let tensors = self.copies_on_host(&op.inputs())?;
        let op: ops::Op<'_, CpuBackend> = op.on(
            &[],
            |tensor| tensors.tensor(tensor),
            |matrix| Ok(&matrix.cpu),
            |stack| Ok(&stack.cpu),
            |vector| Ok(&vector.cpu),
        )?;
        let ops::Op::Experts { x, ids, weights, gate, up, down, gating, on_input } = op else {
            return Ok(());
        };
        let (columns, inner) = (up.weight.shape()[2], down.weight.shape()[2]);
        let mut sums = self.routing().inputs.borrow_mut();
        let Some(sums) = &mut *sums else { return Ok(()) };
        let gate_up = [gate, Some(up)];
        self.kernels().expert_inputs([x, ids, weights], on_input, gate_up, gating, |expert, given, joined| {
            let stacks = gate_up.iter().flatten().map(|of| of.weight.source());
            let mut names: SmallVec<[&str; 2]> = stacks.map(|stack| name(&stack.each()[expert])).collect();
            names.dedup();
            names.iter().for_each(|name| sums.add(name, columns, given));
            sums.add(name(&down.weight.source().each()[expert]), inner, joined);
        })
    }
}

/// The name of a matrix, or of the one that it is a part of.
fn name(matrix: &Matrix) -> &str {
    let name = match matrix {
        Matrix::Dense(weight) => weight.name(),
        Matrix::Quantized(weight) => weight.name(),
    };
    name.split_once('[').map_or(name, |(whole, _)| whole)
}
