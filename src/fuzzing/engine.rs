//! The engine turn by turn, against what a list of all requests says of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::input::Input;
use crate::backend::LlmBackendKind;
use crate::backend::kv::PAGE;
use crate::engine::rig::{Asked, Rig};
use crate::engine::{
    Answer, EmbedRequest, EngineOptions, FinishReason, Lookup, RequestKind, RowSink, ScoreRequest,
};

/// Models whose caches differ: all tokens, windows, and both.
const MODELS: [&str; 3] = ["llama-bias", "mistral-window", "gemma3-pattern"];
/// Pages that the memory holds: three to ten requests.
const PAGES: usize = 10;
/// Moves of one input.
const MOVES: usize = 48;
/// Requests of one input.
const REQUESTS: usize = 24;
/// Most tokens that a request generates.
const GENERATED: usize = 24;

/// A request for text, and what is known of it.
struct Text {
    asked: Asked,
    prompt: Vec<u32>,
    max_tokens: usize,
    space: usize,
    /// What it generates where it is alone.
    alone: Vec<u32>,
    /// Whether nothing else was asked, or still ran, while it did, and nothing had to go before it ended: all that ended ones
    /// computed is there then.
    undisturbed: bool,
}

impl Text {
    /// The tokens that may be kept of it.
    fn computed(&self) -> Vec<u32> {
        [&self.prompt[..], &self.asked.tokens].concat()
    }

    fn ended(&self, of: FinishReason) -> bool {
        matches!(&self.asked.end, Some(Ok((reason, _))) if *reason == of)
    }
}

/// The input: a model, and moves of two bytes and more each: a text, an embedding, a score, a cancellation, or turns.
///
/// After every turn the bytes of the cache are counted by hand ([`Rig::turn`]). Texts are those of a request that is alone. Who
/// came first begins first. What is said to be cached was computed by others of its space, and where nothing had to go, all of
/// what ended ones computed is found.
pub(super) fn turns(data: &[u8]) {
    let mut input = Input(data);
    let model = input.pick(&MODELS);
    let options = EngineOptions {
        prefill_chunk: 16 + input.below(64),
        step_tokens: 64 + input.below(64),
        max_sequences: 1 + input.below(5),
        drafter: (input.below(2) == 1).then_some(|| Box::<Lookup>::default()),
        ..EngineOptions::default()
    };
    let mut rig = Rig::new(model, LlmBackendKind::Cpu, PAGES * PAGE, options);
    let mut texts: Vec<Text> = Vec::new();
    // Of requests without tokens only how many there are and were.
    let (mut others, ended): (Vec<Other>, _) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..MOVES {
        if input.is_empty() {
            break;
        }
        match input.below(8) {
            0..3 if texts.len() + others.len() < REQUESTS => {
                let idle = all_ended(&texts, &others, &ended);
                let open = texts.iter_mut().filter(|text| text.asked.end.is_none());
                open.for_each(|text| text.undisturbed = false);
                let text = ask(&mut rig, model, &mut input);
                texts.push(Text { undisturbed: idle && model == MODELS[0], ..text });
            }
            3 if texts.len() + others.len() < REQUESTS => {
                let (prompt, space) = (prompt(&rig, &mut input), input.below(3));
                rig.space = space_of(space);
                let kind = kind(&mut input, prompt.len(), &ended);
                others.push(rig.send(prompt, kind));
            }
            4 if !texts.is_empty() => {
                let which = input.below(texts.len());
                texts[which].asked.cancel.store(true, Ordering::Relaxed);
            }
            5 if !others.is_empty() => others[input.below(others.len())].store(true, Ordering::Relaxed),
            _ => (0..=input.below(8)).for_each(|_| turn(&mut rig, &mut texts, &others, &ended)),
        }
    }
    for _ in 0..4096 {
        if all_ended(&texts, &others, &ended) {
            return;
        }
        turn(&mut rig, &mut texts, &others, &ended);
    }
    panic!("the engine does not come to an end");
}

fn all_ended(texts: &[Text], others: &[Other], ended: &AtomicUsize) -> bool {
    texts.iter().all(|text| text.asked.end.is_some()) && ended.load(Ordering::Relaxed) == others.len()
}

fn space_of(space: usize) -> Option<Arc<str>> {
    [None, Some("a"), Some("b")][space].map(Into::into)
}

/// One of three beginnings, one of four ends, of 1 to 250 tokens in all.
fn prompt(rig: &Rig, input: &mut Input) -> Vec<u32> {
    let begin = rig.prompt(input.below(3) as u64, input.below(180));
    let end = rig.prompt(50 + input.below(4) as u64, 1 + input.below(70));
    [begin, end].concat()
}

fn ask(rig: &mut Rig, model: &'static str, input: &mut Input) -> Text {
    let (prompt, space) = (prompt(rig, input), input.below(3));
    let max_tokens = 1 + input.below(GENERATED);
    rig.space = space_of(space);
    let asked = rig.ask(prompt.clone(), max_tokens);
    let alone = alone(model, &prompt)[..max_tokens].to_vec();
    Text { asked, prompt, max_tokens, space, alone, undisturbed: false }
}

