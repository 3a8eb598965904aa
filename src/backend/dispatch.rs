//! The dispatch: routes every op of a model to the backend that runs it.

mod backend;

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use smallvec::{SmallVec, smallvec};

use super::check;
use super::cpu::CpuBackend;
use super::fallback::{FallbackReport, Policy, Routing};
use super::kind::LlmBackendKind;
use super::kv::HostKv;
use super::mlx::{MlxBackend, MlxTensor, WeightCache};
use super::ops::{self, Backend, EVAL, KvRows, OpKind, Outputs, Run};
use super::profile::{OpTime, OpWork, Profile};
use super::ranks::Rank;
use super::values::{LayerState, PreparedMatrix, Tensor};
use crate::error::{Error, Result};
use crate::quant::Matrix;
use crate::tensor::{DType, HostTensor};

/// An op on what may live on either backend.
pub type Op<'a> = ops::Op<'a, LlmBackendDispatch>;

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
    Mlx {
        /// The first choice of every op.
        mlx: Box<MlxBackend>,
        /// The backstop.
        cpu: CpuBackend,
        /// Counters, faults, policy.
        routing: Routing,
        /// Set while a step is replayed, and for good once MLX was given up: every op goes to the CPU and none of them counts
        /// as a fallback.
        on_cpu: Cell<bool>,
    },
}

/// Copies of operands that one op found on the other backend. Most ops find none, and every op passes here: so it is small.
pub(super) struct Copies<'a, T, C>(SmallVec<[(&'a T, Box<C>); 1]>);

impl<'a, T, C> Copies<'a, T, C> {
    fn new() -> Self {
        Self(SmallVec::new())
    }

    fn add(&mut self, of: &'a T, copy: C) {
        self.0.push((of, Box::new(copy)));
    }

    fn of(&self, operand: &T) -> Result<&C> {
        let copy = self.0.iter().find(|(of, _)| std::ptr::eq(*of, operand));
        let missing = || Error::Backend { backend: "dispatch", reason: "an operand was not copied".into() };
        copy.map(|(_, copy)| &**copy).ok_or_else(missing)
    }
}

/// Copies of tensors in host memory.
pub(super) type HostCopies<'a> = Copies<'a, Tensor, HostTensor>;

/// Copies of tensors on MLX.
pub(super) type MlxCopies<'a> = Copies<'a, Tensor, MlxTensor>;

impl HostCopies<'_> {
    pub(super) fn tensor<'b>(&'b self, tensor: &'b Tensor) -> Result<&'b HostTensor> {
        match tensor {
            Tensor::Host(host) => Ok(host),
            Tensor::Mlx(_) => self.of(tensor),
        }
    }
}

impl MlxCopies<'_> {
    pub(super) fn tensor<'b>(&'b self, tensor: &'b Tensor) -> Result<&'b MlxTensor> {
        match tensor {
            Tensor::Mlx(array) => Ok(array),
            Tensor::Host(_) => self.of(tensor),
        }
    }
}

/// The states that an op reads: as many as the engine has sequences by default.
type States<'a, T> = SmallVec<[&'a T; 16]>;

impl LlmBackendDispatch {
    /// Everything on the CPU kernels.
    pub fn cpu(cpu: CpuBackend, routing: Routing) -> Self {
        Self::Cpu { cpu, routing }
    }

    /// MLX's default device first, computing activations in `dtype`. Where the device is a GPU, kernels that compute wrong are
    /// found and kept off first.
    ///
    /// # Errors
    /// Where no device answers, and in a build without MLX.
    pub fn mlx(dtype: DType, cpu: CpuBackend, mut routing: Routing) -> Result<Self> {
        let mlx = Box::new(MlxBackend::new(dtype)?);
        routing.keep_all_off(check::wrong_kernels(&mlx, dtype, &routing.faults));
        Ok(Self::Mlx { mlx, cpu, routing, on_cpu: Cell::new(false) })
    }

