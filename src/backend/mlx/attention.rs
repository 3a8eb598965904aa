//! Attention on MLX: a call for each run, with masks that the step's layers share.

use mlx_rs::{Array, ops};

use super::array::{self, MlxTensor};
use super::{MlxBackend, MlxKv, failed};
use crate::backend::batch::{Mask, Run};
use crate::backend::kv::KvLayer;
use crate::error::Result;
use crate::tensor::Tensor;

impl MlxBackend {
    /// `[T, H * head_dim]` → the same, each run over its own cache.
    pub(super) fn attention(
        &self,
        q: &Tensor,
        kv: &[&KvLayer],
        mask: &Mask,
        scale: f32,
        soft_cap: Option<f32>,
    ) -> Result<Tensor> {
        let q = self.array(q)?;
        let (rows, width) = (q.shape()[0], q.shape()[1]);
        let masks = self.masks(mask)?;
        let mut outputs = Vec::with_capacity(mask.runs.len());
        for ((run, layer), mask) in mask.runs.iter().zip(kv).zip(&masks) {
            let moved;
            let kv = match layer {
                KvLayer::Mlx(kv) => kv,
                KvLayer::Host(host) => {
                    moved = MlxKv::from_host(host)?;
                    &moved
                }
            };
            let head_dim = kv.shape().head_dim;
            let mut queries = q.to_heads(head_dim)?; // [1, H, T, D]
            if run.len != rows {
                let heads = (width / head_dim) as i32;
                let (row, len) = (run.row as i32, run.len as i32);
                queries = array::slice(&queries, &[0, 0, row, 0], &[1, heads, row + len, head_dim as i32])?;
            }
            let [keys, values] = kv.keys_values()?; // [1, KH, S, D]
            let (keys, values) = (cast(keys, &queries)?, cast(values, &queries)?);
            outputs.push(match soft_cap {
                None => mlx_rs::fast::scaled_dot_product_attention(
                    &queries,
                    &keys,
                    &values,
                    scale,
                    mask.as_ref().map(mlx_rs::fast::ScaledDotProductAttentionMask::Array),
                    None,
                )
                .map_err(|e| failed("attention", &e))?,
                Some(cap) => capped(&queries, &keys, &values, mask.as_ref(), scale, cap)
                    .map_err(|e| failed("attention", &e))?,
            });
        }
        let output = match outputs.len() {
            // No run is no row.
            0 => return Ok(Tensor::Mlx(MlxTensor::rows(q.to_rows()?, q.shape()))),
            1 => outputs.remove(0),
            _ => ops::concatenate(&outputs, 2).map_err(|e| failed("attention", &e))?,
        };
        Ok(Tensor::Mlx(MlxTensor::heads(output, rows, width)))
    }

    /// The step's masks as boolean arrays, made when its first layer asks.
    fn masks(&self, mask: &Mask) -> Result<Vec<Option<Array>>> {
        let mut step = self.step.borrow_mut();
        if let Some(masks) = step.masks.get(&mask.id) {
            return Ok(masks.clone());
        }
        let masks: Vec<Option<Array>> = mask
            .runs
            .iter()
            .map(|run| if mask.is_full(run) { Ok(None) } else { explicit(mask, run).map(Some) })
            .collect::<Result<_>>()?;
        step.masks.insert(mask.id, masks.clone());
        Ok(masks)
    }
}

/// True where a row of `run` sees a key, `[len, keys]`.
fn explicit(mask: &Mask, run: &Run) -> Result<Array> {
    let keys = run.end();
    let mut visible = vec![false; run.len * keys];
    for (row, range) in mask.visible[run.rows()].iter().enumerate() {
        visible[row * keys..][range.clone()].fill(true);
    }
    Ok(Array::from_slice(&visible, &array::shape(&[run.len, keys])?))
}

/// A cache kept in another type than activations is widened, or narrowed, to theirs.
fn cast(cached: Array, queries: &Array) -> Result<Array> {
    if cached.dtype() == queries.dtype() {
        return Ok(cached);
    }
    cached.as_dtype(queries.dtype()).map_err(|e| failed("attention", &e))
}

/// Attention with soft-capped scores, which MLX has no kernel for.
fn capped(
    q: &Array,
    k: &Array,
    v: &Array,
    mask: Option<&Array>,
    scale: f32,
    cap: f32,
) -> mlx_rs::error::Result<Array> {
    let [_, heads, len, head_dim] = *q.shape() else { return Err("q has not four dimensions".into()) };
    let [_, kv_heads, keys, _] = *k.shape() else { return Err("k has not four dimensions".into()) };
    let group = heads / kv_heads;
    let constant = |x: f32| Array::from_f32(x).as_dtype(q.dtype());
    let q = ops::multiply(q, constant(scale)?)?.reshape(&[1, kv_heads, group, len, head_dim])?;
    let k = k.reshape(&[1, kv_heads, 1, keys, head_dim])?.swap_axes(3, 4)?;
    let v = v.reshape(&[1, kv_heads, 1, keys, head_dim])?;
    let scores = ops::matmul(&q, &k)?; // [1, KH, G, len, keys]
    let capped = ops::multiply(ops::tanh(ops::divide(&scores, constant(cap)?)?)?, constant(cap)?)?;
    let capped = match mask {
        Some(mask) => ops::select(mask, &capped, constant(f32::NEG_INFINITY)?)?,
        None => capped,
    };
    let weights = ops::softmax_axis(&capped, -1, true)?;
    ops::matmul(&weights, &v)?.reshape(&[1, heads, len, head_dim])
}
