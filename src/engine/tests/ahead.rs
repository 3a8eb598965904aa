//! Layers that guess the token after the next: their logits are those of transformers' modules (tools/fixtures/ahead.py), and no text
//! depends on what they guess.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::*;
use crate::backend::LlmBackendDispatch;
use crate::backend::batch::Batch;
use crate::backend::cpu::CpuBackend;
use crate::backend::kv::KvType;
use crate::engine::draft::{ByAhead, Drafter, Guess, Lookup, OTHERS, Pays, Sign};
use crate::engine::rig::runtime_at;
use crate::engine::{Drafts, Runtime, Stats};
use crate::forward::{Architecture, FIRST};
use crate::tensor::{DType, HostTensor, MatrixView};
use crate::weights::Checkpoint;
use crate::{BackendRequest, LoadOptions, ModelFiles};

const MODELS: [&str; 7] = [
    "qwen3_5-nested",
    "qwen3_5-tiled",
    "qwen3_5_moe-nested",
    "qwen3_next-threes",
    "deepseek_v3-plain",
    "glm4_moe-groups",
    "glm4_moe_lite-flash",
];

fn folder(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ahead").join(model)
}

fn with_ahead(model: &str, kind: LlmBackendKind) -> Runtime {
    runtime_at(&folder(model), kind, Routing::default(), None)
}

/// What transformers made of it.
struct Expected {
    tokens: Vec<u32>,
    /// `[N, D]`
    hidden: HostTensor,
    /// `[N - 1, V]`
    logits: HostTensor,
    guesses: Vec<u32>,
    /// `[G, V]`
    chained: HostTensor,
}

