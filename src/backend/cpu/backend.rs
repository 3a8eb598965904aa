//! The ops on the CPU kernels: takes buffers, and calls the kernel of each op.

use std::cell::{RefCell, RefMut};
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::isa::Isa;
use super::kernels::attention::{Attention, AttentionRun, AttentionScratch, attention};
use super::kernels::pointwise::{Binary, Unary};
use super::kernels::quant::{self, ActivationScratch, Activations, PackedMatrix, QuantProjection, Rows};
use super::kernels::{matmul, norm, pointwise, rope, route};
use super::operands::{CpuMatrix, CpuStack, CpuVector, Readable};
use super::pool::{Pool, Scratch};
use crate::alloc;
use crate::backend::kv::{HostKv, KvShape};
use crate::backend::ops::{
    Backend, GateKind, Ids, KvRows, MatrixOperand, Op, OpKind, Operands, Outputs, Projection, Run,
    VectorOperand,
};
use crate::backend::ops::{Recur, RecurrentShape};
use crate::backend::recurrent::HostRecurrent;
use crate::config::Activation;
use crate::error::{Error, Result};
use crate::quant::{Matrix, Stack};
use crate::tensor::{Buffer, BufferPool, HostTensor, Weight};

/// The CPU kernels with their threads. One engine thread owns it.
pub struct CpuBackend {
    pool: Arc<Pool>,
    isa: Isa,
    buffers: BufferPool,
    scratch: RefCell<Scratch>,
    attention: RefCell<AttentionScratch>,
    activations: Activations,
    rounded: RefCell<ActivationScratch>,
}

/// A product of rows with a matrix: the matrix `[N, K]`, a bias `[N]`, and where the result `[T, N]` goes.
pub(super) struct OneProduct<'a> {
    pub weight: &'a CpuMatrix,
    pub bias: Option<&'a [f32]>,
    pub out: &'a mut [f32],
}

impl CpuBackend {
    /// Kernels of `isa` (the best one where absent) on `threads` threads (one per core where absent).
    pub fn new(threads: Option<usize>, isa: Option<Isa>) -> Self {
        Self::on(Arc::new(threads.map_or_else(Pool::per_core, Pool::new)), isa)
    }

    /// Kernels of `isa` (the best one where absent) on threads that others may have, too: a region at a time.
    pub fn on(pool: Arc<Pool>, isa: Option<Isa>) -> Self {
        let scratch = RefCell::new(Scratch::new(&pool));
        Self {
            pool,
            isa: isa.unwrap_or_else(Isa::detect),
            buffers: BufferPool::default(),
            scratch,
            attention: RefCell::default(),
            activations: Activations::default(),
            rounded: RefCell::default(),
        }
    }

    /// With activations that meet quantized weights as `activations` says.
    pub fn with_activations(mut self, activations: Activations) -> Self {
        self.activations = activations;
        self
    }

    /// What changes the bits of its results, in words; the number of threads is no such thing.
    pub(crate) fn bit_settings(&self) -> String {
        format!("isa {} activations {:?}", self.isa, self.activations)
    }

    /// A buffer of `len` elements with unspecified values.
    pub(crate) fn buffer(&self, len: usize) -> Result<Buffer> {
        self.buffers.take(len)
    }

    /// A tensor of `shape` that `fill` writes whole.
    fn filled(&self, shape: &[usize], fill: impl FnOnce(&mut [f32])) -> Result<HostTensor> {
        let mut data = self.buffers.take(shape.iter().product())?;
        fill(&mut data);
        Ok(HostTensor::new(shape, data))
    }

