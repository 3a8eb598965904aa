//! Texts with drafts are those without, whoever is beside them and wherever they end: of every family, with guesses that are right
//! for a while.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use super::*;
use crate::backend::kv::KvType;
use crate::engine::draft::{ByModel, Guess, Lookup, MOST, Pays, Sign};
use crate::engine::request::{GenerateRequest, Space};
use crate::engine::{Drafter, Drafts, Runtime, Stats};
use crate::sample::SamplingOptions;

thread_local! {
    /// The texts that are known, prompts and answers.
    static TEXTS: RefCell<Vec<Vec<u32>>> = const { RefCell::new(Vec::new()) };
    /// The model that guesses.
    static DRAFT: RefCell<Option<Rc<Runtime>>> = const { RefCell::new(None) };
}

/// Knows the texts, and is wrong now and then.
struct Knowing;

impl Drafter for Knowing {
    fn guess(&mut self, tokens: &[u32], _: usize, most: usize, _: Pays<'_>) -> Result<Guess, Error> {
        TEXTS.with_borrow(|texts| {
            let mut random = Random(tokens.len() as u64);
            let text = texts.iter().find(|text| text.starts_with(tokens));
            let next = text.map_or(&[][..], |text| &text[tokens.len()..]);
            let mut guess: Vec<u32> = next.iter().copied().take(most).collect();
            // Of 16 about a third is whole, and some begin with a wrong one.
            let wrong = random.below(MOST as u64 * 3 / 2) as usize;
            if let Some(token) = guess.get_mut(wrong) {
                *token = token.wrapping_add(1) % 2;
            }
            let signs = vec![Sign::Match(2); guess.len()];
            Ok(Guess { tokens: guess, signs, cost: None })
        })
    }
}

fn drafting() -> EngineOptions {
    EngineOptions { drafter: Some(|| Box::new(Knowing)), ..EngineOptions::default() }
}

/// A request for a text, and what it came to.
fn text(rig: &mut Rig, prompt: &[u32], max_tokens: usize) -> (Vec<u32>, Stats) {
    let mut asked = rig.ask(prompt.to_vec(), max_tokens);
    rig.finish(&mut asked);
    (asked.tokens, asked.end.unwrap().unwrap().1)
}

/// Makes a text known.
fn learn(prompt: &[u32], answer: &[u32]) {
    TEXTS.with_borrow_mut(|texts| texts.push([prompt, answer].concat()));
}

/// Fixtures that generate, with the backends whose choices are far enough apart.
fn fixtures() -> Vec<(String, Vec<LlmBackendKind>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    let mut names: Vec<String> = std::fs::read_dir(path)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| !name.contains('.'))
        .collect();
    names.sort_unstable();
    names.into_iter().map(|name| (name, backends())).collect()
}

#[test]
fn no_family_writes_another_text() {
    let mut saved = 0;
    for (model, kinds) in fixtures() {
        for kind in kinds {
            let mut plain = Rig::new(&model, kind, 4096, EngineOptions::default());
            // Windows, pages and snapshots begin and end within it; GPT-2's have 40 positions.
            let (before, len) = if model.starts_with("gpt2") { (7, 25) } else { (70, 90) };
            let prompt = plain.prompt(5, before);
            let (answer, stats) = text(&mut plain, &prompt, len);
            assert_eq!((stats.drafted_tokens, stats.accepted_tokens), (0, 0));
            learn(&prompt, &answer);
            let mut rig = Rig::new(&model, kind, 4096, drafting());
            let (drafted, stats) = text(&mut rig, &prompt, len);
            // In the shapes of several rows MLX's sums have other orders.
            let is_exact = kind == LlmBackendKind::Cpu;
            assert!(drafted == answer || !is_exact, "{model} {kind}: {drafted:?} is not {answer:?}");
            assert_eq!(drafted.len(), len);
            let Stats { drafted_tokens, accepted_tokens, .. } = stats;
            if is_exact {
                assert!(
                    0 < accepted_tokens && (accepted_tokens < drafted_tokens || len < 90),
                    "{model}: {stats:?}"
                );
            }
            saved += accepted_tokens;
            // What is kept of it is as good as what is computed.
            let next = [&prompt[..], &drafted, &plain.prompt(6, 2)].concat();
            let (after, _) = text(&mut rig, &next, 6);
            let (alone, _) = text(&mut plain, &next, 6);
            assert!(after == alone || !is_exact, "{model} {kind}");
        }
    }
    assert!(saved > 1000, "{saved}");
}

