//! Vectors: of several texts at once, beside a chat, and what becomes of them when they do not fit or nobody waits.

use serde_json::{Value, json};

use crate::support::{Answer, Noise, Server, chat, endless, expected, read_some};

/// The vectors of an answer, whose order is that of the texts.
fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    let vector = |(index, item): (usize, &Value)| {
        assert_eq!((&item["object"], &item["index"]), (&json!("embedding"), &json!(index)));
        let values = item["embedding"].as_array().unwrap().iter();
        values.map(|value| value.as_f64().unwrap() as f32).collect()
    };
    data.iter().enumerate().map(vector).collect()
}

#[test]
fn several_texts_at_once_have_the_vectors_of_each_alone() {
    let server = Server::start(&["--parallel", "4"]);
    let texts: Vec<String> = (0..9).map(|i| format!("Number {i}{}", " and on".repeat(i * i % 40))).collect();
    let of = |input: Value| server.post("/v1/embeddings", &json!({ "input": input })).ok();
    let alone: Vec<Vec<f32>> = texts.iter().map(|text| vectors(&of(json!(text))).concat()).collect();
    let mut beside = server.begin("/v1/chat/completions", &chat(json!({ "max_tokens": 24, "stream": true })));
    let answer = of(json!(texts));
    assert_eq!(vectors(&answer), alone);
    let ids = |text: &String| {
        server.post("/tokenize", &json!({ "content": text, "add_special": true })).ok()["count"].clone()
    };
    let count: u64 = texts.iter().map(|text| ids(text).as_u64().unwrap()).sum();
    assert_eq!(answer["usage"], json!({ "prompt_tokens": count, "total_tokens": count }));
    let events = Answer::read(&mut beside).events();
    let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let text: String = chunks
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(text, expected(24));
}

#[test]
fn a_text_that_cannot_fit_ends_its_request_and_nothing_is_left() {
    let server = Server::start(&["--kv-memory", "100kB"]);
    let body = json!({ "input": [vec![1; 20], vec![2; 100]] });
    let needed = 2 * 64 * 6 * 2 * 2 * 32 * 2;
    let what = format!("the KV cache of 100 tokens needs {needed} bytes, 100000 bytes are available");
    assert_eq!(server.post("/v1/embeddings", &body).refusal(400), what);
    let longer = json!({ "input": [vec![1; 20], vec![2; 1000]] });
    let said = server.post("/v1/embeddings", &longer).json();
    assert_eq!(said["error"]["code"], "context_length_exceeded", "{said}");
    let none = json!({ "input": [vec![1; 20], Vec::<u32>::new()] });
    assert_eq!(server.post("/v1/embeddings", &none).status, 400);
    server.wait_for("backstop_sequences_running", |running| running == 0.0);
    assert_eq!(server.metric("backstop_kv_reserved_bytes"), 0.0);
    let fits = server.post("/v1/embeddings", &json!({ "input": [vec![1; 20], vec![2; 64]] })).ok();
    assert_eq!(vectors(&fits).len(), 2);
}

#[test]
fn a_client_that_goes_gives_memory_and_places_back() {
    let noise = Noise::new();
    // Memory for one of the endless ones: 128 bytes a token.
    let server = Server::endless(&noise, &["--kv-memory", "20MB"]);
    let mut running = server.begin("/v1/chat/completions", &endless());
    read_some(&mut running);
    let waiting = server.begin("/v1/embeddings", &json!({ "input": [vec![1; 60_000], vec![2; 60_000]] }));
    server.wait_for("backstop_sequences_waiting_for_memory", |waiting| waiting == 2.0);
    drop(waiting);
    server.wait_for("backstop_sequences_waiting_for_memory", |waiting| waiting == 0.0);
    drop(running);
    // Those that are computed when the client goes, too.
    let computed = server.begin("/v1/embeddings", &json!({ "input": [vec![1; 60_000], vec![2; 60_000]] }));
    server.wait_for("backstop_sequences_running", |running| running == 2.0);
    drop(computed);
    server.wait_for("backstop_sequences_running", |running| running == 0.0);
    server.wait_for("backstop_kv_reserved_bytes", |reserved| reserved == 0.0);
}
