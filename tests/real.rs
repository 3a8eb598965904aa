//! Trained models against what llama.cpp and Hugging Face's tokenizers make of them, where `cargo xtask
//! real-models` has put them under `target/real-models`. `tools/real/make.py` writes what is expected.
//!
//! They run on the CPU: builds with the feature `mlx` leave that to the one without.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use backstop::backend::cpu::Activations;
use backstop::backend::kv::KvType;
use backstop::backend::select::BackendRequest;
use backstop::text::{Message, Specials};
use backstop::{Infill, LoadOptions, Model, ModelFiles, Options};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A model.
struct Real {
    /// Its folder, and the name of what is expected.
    name: &'static str,
    /// As users run it: activations get eight bits in front of quantized matrices.
    usual: OnceLock<Option<Model>>,
}

static SMOLLM2: Real = Real::new("smollm2-135m-instruct");
static QWEN2: Real = Real::new("qwen2.5-coder-0.5b-instruct");
static GEMMA3: Real = Real::new("gemma-3-270m");
static MINILM: Real = Real::new("all-minilm-l6-v2");

/// Least cosine of an embedder's vectors and sentence-transformers'.
const COSINE: f64 = 0.99999;

/// Most that the difference of two logits may be from transformers' in f32 where no activation is rounded: sums have other
/// orders, and what is expected has four decimals.
const EXACT: f32 = 0.0002;
/// Most that eight bits for activations may do to the differences of logits, as a ratio to what they do in
/// llama.cpp, of root mean squares. llama.cpp's own are twice as large in one chat as in another.
const ROUNDING: f32 = 1.25;

/// Texts whose ids are llama.cpp's here, which takes a token of this spelling for the end of a text in any vocabulary;
/// Hugging Face's tokenizer cuts it in three.
const ENDS: [(&str, &str); 1] = [("qwen2.5-coder-0.5b-instruct", "</s>")];

/// Most that the perplexity may be from llama.cpp's, as a part of it.
const PERPLEXITY: f64 = 0.005;

#[derive(Deserialize)]
struct Expected {
    /// Of each text of `texts.json`.
    ids: Vec<Vec<u32>>,
    chats: Vec<Greedy>,
    docs: Docs,
}

/// A prompt and what llama.cpp adds to it.
#[derive(Deserialize)]
struct Greedy {
    messages: Option<Vec<Message>>,
    text: Option<String>,
    prompt: Vec<u32>,
    ids: Vec<u32>,
    /// The two likeliest tokens of each step with their logits.
    top: Vec<(u32, f32, u32, f32)>,
    /// These logits in transformers, in f32.
    exact: Vec<(f32, f32)>,
}

#[derive(Deserialize)]
struct Docs {
    window: usize,
    scored: usize,
    /// The sum of each window's negative log-likelihoods.
    nll: Vec<f64>,
    ids: Vec<u32>,
}

impl Real {
    const fn new(name: &'static str) -> Self {
        Self { name, usual: OnceLock::new() }
    }

    fn skip<T>(&self, reason: impl Display) -> Option<T> {
        println!("skipped: {}: {reason}", self.name);
        None
    }

    fn expected(&self) -> Expected {
        fixture(&format!("{}.json", self.name))
    }

    /// Its headers, or none where it cannot be had.
    fn files(&self) -> Option<ModelFiles> {
        let folder = root().join("target/real-models").join(self.name);
        if !folder.is_dir() {
            return self
                .skip(format_args!("{} is absent; `cargo xtask real-models` makes it", folder.display()));
        }
        match ModelFiles::open(&folder) {
            Ok(files) => Some(files),
            Err(error) => panic!("{}: {error}", self.name),
        }
    }

    /// The model on the CPU.
    fn load(&self, activations: Activations, kv_type: Option<KvType>) -> Option<Model> {
        if cfg!(feature = "mlx") {
            return self.skip("the build without the feature mlx runs it");
        }
        if std::env::var_os("BACKSTOP_UNOPTIMISED").is_some() {
            return self.skip("unoptimised kernels take many minutes");
        }
        let options =
            LoadOptions { backend: BackendRequest::Cpu, activations, kv_type, ..LoadOptions::default() };
        self.files().map(|files| Model::load_with(files, options).unwrap())
    }

