//! The MLX backend: the only place that imports `mlx_rs`. All of its work stays on the thread that made it.
//!
//! Ops build a lazy graph in one type of activations; `MlxBackend::evaluate` runs it, once a step. Weights are uploaded
//! once, through the [`WeightCache`].

mod array;
mod attention;
mod cache;
mod device;
mod graph;
mod kv;
mod ops;
mod quantized;

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;
use std::rc::Rc;

use graph::Graph;
use mlx_rs::{Array, Dtype};

pub use array::MlxTensor;
pub use cache::WeightCache;
pub use device::DeviceInfo;
pub use kv::{MlxKv, MlxPage};

use super::batch::Run;
use super::eval_error;
use super::kv::{HostKv, KvLayer, KvRows, KvShape, PAGE};
use super::ops::{Op, Ops, Outputs};
use crate::error::{Error, Result};
use crate::quant::{Format, MatrixRef};
use crate::tensor::{DType, HostTensor, Tensor};

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
            dtype: array::dtype(dtype),
            graph: Graph::new(),
            weights: WeightCache::default(),
            step: RefCell::default(),
            reported: RefCell::default(),
        })
    }

    /// The device and its name, for the summary.
    pub fn describe(&self) -> String {
        format!("mlx ({})", self.device)
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

    /// Drops what was derived from the last step's masks and tables.
    pub(super) fn begin_step(&self) {
        *self.step.borrow_mut() = StepCache::default();
    }

    /// Whether a fused op is one kernel here; the others are composed by the dispatch, part by part.
    pub(super) fn fuses(&self, _op: &Op<'_>) -> bool {
        false
    }

    /// What MLX cannot do, said before it is tried.
    pub(super) fn supports(&self, op: &Op<'_>) -> Result<()> {
        for shape in op.output_shapes() {
            if shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d)).is_none_or(|n| n > i32::MAX as usize)
            {
                return Err(unsupported(
                    op,
                    format!("{shape:?} has more elements than MLX's 32-bit sizes hold"),
                ));
            }
        }
        let matrix = match *op {
            Op::Embedding { table, .. } => Some(table),
            Op::Linear { projection, .. } => Some(projection.weight),
            _ => None,
        };
        match matrix {
            Some(MatrixRef::Quantized(weight)) => match quantized::unsupported(weight) {
                Some(reason) => Err(unsupported(op, reason)),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Puts host values on MLX, in the type of activations.
    pub(super) fn upload(&self, tensor: &HostTensor) -> Result<MlxTensor> {
        let dims = array::dims(tensor.shape())?;
        Ok(MlxTensor::rows(graph::from_f32(tensor.data(), &dims, self.dtype), tensor.shape()))
    }

    /// Evaluates an array and copies it to the host as `f32`.
    pub(super) fn download(&self, tensor: &MlxTensor) -> Result<HostTensor> {
        let values = array::to_f32(&*tensor.to_rows(&self.graph)?)?;
        Ok(HostTensor::from_vec(tensor.shape(), values))
    }

    /// Copies a cache to the host, in its own type.
    pub(super) fn kv_to_host(&self, kv: &MlxKv) -> Result<HostKv> {
        kv.to_host(&self.graph)
    }

    /// Copies pages `range` of the caches of all layers, the last page as far as it is filled: for each the layers. They are
    /// evaluated.
    pub(super) fn kv_pages(&self, layers: &[&MlxKv], range: Range<usize>) -> Result<Vec<Vec<MlxPage>>> {
        let page = |index: usize| -> Result<Vec<MlxPage>> {
            let of = |kv: &&MlxKv| kv.page(&self.graph, index * PAGE..kv.len().min((index + 1) * PAGE));
            layers.iter().map(of).collect()
        };
        let pages = range.map(page).collect::<Result<Vec<_>>>()?;
        let arrays = pages.iter().flatten().flat_map(MlxPage::arrays);
        mlx_rs::transforms::eval(arrays).map_err(|error| eval_error(error.what()))?;
        Ok(pages)
    }

    /// A layer's cache of the first `len` tokens of `pages`, still lazy.
    pub(super) fn kv_from_pages(&self, shape: KvShape, pages: &[&MlxPage], len: usize) -> Result<MlxKv> {
        MlxKv::from_pages(&self.graph, shape, pages, len)
    }

    /// Writes a run's keys and values; a cache in host memory moves here first.
    pub(super) fn kv_write(&self, layer: &mut KvLayer, rows: KvRows<'_>, run: &Run) -> Result<()> {
        if let KvLayer::Host(host) = layer {
            *layer = KvLayer::Mlx(MlxKv::from_host(&self.graph, host)?);
        }
        let KvLayer::Mlx(kv) = layer else { unreachable!("the cache was moved to MLX") };
        kv.write(&self.graph, self.array(rows.k)?, self.array(rows.v)?, run)
    }

    /// Runs what the results and caches still leave lazy; without `wait`, returns once it has begun.
    pub(super) fn evaluate(&self, results: &[&Tensor], caches: &[&KvLayer], wait: bool) -> Result<()> {
        let mut arrays: Vec<&Array> = Vec::new();
        for result in results {
            if let Tensor::Mlx(tensor) = result {
                arrays.push(tensor.array());
            }
        }
        for cache in caches {
            if let KvLayer::Mlx(kv) = cache {
                arrays.extend(kv.arrays());
            }
        }
        let outcome =
            if wait { mlx_rs::transforms::eval(arrays) } else { mlx_rs::transforms::async_eval(arrays) };
        outcome.map_err(|error| eval_error(error.what()))
    }

    /// The first index of each row's largest element, `[S]`, lazy.
    pub(super) fn argmax(&self, logits: &MlxTensor) -> Result<Tensor> {
        let rows = logits.shape()[0];
        let ids = mlx_rs::ops::indexing::argmax_axis(logits.array(), 1, false)
            .map_err(|error| failed("argmax", &error))?;
        Ok(Tensor::Mlx(MlxTensor::rows(ids, &[rows])))
    }

    /// The array of a tensor that the dispatch keeps on MLX.
    fn array<'a>(&self, tensor: &'a Tensor) -> Result<&'a MlxTensor> {
        match tensor {
            Tensor::Mlx(tensor) => Ok(tensor),
            Tensor::Host(_) => Err(Error::Backend {
                backend: "mlx",
                reason: "an activation is in host memory, expected an MLX array".into(),
            }),
        }
    }
}

impl Ops for MlxBackend {
    fn run(&self, op: &Op<'_>) -> Result<Outputs> {
        self.compute(op)
    }
}

impl Drop for MlxBackend {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// An MLX call that failed.
fn failed(op: &'static str, error: &mlx_rs::error::Exception) -> Error {
    Error::Op { op, backend: "mlx", reason: error.what().to_owned() }
}

/// An op that MLX cannot do.
fn unsupported(op: &Op<'_>, reason: String) -> Error {
    Error::Op { op: op.kind().name(), backend: "mlx", reason }
}
