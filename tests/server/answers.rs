//! What is answered.

use serde_json::{Value, json};

use crate::support::{Server, chat, expected, with};

#[test]
fn a_chat_is_what_the_library_says_streamed_or_not() {
    let server = Server::start(&[]);
    let wanted = expected(24);
    let whole = server.post("/v1/chat/completions", &chat(json!({ "max_completion_tokens": 24 }))).ok();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], "stories");
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"], json!({ "role": "assistant", "content": wanted, "refusal": null }));
    assert_eq!((&choice["finish_reason"], &choice["index"]), (&json!("length"), &json!(0)));
    assert_eq!(whole["usage"]["completion_tokens"], 24);
    let prompt = whole["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(whole["usage"]["total_tokens"].as_u64(), Some(prompt + 24));

    let options = json!({ "max_tokens": 24, "stream": true, "stream_options": { "include_usage": true } });
    let events = server.post("/v1/chat/completions", &chat(options)).events();
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"])
    );
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({ "role": "assistant", "content": "", "refusal": null })
    );
    let text: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, wanted);
    let [.., last, usage] = &chunks[..] else { panic!("{chunks:?}") };
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(24)));
    assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk["usage"].is_null()));
    let finished = chunks.iter().filter(|chunk| !chunk["choices"][0]["finish_reason"].is_null());
    assert_eq!(finished.count(), 1);
}

#[test]
fn several_texts_of_a_prompt_differ_and_repeat() {
    let server = Server::start(&["--parallel", "2"]);
    let body = chat(json!({ "n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 16 }));
    let texts = || -> Vec<String> {
        let answer = server.post("/v1/chat/completions", &body).ok();
        assert_eq!(answer["usage"]["completion_tokens"], 48);
        let choices = answer["choices"].as_array().unwrap().clone();
        choices.iter().map(|choice| choice["message"]["content"].as_str().unwrap().to_owned()).collect()
    };
    let first = texts();
    assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
    assert_eq!(first, texts());
    let one = server.post("/v1/chat/completions", &with(body.clone(), json!({ "n": 1 }))).ok();
    assert_eq!(one["choices"][0]["message"]["content"], first[0]);
    // Without a seed, two requests draw differently.
    let free = with(chat(json!({ "temperature": 1.5, "max_tokens": 32 })), json!({}));
    let text = || server.post("/v1/chat/completions", &free).ok()["choices"][0]["message"]["content"].clone();
    assert_ne!(text(), text());

    // Streamed, the texts come side by side, each whole.
    let events = server.post("/v1/chat/completions", &with(body, json!({ "stream": true }))).events();
    let mut streamed = vec![String::new(); 3];
    for event in &events[..events.len() - 1] {
        let chunk: Value = serde_json::from_str(event).unwrap();
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        streamed[index] += choice["delta"]["content"].as_str().unwrap_or_default();
    }
    assert_eq!(streamed, first);
}

#[test]
fn stops_end_a_text() {
    let server = Server::start(&[]);
    let text = expected(40);
    let stop = text.split_whitespace().nth(4).unwrap();
    let cut = &text[..text.find(stop).unwrap()];
    for stops in [json!(stop), json!(["@never@", stop])] {
        let body = chat(json!({ "stop": stops, "max_tokens": 40 }));
        let choice = server.post("/v1/chat/completions", &body).ok()["choices"][0].clone();
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(cut), &json!("stop")));
    }
    // By id: the third token of the text.
    let ids = server.post("/tokenize", &json!({ "content": text })).ok()["tokens"].clone();
    let third = &ids[3];
    let body = chat(json!({ "stop_token_ids": [third], "max_tokens": 40 }));
    let choice = server.post("/v1/chat/completions", &body).ok()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "stop");
    assert!(text.starts_with(choice["message"]["content"].as_str().unwrap()), "{choice}");
    assert!(choice["message"]["content"].as_str().unwrap().len() < text.len() / 2);
}