impl Expected {
    fn of(model: &str) -> Self {
        let bytes = std::fs::read(folder(model).join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let ids = |name: &str| bytemuck::pod_collect_to_vec::<u8, u32>(file.tensor(name).unwrap().data());
        let rows = |name: &str| {
            let view = file.tensor(name).unwrap();
            HostTensor::from_vec(view.shape(), bytemuck::pod_collect_to_vec::<u8, f32>(view.data()))
        };
        Self {
            tokens: ids("tokens"),
            hidden: rows("hidden"),
            logits: rows("logits"),
            guesses: ids("guesses"),
            chained: rows("chained"),
        }
    }

    /// Rows `range` of the model's states.
    fn carried(&self, range: std::ops::Range<usize>) -> HostTensor {
        part(&self.hidden, range)
    }
}

fn part(of: &HostTensor, rows: std::ops::Range<usize>) -> HostTensor {
    let values: Vec<f32> = rows.clone().flat_map(|row| of.row(row).to_vec()).collect();
    HostTensor::from_vec(&[rows.len(), of.shape()[1]], values)
}

/// The largest difference, in standard deviations of what was expected.
fn difference(got: &HostTensor, expected: &HostTensor) -> f32 {
    assert_eq!(got.shape(), expected.shape());
    let count = expected.data().len() as f32;
    let mean = expected.data().iter().sum::<f32>() / count;
    let variance = expected.data().iter().map(|x| (x - mean).powi(2)).sum::<f32>() / count;
    let largest = got.data().iter().zip(expected.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    largest / variance.sqrt()
}

/// The logits of all rows, in steps of `chunk`.
fn logits(layer: &Runtime, expected: &Expected, chunk: usize) -> HostTensor {
    let (mut state, mut all) = (layer.sequence(expected.tokens.len()), Vec::new());
    let last = expected.tokens.len() - 1;
    for first in (0..last).step_by(chunk) {
        let end = (first + chunk).min(last);
        let mut batch = Batch::of(&[(first, &expected.tokens[first + 1..=end])]);
        batch.outputs = (0..end - first).collect();
        let carried = expected.carried(first..end);
        let outputs = layer.step_behind(&batch, carried, false, std::slice::from_mut(&mut state)).unwrap();
        all.extend_from_slice(outputs.logits.data());
    }
    HostTensor::from_vec(&[last, all.len() / last], all)
}

#[test]
fn logits_are_those_of_transformers() {
    for model in MODELS {
        let expected = Expected::of(model);
        for kind in backends() {
            let runtime = with_ahead(model, kind);
            let layer = runtime.ahead().unwrap_or_else(|| panic!("{model} has no layer ahead"));
            let whole = logits(layer, &expected, usize::MAX);
            let worst = difference(&whole, &expected.logits);
            assert!(worst < 1e-4, "{model} on {kind}: {worst}");
            for chunk in [1, 7] {
                let parts = logits(layer, &expected, chunk);
                match kind {
                    LlmBackendKind::Cpu => assert!(parts.data() == whole.data(), "{model} by {chunk}"),
                    LlmBackendKind::Mlx => assert!(difference(&parts, &expected.logits) < 1e-4, "{model}"),
                }
            }
            // What the model itself makes of the text is what the layer reads.
            let mut state = runtime.sequence(expected.tokens.len());
            let batch = Batch::of(&[(0, &expected.tokens)]);
            let launched = runtime.launch(&batch, std::slice::from_mut(&mut state), true).unwrap();
            let outputs = runtime.outputs(&launched, true).unwrap();
            assert!(difference(&outputs.hidden.unwrap(), &expected.hidden) < 1e-4, "{model} on {kind}");
        }
    }
}

/// A GGUF file has it as one layer more, by other names.
#[test]
fn gguf_files_have_the_same_layer() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/qwen3_5-tiled.gguf");
    let mut checkpoint = Checkpoint::open(&path).unwrap();
    let mut architecture = Architecture::from_gguf(&checkpoint).unwrap();
    architecture.adopt(&mut checkpoint).unwrap();
    let cpu = CpuBackend::new(Some(1), None);
    let dispatch = LlmBackendDispatch::of(LlmBackendKind::Cpu, DType::F32, cpu, Routing::default()).unwrap();
    let (config, layer) = architecture.load(&checkpoint, &dispatch, true).unwrap().ahead.unwrap();
    let layer = Runtime::new(Arc::new(config), layer, dispatch, KvType::F32).unwrap();
    let expected = Expected::of("qwen3_5-tiled");
    let worst = difference(&logits(&layer, &expected, usize::MAX), &expected.logits);
    assert!(worst < 1e-4, "{worst}");
}

/// A file may hold the layer alone, beside a file without: it is the draft of a model of its sizes.
#[test]
fn a_file_may_hold_the_layer_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let file = root.join("ahead/mtp-qwen3_5-tiled.gguf");
    let load = |model: &str, draft: Option<&PathBuf>| {
        let files = ModelFiles::open(&root.join(model)).unwrap();
        let backend = BackendRequest::Cpu;
        Model::load_with(files, LoadOptions { backend, draft: draft.cloned(), ..LoadOptions::default() })
    };
    let options = Options { max_tokens: Some(40), ..Options::default() };
    let text = |model: Model| {
        let prompt = Expected::of("qwen3_5-tiled").tokens;
        let mut generation = model.generate_tokens(prompt, &options).unwrap();
        generation.by_ref().for_each(|piece| drop(piece.unwrap()));
        generation.tokens().to_vec()
    };
    let [plain, drafted] =
        [None, Some(&file)].map(|draft| text(load("models/qwen3_5-tiled", draft).unwrap()));
    assert!(plain.len() == 40 && drafted == plain, "{drafted:?} is not {plain:?}");
    for model in ["models/qwen3_5-delta", "models/llama-bias"] {
        let error = load(model, Some(&file)).unwrap_err().to_string();
        assert!(error.contains("draft") && error.contains("44 tokens"), "{error}");
    }
    // By itself it is no model.
    assert!(load("ahead/mtp-qwen3_5-tiled.gguf", None).is_err());
    // Its layer is the one that transformers' modules are.
    let mut checkpoint = Checkpoint::open(&file).unwrap();
    let mut architecture = Architecture::from_gguf(&checkpoint).unwrap();
    architecture.adopt(&mut checkpoint).unwrap();
    let model = runtime("qwen3_5-tiled", LlmBackendKind::Cpu, Routing::default());
    let (ahead, linears) = architecture.load_ahead(&checkpoint, model.dispatch(), model.forward()).unwrap();
    assert!(!linears.is_empty());
    let model = model.with_ahead(ahead.unwrap(), KvType::F32, checkpoint.watch()).unwrap();
    let expected = Expected::of("qwen3_5-tiled");
    let worst = difference(&logits(model.ahead().unwrap(), &expected, usize::MAX), &expected.logits);
    assert!(worst < 1e-4, "{worst}");
}

