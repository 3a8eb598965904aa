//! The memory of the KV cache: what never fits, what waits, what is found again, and what `/metrics` says of it.

use serde_json::json;

use crate::support::{Noise, Server, chat, endless, expected, named_events, read_some, with};

/// Bytes of a page of the built-in model: 64 tokens, 6 layers, K and V of 2 heads of 32 in bf16.
const PAGE: u64 = 64 * 6 * 2 * 2 * 32 * 2;

#[test]
fn what_can_never_fit_is_refused_with_both_numbers() {
    let server = Server::start(&["--kv-memory", "300kB"]);
    let prompt =
        server.post("/tokenize", &json!({ "content": "Once upon a time", "add_special": true })).ok();
    let prompt = prompt["count"].as_u64().unwrap();
    let what = |generated: u64| {
        let needed = (prompt + generated).div_ceil(64) * PAGE;
        format!(
            "the KV cache of {prompt} tokens of prompt and {generated} to generate needs {needed} bytes, 300000 bytes are available"
        )
    };
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 400, "stream": true });
    assert_eq!(server.post("/v1/completions", &body).refusal(400), what(400));
    let messages =
        json!({ "messages": [{ "role": "user", "content": "Once upon a time" }], "max_tokens": 300 });
    assert_eq!(server.post("/v1/messages", &messages).refusal(400), what(300));
    // What fits goes on, and what asks for no number gets what there is: three pages.
    let body = chat(json!({ "max_tokens": 24 }));
    let answer = server.post("/v1/chat/completions", &body).ok();
    assert_eq!(answer["choices"][0]["message"]["content"], expected(24));
    let open = server.post("/v1/chat/completions", &chat(json!({ "ignore_eos": true }))).ok();
    assert_eq!(open["choices"][0]["finish_reason"], "length");
    assert_eq!(open["usage"]["total_tokens"], 192);
    assert_eq!(server.metric("backstop_kv_budget_bytes"), 300_000.0);
    server.wait_for("backstop_kv_reserved_bytes", |reserved| reserved == 0.0);
}

#[test]
fn who_does_not_fit_now_waits_and_a_client_that_goes_gives_its_memory_back() {
    let noise = Noise::new();
    // Memory for one of the endless ones: 128 bytes a token.
    let server = Server::endless(&noise, &["--kv-memory", "20MB"]);
    let mut running = server.begin("/v1/chat/completions", &endless());
    read_some(&mut running);
    let reserved = server.metric("backstop_kv_reserved_bytes");
    assert!(reserved > 140_000.0 * 128.0, "{reserved}");
    let mut waiting = server.begin("/v1/chat/completions", &endless());
    server.wait_for("backstop_sequences_waiting_for_memory", |waiting| waiting == 1.0);
    // A small one would fit, and does not overtake it.
    let small = server.begin("/v1/chat/completions", &chat(json!({ "max_tokens": 2 })));
    server.wait_for("backstop_sequences_waiting_for_memory", |waiting| waiting == 2.0);
    assert_eq!(server.metric("backstop_sequences_running"), 1.0);
    drop(running);
    read_some(&mut waiting);
    drop(waiting);
    drop(small);
    server.wait_for("backstop_sequences_running", |running| running == 0.0);
    server.wait_for("backstop_kv_reserved_bytes", |reserved| reserved == 0.0);
    server.wait_for("backstop_sequences_queued", |queued| queued == 0.0);
    // What is left can give way.
    assert_eq!(server.metric("backstop_kv_used_bytes"), server.metric("backstop_kv_kept_bytes"));
    server.post("/v1/chat/completions", &chat(json!({ "max_tokens": 2 }))).ok();
}

