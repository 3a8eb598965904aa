//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use serde_json::{Map, Value, json};

use super::answers::{Answers, Call, Collected, Finish, Job, Part, Scored, Update, Usage};
use super::app::{App, now};
use super::failure::{Dialect, Failure, json_body};
use super::forms;
use super::json::Fields;
use super::params::{self, Common};
use super::routes::{Reply, fields};
use super::sse::{self, Encoder, Events};
use crate::sample::Grammar;
use crate::text::Chat;

/// What a request asks for.
struct Asked {
    common: Common,
    chat: Chat,
    /// What the text is to be.
    format: Option<Grammar>,
    logprobs: bool,
}

impl Asked {
    fn take(app: &App, mut fields: Fields) -> Result<Self, Failure> {
        let mut common = Common::take(app, &mut fields)?;
        let mut chat = Chat::new(params::messages(&mut fields)?);
        chat.variables = params::template_variables(&mut fields)?;
        forms::chat_tools(&mut fields, &mut chat)?;
        let format = forms::response_format(&mut fields)?;
        let logprobs = fields.flag("logprobs")?.unwrap_or(false);
        let top = fields.whole("top_logprobs", 0, 20)?;
        if top.is_some_and(|top| top > 0) && !logprobs {
            return Err(fields.wrong("top_logprobs", "it needs logprobs"));
        }
        common.options.sampling.logprobs = logprobs.then_some(top.unwrap_or(0) as usize);
        fields.only("modalities", &[json!(["text"])])?;
        fields.finish()?;
        Ok(Self { common, chat, format, logprobs })
    }
}

pub(crate) async fn create(State(app): State<Arc<App>>, request: Request) -> Reply {
    let asked = Instant::now();
    let Asked { common, chat, format, logprobs } = Asked::take(&app, fields(&app, request).await?)?;
    let places = app.places(common.n)?;
    let turn = app.apart(move |model| model.prepare(&chat, format.as_ref())).await?;
    let job = Job::of_turn(&turn, common.n, common.options);
    let answers = Answers::start(&app, &job, places, asked)?;
    let shape = Shape { id: app.id("chatcmpl-"), created: now(), logprobs, app: Arc::clone(&app) };
    if common.stream {
        return Ok(sse::stream(answers, Chunks { shape, usage: common.usage, n: common.n }));
    }
    let (texts, usage) = answers.collect().await?;
    Ok(json_body(&shape.whole(texts, usage)))
}

/// What all parts of an answer say alike.
struct Shape {
    app: Arc<App>,
    id: String,
    created: u64,
    logprobs: bool,
}

impl Shape {
    fn whole(&self, texts: Vec<Collected>, usage: Usage) -> Value {
        let choices: Vec<Value> = texts
            .into_iter()
            .enumerate()
            .map(|(index, text)| {
                json!({
                    "index": index,
                    "message": message(&text),
                    "logprobs": self.logprobs(&text.tokens),
                    "finish_reason": finish_reason(&text.finish),
                })
            })
            .collect();
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.app.name,
            "choices": choices,
            "usage": usage_json(usage),
            "system_fingerprint": self.app.fingerprint,
        })
    }

    fn chunk(&self, choices: Value, usage: Option<Value>) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.app.name,
            "choices": choices,
            "system_fingerprint": self.app.fingerprint,
        });
        if let Some(usage) = usage {
            chunk["usage"] = usage;
        }
        chunk
    }

    fn logprobs(&self, tokens: &[Scored]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let content: Vec<Value> = tokens
            .iter()
            .map(|scored| {
                let mut entry = token_json(&self.app, scored.token, scored.logprob);
                let top = scored.top.iter().map(|&(token, logprob)| token_json(&self.app, token, logprob));
                entry.insert("top_logprobs".into(), top.map(Value::Object).collect::<Vec<_>>().into());
                Value::Object(entry)
            })
            .collect();
        json!({ "content": content, "refusal": null })
    }
}

