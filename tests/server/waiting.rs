//! Requests that wait for their model, in each API: what shows meanwhile that somebody is at work, and what follows. One model
//! answers somebody without an end, and has the room of the one that is waited for.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::several::{Folder, ONE, ask, endless, loaded, states, until};
use crate::support::{Answer, LONG, events, with};

/// What shows that somebody is at work, first of all behind the head, in chunks: a comment, an event of Anthropic's, and white space
/// before a line of JSON.
const COMMENT: &str = "\r\n\r\nB\r\n: waiting\n\n\r\n";
const PING: &str = "\r\n\r\n23\r\nevent: ping\ndata: {\"type\":\"ping\"}\n\n\r\n";
const SPACE: &str = "\r\n\r\n1\r\n \r\n";

/// The answer to a request that waits until `shown` has come, and then has its model.
#[track_caller]
fn waited(path: &str, body: &Value, shown: &str) -> Answer {
    let folder = Folder::new(&["a", "b"]);
    let server = folder.serve(&ONE);
    let busy = endless(&server, "a");
    let mut waits = server.begin(path, body);
    let mut answer = until(&mut waits, shown);
    assert!(states(&server).contains(&("b".into(), "loading".into())));
    drop(busy);
    waits.read_to_string(&mut answer).unwrap();
    loaded(&server, &["b"]);
    Answer::parse(answer.as_bytes())
}

/// The JSON of the events of a stream, without OpenAI's mark of its end, and without pings.
#[track_caller]
fn told(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let text = answer.text();
    let data = text.split("\n\n").filter_map(|event| Some(event.split_once("data: ")?.1));
    let data = data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str::<Value>(data).unwrap());
    data.filter(|event| event["type"] != "ping").collect()
}

/// The objects of a stream of lines.
#[track_caller]
fn lines(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    let text = answer.text();
    assert!(text.starts_with(' ') && !text.contains("\n\n"), "a line without JSON: {text:?}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn streamed() -> Value {
    ask("b", json!({ "stream": true }))
}

/// What each API is asked in its own words. The temperature is one that no sampler takes.
fn wrong(more: Value) -> Value {
    with(json!({ "model": "b", "stream": true, "temperature": -1, "max_tokens": 4 }), more)
}

#[test]
fn a_chat_that_waits_is_sent_comments() {
    let answer = waited("/v1/chat/completions", &streamed(), COMMENT);
    let chunks = told(&answer);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
}

#[test]
fn a_completion_that_waits_is_sent_comments() {
    let body = json!({ "model": "b", "prompt": "Hello", "max_tokens": 4, "temperature": 0, "stream": true });
    let answer = waited("/v1/completions", &body, COMMENT);
    assert_eq!(told(&answer).last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(events(&answer.text()).last().map(String::as_str), Some("[DONE]"));
}

#[test]
fn a_response_that_waits_is_sent_comments() {
    let body = json!({ "model": "b", "input": "Hello", "stream": true, "max_output_tokens": 4 });
    let events = told(&waited("/v1/responses", &body, COMMENT));
    let kinds = [&events[0], events.last().unwrap()].map(|event| event["type"].as_str().unwrap());
    assert_eq!(kinds, ["response.created", "response.incomplete"]);
}

#[test]
fn a_message_that_waits_is_sent_pings() {
    let events = told(&waited("/v1/messages", &streamed(), PING));
    let kinds = [&events[0], events.last().unwrap()].map(|event| event["type"].as_str().unwrap());
    assert_eq!(kinds, ["message_start", "message_stop"]);
}

#[test]
fn a_chat_of_ollamas_that_waits_is_sent_white_space() {
    let body = json!({ "model": "b", "messages": [{ "role": "user", "content": "Hello" }],
        "options": { "num_predict": 4, "temperature": 0 } });
    let lines = lines(&waited("/api/chat", &body, SPACE));
    let last = lines.last().unwrap();
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("length")));
    assert!(last["load_duration"].as_u64().unwrap() > 0 && lines[0]["message"]["role"] == "assistant");
}

