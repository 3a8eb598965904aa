//! Answers that are messages, each with a header, the first of which the prompt has begun.
//!
//! OpenAI's harmony, which gpt-oss speaks: each is in a channel, and those `to=functions.NAME` are calls.
//! `<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>`
//!
//! Meta's ATEM, which Muse Glimmer speaks: each is to somebody, those to a tool hold calls between tags.
//! ` to=self<|message|>Hm.<|eom|><|start|>assistant to=user<|message|>Yes.<|eot|>`

use std::sync::Arc;

use super::reasoning::ReasoningFormat;
use super::scan::{JsonScan, Step};
use super::tool::Tool;
use super::tools::{ReplyEvent, ToolFormat, ToolParser};

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const CONSTRAIN: &str = "<|constrain|>";
const MESSAGE: &str = "<|message|>";
/// Begins a further message.
pub(crate) const NEXT: &str = "<|start|>assistant";

const ROLE: &str = "assistant";
const RECIPIENT: &str = "to=";
const FUNCTIONS: &str = "functions.";
/// Longest header, in bytes: a tool's name has 128 at most.
const MAX_HEADER: usize = 512;

/// Whom answers of ATEM's are to.
const READER: &str = "user";

/// A form of answers that are messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// OpenAI's harmony: an answer has one call at most, in whichever of harmony's forms it is written.
    Harmony,
    /// Meta's ATEM.
    Atem,
}

impl Channels {
    /// Whom thoughts of ATEM's are to.
    pub(crate) const ONESELF: &str = "self";

    /// The form of a template that writes `header` before an answer.
    pub(super) fn shown(header: &str) -> Option<Self> {
        let is = |of: &Self| header.strip_suffix(of.said()).is_some_and(|header| header.ends_with(NEXT));
        [Self::Harmony, Self::Atem].into_iter().find(is)
    }

    /// Between the beginning of a message and a thought.
    pub(crate) const fn thought(self) -> &'static str {
        match self {
            Self::Harmony => "<|channel|>analysis<|message|>",
            Self::Atem => " to=self<|message|>",
        }
    }

    /// Between the beginning of a message and the answer.
    pub(crate) const fn said(self) -> &'static str {
        match self {
            Self::Harmony => "<|channel|>final<|message|>",
            Self::Atem => " to=user<|message|>",
        }
    }

    /// What ends a message, and behind that what ends an answer.
    pub(super) const fn ends(self) -> &'static [&'static str] {
        match self {
            Self::Harmony => &["<|end|>", "<|return|>", "<|call|>"],
            Self::Atem => &["<|eom|>", "<|eot|>"],
        }
    }

    /// What ends a message that is not the last.
    pub(crate) const fn end(self) -> &'static str {
        self.ends()[0]
    }

    /// After which the model is not to go on.
    pub(super) fn last(self) -> &'static [&'static str] {
        &self.ends()[1..]
    }

    /// The marks of a header.
    const fn header(self) -> &'static [&'static str] {
        match self {
            Self::Harmony => &[START, CHANNEL, CONSTRAIN, MESSAGE],
            Self::Atem => &[START, MESSAGE],
        }
    }

    /// Whether a header within a message begins another one.
    fn goes_on(self, header: &str) -> bool {
        self == Self::Harmony || header.starts_with(START)
    }

    /// All marks.
    pub(super) fn marks(self) -> impl Iterator<Item = &'static str> {
        self.header().iter().chain(self.ends()).copied()
    }

    /// The marks of thoughts.
    pub(super) fn reasoning(self) -> ReasoningFormat {
        ReasoningFormat { open: self.thought().trim_start().to_owned(), close: self.end().to_owned() }
    }
}

/// What stands before a message.
#[derive(Debug, Default, PartialEq, Eq)]
struct Header {
    channel: String,
    /// Whom it is to.
    to: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Fit {
    No,
    /// It is the beginning of a header; `said`: behind the channel stands more than a recipient and a kind.
    Part {
        said: bool,
    },
    Whole(Header),
}

/// Where in a header its next word or mark stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Begin,
    Role,
    BeforeChannel,
    Channel,
    BehindChannel,
}

