//! Tokenizers in the metadata of GGUF files, against the ids that Hugging Face's tokenizers give: llama.cpp's own vocabularies,
//! where `tools/vocabularies.py` has put them into `target/vocabularies`.

use std::fs;
use std::path::{Path, PathBuf};

use backstop::text::Specials;
use backstop::weights::gguf::Metadata;

/// Between two texts, and after the last.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";
/// Models of tokenizers that are refused by name, and their vocabularies here.
const REFUSED: [(&str, &str); 2] = [("bert-bge", "bert"), ("nomic-bert-moe", "t5")];

/// The vocabularies, in the order of their names.
fn vocabularies() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vocabularies");
    let Ok(entries) = fs::read_dir(&dir) else {
        println!("skipped: {} is absent; tools/vocabularies.py fills it", dir.display());
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "gguf")).collect();
    all.sort();
    assert!(!all.is_empty(), "{} has no vocabulary", dir.display());
    all
}

/// The texts of a vocabulary with their ids; none for those that have no expected ids.
fn cases(path: &Path) -> Vec<(String, Vec<u32>)> {
    let beside = |end: &str| fs::read_to_string(format!("{}.{end}", path.display()));
    let (Ok(texts), Ok(ids)) = (beside("inp"), beside("out")) else { return Vec::new() };
    let mut texts: Vec<&str> = texts.split(SEPARATOR).collect();
    if texts.last() == Some(&"") {
        texts.pop();
    }
    let ids: Vec<Vec<u32>> =
        ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    assert_eq!(texts.len(), ids.len(), "{}", path.display());
    texts.into_iter().map(str::to_owned).zip(ids).collect()
}

#[test]
fn llama_cpp_vocabularies_encode_as_their_models_tokenizers() {
    let (mut failed, mut compared) = (Vec::new(), 0);
    for path in vocabularies() {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let name = stem.trim_start_matches("ggml-vocab-");
        let made = Metadata::open(&path).unwrap().tokenizer(1 << 20);
        if let Some((_, model)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            let error = made.unwrap_err().to_string();
            assert!(error.contains(&format!("tokenizer.ggml.model is \"{model}\", expected")), "{error}");
            println!("skipped: {name}, a tokenizer of the kind {model}");
            continue;
        }
        let tokenizer = made.unwrap().unwrap();
        let cases = cases(&path);
        if cases.is_empty() {
            println!("skipped: {name} has no expected ids");
        }
        for (text, expected) in &cases {
            let got = tokenizer.encode_with(text, Specials { add: false, parse: true }).unwrap();
            if got != *expected {
                failed.push(format!("{name} {text:?}: {got:?}, expected {expected:?}"));
            }
        }
        compared += cases.len();
    }
    println!("{compared} texts");
    assert!(failed.is_empty(), "{} differ: {failed:#?}", failed.len());
}
