//! One repetition on the engine's thread: prompts, then generation, as the engine would cut them into steps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop::Result;
use backstop::backend::OpTime;
use backstop::backend::batch::{Batch, Run, Tokens};
use backstop::engine::{EngineOptions, Runtime};
use backstop::forward::Adapter;
use backstop::forward::step::SequenceState;

/// What is measured: sequences side by side, each after `depth` cached tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub depth: usize,
    pub batch: usize,
    pub prompt: usize,
    pub generate: usize,
}

/// What one phase took, and its ops where they were asked for.
pub struct Phase {
    pub time: Duration,
    pub ops: Vec<OpTime>,
}

/// The sequences of a case, with `depth` tokens cached.
pub struct Sequences(Vec<SequenceState>);

/// Fills the caches up to the case's depth.
pub fn prepare(runtime: &Runtime, case: Case, adapter: Option<&Arc<Adapter>>) -> Result<Sequences> {
    let state = |_| SequenceState { adapter: adapter.cloned(), ..runtime.sequence(case.depth + case.prompt) };
    let states = (0..case.batch).map(state).collect();
    let mut sequences = Sequences(states);
    prefill(runtime, &mut sequences.0, 0, case.depth)?;
    Ok(sequences)
}

/// Prompts of all sequences, to the choice of each one's first token.
pub fn prompt(runtime: &Runtime, sequences: &mut Sequences, case: Case, profile: bool) -> Result<Phase> {
    phase(runtime, sequences, case, profile, |states| prefill(runtime, states, case.depth, case.prompt))
}

/// `case.generate` steps of one token each.
pub fn generate(runtime: &Runtime, sequences: &mut Sequences, case: Case, profile: bool) -> Result<Phase> {
    phase(runtime, sequences, case, profile, |states| decode(runtime, states, case.depth, case.generate))
}

fn phase(
    runtime: &Runtime,
    sequences: &mut Sequences,
    case: Case,
    profile: bool,
    work: impl FnOnce(&mut [SequenceState]) -> Result<()>,
) -> Result<Phase> {
    if profile {
        runtime.dispatch().start_profile();
    }
    let started = Instant::now();
    let result = work(&mut sequences.0);
    let time = started.elapsed();
    let ops = runtime.dispatch().take_profile();
    for state in &mut sequences.0 {
        state.kv.truncate(case.depth);
        state.history.truncate(case.depth);
    }
    result.map(|()| Phase { time, ops })
}

/// A token that differs from its neighbours; which one makes no difference to the time.
fn token(position: usize, vocab: usize) -> u32 {
    (position * 7919 % vocab) as u32
}

/// Computes `count` tokens of every sequence from position `start` on, in chunks and steps of the engine's sizes, and
/// chooses the token after each sequence's last.
fn prefill(runtime: &Runtime, states: &mut [SequenceState], start: usize, count: usize) -> Result<()> {
    let EngineOptions { prefill_chunk, step_tokens, .. } = EngineOptions::default();
    let vocab = runtime.config().vocab_size;
    let mut done = vec![0; states.len()];
    while done.iter().any(|&done| done < count) {
        let mut batch = Batch { tokens: Tokens::Known(Vec::new()), runs: Vec::new(), outputs: Vec::new() };
        let mut ids = Vec::new();
        for (sequence, done) in done.iter_mut().enumerate() {
            let len = (count - *done).min(prefill_chunk).min(step_tokens - ids.len());
            if len == 0 {
                continue;
            }
            let start = start + *done;
            batch.runs.push(Run { sequence, row: ids.len(), len, start });
            ids.extend((start..start + len).map(|position| token(position, vocab)));
            *done += len;
            if *done == count {
                batch.outputs.push(ids.len() - 1);
            }
        }
        batch.tokens = Tokens::Known(ids);
        let logits = runtime.step(&batch, states)?;
        let rows = logits.shape()[0];
        std::hint::black_box((0..rows).map(|row| greedy(logits.row(row))).collect::<Vec<_>>());
    }
    Ok(())
}

/// Generates `count` greedy tokens of every sequence from position `start` on. On a lazy backend a step is built while
/// the one before runs, as the engine does it.
fn decode(runtime: &Runtime, states: &mut [SequenceState], start: usize, count: usize) -> Result<()> {
    let vocab = runtime.config().vocab_size;
    let sequences = states.len();
    let mut tokens = Tokens::Known((0..sequences).map(|i| token(start + i, vocab)).collect());
    for i in 0..count {
        let run = |sequence| Run { sequence, row: sequence, len: 1, start: start + i };
        let runs = (0..sequences).map(run).collect();
        let batch = Batch { tokens, runs, outputs: (0..sequences).collect() };
        let launched = runtime.launch(&batch, states, false)?;
        let ahead = launched.logits().and_then(|logits| runtime.dispatch().greedy_tokens(logits));
        tokens = match ahead {
            Some(choice) => {
                runtime.dispatch().evaluate_async(&[&choice], &[])?;
                if let Tokens::Pending(before) = &batch.tokens {
                    runtime.dispatch().to_host(before)?;
                }
                Tokens::Pending(choice)
            }
            None => {
                let logits = runtime.read(&launched)?;
                Tokens::Known((0..sequences).map(|row| greedy(logits.row(row))).collect())
            }
        };
    }
    if let Tokens::Pending(last) = &tokens {
        runtime.dispatch().to_host(last)?;
    }
    Ok(())
}

/// The largest logit's token.
fn greedy(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(token, _)| token as u32)
}
