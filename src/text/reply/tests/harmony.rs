//! Answers in OpenAI's harmony, as gpt-oss writes them.

use std::sync::OnceLock;

use super::*;

fn gpt_oss() -> &'static ReplyFormat {
    static FORMAT: OnceLock<ReplyFormat> = OnceLock::new();
    FORMAT.get_or_init(|| samples::shown(samples::HARMONY))
}

fn told(text: &str) -> Reply {
    cut_in_two(gpt_oss(), false, text)
}

fn message(channel: &str, text: &str) -> String {
    format!("<|channel|>{channel}<|message|>{text}<|end|>")
}

fn thought(reasoning: &str, of: Reply) -> Reply {
    Reply { reasoning: reasoning.into(), ..of }
}

#[test]
fn channels_are_told_apart() {
    let next = "<|start|>assistant";
    let (hm, yes) = (message("analysis", "Hm.\n <b>"), message("final", " Yes.\n"));
    assert_eq!(told(&format!("{hm}{next}{yes}")), thought("Hm.\n <b>", of(" Yes.\n", &[])));
    assert_eq!(told(&yes), of(" Yes.\n", &[]));
    // The engine keeps the token that ends it, and so does a text that is cut off.
    let open = yes.strip_suffix("<|end|>").unwrap();
    assert_eq!(told(&format!("{hm}{next}{open}")), thought("Hm.\n <b>", of(" Yes.\n", &[])));
    assert_eq!(told(&format!("{open}<|return|>")), of(" Yes.\n", &[]));
    assert_eq!(told("<|channel|>analysis<|message|>Hm"), thought("Hm", of("", &[])));
    // Several of a kind are apart; a preamble is for the reader.
    let preamble = message("commentary", "I look.");
    let all = [&hm, &preamble, &hm, &yes].map(String::as_str).join(next);
    assert_eq!(told(&all), thought("Hm.\n <b>\n\nHm.\n <b>", of("I look.\n\n Yes.\n", &[])));
    // Neither an end nor a beginning.
    assert_eq!(told(&format!("{open}<|start|>assistant{hm}")), thought("Hm.\n <b>", of(" Yes.\n", &[])));
    assert_eq!(told(&format!("{hm}{yes}")), thought("Hm.\n <b>", of(" Yes.\n", &[])));
    // A header that never came to its message.
    for cut in [
        "<|start|>",
        "<|start|>assist",
        "<|start|>assistant<|channel|>fin",
        "<|start|>assistant<|channel|>commentary json",
        "<|start|>assistant to=functions.add<|channel|>commentary <|constrain|>json<|mess",
    ] {
        assert_eq!(told(&format!("{hm}{cut}")), thought("Hm.\n <b>", of("", &[])), "{cut}");
    }
    // One in which something was said, whether or not it has an end.
    for said in ["<|start|>assistant<|channel|>final Yes, it is", "<|channel|>final \u{4eca}\u{65e5}"] {
        for end in ["", "<|end|>"] {
            assert_eq!(told(&format!("{hm}{said}{end}")), thought("Hm.\n <b>", of(said, &[])), "{said}{end}");
            assert_eq!(
                told(&format!("{yes}{said}{end}")),
                of(&format!(" Yes.\n\n\n{said}"), &[]),
                "{said}{end}"
            );
        }
    }
    // A prompt that begins a thought.
    let harmony = gpt_oss();
    assert!(harmony.reasoning.as_ref().unwrap().is_open("<|start|>assistant<|channel|>analysis<|message|>"));
    let rest = format!("m.<|end|>{next}{yes}");
    assert_eq!(reply(harmony, true, &rest), thought("m.", of(" Yes.\n", &[])));
}