impl Header {
    /// Fits `text` to a header: `<|start|>assistant`, which the prompt may have written, a recipient, `<|channel|>` with its name,
    /// a recipient, the kind of what follows, and `<|message|>`. There may be one recipient. ATEM has no channels.
    fn fit(of: Channels, text: &str) -> Fit {
        if text.len() > MAX_HEADER {
            return Fit::No;
        }
        let (mut header, mut place, mut rest) = (Self::default(), Place::Begin, text.trim_start());
        let (mut kinds, mut said) = (0, false);
        while !rest.is_empty() {
            if rest.starts_with('<') {
                let Some(mark) = of.header().iter().find(|mark| rest.starts_with(**mark)) else {
                    let part = of.header().iter().any(|mark| mark.starts_with(rest));
                    return if part { Fit::Part { said } } else { Fit::No };
                };
                place = match (*mark, place) {
                    (MESSAGE, Place::Begin) if of == Channels::Atem => return Fit::Whole(header),
                    (START, Place::Begin) => Place::Role,
                    (CHANNEL, Place::Begin | Place::BeforeChannel) => Place::Channel,
                    (CONSTRAIN, Place::BehindChannel) => Place::BehindChannel,
                    (MESSAGE, Place::BeforeChannel | Place::BehindChannel) => return Fit::Whole(header),
                    _ => return Fit::No,
                };
                rest = rest[mark.len()..].trim_start();
                continue;
            }
            let end = rest.find(|c: char| c.is_whitespace() || c == '<');
            let (word, whole) = (&rest[..end.unwrap_or(rest.len())], end.is_some());
            let is = |wanted: &str| if whole { word == wanted } else { wanted.starts_with(word) };
            let to = word.strip_prefix(RECIPIENT);
            match place {
                Place::Role if is(ROLE) => place = Place::BeforeChannel,
                Place::Begin | Place::BeforeChannel if to.is_some() => place = Place::BeforeChannel,
                Place::Begin | Place::BeforeChannel if !whole && RECIPIENT.starts_with(word) => {}
                Place::Channel if word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => {
                    header.channel = word.to_owned();
                    place = Place::BehindChannel;
                }
                Place::BehindChannel if to.is_some() => {}
                Place::BehindChannel => {
                    kinds += 1;
                    said |=
                        kinds > 1 || !word.chars().all(|c| c.is_ascii_alphanumeric() || "_-+/".contains(c));
                }
                _ => return Fit::No,
            }
            let twice = header.to.as_deref().zip(to);
            if twice.is_some_and(|(known, to)| if whole { known != to } else { !known.starts_with(to) }) {
                return Fit::No;
            }
            header.to = to.map(str::to_owned).or(header.to);
            rest = rest[word.len()..].trim_start();
        }
        Fit::Part { said }
    }
}

/// Tells the messages of an answer that comes in pieces. What is in no message is text, and so is a message to somebody who is no
/// tool, its header too.
#[derive(Debug, Clone)]
pub(super) struct ChannelParser {
    of: Channels,
    /// Tools that may be called.
    tools: Arc<[Tool]>,
    /// Whether the answer ends with its first call.
    single: bool,
    done: bool,
    state: State,
    /// What may belong to a mark or a header; in a call, all of it.
    held: String,
    /// Whether a message was there.
    begun: bool,
    /// Whether there were thoughts, and text.
    thought: bool,
    said: bool,
    /// Whether the message has no text yet: that of an earlier one is then to be told apart from it.
    fresh: bool,
    /// Calls of harmony's that have begun.
    calls: usize,
    /// What finds ATEM's calls in messages, where there are tools; and whether it is to in this one.
    finder: Option<ToolParser>,
    finds: bool,
    /// The header of a message to somebody unknown, and white space behind it: marks where a call follows, else text.
    unknown: String,
    events: Vec<ReplyEvent>,
}

#[derive(Debug, Clone)]
enum State {
    /// Before a message.
    Header,
    Thoughts,
    Text,
    /// The arguments of a call of harmony's; `begun`: their `{` was there.
    Call {
        scan: JsonScan,
        begun: bool,
    },
}

