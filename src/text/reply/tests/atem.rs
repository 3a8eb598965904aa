//! Answers in Meta's ATEM, as Muse Glimmer writes them.

use std::sync::OnceLock;

use super::*;

fn muse() -> &'static ReplyFormat {
    static FORMAT: OnceLock<ReplyFormat> = OnceLock::new();
    FORMAT.get_or_init(|| samples::shown(samples::ATEM))
}

/// The reply to `text`, which is the same however that is cut in two, or in characters.
fn told(text: &str) -> Reply {
    cut_in_two(muse(), false, text)
}

const NEXT: &str = "<|start|>assistant";

fn message(to: &str, text: &str) -> String {
    format!(" to={to}<|message|>{text}<|eom|>")
}

fn thought(reasoning: &str, of: Reply) -> Reply {
    Reply { reasoning: reasoning.into(), ..of }
}

fn set(key: &str, value: &str) -> String {
    format!("<atem:parameter name=\"{key}\">{value}</atem:parameter>\n")
}

fn invoke(name: &str, arguments: &str) -> String {
    format!("<atem:invoke name=\"{name}\">\n{arguments}</atem:invoke>\n")
}

/// A block of calls.
fn block(invokes: &str) -> String {
    format!("<atem:function_calls>\n{invokes}</atem:function_calls>")
}

#[test]
fn messages_are_told_by_whom_they_are_to() {
    let (hm, yes) = (message("self", "Hm.\n <b>"), " to=user<|message|> Yes.\n");
    for end in ["", "<|eot|>", "<|eom|>"] {
        assert_eq!(told(&format!("{hm}{NEXT}{yes}{end}")), thought("Hm.\n <b>", of(" Yes.\n", &[])), "{end}");
    }
    assert_eq!(told(&format!("<|message|>{yes}")), of(yes, &[]), "to nobody");
    assert_eq!(told(" to=self<|message|>Hm"), thought("Hm", of("", &[])));
    // Several of a kind are apart. A message whose end is missing ends where the next one begins.
    let look = message("user", "I look.");
    let all = [hm.as_str(), &look, &hm, yes].join(NEXT);
    assert_eq!(told(&all), thought("Hm.\n <b>\n\nHm.\n <b>", of("I look.\n\n Yes.\n", &[])));
    let open = hm.strip_suffix("<|eom|>").unwrap();
    assert_eq!(told(&format!("{open}{NEXT}{yes}")), thought("Hm.\n <b>", of(" Yes.\n", &[])));
    assert_eq!(told(&format!("{hm}{yes}")), thought("Hm.\n <b>", of(" Yes.\n", &[])));
    // A header that never came to its message.
    for cut in
        ["<|start|>", "<|start|>assist", "<|start|>assistant to=us", "<|start|>assistant to=user<|mess"]
    {
        assert_eq!(told(&format!("{hm}{cut}")), thought("Hm.\n <b>", of("", &[])), "{cut}");
    }
    for cut in [" to=", " to=us", " to=self", " to=get_weather<|mess"] {
        assert_eq!(told(cut), of("", &[]), "{cut}");
    }
    // A prompt that begins a thought.
    assert!(muse().reasoning.as_ref().unwrap().is_open("<|start|>assistant to=self<|message|>"));
    let rest = format!("m.<|eom|>{NEXT}{yes}");
    assert_eq!(reply(muse(), true, &rest), thought("m.", of(" Yes.\n", &[])));
}

