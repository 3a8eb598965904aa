//! The plain ops on MLX: each adds a few nodes to the step's graph.

use mlx_rs::{Array, Dtype, fast, ops};
use smallvec::smallvec;

use super::array::{self, MlxTensor};
use super::{MlxBackend, failed};
use crate::backend::batch::{RopeStep, Tokens};
use crate::backend::ops::{Op, Outputs, Projection};
use crate::config::Activation;
use crate::error::{Error, Result};
use crate::quant::MatrixRef;
use crate::tensor::{Tensor, Weight};

/// What a step's rotary tables became.
#[derive(Clone)]
pub(super) enum RopeArrays {
    /// One run without an attention factor: MLX's own kernel, from an offset and the periods `1 / frequency`.
    Kernel { offset: i32, periods: Array },
    /// Otherwise: cosines and sines of every row in `f32`, `[1, 1, T, dims/2]`.
    Tables { cos: Array, sin: Array },
}

/// The matrix where it is not in blocks.
fn dense<'a>(matrix: MatrixRef<'a>) -> Result<&'a Weight> {
    match matrix {
        MatrixRef::Dense(weight) => Ok(weight),
        MatrixRef::Quantized(weight) => Err(Error::Op {
            op: "linear",
            backend: "mlx",
            reason: format!("no kernel for {}", weight.format()),
        }),
    }
}

impl MlxBackend {
    pub(super) fn compute(&self, op: &Op<'_>) -> Result<Outputs> {
        let name = op.kind().name();
        let fail = |error: mlx_rs::error::Exception| failed(name, &error);
        let output = match *op {
            Op::Embedding { table, tokens, scale } => {
                let ids = match tokens {
                    Tokens::Known(ids) => Array::from_slice(ids, &array::shape(&[ids.len()])?),
                    Tokens::Pending(ids) => self.array(ids)?.array().clone(),
                };
                let mut rows = self.weight(dense(table)?)?.take_axis(&ids, 0).map_err(fail)?;
                if scale != 1.0 {
                    rows = self.scaled(&rows, scale).map_err(fail)?;
                }
                self.rows(self.typed(rows)?, &[tokens.len(), table.shape()[1]])
            }
            Op::Linear { x, projection } => self.linear(x, projection)?,
            Op::RmsNorm { x, weight, eps, offset } => {
                let rows = self.stretches(x, weight.len())?;
                let weight = if offset == 0.0 {
                    self.weight(weight)?
                } else {
                    // Every model of a family has the same offset, so that its name is enough of a key.
                    self.weights.derived(weight, "offset", |w| {
                        ops::add(w.as_dtype(Dtype::Float32)?, Array::from_f32(offset))
                    })?
                };
                let normed = fast::rms_norm(&rows, Some(&weight), eps).map_err(fail)?;
                self.rows(self.typed(normed)?, x.shape())
            }
            Op::LayerNorm { x, weight, bias, eps } => {
                let bias = bias.map(|bias| self.weight(bias)).transpose()?;
                let rows = self.stretches(x, weight.len())?;
                let weight = self.weight(weight)?;
                let normed = fast::layer_norm(&rows, Some(&weight), bias.as_ref(), eps).map_err(fail)?;
                self.rows(self.typed(normed)?, x.shape())
            }
            Op::Activate { x, activation } => {
                let rows = self.array(x)?.to_rows()?;
                self.rows(self.activated(&rows, activation).map_err(fail)?, x.shape())
            }
            Op::Add { a, b } => {
                let sum = ops::add(self.array(a)?.to_rows()?, self.array(b)?.to_rows()?).map_err(fail)?;
                self.rows(sum, a.shape())
            }
            Op::Mul { a, b } => {
                let product =
                    ops::multiply(self.array(a)?.to_rows()?, self.array(b)?.to_rows()?).map_err(fail)?;
                self.rows(product, a.shape())
            }
            Op::Scale { x, by } => {
                let rows = self.array(x)?.to_rows()?;
                self.rows(self.scaled(&rows, by).map_err(fail)?, x.shape())
            }
            Op::SoftCap { x, cap } => {
                let rows = self.array(x)?.to_rows()?;
                // In `f32`: the quotient of a small logit is subnormal in `f16`, and four roundings are two bits of `bf16`.
                let cap = Array::from_f32(cap);
                let capped = rows
                    .as_dtype(Dtype::Float32)
                    .and_then(|x| ops::tanh(ops::divide(x, &cap)?))
                    .and_then(|t| ops::multiply(t, &cap))
                    .map_err(fail)?;
                self.rows(self.typed(capped)?, x.shape())
            }
            Op::Rope { x, head_dim, rope } => self.rope(x, head_dim, rope)?,
            Op::Attention { q, kv, mask, scale, soft_cap } => self.attention(q, kv, mask, scale, soft_cap)?,
            Op::TakeRows { x, rows } => {
                let indices: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
                let indices = Array::from_slice(&indices, &array::shape(&[rows.len()])?);
                let taken = self.array(x)?.to_rows()?.take_axis(&indices, 0).map_err(fail)?;
                self.rows(taken, &[rows.len(), x.shape()[1]])
            }
            Op::GateUp { .. } | Op::AddRmsNorm { .. } | Op::Qkv { .. } => {
                return Err(Error::Op {
                    op: name,
                    backend: "mlx",
                    reason: "MLX has no such kernel: the dispatch composes it".into(),
                });
            }
        };
        Ok(smallvec![output])
    }

