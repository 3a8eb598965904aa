//! The fused ops by their plain parts.

use smallvec::smallvec;

use super::{Backend, Ids, Op, Outputs, Projection, TensorOperand};
use crate::alloc;
use crate::error::{Error, Result};

/// A fused op by its plain parts: the specification of what a fused kernel computes.
///
/// # Errors
/// As the parts; a plain op has none and is an [`Error::Op`].
pub fn compose<B: Backend>(ops: &B, op: &Op<'_, B>) -> Result<Outputs<B>> {
    match *op {
        Op::GateUp { x, gate, up, activation } => {
            let gate = ops.run1(&Op::Linear { x, projection: gate })?;
            let gate = ops.run1(&Op::Activate { x: &gate, activation })?;
            let up = ops.run1(&Op::Linear { x, projection: up })?;
            ops.run(&Op::Mul { a: &gate, b: &up })
        }
        Op::AddRmsNorm { a, b, weight, eps, offset } => {
            let sum = ops.run1(&Op::Add { a, b })?;
            let normed = ops.run1(&Op::RmsNorm { x: &sum, weight, eps, offset })?;
            Ok(smallvec![sum, normed])
        }
        Op::Adapt { x, into, rows, low, high, scale, columns } => {
            let all = x.shape().first().copied().unwrap_or(0);
            let projection = Projection { weight: low, bias: None };
            let low = if *rows == (0..all) {
                ops.run1(&Op::Linear { x, projection })?
            } else {
                // Rows of others are zeros from the beginning: what might overflow of theirs stays 0.
                let mut by: Vec<f32> = alloc::zeroed(all, "the rows of an adapter")?;
                by[rows.clone()].fill(1.0);
                ops.run1(&Op::Linear { x: &ops.run1(&Op::ScaleRows { x, by: &by })?, projection })?
            };
            let low = ops.run1(&Op::Scale { x: &low, by: scale })?;
            let more =
                ops.run1(&Op::Linear { x: &low, projection: Projection { weight: high, bias: None } })?;
            let Some([by, plus]) = columns else { return ops.run(&Op::Add { a: into, b: &more }) };
            let mut ids: Vec<u32> = alloc::zeroed(all, "the rows of an adapter")?;
            ids[rows.clone()].fill(1);
            let row = |table| ops.run1(&Op::Embedding { table, tokens: Ids::Known(&ids), scale: 1.0 });
            let sum = ops.run1(&Op::Add { a: into, b: &more })?;
            let scaled = ops.run1(&Op::Mul { a: &sum, b: &row(by)? })?;
            ops.run(&Op::Add { a: &scaled, b: &row(plus)? })
        }
        Op::Qkv { x, projections } => projections
            .into_iter()
            .map(|projection| ops.run1(&Op::Linear { x, projection }))
            .collect::<Result<Outputs<B>>>(),
        _ => Err(Error::Op {
            op: op.kind().name(),
            backend: "composition",
            reason: "a plain op has no parts".into(),
        }),
    }
}
