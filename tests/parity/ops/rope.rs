//! The rotary embedding: at any position, partial, scaled, for one run and for several.

use std::sync::Arc;

use backstop::backend::Op;
use backstop::backend::batch::{RopeStep, Run};
use backstop::backend::ops::Backend;
use backstop::backend::rope::Frequencies;
use backstop::config::{Rope, RopeScaling};

use super::rig::{Element, ROWS, Rig, rigs};

/// Each run's rows, rotated by `position · inv_freq`, the angle being an `f32` product as the crate documents.
fn reference(
    rig: &Rig,
    x: &[f32],
    heads: usize,
    dim: usize,
    runs: &[(Run, Arc<Frequencies>)],
) -> Vec<Element> {
    let mut out = Vec::with_capacity(x.len());
    for (run, frequencies) in runs {
        let half = frequencies.inv_freq.len();
        for (row, position) in run.rows().zip(run.start..) {
            for head in x[row * heads * dim..][..heads * dim].chunks_exact(dim) {
                let mut rotated: Vec<Element> = head.iter().map(|&x| Element::exact(x)).collect();
                for (i, &frequency) in frequencies.inv_freq.iter().enumerate() {
                    let angle = f64::from(position as f32 * frequency);
                    let factor = f64::from(frequencies.attention_factor);
                    let (cos, sin) = (angle.cos() * factor, angle.sin() * factor);
                    let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
                    let rounded = (a.abs() + b.abs()) * factor;
                    // MLX computes the angle itself, from a period: an error relative to the angle. The CPU is given
                    // the cosines.
                    let summed = if rig.is_cpu() { rounded } else { rounded * (1.0 + angle) };
                    rotated[i] = Element { value: a * cos - b * sin, rounded, summed };
                    rotated[i + half] = Element { value: b * cos + a * sin, rounded, summed };
                }
                out.append(&mut rotated);
            }
        }
    }
    out
}

impl Element {
    /// A value that is copied.
    fn exact(x: f32) -> Self {
        Self { value: x.into(), rounded: 0.0, summed: 0.0 }
    }
}

fn check(rig: &Rig, rope: &Rope, [heads, dim]: [usize; 2], runs: &[(usize, usize)], what: &str) {
    let frequencies = Arc::new(rope.frequencies(1));
    let mut row = 0;
    let runs: Vec<(Run, Arc<Frequencies>)> = runs
        .iter()
        .enumerate()
        .map(|(sequence, &(start, len))| {
            row += len;
            (Run { sequence, row: row - len, len, start }, Arc::clone(&frequencies))
        })
        .collect();
    let x = rig.values(1, row * heads * dim, 1.0);
    let expected = reference(rig, &x, heads, dim, &runs);
    let places: Vec<_> = runs.iter().map(|(run, _)| (run.start, run.len)).collect();
    let step = RopeStep::new(rope, runs).unwrap();
    let x = rig.tensor(&[row, heads * dim], &x);
    let op = Op::Rope { x: &x, head_dim: dim, rope: &step };
    let what = format!("{what}, {heads} heads of {dim}, {} rotated, (start, len) {places:?}", rope.dims);
    rig.check(&op, &what, &expected);
}

fn plain(dims: usize) -> Rope {
    Rope { theta: 10_000.0, dims, scaling: RopeScaling::None }
}

#[test]
fn rope_agrees_with_the_reference_at_every_size_and_position() {
    for rig in rigs() {
        for t in ROWS {
            for dim in [8, 10, 64, 80, 128, 256] {
                for start in [0, 1, 63, 300, 4000] {
                    check(&rig, &plain(dim), [2, dim], &[(start, t)], "plain");
                }
            }
        }
        for heads in [1, 3, 8, 32] {
            check(&rig, &plain(64), [heads, 64], &[(5, 7)], "plain");
        }
    }
}

#[test]
fn partial_rope_leaves_the_rest_as_it_is() {
    for rig in rigs() {
        for (dim, dims) in [(8, 2), (8, 4), (80, 32), (128, 64), (64, 16), (10, 6), (256, 254)] {
            for runs in [&[(0, 3)][..], &[(77, 1)], &[(9, 65)], &[(0, 2), (40, 1), (7, 3)]] {
                check(&rig, &plain(dims), [2, dim], runs, "partial");
            }
        }
    }
}

#[test]
fn runs_at_different_positions_are_rotated_each_by_its_own() {
    for rig in rigs() {
        for dim in [8, 10, 64, 80, 128, 256] {
            check(&rig, &plain(dim), [3, dim], &[(300, 1), (0, 17), (64, 1), (63, 2), (5, 7)], "plain");
        }
    }
}

#[test]
fn frequencies_and_factors_of_scaled_ropes_are_used() {
    for rig in rigs() {
        let longrope = |attention_factor| RopeScaling::LongRope {
            short_factor: (0..32).map(|i| 1.0 + i as f32 / 8.0).collect(),
            long_factor: vec![4.0; 32],
            original: 4096,
            attention_factor,
        };
        for (scaling, what) in [
            (RopeScaling::Linear { factor: 4.0 }, "linear"),
            (longrope(1.0), "longrope"),
            (longrope(1.19), "longrope with a factor"),
        ] {
            let rope = Rope { theta: 500_000.0, dims: 64, scaling };
            for runs in [&[(0, 7)][..], &[(300, 1)], &[(300, 1), (0, 3)]] {
                check(&rig, &rope, [4, 64], runs, what);
                check(&rig, &rope, [4, 80], runs, what);
            }
        }
    }
}

/// A table of no rotated elements leaves heads as they are.
#[test]
fn nothing_rotated_is_a_copy() {
    for rig in rigs() {
        check(&rig, &plain(0), [2, 8], &[(3, 5)], "none");
        check(&rig, &plain(0), [2, 8], &[(3, 5), (0, 1)], "none");
    }
}

/// What the rotary embedding leaves laid out by heads is rows to every other op, and heads of another size too.
#[test]
fn rotated_heads_are_rows_to_what_follows() {
    for rig in rigs() {
        let (rows, width) = (5, 128);
        let values = rig.values(2, rows * width, 1.0);
        let x = rig.tensor(&[rows, width], &values);
        let run = Run { sequence: 0, row: 0, len: rows, start: 9 };
        let step = |dims| {
            let rope = plain(dims);
            let frequencies = Arc::new(rope.frequencies(1));
            RopeStep::new(&rope, vec![(run.clone(), frequencies)]).unwrap()
        };
        let (first, second) = (step(64), step(16));
        let rotated = rig.dispatch.run1(&Op::Rope { x: &x, head_dim: 64, rope: &first }).unwrap();
        let plainly = rig.dispatch.to_host(&rotated).unwrap();
        let uploaded = rig.tensor(&[rows, width], plainly.data());
        for op in [
            |x| Op::TakeRows { x, rows: &[4, 1] },
            |x| Op::Add { a: x, b: x },
            |x| Op::Activate { x, activation: backstop::config::Activation::Silu },
        ] {
            let (got, want) = (rig.run1(&op(&rotated)), rig.run1(&op(&uploaded)));
            assert_eq!(got.data(), want.data(), "{} on {}", op(&rotated).kind(), rig.name);
        }
        let again = |x| rig.run1(&Op::Rope { x, head_dim: 16, rope: &second });
        assert_eq!(again(&rotated).data(), again(&uploaded).data(), "rope on {}", rig.name);
    }
}
