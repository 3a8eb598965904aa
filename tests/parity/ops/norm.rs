//! Norms, over rows and over heads, and the fused residual sum.

use backstop::backend::Op;
use backstop::backend::cpu::kernels::reference_ops;
use backstop::backend::ops::OpKind;
use backstop::tensor::Weight;

use super::rig::{DTYPES, Element, ROWS, Rig, rigs, values, weight};

/// `(D, N)`: norms over whole rows, and over the heads of rows.
const WIDTHS: [(usize, usize); 13] = [
    (1, 1),
    (2, 2),
    (15, 15),
    (16, 16),
    (17, 17),
    (63, 63),
    (64, 64),
    (65, 65),
    (2048, 2048),
    (640, 80),
    (512, 128),
    (30, 10),
    (24, 8),
];

/// Roundings that a sum of `n` positive terms may keep, were it one chain: they go either way, so that √n of them stay.
fn chain(n: usize) -> f64 {
    8.0 + (n as f64).sqrt()
}

fn of_rms(x: &[f32], weight: &[f32], eps: f32, offset: f32) -> Vec<Element> {
    x.chunks_exact(weight.len())
        .flat_map(|x| reference_ops::rms_norm(x, weight, eps, offset))
        .map(|value| Element { value, rounded: value.abs(), summed: value.abs() * chain(weight.len()) })
        .collect()
}

fn of_layer(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) -> Vec<Element> {
    let n = weight.len();
    x.chunks_exact(n)
        .flat_map(|x| {
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
            let terms = x.iter().map(|&x| f64::from(x).abs()).sum::<f64>() / n as f64;
            let var = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
            let by = 1.0 / (var + f64::from(eps)).sqrt();
            let values = reference_ops::layer_norm(x, weight, bias, eps);
            values.into_iter().enumerate().map(move |(i, value)| {
                let bias = bias.map_or(0.0, |bias| f64::from(bias[i]).abs());
                let w = f64::from(weight[i]).abs();
                let centred = (f64::from(x[i]) - mean).abs() * by * w;
                // An element near the mean keeps the error of the mean, and that is one of the terms summed for it.
                let size = (f64::from(x[i]).abs() + terms) * by * w + centred * chain(n);
                Element { value, rounded: centred + bias, summed: size + centred + bias }
            })
        })
        .collect()
}

fn of_cut(x: &[f32], d: usize, deviations: f32) -> Vec<Element> {
    x.chunks_exact(d)
        .flat_map(|x| {
            let terms = x.iter().map(|&x| f64::from(x).abs()).sum::<f64>() / d as f64;
            let squares = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / d as f64;
            // What the bound is made of.
            let bound = terms + f64::from(deviations).abs() * squares.sqrt() * chain(d);
            let values = reference_ops::cut(x, deviations).into_iter().zip(x);
            values.map(move |(value, &x)| Element {
                value,
                rounded: value,
                summed: f64::from(x).abs() + bound,
            })
        })
        .collect()
}

/// Rows of very different size: ordinary, large, tiny beside eps, and zeros.
fn rows(rig: &Rig, seed: u64, t: usize, d: usize) -> Vec<f32> {
    let mut x = rig.values(seed, t * d, 1.0);
    for (row, x) in x.chunks_exact_mut(d).enumerate() {
        let by = [1.0, 64.0, 1.0 / 1024.0, 0.0][row % 4];
        x.iter_mut().for_each(|x| *x = super::rig::round(rig.dtype, *x * by));
    }
    x
}

#[test]
fn rms_norm_agrees_with_the_reference() {
    for rig in rigs() {
        for (i, (d, n)) in WIDTHS.into_iter().enumerate() {
            for (j, t) in ROWS.into_iter().enumerate() {
                let dtype = DTYPES[(i + j) % 3];
                let x = rows(&rig, 1, t, d);
                let tensor = rig.tensor(&[t, d], &x);
                for (offset, eps) in [(0.0, 1e-6), (1.0, 1e-5)] {
                    let w = weight(dtype, &[n], &values(2, n, 1.0));
                    let prepared = rig.vector(&w);
                    let op = Op::RmsNorm { x: &tensor, weight: &prepared, eps, offset };
                    let expected = of_rms(&x, &w.to_f32(), eps, offset);
                    rig.check(&op, &format!("N {n}, weights {dtype}, eps {eps}, offset {offset}"), &expected);
                }
            }
        }
    }
}

