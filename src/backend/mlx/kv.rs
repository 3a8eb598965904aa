//! The KV cache of a layer as MLX arrays that grow in steps and are written in place.
//!
//! A quantized cache is what MLX's own quantized ops take: 32-bit words of codes, scales and biases, in groups of 32. A head
//! that is no multiple of that is filled up with its last element, which changes neither the edges of its last group nor, the
//! queries being filled up with zeros, a score.

use std::ops::Range;
use std::rc::Rc;

use half::f16;
use mlx_rs::ops::{PadMode, quantize, zeros_dtype};
use mlx_rs::{Array, Dtype, ops};
use smallvec::SmallVec;

use super::array::{self, MlxTensor};
use super::dims;
use super::graph::{Graph, QuantArrays};
use super::{eval_error, failed};
use crate::backend::kv::{CodeRows, GROUP, HostKv, KvShape, KvType, MLX_GROWTH};
use crate::backend::ops::Run;
use crate::error::{Error, Result};
use crate::quant::affine;

/// What K, or V, is kept as: floats, or codes, scales and biases.
type Planes = SmallVec<[Array; 3]>;

/// K and V of one layer and one sequence, each plane `[1, heads, capacity, width]`. Of latent vectors, K begins with V, which has no
/// planes.
pub struct MlxKv {
    shape: KvShape,
    /// The last keys that a token sees, where there is a window.
    window: Option<usize>,
    /// The first position that is held: what lies before was given back in host memory.
    first: usize,
    arrays: Option<[Planes; 2]>,
    capacity: usize,
    len: usize,
}

/// K and V of one page's tokens in one layer, each plane `[1, heads, tokens, width]`, in memory of its own.
pub struct MlxPage {
    planes: [Planes; 2],
}

/// K and V of some tokens, as attention reads them.
pub(super) enum Cached {
    /// K `[1, heads, S, k_dim]` and V `[1, heads, S, v_dim]`.
    Floats([Array; 2]),
    /// The same in codes, the head filled up to whole groups.
    Codes([QuantArrays; 2]),
}

impl std::fmt::Debug for MlxKv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MlxKv({} of {})", self.len, self.capacity)
    }
}

impl std::fmt::Debug for MlxPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tokens = self.planes[0].first().map_or(0, |plane| plane.dim(2));
        write!(f, "MlxPage({tokens})")
    }
}

impl MlxPage {
    /// K and V, for evaluation.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.planes.iter().flatten()
    }
}

/// Handles of arrays, and bytes.
#[cfg(any(test, feature = "fuzzing"))]
fn memory<'a>(arrays: impl Iterator<Item = &'a Array>) -> Vec<(usize, u64)> {
    arrays.map(|array| (std::ptr::from_ref(array) as usize, array.nbytes() as u64)).collect()
}

