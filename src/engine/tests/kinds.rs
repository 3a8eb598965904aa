//! Embeddings and scores beside texts: the bits of a pass without an engine, their part of the memory, and what becomes of them when a
//! step fails.

use std::ops::Range;

use super::*;
use crate::backend::batch::Batch;
use crate::engine::request::{Answer, EmbedRequest, RowSink, ScoreRequest};
use crate::error::Result;
use crate::forward::step::SequenceState;

/// Chunks that end neither with pages nor with prompts.
const CUT: (usize, usize) = (48, 100);

pub(super) fn cut() -> EngineOptions {
    EngineOptions { prefill_chunk: CUT.0, step_tokens: CUT.1, ..EngineOptions::default() }
}

/// Rows of one request, as they came: of a vector, the only one.
pub(super) struct Rows {
    cancel: Arc<AtomicBool>,
    answers: Receiver<Result<Vec<f32>>>,
}

impl Rig {
    pub(super) fn embed(&self, tokens: Vec<u32>) -> Rows {
        let (sender, answers) = channel();
        let answer = Answer::new(move |vector| sender.send(vector).unwrap());
        Rows { cancel: self.send(tokens, RequestKind::Embed(EmbedRequest::mean(answer))), answers }
    }

    pub(super) fn score(&self, tokens: Vec<u32>, rows: Range<usize>) -> Rows {
        let (sender, answers) = channel();
        let sink = RowSink::new(move |row| sender.send(row.map(<[f32]>::to_vec)).is_ok());
        Rows { cancel: self.send(tokens, RequestKind::Score(ScoreRequest { rows, sink })), answers }
    }

    /// Turns until the engine has let go of a request: its rows, or its error.
    pub(super) fn rows(&mut self, asked: &Rows) -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::new();
        for _ in 0..10_000 {
            loop {
                match asked.answers.try_recv() {
                    Ok(row) => rows.push(row?),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(rows),
                }
            }
            self.turn();
        }
        panic!("it does not end");
    }
}

/// One pass over all tokens, without an engine: the mean of the hidden states, and the logits of every row.
pub(super) struct Whole {
    pub vector: Vec<f32>,
    pub logits: Vec<Vec<f32>>,
}

pub(super) fn whole(model: &str, kind: LlmBackendKind, tokens: &[u32]) -> Whole {
    let runtime = runtime(model, kind, Routing::default());
    let mut batch = Batch::of(&[(0, tokens)]);
    batch.outputs = (0..tokens.len()).collect();
    let mut state: [SequenceState; 1] = [runtime.sequence(tokens.len())];
    let launched = runtime.launch(&batch, &mut state, true).unwrap();
    let outputs = runtime.outputs(&launched, true).unwrap();
    let hidden = outputs.hidden.unwrap();
    let mut sum = vec![0.0_f64; hidden.shape()[1]];
    for row in 0..tokens.len() {
        sum.iter_mut().zip(hidden.row(row)).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let scale = 1.0 / sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    Whole {
        vector: sum.iter().map(|x| (x * scale) as f32).collect(),
        logits: (0..tokens.len()).map(|row| outputs.logits.row(row).to_vec()).collect(),
    }
}

/// On the CPU equal to the bit; elsewhere another order of sums is another rounding.
fn assert_same(kind: LlmBackendKind, got: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    let allowed = if kind == LlmBackendKind::Cpu { 0.0 } else { 1e-4 };
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert!((got - wanted).abs() <= allowed, "{kind}, {what}: element {i} is {got}, expected {wanted}");
    }
}

