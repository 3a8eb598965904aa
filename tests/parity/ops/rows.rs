//! Rows by index: embeddings, and the rows whose logits are wanted.

use backstop::backend::batch::Batch;
use backstop::backend::ops::{Backend, Ids};
use backstop::backend::{LlmBackendDispatch, Op, Tensor};

use super::linear;
use super::rig::{DTYPES, Element, ROWS, projection, rigs, round, values, weight, with};

#[test]
fn embedding_agrees_with_the_reference() {
    for rig in rigs() {
        for dtype in DTYPES {
            for (vocab, width) in [(1, 1), (5, 2), (33, 31), (64, 64), (65, 65), (300, 2048)] {
                for (i, t) in ROWS.into_iter().enumerate() {
                    let table = weight(dtype, &[vocab, width], &values(1, vocab * width, 1.0));
                    let ids: Vec<u32> = (0..t).map(|i| ((i * 37 + vocab - 1) % vocab) as u32).collect();
                    let scale = if i % 2 == 0 { 1.0 } else { (width as f32).sqrt() };
                    let values = table.to_f32();
                    let expected: Vec<Element> = ids
                        .iter()
                        .flat_map(|&id| &values[id as usize * width..][..width])
                        .map(|&x| Element::rounded(f64::from(x) * f64::from(scale)))
                        .collect();
                    let table = rig.matrix(&table);
                    let op = Op::Embedding { table: &table, tokens: Ids::Known(&ids), scale };
                    rig.check(&op, &format!("V {vocab}, table {dtype}, scale {scale}"), &expected);
                }
            }
        }
    }
}

/// The greedy choice of one step, still lazy, is the next one's input; a backend that is not lazy has none.
#[test]
fn pending_tokens_are_those_of_the_largest_logits() {
    for rig in rigs() {
        let logits = rig
            .tensor(&[3, 5], &[0.0, 1.0, 0.5, 1.0, -1.0, 9.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.25]);
        let Some(ids) = rig.dispatch.greedy_tokens(&logits) else {
            assert!(rig.is_cpu());
            continue;
        };
        assert_eq!(rig.dispatch.ids(&ids).unwrap(), [1, 0, 4], "on {}", rig.name);
        let table = rig.matrix(&weight(rig.dtype, &[5, 3], &values(2, 15, 1.0)));
        let pending = rig.run1(&Op::Embedding { table: &table, tokens: Ids::Pending(&ids), scale: 1.0 });
        let known = rig.run1(&Op::Embedding { table: &table, tokens: Ids::Known(&[1, 0, 4]), scale: 1.0 });
        assert_eq!(pending.data(), known.data(), "on {}", rig.name);
    }
}

#[test]
fn rows_are_taken_as_they_are() {
    for rig in rigs() {
        for t in ROWS {
            let x = rig.values(3, t * 33, 1.0);
            let tensor = rig.tensor(&[t, 33], &x);
            let all: Vec<usize> = (0..t).collect();
            for rows in [&all[..], &[t - 1], &[0, t / 2], &[t - 1, 0, 0]] {
                let got = rig.run1(&Op::TakeRows { x: &tensor, rows });
                let want: Vec<f32> = rows.iter().flat_map(|&row| &x[row * 33..][..33]).copied().collect();
                assert_eq!(got.data(), want, "T {t}, rows {rows:?} on {}", rig.name);
            }
        }
    }
}

/// Logits of the last and of all positions: the same head over the rows that a batch asks for, and the cap after it.
#[test]
fn logits_of_the_last_and_of_all_positions_agree_with_the_reference() {
    for rig in rigs() {
        for dtype in DTYPES {
            let (first, second) = ([1_u32; 7], [1_u32; 3]);
            let mut batch = Batch::of(&[(0, &first), (5, &second), (300, &[1])]);
            assert_eq!(batch.outputs, [6, 9, 10]);
            let (t, d, vocab) = (batch.rows(), 64, 321);
            let head = projection(dtype, 5, vocab, d);
            let x = rig.values(4, t * d, 1.0);
            let tensor = rig.tensor(&[t, d], &x);
            let check = |batch: &Batch, what: &str| {
                let rows = take_rows(&rig.dispatch, &tensor, &batch.outputs);
                let wanted: Vec<f32> =
                    batch.outputs.iter().flat_map(|&row| &x[row * d..][..d]).copied().collect();
                let logits = linear::reference(&wanted, &head, None);
                let head = rig.matrix(&head);
                rig.check(&Op::Linear { x: &rows, projection: with(&head, None) }, what, &logits);
            };
            check(&batch, "the last positions");
            batch.outputs = (0..t).collect();
            check(&batch, "all positions");
        }
    }
}

fn take_rows(on: &LlmBackendDispatch, x: &Tensor, rows: &[usize]) -> Tensor {
    on.run1(&Op::TakeRows { x, rows }).unwrap()
}

/// A table in another type than activations is rounded to theirs.
#[test]
fn a_wider_table_is_rounded_to_the_type_of_activations() {
    for rig in rigs() {
        let table = weight(backstop::tensor::DType::F32, &[1, 65], &values(6, 65, 1.0));
        let prepared = rig.matrix(&table);
        let got = rig.run1(&Op::Embedding { table: &prepared, tokens: Ids::Known(&[0]), scale: 1.0 });
        let want: Vec<f32> = table.to_f32().iter().map(|&x| round(rig.dtype, x)).collect();
        assert_eq!(got.data(), want, "on {}", rig.name);
    }
}
