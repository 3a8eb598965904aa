//! `POST /v1/responses`: OpenAI's newer API, without its store: every request brings its whole conversation.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use serde_json::{Map, Value, json};

use super::answers::{Answers, Collected, Finish, Job, Part, Scored, Update, Usage};
use super::app::{App, now};
use super::chat::token_json;
use super::failure::{Dialect, Failure, json_body};
use super::json::{Fields, shown};
use super::params::{self, IGNORED, text_of};
use super::routes::{Reply, fields};
use super::sse::{self, Encoder, Events};
use crate::generate::Options;
use crate::text::{Message, RenderOptions};

/// The messages of `input`, a string or a list of items.
fn input(fields: &mut Fields, out: &mut Vec<Message>) -> Result<(), Failure> {
    let given = fields.take("input");
    let items = match fields.required("input", given)? {
        Value::String(text) => {
            out.push(Message::new("user", text));
            return Ok(());
        }
        Value::Array(items) if !items.is_empty() => items,
        other => {
            let what = format!("expected a string or a list of items, got {}", shown(&other));
            return Err(fields.wrong("input", what));
        }
    };
    for (i, item) in items.into_iter().enumerate() {
        input_item(Fields::of(&format!("input[{i}]"), item)?, out)?;
    }
    if out.last().is_some_and(|last| last.role == "assistant") {
        let what = "the last item is the assistant's: continuing it is not supported";
        return Err(fields.wrong("input", what));
    }
    Ok(())
}

fn input_item(mut item: Fields, out: &mut Vec<Message>) -> Result<(), Failure> {
    item.ignore(&["id", "status", "phase"]);
    match item.string("type")?.as_deref() {
        None | Some("message") => {
            let role = item.string("role")?;
            let role = match item.required("role", role)?.as_str() {
                "developer" => "system".to_owned(),
                role @ ("system" | "user" | "assistant") => role.to_owned(),
                other => {
                    let other = crate::json::quote(other);
                    let what = format!("expected system, developer, user or assistant, got {other}");
                    return Err(item.wrong("role", what));
                }
            };
            let content = item.take("content");
            let text = text_of(&item.name("content"), item.required("content", content)?)?;
            out.push(Message::new(role, text));
        }
        Some("function_call") => {
            let (id, name) = (item.string("call_id")?, item.string("name")?);
            let (id, name) = (item.required("call_id", id)?, item.required("name", name)?);
            let arguments = item.string("arguments")?.unwrap_or_default();
            let call = params::call(Some(id), name, arguments);
            // Calls that follow each other are one turn.
            match out.last_mut().map(|last| (last.role == "assistant", last.extra.get_mut("tool_calls"))) {
                Some((true, Some(Value::Array(calls)))) => calls.push(call),
                _ => {
                    let extra = Map::from_iter([("tool_calls".to_owned(), json!([call]))]);
                    out.push(Message { role: "assistant".into(), content: Value::Null, extra });
                }
            }
        }
        Some("function_call_output") => {
            let id = item.string("call_id")?;
            let id = item.required("call_id", id)?;
            let output = item.take("output");
            let text = text_of(&item.name("output"), item.required("output", output)?)?;
            let mut result = Message::new("tool", text);
            result.extra.insert("tool_call_id".into(), id.into());
            out.push(result);
        }
        Some(other) => {
            let what = format!("items of type {} are not supported", crate::json::quote(other));
            return Err(item.wrong("type", what));
        }
    }
    item.finish()
}

