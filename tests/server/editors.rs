//! What editors ask: what stands between two texts, by llama.cpp's own routes, OpenAI's and Ollama's.

use serde_json::{Value, json};

use crate::script::{QWEN3, Script};
use crate::support::{Noise, Server, events, expected, with};

/// A model that fills in two lines whatever it is asked, and goes on with another file.
fn coder() -> Script {
    let tokens = ["return", " x", "\n    done", "()", "\n  far", " left", "<|file_sep|>", "other.py"];
    let marks = ["<|fim_suffix|>", "<|repo_name|>"];
    Script::new(QWEN3, &[("=<|fim_middle|>", &tokens), ("=<|fim_prefix|>", &marks)])
}

const FILLED: &str = "return x\n    done()\n  far left";

fn serve(model: &Script) -> Server {
    Server::start(&[model.path().to_str().unwrap(), "--alias", "coder"])
}

fn hole(more: Value) -> Value {
    with(json!({ "input_prefix": "def f(x):\n    ", "input_suffix": "\n\nf(2)", "temperature": 0 }), more)
}

#[test]
fn llama_cpps_editors_have_what_stands_between() {
    let model = coder();
    let server = serve(&model);
    let answer = server.post("/infill", &hole(json!({ "prompt": "re" }))).ok();
    let told = |name: &str| answer[name].clone();
    assert_eq!(answer["content"], FILLED);
    assert_eq!(
        (told("stop"), told("stop_type"), told("stopping_word")),
        (json!(true), json!("eos"), json!(""))
    );
    assert_eq!((told("tokens_predicted"), told("has_new_line")), (json!(7), json!(true)));
    let text = "<|fim_prefix|>def f(x):\n    re<|fim_suffix|>\n\nf(2)<|fim_middle|>";
    let count = server.post("/tokenize", &json!({ "content": text })).ok()["count"].clone();
    assert_eq!(answer["tokens_evaluated"], count);

    // As llama.vim asks, with other files, and told what it wants to know alone.
    let fields = [
        "content",
        "timings/prompt_n",
        "timings/predicted_n",
        "timings/predicted_per_token_ms",
        "timings/truncated",
        "truncated",
        "tokens_cached",
    ];
    let body =
        hole(json!({ "id_slot": 0, "prompt": "", "n_predict": 128, "stop": [], "n_indent": 4, "top_k": 40,
        "top_p": 0.9, "samplers": ["top_k", "top_p", "infill"], "stream": false, "cache_prompt": true,
        "input_extra": [{ "text": "x = 1\n", "time": 3, "filename": "a.py" }], "t_max_prompt_ms": 500,
        "t_max_predict_ms": 600_000, "response_fields": fields }));
    let answer = server.post("/infill", &body);
    assert_eq!(answer.header("x-backstop-ignored"), Some("samplers"));
    let answer = answer.ok();
    // A line that stands further left than the place does ends it, and is no part of it.
    assert_eq!(answer["content"], "return x\n    done()\n");
    let names: Vec<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "content",
            "timings/prompt_n",
            "timings/predicted_n",
            "timings/predicted_per_token_ms",
            "truncated",
            "tokens_cached"
        ]
    );
    let with_file = answer["timings/prompt_n"].as_u64().unwrap();
    assert!(with_file > count.as_u64().unwrap() + 10, "{with_file} {count}");

    // As llama.vscode does: several, in a list.
    let several =
        server.post("/infill", &hole(json!({ "n_cmpl": 3, "response_fields": ["content", "index"] }))).ok();
    let wanted: Vec<Value> = (0..3).map(|index| json!({ "content": FILLED, "index": index })).collect();
    assert_eq!(several, json!(wanted));
    // A path that is asked for many times is told once.
    let fields = vec!["content"; 100_000];
    assert_eq!(
        server.post("/infill", &hole(json!({ "response_fields": fields }))).ok(),
        json!({ "content": FILLED })
    );

    // What it has read of a prompt beforehand is there: no token is made.
    let answer =
        server.post("/infill", &hole(json!({ "n_predict": 0, "samplers": [], "stream": false }))).ok();
    assert_eq!((&answer["content"], &answer["tokens_predicted"]), (&json!(""), &json!(0)));
    assert_eq!((&answer["timings"]["predicted_n"], &answer["stop_type"]), (&json!(0), &json!("limit")));

    let streamed = server.post("/infill", &hole(json!({ "stream": true })));
    let parts: Vec<Value> =
        events(&streamed.text()).iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let (last, pieces) = parts.split_last().unwrap();
    let text: String = pieces.iter().map(|piece| piece["content"].as_str().unwrap()).collect();
    assert_eq!((text.as_str(), pieces.len()), (FILLED, 6));
    assert!(pieces.iter().all(|piece| piece["stop"] == false));
    assert_eq!(
        (&last["stop"], &last["content"], &last["tokens_predicted"]),
        (&json!(true), &json!(""), &json!(7))
    );

    // A line that does not belong to it is in no part of a stream either.
    let body = hole(json!({ "stream": true, "n_indent": 4, "t_max_predict_ms": -1, "return_tokens": true }));
    let streamed = server.post("/infill", &body).text();
    let parts = events(&streamed);
    let parts = parts.iter().map(|event| serde_json::from_str::<Value>(event).unwrap());
    let (mut text, mut tokens) = (String::new(), 0);
    for part in parts.filter(|part| part["stop"] == false) {
        text += part["content"].as_str().unwrap();
        tokens += part["tokens"].as_array().unwrap().len();
    }
    assert_eq!((text.as_str(), tokens), ("return x\n    done()\n", 5));
}

