//! Backends: the ops, the dispatch that routes each of them, and the fallback policy.
//!
//! [`LlmBackendDispatch`] sends every op to MLX first where MLX runs the model. An op that MLX cannot do, or fails at, is
//! computed by the CPU kernel instead; the pair of op and reason is logged once and counted. Where evaluations fail again and
//! again for one reason, the model stays on the CPU. Under [`Policy::Deny`] each of these is an error.

pub mod batch;
#[cfg(has_mlx)]
mod check;
pub mod cpu;
mod fallback;
pub mod kv;
mod machine;
#[cfg(has_mlx)]
pub mod mlx;
pub mod ops;
mod profile;
pub mod rope;
pub mod select;

#[cfg(has_mlx)]
use std::cell::Cell;
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub use fallback::{FallbackReport, Faults};
pub use profile::OpTime;

use batch::Run;
use cpu::CpuBackend;
#[cfg(has_mlx)]
use fallback::Breaker;
use fallback::KeptOff;
use kv::{HostKv, KvLayer, KvRows};
use ops::{Op, OpKind, Ops, Outputs};
use profile::{Profile, Work};

use crate::error::{Error, Result};
use crate::quant::MatrixRef;
use crate::tensor::{HostTensor, Tensor};

/// What runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LlmBackendKind {
    /// The pure-Rust CPU kernels.
    Cpu,
    /// MLX, on its default device.
    Mlx,
}

impl LlmBackendKind {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Mlx => "mlx",
        }
    }
}

impl fmt::Display for LlmBackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What happens when MLX cannot do an op, or fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The CPU computes it; it is logged and counted.
    #[default]
    Allow,
    /// It is an error: parity tests run so, since otherwise they would compare the CPU with itself.
    Deny,
}

/// Routes every op of a model to the backend that runs it. One engine thread owns it.
pub enum LlmBackendDispatch {
    /// Everything on the CPU kernels.
    Cpu {
        /// The kernels.
        cpu: CpuBackend,
        /// Counters, faults, policy.
        routing: Routing,
    },
    /// MLX first, the CPU kernels behind it.
    #[cfg(has_mlx)]
    Mlx {
        /// The first choice of every op.
        mlx: Box<mlx::MlxBackend>,
        /// The backstop.
        cpu: CpuBackend,
        /// Counters, faults, policy.
        routing: Routing,
        /// Set while a step is replayed, and for good once MLX was given up: every op goes to the CPU and none of them counts
        /// as a fallback.
        on_cpu: Cell<bool>,
    },
}

/// What the dispatch keeps beside its backends.
#[derive(Debug, Default)]
pub struct Routing {
    policy: Policy,
    report: Arc<FallbackReport>,
    faults: Faults,
    kept_off: Vec<KeptOff>,
    #[cfg(has_mlx)]
    breaker: RefCell<Breaker>,
    /// Times of ops, while they are asked for.
    profile: RefCell<Option<Profile>>,
}

impl Routing {
    /// Routing under `policy`, with injected `faults` (none outside tests).
    pub fn new(policy: Policy, faults: Faults) -> Self {
        Self { policy, faults, ..Self::default() }
    }

    /// With `ops` computed by the CPU wherever MLX runs the model. That is no failure, and no error under [`Policy::Deny`].
    pub fn with_cpu_ops(mut self, ops: &[OpKind]) -> Self {
        self.kept_off.extend(ops.iter().copied().map(KeptOff::asked));
        self
    }
}

impl LlmBackendDispatch {
    /// Everything on the CPU kernels.
    pub fn cpu(cpu: CpuBackend, routing: Routing) -> Self {
        Self::Cpu { cpu, routing }
    }

    /// MLX's default device first, computing activations in `dtype`. Where the device is a GPU, kernels that compute wrong are
    /// found and kept off first.
    ///
    /// # Errors
    /// Where no device answers.
    #[cfg(has_mlx)]
    pub fn mlx(dtype: crate::tensor::DType, cpu: CpuBackend, mut routing: Routing) -> Result<Self> {
        let mlx = Box::new(mlx::MlxBackend::new(dtype)?);
        routing.kept_off.extend(check::wrong_kernels(&mlx, dtype, &routing.faults));
        Ok(Self::Mlx { mlx, cpu, routing, on_cpu: Cell::new(false) })
    }