    fn linear<const N: usize>(
        &self,
        x: &HostTensor,
        projections: [Projection<'_, Self>; N],
    ) -> Result<[HostTensor; N]> {
        let rows = x.shape()[0];
        let outputs = projections.iter().map(|p| self.buffers.take(rows * p.weight.shape()[0]));
        let mut outputs = outputs.collect::<Result<SmallVec<[_; 3]>>>()?;
        let mut parts = SmallVec::new();
        for (projection, out) in projections.iter().zip(&mut outputs) {
            let bias = projection.bias.map(CpuVector::values).transpose()?;
            parts.push(OneProduct { weight: projection.weight, bias, out });
        }
        self.multiply(x.data(), parts)?;
        let mut outputs = outputs.into_iter().zip(&projections);
        Ok(std::array::from_fn(|_| {
            let Some((out, projection)) = outputs.next() else {
                unreachable!("one output for each of {N} projections")
            };
            HostTensor::new(&[rows, projection.weight.shape()[0]], out)
        }))
    }

    /// The products of `x` `[T, K]` with matrices `[N, K]`, plus biases `[N]`, into outputs `[T, N]`.
    pub(super) fn multiply(&self, x: &[f32], parts: SmallVec<[OneProduct<'_>; 3]>) -> Result<()> {
        let weights = parts.iter().map(|part| part.weight.readable(&self.pool));
        let weights = weights.collect::<Result<SmallVec<[_; 3]>>>()?;
        let (mut dense, mut quantized) = (SmallVec::<[_; 3]>::new(), SmallVec::<[_; 3]>::new());
        let cols = parts.first().map_or(1, |part| part.weight.shape()[1]);
        let rows = 0..x.len().checked_div(cols).unwrap_or(0);
        for (OneProduct { bias, out, .. }, weight) in parts.into_iter().zip(&weights) {
            match weight {
                Readable::Packed(weight) => {
                    quantized.push(QuantProjection { weight, bias, rows: rows.clone(), out });
                }
                Readable::Dense(weight) => {
                    dense.push(matmul::Projection { weight: (*weight).into(), bias, out })
                }
                Readable::Decoded(weight) => {
                    dense.push(matmul::Projection { weight: weight.into(), bias, out })
                }
            }
        }
        matmul::linear_group(&self.pool, self.isa, x, &mut dense, &mut self.scratch.borrow_mut())?;
        // A group shares its rounded activations, which an order of columns would permute.
        let together = quantized.iter().all(|p| p.weight.order() == quantized[0].weight.order());
        let size = if together { quantized.len() } else { 1 };
        let x = Rows { data: x, cols, pick: None };
        for group in quantized.chunks_mut(size.max(1)) {
            let scratch = &mut self.rounded.borrow_mut();
            quant::linear_group(&self.pool, self.isa, self.activations, x, group, scratch)?;
        }
        Ok(())
    }

    /// The threads, for what runs on them later.
    pub(super) fn shared_pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool)
    }

    /// What kernels run on.
    pub(super) fn kernels(&self) -> (&Pool, Isa) {
        (&self.pool, self.isa)
    }

    /// What becomes of activations that meet quantized weights.
    pub(super) fn activations(&self) -> Activations {
        self.activations
    }

    /// The memory of rounded activations.
    pub(super) fn rounded(&self) -> RefMut<'_, ActivationScratch> {
        self.rounded.borrow_mut()
    }

    /// What a product reads of a matrix.
    pub(super) fn readable<'a>(&self, matrix: &'a CpuMatrix) -> Result<Readable<'a>> {
        matrix.readable(&self.pool)
    }
}

impl From<Activation> for Unary {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Silu => Self::Silu,
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::Relu2 => Self::Relu2,
        }
    }
}

impl CpuBackend {
    /// Rows `tokens` of `table`, times `scale`.
    pub(super) fn embedding(
        &self,
        table: &CpuMatrix,
        tokens: Ids<'_, HostTensor>,
        scale: f32,
    ) -> Result<HostTensor> {
        let shape = table.shape();
        let (height, width) = (shape[0], shape[1]);
        let ids = match tokens {
            Ids::Known(ids) => ids,
            // Of these nobody could know before whether the table has them.
            Ids::Pending(ids) => {
                let ids = ids.as_u32().unwrap_or_default();
                if let Some(id) = ids.iter().find(|&&id| id as usize >= height) {
                    let what = format!("token id {id}, expected one below the table's {height} rows");
                    return Err(Error::shape("embedding", what));
                }
                ids
            }
        };
        let mut stored = match table.source() {
            Matrix::Dense(_) => Vec::new(),
            Matrix::Quantized(table) => {
                table.keep()?;
                alloc::zeroed(width, "activations of a step")?
            }
        };
        self.filled(&[ids.len(), width], |out| match table.source() {
            Matrix::Dense(table) => {
                let (dtype, bytes) = (table.dtype(), table.bytes());
                pointwise::embedding(&self.pool, self.isa, dtype, bytes, width, ids, scale, out);
            }
            Matrix::Quantized(table) => {
                for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
                    table.dequantize_row(id as usize, &mut stored);
                    table.restore_order(&stored, out);
                    out.iter_mut().for_each(|value| *value *= scale);
                }
            }
        })
    }
}

