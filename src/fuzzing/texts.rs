//! Texts: templates, JSON, sentinels, and what looks for something in answers that come in pieces.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use serde_json::{Value as Json, json};

use super::input::{Input, parts, sound};
use crate::json::{ASKED, Value, generated_prefix, quote, strict};
use crate::sample::StopMatcher;
use crate::text::{
    ChatTemplate, Guarded, Message, ReasoningFormat, RenderOptions, Reply, ReplyEvent, ReplyFormat,
    ReplyParser, Tool, ToolFormat, samples,
};

/// Characters of a text that is cut everywhere.
const LETTERS: usize = 160;

/// The input's parts: a template, and a conversation as JSON, one of users' where that is none.
///
/// What is rendered knows which of it was written in messages, whole special tokens alone, and is the same twice.
pub(super) fn template(data: &[u8]) {
    let [source, messages] = parts(data);
    let (source, messages) = (String::from_utf8_lossy(source), String::from_utf8_lossy(messages));
    let special = ["<s>", "</s>", "<|im_end|>"];
    let named = BTreeMap::from([("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())]);
    let Some(mut template) = sound(ChatTemplate::from_source(Path::new("t"), &source, named)) else { return };
    sound(template.protect(special));
    let messages: Vec<Message> = serde_json::from_str(&messages).unwrap_or_else(|_| {
        let said = |(i, line)| Message::new(["user", "assistant"][i % 2], line);
        messages.split('\n').enumerate().map(said).collect()
    });
    let tool = json!({ "type": "function", "function": { "name": "add", "description": "Adds <s>",
        "parameters": { "type": "object", "properties": { "a": { "type": "integer" } } } } });
    let now = Some(SystemTime::UNIX_EPOCH);
    for (tools, continued) in [(None, false), (Some(vec![tool]), false), (None, true)] {
        let options = RenderOptions {
            add_generation_prompt: !continued,
            continue_final_message: continued,
            tools,
            now,
            ..RenderOptions::default()
        };
        let Some(rendered) = sound(template.render(&messages, &options)) else { continue };
        let mut end = 0;
        for range in rendered.literal() {
            assert!(end <= range.start, "{:?}", rendered.literal());
            assert!(special.contains(&&rendered.text()[range.clone()]), "{range:?}");
            end = range.end;
        }
        if let Some(again) = sound(template.render(&messages, &options)) {
            assert_eq!(again, rendered);
        }
    }
    template.turn_ends(&special.map(str::to_owned));
    for tools in [false, true] {
        template.reply_format(tools);
    }
}

/// What is read strictly is what `serde_json` reads; and what that reads and writes again, without keys that come twice, is read
/// strictly, too.
pub(super) fn json(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    quote(&text);
    if let Some((_, len)) = generated_prefix(&text) {
        assert!(text.is_char_boundary(len));
    }
    let (ours, theirs) = (strict::<Json>(&text, ASKED), serde_json::from_str::<Json>(&text));
    assert_eq!(ours.is_ok(), strict::<Value>(&text, ASKED).is_ok());
    let Ok(theirs) = theirs else { return assert!(ours.is_err(), "{text}") };
    if let Ok(ours) = ours {
        assert_eq!(ours, theirs);
    }
    match strict::<Json>(&theirs.to_string(), ASKED) {
        Ok(again) => assert!(again == theirs || has_fraction(&theirs), "{theirs}"),
        Err(error) => assert!(error.to_string().contains("nesting deeper"), "{theirs}: {error}"),
    }
}

/// Whether it holds a number that reading may round.
fn has_fraction(value: &Json) -> bool {
    match value {
        Json::Number(number) => number.is_f64(),
        Json::Array(items) => items.iter().any(has_fraction),
        Json::Object(members) => members.values().any(has_fraction),
        _ => false,
    }
}

/// The input's parts: special tokens, one a line, and a message.
///
/// Unwrapping what was wrapped gives the message, and where the tokens in it are: the first, and of those the longest. Whatever a
/// template makes of it, ranges hold whole tokens.
pub(super) fn sentinel(data: &[u8]) {
    let [texts, text] = parts(data);
    let (texts, text) = (String::from_utf8_lossy(texts), String::from_utf8_lossy(text));
    let texts: BTreeSet<String> = texts.split('\n').map(str::to_owned).collect();
    let Some(guarded) = sound(Guarded::new(texts.clone())) else { return };
    let wrapped = guarded.protect(&Json::String(text.clone().into_owned()), 0).expect("it nests nowhere");
    let wrapped = wrapped.as_str().expect("a text stays one");
    let mut expected = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let here = texts.iter().filter(|token| !token.is_empty() && text[at..].starts_with(token.as_str()));
        match here.map(String::len).max() {
            Some(len) => {
                expected.push(at..at + len);
                at += len;
            }
            None => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    assert_eq!(guarded.split(wrapped), (text.clone().into_owned(), expected), "{wrapped:?}");
    // Cut apart, and with sentinels that nobody wrapped.
    let half = (0..=wrapped.len() / 2).rev().find(|&at| wrapped.is_char_boundary(at)).unwrap_or(0);
    for cut in [&wrapped[..half], &wrapped[half..], &text] {
        let (plain, ranges) = guarded.split(cut);
        assert!(ranges.iter().all(|range| texts.contains(&plain[range.clone()])), "{cut:?}");
    }
}

/// The input: a format of calls, whether the model thinks, and an answer.
///
/// Its parts are the same however it is cut, in two or in characters; the arguments of every call are a JSON object.
pub(super) fn reply(data: &[u8]) {
    static FORMATS: OnceLock<Vec<Arc<ToolFormat>>> = OnceLock::new();
    static CHANNELS: OnceLock<[ReplyFormat; 2]> = OnceLock::new();
    let formats = FORMATS.get_or_init(samples::all);
    let mut input = Input(data);
    let tools = (input.below(formats.len() + 1)).checked_sub(1).map(|i| Arc::clone(&formats[i]));
    let flags = input.byte();
    let reasoning =
        (flags & 1 != 0).then(|| ReasoningFormat { open: "<think>".into(), close: "</think>".into() });
    let channels = || CHANNELS.get_or_init(|| [samples::HARMONY, samples::ATEM].map(samples::shown));
    let format = match flags & 24 {
        0 => ReplyFormat { reasoning, tools, channels: None },
        8 => channels()[0].clone(),
        _ => channels()[1].clone(),
    };
    let text: String = String::from_utf8_lossy(input.0).chars().take(LETTERS).collect();
    let schema = json!({ "type": "object", "properties": {
        "city": { "type": "string" }, "days": { "type": ["integer", "null"] }, "a": {} } });
    let tools =
        ["get_weather", "add"].map(|name| Tool { name: name.into(), parameters: Some(schema.clone()) });
    let parser = || match flags & 4 {
        0 => ReplyParser::new(&format, flags & 2 != 0, &tools),
        _ => ReplyParser::single_call(&format, flags & 2 != 0, &tools),
    };
    let whole = events(parser(), &[&text]);
    let mut answer = Reply::default();
    whole.iter().for_each(|event| answer.take(event.clone()));
    for call in &answer.calls {
        let object = serde_json::from_str::<serde_json::Map<String, Json>>(&call.arguments);
        assert!(object.is_ok(), "{call:?} of {text:?}");
    }
    if format.tools.is_none() && format.reasoning.is_none() {
        assert_eq!(answer.content, text);
    }
    let cuts = (0..=text.len()).filter(|&at| text.is_char_boundary(at));
    for at in cuts {
        let pieces = [&text[..at], &text[at..]];
        assert_eq!(events(parser(), &pieces), whole, "{pieces:?}");
    }
    let letters: Vec<String> = text.chars().map(String::from).collect();
    let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
    assert_eq!(events(parser(), &letters), whole, "{text:?}, letter by letter");
}

fn events(mut parser: ReplyParser, pieces: &[&str]) -> Vec<ReplyEvent> {
    let mut events = Vec::new();
    let found = pieces.iter().map(|piece| parser.push(piece)).collect::<Vec<_>>();
    for event in found.into_iter().flatten().chain(parser.finish()) {
        ReplyEvent::add(&mut events, event);
    }
    events
}

/// The input's parts: stop strings, one a line, and a text.
///
/// However the text is cut, the stop that ends first ends it, the longest where several do.
pub(super) fn stop(data: &[u8]) {
    let [stops, text] = parts(data);
    let (stops, text) = (String::from_utf8_lossy(stops), String::from_utf8_lossy(text));
    let text: String = text.chars().take(LETTERS).collect();
    let stops: Vec<String> = stops.split('\n').map(str::to_owned).collect();
    let Some(matcher) = sound(StopMatcher::new(&stops)) else { return };
    let first = (1..=text.len()).find_map(|end| {
        let here = stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
        here.max_by_key(|stop| stop.len()).map(|stop| (&text[..end - stop.len()], Some(stop.as_str())))
    });
    let expected = first.unwrap_or((&text, None));
    let cuts = (0..=text.len()).filter(|&at| text.is_char_boundary(at));
    let mut cuttings: Vec<Vec<&str>> = cuts.map(|at| vec![&text[..at], &text[at..]]).collect();
    let letters: Vec<String> = text.chars().map(String::from).collect();
    cuttings.push(letters.iter().map(String::as_str).collect());
    for pieces in cuttings {
        let mut matcher = matcher.clone();
        let mut out: String = pieces.iter().map(|piece| matcher.push(piece)).collect();
        out += &matcher.finish();
        assert_eq!((out.as_str(), matcher.matched()), expected, "{stops:?} in {pieces:?}");
    }
}