    fn rows(&self, array: Array, shape: &[usize]) -> Tensor {
        Tensor::Mlx(MlxTensor::rows(array, shape))
    }

    fn weight(&self, weight: &Weight) -> Result<Array> {
        self.weights.get(weight)
    }

    /// The stretches of `len` elements that a norm works on: rows, or the heads of rows, `[T, D / len, len]`.
    fn stretches(&self, x: &Tensor, len: usize) -> Result<Array> {
        let rows = self.array(x)?.to_rows()?;
        let (height, width) = (x.shape()[0], x.shape()[1]);
        if len == width {
            return Ok(rows);
        }
        rows.reshape(&array::shape(&[height, width / len, len])?).map_err(|e| failed("norm", &e))
    }

    /// In the type of activations: a weight of another type must not widen all that follows.
    fn typed(&self, array: Array) -> Result<Array> {
        if array.dtype() == self.dtype {
            return Ok(array);
        }
        array.as_dtype(self.dtype).map_err(|e| failed("cast", &e))
    }

    /// A number in the type of activations.
    fn constant(&self, x: f32) -> mlx_rs::error::Result<Array> {
        let constant = Array::from_f32(x);
        if self.dtype == Dtype::Float32 { Ok(constant) } else { constant.as_dtype(self.dtype) }
    }

    fn scaled(&self, x: &Array, by: f32) -> mlx_rs::error::Result<Array> {
        ops::multiply(x, self.constant(by)?)
    }

    fn linear(&self, x: &Tensor, projection: Projection<'_>) -> Result<Tensor> {
        let rows = self.array(x)?.to_rows()?;
        let weight = self.weights.derived(dense(projection.weight)?, "transposed", |w| w.transpose())?;
        let product = match projection.bias {
            None => ops::matmul(&rows, &weight),
            Some(bias) => ops::addmm(&self.weight(bias)?, &rows, &weight, 1.0, 1.0),
        };
        let product = product.map_err(|e| failed("linear", &e))?;
        Ok(self.rows(self.typed(product)?, &[x.shape()[0], projection.weight.shape()[0]]))
    }

