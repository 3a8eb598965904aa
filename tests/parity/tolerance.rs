//! How far two implementations may be apart, per type of weights. Only ever tightened.

use backstop::tensor::DType;

/// Largest deviation of logits from those of transformers in the same type, in units of their standard deviation.
pub fn logits(dtype: DType) -> f32 {
    match dtype {
        // The order of sums alone differs.
        DType::F32 => 1e-4,
        // Transformers rounds every activation to 11 bits; measured up to 0.011 between its own f16 and f32.
        DType::F16 => 0.03,
        // Each rounds every activation to 8 bits in places of its own; transformers' bf16 is up to 0.097 from its own
        // f32, MLX up to 0.16 from transformers.
        DType::BF16 => 0.17,
    }
}

/// The same for the root of the mean square, which a wrong op cannot hide in.
pub fn logits_rms(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 2e-5,
        DType::F16 => 5e-3,
        DType::BF16 => 0.03,
    }
}

/// Gemma 2 rounds the factor of its embeddings to the type of the weights, as transformers does in that type; the same
/// weights in `f32` are run with the factor unrounded, which is this far away.
pub const GEMMA2_SCALE: f32 = 0.02;
