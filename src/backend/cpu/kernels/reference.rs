//! The kernels as their formulas say: scalar, in `f64`, in the order of the indices. Every instruction set is tested
//! against these.

use super::matmul::WeightView;
use crate::tensor::DType;

/// Element `i` of a weight.
pub fn element(weight: &WeightView<'_>, i: usize) -> f32 {
    let size = weight.dtype().size();
    let b = &weight.bytes()[i * size..][..size];
    match weight.dtype() {
        DType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        DType::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
        DType::BF16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
    }
}

/// `(Σ_k x[t, k] W[n, k] + bias[n], Σ_k |x[t, k] W[n, k]| + |bias[n]|)` for each `[t, n]`: the value, and the magnitude that
/// bounds the error of every other order of summation.
pub fn linear(x: &[f32], t: usize, weight: &WeightView<'_>, bias: Option<&[f32]>) -> Vec<(f64, f64)> {
    let (n, k) = (weight.rows(), weight.cols());
    assert_eq!(x.len(), t * k, "reference linear: x against [{t}, {k}]");
    let mut out = Vec::with_capacity(t * n);
    for t in 0..t {
        for n in 0..n {
            let bias = bias.map_or(0.0, |b| f64::from(b[n]));
            let (mut sum, mut size) = (0.0, 0.0);
            for i in 0..k {
                let product = f64::from(x[t * k + i]) * f64::from(element(weight, n * k + i));
                sum += product;
                size += product.abs();
            }
            out.push((sum + bias, size + bias.abs()));
        }
    }
    out
}
