//! The promise of the CPU backend: the same logits, bit for bit, for any number of threads, any chunking of the prompt,
//! any neighbours in the step, and a cache that was filled before; for each type of weights and of the cache.

use std::collections::HashSet;
use std::path::Path;

use backstop::backend::batch::{Batch, Run, Tokens};
use backstop::backend::cpu::Isa;
use backstop::backend::kv::{KvType, PAGE};
use backstop::backend::select::BackendRequest;
use backstop::forward::step::SequenceState;
use backstop::{Generation, LoadOptions, Model, ModelFiles, Options, SamplingOptions};

/// Families whose ops differ, each in its weights' own type of cache.
const FAMILIES: [&str; 28] = [
    "models/llama-f16",
    "models/mistral-window",
    "models/qwen3-tied",
    "models/phi-partial",
    "models/gemma2-caps",
    "models/mixtral-window",
    "models/qwen2_moe-shared",
    "models/qwen3_moe-plain",
    "models/deepseek_v2-greedy",
    "models/llama4_text-chunks",
    "models/qwen3_5-delta",
    "gguf/qwen3_5-tiled.gguf",
    "models/granitemoehybrid-dense",
    "models/granitemoehybrid-experts",
    "models/nemotron_h-experts",
    "models/mamba2-plain",
    "models/lfm2-bias",
    "quantized/kimi_linear-affine4",
    "models/falcon_h1-multipliers",
    "models/falcon_h1-norm",
    "models/gemma3n-streams",
    "models/gemma3n-shared",
    "models/kimi_linear-experts",
    "models/muse_glimmer-nested",
    "models/gemma4-dense",
    "models/gemma4-shared",
    "models/gemma4-experts",
    BUILTIN,
];

/// A type of weights each, in every type of cache: bf16, MLX's 4 bits, mxfp4, and GGUF's blocks of 32 (Q8_0 among them) and of
/// 256 (Q4_K among them), in a layer each.
const WEIGHTS: [&str; 6] = [
    "models/llama-bf16",
    "quantized/llama-affine4",
    "quantized/llama-mxfp4",
    "models/gpt_oss-mxfp4",
    "gguf/blocks-32",
    "gguf/blocks-256",
];

fn files(name: &str) -> ModelFiles {
    if name == BUILTIN {
        return ModelFiles::builtin().unwrap();
    }
    ModelFiles::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn load(name: &str, threads: usize, isa: Isa, kv_type: Option<KvType>) -> Model {
    let options = LoadOptions {
        backend: BackendRequest::Cpu,
        threads: Some(threads),
        isa: Some(isa),
        kv_type,
        ..LoadOptions::default()
    };
    Model::load_with(files(name), options).unwrap()
}

/// The built-in model, whose weights are trained and whose context is long enough for several segments of attention.
const BUILTIN: &str = "built in";

/// Tokens of sequence `sequence`: the first is the one that is compared.
fn tokens(vocab: usize, sequence: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7 + sequence * 13 + 3) % vocab) as u32).collect()
}

/// The bits of the logits of `prompt + decode` tokens of one sequence: the prompt in steps of at most `chunk` tokens,
/// the rest one by one, in each step beside `neighbours` other sequences that are at other places.
fn run(model: &Model, prompt: usize, decode: usize, chunk: usize, neighbours: usize) -> Vec<u32> {
    let vocab = model.info().config.vocab_size;
    let all = tokens(vocab, 0, prompt + decode);
    model
        .engine()
        .with(move |runtime| {
            let mut states: Vec<_> = (0..=neighbours).map(|_| runtime.sequence(prompt)).collect();
            let mut bits = Vec::new();
            let mut start = 0;
            let mut step = 0;
            while start < all.len() {
                let len = if start < prompt { chunk.min(prompt - start) } else { 1 };
                let mut ids = Vec::new();
                let mut runs = Vec::new();
                let mut outputs = Vec::new();
                // Half of the neighbours stand before the sequence in the step, half after it.
                let order = (1..=neighbours / 2).chain([0]).chain(neighbours / 2 + 1..=neighbours);
                for sequence in order {
                    let (start, part) = if sequence == 0 {
                        (start, all[start..start + len].to_vec())
                    } else {
                        // Others prefill 1 to 3 tokens a step, of other values.
                        let held = states[sequence].kv.len();
                        let more = 1 + (step + sequence) % 3;
                        (held, tokens(vocab, sequence, held + more)[held..].to_vec())
                    };
                    runs.push(Run { sequence, row: ids.len(), len: part.len(), start });
                    if sequence == 0 {
                        outputs.extend(ids.len()..ids.len() + part.len());
                    }
                    ids.extend(part);
                }
                let batch = Batch { tokens: Tokens::Known(ids), runs, outputs };
                let logits = runtime.step(&batch, &mut states).unwrap();
                bits.extend(logits.data().iter().map(|x| x.to_bits()));
                start += len;
                step += 1;
            }
            bits
        })
        .unwrap()
}

