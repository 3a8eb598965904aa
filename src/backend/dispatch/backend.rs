//! The dispatch as a backend: what runs where.

use std::time::Instant;

use super::super::ops::{
    self, Backend, KvRows, OpKind, Operands, Outputs, Recur, RecurrentShape, Run, State,
};
use super::super::profile::OpWork;
use super::super::values::{
    LayerState, PreparedMatrix, PreparedStack, PreparedVector, RecurrentState, Tensor,
};
use super::{LlmBackendDispatch, Op};
use crate::backend::kv::KvShape;
use crate::error::Result;
use crate::quant::{Matrix, Stack};
use crate::tensor::{HostTensor, Weight};

impl Operands for LlmBackendDispatch {
    type Tensor = Tensor;
    type Matrix = PreparedMatrix;
    type Stack = PreparedStack;
    type Vector = PreparedVector;
    type State = LayerState;
    type Recurrent = RecurrentState;
}

impl Backend for LlmBackendDispatch {
    fn describe(&self) -> String {
        self.describe()
    }

    fn matrix(&self, matrix: &Matrix) -> PreparedMatrix {
        let mlx = match self {
            Self::Cpu { .. } => None,
            Self::Mlx { mlx, .. } => Some(mlx.matrix(matrix)),
        };
        PreparedMatrix { cpu: self.kernels().matrix(matrix), mlx }
    }

    fn stack(&self, stack: &Stack) -> PreparedStack {
        let mlx = match self {
            Self::Cpu { .. } => None,
            Self::Mlx { mlx, .. } => Some(mlx.stack(stack)),
        };
        PreparedStack { cpu: self.kernels().stack(stack), mlx }
    }

    fn vector(&self, weight: &Weight) -> PreparedVector {
        let mlx = match self {
            Self::Cpu { .. } => None,
            Self::Mlx { mlx, .. } => Some(mlx.vector(weight)),
        };
        PreparedVector { cpu: self.kernels().vector(weight), mlx }
    }

    fn ready(&self, matrix: &PreparedMatrix) -> Result<()> {
        match (self, &matrix.mlx) {
            (Self::Mlx { mlx, .. }, Some(matrix)) => mlx.ready(matrix),
            _ => self.kernels().ready(&matrix.cpu),
        }
    }

    /// A fused op that MLX has no kernel for is composed here.
    fn fuses(&self, _op: OpKind) -> bool {
        true
    }

    fn supports(&self, _op: &Op<'_>) -> Result<()> {
        Ok(())
    }

    fn run(&self, op: &Op<'_>) -> Result<Outputs<Self>> {
        op.check()?;
        if let Self::Mlx { mlx, routing, on_cpu, .. } = self
            && op.kind().is_fused()
            && !on_cpu.get()
            && !mlx.fuses(op.kind())
            && routing.kept_off(op.kind(), || op.is_quantized()).is_none()
        {
            // Part by part through the dispatch, so that only the part that fails falls back.
            return ops::compose(self, op);
        }
        if self.is_observing() {
            self.observe(op)?;
        }
        if self.is_profiling() {
            return self.measured(op);
        }
        self.route(op)
    }

    fn begin_step(&self) {
        if let Self::Mlx { mlx, .. } = self {
            mlx.begin_step();
        }
    }

    /// An empty state where the next step will write it.
    fn state(&self, shape: &KvShape, window: Option<usize>) -> LayerState {
        match self {
            Self::Mlx { mlx, on_cpu, .. } if !on_cpu.get() => LayerState::Mlx(mlx.state(shape, window)),
            _ => LayerState::Host(self.kernels().state(shape, window)),
        }
    }

    /// Writes on the backend that the step runs on; a state that is elsewhere moves there first.
    fn write(&self, state: &mut LayerState, rows: KvRows<'_, Self>, run: &Run) -> Result<()> {
        rows.check(state, run)?;
        if !self.is_profiling() {
            return self.route_write(state, rows, run);
        }
        self.evaluate(&[rows.k, rows.v], &[state], &[], true)?;
        let started = Instant::now();
        self.route_write(state, rows, run)?;
        self.evaluate(&[], &[state], &[], true)?;
        self.record(OpKind::KvWrite, OpWork::kv_write(State::shape(state), run.len), started);
        Ok(())
    }

    fn recurrent(&self, shape: &RecurrentShape) -> RecurrentState {
        match self {
            Self::Mlx { mlx, on_cpu, .. } if !on_cpu.get() => RecurrentState::Mlx(mlx.recurrent(shape)),
            _ => RecurrentState::Host(self.kernels().recurrent(shape)),
        }
    }

    fn recur(
        &self,
        states: &mut [&mut RecurrentState],
        op: &Recur<'_, Self>,
        runs: &[Run],
    ) -> Result<Tensor> {
        op.check(states, runs)?;
        match self.is_profiling() {
            true => self.measured_recur(states, op, runs),
            false => self.route_recur(states, op, runs),
        }
    }

    fn evaluate(
        &self,
        results: &[&Tensor],
        states: &[&LayerState],
        recurrent: &[&RecurrentState],
        wait: bool,
    ) -> Result<()> {
        let Self::Mlx { mlx, routing, on_cpu, .. } = self else { return Ok(()) };
        if on_cpu.get() {
            return Ok(());
        }
        routing.injected_evaluation()?;
        let results = results.iter().filter_map(|result| match result {
            Tensor::Mlx(array) => Some(array),
            Tensor::Host(_) => None,
        });
        let states = states.iter().filter_map(|state| match state {
            LayerState::Mlx(kv) => Some(kv),
            LayerState::Host(_) => None,
        });
        let recurrent = recurrent.iter().filter_map(|state| match state {
            RecurrentState::Mlx(state) => Some(state),
            RecurrentState::Host(_) => None,
        });
        let (results, states) = (results.collect::<Vec<_>>(), states.collect::<Vec<_>>());
        mlx.evaluate(&results, &states, &recurrent.collect::<Vec<_>>(), wait)
    }

    fn to_backend(&self, tensor: HostTensor) -> Result<Tensor> {
        match self {
            Self::Mlx { mlx, on_cpu, .. } if !on_cpu.get() => mlx.to_backend(tensor).map(Tensor::Mlx),
            _ => Ok(Tensor::Host(tensor)),
        }
    }

    fn to_host(&self, tensor: &Tensor) -> Result<HostTensor> {
        self.to_host(tensor)
    }
}
