//! Elementary functions on vectors, generic over the token: the same bits in every lane, full or partial.

use crate::backend::cpu::isa::Simd;

/// `e^x`, within 1.5 ulp (2 without FMA); 0 below -104, infinity above 88.73, NaN for NaN.
///
/// Cody and Waite's reduction `x = n ln 2 + r`, then a polynomial of degree 7 in `r`, `|r| <= ln 2 / 2`.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // The bounds come first in min and max, so that a NaN passes.
    let x = s.min(s.splat(89.0), s.max(s.splat(-105.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first short enough that n * hi is exact.
    let r = s.fma(n, s.splat(-0.693_145_75), x);
    let r = s.fma(n, s.splat(-1.428_606_8e-6), r);
    let p = s.splat(1.985_276_2e-4);
    let p = s.fma(p, r, s.splat(1.393_043_6e-3));
    let p = s.fma(p, r, s.splat(8.333_361e-3));
    let p = s.fma(p, r, s.splat(4.166_648_5e-2));
    let p = s.fma(p, r, s.splat(1.666_666_7e-1));
    let p = s.fma(p, r, s.splat(0.5));
    let p = s.fma(s.mul(r, r), p, r);
    s.scale_pow2(s.add(p, s.splat(1.0)), n)
}

/// `1 / (1 + e^-x)`, within 3 ulp where the result is normal.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.neg(x))))
}

/// `x sigmoid(x)`, within 3.5 ulp where the result is normal.
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(x, s.add(s.splat(1.0), exp(s, s.neg(x))))
}

/// The hyperbolic tangent, within 2.5 ulp: an odd polynomial below 0.6, `1 - 2 / (e^2x + 1)` above.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let (t, x2) = (s.abs(x), s.mul(x, x));
    let p = s.splat(1.573_944e-2);
    let p = s.fma(p, x2, s.splat(-5.230_255_8e-2));
    let p = s.fma(p, x2, s.splat(1.331_524_7e-1));
    let p = s.fma(p, x2, s.splat(-3.333_276_8e-1));
    let small = s.fma(s.mul(p, x2), x, x);
    let one = s.splat(1.0);
    let large = s.sub(one, s.div(s.splat(2.0), s.add(exp(s, s.add(t, t)), one)));
    // The sign last: -0 keeps its own.
    s.copysign(s.select_lt(t, s.splat(0.599_609_4), small, large), x)
}