#[test]
fn calls_are_messages_to_functions() {
    let (name, arguments) = PARIS;
    for header in [
        format!(" to=functions.{name}<|channel|>commentary json"),
        format!(" to=functions.{name}<|channel|>commentary <|constrain|>json"),
        format!("<|channel|>commentary to=functions.{name} <|constrain|>json"),
        format!("<|channel|>commentary to=functions.{name} json"),
        format!("<|channel|>commentary to=functions.{name}"),
        format!("<|channel|>analysis to=functions.{name} code"),
        format!("<|channel|>commentary to={name} <|constrain|>json"),
    ] {
        let call = format!("{header}<|message|>{arguments}");
        for end in ["", "<|call|>", "\n<|end|>"] {
            assert_eq!(told(&format!("{call}{end}")), of("", &[PARIS]), "{call}{end}");
        }
        let before = message("analysis", "Hm.") + "<|start|>assistant" + &message("commentary", "I look.");
        let all = format!("{before}<|start|>assistant{call}<|call|>");
        assert_eq!(told(&all), thought("Hm.", of("I look.", &[PARIS])), "{all}");
    }
    // Marks within a text are a part of it; what is nested, and several in a row.
    let odd = r#"{"city": "<|call|> é\n<|start|>assistant \"}", "days": {"x": [1, {"y": null}]}}"#;
    let call = |(name, arguments): (&str, &str)| {
        format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>")
    };
    let text = call((name, odd))
        + "<|start|>assistant"
        + &call(ADD)
        + "<|start|>assistant"
        + &message("final", "On.");
    assert_eq!(told(&text), of("On.", &[(name, odd), ADD]));
}

#[test]
fn what_is_no_call_is_text() {
    let header = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>";
    for text in [
        "Yes.".to_owned(),
        " to be".to_owned(),
        "to=5 of <b>".to_owned(),
        "  ".to_owned(),
        String::new(),
        "<|start|>user<|message|>Hm".to_owned(),
        "<|message|>Hm".to_owned(),
        format!("{header}none"),
        format!("{header}{{\"a\": 1"),
        format!("{header}{{\"a\": }}"),
        header.to_owned(),
        "<|channel|>commentary to=functions.remove<|message|>{}".to_owned(),
        "<|channel|>commentary to=browser.search code<|message|>{\"q\": 1}".to_owned(),
    ] {
        assert_eq!(told(&text), of(&text, &[]), "{text:?}");
    }
    // What follows it is told.
    let text = format!("{header}[1]<|end|><|start|>assistant{}", message("final", "Yes."));
    assert_eq!(told(&text), of(&format!("{header}[1]\n\nYes."), &[]));
    // Without tools nothing is a call.
    let mut parser = ReplyParser::new(gpt_oss(), false, &[]);
    let text = format!("{header}{{}}");
    let found: Vec<ReplyEvent> = [parser.push(&text), parser.finish()].concat();
    assert_eq!(found, [ReplyEvent::Content(text)]);
}

/// gpt-oss's template takes a text or thoughts beside a call, and not both.
#[test]
fn a_text_beside_thoughts_and_calls_is_told_as_a_thought() {
    let function = serde_json::json!({ "name": "add", "arguments": "{}" });
    let call = serde_json::json!([{ "type": "function", "id": "a", "function": function }]);
    let mut message = crate::text::Message::new("assistant", "I look.");
    message.extra.insert("reasoning".into(), "Hm.".into());
    message.extra.insert("tool_calls".into(), call);
    let mut chat = crate::text::Chat::new(vec![crate::text::Message::new("user", "x"), message]);
    let rendered = chat.render(&samples::template(samples::HARMONY)).unwrap();
    let told = "<|start|>assistant<|channel|>analysis<|message|>Hm.\n\nI look.<|end|><|start|>assistant to=functions.add\
                <|channel|>commentary json<|message|>{}<|call|>";
    assert!(rendered.text().contains(told), "{rendered:?}");
    // The effort stays what the client wants, unless that is what the template refuses.
    let efforts = "{%- if reasoning_effort == 'minimal' -%}{{ raise_exception('no such effort') }}{%- endif -%}\
                   {{ reasoning_effort or 'none' }}:";
    let template = samples::template(&[efforts, samples::HARMONY].concat());
    for (wanted, shown) in [("high", "high:<|start|>"), ("minimal", "none:<|start|>")] {
        chat.variables.insert("reasoning_effort".into(), wanted.into());
        let rendered = chat.render(&template).unwrap();
        assert!(rendered.text().starts_with(shown) && rendered.text().contains(told), "{rendered:?}");
    }
}