/// The text of a prompt by an engine of its own, which is computed once in this process.
fn alone(model: &'static str, prompt: &[u32]) -> Vec<u32> {
    /// By model and prompt.
    type Texts = BTreeMap<(&'static str, Vec<u32>), Vec<u32>>;
    static TEXTS: OnceLock<Mutex<Texts>> = OnceLock::new();
    let mut texts = TEXTS.get_or_init(Mutex::default).lock().expect("nobody panics with it");
    if texts.len() > 4096 {
        texts.clear();
    }
    let text = texts
        .entry((model, prompt.to_vec()))
        .or_insert_with(|| Rig::alone(model, LlmBackendKind::Cpu, prompt.to_vec(), GENERATED));
    text.clone()
}

/// Counts a request as ended when the engine lets go of it, and holds what came against what was asked.
struct Ended {
    ended: Arc<AtomicUsize>,
    rows: usize,
}

impl Ended {
    fn another(&mut self) -> usize {
        self.rows += 1;
        self.rows
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// An embedding, or a score of some rows, which may be none or behind the prompt.
fn kind(input: &mut Input, len: usize, ended: &Arc<AtomicUsize>) -> RequestKind {
    let mut count = Ended { ended: Arc::clone(ended), rows: 0 };
    if input.flag() {
        let answer = Answer::new(move |vector: crate::error::Result<Vec<f32>>| {
            let length: f32 = vector.expect("an embedding that fits").iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-3, "{length}");
            drop(count);
        });
        return RequestKind::Embed(EmbedRequest::mean(answer));
    }
    let start = input.below(256);
    let rows: Range<usize> = start..start + input.below(8);
    let (refused, most) = (rows.is_empty() || rows.end > len, rows.len());
    let sink = RowSink::new(move |row| {
        let rows = count.another();
        assert!(row.is_err() == refused && rows <= most.max(1), "{row:?}");
        true
    });
    RequestKind::Score(ScoreRequest { rows, sink })
}

/// What cancels a request without tokens.
type Other = Arc<AtomicBool>;

fn turn(rig: &mut Rig, texts: &mut [Text], others: &[Other], ended: &AtomicUsize) {
    let load = rig.turn();
    let mut fresh = Vec::new();
    for (i, text) in texts.iter_mut().enumerate() {
        let had_ended = text.asked.end.is_some();
        text.asked.look();
        assert!(
            text.alone.starts_with(&text.asked.tokens),
            "{:?} is not {:?}",
            text.asked.tokens,
            text.alone
        );
        if !had_ended && text.asked.end.is_some() {
            text.undisturbed &= load.kv.evicted == 0;
            fresh.push(i);
        }
    }
    let open = |text: &&Text| text.asked.end.is_none();
    let alive = texts.iter().filter(open).count() + others.len() - ended.load(Ordering::Relaxed);
    assert_eq!(load.running + load.queued, alive, "{load:?}");
    // Who has a token runs, and so does everybody of the same owner who came before.
    let before = |space: usize| {
        let own: Vec<&Text> = texts.iter().filter(|text| text.space == space).collect();
        let last = own.iter().rposition(|text| open(text) && !text.asked.tokens.is_empty());
        last.map_or(0, |last| own[..=last].iter().filter(|text| open(text)).count())
    };
    let before: usize = (0..3).map(before).sum();
    assert!(load.running >= before, "{load:?}: {before} run, or are before one that does");
    for i in fresh {
        ends(texts, i, others.is_empty());
    }
}

/// How a text ended, and what it found of others.
fn ends(texts: &[Text], i: usize, only_texts: bool) {
    let text = &texts[i];
    let (reason, stats) = match text.asked.end.as_ref() {
        Some(Ok(end)) => end,
        other => {
            panic!("{:?} tokens of prompt, {} to generate: {other:?}", text.prompt.len(), text.max_tokens)
        }
    };
    match reason {
        FinishReason::Length => assert_eq!(text.asked.tokens, text.alone),
        FinishReason::Cancelled => assert!(text.asked.cancel.load(Ordering::Relaxed)),
        FinishReason::Stop => panic!("nothing stops it"),
    }
    let most = text.prompt.len() - 1;
    let common = |other: &Text| {
        let same = other.computed().iter().zip(&text.prompt).take_while(|(a, b)| a == b).count();
        same.min(most)
    };
    let neighbours = || texts.iter().enumerate().filter(|(j, other)| *j != i && other.space == text.space);
    let found = neighbours().map(|(_, other)| common(other)).max().unwrap_or(0);
    // Others that have no tokens, such as scores, are kept, too.
    assert!(
        !only_texts || stats.cached_tokens <= found,
        "{stats:?}: at most {found} were computed by others"
    );
    assert!(stats.cached_tokens <= most, "{stats:?}");
    if text.undisturbed && text.ended(FinishReason::Length) {
        let kept = neighbours().filter(|(_, other)| other.ended(FinishReason::Length)).map(|(_, other)| {
            // The last token is in no cache.
            common(other).min(other.prompt.len() + other.asked.tokens.len() - 1)
        });
        let kept = kept.max().unwrap_or(0);
        assert!(stats.cached_tokens >= kept, "{stats:?}: {kept} were kept");
    }
}
