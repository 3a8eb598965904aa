//! Recurrences on the CPU: states in host memory, a run after the other.

use std::ops::Range;

use super::backend::CpuBackend;
use super::kernels::pointwise;
use super::kernels::recurrent::{self, Convolution, Delta, Scan};
use super::operands::CpuVector;
use crate::alloc;
use crate::backend::ops::{Recur, Recurrent, RecurrentShape, Run};
use crate::backend::recurrent::{HostRecurrent, REPLAYED, RecurrentPart, Replay};
use crate::config::Activation;
use crate::error::Result;
use crate::tensor::HostTensor;

impl CpuBackend {
    /// [`Backend::recur`](crate::backend::ops::Backend::recur), of shapes that fit.
    pub(super) fn recurrence(
        &self,
        states: &mut [&mut HostRecurrent],
        op: &Recur<'_, Self>,
        runs: &[Run],
    ) -> Result<HostTensor> {
        match *op {
            Recur::Convolution { x, beside, weight, bias, activation } => match beside {
                [None, None] => self.convolution(states, x, (weight, bias), activation, runs),
                _ => {
                    let x = self.side_by_side(&op.inputs())?;
                    self.convolution(states, &x, (weight, bias), activation, runs)
                }
            },
            Recur::Delta { qkv, beta, strength, gate, rate, shift, key_heads, in_turn } => {
                let heads = (key_heads, in_turn);
                self.delta(states, [qkv, beta, gate], strength, [rate, shift], heads, runs)
            }
            Recur::Scan { vkq, dt, rate, shift, skip, groups, limits } => {
                self.scan(states, [vkq, dt], [rate, shift, skip], groups, limits, runs)
            }
        }
    }

    /// The columns of `parts`, which have as many rows, in one tensor.
    fn side_by_side(&self, parts: &[&HostTensor]) -> Result<HostTensor> {
        let rows = parts.first().map_or(0, |part| part.shape()[0]);
        let width = parts.iter().map(|part| part.shape()[1]).sum::<usize>();
        let mut all = self.buffer(rows * width)?;
        for (row, to) in all.chunks_exact_mut(width).enumerate() {
            let mut first = 0;
            for part in parts {
                let own = part.shape()[1];
                to[first..first + own].copy_from_slice(&part.data()[row * own..][..own]);
                first += own;
            }
        }
        Ok(HostTensor::new(&[rows, width], all))
    }

    fn convolution(
        &self,
        states: &mut [&mut HostRecurrent],
        x: &HostTensor,
        (weight, bias): (&CpuVector, Option<&CpuVector>),
        activation: Option<Activation>,
        runs: &[Run],
    ) -> Result<HostTensor> {
        const PART: RecurrentPart = RecurrentPart::Rows;
        let (weight, bias) = (weight.values()?, bias.map(CpuVector::values).transpose()?);
        let (pool, isa) = self.kernels();
        let channels = x.shape()[1];
        let mut out = self.buffer(x.data().len())?;
        for (state, run) in states.iter_mut().zip(runs) {
            let rows = run.row * channels..(run.row + run.len) * channels;
            let (before, after) = state.begin(PART, run.start)?;
            let (x, out) = (&x.data()[rows.clone()], &mut out[rows]);
            let of = Convolution { before, x, weight, bias, channels };
            recurrent::convolve(pool, &of, out, after);
        }
        let replay = |run: &Run| {
            let rows = replayed(run)?;
            let x = kept(&x.data()[rows.start * channels..rows.end * channels])?;
            Some(Replay::new(move |tokens, before, after| {
                recurrent::shift(before, &x[..tokens * channels], after)
            }))
        };
        if let Some(activation) = activation {
            pointwise::unary_in_place(pool, isa, activation.into(), &mut out);
        }
        let advanced = states.iter_mut().zip(runs);
        advanced.for_each(|(state, run)| state.commit(PART, run.start, run.end(), replay(run)));
        Ok(HostTensor::new(x.shape(), out))
    }

