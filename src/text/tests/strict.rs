//! No JSON file of a model's text side may give a key twice, written alike or with escapes, wherever it stands.

use std::path::Path;

use crate::config::GenerationConfig;
use crate::text::special::SpecialTokens;
use crate::text::{ChatTemplate, Tokenizer};

const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "added_tokens": [{"id": 2, "content": "<s>",
    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}"#;
/// A model that the library reads by itself.
const UNIGRAM: &str = r#"{"version": "1.0", "truncation": null, "model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}}"#;

/// Changes `good`, which is read, by putting `new` in the place of `old`.
#[track_caller]
fn changed(good: &str, old: &str, new: &str) -> String {
    assert_eq!(good.matches(old).count(), 1, "{old}");
    good.replacen(old, new, 1)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(read: crate::Result<T>, path: &Path, key: &str) {
    let error = read.unwrap_err().to_string();
    let what = format!("duplicate key {key:?}");
    assert!(error.starts_with(&path.display().to_string()) && error.contains(&what), "{error}\n{what}");
}

#[test]
fn keys_given_twice_in_a_tokenizer_are_refused() {
    let path = Path::new("tokenizer.json");
    for (good, old, new, key) in [
        (TOKENIZER, r#""version": "1.0""#, r#""version": "1.0", "version": "1.0""#, "version"),
        (TOKENIZER, r#""version": "1.0""#, r#""version": "1.0", "versio\u006e": "2""#, "version"),
        // Members that are passed over.
        (TOKENIZER, r#""truncation": null"#, r#""truncation": null, "truncation": null"#, "truncation"),
        (TOKENIZER, r#""truncation": null"#, r#""truncation": {"length": 8, "length": 9}"#, "length"),
        (TOKENIZER, r#""id": 2"#, r#""id": 2, "id": 3"#, "id"),
        (TOKENIZER, r#""id": 2"#, r#""id": 2, "note": 0, "not\u0065": 0"#, "note"),
        (
            TOKENIZER,
            r#""trim_offsets": true"#,
            r#""trim_offsets": true, "trim_offsets": true"#,
            "trim_offsets",
        ),
        (TOKENIZER, r#""b": 1"#, r#""b": 1, "b": 1"#, "b"),
        (TOKENIZER, r#""b": 1"#, r#""b": 1, "\u0061": 3"#, "a"),
        (TOKENIZER, r#""merges": []"#, r#""merges": [], "merges": []"#, "merges"),
        (UNIGRAM, r#""unk_id": 0"#, r#""unk_id": 0, "unk_id": 0"#, "unk_id"),
        (UNIGRAM, r#""truncation": null"#, r#""truncation": {"length": 8, "length": 9}"#, "length"),
    ] {
        Tokenizer::from_bytes(path, good.as_bytes(), 8).unwrap();
        let bad = changed(good, old, new);
        refused(Tokenizer::from_bytes(path, bad.as_bytes(), 8), path, key);
    }
}

#[test]
fn keys_given_twice_beside_a_tokenizer_are_refused() {
    type Read = fn(&Path) -> crate::Result<()>;
    let special: Read = |dir| SpecialTokens::load(dir).map(|_| ());
    let template: Read = |dir| ChatTemplate::load(dir).map(|_| ());
    let generation: Read = |dir| GenerationConfig::load(&dir.join("generation_config.json")).map(|_| ());
    let tokenizer: Read = |dir| Tokenizer::open(dir, 8).map(|_| ());
    let config = "tokenizer_config.json";
    let templates = r#"{"chat_template": [{"name": "default", "template": "x"}]}"#;
    let tekken = r#"{"config": {"pattern": ".", "default_vocab_size": 1, "default_num_special_tokens": 1,
        "version": "v7"}, "vocab": [], "special_tokens": [{"rank": 0, "token_str": "<s>"}]}"#;
    for (read, file, good, old, new, key) in [
        (special, config, r#"{"eos_token": "a"}"#, r#""a""#, r#""a", "eos_token": "a""#, "eos_token"),
        (special, config, r#"{"eos_token": "a"}"#, r#""a""#, r#""a", "eos\u005ftoken": "a""#, "eos_token"),
        (special, config, r#"{"other": {"a": 1}}"#, "1", r#"1, "a": 1"#, "a"),
        (
            template,
            config,
            r#"{"chat_template": "x"}"#,
            r#""x""#,
            r#""x", "chat_template": "y""#,
            "chat_template",
        ),
        (template, config, templates, r#""x""#, r#""x", "template": "y""#, "template"),
        (template, config, templates, r#""x""#, r#""x", "nam\u0065": "y""#, "name"),
        (
            special,
            "special_tokens_map.json",
            r#"{"eos_token": "a"}"#,
            r#""a""#,
            r#""a", "eos_token": "b""#,
            "eos_token",
        ),
        (
            special,
            "special_tokens_map.json",
            r#"{"eos_token": {"content": "a"}}"#,
            r#""a""#,
            r#""a", "conten\u0074": "b""#,
            "content",
        ),
        (generation, "generation_config.json", r#"{"top_k": 1}"#, "1", r#"1, "top_k": 2"#, "top_k"),
        (generation, "generation_config.json", r#"{"top_k": 1}"#, "1", r#"1, "top\u005fk": 2"#, "top_k"),
        (tokenizer, "tekken.json", tekken, r#""<s>""#, r#""<s>", "rank": 0"#, "rank"),
        (tokenizer, "tekken.json", tekken, r#""v7""#, r#""v7", "x": [{"y": 0, "y": 0}]"#, "y"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file);
        std::fs::write(&path, changed(good, old, new)).unwrap();
        refused(read(dir.path()), &path, key);
        std::fs::write(&path, good).unwrap();
        // Mistral's file needs more than this to be a tokenizer, but it is read.
        if let Err(error) = read(dir.path()) {
            assert!(file == "tekken.json" && !error.to_string().contains("JSON"), "{error}");
        }
    }
}

/// What a model writes is no file: the last of two counts, as for whoever reads its answer.
#[test]
fn what_a_model_wrote_may_give_a_key_twice() {
    let read = crate::json::generated::<serde_json::Value>(r#"{"a": 1, "a": 2}"#).unwrap();
    assert_eq!(read, serde_json::json!({"a": 2}));
}