    /// Readies a matrix of a linear layer for its first use.
    pub(crate) fn prepare(&self, matrix: MatrixRef<'_>) {
        match self {
            Self::Cpu { cpu, .. } => cpu.prepare(matrix),
            // Uploaded as a part of the first step, which is lazy.
            #[cfg(has_mlx)]
            Self::Mlx { .. } => {}
        }
    }

    /// Which backend is the first choice.
    pub fn kind(&self) -> LlmBackendKind {
        match self {
            Self::Cpu { .. } => LlmBackendKind::Cpu,
            #[cfg(has_mlx)]
            Self::Mlx { .. } => LlmBackendKind::Mlx,
        }
    }

    /// The device and what runs on it, for the summary: `cpu (avx512, 2 threads)`, `mlx (cpu device)`.
    pub fn describe(&self) -> String {
        match self {
            Self::Cpu { cpu, .. } => cpu.describe(),
            #[cfg(has_mlx)]
            Self::Mlx { mlx, .. } => mlx.describe(),
        }
    }

    fn routing(&self) -> &Routing {
        match self {
            Self::Cpu { routing, .. } => routing,
            #[cfg(has_mlx)]
            Self::Mlx { routing, .. } => routing,
        }
    }

    /// Fallbacks and replays so far; the same counters for the life of the dispatch.
    pub fn report(&self) -> &Arc<FallbackReport> {
        &self.routing().report
    }

    /// Whether fallbacks and replays are errors.
    pub fn policy(&self) -> Policy {
        self.routing().policy
    }

    /// Measures the time of every op from here on. MLX then evaluates each op by itself: what it takes in a lazy graph is
    /// less.
    pub fn start_profile(&self) {
        self.routing().profile.replace(Some(Profile::default()));
    }

    /// Ends what [`Self::start_profile`] began: the ops since, those that took longest first.
    pub fn take_profile(&self) -> Vec<OpTime> {
        self.routing().profile.take().map(Profile::into_times).unwrap_or_default()
    }

    fn is_profiling(&self) -> bool {
        self.routing().profile.borrow().is_some()
    }

    fn record(&self, op: OpKind, work: Work, started: Instant) {
        let time = started.elapsed();
        if let Some(profile) = &mut *self.routing().profile.borrow_mut() {
            profile.add(op, work, time);
        }
    }

    /// Starts a step: what a backend derived from the last step's masks and tables is dropped.
    pub fn begin_step(&self) {
        #[cfg(has_mlx)]
        if let Self::Mlx { mlx, .. } = self {
            mlx.begin_step();
        }
    }

    /// Writes a run's keys and values into a layer's cache, on the backend that the step runs on; a cache that is
    /// elsewhere moves there first.
    ///
    /// # Errors
    /// Where the shapes do not fit, or every backend fails.
    pub fn kv_write(&self, layer: &mut KvLayer, rows: KvRows<'_>, run: &Run) -> Result<()> {
        rows.check(layer, run)?;
        if !self.is_profiling() {
            return self.route_kv_write(layer, rows, run);
        }
        self.evaluate(&[rows.k, rows.v], &[layer])?;
        let started = Instant::now();
        self.route_kv_write(layer, rows, run)?;
        self.evaluate(&[], &[layer])?;
        self.record(OpKind::KvWrite, Work::kv_write(layer, run.len), started);
        Ok(())
    }

    fn route_kv_write(&self, layer: &mut KvLayer, rows: KvRows<'_>, run: &Run) -> Result<()> {
        match self {
            Self::Cpu { cpu, routing } => {
                routing.injected(OpKind::KvWrite, "cpu")?;
                cpu.kv_write(layer, rows, run)
            }
            #[cfg(has_mlx)]
            Self::Mlx { mlx, cpu, routing, on_cpu } => {
                if on_cpu.get() {
                    // Since MLX was given up: a replay begins with caches in host memory.
                    if let KvLayer::Mlx(kv) = layer {
                        *layer = KvLayer::Host(mlx.kv_to_host(kv)?);
                    }
                    return cpu.kv_write(layer, rows, run);
                }
                match routing.kept_off(OpKind::KvWrite, false) {
                    Some(kept) => routing.keep_off(kept)?,
                    None => {
                        let failed = match routing.injected(OpKind::KvWrite, "mlx") {
                            Ok(()) => mlx.kv_write(layer, rows, run),
                            injected => injected,
                        };
                        let Err(error) = failed else { return Ok(()) };
                        routing.fell_back(OpKind::KvWrite, &error)?;
                    }
                }
                let (k, v) = (self.to_host(rows.k)?, self.to_host(rows.v)?);
                if let KvLayer::Mlx(kv) = layer {
                    *layer = KvLayer::Host(mlx.kv_to_host(kv)?);
                }
                cpu.kv_write(layer, KvRows { k: &k.into(), v: &v.into() }, run)
            }
        }
    }

