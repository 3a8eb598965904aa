//! The engine's thread turn by turn: memory that is never exceeded and given back, the order of those who wait, and the
//! tokens, which neither changes. On the CPU and, where there is one, on MLX.

mod ahead;
mod disk;
mod drafts;
mod kinds;
mod recurrent;
mod windows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use super::load::Load;
use super::rig::{Asked, Random, Rig, runtime};
use super::shares::Cost;
use super::{EngineOptions, Event, FinishReason, RequestKind, Sink};
use crate::backend::kv::PAGE;
use crate::backend::{LlmBackendKind, Routing};
use crate::error::Error;
use crate::{Model, Options};

/// The backends that this build has.
fn backends() -> Vec<LlmBackendKind> {
    match crate::backend::mlx::DeviceInfo::query() {
        Ok(_) => vec![LlmBackendKind::Cpu, LlmBackendKind::Mlx],
        Err(_) => vec![LlmBackendKind::Cpu],
    }
}

/// In `f32`, whose choices are far enough apart for two orders of sums.
const MODEL: &str = "llama-bias";

#[test]
fn beginnings_are_shared_within_their_space() {
    for kind in backends() {
        let mut rig = Rig::new(MODEL, kind, 4096, EngineOptions::default());
        let prompt = rig.prompt(1, 200);
        let mut texts = Vec::new();
        for (space, cached) in [(None, 0), (Some("a"), 0), (Some("b"), 0), (Some("a"), 199), (None, 199)] {
            rig.space = space.map(Into::into);
            let mut asked = rig.ask(prompt.clone(), 10);
            rig.finish(&mut asked);
            assert_eq!(asked.cached(), cached, "{kind} {space:?}");
            texts.push(asked.tokens);
        }
        assert!(texts.iter().all(|text| *text == texts[0]), "{kind}");
    }
}

#[test]
fn what_was_computed_is_found_again() {
    for kind in backends() {
        let mut rig = Rig::new(MODEL, kind, 4096, EngineOptions::default());
        let prompt = rig.prompt(1, 200);
        let mut first = rig.ask(prompt.clone(), 10);
        rig.finish(&mut first);
        assert_eq!(first.cached(), 0);

        // All but the token whose logits are wanted.
        let mut again = rig.ask(prompt.clone(), 10);
        rig.finish(&mut again);
        assert_eq!((again.cached(), &again.tokens), (199, &first.tokens), "{kind}");

        // A conversation goes on behind the answer, whose last token is in no cache.
        let turn = [&prompt[..], &first.tokens, &rig.prompt(2, 30)].concat();
        let mut next = rig.ask(turn.clone(), 10);
        rig.finish(&mut next);
        assert_eq!(next.cached(), 209);
        assert_eq!(next.tokens, Rig::alone(MODEL, kind, turn, 10), "{kind}");

        // Another that parts from it within a page.
        let other = [&prompt[..150], &rig.prompt(3, 40)].concat();
        let mut part = rig.ask(other.clone(), 10);
        rig.finish(&mut part);
        assert_eq!((part.cached(), part.tokens), (150, Rig::alone(MODEL, kind, other, 10)), "{kind}");
        let load = rig.turn();
        assert_eq!((load.kv.hits, load.kv.hit_tokens), (3, 199 + 209 + 150));
        assert_eq!((load.kv.reserved, load.kv.shared, load.kv.evicted), (0, 0, 0));
    }
}

#[test]
fn a_prompt_is_shared_while_its_first_sequence_still_runs() {
    for kind in backends() {
        let mut rig = Rig::new(MODEL, kind, 1 << 13, EngineOptions::default());
        let system = rig.prompt(1, 150);
        let mut first = rig.ask([&system[..], &[1, 2, 3]].concat(), 100);
        while first.look() == 0 {
            rig.turn();
        }
        let prompt = [&system[..], &[4, 5, 6]].concat();
        let mut second = rig.ask(prompt.clone(), 5);
        let load = rig.turn();
        assert_eq!(load.running, 2);
        if kind == LlmBackendKind::Cpu {
            // Both use the two whole pages of one memory.
            assert_eq!(load.kv.shared, rig.budget.cost.of_page(PAGE) * 2);
        }
        rig.finish(&mut second);
        assert_eq!(
            (second.cached(), second.tokens),
            (2 * PAGE, Rig::alone(MODEL, kind, prompt, 5)),
            "{kind}"
        );
        assert!(first.end.is_none());
        rig.finish(&mut first);
    }
}

