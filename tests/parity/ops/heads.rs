//! Products of heads with matrices of their own, and rows times numbers of their own.

use backstop::backend::Op;
use backstop::backend::cpu::kernels::reference_ops;
use backstop::backend::ops::Backend;
use backstop::tensor::DType;

use super::experts::Experts;
use super::quantized::{formats, matrix as blocks};
use super::rig::{Element, ROWS, Rig, rigs};

/// Each head of `t` rows times its matrix, with `more` elements beside each.
fn check(rig: &Rig, of: &Experts, t: usize, more: usize, size: f32, what: &str) {
    let [heads, n, k] = of.stack.shape();
    let (x, rest) = (rig.values(t as u64, t * heads * k, size), rig.values(5, t * heads * more, 1.0));
    let zeros = vec![0.0; k];
    let mut expected = Vec::with_capacity(t * heads * (n + more));
    for (at, x) in x.chunks(k).enumerate() {
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        expected.extend(of.product(at % heads, &x, [&zeros, &zeros], None));
        let beside = rest[at * more..].iter().take(more);
        expected.extend(beside.map(|&x| Element { value: f64::from(x), rounded: 0.0, summed: 0.0 }));
    }
    let x = rig.tensor(&[t, heads * k], &x);
    let beside = (more > 0).then(|| rig.tensor(&[t, heads * more], &rest));
    let weight = rig.dispatch.stack(&of.stack);
    let op = Op::HeadLinear { x: &x, weight: &weight, beside: beside.as_ref() };
    rig.check(&op, what, &expected);
}

#[test]
fn dense_heads_agree_with_the_reference() {
    for rig in rigs() {
        for (dtype, shape) in [
            (DType::F32, [1, 33, 17]),
            (DType::BF16, [4, 64, 48]),
            (DType::F16, [20, 31, 65]),
            (DType::F32, [3, 1, 1]),
        ] {
            let of = Experts::dense(dtype, 3, shape);
            for t in ROWS {
                for more in [0, 8] {
                    check(&rig, &of, t, more, 1.0, &format!("{shape:?} and {more}, T {t}, {dtype}"));
                }
            }
        }
    }
}

#[test]
fn heads_in_blocks_agree_with_the_values_that_they_decode_to() {
    for rig in rigs() {
        for (i, format) in formats().into_iter().enumerate() {
            let k = if format.group() == 96 { 288 } else { 256 };
            if format.on_mlx(k).is_none() && !rig.is_cpu() {
                continue;
            }
            // One tensor of all, or one for each.
            let (heads, n) = (3, 24);
            let whole = blocks(format, 9, heads * n, k);
            let each = (0..heads).map(|head| match i % 2 {
                0 => whole.rows("head", head * n..(head + 1) * n),
                _ => blocks(format, 50 * head as u64, n, k),
            });
            let of = Experts::quantized(&rig, each.collect());
            for t in [1, 5, 40] {
                check(&rig, &of, t, 7 * (t % 2), 0.03, &format!("T {t}, {format}"));
            }
        }
    }
}

#[test]
fn rows_are_scaled_each_by_its_own() {
    for rig in rigs() {
        for (t, width) in [(1, 64), (3, 33), (65, 96)] {
            let x = rig.values(1, t * width, 2.0);
            let by: Vec<f32> = (0..t).map(|row| 1.0 + row as f32 * 0.37).collect();
            let scaled = x.iter().enumerate().map(|(i, &x)| f64::from(x) * f64::from(by[i / width]));
            let expected: Vec<Element> = scaled.map(Element::rounded).collect();
            let x = rig.tensor(&[t, width], &x);
            rig.check(&Op::ScaleRows { x: &x, by: &by }, &format!("T {t}, D {width}"), &expected);
        }
    }
}

