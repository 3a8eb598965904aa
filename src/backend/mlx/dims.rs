//! Dimensions and element types in MLX's terms.

use mlx_rs::Dtype;
use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::tensor::DType;

/// Dimensions as MLX takes them.
pub(super) type Dims = SmallVec<[i32; 4]>;

/// MLX's name of an element type.
pub(super) fn dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::Float32,
        DType::F16 => Dtype::Float16,
        DType::BF16 => Dtype::Bfloat16,
    }
}

/// Dimensions as MLX takes them.
pub(super) fn of(shape: &[usize]) -> Result<Dims> {
    shape
        .iter()
        .map(|&dim| {
            i32::try_from(dim).map_err(|_| Error::Op {
                op: "shape",
                backend: "mlx",
                reason: format!("{shape:?} has a dimension over MLX's 32-bit sizes"),
            })
        })
        .collect()
}
