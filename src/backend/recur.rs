//! Recurrences through the dispatch: MLX first, the CPU behind it, each with the states where it keeps them.

use std::time::Instant;

use super::dispatch::{LlmBackendDispatch, unprepared};
use super::mlx::MlxRecurrent;
use super::ops::{Backend, OpKind, Recur, Recurrent, RecurrentShape, Run};
use super::profile::OpWork;
use super::recurrent::HostRecurrent;
use super::values::{RecurrentState, Tensor};
use crate::error::Result;

impl LlmBackendDispatch {
    /// Sends a recurrence, of shapes that fit, to its backend.
    pub(super) fn route_recur(
        &self,
        states: &mut [&mut RecurrentState],
        op: &Recur<'_, Self>,
        runs: &[Run],
    ) -> Result<Tensor> {
        let kind = op.kind();
        match self {
            Self::Cpu { routing, .. } => {
                routing.injected(kind, "cpu")?;
                self.recur_on_cpu(states, op, runs)
            }
            Self::Mlx { on_cpu, .. } if on_cpu.get() => self.recur_on_cpu(states, op, runs),
            Self::Mlx { mlx, routing, .. } => {
                match routing.kept_off(kind, || false) {
                    Some(kept) => routing.keep_off(kept)?,
                    None => {
                        let attempt =
                            routing.injected(kind, "mlx").and_then(|()| self.recur_on_mlx(states, op, runs));
                        match attempt {
                            Ok(output) => return Ok(output),
                            Err(error) => routing.fell_back(kind, &error)?,
                        }
                    }
                }
                match self.recur_on_cpu(states, op, runs)? {
                    Tensor::Host(output) => mlx.to_backend(output).map(Tensor::Mlx),
                    output => Ok(output),
                }
            }
        }
    }

    fn recur_on_cpu(
        &self,
        states: &mut [&mut RecurrentState],
        op: &Recur<'_, Self>,
        runs: &[Run],
    ) -> Result<Tensor> {
        let copies = self.copies_on_host(&op.inputs())?;
        for state in states.iter_mut() {
            if let RecurrentState::Mlx(own) = &**state {
                **state = RecurrentState::Host(self.device()?.recurrent_to_host(own)?);
            }
        }
        let mut host: Vec<&mut HostRecurrent> = Vec::with_capacity(states.len());
        for state in states.iter_mut() {
            if let RecurrentState::Host(state) = &mut **state {
                host.push(state);
            }
        }
        let op = op.on(|tensor| copies.tensor(tensor), |vector| Ok(&vector.cpu))?;
        self.kernels().recur(&mut host, &op, runs).map(Tensor::Host)
    }

    fn recur_on_mlx(
        &self,
        states: &mut [&mut RecurrentState],
        op: &Recur<'_, Self>,
        runs: &[Run],
    ) -> Result<Tensor> {
        let mlx = self.device()?;
        let copies = self.copies_on_mlx(mlx, &op.inputs())?;
        for state in states.iter_mut() {
            if let RecurrentState::Host(own) = &**state {
                **state = RecurrentState::Mlx(mlx.recurrent_from_host(own)?);
            }
        }
        let mut on_mlx: Vec<&mut MlxRecurrent> = Vec::with_capacity(states.len());
        for state in states.iter_mut() {
            if let RecurrentState::Mlx(state) = &mut **state {
                on_mlx.push(state);
            }
        }

        let op =
            op.on(|tensor| copies.tensor(tensor), |vector| vector.mlx.as_ref().ok_or_else(unprepared))?;
        mlx.recur(&mut on_mlx, &op, runs).map(Tensor::Mlx)
    }

    /// [`Self::route_recur`] with what came before evaluated, and the time it took recorded.
    pub(super) fn measured_recur(
        &self,
        states: &mut [&mut RecurrentState],
        op: &Recur<'_, Self>,
        runs: &[Run],
    ) -> Result<Tensor> {
        self.evaluate(&op.inputs(), &[], &[], true)?;
        let started = Instant::now();
        let output = self.route_recur(states, op, runs)?;
        let shared: Vec<&RecurrentState> = states.iter().map(|state| &**state).collect();
        self.evaluate(&[&output], &[], &shared, true)?;
        let work = states.first().map(|state| OpWork::recurrence(state.shape(), op.kind(), runs));
        self.record(op.kind(), work.unwrap_or_default(), started);
        Ok(output)
    }
}

impl OpWork {
    /// The work of a recurrence over `runs`: states are read and written once a run.
    fn recurrence(shape: &RecurrentShape, kind: OpKind, runs: &[Run]) -> Self {
        let tokens: usize = runs.iter().map(|run| run.len).sum();
        let (elements, each) = match kind {
            OpKind::Convolution => (shape.taps * shape.channels, 2 * (shape.taps + 1) * shape.channels),
            // Decay, a change and a product.
            OpKind::Scan => {
                let elements = shape.heads * shape.rows * shape.columns;
                (elements, 5 * elements)
            }
            // Decay, a product, a change and another product.
            _ => {
                let elements = shape.heads * shape.rows * shape.columns;
                (elements, 7 * elements)
            }
        };
        let bytes = 2 * runs.len() * elements * size_of::<f32>();
        Self { matrix: String::new(), bytes: bytes as u64, operations: (tokens * each) as u64 }
    }
}
