//! How far two implementations may be apart, per type of weights. Only ever tightened.

use backstop::backend::kv::KvType;
use backstop::backend::ops::OpKind;
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

/// Root of the mean square deviation of logits with a quantized cache from those with one of `f32`, in units of their standard
/// deviation. These are random models of few and narrow heads, where a rounding averages out least; the largest deviation, that of
/// one token which turned elsewhere, says nothing.
pub fn quantized_cache(kv_type: KvType) -> f32 {
    match kv_type {
        KvType::Q8 => 0.02,
        KvType::Q4 => 0.3,
        KvType::F32 | KvType::F16 | KvType::BF16 => 0.0,
    }
}

/// The same of models whose scores are not divided by the root of a head's size, which a key's rounding moves by so much more: the
/// three of Gemma 4, computed in f64 with keys and values rounded so, deviate by up to 0.023 and 0.26 on the same tokens.
pub fn quantized_cache_of_undivided_scores(kv_type: KvType) -> f32 {
    1.5 * quantized_cache(kv_type)
}

/// The same between the backends, each token behind the same codes: that of the weights' type, and what those of its own codes
/// cost that are neighbours.
///
/// Rounding to steps of `s` deviates by `s / √12` in the mean. Elements that are `e` apart on both sides of an edge, `2 e / s` of
/// them, deviate by `s`: the ratio of the two is `√(24 e / s)`. In `f32`, `e` is that of logits, and a group's range about four
/// standard deviations of its elements. In narrow types most elements near an edge are on both sides of it.
pub fn quantized_cache_parity(dtype: DType, kv_type: KvType, has_experts: bool) -> f32 {
    if dtype == DType::F32 {
        if has_experts {
            // What the ratio allows: a router's weights are steep. Seen is 5.2e-4 with a flipped code.
            return if kv_type == KvType::Q4 { 1.3e-2 } else { 3.5e-3 };
        }
        // Below what the ratio allows (3.5e-3 and 1.3e-2): seen are up to 8.7e-4 with flipped codes.
        return 1e-3;
    }
    // Seen are 0.018 and 0.044.
    let part = 0.1;
    logits_rms(dtype) + part * quantized_cache(kv_type)
}

/// Gemma 2 rounds the factor of its embeddings to the type of the weights, as transformers does in that type; the same
/// weights in `f32` are run with the factor unrounded, which is this far away.
pub const GEMMA2_SCALE: f32 = 0.02;

/// The same of Gemma 4, of both of its embeddings: a model of that arithmetic in `f64` was 6.2e-4 away.
pub const GEMMA4_SCALE: f32 = 1e-3;

/// Largest deviation of logits from llama.cpp's, in units of their standard deviation: it rounds activations to eight bits, in
/// places of its own, which a model of random blocks of two bits shows most.
pub const LLAMA_CPP: f32 = 0.25;

/// The same where a token that sees rounded keys may go to another expert, which is a jump and no rounding: what has nothing to do with
/// the logits is 1.4 from them.
pub fn routed_cache(kv_type: KvType) -> f32 {
    match kv_type {
        KvType::Q8 => 0.1,
        KvType::Q4 => 0.6,
        KvType::F32 | KvType::F16 | KvType::BF16 => 0.0,
    }
}

/// Half the distance from 1 to the next number: what rounding to nearest loses, relatively.
pub fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2.0_f64.powi(-24),
        DType::F16 => 2.0_f64.powi(-11),
        DType::BF16 => 2.0_f64.powi(-8),
    }
}

/// What may be lost where a result is subnormal: two of `f16`'s smallest steps; elsewhere less than any test's values.
pub fn smallest(dtype: DType) -> f64 {
    match dtype {
        DType::F32 | DType::BF16 => 2.0_f64.powi(-125),
        DType::F16 => 2.0_f64.powi(-23),
    }
}

/// How far one op may be from its value in exact arithmetic.
pub struct OpBound {
    /// Roundings to the type of activations, in its [`unit`]s.
    pub rounded: f64,
    /// Roundings in `f32` arithmetic, in the [`unit`]s of `f32`.
    pub summed: f64,
}

/// The bound of `op` with activations in `dtype`: what its formula rounds. On MLX's CPU device and the AVX-512 kernels the
/// worst element of an op, over both, comes to between 0.45 and 1 of it; the tests print how near each came.
pub fn op(op: OpKind, dtype: DType) -> OpBound {
    let narrow = dtype != DType::F32;
    let (rounded, summed) = match op {
        // Copies.
        OpKind::TakeRows | OpKind::KvWrite => (0.0, 0.0),
        // One correctly rounded operation.
        OpKind::Add | OpKind::Mul | OpKind::Relu2 => (1.0, 0.0),
        // One product; in narrow types the factor is rounded too.
        OpKind::Embedding | OpKind::Scale | OpKind::ScaleRows => (if narrow { 2.1 } else { 1.0 }, 0.0),
        // The sum is kept in f32 and rounded once, at most once more before the bias; measured 4.5 in f32.
        OpKind::Linear | OpKind::HeadLinear | OpKind::Qkv => (1.5, 8.0),
        // The sum in f32, rounded, and the activation of it.
        OpKind::Convolution => (if narrow { 3.0 } else { 10.0 }, 3.0),
        // In f32, token after token; MLX's exponential is good to 9 units in each decay.
        OpKind::DeltaRule | OpKind::Scan => (1.0, 40.0),
        // MLX's f32 exponential is good to 9 units: in a score, in the sum of all, and once more each where weights are normalised;
        // two quotients and the scale.
        OpKind::Route => (0.0, 40.0),
        // Gate and up, what joins them, down, and the product with the weight, each with its own share of the magnitudes.
        OpKind::Experts => (2.0, 8.0),
        // The sigmoid and the product; MLX's f32 exponential is good to 9 units.
        OpKind::Gate => (if narrow { 3.0 } else { 10.0 }, 0.0),
        // A sum in f32 of few terms, rounded once.
        OpKind::Mix => (1.0, 4.0),
        // The mean, the deviation and the difference in f32, rounded once.
        OpKind::Cut => (1.0, 2.0),
        // Nothing is computed; of two ranks, one sum.
        OpKind::Join => (0.0, 0.0),
        OpKind::AllSum => (1.0, 0.0),
        // Gate, activation, up and product are each rounded.
        OpKind::GateUp => (2.0, 3.0),
        // Both products, the scale between them, and the sum.
        OpKind::Adapt => (3.0, 12.0),
        // The normed row and its product with the weight; the mean square of a long row is a chain in f32.
        OpKind::RmsNorm | OpKind::AddRmsNorm => (2.5, 0.5),
        // The same, and the sum with the bias; measured 2.3.
        OpKind::LayerNorm => (3.0, 2.0),
        // The sigmoid and the product; MLX's f32 exponential is good to 9 units.
        OpKind::Silu => (if narrow { 3.0 } else { 10.0 }, 0.0),
        // erf or tanh, the sum with 1, the product; measured 1.7.
        OpKind::Gelu => (2.5, 4.0),
        // Computed in f32 and rounded once.
        OpKind::SoftCap => (if narrow { 1.1 } else { 6.0 }, 0.0),
        // The cosine, the products and their sum; measured 2.3. The angle has a rounding of its own in f32.
        OpKind::Rope => (3.0, 2.0),
        // The scaled query, the score, the share and the sum, in MLX's composition; its kernels keep f32.
        OpKind::Attention => (2.5, 12.0),
    };
    OpBound { rounded, summed }
}