/// A token as OpenAI's log-probabilities show it: bytes that are no whole character show as U+FFFD in `token`.
pub(crate) fn token_json(app: &App, token: u32, logprob: f32) -> Map<String, Value> {
    let bytes = app.token_bytes(token);
    let mut entry = Map::new();
    entry.insert("token".into(), String::from_utf8_lossy(&bytes).into());
    entry.insert("logprob".into(), logprob_json(logprob));
    entry.insert("bytes".into(), bytes.into());
    entry
}

/// JSON has no infinity: what cannot be is the smallest number that OpenAI's API gives.
pub(crate) fn logprob_json(logprob: f32) -> Value {
    f64::from(logprob).max(-9999.0).into()
}

/// The assistant's message: what it thought and what it calls are there where there is any.
fn message(text: &Collected) -> Value {
    let content =
        if text.text.is_empty() && !text.calls.is_empty() { Value::Null } else { text.text.as_str().into() };
    let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
    if !text.reasoning.is_empty() {
        message["reasoning_content"] = text.reasoning.as_str().into();
    }
    if !text.calls.is_empty() {
        let call = |call: &Call| {
            let function = json!({ "name": call.name, "arguments": call.arguments });
            json!({ "id": call.id, "type": "function", "function": function })
        };
        message["tool_calls"] = text.calls.iter().map(call).collect();
    }
    message
}

/// OpenAI's name for the end of a text.
pub(crate) fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop(_) => "stop",
        Finish::Calls => "tool_calls",
        Finish::Length => "length",
    }
}

/// OpenAI's usage.
pub(crate) fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        "prompt_tokens_details": { "cached_tokens": usage.cached },
    })
}

/// A part as a stream has it.
fn delta(part: Part) -> Value {
    match part {
        Part::Reasoning(text) => json!({ "reasoning_content": text }),
        Part::Text(text) | Part::Broken(text) => json!({ "content": text }),
        Part::Call { index, id, name } => {
            let function = json!({ "name": name, "arguments": "" });
            json!({ "tool_calls": [{ "index": index, "id": id, "type": "function", "function": function }] })
        }
        Part::Arguments { index, text } => {
            json!({ "tool_calls": [{ "index": index, "function": { "arguments": text } }] })
        }
    }
}

/// A stream of chunks.
struct Chunks {
    shape: Shape,
    /// Whether the usage follows.
    usage: bool,
    n: usize,
}

impl Chunks {
    fn send(&self, choices: Value, out: &mut Events) {
        out.data(&self.shape.chunk(choices, self.usage.then_some(Value::Null)));
    }
}

impl Encoder for Chunks {
    fn begin(&mut self, out: &mut Events) {
        for index in 0..self.n {
            let delta = json!({ "role": "assistant", "content": "", "refusal": null });
            self.send(
                json!([{ "index": index, "delta": delta, "logprobs": null, "finish_reason": null }]),
                out,
            );
        }
    }

    fn update(&mut self, update: Update, out: &mut Events) {
        let mut logprobs = match update.token.as_slice() {
            [] => Value::Null,
            tokens => self.shape.logprobs(tokens),
        };
        let mut deltas: Vec<Value> = update.parts.into_iter().map(delta).collect();
        if deltas.is_empty() && !logprobs.is_null() {
            deltas.push(json!({ "content": "" }));
        }
        for delta in deltas {
            let logprobs = logprobs.take();
            self.send(
                json!([{ "index": update.choice, "delta": delta, "logprobs": logprobs, "finish_reason": null }]),
                out,
            );
        }
        if let Some(finish) = &update.finish {
            let finish = finish_reason(finish);
            self.send(
                json!([{ "index": update.choice, "delta": {}, "logprobs": null, "finish_reason": finish }]),
                out,
            );
        }
    }

    fn end(&mut self, usage: Usage, out: &mut Events) {
        if self.usage {
            out.data(&self.shape.chunk(json!([]), Some(usage_json(usage))));
        }
        out.text("[DONE]");
    }

    fn fail(&mut self, failure: &Failure, out: &mut Events) {
        out.data(&failure.json(Dialect::OpenAi));
    }
}
