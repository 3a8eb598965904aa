//! What Ollama's API answers: one object, or one in each line.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::super::answers::{AnswerPart, CallPart, Collected, Finish, Scored, Update, Usage};
use super::super::failure::{Dialect, Failure};
use super::super::openai::scored_json;
use super::super::served::Served;
use super::super::sse::{Encoder, Events, LINES};
use super::models::now_text;

/// Which of the two routes answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Told {
    Chat,
    Generate,
}

/// What all lines of an answer have in common.
pub(super) struct Shape {
    pub app: Arc<Served>,
    pub told: Told,
    pub logprobs: bool,
}

/// A part of an answer.
#[derive(Default)]
struct Piece {
    thinking: String,
    text: String,
    calls: Vec<Value>,
    tokens: Vec<Scored>,
}

impl Piece {
    fn is_empty(&self) -> bool {
        self.thinking.is_empty() && self.text.is_empty() && self.calls.is_empty() && self.tokens.is_empty()
    }
}

fn object(model: &str, told: Told, piece: Piece, done: bool) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("model".into(), model.into());
    object.insert("created_at".into(), now_text().into());
    match told {
        Told::Chat => {
            let mut message = json!({ "role": "assistant", "content": piece.text });
            if !piece.thinking.is_empty() {
                message["thinking"] = piece.thinking.into();
            }
            if !piece.calls.is_empty() {
                message["tool_calls"] = piece.calls.into();
            }
            object.insert("message".into(), message);
        }
        Told::Generate => {
            object.insert("response".into(), piece.text.into());
            if !piece.thinking.is_empty() {
                object.insert("thinking".into(), piece.thinking.into());
            }
        }
    }
    object.insert("done".into(), done.into());
    object
}

impl Shape {
    fn object(&self, mut piece: Piece, done: bool) -> Map<String, Value> {
        let tokens = std::mem::take(&mut piece.tokens);
        let mut object = object(&self.app.called, self.told, piece, done);
        if self.logprobs && !tokens.is_empty() {
            let scored: Value = tokens.iter().map(|scored| scored_json(&self.app, scored)).collect();
            object.insert("logprobs".into(), scored);
        }
        object
    }

    /// The end, with what the answer took in nanoseconds: from the start of its first step to its first token, and from there
    /// to its last.
    fn last(&self, piece: Piece, finish: Option<&Finish>, usage: Usage) -> Value {
        let mut object = self.object(piece, true);
        let reason = match finish {
            Some(Finish::Length) => "length",
            _ => "stop",
        };
        let (prompt, generation) = usage.timings.map(|timings| timings.times()).unwrap_or_default();
        object.insert("done_reason".into(), reason.into());
        object.insert("total_duration".into(), nanoseconds(self.app.asked.elapsed()));
        object.insert("load_duration".into(), nanoseconds(self.app.load));
        object.insert("prompt_eval_count".into(), usage.prompt.into());
        object.insert("prompt_eval_duration".into(), nanoseconds(prompt));
        object.insert("eval_count".into(), usage.generated.into());
        object.insert("eval_duration".into(), nanoseconds(generation));
        object.into()
    }

    /// The answer in one.
    pub fn whole(&self, texts: Vec<Collected>, usage: Usage) -> Value {
        let (mut piece, mut finish) = (Piece::default(), None);
        for text in texts {
            piece.thinking += &text.reasoning;
            piece.text += &text.text;
            piece.calls.extend(text.calls.iter().enumerate().map(|(index, call)| call_json(index, call)));
            piece.tokens.extend(text.tokens);
            finish = Some(text.finish);
        }
        self.last(piece, finish.as_ref(), usage)
    }
}

/// What is said to who asks for nothing but that a model be loaded, or unloaded.
pub(super) fn idle(model: &str, told: Told, reason: &str) -> Value {
    let mut object = object(model, told, Piece::default(), true);
    object.insert("done_reason".into(), reason.into());
    object.into()
}

/// A duration as this API tells it.
pub(super) fn nanoseconds(time: Duration) -> Value {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).into()
}

/// A call, whose arguments are an object here.
fn call_json(index: usize, call: &CallPart) -> Value {
    let arguments: Value = crate::json::generated(&call.arguments).unwrap_or_else(|_| json!({}));
    let function = json!({ "index": index, "name": call.name, "arguments": arguments });
    json!({ "id": call.id, "function": function })
}

/// A stream of lines. A call is told of when it is whole.
pub(super) struct Lines {
    shape: Shape,
    /// The call that is being written, and which it is.
    open: Option<(usize, CallPart)>,
    finish: Option<Finish>,
}

impl Lines {
    pub fn new(shape: Shape) -> Self {
        Self { shape, open: None, finish: None }
    }

    fn close(&mut self, out: &mut Events) {
        if let Some((index, call)) = self.open.take() {
            self.line(Piece { calls: vec![call_json(index, &call)], ..Piece::default() }, out);
        }
    }

    fn line(&self, piece: Piece, out: &mut Events) {
        if !piece.is_empty() {
            out.line(&self.shape.object(piece, false).into());
        }
    }
}

impl Encoder for Lines {
    const KIND: &str = LINES;

    fn begin(&mut self, _: &mut Events) {}

    fn update(&mut self, update: Update, out: &mut Events) {
        // Log-probabilities are of the token that brought the parts: the first line has them.
        let mut tokens: Vec<Scored> = update.token.into_iter().collect();
        for part in update.parts {
            let piece = match part {
                AnswerPart::Reasoning(thinking) => Piece { thinking, ..Piece::default() },
                AnswerPart::Text(text) => {
                    self.close(out);
                    Piece { text, ..Piece::default() }
                }
                AnswerPart::Call { index, id, name } => {
                    self.close(out);
                    self.open = Some((index, CallPart { id, name, arguments: String::new() }));
                    continue;
                }
                AnswerPart::Arguments { text, .. } => {
                    if let Some((_, call)) = &mut self.open {
                        call.arguments += &text;
                    }
                    continue;
                }
                AnswerPart::Broken(text) => {
                    self.open = None;
                    Piece { text, ..Piece::default() }
                }
            };
            self.line(Piece { tokens: std::mem::take(&mut tokens), ..piece }, out);
        }
        self.line(Piece { tokens, ..Piece::default() }, out);
        if update.finish.is_some() {
            self.close(out);
            self.finish = update.finish;
        }
    }

    fn end(&mut self, usage: Usage, out: &mut Events) {
        out.line(&self.shape.last(Piece::default(), self.finish.as_ref(), usage));
    }

    fn fail(&mut self, failure: &Failure, out: &mut Events) {
        out.line(&failure.json(Dialect::Ollama));
    }

    fn heartbeat(&mut self, out: &mut Events) {
        out.space();
    }
}
