//! The fused ops by their plain parts.

use smallvec::smallvec;

use super::{Backend, Op, Outputs};
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
