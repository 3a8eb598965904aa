//! Adapters of a served model: chosen by `model`, listed, loaded and unloaded while the server runs.

use std::path::Path;

use backstop::{AdapterSource, Model, Options};
use serde_json::{Value, json};

use crate::support::{Answer, Server, chat, events, with};

#[path = "../support/adapter.rs"]
mod adapter;
use adapter::write;

fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

/// What the library says with an adapter.
fn expected(path: &Path, scale: f32) -> String {
    let model = Model::builtin().unwrap();
    model.load_adapter(&AdapterSource { name: "x".into(), path: path.to_owned(), scale }).unwrap();
    let options = Options { max_tokens: Some(24), ..Options::default() };
    model.with_adapter("x").unwrap().generate("Once upon a time", &options).unwrap().text().unwrap()
}

#[test]
fn adapters_are_chosen_listed_loaded_and_unloaded() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    write(&a, 1);
    write(&b, 2);
    let server = Server::start(&[
        "--adapter",
        &format!("a={}", a.display()),
        "--adapters-dir",
        dir.path().to_str().unwrap(),
    ]);
    let ask = |model: &str| {
        let body =
            json!({ "model": model, "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0 });
        server.post("/v1/completions", &body)
    };
    let plain = ask("stories").ok();
    let (of_a, of_b, of_half) = (expected(&a, 1.0), expected(&b, 1.0), expected(&b, 0.5));
    assert!(text(&plain) != of_a && of_a != of_b && of_b != of_half, "{of_a:?} {of_b:?} {of_half:?}");
    let got = ask("stories:a").ok();
    assert_eq!(text(&got), of_a);
    assert_eq!(got["model"], "stories");
    assert_ne!(got["system_fingerprint"], plain["system_fingerprint"]);

    let ids = || -> Vec<String> {
        let all = server.get("/v1/models").ok();
        all["data"].as_array().unwrap().iter().map(|of| of["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(), ["stories", "stories:a"]);
    let entry = server.get("/v1/models/stories:a").ok();
    assert_eq!((&entry["parent"], &entry["adapter"]["name"]), (&json!("stories"), &json!("a")));
    assert_eq!((&entry["root"], &entry["adapter"]["kind"]), (&json!("stories:a"), &json!("LoRA, rank 2")));
    assert!(server.get("/v1/models/stories").ok()["adapter"].is_null());
    assert!(ask("stories:b").refusal(404).contains("no adapter \"b\": it has a"));
    server.get("/v1/models/stories:b").refusal(404);
    ask("other:a").refusal(404);

    let load = |more: Value| server.post("/v1/adapters/load", &with(json!({ "name": "b" }), more));
    // A name in the directory, or what the adapter is called; nowhere else.
    for path in ["../b", "/etc", "", ".", "..", "b/x"] {
        assert!(load(json!({ "path": path })).refusal(400).contains("--adapters-dir"), "{path}");
    }
    let loaded = load(json!({ "path": "b", "scale": 0.5, "model": "stories" })).ok();
    assert_eq!(loaded["data"][1]["name"], "b");
    assert_eq!(text(&ask("stories:b").ok()), of_half);
    assert!(load(json!({})).refusal(400).contains("has an adapter b already"));
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    assert!(load(json!({ "path": "empty", "name": "c" })).refusal(400).contains("holds no adapter"));
    load(json!({ "name": "c" })).refusal(400);
    load(json!({ "path": "a", "name": "a:b" })).refusal(400);
    load(json!({ "path": "a", "name": "c", "model": "none" })).refusal(404);
    assert_eq!(ids(), ["stories", "stories:a", "stories:b"]);

    // A stream that has begun is written to its end with the adapter that is unloaded.
    let body = chat(json!({ "model": "stories:b", "stream": true, "max_tokens": 40 }));
    let whole = server.post("/v1/chat/completions", &body).text();
    let unload = |name: &str| server.post("/v1/adapters/unload", &json!({ "name": name }));
    let mut stream = server.begin("/v1/chat/completions", &body);
    assert_eq!(stream.peek(&mut [0; 1]).unwrap(), 1);
    assert_eq!(unload("b").ok()["data"].as_array().unwrap().len(), 1);
    let rest = Answer::read(&mut stream).text();
    let said = |text: &str| -> String {
        let delta = |event: String| -> Option<String> {
            let event: Value = serde_json::from_str(&event).ok()?;
            event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
        };
        events(text).into_iter().filter_map(delta).collect()
    };
    assert_eq!(said(&rest), said(&whole));
    assert!(said(&rest).len() > 20, "{rest}");
    assert!(unload("b").refusal(404).contains("no adapter \"b\""));
    ask("stories:b").refusal(404);
    load(json!({})).ok();
    assert_eq!(text(&ask("stories:b").ok()), of_b);
    assert_eq!(text(&ask("stories").ok()), text(&plain));
}

#[test]
fn a_name_that_is_anything_is_an_adapter_only_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1);
    let adapter = format!("a={}@-1", dir.path().display());
    let server =
        Server::start(&["--adapter", &adapter, "--alias", "*", "--alias", "stories:8b", "--api-key", "k"]);
    let key = [("Authorization", "Bearer k"), ("Content-Type", "application/json")];
    let ask = |model: &str| {
        let body =
            json!({ "model": model, "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0 });
        text(&server.request("POST", "/v1/completions", &key, body.to_string().as_bytes()).ok())
    };
    let plain = ask("stories");
    assert_eq!([ask("stories:8b"), ask("stories:7b"), ask("gpt:a")], [plain.clone(), plain.clone(), plain]);
    assert_eq!(ask("stories:a"), expected(dir.path(), -1.0));
    // Without the key nothing is loaded.
    for path in ["/v1/adapters/load", "/v1/adapters/unload"] {
        server.post(path, &json!({ "name": "b" })).refusal(401);
    }
}
