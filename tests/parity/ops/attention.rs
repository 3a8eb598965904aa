//! Grouped-query attention over caches: cached prefixes, windows, several sequences, head sizes, cache types, soft caps.

use backstop::backend::batch::{Mask, Run};
use backstop::backend::kv::{CodeRows, GROUP, HostKv, KvShape, KvType};
use backstop::backend::{LayerState, Op};
use backstop::tensor::DType;

use super::rig::{Element, Rig, rigs, round, weight};

/// One step: what every sequence has cached and how many tokens it adds, and how they attend.
#[derive(Debug, Clone)]
struct Case {
    heads: usize,
    kv_heads: usize,
    /// Elements of a head of Q and K, and of V.
    dim: usize,
    v_dim: usize,
    kv_type: KvType,
    /// Whether values are the beginnings of keys.
    latent: bool,
    /// `(tokens before, tokens of the step)` of each sequence.
    runs: Vec<(usize, usize)>,
    window: Option<usize>,
    soft_cap: Option<f32>,
    /// The sink of each head.
    sinks: Option<fn(usize) -> f32>,
    /// What is added by head and distance, up to 5 on either side.
    bias: Option<fn(usize, i64) -> f32>,
}

/// Of biases.
const REACH: i64 = 5;

/// Keys and values of a sequence, `[tokens, KH * dim]` and `[tokens, KH * v_dim]`.
struct Sequence {
    k: Vec<f32>,
    v: Vec<f32>,
    /// Of a quantized cache: `|scale| code + |bias|` of each element, of which sums are made.
    terms: Option<[Vec<f32>; 2]>,
}

/// [`Sequence::terms`] of K or V, heads of `dim`.
fn terms(rows: &CodeRows, dim: usize) -> Vec<f32> {
    let groups = dim.div_ceil(GROUP);
    let of = |(i, &code): (usize, &u8)| {
        let group = i / dim * groups + i % dim / GROUP;
        f32::from(code) * rows.scales[group].to_f32().abs() + rows.biases[group].to_f32().abs()
    };
    rows.codes.iter().enumerate().map(of).collect()
}

/// Softmax(scale · q kᵀ, capped) v of one row over `keys`, with magnitudes.
fn attend(
    case: &Case,
    q: &[f32],
    [head, query]: [usize; 2],
    of: &Sequence,
    keys: std::ops::Range<usize>,
) -> Vec<Element> {
    let Case { dim, v_dim, kv_heads, .. } = *case;
    let kv_head = |key: usize| key * kv_heads + head / (case.heads / kv_heads);
    let at = |key: usize| kv_head(key) * dim;
    let scale = f64::from(scale(dim));
    let scores: Vec<f64> = keys
        .clone()
        .map(|key| {
            let k = &of.k[at(key)..][..dim];
            let dot: f64 = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
            let away = (key as i64 - query as i64).clamp(-REACH, REACH);
            let bias = case.bias.map_or(0.0, |bias| f64::from(bias(head, away)));
            case.soft_cap
                .map_or(dot * scale + bias, |cap| f64::from(cap) * (dot * scale / f64::from(cap)).tanh())
        })
        .collect();
    // What is rounded on the way to a score.
    let size = |key: usize| {
        let terms = of.terms.as_ref().map(|[k, _]| &k[at(key)..][..dim]);
        let sum = |k: &[f32]| q.iter().zip(k).map(|(&q, &k)| f64::from(q).abs() * f64::from(k)).sum::<f64>();
        terms.map(|k| sum(k) * scale)
    };
    let max = scores.iter().copied().fold(f64::MIN, f64::max);
    let sink = case.sinks.map(|sinks| f64::from(sinks(head)));
    let largest = scores.iter().copied().chain(sink).map(f64::abs).fold(0.0, f64::max);
    let summed = keys.clone().filter_map(size).fold(largest, f64::max);
    // A sink takes its share, and gives nothing.
    let sink = sink.map_or(0.0, |sink| (sink - max).exp());
    let total: f64 = scores.iter().map(|score| (score - max).exp()).sum::<f64>() + sink;
    let mut out = vec![(0.0, 0.0, 0.0); v_dim];
    for (key, score) in keys.zip(scores) {
        let share = (score - max).exp() / total;
        let terms = of.terms.as_ref().map_or(&of.v, |[_, v]| v);
        for (d, out) in out.iter_mut().enumerate() {
            let at = kv_head(key) * v_dim + d;
            let v = f64::from(of.v[at]);
            out.0 += share * v;
            out.1 += share * v.abs();
            out.2 += share * f64::from(terms[at]).abs();
        }
    }
    // An error of a score, relative to it, is one of its share, relative to that; the maximum is subtracted exactly.
    out.into_iter()
        .map(|(value, size, terms)| Element {
            value,
            rounded: size * (1.0 + largest),
            summed: terms * (1.0 + summed),
        })
        .collect()
}

fn scale(dim: usize) -> f32 {
    1.0 / (dim as f32).sqrt()
}

