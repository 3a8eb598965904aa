//! Norms over rows: RMS norm (Zhang and Sennrich, 2019), plain or fused with the residual sum, and layer norm (Ba,
//! Kiros and Hinton, 2016). Beside them the cut of a row at a bound made of its mean and deviation.
//!
//! A reduction runs in `CHAINS` vectors of chains, element `i` in lane `i mod (CHAINS · LANES)`, joined by a fixed
//! tree: a row's result depends on the row alone. A chain holds a 32nd or a 64th of the row, so that rounding grows
//! with `N / 64`, not with `N`.

use super::rows_per_task;
use crate::backend::cpu::isa::{Isa, Kernel, Simd};
use crate::backend::cpu::pool::{Parts, Pool};

/// Vectors of chains: what hides the latency of `fma`, four cycles at one or two per cycle.
const CHAINS: usize = 4;

/// Elements of a task: about 4 µs of work, several times what handing it to another thread costs.
const TASK: usize = 16 * 1024;

/// The sum of `f(vector)` over `x`; zeros fill the last vector, and `f` must keep them zeros where `n` lanes are left.
#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32], f: impl Fn(S::V, S::V) -> S::V) -> f32 {
    let mut chains = [s.zero(); CHAINS];
    let mut blocks = x.chunks_exact(CHAINS * S::LANES);
    for block in &mut blocks {
        for n in 0..CHAINS {
            chains[n] = f(s.load(&block[n * S::LANES..(n + 1) * S::LANES]), chains[n]);
        }
    }
    for (n, part) in blocks.remainder().chunks(S::LANES).enumerate() {
        if part.len() == S::LANES {
            chains[n] = f(s.load(part), chains[n]);
        } else {
            // The lanes beyond the row are computed and dropped: they would not be zeros after `f`.
            let mut lanes = [0.0; 16];
            s.store(&mut lanes, f(s.load_partial(part), chains[n]));
            let mut kept = [0.0; 16];
            s.store(&mut kept, chains[n]);
            kept[..part.len()].copy_from_slice(&lanes[..part.len()]);
            chains[n] = s.load(&kept);
        }
    }
    s.reduce_add(s.add(s.add(chains[0], chains[1]), s.add(chains[2], chains[3])))
}

/// `out = f(x, weight)` by vectors, the last one partial.
#[inline(always)]
fn map2<S: Simd>(s: S, x: &[f32], weight: &[f32], out: &mut [f32], f: impl Fn(S::V, S::V) -> S::V) {
    let whole = x.len() / S::LANES * S::LANES;
    let (x, x_rest) = x.split_at(whole);
    let (weight, weight_rest) = weight.split_at(whole);
    let (out, out_rest) = out.split_at_mut(whole);
    for ((x, w), out) in
        x.chunks_exact(S::LANES).zip(weight.chunks_exact(S::LANES)).zip(out.chunks_exact_mut(S::LANES))
    {
        s.store(out, f(s.load(x), s.load(w)));
    }
    if !x_rest.is_empty() {
        s.store_partial(out_rest, f(s.load_partial(x_rest), s.load_partial(weight_rest)));
    }
}

#[inline(always)]
fn rms_row<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, offset: f32, out: &mut [f32]) {
    let squares = sum(s, x, |x, chain| s.fma(x, x, chain));
    let by = s.splat(1.0 / (squares / x.len() as f32 + eps).sqrt());
    let offset = s.splat(offset);
    map2(s, x, weight, out, |x, w| s.mul(s.mul(x, by), s.add(w, offset)));
}

struct Rms<'a> {
    x: &'a [f32],
    /// Elements of a stretch.
    n: usize,
    weight: &'a [f32],
    eps: f32,
    offset: f32,
    out: &'a mut [f32],
}

impl Kernel for Rms<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.n;
        let weights = self.weight.chunks_exact(n).cycle();
        for ((x, out), weight) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)).zip(weights) {
            rms_row(s, x, weight, self.eps, self.offset, out);
        }
    }
}

