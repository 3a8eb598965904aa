//! Files of models: safetensors, GGUF files, and directories of a configuration and weights.

use std::path::Path;

use ::safetensors::SafeTensors;

use super::input::{Scratch, parts, sound};
use crate::backend::select::BackendRequest;
use crate::model::{LoadOptions, Model, ModelFiles};
use crate::text::Message;
use crate::weights::safetensors::parse;

/// Most positions of a model that is run: a step is to take milliseconds.
const CONTEXT: usize = 16;
/// Weights, cache and activations of a model that is run, in bytes.
const MEMORY: u64 = 128 << 20;

/// What is accepted, the `safetensors` crate accepts too, and reads as the same tensors.
pub(super) fn safetensors(data: &[u8]) {
    let Some(entries) = sound(parse(Path::new("m"), data.len(), |range| Ok(data[range].to_vec()))) else {
        return;
    };
    let theirs = SafeTensors::deserialize(data).expect("what is accepted, the crate accepts");
    assert_eq!(entries.len(), theirs.len());
    for entry in entries {
        let tensor = theirs.tensor(&entry.name).expect("a tensor of this name");
        assert_eq!((tensor.dtype(), tensor.shape()), (entry.dtype, &entry.shape[..]), "{}", entry.name);
        assert_eq!(tensor.data(), &data[entry.range], "{}", entry.name);
    }
}

/// A GGUF file → configuration → tokenizer → template → three tokens through the model.
pub(super) fn gguf(data: &[u8]) {
    let scratch = Scratch::new();
    let path = scratch.write("model.gguf", data);
    if let Some(files) = sound(ModelFiles::open(&path)) {
        run(files);
    }
}

/// `config.json`, the weights in `model.safetensors`, and `generation_config.json` where there is a third part.
pub(super) fn model(data: &[u8]) {
    let [config, weights, generation] = parts(data);
    let scratch = Scratch::new();
    scratch.write("config.json", config);
    scratch.write("model.safetensors", weights);
    if !generation.is_empty() {
        scratch.write("generation_config.json", generation);
    }
    if let Some(files) = sound(ModelFiles::open(scratch.dir())) {
        run(files);
    }
}

/// What was opened is refused by name or runs: three tokens have logits, a row for each, and a text has tokens.
fn run(files: ModelFiles) {
    let trained = files.config().max_context();
    let tokenizer = sound(files.tokenizer()).flatten();
    let template = sound(files.template(tokenizer.as_ref())).flatten();
    if let Some(template) = template {
        template.reply_format(true);
        sound(template.render(&[Message::new("user", "Hello.")], &Default::default()));
    }
    if let Some(ids) = tokenizer.and_then(|tokenizer| sound(tokenizer.encode("Hello, world 123!"))) {
        assert!(!ids.is_empty());
    }
    for frequencies in [1, trained.saturating_add(1)].map(|len| files.config().rope.frequencies(len)) {
        assert!(frequencies.inv_freq.iter().all(|f| f.is_finite()), "{:?}", files.config().rope);
        assert!(frequencies.attention_factor.is_finite(), "{:?}", files.config().rope);
    }
    let options = LoadOptions {
        backend: BackendRequest::Cpu,
        threads: Some(1),
        context: Some(trained.min(CONTEXT)),
        kv_memory: Some(MEMORY),
        max_sequences: Some(1),
        prefill_chunk: Some(CONTEXT),
        ..LoadOptions::default()
    };
    let need = files.memory_need(files.memory_setting(crate::backend::LlmBackendKind::Cpu, &options));
    if [need.weights, need.kv, need.activations].iter().any(|&bytes| bytes > MEMORY) {
        return;
    }
    let vocab = files.config().vocab_size;
    let Some(model) = sound(Model::load_with(files, options)) else { return };
    let tokens: Vec<u32> = [0, vocab / 2, vocab.saturating_sub(1)].map(|id| id as u32).to_vec();
    let tokens = &tokens[..trained.min(3)];
    let Some(rows) = sound(model.logits(tokens)) else { return };
    assert_eq!(rows.len(), tokens.len());
    assert!(rows.iter().all(|row| row.len() == vocab));
}
