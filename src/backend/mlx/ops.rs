//! The plain ops on MLX: each adds a few nodes to the step's graph.

use std::borrow::Cow;
use std::rc::Rc;

use half::{bf16, f16};
use mlx_rs::{Array, Dtype, fast, ops};
use smallvec::smallvec;

use super::array::MlxTensor;
use super::dims;
use super::operands::MlxVector;
use super::{MlxBackend, failed};
use crate::backend::ops::{GateKind, Ids, MatrixOperand, Op, Outputs, Projection, RopeStep, VectorOperand};
use crate::config::Activation;
use crate::error::{Error, Result};
use crate::quant::Matrix;

/// What a step's rotary tables became.
pub(super) enum RopeArrays {
    /// One token on a device without a kernel, which composes it of 29 nodes: the matrix `[D, D]` that rotates a head.
    Rotation(Array),
    /// One run without an attention factor: MLX's own kernel, from an offset and the periods `1 / frequency`.
    Kernel { offset: i32, periods: Array },
    /// Otherwise: cosines and sines of every row in `f32`, `[1, 1, T, dims/2]`.
    Tables { cos: Array, sin: Array },
}

impl MlxBackend {
    pub(super) fn compute(&self, op: &Op<'_, Self>) -> Result<Outputs<Self>> {
        let name = op.kind().name();
        let fail = |error: mlx_rs::error::Exception| failed(name, &error);
        let output = match *op {
            Op::Embedding { table, tokens, scale } => {
                let ids = match tokens {
                    Ids::Known(ids) => Array::from_slice(ids, &dims::of(&[ids.len()])?),
                    Ids::Pending(ids) => ids.array().clone(),
                };
                let mut rows = match table.source() {
                    Matrix::Dense(of) => self.graph.take(&*table.slots()[0].own(of)?, &ids)?,
                    Matrix::Quantized(of) => self.quantized_rows(&ids, of, table.slots())?,
                };
                if scale != 1.0 {
                    rows = self.scaled(&rows, scale)?;
                }
                self.rows(self.typed(rows)?, &[tokens.len(), table.shape()[1]])
            }
            Op::Linear { x, projection } => self.linear(x, projection)?,
            Op::HeadLinear { x, weight, beside } => self.head_linear(x, weight, beside)?,
            Op::RmsNorm { x, weight, eps, offset } => self.rms_norm(x, weight, eps, offset)?,
            Op::LayerNorm { x, weight, bias, eps } => {
                let bias = bias.map(MlxVector::array).transpose()?;
                let rows = self.stretches(x, VectorOperand::shape(weight).last().copied().unwrap_or(0))?;
                let own = weight.array()?;
                let normed = match VectorOperand::shape(weight) {
                    [_, _] => {
                        let plain = fast::layer_norm(&*rows, None, None, eps).map_err(fail)?;
                        self.graph.multiply(&plain, &own)? // [T, H, N] · [H, N]
                    }
                    _ => fast::layer_norm(&*rows, Some(&*own), bias.as_deref(), eps).map_err(fail)?,
                };
                self.rows(self.typed(normed)?, x.shape())
            }
            Op::Activate { x, activation } => {
                let rows = self.matrix(x)?;
                self.rows(self.activated(&rows, activation)?, x.shape())
            }
            Op::Add { a, b } => self.rows(self.graph.add(&*self.matrix(a)?, &*self.matrix(b)?)?, a.shape()),
            Op::Mul { a, b } => {
                self.rows(self.graph.multiply(&*self.matrix(a)?, &*self.matrix(b)?)?, a.shape())
            }
            Op::Scale { x, by } => {
                // By the number itself: in a narrow type it would be rounded for every element alike.
                let wide = self.graph.astype(&*self.matrix(x)?, Dtype::Float32)?;
                let by = self.graph.constant(by, Dtype::Float32, &[]);
                self.rows(self.typed(self.graph.multiply(&wide, &by)?)?, x.shape())
            }
            Op::ScaleRows { x, by } => {
                let wide = self.graph.astype(&*self.matrix(x)?, Dtype::Float32)?;
                let by = Array::from_slice(by, &dims::of(&[by.len(), 1])?);
                self.rows(self.typed(self.graph.multiply(&wide, &by)?)?, x.shape())
            }
            Op::Gate { x, gate, kind } => {
                let ([rows, width], gates) = ([x.shape()[0], x.shape()[1]], gate.shape()[1]);
                let by = match kind {
                    GateKind::Sigmoid => self.graph.sigmoid(&*self.matrix(gate)?)?,
                    GateKind::Softplus => {
                        let wide = self.graph.astype(&*self.matrix(gate)?, Dtype::Float32)?;
                        let zero = self.graph.constant(0.0, Dtype::Float32, &[]);
                        self.typed(ops::logaddexp(&wide, &*zero).map_err(fail)?)?
                    }
                };
                let by = self.graph.reshape(&by, &dims::of(&[rows, gates, 1])?)?;
                let stretches = dims::of(&[rows, gates, width / gates])?;
                let stretches = self.graph.reshape(&*self.matrix(x)?, &stretches)?;
                self.rows(self.typed(self.graph.multiply(&stretches, &by)?)?, x.shape())
            }
            Op::Mix { x, by, into, width } => {
                // Few terms, in `f32`: a stream is the sum of what all layers added to it.
                let (rows, stretches) = (x.shape()[0], x.shape()[1] / width);
                let results = by.shape()[1] / stretches;
                let wide = |x: &MlxTensor| self.graph.astype(&*self.matrix(x)?, Dtype::Float32);
                let stacked = self.graph.reshape(&wide(x)?, &dims::of(&[rows, stretches, width])?)?;
                let by = self.graph.reshape(&wide(by)?, &dims::of(&[rows, results, stretches])?)?;
                let shape = [rows, results * width];
                let mut mixed = self.graph.matmul(&by, &stacked)?; // [T, R, width]
                mixed = self.graph.reshape(&mixed, &dims::of(&shape)?)?;
                if let Some(into) = into {
                    mixed = self.graph.add(&wide(into)?, &mixed)?;
                }
                self.rows(self.typed(mixed)?, &shape)
            }
            Op::Cut { x, deviations } => {
                let wide = self.graph.astype(&*self.matrix(x)?, Dtype::Float32)?;
                let mean = ops::mean_axis(&wide, -1, true).map_err(fail)?;
                let centred = ops::subtract(&wide, &mean).map_err(fail)?;
                let squares = self.graph.multiply(&centred, &centred)?;
                let deviation = ops::mean_axis(&squares, -1, true).and_then(ops::sqrt).map_err(fail)?;
                let by = self.graph.constant(deviations, Dtype::Float32, &[]);
                let above = ops::subtract(&centred, self.graph.multiply(&deviation, &by)?).map_err(fail)?;
                let zero = self.graph.constant(0.0, Dtype::Float32, &[]);
                self.rows(self.typed(ops::maximum(&above, &*zero).map_err(fail)?)?, x.shape())
            }
            Op::Join { a, b } => {
                let shape = [a.shape()[0], a.shape()[1] + b.shape()[1]];
                let joined = ops::concatenate(&[&*self.matrix(a)?, &*self.matrix(b)?], 1).map_err(fail)?;
                self.rows(joined, &shape)
            }
            Op::SoftCap { x, cap } => {
                // In `f32`: the quotient of a small logit is subnormal in `f16`, and four roundings are two bits of `bf16`.
                let cap = self.graph.constant(cap, Dtype::Float32, &[]);
                let wide = self.graph.astype(&*self.matrix(x)?, Dtype::Float32)?;
                let bent = ops::divide(&wide, &*cap).and_then(ops::tanh).map_err(fail)?;
                self.rows(self.typed(self.graph.multiply(&bent, &cap)?)?, x.shape())
            }
            Op::Rope { x, head_dim, rope } => self.rope(x, head_dim, rope)?,
            Op::Attention { q, kv, mask, scale, soft_cap, sinks, bias } => {
                self.attention(q, kv, mask, (scale, soft_cap), [sinks, bias])?
            }
            Op::TakeRows { x, rows } => {
                let indices: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
                let indices = Array::from_slice(&indices, &dims::of(&[rows.len()])?);
                let taken = self.graph.take(&*self.matrix(x)?, &indices)?;
                self.rows(taken, &[rows.len(), x.shape()[1]])
            }
            Op::Route { logits, bias, scales, router } => {
                return Ok(self.route(logits, [bias, scales], &router)?.into_iter().collect());
            }
            Op::Experts { x, ids, weights, gate, up, down, gating, on_input } => {
                self.experts([x, ids, weights], on_input, [gate, Some(up)], down, gating)?
            }
            Op::AllSum { x } => self.all_sum(x)?,
            Op::GateUp { .. } | Op::AddRmsNorm { .. } | Op::Adapt { .. } | Op::Qkv { .. } => {
                return Err(Error::Op {
                    op: name,
                    backend: "mlx",
                    reason: "MLX has no such kernel: the dispatch composes it".into(),
                });
            }
        };
        Ok(smallvec![output])
    }

