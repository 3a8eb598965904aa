//! The ops on the CPU kernels: takes buffers, widens small weights once, and calls the kernel of each op.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::isa::Isa;
use super::kernels::attention::{Attention, AttentionRun, AttentionScratch, attention};
use super::kernels::pointwise::{Binary, Unary};
use super::kernels::quant::{self, ActivationScratch, Activations, PackedMatrix, QuantProjection};
use super::kernels::{matmul, norm, pointwise, rope};
use super::pool::{Pool, Scratch};
use crate::backend::batch::{Run, Tokens};
use crate::backend::kv::{KvLayer, KvRows};
use crate::backend::ops::{Op, Ops, Outputs, Projection};
use crate::config::Activation;
use crate::error::{Error, Result};
use crate::quant::{MatrixRef, Plane, QuantWeight};
use crate::tensor::{Buffer, BufferPool, Bytes, HostTensor, Tensor, Weight};

/// The CPU kernels with their threads. One engine thread owns it.
pub struct CpuBackend {
    pool: Pool,
    isa: Isa,
    buffers: BufferPool,
    scratch: RefCell<Scratch>,
    attention: RefCell<AttentionScratch>,
    small: RefCell<SmallWeights>,
    activations: Activations,
    rounded: RefCell<ActivationScratch>,
    packed: RefCell<PackedWeights>,
}

/// Quantized weights as kernels read them, by their keys, which the weight keeps from being reused.
type PackedWeights = HashMap<(usize, usize), (Arc<PackedMatrix>, QuantWeight)>;

/// Norms and biases as `f32`, by the address and length of their bytes; the owner keeps the address from being reused.
type SmallWeights = HashMap<(usize, usize), (Arc<[f32]>, Arc<dyn Bytes>)>;

impl CpuBackend {
    /// Kernels of `isa` (the best one where absent) on `threads` threads (one per core where absent).
    pub fn new(threads: Option<usize>, isa: Option<Isa>) -> Self {
        let pool = threads.map_or_else(Pool::per_core, Pool::new);
        let scratch = RefCell::new(Scratch::new(&pool));
        Self {
            pool,
            isa: isa.unwrap_or_else(Isa::detect),
            buffers: BufferPool::default(),
            scratch,
            attention: RefCell::default(),
            small: RefCell::default(),
            activations: Activations::default(),
            rounded: RefCell::default(),
            packed: RefCell::default(),
        }
    }

    /// With activations that meet quantized weights as `activations` says.
    pub fn with_activations(mut self, activations: Activations) -> Self {
        self.activations = activations;
        self
    }

    /// The instruction set and the threads, for the summary.
    pub fn describe(&self) -> String {
        let threads = self.pool.threads();
        format!("cpu ({}, {threads} thread{})", self.isa, if threads == 1 { "" } else { "s" })
    }

    /// A buffer of `len` elements with unspecified values.
    pub(crate) fn buffer(&self, len: usize) -> Buffer {
        self.buffers.take(len)
    }

    /// Writes a run's keys and values, of shapes that [`KvRows::check`] accepts, into a layer's cache.
    pub(crate) fn kv_write(&self, layer: &mut KvLayer, rows: KvRows<'_>, run: &Run) -> Result<()> {
        let (k, v) = (host(rows.k)?, host(rows.v)?);
        let width = k.shape()[1];
        let range = run.row * width..(run.row + run.len) * width;
        match layer {
            KvLayer::Host(kv) => kv.write(run.start, &k.data()[range.clone()], &v.data()[range]),
            #[cfg(has_mlx)]
            KvLayer::Mlx(_) => {
                Err(Error::Op { op: "kv_write", backend: "cpu", reason: "the cache is on MLX".into() })
            }
        }
    }

    /// The values of a norm or a bias, widened once.
    fn small(&self, weight: &Weight) -> Arc<[f32]> {
        let bytes = weight.bytes();
        let mut small = self.small.borrow_mut();
        let (values, _) = small
            .entry((bytes.as_ptr() as usize, bytes.len()))
            .or_insert_with(|| (weight.to_f32().into(), weight.owner()));
        Arc::clone(values)
    }

    /// Packs a weight before it is first used, so that the first prompt does not wait for it.
    pub(crate) fn prepare(&self, weight: MatrixRef<'_>) {
        if let MatrixRef::Quantized(weight) = weight
            && PackedMatrix::supports(weight.format())
        {
            self.packed(weight);
        }
    }

    /// A quantized weight as kernels read it, packed when it is first asked for. What it was made of leaves memory, where
    /// it is a part of a mapped file, or can be made of one again.
    fn packed(&self, weight: &QuantWeight) -> Arc<PackedMatrix> {
        let mut packed = self.packed.borrow_mut();
        let (packed, _) = packed.entry(weight.key()).or_insert_with(|| {
            let held = weight.held();
            let packed = PackedMatrix::pack(&self.pool, &held);
            held.planes().iter().for_each(Plane::release);
            (Arc::new(packed), weight.clone())
        });
        Arc::clone(packed)
    }

