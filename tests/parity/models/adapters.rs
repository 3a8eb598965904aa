//! Adapters against PEFT and mlx-lm: each fixture's logits in one pass, in chunks and token by token; rows with different adapters and
//! with none in one step, to the bit.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use backstop::backend::LlmBackendKind;
use backstop::backend::batch::Batch;
use backstop::forward::Adapter;
use backstop::{Model, ModelFiles, adapters};
use safetensors::SafeTensors;

use crate::harness::{backends, close, load, options, root};

/// How far logits may be from PEFT's, in their standard deviations, in `f32`.
const APART: f32 = 1e-4;

/// An adapter, the model that it is of, and what was computed with both.
struct Case {
    name: String,
    base: PathBuf,
    path: PathBuf,
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

fn cases() -> Vec<Case> {
    let dir = root().join("tests/fixtures/adapters");
    let listed = std::fs::read(dir.join("cases.json")).unwrap();
    let listed: BTreeMap<String, String> = serde_json::from_slice(&listed).unwrap();
    assert!(listed.len() >= 15, "only {} adapters", listed.len());
    let case = |(name, base): (String, String)| {
        let own = dir.join(&name);
        let bytes = std::fs::read(own.join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let words =
            |name: &str| -> Vec<[u8; 4]> { tensors.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec() };
        let tokens: Vec<u32> = words("tokens").into_iter().map(u32::from_le_bytes).collect();
        let logits: Vec<f32> = words("logits").into_iter().map(f32::from_le_bytes).collect();
        let width = logits.len() / tokens.len();
        let file = own.join("adapter.gguf");
        Case {
            base: root().join("tests/fixtures").join(base),
            path: if file.is_file() { file } else { own },
            logits: logits.chunks_exact(width).map(<[f32]>::to_vec).collect(),
            tokens,
            name,
        }
    };
    listed.into_iter().map(case).collect()
}

fn read(case: &Case) -> Arc<Adapter> {
    let files = ModelFiles::open(&case.base).unwrap();
    Arc::new(adapters::read(&case.path, 1.0, &files.architecture).unwrap_or_else(|error| panic!("{error}")))
}

/// Logits of sequences with their adapters, each step with a chunk of every one of them.
fn logits(
    model: &Model,
    sequences: Vec<(Vec<u32>, Option<Arc<Adapter>>)>,
    chunk: usize,
) -> Vec<Vec<Vec<f32>>> {
    let work = move |runtime: &backstop::engine::Runtime| {
        let mut states: Vec<_> = sequences
            .iter()
            .map(|(tokens, adapter)| {
                let mut state = runtime.sequence(tokens.len());
                state.adapter = adapter.clone();
                state
            })
            .collect();
        let mut rows = vec![Vec::new(); sequences.len()];
        let most = sequences.iter().map(|(tokens, _)| tokens.len()).max().unwrap();
        for start in (0..most).step_by(chunk) {
            let parts: Vec<(usize, &[u32])> = sequences
                .iter()
                .map(|(tokens, _)| {
                    let from = start.min(tokens.len());
                    (from, &tokens[from..(start + chunk).min(tokens.len())])
                })
                .collect();
            let mut batch = Batch::of(&parts);
            batch.runs.retain(|run| run.len > 0);
            batch.outputs = (0..batch.rows()).collect();
            let outputs = runtime.step(&batch, &mut states).unwrap();
            for run in &batch.runs {
                rows[run.sequence].extend(run.rows().map(|row| outputs.row(row).to_vec()));
            }
        }
        rows
    };
    model.engine().with(work).unwrap()
}

#[test]
fn adapters_agree_with_those_who_train_them() {
    for case in cases() {
        let adapter = read(&case);
        for kind in backends() {
            let model = load(&case.base, options(kind));
            for chunk in [case.tokens.len(), 5, 1] {
                let got = logits(&model, vec![(case.tokens.clone(), Some(Arc::clone(&adapter)))], chunk);
                let what = format!("{} on {kind}, chunks of {chunk}", case.name);
                let (apart, rms) = close(&what, &got[0], &case.logits, APART);
                println!("{what}: {apart:.2e} standard deviations, {rms:.2e} in the mean");
            }
        }
    }
}

fn bits(rows: &[Vec<f32>]) -> Vec<u32> {
    rows.iter().flatten().map(|x| x.to_bits()).collect()
}

/// One step has rows of all adapters of one model and of none: each has the bits that it has alone, in other chunks and on other threads.
#[test]
fn rows_do_not_depend_on_the_adapters_of_their_neighbours() {
    let mut by_base: BTreeMap<PathBuf, Vec<Case>> = BTreeMap::new();
    for case in cases() {
        by_base.entry(case.base.clone()).or_default().push(case);
    }
    for (base, cases) in by_base {
        let mut sequences: Vec<(Vec<u32>, Option<Arc<Adapter>>)> = Vec::new();
        for (i, case) in cases.iter().enumerate() {
            let adapter = read(case);
            sequences.push((case.tokens.clone(), Some(Arc::clone(&adapter))));
            sequences.push((case.tokens[..9 + i % 3].to_vec(), None));
            sequences.push((case.tokens[..13].to_vec(), Some(adapter)));
        }
        let on = |threads| {
            load(&base, backstop::LoadOptions { threads: Some(threads), ..options(LlmBackendKind::Cpu) })
        };
        let (one, four) = (on(1), on(4));
        let together = logits(&four, sequences.clone(), 7);
        for (i, (sequence, together)) in sequences.into_iter().zip(&together).enumerate() {
            for (model, chunk) in [(&one, 7), (&four, 3), (&one, 100)] {
                let alone = logits(model, vec![sequence.clone()], chunk);
                assert_eq!(
                    bits(&alone[0]),
                    bits(together),
                    "{}: sequence {i}, chunks of {chunk}",
                    base.display()
                );
            }
        }
    }
}
