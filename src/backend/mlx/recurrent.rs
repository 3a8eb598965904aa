//! Recurrences on MLX: arrays of fixed size, advanced token by token in the step's graph.

use mlx_rs::{Array, Dtype, ops};

use super::array::{self, MlxTensor};
use super::operands::MlxVector;
use super::{MlxBackend, dims, failed};
use crate::backend::ops::{Recur, Recurrent, RecurrentShape, Run};
use crate::backend::recurrent::HostRecurrent;
use crate::config::Activation;
use crate::error::{Error, Result};

/// The state of one layer and one sequence. What was there before the last step is held, too: arrays are not written in place.
pub struct MlxRecurrent {
    shape: RecurrentShape,
    /// `[taps, channels]` and `[heads, rows, columns]`, in `f32`.
    parts: [Part; 2],
}

const ROWS: usize = 0;
const MATRICES: usize = 1;

#[derive(Default)]
struct Part {
    len: usize,
    /// None stands for zeros.
    now: Option<Array>,
    before: Option<(usize, Option<Array>)>,
}

impl Part {
    fn reaches(&self, len: usize) -> bool {
        len >= self.len || self.before.as_ref().is_some_and(|(before, _)| *before == len)
    }

    fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        match self.before.take() {
            Some((before, array)) if before == len => (self.len, self.now) = (len, array),
            _ => (self.len, self.now) = (0, None),
        }
    }
}

impl std::fmt::Debug for MlxRecurrent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MlxRecurrent({})", self.len())
    }
}

impl MlxRecurrent {
    /// A state that has seen nothing.
    pub(super) fn new(shape: RecurrentShape) -> Self {
        Self { shape, parts: Default::default() }
    }

    /// The same arrays, without what was there before the last step.
    pub(in crate::backend) fn copy(&self) -> Self {
        let part = |of: &Part| Part { len: of.len, now: of.now.clone(), before: None };
        Self { shape: self.shape, parts: [part(&self.parts[ROWS]), part(&self.parts[MATRICES])] }
    }

    /// A state of what `host` holds.
    pub(super) fn from_host(host: &HostRecurrent) -> Result<Self> {
        let mut state = Self::new(*host.shape());
        for (i, (len, values)) in host.read()?.into_iter().enumerate() {
            let array = Array::from_slice(&values, &dims::of(&state.dims(i))?);
            state.parts[i] = Part { len, now: Some(array), before: None };
        }
        Ok(state)
    }

    /// What is held, copied to the host.
    pub(super) fn to_host(&self) -> Result<HostRecurrent> {
        let part = |i: usize| -> Result<(usize, Vec<f32>)> {
            let values = match &self.parts[i].now {
                Some(array) => array::to_f32(array)?,
                None => vec![0.0; self.dims(i).iter().product()],
            };
            Ok((self.parts[i].len, values))
        };
        HostRecurrent::of(self.shape, [part(ROWS)?, part(MATRICES)?])
    }

    fn dims(&self, part: usize) -> Vec<usize> {
        let RecurrentShape { taps, channels, heads, rows, columns } = self.shape;
        if part == ROWS { vec![taps, channels] } else { vec![heads, rows, columns] }
    }

    /// The arrays, for evaluation.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.parts.iter().filter_map(|part| part.now.as_ref())
    }

    /// Part `part` after `start` tokens.
    fn at(&mut self, part: usize, start: usize) -> Result<Array> {
        let dims = dims::of(&self.dims(part))?;
        let part = &mut self.parts[part];
        part.truncate(start);
        if part.len != start {
            let what = format!("position {start}, and the state has seen {} tokens", part.len);
            return Err(Error::shape("recurrent", what));
        }
        match &part.now {
            Some(array) => Ok(array.clone()),
            None => ops::zeros_dtype(&dims, Dtype::Float32).map_err(|e| failed("recurrent", &e)),
        }
    }

    fn set(&mut self, part: usize, end: usize, array: Array) {
        let part = &mut self.parts[part];
        part.before = Some((part.len, part.now.replace(array)));
        part.len = end;
    }
}

impl Recurrent for MlxRecurrent {
    fn shape(&self) -> &RecurrentShape {
        &self.shape
    }

    fn len(&self) -> usize {
        match (self.shape.taps * self.shape.channels, self.shape.heads) {
            (0, _) => self.parts[MATRICES].len,
            (_, 0) => self.parts[ROWS].len,
            _ => self.parts[ROWS].len.min(self.parts[MATRICES].len),
        }
    }