/// `out = x / √(mean(x²) + eps) · (weight + offset)` over each stretch of `n` elements of `x`. `weight` holds the weights of
/// one stretch or of several, which take turns.
///
/// Relative error about 5e-7 for rows of up to 16384 elements.
///
/// # Panics
/// Where `n` is zero or does not divide the length of `weight`, that of `x` is no multiple of this, or `out` has another length than `x`.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm(
    pool: &Pool,
    isa: Isa,
    x: &[f32],
    n: usize,
    weight: &[f32],
    eps: f32,
    offset: f32,
    out: &mut [f32],
) {
    let all = weight.len();
    assert!(n > 0 && all.is_multiple_of(n) && all > 0, "rms_norm: weight");
    assert!(x.len().is_multiple_of(all) && out.len() == x.len(), "rms_norm: lengths");
    let chunk = rows_per_task(pool, x.len() / all, all, TASK) * all;
    pool.run_chunks(out, chunk, |task, out| {
        let x = &x[task * chunk..][..out.len()];
        isa.dispatch(Rms { x, n, weight, eps, offset, out });
    });
}

struct AddRms<'a> {
    a: &'a [f32],
    b: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    offset: f32,
    sum: &'a mut [f32],
    out: &'a mut [f32],
}

impl Kernel for AddRms<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.weight.len();
        let inputs = self.a.chunks_exact(n).zip(self.b.chunks_exact(n));
        let outputs = self.sum.chunks_exact_mut(n).zip(self.out.chunks_exact_mut(n));
        for ((a, b), (sum, out)) in inputs.zip(outputs) {
            map2(s, a, b, sum, |a, b| s.add(a, b));
            rms_row(s, sum, self.weight, self.eps, self.offset, out);
        }
    }
}

/// `sum = a + b` and `out = rms_norm(sum)`, with the bits of the two apart.
///
/// # Panics
/// As [`rms_norm`].
#[allow(clippy::too_many_arguments)]
pub fn add_rms_norm(
    pool: &Pool,
    isa: Isa,
    a: &[f32],
    b: &[f32],
    weight: &[f32],
    eps: f32,
    offset: f32,
    sum: &mut [f32],
    out: &mut [f32],
) {
    let n = weight.len();
    assert!(n > 0 && a.len().is_multiple_of(n) && b.len() == a.len(), "add_rms_norm: lengths");
    assert!(sum.len() == a.len() && out.len() == a.len(), "add_rms_norm: lengths");
    let chunk = rows_per_task(pool, a.len() / n, n, TASK) * n;
    let out = Parts::new(out);
    pool.run_chunks(sum, chunk, |task, sum| {
        let (start, len) = (task * chunk, sum.len());
        // SAFETY: chunks of different tasks do not overlap, and each task runs once.
        let out = unsafe { out.slice(start, len) };
        let (a, b) = (&a[start..start + len], &b[start..start + len]);
        isa.dispatch(AddRms { a, b, weight, eps, offset, sum, out });
    });
}

struct Layer<'a> {
    x: &'a [f32],
    /// Elements of a stretch.
    n: usize,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for Layer<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.n;
        let weights = self.weight.chunks_exact(n).cycle();
        for ((x, out), weight) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)).zip(weights) {
            let mean = s.splat(sum(s, x, |x, chain| s.add(x, chain)) / n as f32);
            let squares = sum(s, x, |x, chain| {
                let x = s.sub(x, mean);
                s.fma(x, x, chain)
            });
            let by = s.splat(1.0 / (squares / n as f32 + self.eps).sqrt());
            map2(s, x, weight, out, |x, w| s.mul(s.mul(s.sub(x, mean), by), w));
            if let Some(bias) = self.bias {
                for (out, bias) in out.chunks_mut(S::LANES).zip(bias.chunks(S::LANES)) {
                    s.store_partial(out, s.add(s.load_partial(out), s.load_partial(bias)));
                }
            }
        }
    }
}

/// `out = (x − mean) / √(var + eps) · weight + bias` over each stretch of `n` elements of `x`, the variance computed from
/// the deviations in a second pass. `weight` holds the weights of one stretch or of several, which take turns; of several
/// there is no bias.
///
/// # Panics
/// Where `n` is zero or does not divide the length of `weight`, that of `x` is no multiple of this, or `out` or `bias` has
/// another length than `x` or a stretch.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm(
    pool: &Pool,
    isa: Isa,
    x: &[f32],
    n: usize,
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    let all = weight.len();
    assert!(n > 0 && all.is_multiple_of(n) && all > 0, "layer_norm: weight");
    assert!(x.len().is_multiple_of(all) && out.len() == x.len(), "layer_norm: lengths");
    assert!(bias.is_none_or(|bias| bias.len() == n), "layer_norm: bias");
    let chunk = rows_per_task(pool, x.len() / all, all, TASK) * all;
    pool.run_chunks(out, chunk, |task, out| {
        let x = &x[task * chunk..][..out.len()];
        isa.dispatch(Layer { x, n, weight, bias, eps, out });
    });
}

