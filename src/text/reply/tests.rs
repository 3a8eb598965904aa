use super::*;
use crate::text::tools::mark::LOOKED_AT;
use crate::text::{CallFormat, samples};

fn format(tools: Arc<ToolFormat>) -> ReplyFormat {
    let reasoning = ReasoningFormat::of_source("<think>");
    ReplyFormat { reasoning, tools: Some(tools), channels: None }
}

fn tool(name: &str, properties: serde_json::Value) -> Tool {
    let parameters = Some(serde_json::json!({ "type": "object", "properties": properties }));
    Tool { name: name.into(), parameters }
}

fn tools() -> Vec<Tool> {
    let whole = serde_json::json!({ "type": ["integer", "null"] });
    let (text, list) = (serde_json::json!({ "type": "string" }), serde_json::json!({ "type": "array" }));
    vec![
        tool("get_weather", serde_json::json!({ "city": text, "days": whole })),
        tool("add", serde_json::json!({ "a": whole, "b": list, "c": { "type": "boolean" }, "d": {} })),
    ]
}

fn parse(format: &ReplyFormat, thinking: bool, pieces: &[&str]) -> (Vec<ReplyEvent>, Reply) {
    events(ReplyParser::new(format, thinking, &tools()), pieces)
}

fn events(mut parser: ReplyParser, pieces: &[&str]) -> (Vec<ReplyEvent>, Reply) {
    let (mut events, mut reply) = (Vec::new(), Reply::default());
    let mut take = |found: Vec<ReplyEvent>| {
        for event in found {
            reply.take(event.clone());
            ReplyEvent::add(&mut events, event);
        }
    };
    pieces.iter().for_each(|piece| take(parser.push(piece)));
    take(parser.finish());
    (events, reply)
}

/// The reply, which is the same however the text is cut in three, too.
fn reply(format: &ReplyFormat, thinking: bool, text: &str) -> Reply {
    let reply = cut_in_two(format, thinking, text);
    let events = parse(format, thinking, &[text]).0;
    let cuts: Vec<usize> = (0..=text.len()).filter(|&at| text.is_char_boundary(at)).collect();
    for &first in &cuts {
        for &second in cuts.iter().filter(|&&second| second >= first) {
            let pieces = [&text[..first], &text[first..second], &text[second..]];
            assert_eq!(parse(format, thinking, &pieces).0, events, "{pieces:?}");
        }
    }
    reply
}

/// The reply, which is the same however the text is cut in two, or in characters.
fn cut_in_two(format: &ReplyFormat, thinking: bool, text: &str) -> Reply {
    let (events, reply) = parse(format, thinking, &[text]);
    for at in (0..=text.len()).filter(|&at| text.is_char_boundary(at)) {
        let pieces = [&text[..at], &text[at..]];
        assert_eq!(parse(format, thinking, &pieces).0, events, "{pieces:?}");
    }
    let chars: Vec<String> = text.chars().map(String::from).collect();
    let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
    assert_eq!(parse(format, thinking, &chars).0, events, "{text:?}");
    for call in &reply.calls {
        assert!(serde_json::from_str::<serde_json::Map<_, _>>(&call.arguments).is_ok(), "{call:?}");
    }
    reply
}

fn of(content: &str, calls: &[(&str, &str)]) -> Reply {
    let calls = calls
        .iter()
        .map(|(name, arguments)| ToolCall { name: (*name).into(), arguments: (*arguments).into() });
    Reply { reasoning: String::new(), content: content.into(), calls: calls.collect() }
}