    fn bytes(&self) -> usize {
        let held = |part: &Part| usize::from(part.now.is_some()) + usize::from(part.before.is_some());
        let elements = |i: usize| self.dims(i).iter().product::<usize>() * size_of::<f32>();
        (0..2).map(|i| held(&self.parts[i]) * elements(i)).sum()
    }

    fn reaches(&self, len: usize) -> bool {
        self.parts.iter().all(|part| part.reaches(len))
    }

    fn truncate(&mut self, len: usize) {
        self.parts.iter_mut().for_each(|part| part.truncate(len));
    }
}

impl MlxBackend {
    /// [`Backend::recur`](crate::backend::ops::Backend::recur), of shapes that fit.
    pub(super) fn recurrence(
        &self,
        states: &mut [&mut MlxRecurrent],
        op: &Recur<'_, Self>,
        runs: &[Run],
    ) -> Result<MlxTensor> {
        let name = op.kind().name();
        let fail = |error: mlx_rs::error::Exception| failed(name, &error);
        let Some(first) = states.first() else { return Err(Error::shape(name, "there is no run")) };
        let (shape, tokens) = (*first.shape(), runs.iter().map(|run| run.len).sum::<usize>());
        let mut outputs = Vec::with_capacity(runs.len());
        // All of them before any state changes.
        let mut changed = Vec::with_capacity(runs.len());
        for (state, run) in states.iter_mut().zip(runs) {
            let (output, part, array) = match *op {
                Recur::Convolution { weight, bias, activation, .. } => {
                    let x = self.side_by_side(&op.inputs(), run)?;
                    let (output, rows) = self.convolved(state, x, (weight, bias), activation, run)?;
                    (output, ROWS, rows)
                }
                Recur::Delta { qkv, beta, strength, gate, rate, shift, key_heads, in_turn } => {
                    let heads = (key_heads, in_turn);
                    let (output, matrices) =
                        self.delta(state, [qkv, beta, gate], strength, [rate, shift], heads, run)?;
                    (output, MATRICES, matrices)
                }
                Recur::Scan { vkq, dt, rate, shift, skip, groups, limits } => {
                    let (output, matrices) =
                        self.scan(state, [vkq, dt], [rate, shift, skip], groups, limits, run)?;
                    (output, MATRICES, matrices)
                }
            };
            outputs.push(output);
            changed.push((part, array));
        }
        let output = match outputs.len() {
            1 => outputs.remove(0),
            _ => ops::concatenate(&outputs, 0).map_err(fail)?,
        };
        for ((state, run), (part, array)) in states.iter_mut().zip(runs).zip(changed) {
            state.set(part, run.end(), array);
        }
        Ok(MlxTensor::rows(self.typed(output)?, &[tokens, op.width(&shape)]))
    }

    /// The rows of `run`, `[len, width]`, in `f32`.
    fn wide(&self, of: &MlxTensor, run: &Run) -> Result<Array> {
        let rows = of.to_rows(&self.graph)?;
        let (start, end) = (run.row as i32, (run.row + run.len) as i32);
        let part = self.graph.slice(&rows, &[start, 0], &[end, rows.dim(1)])?;
        self.graph.astype(&part, Dtype::Float32)
    }

    /// The rows of `run` of all `parts`, one beside the other, in `f32`.
    fn side_by_side(&self, parts: &[&MlxTensor], run: &Run) -> Result<Array> {
        let mut rows: Vec<Array> = parts.iter().map(|part| self.wide(part, run)).collect::<Result<_>>()?;
        match rows.len() {
            1 => Ok(rows.remove(0)),
            _ => ops::concatenate(&rows, 1).map_err(|e| failed("convolution", &e)),
        }
    }