/// The error function, within 2 ulp: an odd polynomial below 0.92, `1 - e^p(|x|)` above (after N. Juffa).
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    let (t, x2) = (s.abs(x), s.mul(x, x));
    let p = s.splat(-5.967_617e-4);
    let p = s.fma(p, x2, s.splat(4.991_194_2e-3));
    let p = s.fma(p, x2, s.splat(-2.676_813_5e-2));
    let p = s.fma(p, x2, s.splat(1.128_199_2e-1));
    let p = s.fma(p, x2, s.splat(-3.761_253_4e-1));
    let p = s.fma(p, x2, s.splat(1.283_791_7e-1));
    let small = s.fma(p, x, x);
    // Beyond 4 the result is 1; the polynomial is fitted up to there.
    let t4 = s.min(s.splat(4.0), t);
    let t2 = s.mul(t4, t4);
    let q = s.fma(s.splat(-1.728_534_7e-5), t4, s.splat(3.831_971_3e-4));
    let u = s.fma(s.splat(-3.883_964_4e-3), t4, s.splat(2.425_462_2e-2));
    let q = s.fma(q, t2, u);
    let q = s.fma(q, t4, s.splat(-1.067_778_8e-1));
    let q = s.fma(q, t4, s.splat(-6.348_468_7e-1));
    let q = s.fma(q, t4, s.splat(-1.287_175_1e-1));
    let q = s.fma(q, t4, s.neg(t4));
    let large = s.sub(s.splat(1.0), exp(s, q));
    s.copysign(s.select_lt(t, s.splat(0.921_875), small, large), x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::isa::{Isa, Kernel};

    #[derive(Clone, Copy)]
    enum F {
        Exp,
        Sigmoid,
        Silu,
        Tanh,
        Erf,
    }

    /// Applies a function to all of `x`, the last vector partial.
    struct Map<'a>(F, &'a mut [f32]);

    impl Kernel for Map<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for part in self.1.chunks_mut(S::LANES) {
                let v = s.load_partial(part);
                let y = match self.0 {
                    F::Exp => exp(s, v),
                    F::Sigmoid => sigmoid(s, v),
                    F::Silu => silu(s, v),
                    F::Tanh => tanh(s, v),
                    F::Erf => erf(s, v),
                };
                s.store_partial(part, y);
            }
        }
    }

    /// erf in f64: its Taylor series below 3, the continued fraction of erfc above.
    fn erf64(x: f64) -> f64 {
        let t = x.abs();
        if t < 3.0 {
            let (mut term, mut sum, mut n) = (x, x, 0.0);
            while term.abs() > 1e-18 * sum.abs() {
                n += 1.0;
                term *= -x * x / n;
                sum += term / (2.0 * n + 1.0);
            }
            return sum * std::f64::consts::FRAC_2_SQRT_PI;
        }
        let mut f = t;
        for k in (1..60).rev() {
            f = t + f64::from(k) / 2.0 / f;
        }
        (1.0 - (-t * t).exp() / f / std::f64::consts::PI.sqrt()).copysign(x)
    }

    fn worst(isa: Isa, f: F, exact: impl Fn(f64) -> f64, xs: impl Iterator<Item = f32>) -> (f64, f32) {
        let xs: Vec<f32> = xs.collect();
        let mut ys = xs.clone();
        isa.dispatch(Map(f, &mut ys));
        let mut worst = (0.0, 0.0);
        for (x, y) in xs.iter().zip(&ys) {
            let want = exact(f64::from(*x));
            let near = want as f32;
            if near.is_infinite() || near.abs() < f32::MIN_POSITIVE {
                assert!(
                    (y - near).abs() <= f32::MIN_POSITIVE * 1e-6 || *y == near || near.is_infinite(),
                    "{x}: {y}"
                );
                continue;
            }
            let ulp = f64::from(f32::from_bits(near.abs().to_bits() + 1) - near.abs());
            let error = (f64::from(*y) - want).abs() / ulp;
            if error > worst.0 {
                worst = (error, *x);
            }
        }
        worst
    }

    #[test]
    fn functions_keep_their_stated_accuracy() {
        let steps = if cfg!(miri) { 402 } else { 200_002 };
        let range =
            |low: f32, high: f32| (0..=steps).map(move |i| low + (high - low) * i as f32 / steps as f32);
        for isa in Isa::available() {
            let fused = !matches!(isa, Isa::Portable(_));
            let more = if fused { 0.0 } else { 1.0 };
            let check = |name, (error, at): (f64, f32), bound: f64| {
                assert!(error <= bound + more, "{name} on {isa}: {error} ulp at {at}, stated {bound}");
            };
            check("exp", worst(isa, F::Exp, f64::exp, range(-110.0, 95.0)), 1.5);
            check("exp", worst(isa, F::Exp, f64::exp, range(-2.0, 2.0)), 1.5);
            check("sigmoid", worst(isa, F::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), range(-87.0, 90.0)), 3.0);
            check("silu", worst(isa, F::Silu, |x| x / (1.0 + (-x).exp()), range(-87.0, 90.0)), 3.5);
            check("tanh", worst(isa, F::Tanh, f64::tanh, range(-12.0, 12.0)), 2.5);
            check("tanh", worst(isa, F::Tanh, f64::tanh, range(-0.7, 0.7)), 2.5);
            check("erf", worst(isa, F::Erf, erf64, range(-6.0, 6.0)), 2.0);
            check("erf", worst(isa, F::Erf, erf64, range(-1.0, 1.0)), 2.0);
        }
    }

    #[test]
    fn limits_and_nan() {
        for isa in Isa::available() {
            let mut x = [f32::NEG_INFINITY, -1e30, -200.0, 0.0, 100.0, 1e30, f32::INFINITY, f32::NAN];
            isa.dispatch(Map(F::Exp, &mut x));
            assert_eq!(x[..7], [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY, f32::INFINITY]);
            assert!(x[7].is_nan());
            for f in [F::Tanh, F::Erf] {
                let mut x = [f32::NEG_INFINITY, -1e30, -0.0, 0.0, 1e-42, 1e30, f32::INFINITY, f32::NAN];
                isa.dispatch(Map(f, &mut x));
                assert_eq!(x[..4], [-1.0, -1.0, 0.0, 0.0]);
                assert!(x[2].is_sign_negative());
                assert_eq!(x[5..7], [1.0, 1.0]);
                assert!(x[7].is_nan(), "{isa}");
            }
            let mut x = [f32::NEG_INFINITY, 0.0, f32::INFINITY, f32::NAN];
            isa.dispatch(Map(F::Sigmoid, &mut x));
            assert_eq!(x[..3], [0.0, 0.5, 1.0]);
            assert!(x[3].is_nan());
        }
    }

    #[test]
    fn a_partial_lane_has_the_bits_of_a_full_one() {
        let values: Vec<f32> = (0..16).map(|i| i as f32 * 0.731 - 5.5).collect();
        for isa in Isa::available() {
            for f in [F::Exp, F::Sigmoid, F::Silu, F::Tanh, F::Erf] {
                let mut all = values.clone();
                isa.dispatch(Map(f, &mut all));
                for (i, x) in values.iter().enumerate() {
                    let mut one = [*x];
                    isa.dispatch(Map(f, &mut one));
                    assert_eq!(one[0].to_bits(), all[i].to_bits());
                }
            }
        }
    }
}
