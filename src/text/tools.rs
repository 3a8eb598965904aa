//! Tool calls in generated text, as each family of models writes them, read as they come.

use super::chat::Tool;
use super::scan::{JsonScan, Step};
use xml::XmlCall;

pub(crate) mod xml;

/// How a model writes its tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, one after the other.
    Hermes,
    /// Qwen3-Coder: `<tool_call><function=name><parameter=key>…</parameter>…</function></tool_call>`, one after the other;
    /// strings without quotes, other values in JSON.
    Xml,
    /// Llama 3: `{"name": …, "parameters": {…}}` as the whole text, or after `<|python_tag|>`; several joined by `;`.
    Llama3,
    /// Mistral: `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`.
    Mistral,
    /// Mistral since 2025: `[TOOL_CALLS]name[ARGS]{…}`, one after the other.
    MistralArgs,
}

impl ToolFormat {
    /// The format that a chat template writes the calls of earlier turns in, which is the one its model was trained on.
    /// None where it writes none, or another one.
    pub fn of_template(source: &str) -> Option<Self> {
        let has = |mark| source.contains(mark);
        if has("[TOOL_CALLS]") {
            return Some(if has("[ARGS]") { Self::MistralArgs } else { Self::Mistral });
        }
        if has("<tool_call>") {
            return Some(if has("<function=") { Self::Xml } else { Self::Hermes });
        }
        let llama = has("<|python_tag|>") || (has("<|start_header_id|>") && has("tool_calls"));
        llama.then_some(Self::Llama3)
    }

    /// The texts that stand around calls. Where they are special tokens, their text has to be part of the generated one
    /// ([`crate::Options::visible`]).
    pub const fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes | Self::Xml => &["<tool_call>", "</tool_call>"],
            Self::Llama3 => &["<|python_tag|>"],
            Self::Mistral | Self::MistralArgs => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
        }
    }

    const fn opening(self) -> &'static str {
        self.marks()[0]
    }
}

/// What a piece of text turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyEvent {
    /// What the model thinks before it answers.
    Reasoning(String),
    /// The answer's text.
    Content(String),
    /// A tool call begins, the `index`th of this text.
    Call {
        /// Which one, from 0.
        index: usize,
        /// The tool's name.
        name: String,
    },
    /// The arguments of the call that began last go on: JSON, as written.
    Arguments {
        /// Which call.
        index: usize,
        /// What follows.
        text: String,
    },
    /// The call that began last is whole: its arguments are a JSON object.
    CallEnd {
        /// Which call.
        index: usize,
    },
    /// The call that began last is none: it breaks off, or is not JSON. Whoever can take it back puts `text` into the answer
    /// instead of it; whoever cannot, behind it.
    CallBroken {
        /// Which call.
        index: usize,
        /// All that was written of it, the mark before it included.
        text: String,
    },
}

impl ReplyEvent {
    /// Adds `next` to the last of `events` where both go on with the same thing.
    pub(super) fn add(events: &mut Vec<Self>, next: Self) {
        match (events.last_mut(), &next) {
            (Some(Self::Content(text)), Self::Content(more))
            | (Some(Self::Reasoning(text)), Self::Reasoning(more))
            | (Some(Self::Arguments { text, .. }), Self::Arguments { text: more, .. }) => text.push_str(more),
            _ => events.push(next),
        }
    }
}

/// Finds tool calls in text that comes in pieces. The events do not depend on how it was cut, but for where adjacent texts are.
#[derive(Debug, Clone)]
pub(super) struct ToolParser {
    format: ToolFormat,
    /// Tools that may be called; empty is any.
    tools: Vec<Tool>,
    state: State,
    /// Text that may belong to a call: white space and the beginning of a mark, or all since the mark.
    held: String,
    /// Calls that have begun.
    calls: usize,
    events: Vec<ReplyEvent>,
}

#[derive(Debug, Clone)]
enum State {
    /// Text; a mark may follow. Of Llama's, at the beginning, a call may follow without one.
    Text { lead: bool },
    /// A call's object.
    Object { call: Body, list: bool },
    /// After an object.
    After { list: bool },
    /// After Mistral's mark: a list or a name.
    Named(String),
    /// After `[CALL_ID]`.
    Id(String),
    /// After `[ARGS]`; `begun`: its `{` was there.
    Args { scan: JsonScan, begun: bool },
}

