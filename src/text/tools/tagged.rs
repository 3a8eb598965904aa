//! A call whose arguments stand between tags, read as JSON: the name, then for each argument its key and its value.

use serde_json::Value as Json;

use super::super::scan::Step;
use super::super::tool::Tool;
use super::mark::{self, Fit, Named, fit};
use super::{ArgumentTags, ReplyEvent, literal};

/// Longest key, in bytes.
const MAX_KEY: usize = 1024;

/// One call, from behind its mark.
#[derive(Debug, Clone)]
pub(super) struct TaggedCall {
    tags: ArgumentTags,
    /// What may follow the name: the first argument, or the end.
    after_name: [String; 2],
    state: State,
    /// The tool that is called; set once it has been told of.
    tool: Option<Tool>,
    /// Arguments so far.
    keys: Vec<String>,
}

#[derive(Debug, Clone)]
enum State {
    /// The name, and the mark behind it.
    Name(String),
    /// White space, and the beginning of a mark.
    Between(String),
    /// A key, and the mark behind it.
    Key(String),
    Value(Value),
    /// A value, the mark that may be its end, and what follows that: text of the value, unless an argument or the end.
    After(Value, String, String),
}

/// A value that has begun.
#[derive(Debug, Clone)]
struct Value {
    /// Whether it is a string, which needs no quotes, or else JSON where it can be read as such.
    string: bool,
    /// Whether the line end behind the key may still come.
    fresh: bool,
    /// What may end it.
    ends: Vec<String>,
    /// What may be the beginning of its end.
    held: String,
    /// All of a value that is no string.
    text: String,
}

impl ArgumentTags {
    /// Whether a call is read back that has an argument of this name, which is one of its tool's. Beside it there is to be room for
    /// white space.
    pub(crate) fn takes(&self, key: &str) -> bool {
        let ends = ['<', first(&self.string), first(&self.other)];
        !key.is_empty() && key.len() <= MAX_KEY / 2 && key.trim() == key && !key.contains(ends)
    }
}

/// The character that ends a key before `mark`.
fn first(mark: &str) -> char {
    mark.trim_start().chars().next().unwrap_or('>')
}

impl TaggedCall {
    pub(super) fn new(tags: &ArgumentTags) -> Self {
        Self {
            after_name: [format!("{}{}", tags.open, tags.begin), format!("{}{}", tags.open, tags.close)],
            tags: tags.clone(),
            state: State::Name(String::new()),
            tool: None,
            keys: Vec::new(),
        }
    }

    /// Whether the call has been told of.
    pub(super) fn named(&self) -> bool {
        self.tool.is_some()
    }

    /// Takes the next character; events name no call yet.
    pub(super) fn push(&mut self, c: char, tools: &[Tool], events: &mut Vec<ReplyEvent>) -> Step {
        match std::mem::replace(&mut self.state, State::Between(String::new())) {
            State::Name(mut text) => {
                if !(text.is_empty() && c.is_whitespace()) {
                    text.push(c);
                }
                match mark::fit_name(&text, tools, &self.after_name) {
                    Named::Whole(tool, after) => {
                        self.tool = Some(tool.clone());
                        events.push(ReplyEvent::Call { index: 0, name: tool.name.clone() });
                        ReplyEvent::add_arguments(events, "{");
                        return if after == 0 { self.begin_key() } else { self.end(events) };
                    }
                    Named::Part => self.state = State::Name(text),
                    Named::No => return Step::Bad,
                }
            }
            State::Between(mut held) => {
                held.push(c);
                match (fit(&self.tags.begin, &held), fit(&self.tags.close, &held)) {
                    (Fit::Whole, _) => return self.begin_key(),
                    (_, Fit::Whole) => return self.end(events),
                    (Fit::No, Fit::No) => return Step::Bad,
                    _ => self.state = State::Between(held),
                }
            }
            State::Key(mut text) => {
                text.push(c);
                return self.key(text, events);
            }
            State::Value(mut value) => {
                self.state = match value.push(c, events) {
                    Some(mark) => State::After(value, mark, String::new()),
                    None => State::Value(value),
                };
            }
            State::After(mut value, mark, mut held) => {
                held.push(c);
                match (fit(&self.tags.begin, &held), fit(&self.tags.close, &held)) {
                    (Fit::Whole, _) => {
                        value.end(events);
                        return self.begin_key();
                    }
                    (_, Fit::Whole) => {
                        value.end(events);
                        return self.end(events);
                    }
                    (Fit::No, Fit::No) if value.is_whole() => return Step::Bad,
                    (Fit::No, Fit::No) => {
                        value.take(&mark, events);
                        self.state = State::Value(value);
                        return self.again(&held, tools, events);
                    }
                    _ => self.state = State::After(value, mark, held),
                }
            }
        }
        Step::More
    }