/// Sequences that compute the same prompt side by side end up with one copy of its pages.
#[test]
fn what_was_computed_twice_is_kept_once() {
    let mut rig = Rig::new(MODEL, LlmBackendKind::Cpu, 4096, EngineOptions::default());
    let prompt = rig.prompt(1, 3 * PAGE + 5);
    let mut asked: Vec<Asked> = (0..4).map(|_| rig.ask(prompt.clone(), 20)).collect();
    rig.turn();
    let load = rig.turn();
    let page = rig.budget.cost.of_page(PAGE);
    assert_eq!((load.running, load.kv.kept, load.kv.shared), (4, 3 * page, 3 * page));
    assert_eq!(load.kv.used, (3 + 4) * page);
    asked.iter_mut().for_each(|asked| rig.finish(asked));
    assert!(asked.iter().all(|other| other.tokens == asked[0].tokens));
}

#[test]
fn a_cancelled_sequence_gives_its_memory_back_at_once() {
    for kind in backends() {
        let options = EngineOptions { prefill_chunk: 64, step_tokens: 64, ..EngineOptions::default() };
        let mut rig = Rig::new(MODEL, kind, 2048, options);
        // While its prompt is read, while it decodes, and, behind one that takes all, while it waits.
        for (turns, wanted) in [(2, 0), (20, 2)] {
            let mut asked = rig.ask(rig.prompt(turns, 700), 600);
            let loads: Vec<Load> = (0..turns).map(|_| rig.turn()).collect();
            assert!(asked.look() >= wanted && asked.end.is_none());
            assert!(loads.last().unwrap().kv.reserved > 0);
            asked.cancel.store(true, Ordering::Relaxed);
            let load = rig.turn();
            asked.look();
            assert!(matches!(asked.end, Some(Ok((FinishReason::Cancelled, _)))), "{kind}");
            assert_eq!((load.running, load.kv.reserved, load.kv.shared), (0, 0, 0), "{kind}");
            assert_eq!(load.kv.used, load.kv.kept, "{kind}: what is left can be evicted");
        }
        let mut running = rig.ask(rig.prompt(8, 100), 1900);
        rig.turn();
        let mut waiting = rig.ask(rig.prompt(9, 100), 1000);
        let load = rig.turn();
        assert_eq!((load.running, load.queued, load.waiting_for_memory), (1, 1, 1), "{kind}");
        waiting.cancel.store(true, Ordering::Relaxed);
        let load = rig.turn();
        waiting.look();
        assert!(matches!(waiting.end, Some(Ok((FinishReason::Cancelled, _)))));
        assert_eq!((load.queued, load.waiting_for_memory), (0, 0), "{kind}");
        running.cancel.store(true, Ordering::Relaxed);
        assert_eq!(rig.turn().kv.reserved, 0);
        assert!(running.look() > 0);
    }
}

