//! Linear layers, and the fused ops made of them.

use backstop::backend::Op;
use backstop::backend::ops::{Backend, OpKind, compose};
use backstop::config::Activation;
use backstop::tensor::{DType, Weight};

use super::pointwise::activated;
use super::rig::{DTYPES, Element, ROWS, Rig, projection, rigs, values, weight, with};

/// One, and the blocks of 32 and 64 that kernels work in, one less and one more.
const SIZES: [usize; 8] = [1, 2, 31, 32, 33, 63, 64, 65];

/// `Σ_k x[t, k] w[n, k] + bias[n]`, with the sum of the terms' magnitudes.
pub fn reference(x: &[f32], w: &Weight, bias: Option<&Weight>) -> Vec<Element> {
    let (n, k) = (w.shape()[0], w.shape()[1]);
    let (w, bias) = (w.to_f32(), bias.map(Weight::to_f32));
    let mut out = Vec::with_capacity(x.len() / k * n);
    for x in x.chunks_exact(k) {
        for (n, w) in w.chunks_exact(k).enumerate() {
            let (mut value, mut summed) = (0.0, 0.0);
            for (&x, &w) in x.iter().zip(w) {
                let product = f64::from(x) * f64::from(w);
                value += product;
                summed += product.abs();
            }
            let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[n]));
            // A backend may round the product before it adds the bias.
            let rounded = value.abs().max((value + bias).abs());
            out.push(Element { value: value + bias, rounded, summed: summed + bias.abs() });
        }
    }
    out
}

/// `act(g) u`.
fn gated(activation: Activation, g: &Element, u: &Element) -> Element {
    let a = activated(activation, g.value);
    // The slope of each activation is below 1.2.
    Element {
        value: a * u.value,
        rounded: (a.abs() + 1.2 * g.rounded) * u.value.abs(),
        summed: 1.2 * g.summed * u.value.abs() + a.abs() * u.summed + u.value.abs(),
    }
}

fn check(rig: &Rig, dtype: DType, [t, n, k]: [usize; 3], biased: bool) {
    let seed = (t * 10_000_000 + n * 3000 + k) as u64;
    let x = rig.values(seed, t * k, 1.0);
    let w = projection(dtype, seed + 1, n, k);
    let bias = biased.then(|| weight(dtype, &[n], &values(seed + 2, n, 0.5)));
    let expected = reference(&x, &w, bias.as_ref());
    let x = rig.tensor(&[t, k], &x);
    let (w, bias) = (rig.matrix(&w), bias.map(|bias| rig.vector(&bias)));
    let op = Op::Linear { x: &x, projection: with(&w, bias.as_ref()) };
    rig.check(&op, &format!("T {t}, N {n}, K {k}, weights {dtype}, bias {biased}"), &expected);
}

#[test]
fn linear_agrees_with_the_reference() {
    for rig in rigs() {
        for (i, dtype) in DTYPES.into_iter().enumerate() {
            for (j, k) in SIZES.into_iter().enumerate() {
                for (l, n) in SIZES.into_iter().enumerate() {
                    // Every T with every K and with every N; which dtype and bias it meets goes round.
                    for (m, t) in ROWS.into_iter().enumerate() {
                        if (i + j + l + m) % 3 == 0 {
                            check(&rig, dtype, [t, n, k], (j + l + m) % 2 == 0);
                        }
                    }
                }
            }
            for t in [1, 2, 7, 65] {
                check(&rig, dtype, [t, 33, 2048], true);
                check(&rig, dtype, [t, 2048, 33], false);
            }
            check(&rig, dtype, [2, 2048, 2048], false);
        }
    }
}

/// A sum of no terms is the bias; a layer of no outputs has none.
#[test]
fn layers_without_inputs_or_outputs_agree_with_the_reference() {
    for rig in rigs() {
        for dtype in DTYPES {
            for [t, n, k] in
                [[1, 1, 0], [3, 33, 0], [65, 64, 0], [1, 0, 1], [3, 0, 33], [65, 0, 64], [2, 0, 0]]
            {
                let w = projection(dtype, 1, n, k);
                let bias = weight(dtype, &[n], &values(2, n, 0.5));
                let x = rig.tensor(&[t, k], &rig.values(3, t * k, 1.0));
                let (layer, prepared) = (rig.matrix(&w), rig.vector(&bias));
                let other = rig.matrix(&projection(dtype, 4, 5, k));
                for bias in [None, Some(&bias)] {
                    let row = bias.map_or(vec![0.0; n], |bias| bias.to_f32());
                    let row: Vec<Element> = row.into_iter().map(|x| Element::rounded(x.into())).collect();
                    let what = format!("T {t}, N {n}, K {k}, weights {dtype}, bias {}", bias.is_some());
                    let layer = with(&layer, bias.map(|_| &prepared));
                    rig.check(&Op::Linear { x: &x, projection: layer }, &what, &row.repeat(t));
                    let activation = Activation::Silu;
                    let product: Vec<Element> = row.iter().map(|e| gated(activation, e, e)).collect();
                    let op = Op::GateUp { x: &x, gate: layer, up: layer, activation };
                    rig.check(&op, &what, &product.repeat(t));
                    let op = Op::Qkv { x: &x, projections: [with(&other, None), layer, with(&other, None)] };
                    rig.compare(OpKind::Qkv, &what, &rig.run(&op)[1], &row.repeat(t));
                }
            }
        }
    }
}