    /// Takes characters that were held back.
    fn again(&mut self, held: &str, tools: &[Tool], events: &mut Vec<ReplyEvent>) -> Step {
        held.chars()
            .map(|c| self.push(c, tools, events))
            .find(|step| *step != Step::More)
            .unwrap_or(Step::More)
    }

    fn begin_key(&mut self) -> Step {
        self.state = State::Key(String::new());
        Step::More
    }

    fn end(&mut self, events: &mut Vec<ReplyEvent>) -> Step {
        ReplyEvent::add_arguments(events, "}");
        Step::Last
    }

    /// A key ends where the mark behind it begins.
    fn key(&mut self, text: String, events: &mut Vec<ReplyEvent>) -> Step {
        let tags = &self.tags;
        let Some(at) = text.find([first(&tags.string), first(&tags.other)]) else {
            if text.len() > MAX_KEY {
                return Step::Bad;
            }
            self.state = State::Key(text);
            return Step::More;
        };
        let (key, rest) = (text[..at].trim(), &text[at..]);
        let argument = self.tool.as_ref().and_then(|tool| tool.argument(key));
        if key.is_empty()
            || key.contains('<')
            || argument.is_none() && key.contains(char::is_whitespace)
            || self.keys.iter().any(|k| k == key)
        {
            return Step::Bad;
        }
        let string = match (fit(&tags.string, rest), fit(&tags.other, rest)) {
            (Fit::Whole, Fit::Whole) => is_string(argument),
            (Fit::Whole, _) => true,
            (_, Fit::Whole) => false,
            (Fit::No, Fit::No) => return Step::Bad,
            _ => {
                self.state = State::Key(text);
                return Step::More;
            }
        };
        let comma = if self.keys.is_empty() { "" } else { ", " };
        ReplyEvent::add_arguments(events, &format!("{comma}{}: ", Json::from(key)));
        if string {
            ReplyEvent::add_arguments(events, "\"");
        }
        let fresh = if string { &tags.string } else { &tags.other }.ends_with('\n');
        let mark = tags.end.trim();
        let mut ends = vec![mark.to_owned()];
        // A line end in front of the mark is not part of the value.
        if tags.end.starts_with('\n') {
            ends.push(format!("\n{mark}"));
        }
        self.keys.push(key.to_owned());
        self.state = State::Value(Value { string, fresh, ends, held: String::new(), text: String::new() });
        Step::More
    }
}

impl Value {
    /// Takes the next character; the mark, where it is the last one of what may end the value.
    fn push(&mut self, c: char, events: &mut Vec<ReplyEvent>) -> Option<String> {
        if std::mem::take(&mut self.fresh) && c == '\n' {
            return None;
        }
        self.held.push(c);
        while !self.held.is_empty() {
            if self.ends.contains(&self.held) {
                return Some(std::mem::take(&mut self.held));
            }
            if self.ends.iter().any(|end| end.starts_with(&self.held)) {
                return None;
            }
            let first = self.held.remove(0);
            self.take(first.encode_utf8(&mut [0; 4]), events);
        }
        None
    }

    /// Takes text of the value.
    fn take(&mut self, text: &str, events: &mut Vec<ReplyEvent>) {
        match self.string {
            true => ReplyEvent::add_quoted(events, text),
            false => self.text.push_str(text),
        }
    }

    /// The value as it is read, where it is no string.
    fn json(&self) -> Option<Json> {
        let text = self.text.trim();
        crate::json::generated(text).ok().or_else(|| literal::json(text))
    }

    /// Whether nothing can belong to it any more. A string may hold what ends others.
    fn is_whole(&self) -> bool {
        !self.string && self.json().is_some()
    }

    fn end(&mut self, events: &mut Vec<ReplyEvent>) {
        if self.string {
            return ReplyEvent::add_arguments(events, "\"");
        }
        let json = self.json().unwrap_or_else(|| self.text.trim().into());
        ReplyEvent::add_arguments(events, &json.to_string());
    }
}

/// Whether an argument is a string as far as its schema says; one that nothing is known of is.
pub(crate) fn is_string(schema: Option<&Json>) -> bool {
    let Some(schema) = schema.and_then(Json::as_object) else { return true };
    match schema.get("type") {
        Some(Json::String(kind)) => return kind == "string",
        Some(Json::Array(kinds)) => return kinds.iter().any(|kind| kind == "string"),
        _ => {}
    }
    if let Some(value) = schema.get("const") {
        return value.is_string();
    }
    if let Some(values) = schema.get("enum").and_then(Json::as_array) {
        return values.iter().all(Json::is_string);
    }
    let choices = ["anyOf", "oneOf"].into_iter().find_map(|key| schema.get(key)?.as_array());
    match choices {
        Some(choices) => choices.iter().any(|choice| is_string(Some(choice))),
        None => !["properties", "items", "$ref", "allOf"].iter().any(|key| schema.contains_key(*key)),
    }
}
