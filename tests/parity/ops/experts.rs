//! Which experts rows go to, and what these make of them.

use std::sync::Arc;

use backstop::backend::ops::{
    Backend, ExpertGroups, ExpertProjection, GateKind, Gating, OpKind, Router, Scores,
};
use backstop::backend::{Op, PreparedStack, PreparedVector, Tensor};
use backstop::config::Activation;
use backstop::quant::{Matrix, QuantWeight, Stack};
use backstop::tensor::{DType, HostTensor, Weight};

use super::pointwise::activated;
use super::quantized::{as_computed, formats, magnitudes, matrix as blocks};
use super::rig::{Element, ROWS, Rig, rigs, values, weight};

/// The experts of a row and their weights, in exact arithmetic.
fn routed(router: &Router, [bias, scales]: [Option<&[f32]>; 2], logits: &[f32]) -> Vec<(usize, f64)> {
    let x: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    let all: f64 = x.iter().map(|x| x.exp()).sum();
    let scores: Vec<f64> = match router.scores {
        Scores::Softmax => x.iter().map(|x| x.exp() / all).collect(),
        Scores::SoftmaxOfChosen | Scores::SigmoidOfChosen | Scores::SparseMixer { .. } => x.clone(),
        Scores::Sigmoid => x.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Scores::SqrtSoftplus => x.iter().map(|x| x.exp().ln_1p().sqrt()).collect(),
    };
    let bias = |i: usize| bias.map_or(0.0, |bias| f64::from(bias[i]));
    let choice: Vec<f64> = scores.iter().enumerate().map(|(i, score)| score + bias(i)).collect();
    // A stable sort: of equal ones, the first stays first.
    let falling = |of: &[f64]| {
        let mut order: Vec<usize> = (0..of.len()).collect();
        order.sort_by(|&a, &b| of[b].total_cmp(&of[a]));
        order
    };
    let open: Vec<bool> = match router.groups {
        None => vec![true; x.len()],
        Some(ExpertGroups { count, used, best }) => {
            let size = x.len() / count;
            let rates: Vec<f64> = (choice.chunks(size))
                .map(|group| falling(group)[..best].iter().map(|&i| group[i]).sum())
                .collect();
            let chosen = falling(&rates)[..used].to_vec();
            (0..x.len()).map(|i| chosen.contains(&(i / size))).collect()
        }
    };
    let order = falling(&choice).into_iter().filter(|&i| open[i]);
    let mut chosen: Vec<(usize, f64)> = order.take(router.used).map(|i| (i, scores[i])).collect();
    match router.scores {
        Scores::SoftmaxOfChosen => {
            let sum: f64 = chosen.iter().map(|(_, x)| x.exp()).sum();
            chosen.iter_mut().for_each(|(_, x)| *x = x.exp() / sum);
        }
        Scores::SigmoidOfChosen => chosen.iter_mut().for_each(|(_, x)| *x = 1.0 / (1.0 + (-*x).exp())),
        Scores::SparseMixer { near } => {
            for j in (0..chosen.len()).rev() {
                let (before, best) = (&chosen[..j], chosen[j].1);
                // In `f32`, as thresholds are.
                let ratio = |x: f64| (best as f32 - x as f32) / (x as f32).abs().max(best as f32);
                let rest = (0..x.len()).filter(|i| before.iter().all(|(id, _)| id != i));
                let is_far = |i: &usize| ratio(x[*i]) > near;
                let sum: f64 = rest.filter(|i| !is_far(i)).map(|i| (x[i] - best).exp()).sum();
                chosen[j].1 = 1.0 / sum;
            }
        }
        Scores::Softmax | Scores::Sigmoid | Scores::SqrtSoftplus => {}
    }
    let sum = router.normalise.map_or(1.0, |eps| chosen.iter().map(|(_, w)| w).sum::<f64>() + f64::from(eps));
    let scale = |i: usize| f64::from(router.scale) * scales.map_or(1.0, |scales| f64::from(scales[i]));
    chosen.iter_mut().for_each(|(i, weight)| *weight = *weight / sum * scale(*i));
    chosen
}