#[test]
fn openais_and_ollamas_suffix_is_filled_before() {
    let model = coder();
    let server = serve(&model);
    let body =
        json!({ "prompt": "def f(x):\n    ", "suffix": "\n\nf(2)", "temperature": 0, "max_tokens": 64 });
    let answer = server.post("/v1/completions", &body).ok();
    assert_eq!(answer["choices"][0]["text"], FILLED);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let several = with(body.clone(), json!({ "prompt": ["a", "b"], "n": 2 }));
    let answer = server.post("/v1/completions", &several).ok();
    assert!(answer["choices"].as_array().unwrap().iter().all(|choice| choice["text"] == FILLED), "{answer}");
    let tokens = with(body, json!({ "prompt": [1, 2] }));
    assert_eq!(server.post("/v1/completions", &tokens).refusal(400), "suffix: it needs a prompt of text");

    let body =
        json!({ "model": "coder", "prompt": "def f(x):\n    ", "suffix": "\n\nf(2)", "stream": false });
    for raw in [false, true] {
        let answer = server.post("/api/generate", &with(body.clone(), json!({ "raw": raw }))).ok();
        assert_eq!((&answer["response"], &answer["done_reason"]), (&json!(FILLED), &json!("stop")));
    }
    let shown = server.post("/api/show", &json!({ "model": "coder" })).ok();
    let capabilities = shown["capabilities"].as_array().unwrap();
    assert!(capabilities.contains(&json!("insert")), "{capabilities:?}");
}

#[test]
fn a_model_that_cannot_fill_in_says_so() {
    let server = Server::start(&[]);
    let said = " has no tokens to fill in the middle by, such as <|fim_prefix|>";
    let body = json!({ "prompt": "x", "suffix": "y" });
    assert!(server.post("/v1/completions", &body).refusal(400).contains(said));
    assert!(server.post("/infill", &hole(json!({}))).refusal(400).contains(said));
    let answer = server.post("/api/generate", &with(body, json!({ "model": "stories" })));
    assert!(answer.status == 400 && answer.text().contains(said), "{}", answer.text());
    assert_eq!(server.post("/infill", &json!({ "input_prefix": "x" })).refusal(400), "input_suffix: missing");
}

#[test]
fn a_hole_in_a_long_file_has_what_is_near_it() {
    let model = coder();
    let server = Server::start(&[model.path().to_str().unwrap(), "--ctx", "128"]);
    let long = "word ".repeat(4000);
    let body = json!({ "input_prefix": long, "input_suffix": long, "n_predict": 16, "temperature": 0,
        "input_extra": [{ "text": long, "filename": "a.py" }] });
    let answer = server.post("/infill", &body).ok();
    assert_eq!((&answer["content"], &answer["tokens_evaluated"]), (&json!(FILLED), &json!(112)));
    // What nothing may be left out of is refused.
    let body = json!({ "prompt": long, "suffix": long });
    assert!(server.post("/v1/completions", &body).refusal(400).contains("context"));
}