    /// The dispatch of a backend that was selected; `dtype` is the type of activations on MLX.
    ///
    /// # Errors
    /// As [`Self::mlx`].
    pub fn of(kind: LlmBackendKind, dtype: DType, cpu: CpuBackend, routing: Routing) -> Result<Self> {
        match kind {
            LlmBackendKind::Cpu => Ok(Self::cpu(cpu, routing)),
            LlmBackendKind::Mlx => Self::mlx(dtype, cpu, routing),
        }
    }

    /// Which backend is the first choice.
    pub fn kind(&self) -> LlmBackendKind {
        match self {
            Self::Cpu { .. } => LlmBackendKind::Cpu,
            Self::Mlx { .. } => LlmBackendKind::Mlx,
        }
    }

    /// The device and what runs on it, for the summary: `cpu (avx512, 2 threads)`, `mlx (cpu device)`.
    pub fn describe(&self) -> String {
        match self {
            Self::Cpu { cpu, .. } => cpu.describe(),
            Self::Mlx { mlx, .. } => mlx.describe(),
        }
    }

    pub(super) fn routing(&self) -> &Routing {
        match self {
            Self::Cpu { routing, .. } | Self::Mlx { routing, .. } => routing,
        }
    }

    /// The CPU kernels, which every dispatch has.
    pub(super) fn kernels(&self) -> &CpuBackend {
        match self {
            Self::Cpu { cpu, .. } | Self::Mlx { cpu, .. } => cpu,
        }
    }

    /// MLX, for what lives there.
    pub(super) fn device(&self) -> Result<&MlxBackend> {
        match self {
            Self::Mlx { mlx, .. } => Ok(mlx),
            Self::Cpu { .. } => Err(Error::Backend {
                backend: "cpu",
                reason: "what lives on MLX was made by another dispatch".into(),
            }),
        }
    }

    /// Prepares a table of which rows are looked up, and nothing else: it stays where its file has it, whatever the backend, and its
    /// rows are copied.
    pub(crate) fn table(&self, matrix: &Matrix) -> PreparedMatrix {
        PreparedMatrix { cpu: self.kernels().matrix(matrix), mlx: None }
    }

    /// Joins the other ranks, as MLX's [variables](super::ranks::VARIABLES) say; waits until all are there.
    ///
    /// # Errors
    /// Ranks that do not find each other; a dispatch that runs everything on the CPU.
    pub fn join_ranks(&self) -> Result<Rank> {
        match self {
            Self::Mlx { mlx, .. } => mlx.join(),
            Self::Cpu { .. } => Err(Error::Backend {
                backend: "cpu",
                reason: "several ranks compute by MLX's distributed layer: --backend mlx has it".to_owned(),
            }),
        }
    }

    /// Which rank it is.
    pub fn rank(&self) -> Rank {
        match self {
            Self::Mlx { mlx, .. } => mlx.rank(),
            Self::Cpu { .. } => Rank::ALONE,
        }
    }

    /// The sums of what all ranks have for each of `words`, which are as many everywhere.
    ///
    /// # Errors
    /// Where another rank is lost, or there is none.
    pub(crate) fn sum_words(&self, words: &[u32]) -> Result<Vec<u32>> {
        self.device()?.sum_words(words)
    }

    /// Fallbacks and replays so far; the same counters for the life of the dispatch.
    pub fn report(&self) -> &Arc<FallbackReport> {
        &self.routing().report
    }

    /// Whether fallbacks and replays are errors.
    pub fn policy(&self) -> Policy {
        self.routing().policy
    }