fn routers(experts: usize) -> Vec<Router> {
    let mut all = Vec::new();
    let kinds = [
        Scores::Softmax,
        Scores::SoftmaxOfChosen,
        Scores::Sigmoid,
        Scores::SqrtSoftplus,
        Scores::SigmoidOfChosen,
        Scores::SparseMixer { near: 0.43 },
    ];
    for (i, scores) in kinds.into_iter().enumerate() {
        for used in [1, experts.div_ceil(3), experts] {
            let normalise = (i % 2 == 0).then_some(1e-20);
            all.push(Router {
                scores,
                used,
                groups: None,
                normalise,
                scale: if used == 1 { 2.5 } else { 1.0 },
            });
        }
        let has_groups = !matches!(scores, Scores::SparseMixer { .. });
        if experts.is_multiple_of(4) && has_groups {
            for best in [1, 2] {
                let groups = Some(ExpertGroups { count: experts / 4, used: (experts / 8).max(1), best });
                all.push(Router { scores, used: 3, groups, normalise: Some(0.0), scale: 1.0 });
            }
        }
    }
    all
}

#[test]
fn rows_go_to_the_experts_that_the_reference_chooses_and_ties_to_the_lower_id() {
    for rig in rigs() {
        for experts in [1, 4, 8, 60, 128] {
            for (case, router) in routers(experts).into_iter().enumerate() {
                for t in [1, 5, 65] {
                    // Quarters, which every type holds: many are equal.
                    let quarter = |x: f32| (x * 6.0).round() / 4.0;
                    let logits: Vec<f32> =
                        values(case as u64, t * experts, 1.0).into_iter().map(quarter).collect();
                    let bias: Option<Vec<f32>> = (router.scores == Scores::Sigmoid)
                        .then(|| values(7, experts, 0.5).into_iter().map(quarter).collect());
                    // Of every other router; of any sign.
                    let scales = (case % 2 == 1).then(|| values(11, experts, 2.0));
                    let of_f32 = |of: &Vec<f32>| rig.vector(&weight(DType::F32, &[experts], of));
                    let prepared = [&bias, &scales].map(|of| of.as_ref().map(of_f32));
                    let [of_bias, of_scales] = prepared.each_ref().map(Option::as_ref);
                    let x = rig.tensor(&[t, experts], &logits);
                    let outputs =
                        rig.run(&Op::Route { logits: &x, bias: of_bias, scales: of_scales, router });
                    let [ids, weights] = &outputs[..] else { panic!("{} outputs", outputs.len()) };
                    let scaled = if scales.is_some() { "scaled " } else { "" };
                    let what = format!("{scaled}E {experts}, T {t}, {router:?} on {}", rig.name);
                    let expected: Vec<(usize, f64)> = logits
                        .chunks(experts)
                        .flat_map(|row| routed(&router, [bias.as_deref(), scales.as_deref()], row))
                        .collect();
                    let wanted: Vec<u32> = expected.iter().map(|(id, _)| *id as u32).collect();
                    assert_eq!(ids.as_u32().unwrap(), wanted, "{what}");
                    let elements = expected.iter().map(|&(_, weight)| Element {
                        value: weight,
                        rounded: 0.0,
                        summed: weight.abs(),
                    });
                    rig.compare(OpKind::Route, &what, weights, &elements.collect::<Vec<_>>());
                }
            }
        }
    }
}

/// Matrices `[E, N, K]`, their values, and the magnitudes that decoding rounds.
pub struct Experts {
    pub stack: Stack,
    n: usize,
    values: Vec<Vec<f32>>,
    sizes: Vec<Vec<f32>>,
}

impl Experts {
    pub fn dense(dtype: DType, seed: u64, [experts, n, k]: [usize; 3]) -> Self {
        let size = 1.0 / (k as f32).sqrt();
        let each: Vec<Weight> = (0..experts)
            .map(|e| weight(dtype, &[n, k], &values(seed + 100 * e as u64, n * k, size)))
            .collect();
        let values: Vec<Vec<f32>> = each.iter().map(Weight::to_f32).collect();
        let sizes = values.iter().map(|values| values.iter().map(|x| x.abs()).collect()).collect();
        Self { stack: Stack::new(each.into_iter().map(Matrix::Dense)), n, values, sizes }
    }

