//! A model's answer, read as it is generated: what it thinks, what it says, which tools it calls.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::channels::{ChannelParser, Channels};
use super::message::Message;
use super::reasoning::{ReasoningFormat, ReasoningSplitter, ThoughtPart};
use super::tokenizer::Tokenizer;
use super::tool::Tool;
use super::tools::{ReplyEvent, ToolFormat, ToolParser};

/// How a model writes the parts of its answers, as its chat template shows it ([`super::ChatTemplate::reply_format`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyFormat {
    /// The marks that it thinks between; none where the template knows none.
    pub reasoning: Option<ReasoningFormat>,
    /// How it writes tool calls; none where that is not known, and calls are then text.
    pub tools: Option<Arc<ToolFormat>>,
    /// The form of the messages that an answer is, where it is such: thoughts are then one of these, and so are calls.
    pub channels: Option<Channels>,
}

impl ReplyFormat {
    /// The special tokens of which the marks are made: they have to be visible ([`crate::Options::visible`]).
    pub fn visible(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let reasoning = self.reasoning.iter().flat_map(|format| [format.open.as_str(), &format.close]);
        let tools = self.tools.iter().flat_map(|format| format.texts());
        let messages: Vec<&str> = self.channels.into_iter().flat_map(Channels::marks).collect();
        let texts: Vec<&str> = reasoning.chain(tools).chain(messages).collect();
        let special = tokenizer.special_texts().filter(|special| !special.is_empty());
        let marks = special.filter(|special| texts.iter().any(|text| text.contains(special)));
        marks.filter_map(|mark| tokenizer.token_id(mark)).collect()
    }

    /// The tokens, by their texts, after which its model is not to go on, whether or not its template writes them.
    pub(crate) fn ends(&self) -> &'static [&'static str] {
        self.channels.map_or(&[][..], Channels::last)
    }
}

/// Turns pieces of text into what they are. The events do not depend on how the text was cut, but for where adjacent texts of
/// one kind are; nothing of the text is lost but marks, and white space beside them.
#[derive(Debug, Clone)]
pub struct ReplyParser {
    reasoning: Option<ReasoningSplitter>,
    tools: Option<ToolParser>,
    /// In place of both.
    messages: Option<ChannelParser>,
}

impl ReplyParser {
    /// A parser of one answer. `thinking`: the prompt ends where the model is to think ([`ReasoningFormat::is_open`]).
    /// `tools`: those that may be called; where there are none, nothing is a call.
    pub fn new(format: &ReplyFormat, thinking: bool, tools: &[Tool]) -> Self {
        Self::with_calls(format, thinking, tools, false)
    }

    /// A parser of an answer that ends with its first call: nothing behind it is reported ([`Self::is_done`]).
    pub fn single_call(format: &ReplyFormat, thinking: bool, tools: &[Tool]) -> Self {
        Self::with_calls(format, thinking, tools, true)
    }

    fn with_calls(format: &ReplyFormat, thinking: bool, tools: &[Tool], single: bool) -> Self {
        if let Some(of) = format.channels {
            let messages = Some(ChannelParser::new(of, thinking, format.tools.as_ref(), tools, single));
            return Self { reasoning: None, tools: None, messages };
        }
        let reasoning = format.reasoning.clone().map(|format| ReasoningSplitter::new(format, thinking));
        let calls = format.tools.as_ref().filter(|_| !tools.is_empty());
        let tools = calls.map(|format| ToolParser::new(Arc::clone(format), tools, single));
        Self { reasoning, tools, messages: None }
    }

    /// Whether the answer has come to its end, though the model may write on: whoever generates it may stop.
    pub fn is_done(&self) -> bool {
        self.tools.as_ref().is_some_and(ToolParser::is_done)
            || self.messages.as_ref().is_some_and(ChannelParser::is_done)
    }

    /// Takes the next piece, and returns what is now certain.
    pub fn push(&mut self, piece: &str) -> Vec<ReplyEvent> {
        if let Some(messages) = &mut self.messages {
            return messages.push(piece);
        }
        let parts = match &mut self.reasoning {
            Some(splitter) => splitter.push(piece),
            None => vec![ThoughtPart::Content(piece.to_owned())],
        };
        self.events(parts)
    }

    /// What was held back, at the end of the text.
    pub fn finish(&mut self) -> Vec<ReplyEvent> {
        if let Some(messages) = &mut self.messages {
            return messages.finish();
        }
        let parts = self.reasoning.as_mut().map(ReasoningSplitter::finish).unwrap_or_default();
        let mut events = self.events(parts);
        let last = self.tools.as_mut().map(ToolParser::finish).unwrap_or_default();
        last.into_iter().for_each(|event| ReplyEvent::add(&mut events, event));
        events
    }

    fn events(&mut self, parts: Vec<ThoughtPart>) -> Vec<ReplyEvent> {
        let mut events = Vec::new();
        for part in parts {
            match (part, &mut self.tools) {
                (ThoughtPart::Reasoning(text), _) => {
                    ReplyEvent::add(&mut events, ReplyEvent::Reasoning(text))
                }
                (ThoughtPart::Content(text), Some(tools)) => {
                    tools.push(&text).into_iter().for_each(|event| ReplyEvent::add(&mut events, event));
                }
                (ThoughtPart::Content(text), None) if text.is_empty() => {}
                (ThoughtPart::Content(text), None) => ReplyEvent::add(&mut events, ReplyEvent::Content(text)),
            }
        }
        events
    }
}

/// A whole answer, put together of its events.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    /// What the model thought.
    pub reasoning: String,
    /// What it said.
    pub content: String,
    /// The tools that it calls, with their arguments: a JSON object each, as written.
    pub calls: Vec<ToolCall>,
}

/// A call of a tool.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// Its arguments: a JSON object, as written.
    pub arguments: String,
}

impl Reply {
    /// Takes the next event. A call that turns out to be none becomes text.
    pub fn take(&mut self, event: ReplyEvent) {
        match event {
            ReplyEvent::Reasoning(text) => self.reasoning += &text,
            ReplyEvent::Content(text) => self.content += &text,
            ReplyEvent::Call { name, .. } => self.calls.push(ToolCall { name, arguments: String::new() }),
            ReplyEvent::Arguments { text, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments += &text;
                }
            }
            ReplyEvent::CallEnd { .. } => {}
            ReplyEvent::CallBroken { text, .. } => {
                self.calls.pop();
                self.content += &text;
            }
        }
    }

    /// The assistant's message that it is to the next turn. A call has an id by its number, which the message with its result
    /// names as `tool_call_id`: nine letters and digits, as Mistral's templates want it.
    pub fn to_message(&self) -> Message {
        let mut message = Message::new("assistant", self.content.as_str());
        if !self.reasoning.is_empty() {
            message.extra.insert("reasoning_content".into(), self.reasoning.as_str().into());
        }
        if !self.calls.is_empty() {
            if self.content.is_empty() {
                message.content = Json::Null;
            }
            let call = |(number, call): (usize, &ToolCall)| {
                let function = json!({ "name": call.name, "arguments": call.arguments });
                json!({ "id": format!("call{number:05}"), "type": "function", "function": function })
            };
            message.extra.insert("tool_calls".into(), self.calls.iter().enumerate().map(call).collect());
        }
        message
    }
}

#[cfg(test)]
#[path = "reply/tests.rs"]
mod tests;