#[test]
fn kept_beginnings_and_answers_are_of_their_keys_and_salts() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "ann a-secret\n\nben b-secret\n").unwrap();
    let server = Server::start(&["--api-key", "c-secret", "--api-key-file", keys.path().to_str().unwrap()]);
    let text = "Once upon a time there was a little girl who had a red ball. ".repeat(8);
    let ask = |key: &str, salt: Option<&str>| {
        let body =
            json!({ "prompt": text, "max_tokens": 4, "temperature": 0, "cache_salt": salt }).to_string();
        let answer = server.request("POST", "/v1/completions", &[("x-api-key", key)], body.as_bytes()).ok();
        let usage = &answer["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (cached > 0, answer["choices"][0]["text"].clone())
    };
    let mut texts = Vec::new();
    for (key, salt, cached) in [
        ("a-secret", None, false),
        ("b-secret", None, false),
        ("c-secret", None, false),
        ("a-secret", Some("x"), false),
        ("a-secret", Some("y"), false),
        ("b-secret", Some("x"), false),
        ("a-secret", None, true),
        ("a-secret", Some("x"), true),
        ("b-secret", Some("x"), true),
    ] {
        let (hit, said) = ask(key, salt);
        assert_eq!(hit, cached, "{key} {salt:?}");
        texts.push(said);
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    let body = json!({ "prompt": "a", "max_tokens": 1, "cache_salt": "" }).to_string();
    let empty = server.request("POST", "/v1/completions", &[("x-api-key", "a-secret")], body.as_bytes());
    assert_eq!(empty.refusal(400), "cache_salt: expected 1 to 256 bytes");
    // An answer that was kept is of its key, too.
    let respond = |key: &str, body: serde_json::Value| {
        server.request("POST", "/v1/responses", &[("x-api-key", key)], body.to_string().as_bytes())
    };
    let first = respond("a-secret", json!({ "input": "Hello", "max_output_tokens": 2 })).ok();
    let next = json!({ "input": "And?", "previous_response_id": first["id"], "max_output_tokens": 2 });
    respond("a-secret", next.clone()).ok();
    assert_eq!(respond("b-secret", next).status, 404);
}

#[test]
fn cached_tokens_are_those_that_were_not_computed() {
    let server = Server::start(&[]);
    let text = "Once upon a time there was a little girl who had a red ball. ".repeat(8);
    let body = json!({ "prompt": text, "max_tokens": 8, "temperature": 0 });
    let first = server.post("/v1/completions", &body).ok();
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    // All but the token whose logits are wanted, told in whole pages.
    let told = (prompt - 1) / 64 * 64;
    assert!(told > 0);
    let again = server.post("/v1/completions", &body).ok();
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], told);
    assert_eq!(again["timings"]["cache_n"], told);
    assert_eq!(again["timings"]["prompt_n"], prompt - told);
    assert_eq!(again["choices"][0]["text"], first["choices"][0]["text"]);
    assert_eq!(server.metric("backstop_prefix_hits_total"), 1.0);
    assert_eq!(server.metric("backstop_prefix_hit_tokens_total"), told as f64);
    // Several texts of a prompt count it once.
    let several = server.post("/v1/completions", &with(body, json!({ "n": 3 }))).ok();
    assert_eq!(several["usage"]["prompt_tokens"], prompt);
    assert_eq!(several["usage"]["prompt_tokens_details"]["cached_tokens"], told);
    assert_eq!(server.metric("backstop_prefix_hits_total"), 4.0);
    server.wait_for("backstop_kv_reserved_bytes", |reserved| reserved == 0.0);
    let kept = server.metric("backstop_kv_kept_bytes");
    assert!(kept >= (prompt / 64 * PAGE) as f64 && kept == server.metric("backstop_kv_used_bytes"), "{kept}");

    // Anthropic counts them apart.
    let body = json!({ "messages": [{ "role": "user", "content": format!("Now {text}") }], "max_tokens": 4,
        "temperature": 0 });
    let first = server.post("/v1/messages", &body).ok();
    let (input, cached) = (&first["usage"]["input_tokens"], &first["usage"]["cache_read_input_tokens"]);
    let prompt = input.as_u64().unwrap() + cached.as_u64().unwrap();
    let events = named_events(&server.post("/v1/messages", &with(body, json!({ "stream": true }))));
    let (_, delta) = events.iter().find(|(name, _)| name == "message_delta").unwrap();
    let told = (prompt - 1) / 64 * 64;
    assert_eq!(delta["usage"]["cache_read_input_tokens"], told);
    assert_eq!(delta["usage"]["input_tokens"], prompt - told);
}
