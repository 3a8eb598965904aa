//! Calls whose arguments are a JSON object.

use serde_json::{Map, Value as Json};

use super::super::scan::{JsonScan, Step};
use super::super::tool::Tool;
use super::mark::{self, Named};
use super::{CallObject, ID, ReplyEvent};

/// A call as an object, from behind its `{`: a name, arguments, and what some models write beside them.
#[derive(Debug, Clone)]
pub(super) struct ObjectCall {
    /// The members that its template writes.
    name_key: String,
    arguments_key: String,
    member: Member,
    name: Option<String>,
    /// Arguments that came before the name, or as a string.
    early: Option<String>,
    /// Whether the call has been told of.
    named: bool,
    /// Whether its arguments are whole.
    complete: bool,
}

#[derive(Debug, Clone)]
enum Member {
    /// A key, or the end; `first`: right after `{`.
    Key {
        first: bool,
    },
    InKey(JsonScan, String),
    Colon(Role),
    /// A value, and its text so far.
    Value {
        role: Role,
        scan: JsonScan,
        text: String,
    },
    Comma,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Name,
    Arguments,
    /// `"type": "function"`, an id.
    Other,
}

impl ObjectCall {
    pub(super) fn new(call: &CallObject) -> Self {
        Self {
            name_key: call.name.clone(),
            arguments_key: call.arguments.clone(),
            member: Member::Key { first: true },
            name: None,
            early: None,
            named: false,
            complete: false,
        }
    }

    pub(super) fn named(&self) -> bool {
        self.named
    }

    fn role(&self, key: &str) -> Option<Role> {
        match key {
            _ if key == self.name_key => Some(Role::Name),
            _ if key == self.arguments_key => Some(Role::Arguments),
            "name" => Some(Role::Name),
            "arguments" | "parameters" => Some(Role::Arguments),
            "type" | "id" | "tool_call_id" | "index" => Some(Role::Other),
            _ => None,
        }
    }

    /// Takes the next character; events name no call yet.
    pub(super) fn push(&mut self, c: char, tools: &[Tool], events: &mut Vec<ReplyEvent>) -> Step {
        let space = matches!(c, ' ' | '\t' | '\n' | '\r');
        self.member = match std::mem::replace(&mut self.member, Member::Comma) {
            state @ (Member::Key { .. } | Member::Colon(_) | Member::Comma) if space => state,
            Member::Key { .. } if c == '"' => {
                let mut scan = JsonScan::new();
                scan.push(c);
                Member::InKey(scan, c.into())
            }
            Member::Key { first: true } | Member::Comma if c == '}' => return self.end(events),
            Member::Comma if c == ',' => Member::Key { first: false },
            Member::InKey(mut scan, mut text) => {
                text.push(c);
                match scan.push(c) {
                    Step::More => Member::InKey(scan, text),
                    Step::Last => {
                        let key = crate::json::generated::<String>(&text).ok();
                        match key.and_then(|key| self.role(&key)) {
                            Some(role) => Member::Colon(role),
                            None => return Step::Bad,
                        }
                    }
                    _ => return Step::Bad,
                }
            }
            Member::Colon(role) if c == ':' => {
                Member::Value { role, scan: JsonScan::new(), text: String::new() }
            }
            Member::Value { role, scan, text } => return self.value(c, role, scan, text, tools, events),
            _ => return Step::Bad,
        };
        Step::More
    }