#[test]
fn llama_cpps_completion_is_the_text_of_others() {
    let server = Server::start(&[]);
    let text = expected(20);
    let body = json!({ "prompt": "Once upon a time", "n_predict": 20, "temperature": 0, "repeat_last_n": 64,
        "typical_p": 1.0, "mirostat": 0, "mirostat_tau": 5.0, "dry_multiplier": 0.0, "xtc_probability": 0,
        "xtc_threshold": 0.1, "top_n_sigma": -1, "tfs_z": 1, "logit_bias": [], "grammar": "", "cache_prompt": true });
    let answer = server.post("/completion", &body).ok();
    assert_eq!((answer["content"].as_str(), &answer["stop_type"]), (Some(&*text), &json!("limit")));
    assert_eq!((&answer["tokens_predicted"], &answer["model"]), (&json!(20), &json!("stories")));
    assert_eq!(answer["generation_settings"]["temperature"], 0.0);
    let ids = server.post("/tokenize", &json!({ "content": "Once upon a time", "add_special": true })).ok();
    let by_ids = with(body.clone(), json!({ "prompt": ids["tokens"] }));
    assert_eq!(server.post("/completion", &by_ids).ok()["content"], *text);

    let more = json!({ "n_probs": 2, "return_tokens": true, "stop": [","] });
    let answer = server.post("/completion", &with(body.clone(), more)).ok();
    assert_eq!((&answer["stop_type"], &answer["stopping_word"]), (&json!("word"), &json!(",")));
    let told = answer["completion_probabilities"].as_array().unwrap();
    let tokens = answer["tokens"].as_array().unwrap();
    assert_eq!(told.len(), tokens.len());
    for (one, token) in told.iter().zip(tokens) {
        assert_eq!((&one["id"], &one["top_logprobs"][0]["id"]), (token, token), "{one}");
        assert_eq!(one["top_logprobs"].as_array().unwrap().len(), 2, "{one}");
    }

    // A bias as a pair, and one that forbids: the likeliest first token does not come.
    let first = server
        .post("/completion", &with(body.clone(), json!({ "return_tokens": true, "n_predict": 1 })))
        .ok();
    let token = &first["tokens"][0];
    let by_id = |bias: Value| Value::Object([(token.to_string(), bias)].into_iter().collect());
    for bias in [json!([[token, false]]), json!([[token, -100]]), by_id(json!(false)), by_id(json!(-100))] {
        let biased = with(body.clone(), json!({ "logit_bias": bias, "n_predict": 1 }));
        assert_ne!(server.post("/completion", &biased).ok()["content"], first["content"]);
    }
    let schema = json!({ "json_schema": { "enum": ["yes", "no"] }, "n_predict": 8 });
    let answer = server.post("/completion", &with(body.clone(), schema)).ok();
    assert!(["\"yes\"", "\"no\""].contains(&answer["content"].as_str().unwrap()), "{answer}");
    for (more, wanted) in [
        (json!({ "grammar": "root ::= \"a\"" }), "grammar: "),
        (json!({ "dry_multiplier": 0.8 }), "dry_multiplier: 0.8 is not supported"),
        (json!({ "xtc_probability": 0.5 }), "xtc_probability: 0.5 is not supported"),
        (json!({ "samplers": [1] }), "samplers: expected names"),
        (json!({ "response_fields": [1] }), "response_fields: expected paths of members, got 1"),
        (json!({ "n_cmpl": 129 }), "n_cmpl: "),
        (
            json!({ "response_fields": vec!["a".repeat(129)] }),
            "response_fields: expected at most 64 paths of 128 bytes",
        ),
        (json!({ "logit_bias": [["the", 1]] }), "logit_bias: expected pairs of a token id and a number"),
        (json!({ "prompt": ["a", "b"] }), "prompt: 2 texts, at most 1"),
    ] {
        let said = server.post("/completion", &with(body.clone(), more)).refusal(400);
        assert!(said.starts_with(wanted), "{said}");
    }
}

#[test]
fn props_tell_what_a_client_may_want_to_know() {
    let noise = Noise::new();
    let server = Server::start(&["stories", noise.path(), "--ctx", "256"]);
    let props = server.get("/props").ok();
    assert_eq!(props["model_alias"], "stories");
    assert_eq!(props["chat_template"], "{{ bos_token + messages[-1]['content'] }}");
    assert_eq!(props["default_generation_settings"]["n_ctx"], 256);
    assert_eq!((&props["modalities"]["vision"], &props["is_sleeping"]), (&json!(false), &json!(false)));
    let models = server.get("/v1/models").ok();
    let other = models["data"][1]["id"].as_str().unwrap();
    let props = server.get(&format!("/props?a=b&model={}", other.replace('.', "%2E"))).ok();
    assert_eq!(props["model_alias"], other);
    assert!(props["chat_template"].as_str().unwrap().contains("<|im_start|>"), "{props}");
    assert_eq!(server.get("/props?model=none").status, 404);
}
