//! Time per op, while someone asks for it.

use std::collections::BTreeMap;
use std::time::Duration;

use smallvec::SmallVec;

use super::kv::KvShape;
use super::ops::{Backend, MatrixOperand, Op, OpKind, Projection, StackOperand, State, TensorOperand};
use crate::quant::Matrix;

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
    pub(super) fn add(&mut self, op: OpKind, work: OpWork, time: Duration) {
        let OpWork { matrix, bytes, operations } = work;
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
pub(super) struct OpWork {
    pub(super) matrix: String,
    pub(super) bytes: u64,
    pub(super) operations: u64,
}

impl OpWork {
    /// The work of an op that [`Op::check`] accepts.
    pub(super) fn of<B: Backend>(op: &Op<'_, B>) -> Self {
        match *op {
            Op::Linear { x, projection } => Self::projections::<B>(x, &[projection]),
            Op::GateUp { x, gate, up, .. } => Self::projections::<B>(x, &[gate, up]),
            Op::Qkv { x, projections } => Self::projections::<B>(x, &projections),
            Op::Adapt { rows, low, high, .. } => Self {
                matrix: label(low.source()),
                bytes: (matrix_bytes(low.source()) + matrix_bytes(high.source())) as u64,
                operations: [low, high]
                    .map(|of| of.shape().iter().product::<usize>() * 2 * rows.len())
                    .iter()
                    .sum::<usize>() as u64,
            },
            Op::Experts { ids, gate, up, down, .. } => {
                let rows = ids.shape().iter().product::<usize>();
                let stacks = gate.iter().chain([&up, &down]).map(|projection| projection.weight.source());
                let [experts, ..] = up.weight.shape();
                // Each row of another expert, as far as there are that many: most that can be touched.
                let touched = rows.min(experts);
                let bytes = |matrix| touched * matrix_bytes(matrix);
                let elements = |matrix: &Matrix| matrix.as_ref().shape().iter().product::<usize>();
                let each: SmallVec<[&Matrix; 3]> = stacks.map(|stack| &stack.each()[0]).collect();
                let mut labels: Vec<String> = each.iter().map(|matrix| label(matrix)).collect();
                labels.dedup();
                Self {
                    matrix: format!("{experts} of {}", labels.join(" + ")),
                    bytes: each.iter().map(|matrix| bytes(matrix)).sum::<usize>() as u64,
                    operations: each.iter().map(|matrix| 2 * rows * elements(matrix)).sum::<usize>() as u64,
                }
            }
            Op::HeadLinear { x, weight, .. } => {
                let [heads, n, k] = weight.shape();
                let first = &weight.source().each()[0];
                Self {
                    matrix: format!("{heads} of {}", label(first)),
                    bytes: (heads * matrix_bytes(first)) as u64,
                    operations: (2 * x.shape()[0] * heads * n * k) as u64,
                }
            }
            Op::Embedding { table, tokens, .. } => {
                let rows = tokens.len();
                let height = table.shape()[0].max(1);
                let bytes = (matrix_bytes(table.source()) * rows / height) as u64;
                Self { matrix: label(table.source()), bytes, operations: 0 }
            }
            Op::Attention { q, kv, mask, .. } => {
                let keys: usize = mask.visible.iter().map(|keys| keys.len()).sum();
                let width = q.shape()[1] + op.output_shapes()[0][1];
                let bytes = (mask.runs.iter().zip(kv)).map(|(run, layer)| {
                    let visible = &mask.visible[run.rows()];
                    let first = visible.iter().map(|keys| keys.start).min().unwrap_or(0);
                    (run.end() - first) * layer.shape().token_bytes()
                });
                let bytes = bytes.sum::<usize>() as u64;
                // A product with each key, and one with each value.
                Self { matrix: String::new(), bytes, operations: (2 * keys * width) as u64 }
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
    pub(super) fn kv_write(shape: &KvShape, rows: usize) -> Self {
        let read = shape.widths().iter().sum::<usize>() * size_of::<f32>();
        let bytes = (rows * (read + shape.token_bytes())) as u64;
        Self { matrix: String::new(), bytes, operations: 0 }
    }

    /// Products of `x` with several matrices, named by the first format and all heights.
    fn projections<B: Backend>(x: &B::Tensor, projections: &[Projection<'_, B>]) -> Self {
        let rows = x.shape()[0];
        let matrices = projections.iter().map(|projection| projection.weight.source());
        let elements: usize =
            matrices.clone().map(|matrix| matrix.as_ref().shape().iter().product::<usize>()).sum();
        let mut labels: Vec<String> = matrices.clone().map(label).collect();
        labels.dedup();
        Self {
            matrix: labels.join(" + "),
            bytes: matrices.map(matrix_bytes).sum::<usize>() as u64,
            operations: (2 * rows * elements) as u64,
        }
    }
}

fn elements(tensor: &impl TensorOperand) -> usize {
    tensor.shape().iter().product()
}

fn matrix_bytes(matrix: &Matrix) -> usize {
    match matrix {
        Matrix::Dense(weight) => weight.bytes().len(),
        Matrix::Quantized(weight) => weight.len_bytes(),
    }
}

fn label(matrix: &Matrix) -> String {
    let shape: Vec<String> = matrix.as_ref().shape().iter().map(ToString::to_string).collect();
    let shape = shape.join("x");
    match matrix {
        Matrix::Dense(weight) => format!("{} {shape}", weight.dtype()),
        Matrix::Quantized(weight) => format!("{} {shape}", weight.format()),
    }
}
