//! Requests that cannot be meant: each gets its exact error, and the server lives on.

use serde_json::{Value, json};

use crate::support::{Noise, Server, chat, with};

#[test]
fn bodies_that_are_no_strict_json() {
    let server = Server::start(&[]);
    let post = |body: &[u8]| server.request("POST", "/v1/chat/completions", &[], body).refusal(400);
    let cases: [(&[u8], &str); 8] = [
        (b"{\"messages\": [}", "the body is not valid JSON: expected value at line 1 column 15"),
        (b"[]", "the body is a list of 0, expected an object"),
        (b"", "the body is not valid JSON: EOF while parsing a value at line 1 column 0"),
        (b"{\"n\": 1, \"n\": 2}", "the body is not valid JSON: duplicate key \"n\" at line 1 column 12"),
        (
            b"{\"n\": 1, \"\\u006e\": 2}",
            "the body is not valid JSON: duplicate key \"n\" at line 1 column 17",
        ),
        (b"{\"temperature\": 1e999}", "the body is not valid JSON: number out of range at line 1 column 21"),
        (b"{\"temperature\": NaN}", "the body is not valid JSON: expected value at line 1 column 17"),
        (
            b"{\"a\": \"\xff\"}",
            "the body is not valid JSON: not UTF-8: invalid utf-8 sequence of 1 bytes from index 7",
        ),
    ];
    for (body, wanted) in cases {
        assert_eq!(post(body), wanted);
    }
    let deep = format!("{{\"messages\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(
        post(deep.as_bytes()),
        "the body is not valid JSON: nesting deeper than 64 at line 1 column 77"
    );
    let objects = format!("{{\"messages\": {}1{}}}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    assert_eq!(
        post(objects.as_bytes()),
        "the body is not valid JSON: nesting deeper than 64 at line 1 column 329"
    );
    server.post("/v1/chat/completions", &chat(json!({ "max_tokens": 1 }))).ok();
}