impl ToolParser {
    pub(super) fn new(format: ToolFormat, tools: &[Tool]) -> Self {
        let state = State::Text { lead: format == ToolFormat::Llama3 };
        Self { format, tools: tools.to_vec(), state, held: String::new(), calls: 0, events: Vec::new() }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<ReplyEvent> {
        text.chars().for_each(|c| self.take(c));
        std::mem::take(&mut self.events)
    }

    /// What is left at the end of the text.
    pub(super) fn finish(&mut self) -> Vec<ReplyEvent> {
        match &self.state {
            // White space after the last call.
            State::Text { .. } | State::After { .. } if self.calls > 0 && self.held.trim().is_empty() => {
                self.held.clear();
            }
            State::Text { .. } | State::After { .. } => self.release(),
            State::Object { .. } | State::Named(_) | State::Id(_) | State::Args { .. } => self.fail(),
        }
        self.state = State::Text { lead: false };
        std::mem::take(&mut self.events)
    }

    fn emit(&mut self, event: ReplyEvent) {
        ReplyEvent::add(&mut self.events, event);
    }

    /// Gives out as text what was held back.
    fn release(&mut self) {
        if !self.held.is_empty() {
            let text = std::mem::take(&mut self.held);
            self.emit(ReplyEvent::Content(text));
        }
    }

    fn take(&mut self, c: char) {
        let mut state = std::mem::replace(&mut self.state, State::Text { lead: false });
        self.state = match &mut state {
            State::Text { lead } => return self.text(c, *lead),
            State::Object { call, list } => {
                let mut found = Vec::new();
                let step = call.push(c, &self.tools, &mut found);
                for event in found {
                    if matches!(event, ReplyEvent::Call { .. }) {
                        self.calls += 1;
                    }
                    self.emit(event.at(self.calls - 1));
                }
                match step {
                    Step::Bad => return self.broken(c, call.named()),
                    Step::Last | Step::After => self.end_call(*list),
                    Step::More => self.hold(c, state),
                }
            }
            State::After { list } => return self.after(c, *list),
            State::Named(name) => return self.named(c, std::mem::take(name)),
            State::Id(name) => {
                self.held.push(c);
                if self.held.ends_with("[ARGS]") {
                    return self.begin_args(std::mem::take(name));
                }
                state
            }
            State::Args { begun: false, .. } if c.is_whitespace() => self.hold(c, state),
            State::Args { begun: false, .. } if c != '{' => return self.broken(c, true),
            State::Args { scan, begun } => {
                *begun = true;
                let step = scan.push(c);
                if step == Step::Bad {
                    return self.broken(c, true);
                }
                self.emit(ReplyEvent::Arguments { index: self.calls - 1, text: c.into() });
                if step == Step::More { self.hold(c, state) } else { self.end_call(false) }
            }
        };
    }

    fn hold(&mut self, c: char, state: State) -> State {
        self.held.push(c);
        state
    }

    fn end_call(&mut self, list: bool) -> State {
        self.held.clear();
        self.emit(ReplyEvent::CallEnd { index: self.calls - 1 });
        State::After { list }
    }

    /// What was held is no call: it is text, and `c` comes after it.
    fn broken(&mut self, c: char, named: bool) {
        self.give_back(named);
        self.text(c, false);
    }

    fn fail(&mut self) {
        let named = match &self.state {
            State::Object { call, .. } => call.named(),
            State::Args { .. } => true,
            _ => false,
        };
        self.give_back(named);
    }

    fn give_back(&mut self, named: bool) {
        let text = std::mem::take(&mut self.held);
        self.emit(match named {
            true => ReplyEvent::CallBroken { index: self.calls - 1, text },
            false => ReplyEvent::Content(text),
        });
        self.state = State::Text { lead: false };
    }

    /// Text: white space is held back until it is known not to stand before a call.
    fn text(&mut self, c: char, mut lead: bool) {
        self.held.push(c);
        let mark = self.format.opening();
        loop {
            let tail = self.held.trim_start();
            if tail == mark {
                self.state = match self.format {
                    ToolFormat::Mistral | ToolFormat::MistralArgs => State::Named(String::new()),
                    ToolFormat::Xml => State::Object { call: Body::Xml(XmlCall::default()), list: false },
                    _ => State::Object { call: Body::default(), list: false },
                };
                return;
            }
            if lead && tail == "{" {
                let mut call = Call::default();
                call.push('{', &self.tools, &mut Vec::new());
                self.state = State::Object { call: Body::Json(call), list: false };
                return;
            }
            if mark.starts_with(tail) {
                self.state = State::Text { lead };
                return;
            }
            // No call begins with what is held; one may begin with a part of it.
            let first = tail.chars().next().map_or(0, char::len_utf8);
            let rest = self.held.split_off(self.held.len() - tail.len() + first);
            self.release();
            self.held = rest;
            lead = false;
        }
    }

    /// After a call: what closes it, what separates it from the next one, or text.
    fn after(&mut self, c: char, list: bool) {
        self.held.push(c);
        let tail = self.held.trim_start();
        let again = State::Object { call: Body::default(), list };
        self.state = match self.format {
            _ if list && tail.is_empty() => State::After { list },
            _ if list && tail == "," => again,
            _ if list && tail == "]" => {
                self.held.clear();
                State::After { list: false }
            }
            ToolFormat::Hermes | ToolFormat::Xml if tail == "</tool_call>" => {
                self.held.clear();
                State::Text { lead: false }
            }
            ToolFormat::Hermes | ToolFormat::Xml if "</tool_call>".starts_with(tail) => State::After { list },
            ToolFormat::Llama3 if tail == ";" => again,
            _ if tail.is_empty() => State::After { list },
            _ => {
                let text = std::mem::take(&mut self.held);
                self.state = State::Text { lead: false };
                return text.chars().for_each(|c| self.take(c));
            }
        };
    }

    /// After Mistral's mark.
    fn named(&mut self, c: char, mut name: String) {
        if name.is_empty() && c.is_whitespace() {
            self.held.push(c);
            self.state = State::Named(name);
            return;
        }
        if name.is_empty() && c == '[' {
            self.held.push(c);
            self.state = State::Object { call: Body::default(), list: true };
            return;
        }
        name.push(c);
        let (args, id) = (name.strip_suffix("[ARGS]"), name.strip_suffix("[CALL_ID]"));
        if let Some(name) = args.map(str::to_owned) {
            self.held.push(c);
            return self.begin_args(name);
        }
        if let Some(name) = id.map(str::to_owned) {
            self.held.push(c);
            self.state = State::Id(name);
            return;
        }
        // Names are letters, digits and signs like `.`, and end in front of a bracket.
        let (head, mark) = name.split_at(name.find('[').unwrap_or(name.len()));
        let good = head.len() <= 256 && head.chars().all(|c| c.is_alphanumeric() || "._-:/".contains(c));
        if !good || !("[ARGS]".starts_with(mark) || "[CALL_ID]".starts_with(mark)) {
            return self.broken(c, false);
        }
        self.held.push(c);
        self.state = State::Named(name);
    }

    fn begin_args(&mut self, name: String) {
        if name.is_empty() || !known(&self.tools, &name) {
            return self.give_back(false);
        }
        self.emit(ReplyEvent::Call { index: self.calls, name });
        self.calls += 1;
        self.state = State::Args { scan: JsonScan::new(), begun: false };
    }
}

fn known(tools: &[Tool], name: &str) -> bool {
    tools.is_empty() || tools.iter().any(|known| known.name == name)
}

impl ReplyEvent {
    /// The same event of another call.
    fn at(self, to: usize) -> Self {
        match self {
            Self::Call { name, .. } => Self::Call { index: to, name },
            Self::Arguments { text, .. } => Self::Arguments { index: to, text },
            other => other,
        }
    }
}

/// What stands between the marks of a call.
#[derive(Debug, Clone)]
enum Body {
    Json(Call),
    Xml(XmlCall),
}

impl Default for Body {
    fn default() -> Self {
        Self::Json(Call::default())
    }
}

impl Body {
    fn push(&mut self, c: char, tools: &[Tool], events: &mut Vec<ReplyEvent>) -> Step {
        match self {
            Self::Json(call) => call.push(c, tools, events),
            Self::Xml(call) => call.push(c, tools, events),
        }
    }

