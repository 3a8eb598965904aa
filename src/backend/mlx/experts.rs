//! Experts on MLX: a router's choice, and products with matrices that are gathered by expert. Nothing is evaluated on the way.

use std::fmt;
use std::rc::Rc;

use mlx_rs::{Array, Dtype, ops};

use super::array::MlxTensor;
use super::cache::{Slot, WeightCache, upload};
use super::graph::QuantArrays;
use super::operands::MlxVector;
use super::{MlxBackend, dims, failed, quantized};
use crate::backend::ops::{ExpertGroups, ExpertProjection, Gating, Router, Scores, StackOperand};
use crate::error::Result;
use crate::quant::{Matrix, Stack};
use crate::tensor::ElementType;

/// Rows from which on they are sorted by expert, so that each expert's matrix is read once.
const SORTED: usize = 64;

/// The matrices of a layer's experts on MLX. Clones share their arrays.
#[derive(Clone)]
pub struct MlxStack {
    source: Stack,
    slot: Rc<Slot>,
    /// Whether any expert's columns have an order.
    ordered: bool,
    /// Why MLX has no form for the matrices, where it has none.
    unsupported: Option<Rc<str>>,
}

impl fmt::Debug for MlxStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl StackOperand for MlxStack {
    fn source(&self) -> &Stack {
        &self.source
    }
}

impl MlxStack {
    /// Finds the place of the matrices in the cache; nothing is uploaded.
    pub(super) fn new(weights: &WeightCache, source: Stack) -> Self {
        let slot = weights.stack(&source);
        let has_order = |of: &Matrix| matches!(of, Matrix::Quantized(of) if of.order().is_some());
        let ordered = source.each().iter().any(has_order);
        let unsupported = unsupported(&source).map(Rc::from);
        Self { source, slot, ordered, unsupported }
    }

    /// The order of each expert's columns, `[E, K]`.
    fn orders(&self) -> Vec<u32> {
        let [.., columns] = self.source.shape();
        let order = |of: &Matrix| match of {
            Matrix::Quantized(of) => of.order().map(|order| order.to_vec()),
            Matrix::Dense(_) => None,
        };
        let own = |of| order(of).unwrap_or_else(|| (0..columns as u32).collect());
        self.source.each().iter().flat_map(own).collect()
    }

    /// Whether any matrix's columns have an order.
    pub(super) fn is_ordered(&self) -> bool {
        self.ordered
    }

    /// Why MLX has no form for the matrices, where it has none.
    pub(super) fn unsupported(&self) -> Option<String> {
        self.unsupported.as_deref().map(str::to_owned)
    }
}

/// Why MLX has no form for the matrices, where it has none.
fn unsupported(stack: &Stack) -> Option<String> {
    let each = stack.each();
    match &each[0] {
        Matrix::Dense(first) => {
            let same = |of: &Matrix| matches!(of, Matrix::Dense(of) if of.dtype() == first.dtype());
            (!each.iter().all(same)).then(|| "experts of different types".to_owned())
        }
        Matrix::Quantized(first) => {
            let same = |of: &Matrix| matches!(of, Matrix::Quantized(of) if of.format() == first.format());
            if !each.iter().all(same) {
                return Some("experts of different formats".to_owned());
            }
            quantized::unsupported(first)
        }
    }
}

/// The rows that go to experts: `x` `[R, 1, K]` or `[T, 1, 1, K]`, and the expert of each.
struct Gathered {
    x: Array,
    experts: Array,
    sorted: bool,
}

