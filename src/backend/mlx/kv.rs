//! The KV cache of a layer as MLX arrays that grow in steps and are written in place.

use std::ops::Range;

use mlx_rs::{Array, Dtype};

use super::array::{self, MlxTensor};
use super::failed;
use super::graph::Graph;
use crate::backend::batch::Run;
use crate::backend::kv::{HostKv, KvShape};
use crate::error::{Error, Result};

/// Tokens by which the arrays grow: as mlx-lm's, few enough to waste little, enough to make copies rare.
const GROWTH: usize = 256;

/// K and V of one layer and one sequence, each `[1, heads, capacity, head_dim]`.
pub struct MlxKv {
    shape: KvShape,
    arrays: Option<[Array; 2]>,
    capacity: usize,
    len: usize,
}

impl std::fmt::Debug for MlxKv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MlxKv({} of {})", self.len, self.capacity)
    }
}

impl MlxKv {
    /// A cache with what `host` holds.
    pub(super) fn from_host(graph: &Graph, host: &HostKv) -> Result<Self> {
        let shape = *host.shape();
        let mut kv = Self { shape, arrays: None, capacity: 0, len: 0 };
        if host.is_empty() {
            return Ok(kv);
        }
        let (k, v) = host.read();
        let rows = [host.len(), shape.heads * shape.head_dim];
        let dims = array::dims(&rows)?;
        let k = MlxTensor::rows(Array::from_slice(&k, &dims), &rows);
        let v = MlxTensor::rows(Array::from_slice(&v, &dims), &rows);
        kv.write(graph, &k, &v, &Run { sequence: 0, row: 0, len: host.len(), start: 0 })?;
        Ok(kv)
    }

    /// What is kept for each token.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Tokens cached.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.capacity * self.shape.token_bytes()
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// K and V, for evaluation.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.arrays.iter().flatten()
    }

    /// Writes the rows of `run`, `[T, heads * head_dim]` of the whole step, at the run's positions; the shapes are those
    /// that [`KvRows::check`](crate::backend::kv::KvRows::check) accepts.
    pub(super) fn write(&mut self, graph: &Graph, k: &MlxTensor, v: &MlxTensor, run: &Run) -> Result<()> {
        let KvShape { heads, head_dim, dtype } = self.shape;
        self.reserve(graph, run.end())?;
        let Some([keys, values]) = self.arrays.take() else {
            return Err(Error::shape("kv_write", "the cache has no head"));
        };
        let starts = [0, 0, run.start as i32, 0];
        let stops = [1, heads as i32, run.end() as i32, head_dim as i32];
        let put = |to: &Array, from: &MlxTensor| -> Result<Array> {
            let mut rows = from.to_heads(graph, run.rows(), head_dim)?; // [1, KH, len, head_dim]
            if rows.dtype() != array::dtype(dtype) {
                rows = graph.astype(&rows, array::dtype(dtype))?;
            }
            graph.slice_update(to, &rows, &starts, &stops)
        };
        let written = put(&keys, k).and_then(|k| Ok([k, put(&values, v)?]));
        match written {
            Ok(arrays) => {
                self.arrays = Some(arrays);
                self.len = run.end();
                Ok(())
            }
            Err(error) => {
                self.arrays = Some([keys, values]);
                Err(error)
            }
        }
    }

    /// K and V of the tokens at `positions`, `[1, heads, positions, head_dim]`.
    pub(super) fn keys_values(&self, graph: &Graph, positions: Range<usize>) -> Result<[Array; 2]> {
        let Some([k, v]) = &self.arrays else {
            return Err(Error::shape("attention", "the cache is empty"));
        };
        let starts = [0, 0, positions.start as i32, 0];
        let stops = [1, self.shape.heads as i32, positions.end as i32, self.shape.head_dim as i32];
        Ok([graph.slice(k, &starts, &stops)?, graph.slice(v, &starts, &stops)?])
    }

    /// All keys and values on the host, each `[len, heads * head_dim]`.
    pub(super) fn read(&self, graph: &Graph) -> Result<(Vec<f32>, Vec<f32>)> {
        if self.len == 0 {
            return Ok((Vec::new(), Vec::new()));
        }
        let [k, v] = self.keys_values(graph, 0..self.len)?;
        let rows = |array: &Array| array::to_f32(&graph.transpose(array, &[0, 2, 1, 3])?);
        Ok((rows(&k)?, rows(&v)?))
    }

    /// Room for `len` tokens.
    fn reserve(&mut self, graph: &Graph, len: usize) -> Result<()> {
        if len <= self.capacity && self.arrays.is_some() {
            return Ok(());
        }
        let capacity = len.next_multiple_of(GROWTH);
        let KvShape { heads, head_dim, dtype } = self.shape;
        let dims = array::dims(&[1, heads, capacity, head_dim])?;
        let grown = |old: Option<&Array>| -> Result<Array> {
            let zeros = zeros(&dims, array::dtype(dtype))?;
            match old {
                Some(old) if self.len > 0 => {
                    let stops = [1, dims[1], self.len as i32, dims[3]];
                    let held = graph.slice(old, &[0; 4], &stops)?;
                    graph.slice_update(&zeros, &held, &[0; 4], &stops)
                }
                _ => Ok(zeros),
            }
        };
        let old = self.arrays.as_ref();
        let arrays = [grown(old.map(|[k, _]| k))?, grown(old.map(|[_, v]| v))?];
        self.arrays = Some(arrays);
        self.capacity = capacity;
        Ok(())
    }
}

fn zeros(dims: &[i32], dtype: Dtype) -> Result<Array> {
    mlx_rs::ops::zeros_dtype(dims, dtype).map_err(|e| failed("kv_write", &e))
}