#[test]
fn fields_out_of_range_unknown_or_not_supported() {
    let server = Server::start(&[]);
    let refused = |path: &str, body: &Value, param: &str, wanted: &str| {
        let answer = server.post(path, body);
        assert_eq!(answer.refusal(400), wanted, "{body}");
        let error = &answer.json()["error"];
        assert_eq!(
            (&error["param"], &error["type"]),
            (&json!(param), &json!("invalid_request_error")),
            "{body}"
        );
    };
    let whole = |least: u64, most: u64| format!("expected a whole number from {least} to {most}");
    let tokens = whole(1, 1 << 53);
    let cases = [
        ("temperature", json!(-1), "temperature is -1, expected a number from 0 to 100".to_owned()),
        ("temperature", json!(1e9), "temperature is 1000000000, expected a number from 0 to 100".to_owned()),
        ("temperature", json!(1e60), "temperature: expected a number, got 1e+60".to_owned()),
        ("temperature", json!("hot"), "temperature: expected a number, got \"hot\"".to_owned()),
        ("top_p", json!(0), "top_p is 0, expected a number above 0, at most 1".to_owned()),
        ("top_p", json!(1.5), "top_p is 1.5, expected a number above 0, at most 1".to_owned()),
        ("min_p", json!(2), "min_p is 2, expected a number from 0 to 1".to_owned()),
        ("top_k", json!(1u64 << 63), format!("top_k: {}, got 9223372036854775808", whole(0, 1 << 20))),
        ("repeat_penalty", json!(0), "repeat_penalty is 0, expected a number from 0.1 to 10".to_owned()),
        ("presence_penalty", json!(3), "presence_penalty is 3, expected a number from -2 to 2".to_owned()),
        (
            "frequency_penalty",
            json!(-3),
            "frequency_penalty is -3, expected a number from -2 to 2".to_owned(),
        ),
        ("max_tokens", json!(-2), format!("max_tokens: {tokens}, got -2")),
        ("max_tokens", json!(0), format!("max_tokens: {tokens}, got 0")),
        ("max_tokens", json!(1u64 << 63), format!("max_tokens: {tokens}, got 9223372036854775808")),
        ("max_completion_tokens", json!(1.5), format!("max_completion_tokens: {tokens}, got 1.5")),
        ("n", json!(0), format!("n: {}, got 0", whole(1, 128))),
        ("seed", json!("x"), "seed: expected a whole number of 64 bits, got \"x\"".to_owned()),
        (
            "stop",
            json!("x".repeat(513)),
            "stop: a string of 513 bytes, expected strings of 1 to 512 bytes".to_owned(),
        ),
        ("stop", json!(vec!["x"; 17]), "stop: 17 strings, expected at most 16 strings".to_owned()),
        ("stop", json!([1]), "stop: expected strings, got 1".to_owned()),
        ("stop_token_ids", json!([-1]), "stop_token_ids: expected token ids, got -1".to_owned()),
        ("logit_bias", json!({ "x": 1 }), "logit_bias: \"x\" is no token id".to_owned()),
        (
            "logit_bias",
            json!({ "999999": 1 }),
            "logit_bias is token 999999, expected token ids of the vocabulary".to_owned(),
        ),
        (
            "logit_bias",
            json!({ "5": 101 }),
            "logit_bias is 101 for token 5, expected biases from -100 to 100".to_owned(),
        ),
        ("stream", json!("yes"), "stream: expected true or false, got \"yes\"".to_owned()),
        ("stream_options", json!({ "include_usage": true }), "stream_options: it needs stream".to_owned()),
        ("top_logprobs", json!(3), "top_logprobs: it needs logprobs".to_owned()),
        ("top_logprobs", json!(21), format!("top_logprobs: {}, got 21", whole(0, 20))),
        ("best_of", json!(2), "best_of: 2 is not supported beside n of 1".to_owned()),
        (
            "chat_template_kwargs",
            json!({ "messages": [] }),
            "chat_template_kwargs: \"messages\" is the server's to set".to_owned(),
        ),
        ("modalities", json!(["audio"]), "modalities: a list of 1 is not supported".to_owned()),
    ];
    for (field, value, wanted) in cases {
        refused("/v1/chat/completions", &with(chat(json!({})), json!({ (field): value })), field, &wanted);
    }
    let completion = |more: Value| with(json!({ "prompt": "x" }), more);
    let cases = [
        ("prompt", json!([]), "prompt: expected at least one"),
        (
            "prompt",
            json!({}),
            "prompt: expected text, token ids, or a list of either, got an object of 0 members",
        ),
        ("prompt", json!([1, "x"]), "prompt: expected token ids, got \"x\""),
        ("prompt", json!(vec!["x"; 129]), "prompt: 129 texts, at most 128"),
        ("echo", json!(true), "echo: true is not supported"),
        ("suffix", json!(1), "suffix: expected a string, got 1"),
    ];
    for (field, value, wanted) in cases {
        refused("/v1/completions", &completion(json!({ (field): value })), field, wanted);
    }
    refused(
        "/detokenize",
        &json!({ "tokens": [1, 1u64 << 40] }),
        "tokens",
        "tokens: expected token ids below 1024, got 1099511627776",
    );
    refused("/tokenize", &json!({}), "content", "content: missing");
}

#[test]
fn messages_that_no_template_takes() {
    let server = Server::start(&[]);
    let refused = |messages: Value, wanted: &str| {
        let answer = server.post("/v1/chat/completions", &json!({ "messages": messages }));
        assert_eq!(answer.refusal(400), wanted, "{messages}");
    };
    refused(json!(null), "messages: missing");
    refused(json!([]), "messages: expected at least one");
    refused(json!("hi"), "messages: expected a list, got \"hi\"");
    refused(json!(["hi"]), "messages[0]: expected an object, got \"hi\"");
    refused(json!([{ "content": "x" }]), "messages[0].role: missing");
    refused(
        json!([{ "role": "root", "content": "x" }]),
        "messages[0].role: expected system, developer, user, assistant or tool, got \"root\"",
    );
    refused(json!([{ "role": "user" }]), "messages[0].content: missing");
    refused(
        json!([{ "role": "user", "content": 1 }]),
        "messages[0].content: expected a string or a list of parts, got 1",
    );
    refused(
        json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "file:///etc/passwd" } }] }]),
        "messages[0].content[0].type: parts of type \"image_url\" are not supported, only text",
    );
    refused(
        json!([{ "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": 3 } }] }]),
        "messages[0].tool_calls[0].function.arguments: expected the text of an object, got 3",
    );
}