const PARIS: (&str, &str) = ("get_weather", r#"{"city": "Paris \"é\" {"}"#);
const ADD: (&str, &str) = ("add", r#"{"a":1,"b":[2.5,null]}"#);

/// Names that are no words are read where the tool has them, and nowhere else.
#[test]
fn arguments_have_the_names_of_their_tool() {
    let text = serde_json::json!({ "type": "string" });
    let properties =
        serde_json::json!({ "$filter": text, "first name": text, "f(x), y": { "type": "integer" } });
    let (tools, others) = ([tool("find", properties)], [tool("find", serde_json::json!({ "a": text }))]);
    let arguments = r#"{"$filter": "a", "first name": "b", "f(x), y": 3}"#;
    for (calls, written) in [
        (
            samples::parameters(),
            "<tool_call>\n<function=find>\n<parameter=$filter>\na\n</parameter>\n<parameter=first name>\nb\n</parameter>\n\
             <parameter=f(x), y>\n3\n</parameter>\n</function>\n</tool_call>",
        ),
        (
            samples::pairs(),
            "<tool_call>find\n<arg_key>$filter</arg_key>\n<arg_value>a</arg_value>\n<arg_key>first name</arg_key>\n\
             <arg_value>b</arg_value>\n<arg_key>f(x), y</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        ),
        (samples::python(), "<calls>[find($filter=\"a\", first name=\"b\", f(x), y=3)]</calls>"),
    ] {
        let format = format(calls);
        let (_, reply) = events(ReplyParser::new(&format, false, &tools), &[written]);
        assert_eq!(reply, of("", &[("find", arguments)]), "{written}");
        let (_, reply) = events(ReplyParser::new(&format, false, &others), &[written]);
        assert_eq!(reply, of(written, &[]));
    }
}

#[test]
fn hermes_calls_are_found() {
    let reply = |text: &str| reply(&format(samples::hermes()), false, text);
    let call = |(name, arguments): (&str, &str)| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let (paris, add) = (call(PARIS), call(ADD));
    assert_eq!(reply(&paris), of("", &[PARIS]));
    assert_eq!(reply(&format!("Let me see.\n{paris}\n{add}\n")), of("Let me see.", &[PARIS, ADD]));
    assert_eq!(reply(&format!("{paris}{add} Done. ")), of(" Done.", &[PARIS, ADD]));
    // The other order, other members, no arguments, no end mark.
    let other = r#"<tool_call>{"arguments": {"a":1,"b":[2.5,null]}, "id": 7, "name": "add"}</tool_call>"#;
    assert_eq!(reply(other), of("", &[ADD]));
    assert_eq!(reply(r#"<tool_call>{"name": "add"}"#), of("", &[("add", "{}")]));
    assert_eq!(
        reply(r#"<tool_call>{"name":"add","arguments":{}} and so on"#),
        of(" and so on", &[("add", "{}")])
    );
    // Arguments as the text of an object, and none.
    let written = r#"<tool_call>{"name": "add", "arguments": "{\"a\": 1}"}</tool_call>"#;
    assert_eq!(reply(written), of("", &[("add", r#"{"a": 1}"#)]));
    for none in ["null", "\"\"", "{}"] {
        let text = format!("<tool_call>{{\"arguments\": {none}, \"name\": \"add\"}}</tool_call>");
        assert_eq!(reply(&text), of("", &[("add", "{}")]), "{none}");
    }
}

#[test]
fn what_is_no_call_is_text() {
    for text in [
        "Use <tool_call> for calls.",
        "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        "<tool_call>\n{'name': 'add'}\n</tool_call>",
        "<tool_call>{\"name\": \"add\", \"arguments\": \"{\"}</tool_call>",
        "<tool_call>{\"name\": \"add\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": tru}}</tool_call>",
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}",
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"add\", \"name\": \"add\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": 1}</tool_call>",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call",
        "a < b <t <tool_ca <tool_call>",
        "  leading and trailing \n ",
        "",
    ] {
        assert_eq!(reply(&format(samples::hermes()), false, text), of(text, &[]), "{text:?}");
    }
    for text in [
        "{\"answer\": 42}",
        "{\"name\": \"Bob\", \"age\": 3}",
        "{\"name\": \"Bob\"}",
        "{\"name\": \"add\", \"age\": 3}",
        "{",
        "Here: {\"name\": \"add\", \"parameters\": {}}",
        "<|python_tag|>print(1)",
        " [1, 2]",
    ] {
        assert_eq!(reply(&format(samples::bare()), false, text), of(text, &[]), "{text:?}");
    }
    for text in [
        "[TOOL_CALLS] none",
        "[TOOL_CALLS]unknown[ARGS]{}",
        "[TOOL_CALLS]add[ARGS]1",
        "[TOOL_CALLS]add[ARGS]{\"a\": }",
        "[TOOL_CALLS]add[ARGX]{}",
        "[TOOL_CALLS]add",
        "[TOOL_CALLS][1]",
        "[TOOL_CALLS]add[CALL_ID]abc",
        "a [b] [TOOL_C",
    ] {
        for tools in [samples::list(), samples::args(), samples::with_ids()] {
            assert_eq!(reply(&format(tools), false, text), of(text, &[]), "{text:?}");
        }
    }
    // A call after what is none.
    let text = "<tool_call><tool_call>{\"name\":\"add\",\"arguments\":{}}</tool_call>";
    assert_eq!(reply(&format(samples::hermes()), false, text), of("<tool_call>", &[("add", "{}")]));
    // Without tools nothing is a call.
    let mut parser = ReplyParser::new(&format(samples::hermes()), false, &[]);
    let text = r#"<tool_call>{"name":"add","arguments":{}}</tool_call>"#;
    assert_eq!(parser.push(text), [ReplyEvent::Content(text.into())]);
}

#[test]
fn llama_calls_are_found() {
    let reply = |text: &str| reply(&format(samples::bare()), false, text);
    let call =
        |(name, arguments): (&str, &str)| format!("{{\"name\": \"{name}\", \"parameters\": {arguments}}}");
    let (paris, add) = (call(PARIS), call(ADD));
    assert_eq!(reply(&paris), of("", &[PARIS]));
    assert_eq!(reply(&format!("\n{paris}; {add}")), of("", &[PARIS, ADD]));
    assert_eq!(reply(&format!("{paris}\n{add}\n")), of("", &[PARIS, ADD]));
    assert_eq!(reply(&format!("{paris} {{\"x\": 1}}")), of(" {\"x\": 1}", &[PARIS]));
    assert_eq!(reply(&format!("<|python_tag|>{add}")), of("", &[ADD]));
    assert_eq!(reply(&format!("Sure. <|python_tag|>{add}")), of("Sure.", &[ADD]));
    let typed = r#"{"type": "function", "name": "add", "parameters": {}}"#;
    assert_eq!(reply(typed), of("", &[("add", "{}")]));
}

#[test]
fn mistral_calls_are_found() {
    let list = |text: &str| reply(&format(samples::list()), false, text);
    let call =
        |(name, arguments): (&str, &str)| format!("{{\"name\": \"{name}\", \"arguments\": {arguments}}}");
    let (paris, add) = (call(PARIS), call(ADD));
    assert_eq!(list(&format!("[TOOL_CALLS] [{paris}, {add}]")), of("", &[PARIS, ADD]));
    assert_eq!(list(&format!("So:\n[TOOL_CALLS][{paris}] \n")), of("So:", &[PARIS]));
    assert_eq!(list(&format!("[TOOL_CALLS][{add}")), of("", &[ADD]));
    let args = |(name, arguments): (&str, &str)| format!("[TOOL_CALLS]{name}[ARGS]{arguments}");
    let (paris, add) = (args(PARIS), args(ADD));
    for tools in [samples::args(), samples::with_ids()] {
        let reply = |text: &str| reply(&format(tools.clone()), false, text);
        assert_eq!(reply(&format!("{paris}{add}")), of("", &[PARIS, ADD]));
        assert_eq!(reply(&format!("Hm. {paris}\nOn.")), of("Hm.\nOn.", &[PARIS]));
    }
    let text = r#"[TOOL_CALLS]add[CALL_ID]a1b2c3d4e[ARGS] {"a": 1}"#;
    assert_eq!(reply(&format(samples::with_ids()), false, text), of("", &[("add", r#"{"a": 1}"#)]));
}

#[test]
fn named_calls_between_marks_are_found() {
    let reply = |text: &str| reply(&format(samples::numbered()), false, text);
    let call = |(name, arguments): (&str, &str), i: usize| {
        format!("<|call|>functions.{name}:{i}<|args|>{arguments}<|/call|>")
    };
    let (paris, add) = (call(PARIS, 0), call(ADD, 12));
    assert_eq!(reply(&format!("So. <|calls|>{paris}{add}<|/calls|>")), of("So.", &[PARIS, ADD]));
    assert_eq!(reply(&format!("<|calls|>\n{paris}\n{add}\n<|/calls|>\nOn.")), of("\nOn.", &[PARIS, ADD]));
    // Without what is around all of them.
    assert_eq!(reply(&paris), of("", &[PARIS]));
    for text in [
        "<|calls|><|call|>functions.remove:0<|args|>{}<|/call|>",
        "<|calls|><|call|>add<|args|>{}",
        "<|calls|>",
    ] {
        assert_eq!(reply(text), of(text, &[]), "{text:?}");
    }
}

#[test]
fn function_calls_are_found() {
    let reply = |text: &str| reply(&format(samples::function()), false, text);
    let call = |(name, arguments): (&str, &str)| format!("<function={name}>{arguments}</function>");
    let (paris, add) = (call(PARIS), call(ADD));
    assert_eq!(reply(&format!("{paris}{add}")), of("", &[PARIS, ADD]));
    assert_eq!(reply(&format!("So. {paris}\n{add} On.")), of("So. On.", &[PARIS, ADD]));
    assert_eq!(reply("<function=remove>{}</function>"), of("<function=remove>{}</function>", &[]));
}

#[test]
fn pairs_of_tags_are_arguments() {
    let reply = |text: &str| reply(&format(samples::pairs()), false, text);
    let set = |key: &str, value: &str| format!("<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n");
    let paris =
        format!("<tool_call>get_weather\n{}{}</tool_call>", set("city", "\nParis <b>\n"), set("days", "3"));
    let made = ("get_weather", r#"{"city": "\nParis <b>\n", "days": 3}"#);
    assert_eq!(reply(&paris), of("", &[made]));
    let add = format!("<tool_call>add{}</tool_call>", set("b", "['x', True, None]").replace('\n', ""));
    let added = ("add", r#"{"b": ["x",true,null]}"#);
    assert_eq!(reply(&format!("So.\n{paris}\n{add}\n")), of("So.", &[made, added]));
    assert_eq!(reply("<tool_call>add\n</tool_call>"), of("", &[("add", "{}")]));
    for text in ["<tool_call>remove\n</tool_call>", "<tool_call>add <b>", "<tool_call>{\"name\": \"add\"}"] {
        assert_eq!(reply(text), of(text, &[]), "{text:?}");
    }
}

#[test]
fn tags_say_what_is_a_string() {
    let reply = |text: &str| reply(&format(samples::typed()), false, text);
    let set = |key: &str, string: bool, value: &str| {
        format!("<param name=\"{key}\" string=\"{string}\">{value}</param>\n")
    };
    // The schema says otherwise of each.
    let text = format!(
        "<calls>\n<invoke name=\"add\">\n{}{}</invoke>\n</calls>",
        set("a", true, "1"),
        set("d", false, "[2]")
    );
    assert_eq!(reply(&text), of("", &[("add", r#"{"a": "1", "d": [2]}"#)]));
}

/// Two calls in every format are the first one where one is asked for, and what follows it is not reported.
#[test]
fn a_single_call_ends_the_answer() {
    for calls in samples::all() {
        let call = |name: &str| match &calls.call {
            CallFormat::Object(object) => format!("{}{name}{}{{}}}}", object.head, object.middle),
            CallFormat::Named(middle) => format!("{name}{middle}{{}}"),
            CallFormat::Tagged(tags) => format!("{name}{}{}", tags.open, tags.close),
            CallFormat::Python => format!("{name}()"),
        };
        let call = |name: &str| format!("{}{}{}", calls.begin, call(name), calls.end);
        let separator = calls.separator.as_deref().unwrap_or("\n");
        let text =
            format!("{}{}{separator}{}{} On.", calls.open, call("add"), call("get_weather"), calls.close);
        let text = text.replace(crate::text::ID, "a1b2c3d4e").replace(crate::text::INDEX, "0");
        let format = ReplyFormat { tools: Some(calls.clone()), ..ReplyFormat::default() };
        let (_, all) = parse(&format, false, &[&text]);
        assert_eq!(all.calls.len(), 2, "{calls} {text:?} {all:?}");
        let mut parser = ReplyParser::single_call(&format, false, &tools());
        let (mut whole, mut done) = (Reply::default(), None);
        for (at, c) in text.char_indices() {
            parser.push(c.encode_utf8(&mut [0; 4])).into_iter().for_each(|event| whole.take(event));
            done = done.or(parser.is_done().then_some(at));
        }
        parser.finish().into_iter().for_each(|event| whole.take(event));
        assert_eq!(whole, of("", &[("add", "{}")]), "{text:?}");
        assert!(text[..done.unwrap()].contains("add") && !text[..done.unwrap()].contains("get_weather"));
    }
}

#[test]
fn arguments_are_told_as_they_come() {
    let mut parser = ReplyParser::new(&format(samples::hermes()), false, &tools());
    assert_eq!(parser.push("x <tool_call>{\"name\": \"add\", \"argu"), [ReplyEvent::Content("x".into())]);
    let (index, name) = (0, "add".to_owned());
    let told = parser.push("ments\": {\"a\": \"b");
    let text = "{\"a\": \"b".to_owned();
    assert_eq!(told, [ReplyEvent::Call { index, name }, ReplyEvent::Arguments { index, text }]);
    let told = parser.push("c\"}}");
    let text = "c\"}".to_owned();
    assert_eq!(told, [ReplyEvent::Arguments { index, text }, ReplyEvent::CallEnd { index }]);
    assert!(parser.push("</tool_call>").is_empty() && parser.finish().is_empty());
}

#[test]
fn thoughts_are_split_from_the_answer() {
    let hermes = &format(samples::hermes());
    let thought = |reasoning: &str, of: Reply| Reply { reasoning: reasoning.into(), ..of };
    let text = "<think>\nHm.\n\nWell <b>.\n</think>\n\nYes.";
    assert_eq!(reply(hermes, false, text), thought("Hm.\n\nWell <b>.", of("Yes.", &[])));
    assert_eq!(reply(hermes, true, "Hm.\n</think>\n\nYes."), thought("Hm.", of("Yes.", &[])));
    assert_eq!(reply(hermes, true, "\nHm"), thought("Hm", of("", &[])), "cut in the middle");
    assert_eq!(reply(hermes, true, "Hm\n</thi"), thought("Hm\n</thi", of("", &[])));
    assert_eq!(reply(hermes, false, "<think>\n\n</think>\n\nYes."), of("Yes.", &[]));
    for text in ["No <think> here</think>", "<thin", "  <", "</think>x"] {
        assert_eq!(reply(hermes, false, text), of(text, &[]));
    }
    // What looks like a call within thoughts is thought.
    let call = r#"<tool_call>{"name":"add","arguments":{}}</tool_call>"#;
    let text = format!("<think>{call}</think>\n{call}");
    assert_eq!(reply(hermes, false, &text), thought(call, of("", &[("add", "{}")])));
    let reasoning = ReasoningFormat::of_source("[THINK]");
    let magistral = &ReplyFormat { reasoning, tools: Some(samples::args()), channels: None };
    let text = "[THINK]a[b[/THINK][TOOL_CALLS]add[ARGS]{}";
    assert_eq!(reply(magistral, false, text), thought("a[b", of("", &[("add", "{}")])));
}

#[test]
fn xml_calls_are_found() {
    let reply = |text: &str| reply(&format(samples::parameters()), false, text);
    let call = |body: &str| format!("<tool_call>\n<function={body}</function>\n</tool_call>");
    let set = |key: &str, value: &str| format!("<parameter={key}>\n{value}\n</parameter>\n");
    let paris = call(&format!("get_weather>\n{}{}", set("city", "Paris \"é\"\n{<b>\t"), set("days", " 3 ")));
    let made = ("get_weather", r#"{"city": "Paris \"é\"\n{<b>\t", "days": 3}"#);
    assert_eq!(reply(&paris), of("", &[made]));
    let numbers = set("a", "None") + &set("b", "[1, \"x\"]") + &set("c", "True") + &set("d", "5");
    let add = call(&format!("add>\n{numbers}"));
    let added = ("add", r#"{"a": null, "b": [1,"x"], "c": true, "d": "5"}"#);
    assert_eq!(reply(&format!("Wait.\n{paris}\n{add}")), of("Wait.", &[made, added]));
    // What is no JSON is a string; what has no end of line, empty and unknown is taken as it is.
    let odd = call("add><parameter=a>three</parameter><parameter=z></parameter><parameter=b>\n</parameter>");
    assert_eq!(reply(&odd), of("", &[("add", r#"{"a": "three", "z": "", "b": ""}"#)]));
    assert_eq!(reply(&call("add>\n")), of("", &[("add", "{}")]));
    // Without the mark around it.
    let (bare, end) = (paris.strip_prefix("<tool_call>\n").unwrap(), "\n</tool_call>");
    assert_eq!(reply(bare), of("", &[made]));
    assert_eq!(reply(&format!("So.\n{}", bare.strip_suffix(end).unwrap())), of("So.", &[made]));
    for text in [
        call("remove>\n"),
        call("add>\nbecause"),
        call(&format!("add>\n{}{}", set("a", "1"), set("a", "2"))),
        call("add>\n<parameter=>"),
        call("add>\n<parameter=a b>"),
        "<tool_call>\n{\"name\": \"add\"}</tool_call>".to_owned(),
        format!("<tool_call>\n<function=add>\n{}", set("a", "1")),
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</param".to_owned(),
        "<tool_call>\n<function=add".to_owned(),
    ] {
        let reply = reply(&text);
        assert_eq!((reply.content.trim_end(), reply.calls.len()), (text.trim_end(), 0), "{reply:?}");
    }
}

#[test]
fn prompts_begin_thoughts() {
    let format = ReasoningFormat::of_source("</think>").unwrap();
    assert!(format.is_open("<|im_start|>assistant\n<think>\n") && !format.is_open("<think>\n\n</think>\n\n"));
}

/// Random texts of fragments: the same events for every cutting, and no character is lost.
#[test]
fn nothing_is_lost_of_random_texts() {
    let fragments = [
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "{\"name\": \"add\", \"arguments\": ",
        "{\"a\": 1}",
        "}",
        "{",
        "[",
        "]",
        " ",
        "\n",
        "é",
        "\"",
        "<think>",
        "</think>",
        "[TOOL_CALLS]",
        "add",
        "[ARGS]",
        "<|python_tag|>",
        "<function=",
        "<parameter=a>\n",
        "\n</parameter>",
        "</function>",
        "<arg_key>",
        "; ",
        ", ",
        "x",
        "1",
    ];
    let mut state = 1u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let formats: Vec<ReplyFormat> = samples::all().into_iter().map(format).collect();
    let visible = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    for _ in 0..3000 {
        let text: String = (0..1 + below(9)).map(|_| fragments[below(fragments.len())]).collect();
        for format in &formats {
            let (events, whole) = parse(format, false, &[&text]);
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(parse(format, false, &chars).0, events, "{text:?}");
            if whole.calls.is_empty()
                && whole.reasoning.is_empty()
                && !text.trim_start().starts_with("<think>")
            {
                assert_eq!(visible(&whole.content), visible(&text), "{format:?}");
            }
        }
    }
}

#[path = "tests/atem.rs"]
mod atem;
#[path = "tests/formats.rs"]
mod formats;
#[path = "tests/harmony.rs"]
mod harmony;