impl Operands for CpuBackend {
    type Tensor = HostTensor;
    type Matrix = CpuMatrix;
    type Stack = CpuStack;
    type Vector = CpuVector;
    type State = HostKv;
    type Recurrent = HostRecurrent;
}

impl Backend for CpuBackend {
    fn describe(&self) -> String {
        let threads = self.pool.threads();
        format!("cpu ({}, {threads} thread{})", self.isa, if threads == 1 { "" } else { "s" })
    }

    fn matrix(&self, matrix: &Matrix) -> CpuMatrix {
        CpuMatrix::new(matrix.clone())
    }

    fn stack(&self, stack: &Stack) -> CpuStack {
        CpuStack::new(stack.clone())
    }

    fn vector(&self, weight: &Weight) -> CpuVector {
        CpuVector::new(weight.clone())
    }

    fn ready(&self, matrix: &CpuMatrix) -> Result<()> {
        // What is decoded for each product is not decoded for nothing.
        if let Matrix::Quantized(weight) = matrix.source()
            && PackedMatrix::supports(weight.format())
        {
            matrix.readable(&self.pool)?;
        }
        Ok(())
    }

    fn fuses(&self, _op: OpKind) -> bool {
        true
    }

    fn supports(&self, _op: &Op<'_, Self>) -> Result<()> {
        Ok(())
    }

    fn state(&self, shape: &KvShape, window: Option<usize>) -> HostKv {
        HostKv::new(*shape).with_window(window)
    }

    fn write(&self, state: &mut HostKv, rows: KvRows<'_, Self>, run: &Run) -> Result<()> {
        let [k, v] = [rows.k, rows.v].map(|rows| rows.view().rows(run.rows()));
        state.write_rows(run.start, k, v)
    }

    fn recurrent(&self, shape: &RecurrentShape) -> HostRecurrent {
        HostRecurrent::new(*shape)
    }

    fn recur(
        &self,
        states: &mut [&mut HostRecurrent],
        op: &Recur<'_, Self>,
        runs: &[Run],
    ) -> Result<HostTensor> {
        self.recurrence(states, op, runs)
    }

    fn evaluate(
        &self,
        _results: &[&HostTensor],
        _states: &[&HostKv],
        _recurrent: &[&HostRecurrent],
        _wait: bool,
    ) -> Result<()> {
        Ok(())
    }

    fn to_backend(&self, tensor: HostTensor) -> Result<HostTensor> {
        Ok(tensor)
    }

    fn to_host(&self, tensor: &HostTensor) -> Result<HostTensor> {
        tensor.copy(|len| self.buffer(len))
    }