    /// Whether the call has been told of.
    fn named(&self) -> bool {
        match self {
            Self::Json(call) => call.named,
            Self::Xml(call) => call.named(),
        }
    }
}

/// The object of a call: `name`, `arguments` or `parameters`, and what some models write beside them.
#[derive(Debug, Clone, Default)]
struct Call {
    member: Member,
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    /// Whether the call has been told of.
    named: bool,
    /// Whether its arguments are whole.
    complete: bool,
}

#[derive(Debug, Clone, Default)]
enum Member {
    /// Before `{`.
    #[default]
    Start,
    /// A key, or the end; `first`: right after `{`.
    Key {
        first: bool,
    },
    InKey(JsonScan, String),
    Colon(String),
    /// A value of the key, and its text so far.
    Value {
        key: String,
        scan: JsonScan,
        text: String,
    },
    Comma,
}

impl Call {
    /// Takes the next character; events name no call yet.
    fn push(&mut self, c: char, tools: &[Tool], events: &mut Vec<ReplyEvent>) -> Step {
        let space = matches!(c, ' ' | '\t' | '\n' | '\r');
        self.member = match std::mem::take(&mut self.member) {
            state @ (Member::Start | Member::Key { .. } | Member::Colon(_) | Member::Comma) if space => state,
            Member::Start if c == '{' => Member::Key { first: true },
            Member::Key { .. } if c == '"' => {
                let mut scan = JsonScan::new();
                scan.push(c);
                Member::InKey(scan, c.into())
            }
            Member::Key { first: true } | Member::Comma if c == '}' => return self.end(tools, events),
            Member::Comma if c == ',' => Member::Key { first: false },
            Member::InKey(mut scan, mut text) => {
                text.push(c);
                match scan.push(c) {
                    Step::More => Member::InKey(scan, text),
                    Step::Last => match serde_json::from_str::<String>(&text).as_deref() {
                        Ok(key @ ("name" | "arguments" | "parameters" | "type" | "id")) => {
                            Member::Colon(key.to_owned())
                        }
                        _ => return Step::Bad,
                    },
                    _ => return Step::Bad,
                }
            }
            Member::Colon(key) if c == ':' => {
                Member::Value { key, scan: JsonScan::new(), text: String::new() }
            }
            Member::Value { key, scan, text } => return self.value(c, key, scan, text, tools, events),
            _ => return Step::Bad,
        };
        Step::More
    }