impl MlxBackend {
    /// The experts of each row and their weights, `[T, k]` each.
    pub(super) fn route(
        &self,
        logits: &MlxTensor,
        [bias, scales]: [Option<&MlxVector>; 2],
        router: &Router,
    ) -> Result<[MlxTensor; 2]> {
        let fail = |error: mlx_rs::error::Exception| failed("route", &error);
        let graph = &self.graph;
        let (rows, experts) = (logits.shape()[0], logits.shape()[1]);
        let logits = graph.astype(&*logits.to_rows(graph)?, Dtype::Float32)?;
        let number = |x: f32| graph.constant(x, Dtype::Float32, &[]);
        let scores = match router.scores {
            Scores::Softmax => graph.softmax(&logits)?,
            Scores::SoftmaxOfChosen | Scores::SigmoidOfChosen | Scores::SparseMixer { .. } => logits,
            Scores::Sigmoid => graph.sigmoid(&logits)?,
            Scores::SqrtSoftplus => {
                ops::logaddexp(&logits, &*number(0.0)).and_then(ops::sqrt).map_err(fail)?
            }
        };
        let mut choice = match bias {
            Some(bias) => graph.add(&scores, &*bias.shifted(0.0, &dims::of(&[experts])?)?)?,
            None => scores.clone(),
        };
        if let Some(groups) = router.groups {
            choice = self.open_groups(&choice, [rows, experts], groups)?;
        }
        // A stable sort: of equal scores, the lower id comes first.
        let order = ops::negative(&choice).and_then(|x| ops::argsort_axis(x, -1)).map_err(fail)?;
        let shape = [rows, router.used];
        let ids = graph.slice(&order, &[0, 0], &dims::of(&shape)?)?;
        let mut weights = ops::indexing::take_along_axis(&scores, &ids, -1).map_err(fail)?;
        weights = match router.scores {
            Scores::SoftmaxOfChosen => graph.softmax(&weights)?,
            Scores::SigmoidOfChosen => graph.sigmoid(&weights)?,
            Scores::SparseMixer { near } => self.mixed(near, [&scores, &ids, &weights], experts)?,
            Scores::Softmax | Scores::Sigmoid | Scores::SqrtSoftplus => weights,
        };
        if let Some(eps) = router.normalise {
            let sum = ops::sum_axis(&weights, -1, true).map_err(fail)?;
            weights = ops::divide(&weights, graph.add(&sum, &number(eps))?).map_err(fail)?;
        }
        if router.scale != 1.0 {
            weights = graph.multiply(&weights, &number(router.scale))?;
        }
        if let Some(scales) = scales {
            let each = graph.take(&*scales.shifted(0.0, &dims::of(&[experts])?)?, &ids)?;
            weights = graph.multiply(&weights, &each)?;
        }
        Ok([MlxTensor::of(ElementType::U32, ids, &shape), MlxTensor::rows(weights, &shape)])
    }

    /// The share of each that is chosen, ids and scores `[T, k]`, of those that were not chosen before it and are near.
    fn mixed(&self, near: f32, [scores, ids, chosen]: [&Array; 3], experts: usize) -> Result<Array> {
        let fail = |error: mlx_rs::error::Exception| failed("route", &error);
        let graph = &self.graph;
        let (rows, used) = (ids.dim(0), ids.dim(1));
        let number = |x: f32| graph.constant(x, Dtype::Float32, &[]);
        let all: Vec<u32> = (0..experts as u32).collect();
        let all = Array::from_slice(&all, &[1, experts as i32]);
        let mut open = scores.clone();
        let mut shares = Vec::new();
        for j in 0..used {
            let column = |of: &Array| graph.slice(of, &[0, j], &[rows, j + 1]);
            let (id, best) = (column(ids)?, column(chosen)?);
            let below = ops::subtract(&best, scores).map_err(fail)?;
            let size = ops::abs(scores).and_then(|size| ops::maximum(size, &best)).map_err(fail)?;
            let far = ops::divide(&below, &size).and_then(|by| ops::gt(by, &*number(near))).map_err(fail)?;
            let candidates = ops::select(&far, &*number(f32::NEG_INFINITY), &open).map_err(fail)?;
            let share = graph.softmax(&candidates)?;
            shares.push(ops::indexing::take_along_axis(&share, &id, -1).map_err(fail)?);
            let own = ops::eq(&all, &id).map_err(fail)?;
            open = ops::select(&own, &*number(f32::NEG_INFINITY), &open).map_err(fail)?;
        }
        ops::concatenate(&shares, 1).map_err(fail)
    }