#[test]
fn what_can_never_fit_is_refused_with_both_numbers() {
    for kind in backends() {
        let mut rig = Rig::new(MODEL, kind, 1024, EngineOptions::default());
        let mut asked = rig.ask(rig.prompt(1, 1000), 25);
        let load = rig.turn();
        asked.look();
        let cost = rig.budget.cost;
        match asked.end {
            Some(Err(Error::Memory { what, needed, available })) => {
                assert_eq!((needed, available), (cost.of_sequence(1025), 1024 * cost.token));
                assert_eq!(what, "the KV cache of 1000 tokens of prompt and 25 to generate");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!((load.queued, load.kv.reserved), (0, 0));
        // One token less fits, alone and behind what was kept of others.
        for seed in [2, 3] {
            let mut asked = rig.ask(rig.prompt(seed, 1000), 24);
            rig.finish(&mut asked);
            assert_eq!(asked.tokens.len(), 24);
        }
    }
}

#[test]
fn those_who_wait_for_memory_come_in_their_order() {
    for kind in backends() {
        let mut rig = Rig::new(MODEL, kind, 1024, EngineOptions::default());
        let mut first = rig.ask(rig.prompt(1, 300), 212);
        rig.turn();
        // The big one fits only alone; small ones would fit beside the first at any time.
        let mut big = rig.ask(rig.prompt(2, 900), 20);
        let mut small: Vec<Asked> = (0..6).map(|i| rig.ask(rig.prompt(10 + i, 40), 20)).collect();
        let load = rig.turn();
        assert_eq!((load.running, load.queued, load.waiting_for_memory), (1, 7, 7), "{kind}");
        rig.finish(&mut first);
        assert_eq!(first.tokens.len(), 212);
        assert!(small.iter_mut().all(|small| small.look() == 0));
        rig.finish(&mut big);
        assert_eq!(big.tokens.len(), 20);
        small.iter_mut().for_each(|small| rig.finish(small));
        let load = rig.turn();
        assert_eq!((load.running, load.queued, load.waiting_for_memory), (0, 0, 0));
        assert!(load.kv.evicted > 0, "{kind}");
    }
}

/// All places are one owner's, and another who comes does not wait for them: they take turns, and each text is as alone.
#[test]
fn who_has_no_place_does_not_wait_for_those_of_one_owner() {
    for kind in backends() {
        let options = EngineOptions { max_sequences: 2, ..EngineOptions::default() };
        let mut rig = Rig::new(MODEL, kind, 1 << 13, options);
        let mut alone = rig.ask(rig.prompt(9, 40), 12);
        rig.finish(&mut alone);
        rig.space = Some("many\nsalt".into());
        let mut many: Vec<Asked> = (0..4).map(|i| rig.ask(rig.prompt(i, 40), 60)).collect();
        let load = rig.turn();
        assert_eq!((load.running, load.queued), (2, 2), "{kind}");
        rig.space = Some("few".into());
        let mut few = rig.ask(rig.prompt(9, 40), 12);
        let load = rig.turn();
        assert_eq!((load.running, load.queued), (3, 2), "{kind}");
        for _ in 0..30 {
            let load = rig.turn();
            assert!(load.running <= 3, "{kind}: {}", load.running);
        }
        few.look();
        assert!(few.end.is_some(), "{kind}: it waits");
        assert_eq!(few.tokens, alone.tokens, "{kind}");
        many.iter_mut().for_each(|asked| rig.finish(asked));
        assert!(many.iter().all(|asked| asked.tokens.len() == 60), "{kind}");
    }
}

/// Who asked a short time ago and comes back finds no long step under way.
#[test]
fn prompts_have_short_steps_while_another_owner_is_expected_back() {
    for (lately, rows) in [(None, 512), (Some("many"), 512), (Some("few"), 76)] {
        let mut rig = Rig::new(MODEL, LlmBackendKind::Cpu, 1 << 13, EngineOptions::default());
        if let Some(owner) = lately {
            rig.space = Some(owner.into());
            let mut asked = rig.ask(rig.prompt(1, 40), 3);
            rig.finish(&mut asked);
        }
        rig.space = Some("many\nsalt".into());
        let _many = rig.ask(rig.prompt(2, 1000), 3);
        // 50 ms for one row, 2 ms for each more: four times one row are 200 ms.
        let mut cost = Cost::default();
        for (rows, millis) in [(1, 50), (101, 250)] {
            cost.observe(rows, Duration::from_millis(millis), true);
        }
        rig.worker.set_cost(cost);
        rig.turn();
        assert_eq!(rig.worker.cached(1000), rows, "{lately:?}");
    }
}

#[test]
fn a_long_prompt_stalls_nobody_by_more_than_a_chunk() {
    const LONG: usize = 2048;
    const CHUNK: usize = 64;
    let options = EngineOptions { prefill_chunk: CHUNK, step_tokens: 2 * CHUNK, ..EngineOptions::default() };
    let mut rig = Rig::new(MODEL, LlmBackendKind::Cpu, 1 << 13, options);
    let mut decoding: Vec<Asked> = (0..3).map(|i| rig.ask(rig.prompt(i, 20), 200)).collect();
    rig.turn();
    decoding.iter_mut().for_each(|asked| assert_eq!(asked.look(), 1));
    let mut long = rig.ask(rig.prompt(9, LONG), 1);
    let mut cached = 0;
    for turn in 0..LONG / CHUNK {
        if turn == 10 {
            // Nor does it hold up a short one that comes later.
            decoding.push(rig.ask(rig.prompt(77, 60), 100));
        }
        rig.turn();
        for asked in &mut decoding {
            assert_eq!(asked.look(), 1, "turn {turn}");
        }
        let now = rig.worker.cached(LONG);
        assert!(now <= cached + CHUNK, "turn {turn}: {now} after {cached}");
        cached = now;
    }
    long.look();
    assert_eq!(long.tokens.len(), 1);
}

/// Sequences that share beginnings, come, go and are cancelled while the memory is too small for all of them: bytes are
/// counted by hand after every turn, and the texts are those of one who is alone.
#[test]
fn under_pressure_the_bytes_are_exact_and_the_texts_do_not_change() {
    // With dynamic frequencies only prompts of one length share.
    for (model, hits) in [(MODEL, 30), ("mistral-window", 30), ("gemma3-pattern", 30), ("llama-dynamic", 0)] {
        let kind = LlmBackendKind::Cpu;
        let options = EngineOptions {
            prefill_chunk: 48,
            step_tokens: 100,
            max_sequences: 5,
            ..EngineOptions::default()
        };
        let mut rig = Rig::new(model, kind, 14 * PAGE, options);
        let mut random = Random(7);
        let mut texts: BTreeMap<(Vec<u32>, usize), Vec<u32>> = BTreeMap::new();
        let mut running: Vec<(Asked, Vec<u32>, usize)> = Vec::new();
        let (mut whole, mut cancelled) = (0, 0);
        for turn in 0..450 {
            if turn < 400 && random.below(4) == 0 {
                // Three beginnings of up to 220 tokens and four ends.
                let begin = rig.prompt(random.below(3), 30 + 10 * random.below(20) as usize);
                let prompt =
                    [begin, rig.prompt(50 + random.below(4), random.below(2) as usize * 70)].concat();
                let max_tokens = 1 + 20 * random.below(3) as usize;
                running.push((rig.ask(prompt.clone(), max_tokens), prompt, max_tokens));
            }
            if random.below(15) == 0 && !running.is_empty() {
                let which = random.below(running.len() as u64) as usize;
                running[which].0.cancel.store(true, Ordering::Relaxed);
            }
            rig.turn();
            running.retain_mut(|(asked, prompt, max_tokens)| {
                asked.look();
                let Some(end) = asked.end.take() else { return true };
                let text = texts
                    .entry((prompt.clone(), *max_tokens))
                    .or_insert_with(|| Rig::alone(model, kind, prompt.clone(), *max_tokens));
                assert!(text.starts_with(&asked.tokens), "{model}");
                match end.unwrap().0 {
                    FinishReason::Cancelled => cancelled += 1,
                    _ => {
                        assert_eq!(asked.tokens, *text, "{model}");
                        whole += 1;
                    }
                }
                false
            });
        }
        while let Some((mut asked, ..)) = running.pop() {
            asked.cancel.store(true, Ordering::Relaxed);
            rig.finish(&mut asked);
        }
        let load = rig.turn();
        assert!(whole > 30 && cancelled > 5, "{model}: {whole} and {cancelled}");
        assert!(load.kv.evicted > 20 && load.kv.hits > hits, "{model}: {load:?}");
        assert_eq!((load.kv.reserved, load.kv.used), (0, load.kv.kept));
    }
}

/// The tokens of a sequence whose sink panics at its token number `bad`, and how it ended.
fn run(model: &Model, prompt: &str, bad: Option<usize>) -> impl FnOnce() -> (Vec<u32>, Option<Error>) {
    let (sender, events) = channel();
    let mut tokens = 0;
    let sink = Sink::new(move |event| {
        tokens += usize::from(matches!(event, Event::Token { .. }));
        assert!(bad != Some(tokens) || !matches!(event, Event::Token { .. }), "no more");
        sender.send(event).is_ok()
    });
    let prompt = model.tokenizer().unwrap().encode(prompt).unwrap();
    let options = Options { max_tokens: Some(20), ..Options::default() };
    let running = model.start(prompt, &options, sink).unwrap();
    move || {
        let (mut tokens, mut error) = (Vec::new(), None);
        for event in events {
            match event {
                Event::Token { token, .. } => tokens.push(token),
                Event::Finished { .. } => {}
                Event::Failed(failed) => error = Some(failed),
            }
        }
        drop(running);
        (tokens, error)
    }
}

#[test]
fn a_panic_while_a_token_is_chosen_ends_its_sequence_alone() {
    let model = Model::builtin().unwrap();
    let (wanted, none) = run(&model, "Once upon a time", None)();
    assert!(wanted.len() == 20 && none.is_none());
    let (good, bad) = (run(&model, "Once upon a time", None), run(&model, "One day", Some(5)));
    let (tokens, error) = bad();
    assert_eq!(tokens.len(), 4);
    assert_eq!(error.unwrap().to_string(), "engine: choosing a token panicked: no more");
    assert_eq!(good().0, wanted);
}