#[test]
fn stretches_are_mixed_by_numbers_of_their_row() {
    for rig in rigs() {
        for (t, width, stretches, results) in
            [(1, 64, 4, 4), (3, 33, 1, 5), (65, 96, 4, 1), (7, 1, 3, 2), (2, 2048, 4, 4)]
        {
            let x = rig.values(1, t * stretches * width, 2.0);
            let by = rig.values(2, t * results * stretches, 1.0);
            let into = rig.values(3, t * results * width, 2.0);
            let on = [
                rig.tensor(&[t, stretches * width], &x),
                rig.tensor(&[t, results * stretches], &by),
                rig.tensor(&[t, results * width], &into),
            ];
            for into in [None, Some(&into)] {
                let of_row = |row: usize| {
                    let into = into.map(|into| &into[row * results * width..][..results * width]);
                    let x = &x[row * stretches * width..][..stretches * width];
                    reference_ops::mix(
                        x,
                        &by[row * results * stretches..][..results * stretches],
                        into,
                        width,
                    )
                };
                let expected = (0..t).flat_map(of_row);
                let expected: Vec<Element> =
                    expected.map(|(value, summed)| Element { value, rounded: value.abs(), summed }).collect();
                let op = Op::Mix { x: &on[0], by: &on[1], into: into.map(|_| &on[2]), width };
                rig.check(&op, &format!("T {t}, {stretches} of {width} to {results}"), &expected);
            }
        }
    }
}

#[test]
fn mixes_that_do_not_fit_are_refused() {
    for rig in rigs() {
        let tensor = |rows: usize, width: usize| rig.tensor(&[rows, width], &vec![1.0; rows * width]);
        let (x, by, into) = (tensor(2, 12), tensor(2, 6), tensor(2, 8));
        let (few, odd) = (tensor(1, 6), tensor(2, 4));
        let mix = |by, into, width| Op::Mix { x: &x, by, into, width };
        for (op, text) in [
            (mix(&by, None, 5), "mix: x is [2, 12], expected rows of stretches of 5"),
            (mix(&by, None, 0), "mix: x is [2, 12], expected rows of stretches of 0"),
            (mix(&few, None, 4), "mix: by is [1, 6], expected 2 rows of 3 for each result"),
            (mix(&odd, None, 4), "mix: by is [2, 4], expected 2 rows of 3 for each result"),
            (mix(&by, Some(&odd), 4), "mix: into is [2, 4], expected [2, 8]"),
        ] {
            assert_eq!(rig.dispatch.run(&op).unwrap_err().to_string(), text, "on {}", rig.name);
        }
        assert_eq!(rig.run1(&mix(&by, Some(&into), 4)).shape(), [2, 8], "on {}", rig.name);
    }
}

#[test]
fn heads_and_factors_that_do_not_fit_are_refused() {
    for rig in rigs() {
        let x = rig.tensor(&[2, 12], &[1.0; 24]);
        let weight = rig.dispatch.stack(&Experts::dense(DType::F32, 1, [3, 5, 4]).stack);
        let wrong = rig.dispatch.stack(&Experts::dense(DType::F32, 1, [3, 5, 3]).stack);
        let [odd, few] = [rig.tensor(&[2, 4], &[1.0; 8]), rig.tensor(&[1, 3], &[1.0; 3])];
        let heads = |weight, beside| Op::HeadLinear { x: &x, weight, beside };
        for (op, text) in [
            (
                heads(&wrong, None),
                "head_linear: weights are [3, 5, 3], expected heads that make up the last dim of [2, 12]",
            ),
            (
                heads(&weight, Some(&odd)),
                "head_linear: [2, 4] stand beside heads, expected 2 rows of 3 equal parts",
            ),
            (
                heads(&weight, Some(&few)),
                "head_linear: [1, 3] stand beside heads, expected 2 rows of 3 equal parts",
            ),
            (
                Op::ScaleRows { x: &x, by: &[1.0] },
                "scale_rows: x is [2, 12] and there are 1 factors, expected [T, D] and T",
            ),
        ] {
            assert_eq!(rig.dispatch.run(&op).unwrap_err().to_string(), text, "on {}", rig.name);
        }
        // No rows at all.
        let none = rig.tensor(&[0, 12], &[]);
        let op = Op::HeadLinear { x: &none, weight: &weight, beside: None };
        assert_eq!(rig.run1(&op).shape(), [0, 15], "on {}", rig.name);
    }
}
