use std::path::Path;

use serde_json::json;

use super::*;
use crate::sample::GrammarCompiler;
use crate::text::ReasoningFormat;
use crate::text::{Reply, ReplyParser, samples};

/// A vocabulary in which `special` marks are special tokens, and the others text.
fn tokenizer(special: &[&str]) -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text/chatml/tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    let known: Vec<Value> = added.iter().map(|token| token["content"].clone()).collect();
    for mark in special.iter().filter(|mark| !known.contains(&Value::from(**mark))) {
        added.push(json!({ "id": 300 + added.len(), "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }));
    }
    for token in added {
        token["special"] =
            (token["special"] == true || special.contains(&token["content"].as_str().unwrap())).into();
    }
    Tokenizer::from_bytes(&path, json.to_string().as_bytes(), 1 << 20).unwrap()
}

fn tools() -> Vec<Tool> {
    let weather = json!({ "type": "object", "properties": { "city": { "enum": ["Paris", "Zürich"] }, "days": { "type": "integer",
        "minimum": 1, "maximum": 9 } }, "required": ["city"], "additionalProperties": false });
    let add = json!({ "properties": { "a": { "type": "boolean" } }, "required": ["a"], "additionalProperties": false });
    vec![
        Tool { name: "get_weather".into(), parameters: Some(weather) },
        Tool { name: "add".into(), parameters: Some(add) },
        Tool { name: "noop".into(), parameters: Some(json!({ "type": "object", "maxProperties": 0 })) },
    ]
}

/// The text of a random walk through the grammar, marks included; none where it does not end.
fn walk(tokenizer: &Tokenizer, grammar: &Grammar, seed: u64) -> Option<String> {
    let eos = tokenizer.token_id("<|im_end|>").unwrap();
    let compiler = GrammarCompiler::new(tokenizer, &[eos]).unwrap();
    let mut constraint = compiler.compile_checked(grammar).unwrap_or_else(|e| panic!("{e}: {grammar:?}"));
    let (mut bytes, mut state) = (Vec::new(), seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    for _ in 0..400 {
        let mask = constraint.mask().unwrap();
        let allowed: Vec<u32> = (0..tokenizer.vocab_size() as u32).filter(|&t| mask.allows(t)).collect();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Every other choice is a mark or an end where one is allowed, so that thoughts come to theirs.
        let marks: Vec<u32> = allowed.iter().copied().filter(|&t| tokenizer.is_special(t)).collect();
        let from = if marks.is_empty() || state >> 40 & 1 == 0 { &allowed } else { &marks };
        let token = from[(state >> 20) as usize % from.len()];
        if token != eos {
            bytes.extend(tokenizer.token_bytes(token).unwrap().unwrap());
            constraint.accept(token).unwrap();
        }
        if token == eos || constraint.is_complete() {
            return Some(String::from_utf8(bytes).unwrap());
        }
    }
    None
}

/// A format of no calls, whose model thinks.
fn thinks() -> ReplyFormat {
    let reasoning = ReasoningFormat { open: "<think>".into(), close: "</think>".into() };
    ReplyFormat { reasoning: Some(reasoning), ..ReplyFormat::default() }
}

#[test]
fn required_calls_are_calls_of_each_format() {
    let (all, mut walks, mut ended) = (tools(), 0, 0);
    let marks = ["<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"];
    let more = ["<|calls|>", "<|/calls|>", "<|call|>", "<|args|>", "<|/call|>", "<arg_key>", "</arg_key>"];
    let marks = [&marks[..], &more, &["<arg_value>", "</arg_value>"]].concat();
    for special in [&marks[..], &[]] {
        let tokenizer = tokenizer(special);
        for calls in samples::all() {
            for (thinks, thinking, parallel) in [
                (None, false, true),
                (None, false, false),
                (thinks().reasoning, true, true),
                (thinks().reasoning, false, false),
            ] {
                let format = ReplyFormat { reasoning: thinks, tools: Some(calls.clone()), channels: None };
                // An object without members, which tags cannot say of one that may have any.
                let each = matches!(calls.call, CallFormat::Tagged(_) | CallFormat::Python);
                let all = if each { &all[..2] } else { &all[..] };
                let named = std::slice::from_ref(&all[1]);
                let tools = if parallel { all } else { named };
                let wanted = ReplyGrammar { format: format.clone(), thinking, tools, parallel, text: None };
                let grammar = wanted.grammar(&tokenizer).unwrap();
                for seed in 0..6 {
                    walks += 1;
                    let Some(text) = walk(&tokenizer, &grammar, seed) else { continue };
                    ended += 1;
                    let (mut parser, mut reply) =
                        (ReplyParser::new(&format, thinking, tools), Reply::default());
                    parser.push(&text).into_iter().for_each(|event| reply.take(event));
                    parser.finish().into_iter().for_each(|event| reply.take(event));
                    assert!(reply.content.is_empty(), "{calls} {text:?} {reply:?}");
                    let single = !parallel || calls.separator.is_none();
                    assert!(
                        !reply.calls.is_empty() && (!single || reply.calls.len() == 1),
                        "{text:?} {reply:?}"
                    );
                    for call in reply.calls {
                        let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
                        let good = match call.name.as_str() {
                            "add" => arguments["a"].is_boolean(),
                            "noop" => arguments == json!({}),
                            _ => ["Paris", "Zürich"].contains(&arguments["city"].as_str().unwrap()),
                        };
                        assert!(good, "{text:?}");
                    }
                }
            }
        }
    }
    assert!(ended * 2 >= walks, "{ended} of {walks} came to their end");
}

#[test]
fn answers_in_harmony_are_messages() {
    let marks =
        ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"];
    let (format, all) = (samples::shown(samples::HARMONY), tools());
    let text = Grammar::Regex("a{3}".into());
    for special in [&marks[..], &[]] {
        let (tokenizer, mut walks, mut ended) = (tokenizer(special), 0, 0);
        // Those that are tokens have to reach the parser.
        let visible: Vec<Option<u32>> = format.visible(&tokenizer).into_iter().map(Some).collect();
        assert!(special.iter().all(|mark| visible.contains(&tokenizer.token_id(mark))));
        assert_eq!(visible.len(), special.len());
        for (tools, text) in [(&all[..], None), (&all[..0], Some(&text)), (&all[..], Some(&text))] {
            for thinking in [false, true] {
                let wanted = ReplyGrammar { format: format.clone(), thinking, tools, parallel: true, text };
                let grammar = wanted.grammar(&tokenizer).unwrap();
                for seed in 0..8 {
                    walks += 1;
                    let Some(written) = walk(&tokenizer, &grammar, seed) else { continue };
                    ended += 1;
                    let (mut parser, mut reply) =
                        (ReplyParser::new(&format, thinking, tools), Reply::default());
                    parser.push(&written).into_iter().for_each(|event| reply.take(event));
                    parser.finish().into_iter().for_each(|event| reply.take(event));
                    let said = text.is_some() && reply.content == "aaa" && reply.calls.is_empty();
                    let called = !tools.is_empty() && reply.content.is_empty() && reply.calls.len() == 1;
                    assert!(said || called, "{written:?} {reply:?}");
                }
            }
        }
        // Where marks are no tokens, a thought hardly ever comes to its end by chance.
        let least = if special.is_empty() { walks / 8 } else { walks / 2 };
        assert!(ended >= least, "{ended} of {walks} came to their end");
    }
    let unknown = ReplyFormat { tools: None, ..format };
    let wanted = ReplyGrammar { format: unknown, tools: &all, ..Default::default() };
    let refused = wanted.grammar(&tokenizer(&[]));
    assert!(matches!(refused, Err(Error::Option { option: "tool_choice", .. })));
}

#[test]
fn answers_in_atem_are_messages() {
    let marks = ["<|start|>", "<|message|>", "<|eom|>", "<|eot|>"];
    // Of arguments between tags nothing is enforced together.
    let (format, all) = (samples::shown(samples::ATEM), &tools()[..2]);
    let text = Grammar::Regex("a{3}".into());
    let mut most = 0;
    for special in [&marks[..], &[]] {
        let (tokenizer, mut walks, mut ended) = (tokenizer(special), 0, 0);
        assert_eq!(format.visible(&tokenizer).len(), special.len());
        for (tools, text, parallel) in
            [(all, None, true), (all, None, false), (&all[..0], Some(&text), true), (all, Some(&text), true)]
        {
            for thinking in [false, true] {
                let wanted = ReplyGrammar { format: format.clone(), thinking, tools, parallel, text };
                let grammar = wanted.grammar(&tokenizer).unwrap();
                for seed in 0..8 {
                    walks += 1;
                    let Some(written) = walk(&tokenizer, &grammar, seed) else { continue };
                    ended += 1;
                    let (mut parser, mut reply) =
                        (ReplyParser::new(&format, thinking, tools), Reply::default());
                    parser.push(&written).into_iter().for_each(|event| reply.take(event));
                    parser.finish().into_iter().for_each(|event| reply.take(event));
                    let calls = reply.calls.len();
                    let said = text.is_some() && reply.content == "aaa" && calls == 0;
                    let called = !tools.is_empty() && reply.content.is_empty() && calls > 0;
                    assert!(said || called, "{written:?} {reply:?}");
                    assert!(parallel || calls == 1, "{written:?}");
                    most = most.max(calls);
                }
            }
        }
        let least = if special.is_empty() { walks / 8 } else { walks / 2 };
        assert!(ended >= least, "{ended} of {walks} came to their end");
    }
    assert!(most > 1, "{most} calls in an answer");
    let unknown = ReplyFormat { tools: None, ..format };
    let wanted = ReplyGrammar { format: unknown, tools: all, ..Default::default() };
    let refused = wanted.grammar(&tokenizer(&[]));
    assert!(matches!(refused, Err(Error::Option { option: "tool_choice", .. })));
}

/// A string ends where the mark behind it stands, be that a token or text.
#[test]
fn strings_between_tags_are_any_text() {
    let schema = json!({ "type": "object", "properties": { "x": { "type": "string" } }, "required": ["x"] });
    let tools = [Tool { name: "say".into(), parameters: Some(schema) }];
    for special in [&["</arg_value>"][..], &[]] {
        let tokenizer = tokenizer(special);
        for calls in [samples::pairs(), samples::parameters(), samples::typed()] {
            let format = ReplyFormat { tools: Some(calls), ..ReplyFormat::default() };
            let wanted = ReplyGrammar { format: format.clone(), tools: &tools, ..Default::default() };
            let grammar = wanted.grammar(&tokenizer).unwrap();
            for seed in 0..6 {
                let Some(text) = walk(&tokenizer, &grammar, seed) else { continue };
                let (mut parser, mut reply) = (ReplyParser::new(&format, false, &tools), Reply::default());
                parser.push(&text).into_iter().for_each(|event| reply.take(event));
                parser.finish().into_iter().for_each(|event| reply.take(event));
                let arguments: Value = serde_json::from_str(&reply.calls[0].arguments).unwrap();
                assert!(arguments["x"].is_string() && reply.content.is_empty(), "{text:?} {reply:?}");
            }
        }
    }
}

/// What is enforced is read back, whatever the arguments are called; what would not be is refused by name.
#[test]
fn arguments_of_any_name_are_read_back() {
    let (tokenizer, flag, mut ended) = (tokenizer(&[]), json!({ "type": "boolean" }), 0);
    let schema = json!({ "type": "object", "properties": { "$filter": flag, "first name": flag },
        "required": ["$filter", "first name"], "additionalProperties": false });
    let tools = [Tool { name: "find".into(), parameters: Some(schema) }];
    for calls in samples::all() {
        let format = ReplyFormat { tools: Some(calls), ..ReplyFormat::default() };
        let wanted = ReplyGrammar { format: format.clone(), tools: &tools, ..Default::default() };
        let grammar = wanted.grammar(&tokenizer).unwrap();
        for seed in 0..4 {
            let Some(text) = walk(&tokenizer, &grammar, seed) else { continue };
            ended += 1;
            let (mut parser, mut reply) = (ReplyParser::new(&format, false, &tools), Reply::default());
            parser.push(&text).into_iter().for_each(|event| reply.take(event));
            parser.finish().into_iter().for_each(|event| reply.take(event));
            assert!(reply.content.is_empty() && reply.calls.len() == 1, "{text:?} {reply:?}");
            let arguments: Value = serde_json::from_str(&reply.calls[0].arguments).unwrap();
            assert!(arguments["$filter"].is_boolean() && arguments["first name"].is_boolean(), "{text:?}");
        }
    }
    assert!(ended > 13, "{ended} came to their end");
    for (calls, key) in [
        (samples::parameters(), "a>b"),
        (samples::parameters(), " a"),
        (samples::pairs(), "a<b"),
        (samples::typed(), "a\"b"),
        (samples::python(), "a=b"),
        (samples::python(), ") a"),
        (samples::python(), ""),
    ] {
        let schema = json!({ "type": "object", "properties": { (key): flag } });
        let tools = [Tool { name: "f".into(), parameters: Some(schema) }];
        let format = ReplyFormat { tools: Some(calls), ..ReplyFormat::default() };
        match (ReplyGrammar { format, tools: &tools, ..Default::default() }).grammar(&tokenizer) {
            Err(Error::Schema { path, keyword, .. }) => {
                assert_eq!((path, keyword.as_str()), (format!("tool f: #/properties/{key}"), "properties"));
            }
            other => panic!("{key:?}: {other:?}"),
        }
    }
}

#[test]
fn a_format_holds_for_the_answer_and_not_for_thoughts() {
    let tokenizer = tokenizer(&["<think>", "</think>"]);
    let schema = json!({ "type": "object", "properties": { "ok": { "type": "boolean" } }, "required": ["ok"], "additionalProperties": false });
    let thoughts = ReplyFormat { tools: Some(samples::hermes()), ..thinks() };
    let texts = [
        (Grammar::JsonSchema(schema), "{"),
        (Grammar::Regex("a{3}/b?".into()), "aaa/"),
        (Grammar::Lark("start: \"x\" y\ny: /[0-9]{2}/".into()), "x"),
        (Grammar::JsonObject, "{"),
    ];
    for (grammar, begins) in &texts {
        for thinking in [true, false] {
            let format = thoughts.clone();
            let wanted = ReplyGrammar { format, thinking, text: Some(grammar), ..Default::default() };
            let made = wanted.grammar(&tokenizer).unwrap();
            for seed in 0..4 {
                let Some(text) = walk(&tokenizer, &made, seed) else { continue };
                let (mut parser, mut reply) = (ReplyParser::new(&thoughts, thinking, &[]), Reply::default());
                parser.push(&text).into_iter().for_each(|event| reply.take(event));
                parser.finish().into_iter().for_each(|event| reply.take(event));
                assert!(reply.content.starts_with(begins), "{text:?}");
            }
        }
        // Without marks of thoughts, the grammar itself.
        let plain = ReplyGrammar { text: Some(grammar), ..Default::default() };
        assert_eq!(plain.grammar(&tokenizer).unwrap(), *grammar);
        // Beside tools that may be called, one or the other.
        let all = tools();
        let either = ReplyGrammar {
            format: ReplyFormat { reasoning: None, ..thoughts.clone() },
            tools: &all,
            text: Some(grammar),
            ..plain
        };
        let made = either.grammar(&tokenizer).unwrap();
        let walks: Vec<String> = (0..24).filter_map(|seed| walk(&tokenizer, &made, seed)).collect();
        let calls = walks.iter().filter(|text| text.starts_with("<tool_call>")).count();
        assert!(
            walks.iter().all(|text| text.starts_with("<tool_call>") || text.starts_with(begins)),
            "{walks:?}"
        );
        assert!(calls > 0 && calls < 24, "{walks:?}");
    }
}

#[test]
fn what_cannot_be_enforced_of_a_tool_is_named() {
    let tokenizer = tokenizer(&[]);
    let tools = [Tool { name: "f".into(), parameters: Some(json!({ "type": "object", "not": {} })) }];
    let hermes = ReplyFormat { tools: Some(samples::hermes()), ..ReplyFormat::default() };
    match (ReplyGrammar { format: hermes, tools: &tools, ..Default::default() }).grammar(&tokenizer) {
        Err(Error::Schema { path, keyword, .. }) => {
            assert_eq!((path.as_str(), keyword.as_str()), ("tool f: #", "not"))
        }
        other => panic!("{other:?}"),
    }
    let unknown = ReplyGrammar { tools: &tools, ..Default::default() }.grammar(&tokenizer);
    assert!(matches!(unknown, Err(Error::Option { option: "tool_choice", .. })));
}