#[test]
fn prompts_that_do_not_fit_or_are_empty() {
    let server = Server::start(&[]);
    let long = json!({ "prompt": "cat ".repeat(1400) });
    let answer = server.post("/v1/completions", &long);
    let wanted = "This model's maximum context length is 512 tokens. However, your messages resulted in 2802 tokens. \
        Please reduce the length of the messages.";
    assert_eq!(answer.refusal(400), wanted);
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    let answer = server.post("/v1/completions", &json!({ "prompt": [1, 70_000] }));
    assert_eq!(answer.refusal(400), "prompt: token id 70000 is outside the vocabulary of 1024");
    // The beginning-of-sequence token alone.
    server.post("/v1/completions", &json!({ "prompt": "", "max_tokens": 1 })).ok();

    let noise = Noise::new();
    let bare = Server::start(&[noise.path()]);
    let answer = bare.post("/v1/completions", &json!({ "prompt": "" }));
    assert_eq!(answer.refusal(400), "prompt: it is empty, and this model's tokenizer adds no BOS");
    // The text of a special token is that token, unless it is to stay text.
    let count = |parse: Value| {
        let body = json!({ "content": "<|im_start|>", "parse_special": parse });
        bare.post("/tokenize", &body).ok()["count"].as_u64().unwrap()
    };
    assert_eq!((count(json!(null)), count(json!(true))), (1, 1));
    assert!(count(json!(false)) > 1);
    let tokens = |parse: bool| {
        let body = json!({ "prompt": "<|im_start|>", "max_tokens": 1, "parse_special": parse });
        bare.post("/v1/completions", &body).ok()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    assert!(tokens(true) == 1 && tokens(false) > 1);
    // A million equal characters are no way to keep the server busy.
    let answer = bare.post("/v1/completions", &json!({ "prompt": "a".repeat(1_000_000) }));
    assert!(
        answer.refusal(400).starts_with("This model's maximum context length is "),
        "{:?}",
        answer.text()
    );
}

/// The built-in model's longest token is ` everything`, of 11 bytes, and its context holds 512.
#[test]
fn prompts_of_more_tokens_than_fit_are_refused_before_they_are_encoded() {
    let server = Server::start(&[]);
    let said = |tokens: &str| {
        format!(
            "This model's maximum context length is 512 tokens. However, your messages resulted in {tokens} tokens. Please \
             reduce the length of the messages."
        )
    };
    let cats = |bytes: usize| "cat ".repeat(bytes.div_ceil(4))[..bytes].to_owned();
    for (path, field) in [("/v1/completions", "prompt"), ("/v1/embeddings", "input")] {
        let ask = |bytes: usize| server.post(path, &json!({ field: cats(bytes) }));
        let exact = server.post("/tokenize", &json!({ "content": cats(512 * 11), "add_special": true })).ok();
        assert_eq!(ask(512 * 11).refusal(400), said(&exact["count"].to_string()), "{path}");
        let answer = ask(512 * 11 + 1);
        assert_eq!(answer.refusal(400), said("at least 513"), "{path}");
        assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    }
    // Of a conversation, what the template makes of it; how many tokens there are is told all the same.
    let messages = json!({ "messages": [{ "role": "user", "content": cats(1 << 20) }], "max_tokens": 1 });
    let prompt = server.post("/apply-template", &json!({ "messages": messages["messages"] })).ok();
    let least = prompt["prompt"].as_str().unwrap().len().div_ceil(11);
    let chat = server.post("/v1/chat/completions", &messages);
    assert_eq!(chat.refusal(400), said(&format!("at least {least}")));
    let said = server.post("/v1/messages", &messages).refusal(400);
    let wanted = format!("prompt is too long: {least} tokens > 512 maximum (at least: it was not encoded)");
    assert_eq!(said, wanted);
    let counted = server.post("/v1/messages/count_tokens", &messages).ok();
    assert_eq!(counted["input_tokens"], prompt["tokens"].as_array().unwrap().len());
}

#[test]
fn routes_methods_and_models_that_are_not_there() {
    let server = Server::start(&[]);
    let said = server.get("/v1/files").refusal(404);
    assert!(said.starts_with("there is no route \"/v1/files\"; there are /, /health, "), "{said}");
    let said = server.get("/../../etc/passwd").refusal(404);
    assert!(said.starts_with("there is no route \"/../../etc/passwd\"; there are "), "{said}");
    let said = server.post("/v1/chat/completion", &json!({})).refusal(404);
    assert_eq!(said, "there is no route \"/v1/chat/completion\"; did you mean /v1/chat/completions?");
    // By the names that other servers and hand-written base URLs give them.
    for path in ["/models", "/v1/models/", "/v1/v1/models"] {
        assert_eq!(server.get(path).ok()["data"][0]["id"], "stories", "{path}");
    }
    server.post("/chat/completions/?beta=true", &chat(json!({ "max_tokens": 1 }))).ok();
    let upgrade =
        server.request("GET", "/v1/responses", &[("connection", "upgrade"), ("upgrade", "websocket")], b"");
    assert_eq!(upgrade.refusal(426), "there is no WebSocket here: use POST");
    let wrong = server.get("/v1/chat/completions");
    assert_eq!(wrong.refusal(405), "\"/v1/chat/completions\" does not take GET: use POST");
    for path in ["/v1/models/load", "/v1/models/unload"] {
        assert_eq!(server.get(path).refusal(405), format!("\"{path}\" does not take GET: use POST"));
    }
    assert_eq!(wrong.header("allow"), Some("POST"));
    let answer = server.post("/v1/chat/completions", &chat(json!({ "model": "gpt-4" })));
    let wanted = "the model \"gpt-4\" does not exist, this server has \"stories\" (`backstop pull NAME` brings one to \
        this machine, --alias NAME adds a name, --alias '*' takes any)";
    assert_eq!(answer.refusal(404), wanted);
    assert_eq!(answer.json()["error"]["code"], "model_not_found");
    let any = Server::start(&["--alias", "*"]);
    any.post("/v1/chat/completions", &chat(json!({ "model": "gpt-4", "max_tokens": 1 }))).ok();
    assert_eq!(any.get("/v1/models").ok()["data"].as_array().unwrap().len(), 1);
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_held() {
    let server = Server::start(&[]);
    let post = |headers: &[(&str, &str)], body: &[u8]| {
        server.request("POST", "/v1/completions", headers, body).refusal(413)
    };
    let wanted = "the body is over 8388608 bytes (--body-limit)";
    assert_eq!(post(&[], &vec![b' '; (8 << 20) + 1]), wanted);
    // Announced, and never sent.
    let before = resident(server.child.id());
    assert_eq!(post(&[("content-length", "1000000000000")], b"{"), wanted);
    // Never announced.
    let chunk = [b"100000\r\n".to_vec(), vec![b' '; 1 << 20], b"\r\n".to_vec()].concat();
    let body = [chunk.repeat(9), b"0\r\n\r\n".to_vec()].concat();
    assert_eq!(post(&[("transfer-encoding", "chunked")], &body), wanted);
    let after = resident(server.child.id());
    assert!(after < before + (32 << 20), "{before} {after}");
    let small = Server::start(&["--body-limit", "100"]);
    let answer = small.post("/v1/completions", &json!({ "prompt": "x".repeat(100) }));
    assert_eq!(answer.refusal(413), "the body is over 100 bytes (--body-limit)");
}

/// Bytes of a process's memory.
fn resident(id: u32) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{id}/statm")).unwrap_or_default();
    statm.split(' ').nth(1).map_or(0, |pages| pages.parse::<usize>().unwrap() * 4096)
}

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn what_grammars_took_is_given_back() {
    let server = Server::start(&[]);
    server.post("/v1/completions", &json!({ "prompt": "x", "max_tokens": 4 })).ok();
    let before = resident(server.child.id());
    let schema = json!({ "type": "integer", "multipleOf": 99_991 });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    let body = json!({ "prompt": "x", "max_tokens": 200, "response_format": format });
    let mut most = 0;
    for seed in 0..3 {
        server.post("/v1/completions", &with(body.clone(), json!({ "seed": seed }))).ok();
        most = most.max(resident(server.child.id()));
    }
    // Their tables are tens of megabytes, which the allocator would keep.
    assert!(most > before + (64 << 20), "{before} and then {most} bytes");
    let begun = std::time::Instant::now();
    while resident(server.child.id()) > before + (24 << 20) {
        let held = resident(server.child.id());
        assert!(begun.elapsed().as_secs() < 60, "{held} bytes, {before} before, {most} at most");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn numbers_of_a_grammar_that_overflow_are_refused() {
    let server = Server::start(&[]);
    let multiples = [65_521, 65_519].map(|n| json!({ "multipleOf": n }));
    let schema = json!({ "type": "integer", "allOf": multiples });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    // In a process of its own first, which has no memory for more than the grammar, whatever a library prints at a panic.
    let what =
        server.post("/v1/completions", &json!({ "prompt": "x", "response_format": format })).refusal(400);
    assert_eq!(what, "JSON schema: its compiler panicked: attempt to multiply with overflow");
}

#[test]
fn what_is_no_http_is_refused() {
    use std::io::{Read, Write};
    let server = Server::start(&[]);
    let cases: [&[u8]; 4] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
    ];
    for bytes in cases {
        let mut stream = server.connect();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || text.starts_with("HTTP/1.1 400"), "{text}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(1 << 20));
    let mut stream = server.connect();
    let _ = stream.write_all(long.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let status = String::from_utf8_lossy(&answer).split(' ').nth(1).map(str::to_owned);
    assert!(status.is_none_or(|status| status == "431" || status == "414"));
    server.get("/health").ok();
}

/// What is not known is passed over and told of, or refused where the server is to be strict; what no history needs is let be.
#[test]
fn unknown_fields_are_told_of_or_refused() {
    let more = json!({ "temprature": 0, "stream_options": null, "verbosity": "low", "user": "me", "max_tokens": 1,
        "response_format": { "type": "text", "colour": 1 },
        "tools": [{ "type": "web_search" }],
        "messages": [{ "role": "user", "content": [{ "type": "text", "text": "x", "colour": 1 }], "colour": 1 }] });
    let server = Server::start(&[]);
    let answer = server.post("/v1/chat/completions", &with(chat(json!({})), more.clone()));
    answer.ok();
    let told = answer.header("x-backstop-ignored").unwrap();
    assert_eq!(told, "verbosity, tools[0], response_format.colour, temprature");
    assert_eq!(
        server.post("/v1/chat/completions", &chat(json!({ "max_tokens": 1 }))).header("x-backstop-ignored"),
        None
    );

    let strict = Server::start(&["--unknown-fields", "refuse"]);
    let answer = strict.post("/v1/chat/completions", &with(chat(json!({})), more.clone()));
    assert_eq!(answer.refusal(400), "unknown field \"response_format.colour\"");
    let fewer = with(more, json!({ "response_format": null }));
    let answer = strict.post("/v1/chat/completions", &with(chat(json!({})), fewer.clone()));
    assert_eq!(answer.refusal(400), "unknown field \"temprature\"");
    assert_eq!(answer.json()["error"]["param"], "temprature");
    let answer = strict
        .post("/v1/chat/completions", &with(chat(json!({})), with(fewer, json!({ "temprature": null }))));
    answer.ok();
    assert_eq!(answer.header("x-backstop-ignored"), Some("verbosity, tools[0]"));
}

/// What clients send for "none".
#[test]
fn minus_one_and_an_empty_stop_are_none() {
    let server = Server::start(&[]);
    let body = |more: Value| with(chat(json!({ "max_tokens": 8 })), more);
    let text = |more: Value| {
        let answer = server.post("/v1/chat/completions", &body(more)).ok();
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let whole = text(json!({}));
    assert_eq!(text(json!({ "top_k": -1, "stop": "" })), whole);
    assert_eq!(text(json!({ "stop": ["", "\u{0}"] })), whole);
    assert!(text(json!({ "max_tokens": -1 })).len() > whole.len());
    // Without a seed, two texts differ; and so with the one that stands for none.
    let drawn = |seed: i64| text(json!({ "seed": seed, "temperature": 1.5, "max_tokens": 40 }));
    assert_eq!(drawn(7), drawn(7));
    assert_ne!(drawn(-1), drawn(-1));
}

/// Schemas whose compiling would take any memory are refused, and nobody else's meanwhile.
#[test]
fn schemas_that_explode_are_refused_and_others_are_not() {
    let server = Server::start(&[]);
    let ask = |schema: Value| {
        let format = json!({ "type": "json_schema", "json_schema": { "name": "a", "schema": schema } });
        server.post("/v1/chat/completions", &chat(json!({ "max_tokens": 40, "response_format": format })))
    };
    let wanted = "compiling it takes more than 2 s of work or 64 MiB: multiples of large numbers and intersections of patterns do";
    let multiple = |of: u64| json!({ "type": "integer", "multipleOf": of });
    std::thread::scope(|scope| {
        let hostile: Vec<_> =
            (0..4u64).map(|i| scope.spawn(move || ask(multiple(99_999_989 - i * 10)))).collect();
        let mut answered = 0;
        while answered < 3 || hostile.iter().any(|one| !one.is_finished()) {
            let text = ask(json!({ "type": "string", "enum": ["yes", "no"] })).ok()["choices"][0]["message"]
                ["content"]
                .to_string();
            assert!(text.contains("yes") || text.contains("no"), "{text}");
            answered += 1;
        }
        for answer in hostile {
            let refusal = answer.join().unwrap().refusal(400);
            assert!(refusal.ends_with(wanted), "{refusal}");
        }
    });
    // What can be met is, though it has to be searched for.
    let text = ask(json!({ "allOf": [multiple(360), { "minimum": 1000, "maximum": 9999 }] })).ok();
    let number = text["choices"][0]["message"]["content"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(number % 360 == 0 && (1000..=9999).contains(&number), "{number}");
}

/// The work of masks counts against the request whose they are.
#[test]
fn ambiguous_grammars_hold_up_their_own_request_alone() {
    let server = Server::start(&["--parallel", "4"]);
    let ask = |grammar: &str, max: u64| {
        let body = json!({ "prompt": "a", "max_tokens": max, "response_format": { "type": "lark", "grammar": grammar }, "temperature": 0 });
        server.post("/v1/completions", &body)
    };
    std::thread::scope(|scope| {
        let hostile: Vec<_> = (0..3).map(|_| scope.spawn(|| ask("start: a\na: a a | /x/", 500))).collect();
        let mut answered = 0;
        while answered < 3 || hostile.iter().any(|one| !one.is_finished()) {
            assert_eq!(ask("start: /(ab){8}/", 100).ok()["choices"][0]["text"], "abababababababab");
            answered += 1;
        }
        for answer in hostile {
            let answer = answer.join().unwrap();
            let said = answer.text();
            assert!(said.contains("of work, more than is allowed: it may be ambiguous"), "{said}");
        }
    });
}