    /// `x` is `[len, C]`, in `f32`.
    fn convolved(
        &self,
        state: &mut MlxRecurrent,
        x: Array,
        (weight, bias): (&MlxVector, Option<&MlxVector>),
        activation: Option<Activation>,
        run: &Run,
    ) -> Result<(Array, Array)> {
        let fail = |error: mlx_rs::error::Exception| failed("convolution", &error);
        let graph = &self.graph;
        let before = state.at(ROWS, run.start)?;
        let (taps, channels, len) = (before.dim(0), before.dim(1), run.len as i32);
        let all = ops::concatenate(&[before, x], 0).map_err(fail)?; // [taps + len, C]
        let weight = graph.astype(&*weight.array()?, Dtype::Float32)?;
        let mut sum = match bias {
            Some(bias) => graph.reshape(&graph.astype(&*bias.array()?, Dtype::Float32)?, &[1, channels])?,
            None => graph.constant(0.0, Dtype::Float32, &[1, 1]).as_ref().clone(),
        };
        for j in 0..=taps {
            let rows = graph.slice(&all, &[j, 0], &[j + len, channels])?;
            let own = graph.slice(&weight, &[j, 0], &[j + 1, channels])?;
            sum = graph.add(&sum, &graph.multiply(&rows, &own)?)?;
        }
        // Rounded as it is where a convolution is an op of its own.
        sum = self.typed(sum)?;
        if let Some(activation) = activation {
            sum = self.activated(&sum, activation)?;
        }
        let after = graph.slice(&all, &[len, 0], &[taps + len, channels])?;
        Ok((sum, after))
    }

    fn delta(
        &self,
        state: &mut MlxRecurrent,
        [qkv, beta, gate]: [&MlxTensor; 3],
        strength: f32,
        [rate, shift]: [&MlxVector; 2],
        (key_heads, in_turn): (usize, bool),
        run: &Run,
    ) -> Result<(Array, Array)> {
        let fail = |error: mlx_rs::error::Exception| failed("delta_rule", &error);
        let graph = &self.graph;
        let number = |x: f32| graph.constant(x, Dtype::Float32, &[]);
        let RecurrentShape { heads, rows, columns, .. } = state.shape;
        let [len, heads, rows, columns, groups] =
            [run.len, heads, rows, columns, key_heads].map(|size| size as i32);
        let each = heads / groups;
        // Heads of values by those of keys, and these among them.
        let [by_key, keys_alone] = match in_turn {
            false => [[groups, each], [groups, 1]],
            true => [[each, groups], [1, groups]],
        };
        let vector = |of: &MlxVector| graph.astype(&*of.array()?, Dtype::Float32);

        let qkv = self.wide(qkv, run)?;
        let keys = groups * rows;
        let unit = |from: i32, by: f32| -> Result<Array> {
            let part = graph.slice(&qkv, &[0, from], &[len, from + keys])?;
            let part = graph.reshape(&part, &[len, keys_alone[0], keys_alone[1], 1, rows])?;
            let squares = ops::sum_axis(graph.multiply(&part, &part)?, -1, true).map_err(fail)?;
            let length = graph.rsqrt(&graph.add(&squares, &number(1e-6))?)?;
            graph.multiply(&graph.multiply(&part, &length)?, &number(by))
        };
        let (q, k) = (unit(0, (rows as f32).powf(-0.5))?, unit(keys, 1.0)?);
        let v = graph.slice(&qkv, &[0, 2 * keys], &[len, 2 * keys + heads * columns])?;
        let v = graph.reshape(&v, &[len, by_key[0], by_key[1], 1, columns])?;
        let mut beta = graph.sigmoid(&self.wide(beta, run)?)?;
        if strength != 1.0 {
            beta = graph.multiply(&beta, &number(strength))?;
        }
        let beta = graph.reshape(&beta, &[len, by_key[0], by_key[1], 1, 1])?;
        let open = graph.add(&self.wide(gate, run)?, &vector(shift)?)?;
        let open = ops::logaddexp(&open, &*number(0.0)).map_err(fail)?;
        // Of all rows of a head's matrix, or of each.
        let decays = open.dim(1) / heads;
        let open = graph.reshape(&open, &[len, heads, decays])?;
        let rate = graph.reshape(&vector(rate)?, &[1, heads, 1])?;
        let decay = ops::exp(graph.multiply(&open, &rate)?).map_err(fail)?;
        let decay = graph.reshape(&decay, &[len, by_key[0], by_key[1], decays, 1])?;

        let before = state.at(MATRICES, run.start)?;
        let mut s = graph.reshape(&before, &[by_key[0], by_key[1], rows, columns])?;
        let mut given = Vec::with_capacity(run.len);
        for t in 0..len {
            let at = |of: &Array| self.token(of, t);
            let (q, k, v, beta, decay) = (at(&q)?, at(&k)?, at(&v)?, at(&beta)?, at(&decay)?);
            s = graph.multiply(&s, &decay)?;
            let seen = graph.matmul(&k, &s)?; // [groups, each, 1, columns], or [each, groups, 1, columns]
            let change = graph.multiply(&beta, &ops::subtract(&v, &seen).map_err(fail)?)?;
            let column = graph.transpose(&k, &[0, 1, 3, 2])?; // [groups, 1, rows, 1], or [1, groups, rows, 1]
            s = graph.add(&s, &graph.multiply(&column, &change)?)?;
            given.push(graph.reshape(&graph.matmul(&q, &s)?, &[1, heads * columns])?);
        }
        let output = match given.len() {
            1 => given.remove(0),
            _ => ops::concatenate(&given, 0).map_err(fail)?,
        };
        Ok((output, graph.reshape(&s, &[heads, rows, columns])?))
    }

