//! The CPU promises bits: a row alone is the row among others, and for any number of threads, through the dispatch.

use std::collections::HashSet;
use std::sync::Arc;

use backstop::backend::batch::{Mask, RopeStep, Run};
use backstop::backend::kv::{HostKv, KvShape, KvType};
use backstop::backend::ops::{Backend, Ids};
use backstop::backend::{LayerState, LlmBackendDispatch, Op, Tensor};
use backstop::config::{Activation, Rope, RopeScaling};
use backstop::tensor::Weight;

use super::rig::{DTYPES, cpu, matrix, projection, values, weight, with};

const T: usize = 65;
const D: usize = 80;

/// What the rowwise ops work on.
struct Operands {
    a: Vec<f32>,
    b: Vec<f32>,
    norm: Weight,
    bias: Weight,
    weights: [Weight; 3],
}

/// Every rowwise op over rows `first..first + count`, their outputs one after the other, each `[count, …]`.
fn rowwise(on: &LlmBackendDispatch, of: &Operands, first: usize, count: usize) -> Vec<Vec<u32>> {
    let part =
        |values: &[f32]| Tensor::from_vec(&[count, D], values[first * D..(first + count) * D].to_vec());
    let (a, b) = (part(&of.a), part(&of.b));
    let each = Tensor::from_vec(&[count, 1], of.b[first..first + count].to_vec());
    let rope = Rope { theta: 10_000.0, dims: 24, scaling: RopeScaling::None };
    let frequencies = Arc::new(rope.frequencies(1));
    let run = Run { sequence: 0, row: 0, len: count, start: 100 + first };
    let step = RopeStep::new(&rope, vec![(run, frequencies)]).unwrap();
    let ids: Vec<u32> = (first..first + count).map(|row| (row * 7 % 33) as u32).collect();
    let [x, y, z] = &of.weights.each_ref().map(|weight| matrix(on, weight));
    let (norm, bias) = (&on.vector(&of.norm), &on.vector(&of.bias));
    let mut all = vec![
        Op::Embedding { table: x, tokens: Ids::Known(&ids), scale: 3.0 },
        Op::Linear { x: &a, projection: with(x, None) },
        Op::RmsNorm { x: &a, weight: norm, eps: 1e-5, offset: 1.0 },
        Op::LayerNorm { x: &a, weight: norm, bias: None, eps: 1e-5 },
        Op::Add { a: &a, b: &b },
        Op::Mul { a: &a, b: &b },
        Op::Scale { x: &a, by: 0.3 },
        Op::Mix { x: &a, by: &b, into: None, width: 10 },
        Op::Mix { x: &a, by: &each, into: Some(&b), width: D },
        Op::Cut { x: &a, deviations: 0.5 },
        Op::Join { a: &a, b: &b },
        Op::SoftCap { x: &a, cap: 2.0 },
        Op::Rope { x: &a, head_dim: 40, rope: &step },
        Op::AddRmsNorm { a: &a, b: &b, weight: norm, eps: 1e-5, offset: 0.0 },
        Op::Qkv { x: &a, projections: [with(x, Some(bias)), with(y, None), with(z, None)] },
    ];
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu2] {
        all.push(Op::Activate { x: &a, activation });
        all.push(Op::GateUp { x: &a, gate: with(y, Some(bias)), up: with(z, None), activation });
    }
    all.iter().flat_map(|op| on.run(op).unwrap()).map(|output| bits(&output)).collect()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    match tensor {
        Tensor::Host(host) => host.data().iter().map(|x| x.to_bits()).collect(),
        other => panic!("the CPU gave {other:?}"),
    }
}