#[test]
fn embeddings_beside_texts_have_the_bits_of_one_pass() {
    for kind in backends() {
        let mut rig = Rig::new(MODEL, kind, 1 << 13, cut());
        let prompts: Vec<Vec<u32>> =
            [1, 47, 64, 65, 200].iter().zip(10..).map(|(&len, seed)| rig.prompt(seed, len)).collect();
        let alone: Vec<Vec<f32>> = prompts.iter().map(|prompt| whole(MODEL, kind, prompt).vector).collect();
        let mut texts: Vec<Asked> = (0..3).map(|seed| rig.ask(rig.prompt(seed, 30), 25)).collect();
        rig.turn();
        let vectors: Vec<Rows> = prompts.iter().map(|prompt| rig.embed(prompt.clone())).collect();
        // Beginnings that are kept change nothing, though a text may take them.
        texts.push(rig.ask(prompts[4].clone(), 5));
        let load = rig.turn();
        assert!(load.running > 5, "{load:?}");
        for ((vector, alone), prompt) in vectors.iter().zip(&alone).zip(&prompts) {
            let got = rig.rows(vector).unwrap().concat();
            assert_same(kind, &got, alone, &format!("{} tokens", prompt.len()));
        }
        for (asked, seed) in texts.iter_mut().zip(0..3) {
            rig.finish(asked);
            assert_eq!(asked.tokens, Rig::alone(MODEL, kind, rig.prompt(seed, 30), 25), "{kind}");
        }
        rig.finish(&mut texts[3]);
        // Again, where all but the last token of the longest are kept.
        let again = rig.embed(prompts[4].clone());
        assert_same(kind, &rig.rows(&again).unwrap().concat(), &alone[4], "again");
    }
}

#[test]
fn scored_rows_are_those_of_a_whole_pass() {
    for kind in backends() {
        let mut rig = Rig::new(MODEL, kind, 1 << 13, cut());
        let tokens = rig.prompt(1, 200);
        let wanted = whole(MODEL, kind, &tokens).logits;
        let mut text = rig.ask(rig.prompt(2, 70), 40);
        let mut skipped = 0;
        for (rows, kept) in [(0..200, 0), (37..38, 37), (63..129, 63), (199..200, 199), (130..150, 130)] {
            let asked = rig.score(tokens.clone(), rows.clone());
            let got = rig.rows(&asked).unwrap();
            assert_eq!(got.len(), rows.len());
            for (row, got) in rows.zip(&got) {
                assert_same(kind, got, &wanted[row], &format!("row {row}"));
            }
            skipped += kept;
            assert_eq!(rig.turn().kv.hit_tokens, skipped, "{kind}");
        }
        rig.finish(&mut text);
        assert_eq!(text.tokens, Rig::alone(MODEL, kind, rig.prompt(2, 70), 40), "{kind}");
        for rows in [5..5, 100..201, 300..301] {
            let asked = rig.score(tokens.clone(), rows.clone());
            let error = rig.rows(&asked).unwrap_err().to_string();
            let expected = "expected at least one, and none behind the last";
            assert_eq!(error, format!("rows is {rows:?} of 200 tokens, {expected}"));
        }
    }
}

/// With frequencies that a prompt's length sets, a range has those of all tokens.
#[test]
fn a_range_is_rotated_as_the_whole_prompt() {
    let kind = LlmBackendKind::Cpu;
    let mut rig = Rig::new("llama-dynamic", kind, 1 << 13, cut());
    let tokens = rig.prompt(1, 150);
    let wanted = whole("llama-dynamic", kind, &tokens).logits;
    let asked = rig.score(tokens, 20..60);
    let got = rig.rows(&asked).unwrap();
    got.iter().zip(20..).for_each(|(got, row)| assert_same(kind, got, &wanted[row], &format!("row {row}")));
    assert_eq!(got.len(), 40);
}

