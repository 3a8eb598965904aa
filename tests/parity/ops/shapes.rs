//! Shapes that do not fit are refused in the same words on every backend; no rows at all are a result of no rows.

use std::sync::Arc;

use backstop::Error;
use backstop::backend::batch::{Mask, RopeStep, Run};
use backstop::backend::kv::{KvShape, KvType};
use backstop::backend::ops::{Backend, Ids};
use backstop::backend::{LayerState, Op};
use backstop::config::{Activation, Rope, RopeScaling};
use backstop::tensor::{DType, Weight};

use super::rig::{Rig, rigs, weight, with};

fn ones(shape: &[usize]) -> Weight {
    weight(DType::F32, shape, &vec![1.0; shape.iter().product()])
}

fn rope(dims: usize, runs: &[Run]) -> RopeStep {
    let rope = Rope { theta: 10_000.0, dims, scaling: RopeScaling::None };
    let frequencies = Arc::new(rope.frequencies(1));
    RopeStep::new(&rope, runs.iter().map(|run| (run.clone(), Arc::clone(&frequencies))).collect()).unwrap()
}

fn run(row: usize, len: usize, start: usize) -> Run {
    Run { sequence: 0, row, len, start }
}

#[track_caller]
fn refuses(rig: &Rig, op: &Op<'_>, text: &str) {
    let error = rig.dispatch.run(op).expect_err(text);
    assert!(matches!(error, Error::Shape { .. }), "on {}: {error:?}", rig.name);
    assert_eq!(error.to_string(), text, "on {}", rig.name);
}

#[test]
fn plain_ops_refuse_shapes_that_do_not_fit() {
    for rig in rigs() {
        let x = rig.tensor(&[7, 128], &[1.0; 7 * 128]);
        let y = rig.tensor(&[7, 64], &[1.0; 7 * 64]);
        let flat = rig.tensor(&[8], &[1.0; 8]);
        let [w64, w0, bias] = [96, 0, 5].map(|len| rig.vector(&ones(&[len])));
        let stretches = rig.vector(&ones(&[3, 40]));
        let [square, flat_matrix, wide] =
            [&[4, 64][..], &[5], &[4, 128]].map(|shape| rig.matrix(&ones(shape)));
        let known = Ids::Known(&[0, 4]);
        let norm = |x, weight| Op::RmsNorm { x, weight, eps: 1e-5, offset: 0.0 };
        let linear = |x, weight, bias| Op::Linear { x, projection: with(weight, bias) };
        for (op, text) in [
            (
                Op::Embedding { table: &square, tokens: known, scale: 1.0 },
                "embedding: token id 4, expected one below the table's 4 rows",
            ),
            (
                Op::Embedding { table: &flat_matrix, tokens: known, scale: 1.0 },
                "embedding: table has shape [5], expected [V, D]",
            ),
            (
                norm(&x, &w64),
                "rms_norm: weight has 96 elements, expected 128 (last dim of x [7, 128]) or a part of it",
            ),
            (
                norm(&x, &w0),
                "rms_norm: weight has 0 elements, expected 128 (last dim of x [7, 128]) or a part of it",
            ),
            (norm(&flat, &w64), "rms_norm: x is [8], expected [T, D]"),
            (
                norm(&x, &stretches),
                "rms_norm: weight is [3, 40], expected heads that make up the last dim of x [7, 128], and no bias",
            ),
            (
                Op::LayerNorm { x: &y, weight: &w64, bias: None, eps: 1e-5 },
                "layer_norm: weight has 96 elements, expected 64 (last dim of x [7, 64]) or a part of it",
            ),
            (
                Op::LayerNorm {
                    x: &rig.tensor(&[1, 96], &[1.0; 96]),
                    weight: &w64,
                    bias: Some(&bias),
                    eps: 1e-5,
                },
                "layer_norm: bias is [5] and weight [96], expected equal shapes",
            ),
            (
                linear(&x, &square, None),
                "linear: weight is [4, 64], expected [N, 128] (last dim of x [7, 128])",
            ),
            (linear(&x, &wide, Some(&bias)), "linear: bias is [5], expected [4]"),
            (linear(&x, &flat_matrix, None), "linear: weight is [5], expected [N, K]"),
            (linear(&flat, &square, None), "linear: x is [8], expected [T, D]"),
            (Op::Add { a: &x, b: &y }, "add: a is [7, 128] and b [7, 64], expected equal shapes"),
            (Op::Mul { a: &y, b: &x }, "mul: a is [7, 64] and b [7, 128], expected equal shapes"),
            (Op::Join { a: &x, b: &flat }, "join: x is [8], expected [T, D]"),
            (Op::SoftCap { x: &x, cap: 0.0 }, "soft_cap: cap is 0, expected above 0"),
            (Op::SoftCap { x: &x, cap: f32::NAN }, "soft_cap: cap is NaN, expected above 0"),
            (Op::SoftCap { x: &x, cap: f32::INFINITY }, "soft_cap: cap is inf, expected above 0"),
            (Op::TakeRows { x: &x, rows: &[0, 7] }, "take_rows: row 7, expected one below 7"),
            (Op::TakeRows { x: &flat, rows: &[0] }, "take_rows: x is [8], expected [T, D]"),
        ] {
            refuses(&rig, &op, text);
        }
    }
}