    /// Of one tensor, or of one for each expert.
    pub fn quantized(rig: &Rig, each: Vec<QuantWeight>) -> Self {
        let computed: Vec<QuantWeight> = each.iter().map(|weight| as_computed(rig, weight)).collect();
        let n = each[0].shape()[0];
        let (values, sizes) =
            (computed.iter().map(QuantWeight::to_f32).collect(), computed.iter().map(magnitudes).collect());
        Self { stack: Stack::new(each.into_iter().map(Matrix::Quantized)), n, values, sizes }
    }

    /// The product of `x` with the matrix of an expert: values, and what is rounded and summed on the way, where that of `x` is
    /// `[rounded, summed]`.
    pub fn product(&self, expert: usize, x: &[f64], of_x: [&[f64]; 2], bias: Option<&[f32]>) -> Vec<Element> {
        let k = x.len();
        let row = |n: usize| {
            let (w, size) = (&self.values[expert][n * k..][..k], &self.sizes[expert][n * k..][..k]);
            let bias = bias.map_or(0.0, |bias| f64::from(bias[expert * self.n + n]));
            let (mut value, mut rounded, mut summed) = (bias, 0.0, bias.abs());
            for i in 0..k {
                let (w, size) = (f64::from(w[i]), f64::from(size[i]));
                value += x[i] * w;
                rounded += (of_x[0][i] + x[i].abs()) * size;
                summed += (of_x[1][i] + x[i].abs()) * w.abs();
            }
            Element { value, rounded: rounded + value.abs(), summed }
        };
        (0..self.n).map(row).collect()
    }
}

struct Case<'a> {
    gate: Option<&'a Experts>,
    up: &'a Experts,
    down: &'a Experts,
    biases: Option<[&'a [f32]; 3]>,
    gating: Gating,
    on_input: bool,
}

impl Case<'_> {
    fn reference(&self, x: &[f32], ids: &[u32], weights: &[f32], used: usize) -> Vec<Element> {
        let rows = ids.len() / used;
        let width = x.len() / rows;
        let mut out = Vec::new();
        for (row, x) in x.chunks(width).enumerate() {
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let zeros = vec![0.0; width];
            let mut sum = vec![Element { value: 0.0, rounded: 0.0, summed: 0.0 }; self.down.n];
            for j in row * used..(row + 1) * used {
                let (expert, weight) = (ids[j] as usize, f64::from(weights[j]));
                // On the input it is one more thing that is rounded.
                let (x, rounds, weight): (Vec<f64>, Vec<f64>, f64) = match self.on_input {
                    true => {
                        let x: Vec<f64> = x.iter().map(|x| x * weight).collect();
                        let rounds = x.iter().map(|x| x.abs()).collect();
                        (x, rounds, 1.0)
                    }
                    false => (x.clone(), zeros.clone(), weight),
                };
                let bias = |which: usize| self.biases.map(|biases| biases[which]);
                let of =
                    |experts: &Experts, which| experts.product(expert, &x, [&rounds, &rounds], bias(which));
                let up = of(self.up, 1);
                let inner: Vec<Element> = match self.gate {
                    Some(gate) => of(gate, 0).iter().zip(&up).map(|(g, u)| self.joined(g, u)).collect(),
                    None => {
                        let activation = self.gating.alone().unwrap();
                        up.iter()
                            .map(|u| through(u, activated(activation, u.value), 2.0 * u.value.abs() + 1.2))
                            .collect()
                    }
                };
                let [values, rounded, summed] = [
                    inner.iter().map(|e| e.value).collect::<Vec<f64>>(),
                    inner.iter().map(|e| e.rounded).collect(),
                    inner.iter().map(|e| e.summed).collect(),
                ];
                let y = self.down.product(expert, &values, [&rounded, &summed], bias(2));
                for (sum, y) in sum.iter_mut().zip(y) {
                    sum.value += weight * y.value;
                    sum.rounded += weight.abs() * (y.rounded + y.value.abs());
                    sum.summed += weight.abs() * (y.summed + y.value.abs());
                }
            }
            out.extend(sum.into_iter().map(|e| Element { rounded: e.rounded + e.value.abs(), ..e }));
        }
        out
    }

    /// Gate and up joined; the slopes of activations are below 1.2, and of the clamped one below 2.
    fn joined(&self, g: &Element, u: &Element) -> Element {
        let (a, u, slope) = match self.gating {
            Gating::Plain(activation) => (activated(activation, g.value), *u, 1.2),
            Gating::Clamped { alpha, limit } => {
                let (alpha, limit) = (f64::from(alpha), f64::from(limit));
                let (g, up) = (g.value.min(limit), u.value.clamp(-limit, limit));
                let u = Element { value: up + 1.0, rounded: u.rounded + 1.0, summed: u.summed + 1.0 };
                (g / (1.0 + (-alpha * g).exp()), u, 2.0)
            }
        };
        Element {
            value: a * u.value,
            rounded: (3.0 * a.abs() + slope * g.rounded) * u.value.abs() + a.abs() * u.rounded,
            summed: slope * g.summed * u.value.abs() + a.abs() * u.summed + (a * u.value).abs(),
        }
    }
}