/// What was answered is guessed again, in the space of who asked for it and in no other.
#[test]
fn answers_are_guessed_in_their_space() {
    let mut rig = Rig::new(MODEL, LlmBackendKind::Cpu, 4096, EngineOptions::default());
    let prompt = rig.prompt(5, 40);
    text(&mut rig, &prompt, 80);
    assert!(rig.worker.earlier(&None).is_empty(), "kept without drafts");
    rig.worker.set_drafts(Drafts::Auto);
    let (answer, first) = text(&mut rig, &prompt, 80);
    assert_eq!(*rig.worker.earlier(&None), answer);
    let (again, stats) = text(&mut rig, &prompt, 80);
    assert_eq!(again, answer);
    assert!(stats.accepted_tokens > 40.max(first.accepted_tokens), "{stats:?} behind {first:?}");
    assert_eq!(*rig.worker.earlier(&None), [&answer[..], &answer].concat());

    let other: Space = Some("other".into());
    rig.space = other.clone();
    assert!(rig.worker.earlier(&other).is_empty());
    // What was cancelled counts as far as it came.
    let mut asked = rig.ask(prompt.clone(), 80);
    while asked.tokens.len() < 3 {
        rig.turn();
        asked.look();
    }
    asked.cancel.store(true, Ordering::Relaxed);
    rig.finish(&mut asked);
    let few = rig.worker.earlier(&other).len();
    assert!((3..80).contains(&few), "{few}");
    text(&mut rig, &prompt, 80);
    assert!(rig.worker.earlier(&other).ends_with(&answer));
    assert_eq!(rig.worker.earlier(&None).len(), 160);
}

/// On the CPU recurrent layers go back to the last token that was right: nothing is computed twice.
#[test]
fn recurrent_layers_keep_what_was_right() {
    for model in ["qwen3_5-delta", "kimi_linear-types", "mamba2-plain", "falcon_h1-norm", "lfm2-conv"] {
        let mut plain = Rig::new(model, LlmBackendKind::Cpu, 4096, EngineOptions::default());
        let prompt = plain.prompt(5, 70);
        let (answer, _) = text(&mut plain, &prompt, 60);
        learn(&prompt, &answer);
        let mut rig = Rig::new(model, LlmBackendKind::Cpu, 4096, drafting());
        let mut asked = rig.ask(prompt.clone(), 60);
        while asked.end.is_none() {
            rig.turn();
            asked.look();
            if !asked.tokens.is_empty() && asked.end.is_none() {
                let cached = rig.worker.cached(prompt.len());
                assert_eq!(cached + 1, prompt.len() + asked.tokens.len(), "{model}");
            }
        }
        let Stats { drafted_tokens, accepted_tokens, .. } = asked.end.unwrap().unwrap().1;
        assert!(asked.tokens == answer && 0 < accepted_tokens && accepted_tokens < drafted_tokens, "{model}");
    }
}