    fn activated(&self, x: &Array, activation: Activation) -> mlx_rs::error::Result<Array> {
        let one = || self.constant(1.0);
        match activation {
            Activation::Silu => ops::multiply(x, ops::sigmoid(x)?),
            Activation::Gelu => {
                let erf = ops::erf(self.scaled(x, std::f32::consts::FRAC_1_SQRT_2)?)?;
                ops::multiply(self.scaled(x, 0.5)?, ops::add(one()?, erf)?)
            }
            Activation::GeluTanh => {
                let cube = ops::multiply(x, ops::multiply(x, x)?)?;
                let inner = ops::add(x, self.scaled(&cube, 0.044_715)?)?;
                let root = (2.0 / std::f32::consts::PI).sqrt();
                let tanh = ops::tanh(self.scaled(&inner, root)?)?;
                ops::multiply(self.scaled(x, 0.5)?, ops::add(one()?, tanh)?)
            }
        }
    }

    fn rope(&self, x: &Tensor, head_dim: usize, rope: &RopeStep) -> Result<Tensor> {
        let fail = |error: mlx_rs::error::Exception| failed("rope", &error);
        let (rows, width) = (x.shape()[0], x.shape()[1]);
        let heads = self.array(x)?.to_heads(head_dim)?; // [1, H, T, D]
        if rope.dims == 0 {
            return Ok(Tensor::Mlx(MlxTensor::heads(heads, rows, width)));
        }
        let rotated = match self.rope_arrays(rope)? {
            RopeArrays::Kernel { offset, periods } => {
                let dims = rope.dims as i32;
                fast::rope(&heads, dims, false, None, 1.0, offset, Some(&periods)).map_err(fail)?
            }
            RopeArrays::Tables { cos, sin } => {
                let [_, h, t, d] = *heads.shape() else {
                    return Err(Error::shape("rope", "x has not four dimensions"));
                };
                let (half, dims) = ((rope.dims / 2) as i32, rope.dims as i32);
                let a = array::slice(&heads, &[0; 4], &[1, h, t, half])?;
                let b = array::slice(&heads, &[0, 0, 0, half], &[1, h, t, dims])?;
                let turned = |a: &Array, b: &Array| -> mlx_rs::error::Result<[Array; 2]> {
                    let first = ops::subtract(ops::multiply(a, &cos)?, ops::multiply(b, &sin)?)?;
                    let second = ops::add(ops::multiply(b, &cos)?, ops::multiply(a, &sin)?)?;
                    Ok([first, second])
                };
                let mut parts = turned(&a, &b).map_err(fail)?.to_vec();
                if dims < d {
                    parts.push(array::slice(&heads, &[0, 0, 0, dims], &[1, h, t, d])?);
                }
                self.typed(ops::concatenate(&parts, 3).map_err(fail)?)?
            }
        };
        Ok(Tensor::Mlx(MlxTensor::heads(rotated, rows, width)))
    }

    /// The step's tables as arrays, made when its first layer asks.
    fn rope_arrays(&self, rope: &RopeStep) -> Result<RopeArrays> {
        let mut step = self.step.borrow_mut();
        if let Some(arrays) = step.ropes.get(&rope.id) {
            return Ok(arrays.clone());
        }
        let half = rope.dims / 2;
        let arrays = match rope.runs.as_slice() {
            [(run, frequencies)] if frequencies.attention_factor == 1.0 => {
                let periods: Vec<f32> = frequencies.inv_freq.iter().map(|f| f.recip()).collect();
                let periods = Array::from_slice(&periods, &array::shape(&[half])?);
                RopeArrays::Kernel { offset: run.start as i32, periods }
            }
            _ => {
                let rows = rope.cos.len() / half.max(1);
                let dims = array::shape(&[1, 1, rows, half])?;
                RopeArrays::Tables {
                    cos: Array::from_slice(&rope.cos, &dims),
                    sin: Array::from_slice(&rope.sin, &dims),
                }
            }
        };
        step.ropes.insert(rope.id, arrays.clone());
        Ok(arrays)
    }
}