    /// Scores `[T, E]` that are minus infinity but in the best groups.
    fn open_groups(&self, scores: &Array, shape: [usize; 2], groups: ExpertGroups) -> Result<Array> {
        let fail = |error: mlx_rs::error::Exception| failed("route", &error);
        let ([rows, experts], ExpertGroups { count, used, best }) = (shape, groups);
        let graph = &self.graph;
        let by_group = graph.reshape(scores, &dims::of(&[rows, count, experts / count])?)?;
        let falling = ops::negative(&by_group).and_then(|x| ops::sort_axis(x, -1)).map_err(fail)?;
        let first = graph.slice(&falling, &[0, 0, 0], &dims::of(&[rows, count, best])?)?;
        // The order of groups, and the order of that: the place of each.
        let rates = ops::sum_axis(&first, -1, false).map_err(fail)?; // [T, G], the best the lowest
        let order = ops::argsort_axis(rates, -1).map_err(fail)?;
        let place = ops::argsort_axis(order, -1).map_err(fail)?;
        let open = ops::lt(&place, Array::from_int(used as i32)).map_err(fail)?;
        let open = graph.reshape(&open, &dims::of(&[rows, count, 1])?)?;
        let closed = graph.constant(f32::NEG_INFINITY, Dtype::Float32, &[]);
        let scores = ops::select(&open, &by_group, &*closed).map_err(fail)?;
        graph.reshape(&scores, &dims::of(&[rows, experts])?)
    }