#[test]
fn fused_ops_refuse_shapes_that_do_not_fit() {
    for rig in rigs() {
        let x = rig.tensor(&[7, 128], &[1.0; 7 * 128]);
        let y = rig.tensor(&[7, 64], &[1.0; 7 * 64]);
        let [wide, wider, narrow] = [[4, 128], [5, 128], [4, 64]].map(|shape| rig.matrix(&ones(&shape)));
        let norm = rig.vector(&ones(&[128]));
        let gate_up = |gate, up| Op::GateUp {
            x: &x,
            gate: with(gate, None),
            up: with(up, None),
            activation: Activation::Silu,
        };
        let sum = |a, b, weight| Op::AddRmsNorm { a, b, weight, eps: 1e-5, offset: 0.0 };
        let text = "weight is [4, 64], expected [N, 128] (last dim of x [7, 128])";
        refuses(&rig, &gate_up(&narrow, &wide), &format!("gate_up: {text}"));
        refuses(&rig, &gate_up(&wide, &narrow), &format!("gate_up: {text}"));
        let uneven = "gate_up: gate is [4, 128] and up [5, 128], expected equal shapes";
        refuses(&rig, &gate_up(&wide, &wider), uneven);
        for third in 0..3 {
            let mut projections = [with(&wide, None); 3];
            projections[third] = with(&narrow, None);
            refuses(&rig, &Op::Qkv { x: &x, projections }, &format!("qkv: {text}"));
        }
        let uneven = "add_rms_norm: a is [7, 128] and b [7, 64], expected equal shapes";
        refuses(&rig, &sum(&x, &y, &norm), uneven);
        let uneven =
            "add_rms_norm: weight has 128 elements, expected 64 (last dim of x [7, 64]) or a part of it";
        refuses(&rig, &sum(&y, &y, &norm), uneven);
    }
}

#[test]
fn rope_refuses_shapes_that_do_not_fit() {
    for rig in rigs() {
        let x = rig.tensor(&[7, 128], &[1.0; 7 * 128]);
        let (step, short) = (rope(16, &[run(0, 7, 0)]), rope(16, &[run(0, 6, 0)]));
        let op = |head_dim, rope| Op::Rope { x: &x, head_dim, rope };
        for (op, text) in [
            (
                op(48, &step),
                "rope: x is [7, 128] with heads of 48 and 16 rotated, expected whole heads and an even part of one",
            ),
            (
                op(8, &step),
                "rope: x is [7, 128] with heads of 8 and 16 rotated, expected whole heads and an even part of one",
            ),
            (
                op(0, &step),
                "rope: x is [7, 128] with heads of 0 and 16 rotated, expected whole heads and an even part of one",
            ),
            (op(32, &short), "rope: tables have 48 and 48 elements, expected 7 rows of 8"),
        ] {
            refuses(&rig, &op, text);
        }
    }
}

#[test]
fn attention_refuses_what_does_not_fit() {
    for rig in rigs() {
        let shape = KvShape::new(2, 8, KvType::F32);
        let cache = |shape: KvShape, tokens: usize| {
            let rows = vec![0.5; tokens * shape.widths()[0]];
            rig.cache(shape, &rows, &rows)
        };
        let (three, five) = (cache(shape, 3), cache(shape, 5));
        let other = cache(KvShape::new(1, 8, KvType::F32), 5);
        let q = rig.tensor(&[3, 32], &[1.0; 96]);
        let odd = rig.tensor(&[3, 24], &[1.0; 72]);
        let one = Mask::causal(&[run(0, 3, 0)], None).unwrap();
        let two = Mask::causal(&[run(0, 1, 2), run(1, 2, 3)], None).unwrap();
        let swapped = Mask::causal(&[run(1, 2, 1), run(0, 1, 4)], None).unwrap();
        let mut beyond = Mask::causal(&[run(0, 3, 0)], None).unwrap();
        beyond.visible[1] = 0..4;
        let mut blind = Mask::causal(&[run(0, 3, 0)], None).unwrap();
        blind.visible[2] = 2..2;
        let longer = Mask::causal(&[run(0, 4, 0)], None).unwrap();
        let wide = "expected a multiple of 2 key/value heads of 8";
        let both = format!("caches of {shape:?} and {:?}, expected one shape", other.shape());
        let table: [(_, &[&LayerState], _, String); 9] = [
            (&odd, &[&three], &one, format!("q is [3, 24], {wide}")),
            (&q, &[&three], &longer, "the mask has 4 rows, q 3".into()),
            (&q, &[&three, &five], &one, "2 caches for 1 runs".into()),
            (&q, &[&three], &two, "1 caches for 2 runs".into()),
            (&q, &[&five], &one, "the cache of sequence 0 holds 5 tokens, expected 3".into()),
            (&q, &[&three, &five], &swapped, "a run starts at row 1, expected 0".into()),
            (&q, &[&three], &beyond, "a row sees keys 0..4, expected some of 3".into()),
            (&q, &[&three], &blind, "a row sees keys 2..2, expected some of 3".into()),
            (&q, &[&three, &other], &two, both),
        ];
        for (q, kv, mask, text) in table {
            let op = Op::Attention { q, kv, mask, scale: 1.0, soft_cap: None, sinks: None, bias: None };
            refuses(&rig, &op, &format!("attention: {text}"));
        }
    }
}