/// Several at once in every way to choose a token, with steps that have no room for all guesses.
#[test]
fn neighbours_and_draws_change_nothing() {
    let mut ways = vec![SamplingOptions::default()];
    ways.push(SamplingOptions { temperature: 0.9, seed: 4, ..SamplingOptions::default() });
    let repeat = SamplingOptions { temperature: 0.7, seed: 9, top_k: 8, ..SamplingOptions::default() };
    ways.push(SamplingOptions { frequency_penalty: 0.4, presence_penalty: 0.3, ..repeat });
    for model in [MODEL, "mistral-window", "qwen3_5-delta", "deepseek_v3-plain"] {
        let ask = |rig: &Rig, way: &SamplingOptions, seed: u64| {
            let (sender, events) = channel();
            let prompt = rig.prompt(seed, 20 + 7 * seed as usize);
            let generate = GenerateRequest {
                sampling: way.clone(),
                constraint: None,
                min_tokens: 5,
                max_tokens: 40 + seed as usize,
                eos: vec![3, 17],
                marks: Vec::new(),
                suppressed: Arc::from([11]),
                events: Sink::new(move |event| sender.send(event).is_ok()),
            };
            let cancel = rig.send(prompt.clone(), RequestKind::Generate(Box::new(generate)));
            (prompt, Asked { cancel, events, tokens: Vec::new(), end: None })
        };
        let mut plain = Vec::new();
        for (seed, way) in (1..).zip(&ways) {
            let mut rig = Rig::new(model, LlmBackendKind::Cpu, 4096, EngineOptions::default());
            let (prompt, mut asked) = ask(&rig, way, seed);
            rig.finish(&mut asked);
            learn(&prompt, &asked.tokens);
            plain.push((asked.tokens, asked.end.unwrap().unwrap().0));
        }
        for step_tokens in [3, 9, 1024] {
            let options = EngineOptions { step_tokens, prefill_chunk: step_tokens.min(5), ..drafting() };
            let mut rig = Rig::new(model, LlmBackendKind::Cpu, 4096, options);
            let mut asked: Vec<Asked> = (1..).zip(&ways).map(|(seed, way)| ask(&rig, way, seed).1).collect();
            let mut accepted = 0;
            for (asked, plain) in asked.iter_mut().zip(&plain) {
                rig.finish(asked);
                let (reason, stats) = asked.end.take().unwrap().unwrap();
                assert_eq!((&asked.tokens, reason), (&plain.0, plain.1), "{model} {step_tokens}");
                accepted += stats.accepted_tokens;
            }
            assert!(accepted > 3, "{model} {step_tokens}: {accepted}");
        }
    }
}

/// The first tokens of a cache in codes share a scale with nobody: going back leaves them as they were.
#[test]
fn caches_in_codes_go_back() {
    for kv in [KvType::Q8, KvType::Q4] {
        for model in ["mistral-window", "llama-default"] {
            let mut plain = Rig::keeping(model, kv, 4096, EngineOptions::default());
            let prompt = plain.prompt(5, 70);
            let (answer, _) = text(&mut plain, &prompt, 60);
            learn(&prompt, &answer);
            let mut rig = Rig::keeping(model, kv, 4096, drafting());
            let (drafted, stats) = text(&mut rig, &prompt, 60);
            assert_eq!(drafted, answer, "{model} {kv:?}");
            assert!(stats.accepted_tokens > 0);
        }
    }
}

/// A client that has gone, a context that is full, and an end among the guesses.
#[test]
fn texts_end_where_they_would() {
    let mut plain = Rig::new(MODEL, LlmBackendKind::Cpu, 4096, EngineOptions::default());
    let prompt = plain.prompt(8, 30);
    let (answer, _) = text(&mut plain, &prompt, 60);
    learn(&prompt, &answer);
    for max_tokens in 1..30 {
        let mut rig = Rig::new(MODEL, LlmBackendKind::Cpu, 4096, drafting());
        assert_eq!(text(&mut rig, &prompt, max_tokens).0, answer[..max_tokens]);
    }
    let mut rig = Rig::new(MODEL, LlmBackendKind::Cpu, 4096, drafting());
    let asked = rig.ask(prompt.clone(), 60);
    rig.turn();
    rig.turn();
    drop(asked);
    for _ in 0..5 {
        rig.turn();
    }
    let load = rig.turn();
    assert_eq!((load.running, load.queued, load.kv.reserved), (0, 0, 0));
    assert_eq!(text(&mut rig, &prompt, 60).0, answer);
}