#[test]
fn a_call_is_told_as_it_comes() {
    let mut parser = ReplyParser::single_call(gpt_oss(), false, &tools());
    assert!(parser.push("<|channel|>commentary to=functions.add json").is_empty());
    let (index, name) = (0, "add".to_owned());
    let told = parser.push("<|message|>{\"a\"");
    let text = "{\"a\"".to_owned();
    assert_eq!(told, [ReplyEvent::Call { index, name }, ReplyEvent::Arguments { index, text }]);
    assert!(!parser.is_done());
    let told = parser.push(": 1}<|call|> On.");
    let text = ": 1}".to_owned();
    assert_eq!(told, [ReplyEvent::Arguments { index, text }, ReplyEvent::CallEnd { index }]);
    assert!(parser.is_done() && parser.finish().is_empty());
}

/// The most letters that the headers of a text take with them: what stands between a channel's mark and its message, and at the
/// end a recipient, a channel's name and a kind.
fn of_headers(text: &str, letters: impl Fn(&str) -> usize) -> usize {
    let has = |part: &str, marks: &[&str]| marks.iter().any(|mark| part.contains(mark));
    let headers = text.split("<|channel|>").skip(1).filter_map(|part| part.split_once("<|message|>"));
    let headers = headers.filter(|(header, _)| !has(header, &["<|start|>", "<|end|>", "<|call|>"]));
    let between: usize = headers.map(|(header, _)| letters(header)).sum();
    let ends = ["<|start|>", "<|channel|>"].into_iter().filter_map(|mark| text.rfind(mark));
    let ends = ends.map(|at| &text[at..]).filter(|end| !has(end, &["<|message|>", "<|end|>", "<|call|>"]));
    let at_end = ends.map(|end| {
        let marks = ["<|start|>assistant", "<|start|>", "<|channel|>", "<|constrain|>"];
        let words = marks.into_iter().fold(end.to_owned(), |words, mark| words.replace(mark, " "));
        let (to, others): (Vec<&str>, Vec<&str>) =
            words.split_whitespace().partition(|word| word.starts_with("to="));
        to.iter().take(1).chain(others.iter().take(2)).map(|word| letters(word)).sum::<usize>()
    });
    between + at_end.max().unwrap_or(0)
}

/// Random texts of fragments: the same events for every cutting, and no character but marks is lost.
#[test]
fn nothing_is_lost_of_random_messages() {
    let fragments = [
        "<|start|>",
        "<|start|>assistant",
        "<|channel|>",
        "<|channel|>analysis",
        "<|channel|>final<|message|>",
        "commentary",
        " to=functions.add",
        " <|constrain|>json",
        "<|message|>",
        "<|end|>",
        "<|call|>",
        "{\"a\": 1}",
        "{\"a\": \"",
        "}",
        "<|",
        " ",
        "é",
        "x",
    ];
    let mut state = 3u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut whole_texts = 0;
    let letters = |text: &str| text.chars().filter(|c| "éx".contains(*c)).count();
    for _ in 0..6000 {
        let text: String = (0..1 + below(9)).map(|_| fragments[below(fragments.len())]).collect();
        let (events, whole) = parse(gpt_oss(), false, &[&text]);
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
        assert_eq!(parse(gpt_oss(), false, &chars).0, events, "{text:?}");
        let told = letters(&whole.reasoning) + letters(&whole.content);
        let called: usize = whole.calls.iter().map(|call| letters(&call.arguments)).sum();
        let headers = of_headers(&text, letters);
        assert!(told + called <= letters(&text), "{text:?} {whole:?}");
        assert!(told + called + headers >= letters(&text), "{text:?} {whole:?}");
        whole_texts += usize::from(letters(&text) > 0 && headers == 0);
    }
    assert!(whole_texts > 1000, "{whole_texts}");
}