#[test]
fn completions_take_text_and_tokens_one_or_many() {
    let server = Server::start(&[]);
    let wanted = expected(12);
    let post = |prompt: Value| {
        let body = json!({ "prompt": prompt, "max_tokens": 12, "temperature": 0 });
        server.post("/v1/completions", &body).ok()
    };
    let one = post(json!("Once upon a time"));
    assert_eq!((&one["object"], &one["choices"][0]["text"]), (&json!("text_completion"), &json!(wanted)));
    let model = backstop::Model::builtin().unwrap();
    let ids = model.tokenizer().unwrap().encode("Once upon a time").unwrap();
    assert_eq!(post(json!(ids))["choices"][0]["text"], json!(wanted));
    let many = post(json!(["Once upon a time", "One day", "Once upon a time"]));
    let texts: Vec<&str> =
        many["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!((texts[0], texts[2]), (wanted.as_str(), wanted.as_str()));
    assert_ne!(texts[0], texts[1]);
    assert_eq!(post(json!([ids, ids]))["choices"].as_array().unwrap().len(), 2);

    let body = json!({ "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "stream": true });
    let events = server.post("/v1/completions", &body).events();
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks = events[..events.len() - 1].iter().map(|event| serde_json::from_str::<Value>(event).unwrap());
    let text: String = chunks.map(|chunk| chunk["choices"][0]["text"].as_str().unwrap().to_owned()).collect();
    assert_eq!(text, wanted);
}

#[test]
fn texts_become_tokens_and_back() {
    let server = Server::start(&[]);
    let text = "A cat sat \u{feff}on\0 the \u{202e}mat. ñ 🦀";
    let answer = server.post("/tokenize", &json!({ "content": text })).ok();
    assert_eq!(answer["tokens"].as_array().unwrap().len() as u64, answer["count"].as_u64().unwrap());
    let back = server.post("/detokenize", &json!({ "tokens": answer["tokens"] })).ok();
    assert_eq!(back["content"], text);
    let with_bos = server.post("/tokenize", &json!({ "content": text, "add_special": true })).ok();
    assert_eq!(with_bos["count"].as_u64().unwrap(), answer["count"].as_u64().unwrap() + 1);
    let pieces = server.post("/tokenize", &json!({ "content": "A cat", "with_pieces": true })).ok();
    assert!(pieces["tokens"][0]["id"].is_u64() && pieces["tokens"][0]["piece"].is_string());
    assert_eq!(server.post("/tokenize", &json!({ "content": "" })).ok()["tokens"], json!([]));
}

#[test]
fn the_model_the_health_and_the_metrics_are_shown() {
    let server = Server::start(&["--alias", "gpt-4o"]);
    let models = server.get("/v1/models").ok();
    let names: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["stories", "gpt-4o"]);
    for name in names {
        server.post("/v1/chat/completions", &chat(json!({ "model": name, "max_tokens": 2 }))).ok();
    }
    server.wait_for("backstop_sequences_running", |running| running == 0.0);
    let health = server.get("/health").ok();
    assert_eq!((&health["status"], &health["running"]), (&json!("ok"), &json!(0)));
    let metrics = server.get("/metrics").text();
    for line in [
        "backstop_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 2",
        "backstop_generated_tokens_total 4",
        "backstop_time_to_first_token_seconds_count 2",
        "backstop_inter_token_seconds_count 2",
        "backstop_sequences_running 0",
        "backstop_sequences_queued 0",
    ] {
        assert!(metrics.lines().any(|got| got == line), "{line}\n{metrics}");
    }
    for (kind, names) in [
        ("gauge", &["connections", "sequences_queued", "sequences_running"][..]),
        (
            "counter",
            &[
                "requests_total",
                "steps_total",
                "cancelled_total",
                "prompt_tokens_total",
                "cached_tokens_total",
                "generated_tokens_total",
                "drafted_tokens_total",
                "accepted_tokens_total",
                "fallbacks_total",
                "replays_total",
            ],
        ),
        ("histogram", &["time_to_first_token_seconds", "inter_token_seconds", "sequence_seconds"]),
    ] {
        for name in names {
            let line = format!("# TYPE backstop_{name} {kind}");
            assert!(metrics.lines().any(|got| got == line), "{line}\n{metrics}");
        }
    }
    let answer = server.get("/health");
    assert!(answer.header("x-request-id").is_some_and(|id| id.starts_with("req_")));
}
