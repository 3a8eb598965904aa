//! The MLX backend: the only place that imports `mlx_rs`. All of its work stays on the thread that made it.
//!
//! Ops build a lazy graph in one type of activations; `MlxBackend::evaluate` runs it, once a step. Weights are uploaded
//! once, through the [`WeightCache`].

mod array;
mod attention;
mod cache;
mod device;
mod dims;
mod experts;
mod graph;
mod kv;
mod operands;
mod ops;
mod quantized;
mod ranks;
mod recurrent;

use std::cell::{OnceCell, RefCell};
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use graph::Graph;
use mlx_rs::{Array, Dtype};

pub use array::MlxTensor;
pub use cache::WeightCache;
pub use device::DeviceInfo;
pub use experts::MlxStack;
pub use kv::{MlxKv, MlxPage};
pub use operands::{MlxMatrix, MlxVector};
pub use recurrent::MlxRecurrent;

use super::kv::{HostKv, KvShape, PAGE};
use super::ops::{
    Backend, EVAL, KvRows, MatrixOperand, Op, OpKind, Operands, Outputs, Recur, RecurrentShape, Run,
    StackOperand,
};
use super::recurrent::HostRecurrent;
use crate::error::{Error, Result};
use crate::quant::{Format, Matrix, Stack};
use crate::tensor::{DType, ElementType, HostTensor, Weight};

/// The ops on MLX's default device.
pub struct MlxBackend {
    device: DeviceInfo,
    /// The type of activations: that of the largest part of the weights, or what was asked for.
    dtype: Dtype,
    graph: Graph,
    weights: WeightCache,
    /// What this step's masks and tables became, by their ids.
    step: RefCell<StepCache>,
    /// Formats that were reported as computed in another.
    reported: RefCell<HashSet<Format>>,
    /// The other ranks, where there are any.
    group: OnceCell<ranks::Group>,
}

/// Arrays that the layers of one step share.
#[derive(Default)]
struct StepCache {
    /// Boolean masks `[len, keys]` of a mask's runs, in their order, by its id.
    masks: Vec<(u64, attention::Masks)>,
    /// Rotary tables by the id of the step's tables and the head dimension.
    ropes: Vec<((u64, usize), Rc<ops::RopeArrays>)>,
}

impl MlxBackend {
    /// MLX on its default device, computing activations in `dtype`.
    ///
    /// # Errors
    /// Where no device answers.
    pub fn new(dtype: DType) -> Result<Self> {
        let device = DeviceInfo::query()?;
        Ok(Self {
            device,
            dtype: dims::dtype(dtype),
            graph: Graph::new(),
            weights: WeightCache::default(),
            step: RefCell::default(),
            reported: RefCell::default(),
            group: OnceCell::new(),
        })
    }

    /// Whether the device is a GPU.
    pub(super) fn is_gpu(&self) -> bool {
        self.device.gpu
    }

    /// Frees what was uploaded: nothing will be computed here from now on.
    pub(super) fn give_up(&self) {
        self.weights.clear();
        self.begin_step();
        // What was held goes back to the system, not to MLX's own cache of buffers.
        let _ = mlx_rs::memory::clear_cache();
    }

    /// The weights that were uploaded.
    pub fn weights(&self) -> &WeightCache {
        &self.weights
    }

    /// Copies a cache to the host, in its own type.
    pub(super) fn kv_to_host(&self, kv: &MlxKv) -> Result<HostKv> {
        kv.to_host(&self.graph)
    }

    /// Copies a recurrent state to the host.
    pub(super) fn recurrent_to_host(&self, state: &MlxRecurrent) -> Result<HostRecurrent> {
        state.to_host()
    }

    /// A recurrent state with what one in host memory holds.
    pub(super) fn recurrent_from_host(&self, host: &HostRecurrent) -> Result<MlxRecurrent> {
        MlxRecurrent::from_host(host)
    }

    /// A cache with what one in host memory holds, still lazy.
    pub(super) fn kv_from_host(&self, host: &HostKv) -> Result<MlxKv> {
        MlxKv::from_host(&self.graph, host)
    }

    /// Copies pages `range` of the caches of all layers, the last page as far as it is filled: for each the layers. They are
    /// evaluated.
    pub(super) fn snapshot(&self, layers: &[&MlxKv], range: Range<usize>) -> Result<Vec<Vec<MlxPage>>> {
        let page = |index: usize| -> Result<Vec<MlxPage>> {
            let of = |kv: &&MlxKv| kv.page(&self.graph, index * PAGE..kv.len().min((index + 1) * PAGE));
            layers.iter().map(of).collect()
        };
        let pages = range.map(page).collect::<Result<Vec<_>>>()?;
        let arrays = pages.iter().flatten().flat_map(MlxPage::arrays);
        mlx_rs::transforms::eval(arrays).map_err(|error| eval_error(error.what()))?;
        Ok(pages)
    }

    /// A layer's cache of this shape and window, of the first `len` tokens of `pages`, still lazy.
    pub(super) fn restore(
        &self,
        of: (KvShape, Option<usize>),
        pages: &[&MlxPage],
        len: usize,
    ) -> Result<MlxKv> {
        MlxKv::from_pages(&self.graph, of, pages, len)
    }

    /// The first index of each row's largest element, `[S]` of `u32`, lazy.
    pub(super) fn argmax(&self, logits: &MlxTensor) -> Result<MlxTensor> {
        let rows = logits.shape()[0];
        let ids = mlx_rs::ops::indexing::argmax_axis(logits.array(), 1, false)
            .map_err(|error| failed("argmax", &error))?;
        Ok(MlxTensor::of(ElementType::U32, ids, &[rows]))
    }
}

