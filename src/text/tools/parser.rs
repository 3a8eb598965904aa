//! Calls among text, character by character.

use std::sync::Arc;

use super::super::scan::Step;
use super::super::tool::Tool;
use super::mark::{Fit, fit};
use super::object::{NamedCall, ObjectCall};
use super::python::PythonCall;
use super::tagged::TaggedCall;
use super::{CallFormat, ReplyEvent, ToolFormat};

/// Llama 3 may write this before a call that otherwise stands by itself; its template does not show it.
pub(super) const PYTHON_TAG: &str = "<|python_tag|>";

/// Finds tool calls in text that comes in pieces. The events do not depend on how it was cut, but for where adjacent texts are.
#[derive(Debug, Clone)]
pub(in crate::text) struct ToolParser {
    format: Arc<ToolFormat>,
    marks: Arc<Marks>,
    /// Tools that may be called.
    tools: Arc<[Tool]>,
    /// Whether the text ends with its first call.
    single: bool,
    done: bool,
    state: State,
    /// Text that may belong to a call: white space and the beginning of a mark, or all since the mark.
    held: Held,
    /// Calls that have begun.
    calls: usize,
    events: Vec<ReplyEvent>,
}

/// Text that is held back, of which the white space at its beginning is looked through once.
#[derive(Debug, Clone, Default)]
struct Held {
    text: String,
    /// Bytes at the beginning that are known to be white space.
    blank: usize,
}

impl Held {
    fn push(&mut self, c: char) {
        self.text.push(c);
    }

    /// What follows the white space at its beginning.
    fn tail(&mut self) -> &str {
        let held = &self.text[self.blank..];
        let more = held.len() - held.trim_start().len();
        #[cfg(test)]
        super::mark::LOOKED_AT.set(super::mark::LOOKED_AT.get() + more);
        self.blank += more;
        &self.text[self.blank..]
    }

    fn clear(&mut self) {
        *self = Self::default();
    }

    fn take(&mut self) -> String {
        std::mem::take(self).text
    }

    /// Gives out what stands before the tail, and of the tail its first character.
    fn take_first(&mut self) -> String {
        let first = self.tail().chars().next().map_or(0, char::len_utf8);
        let rest = self.text.split_off(self.blank + first);
        std::mem::replace(self, Self { text: rest, blank: 0 }).text
    }
}

/// The marks that are looked for, up to where a call's own text begins.
#[derive(Debug)]
struct Marks {
    /// Of the first call.
    starts: Vec<String>,
    /// Of a call that may only be the beginning of the text.
    lead: Option<String>,
    /// Of a call after another one.
    next: Vec<String>,
}

#[derive(Debug, Clone)]
enum State {
    /// Text; a mark may follow. `lead`: nothing but white space so far.
    Text { lead: bool },
    /// Within a call.
    Call(Body),
    /// After a call; `ended`: its end mark was there.
    After { ended: bool },
}

#[derive(Debug, Clone)]
enum Body {
    Object(ObjectCall),
    Named(NamedCall),
    Tagged(Box<TaggedCall>),
    Python(Box<PythonCall>),
}

impl Marks {
    fn new(format: &ToolFormat) -> Self {
        let ToolFormat { open, begin, .. } = format;
        if format.is_bare() && matches!(format.call, CallFormat::Python) {
            return Self { starts: Vec::new(), lead: Some(open.clone()), next: vec![",".to_owned()] };
        }
        if format.is_bare() {
            let lead = Some("{".to_owned());
            let next = ["{", ";{"].map(str::to_owned).to_vec();
            return Self { starts: vec![format!("{PYTHON_TAG}{{")], lead, next };
        }
        let object = matches!(format.call, CallFormat::Object(_));
        let first = if object { "{" } else { "" };
        let mut starts = vec![format!("{open}{begin}{first}")];
        // Some models leave out the mark around all calls, or all but the last one of a call.
        if !open.trim().is_empty() && !begin.trim().is_empty() {
            starts.push(format!("{begin}{first}"));
        }
        if !object && let Some(last) = begin.rfind('<').filter(|&last| last > 0) {
            starts.push(begin[last..].to_owned());
        }
        let next = format.separator.iter().map(|separator| format!("{separator}{begin}{first}")).collect();
        Self { starts, lead: None, next }
    }
}

impl Body {
    /// A call from behind its marks, of which an object's `{` is the last.
    fn new(format: &ToolFormat) -> Self {
        match &format.call {
            CallFormat::Object(call) => Self::Object(ObjectCall::new(call)),
            CallFormat::Named(middle) => Self::Named(NamedCall::new(middle)),
            CallFormat::Tagged(tags) => Self::Tagged(Box::new(TaggedCall::new(tags))),
            CallFormat::Python => Self::Python(Box::new(PythonCall::new())),
        }
    }

    fn push(&mut self, c: char, tools: &[Tool], events: &mut Vec<ReplyEvent>) -> Step {
        match self {
            Self::Object(call) => call.push(c, tools, events),
            Self::Named(call) => call.push(c, tools, events),
            Self::Tagged(call) => call.push(c, tools, events),
            Self::Python(call) => call.push(c, tools, events),
        }
    }