fn check(rig: &Rig, case: &Case) {
    let Case { heads, kv_heads, dim, v_dim, kv_type, .. } = *case;
    let rows = case.runs.iter().map(|run| run.1).sum::<usize>();
    let q = rig.values(1, rows * heads * dim, 1.4);
    let mut expected = Vec::with_capacity(q.len());
    let (mut caches, mut runs, mut row) = (Vec::new(), Vec::new(), 0);
    for (i, &(before, len)) in case.runs.iter().enumerate() {
        let shape = KvShape { heads: kv_heads, k_dim: dim, v_dim, kind: kv_type, latent: case.latent };
        let [k_width, v_width] = shape.widths();
        let values = |seed, width: usize| rig.values(seed + 2 * i as u64, (before + len) * width, 1.0);
        let (k, v) = (values(2, k_width), values(3, v_width));
        // The tokens before were cached in a step of their own, as they are in use.
        let mut cache = rig.cache(shape, &k[..before * k_width], &v[..before * v_width]);
        rig.append(&mut cache, &k[before * k_width..], &v[before * v_width..]);
        caches.push(cache);
        let (k, v) = match case.latent {
            true => {
                let rows = k.chunks(k_width).zip(v.chunks(v_width));
                (rows.flat_map(|(latent, rest)| latent.iter().chain(rest).copied()).collect(), k)
            }
            false => (k, v),
        };
        // Kept in the cache's type, and read in that of activations.
        let sequence = match kv_type.float() {
            Some(dtype) => {
                let kept = |x: Vec<f32>| x.into_iter().map(|x| round(rig.dtype, round(dtype, x))).collect();
                Sequence { k: kept(k), v: kept(v), terms: None }
            }
            // Codes are read in `f32`.
            None => {
                let mut kv = HostKv::new(shape);
                kv.write(0, &k, &v).unwrap();
                let terms = kv.read_codes().unwrap().map(|[k, v]| [terms(&k, dim), terms(&v, v_dim)]);
                let (k, v) = kv.read().unwrap();
                Sequence { k, v, terms }
            }
        };
        for (position, q) in (before..before + len).zip(q[row * heads * dim..].chunks_exact(heads * dim)) {
            // The last `window` keys, the token's own included.
            let first = (position + 1).saturating_sub(case.window.unwrap_or(usize::MAX));
            for (head, q) in q.chunks_exact(dim).enumerate() {
                expected.extend(attend(case, q, [head, position], &sequence, first..position + 1));
            }
        }
        runs.push(Run { sequence: i, row, len, start: before });
        row += len;
    }
    let mask = Mask::causal(&runs, case.window).unwrap();
    let caches: Vec<&LayerState> = caches.iter().collect();
    let q = rig.tensor(&[rows, heads * dim], &q);
    let sinks: Option<Vec<f32>> = case.sinks.map(|sinks| (0..heads).map(sinks).collect());
    let sinks = sinks.map(|sinks| rig.vector(&weight(DType::F32, &[heads], &sinks)));
    let bias: Option<Vec<f32>> = case
        .bias
        .map(|bias| (0..heads).flat_map(|head| (-REACH..=REACH).map(move |away| bias(head, away))).collect());
    let bias = bias.map(|bias| rig.vector(&weight(DType::F32, &[bias.len()], &bias)));
    let op = Op::Attention {
        q: &q,
        kv: &caches,
        mask: &mask,
        scale: scale(dim),
        soft_cap: case.soft_cap,
        sinks: sinks.as_ref(),
        bias: bias.as_ref(),
    };
    rig.check(&op, &format!("{case:?}"), &expected);
}

fn plain(kv_type: KvType, before: usize, len: usize) -> Case {
    let runs = vec![(before, len)];
    Case {
        heads: 4,
        kv_heads: 2,
        dim: 16,
        v_dim: 16,
        kv_type,
        latent: false,
        runs,
        window: None,
        soft_cap: None,
        sinks: None,
        bias: None,
    }
}

const BEFORE: [usize; 6] = [0, 1, 63, 64, 65, 300];

