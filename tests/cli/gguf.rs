//! A GGUF file given to the commands.

use std::fs;

use crate::support::*;

#[test]
fn a_gguf_file_is_inspected_and_run() {
    let file = fixture("gguf/whole.gguf");
    let file = file.to_str().unwrap();
    let table = ok(&["inspect", file]).out;
    for part in [
        "model         whole\n",
        "architecture  llama: 1 layers, hidden 32, feed-forward 32\n",
        "vocabulary    320 tokens, the embedding is the output head\n",
        " in 1 file: F16 ",
        "template      yes\n",
        "sampling      temperature 0.5\n",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let shown = json(&ok(&["inspect", "--json", file]));
    let types: Vec<(&str, u64, u64)> = (shown["weights"]["types"].as_array().unwrap().iter())
        .map(|of| {
            let count = |name: &str| of[name].as_u64().unwrap();
            (of["type"].as_str().unwrap(), count("tensors"), count("bytes"))
        })
        .collect();
    // The embedding, four matrices of attention, three of the feed-forward; three norms.
    let elements = 320 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 32;
    assert_eq!(types, [("F16", 8, 2 * elements), ("F32", 3, 4 * 3 * 32)]);

    let args = ["run", "Hello", "--raw", "--max-tokens", "5", "--backend", "cpu", "--json", "--model"];
    let ran = json(&ok(&[&args[..], &[file]].concat()));
    // A directory that holds the file and nothing else says the same.
    let dir = tempfile::tempdir().unwrap();
    fs::copy(file, dir.path().join("whole.gguf")).unwrap();
    let again = json(&ok(&[&args[..], &[dir.path().to_str().unwrap()]].concat()));
    assert_eq!(ran["text"], again["text"]);
    assert!(ran["text"].is_string(), "{ran}");

    let chat = ["chat", "--max-tokens", "5", "--temperature", "0", "--backend", "cpu", "--model", file];
    let ran = backstop_with("Hello\n", &chat);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("first token after"), "{}", ran.err);
}

#[test]
fn a_broken_gguf_file_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken.gguf");
    let bytes = fs::read(fixture("gguf/whole.gguf")).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 64]).unwrap();
    let path = path.to_str().unwrap();
    let ran = backstop(&["run", PROMPT, "--model", path]);
    assert_eq!((ran.code, ran.err.lines().count()), (Some(1), 1), "{}", ran.err);
    assert!(ran.err.starts_with(&format!("error: {path}: tensor ")), "{}", ran.err);
    assert!(ran.err.contains("bytes of data"), "{}", ran.err);
    fs::write(path, "not a model").unwrap();
    let expected = format!("error: {path}: magic is \"not \", expected \"GGUF\"");
    refused(&["inspect", path], 1, &expected);
}