    /// A layer's cache in host memory, in its own type.
    ///
    /// # Errors
    /// An evaluation that failed, as [`Error::Op`] of op `eval`; a cache on MLX where the dispatch has none.
    pub fn kv_to_host(&self, layer: &KvLayer) -> Result<HostKv> {
        match layer {
            KvLayer::Host(kv) => Ok(kv.clone()),
            #[cfg(has_mlx)]
            KvLayer::Mlx(kv) => match self {
                Self::Mlx { mlx, .. } => mlx.kv_to_host(kv),
                Self::Cpu { .. } => Err(Error::Backend {
                    backend: "cpu",
                    reason: "a cache on MLX has no backend to be evaluated on".into(),
                }),
            },
        }
    }

    /// The values of a tensor where ops take them: as they are on the CPU, on MLX as an array in the type of activations,
    /// rounded to nearest even.
    ///
    /// # Errors
    /// Where MLX cannot hold the shape.
    pub fn to_backend(&self, tensor: HostTensor) -> Result<Tensor> {
        match self {
            Self::Cpu { .. } => Ok(Tensor::Host(tensor)),
            #[cfg(has_mlx)]
            Self::Mlx { mlx, on_cpu, .. } => match on_cpu.get() {
                true => Ok(Tensor::Host(tensor)),
                false => mlx.upload(&tensor).map(Tensor::Mlx),
            },
        }
    }

    /// The values of a tensor in host memory, evaluated where they were still lazy.
    ///
    /// # Errors
    /// An evaluation that failed, as [`Error::Op`] of op `eval`.
    pub fn to_host(&self, tensor: &Tensor) -> Result<HostTensor> {
        match tensor {
            Tensor::Host(host) => {
                let mut copy = match self {
                    Self::Cpu { cpu, .. } => cpu.buffer(host.data().len()),
                    #[cfg(has_mlx)]
                    Self::Mlx { cpu, .. } => cpu.buffer(host.data().len()),
                };
                copy.copy_from_slice(host.data());
                Ok(HostTensor::new(host.shape(), copy))
            }
            #[cfg(has_mlx)]
            Tensor::Mlx(array) => match self {
                Self::Mlx { mlx, .. } => mlx.download(array),
                Self::Cpu { .. } => Err(Error::Backend {
                    backend: "cpu",
                    reason: "an MLX array has no backend to be evaluated on".into(),
                }),
            },
        }
    }

    /// Evaluates what a step leaves lazy, once: its results and the caches that it wrote.
    ///
    /// # Errors
    /// [`Error::Op`] of op `eval`: the step is to be replayed.
    pub fn evaluate(&self, results: &[&Tensor], caches: &[&KvLayer]) -> Result<()> {
        self.evaluate_with(results, caches, true)
    }

    /// Starts the evaluation of a step and returns while it runs.
    ///
    /// # Errors
    /// As [`Self::evaluate`]; a failure may also surface when a result is read.
    pub fn evaluate_async(&self, results: &[&Tensor], caches: &[&KvLayer]) -> Result<()> {
        self.evaluate_with(results, caches, false)
    }

    fn evaluate_with(&self, results: &[&Tensor], caches: &[&KvLayer], wait: bool) -> Result<()> {
        match self {
            Self::Cpu { .. } => {
                let _ = (results, caches, wait);
                Ok(())
            }
            #[cfg(has_mlx)]
            Self::Mlx { mlx, routing, on_cpu, .. } => {
                if on_cpu.get() {
                    return Ok(());
                }
                routing.faults.evaluation().map_or(Ok(()), |reason| Err(eval_error(reason)))?;
                mlx.evaluate(results, caches, wait)
            }
        }
    }

    /// The greedy choice of each row of `logits` `[S, V]` as a lazy array of ids, where the backend is a lazy one.
    pub fn greedy_tokens(&self, logits: &Tensor) -> Option<Tensor> {
        match (self, logits) {
            #[cfg(has_mlx)]
            (Self::Mlx { mlx, on_cpu, .. }, Tensor::Mlx(logits)) if !on_cpu.get() => mlx.argmax(logits).ok(),
            _ => {
                let _ = logits;
                None
            }
        }
    }

