//! An activation on MLX.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use mlx_rs::{Array, ArrayElement, Dtype};

use super::dims;
use super::graph::Graph;
use super::{eval_error, failed};
use crate::error::Result;
use crate::tensor::{ElementType, HostTensor, Shape};

/// A lazy array of shape `[T, D]` to those who use it. Between the rotary embedding and attention it may be laid out by
/// heads, `[1, H, T, D/H]`, which saves a transposition each way.
pub struct MlxTensor {
    array: Array,
    shape: Shape,
    /// What the elements are; floats are in the type of activations.
    element: ElementType,
    by_heads: bool,
}

impl fmt::Debug for MlxTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the values: printing them would evaluate the graph.
        write!(f, "MlxTensor({:?})", self.shape.as_slice())
    }
}

impl MlxTensor {
    /// `array` holds floats of `shape`, row-major, in whatever dimensions.
    pub(super) fn rows(array: Array, shape: &[usize]) -> Self {
        Self::of(ElementType::F32, array, shape)
    }

    /// `array` holds elements of `shape`, row-major, in whatever dimensions.
    pub(super) fn of(element: ElementType, array: Array, shape: &[usize]) -> Self {
        Self { array, shape: Shape::from_slice(shape), element, by_heads: false }
    }

    /// `array` is `[1, H, T, D]` and stands for `[T, H * D]`.
    pub(super) fn heads(array: Array, rows: usize, width: usize) -> Self {
        let shape = Shape::from_slice(&[rows, width]);
        Self { array, shape, element: ElementType::F32, by_heads: true }
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// What its elements are.
    pub(super) fn element(&self) -> ElementType {
        self.element
    }

    /// Evaluates the array and copies it to the host: floats as `f32`, integers as they are.
    pub(super) fn to_host(&self, graph: &Graph) -> Result<HostTensor> {
        let rows = self.to_rows(graph)?;
        Ok(match self.element {
            ElementType::F32 => HostTensor::from_vec(&self.shape, to_f32(&rows)?),
            ElementType::I32 => HostTensor::from_i32(&self.shape, values(&rows)?),
            ElementType::U32 => HostTensor::from_u32(&self.shape, values(&rows)?),
        })
    }

    /// The array in whatever layout it has: for evaluation.
    pub(super) fn array(&self) -> &Array {
        &self.array
    }

    /// The array in its own dimensions, `[T, D]`.
    pub(super) fn to_rows(&self, graph: &Graph) -> Result<Cow<'_, Array>> {
        let dims = dims::of(&self.shape)?;
        if self.by_heads {
            let rows = graph.transpose(&self.array, &[0, 2, 1, 3])?;
            return graph.reshape(&rows, &dims).map(Cow::Owned);
        }
        if self.array.shape() == dims.as_slice() {
            return Ok(Cow::Borrowed(&self.array));
        }
        graph.reshape(&self.array, &dims).map(Cow::Owned)
    }

    /// Row `row` in the dimensions `dims`.
    pub(super) fn row(&self, graph: &Graph, row: usize, dims: &[i32]) -> Result<Array> {
        if self.shape[0] == 1 {
            // One row is row-major by heads too.
            return graph.reshape(&self.array, dims);
        }
        let rows = self.to_rows(graph)?;
        let (row, width) = (row as i32, self.shape[1] as i32);
        graph.reshape(&graph.slice(&rows, &[row, 0], &[row + 1, width])?, dims)
    }

    /// Some rows as `[1, H, len, head_dim]`.
    pub(super) fn to_heads(&self, graph: &Graph, rows: Range<usize>, head_dim: usize) -> Result<Array> {
        let (height, width) = (self.shape[0], self.shape[1]);
        let split = dims::of(&[1, rows.len(), width / head_dim, head_dim])?; // [1, len, H, head_dim]
        if rows.len() == 1 {
            return self.row(graph, rows.start, &[1, split[2], 1, split[3]]);
        }
        let (start, end) = (rows.start as i32, rows.end as i32);
        if self.by_heads && self.array.dim(3) == split[3] {
            if rows.len() == height {
                return Ok(self.array.clone());
            }
            return graph.slice(&self.array, &[0, 0, start, 0], &[1, split[2], end, split[3]]);
        }
        let mut part = self.to_rows(graph)?;
        if rows.len() != height {
            part = Cow::Owned(graph.slice(&part, &[start, 0], &[end, width as i32])?);
        }
        graph.transpose(&graph.reshape(&part, &split)?, &[0, 2, 1, 3])
    }
}

/// Evaluates `array` and copies it to the host, row-major, as `f32`.
pub(super) fn to_f32(array: &Array) -> Result<Vec<f32>> {
    if array.size() == 0 {
        return Ok(Vec::new());
    }
    let wide = if array.dtype() == Dtype::Float32 {
        array.clone()
    } else {
        array.as_dtype(Dtype::Float32).map_err(|e| failed("download", &e))?
    };
    values(&wide)
}

/// Evaluates `array`, whose elements are of type `T`, and copies it to the host, row-major.
pub(super) fn values<T: ArrayElement + Clone>(array: &Array) -> Result<Vec<T>> {
    if array.size() == 0 {
        return Ok(Vec::new());
    }
    let whole = array.contiguous().map_err(|e| failed("download", &e))?;
    whole.eval().map_err(|error| eval_error(error.what()))?;
    whole.try_as_slice::<T>().map(<[T]>::to_vec).map_err(eval_error)
}