    /// A tensor of `shape` that `fill` writes whole.
    fn filled(&self, shape: &[usize], fill: impl FnOnce(&mut [f32])) -> Tensor {
        let mut data = self.buffers.take(shape.iter().product());
        fill(&mut data);
        Tensor::Host(HostTensor::new(shape, data))
    }

    fn linear<const N: usize>(&self, x: &HostTensor, projections: [Projection<'_>; N]) -> [HostTensor; N] {
        let rows = x.shape()[0];
        let biases = projections.map(|p| p.bias.map(|bias| self.small(bias)));
        let mut outputs = projections.map(|p| self.buffers.take(rows * p.weight.shape()[0]));
        let packed = projections.map(|projection| match projection.weight {
            MatrixRef::Quantized(weight) if PackedMatrix::supports(weight.format()) => {
                Some(self.packed(weight))
            }
            _ => None,
        });
        let decoded = projections.map(|projection| match projection.weight {
            MatrixRef::Quantized(weight) if !PackedMatrix::supports(weight.format()) => {
                Some(Weight::from_f32(weight.name(), weight.shape(), &weight.to_f32()))
            }
            _ => None,
        });
        let (mut dense, mut quantized) = (SmallVec::<[_; 3]>::new(), SmallVec::<[_; 3]>::new());
        for (i, out) in outputs.iter_mut().enumerate() {
            let bias = biases[i].as_deref();
            match (projections[i].weight, &packed[i], &decoded[i]) {
                (_, Some(weight), _) => quantized.push(QuantProjection { weight, bias, out }),
                (MatrixRef::Dense(weight), ..) | (_, _, Some(weight)) => {
                    dense.push(matmul::Projection { weight: weight.into(), bias, out });
                }
                (MatrixRef::Quantized(_), None, None) => unreachable!("packed, or decoded"),
            }
        }
        matmul::linear_group(&self.pool, self.isa, x.data(), &mut dense, &mut self.scratch.borrow_mut());
        // A group shares its rounded activations, which an order of columns would permute.
        let together = quantized.iter().all(|p| p.weight.order() == quantized[0].weight.order());
        let size = if together { quantized.len() } else { 1 };
        for group in quantized.chunks_mut(size.max(1)) {
            let scratch = &mut self.rounded.borrow_mut();
            quant::linear_group(&self.pool, self.isa, self.activations, x.data(), group, scratch);
        }
        drop((dense, quantized));
        let mut outputs = outputs.into_iter().zip(&projections);
        std::array::from_fn(|_| {
            let Some((out, projection)) = outputs.next() else {
                unreachable!("one output for each of {N} projections")
            };
            HostTensor::new(&[rows, projection.weight.shape()[0]], out)
        })
    }
}

impl From<Activation> for Unary {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Silu => Self::Silu,
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
        }
    }
}

/// The values of a tensor that the dispatch keeps on the host.
fn host(tensor: &Tensor) -> Result<&HostTensor> {
    match tensor {
        Tensor::Host(host) => Ok(host),
        #[cfg(has_mlx)]
        Tensor::Mlx(_) => Err(Error::Backend {
            backend: "cpu",
            reason: "an activation is an MLX array, expected host memory".into(),
        }),
    }
}