#[test]
fn embeddings_have_their_part_of_the_memory() {
    for kind in backends() {
        let mut rig = Rig::new(MODEL, kind, 1024, cut());
        let cost = rig.budget.cost;
        let asked = rig.embed(rig.prompt(1, 1025));
        match rig.rows(&asked) {
            Err(Error::Memory { what, needed, available }) => {
                assert_eq!((needed, available), (cost.of_sequence(1025), 1024 * cost.token));
                assert_eq!(what, "the KV cache of 1025 tokens");
            }
            other => panic!("{other:?}"),
        }
        let long = rig.embed(rig.prompt(2, 1000));
        let scored = rig.score(rig.prompt(3, 900), 10..500);
        let load = rig.turn();
        assert_eq!((load.running, load.kv.reserved), (1, cost.of_sequence(1000)), "{kind}");
        assert_eq!((load.queued, load.waiting_for_memory), (1, 1), "{kind}");
        // Dropped in the middle of its tokens, it gives way at once, and nothing of it is kept.
        long.cancel.store(true, Ordering::Relaxed);
        let load = rig.turn();
        assert!(long.answers.try_recv().is_err(), "a cancelled one has an answer");
        assert_eq!((load.running, load.queued, load.kv.kept), (1, 0, 0), "{kind}");
        assert_eq!(load.kv.reserved, cost.of_sequence(500), "{kind}: none behind the last row is computed");
        // One that waits is dropped, too.
        let waiting = rig.embed(rig.prompt(4, 1000));
        assert_eq!(rig.turn().waiting_for_memory, 1);
        waiting.cancel.store(true, Ordering::Relaxed);
        assert_eq!(rig.turn().queued, 0);
        assert_eq!(rig.rows(&scored).unwrap().len(), 490);
        let last = rig.embed(rig.prompt(5, 1000));
        assert_eq!(rig.rows(&last).unwrap().len(), 1);
        let load = rig.turn();
        assert_eq!((load.running, load.kv.reserved), (0, 0));
        assert_eq!(load.kv.used, load.kv.kept);
    }
}

/// All kinds come, go and are cancelled while the memory is too small for all of them: bytes are counted after every turn.
#[test]
fn kinds_side_by_side_under_pressure_keep_their_bits() {
    let kind = LlmBackendKind::Cpu;
    let options = EngineOptions { max_sequences: 6, ..cut() };
    let mut rig = Rig::new(MODEL, kind, 14 * PAGE, options);
    let mut random = Random(11);
    let prompts: Vec<Vec<u32>> =
        (0..4).map(|i| [rig.prompt(i % 2, 100), rig.prompt(20 + i, 30 + 40 * i as usize)].concat()).collect();
    let wholes: Vec<Whole> = prompts.iter().map(|prompt| whole(MODEL, kind, prompt)).collect();
    let mut running: Vec<(Rows, usize, Range<usize>)> = Vec::new();
    let mut texts: Vec<(Asked, usize)> = Vec::new();
    let mut ended = 0;
    for turn in 0..250 {
        let which = random.below(4) as usize;
        let prompt = prompts[which].clone();
        match random.below(12) {
            _ if turn > 180 => {}
            0 => texts.push((rig.ask(prompt, 10), which)),
            1 => running.push((rig.embed(prompt), which, 0..0)),
            2 => {
                let first = random.below(prompt.len() as u64) as usize;
                let rows = first..first + 1 + random.below((prompt.len() - first) as u64) as usize;
                running.push((rig.score(prompt, rows.clone()), which, rows));
            }
            3 if !running.is_empty() => {
                let (asked, ..) = running.swap_remove(random.below(running.len() as u64) as usize);
                asked.cancel.store(true, Ordering::Relaxed);
            }
            _ => {}
        }
        rig.turn();
        running.retain_mut(|(asked, which, rows)| {
            for row in asked.answers.try_iter() {
                let row = row.unwrap();
                match rows.next() {
                    Some(position) => assert_same(kind, &row, &wholes[*which].logits[position], "logits"),
                    None => assert_same(kind, &row, &wholes[*which].vector, "vector"),
                }
                ended += usize::from(rows.start == rows.end);
            }
            !matches!(asked.answers.try_recv(), Err(TryRecvError::Disconnected))
        });
    }
    for (mut text, which) in texts {
        rig.finish(&mut text);
        assert_eq!(text.tokens, Rig::alone(MODEL, kind, prompts[which].clone(), 10));
    }
    let load = rig.turn();
    assert!(ended > 10 && running.is_empty(), "{ended} ended, {} run", running.len());
    assert!(load.kv.evicted > 0 && load.kv.hits > 5, "{load:?}");
    assert_eq!((load.kv.reserved, load.kv.used), (0, load.kv.kept));
}