    fn rows(&self, array: Array, shape: &[usize]) -> MlxTensor {
        MlxTensor::rows(array, shape)
    }

    /// The array of an activation in its own dimensions, `[T, D]`.
    fn matrix<'a>(&self, x: &'a MlxTensor) -> Result<Cow<'a, Array>> {
        x.to_rows(&self.graph)
    }

    /// The stretches of `len` elements that a norm works on: rows, or the heads of rows, `[T, D / len, len]`.
    fn stretches<'a>(&self, x: &'a MlxTensor, len: usize) -> Result<Cow<'a, Array>> {
        let (height, width) = (x.shape()[0], x.shape()[1]);
        if len == width {
            return self.matrix(x);
        }
        let dims = dims::of(&[height, width / len, len])?;
        self.graph.reshape(&*self.matrix(x)?, &dims).map(Cow::Owned)
    }

    /// In the type of activations: a weight of another type must not widen all that follows.
    pub(super) fn typed(&self, array: Array) -> Result<Array> {
        if array.dtype() == self.dtype {
            return Ok(array);
        }
        self.graph.astype(&array, self.dtype)
    }

    /// A number in the type of activations.
    fn constant(&self, x: f32) -> Rc<Array> {
        self.graph.constant(x, self.dtype, &[])
    }

    fn scaled(&self, x: &Array, by: f32) -> Result<Array> {
        self.graph.multiply(x, &self.constant(by))
    }

    fn linear(&self, x: &MlxTensor, projection: Projection<'_, Self>) -> Result<MlxTensor> {
        let rows = self.matrix(x)?;
        let bias = projection.bias.map(MlxVector::array).transpose()?;
        let slots = projection.weight.slots();
        let product = match (projection.weight.source(), bias) {
            (Matrix::Dense(weight), None) => self.graph.matmul(&rows, &*slots[0].transposed(weight)?)?,
            (Matrix::Dense(weight), Some(bias)) => {
                self.graph.addmm(&bias, &rows, &*slots[0].transposed(weight)?, 1.0)?
            }
            (Matrix::Quantized(weight), None) => self.quantized_matmul(&rows, weight, slots)?,
            (Matrix::Quantized(weight), Some(bias)) => {
                self.graph.add(&self.quantized_matmul(&rows, weight, slots)?, &bias)?
            }
        };
        Ok(self.rows(self.typed(product)?, &[x.shape()[0], projection.weight.shape()[0]]))
    }

    fn rms_norm(&self, x: &MlxTensor, weight: &MlxVector, eps: f32, offset: f32) -> Result<MlxTensor> {
        let (len, shape) = (weight.len(), VectorOperand::shape(weight));
        let normed = if let [heads, each] = *shape {
            let ones = self.graph.constant(1.0, Dtype::Float32, &dims::of(&[each])?);
            let plain = self.graph.rms_norm(&*self.stretches(x, each)?, &ones, eps)?;
            self.graph.multiply(&plain, &*weight.shifted(offset, &dims::of(&[heads, each])?)?)? // [T, G, N] · [G, N]
        } else if x.shape() == [1, len] && !self.device.gpu {
            self.norm_of_row(&*self.matrix(x)?, weight, eps, offset)?
        } else {
            let weight = match offset {
                0.0 => weight.array()?,
                _ => weight.shifted(offset, &dims::of(&[len])?)?,
            };
            self.graph.rms_norm(&*self.stretches(x, len)?, &weight, eps)?
        };
        Ok(self.rows(self.typed(normed)?, x.shape()))
    }

    /// The RMS norm of one row in 6 nodes, in `f32`: MLX's CPU device has no kernel and composes it of 13.
    fn norm_of_row(&self, row: &Array, weight: &MlxVector, eps: f32, offset: f32) -> Result<Array> {
        let graph = &self.graph;
        let len = dims::of(&[weight.len()])?[0];
        let row = graph.astype(row, Dtype::Float32)?; // [1, N]
        let column = graph.reshape(&row, &[len, 1])?;
        let eps = graph.constant(eps, Dtype::Float32, &[1, 1]);
        let mean_square = graph.addmm(&eps, &row, &column, 1.0 / len as f32)?; // [1, 1]
        let normed = graph.matmul(&graph.rsqrt(&mean_square)?, &row)?; // [1, N]
        graph.multiply(&normed, &*weight.shifted(offset, &[1, len])?)
    }

    pub(super) fn activated(&self, x: &Array, activation: Activation) -> Result<Array> {
        let fail = |e: mlx_rs::error::Exception| failed("activation", &e);
        let graph = &self.graph;
        match activation {
            Activation::Silu => graph.multiply(x, &graph.sigmoid(x)?),
            Activation::Gelu => {
                let erf = ops::erf(self.scaled(x, std::f32::consts::FRAC_1_SQRT_2)?).map_err(fail)?;
                graph.multiply(&self.scaled(x, 0.5)?, &graph.add(&self.constant(1.0), &erf)?)
            }
            Activation::Relu2 => {
                let positive = ops::maximum(x, &*self.constant(0.0)).map_err(fail)?;
                graph.multiply(&positive, &positive)
            }
            Activation::GeluTanh => {
                let cube = graph.multiply(x, &graph.multiply(x, x)?)?;
                let inner = graph.add(x, &self.scaled(&cube, 0.044_715)?)?;
                let root = (2.0 / std::f32::consts::PI).sqrt();
                let tanh = ops::tanh(self.scaled(&inner, root)?).map_err(fail)?;
                graph.multiply(&self.scaled(x, 0.5)?, &graph.add(&self.constant(1.0), &tanh)?)
            }
        }
    }

    fn rope(&self, x: &MlxTensor, head_dim: usize, rope: &RopeStep) -> Result<MlxTensor> {
        let graph = &self.graph;
        let (rows, width) = (x.shape()[0], x.shape()[1]);
        let heads = || x.to_heads(graph, 0..rows, head_dim); // [1, H, T, D]
        let arrays = self.rope_arrays(rope, head_dim)?;
        let rotated = match &*arrays {
            RopeArrays::Rotation(matrix) => {
                let heads = x.row(graph, 0, &dims::of(&[width / head_dim, head_dim])?)?;
                let rotated = graph.matmul(&heads, matrix)?; // [H, D]
                return Ok(self.rows(rotated, &[1, width]));
            }
            _ if rope.dims == 0 => heads()?,
            RopeArrays::Kernel { offset, periods } => {
                graph.rope(&heads()?, rope.dims as i32, *offset, periods)?
            }
            RopeArrays::Tables { cos, sin } => self.rotated(&heads()?, rope.dims, cos, sin)?,
        };
        Ok(MlxTensor::heads(rotated, rows, width))
    }

    /// Heads `[1, H, T, D]` rotated by tables `[1, 1, T, dims / 2]`.
    fn rotated(&self, heads: &Array, dims: usize, cos: &Array, sin: &Array) -> Result<Array> {
        let graph = &self.graph;
        let [_, h, t, d] = *heads.shape() else {
            return Err(Error::shape("rope", "x has not four dimensions"));
        };
        let (half, dims) = ((dims / 2) as i32, dims as i32);
        let a = graph.slice(heads, &[0; 4], &[1, h, t, half])?;
        let b = graph.slice(heads, &[0, 0, 0, half], &[1, h, t, dims])?;
        let minus = |a: &Array, b: &Array| ops::subtract(a, b).map_err(|e| failed("rope", &e));
        let mut parts = vec![
            minus(&graph.multiply(&a, cos)?, &graph.multiply(&b, sin)?)?,
            graph.add(&graph.multiply(&b, cos)?, &graph.multiply(&a, sin)?)?,
        ];
        if dims < d {
            parts.push(graph.slice(heads, &[0, 0, 0, dims], &[1, h, t, d])?);
        }
        self.typed(ops::concatenate(&parts, 3).map_err(|e| failed("rope", &e))?)
    }

    /// The step's tables as arrays, made when its first layer asks.
    fn rope_arrays(&self, rope: &RopeStep, head_dim: usize) -> Result<Rc<RopeArrays>> {
        let mut step = self.step.borrow_mut();
        let key = (rope.id, head_dim);
        if let Some((_, arrays)) = step.ropes.iter().find(|(of, _)| *of == key) {
            return Ok(Rc::clone(arrays));
        }
        let half = rope.dims / 2;
        let arrays = match rope.runs.as_slice() {
            [(run, _)] if run.len == 1 && !self.device.gpu => {
                let dims = dims::of(&[head_dim, head_dim])?;
                RopeArrays::Rotation(match self.dtype {
                    Dtype::Float16 => Array::from_slice(&rotation(rope, head_dim, f16::from_f32), &dims),
                    Dtype::Bfloat16 => Array::from_slice(&rotation(rope, head_dim, bf16::from_f32), &dims),
                    _ => Array::from_slice(&rotation(rope, head_dim, |x| x), &dims),
                })
            }
            [(run, frequencies)] if frequencies.attention_factor == 1.0 && !rope.scaled => {
                let periods: Vec<f32> = frequencies.inv_freq.iter().map(|f| f.recip()).collect();
                let periods = Array::from_slice(&periods, &dims::of(&[half])?);
                RopeArrays::Kernel { offset: run.start as i32, periods }
            }
            _ => {
                let rows = rope.cos.len() / half.max(1);
                let dims = dims::of(&[1, 1, rows, half])?;
                RopeArrays::Tables {
                    cos: Array::from_slice(&rope.cos, &dims),
                    sin: Array::from_slice(&rope.sin, &dims),
                }
            }
        };
        let arrays = Rc::new(arrays);
        step.ropes.push((key, Rc::clone(&arrays)));
        Ok(arrays)
    }
}

/// The matrix that a row vector is multiplied by to be rotated by the first row of the tables, `[D, D]`.
fn rotation<T: Copy + Default>(rope: &RopeStep, head_dim: usize, round: impl Fn(f32) -> T) -> Vec<T> {
    let half = rope.dims / 2;
    let mut matrix = vec![T::default(); head_dim * head_dim];
    for i in 0..half {
        let (cos, sin) = (round(rope.cos[i]), round(rope.sin[i]));
        let (a, b) = (i * head_dim, (i + half) * head_dim);
        (matrix[a + i], matrix[a + i + half]) = (cos, sin);
        (matrix[b + i], matrix[b + i + half]) = (round(-rope.sin[i]), cos);
    }
    for i in rope.dims..head_dim {
        matrix[i * head_dim + i] = round(1.0);
    }
    matrix
}