    fn scan(
        &self,
        state: &mut MlxRecurrent,
        [vkq, dt]: [&MlxTensor; 2],
        [rate, shift, skip]: [&MlxVector; 3],
        groups: usize,
        [least, most]: [f32; 2],
        run: &Run,
    ) -> Result<(Array, Array)> {
        let fail = |error: mlx_rs::error::Exception| failed("scan", &error);
        let graph = &self.graph;
        let number = |x: f32| graph.constant(x, Dtype::Float32, &[]);
        let RecurrentShape { heads, rows, columns, .. } = state.shape;
        let [len, heads, rows, columns, groups] =
            [run.len, heads, rows, columns, groups].map(|size| size as i32);
        let each = heads / groups;
        let vector = |of: &MlxVector| graph.astype(&*of.array()?, Dtype::Float32);

        let vkq = self.wide(vkq, run)?;
        let (values, keys) = (heads * columns, groups * rows);
        let part = |from: i32, width: i32, dims: [i32; 5]| -> Result<Array> {
            graph.reshape(&graph.slice(&vkq, &[0, from], &[len, from + width])?, &dims)
        };
        let v = part(0, values, [len, groups, each, 1, columns])?;
        let k = part(values, keys, [len, groups, 1, rows, 1])?;
        let q = part(values + keys, keys, [len, groups, 1, 1, rows])?;
        let delta = graph.add(&self.wide(dt, run)?, &vector(shift)?)?;
        let mut delta = ops::logaddexp(&delta, &*number(0.0)).map_err(fail)?;
        if least > 0.0 {
            delta = ops::maximum(&delta, &*number(least)).map_err(fail)?;
        }
        if most < f32::INFINITY {
            delta = ops::minimum(&delta, &*number(most)).map_err(fail)?;
        }
        let by_head = |of: Array| graph.reshape(&of, &[len, groups, each, 1, 1]);
        let decay = by_head(ops::exp(graph.multiply(&delta, &vector(rate)?)?).map_err(fail)?)?;
        let changes = graph.multiply(&v, &by_head(delta)?)?;

        let before = state.at(MATRICES, run.start)?;
        let mut s = graph.reshape(&before, &[groups, each, rows, columns])?;
        let mut given = Vec::with_capacity(run.len);
        for t in 0..len {
            let at = |of: &Array| self.token(of, t);
            let (q, k, change, decay) = (at(&q)?, at(&k)?, at(&changes)?, at(&decay)?);
            s = graph.add(&graph.multiply(&s, &decay)?, &graph.multiply(&k, &change)?)?;
            given.push(graph.reshape(&graph.matmul(&q, &s)?, &[1, values])?);
        }
        let output = match given.len() {
            1 => given.remove(0),
            _ => ops::concatenate(&given, 0).map_err(fail)?,
        };
        let skip = graph.reshape(&vector(skip)?, &[1, groups, each, 1, 1])?;
        let skipped = graph.reshape(&graph.multiply(&v, &skip)?, &[len, values])?;
        Ok((graph.add(&output, &skipped)?, graph.reshape(&s, &[heads, rows, columns])?))
    }

    /// What token `t` has of `[T, …]` of five dimensions.
    fn token(&self, of: &Array, t: i32) -> Result<Array> {
        let [_, a, b, c, d] = *of.shape() else { unreachable!("five dimensions") };
        let one = self.graph.slice(of, &[t, 0, 0, 0, 0], &[t + 1, a, b, c, d])?;
        self.graph.reshape(&one, &[a, b, c, d])
    }
}
