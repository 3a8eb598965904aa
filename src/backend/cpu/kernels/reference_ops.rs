//! Scalar references of the kernels other than the linear ones: naive loops in `f64` that say what is computed.

use super::attention::Attention;
use crate::tensor::MatrixView;

/// softmax(scale · q kᵀ, soft-capped, and what its distance adds, masked) · v, over caches read back as rows.
pub fn attention(args: &Attention<'_>) -> Vec<f64> {
    let rows = args.visible.len();
    let Some(shape) = args.runs.first().map(|run| *run.kv.shape()) else { return Vec::new() };
    let q = MatrixView::new(args.q, [rows, args.q.len() / rows.max(1)]);
    let heads = q.shape()[1] / shape.k_dim;
    let [k_width, v_width] = shape.widths();
    let mut out = vec![0.0; rows * heads * shape.v_dim];
    for run in args.runs {
        let (k, v) = run.kv.read().expect("memory for a reference");
        let k = MatrixView::new(&k, [run.kv.len(), k_width]);
        let v = MatrixView::new(&v, [run.kv.len(), v_width]);
        for row in run.row..run.row + run.len {
            for head in 0..heads {
                let kv_head = head / (heads / shape.heads);
                let q = q.columns(head * shape.k_dim..(head + 1) * shape.k_dim).row(row);
                let k = k.columns(kv_head * shape.k_dim..(kv_head + 1) * shape.k_dim);
                let v = v.columns(kv_head * shape.v_dim..(kv_head + 1) * shape.v_dim);
                let score = |key: usize| {
                    let terms = q.iter().zip(k.row(key)).map(|(&q, &k)| f64::from(q) * f64::from(k));
                    let score = terms.sum::<f64>() * f64::from(args.scale);
                    let bias = args.bias.map_or(0.0, |bias| {
                        let (span, query) = (bias.len() / heads, run.kv.len() - run.len + row - run.row);
                        let away = (key as i64 - query as i64).clamp(-(span as i64 / 2), span as i64 / 2);
                        f64::from(bias[head * span + (away + span as i64 / 2) as usize])
                    });
                    args.soft_cap.map_or(score, |cap| soft_cap(score, f64::from(cap))) + bias
                };
                let scores: Vec<f64> = args.visible[row].clone().map(score).collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let sink = args.sinks.map_or(0.0, |sinks| (f64::from(sinks[head]) - max).exp());
                let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum::<f64>() + sink;
                let at = (row * heads + head) * shape.v_dim;
                for (key, score) in args.visible[row].clone().zip(&scores) {
                    for (out, &v) in out[at..at + shape.v_dim].iter_mut().zip(v.row(key)) {
                        *out += (score - max).exp() / sum * f64::from(v);
                    }
                }
            }
        }
    }
    out
}

/// `x / √(mean(x²) + eps) · (weight + offset)` over one stretch.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, offset: f32) -> Vec<f64> {
    let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
    let by = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * by * (f64::from(w) + f64::from(offset))).collect()
}

/// `(x − mean) / √(var + eps) · weight + bias` over one stretch.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let var = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let by = 1.0 / (var + f64::from(eps)).sqrt();
    let bias = |i: usize| bias.map_or(0.0, |bias| f64::from(bias[i]));
    x.iter()
        .zip(weight)
        .enumerate()
        .map(|(i, (&x, &w))| (f64::from(x) - mean) * by * f64::from(w) + bias(i))
        .collect()
}

/// `into[r] + Σ_s by[r, s] · x[s]` over the stretches of `width` elements of one row, and the sums of the terms' magnitudes.
pub fn mix(x: &[f32], by: &[f32], into: Option<&[f32]>, width: usize) -> Vec<(f64, f64)> {
    let stretches = x.len() / width;
    let result = |r: usize| {
        (0..width).map(move |i| {
            let first = into.map_or(0.0, |into| f64::from(into[r * width + i]));
            let term = |s: usize| f64::from(by[r * stretches + s]) * f64::from(x[s * width + i]);
            (0..stretches).map(term).fold((first, first.abs()), |(sum, size), x| (sum + x, size + x.abs()))
        })
    };
    (0..by.len() / stretches).flat_map(result).collect()
}

/// `max(x − (mean + deviations · √var), 0)` over one row.
pub fn cut(x: &[f32], deviations: f32) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let var = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let bound = mean + f64::from(deviations) * var.sqrt();
    x.iter().map(|&x| (f64::from(x) - bound).max(0.0)).collect()
}

/// `x / (1 + e^-x)`.
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `x/2 · erfc(-x / √2)`.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
pub fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

/// `cap · tanh(x / cap)`.
pub fn soft_cap(x: f64, cap: f64) -> f64 {
    cap * (x / cap).tanh()
}

/// The complementary error function: one minus the Taylor series of erf below 2.5, a continued fraction above.
fn erfc(x: f64) -> f64 {
    let t = x.abs();
    if t < 2.5 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return 1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let mut f = t;
    for k in (1..80).rev() {
        f = t + f64::from(k) / 2.0 / f;
    }
    let tail = (-t * t).exp() / f / std::f64::consts::PI.sqrt();
    if x > 0.0 { tail } else { 2.0 - tail }
}

/// One head rotated: pairs `(i, i + dims/2)` by `cos` and `sin`, `[dims/2]`; the rest as it is.
pub fn rope(head: &[f32], cos: &[f32], sin: &[f32]) -> Vec<f64> {
    let half = cos.len();
    let mut out: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
    for i in 0..half {
        let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
        let (cos, sin) = (f64::from(cos[i]), f64::from(sin[i]));
        (out[i], out[i + half]) = (a * cos - b * sin, b * cos + a * sin);
    }
    out
}