    fn value(
        &mut self,
        c: char,
        role: Role,
        mut scan: JsonScan,
        mut text: String,
        tools: &[Tool],
        events: &mut Vec<ReplyEvent>,
    ) -> Step {
        let step = scan.push(c);
        let first = text.is_empty() && !c.is_whitespace();
        // Each is given once: the name a string, the arguments an object, the text of one, or null.
        let good = match role {
            _ if !first => true,
            Role::Name => c == '"' && self.name.is_none(),
            Role::Arguments => matches!(c, '{' | '"' | 'n') && !self.complete && self.early.is_none(),
            Role::Other => true,
        };
        if step == Step::Bad || !good {
            return Step::Bad;
        }
        if step != Step::After && !(text.is_empty() && c.is_whitespace()) {
            text.push(c);
            if role == Role::Arguments && self.name.is_some() && text.starts_with('{') {
                if first && !self.tell(events) {
                    return Step::Bad;
                }
                ReplyEvent::add(events, ReplyEvent::Arguments { index: 0, text: c.into() });
            }
        }
        if step == Step::More {
            self.member = Member::Value { role, scan, text };
            return Step::More;
        }
        match role {
            Role::Name => match crate::json::generated::<String>(&text) {
                Ok(name) if tools.iter().any(|tool| tool.name == name) => self.name = Some(name),
                _ => return Step::Bad,
            },
            Role::Arguments if self.named => self.complete = true,
            Role::Arguments => match as_object(text) {
                Some(object) => self.early = Some(object),
                None => return Step::Bad,
            },
            Role::Other => {}
        }
        if step == Step::After { self.push(c, tools, events) } else { Step::More }
    }

    fn tell(&mut self, events: &mut Vec<ReplyEvent>) -> bool {
        let Some(name) = self.name.clone() else { return false };
        events.push(ReplyEvent::Call { index: 0, name });
        self.named = true;
        true
    }

    /// The object ends: a call needs a name, and no arguments.
    fn end(&mut self, events: &mut Vec<ReplyEvent>) -> Step {
        if !self.complete {
            if !self.tell(events) {
                return Step::Bad;
            }
            let text = self.early.take().unwrap_or_else(|| "{}".into());
            events.push(ReplyEvent::Arguments { index: 0, text });
        }
        Step::Last
    }
}

/// The object in `text`: one as it is, the one that a string holds, or none for null.
fn as_object(text: String) -> Option<String> {
    let text = match text.chars().next()? {
        '{' => return Some(text),
        '"' => crate::json::generated::<String>(&text).ok()?,
        _ => String::new(),
    };
    match text.trim() {
        "" => Some("{}".to_owned()),
        text => crate::json::generated::<Map<String, Json>>(text).is_ok().then(|| text.to_owned()),
    }
}

/// A call as a name, a mark, and an object of arguments.
#[derive(Debug, Clone)]
pub(super) struct NamedCall {
    /// The mark, and what a model may write for it.
    marks: Vec<String>,
    /// The name, and the mark behind it.
    head: String,
    /// The arguments; none before the mark is there.
    arguments: Option<JsonScan>,
    /// Whether the `{` of the arguments was there.
    begun: bool,
}

impl NamedCall {
    pub(super) fn new(middle: &str) -> Self {
        let mut marks = vec![middle.to_owned()];
        // Not every call has the identifier that its template writes.
        if middle.contains(ID)
            && let Some(last) = mark::marks(middle).last()
        {
            marks.push((*last).to_owned());
        }
        Self { marks, head: String::new(), arguments: None, begun: false }
    }

    pub(super) fn named(&self) -> bool {
        self.arguments.is_some()
    }

    /// Takes the next character; events name no call yet.
    pub(super) fn push(&mut self, c: char, tools: &[Tool], events: &mut Vec<ReplyEvent>) -> Step {
        if let Some(scan) = &mut self.arguments {
            if !self.begun && c.is_whitespace() {
                return Step::More;
            }
            if !self.begun && c != '{' {
                return Step::Bad;
            }
            self.begun = true;
            let step = scan.push(c);
            if step != Step::Bad {
                ReplyEvent::add(events, ReplyEvent::Arguments { index: 0, text: c.into() });
            }
            return step;
        }
        if self.head.is_empty() && c.is_whitespace() {
            return Step::More;
        }
        self.head.push(c);
        match mark::fit_name(&self.head, tools, &self.marks) {
            Named::Whole(tool, _) => {
                events.push(ReplyEvent::Call { index: 0, name: tool.name.clone() });
                self.arguments = Some(JsonScan::new());
            }
            Named::Part => {}
            Named::No => return Step::Bad,
        }
        Step::More
    }
}
