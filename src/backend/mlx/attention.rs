//! Attention on MLX: a call for each run, with masks that the step's layers share.

use std::rc::Rc;

use mlx_rs::{Array, Dtype, ops};
use smallvec::SmallVec;

use super::array::MlxTensor;
use super::dims;
use super::kv::{Cached, filled_up};
use super::operands::MlxVector;
use super::{MlxBackend, MlxKv, failed};
use crate::backend::kv::KvShape;
use crate::backend::ops::{Mask, Run};
use crate::error::Result;

/// The masks of a step's runs, none for a run that sees every key, or whose keys are sliced.
pub(super) type Masks = Rc<[Option<Array>]>;

/// What turns scores into weights.
#[derive(Clone, Copy)]
struct Scores<'a> {
    /// True where a query sees a key, `[len, keys]`.
    mask: Option<&'a Array>,
    scale: f32,
    soft_cap: Option<f32>,
    /// `[H]`, in the type of activations.
    sinks: Option<&'a Array>,
    /// `[1, KH, G * len, keys]`, which is added to them.
    bias: Option<&'a Array>,
}

impl MlxBackend {
    /// `[T, H * k_dim]` → `[T, H * v_dim]`, each run over its own cache.
    pub(super) fn attention(
        &self,
        q: &MlxTensor,
        kv: &[&MlxKv],
        mask: &Mask,
        (scale, soft_cap): (f32, Option<f32>),
        vectors: [Option<&MlxVector>; 2],
    ) -> Result<MlxTensor> {
        let rows = q.shape()[0];
        let [sinks, bias] =
            vectors.map(|vector| vector.map(|vector| self.typed((*vector.array()?).clone())).transpose());
        let (sinks, bias) = (sinks?, bias?);
        let sinks = sinks.as_ref();
        let masks = self.masks(mask)?;
        let mut outputs = SmallVec::<[MlxTensor; 1]>::new();
        for (i, (run, kv)) in mask.runs.iter().zip(kv).enumerate() {
            // What one token sees is a range of keys: a slice says it without a mask.
            let visible = if run.len == 1 { mask.visible[run.row].clone() } else { 0..kv.len() };
            let mask = masks.as_ref().and_then(|masks| masks[i].as_ref());
            let bias = bias.as_ref().map(|bias| {
                let (kv_heads, heads) = (kv.shape().heads, q.shape()[1] / kv.shape().k_dim);
                self.by_distance(bias, [kv_heads, heads], run, visible.clone())
            });
            let bias = bias.transpose()?;
            let scores = Scores { mask, scale, soft_cap, sinks, bias: bias.as_ref() };
            let cached = match kv.cached(&self.graph, visible)? {
                Cached::Floats([keys, values]) => Cached::Floats([self.typed(keys)?, self.typed(values)?]),
                codes @ Cached::Codes(_) => codes,
            };
            outputs.push(self.attend(q, run, &cached, kv.shape(), scores)?);
        }
        let output = match outputs.len() {
            // No run is no row.
            0 => MlxTensor::rows(q.to_rows(&self.graph)?.into_owned(), q.shape()),
            1 => outputs.remove(0),
            _ => {
                let parts =
                    outputs.iter().map(|part| part.to_rows(&self.graph)).collect::<Result<Vec<_>>>()?;
                let whole = ops::concatenate(&parts, 0).map_err(|e| failed("attention", &e))?;
                MlxTensor::rows(whole, &[rows, outputs[0].shape()[1]])
            }
        };
        Ok(output)
    }

