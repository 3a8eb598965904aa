//! Recurrences: convolutions, the gated delta rule and the selective scan, of several sequences, in several steps.

use backstop::backend::batch::Run;
use backstop::backend::ops::{Backend, OpKind, Recur, Recurrent, RecurrentShape};
use backstop::backend::{LlmBackendDispatch, RecurrentState, Tensor};
use backstop::config::Activation;
use backstop::tensor::DType;

use super::rig::{Element, Rig, rigs, values, weight};

/// Runs of a step of sequences that have seen `before` tokens each, `len` new ones of each.
fn runs(steps: &[(usize, usize)]) -> Vec<Run> {
    let mut row = 0;
    let run = |(sequence, &(before, len)): (usize, &(usize, usize))| {
        row += len;
        Run { sequence, row: row - len, len, start: before }
    };
    steps.iter().enumerate().map(run).collect()
}

/// The rows of `run` of several sequences' rows, one behind the other.
fn rows(of: &[Vec<f32>], runs: &[Run], width: usize) -> Vec<f32> {
    runs.iter().flat_map(|run| of[run.sequence][run.start * width..run.end() * width].to_vec()).collect()
}

/// Steps of three sequences: all, some of one token, some of many.
const STEPS: [[(usize, usize); 3]; 3] =
    [[(0, 1), (0, 7), (0, 3)], [(1, 5), (7, 1), (3, 1)], [(6, 1), (8, 1), (4, 9)]];
const TOKENS: [usize; 3] = [7, 9, 13];