#[test]
fn a_text_of_ollamas_that_waits_is_sent_white_space() {
    let body = json!({ "model": "b", "prompt": "Hello", "options": { "num_predict": 4, "temperature": 0 } });
    let text = lines(&waited("/api/generate", &body, SPACE));
    assert!(text[0]["response"].is_string(), "{text:?}");
    assert_eq!(text.last().unwrap()["done_reason"], "length");
    // Nothing but that the model be loaded.
    let load = lines(&waited("/api/generate", &json!({ "model": "b" }), SPACE));
    assert_eq!((load.len(), &load[0]["done_reason"]), (1, &json!("load")));
}

#[test]
fn what_is_wrong_with_a_stream_that_waited_is_told_in_it() {
    let chat = wrong(json!({ "messages": [{ "role": "user", "content": "Hello" }] }));
    let error = |answer: &Answer| {
        let [event] = &told(answer)[..] else { panic!("{}", answer.text()) };
        event.clone()
    };
    let answer = waited("/v1/chat/completions", &chat, COMMENT);
    assert!(error(&answer)["error"]["message"].as_str().unwrap().contains("temperature"));
    let answer = waited("/v1/completions", &wrong(json!({ "prompt": "Hello" })), COMMENT);
    assert!(error(&answer)["error"]["message"].as_str().unwrap().contains("temperature"));
    let answer = waited("/v1/messages", &chat, PING);
    let told = error(&answer);
    assert!(told["type"] == "error" && answer.text().contains("event: error\n"), "{told}");
    assert!(told["error"]["message"].as_str().unwrap().contains("temperature"), "{told}");
    let input = json!({ "model": "b", "stream": true, "temperature": -1, "input": "Hello" });
    let answer = waited("/v1/responses", &input, COMMENT);
    let told = error(&answer);
    assert!(told["type"] == "error" && told["message"].as_str().unwrap().contains("temperature"), "{told}");
    for (path, more) in [
        ("/api/chat", json!({ "messages": [{ "role": "user", "content": "Hello" }] })),
        ("/api/generate", json!({ "prompt": "Hello" })),
    ] {
        let body = with(json!({ "model": "b", "options": { "temperature": -1 } }), more);
        let lines = lines(&waited(path, &body, SPACE));
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0]["error"].as_str().unwrap().contains("temperature"), "{lines:?}");
    }
}

/// Nothing can be sent before the status is known, which tells what is wrong.
#[test]
fn what_is_not_streamed_waits_and_has_its_status() {
    let folder = Folder::new(&["a", "b"]);
    let server = folder.serve(&ONE);
    let whole = |more: Value| with(json!({ "model": "b", "stream": false }), more);
    let message = json!([{ "role": "user", "content": "Hello" }]);
    let options = |temperature: i32| json!({ "temperature": temperature, "num_predict": 4 });
    let asked = |temperature: i32| {
        let chat = json!({ "messages": message, "max_tokens": 4, "temperature": temperature });
        [
            ("/v1/chat/completions", whole(chat.clone())),
            (
                "/v1/completions",
                whole(json!({ "prompt": "Hello", "max_tokens": 4, "temperature": temperature })),
            ),
            (
                "/v1/responses",
                whole(json!({ "input": "Hello", "max_output_tokens": 4, "temperature": temperature })),
            ),
            ("/v1/messages", whole(chat)),
            ("/api/chat", whole(json!({ "messages": message, "options": options(temperature) }))),
            ("/api/generate", whole(json!({ "prompt": "Hello", "options": options(temperature) }))),
        ]
    };
    let busy = endless(&server, "a");
    let begun = |temperature| asked(temperature).map(|(path, body)| (path, server.begin(path, &body)));
    let (good, bad) = (begun(0), begun(-1));
    server.wait_for("backstop_connections", |open| open as usize == 2 + good.len() + bad.len());
    let start = Instant::now();
    while !states(&server).contains(&("b".into(), "loading".into())) {
        assert!(start.elapsed() < LONG, "{:?}", states(&server));
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(busy);
    for (requests, status) in [(good, 200), (bad, 400)] {
        for (path, mut waits) in requests {
            let answer = Answer::read(&mut waits);
            assert_eq!(answer.status, status, "{path}: {}", answer.text());
            assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
            // No white space before it.
            assert!(answer.body.starts_with(b"{") && answer.json().is_object(), "{path}");
        }
    }
}