#[test]
fn threads_chunks_and_neighbours_do_not_change_a_bit() {
    // Past a page of the cache and the windows of the fixtures; past a segment of attention for the built-in model.
    let decode = 4;
    let every = WEIGHTS.into_iter().flat_map(|name| KvType::ALL.map(|kind| (name, Some(kind))));
    let own = FAMILIES.into_iter().map(|name| (name, None));
    let mut seen = HashSet::new();
    for (name, kv_type) in every.chain(own) {
        let prompt = if name == BUILTIN { 300 } else { 70 };
        let expected = run(&load(name, 1, Isa::detect(), kv_type), prompt, decode, prompt, 0);
        assert!(expected.iter().all(|&bits| f32::from_bits(bits).is_finite()), "{name}");
        // Each type of weights and of the cache shows.
        assert!(seen.insert(expected.clone()), "{name} with a cache in {kv_type:?}");
        for threads in [1, 2, 3] {
            let model = load(name, threads, Isa::detect(), kv_type);
            for chunk in [prompt, 1, 7, 64] {
                for neighbours in [0, 1, 5] {
                    let got = run(&model, prompt, decode, chunk, neighbours);
                    let what = format!(
                        "{name}, cache in {kv_type:?}: {threads} threads, chunks of {chunk}, {neighbours} neighbours"
                    );
                    same(&what, &got, &expected, model.info().config.vocab_size);
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_keeps_the_promise_in_every_cache_type() {
    for name in ["models/llama-bf16", "quantized/llama-affine4", "gguf/blocks-32"] {
        for isa in Isa::variants() {
            for kind in KvType::ALL {
                let expected = run(&load(name, 1, isa, Some(kind)), 24, 4, 24, 0);
                let got = run(&load(name, 3, isa, Some(kind)), 24, 4, 7, 5);
                same(&format!("{name} on {isa}, cache in {kind}"), &got, &expected, 1);
            }
        }
    }
}

#[test]
fn a_cache_that_was_filled_before_gives_the_bits_of_a_fresh_one() {
    let model = load("models/llama-bf16", 2, Isa::detect(), None);
    let vocab = model.info().config.vocab_size;
    let all = tokens(vocab, 0, 30);
    let fresh = model.logits(&all).unwrap();
    let again = model
        .engine()
        .with(move |runtime| {
            let mut state = runtime.sequence(30);
            // Another continuation was computed first, and is forgotten.
            let other = [&all[..20], &tokens(vocab, 4, 9)].concat();
            let batch = Batch::of(&[(0, &other)]);
            runtime.step(&batch, std::slice::from_mut(&mut state)).unwrap();
            state.kv.truncate(20);
            let batch = Batch::of(&[(20, &all[20..])]);
            runtime.step(&batch, std::slice::from_mut(&mut state)).unwrap().data().to_vec()
        })
        .unwrap();
    let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&again), bits(&fresh[29]));
}

/// What a sequence takes over from another: every length around the borders of pages, in every type of cache, whoever
/// computed the pages and however; and whatever becomes of the other afterwards.
#[test]
fn shared_pages_give_the_bits_of_a_prompt_computed_anew() {
    const PROMPT: usize = 140;
    const DECODE: usize = 3;
    let every = ["models/llama-bf16", "quantized/llama-affine4", "gguf/blocks-32"]
        .into_iter()
        .flat_map(|name| KvType::ALL.map(|kind| (name, Some(kind))));
    let own = FAMILIES.into_iter().chain(["models/llama-dynamic"]).map(|name| (name, None));
    for (name, kv_type) in every.chain(own) {
        let expected = run(&load(name, 1, Isa::detect(), kv_type), PROMPT, DECODE, PROMPT, 0);
        for (threads, chunk) in [(1, 7), (3, 64)] {
            let model = load(name, threads, Isa::detect(), kv_type);
            let vocab = model.info().config.vocab_size;
            let all = tokens(vocab, 0, PROMPT + DECODE);
            let rows = model
                .engine()
                .with(move |runtime| {
                    let step = |state: &mut SequenceState, start: usize, ids: &[u32]| {
                        let mut batch = Batch::of(&[(start, ids)]);
                        batch.outputs = (0..ids.len()).collect();
                        let logits = runtime.step(&batch, std::slice::from_mut(state)).unwrap();
                        logits.data().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                    };
                    let mut first = runtime.sequence(PROMPT);
                    for start in (0..PROMPT).step_by(chunk) {
                        step(&mut first, start, &all[start..(start + chunk).min(PROMPT)]);
                    }
                    // Its last page is filled further, and is not what the others see.
                    let pages = runtime.pages(&first, 0..PROMPT.div_ceil(PAGE)).unwrap().unwrap();
                    step(&mut first, PROMPT, &tokens(vocab, 5, 20));
                    let recurrent = !first.kv.recurrent.is_empty();
                    let mut rows = Vec::new();
                    for len in [1, 63, 64, 65, 127, 128, 129, PROMPT - 1, PROMPT] {
                        let pages = &pages[..len.div_ceil(PAGE)];
                        // Of recurrent layers, what is kept at this very place.
                        let snapshot = recurrent.then(|| {
                            let mut of = runtime.sequence(PROMPT);
                            for start in (0..len).step_by(chunk) {
                                step(&mut of, start, &all[start..(start + chunk).min(len)]);
                            }
                            runtime.snapshot(&of).unwrap().unwrap()
                        });
                        let mut state =
                            runtime.restore(PROMPT, &all[..len], pages, snapshot.as_ref()).unwrap();
                        assert_eq!((state.kv.len(), &state.history[..]), (len, &all[..len]));
                        let mut bits = Vec::new();
                        for start in (len..all.len()).step_by(chunk) {
                            bits.extend(step(&mut state, start, &all[start..(start + chunk).min(all.len())]));
                        }
                        rows.push((len, bits));
                        // The first writes other tokens over pages that are shared; recurrent layers go back to no such place.
                        if !recurrent {
                            first.kv.truncate(len.min(40));
                            step(&mut first, len.min(40), &tokens(vocab, 6, 50));
                        }
                    }
                    rows
                })
                .unwrap();
            for (len, bits) in rows {
                let what = format!(
                    "{name}, cache in {kv_type:?}: {threads} threads, chunks of {chunk}, {len} shared"
                );
                same(&what, &bits, &expected[len * vocab..], vocab);
            }
        }
    }
}

#[test]
fn several_texts_for_one_prompt_and_seed_differ_and_each_can_be_had_again_alone() {
    let model = load(BUILTIN, 2, Isa::detect(), None);
    let start = |sequence| {
        let sampling = SamplingOptions { temperature: 1.5, seed: 5, sequence, ..SamplingOptions::default() };
        let options = Options { max_tokens: Some(24), sampling, ignore_eos: true, ..Options::default() };
        model.generate("Once upon a time", &options).unwrap()
    };
    let tokens = |mut generation: Generation| {
        assert!(generation.by_ref().all(|piece| piece.is_ok()));
        generation.tokens().to_vec()
    };
    let together: Vec<_> = (0..4).map(start).collect();
    let together: Vec<Vec<u32>> = together.into_iter().map(tokens).collect();
    assert_eq!(together.iter().collect::<HashSet<_>>().len(), 4, "{together:?}");
    for (sequence, expected) in (0..).zip(&together) {
        assert_eq!(tokens(start(sequence)), *expected, "sequence {sequence}");
    }
}

#[track_caller]
fn same(what: &str, got: &[u32], expected: &[u32], width: usize) {
    assert_eq!(got.len(), expected.len(), "{what}");
    if let Some(at) = (0..got.len()).find(|&i| got[i] != expected[i]) {
        let (row, column) = (at / width, at % width);
        let (got, expected) = (f32::from_bits(got[at]), f32::from_bits(expected[at]));
        panic!("{what}: row {row}, column {column}: {got:e}, expected {expected:e}");
    }
}
