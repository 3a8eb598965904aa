//! Activations, sums, products, scales and caps.

use approx::relative_eq;
use backstop::backend::Op;
use backstop::backend::cpu::kernels::reference_ops;
use backstop::config::Activation;

use super::rig::{Element, ROWS, Rig, rigs, round};
use backstop::tensor::DType;

/// The activation in `f64`.
pub fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => reference_ops::silu(x),
        Activation::Gelu => reference_ops::gelu(x),
        Activation::GeluTanh => reference_ops::gelu_tanh(x),
        Activation::Relu2 => x.max(0.0) * x.max(0.0),
    }
}

/// Random values after all that is special: zeros, the ends of the interesting range, numbers that saturate.
fn inputs(rig: &Rig, seed: u64, len: usize) -> Vec<f32> {
    let special =
        [0.0, -0.0, 1e-3, -1e-3, 0.5, -0.5, 1.0, -1.0, 4.0, -4.0, 9.5, -9.5, 20.0, -20.0, 300.0, -300.0];
    let mut all = rig.values(seed, len, 3.0);
    for (to, &special) in all.iter_mut().zip(&special) {
        *to = round(rig.dtype, special);
    }
    all
}

/// Shapes of activations: odd widths, vectors of every instruction set, a real width.
fn shapes() -> impl Iterator<Item = (usize, usize)> {
    let widths = [1, 2, 15, 16, 17, 63, 64, 65, 2048];
    ROWS.into_iter().flat_map(move |t| widths.into_iter().map(move |d| (t, d)))
}

#[test]
fn activations_agree_with_the_reference() {
    for rig in rigs() {
        for (t, d) in shapes() {
            let all = inputs(&rig, 1, t * d);
            // Squares that every type holds.
            let small: Vec<f32> = all.iter().map(|x| x.clamp(-100.0, 100.0)).collect();
            for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu2] {
                let x = if activation == Activation::Relu2 { &small } else { &all };
                let tensor = rig.tensor(&[t, d], x);
                let expected: Vec<Element> = x
                    .iter()
                    .map(|&x| {
                        let value = activated(activation, f64::from(x));
                        match activation {
                            Activation::Silu | Activation::Relu2 => Element::rounded(value),
                            // x/2 times a number that is rounded near 1.
                            _ => Element { value, rounded: f64::from(x).abs(), summed: 1.0 },
                        }
                    })
                    .collect();
                rig.check(&Op::Activate { x: &tensor, activation }, &format!("{activation:?}"), &expected);
            }
        }
    }
}

#[test]
fn sums_and_products_agree_with_the_reference() {
    for rig in rigs() {
        for (t, d) in shapes() {
            let (a, b) = (inputs(&rig, 2, t * d), rig.values(3, t * d, 2.0));
            let expected = |f: fn(f64, f64) -> f64| -> Vec<Element> {
                a.iter().zip(&b).map(|(&a, &b)| Element::rounded(f(a.into(), b.into()))).collect()
            };
            let (sums, products) = (expected(|a, b| a + b), expected(|a, b| a * b));
            let (a, b) = (rig.tensor(&[t, d], &a), rig.tensor(&[t, d], &b));
            rig.check(&Op::Add { a: &a, b: &b }, "", &sums);
            rig.check(&Op::Mul { a: &a, b: &b }, "", &products);
        }
    }
}

#[test]
fn rows_are_put_beside_each_other() {
    for rig in rigs() {
        for (t, d) in shapes() {
            let (a, b) = (inputs(&rig, 2, t * d), rig.values(3, 2 * t * d, 2.0));
            let joined = a.chunks(d.max(1)).zip(b.chunks(2 * d.max(1))).flat_map(|(a, b)| a.iter().chain(b));
            let expected: Vec<Element> = joined.map(|&x| Element::rounded(x.into())).collect();
            let (a, b) = (rig.tensor(&[t, d], &a), rig.tensor(&[t, 2 * d], &b));
            rig.check(&Op::Join { a: &a, b: &b }, "", &expected);
        }
    }
}

#[test]
fn scales_and_caps_agree_with_the_reference() {
    for rig in rigs() {
        for (t, d) in shapes() {
            let x = inputs(&rig, 4, t * d);
            let tensor = rig.tensor(&[t, d], &x);
            let expected = |f: &dyn Fn(f64) -> f64| -> Vec<Element> {
                x.iter().map(|&x| Element::rounded(f(x.into()))).collect()
            };
            for by in [0.5, -0.37, 45.254_834_f32] {
                rig.check(
                    &Op::Scale { x: &tensor, by },
                    &format!("by {by}"),
                    &expected(&|x| x * f64::from(by)),
                );
            }
            for cap in [30.0_f32, 50.0, 0.7] {
                let capped = expected(&|x| reference_ops::soft_cap(x, f64::from(cap)));
                rig.check(&Op::SoftCap { x: &tensor, cap }, &format!("cap {cap}"), &capped);
            }
        }
    }
}

/// Numbers of any type that overflow inside a formula still come out right: the ends of `f16` under each activation.
#[test]
fn activations_of_the_largest_numbers_do_not_overflow() {
    for rig in rigs() {
        let large = if rig.dtype == DType::F16 { 65504.0 } else { 1e30 };
        let x = rig.tensor(&[1, 4], &[large, -large, 1000.0, -1000.0].map(|x| round(rig.dtype, x)));
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            let got = rig.run1(&Op::Activate { x: &x, activation });
            let want = [large, 0.0, 1000.0, 0.0].map(|x| round(rig.dtype, x));
            let near = relative_eq!(got.data(), want.as_slice(), epsilon = 0.0, max_relative = 0.004);
            assert!(near, "{activation:?} on {}: got {:?}, expected {want:?}", rig.name, got.data());
        }
        let capped = rig.run1(&Op::SoftCap { x: &x, cap: 30.0 });
        assert_eq!(capped.data(), [30.0, -30.0, 30.0, -30.0], "on {}", rig.name);
    }
}