pub(crate) async fn create(State(app): State<Arc<App>>, request: Request) -> Reply {
    let asked = Instant::now();
    let mut fields = fields(&app, request).await?;
    app.check_model(fields.string("model")?.as_deref())?;
    let instructions = fields.string("instructions")?;
    let mut messages = Vec::new();
    messages.extend(instructions.as_ref().map(|text| Message::new("system", text.as_str())));
    input(&mut fields, &mut messages)?;
    let metadata = fields.object("metadata")?.map_or_else(Map::new, Fields::rest);
    fields.ignore(&IGNORED);
    fields.ignore(&["parallel_tool_calls", "max_tool_calls"]);
    let max_tokens = params::max_tokens(&mut fields, &["max_output_tokens"])?;
    let mut sampling = params::sampling(&app, &mut fields)?;
    let top = fields.whole("top_logprobs", 0, 20)?;
    let logprobs = include(&mut fields)?;
    if top.is_some() && !logprobs {
        return Err(fields.wrong("top_logprobs", "it needs message.output_text.logprobs in include"));
    }
    sampling.logprobs = logprobs.then_some(top.unwrap_or(0) as usize);
    let stream = fields.flag("stream")?.unwrap_or(false);
    if let Some(mut options) = fields.object("stream_options")? {
        options.ignore(&["include_obfuscation"]);
        options.finish()?;
    }
    if let Some(mut text) = fields.object("text")? {
        text.only("format", &[json!({ "type": "text" })])?;
        text.finish()?;
    }
    fields.only("tools", &[json!([])])?;
    fields.only("tool_choice", &["auto".into(), "none".into()])?;
    fields.only("truncation", &["disabled".into()])?;
    fields.only("background", &[false.into()])?;
    fields.only("reasoning", &[json!({})])?;
    let extra = params::template_variables(&mut fields)?;
    fields.finish()?;

    let render = RenderOptions { add_generation_prompt: true, extra, ..RenderOptions::default() };
    let places = app.places(1)?;
    let prompt = app.apart(move |model| model.encode_chat_with(&messages, &render)).await?;
    let shape = Shape {
        id: app.id("resp_"),
        message: app.id("msg_"),
        created: now(),
        instructions,
        max_tokens,
        metadata,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        logprobs,
        app: Arc::clone(&app),
    };
    let options = Options { max_tokens, sampling, ..Options::default() };
    let job = Job { prompts: vec![prompt], n: 1, options };
    let answers = Answers::start(&app, &job, places, asked)?;
    if stream {
        return Ok(sse::stream(answers, Items::new(shape)));
    }
    let (texts, usage) = answers.collect().await?;
    Ok(json_body(&shape.whole(texts, usage)))
}

/// What the answer is to include beside itself: log-probabilities, or nothing.
fn include(fields: &mut Fields) -> Result<bool, Failure> {
    let wanted = fields.list("include")?.unwrap_or_default();
    for value in &wanted {
        if *value != "message.output_text.logprobs" {
            return Err(fields.wrong("include", format_args!("{} is not supported", shown(value))));
        }
    }
    Ok(!wanted.is_empty())
}

/// What all forms of a response say alike.
struct Shape {
    app: Arc<App>,
    id: String,
    /// The id of the one message.
    message: String,
    created: u64,
    instructions: Option<String>,
    max_tokens: Option<usize>,
    metadata: Map<String, Value>,
    temperature: f32,
    top_p: f32,
    logprobs: bool,
}

impl Shape {
    fn response(&self, finish: Option<&Finish>, output: Vec<Value>, usage: Option<Usage>) -> Value {
        let (status, incomplete) = match finish {
            None => ("in_progress", Value::Null),
            Some(Finish::Stop(_)) => ("completed", Value::Null),
            Some(Finish::Length) => ("incomplete", json!({ "reason": "max_output_tokens" })),
        };
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": incomplete,
            "instructions": self.instructions,
            "max_output_tokens": self.max_tokens,
            "model": self.app.name,
            "output": output,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "reasoning": { "effort": null, "summary": null },
            "store": false,
            "temperature": self.temperature,
            "text": { "format": { "type": "text" } },
            "tool_choice": "auto",
            "tools": [],
            "top_p": self.top_p,
            "truncation": "disabled",
            "usage": usage.map(usage_json),
            "metadata": self.metadata,
        })
    }

    fn part(&self, text: &str, tokens: &[Scored]) -> Value {
        json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs(tokens) })
    }

    fn item(&self, status: &str, content: Vec<Value>) -> Value {
        json!({
            "id": self.message, "type": "message", "status": status, "role": "assistant", "content": content,
        })
    }

    fn whole(&self, texts: Vec<Collected>, usage: Usage) -> Value {
        let finish = texts.first().map_or(Finish::Length, |text| text.finish.clone());
        let item =
            |text: Collected| self.item(status(&text.finish), vec![self.part(&text.text, &text.tokens)]);
        let output = texts.into_iter().map(item).collect();
        self.response(Some(&finish), output, Some(usage))
    }

    fn logprobs(&self, tokens: &[Scored]) -> Value {
        if !self.logprobs {
            return json!([]);
        }
        let one = |scored: &Scored| {
            let mut entry = token_json(&self.app, scored.token, scored.logprob);
            let top = scored.top.iter().map(|&(token, logprob)| token_json(&self.app, token, logprob));
            entry.insert("top_logprobs".into(), top.map(Value::Object).collect::<Vec<_>>().into());
            Value::Object(entry)
        };
        tokens.iter().map(one).collect()
    }
}