#[test]
fn gate_up_agrees_with_the_reference() {
    for rig in rigs() {
        for (i, [t, n, k]) in
            [[1, 65, 64], [3, 31, 33], [64, 64, 65], [65, 172, 64], [2, 1, 1]].iter().enumerate()
        {
            let [t, n, k] = [*t, *n, *k];
            let dtype = DTYPES[i % 3];
            for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
                let x = rig.values(3, t * k, 1.0);
                let (gate, up) = (projection(dtype, 4, n, k), projection(dtype, 5, n, k));
                let bias = weight(dtype, &[n], &values(6, n, 0.5));
                let (g, u) = (reference(&x, &gate, Some(&bias)), reference(&x, &up, None));
                let expected: Vec<Element> = g.iter().zip(&u).map(|(g, u)| gated(activation, g, u)).collect();
                let x = rig.tensor(&[t, k], &x);
                let (gate, up, bias) = (rig.matrix(&gate), rig.matrix(&up), rig.vector(&bias));
                let op =
                    Op::GateUp { x: &x, gate: with(&gate, Some(&bias)), up: with(&up, None), activation };
                rig.check(&op, &format!("N {n}, K {k}, {activation:?}, weights {dtype}"), &expected);
            }
        }
    }
}

#[test]
fn qkv_agrees_with_the_reference() {
    for rig in rigs() {
        for (i, t) in ROWS.into_iter().enumerate() {
            let (k, dtype) = (SIZES[i + 1], DTYPES[i % 3]);
            let x = rig.values(7, t * k, 1.0);
            let [q, kw, v] = [(8, 64), (9, 32), (10, 33)].map(|(seed, n)| projection(dtype, seed, n, k));
            let bias = weight(dtype, &[64], &values(11, 64, 0.5));
            let tensor = rig.tensor(&[t, k], &x);
            let [on_q, on_k, on_v] = [&q, &kw, &v].map(|weight| rig.matrix(weight));
            let on_bias = rig.vector(&bias);
            let projections = [with(&on_q, Some(&on_bias)), with(&on_k, None), with(&on_v, None)];
            let got = rig.run(&Op::Qkv { x: &tensor, projections });
            for (got, (weight, bias)) in got.iter().zip([(&q, Some(&bias)), (&kw, None), (&v, None)]) {
                rig.compare(OpKind::Qkv, &format!("K {k}"), got, &reference(&x, weight, bias));
            }
        }
    }
}

/// A fused op has the bits of its parts, on either backend.
#[test]
fn fused_ops_have_the_bits_of_their_parts() {
    for rig in rigs() {
        for t in ROWS {
            for (n, k) in [(33, 65), (64, 64), (172, 64)] {
                let x = rig.tensor(&[t, k], &rig.values(1, t * k, 1.0));
                let y = rig.tensor(&[t, k], &rig.values(2, t * k, 1.0));
                let weights = [3, 4, 5].map(|seed| rig.matrix(&projection(DTYPES[t % 3], seed, n, k)));
                let bias = rig.vector(&weight(DType::F32, &[n], &values(6, n, 0.5)));
                let norm = rig.vector(&weight(DType::F32, &[k], &values(7, k, 1.0)));
                let [a, b, c] =
                    [with(&weights[0], Some(&bias)), with(&weights[1], None), with(&weights[2], None)];
                let gate_up = |activation| Op::GateUp { x: &x, gate: a, up: b, activation };
                for op in [
                    gate_up(Activation::Silu),
                    gate_up(Activation::Gelu),
                    gate_up(Activation::GeluTanh),
                    Op::Qkv { x: &x, projections: [a, b, c] },
                    Op::AddRmsNorm { a: &x, b: &y, weight: &norm, eps: 1e-5, offset: 0.0 },
                ] {
                    let parts = compose(&rig.dispatch, &op).unwrap();
                    let fused = rig.dispatch.run(&op).unwrap();
                    assert_eq!(parts.len(), fused.len());
                    for (part, fused) in parts.iter().zip(&fused) {
                        let bits = |tensor| -> Vec<u32> {
                            rig.dispatch.to_host(tensor).unwrap().data().iter().map(|x| x.to_bits()).collect()
                        };
                        assert_eq!(
                            bits(part),
                            bits(fused),
                            "{} on {}, T {t}, N {n}, K {k}",
                            op.kind(),
                            rig.name
                        );
                    }
                }
            }
        }
    }
}
