//! `backstop template`, and other templates than a model's own.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::support::{Noise, backstop_with, fixture, json, ok, refused};

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