fn status(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop(_) => "completed",
        Finish::Length => "incomplete",
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": { "cached_tokens": usage.cached },
        "output_tokens": usage.generated,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": usage.prompt + usage.generated,
    })
}

/// A stream of items, each event with its number.
struct Items {
    shape: Shape,
    number: u64,
    text: String,
    tokens: Vec<Scored>,
    /// Tokens that no delta has shown yet.
    unshown: Vec<Scored>,
    finish: Finish,
}

impl Items {
    fn new(shape: Shape) -> Self {
        let (text, tokens, unshown) = (String::new(), Vec::new(), Vec::new());
        Self { shape, number: 0, text, tokens, unshown, finish: Finish::Length }
    }

    /// Sends an event whose `type` is its name.
    fn send(&mut self, name: &str, fields: Value, out: &mut Events) {
        let mut event = json!({ "type": name, "sequence_number": self.number });
        if let (Some(event), Value::Object(fields)) = (event.as_object_mut(), fields) {
            event.extend(fields);
        }
        self.number += 1;
        out.named(name, &event);
    }

    /// Sends an event about the text.
    fn about_text(&mut self, name: &str, fields: Value, out: &mut Events) {
        let mut place = json!({ "item_id": self.shape.message, "output_index": 0, "content_index": 0 });
        if let (Some(place), Value::Object(fields)) = (place.as_object_mut(), fields) {
            place.extend(fields);
        }
        self.send(name, place, out);
    }
}

impl Encoder for Items {
    fn begin(&mut self, out: &mut Events) {
        let response = self.shape.response(None, Vec::new(), None);
        self.send("response.created", json!({ "response": response }), out);
        self.send("response.in_progress", json!({ "response": response }), out);
        let item = self.shape.item("in_progress", Vec::new());
        self.send("response.output_item.added", json!({ "output_index": 0, "item": item }), out);
        let part = self.shape.part("", &[]);
        self.about_text("response.content_part.added", json!({ "part": part }), out);
    }

    fn update(&mut self, update: Update, out: &mut Events) {
        if let Some(scored) = update.token.filter(|_| self.shape.logprobs) {
            self.unshown.push(scored);
        }
        for Part::Text(text) in update.parts {
            let unshown = std::mem::take(&mut self.unshown);
            let logprobs = self.shape.logprobs(&unshown);
            self.text += &text;
            self.tokens.extend(unshown);
            self.about_text(
                "response.output_text.delta",
                json!({ "delta": text, "logprobs": logprobs }),
                out,
            );
        }
        if let Some(finish) = update.finish {
            self.finish = finish;
        }
    }

    fn end(&mut self, usage: Usage, out: &mut Events) {
        let unshown = std::mem::take(&mut self.unshown);
        self.tokens.extend(unshown);
        let logprobs = self.shape.logprobs(&self.tokens);
        let done = json!({ "text": self.text, "logprobs": logprobs });
        self.about_text("response.output_text.done", done, out);
        let part = self.shape.part(&self.text, &self.tokens);
        self.about_text("response.content_part.done", json!({ "part": part }), out);
        let item = self.shape.item(status(&self.finish), vec![part]);
        self.send("response.output_item.done", json!({ "output_index": 0, "item": item }), out);
        let response = self.shape.response(Some(&self.finish), vec![item], Some(usage));
        let name = match self.finish {
            Finish::Stop(_) => "response.completed",
            Finish::Length => "response.incomplete",
        };
        self.send(name, json!({ "response": response }), out);
    }

    fn fail(&mut self, failure: &Failure, out: &mut Events) {
        let error = failure.json(Dialect::OpenAi);
        let error = json!({
            "code": "server_error", "message": error["error"]["message"], "param": error["error"]["param"],
        });
        self.send("error", error.clone(), out);
        let mut response = self.shape.response(None, Vec::new(), None);
        response["status"] = "failed".into();
        response["error"] = json!({ "code": "server_error", "message": error["message"] });
        self.send("response.failed", json!({ "response": response }), out);
    }
}
