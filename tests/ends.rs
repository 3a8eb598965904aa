//! Where a text ends: each file of a directory that names a token for it counts, and so does the chat template.

use std::fs;

use backstop::{LoadOptions, Model, ModelFiles, Options, SamplingOptions};
use serde_json::{Value, json};

#[path = "support/noise.rs"]
#[allow(dead_code)]
mod noise;

use noise::Noise;

/// The ends of a model whose files say this of them.
fn ends(files: &[(&str, Value)]) -> (Noise, Vec<String>) {
    let noise = Noise::new();
    for (name, value) in files {
        fs::write(noise.0.path().join(name), value.to_string()).unwrap();
    }
    let model = load(&noise);
    let text = |id: &u32| model.tokenizer().unwrap().token_text(*id).unwrap();
    let ends = model.eos().iter().map(text).collect();
    (noise, ends)
}

fn load(noise: &Noise) -> Model {
    let files = ModelFiles::open(noise.0.path()).unwrap();
    Model::load_with(files, LoadOptions { threads: Some(1), ..LoadOptions::default() }).unwrap()
}

#[test]
fn every_file_that_names_an_end_counts() {
    assert_eq!(ends(&[]).1, [""; 0]);
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    for (files, wanted) in [
        (vec![("tokenizer_config.json", json!({ "eos_token": "." }))], vec!["."]),
        (
            vec![("tokenizer_config.json", json!({ "eos_token": { "content": "<|endoftext|>" } }))],
            vec!["<|endoftext|>"],
        ),
        (vec![("special_tokens_map.json", json!({ "eos_token": "<|endoftext|>" }))], vec!["<|endoftext|>"]),
        (
            vec![("generation_config.json", json!({ "eos_token_id": [300, 302] }))],
            vec!["<|endoftext|>", "<|im_end|>"],
        ),
        (
            vec![("tokenizer_config.json", json!({ "eos_token": ".", "chat_template": template }))],
            vec![".", "<|im_end|>"],
        ),
        // The older file is not read where the newer one lists its tokens.
        (
            vec![
                ("tokenizer_config.json", json!({ "eos_token": ".", "added_tokens_decoder": {} })),
                ("special_tokens_map.json", json!({ "eos_token": "<|endoftext|>" })),
            ],
            vec!["."],
        ),
    ] {
        assert_eq!(ends(&files).1, wanted, "{files:?}");
    }
}

#[test]
fn a_text_ends_at_the_tokenizers_own_end() {
    let noise = Noise::plain();
    let model = load(&noise);
    let sampling = SamplingOptions { temperature: 1.0, seed: 3, ..SamplingOptions::default() };
    let options = Options { max_tokens: Some(400), sampling, ..Options::default() };
    let mut run = model.generate("a", &options).unwrap();
    run.by_ref().for_each(|piece| drop(piece.unwrap()));
    let tokens = run.tokens().to_vec();
    assert_eq!(tokens.len(), 400);
    // The same draw, up to the token that is now an end.
    let end = tokens[200];
    let first = tokens.iter().position(|&id| id == end).unwrap();
    let text = model.tokenizer().unwrap().token_text(end).unwrap();
    fs::write(noise.0.path().join("tokenizer_config.json"), json!({ "eos_token": text }).to_string())
        .unwrap();
    let model = load(&noise);
    let mut run = model.generate("a", &options).unwrap();
    run.by_ref().for_each(|piece| drop(piece.unwrap()));
    assert_eq!(run.tokens(), &tokens[..=first]);
}

#[test]
fn a_list_of_tokens_replaces_what_the_tokenizer_has_and_a_name_does_not() {
    let noise = Noise::new();
    let path = noise.0.path().join("tokenizer.json");
    let mut file: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let tokens = file["added_tokens"].as_array_mut().unwrap();
    let mask = tokens.iter_mut().find(|token| token["content"] == "<|im_end|>").unwrap();
    mask["lstrip"] = true.into();
    let id = mask["id"].as_u64().unwrap();
    fs::write(&path, file.to_string()).unwrap();
    let count = |config: Value| {
        fs::write(noise.0.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        load(&noise).tokenizer().unwrap().encode("a <|im_end|>").unwrap().len()
    };
    assert_eq!(count(json!({})), 2);
    assert_eq!(count(json!({ "mask_token": "<|im_end|>" })), 2);
    let listed = json!({ "content": "<|im_end|>", "lstrip": false, "special": true });
    assert_eq!(count(json!({ "added_tokens_decoder": { id.to_string(): listed } })), 3);
}

#[test]
fn tokens_that_the_model_suppresses_never_come() {
    let noise = Noise::new();
    let tokens = |sampling: &SamplingOptions| {
        let options = Options { max_tokens: Some(40), sampling: sampling.clone(), ..Options::default() };
        let model = load(&noise);
        let mut run = model.generate("a", &options).unwrap();
        run.by_ref().for_each(|piece| drop(piece.unwrap()));
        run.tokens().to_vec()
    };
    let drawn = SamplingOptions { temperature: 1.0, seed: 3, ..SamplingOptions::default() };
    for sampling in [SamplingOptions::default(), drawn] {
        let before = tokens(&sampling);
        let first = before[0];
        let file = json!({ "suppress_tokens": [first, 1 << 20] });
        fs::write(noise.0.path().join("generation_config.json"), file.to_string()).unwrap();
        let after = tokens(&sampling);
        assert!(before.contains(&first) && !after.contains(&first), "{before:?} {after:?}");
        assert_eq!(after.len(), 40);
        fs::remove_file(noise.0.path().join("generation_config.json")).unwrap();
    }
}