    /// Whether a step that failed with `error` may be replayed on the CPU: an evaluation failed and the policy allows.
    pub fn may_replay(&self, error: &Error) -> bool {
        let evaluation = matches!(error, Error::Op { op: EVAL, .. });
        evaluation && self.kind() != LlmBackendKind::Cpu && self.policy() == Policy::Allow
    }

    /// Runs `step` with every op on the CPU, and counts it as a replay for `reason`.
    ///
    /// # Errors
    /// Those of `step`.
    pub fn replay<T>(&self, reason: &Error, step: impl FnOnce() -> Result<T>) -> Result<T> {
        self.report().count_replay(&reason.to_string());
        self.evaluation_failed(reason);
        match self {
            Self::Cpu { .. } => step(),
            #[cfg(has_mlx)]
            Self::Mlx { on_cpu, .. } => {
                /// Ends the replay even where the step panics; where MLX was given up, nothing ends.
                struct End<'a>(&'a Cell<bool>, bool);
                impl Drop for End<'_> {
                    fn drop(&mut self) {
                        self.0.set(self.1);
                    }
                }
                let _end = End(on_cpu, on_cpu.replace(true));
                step()
            }
        }
    }

    /// Counts a step whose evaluation failed with `error`, if it did. After three in a row for one reason MLX is given up:
    /// every op from here on goes to the CPU, and caches follow when they are next written to.
    pub fn evaluation_failed(&self, error: &Error) {
        #[cfg(has_mlx)]
        if let Self::Mlx { mlx, routing, on_cpu, .. } = self
            && let Error::Op { op: EVAL, reason, .. } = error
            && routing.policy == Policy::Allow
            && !on_cpu.get()
        {
            let too_often = routing.breaker.borrow_mut().failed(reason);
            if too_often {
                on_cpu.set(true);
                routing.report.leave(reason);
                mlx.give_up();
            }
        }
        let _ = error;
    }

    /// Notes that the results of a step were read: failures from here on are not in a row with those before.
    pub fn evaluation_succeeded(&self) {
        #[cfg(has_mlx)]
        if let Self::Mlx { routing, on_cpu, .. } = self
            && !on_cpu.get()
        {
            routing.breaker.borrow_mut().succeeded();
        }
    }

    /// The GPU weight cache, where the backend has one.
    #[cfg(has_mlx)]
    pub fn weight_cache(&self) -> Option<&mlx::WeightCache> {
        match self {
            Self::Cpu { .. } => None,
            Self::Mlx { mlx, .. } => Some(mlx.weights()),
        }
    }
}

/// The op name of a failed evaluation.
pub(crate) const EVAL: &str = "eval";

/// A failed evaluation on MLX.
#[cfg(has_mlx)]
pub(crate) fn eval_error(reason: impl fmt::Display) -> Error {
    Error::Op { op: EVAL, backend: "mlx", reason: reason.to_string() }
}

impl Routing {
    /// The fault that a test injected into this call of `op`, if any.
    fn injected(&self, op: OpKind, backend: &'static str) -> Result<()> {
        match self.faults.call(op) {
            None => Ok(()),
            Some(reason) => Err(Error::Op { op: op.name(), backend, reason }),
        }
    }

    /// Why `op` never goes to MLX, if it does not; `quantized` says whether this call of it is on a matrix in blocks.
    #[cfg(has_mlx)]
    fn kept_off(&self, op: OpKind, quantized: bool) -> Option<&KeptOff> {
        self.kept_off.iter().find(|kept| kept.op == op && (quantized || !kept.quantized))
    }

    /// Counts a call of an op that is kept off MLX.
    ///
    /// # Errors
    /// Under [`Policy::Deny`], where nobody asked for it.
    #[cfg(has_mlx)]
    fn keep_off(&self, kept: &KeptOff) -> Result<()> {
        if self.policy == Policy::Deny && !kept.asked {
            return Err(Error::Op { op: kept.op.name(), backend: "mlx", reason: kept.reason.clone() });
        }
        self.report.count_fallback(kept.op, &kept.reason);
        Ok(())
    }

