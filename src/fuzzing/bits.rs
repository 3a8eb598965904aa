//! The promise of the CPU backend: the bits of a row's logits depend on its sequence alone.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use super::input::Input;
use super::seeds::fixture;
use crate::backend::batch::{Batch, Run, Tokens};
use crate::backend::cpu::Isa;
use crate::backend::kv::KvType;
use crate::backend::select::BackendRequest;
use crate::engine::Runtime;
use crate::forward::step::SequenceState;
use crate::model::{LoadOptions, Model, ModelFiles};

/// Types of weights, and families whose ops differ.
const MODELS: [&str; 8] = [
    "models/llama-bf16",
    "models/mistral-window",
    "models/phi-partial",
    "models/gemma2-caps",
    "quantized/llama-affine4",
    "quantized/llama-mxfp4",
    "gguf/blocks-32",
    "gguf/blocks-256",
];
/// Tokens of the sequence that is compared: two pages and some.
const TOKENS: usize = 150;
/// Other sequences in a step.
const NEIGHBOURS: usize = 4;

type Key = (usize, &'static str, usize, KvType);

/// The model `MODELS[which]`, loaded once in this process.
fn model((which, isa, threads, kv_type): Key) -> Model {
    static LOADED: OnceLock<Mutex<BTreeMap<String, Model>>> = OnceLock::new();
    let mut loaded = LOADED.get_or_init(Mutex::default).lock().expect("nobody panics with it");
    let key = format!("{which} {isa} {threads} {kv_type}");
    if let Some(model) = loaded.get(&key) {
        return model.clone();
    }
    // Each has a thread and caches of its own.
    if loaded.len() >= 24 {
        loaded.clear();
    }
    let options = LoadOptions {
        backend: BackendRequest::Cpu,
        threads: Some(threads),
        isa: Isa::by_name(isa),
        kv_type: Some(kv_type),
        ..LoadOptions::default()
    };
    let files = ModelFiles::open(&fixture(MODELS[which])).expect("a fixture");
    let model = Model::load_with(files, options).expect("a fixture");
    loaded.insert(key, model.clone());
    model
}

fn tokens(vocab: usize, sequence: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7 + sequence * 13 + 3) % vocab) as u32).collect()
}

/// The input: a model, an instruction set, a type of the cache, threads, how many tokens, and for each step how many of them and
/// how many tokens of others before and behind them.
///
/// The logits of every row have the bits that they have in one step, alone and on one thread.
pub(super) fn bits(data: &[u8]) {
    let mut input = Input(data);
    let which = input.below(MODELS.len());
    let isa = input.pick(&Isa::variants()).name();
    let (kv_type, threads) = (input.pick(&KvType::ALL), 1 + input.below(3));
    let len = 1 + input.below(TOKENS);
    let whole = model((which, isa, 1, kv_type));
    let expected = whole.engine().with(move |runtime| run(runtime, len, &[(len, 0, 0)])).expect("it runs");
    let mut steps = Vec::new();
    let mut left = len;
    while left > 0 {
        let own = (1 + input.below(96)).min(left);
        steps.push((own, input.below(NEIGHBOURS / 2 + 1), input.below(NEIGHBOURS / 2 + 1)));
        left -= own;
    }
    let shown = format!("{} on {isa}, {threads} threads, a cache of {kv_type}, {steps:?}", MODELS[which]);
    let model = model((which, isa, threads, kv_type));
    let got = model.engine().with(move |runtime| run(runtime, len, &steps)).expect("it runs");
    let same = got.iter().zip(&expected).position(|(got, expected)| got != expected);
    assert!(got.len() == expected.len() && same.is_none(), "{shown}: element {same:?}");
}

/// The bits of the logits of `len` tokens in these steps: tokens, and neighbours before and behind.
fn run(runtime: &Runtime, len: usize, steps: &[(usize, usize, usize)]) -> Vec<u32> {
    let vocab = runtime.config().vocab_size;
    let all = tokens(vocab, 0, len);
    let mut states: Vec<SequenceState> = (0..=NEIGHBOURS).map(|_| runtime.sequence(len)).collect();
    let (mut bits, mut start) = (Vec::new(), 0);
    for (step, &(own, before, behind)) in steps.iter().enumerate() {
        let (mut ids, mut runs, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        let order = (1..=before).chain([0]).chain((1..=behind).map(|i| NEIGHBOURS / 2 + i));
        for sequence in order {
            let (at, part) = if sequence == 0 {
                (start, all[start..start + own].to_vec())
            } else {
                let held = states[sequence].kv.len();
                let more = 1 + (step + sequence) % 3;
                (held, tokens(vocab, sequence, held + more)[held..].to_vec())
            };
            runs.push(Run { sequence, row: ids.len(), len: part.len(), start: at });
            if sequence == 0 {
                outputs.extend(ids.len()..ids.len() + part.len());
            }
            ids.extend(part);
        }
        let batch = Batch { tokens: Tokens::Known(ids), runs, outputs };
        let logits = runtime.step(&batch, &mut states).expect("the step runs");
        bits.extend(logits.data().iter().map(|x| x.to_bits()));
        start += own;
    }
    bits
}