#[cfg(any(test, feature = "fuzzing"))]
impl MlxPage {
    pub(crate) fn memory(&self) -> Vec<(usize, u64)> {
        memory(self.arrays())
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl MlxKv {
    pub(crate) fn memory(&self) -> Vec<(usize, u64)> {
        memory(self.arrays())
    }
}

/// A head filled up to whole groups.
pub(super) fn filled_up(head_dim: usize) -> usize {
    head_dim.next_multiple_of(GROUP)
}

/// Width and type of each plane of K, or of V, with heads of `head_dim`.
fn layout(kind: KvType, head_dim: usize) -> SmallVec<[(usize, Dtype); 3]> {
    match (kind.float(), kind.bits()) {
        (Some(float), _) => SmallVec::from_slice(&[(head_dim, dims::dtype(float))]),
        (None, bits) => {
            let (width, bits) = (filled_up(head_dim), usize::from(bits.unwrap_or(8)));
            let scales = (width / GROUP, Dtype::Float16);
            SmallVec::from_slice(&[(width * bits / 32, Dtype::Uint32), scales, scales])
        }
    }
}

impl MlxKv {
    /// An empty cache.
    pub(super) fn new(shape: KvShape, window: Option<usize>) -> Self {
        Self { shape, window, first: 0, arrays: None, capacity: 0, len: 0 }
    }

    /// A cache with what `host` holds.
    pub(super) fn from_host(graph: &Graph, host: &HostKv) -> Result<Self> {
        let shape = *host.shape();
        let mut kv = Self::new(shape, host.window());
        if host.is_empty() {
            return Ok(kv);
        }
        if let Some(rows) = host.read_codes()? {
            let [k, v] = [kv.upload(graph, shape.k_dim, &rows[0])?, kv.upload(graph, shape.v_dim, &rows[1])?];
            kv.put(graph, 0..host.len(), [&k, &v])?;
            kv.first = host.first();
            return Ok(kv);
        }
        let (k, v) = host.read()?;
        let rows = |values: &[f32], width: usize| -> Result<MlxTensor> {
            let rows = [host.len(), width];
            Ok(MlxTensor::rows(Array::from_slice(values, &dims::of(&rows)?), &rows))
        };
        let [k_width, v_width] = shape.widths();
        let (k, v) = (rows(&k, k_width)?, rows(&v, v_width)?);
        kv.write(graph, &k, &v, &Run { sequence: 0, row: 0, len: host.len(), start: 0 })?;
        kv.first = host.first();
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
        self.capacity * self.shape.mlx_token_bytes()
    }

    /// The tokens at `positions`, still lazy. It is a copy: a part of the arrays would keep all of them alive.
    pub(super) fn page(&self, graph: &Graph, positions: Range<usize>) -> Result<MlxPage> {
        let Some(arrays) = &self.arrays else {
            return Err(Error::shape("snapshot", "the cache is empty"));
        };
        let heads = self.shape.heads as i32;
        let (start, end) = (positions.start as i32, positions.end as i32);
        let copy = |of: &Array| {
            let dims = [1, heads, end - start, of.dim(3)];
            let part = graph.slice(of, &[0, 0, start, 0], &[1, heads, end, of.dim(3)])?;
            graph.slice_update(&zeros(&dims, of.dtype())?, &part, &[0; 4], &dims)
        };
        let copies = |i: usize| arrays[i].iter().map(copy).collect::<Result<Planes>>();
        Ok(MlxPage { planes: [copies(0)?, copies(1)?] })
    }

    /// A cache of the first `len` tokens of `pages`, at least one, still lazy.
    pub(super) fn from_pages(
        graph: &Graph,
        (shape, window): (KvShape, Option<usize>),
        pages: &[&MlxPage],
        len: usize,
    ) -> Result<Self> {
        let (heads, capacity) = (shape.heads as i32, len.next_multiple_of(MLX_GROWTH));
        let joined = |i: usize, plane: usize| -> Result<Array> {
            let (mut parts, mut held) = (Vec::with_capacity(pages.len() + 1), 0);
            for page in pages {
                let part = &page.planes[i][plane];
                let more = part.dim(2).min(len as i32 - held);
                parts.push(graph.slice(part, &[0; 4], &[1, heads, more, part.dim(3)])?);
                held += more;
            }
            let Some(first) = parts.first() else {
                return Err(Error::shape("restore", "there is no page"));
            };
            let room = [1, heads, capacity as i32 - held, first.dim(3)];
            if room[2] > 0 {
                parts.push(zeros(&room, first.dtype())?);
            }
            ops::concatenate(&parts, 2).map_err(|e| failed("restore", &e))
        };
        let count = |i: usize| if i == 1 && shape.latent { 0 } else { layout(shape.kind, shape.k_dim).len() };
        let planes = |i: usize| (0..count(i)).map(|plane| joined(i, plane)).collect();
        let arrays: [Result<Planes>; 2] = [planes(0), planes(1)];
        let [k, v] = arrays;
        Ok(Self { arrays: Some([k?, v?]), capacity, len, ..Self::new(shape, window) })
    }

    /// The first position that is held.
    pub fn first(&self) -> usize {
        self.first
    }

    /// Forgets the tokens from `len` on; where what the next token would see of those before was given back, all of them.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        let seen = (len + 1).saturating_sub(self.window.unwrap_or(usize::MAX));
        self.len = if seen < self.first { 0 } else { len };
        if self.len == 0 {
            self.first = 0;
        }
    }

    /// K and V, for evaluation.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.arrays.iter().flatten().flatten()
    }

    /// Writes the rows of `run`, `[T, heads * k_dim]` and `[T, heads * v_dim]` of the whole step (of latent vectors, the two parts of K), at the run's positions; the shapes are those
    /// that [`KvRows::check`](crate::backend::ops::KvRows::check) accepts.
    pub(super) fn write(&mut self, graph: &Graph, k: &MlxTensor, v: &MlxTensor, run: &Run) -> Result<()> {
        let rounded = |from: &MlxTensor, head_dim: usize| -> Result<Planes> {
            let rows = from.to_heads(graph, run.rows(), head_dim)?; // [1, KH, len, head_dim]
            self.rounded(graph, rows, head_dim)
        };
        if self.shape.latent {
            let parts = [(k, self.shape.v_dim), (v, self.shape.k_dim - self.shape.v_dim)];
            let parts = parts.map(|(from, width)| from.to_heads(graph, run.rows(), width));
            let [latent, rotating] = parts;
            let whole = ops::concatenate(&[latent?, rotating?], 3).map_err(|e| failed("kv_write", &e))?;
            let k = self.rounded(graph, whole, self.shape.k_dim)?;
            return self.put(graph, run.start..run.end(), [&k, &Planes::new()]);
        }
        let (k, v) = (rounded(k, self.shape.k_dim)?, rounded(v, self.shape.v_dim)?);
        self.put(graph, run.start..run.end(), [&k, &v])
    }