    /// Attention of one run over what it sees of a cache of `shape` → `[len, H * v_dim]`.
    fn attend(
        &self,
        q: &MlxTensor,
        run: &Run,
        cached: &Cached,
        shape: &KvShape,
        scores: Scores<'_>,
    ) -> Result<MlxTensor> {
        let graph = &self.graph;
        let (kv_heads, k_dim, v_dim) = (shape.heads as i32, shape.k_dim as i32, shape.v_dim as i32);
        let (len, group) = (run.len, q.shape()[1] as i32 / (kv_heads * k_dim));
        let width = q.shape()[1] / shape.k_dim * shape.v_dim;
        let single = len == 1;
        // MLX's CPU device has no kernel of its own: for one token, whose query heads are rows to their key head, this is
        // half of the nodes that MLX composes it of.
        let whole = match cached {
            Cached::Floats(floats)
                if scores.soft_cap.is_none() && scores.bias.is_none() && (!single || self.device.gpu) =>
            {
                Some(floats)
            }
            _ => None,
        };
        if single && whole.is_none() {
            let queries = q.row(graph, run.row, &[1, kv_heads, group, k_dim])?;
            let output = self.composed(&queries, cached, v_dim, 1, scores)?; // [1, KH, G, v_dim]
            return Ok(MlxTensor::rows(output, &[1, width]));
        }
        let queries = q.to_heads(graph, run.rows(), shape.k_dim)?; // [1, H, len, k_dim]
        let output = match whole {
            Some([keys, values]) => {
                graph.attention([&queries, keys, values], scores.mask, scores.scale, scores.sinks)?
            }
            None => {
                let len = len as i32;
                let grouped = graph.reshape(&queries, &[1, kv_heads, group * len, k_dim])?;
                let output = self.composed(&grouped, cached, v_dim, len, scores)?;
                graph.reshape(&output, &[1, kv_heads * group, len, v_dim])?
            }
        };
        Ok(match single {
            true => MlxTensor::rows(output, &[1, width]),
            false => MlxTensor::heads(output, len, width),
        })
    }

    /// Attention by plain ops: queries `[1, KH, G * len, k_dim]`, the `G` heads of a key head one after the other.
    ///
    /// Over codes it computes in `f32`: MLX's quantized matmul adds up in the type of its operand.
    fn composed(
        &self,
        q: &Array,
        cached: &Cached,
        v_dim: i32,
        len: i32,
        scores: Scores<'_>,
    ) -> Result<Array> {
        let graph = &self.graph;
        let fail = |e: mlx_rs::error::Exception| failed("attention", &e);
        let wide;
        let q = match cached {
            Cached::Floats(_) => q,
            Cached::Codes(_) => {
                wide = self.filled_up(q)?;
                &wide
            }
        };
        let constant = |x: f32| graph.constant(x, q.dtype(), &[]);
        // Of the shape of the queries where that is the same in each step: MLX then adds no node that broadcasts it.
        let scale = if len == 1 { q.shape() } else { &[] };
        let q = graph.multiply(q, &graph.constant(scores.scale, q.dtype(), scale))?;
        // [1, KH, G * len, S]
        let mut weights = match cached {
            Cached::Floats([k, _]) => graph.matmul(&q, &graph.transpose(k, &[0, 1, 3, 2])?)?,
            Cached::Codes([k, _]) => graph.quantized_matmul(&q, k, true)?,
        };
        if let Some(cap) = scores.soft_cap {
            let cap = constant(cap);
            let bent = ops::divide(&weights, &*cap).and_then(ops::tanh).map_err(fail)?;
            weights = graph.multiply(&bent, &cap)?;
        }
        if let Some(bias) = scores.bias {
            weights = graph.add(&weights, &graph.astype(bias, weights.dtype())?)?;
        }
        if let Some(mask) = scores.mask {
            let [_, kv_heads, rows, keys] = *weights.shape() else {
                return Err(crate::error::Error::shape("attention", "scores have not four dimensions"));
            };
            let by_head = graph.reshape(&weights, &[1, kv_heads, rows / len, len, keys])?;
            let seen = ops::select(mask, &by_head, &*constant(f32::NEG_INFINITY)).map_err(fail)?;
            weights = graph.reshape(&seen, &[1, kv_heads, rows, keys])?;
        }
        let shares = match scores.sinks {
            None => graph.softmax(&weights)?,
            Some(sinks) => {
                // A key more, whose share goes nowhere.
                let [_, kv_heads, rows, keys] = *weights.shape() else {
                    return Err(crate::error::Error::shape("attention", "scores have not four dimensions"));
                };
                let by_head = graph.reshape(sinks, &[1, kv_heads, rows / len, 1])?;
                let ones = graph.constant(0.0, weights.dtype(), &[1, 1, 1, len]);
                let column = graph.add(&by_head, &ones)?; // [1, KH, G, len]
                let column =
                    graph.astype(&graph.reshape(&column, &[1, kv_heads, rows, 1])?, weights.dtype())?;
                let all = ops::concatenate(&[weights, column], 3).map_err(fail)?;
                graph.slice(&graph.softmax(&all)?, &[0; 4], &[1, kv_heads, rows, keys])?
            }
        };
        match cached {
            Cached::Floats([_, v]) => graph.matmul(&shares, v),
            Cached::Codes([_, v]) => {
                let output = graph.quantized_matmul(&shares, v, false)?;
                let [_, kv_heads, rows, width] = *output.shape() else {
                    return Err(crate::error::Error::shape("attention", "values have not four dimensions"));
                };
                match v_dim == width {
                    true => self.typed(output),
                    false => self.typed(graph.slice(&output, &[0; 4], &[1, kv_heads, rows, v_dim])?),
                }
            }
        }
    }

