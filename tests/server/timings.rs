//! What an answer took, in llama.cpp's form and in Ollama's: whole, and in the streams of every route.

use serde_json::{Value, json};

use crate::support::{Answer, Server, with};

const GENERATED: u64 = 6;

/// A prompt of more than a page of the cache.
fn prompt() -> String {
    "Once upon a time there was a little girl who had a red ball. ".repeat(8)
}

/// The parts of a stream of events or lines that are JSON.
fn parts(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    let lines = text.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
    lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The tokens of prompt, cache and answer that `timings` tells, once all of it is right in itself.
#[track_caller]
fn counted(timings: &Value) -> [u64; 3] {
    let names: Vec<&str> = timings.as_object().unwrap().keys().map(String::as_str).collect();
    let all = [
        "cache_n",
        "prompt_n",
        "prompt_ms",
        "prompt_per_token_ms",
        "prompt_per_second",
        "predicted_n",
        "predicted_ms",
        "predicted_per_token_ms",
        "predicted_per_second",
        "draft_n",
        "draft_n_accepted",
    ];
    assert_eq!(names, all);
    let count = |name: &str| timings[name].as_u64().unwrap_or_else(|| panic!("{name}: {timings}"));
    let number = |name: &str| timings[name].as_f64().unwrap_or_else(|| panic!("{name}: {timings}"));
    let [cached, computed, generated] = ["cache_n", "prompt_n", "predicted_n"].map(count);
    assert!(computed > 0 && generated > 0 && number("prompt_ms") > 0.0, "{timings}");
    assert!(count("draft_n_accepted") <= count("draft_n"), "{timings}");
    // The first token is the prompt's work.
    for (tokens, ms, rate, each) in [
        (computed, "prompt_ms", "prompt_per_second", "prompt_per_token_ms"),
        (generated - 1, "predicted_ms", "predicted_per_second", "predicted_per_token_ms"),
    ] {
        let whole = if tokens == 0 { 0.0 } else { number(ms) };
        let product = number(each) * tokens as f64;
        assert!((product - whole).abs() < 1e-6 * (1.0 + whole), "{each}: {timings}");
        let product = number(rate) * number(ms) / 1e3;
        assert!((product - tokens as f64).abs() < 1e-6 * (1.0 + tokens as f64), "{rate}: {timings}");
        assert!(number(ms) > 0.0 || tokens == 0, "{ms}: {timings}");
    }
    [computed, cached, generated]
}

/// The tokens of prompt, cache and answer by the usage that each API has.
#[track_caller]
fn used(usage: &Value) -> [u64; 3] {
    let count = |path: &str| usage.pointer(path).and_then(Value::as_u64);
    let at = |paths: &[&str]| {
        paths.iter().find_map(|path| count(path)).unwrap_or_else(|| panic!("{paths:?}: {usage}"))
    };
    let cached = at(&[
        "/prompt_tokens_details/cached_tokens",
        "/input_tokens_details/cached_tokens",
        "/cache_read_input_tokens",
    ]);
    let prompt = at(&["/prompt_tokens", "/input_tokens"]);
    // Anthropic's input is what was not kept.
    let computed = if usage["cache_read_input_tokens"].is_u64() { prompt } else { prompt - cached };
    [computed, cached, at(&["/completion_tokens", "/output_tokens"])]
}

#[test]
fn answers_and_streams_tell_their_timings() {
    let messages = json!([{ "role": "user", "content": prompt() }]);
    let usage = json!({ "stream_options": { "include_usage": true } });
    // The route, what it is asked, what more for a stream, and where its stream has usage and timings.
    let routes = [
        (
            "/v1/chat/completions",
            json!({ "messages": messages, "max_tokens": GENERATED }),
            usage.clone(),
            ("/usage", "/timings"),
        ),
        (
            "/v1/completions",
            json!({ "prompt": prompt(), "max_tokens": GENERATED }),
            usage,
            ("/usage", "/timings"),
        ),
        (
            "/v1/responses",
            json!({ "input": prompt(), "max_output_tokens": GENERATED }),
            json!({}),
            ("/response/usage", "/response/timings"),
        ),
        (
            "/v1/messages",
            json!({ "messages": messages, "max_tokens": GENERATED }),
            json!({}),
            ("/usage", "/timings"),
        ),
    ];
    for (route, body, more, (usage_at, timings_at)) in routes {
        let server = Server::start(&[]);
        let body = with(body, json!({ "temperature": 0 }));
        let mut kept = Vec::new();
        for _ in 0..2 {
            let whole = server.post(route, &body).ok();
            let took = counted(&whole["timings"]);
            assert_eq!((took, took[2]), (used(&whole["usage"]), GENERATED), "{route}");
            kept.push(took);
        }
        let [first, again] = kept[..] else { unreachable!() };
        assert!(first[1] == 0 && again[1] >= 64, "{route}: {kept:?}");
        assert_eq!(first[0], again[0] + again[1], "{route}");

        let stream = with(body.clone(), json!({ "stream": true }));
        let parts_of = |more: Value| parts(&server.post(route, &with(stream.clone(), more)));
        let all = parts_of(more);
        let told: Vec<&Value> = all.iter().filter_map(|part| part.pointer(timings_at)).collect();
        let told: Vec<&Value> = told.into_iter().filter(|timings| !timings.is_null()).collect();
        let usages: Vec<&Value> = all.iter().filter_map(|part| part.pointer(usage_at)).collect();
        assert!(!told.is_empty() && told.iter().all(|timings| *timings == told[0]), "{route}: {told:?}");
        assert_eq!(counted(told[0]), again, "{route}");
        assert_eq!(used(usages.last().unwrap()), again, "{route}");
        // Nobody has to ask for them, and none come before the end.
        let all = parts_of(json!({}));
        let at = |part: &Value| part.pointer(timings_at).is_some_and(|timings| !timings.is_null());
        let told: Vec<usize> = (0..all.len()).filter(|&i| at(&all[i])).collect();
        let last = all.len() - if route == "/v1/messages" { 2 } else { 1 };
        assert_eq!(told, [last], "{route}: {all:?}");
    }
}

#[test]
fn each_text_of_a_stream_has_timings_of_its_own() {
    let server = Server::start(&[]);
    let body = json!({ "prompt": prompt(), "max_tokens": GENERATED, "temperature": 1, "seed": 3, "n": 3, "stream": true,
        "stream_options": { "include_usage": true }, "ignore_eos": true });
    let all = parts(&server.post("/v1/completions", &body));
    let of = |choice: u64| {
        let mine = all.iter().filter(|part| part["choices"][0]["index"] == choice);
        let told: Vec<&Value> = mine.filter(|part| !part["timings"].is_null()).collect();
        assert_eq!(told.len(), 1, "{choice}: {told:?}");
        assert!(!told[0]["choices"][0]["finish_reason"].is_null());
        told[0]["timings"].clone()
    };
    let each = [0, 1, 2].map(of);
    let (usage, first) = (&all.last().unwrap()["usage"], &all.last().unwrap()["timings"]);
    let counts = each.each_ref().map(counted);
    assert_eq!(*first, each[0], "what the end says is of the first text");
    // The prompt counts once, and all texts count.
    assert_eq!(used(usage), [counts[0][0], counts[0][1], counts.iter().map(|count| count[2]).sum()]);
    assert!(counts.iter().all(|[computed, cached, _]| computed + cached == counts[0][0] + counts[0][1]));
}

#[test]
fn a_text_of_one_token_has_no_rate() {
    let server = Server::start(&[]);
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 1, "temperature": 0 });
    let timings = server.post("/v1/completions", &body).ok()["timings"].clone();
    assert_eq!(counted(&timings)[2], 1);
    assert_eq!(timings["predicted_per_second"], 0.0);
}