    /// Rows `[1, heads, n, head_dim]` in the cache's type.
    fn rounded(&self, graph: &Graph, rows: Array, head_dim: usize) -> Result<Planes> {
        let cast = |array: Array, dtype: Dtype| match array.dtype() == dtype {
            true => Ok(array),
            false => graph.astype(&array, dtype),
        };
        let mut planes = Planes::new();
        let (None, Some(bits)) = (self.shape.kind.float(), self.shape.kind.bits()) else {
            planes.push(cast(rows, layout(self.shape.kind, head_dim)[0].1)?);
            return Ok(planes);
        };
        if rows.size() == 0 {
            for (width, dtype) in layout(self.shape.kind, head_dim) {
                planes.push(zeros(&dims::of(&[1, self.shape.heads, 0, width])?, dtype)?);
            }
            return Ok(planes);
        }
        let fail = |e: mlx_rs::error::Exception| failed("kv_write", &e);
        // In `f32`, so that the scales are rounded once, to the type that they are kept in.
        let mut rows = cast(rows, Dtype::Float32)?;
        let more = filled_up(head_dim) - head_dim;
        if more > 0 {
            rows = ops::pad(&rows, &[(0, 0), (0, 0), (0, 0), (0, more as i32)], None, PadMode::Edge)
                .map_err(fail)?;
        }
        let (codes, scales, biases) = quantize(&rows, GROUP as i32, i32::from(bits)).map_err(fail)?;
        planes.push(codes);
        planes.push(cast(scales, Dtype::Float16)?);
        planes.push(cast(biases, Dtype::Float16)?);
        Ok(planes)
    }

    /// Puts planes `[1, heads, n, width]` of K and V at `positions`; what was behind them is forgotten.
    fn put(&mut self, graph: &Graph, positions: Range<usize>, rows: [&Planes; 2]) -> Result<()> {
        self.reserve(graph, positions.end)?;
        let Some(arrays) = self.arrays.take() else {
            return Err(Error::shape("kv_write", "the cache has no head"));
        };
        let heads = self.shape.heads as i32;
        let put = |(to, from): (&Array, &Array)| {
            let starts = [0, 0, positions.start as i32, 0];
            graph.slice_update(to, from, &starts, &[1, heads, positions.end as i32, to.dim(3)])
        };
        let written = |i: usize| arrays[i].iter().zip(rows[i]).map(put).collect::<Result<Planes>>();
        match written(0).and_then(|k| Ok([k, written(1)?])) {
            Ok(written) => {
                self.arrays = Some(written);
                self.len = positions.end;
                Ok(())
            }
            Err(error) => {
                self.arrays = Some(arrays);
                Err(error)
            }
        }
    }

    /// K and V of the tokens at `positions`.
    pub(super) fn cached(&self, graph: &Graph, positions: Range<usize>) -> Result<Cached> {
        let Some([k, v]) = &self.arrays else {
            return Err(Error::shape("attention", "the cache is empty"));
        };
        let part = |of: &Array| {
            let starts = [0, 0, positions.start as i32, 0];
            graph.slice(of, &starts, &[1, self.shape.heads as i32, positions.end as i32, of.dim(3)])
        };
        let Some(bits) = self.shape.kind.bits() else {
            let k = part(&k[0])?;
            let v = match self.shape.latent {
                true => self.columns(graph, &k, 0..self.shape.v_dim)?,
                false => part(&v[0])?,
            };
            return Ok(Cached::Floats([k, v]));
        };
        let codes = |of: &Planes| -> Result<QuantArrays> {
            Ok(QuantArrays {
                codes: Rc::new(part(&of[0])?),
                scales: Rc::new(part(&of[1])?),
                biases: Some(Rc::new(part(&of[2])?)),
                bits: i32::from(bits),
                group: GROUP as i32,
                mode: c"affine",
            })
        };
        Ok(Cached::Codes([codes(k)?, codes(v)?]))
    }

    /// Some elements of each head of `k` `[1, heads, n, k_dim]`.
    fn columns(&self, graph: &Graph, k: &Array, columns: Range<usize>) -> Result<Array> {
        let [heads, n] = [k.dim(1), k.dim(2)];
        graph.slice(k, &[0, 0, 0, columns.start as i32], &[1, heads, n, columns.end as i32])
    }

