//! Texts of a form: `--schema`, `--regex`, `--grammar`, and turns with tools.

use std::fs;

use backstop::sample::Grammar;
use backstop::text::{Chat, Message, Reply, ToolChoice};
use backstop::{Error, Options, SamplingOptions, Turn};
use serde_json::{Value, json};

use crate::support::*;

const SCHEMA: &str = r#"{"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"], "additionalProperties": false}"#;

#[test]
fn a_text_has_the_form_that_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (schema, lark) =
        (file("schema.json", SCHEMA), file("list.lark", "start: \"-\" /[a-z]{3}/ \"\\n\"\n"));
    for given in [SCHEMA, &schema] {
        let ran = ok(&["run", PROMPT, "--schema", given]);
        let value: Value = serde_json::from_str(&ran.out).unwrap();
        assert!(value["n"].as_u64().unwrap() < 100 && value.as_object().unwrap().len() == 1);
    }
    let ran = ok(&["run", PROMPT, "--regex", "[0-9]{3}", "--seed", "5", "--json"]);
    let run = json(&ran);
    let text = run["text"].as_str().unwrap();
    assert!(text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit()));
    assert_eq!((&run["conforms"], &run["finish_reason"]), (&json!(true), &json!("stop")));
    let ran = ok(&["run", PROMPT, "--grammar", &lark]);
    assert!(ran.out.starts_with('-') && ran.out.ends_with('\n') && ran.out.len() == 5, "{}", ran.out);
    let ran = ok(&["run", PROMPT, "--regex", "[a-z]{90}", "--max-tokens", "2"]);
    assert!(ran.err.contains("cut off: the text is not what was asked for"), "{}", ran.err);
    assert_eq!(json(&ok(&["run", PROMPT, "--max-tokens", "2", "--json"]))["conforms"], json!(null));
}

#[test]
fn what_cannot_be_enforced_is_refused() {
    let cases: [(&[&str], i32, &str); 5] = [
        (&["--schema", r#"{"not": {}}"#], 1, "error: JSON schema: #: not: it cannot be enforced"),
        (&["--schema", "{"], 2, "error: --schema is no JSON: EOF while parsing an object at line 1 column 1"),
        (&["--schema", "nowhere.json"], 1, "error: nowhere.json: No such file or directory (os error 2)"),
        (&["--grammar", "nowhere.lark"], 1, "error: nowhere.lark: No such file or directory (os error 2)"),
        (&["--regex", ""], 1, "error: regular expression: 0 bytes, expected 1 to 16384"),
    ];
    for (args, code, expected) in cases {
        refused(&[&["run", PROMPT], args].concat(), code, expected);
    }
    let both = backstop(&["run", PROMPT, "--regex", "a", "--schema", "{}"]);
    assert!(both.code == Some(2) && both.err.contains("cannot be used with"), "{}", both.err);
}

fn tools() -> Vec<Value> {
    let tool = |name: &str, properties: Value| {
        json!({ "type": "function", "function": { "name": name, "parameters": { "type": "object", "properties": properties,
            "required": ["x"], "additionalProperties": false } } })
    };
    vec![
        tool("look", json!({ "x": { "enum": ["left", "right"] } })),
        tool("wait", json!({ "x": { "type": "boolean" } })),
    ]
}

fn answer(model: &backstop::Model, turn: &Turn, seed: u64) -> Reply {
    let sampling = SamplingOptions { temperature: 1.0, seed, ..Default::default() };
    let options = Options { max_tokens: Some(400), sampling, ..Default::default() };
    let mut generation = model.generate_turn(turn, &options).unwrap();
    let said: String = generation.by_ref().map(|piece| piece.unwrap().text).collect();
    assert_eq!(said, generation.reply().content);
    generation.reply().clone()
}

#[test]
fn a_required_call_is_a_call_whatever_the_model_says() {
    let noise = Noise::new();
    let model = noise.load();
    let messages = vec![Message::new("user", "Hi")];
    let chat =
        |tool_choice| Chat { tools: tools(), tool_choice, single_call: true, ..Chat::new(messages.clone()) };
    let required = model.prepare(&chat(ToolChoice::Required), None).unwrap();
    let named = model.prepare(&chat(ToolChoice::Named("wait".into())), None).unwrap();
    for seed in 0..5 {
        for (turn, names) in [(&required, &["look", "wait"][..]), (&named, &["wait"])] {
            let reply = answer(&model, turn, seed);
            assert_eq!((reply.calls.len(), reply.content.as_str()), (1, ""), "{reply:?}");
            assert!(names.contains(&reply.calls[0].name.as_str()));
            let arguments: Value = serde_json::from_str(&reply.calls[0].arguments).unwrap();
            // What the conversation goes on with.
            let message = reply.to_message();
            assert_eq!((message.role.as_str(), &message.content), ("assistant", &json!(null)));
            let call = json!({ "name": reply.calls[0].name, "arguments": reply.calls[0].arguments });
            let calls = json!([{ "id": "call00000", "type": "function", "function": call }]);
            assert_eq!(message.extra["tool_calls"], calls);
            let x = &arguments["x"];
            assert!(if reply.calls[0].name == "wait" { x.is_boolean() } else { x == "left" || x == "right" });
        }
    }
    // The template is told of the tools, or not.
    let none = model.prepare(&chat(ToolChoice::None), None).unwrap();
    let auto = model.prepare(&chat(ToolChoice::Auto), None).unwrap();
    assert!(none.tokens.len() < auto.tokens.len() && none.constraint.is_none() && auto.constraint.is_none());
    let refused = |chat: Chat, option: &str, text: Option<&Grammar>| match model.prepare(&chat, text) {
        Err(Error::Option { option: named, .. }) => assert_eq!(named, option),
        other => panic!("{other:?}"),
    };
    refused(chat(ToolChoice::Named("run".into())), "tool_choice", None);
    refused(Chat { tools: Vec::new(), ..chat(ToolChoice::Required) }, "tool_choice", None);
    // Where a call has to be made, there is no text that a format could hold.
    let called = model.prepare(&chat(ToolChoice::Required), Some(&Grammar::JsonObject)).unwrap();
    assert!(called.constraint.is_some());
    refused(Chat { tools: [tools(), tools()].concat(), ..chat(ToolChoice::Auto) }, "tools", None);
    refused(
        Chat { tools: vec![json!({ "function": { "name": "a b" } })], ..chat(ToolChoice::Auto) },
        "tools",
        None,
    );
    refused(Chat { tools: vec![json!(null)], ..chat(ToolChoice::Auto) }, "tools", None);
    // A text of a form, or a call.
    let grammar = Grammar::Regex("yes|no".into());
    let either = model.prepare(&chat(ToolChoice::Auto), Some(&grammar)).unwrap();
    for seed in 0..5 {
        let reply = answer(&model, &either, seed);
        assert!(reply.calls.len() == 1 || reply.content == "yes" || reply.content == "no", "{reply:?}");
    }
}