struct Cut<'a> {
    x: &'a [f32],
    /// Elements of a row.
    n: usize,
    deviations: f32,
    out: &'a mut [f32],
}

impl Kernel for Cut<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.n;
        for (x, out) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)) {
            let mean = sum(s, x, |x, chain| s.add(x, chain)) / n as f32;
            let of_row = s.splat(mean);
            let squares = sum(s, x, |x, chain| {
                let x = s.sub(x, of_row);
                s.fma(x, x, chain)
            });
            let bound = mean + self.deviations * (squares / n as f32).sqrt();
            if bound.is_nan() {
                // The maximum would hide it.
                out.fill(bound);
                continue;
            }
            let bound = s.splat(bound);
            map2(s, x, x, out, |x, _| s.max(s.sub(x, bound), s.zero()));
        }
    }
}

/// `out = max(x − (mean + deviations · √var), 0)` over each row of `n` elements of `x`, the variance computed from the deviations in a
/// second pass. A row that holds what is no number, or is infinite, becomes no number.
///
/// # Panics
/// Where `n` is zero, the length of `x` is no multiple of it, or `out` has another length than `x`.
pub fn cut(pool: &Pool, isa: Isa, x: &[f32], n: usize, deviations: f32, out: &mut [f32]) {
    assert!(n > 0 && x.len().is_multiple_of(n) && out.len() == x.len(), "cut: lengths");
    let chunk = rows_per_task(pool, x.len() / n, n, TASK) * n;
    pool.run_chunks(out, chunk, |task, out| {
        let x = &x[task * chunk..][..out.len()];
        isa.dispatch(Cut { x, n, deviations, out });
    });
}

#[cfg(test)]
mod tests {
    use approx::relative_eq;

    use super::*;
    use crate::backend::cpu::kernels::reference_ops;