impl Ops for CpuBackend {
    fn run(&self, op: &Op<'_>) -> Result<Outputs> {
        let (pool, isa) = (&self.pool, self.isa);
        let output = match *op {
            Op::Embedding { table, tokens, scale } => {
                let Tokens::Known(ids) = tokens else {
                    return Err(Error::Op {
                        op: "embedding",
                        backend: "cpu",
                        reason: "the token ids are not known yet".into(),
                    });
                };
                let width = table.shape()[1];
                self.filled(&[ids.len(), width], |out| match table {
                    MatrixRef::Dense(table) => {
                        pointwise::embedding(pool, isa, table.dtype(), table.bytes(), width, ids, scale, out);
                    }
                    MatrixRef::Quantized(table) => {
                        let mut stored = vec![0.0; width];
                        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
                            table.dequantize_row(id as usize, &mut stored);
                            table.restore_order(&stored, out);
                            out.iter_mut().for_each(|value| *value *= scale);
                        }
                    }
                })
            }
            Op::Linear { x, projection } => {
                let [output] = self.linear(host(x)?, [projection]);
                output.into()
            }
            Op::RmsNorm { x, weight, eps, offset } => {
                let (x, weight) = (host(x)?, self.small(weight));
                self.filled(x.shape(), |out| norm::rms_norm(pool, isa, x.data(), &weight, eps, offset, out))
            }
            Op::LayerNorm { x, weight, bias, eps } => {
                let (x, weight) = (host(x)?, self.small(weight));
                let bias = bias.map(|bias| self.small(bias));
                self.filled(x.shape(), |out| {
                    norm::layer_norm(pool, isa, x.data(), &weight, bias.as_deref(), eps, out);
                })
            }
            Op::Activate { x, activation } => {
                let x = host(x)?;
                self.filled(x.shape(), |out| pointwise::unary(pool, isa, activation.into(), x.data(), out))
            }
            Op::Add { a, b } => {
                let (a, b) = (host(a)?, host(b)?);
                self.filled(a.shape(), |out| {
                    pointwise::binary(pool, isa, Binary::Add, a.data(), b.data(), out)
                })
            }
            Op::Mul { a, b } => {
                let (a, b) = (host(a)?, host(b)?);
                self.filled(a.shape(), |out| {
                    pointwise::binary(pool, isa, Binary::Mul, a.data(), b.data(), out)
                })
            }
            Op::Scale { x, by } => {
                let x = host(x)?;
                self.filled(x.shape(), |out| pointwise::unary(pool, isa, Unary::Scale(by), x.data(), out))
            }
            Op::SoftCap { x, cap } => {
                let x = host(x)?;
                self.filled(x.shape(), |out| pointwise::unary(pool, isa, Unary::SoftCap(cap), x.data(), out))
            }
            Op::Rope { x, head_dim, rope } => {
                let x = host(x)?;
                let width = x.shape()[1];
                let tables = rope::Rope { width, head_dim, dims: rope.dims, cos: &rope.cos, sin: &rope.sin };
                self.filled(x.shape(), |out| rope::rope(pool, isa, tables, x.data(), out))
            }
            Op::Attention { q, kv, mask, scale, soft_cap } => {
                let q = host(q)?;
                let runs = kv
                    .iter()
                    .zip(&mask.runs)
                    .map(|(layer, run)| match layer {
                        KvLayer::Host(kv) => Ok(AttentionRun { row: run.row, len: run.len, kv }),
                        #[cfg(has_mlx)]
                        KvLayer::Mlx(_) => Err(Error::Op {
                            op: "attention",
                            backend: "cpu",
                            reason: "the cache is on MLX".into(),
                        }),
                    })
                    .collect::<Result<Vec<_>>>()?;
                let visible = &mask.visible;
                let call = Attention { q: q.data(), runs: &runs, visible, scale, soft_cap };
                self.filled(q.shape(), |out| {
                    attention(pool, isa, call, out, &mut self.attention.borrow_mut());
                })
            }
            Op::TakeRows { x, rows } => {
                let x = host(x)?;
                let width = x.shape()[1];
                self.filled(&[rows.len(), width], |out| {
                    for (&row, out) in rows.iter().zip(out.chunks_exact_mut(width.max(1))) {
                        out.copy_from_slice(x.row(row));
                    }
                })
            }
            Op::GateUp { x, gate, up, activation } => {
                let [mut gate, up] = self.linear(host(x)?, [gate, up]);
                let gated = Binary::Gated(activation.into());
                pointwise::binary_in_place(pool, isa, gated, gate.data_mut(), up.data());
                gate.into()
            }
            Op::AddRmsNorm { a, b, weight, eps, offset } => {
                let (a, b, weight) = (host(a)?, host(b)?, self.small(weight));
                let mut sum = self.buffers.take(a.data().len());
                let mut normed = self.buffers.take(a.data().len());
                norm::add_rms_norm(
                    pool,
                    isa,
                    a.data(),
                    b.data(),
                    &weight,
                    eps,
                    offset,
                    &mut sum,
                    &mut normed,
                );
                let tensor = |data| Tensor::Host(HostTensor::new(a.shape(), data));
                return Ok(smallvec![tensor(sum), tensor(normed)]);
            }
            Op::Qkv { x, projections } => {
                return Ok(self.linear(host(x)?, projections).into_iter().map(Tensor::from).collect());
            }
        };
        Ok(smallvec![output])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use smallvec::SmallVec;

    use super::*;
    use crate::quant::{Format, GgmlType};

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
            SmallVec::from_iter([Plane::new(Arc::new(Counted(bytes, Arc::clone(&count))), 0..len)])
        });
        (weight, live)
    }

    #[test]
    fn what_was_made_to_be_packed_leaves_memory() {
        let (weight, live) = made();
        let cpu = CpuBackend::new(Some(1), None).with_activations(Activations::F32);
        cpu.prepare(MatrixRef::Quantized(&weight));
        assert_eq!(live.load(Ordering::Relaxed), 0);
        let x = HostTensor::from_vec(&[1, 64], vec![1.0; 64]);
        let multiply = |weight: &QuantWeight| {
            let projection = Projection { weight: MatrixRef::Quantized(weight), bias: None };
            cpu.linear(&x, [projection])[0].data().to_vec()
        };
        let expected: Vec<f32> = (0..20).map(|row| 64.0 * row as f32).collect();
        assert_eq!(multiply(&weight), expected);
        // Rows of it are another matrix, which makes no more than its own.
        let part = weight.rows("part", 3..5);
        assert_eq!(multiply(&part), expected[3..5]);
        assert_eq!(live.load(Ordering::Relaxed), 0);
        // Who reads rows again and again keeps them.
        assert_eq!((part.planes()[0].bytes().len(), part.to_f32()[64]), (2 * 68, 4.0));
        assert_eq!((live.load(Ordering::Relaxed), part.held().to_f32()[0]), (1, 3.0));
        drop((part, cpu));
        assert_eq!(live.load(Ordering::Relaxed), 0);
    }
}
