//! `POST /v1/chat/completions`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::answers::{AnswerPart, Answers, CallPart, Collected, Job, Scored, Update, Usage};
use super::failure::{Dialect, Failure, json_body};
use super::forms;
use super::json::Fields;
use super::openai::{ChunkShape, finish_reason, scored_json};
use super::params::{self, Common};
use super::request::Reply;
use super::served::Served;
use super::sse::{self, Encoder, Events};
use crate::sample::Grammar;
use crate::text::{self, Chat};

/// What a request asks for.
struct Asked {
    common: Common,
    chat: Chat,
    /// What the text is to be.
    format: Option<Grammar>,
    logprobs: bool,
}

impl Asked {
    fn take(app: &Served, mut fields: Fields) -> Result<Self, Failure> {
        let mut common = Common::take(app, &mut fields)?;
        let chat = conversation(&mut fields)?;
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

/// The conversation of a request.
pub(crate) fn conversation(fields: &mut Fields) -> Result<Chat, Failure> {
    let mut chat = Chat::new(params::messages(fields)?);
    chat.prompt_end = params::prompt_end(fields)?;
    chat.variables = params::template_variables(fields)?;
    if let Some(effort) = fields.string("reasoning_effort")? {
        text::effort(&effort, &mut chat.variables);
    }
    // The older form of tools, whose calls are answered in another form.
    fields.only("functions", &[json!([])])?;
    fields.only("function_call", &["auto".into(), "none".into()])?;
    forms::chat_tools(fields, &mut chat)?;
    Ok(chat)
}

pub(crate) async fn create(app: Arc<Served>, fields: Fields) -> Reply {
    let Asked { common, chat, format, logprobs } = Asked::take(&app, fields)?;
    let places = app.places(common.n)?;
    let turn = app.apart(move |model| model.prepare(&chat, format.as_ref())).await?;
    let job = Job::of_turn(&turn, common.n, common.options);
    let answers = Answers::start(&app, &job, places)?;
    let shape = ChunkShape::new(&app, "chatcmpl-", logprobs);
    if common.stream {
        return Ok(sse::stream(answers, Chunks { shape, usage: common.usage, n: common.n }));
    }
    let (texts, usage) = answers.collect().await?;
    Ok(json_body(&whole(&shape, texts, usage)))
}

fn whole(shape: &ChunkShape, texts: Vec<Collected>, usage: Usage) -> Value {
    let choice = |(index, text): (usize, Collected)| {
        json!({
            "index": index,
            "message": message(&text),
            "logprobs": logprobs(shape, &text.tokens),
            "finish_reason": finish_reason(&text.finish),
        })
    };
    let choices: Vec<Value> = texts.into_iter().enumerate().map(choice).collect();
    shape.whole("chat.completion", choices.into(), usage)
}

fn logprobs(shape: &ChunkShape, tokens: &[Scored]) -> Value {
    if !shape.logprobs {
        return Value::Null;
    }
    let content: Vec<Value> = tokens.iter().map(|scored| scored_json(&shape.app, scored)).collect();
    json!({ "content": content, "refusal": null })
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
        let call = |call: &CallPart| {
            let function = json!({ "name": call.name, "arguments": call.arguments });
            json!({ "id": call.id, "type": "function", "function": function })
        };
        message["tool_calls"] = text.calls.iter().map(call).collect();
    }
    message
}

/// A part as a stream has it.
fn delta(part: AnswerPart) -> Value {
    match part {
        AnswerPart::Reasoning(text) => json!({ "reasoning_content": text }),
        AnswerPart::Text(text) | AnswerPart::Broken(text) => json!({ "content": text }),
        AnswerPart::Call { index, id, name } => {
            let function = json!({ "name": name, "arguments": "" });
            json!({ "tool_calls": [{ "index": index, "id": id, "type": "function", "function": function }] })
        }
        AnswerPart::Arguments { index, text } => {
            json!({ "tool_calls": [{ "index": index, "function": { "arguments": text } }] })
        }
    }
}

const CHUNK: &str = "chat.completion.chunk";

/// A stream of chunks.
struct Chunks {
    shape: ChunkShape,
    /// Whether the usage follows.
    usage: bool,
    n: usize,
}

impl Chunks {
    fn send(&self, choices: Value, out: &mut Events) {
        out.data(&self.shape.object(CHUNK, choices, self.usage.then_some(Value::Null)));
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
            tokens => logprobs(&self.shape, tokens),
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
            let last =
                json!([{ "index": update.choice, "delta": {}, "logprobs": null, "finish_reason": finish }]);
            let usage = self.usage.then_some(Value::Null);
            out.data(&self.shape.last(CHUNK, last, usage, update.timings));
        }
    }

    fn end(&mut self, usage: Usage, out: &mut Events) {
        if self.usage {
            out.data(&self.shape.whole(CHUNK, json!([]), usage));
        }
        out.text("[DONE]");
    }

    fn fail(&mut self, failure: &Failure, out: &mut Events) {
        out.data(&failure.json(Dialect::OpenAi));
    }
}