/// A step without a row computes nothing, on both backends, rather than fail on one of them.
#[test]
fn no_rows_are_a_result_of_no_rows() {
    for rig in rigs() {
        let x = rig.tensor(&[0, 64], &[]);
        let some = rig.tensor(&[3, 64], &[1.0; 192]);
        let [w, table] = [[33, 64], [5, 64]].map(|shape| rig.matrix(&ones(&shape)));
        let [norm, bias] = [64, 33].map(|len| rig.vector(&ones(&[len])));
        let none = Ids::Known(&[]);
        let step = rope(16, &[run(0, 0, 5)]);
        let (no_mask, empty_run) =
            (Mask::causal(&[], None).unwrap(), Mask::causal(&[run(0, 0, 3)], None).unwrap());
        let shape = KvShape::new(2, 16, KvType::F32);
        let cache = rig.cache(shape, &[0.5; 96], &[0.5; 96]);
        let kv = [&cache];
        let attention = |kv, mask, soft_cap| Op::Attention {
            q: &x,
            kv,
            mask,
            scale: 1.0,
            soft_cap,
            sinks: None,
            bias: None,
        };
        for op in [
            Op::Embedding { table: &table, tokens: none, scale: 2.0 },
            Op::Linear { x: &x, projection: with(&w, None) },
            Op::Linear { x: &x, projection: with(&w, Some(&bias)) },
            Op::RmsNorm { x: &x, weight: &norm, eps: 1e-5, offset: 0.0 },
            Op::LayerNorm { x: &x, weight: &norm, bias: None, eps: 1e-5 },
            Op::Activate { x: &x, activation: Activation::Silu },
            Op::Activate { x: &x, activation: Activation::Gelu },
            Op::Activate { x: &x, activation: Activation::GeluTanh },
            Op::Activate { x: &x, activation: Activation::Relu2 },
            Op::Add { a: &x, b: &x },
            Op::Mul { a: &x, b: &x },
            Op::Scale { x: &x, by: 2.0 },
            Op::Mix { x: &x, by: &x, into: None, width: 64 },
            Op::Cut { x: &x, deviations: 1.0 },
            Op::Join { a: &x, b: &x },
            Op::SoftCap { x: &x, cap: 2.0 },
            Op::Rope { x: &x, head_dim: 32, rope: &step },
            Op::TakeRows { x: &x, rows: &[] },
            Op::TakeRows { x: &some, rows: &[] },
            Op::GateUp { x: &x, gate: with(&w, None), up: with(&w, None), activation: Activation::Silu },
            Op::AddRmsNorm { a: &x, b: &x, weight: &norm, eps: 1e-5, offset: 0.0 },
            Op::Qkv { x: &x, projections: [with(&w, None); 3] },
            attention(&[], &no_mask, None),
            attention(&kv, &empty_run, None),
            attention(&kv, &empty_run, Some(5.0)),
        ] {
            for output in rig.run(&op) {
                assert_eq!((output.shape()[0], output.data().len()), (0, 0), "{} on {}", op.kind(), rig.name);
            }
        }
    }
}

#[test]
fn rows_of_no_width_stay_rows_of_no_width() {
    for rig in rigs() {
        let x = rig.tensor(&[3, 0], &[]);
        let (table, known) = (rig.matrix(&ones(&[5, 0])), Ids::Known(&[0, 4, 4]));
        for op in [
            Op::Embedding { table: &table, tokens: known, scale: 2.0 },
            Op::Activate { x: &x, activation: Activation::Silu },
            Op::Activate { x: &x, activation: Activation::Gelu },
            Op::Activate { x: &x, activation: Activation::GeluTanh },
            Op::Activate { x: &x, activation: Activation::Relu2 },
            Op::Add { a: &x, b: &x },
            Op::Mul { a: &x, b: &x },
            Op::Scale { x: &x, by: 2.0 },
            Op::Cut { x: &x, deviations: 1.0 },
            Op::Join { a: &x, b: &x },
            Op::SoftCap { x: &x, cap: 2.0 },
            Op::TakeRows { x: &x, rows: &[2, 0, 0] },
        ] {
            for output in rig.run(&op) {
                assert_eq!(
                    (output.shape(), output.data().len()),
                    (&[3, 0][..], 0),
                    "{} on {}",
                    op.kind(),
                    rig.name
                );
            }
        }
    }
}