    /// As users run it, loaded once for all tests.
    fn model(&self) -> Option<&Model> {
        self.usual.get_or_init(|| self.load(Activations::default(), None)).as_ref()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn path(name: &str) -> PathBuf {
    root().join("tests/fixtures/real").join(name)
}

fn fixture<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&fs::read(path(name)).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Hard texts, and prose.
fn token_ids(real: &Real) {
    let Some(files) = real.files() else { return };
    let tokenizer = files.tokenizer().unwrap().unwrap();
    let encode = |text: &str| tokenizer.encode_with(text, Specials { add: false, parse: true }).unwrap();
    let (texts, expected): (Vec<String>, _) = (fixture("texts.json"), real.expected());
    assert!(texts.len() >= 200 && texts.len() == expected.ids.len(), "{} texts", texts.len());
    let cases = texts.iter().zip(&expected.ids).map(|(text, ids)| (text, encode(text), ids));
    let known = |text: &str| ENDS.contains(&(real.name, text));
    let failed: Vec<_> = cases.filter(|(text, got, ids)| (got != *ids) != known(text)).collect();
    assert!(
        failed.is_empty(),
        "{} of {} differ, (text, got, expected): {failed:?}",
        failed.len(),
        texts.len()
    );
    let docs = encode(&fs::read_to_string(path("docs.txt")).unwrap());
    assert!(docs.starts_with(&expected.docs.ids), "docs.txt");
    println!("{}: {} texts, {} tokens of prose", real.name, texts.len(), expected.docs.ids.len());
}

/// What a model says of the two tokens that llama.cpp finds likeliest in a step.
struct Step {
    /// The likeliest here.
    taken: u32,
    /// By how much its logit is above that of llama.cpp's likeliest.
    lead: f32,
    /// By how much the logit of llama.cpp's likeliest is above that of its second.
    gap: f32,
}

/// Each step of `chat`, after the tokens that llama.cpp took before it.
fn steps(model: &Model, chat: &Greedy) -> Vec<Step> {
    let all = [&chat.prompt[..], &chat.ids[..chat.ids.len() - 1]].concat();
    let rows = &model.logits(&all).unwrap()[chat.prompt.len() - 1..];
    assert_eq!(
        (rows.len(), chat.top.len(), chat.exact.len()),
        (chat.ids.len(), chat.ids.len(), chat.ids.len())
    );
    let step = |(row, &(first, _, second, _)): (&Vec<f32>, &(u32, f32, u32, f32))| {
        let at = |id: u32| row[id as usize];
        let taken = argmax(row);
        Step { taken, lead: at(taken) - at(first), gap: at(first) - at(second) }
    };
    rows.iter().zip(&chat.top).map(step).collect()
}

/// Root mean square, and the most.
fn size(values: impl Iterator<Item = f32>) -> (f32, f32) {
    let (mut squares, mut most, mut count) = (0.0, 0.0f32, 0);
    for value in values {
        squares += value * value;
        most = most.max(value.abs());
        count += 1;
    }
    ((squares / count as f32).sqrt(), most)
}

/// Without rounding, the logits are transformers'.
fn exact(real: &Real) {
    let Some(model) = real.load(Activations::F32, Some(KvType::F32)) else { return };
    for (number, chat) in (1..).zip(&real.expected().chats) {
        let exact = chat.exact.iter().map(|(first, second)| first - second);
        let (rms, most) = size(steps(&model, chat).iter().zip(exact).map(|(own, exact)| own.gap - exact));
        println!("{}, chat {number}: exact gaps differ by {rms:.5} rms, {most:.5} at most", real.name);
        assert!(most <= EXACT, "{}, chat {number}: {most}", real.name);
    }
}

/// The greedy continuation is llama.cpp's. Where they part, rounding explains it.
fn greedy(real: &Real) {
    let Some(model) = real.model() else { return };
    let tokenizer = model.tokenizer().unwrap();
    let shown = |id: u32| format!("{id} ({:?})", tokenizer.decode(&[id]).unwrap());
    let chats = real.expected().chats;
    // What the rounding of eight bits does to a gap, in llama.cpp.
    let gaps = chats.iter().flat_map(|chat| chat.top.iter().zip(&chat.exact));
    let (their_rms, their_most) = size(gaps.map(|(top, exact)| top.1 - top.3 - (exact.0 - exact.1)));
    let mut off = Vec::new();
    for (number, chat) in (1..).zip(&chats) {
        let prompt = match (&chat.messages, &chat.text) {
            (Some(messages), None) => model.encode_chat(messages).unwrap(),
            (None, Some(text)) => tokenizer.encode(text).unwrap(),
            _ => panic!("chat {number} has messages or a text, and not both"),
        };
        assert_eq!(prompt, chat.prompt, "{}, prompt {number}", real.name);
        let steps = steps(model, chat);
        for (at, (own, (top, exact))) in steps.iter().zip(chat.top.iter().zip(&chat.exact)).enumerate() {
            off.push(own.gap - (exact.0 - exact.1));
            if own.taken != top.0 {
                println!(
                    "{}, chat {number}, step {at}: {} here, {:.4} above {}; this in llama.cpp, {:.4} above {}",
                    real.name,
                    shown(own.taken),
                    own.lead,
                    shown(top.0),
                    top.1 - top.3,
                    shown(top.2),
                );
                assert!(
                    own.lead.max(top.1 - top.3) <= 2.0 * their_most,
                    "rounding explains {}",
                    2.0 * their_most
                );
            }
        }
        // What is generated step by step is what these logits say, to the first token that is another.
        let options = Options { max_tokens: Some(chat.ids.len()), ignore_eos: true, ..Options::default() };
        let mut generation = model.generate_tokens(prompt, &options).unwrap();
        assert!(generation.by_ref().all(|piece| piece.is_ok()));
        let own: Vec<u32> = steps.iter().map(|own| own.taken).collect();
        let common = own.iter().zip(&chat.ids).take_while(|(own, theirs)| own == theirs).count();
        let compared = (common + 1).min(own.len());
        assert_eq!(generation.tokens()[..compared], own[..compared], "{}, chat {number}", real.name);
        println!("{}, chat {number}: the first {common} of {} tokens are llama.cpp's", real.name, own.len());
    }
    let (rms, most) = size(off.into_iter());
    println!(
        "{}: gaps differ from exact ones by {rms:.4} rms, {most:.4} at most; \
         llama.cpp's by {their_rms:.4}, {their_most:.4}",
        real.name
    );
    assert!(rms <= ROUNDING * their_rms, "{}: {rms} beside llama.cpp's {their_rms}", real.name);
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32
}

/// On the project's own prose.
fn perplexity(real: &Real) {
    let Some(model) = real.model() else { return };
    let docs = real.expected().docs;
    let bos = model.tokenizer().unwrap().encode_with("", Specials { add: true, parse: false }).unwrap();
    let (mut sum, mut scored) = (0.0, 0);
    for (i, ids) in docs.ids.chunks(docs.window).enumerate() {
        let ids = [&bos[..], ids].concat();
        let rows = model.logits(&ids).unwrap();
        let scores = rows.iter().zip(&ids[1..]).map(|(row, &id)| negative_log_likelihood(row, id));
        let window: f64 = scores.sum();
        let off = window - docs.nll[i];
        println!("{}, window {i}: {window:.3}, {off:+.3} from llama.cpp's", real.name);
        sum += window;
        scored += ids.len() - 1;
    }
    assert_eq!((scored, docs.ids.len().div_ceil(docs.window)), (docs.scored, docs.nll.len()));
    let [got, expected] = [sum, docs.nll.iter().sum()].map(|nll: f64| (nll / scored as f64).exp());
    let off = got / expected - 1.0;
    println!("{}: perplexity {got:.4}, llama.cpp's {expected:.4}, {:+.3} %", real.name, 100.0 * off);
    assert!(off.abs() <= PERPLEXITY, "{}: {got}, expected {expected}", real.name);
}

fn negative_log_likelihood(row: &[f32], id: u32) -> f64 {
    let most = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - most).exp()).sum();
    sum.ln() + most - f64::from(row[id as usize])
}