/// However what the model made comes, in cuts, twice, or all at once, the guesses are those of one pass over it.
#[test]
fn guesses_are_those_of_one_pass() {
    for model in MODELS {
        let expected = Expected::of(model);
        let last = expected.tokens.len() - 1;
        for kind in backends() {
            let runtime = with_ahead(model, kind);
            let layer = runtime.ahead().unwrap();
            let vocab = expected.logits.shape()[1];
            let logits_of = |guess: &Guess| {
                assert_eq!(guess.tokens, expected.guesses, "{model} on {kind}");
                let likely = |row: usize| {
                    let row = expected.chained.row(row);
                    let most = row.iter().copied().fold(f32::MIN, f32::max);
                    1.0 / row.iter().map(|x| (x - most).exp()).sum::<f32>()
                };
                for (i, sign) in guess.signs.iter().enumerate() {
                    let Sign::Likely(got) = sign else { panic!("{sign:?}") };
                    assert!((got - likely(i)).abs() < 1e-3, "{model} on {kind}: {got} {}", likely(i));
                }
            };
            for cuts in [vec![last], vec![1; last], vec![3, last - 3], vec![last - 1, 1]] {
                let mut drafter = ByAhead::new(Rc::clone(layer), vocab, Lookup::default());
                let (mut start, mut guessed, by_one) = (0, 0, cuts.len() == last);
                for cut in cuts {
                    // Some of it was seen already.
                    let from = start.max(2) - 2;
                    let rows = expected.carried(from..start + cut);
                    drafter.see(from, rows.view()).unwrap();
                    start += cut;
                    // Guesses on the way leave nothing behind.
                    if start % 4 == 0 && start < last {
                        let tokens = &expected.tokens[..=start];
                        guessed += drafter.guess(tokens, 1, 3, &mut |_| true).unwrap().tokens.len();
                    }
                }
                assert!(guessed > 0 || !by_one, "{model} on {kind}");
                logits_of(&drafter.guess(&expected.tokens, 1, 4, &mut |_| true).unwrap());
            }
        }
    }
}

/// Of more than it keeps, and behind a hole, it goes on with what comes last.
#[test]
fn what_was_missed_is_left_out() {
    let expected = Expected::of("qwen3_5-nested");
    let last = expected.tokens.len() - 1;
    let runtime = with_ahead("qwen3_5-nested", LlmBackendKind::Cpu);
    let layer = runtime.ahead().unwrap();
    let vocab = expected.logits.shape()[1];
    let guess = |seen: &[[usize; 2]]| {
        let mut drafter = ByAhead::new(Rc::clone(layer), vocab, Lookup::default());
        for &[start, end] in seen {
            drafter.see(start, expected.carried(start..end).view()).unwrap();
        }
        drafter.guess(&expected.tokens, 1, 4, &mut |_| true).unwrap()
    };
    let of_last = guess(&[[last - 5, last]]);
    assert_eq!(of_last.tokens.len(), 4);
    let behind_a_hole = guess(&[[0, last - 20], [last - 5, last]]);
    assert_eq!((behind_a_hole.tokens, behind_a_hole.signs), (of_last.tokens, of_last.signs));
    // What it has is not what comes before the last token: only copies are left.
    let copied = guess(&[[0, last - 1]]);
    assert!(copied.signs.iter().all(|sign| !matches!(sign, Sign::Likely(_))), "{copied:?}");
    // Five times the text, at once and in pieces: the same, or what it keeps begins elsewhere, and there are guesses all the same.
    let long: Vec<u32> = (0..5).flat_map(|_| expected.tokens.clone()).collect();
    let mut rows = Vec::new();
    (0..5).for_each(|_| rows.extend_from_slice(expected.hidden.data()));
    let rows = HostTensor::from_vec(&[long.len(), expected.hidden.shape()[1]], rows);
    for cut in [long.len(), 64, 1] {
        let mut drafter = ByAhead::new(Rc::clone(layer), vocab, Lookup::default());
        for first in (0..long.len() - 1).step_by(cut) {
            let end = (first + cut).min(long.len() - 1);
            drafter.see(first, part(&rows, first..end).view()).unwrap();
        }
        // Nothing of it is copied.
        let fresh: Vec<u32> = (0..long.len() as u32).collect();
        let tokens: Vec<u32> = fresh.iter().map(|at| at % vocab as u32).collect();
        assert!(!drafter.guess(&tokens, long.len(), 4, &mut |_| true).unwrap().tokens.is_empty(), "{cut}");
    }
}

