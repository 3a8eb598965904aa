//! Models that are broken or hostile: the request that meets it gets the exact error, and the server lives on.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Noise, Server, chat, with};

/// A model of noise whose chat template is `source`.
fn with_template(source: &str) -> Noise {
    let noise = Noise::new();
    let config = json!({ "chat_template": source }).to_string();
    fs::write(noise.0.path().join("tokenizer_config.json"), config).unwrap();
    noise
}

fn config(noise: &Noise) -> String {
    noise.0.path().join("tokenizer_config.json").display().to_string()
}

#[test]
fn templates_that_do_not_end_or_ask_too_much() {
    let nested =
        "{% set n = namespace(x=[1]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}";
    let doubling = |first: &str| {
        format!(
            "{{% set n = namespace(x={first}) %}}{{% for i in range(99) %}}{{% set n.x = n.x + n.x %}}{{% endfor %}}"
        )
    };
    let cases = [
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}".to_owned(),
            "the template ran too many instructions (line 1)",
        ),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
            "invalid operation: recursion limit exceeded (line 1)",
        ),
        (nested.to_owned(), "invalid operation: the template made too large or too deep a value (line 1)"),
        (doubling("'ab'"), "invalid operation: the template made too large a string (line 1)"),
        (doubling("[1]"), "invalid operation: the template made too large or too deep a value (line 1)"),
        (
            "{% set s = 'a' * 60000 %}{% for i in range(9999) %}{{ s }}{% endfor %}".to_owned(),
            "invalid operation: the template wrote too much (line 1)",
        ),
        ("{{ 'a' | no_such }}".to_owned(), "unknown filter: filter no_such is unknown (line 1)"),
        ("{{ raise_exception('no systems') }}".to_owned(), "invalid operation: no systems (line 1)"),
    ];
    for (source, wanted) in cases {
        let noise = with_template(&source);
        let server = Server::start(&[noise.path()]);
        let refused = server.post("/v1/chat/completions", &chat(json!({ "stream": true })));
        assert_eq!(refused.refusal(400), format!("chat template: {}: {wanted}", config(&noise)), "{source}");
        server.post("/v1/completions", &json!({ "prompt": "x", "max_tokens": 2 })).ok();
        assert_eq!(server.get("/health").ok()["status"], "ok");
    }
}

#[test]
fn templates_that_are_refused_with_their_model() {
    let deep = format!("{{{{ {}", "[".repeat(100_000));
    let cases = [
        ("{{ '-' * 10**10 }}", "line 1: too large a constant"),
        ("{% include 'x' %}", "include, import, extends and block are not supported"),
        ("{% import 'x' as y %}", "include, import, extends and block are not supported"),
        (&deep, "line 1: too long an expression or chain of conditions"),
    ];
    for (source, wanted) in cases {
        let noise = with_template(source);
        let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
        let ran = command.args(["serve", noise.path(), "--port", "0"]).output().unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        let wanted = format!("error: chat template: {}: {wanted}\n", config(&noise));
        assert_eq!((ran.status.code(), said), (Some(1), wanted), "{source:.40}");
    }
}

#[test]
fn variables_reach_the_template_and_special_texts_do_not() {
    let source = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}{{ mood }}";
    let noise = with_template(source);
    let server = Server::start(&[noise.path()]);
    let tokens = |content: &str, more: Value| {
        let body = json!({ "messages": [{ "role": "user", "content": content }], "max_tokens": 1 });
        let answer = server.post("/v1/chat/completions", &with(body, more)).ok();
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    assert_eq!(tokens("a", json!({})), 2);
    assert_eq!(tokens("a", json!({ "chat_template_kwargs": { "mood": "!" } })), 3);
    // The template's mark is one token; the same text, typed, is many.
    assert!(tokens("<|im_end|>", json!({})) > 4);
}

/// Replaces the values of the head, which the file ends with.
fn with_head(value: f32) -> Noise {
    let noise = Noise::new();
    let path = noise.0.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let head = bytes.len() - 4 * 305 * 32;
    bytes.splice(head.., value.to_le_bytes().repeat(305 * 32));
    fs::write(&path, bytes).unwrap();
    noise
}

#[test]
fn logits_that_hold_no_token_end_their_request() {
    let noise = with_head(f32::NAN);
    let server = Server::start(&[noise.path()]);
    let wanted = "sampling: the logit of token 0 is NaN";
    for temperature in [0.0, 1.0] {
        let body = chat(json!({ "temperature": temperature }));
        let answer = server.post("/v1/chat/completions", &body);
        assert_eq!(answer.refusal(500), wanted);
        assert_eq!(answer.json()["error"]["type"], "server_error");
        let events = server.post("/v1/chat/completions", &with(body, json!({ "stream": true }))).events();
        let [begin, error] = &events[..] else { panic!("{events:?}") };
        let begin: Value = serde_json::from_str(begin).unwrap();
        assert_eq!(begin["choices"][0]["delta"]["content"], "");
        let error: Value = serde_json::from_str(error).unwrap();
        assert_eq!(error["error"]["message"], wanted);
    }
    assert_eq!(server.get("/health").ok()["status"], "ok");
    server.wait_for("backstop_sequences_running", |running| running == 0.0);
}

#[test]
fn a_model_that_is_none_is_said_before_anybody_is_served() {
    let empty = tempfile::tempdir().unwrap();
    let refused = |path: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
        let ran = command.arg("serve").arg(path).args(["--port", "0"]).output().unwrap();
        assert_eq!(ran.status.code(), Some(1));
        String::from_utf8(ran.stderr).unwrap()
    };
    let expected = "expected config.json with *.safetensors, or one model's GGUF file";
    let shown = empty.path().display().to_string();
    assert_eq!(refused(empty.path()), format!("error: {shown}: holds no model: it is empty, {expected}\n"));
    fs::write(empty.path().join("notes.txt"), "x").unwrap();
    assert_eq!(
        refused(empty.path()),
        format!("error: {shown}: holds no model: {expected}; it has \"notes.txt\"\n")
    );
}