    /// What heads add to the scores of `keys` for the queries of a run: `[H * (2 r + 1)]` → `[1, KH, G * len, keys]`.
    fn by_distance(
        &self,
        bias: &Array,
        [kv_heads, heads]: [usize; 2],
        run: &Run,
        keys: std::ops::Range<usize>,
    ) -> Result<Array> {
        let (graph, count) = (&self.graph, keys.len());
        let span = bias.size() / heads.max(1);
        let places: Vec<u32> = (run.start..run.end())
            .flat_map(|query| {
                let place =
                    move |key: usize| (key + span / 2).saturating_sub(query).min(span.saturating_sub(1));
                keys.clone().map(move |key| place(key) as u32)
            })
            .collect();
        let places = Array::from_slice(&places, &dims::of(&[places.len()])?);
        let table = graph.transpose(&graph.reshape(bias, &dims::of(&[heads, span])?)?, &[1, 0])?; // [2 r + 1, H]
        let taken = graph.transpose(&graph.take(&table, &places)?, &[1, 0])?; // [H, len * keys]
        graph.reshape(&taken, &dims::of(&[1, kv_heads, heads / kv_heads.max(1) * run.len, count])?)
    }

    /// Queries in `f32`, followed by zeros where a cache's heads are filled up.
    fn filled_up(&self, q: &Array) -> Result<Array> {
        let wide = self.graph.astype(q, Dtype::Float32)?;
        let head_dim = q.dim(3);
        let more = filled_up(head_dim as usize) as i32 - head_dim;
        if more == 0 {
            return Ok(wide);
        }
        ops::pad(&wide, &[(0, 0), (0, 0), (0, 0), (0, more)], None, None).map_err(|e| failed("attention", &e))
    }

    /// The step's masks as boolean arrays, made when its first layer asks; nothing where no run needs one.
    fn masks(&self, mask: &Mask) -> Result<Option<Masks>> {
        if mask.runs.iter().all(|run| run.len == 1) {
            return Ok(None);
        }
        let mut step = self.step.borrow_mut();
        if let Some((_, masks)) = step.masks.iter().find(|(id, _)| *id == mask.id) {
            return Ok(Some(Rc::clone(masks)));
        }
        let unmasked = |run: &Run| run.len == 1 || mask.is_full(run);
        let masks: Masks = mask
            .runs
            .iter()
            .map(|run| if unmasked(run) { Ok(None) } else { explicit(mask, run).map(Some) })
            .collect::<Result<_>>()?;
        step.masks.push((mask.id, Rc::clone(&masks)));
        Ok(Some(masks))
    }
}

/// True where a row of `run` sees a key, `[len, keys]`.
fn explicit(mask: &Mask, run: &Run) -> Result<Array> {
    let keys = run.end();
    let mut visible = vec![false; run.len * keys];
    for (row, range) in mask.visible[run.rows()].iter().enumerate() {
        visible[row * keys..][range.clone()].fill(true);
    }
    Ok(Array::from_slice(&visible, &dims::of(&[run.len, keys])?))
}