    /// Records that MLX could not do `op`.
    ///
    /// # Errors
    /// Under [`Policy::Deny`], and for a failed evaluation, which is replayed as a step and not by op.
    #[cfg(has_mlx)]
    fn fell_back(&self, op: OpKind, error: &Error) -> Result<()> {
        let reason = match error {
            Error::Op { op: EVAL, reason, .. } => return Err(eval_error(reason)),
            Error::Op { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        if self.policy == Policy::Deny {
            return Err(Error::Op { op: op.name(), backend: "mlx", reason });
        }
        self.report.count_fallback(op, &reason);
        Ok(())
    }
}

impl Ops for LlmBackendDispatch {
    fn run(&self, op: &Op<'_>) -> Result<Outputs> {
        op.check()?;
        #[cfg(has_mlx)]
        if let Self::Mlx { mlx, routing, on_cpu, .. } = self
            && op.is_fused()
            && !on_cpu.get()
            && !mlx.fuses(op)
            && routing.kept_off(op.kind(), op.is_quantized()).is_none()
        {
            // Part by part through the dispatch, so that only the part that fails falls back.
            return ops::compose(self, op);
        }
        if !self.is_profiling() {
            return self.route(op);
        }
        let work = Work::of(op);
        self.evaluate(&op.inputs(), &[])?;
        let started = Instant::now();
        let outputs = self.route(op)?;
        self.evaluate(&outputs.iter().collect::<Vec<_>>(), &[])?;
        self.record(op.kind(), work, started);
        Ok(outputs)
    }
}

impl LlmBackendDispatch {
    /// Sends an op, of shapes that fit, to its backend.
    fn route(&self, op: &Op<'_>) -> Result<Outputs> {
        match self {
            Self::Cpu { cpu, routing } => {
                routing.injected(op.kind(), "cpu")?;
                cpu.run(op)
            }
            #[cfg(has_mlx)]
            Self::Mlx { mlx, cpu, routing, on_cpu } => {
                if on_cpu.get() {
                    return cpu.run(op);
                }
                if let Some(kept) = routing.kept_off(op.kind(), op.is_quantized()) {
                    routing.keep_off(kept)?;
                    return self.run_on_host(op, mlx, cpu);
                }
                let attempt = routing
                    .injected(op.kind(), "mlx")
                    .and_then(|()| mlx.supports(op))
                    .and_then(|()| mlx.run(op));
                let error = match attempt {
                    Ok(outputs) => return Ok(outputs),
                    Err(error) => error,
                };
                routing.fell_back(op.kind(), &error)?;
                self.run_on_host(op, mlx, cpu)
            }
        }
    }
}

#[cfg(has_mlx)]
impl LlmBackendDispatch {
    /// The fallback of one op: its inputs come to the host, the CPU kernel runs, its outputs go back to MLX, so that the
    /// rest of the step stays there.
    fn run_on_host(&self, op: &Op<'_>, mlx: &mlx::MlxBackend, cpu: &CpuBackend) -> Result<Outputs> {
        let inputs = op
            .inputs()
            .into_iter()
            .map(|tensor| Ok(Tensor::Host(self.to_host(tensor)?)))
            .collect::<Result<Vec<_>>>()?;
        let host_op = op.with_inputs(&inputs);
        let outputs = match host_op {
            Op::Attention { q, kv, mask, scale, soft_cap } => {
                let kv = kv
                    .iter()
                    .map(|layer| {
                        Ok(KvLayer::Host(match layer {
                            KvLayer::Mlx(kv) => mlx.kv_to_host(kv)?,
                            KvLayer::Host(kv) => kv.clone(),
                        }))
                    })
                    .collect::<Result<Vec<_>>>()?;
                let kv: Vec<&KvLayer> = kv.iter().collect();
                cpu.run(&Op::Attention { q, kv: &kv, mask, scale, soft_cap })?
            }
            Op::Embedding { table, tokens: batch::Tokens::Pending(_), scale } => {
                let ids = inputs[0].shape().len();
                debug_assert_eq!(ids, 1, "pending ids are a vector");
                let Tensor::Host(ids) = &inputs[0] else { unreachable!("inputs were brought to the host") };
                let ids = ids.data().iter().map(|&id| id as u32).collect();
                cpu.run(&Op::Embedding { table, tokens: &batch::Tokens::Known(ids), scale })?
            }
            host_op => cpu.run(&host_op)?,
        };
        outputs
            .into_iter()
            .map(|tensor| match tensor {
                Tensor::Host(host) => mlx.upload(&host).map(Tensor::Mlx),
                array => Ok(array),
            })
            .collect()
    }
}
