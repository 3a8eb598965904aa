//! An activation on MLX, and the few calls that mlx-rs keeps to itself.

use std::fmt;

use mlx_rs::{Array, Dtype, Stream};

use super::failed;
use crate::backend::eval_error;
use crate::error::{Error, Result};
use crate::tensor::{DType, Shape};

/// A lazy array of shape `[T, D]` to those who use it. Between the rotary embedding and attention it may be laid out by
/// heads, `[1, H, T, D/H]`, which saves a transposition each way.
pub struct MlxTensor {
    array: Array,
    shape: Shape,
    by_heads: bool,
}

impl fmt::Debug for MlxTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the values: printing them would evaluate the graph.
        write!(f, "MlxTensor({:?})", self.shape.as_slice())
    }
}

impl MlxTensor {
    /// `array` holds `shape`, row-major, in whatever dimensions.
    pub(super) fn rows(array: Array, shape: &[usize]) -> Self {
        Self { array, shape: shape.into(), by_heads: false }
    }

    /// `array` is `[1, H, T, D]` and stands for `[T, H * D]`.
    pub(super) fn heads(array: Array, rows: usize, width: usize) -> Self {
        Self { array, shape: Shape::from_slice(&[rows, width]), by_heads: true }
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The array in whatever layout it has: for evaluation.
    pub(super) fn array(&self) -> &Array {
        &self.array
    }

    /// The array in its own dimensions, `[T, D]`.
    pub(super) fn to_rows(&self) -> Result<Array> {
        let shape = shape(&self.shape)?;
        if !self.by_heads {
            if self.array.shape() == shape.as_slice() {
                return Ok(self.array.clone());
            }
            return self.array.reshape(&shape).map_err(|e| failed("reshape", &e));
        }
        self.array
            .transpose_axes(&[0, 2, 1, 3])
            .and_then(|array| array.reshape(&shape))
            .map_err(|e| failed("reshape", &e))
    }

    /// The array as `[1, H, T, head_dim]`.
    pub(super) fn to_heads(&self, head_dim: usize) -> Result<Array> {
        if self.by_heads && self.array.dim(3) == head_dim as i32 {
            return Ok(self.array.clone());
        }
        let (height, width) = (self.shape[0], self.shape[1]);
        let split = shape(&[1, height, width / head_dim, head_dim])?;
        let rows = if self.by_heads { self.to_rows()? } else { self.array.clone() };
        rows.reshape(&split)
            .and_then(|array| array.transpose_axes(&[0, 2, 1, 3]))
            .map_err(|e| failed("reshape", &e))
    }
}

/// MLX's name of an element type.
pub(super) fn dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::Float32,
        DType::F16 => Dtype::Float16,
        DType::BF16 => Dtype::Bfloat16,
    }
}

/// Dimensions as MLX takes them.
pub(super) fn shape(dims: &[usize]) -> Result<Vec<i32>> {
    dims.iter()
        .map(|&dim| {
            i32::try_from(dim).map_err(|_| Error::Op {
                op: "shape",
                backend: "mlx",
                reason: format!("{dims:?} has a dimension over MLX's 32-bit sizes"),
            })
        })
        .collect()
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
    let wide = wide.contiguous().map_err(|e| failed("download", &e))?;
    wide.eval().map_err(|error| eval_error(error.what()))?;
    wide.try_as_slice::<f32>().map(<[f32]>::to_vec).map_err(eval_error)
}

/// `array[starts..stops]` in every dimension.
pub(super) fn slice(array: &Array, starts: &[i32], stops: &[i32]) -> Result<Array> {
    debug_assert!(starts.len() == array.ndim() && stops.len() == array.ndim());
    let strides = vec![1; starts.len()];
    let stream = Stream::thread_local_or_default();
    // SAFETY: the arrays and the stream are alive, and each list is passed with its length; on success `result` holds
    // an array of ours, on failure an empty one that may be freed.
    unsafe {
        let mut result = mlx_sys::mlx_array_new();
        let status = mlx_sys::mlx_slice(
            &mut result,
            array.as_ptr(),
            starts.as_ptr(),
            starts.len(),
            stops.as_ptr(),
            stops.len(),
            strides.as_ptr(),
            strides.len(),
            stream.as_ptr(),
        );
        own(result, status, "slice")
    }
}

/// `array` with `update` in place of `array[starts..stops]`; in place where nothing else holds `array`.
pub(super) fn slice_update(array: &Array, update: &Array, starts: &[i32], stops: &[i32]) -> Result<Array> {
    debug_assert!(starts.len() == array.ndim() && stops.len() == array.ndim());
    let strides = vec![1; starts.len()];
    let stream = Stream::thread_local_or_default();
    // SAFETY: as in `slice`.
    unsafe {
        let mut result = mlx_sys::mlx_array_new();
        let status = mlx_sys::mlx_slice_update(
            &mut result,
            array.as_ptr(),
            update.as_ptr(),
            starts.as_ptr(),
            starts.len(),
            stops.as_ptr(),
            stops.len(),
            strides.as_ptr(),
            strides.len(),
            stream.as_ptr(),
        );
        own(result, status, "slice_update")
    }
}

/// # Safety
/// `result` is what an MLX call with this status wrote, and nothing else owns it.
unsafe fn own(result: mlx_sys::mlx_array, status: i32, op: &'static str) -> Result<Array> {
    // SAFETY: the caller's promise; a failed call's array is freed by its owner here.
    let array = unsafe { Array::from_ptr(result) };
    if status == 0 {
        return Ok(array);
    }
    Err(Error::Op { op, backend: "mlx", reason: format!("MLX returned status {status}") })
}
