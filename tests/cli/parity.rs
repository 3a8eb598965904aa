//! `backstop parity`.

use std::fs;

use backstop::ModelFiles;
use serde_json::Value;

use crate::support::*;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// With activations as they are, the CPU is the reference itself: every bit is equal.
#[test]
fn the_reference_is_at_parity_with_itself() {
    let shown = json(&ok(&["parity", "--backend", "cpu", "--tokens", "70", "--json"]));
    let config = ModelFiles::builtin().unwrap().config().clone();
    let states = shown["states"].as_array().unwrap();
    assert_eq!(states[0]["name"], "embed_tokens");
    assert_eq!(states.len(), 1 + config.num_hidden_layers);
    for state in states.iter().chain([&shown["logits"]]) {
        assert_eq!((number(&state["largest"]), number(&state["relative"])), (0.0, 0.0), "{state}");
    }
    // The default text is longer, so two steps were compared.
    assert_eq!((&shown["tokens"], &shown["agreeing"]), (&70.into(), &70.into()));
    assert!(shown["text_tokens"].as_u64().unwrap() > 70);
    assert_eq!(number(&shown["divergence"]["largest"]), 0.0);
    assert_eq!(shown["perplexity"]["reference"], shown["perplexity"]["compared"]);
    assert!(number(&shown["perplexity"]["reference"]) > 1.0);
    assert!(shown["first_difference"].is_null());
}

/// Rounded activations move the hidden states of a quantized model, by no more than their eight bits allow.
#[test]
fn rounded_activations_are_measured() {
    let model = fixture("quantized/llama-affine4");
    let args = ["parity", "--backend", "cpu", "--model", model.to_str().unwrap(), "--tokens", "40"];
    let shown = json(&ok(&[&args[..], &["--json"]].concat()));
    assert_eq!(shown["reference"]["activations"], "f32");
    assert_eq!(shown["compared"]["activations"], "int8");
    let states = shown["states"].as_array().unwrap();
    assert_eq!(number(&states[0]["largest"]), 0.0, "an embedding is not rounded");
    for state in states[1..].iter().chain([&shown["logits"]]) {
        let relative = number(&state["relative"]);
        assert!(1e-5 < relative && relative < 0.05, "{state}");
    }
    let mean = number(&shown["divergence"]["mean"]);
    assert!(0.0 < mean && mean < 0.01 && mean <= number(&shown["divergence"]["largest"]), "{shown}");

    let failed = backstop(&[&args[..], &["--fail-above", "1e-12"]].concat());
    assert_eq!(failed.code, Some(1), "{}", failed.err);
    assert!(failed.err.starts_with("error: the mean KL divergence is "), "{}", failed.err);
    assert!(failed.err.trim_end().ends_with(" nats, above --fail-above 0.000000000001"), "{}", failed.err);
    assert!(failed.out.contains("\nlayers.1 "), "the report comes first: {}", failed.out);
    let exact = ["--activations", "f32", "--fail-above", "0"];
    let table = ok(&[&args[..], &exact].concat()).out;
    assert!(table.contains("\nlikeliest token the same after 40 of 40 tokens\n"), "{table}");
    assert!(table.contains("\nfallbacks       0\n"), "{table}");
}

#[test]
fn a_text_is_read_from_the_arguments_or_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.txt");
    let text = "Once upon a time there was a small bear.";
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    let typed = json(&ok(&["parity", text, "--backend", "cpu", "--json"]));
    let read = json(&ok(&["parity", "--text-file", path, "--backend", "cpu", "--json"]));
    assert_eq!(typed, read);
    assert_eq!(typed["tokens"], typed["text_tokens"]);
    let missing = "error: nowhere.txt: No such file or directory (os error 2)";
    refused(&["parity", "--text-file", "nowhere.txt"], 1, missing);
    let twice = "error: --text-file is the text to read: leave TEXT out";
    refused(&["parity", "Hello there", "--text-file", path], 2, twice);
    fs::write(path, b"ab\xff").unwrap();
    let bytes = format!("error: {path}: byte 2 (0xff) is not UTF-8: convert the text first, as with iconv");
    refused(&["parity", "--text-file", path], 1, &bytes);
    let below = "error: --fail-above is -1, expected a number of nats from 0 on";
    refused(&["parity", "--fail-above", "-1"], 2, below);
}

/// MLX is near the reference, layer by layer, and nothing of it was computed on the CPU.
#[test]
#[cfg(has_mlx)]
fn mlx_is_compared_with_the_cpu() {
    let shown = json(&ok(&["parity", "--backend", "mlx", "--tokens", "80", "--json"]));
    assert!(shown["compared"]["device"].as_str().unwrap().starts_with("mlx ("), "{shown}");
    assert!(shown["compared"]["activations"].is_null(), "{shown}");
    assert_eq!(shown["compared"]["fallbacks"], serde_json::json!([]));
    for state in shown["states"].as_array().unwrap() {
        // Eight bits of bf16 after each op, over a few layers.
        assert!(number(&state["relative"]) < 0.05, "{state}");
    }
    let logits = number(&shown["logits"]["relative"]);
    assert!(0.0 < logits && logits < 0.05, "{shown}");
    assert!(number(&shown["divergence"]["mean"]) < 0.02, "{shown}");
}

#[test]
fn a_report_in_html_tells_layers_tokens_and_their_text() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("parity.html");
    let model = fixture("quantized/llama-affine4");
    let text = "<script>alert(1)</script> once & again the cat <b>sat</b> on the mat, and it sat on the mat.";
    let shown = json(&ok(&[
        "parity",
        text,
        "--backend",
        "cpu",
        "--model",
        model.to_str().unwrap(),
        "--html",
        file.to_str().unwrap(),
        "--json",
    ]));
    let html = fs::read_to_string(&file).unwrap();
    let (states, tokens) =
        (shown["states"].as_array().unwrap().len(), shown["tokens"].as_u64().unwrap() as usize);
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"), "{html}");
    assert_eq!(html.matches("<svg").count(), 3);
    assert_eq!(html.matches("<rect").count(), 2 * (states + 1) + tokens);
    assert_eq!(html.matches("<span").count(), tokens);
    let number = |value: &Value| format!("{:.3e}", value.as_f64().unwrap());
    let logits = format!("<title>logits: {}</title>", number(&shown["logits"]["relative"]));
    assert!(html.contains(&logits), "{logits}: {html}");
    // The worst token comes first.
    let (_, worst) = html.split_once("<h2>The worst tokens</h2>").unwrap();
    let first: Vec<&str> =
        worst.split("<td>").skip(1).take(6).map(|cell| cell.split("</td>").next().unwrap()).collect();
    assert_eq!(first[0], shown["divergence"]["position"].to_string());
    assert_eq!(first[5], number(&shown["divergence"]["largest"]));
    // Nothing of the text is HTML, and nothing is loaded.
    for none in ["<script", "<b>", "http:", "https:", "url("] {
        assert!(!html.contains(none), "{none}: {html}");
    }
    // What cannot be written is told before anything is computed.
    let failed = backstop(&["parity", "--html", "/nonexistent/x.html"]);
    assert_eq!(failed.code, Some(1));
    assert!(failed.err.contains("/nonexistent/x.html"), "{}", failed.err);
}