    /// What is held, copied to the host.
    pub(super) fn to_host(&self, graph: &Graph) -> Result<HostKv> {
        let mut host = HostKv::new(self.shape).with_window(self.window);
        if self.len == 0 {
            return Ok(host);
        }
        match self.cached(graph, 0..self.len)? {
            Cached::Floats([k, v]) if self.shape.latent => {
                let rotating = self.columns(graph, &k, self.shape.v_dim..self.shape.k_dim)?;
                host.write(0, &to_rows(graph, &v)?, &to_rows(graph, &rotating)?)?;
            }
            Cached::Floats([k, v]) => host.write(0, &to_rows(graph, &k)?, &to_rows(graph, &v)?)?,
            Cached::Codes([k, v]) => {
                let k = self.download(graph, self.shape.k_dim, &k)?;
                host.set_codes(&[k, self.download(graph, self.shape.v_dim, &v)?])?
            }
        }
        host.forget_before(self.first);
        Ok(host)
    }

    /// Rows of the host's in the planes `[1, heads, n, width]`.
    fn upload(&self, graph: &Graph, head_dim: usize, rows: &CodeRows) -> Result<Planes> {
        let KvShape { heads, kind, .. } = self.shape;
        let width = filled_up(head_dim);
        let mut words = Vec::new();
        let mut codes = vec![0; width];
        let mut bytes = vec![0; width * usize::from(kind.bits().unwrap_or(8)) / 8];
        for head in rows.codes.chunks_exact(head_dim) {
            codes[..head_dim].copy_from_slice(head);
            codes[head_dim..].fill(head[head_dim - 1]);
            affine::pack(kind.bits().unwrap_or(8), &codes, &mut bytes);
            words.extend(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        let n = rows.codes.len() / (heads * head_dim);
        let dims = |width: usize| dims::of(&[1, n, heads, width]);
        let widths = layout(kind, head_dim);
        let arrays = [
            Array::from_slice(&words, &dims(widths[0].0)?),
            Array::from_slice(&rows.scales, &dims(widths[1].0)?),
            Array::from_slice(&rows.biases, &dims(widths[2].0)?),
        ];
        arrays.iter().map(|array| graph.transpose(array, &[0, 2, 1, 3])).collect()
    }

    /// The inverse of [`Self::upload`].
    fn download(&self, graph: &Graph, head_dim: usize, of: &QuantArrays) -> Result<CodeRows> {
        let heads = self.shape.heads;
        let width = filled_up(head_dim);
        let fail = |e: mlx_rs::error::Exception| failed("download", &e);
        let words = graph.transpose(&of.codes, &[0, 2, 1, 3])?.contiguous().map_err(fail)?;
        words.eval().map_err(|error| eval_error(error.what()))?;
        let words = words.try_as_slice::<u32>().map_err(eval_error)?;
        let per_head = width * of.bits as usize / 32;
        let (mut codes, mut head) = (Vec::with_capacity(self.len * heads * head_dim), vec![0; width]);
        for words in words.chunks_exact(per_head) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            affine::unpack(of.bits as u8, &bytes, &mut head);
            codes.extend_from_slice(&head[..head_dim]);
        }
        let floats = |of: &Array| -> Result<Vec<f16>> {
            Ok(to_rows(graph, of)?.into_iter().map(f16::from_f32).collect())
        };
        let biases = of.biases.as_deref().map(floats).transpose()?.unwrap_or_default();
        Ok(CodeRows { codes, scales: floats(&of.scales)?, biases })
    }

    /// Room for `len` tokens.
    fn reserve(&mut self, graph: &Graph, len: usize) -> Result<()> {
        if len <= self.capacity && self.arrays.is_some() {
            return Ok(());
        }
        let capacity = len.next_multiple_of(MLX_GROWTH);
        let grown = |i: usize| -> Result<Planes> {
            let grow = |(plane, (width, dtype)): (usize, (usize, Dtype))| {
                let dims = dims::of(&[1, self.shape.heads, capacity, width])?;
                let zeros = zeros(&dims, dtype)?;
                match &self.arrays {
                    Some(old) if self.len > 0 => {
                        let stops = [1, dims[1], self.len as i32, dims[3]];
                        let held = graph.slice(&old[i][plane], &[0; 4], &stops)?;
                        graph.slice_update(&zeros, &held, &[0; 4], &stops)
                    }
                    _ => Ok(zeros),
                }
            };
            let planes = layout(self.shape.kind, self.shape.dims()[i]);
            let own = if i == 1 && self.shape.latent { 0 } else { planes.len() };
            planes.into_iter().take(own).enumerate().map(grow).collect()
        };
        let arrays = [grown(0)?, grown(1)?];
        self.arrays = Some(arrays);
        self.capacity = capacity;
        Ok(())
    }
}

/// `[1, heads, n, width]` on the host, `[n, heads * width]`.
fn to_rows(graph: &Graph, array: &Array) -> Result<Vec<f32>> {
    array::to_f32(&graph.transpose(array, &[0, 2, 1, 3])?)
}

fn zeros(dims: &[i32], dtype: Dtype) -> Result<Array> {
    zeros_dtype(dims, dtype).map_err(|e| failed("kv_write", &e))
}
