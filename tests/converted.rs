//! Tokenizers of directories without `tokenizer.json` against the libraries that their files come from: SentencePiece,
//! mistral-common, tiktoken and transformers (`tests/fixtures/converted`, by `tools/fixtures/converted.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backstop::text::{Specials, Tokenizer};
use serde::Deserialize;

/// Nothing is added, and what looks like a special token is text.
const LITERAL: Specials = Specials { add: false, parse: false };

/// What a library makes of the texts.
#[derive(Deserialize)]
struct Expected {
    ids: Vec<Vec<u32>>,
    /// What ids are decoded to, by the text's index, where that is not the text; none with unknown characters.
    decoded: BTreeMap<usize, Option<String>>,
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Compares every directory in `root`, whose names come back.
fn compare(root: &Path) -> Vec<String> {
    let texts: Vec<String> = read(&root.join("texts.json"));
    let dirs = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut dirs: Vec<PathBuf> = dirs.filter(|path| path.is_dir()).collect();
    dirs.sort();
    let (mut names, mut failed) = (Vec::new(), Vec::new());
    for dir in &dirs {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let expected: Expected = read(&dir.join("expected.json"));
        assert_eq!(expected.ids.len(), texts.len(), "{name}");
        let tokenizer = Tokenizer::open(dir, 1 << 20).unwrap().expect("a vocabulary");
        for (i, (text, want)) in texts.iter().zip(&expected.ids).enumerate() {
            let got = tokenizer.encode_with(text, LITERAL).unwrap();
            if got != *want {
                failed.push(format!("{name} {text:?}: {got:?}, expected {want:?}"));
            }
            let decoded = expected.decoded.get(&i).map_or(Some(text), Option::as_ref);
            let back = tokenizer.decode(want).unwrap();
            // Before a text some models take any number of signs for spaces away; one is what they put there.
            if decoded.is_some_and(|decoded| *decoded != back) && !text.starts_with('▁') {
                failed.push(format!("{name} {want:?}: {back:?}, expected {decoded:?}"));
            }
        }
        names.push(name);
    }
    assert!(failed.is_empty(), "{} differ: {failed:#?}", failed.len());
    names
}

#[test]
fn texts_get_the_ids_of_the_libraries() {
    let names = compare(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/converted"));
    let all = [
        "gpt2",
        "llama",
        "no-bytes",
        "no-prefix",
        "qwen2",
        "tekken",
        "tiktoken",
        "unigram",
        "unigram-bytes",
        "user-defined",
    ];
    assert_eq!(names, all);
}

/// Mistral's own files, which `python tools/fixtures/converted.py target/real-tokenizers` puts there.
#[test]
fn texts_get_the_ids_of_mistral_common() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/real-tokenizers");
    if !root.is_dir() {
        println!("skipped: target/real-tokenizers is absent");
        return;
    }
    println!("{:?}", compare(&root));
}

/// What is added to a text where the directory says so, and what is not.
#[test]
fn beginnings_and_ends_follow_the_configuration() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/converted");
    for (name, file, bos) in [
        ("llama", "tokenizer.model", Some(1)),
        ("tekken", "tekken.json", Some(1)),
        ("tiktoken", "tiktoken.model", None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(fixtures.join(name).join(file), dir.path().join(file)).unwrap();
        let tokenizer = |config: Option<&str>| {
            let path = dir.path().join("tokenizer_config.json");
            match config {
                Some(config) => std::fs::write(path, config).unwrap(),
                None => {
                    let _ = std::fs::remove_file(path);
                }
            }
            Tokenizer::open(dir.path(), 1 << 20)
        };
        let plain = match tokenizer(None) {
            Ok(tokenizer) => tokenizer.unwrap(),
            // Without names for its special tokens a file of ranks is not whole.
            Err(error) => {
                assert!(bos.is_none() && error.to_string().contains("added_tokens_decoder"), "{error}");
                continue;
            }
        };
        let text = plain.encode_with("dog", LITERAL).unwrap();
        let with = |bos: Option<u32>, eos: Option<u32>| {
            bos.into_iter().chain(text.iter().copied()).chain(eos).collect::<Vec<_>>()
        };
        assert_eq!(plain.encode("dog").unwrap(), with(bos, None), "{name}");
        let both = tokenizer(Some(r#"{"add_bos_token": false, "add_eos_token": true}"#)).unwrap().unwrap();
        assert_eq!(both.encode("dog").unwrap(), with(None, Some(2)), "{name}");
        assert!(both.is_special(1) && both.is_special(2), "{name}");
    }
}

/// What was made of the other files is taken as it is.
#[test]
fn a_file_of_tokens_comes_before_the_others() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixtures.join("converted/llama/tokenizer.model"), dir.path().join("tokenizer.model"))
        .unwrap();
    let of_model = Tokenizer::open(dir.path(), 1 << 20).unwrap().unwrap();
    std::fs::copy(fixtures.join("text/llama3/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let of_json = Tokenizer::open(dir.path(), 1 << 20).unwrap().unwrap();
    assert_eq!(of_model.token_id("<ctl>"), Some(3));
    assert_eq!(of_json.token_id("<ctl>"), None);
    assert!(of_json.token_id("<|eot_id|>").is_some());
}
