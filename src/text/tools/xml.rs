//! A call as Qwen3-Coder writes it, read as JSON: `<function=NAME>`, then for each argument `<parameter=KEY>`, its value and
//! `</parameter>`, then `</function>`.

use serde_json::Value as Json;

use super::super::chat::Tool;
use super::super::scan::Step;
use super::ReplyEvent;

const FUNCTION: &str = "<function=";
const PARAMETER: &str = "<parameter=";
const END_OF_CALL: &str = "</function>";
/// A line end in front of the mark is not part of the value.
const ENDS: [&str; 2] = ["\n</parameter>", "</parameter>"];
/// Longest name, in characters.
const MAX_NAME: usize = 256;

/// One call, from behind its mark.
#[derive(Debug, Clone, Default)]
pub(super) struct XmlCall {
    state: State,
    /// The tool that is called; set once it has been told of.
    tool: Option<Tool>,
    /// Arguments so far.
    keys: Vec<String>,
}

#[derive(Debug, Clone)]
enum State {
    /// White space, and the beginning of a mark.
    Between(String),
    Name(String),
    Key(String),
    Value(Value),
}

impl Default for State {
    fn default() -> Self {
        Self::Between(String::new())
    }
}

/// A value that has begun.
#[derive(Debug, Clone)]
struct Value {
    /// Whether it is a string, which needs no quotes, or else JSON where it can be read as such.
    string: bool,
    /// Whether the line end behind the key may still come.
    fresh: bool,
    /// What may be the beginning of its end.
    held: String,
    /// All of a value that is no string.
    text: String,
}

impl XmlCall {
    /// Whether the call has been told of.
    pub fn named(&self) -> bool {
        self.tool.is_some()
    }

    /// Takes the next character; events name no call yet. `tools`: those that may be called; where there are none, any.
    pub fn push(&mut self, c: char, tools: &[Tool], events: &mut Vec<ReplyEvent>) -> Step {
        match std::mem::take(&mut self.state) {
            State::Between(mut held) => {
                if held.is_empty() && c.is_whitespace() {
                    return Step::More;
                }
                held.push(c);
                let marks: &[&str] = if self.named() { &[PARAMETER, END_OF_CALL] } else { &[FUNCTION] };
                match held.as_str() {
                    END_OF_CALL if self.named() => {
                        arguments(events, "}");
                        return Step::Last;
                    }
                    FUNCTION if !self.named() => self.state = State::Name(String::new()),
                    PARAMETER if self.named() => self.state = State::Key(String::new()),
                    part if marks.iter().any(|mark| mark.starts_with(part)) => {
                        self.state = State::Between(held);
                    }
                    _ => return Step::Bad,
                }
            }
            State::Name(name) if c == '>' => {
                let known = tools.iter().find(|tool| tool.name == name).cloned();
                let any = (tools.is_empty() && !name.is_empty())
                    .then(|| Tool { name: name.clone(), parameters: None });
                let Some(tool) = known.or(any) else { return Step::Bad };
                self.tool = Some(tool);
                events.push(ReplyEvent::Call { index: 0, name });
                arguments(events, "{");
            }
            State::Key(key) if c == '>' => {
                if key.is_empty() || self.keys.contains(&key) {
                    return Step::Bad;
                }
                let comma = if self.keys.is_empty() { "" } else { ", " };
                let string = is_string(self.schema(&key));
                arguments(events, &format!("{comma}{}: ", Json::from(key.as_str())));
                if string {
                    arguments(events, "\"");
                }
                self.keys.push(key);
                self.state =
                    State::Value(Value { string, fresh: true, held: String::new(), text: String::new() });
            }
            State::Name(name) => return self.name(name, c, State::Name),
            State::Key(key) => return self.name(key, c, State::Key),
            State::Value(mut value) => {
                if !value.push(c, events) {
                    self.state = State::Value(value);
                }
            }
        }
        Step::More
    }

    fn name(&mut self, mut name: String, c: char, state: fn(String) -> State) -> Step {
        name.push(c);
        if c.is_whitespace() || c == '<' || name.chars().count() > MAX_NAME {
            return Step::Bad;
        }
        self.state = state(name);
        Step::More
    }

    /// What the tool says of an argument.
    fn schema(&self, key: &str) -> Option<&Json> {
        self.tool.as_ref()?.parameters.as_ref()?.get("properties")?.get(key)
    }
}

impl Value {
    /// Takes the next character; whether the value is whole.
    fn push(&mut self, c: char, events: &mut Vec<ReplyEvent>) -> bool {
        if std::mem::take(&mut self.fresh) && c == '\n' {
            return false;
        }
        self.held.push(c);
        while !self.held.is_empty() {
            if ENDS.contains(&self.held.as_str()) {
                self.end(events);
                return true;
            }
            if ENDS.iter().any(|end| end.starts_with(&self.held)) {
                return false;
            }
            let first = self.held.remove(0);
            match self.string {
                true => {
                    let quoted = Json::from(first.to_string()).to_string();
                    arguments(events, &quoted[1..quoted.len() - 1]);
                }
                false => self.text.push(first),
            }
        }
        false
    }

    fn end(&mut self, events: &mut Vec<ReplyEvent>) {
        if self.string {
            return arguments(events, "\"");
        }
        let text = self.text.trim();
        // Some write Python's names.
        let json = match text {
            "True" => Json::from(true),
            "False" => Json::from(false),
            "None" => Json::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        };
        arguments(events, &json.to_string());
    }
}

fn arguments(events: &mut Vec<ReplyEvent>, text: &str) {
    ReplyEvent::add(events, ReplyEvent::Arguments { index: 0, text: text.to_owned() });
}

/// Whether an argument is a string as far as its schema says; one that nothing is known of is.
pub(crate) fn is_string(schema: Option<&Json>) -> bool {
    let Some(schema) = schema.and_then(Json::as_object) else { return true };
    match schema.get("type") {
        Some(Json::String(kind)) => return kind == "string",
        Some(Json::Array(kinds)) => return kinds.iter().any(|kind| kind == "string"),
        _ => {}
    }
    if let Some(values) = schema.get("enum").and_then(Json::as_array) {
        return values.iter().all(Json::is_string);
    }
    let choices = ["anyOf", "oneOf"].into_iter().find_map(|key| schema.get(key)?.as_array());
    match choices {
        Some(choices) => choices.iter().any(|choice| is_string(Some(choice))),
        None => {
            !["const", "properties", "items", "$ref", "allOf"].iter().any(|key| schema.contains_key(*key))
        }
    }
}