/// Of a large vocabulary a part of the head guesses, with the same numbers, unless the text is of other tokens.
#[test]
fn the_first_tokens_have_a_head_of_their_own() {
    const VOCAB: usize = FIRST + 300;
    const EMBEDDING: &str = "model.language_model.embed_tokens.weight";
    let source = folder("qwen3_5-nested");
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let own = file.tensor(EMBEDDING).unwrap();
    let (rows, row) = (own.shape()[0], own.shape()[1] * size_of::<f32>());
    // The same rows again and again: who is the first of equals is not asked.
    let table: Vec<u8> = (0..VOCAB * row).map(|i| own.data()[i % (rows * row)]).collect();
    let table = TensorView::new(Dtype::F32, vec![VOCAB, own.shape()[1]], &table).unwrap();
    let others = file.tensors().into_iter().filter(|(name, _)| name != EMBEDDING);
    let views: Vec<(String, TensorView<'_>)> = others.chain([(EMBEDDING.to_owned(), table)]).collect();
    let path = tempfile::tempdir().unwrap();
    std::fs::write(path.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let config = config.replace("\"vocab_size\": 66", &format!("\"vocab_size\": {VOCAB}"));
    std::fs::write(path.path().join("config.json"), config).unwrap();
    let runtime = runtime_at(path.path(), LlmBackendKind::Cpu, Routing::default(), None);
    let (layer, expected) = (runtime.ahead().unwrap(), Expected::of("qwen3_5-nested"));
    let last = expected.tokens.len() - 1;
    let [whole, first] = [false, true].map(|of_first| {
        let mut state = layer.sequence(last);
        let batch = Batch::of(&[(0, &expected.tokens[1..])]);
        let carried = expected.carried(0..last);
        layer.step_behind(&batch, carried, of_first, std::slice::from_mut(&mut state)).unwrap().logits
    });
    assert_eq!((whole.shape(), first.shape()), (&[1, VOCAB][..], &[1, FIRST][..]));
    assert!(whole.row(0)[..FIRST] == *first.row(0));
    // What the drafter takes, by the probabilities that it tells.
    let likely = |row: &[f32]| {
        1.0 / row.iter().map(|x| (x - row.iter().copied().fold(f32::MIN, f32::max)).exp()).sum::<f32>()
    };
    for (high, logits) in [(0, &first), (OTHERS, &first), (OTHERS + 1, &whole)] {
        let mut drafter = ByAhead::new(Rc::clone(layer), VOCAB, Lookup::default());
        // Of the last 64 tokens so many are others; what the layer reads is the same, row by row.
        let mut tokens = expected.tokens.clone();
        for token in tokens.iter_mut().rev().take(high) {
            *token += (FIRST.next_multiple_of(rows)) as u32;
        }
        drafter.see(0, expected.carried(0..last).view()).unwrap();
        let guess = drafter.guess(&tokens, 1, 1, &mut |_| true).unwrap();
        let Sign::Likely(got) = guess.signs[0] else { panic!("{guess:?}") };
        assert!((got / likely(logits.row(0)) - 1.0).abs() < 1e-3, "{high}: {got}");
    }
}

thread_local! {
    /// The layer that guesses.
    static LAYER: RefCell<Option<Rc<Runtime>>> = const { RefCell::new(None) };
}

/// The guesses of a layer ahead, whether they pay or not.
struct Always(ByAhead);

impl Drafter for Always {
    fn guess(&mut self, tokens: &[u32], prompt: usize, most: usize, _: Pays<'_>) -> Result<Guess, Error> {
        self.0.guess(tokens, prompt, most, &mut |guess| guess.tokens.len() < 3)
    }

    fn sees(&self) -> bool {
        true
    }

    fn see(&mut self, start: usize, made: MatrixView<'_>) -> Result<(), Error> {
        self.0.see(start, made)
    }
}

#[test]
fn no_text_depends_on_them() {
    for model in MODELS {
        for kind in backends() {
            let mut plain = Rig::at(&folder(model), kind, 4096, EngineOptions::default());
            let prompts = [plain.prompt(5, 70), plain.prompt(6, 9), plain.prompt(7, 200)];
            let answers = prompts.clone().map(|prompt| {
                let mut asked = plain.ask(prompt, 40);
                plain.finish(&mut asked);
                asked.tokens
            });
            let runtime = with_ahead(model, kind);
            LAYER.set(runtime.ahead().cloned());
            let drafter: fn() -> Box<dyn Drafter> = || {
                let layer = LAYER.with_borrow(|layer| layer.clone().unwrap());
                let vocab = layer.config().vocab_size;
                Box::new(Always(ByAhead::new(layer, vocab, Lookup::default())))
            };
            let options =
                EngineOptions { drafter: Some(drafter), prefill_chunk: 64, ..EngineOptions::default() };
            let mut rig = Rig::at(&folder(model), kind, 4096, options);
            // One alone, two beside each other, and one whose beginning is kept.
            let mut drafted = 0;
            let mut asked = vec![rig.ask(prompts[0].clone(), 40)];
            rig.finish(&mut asked[0]);
            asked.extend([1, 2, 0].map(|i: usize| rig.ask(prompts[i].clone(), 40)));
            (1..4).for_each(|i| rig.finish(&mut asked[i]));
            for (asked, answer) in asked.into_iter().zip([0, 1, 2, 0].map(|i: usize| &answers[i])) {
                // In the shapes of several rows MLX's sums have other orders.
                assert!(&asked.tokens == answer || kind == LlmBackendKind::Mlx, "{model}");
                let (_, Stats { drafted_tokens, accepted_tokens, .. }) = asked.end.unwrap().unwrap();
                assert!(accepted_tokens <= drafted_tokens);
                drafted += drafted_tokens;
            }
            assert!(drafted > 40, "{model} on {kind}: {drafted}");
        }
    }
}

/// A model that has such a layer uses it where nobody says otherwise and it pays, and its memory is counted.
#[test]
fn its_memory_is_counted_and_its_texts_are_the_models() {
    let mut plain = Rig::at(&folder("qwen3_5-nested"), LlmBackendKind::Cpu, 4096, EngineOptions::default());
    let mut rig = Rig::at(&folder("qwen3_5-nested"), LlmBackendKind::Cpu, 4096, EngineOptions::default());
    rig.worker.set_drafts(Drafts::Auto);
    let layer = with_ahead("qwen3_5-nested", LlmBackendKind::Cpu);
    let cost = layer.ahead().unwrap().kv_cost(1);
    assert_eq!(rig.budget.beside, cost.token + cost.windowed);
    assert!(cost.token > 0);
    let prompt = plain.prompt(3, 40);
    let [alone, asked] = [&mut plain, &mut rig].map(|rig| {
        let mut asked = rig.ask(prompt.clone(), 80);
        rig.finish(&mut asked);
        asked.tokens
    });
    assert!(asked.len() == 80 && asked == alone);
}

/// Files that say that they have such a layer, and do not, and those whose layer has other shapes, are models without one.
#[test]
fn files_without_one_run_without() {
    for (model, has) in [("qwen3_5-nested", true), ("qwen3_5-delta", false), ("deepseek_v3-plain", false)] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(model);
        let mut architecture = Architecture::read(&path.join("config.json")).unwrap();
        assert!(architecture.ahead().is_some(), "{model} may have one");
        let mut checkpoint = Checkpoint::open(&path).unwrap();
        architecture.adopt(&mut checkpoint).unwrap();
        assert_eq!(architecture.ahead().is_some(), has, "{model}");
    }
}
