//! `--adapter` and `backstop fuse`.

use std::path::Path;

use crate::support::*;

#[path = "../support/adapter.rs"]
mod adapter;

#[test]
fn texts_come_from_adapters_and_from_models_that_have_them() {
    let dir = tempfile::tempdir().unwrap();
    let (a, out) = (dir.path().join("a"), dir.path().join("fused"));
    adapter::write(&a, 1);
    let (a, out) = (a.to_str().unwrap(), out.to_str().unwrap());
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories");
    let model = model.to_str().unwrap();
    let run = |model: &str, more: &[&str]| {
        let args = ["run", "--model", model, "--raw", "--temperature", "0", "--max-tokens", "24", PROMPT];
        ok(&[&args[..], more].concat()).out
    };
    let (plain, adapted) = (run(model, &[]), run(model, &["--adapter", &format!("x={a}")]));
    assert_ne!(adapted, plain);
    // Of no weight, it is not there.
    assert_eq!(run(model, &["--adapter", &format!("x={a}@0")]), plain);
    let ran = ok(&["fuse", model, "--adapter", a, "-o", out]);
    assert_eq!(ran.out, "");
    assert!(ran.err.contains("1 matrices with LoRA, rank 2 in them, "), "{}", ran.err);
    assert_eq!(run(out, &[]), adapted);
    let again = backstop(&["fuse", model, "--adapter", a, "-o", out]);
    assert_eq!(again.code, Some(1), "{}", again.err);

    let text = dir.path().join("text");
    std::fs::write(&text, "Once upon a time there was a little girl. ".repeat(20)).unwrap();
    let perplexity = |more: &[&str]| {
        let args = ["perplexity", text.to_str().unwrap(), "--model", model, "--window", "64", "--json"];
        json(&ok(&[&args[..], more].concat()))["perplexity"].clone()
    };
    assert_ne!(perplexity(&[]), perplexity(&["--adapter", &format!("x={a}")]));
    let bench =
        ok(&["bench", "--model", model, "-p", "8", "-n", "4", "--reps", "1", "--adapter", &format!("x={a}")]);
    assert!(!bench.out.is_empty());
}

#[test]
fn adapters_that_cannot_be_meant_are_refused() {
    let ran = backstop(&["run", "--adapter", "x", PROMPT]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("NAME=PATH or NAME=PATH@SCALE"), "{}", ran.err);
    let expected =
        "error: --adapter is given twice: a model alone has one, and `backstop serve` takes several";
    let ran = backstop(&["run", "--adapter", "x=a", "--adapter", "y=b", PROMPT]);
    assert_eq!((ran.code, ran.err.lines().next()), (Some(2), Some(expected)));
    let ran = backstop(&["run", "--adapter", "x=/nothing/here", PROMPT]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("/nothing/here: does not exist: expected a directory of PEFT"), "{}", ran.err);
}