/// A function of an element, of which `slope` bounds the slope.
fn through(of: &Element, value: f64, slope: f64) -> Element {
    Element { value, rounded: slope * of.rounded + value.abs(), summed: slope * of.summed + value.abs() }
}

fn ids_tensor(rig: &Rig, shape: &[usize], ids: &[u32]) -> Tensor {
    rig.dispatch.to_backend(HostTensor::from_u32(shape, ids.to_vec())).unwrap()
}

fn check(rig: &Rig, case: &Case<'_>, size: f32, [t, used]: [usize; 2], ids: &[u32], what: &str) {
    let width = case.up.values[0].len() / case.up.n;
    let x = rig.values(t as u64, t * width, size);
    let weights: Vec<f32> = rig.values(3, t * used, 0.3).into_iter().map(f32::abs).collect();
    let expected = case.reference(&x, ids, &weights, used);
    let (x, weights) = (rig.tensor(&[t, width], &x), rig.tensor(&[t, used], &weights));
    let ids = ids_tensor(rig, &[t, used], ids);
    let stack = |experts: &Experts| -> PreparedStack { rig.dispatch.stack(&experts.stack) };
    let (gate, up, down) = (case.gate.map(stack), stack(case.up), stack(case.down));
    let experts = case.up.values.len();
    let bias = |which: usize, n: usize| -> Option<PreparedVector> {
        case.biases.map(|biases| rig.vector(&weight(DType::F32, &[experts, n], biases[which])))
    };
    let biases = [bias(0, case.up.n), bias(1, case.up.n), bias(2, case.down.n)];
    let of = |weight, which: usize| ExpertProjection { weight, bias: biases[which].as_ref() };
    let op = Op::Experts {
        x: &x,
        ids: &ids,
        weights: &weights,
        gate: gate.as_ref().map(|gate| of(gate, 0)),
        up: of(&up, 1),
        down: of(&down, 2),
        gating: case.gating,
        on_input: case.on_input,
    };
    rig.check(&op, what, &expected);
}

/// `used` different experts for each of `t` rows.
fn choices(t: usize, used: usize, experts: usize) -> Vec<u32> {
    (0..t).flat_map(|row| (0..used).map(move |j| ((row * 7 + j * 5 + row * j) % experts) as u32)).collect()
}

/// A permutation of `k` columns, another for each expert.
fn order(k: usize, expert: usize) -> Arc<[u32]> {
    (0..k).map(|j| ((j * 5 + 3 + expert) % k) as u32).collect()
}

const SILU: Gating = Gating::Plain(Activation::Silu);

