//! A call as Python writes it, `name(key="text", other=[1, None])`, read as JSON.

use serde_json::Value as Json;

use super::super::scan::Step;
use super::super::tool::Tool;
use super::ReplyEvent;
use super::literal::{self, Unescape};
use super::mark::{self, Named};
use super::tagged::is_string;

/// Longest key, in bytes.
const MAX_KEY: usize = 1024;
/// How deep brackets may nest.
const MAX_DEPTH: usize = 64;

/// One call, from its name.
#[derive(Debug, Clone)]
pub(super) struct PythonCall {
    state: State,
    /// The tool that is called; set once it has been told of.
    tool: Option<Tool>,
    /// Arguments so far.
    keys: Vec<String>,
}

#[derive(Debug, Clone)]
enum State {
    /// The name, and the bracket behind it.
    Name(String),
    /// A key, up to the `=` behind it, or the end.
    Key(String),
    /// Before a value; `string`: it is to be one.
    Begin {
        string: bool,
    },
    Text(Text),
    Other(Other),
}

/// A string.
#[derive(Debug, Clone)]
struct Text {
    quote: char,
    escapes: Unescape,
    /// A quote that may be its end, and white space behind it.
    held: String,
    /// All of it, where it is to become something else than a string; else it has been told of.
    kept: Option<String>,
}

/// Anything else, up to the comma or bracket behind it.
#[derive(Debug, Clone, Default)]
struct Other {
    text: String,
    /// The brackets that are open.
    stack: Vec<char>,
    /// The string that is open, and whether a backslash was its last character.
    quote: Option<char>,
    escaped: bool,
}

/// Whether a call is read back that has an argument of this name, which is one of its tool's.
pub(crate) fn takes(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= MAX_KEY
        && key.trim() == key
        && !key.contains('=')
        && !key.starts_with(')')
}

impl PythonCall {
    pub(super) fn new() -> Self {
        Self { state: State::Name(String::new()), tool: None, keys: Vec::new() }
    }

    /// How long a call of the tool is that `text` begins with; none where it does not.
    pub(super) fn len(text: &str, tool: &str) -> Option<usize> {
        let tools = [Tool { name: tool.to_owned(), parameters: None }];
        let (mut call, mut events) = (Self::new(), Vec::new());
        for (at, c) in text.char_indices() {
            match call.push(c, &tools, &mut events) {
                Step::More => {}
                Step::Last => return Some(at + c.len_utf8()),
                Step::After | Step::Bad => break,
            }
        }
        None
    }

    /// Whether the call has been told of.
    pub(super) fn named(&self) -> bool {
        self.tool.is_some()
    }

    /// Takes the next character; events name no call yet.
    pub(super) fn push(&mut self, c: char, tools: &[Tool], events: &mut Vec<ReplyEvent>) -> Step {
        match std::mem::replace(&mut self.state, State::Key(String::new())) {
            State::Name(mut text) => {
                if !(text.is_empty() && c.is_whitespace()) {
                    text.push(c);
                }
                match mark::fit_name(&text, tools, &["(".to_owned()]) {
                    Named::Whole(tool, _) => {
                        self.tool = Some(tool.clone());
                        events.push(ReplyEvent::Call { index: 0, name: tool.name.clone() });
                        ReplyEvent::add_arguments(events, "{");
                    }
                    Named::Part => self.state = State::Name(text),
                    Named::No => return Step::Bad,
                }
            }
            State::Key(text) => return self.key(text, c, events),
            State::Begin { string } if c.is_whitespace() => self.state = State::Begin { string },
            State::Begin { string } if c == '\'' || c == '"' => {
                let kept = (!string).then(String::new);
                if string {
                    ReplyEvent::add_arguments(events, "\"");
                }
                let (escapes, held) = (Unescape::default(), String::new());
                self.state = State::Text(Text { quote: c, escapes, held, kept });
            }
            State::Begin { .. } => return self.other(Other::default(), c, events),
            State::Text(mut text) => {
                if text.push(c, events) {
                    return self.behind(c, events);
                }
                self.state = State::Text(text);
            }
            State::Other(other) => return self.other(other, c, events),
        }
        Step::More
    }