    fn random(seed: u32, len: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next() * 2.0 + 0.3).collect()
    }

    fn close(got: &[f32], want: &[f64], bound: f64, what: &str) {
        for (got, want) in got.iter().zip(want) {
            let near = relative_eq!(f64::from(*got), *want, epsilon = bound, max_relative = bound);
            assert!(near, "{what}: {got}, want {want}");
        }
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    const SIZES: &[usize] =
        if cfg!(miri) { &[1, 3, 8, 33, 65] } else { &[1, 3, 7, 8, 16, 33, 64, 65, 127, 576, 4096, 5003] };

    /// Weights that take turns give each stretch the bits that its own weights alone give.
    #[test]
    fn heads_have_weights_of_their_own() {
        let (heads, n, rows) = (3, 10, 70);
        let (x, weight) = (random(1, rows * heads * n), random(2, heads * n));
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; x.len()];
            layer_norm(&Pool::new(3), isa, &x, n, &weight, None, 1e-5, &mut out);
            for (i, (x, out)) in x.chunks(n).zip(out.chunks(n)).enumerate() {
                let mut alone = vec![f32::NAN; n];
                let own = &weight[i % heads * n..][..n];
                layer_norm(&Pool::new(1), isa, x, n, own, None, 1e-5, &mut alone);
                assert_eq!(bits(&alone), bits(out), "stretch {i} on {isa}");
            }
            rms_norm(&Pool::new(3), isa, &x, n, &weight, 1e-5, 0.0, &mut out);
            for (i, (x, out)) in x.chunks(n).zip(out.chunks(n)).enumerate() {
                let mut alone = vec![f32::NAN; n];
                let own = &weight[i % heads * n..][..n];
                rms_norm(&Pool::new(1), isa, x, n, own, 1e-5, 0.0, &mut alone);
                assert_eq!(bits(&alone), bits(out), "stretch {i} of rms_norm on {isa}");
            }
        }
    }

    #[test]
    fn norms_match_their_references() {
        let pool = Pool::new(2);
        for isa in Isa::available() {
            for &n in SIZES {
                let rows = if n > 1000 { 9 } else { 3 };
                let (x, weight, bias) = (random(1, rows * n), random(2, n), random(3, n));
                let mut out = vec![f32::NAN; x.len()];
                for offset in [0.0, 1.0] {
                    rms_norm(&pool, isa, &x, n, &weight, 1e-5, offset, &mut out);
                    for (x, out) in x.chunks(n).zip(out.chunks(n)) {
                        let want = reference_ops::rms_norm(x, &weight, 1e-5, offset);
                        close(out, &want, 6e-7, &format!("rms_norm of {n} on {isa}"));
                    }
                }
                for bias in [None, Some(bias.as_slice())] {
                    layer_norm(&pool, isa, &x, n, &weight, bias, 1e-5, &mut out);
                    for (x, out) in x.chunks(n).zip(out.chunks(n)) {
                        let want = reference_ops::layer_norm(x, &weight, bias, 1e-5);
                        let bound = if n == 1 { 1e-5 } else { 2e-6 };
                        close(out, &want, bound, &format!("layer_norm of {n} on {isa}"));
                    }
                }
            }
        }
    }

    #[test]
    fn cuts_match_their_reference() {
        for isa in Isa::available() {
            for &n in SIZES {
                let rows = if n > 1000 { 9 } else { 3 };
                let (x, mut out) = (random(1, rows * n), vec![f32::NAN; rows * n]);
                for deviations in [1.644_853_6, 0.0, -0.5] {
                    cut(&Pool::new(2), isa, &x, n, deviations, &mut out);
                    for (x, out) in x.chunks(n).zip(out.chunks(n)) {
                        let want = reference_ops::cut(x, deviations);
                        close(out, &want, 2e-6, &format!("cut of {n} on {isa}"));
                    }
                }
                // What is no number is not hidden.
                let mut odd = x.clone();
                odd[n / 2] = f32::NAN;
                odd[2 * n - 1] = f32::INFINITY;
                cut(&Pool::new(2), isa, &odd, n, 1.0, &mut out);
                assert!(out[..2 * n].iter().all(|x| x.is_nan()), "{n} on {isa}");
                assert!(out[2 * n..].iter().all(|x| x.is_finite()), "{n} on {isa}");
            }
        }
    }

    #[test]
    fn the_fused_norm_has_the_bits_of_its_parts() {
        for isa in Isa::available() {
            for &n in SIZES {
                let (a, b, weight) = (random(4, 20 * n), random(5, 20 * n), random(6, n));
                let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
                let mut want = vec![0.0; sum.len()];
                rms_norm(&Pool::new(1), isa, &sum, n, &weight, 1e-6, 0.0, &mut want);
                for threads in [1, 3] {
                    let (mut got_sum, mut got) = (vec![f32::NAN; sum.len()], vec![f32::NAN; sum.len()]);
                    let pool = Pool::new(threads);
                    add_rms_norm(&pool, isa, &a, &b, &weight, 1e-6, 0.0, &mut got_sum, &mut got);
                    assert_eq!((bits(&sum), bits(&want)), (bits(&got_sum), bits(&got)), "{n} on {isa}");
                }
            }
        }
    }

    #[test]
    fn rows_do_not_depend_on_their_neighbours_or_threads() {
        for isa in Isa::available() {
            for &n in if cfg!(miri) { &[7, 129][..] } else { &[7, 129, 5003] } {
                let (x, weight) = (random(7, 64 * n), random(8, n));
                let [mut rms, mut layer, mut cuts] = [(); 3].map(|()| vec![0.0; x.len()]);
                let pool = Pool::new(3);
                rms_norm(&pool, isa, &x, n, &weight, 1e-6, 0.0, &mut rms);
                layer_norm(&pool, isa, &x, n, &weight, Some(&weight), 1e-6, &mut layer);
                cut(&pool, isa, &x, n, 0.7, &mut cuts);
                let one = Pool::new(1);
                let mut alone = vec![0.0; n];
                for row in 0..64 {
                    let part = row * n..(row + 1) * n;
                    rms_norm(&one, isa, &x[part.clone()], n, &weight, 1e-6, 0.0, &mut alone);
                    assert_eq!(bits(&alone), bits(&rms[part.clone()]));
                    layer_norm(&one, isa, &x[part.clone()], n, &weight, Some(&weight), 1e-6, &mut alone);
                    assert_eq!(bits(&alone), bits(&layer[part.clone()]));
                    cut(&one, isa, &x[part.clone()], n, 0.7, &mut alone);
                    assert_eq!(bits(&alone), bits(&cuts[part]));
                }
            }
        }
    }
}