/// Ollama's API has the tokens of the whole prompt, and nanoseconds.
#[test]
fn lines_of_ollama_tell_what_they_took() {
    let server = Server::start(&[]);
    let options = json!({ "temperature": 0, "num_predict": GENERATED });
    let base = json!({ "model": "stories", "options": options });
    let tokens = |path: &str, body: Value| server.post(path, &body).ok();
    let plain = tokens("/tokenize", json!({ "content": prompt(), "add_special": true }))["count"].clone();
    let messages = json!([{ "role": "user", "content": prompt() }]);
    let asked =
        tokens("/apply-template", json!({ "messages": messages }))["tokens"].as_array().unwrap().len();
    for (route, more, prompt) in [
        ("/api/generate", json!({ "prompt": prompt(), "raw": true }), plain),
        ("/api/chat", json!({ "messages": messages }), json!(asked)),
    ] {
        let body = with(base.clone(), more);
        let check = |last: &Value| {
            let count = |name: &str| last[name].as_u64().unwrap_or_else(|| panic!("{name}: {last}"));
            assert_eq!((&last["prompt_eval_count"], count("eval_count")), (&prompt, GENERATED), "{route}");
            let [load, read, wrote] = ["load_duration", "prompt_eval_duration", "eval_duration"].map(count);
            assert_eq!(load, 0);
            assert!(read > 0 && wrote > 0 && count("total_duration") >= read + wrote, "{last}");
        };
        // What was kept of the prompt counts, too.
        for _ in 0..2 {
            check(&server.post(route, &with(body.clone(), json!({ "stream": false }))).ok());
            let lines = parts(&server.post(route, &body));
            let (last, rest) = lines.split_last().unwrap();
            check(last);
            let names =
                ["total_duration", "load_duration", "prompt_eval_count", "eval_count", "eval_duration"];
            assert!(rest.len() > 1 && rest.iter().all(|line| names.iter().all(|name| line[name].is_null())));
        }
    }
}
