//! Ollama's API: the JSON of each route, its lines, what it takes and what it refuses.

use serde_json::{Value, json};

use crate::script::{QWEN3, Script};
use crate::support::{Answer, Server, expected, with};

/// An answer with what differs from run to run checked, and taken out.
#[track_caller]
fn steady(mut value: Value) -> Value {
    let object = value.as_object_mut().unwrap();
    let at = object.shift_remove("created_at").unwrap();
    let at = at.as_str().unwrap();
    assert!(at.len() >= 20 && at.ends_with('Z') && &at[10..11] == "T", "{at}");
    let mut times = Vec::new();
    for name in ["total_duration", "prompt_eval_duration", "eval_duration"] {
        times.extend(object.shift_remove(name).map(|time| time.as_u64().unwrap()));
    }
    if let [total, prompt, generation] = times[..] {
        assert!(prompt > 0 && total >= prompt + generation, "{times:?}");
    } else {
        assert!(times.is_empty(), "{times:?}");
    }
    for call in value.pointer_mut("/message/tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        let id = call.as_object_mut().unwrap().shift_remove("id").unwrap();
        assert!(id.as_str().unwrap().starts_with("call_"), "{id}");
    }
    value
}

/// The lines of a stream.
#[track_caller]
fn lines(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"), "{}", answer.text());
    let text = answer.text();
    assert!(text.ends_with('\n'), "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The error of an answer in Ollama's form, which is all that it has.
#[track_caller]
fn refusal(answer: &Answer, status: u16) -> String {
    let body = answer.json();
    assert_eq!((answer.status, body.as_object().unwrap().len()), (status, 1), "{body}");
    body["error"].as_str().unwrap().to_owned()
}

fn question(more: Value) -> Value {
    let base = json!({ "model": "stories", "prompt": "Once upon a time", "raw": true,
        "options": { "temperature": 0, "num_predict": 8 } });
    with(base, more)
}

#[test]
fn a_text_whole_and_in_lines() {
    let server = Server::start(&[]);
    let text = expected(8);
    let whole = server.post("/api/generate", &question(json!({ "stream": false }))).ok();
    let tokens =
        server.post("/tokenize", &json!({ "content": "Once upon a time", "add_special": true })).ok();
    let end = json!({ "done": true, "done_reason": "length", "load_duration": 0,
        "prompt_eval_count": tokens["count"], "eval_count": 8 });
    let wanted = with(json!({ "model": "stories", "response": text }), end.clone());
    assert_eq!(steady(whole), wanted);
    // A stream is what is asked for where nothing is said.
    let lines = lines(&server.post("/api/generate", &question(json!({ "model": "stories:latest" }))));
    let (last, rest) = lines.split_last().unwrap();
    assert_eq!(steady(last.clone()), with(json!({ "model": "stories:latest", "response": "" }), end));
    let mut streamed = String::new();
    for line in rest {
        let line = steady(line.clone());
        streamed += line["response"].as_str().unwrap();
        let wanted = json!({ "model": "stories:latest", "response": line["response"], "done": false });
        assert_eq!(line, wanted);
    }
    assert_eq!(streamed, text);
}

#[test]
fn thoughts_text_and_calls_of_a_chat() {
    let scripts: &[(&str, &[&str])] = &[
        ("sheep", &["<think>", "\nI count", " sheep.", "\n</think>", "\n\nBlue", " skies", "!"]),
        (
            "rome",
            &[
                "Let me",
                "\n<tool_call>\n",
                r#"{"name": "clock", "arguments": {}}"#,
                "\n</tool_call>\n<tool_call>\n",
                r#"{"name": "weather", "#,
                r#""arguments": {"city": "Rome"}}"#,
                "\n</tool_call>",
            ],
        ),
        ("oslo", &["<tool", r#"_call>{"name": "weather", "arguments": {"city": "#, r#""Oslo""#, " oops"]),
    ];
    let script = Script::new(QWEN3, scripts);
    let server = script.serve();
    let name = server.get("/v1/models").ok()["data"][0]["id"].clone();
    let tool = |name: &str| {
        json!({ "type": "function", "function": { "name": name, "description": "",
        "parameters": { "type": "object", "properties": { "city": { "type": "string" } } } } })
    };
    let ask = |text: &str, stream: bool| {
        let body = json!({ "messages": [{ "role": "user", "content": text }], "stream": stream,
            "options": { "temperature": 0 }, "tools": [tool("weather"), tool("clock")] });
        server.post("/api/chat", &body)
    };
    let said = |message: Value, done: bool| {
        let message = with(json!({ "role": "assistant" }), message);
        json!({ "model": name, "message": message, "done": done })
    };
    let content = |text: &str| json!({ "content": text });
    let thought = |text: &str| json!({ "content": "", "thinking": text });
    let call = |index: usize, name: &str, arguments: Value| json!({ "function": { "index": index, "name": name, "arguments": arguments } });
    let clock = call(0, "clock", json!({}));
    let weather = call(1, "weather", json!({ "city": "Rome" }));
    let oslo = r#"<tool_call>{"name": "weather", "arguments": {"city": "Oslo" oops"#;
    let cases = [
        (
            "sheep",
            json!({ "content": "Blue skies!", "thinking": "I count sheep." }),
            vec![thought("I count"), thought(" sheep."), content("Blue"), content(" skies"), content("!")],
        ),
        (
            "rome",
            json!({ "content": "Let me", "tool_calls": [clock.clone(), weather.clone()] }),
            vec![
                content("Let me"),
                json!({ "content": "", "tool_calls": [clock] }),
                json!({ "content": "", "tool_calls": [weather] }),
            ],
        ),
        ("oslo", content(oslo), vec![content(oslo)]),
    ];
    for (text, whole, pieces) in cases {
        let mut answer = steady(ask(text, false).ok());
        let usage = |answer: &mut Value, name: &str| {
            answer.as_object_mut().unwrap().shift_remove(name).unwrap().as_u64().unwrap()
        };
        assert!(usage(&mut answer, "prompt_eval_count") > 0 && usage(&mut answer, "eval_count") > 1);
        let end = json!({ "done_reason": "stop", "load_duration": 0 });
        assert_eq!(answer, with(said(whole, true), end.clone()), "{text}");
        let mut streamed: Vec<Value> = lines(&ask(text, true)).into_iter().map(steady).collect();
        let mut last = streamed.pop().unwrap();
        assert!(usage(&mut last, "prompt_eval_count") > 0 && usage(&mut last, "eval_count") > 1);
        assert_eq!(last, with(said(content(""), true), end));
        let joined = |messages: &[Value]| -> String {
            messages.iter().filter_map(|line| line["message"]["content"].as_str()).collect()
        };
        let wanted: Vec<Value> = pieces.into_iter().map(|piece| said(piece, false)).collect();
        match text {
            // A call that is none comes in as many pieces as it was held back in.
            "oslo" => assert_eq!(joined(&streamed), joined(&wanted)),
            _ => assert_eq!(streamed, wanted, "{text}"),
        }
    }
}

#[test]
fn options_are_those_of_the_other_routes() {
    let server = Server::start(&[]);
    let said = |options: Value| {
        let body = question(json!({ "stream": false, "options": options }));
        server.post("/api/generate", &body).ok()["response"].clone()
    };
    let other = |more: Value| {
        let body = with(json!({ "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0 }), more);
        server.post("/v1/completions", &body).ok()["choices"][0]["text"].clone()
    };
    let base = json!({ "temperature": 0, "num_predict": 24 });
    let plain = other(json!({}));
    assert_eq!(said(base.clone()), plain);
    let drawn = json!({ "temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "seed": 7,
        "presence_penalty": 0.5, "frequency_penalty": 0.25 });
    assert_ne!(other(drawn.clone()), plain);
    assert_eq!(said(with(base.clone(), drawn.clone())), other(drawn));
    let repeat = json!({ "repeat_penalty": 1.8 });
    assert_ne!(other(repeat.clone()), plain);
    assert_eq!(said(with(base.clone(), repeat.clone())), other(repeat.clone()));
    for (last, window) in [(-1, 0), (4, 4)] {
        let options = with(base.clone(), with(repeat.clone(), json!({ "repeat_last_n": last })));
        assert_eq!(said(options), other(with(repeat.clone(), json!({ "penalty_window": window }))), "{last}");
    }
    let off = json!({ "repeat_penalty": 1.8, "presence_penalty": 2, "repeat_last_n": 0 });
    assert_eq!(said(with(base.clone(), off)), plain);
    let stop = json!({ "stop": ["little", "girl"] });
    assert_ne!(other(stop.clone()), plain);
    assert_eq!(said(with(base.clone(), stop.clone())), other(stop));
    // No limit is the context's.
    for none in [-1, -2] {
        let options = json!({ "temperature": 0, "num_predict": none, "stop": ["."] });
        assert_eq!(said(options), other(json!({ "max_tokens": null, "stop": ["."] })));
    }
    // Those that change no answer here.
    let loading = json!({ "num_ctx": 64, "num_gpu": 1, "num_thread": 2, "num_keep": 4, "mirostat": 0, "tfs_z": 1.0,
        "typical_p": 1 });
    assert_eq!(said(with(base, loading)), plain);
    // Home Assistant's numbers are floats.
    let floats =
        json!({ "num_ctx": 64.0, "num_predict": 24.0, "top_k": 40.0, "seed": 7.0, "temperature": 0.0 });
    assert_eq!(said(floats), plain);
    let part = question(json!({ "stream": false, "options": { "num_predict": 1.5 } }));
    assert_eq!(
        refusal(&server.post("/api/generate", &part), 400),
        "options.num_predict: expected a whole number, got 1.5"
    );
    let wide = question(
        json!({ "stream": false, "options": { "num_ctx": 1 << 20, "num_predict": 1 }, "shift": true }),
    );
    let answer = server.post("/api/generate", &wide);
    assert_eq!((answer.status, answer.header("x-backstop-ignored")), (200, Some("shift, options.num_ctx")));
}

#[test]
fn formats_are_enforced() {
    let server = Server::start(&[]);
    let schema = json!({ "type": "object", "properties": { "n": { "enum": [1, 2] } }, "required": ["n"],
        "additionalProperties": false });
    let options = json!({ "temperature": 0, "num_predict": 60 });
    let ask = |path: &str, more: Value| {
        let body = with(json!({ "format": schema, "stream": false, "options": options }), more);
        server.post(path, &body).ok()
    };
    let chat = ask("/api/chat", json!({ "messages": [{ "role": "user", "content": "x" }] }));
    let raw = ask("/api/generate", json!({ "prompt": "x", "raw": true }));
    let asked = ask("/api/generate", json!({ "prompt": "x" }));
    for text in [&chat["message"]["content"], &raw["response"], &asked["response"]] {
        let value: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        assert!(value == json!({ "n": 1 }) || value == json!({ "n": 2 }), "{value}");
    }
    assert_eq!(chat["message"]["content"], asked["response"]);
    let any = ask("/api/generate", json!({ "prompt": "x", "raw": true, "format": "json" }));
    assert!(any["response"].as_str().unwrap().trim_start().starts_with('{'), "{any}");
}

#[test]
fn a_conversation_becomes_the_prompt_that_it_does_elsewhere() {
    let server = Server::start(&[]);
    let count = |body: Value| {
        let body = with(body, json!({ "stream": false, "options": { "num_predict": 1 } }));
        let route = if body["prompt"].is_null() { "/api/chat" } else { "/api/generate" };
        server.post(route, &body).ok()["prompt_eval_count"].as_u64().unwrap() as usize
    };
    let shown = |messages: &Value| {
        let shown = server.post("/apply-template", &json!({ "messages": messages })).ok();
        shown["tokens"].as_array().unwrap().len()
    };
    let messages =
        json!([{ "role": "system", "content": "Be kind." }, { "role": "user", "content": "Hello." }]);
    assert_eq!(count(json!({ "messages": messages })), shown(&messages));
    assert_eq!(count(json!({ "prompt": "Hello.", "system": "Be kind." })), shown(&messages));
    // Calls of tools, whose results name the tool or nothing.
    let call = |name: &str| json!({ "function": { "name": name, "arguments": { "city": "Rome" } } });
    let messages = json!([
        { "role": "user", "content": "Hello." },
        { "role": "assistant", "tool_calls": [call("weather"), call("clock")] },
        { "role": "tool", "content": "12:00", "tool_name": "clock" },
        { "role": "tool", "content": "sunny" },
    ]);
    assert!(count(json!({ "messages": messages })) > 0);
}

#[test]
fn nothing_to_say_loads_the_model() {
    let server = Server::start(&[]);
    let loaded = json!({ "model": "stories", "done": true, "done_reason": "load" });
    for body in
        [json!({ "model": "stories" }), json!({ "model": "stories", "prompt": "", "keep_alive": "5m" })]
    {
        let answer = steady(server.post("/api/generate", &body).ok());
        assert_eq!(answer, with(json!({ "response": "" }), loaded.clone()));
    }
    let answer = steady(server.post("/api/chat", &json!({ "model": "stories", "messages": [] })).ok());
    assert_eq!(answer, with(json!({ "message": { "role": "assistant", "content": "" } }), loaded));
}

#[test]
fn the_model_is_told_of() {
    let server = Server::start(&["--alias", "llama3.2:3b"]);
    let version = server.get("/api/version").ok();
    assert_eq!(version, json!({ "version": "0.12.6", "backstop": env!("CARGO_PKG_VERSION") }));
    let mut models = server.get("/api/tags").ok()["models"].clone();
    let mut names = Vec::new();
    let mut rest = Vec::new();
    for model in models.as_array_mut().unwrap() {
        assert_eq!(model["name"], model["model"]);
        names.push(model["name"].clone());
        let model = model.as_object_mut().unwrap();
        for gone in ["name", "model"] {
            model.shift_remove(gone);
        }
        rest.push(model.clone());
    }
    assert_eq!(names, ["stories:latest", "llama3.2:3b"]);
    assert_eq!(rest[0], rest[1]);
    assert_eq!(rest[0]["digest"].as_str().unwrap().len(), 64);
    let details = rest[0]["details"].clone();
    let running = server.get("/api/ps").ok()["models"][0].clone();
    let context = server.get("/v1/models").ok()["data"][0]["context_length"].clone();
    assert_eq!((&running["name"], &running["digest"]), (&json!("stories:latest"), &rest[0]["digest"]));
    assert_eq!((&running["details"], &running["context_length"]), (&details, &context));
    assert!(
        running["expires_at"].as_str().unwrap() > "2300"
            && running["size"].as_u64() >= rest[0]["size"].as_u64()
    );
    let shown = server.post("/api/show", &json!({ "model": "stories" })).ok();
    assert_eq!((&rest[0]["capabilities"], &details["context_length"]), (&shown["capabilities"], &context));
    let width = &shown["model_info"][format!("{}.embedding_length", details["family"].as_str().unwrap())];
    assert_eq!(details["embedding_length"], *width);
    assert_eq!(shown, server.post("/api/show", &json!({ "name": "llama3.2:3b", "verbose": true })).ok());
    assert_eq!(shown["details"], details);
    let info = &shown["model_info"];
    let family = info["general.architecture"].as_str().unwrap();
    assert_eq!((&details["family"], &details["format"]), (&json!(family), &json!("safetensors")));
    assert_eq!(info[format!("{family}.block_count")], 6);
    assert!(info["general.parameter_count"].as_u64().unwrap() > 1000);
    assert!(shown["template"].as_str().unwrap().contains("messages"));
    assert_eq!(shown["capabilities"][0], "completion");
    let plain = server.request("GET", "/", &[("accept", "*/*")], b"");
    assert_eq!((plain.status, plain.text().as_str()), (200, "Ollama is running"));
    let head = server.request("HEAD", "/", &[("accept", "application/json")], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    for accept in [&[][..], &[("accept", "text/html,application/xhtml+xml,*/*;q=0.8")]] {
        let page = server.request("GET", "/", accept, b"");
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        assert_eq!((page.header("vary"), page.header("cache-control")), (Some("accept"), Some("no-store")));
    }
}

#[test]
fn vectors_have_length_one() {
    let server = Server::start(&["--ctx", "64"]);
    let texts = json!(["Once upon a time", "A little girl"]);
    let data = server.post("/v1/embeddings", &json!({ "input": texts })).ok();
    let wanted: Vec<&Value> =
        data["data"].as_array().unwrap().iter().map(|item| &item["embedding"]).collect();
    let answer = server.post("/api/embed", &json!({ "model": "stories", "input": texts })).ok();
    assert_eq!(answer["embeddings"], json!(wanted));
    assert_eq!(answer["prompt_eval_count"], data["usage"]["prompt_tokens"]);
    assert_eq!((&answer["model"], &answer["load_duration"]), (&json!("stories"), &json!(0)));
    assert!(answer["total_duration"].as_u64().unwrap() > 0);
    let one = server.post("/api/embed", &json!({ "input": texts[0] })).ok();
    assert_eq!(one["embeddings"], json!([wanted[0]]));
    let old = server.post("/api/embeddings", &json!({ "model": "stories", "prompt": texts[0] })).ok();
    assert_eq!(old, json!({ "embedding": wanted[0] }));
    for none in [json!([]), json!(""), Value::Null] {
        assert_eq!(server.post("/api/embed", &json!({ "input": none })).ok()["embeddings"], json!([]));
    }
    let all = server.post("/api/embed", &json!({ "input": texts[0], "dimensions": 0 })).ok();
    assert_eq!(all["embeddings"], one["embeddings"]);
    // What does not fit is cut, unless that is not wanted: the first tokens are those of the shorter text.
    let long = "Once upon a time. ".repeat(40);
    let ids =
        server.post("/tokenize", &json!({ "content": long, "add_special": true })).ok()["tokens"].clone();
    let cut = server.post("/v1/embeddings", &json!({ "input": ids.as_array().unwrap()[..64] })).ok();
    let answer = server.post("/api/embed", &json!({ "input": long })).ok();
    assert_eq!(
        (&answer["embeddings"][0], &answer["prompt_eval_count"]),
        (&cut["data"][0]["embedding"], &json!(64))
    );
    let said = refusal(&server.post("/api/embed", &json!({ "input": long, "truncate": false })), 400);
    assert!(said.starts_with("the input length exceeds the context length: "), "{said}");
    let said = refusal(&server.post("/api/embed", &json!({ "input": "x", "dimensions": 3 })), 400);
    assert!(said.contains("dimensions"), "{said}");
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    let server = Server::start(&[]);
    for path in ["push", "create", "copy", "delete"] {
        let method = if path == "delete" { "DELETE" } else { "POST" };
        let answer = server.request(method, &format!("/api/{path}"), &[], b"{\"model\":\"x\"}");
        let said =
            format!("{path} is not supported: backstop pull and backstop rm keep what is on this machine");
        assert_eq!(refusal(&answer, 400), said);
    }
    let said = refusal(&server.post("/api/pull", &json!({ "model": "x" })), 403);
    assert!(said.starts_with("pull is not allowed here: backstop serve --pull allows it"), "{said}");
    for route in ["/api/chat", "/api/generate", "/api/show", "/api/embed", "/api/embeddings"] {
        let body = json!({ "model": "llama3", "messages": [], "prompt": "x", "input": "x" });
        assert_eq!(refusal(&server.post(route, &body), 404), "model 'llama3' not found");
    }
    let said = refusal(&server.post("/api/show", &json!({ "model": "a\n'b'\"" })), 404);
    assert_eq!(said, r#"model 'a\n'b'\"' not found"#);
    let cases = [
        (json!({ "suffix": 1 }), "suffix: expected a string, got 1"),
        (json!({ "template": "x" }), "template: \"x\" is not supported"),
        (json!({ "images": ["x"] }), "images: a list of 1 is not supported"),
        (json!({ "context": [1, 2] }), "context: a list of 2 is not supported"),
        (json!({ "system": "x" }), "system: raw mode does not support it: write it into the prompt"),
        (json!({ "format": "xml" }), "format: expected \"json\" or a JSON schema, got \"xml\""),
        (json!({ "think": "much" }), "think: expected true, false, low, medium, high or max, got \"much\""),
        (json!({ "options": { "mirostat": 2 } }), "options.mirostat: 2 is not supported"),
        (json!({ "options": { "typical_p": 0.5 } }), "options.typical_p: 0.5 is not supported"),
        (
            json!({ "options": { "penalize_newline": false } }),
            "options.penalize_newline: false is not supported",
        ),
        (
            json!({ "options": { "repeat_last_n": -2 } }),
            "options.repeat_last_n: expected a whole number from -1 to 1048576, got -2",
        ),
        (
            json!({ "options": { "num_predict": 1.5 } }),
            "options.num_predict: expected a whole number, got 1.5",
        ),
        (json!({ "options": [] }), "options: expected an object, got a list of 0"),
        (json!({ "top_logprobs": 21 }), "top_logprobs: expected a whole number from 0 to 20, got 21"),
        (json!({ "_debug_render_only": true }), "_debug_render_only: true is not supported"),
    ];
    for (more, wanted) in cases {
        assert_eq!(refusal(&server.post("/api/generate", &question(more)), 400), wanted);
    }
    let image = json!({ "messages": [{ "role": "user", "content": "x", "images": ["eA=="] }] });
    let said = refusal(&server.post("/api/chat", &image), 400);
    assert_eq!(said, "messages[0].images: a list of 1 is not supported");
    let said = refusal(&server.post("/api/chats", &json!({})), 404);
    assert_eq!(said, "there is no route \"/api/chats\"; did you mean /api/chat?");
    assert_eq!(refusal(&server.get("/api/chat"), 405), "\"/api/chat\" does not take GET: use POST");
    let keyed = Server::start(&["--api-key", "sesame"]);
    for route in ["/api/tags", "/api/version"] {
        assert!(refusal(&keyed.get(route), 401).starts_with("no API key"));
    }
    let bearer = [("authorization", "Bearer sesame")];
    assert_eq!(keyed.request("GET", "/api/tags", &bearer, b"").status, 200);
}

#[test]
fn a_stream_that_fails_ends_with_its_error() {
    let server = Server::start(&["--ctx", "64"]);
    let long = question(json!({ "prompt": "Once upon a time. ".repeat(40) }));
    let said = refusal(&server.post("/api/generate", &long), 400);
    assert!(said.starts_with("the input length exceeds the context length: "), "{said}");
    // A text ends with the context.
    let body = question(json!({ "options": { "temperature": 0, "num_predict": -1 } }));
    let last = lines(&server.post("/api/generate", &body)).pop().unwrap();
    let reason = last["done_reason"].as_str().unwrap();
    assert!(["stop", "length"].contains(&reason), "{last}");
}

/// What `github.com/ollama/ollama/api` makes of requests whose fields were left out: texts that are empty, nulls, an empty type.
#[test]
fn what_gos_client_writes_is_taken() {
    let server = Server::start(&["--unknown-fields", "refuse"]);
    let template = json!({ "model": "stories", "prompt": "Once upon a time", "suffix": "", "system": "", "template": "",
        "stream": false, "options": null });
    let drawn = server.post("/api/generate", &template).ok();
    assert!(drawn["response"].as_str().is_some_and(|text| !text.is_empty()), "{drawn}");
    let steady = with(template, json!({ "options": { "temperature": 0, "num_predict": 8 } }));
    let plain = server.post("/api/generate", &steady).ok();
    // It says how many only where log-probabilities are asked for.
    let more = with(steady, json!({ "top_logprobs": 3, "think": true, "keep_alive": "1h30m0s" }));
    let answer = server.post("/api/generate", &more);
    assert_eq!(answer.header("x-backstop-ignored"), Some("top_logprobs"));
    assert_eq!((&answer.ok()["response"], &answer.ok()["logprobs"]), (&plain["response"], &Value::Null));
    let ps = server.get("/v1/models/stories").ok();
    assert!(ps["expires_in"].as_f64().is_some_and(|left| (5000.0..=5400.0).contains(&left)), "{ps}");
    let nothing = json!({ "model": "stories", "messages": null, "options": null, "keep_alive": -1 });
    assert_eq!(server.post("/api/chat", &nothing).ok()["done_reason"], "load");
    // Names of roles are those in small letters.
    let said = |role: &str| {
        let body = json!({ "model": "stories", "messages": [{ "role": role, "content": "Hello" }], "stream": false,
            "options": { "temperature": 0, "num_predict": 8 } });
        server.post("/api/chat", &body)
    };
    assert_eq!(said("User").ok()["message"], said("user").ok()["message"]);
    assert!(refusal(&said("users"), 400).starts_with("messages[0].role: expected system, "));
    let show = json!({ "model": "stories", "system": "", "template": "", "verbose": false, "options": null, "name": "" });
    assert_eq!(server.post("/api/show", &show).ok()["details"]["format"], "safetensors");
    let pull = json!({ "model": "x", "username": "", "password": "", "name": "" });
    assert!(refusal(&server.post("/api/pull", &pull), 403).starts_with("pull is not allowed here"));
    let embed = json!({ "model": "stories", "input": null, "options": null });
    assert_eq!(server.post("/api/embed", &embed).ok()["embeddings"], json!([]));
}

#[test]
fn a_tool_without_parameters_is_one() {
    let script = Script::new(
        QWEN3,
        &[("time", &["<tool_call>\n", r#"{"name": "clock", "#, r#""arguments": {}}"#, "\n</tool_call>"])],
    );
    let server = script.serve();
    let tool = |kind: &str, parameters: Value| json!([{ "type": kind, "function": { "name": "clock", "parameters": parameters } }]);
    let call = |tools: Value| {
        let body = json!({ "messages": [{ "role": "user", "content": "time" }], "stream": false, "tools": tools,
            "options": { "temperature": 0 } });
        let answer = server.post("/api/chat", &body).ok();
        (answer["message"]["tool_calls"][0]["function"].clone(), answer["prompt_eval_count"].clone())
    };
    let plain = call(tool("function", json!({ "type": "object", "properties": {} })));
    assert_eq!(plain.0, json!({ "index": 0, "name": "clock", "arguments": {} }));
    // The model is shown the same, too.
    assert_eq!(call(tool("", json!({ "type": "", "properties": null }))), plain);
}

#[test]
fn log_probabilities_are_those_of_a_chat() {
    let server = Server::start(&[]);
    let messages = json!([{ "role": "user", "content": "Once upon a time" }]);
    let chat = json!({ "messages": messages, "temperature": 0, "max_tokens": 6, "logprobs": true, "top_logprobs": 2 });
    let wanted = server.post("/v1/chat/completions", &chat).ok()["choices"][0]["logprobs"]["content"].clone();
    let body = json!({ "messages": messages, "options": { "temperature": 0, "num_predict": 6 }, "logprobs": true,
        "top_logprobs": 2 });
    let whole = server.post("/api/chat", &with(body.clone(), json!({ "stream": false }))).ok();
    assert_eq!(whole["logprobs"], wanted);
    let lines = lines(&server.post("/api/chat", &body));
    let streamed: Vec<Value> =
        lines.iter().filter_map(|line| line["logprobs"].as_array()).flatten().cloned().collect();
    assert_eq!(json!(streamed), wanted);
}