    /// `Op::Experts`, of matrices that MLX has forms for.
    pub(super) fn experts(
        &self,
        [x, ids, weights]: [&MlxTensor; 3],
        on_input: bool,
        gate_up: [Option<ExpertProjection<'_, Self>>; 2],
        down: ExpertProjection<'_, Self>,
        gating: Gating,
    ) -> Result<MlxTensor> {
        let fail = |error: mlx_rs::error::Exception| failed("experts", &error);
        let graph = &self.graph;
        let [gate, Some(up)] = gate_up else { unreachable!("there is the part that is up") };
        let (rows, used) = (ids.shape()[0], ids.shape()[1]);
        let (width, out) = (x.shape()[1], down.weight.shape()[1]);
        let (x, ids) = (x.to_rows(graph)?, ids.array());
        // Orders of columns are of rows, too.
        let ordered = gate.iter().chain([&up, &down]).any(|projection| projection.weight.ordered);
        let sorted = rows * used >= SORTED || ordered;
        let mut places = None;
        let mut gathered = if sorted {
            let flat = graph.reshape(ids, &dims::of(&[rows * used])?)?;
            let order = ops::argsort_axis(&flat, 0).map_err(fail)?;
            let token = ops::floor_divide(&order, Array::from_slice(&[used as u32], &[1])).map_err(fail)?;
            places = Some(ops::argsort_axis(&order, 0).map_err(fail)?);
            let mut x = graph.reshape(&graph.take(&x, &token)?, &dims::of(&[rows * used, 1, width])?)?;
            if on_input {
                let by = graph.take(&graph.reshape(weights.array(), &dims::of(&[rows * used])?)?, &order)?;
                let by = graph.reshape(&by, &dims::of(&[rows * used, 1, 1])?)?;
                x = self.typed(graph.multiply(&x, &by)?)?;
            }
            Gathered { x, experts: graph.take(&flat, &order)?, sorted }
        } else {
            let mut x = graph.reshape(&x, &dims::of(&[rows, 1, 1, width])?)?;
            if on_input {
                let by = graph.reshape(&*weights.to_rows(graph)?, &dims::of(&[rows, used, 1, 1])?)?;
                x = self.typed(graph.multiply(&x, &by)?)?;
            }
            Gathered { x, experts: ids.clone(), sorted }
        };
        let up = self.gathered(&gathered, up)?;
        let joined = match (gate, gating) {
            (Some(gate), Gating::Plain(activation)) => {
                graph.multiply(&self.activated(&self.gathered(&gathered, gate)?, activation)?, &up)?
            }
            (Some(gate), Gating::Clamped { alpha, limit }) => {
                let number = |x: f32| graph.constant(x, self.dtype, &[]);
                let gate = ops::minimum(self.gathered(&gathered, gate)?, &*number(limit)).map_err(fail)?;
                let up = ops::minimum(&up, &*number(limit))
                    .and_then(|up| ops::maximum(up, &*number(-limit)))
                    .map_err(fail)?;
                let swish = graph.sigmoid(&graph.multiply(&gate, &number(alpha))?)?;
                let up = graph.add(&up, &number(1.0))?;
                graph.multiply(&graph.multiply(&gate, &swish)?, &up)?
            }
            (None, gating) => self.activated(&up, gating.alone()?)?,
        };
        gathered.x = joined;
        let y = self.gathered(&gathered, down)?;
        let y = match places {
            Some(places) => graph.take(&y, &places)?,
            None => y,
        };
        let y = graph.reshape(&y, &dims::of(&[rows, used, out])?)?;
        let weighed = match on_input {
            true => graph.astype(&y, Dtype::Float32)?,
            false => {
                let weights = graph.astype(&*weights.to_rows(graph)?, Dtype::Float32)?;
                graph.multiply(&y, &graph.reshape(&weights, &dims::of(&[rows, used, 1])?)?)?
            }
        };
        let sum = ops::sum_axis(weighed, 1, false).map_err(fail)?;
        Ok(MlxTensor::rows(self.typed(sum)?, &[rows, out]))
    }

    /// `Op::HeadLinear`, of matrices that MLX has forms for.
    pub(super) fn head_linear(
        &self,
        x: &MlxTensor,
        weight: &MlxStack,
        beside: Option<&MlxTensor>,
    ) -> Result<MlxTensor> {
        let graph = &self.graph;
        let (rows, [heads, n, k]) = (x.shape()[0], weight.shape());
        let by_head = x.to_heads(graph, 0..rows, k)?; // [1, H, T, K]
        let product = match &weight.source.each()[0] {
            Matrix::Dense(_) => {
                let arrays = weight.slot.made(|| self.dense_stack(&weight.source))?;
                let turned = graph.transpose(&arrays[0], &[0, 2, 1])?; // [H, K, N]
                let wide = if self.is_gpu() { by_head } else { graph.astype(&by_head, Dtype::Float32)? };
                graph.matmul(&wide, &turned)?
            }
            Matrix::Quantized(_) => {
                let arrays = self.quantized_stack(&weight.source, &weight.slot)?;
                graph.quantized_matmul(&by_head, &arrays, true)?
            }
        };
        let mut product = self.typed(product)?; // [1, H, T, N]
        let mut width = n;
        if let Some(beside) = beside {
            let more = beside.shape()[1] / heads.max(1);
            let rest = beside.to_heads(graph, 0..rows, more)?;
            product = ops::concatenate(&[product, rest], 3).map_err(|error| failed("head_linear", &error))?;
            width += more;
        }
        Ok(MlxTensor::heads(product, rows, heads * width))
    }

    /// Products of rows with the matrices of their experts, plus their biases.
    fn gathered(&self, of: &Gathered, projection: ExpertProjection<'_, Self>) -> Result<Array> {
        let fail = |error: mlx_rs::error::Exception| failed("experts", &error);
        let stack = projection.weight;
        let [experts, n, k] = stack.shape();
        let product = match &stack.source.each()[0] {
            Matrix::Dense(_) => {
                let arrays = stack.slot.made(|| self.dense_stack(&stack.source))?;
                let turned = self.graph.transpose(&arrays[0], &[0, 2, 1])?; // [E, K, N]
                let x =
                    if self.is_gpu() { of.x.clone() } else { self.graph.astype(&of.x, Dtype::Float32)? };
                ops::gather_mm(&x, &turned, None, &of.experts, of.sorted).map_err(fail)?
            }
            Matrix::Quantized(_) => {
                let arrays = self.quantized_stack(&stack.source, &stack.slot)?;
                let ordered;
                let x = match stack.ordered {
                    false => &of.x,
                    true => {
                        let all = stack
                            .slot
                            .order(|| Ok(Array::from_slice(&stack.orders(), &dims::of(&[experts, k])?)))?;
                        let own = self.graph.take(&all, &of.experts)?; // [R, K]
                        let own = self.graph.reshape(&own, &[own.dim(0), 1, own.dim(1)])?;
                        ordered = ops::indexing::take_along_axis(&of.x, &own, -1).map_err(fail)?;
                        &ordered
                    }
                };
                self.graph.gather_qmm(x, &arrays, &of.experts, of.sorted)?
            }
        };
        let product = self.typed(product)?;
        let Some(bias) = projection.bias else { return Ok(product) };
        let bias = self.graph.take(&*bias.array()?, &of.experts)?; // [.., N]
        let shape = bias.shape().to_vec();
        let mut shape: dims::Dims = shape.as_slice().into();
        shape.insert(shape.len() - 1, 1);
        debug_assert_eq!(shape.last().copied(), dims::of(&[n])?.last().copied());
        self.typed(self.graph.add(&product, &self.graph.reshape(&bias, &shape)?)?)
    }

    /// Dense matrices as `[E, N, K]`.
    fn dense_stack(&self, stack: &Stack) -> Result<Vec<Array>> {
        let [_, n, k] = stack.shape();
        let each = stack.each().iter().filter_map(|matrix| match matrix {
            Matrix::Dense(weight) => Some(upload(weight.bytes(), &[1, n, k], dims::dtype(weight.dtype()))),
            Matrix::Quantized(_) => None,
        });
        // In the type of what they meet: of two types, MLX would widen all of them for each product. Its CPU device gathers matrices of
        // `f32` alone.
        let dtype = if self.is_gpu() { self.dtype } else { Dtype::Float32 };
        let each = each.map(|array| self.graph.astype(&array?, dtype));
        joined(each.collect::<Result<Vec<_>>>()?).map(|array| vec![array])
    }

    /// Matrices in blocks, each plane as `[E, N, ..]`.
    fn quantized_stack(&self, stack: &Stack, slot: &Slot) -> Result<QuantArrays> {
        let weights = || {
            stack.each().iter().filter_map(|matrix| match matrix {
                Matrix::Quantized(weight) => Some(weight),
                Matrix::Dense(_) => None,
            })
        };
        let Some(first) = weights().next() else { unreachable!("a stack in blocks") };
        let experts = stack.each().len();
        self.arrays(first, slot, || {
            if let (true, Some(planes)) = (quantized::is_native(first), stack.planes()) {
                let whole = quantized::layouts(first).zip(&planes);
                return whole
                    .map(|(([n, k], dtype), plane)| upload(plane.bytes(), &[experts, n, k], dtype))
                    .collect();
            }
            let mut planes: Vec<Vec<Array>> = Vec::new();
            for weight in weights() {
                let arrays = self.own_form(weight)?;
                planes.resize_with(arrays.len(), Vec::new);
                for (plane, array) in planes.iter_mut().zip(arrays) {
                    let dims = [1, array.dim(0), array.dim(1)];
                    plane.push(self.graph.reshape(&array, &dims)?);
                }
            }
            planes.into_iter().map(joined).collect()
        })
    }
}

/// Arrays one behind the other.
fn joined(each: Vec<Array>) -> Result<Array> {
    let whole = ops::concatenate(&each, 0).map_err(|error| failed("weight", &error))?;
    // Now, so that the parts are freed.
    whole.eval().map_err(|error| failed("weight", &error))?;
    Ok(whole)
}