#[test]
fn rms_norms_with_weights_for_each_stretch_agree_with_the_reference() {
    for rig in rigs() {
        for (groups, n) in [(2, 24), (8, 64), (1, 48)] {
            for (j, t) in ROWS.into_iter().enumerate() {
                let x = rows(&rig, 1, t, groups * n);
                let tensor = rig.tensor(&[t, groups * n], &x);
                let w = weight(DTYPES[j % 3], &[groups, n], &values(2, groups * n, 1.0));
                let prepared = rig.vector(&w);
                let op = Op::RmsNorm { x: &tensor, weight: &prepared, eps: 1e-5, offset: 0.0 };
                let of_each = w.to_f32();
                let stretches = x.chunks(n).zip(of_each.chunks(n).cycle());
                let expected: Vec<Element> =
                    stretches.flat_map(|(x, weight)| of_rms(x, weight, 1e-5, 0.0)).collect();
                rig.check(&op, &format!("{groups} stretches of {n}"), &expected);
            }
        }
    }
}

#[test]
fn layer_norm_agrees_with_the_reference() {
    for rig in rigs() {
        for (i, (d, n)) in WIDTHS.into_iter().enumerate() {
            for (j, t) in ROWS.into_iter().enumerate() {
                let dtype = DTYPES[(i + j) % 3];
                let x = rows(&rig, 3, t, d);
                let tensor = rig.tensor(&[t, d], &x);
                let w = weight(dtype, &[n], &values(4, n, 1.0));
                let bias = (t % 2 == 1).then(|| weight(dtype, &[n], &values(5, n, 1.0)));
                let (on_w, on_bias) = (rig.vector(&w), bias.as_ref().map(|bias| rig.vector(bias)));
                let op = Op::LayerNorm { x: &tensor, weight: &on_w, bias: on_bias.as_ref(), eps: 1e-5 };
                let widened = bias.as_ref().map(Weight::to_f32);
                let expected = of_layer(&x, &w.to_f32(), widened.as_deref(), 1e-5);
                rig.check(&op, &format!("N {n}, weights {dtype}, bias {}", bias.is_some()), &expected);
            }
        }
    }
}

#[test]
fn cuts_of_rows_agree_with_the_reference() {
    for rig in rigs() {
        for (d, _) in WIDTHS {
            for t in ROWS {
                let x = rows(&rig, 9, t, d);
                let tensor = rig.tensor(&[t, d], &x);
                for deviations in [1.644_853_6, 0.0, -0.7] {
                    let op = Op::Cut { x: &tensor, deviations };
                    rig.check(&op, &format!("{deviations} deviations"), &of_cut(&x, d, deviations));
                }
            }
        }
    }
}

#[test]
fn the_fused_sum_and_norm_agrees_with_the_reference() {
    for rig in rigs() {
        for (d, n) in WIDTHS {
            for t in ROWS {
                let (a, b) = (rows(&rig, 6, t, d), rig.values(7, t * d, 0.1));
                let w = weight(DTYPES[t % 3], &[n], &values(8, n, 1.0));
                // The norm is that of the sum as it is returned, rounded to the type of activations.
                let sums: Vec<f32> =
                    a.iter().zip(&b).map(|(a, b)| super::rig::round(rig.dtype, a + b)).collect();
                let expected: Vec<Element> =
                    a.iter().zip(&b).map(|(&a, &b)| Element::rounded(f64::from(a) + f64::from(b))).collect();
                let (a, b) = (rig.tensor(&[t, d], &a), rig.tensor(&[t, d], &b));
                let prepared = rig.vector(&w);
                let op = Op::AddRmsNorm { a: &a, b: &b, weight: &prepared, eps: 1e-5, offset: 0.0 };
                let got = rig.run(&op);
                rig.compare(OpKind::Add, "the sum of add_rms_norm", &got[0], &expected);
                rig.compare(
                    OpKind::AddRmsNorm,
                    &format!("N {n}"),
                    &got[1],
                    &of_rms(&sums, &w.to_f32(), 1e-5, 0.0),
                );
            }
        }
    }
}