    fn value(
        &mut self,
        c: char,
        key: String,
        mut scan: JsonScan,
        mut text: String,
        tools: &[Tool],
        events: &mut Vec<ReplyEvent>,
    ) -> Step {
        let step = scan.push(c);
        let arguments = matches!(key.as_str(), "arguments" | "parameters");
        let first = text.is_empty() && !c.is_whitespace();
        // Arguments are an object, given once.
        let bad = arguments && first && (c != '{' || self.complete || self.early.is_some());
        if step == Step::Bad || bad || (key == "name" && first && (c != '"' || self.name.is_some())) {
            return Step::Bad;
        }
        if step != Step::After && !(text.is_empty() && c.is_whitespace()) {
            text.push(c);
            if arguments && self.name.is_some() {
                if first && !self.tell(tools, events) {
                    return Step::Bad;
                }
                ReplyEvent::add(events, ReplyEvent::Arguments { index: 0, text: c.into() });
            }
        }
        if step == Step::More {
            self.member = Member::Value { key, scan, text };
            return Step::More;
        }
        self.member = Member::Comma;
        match key.as_str() {
            "name" => match serde_json::from_str::<String>(&text) {
                Ok(name) if known(tools, &name) && !name.is_empty() => self.name = Some(name),
                _ => return Step::Bad,
            },
            "arguments" | "parameters" if self.named => self.complete = true,
            "arguments" | "parameters" => self.early = Some(text),
            // Some write `"type": "function"` or an id beside them.
            _ => {}
        }
        if step == Step::After { self.push(c, tools, events) } else { Step::More }
    }

    fn tell(&mut self, tools: &[Tool], events: &mut Vec<ReplyEvent>) -> bool {
        let Some(name) = self.name.clone().filter(|name| known(tools, name)) else { return false };
        events.push(ReplyEvent::Call { index: 0, name });
        self.named = true;
        true
    }

    /// The object ends: a call needs a name. Where it is that of a tool, it needs no arguments.
    fn end(&mut self, tools: &[Tool], events: &mut Vec<ReplyEvent>) -> Step {
        if !self.complete {
            if (self.early.is_none() && tools.is_empty()) || !self.tell(tools, events) {
                return Step::Bad;
            }
            let text = self.early.take().unwrap_or_else(|| "{}".into());
            events.push(ReplyEvent::Arguments { index: 0, text });
        }
        Step::Last
    }
}