/// Sentences, their token ids, and their vectors in sentence-transformers, which `tools/real/encoders.py` writes.
#[derive(Deserialize)]
struct Sentences {
    sentences: Vec<String>,
    ids: Vec<Vec<u32>>,
}

/// The vectors of an embedder are sentence-transformers'.
fn vectors(real: &Real) {
    let Some(model) = real.model() else { return };
    let Sentences { sentences, ids } = fixture(&format!("{}.json", real.name));
    let bytes = fs::read(path(&format!("{}.safetensors", real.name))).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let expected = tensors.tensor("vectors").unwrap();
    let width = expected.shape()[1];
    let rows = expected.data().chunks_exact(4 * width);
    assert_eq!((sentences.len(), ids.len(), rows.len()), (100, 100, 100));
    let mut least = 1.0_f64;
    for ((sentence, ids), row) in sentences.iter().zip(&ids).zip(rows) {
        let got = model.tokenizer().unwrap().encode(sentence).unwrap();
        assert_eq!(&got, ids, "{sentence:?}");
        let vector = model.embed(&got).unwrap();
        assert_eq!(vector.len(), width);
        let row: Vec<f64> =
            row.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let vector: Vec<f64> = vector.into_iter().map(f64::from).collect();
        let cosine = dot(&vector, &row) / (dot(&vector, &vector) * dot(&row, &row)).sqrt();
        assert!(cosine >= COSINE, "{sentence:?}: {cosine}");
        least = least.min(cosine);
    }
    println!("{}: cosines of {} sentences are 1 - {:.1e} at least", real.name, ids.len(), 1.0 - least);
}