/// The guesses of a model, whether they pay or not.
struct Always(ByModel);

impl Drafter for Always {
    fn guess(&mut self, tokens: &[u32], prompt: usize, most: usize, _: Pays<'_>) -> Result<Guess, Error> {
        self.0.guess(tokens, prompt, most, &mut |_| true)
    }
}

/// A model that guesses its own texts is right, one that guesses those of another is not, and neither changes any; also where a
/// text is longer than what it has seen at once, and past what it can hold.
#[test]
fn a_model_guesses() {
    for (draft, len, most) in
        [(MODEL, 40, 60), (MODEL, 600, 30), ("mistral-window", 40, 60), ("gpt2-plain", 25, 60)]
    {
        let mut plain = Rig::new(MODEL, LlmBackendKind::Cpu, 4096, EngineOptions::default());
        let of_draft = runtime(draft, LlmBackendKind::Cpu, Routing::default());
        let prompt = plain.prompt(3, len);
        assert!(plain.vocab == 97 && of_draft.config().vocab_size >= 97);
        let (answer, _) = text(&mut plain, &prompt, most);
        DRAFT.set(Some(Rc::new(of_draft)));
        let drafter: fn() -> Box<dyn Drafter> = || {
            DRAFT.with_borrow(|draft| {
                Box::new(Always(ByModel::new(Rc::clone(draft.as_ref().unwrap()), 97, Lookup::default())))
            })
        };
        let options = EngineOptions { drafter: Some(drafter), ..EngineOptions::default() };
        let mut rig = Rig::new(MODEL, LlmBackendKind::Cpu, 4096, options);
        let (drafted, stats) = text(&mut rig, &prompt, most);
        assert_eq!(drafted, answer, "{draft} {len}");
        let Stats { drafted_tokens, accepted_tokens, .. } = stats;
        match draft == MODEL {
            // What is copied may be wrong.
            true => assert!(accepted_tokens >= most / 2, "{len}: {stats:?}"),
            false => assert!(accepted_tokens < drafted_tokens, "{draft}: {stats:?}"),
        }
    }
}

/// What is asked of a model's guesses is what a step costs: some are made, and no text depends on how many.
#[test]
fn a_model_guesses_where_it_pays() {
    for kind in backends() {
        let mut plain = Rig::new(MODEL, kind, 4096, EngineOptions::default());
        let prompt = plain.prompt(3, 40);
        let (answer, _) = text(&mut plain, &prompt, 80);
        let mut rig = Rig::drafted_by(MODEL, MODEL, kind, 4096);
        let (drafted, stats) = text(&mut rig, &prompt, 80);
        // In the shapes of several rows MLX's sums have other orders.
        assert!(drafted == answer || kind == LlmBackendKind::Mlx, "{drafted:?} is not {answer:?}");
        assert!(0 < stats.accepted_tokens && stats.accepted_tokens <= stats.drafted_tokens, "{stats:?}");
        // What the other model keeps of it is a part of what it is let in with.
        let cost = rig.budget.cost.token;
        assert!(rig.budget.beside >= cost && rig.budget.alone().of_sequence(64) >= 2 * 64 * cost);
        // Two share the steps, and each has guesses of its own.
        let mut both = [rig.ask(prompt, 80), rig.ask(plain.prompt(4, 50), 80)];
        both.iter_mut().for_each(|asked| rig.finish(asked));
        assert!(both[0].tokens == answer || kind == LlmBackendKind::Mlx);
        assert_eq!(both[1].tokens.len(), 80);
    }
    let refused = runtime(MODEL, LlmBackendKind::Cpu, Routing::default()).drafted_by(runtime(
        "qwen3_5-delta",
        LlmBackendKind::Cpu,
        Routing::default(),
    ));
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("qwen3_5") && error.contains("cannot go back"), "{error}");
}
