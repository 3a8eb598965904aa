//! Messages as templates take them, and what a template makes of them.

use std::ops::Range;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::json as python;
use crate::alloc;

/// One message of a conversation, as the template sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, …
    pub role: String,
    /// Usually a string; a list of parts for some templates; null beside tool calls.
    #[serde(default)]
    pub content: Json,
    /// Whatever else the message has: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`, …
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Json::String(content.into()), extra: Map::new() }
    }
}

/// What a template is given beside the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// Whether the text ends where the assistant begins.
    pub add_generation_prompt: bool,
    /// Whether the text ends with the last message's, which is then to go on.
    pub continue_final_message: bool,
    /// Tools in OpenAI's JSON form.
    pub tools: Option<Vec<Json>>,
    /// Documents for retrieval.
    pub documents: Option<Vec<Json>>,
    /// Further variables (`enable_thinking`, …).
    pub extra: Map<String, Json>,
    /// What `strftime_now` shows, in UTC; none is the present.
    pub now: Option<SystemTime>,
}

/// A rendered conversation, which knows what of it was written in messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    pub(super) text: String,
    pub(super) literal: Vec<Range<usize>>,
}

impl Rendered {
    /// A copy, where there is memory for one.
    pub(super) fn copy(&self) -> crate::error::Result<Self> {
        const WHAT: &str = "a text to encode";
        let mut literal = Vec::new();
        alloc::reserve(&mut literal, self.literal.len(), WHAT)?;
        literal.extend_from_slice(&self.literal);
        Ok(Self { text: alloc::text_of(&self.text, WHAT)?, literal })
    }

    /// The text, as transformers renders it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Byte ranges that hold a special token's text but came from a message, ascending: text, not tokens.
    pub fn literal(&self) -> &[Range<usize>] {
        &self.literal
    }
}

/// The names under which templates read what a message thought; the first is the usual one.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// What a message without a content has in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoContent {
    /// Nothing: what transformers does.
    Absent,
    Null,
    Empty,
}

/// The forms of a conversation that templates expect, the usual one first: each is to be tried where those before it fail.
/// Arguments of calls are objects, or the text of one; a content that is none is absent, null, or empty. Empty is last: a
/// template may write calls only where there is no content.
pub(super) fn forms(messages: &[Message]) -> impl Iterator<Item = Json> {
    let bare = messages.iter().any(|message| message.content.is_null());
    let contents: &[NoContent] =
        if bare { &[NoContent::Absent, NoContent::Null, NoContent::Empty] } else { &[NoContent::Absent] };
    let calls = messages.iter().flat_map(|message| message.extra.get("tool_calls")?.as_array()).flatten();
    let written = calls.filter_map(|call| holder(call).get("arguments")).any(|given| object(given).is_some());
    let objects: &[bool] = if written { &[true, false] } else { &[true] };
    let form = |content, objects| {
        messages.iter().map(|message| Json::Object(members(message, content, objects))).collect()
    };
    contents.iter().flat_map(move |&content| objects.iter().map(move |&objects| form(content, objects)))
}

/// The members of a message: those that are null are absent, and what it thought has each of its names.
fn members(message: &Message, content: NoContent, objects: bool) -> Map<String, Json> {
    let mut members = Map::new();
    members.insert("role".into(), message.role.as_str().into());
    match (&message.content, content) {
        (Json::Null, NoContent::Absent) => {}
        (Json::Null, NoContent::Null) => drop(members.insert("content".into(), Json::Null)),
        (Json::Null, NoContent::Empty) => drop(members.insert("content".into(), "".into())),
        (given, _) => drop(members.insert("content".into(), given.clone())),
    }
    for (name, value) in message.extra.iter().filter(|(_, value)| !value.is_null()) {
        members.insert(name.clone(), value.clone());
    }
    if let Some(thoughts) = REASONING.iter().find_map(|name| members.get(*name)).cloned() {
        members.entry("thinking").or_insert_with(|| thoughts.clone());
        members.insert(REASONING[0].into(), thoughts);
    }
    for call in members.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
        let holder = if call.get("function").is_some() { &mut call["function"] } else { call };
        let Some(arguments) = holder.get_mut("arguments") else { continue };
        match (objects, &*arguments) {
            (true, given) => {
                if let Some(object) = object(given) {
                    *arguments = object;
                }
            }
            (false, Json::Object(_)) => *arguments = python::dumps(arguments).into(),
            (false, _) => {}
        }
    }
    members
}

/// The conversation with other ids of calls, each made of the call's number and its tool's name; none where no call has one.
pub(super) fn with_ids(messages: &[Message], make: impl Fn(usize, &str) -> String) -> Option<Vec<Message>> {
    let mut told = messages.to_vec();
    let mut known: Vec<(String, String)> = Vec::new();
    for message in &mut told {
        let calls = message.extra.get_mut("tool_calls").and_then(Json::as_array_mut);
        for call in calls.into_iter().flatten() {
            let Some(given) = call["id"].as_str().map(str::to_owned) else { continue };
            let made = make(known.len(), holder(call)["name"].as_str().unwrap_or_default());
            call["id"] = made.as_str().into();
            known.push((given, made));
        }
        let Some(id) = message.extra.get_mut("tool_call_id") else { continue };
        // Where an id occurs twice, a result is of the call before it.
        if let Some((_, made)) = known.iter().rev().find(|(given, _)| id.as_str() == Some(given.as_str())) {
            *id = made.as_str().into();
        }
    }
    (told != messages).then_some(told)
}

/// The conversation with what was said beside calls as the last of the thoughts before them, for a template that takes one of the
/// two; none where no message has both.
pub(super) fn said_as_thought(messages: &[Message]) -> Option<Vec<Message>> {
    let mut told = messages.to_vec();
    for message in &mut told {
        let calls =
            message.extra.get("tool_calls").and_then(Json::as_array).is_some_and(|calls| !calls.is_empty());
        let thoughts = REASONING.iter().find_map(|name| message.extra.get(*name)?.as_str());
        let both = thoughts
            .zip(message.content.as_str())
            .filter(|(thoughts, said)| calls && !thoughts.is_empty() && !said.is_empty());
        let Some(joined) = both.map(|(thoughts, said)| format!("{thoughts}\n\n{said}")) else { continue };
        for name in REASONING {
            message.extra.shift_remove(name);
        }
        message.extra.insert(REASONING[0].into(), joined.into());
        message.content = Json::Null;
    }
    (told != messages).then_some(told)
}

/// Where the arguments of a call are.
fn holder(call: &Json) -> &Json {
    call.get("function").unwrap_or(call)
}

/// Arguments as an object: one, or the text of one.
fn object(arguments: &Json) -> Option<Json> {
    match arguments {
        Json::Object(_) => Some(arguments.clone()),
        Json::String(text) if text.trim().is_empty() => Some(Json::Object(Map::new())),
        Json::String(text) => crate::json::generated(text).ok().filter(Json::is_object),
        _ => None,
    }
}

impl Message {
    /// The message with content in parts that are all text joined to one text, as most templates expect it.
    pub fn with_joined_text(mut self) -> Self {
        let texts = self.content.as_array().map(|parts| {
            let text = |part: &Json| match part["type"].as_str() {
                Some("text" | "input_text" | "output_text") => part["text"].as_str().map(str::to_owned),
                _ => None,
            };
            parts.iter().map(text).collect::<Option<Vec<String>>>()
        });
        if let Some(Some(texts)) = texts {
            self.content = Json::String(texts.concat());
        }
        self
    }
}