#[test]
fn caches_and_windows_of_every_length_agree_with_the_reference() {
    for rig in rigs() {
        for before in BEFORE {
            for len in [1, 2, 7, 17, 64, 65] {
                for (i, window) in [None, Some(1), Some(5), Some(64), Some(1000)].into_iter().enumerate() {
                    for (j, kv_type) in KvType::ALL.into_iter().enumerate() {
                        if len == 1 || (i + j + len) % 3 == 0 {
                            check(&rig, &Case { window, ..plain(kv_type, before, len) });
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn heads_of_every_size_and_ratio_agree_with_the_reference() {
    for rig in rigs() {
        for dim in [8, 10, 64, 80, 128, 256] {
            // The last is multi-query attention.
            for (i, (heads, kv_heads)) in
                [(2, 2), (4, 2), (8, 2), (8, 1), (16, 2), (6, 1)].into_iter().enumerate()
            {
                for (before, len) in [(0, 7), (65, 1), (65, 3)] {
                    for window in [None, Some(5)] {
                        let case = plain(KvType::ALL[(i + len) % 5], before, len);
                        check(&rig, &Case { heads, kv_heads, dim, v_dim: dim, window, ..case });
                    }
                }
            }
        }
    }
}

/// Keys wider than values, and the other way round, in every type of cache.
#[test]
fn keys_and_values_of_different_widths_agree_with_the_reference() {
    for rig in rigs() {
        for kv_type in KvType::ALL {
            for (dim, v_dim) in [(24, 16), (16, 40), (192, 128)] {
                for (before, len) in [(0, 7), (65, 1), (65, 3)] {
                    for soft_cap in [None, Some(5.0)] {
                        let case = plain(kv_type, before, len);
                        check(&rig, &Case { dim, v_dim, soft_cap, ..case.clone() });
                        check(&rig, &Case { dim, v_dim, runs: vec![(before, len), (3, 2)], ..case });
                    }
                }
            }
        }
    }
}

/// Values that are the beginnings of keys, of one head.
#[test]
fn latent_vectors_agree_with_the_reference() {
    for rig in rigs() {
        for kv_type in KvType::ALL.into_iter().filter(|kind| kind.bits().is_none()) {
            for (heads, dim, v_dim) in [(2, 24, 16), (16, 36, 24), (5, 96, 64), (20, 288, 256)] {
                for (before, len) in [(0, 7), (65, 1), (65, 3), (300, 17)] {
                    let case =
                        Case { heads, kv_heads: 1, dim, v_dim, latent: true, ..plain(kv_type, before, len) };
                    check(&rig, &case);
                    let runs = vec![(before, len), (3, 2), (64, 1)];
                    check(&rig, &Case { runs, window: Some(5), ..case });
                }
            }
        }
    }
}

#[test]
fn sequences_of_different_lengths_in_one_step_see_their_own_keys() {
    for rig in rigs() {
        for runs in [
            vec![(300, 1), (0, 17), (64, 1), (63, 2)],
            vec![(0, 65), (65, 1)],
            vec![(1, 1), (2, 1), (300, 1), (64, 1)],
            vec![(0, 1), (0, 1)],
            vec![(5, 3), (64, 64), (0, 2)],
        ] {
            for window in [None, Some(5), Some(64)] {
                for kv_type in KvType::ALL {
                    for soft_cap in [None, Some(5.0)] {
                        check(&rig, &Case { runs: runs.clone(), window, soft_cap, ..plain(kv_type, 0, 0) });
                    }
                }
            }
        }
    }
}

#[test]
fn distances_add_to_scores() {
    // Eighths: exact in every type of activations.
    let bias: fn(usize, i64) -> f32 = |head, away| (head as f32 - 1.5) * 0.25 + away as f32 * 0.375;
    for rig in rigs() {
        for (i, (before, len)) in
            [(0, 1), (0, 7), (65, 1), (300, 1), (64, 17), (300, 65)].into_iter().enumerate()
        {
            for window in [None, Some(5)] {
                let case = plain(KvType::ALL[i % 5], before, len);
                check(&rig, &Case { bias: Some(bias), window, ..case.clone() });
                let runs = vec![(before, len), (3, 2), (2, 1)];
                let sinks: Option<fn(usize) -> f32> = Some(|head| head as f32 - 1.5);
                check(&rig, &Case { bias: Some(bias), sinks, window, runs, ..case });
            }
        }
    }
}

#[test]
fn sinks_take_their_share_and_give_nothing() {
    for rig in rigs() {
        // About as large as scores, above all of them, and below.
        for sinks in [(|head| head as f32 - 1.5) as fn(usize) -> f32, |_| 30.0, |_| -100.0] {
            for (i, (before, len)) in
                [(0, 1), (0, 7), (65, 1), (300, 1), (64, 17), (300, 65)].into_iter().enumerate()
            {
                for window in [None, Some(5)] {
                    let case = plain(KvType::ALL[i % 5], before, len);
                    check(&rig, &Case { sinks: Some(sinks), window, ..case.clone() });
                    let runs = vec![(before, len), (3, 2), (2, 1)];
                    check(&rig, &Case { sinks: Some(sinks), window, runs, soft_cap: Some(5.0), ..case });
                }
            }
        }
    }
}

#[test]
fn soft_capped_scores_agree_with_the_reference() {
    for rig in rigs() {
        for before in BEFORE {
            for len in [1, 7, 65] {
                for (i, soft_cap) in [0.5, 5.0, 50.0].into_iter().enumerate() {
                    for window in [None, Some(5)] {
                        let case = plain(KvType::ALL[(i + len) % 5], before, len);
                        check(&rig, &Case { soft_cap: Some(soft_cap), window, ..case });
                    }
                }
            }
        }
        for dim in [8, 10, 64, 80, 128, 256] {
            for (heads, kv_heads) in [(2, 2), (8, 2), (8, 1)] {
                let plain = plain(KvType::BF16, 65, 3);
                let case = Case { heads, kv_heads, dim, v_dim: dim, soft_cap: Some(2.0), ..plain };
                check(&rig, &case);
            }
        }
    }
}