#[test]
fn a_row_alone_has_the_bits_it_has_among_others() {
    let (one, four) = (cpu(1), cpu(4));
    for dtype in DTYPES {
        let operands = Operands {
            a: values(1, T * D, 1.0),
            b: values(2, T * D, 1.0),
            norm: weight(dtype, &[D], &values(3, D, 1.0)),
            bias: weight(dtype, &[33], &values(4, 33, 1.0)),
            weights: [5, 6, 7].map(|seed| projection(dtype, seed, 33, D)),
        };
        let whole = rowwise(&four, &operands, 0, T);
        assert_eq!(rowwise(&one, &operands, 0, T), whole, "one thread and four, weights {dtype}");
        for (first, count) in [(0, 1), (1, 1), (T - 1, 1), (3, 7), (17, 17), (0, 64)] {
            let alone = rowwise(&four, &operands, first, count);
            assert_eq!(alone.len(), whole.len());
            for (i, (alone, whole)) in alone.iter().zip(&whole).enumerate() {
                let width = whole.len() / T;
                let same = *alone == whole[first * width..(first + count) * width];
                assert!(same, "output {i} of rows {first}..{}, weights {dtype}", first + count);
            }
        }
    }
}

/// Attention of `rows` of a sequence of `total` tokens, in one step with `others`.
fn attended(
    on: &LlmBackendDispatch,
    q: &[f32],
    kv: &[(&HostKv, usize, usize)],
    window: Option<usize>,
) -> Vec<u32> {
    let (mut rows, mut runs, mut layers) = (Vec::new(), Vec::new(), Vec::new());
    for (sequence, &(kv, start, len)) in kv.iter().enumerate() {
        runs.push(Run { sequence, row: rows.len() / 64, len, start });
        rows.extend_from_slice(&q[start * 64..(start + len) * 64]);
        let mut kv = kv.clone();
        kv.truncate(start + len);
        layers.push(LayerState::Host(kv));
    }
    let mask = Mask::causal(&runs, window).unwrap();
    let q = Tensor::from_vec(&[rows.len() / 64, 64], rows);
    let kv: Vec<&LayerState> = layers.iter().collect();
    bits(
        &on.run1(&Op::Attention {
            q: &q,
            kv: &kv,
            mask: &mask,
            scale: 0.25,
            soft_cap: None,
            sinks: None,
            bias: None,
        })
        .unwrap(),
    )
}

#[test]
fn attention_has_the_same_bits_in_chunks_alone_and_among_others() {
    let (one, four) = (cpu(1), cpu(4));
    let total = 300;
    let q = values(1, total * 64, 1.4); // [T, 4 * 16]
    for kind in KvType::ALL {
        let filled = |seed, tokens: usize| {
            let mut kv = HostKv::new(KvShape::new(2, 16, kind));
            kv.write(0, &values(seed, tokens * 32, 1.0), &values(seed + 1, tokens * 32, 1.0)).unwrap();
            kv
        };
        let (kv, other) = (filled(2, total), filled(4, 200));
        for window in [None, Some(5), Some(64)] {
            let whole = attended(&four, &q, &[(&kv, 0, total)], window);
            assert_eq!(attended(&one, &q, &[(&kv, 0, total)], window), whole, "threads, {kind}, {window:?}");
            for (start, len) in [(0, 1), (63, 1), (64, 1), (299, 1), (7, 3), (60, 70), (0, 64)] {
                let same = |got: &[u32], what: &str| {
                    let want = &whole[start * 64..(start + len) * 64];
                    assert!(
                        got == want,
                        "{what}: tokens {start}..{}, {kind}, window {window:?}",
                        start + len
                    );
                };
                same(&attended(&four, &q, &[(&kv, start, len)], window), "a chunk");
                let among =
                    attended(&four, &q, &[(&other, 199, 1), (&kv, start, len), (&other, 3, 17)], window);
                same(&among[64..(1 + len) * 64], "among others");
            }
        }
    }
}

/// A cache's type is what is read: each gives bits of its own.
#[test]
fn the_type_of_a_cache_shows_in_the_bits() {
    let on = cpu(1);
    let q = values(1, 64, 1.4);
    let of = |kind| {
        let mut kv = HostKv::new(KvShape::new(2, 16, kind));
        kv.write(0, &values(2, 32, 1.0), &values(3, 32, 1.0)).unwrap();
        attended(&on, &q, &[(&kv, 0, 1)], None)
    };
    let all: HashSet<_> = KvType::ALL.into_iter().map(of).collect();
    assert_eq!(all.len(), KvType::ALL.len());
}