fn check(
    rig: &Rig,
    shape: RecurrentShape,
    expected: &[Vec<Element>],
    op: impl Fn(&[Run], &mut dyn FnMut(&Recur<'_, LlmBackendDispatch>)),
    what: &str,
) {
    let mut states: Vec<RecurrentState> = (0..3).map(|_| rig.dispatch.recurrent(&shape)).collect();
    let mut kind = OpKind::Convolution;
    for steps in &STEPS {
        let runs = runs(steps);
        let mut got = None;
        op(&runs, &mut |op| {
            kind = op.kind();
            let mut of: Vec<&mut RecurrentState> = states.iter_mut().collect();
            // Once more after it was taken back.
            for _ in 0..2 {
                let output = rig.dispatch.recur(&mut of, op, &runs).unwrap();
                got = Some(rig.dispatch.to_host(&output).unwrap());
            }
        });
        let width = expected[0].len() / TOKENS[0];
        let want = runs.iter().flat_map(|run| &expected[run.sequence][run.start * width..run.end() * width]);
        rig.compare(kind, &format!("{what}, {steps:?}"), &got.unwrap(), &want.copied().collect::<Vec<_>>());
    }
    assert_eq!(
        states.iter().map(Recurrent::len).collect::<Vec<_>>(),
        if kind == OpKind::Convolution && shape.heads > 0 { [0; 3] } else { TOKENS }
    );
}

#[test]
fn convolutions_agree_with_the_reference() {
    for rig in rigs() {
        for (taps, widths, bias, activation) in [
            (3, &[40_usize][..], false, Some(Activation::Silu)),
            (1, &[7][..], true, None),
            (2, &[700][..], true, Some(Activation::Silu)),
            // Of tensors that stand side by side.
            (3, &[5, 33][..], false, None),
            (2, &[12, 300, 388][..], true, Some(Activation::Silu)),
        ] {
            let channels: usize = widths.iter().sum();
            let shape = RecurrentShape { taps, channels, heads: 0, rows: 0, columns: 0 };
            let x: Vec<Vec<f32>> =
                TOKENS.iter().enumerate().map(|(i, n)| rig.values(i as u64, n * channels, 1.0)).collect();
            let (w, b) = (values(9, (taps + 1) * channels, 0.5), values(8, channels, 0.5));
            let expected: Vec<Vec<Element>> = x
                .iter()
                .map(|x| {
                    let at = |i: usize| {
                        let (t, c) = (i / channels, i % channels);
                        let term = |j: usize| {
                            let t = (t + j).checked_sub(taps)?;
                            Some(f64::from(w[j * channels + c]) * f64::from(x[t * channels + c]))
                        };
                        let own = if bias { f64::from(b[c]) } else { 0.0 };
                        let terms = (0..=taps).filter_map(term);
                        let size = terms.clone().map(f64::abs).sum::<f64>() + own.abs();
                        let sum = terms.sum::<f64>() + own;
                        match activation {
                            None => Element { value: sum, rounded: sum.abs(), summed: size },
                            Some(_) => {
                                let value = sum / (1.0 + (-sum).exp());
                                // The slope is below 1.1.
                                Element { value, rounded: value.abs() + 1.1 * sum.abs(), summed: 1.1 * size }
                            }
                        }
                    };
                    (0..x.len()).map(at).collect()
                })
                .collect();
            let weight_ = rig.vector(&weight(DType::F32, &[taps + 1, channels], &w));
            let bias = bias.then(|| rig.vector(&weight(DType::F32, &[channels], &b)));
            let run = |runs: &[Run], each: &mut dyn FnMut(&Recur<'_, LlmBackendDispatch>)| {
                let x = rows(&x, runs, channels);
                let mut first = 0;
                let mut part = |width: usize| {
                    first += width;
                    let of_row = |row: &[f32]| row[first - width..first].to_vec();
                    let own: Vec<f32> = x.chunks_exact(channels).flat_map(of_row).collect();
                    rig.tensor(&[x.len() / channels, width], &own)
                };
                let parts: Vec<Tensor> = widths.iter().map(|&width| part(width)).collect();
                each(&Recur::Convolution {
                    x: &parts[0],
                    beside: [parts.get(1), parts.get(2)],
                    weight: &weight_,
                    bias: bias.as_ref(),
                    activation,
                });
            };
            check(&rig, shape, &expected, run, &format!("{} taps of {widths:?}", taps + 1));
        }
    }
}

#[test]
fn the_delta_rule_agrees_with_the_reference() {
    for rig in rigs() {
        // Then decays of a head, which are of its rows where they are more than one.
        for (key_heads, heads, dim, columns, in_turn, decays, strength) in [
            (1, 1, 4, 6, false, 1, 1.0_f32),
            (2, 4, 16, 64, false, 1, 1.0),
            (1, 3, 32, 70, false, 1, 2.0),
            (2, 2, 128, 128, false, 1, 1.0),
            (2, 6, 16, 24, true, 1, 1.0),
            (4, 8, 8, 70, true, 1, 1.0),
            (3, 3, 6, 6, false, 6, 1.0),
            (2, 4, 16, 64, false, 16, 2.0),
            (2, 6, 16, 24, true, 16, 2.0),
            (2, 2, 128, 128, false, 128, 1.0),
        ] {
            let shape = RecurrentShape { taps: 0, channels: 0, heads, rows: dim, columns };
            let width = 2 * key_heads * dim + heads * columns;
            let of = |seed: u64, width: usize| -> Vec<Vec<f32>> {
                TOKENS.iter().enumerate().map(|(i, n)| rig.values(seed + i as u64, n * width, 1.0)).collect()
            };
            let (qkv, beta, gate) = (of(1, width), of(10, heads), of(20, heads * decays));
            let rate: Vec<f32> = values(30, heads, 1.0).into_iter().map(|x| -x.abs() - 0.1).collect();
            let shift = values(31, heads * decays, 0.5);
            let expected: Vec<Vec<Element>> = (0..3)
                .map(|i| {
                    let mut matrices = vec![vec![0.0_f64; dim * columns]; heads];
                    let mut out = Vec::new();
                    for t in 0..TOKENS[i] {
                        let row: Vec<f64> =
                            qkv[i][t * width..][..width].iter().map(|&x| f64::from(x)).collect();
                        let unit = |from: usize, by: f64| -> Vec<f64> {
                            let x = &row[from..][..dim];
                            let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                            x.iter().map(|x| x / length * by).collect()
                        };
                        for (head, s) in matrices.iter_mut().enumerate() {
                            let group = if in_turn { head % key_heads } else { head / (heads / key_heads) };
                            let q = unit(group * dim, (dim as f64).powf(-0.5));
                            let k = unit((key_heads + group) * dim, 1.0);
                            let beta = f64::from(beta[i][t * heads + head]);
                            let beta = f64::from(strength) / (1.0 + (-beta).exp());
                            for (r, row) in s.chunks_exact_mut(columns).enumerate() {
                                let at = head * decays + r % decays;
                                let gate = f64::from(gate[i][t * heads * decays + at]);
                                let open = (gate + f64::from(shift[at])).exp().ln_1p();
                                let decay = (f64::from(rate[head]) * open).exp();
                                row.iter_mut().for_each(|x| *x *= decay);
                            }
                            for c in 0..columns {
                                let seen: f64 = (0..dim).map(|r| k[r] * s[r * columns + c]).sum();
                                let v = row[2 * key_heads * dim + head * columns + c];
                                (0..dim).for_each(|r| s[r * columns + c] += k[r] * beta * (v - seen));
                            }
                            for c in 0..columns {
                                let terms = (0..dim).map(|r| q[r] * s[r * columns + c]);
                                let value = terms.clone().sum::<f64>();
                                // All of it was made of values of this size.
                                let made_of = f64::from(strength) / (dim as f64).sqrt();
                                let size = terms.map(f64::abs).sum::<f64>() + made_of;
                                out.push(Element { value, rounded: value.abs(), summed: size });
                            }
                        }
                    }
                    out
                })
                .collect();
            let [rate, shift] = [&rate, &shift].map(|of| rig.vector(&weight(DType::F32, &[of.len()], of)));
            let run = |runs: &[Run], each: &mut dyn FnMut(&Recur<'_, LlmBackendDispatch>)| {
                let tensor = |of: &[Vec<f32>], width: usize| {
                    let of = rows(of, runs, width);
                    rig.tensor(&[of.len() / width, width], &of)
                };
                let (qkv, beta) = (tensor(&qkv, width), tensor(&beta, heads));
                let gate = tensor(&gate, heads * decays);
                let (qkv, beta, gate, rate, shift) = (&qkv, &beta, &gate, &rate, &shift);
                each(&Recur::Delta { qkv, beta, strength, gate, rate, shift, key_heads, in_turn });
            };
            let what = format!("{heads} heads of {dim} by {columns}, {decays} decays, beta up to {strength}");
            check(&rig, shape, &expected, run, &what);
        }
    }
}

#[test]
fn the_selective_scan_agrees_with_the_reference() {
    for rig in rigs() {
        for (groups, heads, dim, columns, limits) in [
            (1, 1, 4, 6, [0.0, f32::INFINITY]),
            (2, 4, 16, 64, [0.0, 1e9]),
            (1, 3, 32, 70, [0.4, 0.9]),
            (2, 2, 128, 64, [0.001, 100.0]),
        ] {
            let shape = RecurrentShape { taps: 0, channels: 0, heads, rows: dim, columns };
            let inner = heads * columns;
            let width = inner + 2 * groups * dim;
            let of = |seed: u64, width: usize| -> Vec<Vec<f32>> {
                TOKENS.iter().enumerate().map(|(i, n)| rig.values(seed + i as u64, n * width, 1.0)).collect()
            };
            let (vkq, dt) = (of(1, width), of(10, heads));
            let rate: Vec<f32> = values(30, heads, 1.0).into_iter().map(|x| -x.abs() - 0.1).collect();
            let (shift, skip) = (values(31, heads, 0.5), values(32, heads, 1.0));
            let expected: Vec<Vec<Element>> = (0..3)
                .map(|i| {
                    // Values, and the sums of the magnitudes that they were made of.
                    let mut matrices = vec![vec![(0.0_f64, 0.0_f64); dim * columns]; heads];
                    let mut out = Vec::new();
                    for t in 0..TOKENS[i] {
                        let row: Vec<f64> =
                            vkq[i][t * width..][..width].iter().map(|&x| f64::from(x)).collect();
                        for (head, s) in matrices.iter_mut().enumerate() {
                            let group = head / (heads / groups);
                            let k = &row[inner + group * dim..][..dim];
                            let q = &row[inner + (groups + group) * dim..][..dim];
                            let open = f64::from(dt[i][t * heads + head]) + f64::from(shift[head]);
                            let delta = open.exp().ln_1p().clamp(limits[0].into(), limits[1].into());
                            let decay = (f64::from(rate[head]) * delta).exp();
                            for c in 0..columns {
                                let v = row[head * columns + c];
                                let skipped = f64::from(skip[head]) * v;
                                let (mut value, mut size) = (skipped, skipped.abs());
                                for r in 0..dim {
                                    let (x, magnitude) = &mut s[r * columns + c];
                                    let change = k[r] * delta * v;
                                    *x = decay * *x + change;
                                    *magnitude = decay * *magnitude + change.abs();
                                    value += q[r] * *x;
                                    size += q[r].abs() * *magnitude;
                                }
                                out.push(Element { value, rounded: value.abs(), summed: size });
                            }
                        }
                    }
                    out
                })
                .collect();
            let [rate, shift, skip] =
                [&rate, &shift, &skip].map(|of| rig.vector(&weight(DType::F32, &[heads], of)));
            let run = |runs: &[Run], each: &mut dyn FnMut(&Recur<'_, LlmBackendDispatch>)| {
                let tensor = |of: &[Vec<f32>], width: usize| {
                    let of = rows(of, runs, width);
                    rig.tensor(&[of.len() / width, width], &of)
                };
                let (vkq, dt) = (tensor(&vkq, width), tensor(&dt, heads));
                let (rate, shift, skip) = (&rate, &shift, &skip);
                each(&Recur::Scan { vkq: &vkq, dt: &dt, rate, shift, skip, groups, limits });
            };
            check(&rig, shape, &expected, run, &format!("a scan of {heads} heads of {dim} by {columns}"));
        }
    }
}

#[test]
fn scans_that_do_not_fit_are_refused() {
    for rig in rigs() {
        let shape = RecurrentShape { taps: 0, channels: 0, heads: 2, rows: 3, columns: 4 };
        let mut state = rig.dispatch.recurrent(&shape);
        // Two heads of 4, and 3 of one group twice.
        let (vkq, dt) = (rig.tensor(&[2, 14], &[1.0; 28]), rig.tensor(&[2, 2], &[1.0; 4]));
        let vector = rig.vector(&weight(DType::F32, &[2], &[-1.0; 2]));
        let (rate, shift, skip) = (&vector, &vector, &vector);
        let run = [Run { sequence: 0, row: 0, len: 2, start: 0 }];
        for (groups, limits, text) in [
            (
                2,
                [0.0, 1.0],
                "scan: v, k and q are [2, 14] and dt [2, 2], expected 2 rows of 2 heads of 4 and 2 of 3",
            ),
            (1, [1.0, 0.5], "scan: dt is from 1 to 0.5, expected the least first"),
        ] {
            let op = Recur::Scan { vkq: &vkq, dt: &dt, rate, shift, skip, groups, limits };
            let error = rig.dispatch.recur(&mut [&mut state], &op, &run).unwrap_err();
            assert_eq!(error.to_string(), text, "on {}", rig.name);
        }
        let op = Recur::Scan { vkq: &vkq, dt: &dt, rate, shift, skip, groups: 1, limits: [0.0, 1.0] };
        rig.dispatch.recur(&mut [&mut state], &op, &run).unwrap();
        assert_eq!(state.len(), 2);
    }
}

#[test]
fn recurrences_that_do_not_fit_are_refused() {
    for rig in rigs() {
        let shape = RecurrentShape { taps: 2, channels: 4, heads: 0, rows: 0, columns: 0 };
        let mut state = rig.dispatch.recurrent(&shape);
        let x = rig.tensor(&[2, 4], &[1.0; 8]);
        let [fits, wrong] = [[3, 4], [2, 4]]
            .map(|dims| rig.vector(&weight(DType::F32, &dims, &vec![1.0; dims[0] * dims[1]])));
        let beside = [None; 2];
        let op = |weight| Recur::Convolution { x: &x, beside, weight, bias: None, activation: None };
        let run = |start: usize, len: usize| Run { sequence: 0, row: 0, len, start };
        for (weight, run, text) in [
            (
                &wrong,
                run(0, 2),
                "convolution: x is [2, 4] and the weight [2, 4], expected 2 rows of 4 and 3 taps",
            ),
            (
                &fits,
                run(0, 3),
                "convolution: x is [2, 4] and the weight [3, 4], expected 3 rows of 4 and 3 taps",
            ),
            (&fits, run(1, 2), "convolution: position 1, expected at most the 0 seen"),
        ] {
            let error = rig.dispatch.recur(&mut [&mut state], &op(weight), &[run]).unwrap_err();
            assert_eq!(error.to_string(), text, "on {}", rig.name);
        }
        let op_beside = |part| Recur::Convolution {
            x: &x,
            beside: [Some(part), None],
            weight: &fits,
            bias: None,
            activation: None,
        };
        let error = rig.dispatch.recur(&mut [&mut state], &op_beside(&x), &[run(0, 2)]).unwrap_err();
        let text =
            "convolution: x is [2, 4] beside [2, 4] and the weight [3, 4], expected 2 rows of 4 and 3 taps";
        assert_eq!(error.to_string(), text, "on {}", rig.name);
        rig.dispatch.recur(&mut [&mut state], &op(&fits), &[run(0, 2)]).unwrap();
        assert_eq!(state.len(), 2);

        let shape = RecurrentShape { taps: 0, channels: 0, heads: 2, rows: 3, columns: 4 };
        let mut state = rig.dispatch.recurrent(&shape);
        let tensor = |width: usize| rig.tensor(&[2, width], &vec![1.0; 2 * width]);
        let vector = |len: usize| rig.vector(&weight(DType::F32, &[len], &vec![-1.0; len]));
        let (qkv, beta, rate) = (&tensor(20), &tensor(2), &vector(2));
        for (gate, shift, strength, text) in [
            (4, 4, 1.0, "the gate [2, 4], expected 2 rows of 2 heads of 3 and 2 of 4"),
            (6, 2, 1.0, "the gate [2, 6], expected 2 rows of 2 heads of 3 and 2 of 4"),
            (6, 6, f32::NAN, "delta_rule: beta is at most NaN, expected a number"),
        ] {
            let (gate, shift) = (&tensor(gate), &vector(shift));
            let rule = Recur::Delta { qkv, beta, strength, gate, rate, shift, key_heads: 2, in_turn: false };
            let error = rig.dispatch.recur(&mut [&mut state], &rule, &[run(0, 2)]).unwrap_err().to_string();
            assert!(error.starts_with("delta_rule: ") && error.ends_with(text), "{error} on {}", rig.name);
        }
    }
}
