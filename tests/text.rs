//! Tokenizers and chat templates against transformers (`tests/fixtures/text/expected.json`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant, UNIX_EPOCH};

use backstop::text::{
    ChatTemplate, Detokenizer, Message, RenderOptions, Reply, ReplyParser, Specials, Tokenizer, Tool,
};
use backstop::weights::Checkpoint;
use serde_json::Value;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text")
}

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(dir().join("expected.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Renders `chats[name]`; an error where transformers has one.
fn render(template: &ChatTemplate, chat: &Value, case: &Value) -> backstop::Result<backstop::text::Rendered> {
    let messages: Vec<Message> = serde_json::from_value(chat["messages"].clone()).unwrap();
    let options = RenderOptions {
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap_or(false),
        continue_final_message: case["continue_final_message"].as_bool().unwrap_or(false),
        tools: chat["tools"].as_array().cloned(),
        documents: chat["documents"].as_array().cloned(),
        // 2024-07-05T09:08:07
        now: Some(UNIX_EPOCH + Duration::from_secs(1_720_170_487)),
        extra: chat["variables"].as_object().cloned().unwrap_or_default(),
    };
    template.render(&messages, &options)
}

/// The chat as OpenAI's API has it: arguments of calls are the text of an object.
fn with_written_arguments(chat: &Value) -> Value {
    let mut chat = chat.clone();
    for message in chat["messages"].as_array_mut().unwrap() {
        for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
            let arguments = &mut call["function"]["arguments"];
            *arguments = arguments.to_string().into();
        }
    }
    chat
}

/// What a tokenizer and its template get wrong of `expected.json`.
fn failures(
    name: &str,
    expected: &Value,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Vec<String> {
    let mut failed = Vec::new();
    let want = &expected["tokenizers"][name];
    for case in want["encode"].as_array().unwrap() {
        let (text, plain) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
        let want = case.get("ids_with_specials").map_or(plain, ids);
        match tokenizer.encode(text) {
            Ok(got) if got == want => {
                // What is refused before it is encoded would not have fitted.
                let least = tokenizer.least_tokens(text.len());
                assert!(least <= got.len(), "{name} {text:?}: at least {least} of {}", got.len());
            }
            Err(_) if want.is_empty() => {}
            got => failed.push(format!("{name} {text:?}: {got:?}, expected {want:?}")),
        }
    }
    for case in want["decode"].as_array().unwrap() {
        let text = case.get("text_skip_specials").unwrap_or(&case["text"]).as_str().unwrap();
        let got = tokenizer.decode(&ids(&case["ids"])).unwrap();
        if got != text && !text.contains('\u{FFFD}') {
            failed.push(format!("{name} decode: {got:?}, expected {text:?}"));
        }
    }
    for case in want["chat"].as_array().unwrap() {
        let Some(template) = template else { break };
        let chat = &expected["chats"][case["chat"].as_str().unwrap()];
        let rendered = render(template, chat, case).unwrap();
        let got = tokenizer.encode_rendered(&rendered).unwrap();
        if rendered.text() != case["rendered"].as_str().unwrap() || got != ids(&case["ids"]) {
            failed.push(format!("{name} chat {}: {:?}", case["chat"], rendered.text()));
        }
    }
    failed
}

#[test]
fn encodes_and_decodes_as_transformers() {
    let expected = expected();
    let mut failed = Vec::new();
    for name in expected["tokenizers"].as_object().unwrap().keys() {
        let tokenizer = Tokenizer::load(&dir().join(name).join("tokenizer.json"), 1 << 20).unwrap();
        let template = ChatTemplate::load(&dir().join(name)).unwrap().unwrap();
        failed.extend(failures(name, &expected, &tokenizer, Some(&template)));
    }
    assert!(failed.is_empty(), "{} differ: {failed:#?}", failed.len());
}

/// The tokenizers in the metadata of GGUF files, made of the same ones.
#[test]
fn gguf_tokenizers_encode_and_decode_as_transformers() {
    let expected = expected();
    let mut failed = Vec::new();
    for name in expected["tokenizers"].as_object().unwrap().keys() {
        let path = dir().join(format!("../gguf/vocab-{name}.gguf"));
        let checkpoint = Checkpoint::open(&path).unwrap();
        let metadata = checkpoint.gguf().unwrap();
        let json = metadata.tokenizer_json().unwrap().unwrap();
        let tokenizer = Tokenizer::from_bytes(&path, &json, 1 << 20).unwrap();
        let special = metadata.special_tokens().unwrap().into_iter();
        let special: BTreeMap<_, _> = special.map(|(name, text)| (name.to_owned(), text)).collect();
        let mut template =
            ChatTemplate::from_named(&path, metadata.chat_templates().unwrap(), special).unwrap();
        if let Some(template) = &mut template {
            template.protect(tokenizer.special_texts()).unwrap();
        }
        assert!(template.is_some(), "{name} has no template");
        failed.extend(failures(name, &expected, &tokenizer, template.as_ref()));
    }
    assert!(failed.is_empty(), "{} differ: {failed:#?}", failed.len());
}

/// Every kind of tokenizer here: SentencePiece's and byte-level ones of several patterns, the built-in model's, and
/// that of stories260k, where it is.
fn tokenizers() -> Vec<(String, Tokenizer)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut dirs: Vec<PathBuf> = ["chatml", "llama2", "llama3"].map(|name| dir().join(name)).into();
    dirs.push(root.join("assets/stories"));
    match root.ancestors().map(|up| up.join("shared/models/stories260k")).find(|dir| dir.is_dir()) {
        Some(dir) => dirs.push(dir),
        None => println!("skipped: shared/models/stories260k is absent"),
    }
    let name = |dir: &PathBuf| dir.file_name().unwrap().to_string_lossy().into_owned();
    dirs.iter()
        .map(|dir| (name(dir), Tokenizer::load(&dir.join("tokenizer.json"), 1 << 20).unwrap()))
        .collect()
}

#[test]
fn a_million_equal_characters_encode_within_a_second() {
    // Tests are not fully optimised.
    let limit = Duration::from_secs(if cfg!(debug_assertions) { 4 } else { 1 });
    let mut slowest = (Duration::ZERO, String::new());
    for (name, tokenizer) in tokenizers() {
        for unit in ["a", " ", "\u{301}", "1", "a ", "日"] {
            let text = unit.repeat(1_000_000 / unit.chars().count());
            // Where the thread's time is a clock's, whatever else the machine does: the best of three.
            let mut took = Duration::MAX;
            for _ in 0..3 {
                let start = worked();
                let ids = tokenizer.encode(&text).unwrap();
                took = took.min(worked().saturating_sub(start));
                println!("{name} {unit:?}: {} ids in {took:.2?}", ids.len());
                if took < limit {
                    break;
                }
            }
            assert!(took < limit, "{name} {unit:?} took {took:?}");
            slowest = slowest.max((took, format!("{name} {unit:?}")));
        }
    }
    println!("slowest: {} in {:.2?}", slowest.1, slowest.0);
}

/// The time that this thread has worked, which stands still while others have the processor; a clock where the system does not
/// tell.
fn worked() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = told.and_then(|told| told.split(' ').next()?.parse().ok());
    nanoseconds.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

/// Pre-tokenizers and kinds of SentencePiece that `tests/fixtures/text` has none of, against the libraries that trained them.
#[test]
fn gguf_tokenizers_encode_as_the_libraries_that_trained_them() {
    let bytes = std::fs::read(dir().join("../gguf/vocab.json")).unwrap();
    let expected: BTreeMap<String, Vec<(String, Vec<u32>)>> = serde_json::from_slice(&bytes).unwrap();
    let mut failed = Vec::new();
    for (name, rows) in expected {
        let path = dir().join(format!("../gguf/vocab-{name}.gguf"));
        let checkpoint = Checkpoint::open(&path).unwrap();
        let json = checkpoint.gguf().unwrap().tokenizer_json().unwrap().unwrap();
        let tokenizer = Tokenizer::from_bytes(&path, &json, 1 << 20).unwrap();
        for (text, want) in rows.iter().filter(|(text, _)| !text.is_empty()) {
            let got = tokenizer.encode_with(text, Specials { add: true, parse: false }).unwrap();
            if got != *want {
                failed.push(format!("{name} {text:?}: {got:?}, expected {want:?}"));
            }
            // SentencePiece has one sign for a space and for what looks like it.
            let text = text.replace('▁', " ");
            let back = tokenizer.decode(&got).unwrap().replace('▁', " ");
            if back != text {
                failed.push(format!("{name} {text:?} comes back as {back:?}"));
            }
        }
    }
    assert!(failed.is_empty(), "{} differ: {failed:#?}", failed.len());
}

/// A template of the fixtures by its name.
fn template_named(expected: &Value, name: &str) -> ChatTemplate {
    let entry = expected["templates"].as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap();
    let specials: BTreeMap<String, String> = serde_json::from_value(entry["specials"].clone()).unwrap();
    ChatTemplate::from_source(Path::new("t.jinja"), entry["template"].as_str().unwrap(), specials).unwrap()
}

#[test]
fn templates_show_how_their_models_answer() {
    let expected = expected();
    let hermes = "<tool_call>\n{\"name\": \"NAME\", \"arguments\": ARGUMENTS}\n</tool_call>";
    let hermes = format!("{hermes}\n{hermes}");
    let listed = "{\"name\": \"NAME\", \"arguments\": ARGUMENTS, \"id\": \"ID\"}";
    for (name, tools, thinks) in [
        ("chatml", None, false),
        ("chatml_tools", Some(hermes.clone()), false),
        ("thinking", None, true),
        ("llama3", Some("{\"name\": \"NAME\", \"parameters\": ARGUMENTS}".to_owned()), false),
        ("mistral", None, false),
        ("mistral_tools", Some(format!("[TOOL_CALLS] [{listed}, {listed}]")), false),
        ("mistral_args", Some("[TOOL_CALLS]NAME[ARGS]ARGUMENTS".repeat(2)), false),
        ("documents", None, true),
    ] {
        let format = template_named(&expected, name).reply_format(true);
        let shown = format.tools.map(|tools| tools.to_string());
        assert_eq!((shown, format.reasoning.is_some()), (tools, thinks), "{name}");
    }
    let dir = dir().join("chatml");
    let template = ChatTemplate::load(&dir).unwrap().unwrap();
    let shown = template.reply_format(true).tools.map(|tools| tools.to_string());
    assert_eq!(shown, Some(hermes), "of the one that is taken with tools");
    assert_eq!(template.reply_format(false).tools, None);
}

/// What a template makes of calls is what the parser finds in it.
#[test]
fn calls_that_templates_write_are_parsed() {
    let expected = expected();
    let chat = &expected["chats"]["api call"];
    for (name, before) in [
        ("chatml_tools", "<|im_start|>assistant"),
        ("llama3", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("mistral_tools", "[/INST]"),
        ("mistral_args", "[/INST]"),
    ] {
        let entry =
            expected["templates"].as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap();
        let case = entry["cases"].as_array().unwrap().iter().find(|case| case["chat"] == "api call").unwrap();
        let rendered = case["rendered"].as_str().unwrap();
        let answer = &rendered[rendered.find(before).unwrap() + before.len()..];
        let end =
            ["<|im_end|>", "<|eot_id|>", "</s>"].iter().filter_map(|end| answer.find(end)).min().unwrap();
        let format = template_named(&expected, name).reply_format(true);
        let mut parser =
            ReplyParser::new(&format, false, &[Tool { name: "get_weather".into(), parameters: None }]);
        let mut reply = Reply::default();
        parser.push(&answer[..end]).into_iter().for_each(|event| reply.take(event));
        parser.finish().into_iter().for_each(|event| reply.take(event));
        assert_eq!(reply.calls.len(), 1, "{name}: {reply:?}");
        let arguments: Value = serde_json::from_str(&reply.calls[0].arguments).unwrap();
        assert_eq!(arguments, chat["messages"][1]["tool_calls"][0]["function"]["arguments"]);
        assert_eq!((reply.calls[0].name.as_str(), reply.content.as_str()), ("get_weather", ""), "{name}");
    }
}

#[test]
fn special_tokens_are_visible_where_they_are_asked_for() {
    let tokenizer = Tokenizer::load(&dir().join("chatml/tokenizer.json"), 1 << 20).unwrap();
    let id = |text: &str| tokenizer.token_id(text).unwrap();
    let ids = [
        tokenizer.encode("a").unwrap(),
        vec![id("<|im_end|>"), id("<|im_start|>")],
        tokenizer.encode("b").unwrap(),
    ];
    let text = |visible: &[u32]| {
        let mut stream = Detokenizer::new(&tokenizer, &[]).with_visible(visible);
        let text: String = ids.concat().iter().map(|&id| stream.push(id).unwrap()).collect();
        text + &stream.finish().unwrap()
    };
    assert_eq!(text(&[]), "ab");
    assert_eq!(text(&[id("<|im_start|>")]), "a<|im_start|>b");
    assert_eq!(text(&[id("<|im_start|>"), id("<|im_end|>")]), "a<|im_end|><|im_start|>b");
}

#[test]
fn renders_as_transformers() {
    let expected = expected();
    let mut failed = Vec::new();
    let mut compare = |what: String, got: backstop::Result<backstop::text::Rendered>, case: &Value| match (
        got,
        case["rendered"].as_str(),
    ) {
        (Ok(got), Some(want)) if got.text() == want => {}
        (Err(_), None) => {}
        (got, want) => failed.push(format!("{what}\n  got {got:?}\n  want {want:?}")),
    };
    for entry in expected["templates"].as_array().unwrap() {
        let specials: BTreeMap<String, String> = serde_json::from_value(entry["specials"].clone()).unwrap();
        let source = entry["template"].as_str().unwrap();
        let template = ChatTemplate::from_source(Path::new("t.jinja"), source, specials).unwrap();
        for case in entry["cases"].as_array().unwrap() {
            let chat = &expected["chats"][case["chat"].as_str().unwrap()];
            let what = format!("{} {} {}", entry["name"], case["chat"], case["add_generation_prompt"]);
            compare(what.clone(), render(&template, &with_written_arguments(chat), case), case);
            compare(what, render(&template, chat, case), case);
        }
    }
    let (parts, prompt) = (&expected["chats"]["parts"], serde_json::json!({"add_generation_prompt": true}));
    for case in expected["snippets"].as_array().unwrap() {
        let source = case["template"].as_str().unwrap();
        let specials =
            [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let template = ChatTemplate::from_source(Path::new("t.jinja"), source, BTreeMap::from(specials));
        compare(source.to_owned(), template.and_then(|t| render(&t, parts, &prompt)), case);
    }
    assert!(failed.is_empty(), "{} differ:\n{}", failed.len(), failed.join("\n"));
}