/// What stands between two texts is asked for by the marks of its card; the texts of special tokens stay text.
fn infill(real: &Real) {
    let Some(model) = real.model() else { return };
    let (prefix, suffix) = ("def add(a, b):\n    return ", "\n\nprint(add(1, 2))  # é 日本\n");
    let hole = Infill { prefix: prefix.into(), suffix: suffix.into(), others: Vec::new() };
    let (ids, ends) = model.infill_prompt(&hole, None).unwrap();
    let text = format!("<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>");
    assert_eq!(ids, model.encode_prompt(&text, true).unwrap());
    for end in ["<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>"] {
        assert!(ends.contains(&model.tokenizer().unwrap().token_id(end).unwrap()), "{end}");
    }
    let hole = Infill { prefix: "<|im_end|>".into(), ..hole };
    let (ids, _) = model.infill_prompt(&hole, None).unwrap();
    assert!(!ids.contains(&model.tokenizer().unwrap().token_id("<|im_end|>").unwrap()));
    let options = Options { max_tokens: Some(4), ..Options::default() };
    let text = model.infill(&hole, &options).unwrap().text().unwrap();
    println!("{}: fills in {text:?}", real.name);
}

macro_rules! tests {
    ($($test:ident: $check:ident($real:ident);)*) => {
        $(#[test]
        fn $test() {
            $check(&$real);
        })*
    };
}

tests! {
    smollm2_token_ids: token_ids(SMOLLM2);
    smollm2_exact: exact(SMOLLM2);
    smollm2_greedy: greedy(SMOLLM2);
    smollm2_perplexity: perplexity(SMOLLM2);
    qwen2_token_ids: token_ids(QWEN2);
    qwen2_exact: exact(QWEN2);
    qwen2_greedy: greedy(QWEN2);
    qwen2_perplexity: perplexity(QWEN2);
    qwen2_infill: infill(QWEN2);
    gemma3_token_ids: token_ids(GEMMA3);
    gemma3_exact: exact(GEMMA3);
    gemma3_greedy: greedy(GEMMA3);
    gemma3_perplexity: perplexity(GEMMA3);
    minilm_vectors: vectors(MINILM);
}