#[test]
fn a_panic_in_an_answer_ends_its_request_alone() {
    let mut rig = Rig::new(MODEL, LlmBackendKind::Cpu, 1 << 13, cut());
    let mut text = rig.ask(rig.prompt(1, 20), 10);
    let kind = RequestKind::Embed(EmbedRequest::mean(Answer::new(|_| panic!("no more"))));
    rig.send(rig.prompt(2, 20), kind);
    let mut rows = 0;
    let sink = RowSink::new(move |row| {
        rows += usize::from(row.is_ok());
        assert!(row.is_err() || rows < 3, "no more");
        true
    });
    rig.send(rig.prompt(3, 20), RequestKind::Score(ScoreRequest { rows: 0..20, sink }));
    let asked = rig.embed(rig.prompt(4, 20));
    rig.finish(&mut text);
    assert_eq!(text.tokens.len(), 10);
    assert_eq!(rig.rows(&asked).unwrap().len(), 1);
    assert_eq!(rig.turn().running, 0);
}

#[cfg(feature = "fault-injection")]
mod faults {
    use super::*;
    use crate::backend::ops::OpKind;
    use crate::backend::{Faults, Policy};

    fn rig(model: &str, faults: &Faults) -> Rig {
        Rig::with(model, LlmBackendKind::Cpu, 1 << 13, cut(), Routing::new(Policy::Allow, faults.clone()))
    }

    /// A step of one request that fails ends that one, and a step of several only who is at fault: nobody, here.
    #[test]
    fn a_step_that_fails_ends_the_requests_concerned() {
        // The second has given back what it began with when it is computed anew.
        [MODEL, "gemma3-pattern"].into_iter().for_each(concerned);
    }

    fn concerned(model: &str) {
        let (failed, panicked) = (
            "embedding failed on cpu: injected fault",
            "engine: a step panicked: injected panic in embedding",
        );
        let tokens = rig(model, &Faults::default()).prompt(1, 200);
        let wanted = whole(model, LlmBackendKind::Cpu, &tokens);
        for (panics, message) in [(false, failed), (true, panicked)] {
            let fault = |k| match panics {
                false => Faults::op(OpKind::Embedding, k, 1),
                true => Faults::panic(OpKind::Embedding, k, 1),
            };
            let faults = Faults::default();
            let mut rig = rig(model, &faults);
            for k in [0, 2] {
                faults.replace(&fault(k));
                let asked = rig.embed(tokens.clone());
                assert_eq!(rig.rows(&asked).unwrap_err().to_string(), message);
                assert_eq!(rig.turn().kv.reserved, 0);
                faults.replace(&fault(k));
                let asked = rig.score(tokens.clone(), 0..200);
                assert_eq!(rig.rows(&asked).unwrap_err().to_string(), message);
                assert_eq!(rig.turn().kv.reserved, 0);
            }
            // In the first step, and when some rows are in the sum or given out.
            for k in [0, 2, 3] {
                faults.replace(&fault(k));
                let mut text = rig.ask(rig.prompt(2, 60), 10);
                let (vector, scored) = (rig.embed(tokens.clone()), rig.score(tokens.clone(), 30..200));
                assert_eq!(rig.rows(&vector).unwrap().concat(), wanted.vector, "call {k}");
                assert_eq!(rig.rows(&scored).unwrap(), wanted.logits[30..], "call {k}");
                rig.finish(&mut text);
                let alone = Rig::alone(model, LlmBackendKind::Cpu, rig.prompt(2, 60), 10);
                assert_eq!(text.tokens, alone, "call {k}");
            }
        }
    }
}