impl Operands for MlxBackend {
    type Tensor = MlxTensor;
    type Matrix = MlxMatrix;
    type Stack = MlxStack;
    type Vector = MlxVector;
    type State = MlxKv;
    type Recurrent = MlxRecurrent;
}

impl Backend for MlxBackend {
    fn describe(&self) -> String {
        format!("mlx ({})", self.device)
    }

    /// Uploaded as a part of the first step, which is lazy.
    fn matrix(&self, matrix: &Matrix) -> MlxMatrix {
        MlxMatrix::new(&self.weights, matrix.clone())
    }

    fn stack(&self, stack: &Stack) -> MlxStack {
        MlxStack::new(&self.weights, stack.clone())
    }

    fn vector(&self, weight: &Weight) -> MlxVector {
        MlxVector::new(&self.weights, weight.clone())
    }

    fn fuses(&self, op: OpKind) -> bool {
        !op.is_fused()
    }

    fn supports(&self, op: &Op<'_, Self>) -> Result<()> {
        let mut too_large = None;
        op.each_output(|shape| {
            let elements = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
            if elements.is_none_or(|n| n > i32::MAX as usize) {
                too_large = Some(format!("{shape:?} has more elements than MLX's 32-bit sizes hold"));
            }
        });
        if let Op::Experts { x, ids, up, down, .. } = *op {
            let widest = x.shape()[1].max(up.weight.shape()[1]).max(down.weight.shape()[1]);
            let rows = ids.shape().iter().product::<usize>();
            if rows.checked_mul(widest).is_none_or(|n| n > i32::MAX as usize) {
                too_large =
                    Some(format!("{rows} rows of {widest} have more elements than MLX's 32-bit sizes hold"));
            }
        }
        if let Some(reason) = too_large {
            return Err(unsupported(op, reason));
        }
        if let Op::Experts { gate, up, down, .. } = *op {
            let stacks = gate.iter().chain([&up, &down]).map(|projection| projection.weight);
            let reason = stacks.filter_map(MlxStack::unsupported).next();
            return reason.map_or(Ok(()), |reason| Err(unsupported(op, reason)));
        }
        if let Op::HeadLinear { weight, .. } = *op {
            let ordered = weight.is_ordered().then(|| "heads whose columns have an order".to_owned());
            let reason = weight.unsupported().or(ordered);
            return reason.map_or(Ok(()), |reason| Err(unsupported(op, reason)));
        }
        let matrix = match *op {
            Op::Embedding { table, .. } => Some(table),
            Op::Linear { projection, .. } => Some(projection.weight),
            _ => None,
        };
        match matrix.map(MatrixOperand::source) {
            Some(Matrix::Quantized(weight)) => match quantized::unsupported(weight) {
                Some(reason) => Err(unsupported(op, reason)),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn run(&self, op: &Op<'_, Self>) -> Result<Outputs<Self>> {
        self.compute(op)
    }

    fn begin_step(&self) {
        *self.step.borrow_mut() = StepCache::default();
    }

    fn state(&self, shape: &KvShape, window: Option<usize>) -> MlxKv {
        MlxKv::new(*shape, window)
    }

    fn write(&self, state: &mut MlxKv, rows: KvRows<'_, Self>, run: &Run) -> Result<()> {
        state.write(&self.graph, rows.k, rows.v, run)
    }

    fn recurrent(&self, shape: &RecurrentShape) -> MlxRecurrent {
        MlxRecurrent::new(*shape)
    }

    fn recur(
        &self,
        states: &mut [&mut MlxRecurrent],
        op: &Recur<'_, Self>,
        runs: &[Run],
    ) -> Result<MlxTensor> {
        self.recurrence(states, op, runs)
    }

    fn evaluate(
        &self,
        results: &[&MlxTensor],
        states: &[&MlxKv],
        recurrent: &[&MlxRecurrent],
        wait: bool,
    ) -> Result<()> {
        let results = results.iter().map(|result| result.array());
        let states = states.iter().flat_map(|state| state.arrays());
        let recurrent = recurrent.iter().flat_map(|state| state.arrays());
        let arrays: Vec<&Array> = results.chain(states).chain(recurrent).collect();
        let outcome =
            if wait { mlx_rs::transforms::eval(arrays) } else { mlx_rs::transforms::async_eval(arrays) };
        outcome.map_err(|error| eval_error(error.what()))
    }

    fn to_backend(&self, tensor: HostTensor) -> Result<MlxTensor> {
        let dims = dims::of(tensor.shape())?;
        let array = match tensor.element() {
            ElementType::F32 => graph::from_f32(tensor.data(), &dims, self.dtype),
            ElementType::I32 => Array::from_slice(tensor.as_i32().unwrap_or_default(), &dims),
            ElementType::U32 => Array::from_slice(tensor.as_u32().unwrap_or_default(), &dims),
        };
        Ok(MlxTensor::of(tensor.element(), array, tensor.shape()))
    }

    fn to_host(&self, tensor: &MlxTensor) -> Result<HostTensor> {
        tensor.to_host(&self.graph)
    }
}

impl Drop for MlxBackend {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// A failed evaluation.
fn eval_error(reason: impl fmt::Display) -> Error {
    Error::Op { op: EVAL, backend: "mlx", reason: reason.to_string() }
}

/// An MLX call that failed.
fn failed(op: &'static str, error: &mlx_rs::error::Exception) -> Error {
    Error::Op { op, backend: "mlx", reason: error.what().to_owned() }
}

/// An op that MLX cannot do.
fn unsupported(op: &Op<'_, MlxBackend>, reason: String) -> Error {
    Error::Op { op: op.kind().name(), backend: "mlx", reason }
}
