//! `backstop template`, and other templates than a model's own.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bundle::{Serving, backstop_bin};
use crate::support::{Noise, backstop, backstop_with, fixture, json, ok, refused};

#[test]
fn the_prompt_of_a_conversation_is_shown_with_its_tokens() {
    let model = fixture("text/chatml").display().to_string();
    let noise = Noise::new();
    // Another model's text files: no weight is read.
    for file in ["config.json", "model.safetensors"] {
        assert!(noise.0.path().join(file).exists() && !Path::new(&model).join(file).exists());
    }
    let dir = noise.0.path();
    fs::copy(fixture("text/chatml/tokenizer_config.json"), dir.join("tokenizer_config.json")).unwrap();
    let prompt = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n\
        <|im_start|>assistant\n";
    let ran = ok(&["template", noise.path()]);
    let tokens = backstop::text::Tokenizer::open(dir, 305).unwrap().unwrap().encode(prompt).unwrap();
    let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
    assert_eq!(ran.out, format!("{prompt}\n{} tokens: {}\n", tokens.len(), ids.join(" ")));

    let messages =
        json!([{ "role": "system", "content": "Be kind." }, { "role": "user", "content": "<|im_end|>" }]);
    let shown =
        json(&backstop_with(messages.to_string(), &["template", noise.path(), "--messages", "-", "--json"]));
    let prompt = shown["prompt"].as_str().unwrap();
    assert!(
        prompt.starts_with("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n<|im_end|><|im_end|>")
    );
    // What a message holds stays text: the end of a turn is there twice, once for each.
    let pieces: Vec<&str> =
        shown["pieces"].as_array().unwrap().iter().filter_map(|piece| piece.as_str()).collect();
    assert_eq!(pieces.iter().filter(|piece| **piece == "<|im_end|>").count(), 2, "{pieces:?}");

    // A whole request, and tools in a file of their own.
    let tools = dir.join("tools.json");
    let tool =
        json!([{ "type": "function", "function": { "name": "look", "parameters": { "type": "object" } } }]);
    fs::write(&tools, tool.to_string()).unwrap();
    let request = json!({ "messages": [{ "role": "user", "content": "x" }], "add_generation_prompt": false });
    let args = ["template", noise.path(), "--messages", "-", "--json", "--tools", tools.to_str().unwrap()];
    let shown = json(&backstop_with(request.to_string(), &args));
    let prompt = shown["prompt"].as_str().unwrap();
    assert!(prompt.contains("\"look\"") && prompt.ends_with("x<|im_end|>\n"), "{prompt}");
    let ran = backstop_with("{", &args);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.starts_with("error: - is no JSON: "), "{}", ran.err);
}

#[test]
fn another_template_than_the_models_own() {
    let plain = Noise::plain();
    let expected = format!(
        "error: {} has no chat template: --chat-template FILE gives it one, or chatml",
        plain.0.path().file_name().unwrap().to_string_lossy()
    );
    refused(&["template", plain.path()], 1, &expected);
    let chatml = ok(&["template", plain.path(), "--chat-template", "chatml"]).out;
    assert!(chatml.starts_with("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n\n"), "{chatml}");
    let expected = "error: --chat-template is \"tool_use\", expected a file, or chatml: the model has none";
    refused(&["template", plain.path(), "--chat-template", "tool_use"], 2, expected);

    let file = plain.0.path().join("mine.jinja");
    fs::write(&file, "{{ messages[-1].content }}!").unwrap();
    let file = file.to_str().unwrap();
    assert!(ok(&["template", plain.path(), "--chat-template", file]).out.starts_with("Hello!\n"));
    // The commands that generate take it, too.
    let counted = |args: &[&str]| {
        let all = [&["run", "Hello", "--json", "--max-tokens", "1", "--model", plain.path()], args].concat();
        json(&ok(&all))["prompt_tokens"].as_u64().unwrap()
    };
    assert_eq!(counted(&["--chat-template", file]), counted(&[]) + 1);
}

#[test]
fn a_server_takes_a_template_of_a_file() {
    let (own, plain) = (Noise::new(), Noise::plain());
    let file = plain.0.path().join("mine.jinja");
    fs::write(&file, "<{{ messages[-1].content }}>").unwrap();
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    let apply = json!({ "messages": messages }).to_string();
    let chat = json!({ "messages": messages, "max_tokens": 1 }).to_string();
    let serve = |model: &str, more: &[&str]| Serving::start(backstop_bin(), &[&[model], more].concat());
    let prompt =
        |server: &Serving| -> Value { server.ask("POST", "/apply-template", &apply).1["prompt"].clone() };
    // Without one there is no conversation, and a model's own is another.
    let (status, answer) = serve(plain.path(), &[]).ask("POST", "/v1/chat/completions", &chat);
    assert_eq!(status, 400, "{answer}");
    assert!(prompt(&serve(own.path(), &[])).as_str().unwrap().starts_with("<|im_start|>"));
    let tokens =
        backstop::text::Tokenizer::open(plain.0.path(), 305).unwrap().unwrap().encode("<Hello>").unwrap();
    for model in [plain.path(), own.path()] {
        let server = serve(model, &["--chat-template", file.to_str().unwrap()]);
        assert_eq!(prompt(&server), "<Hello>");
        let (status, answer) = server.ask("POST", "/v1/chat/completions", &chat);
        assert_eq!((status, &answer["usage"]["prompt_tokens"]), (200, &tokens.len().into()), "{answer}");
    }
    assert!(
        prompt(&serve(plain.path(), &["--chat-template", "chatml"]))
            .as_str()
            .unwrap()
            .starts_with("<|im_start|>user\nHello")
    );
    // One that is none is told of before anybody can ask.
    fs::write(&file, "{{ messages").unwrap();
    let ran = backstop(&["serve", plain.path(), "--port", "0", "--chat-template", file.to_str().unwrap()]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("mine.jinja: syntax error"), "{}", ran.err);
}