#[test]
fn messages_to_tools_hold_calls() {
    let paris =
        block(&invoke("get_weather", &[set("city", " Paris \"é\"\n{<b> "), set("days", "3")].concat()));
    let made = ("get_weather", r#"{"city": " Paris \"é\"\n{<b> ", "days": 3}"#);
    let add = block(&invoke("add", &[set("b", "[2.5, null]"), set("c", "true"), set("d", "5")].concat()));
    let added = ("add", r#"{"b": [2.5,null], "c": true, "d": "5"}"#);
    for end in ["", "<|eot|>", "<|eom|>", "\n<|eot|>"] {
        assert_eq!(told(&format!(" to=get_weather<|message|>{paris}{end}")), of("", &[made]), "{end}");
    }
    let all = [
        message("self", "Hm."),
        message("user", "I look."),
        message("get_weather", &paris),
        message("add", &format!("\n{add}\n")),
        message("user", "On."),
    ];
    assert_eq!(told(&all.join(NEXT)), thought("Hm.", of("I look.\n\nOn.", &[made, added])));
    // Several in a block, or without one; to nobody, to a space of names that the tool is in.
    let both = [
        paris.strip_suffix("</atem:function_calls>").unwrap(),
        add.strip_prefix("<atem:function_calls>\n").unwrap(),
    ];
    assert_eq!(told(&message("get_weather", &both.concat())), of("", &[made, added]));
    assert_eq!(told(&format!("<|message|>{}", invoke("add", ""))), of("", &[("add", "{}")]));
    assert_eq!(told(&format!("<|message|>So.\n{paris} On.")), of("So. On.", &[made]));
    let tools = [tool("web.search", serde_json::json!({ "q": { "type": "string" } }))];
    let search = block(&invoke("web.search", &set("q", "x")));
    // To whom a message is does not say which tool is called.
    for to in ["web", "web.search", "web.search.search", "functions.web.search", "tools"] {
        let (_, reply) = events(ReplyParser::new(muse(), false, &tools), &[&message(to, &search)]);
        assert_eq!(reply, of("", &[("web.search", r#"{"q": "x"}"#)]), "{to}");
    }
    // Marks within a call are a part of it.
    let odd = "<|eom|>\n<|start|>assistant to=user<|message|></atem:invoke> <|eot|>";
    let text = format!(
        "{}{NEXT}{}",
        message("get_weather", &block(&invoke("get_weather", &set("city", odd)))),
        message("user", "On.")
    );
    let arguments = serde_json::json!({ "city": odd }).to_string().replace("\":\"", "\": \"");
    assert_eq!(told(&text), of("On.", &[("get_weather", &arguments)]));
}

#[test]
fn what_is_no_call_is_text() {
    let call = block(&invoke("add", ""));
    for text in [
        "Yes.".to_owned(),
        " to be".to_owned(),
        "to=5 of <b>".to_owned(),
        "  ".to_owned(),
        String::new(),
        "<|start|>user<|message|>Hm".to_owned(),
        "<|channel|>final<|message|>Hm".to_owned(),
        // To somebody who is no tool.
        " to=remove<|message|>Hm".to_owned(),
        " to=add.add<|message|> Hm\n".to_owned(),
        " to=<|message|>Hm".to_owned(),
        " to=remove<|message|> \n".to_owned(),
    ] {
        assert_eq!(told(&text), of(&text, &[]), "{text:?}");
    }
    // In a thought, and to the reader.
    assert_eq!(told(&message("self", &call)), thought(&call, of("", &[])));
    assert_eq!(told(&message("user", &call)), of(&call, &[]));
    for bad in [
        block(&invoke("remove", "")),
        block(&invoke("add", &[set("a", "1"), set("a", "2")].concat())),
        "<atem:function_calls>\n<atem:invoke name=\"add\">\nno".to_owned(),
        "<atem:function_calls>\n<atem:invoke name=\"add\">\n<atem:parameter name=\"a\">1".to_owned(),
        "<atem:function_calls>\n<atem:inv".to_owned(),
        "<atem:parameter name=\"a\">1</atem:parameter>".to_owned(),
        "none".to_owned(),
    ] {
        let reply = told(&format!(" to=add<|message|>{bad}"));
        assert_eq!(reply, of(&bad, &[]), "{bad:?}");
    }
    // A call that was not ended takes no other message into it.
    let paris = set("city", "Paris");
    let open = format!("<atem:function_calls>\n<atem:invoke name=\"get_weather\">\n{paris}");
    let add = message("add", &block(&invoke("add", "")));
    let text = format!("{}{NEXT}{add}", message("get_weather", &open));
    assert_eq!(told(&text), of(&open, &[("add", "{}")]));
    let text = format!("{}{NEXT}{}", message("get_weather", &open), message("user", "On."));
    assert_eq!(told(&text), of(&format!("{open}\n\nOn."), &[]));
    assert_eq!(told(&format!(" to=get_weather<|message|>{open}<|eot|>")), of(&open, &[]));
    // What follows it is told.
    let text = format!("{}{NEXT}{}", message("add", "none"), message("user", "Yes."));
    assert_eq!(told(&text), of("none\n\nYes.", &[]));
    // Without tools nothing is a call.
    let mut parser = ReplyParser::new(muse(), false, &[]);
    let text = format!(" to=add<|message|>{call}");
    let found: Vec<ReplyEvent> = [parser.push(&text), parser.finish()].concat();
    assert_eq!(found, [ReplyEvent::Content(text)]);
}

/// A tool may have the reader's name, and one's own.
#[test]
fn tools_may_have_the_names_of_those_who_read() {
    let tools = ["user", "self"].map(|name| tool(name, serde_json::json!({})));
    for (to, name) in [(" to=user", "user"), ("", "self"), (" to=user", "self")] {
        let text = format!("{to}<|message|>{}", block(&invoke(name, "")));
        let (_, reply) = events(ReplyParser::new(muse(), false, &tools), &[&text]);
        assert_eq!(reply, of("", &[(name, "{}")]), "{to}");
    }
}

/// White space without an end is text, and is not looked through again.
#[test]
fn endless_white_space_is_text() {
    let text = " ".repeat(200_000);
    let before = LOOKED_AT.get();
    let (_, reply) = events(ReplyParser::new(muse(), false, &tools()), &[&text]);
    assert_eq!(reply, of(&text, &[]));
    let looked_at = LOOKED_AT.get() - before;
    assert!((text.len() / 2..2 * text.len()).contains(&looked_at), "{looked_at} bytes");
}

#[test]
fn a_call_is_told_as_it_comes() {
    let mut parser = ReplyParser::single_call(muse(), false, &tools());
    assert!(parser.push(" to=add<|message|><atem:function_calls>\n<atem:invoke name=\"add").is_empty());
    let (index, name) = (0, "add".to_owned());
    let told = parser.push("\">\n<atem:parameter name=\"d\">ab");
    let text = "{\"d\": \"ab".to_owned();
    assert_eq!(told, [ReplyEvent::Call { index, name }, ReplyEvent::Arguments { index, text }]);
    assert!(!parser.is_done());
    let told = parser.push("c</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eom|> On.");
    let text = "c\"}".to_owned();
    assert_eq!(told, [ReplyEvent::Arguments { index, text }, ReplyEvent::CallEnd { index }]);
    assert!(parser.is_done() && parser.finish().is_empty());
}

/// Random texts of fragments: the same events for every cutting, and no letter of a message is lost.
#[test]
fn nothing_is_lost_of_random_messages() {
    let fragments = [
        "<|start|>assistant",
        " to=self<|message|>",
        " to=user<|message|>",
        " to=add<|message|>",
        "<|message|>",
        "<|eom|>",
        "<|eot|>",
        "<atem:function_calls>\n",
        "<atem:invoke name=\"add\">\n",
        "<atem:parameter name=\"a\">",
        "</atem:parameter>\n",
        "</atem:invoke>\n",
        "</atem:function_calls>",
        "<|",
        "<atem",
        " ",
        "é",
        "x",
    ];
    let mut state = 7u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let (mut called, mut texts) = (0, 0);
    let letters = |text: &str| text.chars().filter(|c| "éx".contains(*c)).count();
    for _ in 0..6000 {
        let text: String = (0..1 + below(12)).map(|_| fragments[below(fragments.len())]).collect();
        let (events, whole) = parse(muse(), false, &[&text]);
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
        assert_eq!(parse(muse(), false, &chars).0, events, "{text:?}");
        let within: usize = whole.calls.iter().map(|call| letters(&call.arguments)).sum();
        let told = letters(&whole.reasoning) + letters(&whole.content) + within;
        assert_eq!(told, letters(&text), "{text:?} {whole:?}");
        called += usize::from(!whole.calls.is_empty());
        texts += usize::from(letters(&text) > 0);
    }
    assert!(texts > 2000 && called > 20, "{texts}, {called}");
}

/// Muse Glimmer's template takes arguments that are an object, and nothing else.
#[test]
fn an_answer_is_what_the_conversation_goes_on_with() {
    let text = format!(
        "{}{NEXT} to=add<|message|>{}",
        message("self", "Hm."),
        block(&invoke("add", &[set("d", "x y"), set("a", "1")].concat()))
    );
    let chat = crate::text::Chat::new(vec![crate::text::Message::new("user", "Z"), told(&text).to_message()]);
    let rendered = chat.render(&samples::template(samples::ATEM)).unwrap();
    let wanted = format!("<|start|>user<|message|>Z<|eot|>{NEXT}{text}<|eot|>{NEXT}");
    assert_eq!(rendered.text(), wanted);
}