    fn key(&mut self, mut text: String, c: char, events: &mut Vec<ReplyEvent>) -> Step {
        match c {
            ')' if text.is_empty() => {
                ReplyEvent::add_arguments(events, "}");
                return Step::Last;
            }
            '=' => {
                let key = text.trim_end();
                if key.is_empty() || self.keys.iter().any(|known| known == key) {
                    return Step::Bad;
                }
                let comma = if self.keys.is_empty() { "" } else { ", " };
                ReplyEvent::add_arguments(events, &format!("{comma}{}: ", Json::from(key)));
                let string = is_string(self.tool.as_ref().and_then(|tool| tool.argument(key)));
                self.keys.push(key.to_owned());
                self.state = State::Begin { string };
                return Step::More;
            }
            c if c.is_whitespace() && text.is_empty() => {}
            c if self.may_go_on(&text, c) => text.push(c),
            c if c.is_whitespace() => text.push(c),
            c if (c.is_alphanumeric() || "_-.".contains(c)) && !text.ends_with(char::is_whitespace) => {
                text.push(c)
            }
            _ => return Step::Bad,
        }
        if text.len() > MAX_KEY {
            return Step::Bad;
        }
        self.state = State::Key(text);
        Step::More
    }

    /// Whether the name of one of the tool's arguments begins with `text` and `next`.
    fn may_go_on(&self, text: &str, next: char) -> bool {
        let mut names = self.tool.iter().flat_map(Tool::arguments);
        names.any(|name| name.strip_prefix(text).is_some_and(|rest| rest.starts_with(next)))
    }

    fn other(&mut self, mut other: Other, c: char, events: &mut Vec<ReplyEvent>) -> Step {
        match other.push(c) {
            Step::More => {
                self.state = State::Other(other);
                Step::More
            }
            Step::After => match value(other.text.trim()) {
                Some(json) => {
                    ReplyEvent::add_arguments(events, &json.to_string());
                    self.behind(c, events)
                }
                None => Step::Bad,
            },
            Step::Last | Step::Bad => Step::Bad,
        }
    }

    /// What stands behind a value: a comma, or the end.
    fn behind(&mut self, c: char, events: &mut Vec<ReplyEvent>) -> Step {
        self.state = State::Key(String::new());
        if c == ',' { Step::More } else { self.key(String::new(), c, events) }
    }
}

/// A value in JSON or Python's notation.
fn value(text: &str) -> Option<Json> {
    crate::json::generated(text).ok().or_else(|| literal::json(text))
}

impl Text {
    /// Takes the next character; whether the string was whole before it. Not every model and template escapes quotes: one ends the
    /// string where a comma or the last bracket follows.
    fn push(&mut self, c: char, events: &mut Vec<ReplyEvent>) -> bool {
        if !self.held.is_empty() {
            if c.is_whitespace() {
                self.held.push(c);
                return false;
            }
            if c == ',' || c == ')' {
                self.end(events);
                return true;
            }
            for held in std::mem::take(&mut self.held).chars() {
                self.take(held, events);
            }
        }
        if c == self.quote && !self.escapes.is_within() {
            self.held.push(c);
        } else if !self.take(c, events) {
            // What a backslash began is none: this is not a part of it.
            return self.push(c, events);
        }
        false
    }

    /// Takes a character of the string; false where it is to be taken once more.
    fn take(&mut self, c: char, events: &mut Vec<ReplyEvent>) -> bool {
        let mut text = String::new();
        let taken = self.escapes.push(c, &mut text);
        self.tell(&text, events);
        taken
    }

    fn tell(&mut self, text: &str, events: &mut Vec<ReplyEvent>) {
        match &mut self.kept {
            Some(kept) => kept.push_str(text),
            None if text.is_empty() => {}
            None => ReplyEvent::add_quoted(events, text),
        }
    }

    /// The string is whole. Where its schema wants none, it is what it holds.
    fn end(&mut self, events: &mut Vec<ReplyEvent>) {
        let mut rest = String::new();
        self.escapes.finish(&mut rest);
        self.tell(&rest, events);
        match self.kept.take() {
            Some(kept) => {
                let json = value(kept.trim()).unwrap_or_else(|| kept.into());
                ReplyEvent::add_arguments(events, &json.to_string());
            }
            None => ReplyEvent::add_arguments(events, "\""),
        }
    }
}

impl Other {
    /// Takes the next character; [`Step::After`] for the one behind the value.
    fn push(&mut self, c: char) -> Step {
        if let Some(quote) = self.quote {
            let escaped = std::mem::take(&mut self.escaped);
            match c {
                '\\' if !escaped => self.escaped = true,
                c if c == quote && !escaped => self.quote = None,
                _ => {}
            }
            self.text.push(c);
            return Step::More;
        }
        match c {
            ',' | ')' if self.stack.is_empty() => return Step::After,
            '\'' | '"' => self.quote = Some(c),
            '(' | '[' | '{' if self.stack.len() < MAX_DEPTH => self.stack.push(c),
            '(' | '[' | '{' => return Step::Bad,
            ')' | ']' | '}' => {
                let open = match c {
                    ')' => '(',
                    ']' => '[',
                    _ => '{',
                };
                if self.stack.pop() != Some(open) {
                    return Step::Bad;
                }
            }
            _ => {}
        }
        self.text.push(c);
        Step::More
    }
}