impl ChannelParser {
    /// A parser of an answer whose prompt ends within a thought (`thinking`), or before a message. `calls`: how ATEM's are written.
    pub(super) fn new(
        of: Channels,
        thinking: bool,
        calls: Option<&Arc<ToolFormat>>,
        tools: &[Tool],
        single: bool,
    ) -> Self {
        let calls = calls.filter(|_| of == Channels::Atem && !tools.is_empty());
        Self {
            of,
            finder: calls.map(|calls| ToolParser::new(Arc::clone(calls), tools, single)),
            finds: true,
            unknown: String::new(),
            tools: tools.into(),
            single,
            done: false,
            state: if thinking { State::Thoughts } else { State::Header },
            held: String::new(),
            begun: thinking,
            thought: false,
            said: false,
            fresh: true,
            calls: 0,
            events: Vec::new(),
        }
    }

    /// Whether the only call that is wanted has come to its end.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<ReplyEvent> {
        text.chars().for_each(|c| self.take(c));
        std::mem::take(&mut self.events)
    }

    /// What is left at the end of the text. A header that never came to its message is marks, which nobody wants to read, unless
    /// something was said in it.
    pub(super) fn finish(&mut self) -> Vec<ReplyEvent> {
        let mut held = std::mem::take(&mut self.held);
        if self.in_call() && self.of.ends().contains(&held.as_str()) {
            held.clear();
        }
        let of_header = |mark: &&str| held.trim_start().starts_with(*mark);
        let is_marks = (self.of.header().iter().any(of_header)
            // The first header of ATEM's, whose mark the prompt has.
            || self.of == Channels::Atem && !self.begun && of_header(&RECIPIENT))
            && Header::fit(self.of, &held) == Fit::Part { said: false };
        match std::mem::replace(&mut self.state, State::Header) {
            State::Call { .. } => self.broken(held),
            State::Header if self.begun && held.trim().is_empty() => {}
            _ if is_marks => {}
            State::Thoughts => {
                self.state = State::Thoughts;
                self.emit(&held);
            }
            state @ (State::Header | State::Text) => {
                self.fresh |= matches!(state, State::Header);
                self.state = State::Text;
                self.emit(&held);
            }
        }
        self.close();
        std::mem::take(&mut self.events)
    }

    /// A message ends: no call goes on in the next one.
    fn close(&mut self) {
        let found = self.finder.as_mut().map(ToolParser::finish).unwrap_or_default();
        found.into_iter().for_each(|event| self.found(event));
        let unknown = std::mem::take(&mut self.unknown);
        self.say(&unknown);
    }

    /// Whether the message is within a call of ATEM's.
    fn in_call(&self) -> bool {
        matches!(self.state, State::Text) && self.finder.as_ref().is_some_and(ToolParser::in_call)
    }

    /// What was found in a message to somebody who may be called.
    fn found(&mut self, event: ReplyEvent) {
        match event {
            ReplyEvent::Content(text) if !self.unknown.is_empty() => {
                self.unknown.push_str(&text);
                if !text.trim().is_empty() {
                    let text = std::mem::take(&mut self.unknown);
                    self.say(&text);
                }
            }
            ReplyEvent::Content(text) => self.say(&text),
            event => {
                if matches!(event, ReplyEvent::Call { .. }) {
                    self.unknown.clear();
                }
                if matches!(event, ReplyEvent::CallBroken { .. }) {
                    (self.said, self.fresh) = (true, false);
                }
                self.add(event);
            }
        }
    }

    fn add(&mut self, event: ReplyEvent) {
        ReplyEvent::add(&mut self.events, event);
    }

    /// Gives out text of the message, in which there may be calls.
    fn emit(&mut self, text: &str) {
        match &mut self.finder {
            Some(finder) if self.finds && matches!(self.state, State::Text) => {
                let found = finder.push(text);
                self.done |= finder.is_done();
                found.into_iter().for_each(|event| self.found(event));
            }
            _ => self.say(text),
        }
    }

    /// Gives out text of the message.
    fn say(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let thoughts = matches!(self.state, State::Thoughts);
        let seen = if thoughts { &mut self.thought } else { &mut self.said };
        let before = std::mem::replace(seen, true);
        let apart = if std::mem::take(&mut self.fresh) && before { "\n\n" } else { "" };
        let text = format!("{apart}{text}");
        self.add(if thoughts { ReplyEvent::Reasoning(text) } else { ReplyEvent::Content(text) });
    }

    fn take(&mut self, c: char) {
        if self.done {
            return;
        }
        self.held.push(c);
        if matches!(self.state, State::Call { .. }) {
            return self.call(c);
        }
        while !self.held.is_empty() {
            if self.in_call() {
                // Marks within a call are a part of it, but for those between two messages: it was not ended.
                const BETWEEN: &str = "<|eom|><|start|>assistant";
                if self.held == BETWEEN {
                    self.close();
                    (self.begun, self.finds, self.state) = (true, true, State::Header);
                    self.held.replace_range(..BETWEEN.len() - NEXT.len(), "");
                    return;
                }
                if BETWEEN.starts_with(&self.held)
                    || self.of.last().iter().any(|end| end.starts_with(&self.held))
                {
                    return;
                }
                let first = self.held.remove(0);
                self.emit(first.encode_utf8(&mut [0; 4]));
                if self.done {
                    return self.held.clear();
                }
                continue;
            }
            let inside = !matches!(self.state, State::Header);
            let tail = if inside { self.held.as_str() } else { self.held.trim_start() };
            if self.of.ends().contains(&tail) {
                self.held.clear();
                self.close();
                (self.begun, self.finds) = (true, true);
                self.state = State::Header;
                return;
            }
            let mark = tail.starts_with('<');
            let is_blank = self.held.len() - tail.len() > MAX_HEADER;
            if !is_blank && (!inside || mark) {
                // Within a message, only what has a mark of its own begins another one.
                match Header::fit(self.of, tail) {
                    Fit::Whole(header) if !inside || self.of.goes_on(tail) => return self.begin(&header),
                    Fit::Part { .. } => return,
                    Fit::No if self.of.ends().iter().any(|end| end.starts_with(tail)) => return,
                    Fit::Whole(_) | Fit::No => {}
                }
            }
            if !inside {
                self.state = State::Text;
                (self.begun, self.fresh) = (true, true);
            }
            let first = self.held.remove(0);
            self.emit(first.encode_utf8(&mut [0; 4]));
        }
    }

    /// A message begins, whose header is held.
    fn begin(&mut self, header: &Header) {
        self.close();
        (self.begun, self.fresh) = (true, true);
        if self.of == Channels::Atem {
            return self.address(header.to.as_deref());
        }
        let name = header.to.as_deref().map(|to| to.strip_prefix(FUNCTIONS).unwrap_or(to));
        let tool = name.and_then(|name| self.tools.iter().find(|tool| tool.name == name));
        if let Some(name) = tool.map(|tool| tool.name.clone()) {
            let index = self.calls;
            self.calls += 1;
            self.add(ReplyEvent::Call { index, name });
            self.state = State::Call { scan: JsonScan::new(), begun: false };
            return;
        }
        self.state = if header.channel == "analysis" { State::Thoughts } else { State::Text };
        let held = std::mem::take(&mut self.held);
        if header.to.is_some() {
            self.emit(&held);
        }
    }

    /// A message of ATEM's begins: a thought, a text to the reader, or one that may hold calls. To whom these are does not say which
    /// tool is called.
    fn address(&mut self, to: Option<&str>) {
        let held = std::mem::take(&mut self.held);
        let is_tool = |to: &str| {
            let rest = |tool: &Tool| {
                tool.name.strip_prefix(to).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            self.tools.iter().any(rest)
        };
        let (state, finds, known) = match to {
            Some(Channels::ONESELF) => (State::Thoughts, false, true),
            Some(READER) => (State::Text, is_tool(READER), true),
            Some(to) => (State::Text, true, is_tool(to)),
            None => (State::Text, true, true),
        };
        (self.state, self.finds) = (state, finds);
        match &self.finder {
            _ if known => {}
            Some(_) => self.unknown = held,
            None => self.emit(&held),
        }
    }

    fn call(&mut self, c: char) {
        let State::Call { scan, begun } = &mut self.state else { return };
        if !*begun && c.is_whitespace() {
            return;
        }
        let step = if *begun || c == '{' { scan.push(c) } else { Step::Bad };
        *begun = true;
        let index = self.calls.saturating_sub(1);
        match step {
            Step::More | Step::Last => {
                self.add(ReplyEvent::Arguments { index, text: c.into() });
                if step == Step::Last {
                    self.add(ReplyEvent::CallEnd { index });
                    self.held.clear();
                    self.state = State::Header;
                    self.done = self.single;
                }
            }
            Step::After | Step::Bad => {
                self.held.pop();
                let held = std::mem::take(&mut self.held);
                self.broken(held);
                self.state = State::Text;
                self.take(c);
            }
        }
    }

    /// The call that began last is none.
    fn broken(&mut self, text: String) {
        (self.said, self.fresh) = (true, false);
        self.add(ReplyEvent::CallBroken { index: self.calls.saturating_sub(1), text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_told_from_text() {
        let whole = |channel: &str, to: Option<&str>| {
            Fit::Whole(Header { channel: channel.into(), to: to.map(str::to_owned) })
        };
        let call = Some("functions.f");
        for (text, wanted) in [
            ("<|channel|>analysis<|message|>", whole("analysis", None)),
            ("<|start|>assistant<|channel|>final<|message|>", whole("final", None)),
            (" to=functions.f<|channel|>commentary json<|message|>", whole("commentary", call)),
            (
                "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>",
                whole("commentary", call),
            ),
            ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>", whole("commentary", call)),
            ("<|channel|>commentary to=functions.f<|message|>", whole("commentary", call)),
            ("<|start|>assistant to=functions.f<|message|>", whole("", call)),
        ] {
            assert_eq!(Header::fit(Channels::Harmony, text), wanted, "{text:?}");
            for cut in 0..text.len() {
                assert_eq!(
                    Header::fit(Channels::Harmony, &text[..cut]),
                    Fit::Part { said: false },
                    "{:?}",
                    &text[..cut]
                );
            }
        }
        for text in [
            "Yes",
            "to be",
            "<|start|>user",
            "<|start|>assistants",
            "<|start|><|channel|>",
            "<|message|>",
            "<|channel|><|message|>",
            "<|channel|>final<|end|>",
            "<|channel|>final<|channel|>",
            "<|channel|>fi-nal",
            "<|constrain|>",
            "<|channel|>final to=a to=b",
            " to=a<|channel|>commentary to=ab<|message|>",
            "<b>",
        ] {
            assert_eq!(Header::fit(Channels::Harmony, text), Fit::No, "{text:?}");
        }
        for (text, said) in [
            ("<|channel|>final json", false),
            (
                "<|start|>assistant to=functions.f<|channel|>commentary to=functions.f <|constrain|>json",
                false,
            ),
            ("<|channel|>commentary to=functions.f application/json<|mess", false),
            ("<|channel|>final Yes it", true),
            ("<|channel|>final Yes.", true),
            ("<|channel|>final \u{4eca}\u{65e5}<|mess", true),
        ] {
            assert_eq!(Header::fit(Channels::Harmony, text), Fit::Part { said }, "{text:?}");
        }
        let long = format!("<|channel|>final {}", "x".repeat(MAX_HEADER));
        assert_eq!(Header::fit(Channels::Harmony, &long), Fit::No);
    }

    #[test]
    fn headers_of_atem_say_whom_a_message_is_to() {
        let whole =
            |to: Option<&str>| Fit::Whole(Header { channel: String::new(), to: to.map(str::to_owned) });
        for (text, to) in [
            ("<|message|>", None),
            (" to=self<|message|>", Some("self")),
            ("<|start|>assistant<|message|>", None),
            ("<|start|>assistant to=web.search<|message|>", Some("web.search")),
            ("<|start|> assistant  to=user <|message|>", Some("user")),
        ] {
            assert_eq!(Header::fit(Channels::Atem, text), whole(to), "{text:?}");
            for cut in 0..text.len() {
                assert_eq!(
                    Header::fit(Channels::Atem, &text[..cut]),
                    Fit::Part { said: false },
                    "{:?}",
                    &text[..cut]
                );
            }
        }
        for text in
            ["Yes", "<|channel|>", "<|start|>user", "<|start|><|message|>", "to=a to=b", "<atem:", "<|eom|>"]
        {
            assert_eq!(Header::fit(Channels::Atem, text), Fit::No, "{text:?}");
        }
    }
}
