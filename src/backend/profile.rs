//! Time per op, while someone asks for it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::batch::Tokens;
use super::kv::KvLayer;
use super::ops::{Op, OpKind, Projection};
use crate::quant::MatrixRef;
use crate::tensor::Tensor;

/// The calls of one op on matrices of one format and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpTime {
    /// The op.
    pub op: OpKind,
    /// Its matrices, `bf16 8192x2048`; empty for an op without one.
    pub matrix: String,
    /// How often it ran.
    pub calls: u64,
    /// Wall-clock time of all calls.
    pub time: Duration,
    /// Bytes that the calls move at least: matrices, and keys and values, as they are stored, each once a call; of ops
    /// without these, the activations that go in and out.
    pub bytes: u64,
    /// Multiplications and additions of matrices and of attention, two for each weight or key or value element and row.
    pub operations: u64,
}

/// What the dispatch collects.
#[derive(Debug, Default)]
pub(super) struct Profile(BTreeMap<(OpKind, String), OpTime>);

impl Profile {
    pub(super) fn add(&mut self, op: OpKind, work: Work, time: Duration) {
        let Work { matrix, bytes, operations } = work;
        let entry = self.0.entry((op, matrix)).or_insert_with_key(|(op, matrix)| OpTime {
            op: *op,
            matrix: matrix.clone(),
            calls: 0,
            time: Duration::ZERO,
            bytes: 0,
            operations: 0,
        });
        entry.calls += 1;
        entry.time += time;
        entry.bytes += bytes;
        entry.operations += operations;
    }

    /// The ops, those that took longest first.
    pub(super) fn into_times(self) -> Vec<OpTime> {
        let mut times: Vec<OpTime> = self.0.into_values().collect();
        times.sort_by_key(|of| std::cmp::Reverse(of.time));
        times
    }
}

/// What one call has to do.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) matrix: String,
    pub(super) bytes: u64,
    pub(super) operations: u64,
}

impl Work {
    /// The work of an op that [`Op::check`] accepts.
    pub(super) fn of(op: &Op<'_>) -> Self {
        match *op {
            Op::Linear { x, projection } => Self::projections(x, &[projection]),
            Op::GateUp { x, gate, up, .. } => Self::projections(x, &[gate, up]),
            Op::Qkv { x, projections } => Self::projections(x, &projections),
            Op::Embedding { table, tokens, .. } => {
                let rows = match tokens {
                    Tokens::Known(ids) => ids.len(),
                    Tokens::Pending(ids) => elements(ids),
                };
                let height = table.shape()[0].max(1);
                let bytes = (matrix_bytes(table) * rows / height) as u64;
                Self { matrix: label(table), bytes, operations: 0 }
            }
            Op::Attention { q, kv, mask, .. } => {
                let keys: usize = mask.visible.iter().map(|keys| keys.len()).sum();
                let width = q.shape()[1];
                let bytes = (mask.runs.iter().zip(kv)).map(|(run, layer)| {
                    let visible = &mask.visible[run.rows()];
                    let first = visible.iter().map(|keys| keys.start).min().unwrap_or(0);
                    (run.end() - first) * layer.shape().token_bytes()
                });
                let bytes = bytes.sum::<usize>() as u64;
                // A product with each key, and one with each value.
                Self { matrix: String::new(), bytes, operations: (4 * keys * width) as u64 }
            }
            _ => {
                let read = op.inputs().into_iter().map(elements).sum::<usize>();
                let shapes = op.output_shapes();
                let written = shapes.iter().map(|shape| shape.iter().product::<usize>()).sum::<usize>();
                let bytes = size_of::<f32>() * (read + written);
                Self { matrix: String::new(), bytes: bytes as u64, operations: 0 }
            }
        }
    }

    /// The work of caching `rows` rows of keys and of values.
    pub(super) fn kv_write(layer: &KvLayer, rows: usize) -> Self {
        let shape = layer.shape();
        let read = 2 * shape.heads * shape.head_dim * size_of::<f32>();
        let bytes = (rows * (read + shape.token_bytes())) as u64;
        Self { matrix: String::new(), bytes, operations: 0 }
    }

    /// Products of `x` with several matrices, named by the first format and all heights.
    fn projections(x: &Tensor, projections: &[Projection<'_>]) -> Self {
        let rows = x.shape()[0];
        let matrices = projections.iter().map(|projection| projection.weight);
        let elements: usize = matrices.clone().map(|matrix| matrix.shape().iter().product::<usize>()).sum();
        let mut labels: Vec<String> = matrices.clone().map(label).collect();
        labels.dedup();
        Self {
            matrix: labels.join(" + "),
            bytes: matrices.map(matrix_bytes).sum::<usize>() as u64,
            operations: (2 * rows * elements) as u64,
        }
    }
}

fn elements(tensor: &Tensor) -> usize {
    tensor.shape().iter().product()
}

fn matrix_bytes(matrix: MatrixRef<'_>) -> usize {
    match matrix {
        MatrixRef::Dense(weight) => weight.bytes().len(),
        MatrixRef::Quantized(weight) => weight.len_bytes(),
    }
}

fn label(matrix: MatrixRef<'_>) -> String {
    let shape: Vec<String> = matrix.shape().iter().map(ToString::to_string).collect();
    let shape = shape.join("x");
    match matrix {
        MatrixRef::Dense(weight) => format!("{} {shape}", weight.dtype()),
        MatrixRef::Quantized(weight) => format!("{} {shape}", weight.format()),
    }
}
