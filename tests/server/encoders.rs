//! Models that embed or rank: vectors as their files say, documents in the order of their scores, and what such a model refuses.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::support::Server;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders").join(name)
}

fn server(name: &str) -> Server {
    Server::start(&[folder(name).to_str().unwrap(), "--parallel", "4"])
}

/// A tensor of what sentence-transformers computed, in rows.
fn expected(name: &str, tensor: &str) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(tensor).unwrap();
    let width = view.shape().get(1).copied().unwrap_or(1);
    let values: Vec<f32> =
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    values.chunks_exact(width).map(<[f32]>::to_vec).collect()
}

fn texts(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(name).join("texts.json")).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[track_caller]
fn near(got: &[f32], wanted: &[f32]) {
    assert_eq!(got.len(), wanted.len());
    for (got, wanted) in got.iter().zip(wanted) {
        assert!((got - wanted).abs() <= 1e-4 * wanted.abs().max(0.1), "{got}, expected {wanted}");
    }
}

#[test]
fn vectors_are_those_of_the_models_files() {
    let name = "gemma3_text-dense";
    let server = server(name);
    let (texts, wanted) = (texts(name), expected(name, "vectors"));
    let answer = server.post("/v1/embeddings", &json!({ "input": texts })).ok();
    assert_eq!(answer["pooling"], "mean of all tokens, through 2 dense layers, scaled to length 1");
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), wanted.len());
    for (item, wanted) in data.iter().zip(&wanted) {
        near(&floats(&item["embedding"]), wanted);
    }
    let short = json!({ "input": texts[0], "dimensions": 8, "encoding_format": "base64" });
    let short = server.post("/v1/embeddings", &short).ok();
    let bytes = STANDARD.decode(short["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let short: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let length = wanted[0][..8].iter().map(|x| x * x).sum::<f32>().sqrt();
    near(&short, &wanted[0][..8].iter().map(|x| x / length).collect::<Vec<_>>());
    let more = json!({ "input": "a", "dimensions": 33 });
    let said = server.post("/v1/embeddings", &more).refusal(400);
    assert!(said.starts_with("dimensions is 33 of 32, expected"), "{said}");
}

#[test]
fn documents_come_in_the_order_of_their_scores() {
    for name in ["bert-cross", "xlm_roberta-cross"] {
        let server = server(name);
        let pairs = texts(name);
        let query = pairs[0][0].clone();
        let own: Vec<(usize, &Value)> =
            pairs.as_array().unwrap().iter().enumerate().filter(|(_, pair)| pair[0] == query).collect();
        assert!(own.len() >= 6, "{} documents", own.len());
        let scores = expected(name, "scores").concat();
        let documents: Vec<Value> = own.iter().map(|(_, pair)| pair[1].clone()).collect();
        let mut order: Vec<usize> = (0..own.len()).collect();
        order.sort_by(|&a, &b| scores[own[b].0].total_cmp(&scores[own[a].0]));
        let body = json!({ "query": query, "documents": documents });
        let answer = server.post("/v1/rerank", &body).ok();
        let results = answer["results"].as_array().unwrap();
        let got: Vec<usize> = results.iter().map(|one| one["index"].as_u64().unwrap() as usize).collect();
        assert_eq!(got, order, "{name}");
        for (result, &index) in results.iter().zip(&order) {
            near(&[result["relevance_score"].as_f64().unwrap() as f32], &[scores[own[index].0]]);
            assert!(result.get("document").is_none());
        }
        assert!(answer["usage"]["total_tokens"].as_u64().unwrap() > 100);
        // Objects with a text, the best two alone, by a path that clients have.
        let objects: Vec<Value> = documents.iter().map(|text| json!({ "text": text })).collect();
        let body = json!({ "query": query, "documents": objects, "top_n": 2, "return_documents": true });
        let answer = server.post("/rerank", &body).ok();
        let best = answer["results"].as_array().unwrap();
        assert_eq!(best.len(), 2);
        for (best, (result, &index)) in best.iter().zip(results.iter().zip(&order)) {
            assert_eq!(best["relevance_score"], result["relevance_score"]);
            assert_eq!(best["document"], json!({ "text": documents[index] }));
        }
    }
}

#[test]
fn what_such_a_model_is_not_for_is_refused_by_name() {
    let embedder = server("bert-mean");
    let none =
        "bert-mean: it reads whole texts and generates none: it is for embeddings, or for scores of pairs";
    let messages = json!([{ "role": "user", "content": "a" }]);
    for (path, body) in [
        ("/v1/chat/completions", json!({ "messages": messages })),
        ("/v1/completions", json!({ "prompt": "a" })),
        ("/v1/responses", json!({ "input": "a" })),
        ("/v1/messages", json!({ "messages": messages, "max_tokens": 1 })),
        ("/apply-template", json!({ "messages": messages })),
    ] {
        assert_eq!(embedder.post(path, &body).refusal(400), none, "{path}");
    }
    let pair = json!({ "query": "a", "documents": ["b"] });
    let said = embedder.post("/v1/rerank", &pair).refusal(400);
    assert_eq!(said, "bert-mean: it is no cross-encoder, and has no score for a pair of texts");
    let chatty = Server::start(&[]).post("/v1/rerank", &pair).refusal(400);
    assert!(chatty.ends_with("it is no cross-encoder, and has no score for a pair of texts"), "{chatty}");

    let ranker = server("bert-cross");
    for (body, expected) in [
        (json!({ "documents": ["b"] }), "query: missing"),
        (json!({ "query": "a" }), "documents: missing"),
        (json!({ "query": "a", "documents": [] }), "documents: 0 texts, expected 1 to 2048"),
        (
            json!({ "query": "a", "documents": ["b", 1] }),
            "documents: expected texts, or objects with one, got 1",
        ),
        (json!({ "query": "a", "documents": [{}] }), "documents: expected a text in each object"),
        (json!({ "query": "a", "documents": ["b"], "top_n": 0 }), "top_n: expected a whole number from 1"),
    ] {
        let said = ranker.post("/v1/rerank", &body).refusal(400);
        assert!(said.starts_with(expected), "{said}");
    }
    let long = json!({ "query": "a", "documents": ["word ".repeat(1000)] });
    let said = ranker.post("/v1/rerank", &long).json();
    assert_eq!(said["error"]["code"], "context_length_exceeded", "{said}");
    ranker.wait_for("backstop_sequences_running", |running| running == 0.0);
    assert_eq!(ranker.metric("backstop_kv_reserved_bytes"), 0.0);
}

#[test]
fn an_item_that_cannot_be_is_named_before_any_is_computed() {
    let server = server("bert-mean");
    let long = "cat ".repeat(500);
    let refused = |body: Value| {
        let answer = server.post("/v1/embeddings", &body);
        (answer.refusal(400).to_owned(), answer.json()["error"]["param"].as_str().map(str::to_owned))
    };
    let (said, param) = refused(json!({ "input": ["a", "b", long] }));
    assert!(said.starts_with("input[2]: the prompt has "), "{said}");
    assert_eq!(param.as_deref(), Some("input[2]"));
    let (said, _) = refused(json!({ "input": [[5], []] }));
    assert_eq!(said, "input[1]: prompt: it has no token");
    let server = self::server("bert-cross");
    let body = json!({ "query": "a", "documents": ["b", long] });
    // By Cohere's second path, too.
    for path in ["/v1/rerank", "/v2/rerank"] {
        let answer = server.post(path, &body);
        let said = answer.refusal(400);
        assert!(said.starts_with("documents[1]: the prompt has "), "{said}");
    }
}

#[test]
fn texts_that_are_too_long_are_cut_where_one_asks() {
    let server = server("bert-mean");
    let long = "cat ".repeat(500);
    let vector = |body: Value| {
        let answer = server.post("/v1/embeddings", &body).ok();
        (floats(&answer["data"][0]["embedding"]), answer["usage"]["prompt_tokens"].as_u64().unwrap())
    };
    let (whole, tokens) = vector(json!({ "input": long, "truncate": true }));
    assert_eq!(tokens, 400);
    for asked in [
        json!({ "truncate": "END" }),
        json!({ "truncate_prompt_tokens": -1 }),
        json!({ "truncate_prompt_tokens": 400 }),
    ] {
        let mut body = json!({ "input": long });
        body.as_object_mut().unwrap().extend(asked.as_object().unwrap().clone());
        assert_eq!(vector(body), (whole.clone(), 400), "{asked}");
    }
    let (_, few) = vector(json!({ "input": [long], "truncate_prompt_tokens": 7 }));
    assert_eq!(few, 7);
    let ids: Vec<u32> = (5..100).collect();
    assert_eq!(
        vector(json!({ "input": ids, "truncate_prompt_tokens": 3 })),
        vector(json!({ "input": [5, 6, 7] }))
    );
    for (body, expected) in [
        (json!({ "input": ["a", long] }), "input[1]: the prompt has "),
        (json!({ "input": ["a", long], "truncate": false }), "input[1]: the prompt has "),
        (json!({ "input": "a", "truncate": "START" }), "truncate: expected true, false, NONE or END"),
        (
            json!({ "input": "a", "truncate": true, "truncation_direction": "Left" }),
            "truncation_direction: expected Right",
        ),
        (
            json!({ "input": "a", "truncate_prompt_tokens": 401 }),
            "truncate_prompt_tokens: expected a whole number from 1 to 400",
        ),
        (
            json!({ "input": ["a", "b c"], "truncate_prompt_tokens": 1 }),
            "input[0]: prompt: it is cut to 1 tokens, and 2 are put around it",
        ),
    ] {
        let answer = server.post("/v1/embeddings", &body);
        let said = answer.refusal(400);
        assert!(said.starts_with(expected), "{said}");
    }
    let server = self::server("bert-cross");
    let body = json!({ "query": "a", "documents": ["b", long] });
    assert!(server.post("/v1/rerank", &body).refusal(400).starts_with("documents[1]: the prompt has "));
    for (name, value, tokens) in
        [("max_tokens_per_doc", json!(9), 5 + 13), ("truncate", json!(true), 5 + 400)]
    {
        let mut body = body.clone();
        body[name] = value;
        let answer = server.post("/v2/rerank", &body).ok();
        assert_eq!(answer["usage"]["total_tokens"].as_u64(), Some(tokens), "{name}");
    }
}

#[test]
fn a_decoder_scores_by_what_it_would_say_next() {
    for name in ["qwen3-judge-cross", "qwen3-word-cross"] {
        let server = server(name);
        let (pairs, scores) = (texts(name), expected(name, "scores").concat());
        let documents: Vec<&Value> = pairs.as_array().unwrap().iter().take(6).map(|pair| &pair[1]).collect();
        let body = json!({ "query": pairs[0][0], "documents": documents, "parse_special": true });
        let answer = server.post("/v1/rerank", &body).ok();
        for result in answer["results"].as_array().unwrap() {
            let index = result["index"].as_u64().unwrap() as usize;
            near(&[result["relevance_score"].as_f64().unwrap() as f32], &[scores[index]]);
        }
        // And still generates.
        let body = json!({ "prompt": "a", "max_tokens": 2 });
        assert_eq!(server.post("/v1/completions", &body).ok()["usage"]["completion_tokens"], 2);
    }
}

#[test]
fn whoever_serves_a_model_may_say_how_it_pools() {
    let path = folder("bert-mean");
    let server = Server::start(&[path.to_str().unwrap(), "--pooling", "cls"]);
    let answer = server.post("/v1/embeddings", &json!({ "input": "a" })).ok();
    assert_eq!(answer["pooling"], "the first token, scaled to length 1");
    let wanted = floats(
        &self::server("bert-mean").post("/v1/embeddings", &json!({ "input": "a" })).ok()["data"][0]["embedding"],
    );
    assert_ne!(floats(&answer["data"][0]["embedding"]), wanted);
}