    fn run(&self, op: &Op<'_, Self>) -> Result<Outputs<Self>> {
        let (pool, isa) = (&self.pool, self.isa);
        let output = match *op {
            Op::Embedding { table, tokens, scale } => self.embedding(table, tokens, scale)?,
            Op::Linear { x, projection } => {
                let [output] = self.linear(x, [projection])?;
                output
            }
            Op::HeadLinear { x, weight, beside } => self.head_linear(x, weight, beside)?,
            Op::ScaleRows { x, by } => self.filled(x.shape(), |out| {
                let width = x.shape()[1].max(1);
                for ((out, x), by) in out.chunks_exact_mut(width).zip(x.data().chunks_exact(width)).zip(by) {
                    out.iter_mut().zip(x).for_each(|(out, x)| *out = x * by);
                }
            })?,
            Op::RmsNorm { x, weight, eps, offset } => {
                let n = VectorOperand::shape(weight).last().copied().unwrap_or(0);
                let weight = weight.values()?;
                self.filled(x.shape(), |out| {
                    norm::rms_norm(pool, isa, x.data(), n, weight, eps, offset, out)
                })?
            }
            Op::LayerNorm { x, weight, bias, eps } => {
                let n = VectorOperand::shape(weight).last().copied().unwrap_or(0);
                let (weight, bias) = (weight.values()?, bias.map(CpuVector::values).transpose()?);
                self.filled(x.shape(), |out| {
                    norm::layer_norm(pool, isa, x.data(), n, weight, bias, eps, out)
                })?
            }
            Op::Activate { x, activation } => {
                self.filled(x.shape(), |out| pointwise::unary(pool, isa, activation.into(), x.data(), out))?
            }
            Op::Add { a, b } => self.filled(a.shape(), |out| {
                pointwise::binary(pool, isa, Binary::Add, a.data(), b.data(), out)
            })?,
            Op::Mul { a, b } => self.filled(a.shape(), |out| {
                pointwise::binary(pool, isa, Binary::Mul, a.data(), b.data(), out)
            })?,
            Op::Scale { x, by } => {
                self.filled(x.shape(), |out| pointwise::unary(pool, isa, Unary::Scale(by), x.data(), out))?
            }
            Op::Gate { x, gate, kind } => {
                self.filled(x.shape(), |out| match x.shape()[1] / gate.shape()[1] {
                    1 if kind == GateKind::Sigmoid => {
                        pointwise::binary(pool, isa, Binary::Sigmoid, x.data(), gate.data(), out)
                    }
                    stretch => route::gate_stretches(pool, x.data(), gate.data(), kind, stretch, out),
                })?
            }
            Op::Mix { x, by, into, width } => {
                let stretches = x.shape()[1] / width;
                let counts = [stretches, by.shape()[1] / stretches];
                let into = into.map(HostTensor::data);
                self.filled(&op.output_shapes()[0], |out| {
                    pointwise::mix(pool, isa, x.data(), by.data(), into, counts, width, out)
                })?
            }
            Op::Cut { x, deviations } => self.filled(x.shape(), |out| {
                // Rows without elements have nothing to be cut.
                let n = x.shape()[1].max(1);
                norm::cut(pool, isa, x.data(), n, deviations, out)
            })?,
            Op::Join { a, b } => self.filled(&op.output_shapes()[0], |out| {
                let width = a.shape()[1] + b.shape()[1];
                for (row, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
                    let (left, right) = out.split_at_mut(a.shape()[1]);
                    left.copy_from_slice(a.view().row(row));
                    right.copy_from_slice(b.view().row(row));
                }
            })?,
            Op::SoftCap { x, cap } => {
                self.filled(x.shape(), |out| pointwise::unary(pool, isa, Unary::SoftCap(cap), x.data(), out))?
            }
            Op::Rope { x, head_dim, rope } => {
                let width = x.shape()[1];
                let tables = rope::Rope { width, head_dim, dims: rope.dims, cos: &rope.cos, sin: &rope.sin };
                self.filled(x.shape(), |out| rope::rope(pool, isa, tables, x.data(), out))?
            }
            Op::Attention { q, kv, mask, scale, soft_cap, sinks, bias } => {
                let sinks = sinks.map(CpuVector::values).transpose()?;
                let bias = bias.map(CpuVector::values).transpose()?;
                let runs = kv.iter().zip(&mask.runs);
                let runs: Vec<AttentionRun<'_>> =
                    runs.map(|(kv, run)| AttentionRun { row: run.row, len: run.len, kv }).collect();
                let visible = &mask.visible;
                let call = Attention { q: q.data(), runs: &runs, visible, scale, soft_cap, sinks, bias };
                let shape = &op.output_shapes()[0];
                let mut out = self.buffers.take(shape.iter().product())?;
                attention(pool, isa, call, &mut out, &mut self.attention.borrow_mut())?;
                HostTensor::new(shape, out)
            }
            Op::TakeRows { x, rows } => {
                let (x, width) = (x.view(), x.shape()[1]);
                self.filled(&[rows.len(), width], |out| {
                    for (&row, out) in rows.iter().zip(out.chunks_exact_mut(width.max(1))) {
                        out.copy_from_slice(x.row(row));
                    }
                })?
            }
            Op::Route { logits, bias, scales, router } => {
                let bias = bias.map(CpuVector::values).transpose()?;
                let scales = scales.map(CpuVector::values).transpose()?;
                let shape = [logits.shape()[0], router.used];
                let mut ids = alloc::zeroed(shape[0] * shape[1], "the experts of a step")?;
                let mut weights = self.buffers.take(shape[0] * shape[1])?;
                route::route(pool, logits.data(), [bias, scales], &router, &mut ids, &mut weights)?;
                return Ok(smallvec![HostTensor::from_u32(&shape, ids), HostTensor::new(&shape, weights)]);
            }
            Op::Experts { x, ids, weights, gate, up, down, gating, on_input } => {
                self.experts([x, ids, weights], on_input, [gate, Some(up)], down, gating)?
            }
            Op::AllSum { .. } => {
                let reason = "ranks talk to each other through MLX alone".to_owned();
                return Err(Error::Op { op: op.kind().name(), backend: "cpu", reason });
            }
            Op::GateUp { x, gate, up, activation } => {
                let [mut gate, up] = self.linear(x, [gate, up])?;
                let gated = Binary::Gated(activation.into());
                pointwise::binary_in_place(pool, isa, gated, gate.data_mut(), up.data());
                gate
            }
            Op::AddRmsNorm { a, b, weight, eps, offset } => {
                let weight = weight.values()?;
                let mut sum = self.buffers.take(a.data().len())?;
                let mut normed = self.buffers.take(a.data().len())?;
                norm::add_rms_norm(pool, isa, a.data(), b.data(), weight, eps, offset, &mut sum, &mut normed);
                let tensor = |data| HostTensor::new(a.shape(), data);
                return Ok(smallvec![tensor(sum), tensor(normed)]);
            }
            Op::Adapt { x, into, rows, low, high, scale, columns } => {
                self.adapt([x, into], rows.clone(), [low, high], scale, columns)?
            }
            Op::Qkv { x, projections } => {
                return Ok(self.linear(x, projections)?.into_iter().collect());
            }
        };
        Ok(smallvec![output])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use smallvec::SmallVec;

    use super::*;
    use crate::quant::{Format, GgmlType, Plane, QuantWeight};
    use crate::tensor::Bytes;

    /// Bytes that count how many of their kind there are.
    #[derive(Debug)]
    struct Counted(Vec<u8>, Arc<AtomicUsize>);

    impl Bytes for Counted {
        fn bytes(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A matrix of Q8_0 `[20, 64]` whose planes are made, and how many of them are in memory.
    fn made() -> (QuantWeight, Arc<AtomicUsize>) {
        let live = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&live);
        let format = Format::Ggml(GgmlType::Q8_0);
        let weight = QuantWeight::made("w", format, [20, 64], move |rows| {
            count.fetch_add(1, Ordering::Relaxed);
            // A scale of 1 in front of 32 codes, of which each row has its own.
            let row =
                |row: usize| std::iter::repeat_n([&[0, 0x3c][..], &[row as u8; 32]].concat(), 2).flatten();
            let bytes: Vec<u8> = rows.flat_map(row).collect();
            let len = bytes.len();
            Ok(SmallVec::from_iter([Plane::new(Arc::new(Counted(bytes, Arc::clone(&count))), 0..len)]))
        });
        (weight, live)
    }

    #[test]
    fn what_was_made_to_be_packed_leaves_memory() {
        let (weight, live) = made();
        let cpu = CpuBackend::new(Some(1), None).with_activations(Activations::F32);
        let whole = cpu.matrix(&Matrix::Quantized(weight.clone()));
        cpu.ready(&whole).unwrap();
        assert_eq!(live.load(Ordering::Relaxed), 0);
        let x = HostTensor::from_vec(&[1, 64], vec![1.0; 64]);
        let multiply = |weight: &CpuMatrix| {
            cpu.linear(&x, [Projection { weight, bias: None }]).unwrap()[0].data().to_vec()
        };
        let expected: Vec<f32> = (0..20).map(|row| 64.0 * row as f32).collect();
        assert_eq!(multiply(&whole), expected);
        // Rows of it are another matrix, which makes no more than its own.
        let part = weight.rows("part", 3..5);
        assert_eq!(multiply(&cpu.matrix(&Matrix::Quantized(part.clone()))), expected[3..5]);
        assert_eq!(live.load(Ordering::Relaxed), 0);
        // Who reads rows again and again keeps them.
        assert_eq!((part.planes()[0].bytes().len(), part.to_f32()[64]), (2 * 68, 4.0));
        assert_eq!((live.load(Ordering::Relaxed), part.held().unwrap().to_f32()[0]), (1, 3.0));
        drop((part, whole));
        assert_eq!(live.load(Ordering::Relaxed), 0);
    }
}