    fn delta(
        &self,
        states: &mut [&mut HostRecurrent],
        [qkv, beta, gate]: [&HostTensor; 3],
        strength: f32,
        [rate, shift]: [&CpuVector; 2],
        (key_heads, in_turn): (usize, bool),
        runs: &[Run],
    ) -> Result<HostTensor> {
        const PART: RecurrentPart = RecurrentPart::Matrices;
        let Some(first) = states.first() else { return Ok(HostTensor::from_vec(&[0, 0], Vec::new())) };
        let RecurrentShape { heads, rows, columns, .. } = *first.shape();
        let (pool, isa) = self.kernels();
        let (tokens, width, decays) = (qkv.shape()[0], qkv.shape()[1], gate.shape()[1]);
        let (keys, values) = (2 * key_heads * rows, heads * columns);
        let mut qk = self.buffer(tokens * keys)?;
        for (to, from) in qk.chunks_exact_mut(keys).zip(qkv.data().chunks_exact(width)) {
            to.copy_from_slice(&from[..keys]);
        }
        recurrent::unit(pool, &mut qk, key_heads, rows);
        let copied = |of: &HostTensor| -> Result<crate::tensor::Buffer> {
            let mut copy = self.buffer(of.data().len())?;
            copy.copy_from_slice(of.data());
            Ok(copy)
        };
        let (mut beta, mut decay) = (copied(beta)?, copied(gate)?);
        recurrent::factors(&mut beta, strength, &mut decay, rate.values()?, shift.values()?);
        let mut out = self.buffer(tokens * heads * columns)?;
        for (state, run) in states.iter_mut().zip(runs).filter(|(_, run)| run.len > 0) {
            let part = |width: usize| run.row * width..(run.row + run.len) * width;
            let of = Delta {
                qk: &qk[part(keys)],
                v: &qkv.data()[part(width)][keys..],
                v_stride: width,
                beta: &beta[part(heads)],
                decay: &decay[part(decays)],
                key_heads,
                in_turn,
                heads,
                rows,
                columns,
            };
            let (before, after) = state.begin(PART, run.start)?;
            recurrent::delta(pool, isa, of, before, after, Some(&mut out[part(heads * columns)]));
        }
        let replay = |run: &Run| {
            let tokens = replayed(run)?;
            let part = |width: usize| tokens.start * width..tokens.end * width;
            let (qk, mut v) = (kept(&qk[part(keys)])?, Vec::new());
            alloc::reserve(&mut v, tokens.len() * values, REPLAYED_TOKENS).ok()?;
            qkv.data()[part(width)]
                .chunks_exact(width)
                .for_each(|row| v.extend_from_slice(&row[keys..keys + values]));
            let (beta, decay) = (kept(&beta[part(heads)])?, kept(&decay[part(decays)])?);
            let pool = self.shared_pool();
            Some(Replay::new(move |tokens, before, after| {
                let of = Delta {
                    qk: &qk[..tokens * keys],
                    v: &v[..tokens * values],
                    v_stride: values,
                    beta: &beta[..tokens * heads],
                    decay: &decay[..tokens * decays],
                    key_heads,
                    in_turn,
                    heads,
                    rows,
                    columns,
                };
                recurrent::delta(&pool, isa, of, before, after, None);
            }))
        };
        let advanced = states.iter_mut().zip(runs).filter(|(_, run)| run.len > 0);
        advanced.for_each(|(state, run)| state.commit(PART, run.start, run.end(), replay(run)));
        Ok(HostTensor::new(&[tokens, heads * columns], out))
    }

    fn scan(
        &self,
        states: &mut [&mut HostRecurrent],
        [vkq, dt]: [&HostTensor; 2],
        [rate, shift, skip]: [&CpuVector; 3],
        groups: usize,
        limits: [f32; 2],
        runs: &[Run],
    ) -> Result<HostTensor> {
        const PART: RecurrentPart = RecurrentPart::Matrices;
        let Some(first) = states.first() else { return Ok(HostTensor::from_vec(&[0, 0], Vec::new())) };
        let RecurrentShape { heads, rows, columns, .. } = *first.shape();
        let (pool, isa) = self.kernels();
        let (tokens, width) = (vkq.shape()[0], vkq.shape()[1]);
        let (mut delta, mut decay) = (self.buffer(tokens * heads)?, self.buffer(tokens * heads)?);
        delta.copy_from_slice(dt.data());
        recurrent::steps(&mut delta, &mut decay, rate.values()?, shift.values()?, limits);
        let skip = skip.values()?;
        let mut out = self.buffer(tokens * heads * columns)?;
        for (state, run) in states.iter_mut().zip(runs).filter(|(_, run)| run.len > 0) {
            let part = |width: usize| run.row * width..(run.row + run.len) * width;
            let of = Scan {
                vkq: &vkq.data()[part(width)],
                delta: &delta[part(heads)],
                decay: &decay[part(heads)],
                skip,
                groups,
                heads,
                rows,
                columns,
            };
            let (before, after) = state.begin(PART, run.start)?;
            recurrent::scan(pool, isa, of, before, after, Some(&mut out[part(heads * columns)]));
        }
        let replay = |run: &Run| {
            let tokens = replayed(run)?;
            let part = |width: usize| tokens.start * width..tokens.end * width;
            let (vkq, skip) = (kept(&vkq.data()[part(width)])?, kept(skip)?);
            let (delta, decay) = (kept(&delta[part(heads)])?, kept(&decay[part(heads)])?);
            let pool = self.shared_pool();
            Some(Replay::new(move |tokens, before, after| {
                let of = Scan {
                    vkq: &vkq[..tokens * width],
                    delta: &delta[..tokens * heads],
                    decay: &decay[..tokens * heads],
                    skip: &skip,
                    groups,
                    heads,
                    rows,
                    columns,
                };
                recurrent::scan(&pool, isa, of, before, after, None);
            }))
        };
        let advanced = states.iter_mut().zip(runs).filter(|(_, run)| run.len > 0);
        advanced.for_each(|(state, run)| state.commit(PART, run.start, run.end(), replay(run)));
        Ok(HostTensor::new(&[tokens, heads * columns], out))
    }
}

const REPLAYED_TOKENS: &str = "the tokens of a step that may be taken back";

/// The rows of a run that may be taken back in part: one token is taken back whole, and so is a longer part of a prompt.
fn replayed(run: &Run) -> Option<Range<usize>> {
    (2..=REPLAYED).contains(&run.len).then(|| run.row..run.row + run.len)
}

/// A copy, where there is memory for it: without, the step is taken back whole.
fn kept(values: &[f32]) -> Option<Vec<f32>> {
    alloc::copy_of(values, REPLAYED_TOKENS).ok()
}