    /// Whether the call has been told of.
    fn named(&self) -> bool {
        match self {
            Self::Object(call) => call.named(),
            Self::Named(call) => call.named(),
            Self::Tagged(call) => call.named(),
            Self::Python(call) => call.named(),
        }
    }
}

impl ToolParser {
    /// A parser for calls of `tools`; with `single`, of the first one alone.
    pub(in crate::text) fn new(format: Arc<ToolFormat>, tools: &[Tool], single: bool) -> Self {
        Self {
            marks: Arc::new(Marks::new(&format)),
            format,
            tools: tools.into(),
            single,
            done: false,
            state: State::Text { lead: true },
            held: Held::default(),
            calls: 0,
            events: Vec::new(),
        }
    }

    /// Whether the only call that is wanted has come to its end: what follows is nothing.
    pub(in crate::text) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether it is within what may be a call.
    pub(in crate::text) fn in_call(&self) -> bool {
        matches!(self.state, State::Call(_))
    }

    pub(in crate::text) fn push(&mut self, text: &str) -> Vec<ReplyEvent> {
        text.chars().for_each(|c| self.take(c));
        std::mem::take(&mut self.events)
    }

    /// What is left at the end of the text.
    pub(in crate::text) fn finish(&mut self) -> Vec<ReplyEvent> {
        match std::mem::replace(&mut self.state, State::Text { lead: false }) {
            State::Call(body) => self.give_back(body.named()),
            // White space after the last call.
            _ if self.calls > 0 && self.held.tail().is_empty() => self.held.clear(),
            _ => self.release(),
        }
        std::mem::take(&mut self.events)
    }

    fn emit(&mut self, event: ReplyEvent) {
        ReplyEvent::add(&mut self.events, event);
    }

    /// Gives out as text what was held back.
    fn release(&mut self) {
        let text = self.held.take();
        self.say(text);
    }

    fn say(&mut self, text: String) {
        if !text.is_empty() {
            self.emit(ReplyEvent::Content(text));
        }
    }

    fn take(&mut self, c: char) {
        if self.done {
            return;
        }
        match std::mem::replace(&mut self.state, State::Text { lead: false }) {
            State::Text { lead } => self.text(c, lead),
            State::Call(body) => self.call(c, body),
            State::After { ended } => self.after(c, ended),
        }
    }

    /// Text: white space is held back until it is known not to stand before a call.
    fn text(&mut self, c: char, mut lead: bool) {
        self.held.push(c);
        let marks = Arc::clone(&self.marks);
        loop {
            let tail = self.held.tail();
            let starts = marks.starts.iter().chain(marks.lead.iter().filter(|_| lead));
            match starts.map(|mark| fit(mark, tail)).max() {
                Some(Fit::Whole) => {
                    self.state = State::Call(Body::new(&self.format));
                    return;
                }
                Some(Fit::Part) => {
                    self.state = State::Text { lead };
                    return;
                }
                // Nothing is looked for any more: a call would have been all of the text. White space may be its end.
                None => {
                    self.state = State::Text { lead };
                    if !tail.is_empty() {
                        self.release();
                    }
                    return;
                }
                Some(_) => {}
            }
            // No call begins with what is held; one may begin with a part of it.
            let text = self.held.take_first();
            self.say(text);
            lead = false;
        }
    }

    fn call(&mut self, c: char, mut body: Body) {
        let mut found = Vec::new();
        let step = body.push(c, &self.tools, &mut found);
        for event in found {
            if matches!(event, ReplyEvent::Call { .. }) {
                self.calls += 1;
            }
            self.emit(event.at(self.calls.saturating_sub(1)));
        }
        match step {
            Step::More => {
                self.held.push(c);
                self.state = State::Call(body);
            }
            Step::Last | Step::After => {
                self.held.clear();
                self.emit(ReplyEvent::CallEnd { index: self.calls.saturating_sub(1) });
                self.state = State::After { ended: false };
                self.done = self.single;
            }
            Step::Bad => {
                self.give_back(body.named());
                self.text(c, false);
            }
        }
    }

    /// What was held is no call.
    fn give_back(&mut self, named: bool) {
        let text = self.held.take();
        self.emit(match named {
            true => ReplyEvent::CallBroken { index: self.calls.saturating_sub(1), text },
            false => ReplyEvent::Content(text),
        });
    }

    /// After a call: what ends it, the next one, what closes them all, or text.
    fn after(&mut self, c: char, ended: bool) {
        self.held.push(c);
        let tail = self.held.tail();
        if tail.is_empty() {
            self.state = State::After { ended };
            return;
        }
        let (format, marks) = (Arc::clone(&self.format), Arc::clone(&self.marks));
        let mut part = false;
        let mut is = |mark: &str| {
            let fit = fit(mark, tail);
            part |= fit == Fit::Part;
            fit == Fit::Whole
        };
        let next = if !ended && is(&format.end) {
            Some(State::After { ended: true })
        } else if marks.next.iter().chain(&marks.starts).any(|mark| is(mark)) {
            self.state = State::Call(Body::new(&format));
            return;
        } else if is(&format.close) {
            Some(State::Text { lead: false })
        } else {
            None
        };
        match next {
            Some(state) => {
                self.held.clear();
                self.state = state;
            }
            None if part => self.state = State::After { ended },
            None => {
                let text = self.held.take();
                text.chars().for_each(|c| self.take(c));
            }
        }
    }
}