#[test]
fn dense_experts_agree_with_the_reference() {
    for rig in rigs() {
        for (dtype, [experts, used, width, inner]) in [
            (DType::F32, [1, 1, 33, 17]),
            (DType::BF16, [4, 2, 64, 48]),
            (DType::F16, [8, 8, 31, 65]),
            (DType::F32, [60, 4, 32, 16]),
        ] {
            let gate = Experts::dense(dtype, 1, [experts, inner, width]);
            let up = Experts::dense(dtype, 2, [experts, inner, width]);
            let down = Experts::dense(dtype, 3, [experts, width, inner]);
            let biases = [
                values(4, experts * inner, 0.5),
                values(5, experts * inner, 0.5),
                values(6, experts * width, 0.5),
            ];
            for t in ROWS {
                let ids = choices(t, used, experts);
                let biases = (t % 2 == 0).then(|| biases.each_ref().map(|bias| &bias[..]));
                let clamped = Gating::Clamped { alpha: 1.702, limit: 0.7 };
                let gating = if t % 3 == 0 { clamped } else { SILU };
                let on_input = t % 7 == 0;
                let case = Case { gate: Some(&gate), up: &up, down: &down, biases, gating, on_input };
                check(&rig, &case, 1.0, [t, used], &ids, &format!("E {experts}, k {used}, T {t}, {dtype}"));
                let alone = Case { gate: None, gating: Gating::Plain(Activation::Relu2), ..case };
                check(&rig, &alone, 1.0, [t, used], &ids, &format!("no gate, E {experts}, T {t}, {dtype}"));
            }
            // One that everybody chose, and all others nobody.
            let on_input = false;
            let case = Case { gate: Some(&gate), up: &up, down: &down, biases: None, gating: SILU, on_input };
            check(&rig, &case, 1.0, [70, 1], &[(experts - 1) as u32; 70], "one expert for all");
        }
    }
}

#[test]
fn experts_in_blocks_agree_with_the_values_that_they_decode_to() {
    for rig in rigs() {
        for (i, format) in formats().into_iter().enumerate() {
            // Whole groups of every format.
            let width = if format.group() == 96 { 288 } else { 256 };
            let (experts, used, inner) = (3, 2, width);
            if format.on_mlx(width).is_none() && !rig.is_cpu() {
                continue;
            }
            // One tensor of all, or one for each.
            let make = |seed: u64, n: usize, k: usize| -> Vec<QuantWeight> {
                match i % 2 {
                    0 => {
                        let whole = blocks(format, seed, experts * n, k);
                        (0..experts).map(|e| whole.rows("e", e * n..(e + 1) * n)).collect()
                    }
                    _ => {
                        let each = (0..experts).map(|e| {
                            let of = blocks(format, seed + 50 * e as u64, n, k);
                            // Columns in an order of their own, of some.
                            if i % 4 == 3 && e != 1 { of.with_order(order(k, e)) } else { of }
                        });
                        each.collect()
                    }
                }
            };
            // 24 rows: half a panel too many.
            let up = Experts::quantized(&rig, make(1, inner, width));
            let gate = Experts::quantized(&rig, make(2, inner, width));
            let down = Experts::quantized(&rig, make(3, 24, inner));
            for t in [1, 5, 40] {
                let on_input = t == 5;
                let case =
                    Case { gate: Some(&gate), up: &up, down: &down, biases: None, gating: SILU, on_input };
                check(&rig, &case, 0.03, [t, used], &choices(t, used, experts), &format!("T {t}, {format}"));
            }
        }
    }
}

#[test]
fn a_gate_weighs_rows_and_stretches_of_them() {
    for rig in rigs() {
        for (t, width, gates) in [(1, 64, 1), (3, 33, 33), (65, 96, 4), (7, 1, 1)] {
            let (x, gate) = (rig.values(1, t * width, 2.0), rig.values(2, t * gates, 2.0));
            let stretch = width / gates;
            let gated = |of: fn(f64) -> f64| -> Vec<Element> {
                let each = x.iter().enumerate().map(|(i, &x)| {
                    let gate = f64::from(gate[i / width * gates + i % width / stretch]);
                    Element::rounded(f64::from(x) * of(gate))
                });
                each.collect()
            };
            let (expected, softplus) = (gated(|x| 1.0 / (1.0 + (-x).exp())), gated(|x| x.exp().ln_1p()));
            let (x, gate) = (rig.tensor(&[t, width], &x), rig.tensor(&[t, gates], &gate));
            for kind in [GateKind::Sigmoid, GateKind::Softplus] {
                let expected = match kind {
                    GateKind::Sigmoid => &expected,
                    GateKind::Softplus => &softplus,
                };
                let op = Op::Gate { x: &x, gate: &gate, kind };
                rig.check(&op, &format!("{kind:?}, T {t}, D {width}, G {gates}"), expected);
            }
        }
    }
}
