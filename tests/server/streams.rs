//! The events of each API's streams, one by one, of texts that are known to the letter: thoughts, text, calls, and calls that
//! are none.

use serde_json::{Value, json};

use crate::script::{HARMONY, QWEN3, QWEN3_CODER, Script};
use crate::support::{Server, named_events};

fn script() -> Script {
    let scripts: &[(&str, &[&str])] = &[
        ("sheep", &["<think>", "\nI count", " sheep.", "\n</think>", "\n\nBlue", " skies", "!"]),
        (
            "paris",
            &[
                "Let me",
                " look.",
                "\n<tool_call>\n",
                r#"{"name": "weather", "#,
                r#""arguments": {"city":"#,
                r#" "Paris"}}"#,
                "\n</tool_call>",
            ],
        ),
        (
            "rome",
            &[
                "<tool_",
                r#"call>{"name": "clock", "#,
                r#""arguments": {}}"#,
                "</tool",
                "_call>\n<tool_c",
                r#"all>{"name": "weather", "arguments": {"ci"#,
                r#"ty": "Rome"}}</tool_ca"#,
                "ll>",
            ],
        ),
        ("oslo", &["<tool", r#"_call>{"name": "weather", "arguments": {"city": "#, r#""Oslo""#, " oops"]),
        ("rm", &["<to", r#"ol_call>{"name": "rm", "#, r#""arguments": {"all": true}}"#, "</to", "ol_call>."]),
        ("=Z", &[" goes", " on"]),
        // Bytes of `🦀ñ`, each a token.
        ("crab", &["ð", "Ł", "¦", "Ģ", "Ã", "±"]),
    ];
    Script::new(QWEN3, scripts)
}

fn question(name: &str, more: Value) -> Value {
    let function = |name: &str| json!({ "name": name, "parameters": { "type": "object", "properties": { "city": { "type": "string" } } } });
    let tools = ["weather", "clock"].map(|name| json!({ "type": "function", "function": function(name) }));
    let body = json!({ "messages": [{ "role": "user", "content": name }], "temperature": 0, "tools": tools });
    crate::support::with(body, more)
}

/// The deltas of a chat's stream, and why it ended.
fn deltas(server: &Server, name: &str) -> (Vec<Value>, Value) {
    let events = server.post("/v1/chat/completions", &question(name, json!({ "stream": true }))).events();
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert!(rest.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
    let deltas = rest.iter().map(|chunk| {
        let mut delta = chunk["choices"][0]["delta"].clone();
        if let Some(id) = delta.pointer_mut("/tool_calls/0/id") {
            assert!(id.as_str().unwrap().starts_with("call_"));
            *id = json!("call");
        }
        delta
    });
    (deltas.collect(), last["choices"][0]["finish_reason"].clone())
}

fn begin() -> Value {
    json!({ "role": "assistant", "content": "", "refusal": null })
}

fn content(text: &str) -> Value {
    json!({ "content": text })
}

fn call(index: usize, name: &str) -> Value {
    let function = json!({ "name": name, "arguments": "" });
    json!({ "tool_calls": [{ "index": index, "id": "call", "type": "function", "function": function }] })
}

fn arguments(index: usize, text: &str) -> Value {
    json!({ "tool_calls": [{ "index": index, "function": { "arguments": text } }] })
}

#[test]
fn chunks_of_a_chat() {
    let script = script();
    let server = script.serve();
    let reasoning = |text: &str| json!({ "reasoning_content": text });
    let wanted = vec![
        begin(),
        reasoning("I count"),
        reasoning(" sheep."),
        content("Blue"),
        content(" skies"),
        content("!"),
    ];
    assert_eq!(deltas(&server, "sheep"), (wanted, json!("stop")));
    let wanted = vec![
        begin(),
        content("Let me"),
        content(" look."),
        call(0, "weather"),
        arguments(0, r#"{"city":"#),
        arguments(0, r#" "Paris"}"#),
    ];
    assert_eq!(deltas(&server, "paris"), (wanted, json!("tool_calls")));
    let wanted = vec![
        begin(),
        call(0, "clock"),
        arguments(0, "{}"),
        call(1, "weather"),
        arguments(1, r#"{"ci"#),
        arguments(1, r#"ty": "Rome"}"#),
    ];
    assert_eq!(deltas(&server, "rome"), (wanted, json!("tool_calls")));
    // One call at most: the answer ends with it.
    let one = server.post("/v1/chat/completions", &question("rome", json!({ "parallel_tool_calls": false })));
    let one = one.ok()["choices"][0].clone();
    assert_eq!(
        (one["message"]["tool_calls"].as_array().unwrap().len(), &one["message"]["content"]),
        (1, &json!(null))
    );
    assert_eq!(
        (&one["message"]["tool_calls"][0]["function"]["name"], &one["finish_reason"]),
        (&json!("clock"), &json!("tool_calls"))
    );
    // A call that breaks off after its name was told: all that was written of it follows as text.
    let broken = r#"<tool_call>{"name": "weather", "arguments": {"city": "Oslo" oops"#;
    let wanted = [begin(), call(0, "weather"), arguments(0, r#"{"city": "#), arguments(0, r#""Oslo""#)];
    let (got, finish) = deltas(&server, "oslo");
    assert_eq!((&got[..4], &finish), (&wanted[..], &json!("stop")));
    let text: String = got[4..].iter().filter_map(|delta| delta["content"].as_str()).collect();
    assert!(text.starts_with(broken), "{text}");
    let whole = server.post("/v1/chat/completions", &question("oslo", json!({}))).ok();
    let message = &whole["choices"][0]["message"];
    assert_eq!((&message["content"], message.get("tool_calls")), (&json!(broken), None));
    // A tool that nobody offered is text.
    let (got, finish) = deltas(&server, "rm");
    let text: String = got.iter().filter_map(|delta| delta["content"].as_str()).collect();
    assert_eq!(text, r#"<tool_call>{"name": "rm", "arguments": {"all": true}}</tool_call>."#);
    assert!(finish == "stop" && got.iter().all(|delta| delta.get("tool_calls").is_none()), "{got:?}");
    // Each character comes whole.
    assert_eq!(deltas(&server, "crab"), (vec![begin(), content("🦀"), content("ñ")], json!("stop")));
}

#[test]
fn chunks_of_calls_in_xml() {
    let scripts: &[(&str, &[&str])] = &[
        (
            "paris",
            &[
                "<tool_call>\n<function=",
                "weather>\n<param",
                "eter=city>\nPa",
                "ris \"x\"",
                "\n</parameter>\n",
                "</function>\n</tool",
                "_call>",
            ],
        ),
        ("rm", &["<tool_call>", "\n<function=rm>\n", "</function>\n", "</tool_call>"]),
    ];
    let script = Script::new(QWEN3_CODER, scripts);
    let server = script.serve();
    let wanted = vec![
        begin(),
        call(0, "weather"),
        arguments(0, r#"{"city": "Pa"#),
        arguments(0, r#"ris \"x\""#),
        arguments(0, "\"}"),
    ];
    assert_eq!(deltas(&server, "paris"), (wanted, json!("tool_calls")));
    let (got, finish) = deltas(&server, "rm");
    let text: String = got.iter().filter_map(|delta| delta["content"].as_str()).collect();
    assert_eq!(
        (text.as_str(), finish),
        ("<tool_call>\n<function=rm>\n</function>\n</tool_call>", json!("stop"))
    );
}

/// gpt-oss's channels; the tokens that end an answer and a call are known though no file says so.
#[test]
fn channels_of_harmony_are_parts_of_each_api() {
    let scripts: &[(&str, &[&str])] = &[
        (
            "sum",
            &[
                "<|channel|>analysis<|message|>",
                "Hm.",
                "<|end|><|start|>assistant",
                "<|channel|>final<|message|>",
                "Four",
                " it is.",
                "<|return|>",
                "Never",
            ],
        ),
        (
            "paris",
            &[
                "<|channel|>analysis<|message|>Look",
                " it up.",
                "<|end|><|start|>assistant<|channel|>commentary",
                "<|message|>",
                "I look now.",
                "<|end|>",
                "<|start|>assistant",
                " to=functions.weather<|channel|>",
                "commentary <|constrain|>json<|message|>",
                r#"{"city":"#,
                r#" "Paris"}"#,
                "<|call|>",
                "Nor this",
            ],
        ),
        (
            "rome",
            &[
                "<|channel|>analysis<|message|>Ok",
                "!<|end|><|start|>assistant<|channel|>comment",
                "ary to=functions.weather",
                " <|constrain|>json<|message|>{",
                r#""city": "Rome"}"#,
            ],
        ),
    ];
    let script = Script::of(HARMONY, scripts);
    let server = script.serve();
    let reasoning = |text: &str| json!({ "reasoning_content": text });
    let wanted = vec![begin(), reasoning("Hm."), content("Four"), content(" it is.")];
    assert_eq!(deltas(&server, "sum"), (wanted, json!("stop")));
    let wanted = vec![
        begin(),
        reasoning("Look"),
        reasoning(" it up."),
        content("I look now."),
        call(0, "weather"),
        arguments(0, r#"{"city":"#),
        arguments(0, r#" "Paris"}"#),
    ];
    assert_eq!(deltas(&server, "paris"), (wanted, json!("tool_calls")));
    // Enforced, it is the same call.
    for choice in [json!("required"), json!({ "type": "function", "function": { "name": "weather" } })] {
        let asked = question("rome", json!({ "tool_choice": choice }));
        let message = server.post("/v1/chat/completions", &asked).ok()["choices"][0]["message"].clone();
        let function = &message["tool_calls"][0]["function"];
        assert_eq!(
            (&function["name"], &function["arguments"]),
            (&json!("weather"), &json!(r#"{"city": "Rome"}"#))
        );
        assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("Ok!"), &Value::Null));
    }
    let schema = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    let user = json!([{ "role": "user", "content": "paris" }]);
    let kinds = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap().to_owned()).collect()
    };
    let tools = json!([{ "name": "weather", "input_schema": schema }]);
    let body = json!({ "messages": user, "max_tokens": 64, "temperature": 0, "tools": tools });
    let told = server.post("/v1/messages", &body).ok();
    assert_eq!(kinds(&told["content"]), ["thinking", "text", "tool_use"]);
    assert_eq!(
        (&told["content"][2]["input"], &told["stop_reason"]),
        (&json!({ "city": "Paris" }), &json!("tool_use"))
    );
    let tools = json!([{ "type": "function", "name": "weather", "parameters": schema }]);
    let body = json!({ "input": "paris", "temperature": 0, "tools": tools });
    let told = server.post("/v1/responses", &body).ok();
    assert_eq!(kinds(&told["output"]), ["reasoning", "message", "function_call"]);
    assert_eq!(told["output"][1]["content"][0]["text"], "I look now.");
}

#[test]
fn chunks_of_a_completion() {
    let script = script();
    let server = script.serve();
    let body = |stream: bool| {
        let mut body =
            json!({ "prompt": [[script.id("sheep")], [script.id("crab")]], "temperature": 0, "logprobs": 1 });
        body["stream"] = stream.into();
        if stream {
            body["stream_options"] = json!({ "include_usage": true });
        }
        body
    };
    let events = server.post("/v1/completions", &body(true)).events();
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let (usage, chunks) = chunks.split_last().unwrap();
    let wanted = json!({ "prompt_tokens": 2, "completion_tokens": 15, "total_tokens": 17,
        "prompt_tokens_details": { "cached_tokens": 0 } });
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &wanted));
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["object"] == "text_completion"));
    let of = |index: u64| -> Vec<&Value> {
        chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index).collect()
    };
    let texts: Vec<&str> = of(0).iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["<think>", "\nI count", " sheep.", "\n</think>", "\n\nBlue", " skies", "!", "", ""]);
    let finishes: Vec<&Value> = of(0).iter().map(|choice| &choice["finish_reason"]).collect();
    assert!(finishes[..8].iter().all(|finish| finish.is_null()) && finishes[8] == "stop");
    let crab: String = of(1).iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(crab, "🦀ñ");
    // The logit of the successor is the root of the hidden size, all others are 0.
    let sheep = of(0)[2];
    let logprobs = &sheep["logprobs"];
    assert_eq!((&logprobs["tokens"], &logprobs["text_offset"]), (&json!([" sheep."]), &json!([15])));
    let logprob = logprobs["token_logprobs"][0].as_f64().unwrap();
    assert!((-0.01..-0.003).contains(&logprob), "{logprob}");
    assert_eq!(logprobs["top_logprobs"][0][" sheep."], logprobs["token_logprobs"][0]);

    let whole = server.post("/v1/completions", &body(false)).ok();
    assert_eq!(whole["choices"][0]["text"], texts.concat());
    assert_eq!(whole["choices"][0]["logprobs"]["text_offset"], json!([0, 7, 15, 22, 31, 37, 43, 44]));
    assert_eq!((&whole["choices"][1]["text"], &whole["usage"]), (&json!("🦀ñ"), &wanted));
}

#[test]
fn events_of_a_message() {
    let script = script();
    let server = script.serve();
    let body = |name: &str| {
        let tool =
            |name: &str| json!({ "name": name, "input_schema": { "type": "object", "properties": {} } });
        json!({ "messages": [{ "role": "user", "content": name }], "temperature": 0, "max_tokens": 50, "stream": true,
            "tools": [tool("weather"), tool("clock")] })
    };
    let events = |name: &str| {
        let mut events = named_events(&server.post("/v1/messages", &body(name)));
        assert!(events.iter().all(|(name, data)| data["type"] == *name));
        for (_, data) in &mut events {
            let data = data.as_object_mut().unwrap();
            data.shift_remove("type");
            if let Some(block) = data.get_mut("content_block").filter(|block| block["type"] == "tool_use") {
                assert!(block["id"].as_str().unwrap().starts_with("call_"));
                block["id"] = json!("call");
            }
        }
        let (_, start) = &events[0];
        let message = &start["message"];
        assert_eq!(
            (&message["role"], &message["content"], &message["stop_reason"]),
            (&json!("assistant"), &json!([]), &Value::Null)
        );
        assert_eq!((events[0].0.as_str(), events[1].0.as_str()), ("message_start", "ping"));
        assert_eq!(events.pop().unwrap(), ("message_stop".to_owned(), json!({})));
        let (name, delta) = events.pop().unwrap();
        assert_eq!((name.as_str(), &delta["delta"]["stop_sequence"]), ("message_delta", &Value::Null));
        assert!(delta["usage"]["output_tokens"].as_u64().unwrap() > 4);
        (events.split_off(2), delta["delta"]["stop_reason"].clone())
    };
    let start = |index: usize, block: Value| {
        ("content_block_start".to_owned(), json!({ "index": index, "content_block": block }))
    };
    let delta = |index: usize, delta: Value| {
        ("content_block_delta".to_owned(), json!({ "index": index, "delta": delta }))
    };
    let stop = |index: usize| ("content_block_stop".to_owned(), json!({ "index": index }));
    let thinking = |text: &str| json!({ "type": "thinking_delta", "thinking": text });
    let text = |text: &str| json!({ "type": "text_delta", "text": text });
    let input = |text: &str| json!({ "type": "input_json_delta", "partial_json": text });
    let tool = |name: &str| json!({ "type": "tool_use", "id": "call", "name": name, "input": {} });
    let wanted = vec![
        start(0, json!({ "type": "thinking", "thinking": "", "signature": "" })),
        delta(0, thinking("I count")),
        delta(0, thinking(" sheep.")),
        stop(0),
        start(1, json!({ "type": "text", "text": "" })),
        delta(1, text("Blue")),
        delta(1, text(" skies")),
        delta(1, text("!")),
        stop(1),
    ];
    assert_eq!(events("sheep"), (wanted, json!("end_turn")));
    let wanted = vec![
        start(0, tool("clock")),
        delta(0, input("{}")),
        stop(0),
        start(1, tool("weather")),
        delta(1, input(r#"{"ci"#)),
        delta(1, input(r#"ty": "Rome"}"#)),
        stop(1),
    ];
    assert_eq!(events("rome"), (wanted, json!("tool_use")));
}

#[test]
fn events_of_a_response() {
    let script = script();
    let server = script.serve();
    let tool = |name: &str| json!({ "type": "function", "name": name, "parameters": { "type": "object", "properties": {} } });
    let body = |name: &str| json!({ "input": name, "temperature": 0, "stream": true, "tools": [tool("weather"), tool("clock")] });
    let events = |name: &str| {
        let events = named_events(&server.post("/v1/responses", &body(name)));
        let numbers: Vec<u64> =
            events.iter().map(|(_, data)| data["sequence_number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
        assert!(events.iter().all(|(name, data)| data["type"] == *name));
        let short = |(name, data): &(String, Value)| {
            let value = match name.as_str() {
                "response.output_item.added" | "response.output_item.done" => {
                    json!([data["output_index"], data["item"]["type"], data["item"]["status"]])
                }
                "response.function_call_arguments.done" => {
                    json!([data["output_index"], data["name"], data["arguments"]])
                }
                "response.output_text.done" | "response.reasoning_text.done" => {
                    json!([data["output_index"], data["text"]])
                }
                "response.content_part.added" | "response.content_part.done" => {
                    json!([
                        data["output_index"],
                        data["content_index"],
                        data["part"]["type"],
                        data["part"]["text"]
                    ])
                }
                _ if name.ends_with(".delta") => json!([data["output_index"], data["delta"]]),
                _ => data["response"]["status"].clone(),
            };
            (name.strip_prefix("response.").unwrap().to_owned(), value)
        };
        let short: Vec<(String, Value)> = events.iter().map(short).collect();
        short
    };
    let own = |list: &[(&str, Value)]| -> Vec<(String, Value)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    };
    let wanted = own(&[
        ("created", json!("in_progress")),
        ("in_progress", json!("in_progress")),
        ("output_item.added", json!([0, "reasoning", "in_progress"])),
        ("content_part.added", json!([0, 0, "reasoning_text", ""])),
        ("reasoning_text.delta", json!([0, "I count"])),
        ("reasoning_text.delta", json!([0, " sheep."])),
        ("reasoning_text.done", json!([0, "I count sheep."])),
        ("content_part.done", json!([0, 0, "reasoning_text", "I count sheep."])),
        ("output_item.done", json!([0, "reasoning", "completed"])),
        ("output_item.added", json!([1, "message", "in_progress"])),
        ("content_part.added", json!([1, 0, "output_text", ""])),
        ("output_text.delta", json!([1, "Blue"])),
        ("output_text.delta", json!([1, " skies"])),
        ("output_text.delta", json!([1, "!"])),
        ("output_text.done", json!([1, "Blue skies!"])),
        ("content_part.done", json!([1, 0, "output_text", "Blue skies!"])),
        ("output_item.done", json!([1, "message", "completed"])),
        ("completed", json!("completed")),
    ]);
    assert_eq!(events("sheep"), wanted);
    let wanted = own(&[
        ("created", json!("in_progress")),
        ("in_progress", json!("in_progress")),
        ("output_item.added", json!([0, "function_call", "in_progress"])),
        ("function_call_arguments.delta", json!([0, "{}"])),
        ("function_call_arguments.done", json!([0, "clock", "{}"])),
        ("output_item.done", json!([0, "function_call", "completed"])),
        ("output_item.added", json!([1, "function_call", "in_progress"])),
        ("function_call_arguments.delta", json!([1, r#"{"ci"#])),
        ("function_call_arguments.delta", json!([1, r#"ty": "Rome"}"#])),
        ("function_call_arguments.done", json!([1, "weather", r#"{"city": "Rome"}"#])),
        ("output_item.done", json!([1, "function_call", "completed"])),
        ("completed", json!("completed")),
    ]);
    assert_eq!(events("rome"), wanted);
}

#[test]
fn an_answer_that_has_begun_goes_on() {
    let script = script();
    let server = script.serve();
    let messages =
        |last: &str| json!([{ "role": "user", "content": "x" }, { "role": "assistant", "content": last }]);
    let chat = |last: &str, more: Value| {
        let body = json!({ "messages": messages(last), "temperature": 0, "max_tokens": 9, "continue_final_message": true });
        server.post("/v1/chat/completions", &crate::support::with(body, more))
    };
    for more in [json!({}), json!({ "add_generation_prompt": false })] {
        let whole = chat("Z", more).ok();
        assert_eq!(whole["choices"][0]["message"]["content"], " goes on");
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    }
    // Thoughts that have begun go on, too.
    let whole = chat("<think>\nZ", json!({})).ok();
    assert_eq!(whole["choices"][0]["message"]["reasoning_content"], " goes on");
    assert_eq!(whole["choices"][0]["message"]["content"], "");
    // Another turn is another thing: the template begins one.
    let begin = json!({ "continue_final_message": false, "add_generation_prompt": true });
    let all = [begin, json!({ "continue_final_message": false }), json!({})];
    let tokens = all.map(|more| chat("Z", more).ok()["usage"]["prompt_tokens"].as_u64().unwrap());
    assert!(tokens[0] == tokens[1] && tokens[0] > tokens[2] + 2, "{tokens:?}");
    let refused = |last: &str, more: Value, wanted: &str| assert_eq!(chat(last, more).refusal(400), wanted);
    refused(
        "Z",
        json!({ "add_generation_prompt": true }),
        "continue_final_message: it contradicts add_generation_prompt",
    );
    refused(
        "x",
        json!({ "messages": [{ "role": "user", "content": "x" }] }),
        "continue_final_message is a last message of the user, expected a text of the assistant to go on with",
    );

    let message = |last: &str, path: &str, limit: Value| {
        let body = json!({ "messages": messages(last), "max_tokens": limit });
        server.post(path, &body)
    };
    let answer = message("Z", "/v1/messages", json!(9)).ok();
    assert_eq!(answer["content"], json!([{ "type": "text", "text": " goes on" }]));
    let count = message("Z", "/v1/messages/count_tokens", Value::Null).ok();
    assert_eq!(count["input_tokens"], tokens[2]);
    let empty = message(" ", "/v1/messages", json!(9)).refusal(400);
    assert!(empty.ends_with("the last message has no text to continue"), "{empty}");
}