    /// The GPU weight cache, where the backend has one.
    pub fn weight_cache(&self) -> Option<&WeightCache> {
        match self {
            Self::Cpu { .. } => None,
            Self::Mlx { mlx, .. } => Some(mlx.weights()),
        }
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

    pub(super) fn record(&self, op: OpKind, work: OpWork, started: Instant) {
        let time = started.elapsed();
        if let Some(profile) = &mut *self.routing().profile.borrow_mut() {
            profile.add(op, work, time);
        }
    }

    /// The values of a tensor in host memory, evaluated where they were still lazy.
    ///
    /// # Errors
    /// An evaluation that failed, as [`Error::Op`] of op `eval`.
    pub fn to_host(&self, tensor: &Tensor) -> Result<HostTensor> {
        match tensor {
            Tensor::Host(host) => self.kernels().to_host(host),
            Tensor::Mlx(array) => self.device()?.to_host(array),
        }
    }

    /// A state in host memory, in its own type.
    ///
    /// # Errors
    /// An evaluation that failed, as [`Error::Op`] of op `eval`; a state on MLX where the dispatch has none.
    pub fn state_to_host(&self, state: &LayerState) -> Result<HostKv> {
        match state {
            LayerState::Host(kv) => Ok(kv.clone()),
            LayerState::Mlx(kv) => self.device()?.kv_to_host(kv),
        }
    }

    /// The greedy choice of each row of `logits` `[S, V]` as a lazy tensor of ids, where the backend is a lazy one.
    pub fn greedy_tokens(&self, logits: &Tensor) -> Option<Tensor> {
        match (self, logits) {
            // Other ranks are told of tokens that are known.
            (Self::Mlx { mlx, on_cpu, .. }, Tensor::Mlx(logits))
                if !on_cpu.get() && mlx.rank().is_alone() =>
            {
                mlx.argmax(logits).ok().map(Tensor::Mlx)
            }
            _ => None,
        }
    }

    /// The ids that a tensor of them holds, evaluated where they were still lazy.
    ///
    /// # Errors
    /// An evaluation that failed, as [`Error::Op`] of op `eval`; a tensor of anything else.
    pub fn ids(&self, tensor: &Tensor) -> Result<Vec<u32>> {
        let host = self.to_host(tensor)?;
        let what = || Error::shape("ids", format!("a tensor of {}, expected u32", host.element()));
        host.as_u32().map(<[u32]>::to_vec).ok_or_else(what)
    }

    /// Whether a step that failed with `error` may be replayed on the CPU: an evaluation failed and the policy allows.
    pub fn may_replay(&self, error: &Error) -> bool {
        let evaluation = matches!(error, Error::Op { op: EVAL, .. });
        // The others would not know of it.
        evaluation
            && self.rank().is_alone()
            && self.kind() != LlmBackendKind::Cpu
            && self.policy() == Policy::Allow
    }

    /// Runs `step` with every op on the CPU, and counts it as a replay for `reason`.
    ///
    /// # Errors
    /// Those of `step`.
    pub fn replay<T>(&self, reason: &Error, step: impl FnOnce() -> Result<T>) -> Result<T> {
        /// Ends the replay even where the step panics; where MLX was given up, nothing ends.
        struct End<'a>(&'a Cell<bool>, bool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.set(self.1);
            }
        }
        self.report().count_replay(&reason.to_string());
        self.evaluation_failed(reason);
        match self {
            Self::Cpu { .. } => step(),
            Self::Mlx { on_cpu, .. } => {
                let _end = End(on_cpu, on_cpu.replace(true));
                step()
            }
        }
    }

    /// Counts a step whose evaluation failed with `error`, if it did. After three in a row for one reason MLX is given up:
    /// every op from here on goes to the CPU, and states follow when they are next written to.
    pub fn evaluation_failed(&self, error: &Error) {
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
    }

    /// Notes that the results of a step were read: failures from here on are not in a row with those before.
    pub fn evaluation_succeeded(&self) {
        if let Self::Mlx { routing, on_cpu, .. } = self
            && !on_cpu.get()
        {
            routing.breaker.borrow_mut().succeeded();
        }
    }

    /// Starts the evaluation of a step and returns while it runs.
    ///
    /// # Errors
    /// As [`Backend::evaluate`]; a failure may also surface when a result is read.
    pub fn evaluate_async(&self, results: &[&Tensor], states: &[&LayerState]) -> Result<()> {
        self.evaluate(results, states, &[], false)
    }

    /// Copies of those of `tensors` that are not in host memory.
    pub(super) fn copies_on_host<'a>(&self, tensors: &[&'a Tensor]) -> Result<HostCopies<'a>> {
        let mut copies = HostCopies::new();
        for tensor in tensors {
            if let Tensor::Mlx(array) = tensor {
                copies.add(tensor, self.device()?.to_host(array)?);
            }
        }
        Ok(copies)
    }

    /// Copies of those of `tensors` that are not on MLX.
    pub(super) fn copies_on_mlx<'a>(
        &self,
        mlx: &MlxBackend,
        tensors: &[&'a Tensor],
    ) -> Result<MlxCopies<'a>> {
        let mut copies = MlxCopies::new();
        for tensor in tensors {
            if let Tensor::Host(host) = tensor {
                copies.add(tensor, mlx.to_backend(self.kernels().to_host(host)?)?);
            }
        }
        Ok(copies)
    }

    /// Never inlined: beside MLX it is the rare way, and every op would step over it.
    #[inline(never)]
    fn run_on_cpu(&self, op: &Op<'_>) -> Result<Outputs<CpuBackend>> {
        let tensors = self.copies_on_host(&op.inputs())?;
        let mut copied = Copies::new();
        for state in op.states() {
            if let LayerState::Mlx(kv) = state {
                copied.add(*state, self.device()?.kv_to_host(kv)?);
            }
        }
        let mut states = States::new();
        for state in op.states() {
            states.push(match state {
                LayerState::Host(kv) => kv,
                LayerState::Mlx(_) => copied.of(state)?,
            });
        }
        let tensor = |tensor| tensors.tensor(tensor);
        let op = op.on(
            &states,
            tensor,
            |matrix| Ok(&matrix.cpu),
            |stack| Ok(&stack.cpu),
            |vector| Ok(&vector.cpu),
        )?;
        self.kernels().run(&op)
    }

    fn run_on_mlx(&self, mlx: &MlxBackend, op: &Op<'_>) -> Result<Outputs<MlxBackend>> {
        let tensors = self.copies_on_mlx(mlx, &op.inputs())?;
        let mut copied = Copies::new();
        for state in op.states() {
            if let LayerState::Host(kv) = state {
                copied.add(*state, mlx.kv_from_host(kv)?);
            }
        }
        let mut states = States::new();
        for state in op.states() {
            states.push(match state {
                LayerState::Mlx(kv) => kv,
                LayerState::Host(_) => copied.of(state)?,
            });
        }
        let op = op.on(
            &states,
            |tensor| tensors.tensor(tensor),
            |matrix| matrix.mlx.as_ref().ok_or_else(unprepared),
            |stack| stack.mlx.as_ref().ok_or_else(unprepared),
            |vector| vector.mlx.as_ref().ok_or_else(unprepared),
        )?;
        mlx.supports(&op)?;
        mlx.run(&op)
    }

    /// [`Self::route`] with what came before evaluated, and the time it took recorded.
    #[cold]
    fn measured(&self, op: &Op<'_>) -> Result<Outputs<Self>> {
        let work = OpWork::of(op);
        self.evaluate(&op.inputs(), &[], &[], true)?;
        let started = Instant::now();
        let outputs = self.route(op)?;
        self.evaluate(&outputs.iter().collect::<Vec<_>>(), &[], &[], true)?;
        self.record(op.kind(), work, started);
        Ok(outputs)
    }

    /// Sends an op, of shapes that fit, to its backend.
    fn route(&self, op: &Op<'_>) -> Result<Outputs<Self>> {
        match self {
            Self::Cpu { routing, .. } => {
                routing.injected(op.kind(), "cpu")?;
                self.run_on_cpu(op).map(|outputs| each(outputs, Tensor::Host))
            }
            // There is nothing to fall back to.
            Self::Mlx { mlx, routing, .. } if matches!(op, Op::AllSum { .. }) => {
                routing.injected(op.kind(), "mlx")?;
                self.run_on_mlx(mlx, op).map(|outputs| each(outputs, Tensor::Mlx))
            }
            Self::Mlx { on_cpu, .. } if on_cpu.get() => {
                self.run_on_cpu(op).map(|outputs| each(outputs, Tensor::Host))
            }
            // A table that stays in host memory: it is read there, which is no fallback.
            Self::Mlx { mlx, .. } if matches!(op, Op::Embedding { table, .. } if table.mlx.is_none()) => {
                self.run_behind(mlx, op)
            }
            Self::Mlx { mlx, routing, .. } => {
                match routing.kept_off(op.kind(), || op.is_quantized()) {
                    Some(kept) => routing.keep_off(kept)?,
                    None => {
                        let attempt =
                            routing.injected(op.kind(), "mlx").and_then(|()| self.run_on_mlx(mlx, op));
                        match attempt {
                            Ok(outputs) => return Ok(each(outputs, Tensor::Mlx)),
                            Err(error) => routing.fell_back(op.kind(), &error)?,
                        }
                    }
                }
                self.run_behind(mlx, op)
            }
        }
    }

    /// Runs an op on the CPU that MLX does not do. The outputs go back, so that the rest of the step stays there.
    #[cold]
    fn run_behind(&self, mlx: &MlxBackend, op: &Op<'_>) -> Result<Outputs<Self>> {
        let outputs = self.run_on_cpu(op)?.into_iter();
        outputs.map(|output| mlx.to_backend(output).map(Tensor::Mlx)).collect()
    }

    fn route_write(&self, state: &mut LayerState, rows: KvRows<'_, Self>, run: &Run) -> Result<()> {
        match self {
            Self::Cpu { routing, .. } => {
                routing.injected(OpKind::KvWrite, "cpu")?;
                self.write_on_cpu(state, rows, run)
            }
            // Since MLX was given up: a replay begins with states in host memory.
            Self::Mlx { on_cpu, .. } if on_cpu.get() => self.write_on_cpu(state, rows, run),
            Self::Mlx { mlx, routing, .. } => {
                match routing.kept_off(OpKind::KvWrite, || false) {
                    Some(kept) => routing.keep_off(kept)?,
                    None => {
                        let attempt = routing
                            .injected(OpKind::KvWrite, "mlx")
                            .and_then(|()| self.write_on_mlx(mlx, state, rows, run));
                        match attempt {
                            Ok(()) => return Ok(()),
                            Err(error) => routing.fell_back(OpKind::KvWrite, &error)?,
                        }
                    }
                }
                self.write_on_cpu(state, rows, run)
            }
        }
    }

    fn write_on_cpu(&self, state: &mut LayerState, rows: KvRows<'_, Self>, run: &Run) -> Result<()> {
        let copies = self.copies_on_host(&[rows.k, rows.v])?;
        let rows = KvRows { k: copies.tensor(rows.k)?, v: copies.tensor(rows.v)? };
        match state {
            LayerState::Host(kv) => self.kernels().write(kv, rows, run),
            LayerState::Mlx(kv) => {
                let mut host = self.device()?.kv_to_host(kv)?;
                let written = self.kernels().write(&mut host, rows, run);
                *state = LayerState::Host(host);
                written
            }
        }
    }

    fn write_on_mlx(
        &self,
        mlx: &MlxBackend,
        state: &mut LayerState,
        rows: KvRows<'_, Self>,
        run: &Run,
    ) -> Result<()> {
        let copies = self.copies_on_mlx(mlx, &[rows.k, rows.v])?;
        let rows = KvRows { k: copies.tensor(rows.k)?, v: copies.tensor(rows.v)? };
        match state {
            LayerState::Mlx(kv) => mlx.write(kv, rows, run),
            LayerState::Host(host) => {
                let mut kv = mlx.kv_from_host(host)?;
                let written = mlx.write(&mut kv, rows, run);
                *state = LayerState::Mlx(kv);
                written
            }
        }
    }
}

/// The outputs of a backend as those of the dispatch. Nearly always there is one, which costs no loop.
fn each<T>(outputs: SmallVec<[T; 1]>, tensor: impl Fn(T) -> Tensor) -> Outputs<LlmBackendDispatch> {
    match outputs.into_inner() {
        Ok([output]) => smallvec![tensor(output)],
        Err(outputs) => outputs.into_iter().map(tensor).collect(),
    }
}

/// A weight that was prepared where there is no MLX.
pub(super) fn unprepared() -> Error {
    Error::Backend { backend: "mlx", reason: "a weight was prepared by another dispatch".into() }
}
