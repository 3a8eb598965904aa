//! `POST /v1/responses`: OpenAI's newer API. The last answers are kept, for requests that go on from them.

mod input;

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::answers::{AnswerPart, Answers, CallPart, Collected, Finish, Job, Scored, Update, Usage};
use super::app::now;
use super::failure::{Failure, json_body};
use super::forms;
use super::json::Fields;
use super::openai::scored_json;
use super::params::{self, IGNORED};
use super::request::Reply;
use super::served::Served;
use super::sse::{self, Encoder, Events};
use super::store::{Caller, said};
use crate::generate::Options;
use crate::text::{self, Chat, Message};
use input::{Input, Origin, Toolbox};

/// Fields that would change the answer and need what is not here.
fn refuse(fields: &mut Fields) -> Result<(), Failure> {
    fields.only("background", &[false.into()])?;
    for name in ["conversation", "prompt"] {
        if fields.peek(name).is_some() {
            return Err(fields.wrong(name, "not supported: it is kept by the service alone"));
        }
    }
    Ok(())
}

pub(crate) async fn create(app: Arc<Served>, mut fields: Fields) -> Reply {
    let instructions = fields.string("instructions")?;
    refuse(&mut fields)?;
    let previous = fields.peek("previous_response_id").cloned();
    let mut tools = Toolbox::default();
    let echoed = ["tools", "tool_choice", "text"].map(|name| fields.peek(name).cloned());
    let named = fields.list("tools")?.unwrap_or_default();
    tools.add(&fields, "tools", named)?;
    // A conversation that was kept takes room again.
    let places = app.places(1)?;
    let before = Input::read(&app, &mut fields, &mut tools)?;
    let mut chat = Chat::default();
    chat.messages.extend(instructions.as_ref().map(|text| Message::new("system", text.as_str())));
    chat.messages.extend(before.iter().cloned());
    let keep = fields.flag("store")?.unwrap_or(true);
    let metadata = fields.object("metadata")?.map_or_else(Map::new, Fields::rest);
    fields.ignore(&IGNORED);
    fields.hints(&["max_tool_calls", "truncation", "context_management", "prediction", "moderation"]);
    let max_tokens = params::max_tokens(&mut fields, &["max_output_tokens"])?;
    let (caller, cache_salt) = (fields.caller().clone(), fields.space()?);
    let mut sampling = params::sampling(&app, &mut fields)?;
    let top = fields.whole("top_logprobs", 0, 20)?;
    let logprobs = include(&mut fields)?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(fields.wrong("top_logprobs", "it needs message.output_text.logprobs in include"));
    }
    sampling.logprobs = logprobs.then_some(top.unwrap_or(0) as usize);
    let stream = fields.flag("stream")?.unwrap_or(false);
    fields.ignore(&["stream_options"]);
    let format = forms::text_format(&mut fields)?;
    chat.tools = std::mem::take(&mut tools.tools);
    tools.choose(&mut fields, &mut chat)?;
    chat.variables = params::template_variables(&mut fields)?;
    let mut effort = None;
    if let Some(mut reasoning) = fields.object("reasoning")? {
        effort = reasoning.string("effort")?;
        if let Some(effort) = &effort {
            text::effort(effort, &mut chat.variables);
        }
        reasoning.ignore(&["summary", "generate_summary", "context"]);
        reasoning.finish()?;
    }
    fields.finish()?;

    let parallel = !chat.single_call;
    // What was kept is no part of the body.
    let kept = if previous.is_some() { before.iter().map(said).sum() } else { 0 };
    let turn = app.apart_with(kept, move |model| model.prepare(&chat, format.as_ref())).await?;
    let [given, tool_choice, text] = echoed;
    let shape = ResponseShape {
        id: app.id("resp_"),
        previous: previous.unwrap_or(Value::Null),
        before: keep.then_some(before),
        effort,
        toolbox: tools,
        tools: given.unwrap_or_else(|| json!([])),
        tool_choice: tool_choice.unwrap_or_else(|| "auto".into()),
        text: text.unwrap_or_else(|| json!({ "format": { "type": "text" } })),
        parallel,
        created: now(),
        instructions,
        max_tokens,
        metadata,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        logprobs,
        caller,
        app: Arc::clone(&app),
    };
    let options = Options { max_tokens, sampling, cache_salt, ..Options::default() };
    let job = Job::of_turn(&turn, 1, options);
    let answers = Answers::start(&app, &job, places)?;
    if stream {
        return Ok(sse::stream(answers, Items::new(shape)));
    }
    let (texts, usage) = answers.collect().await?;
    Ok(json_body(&shape.whole(texts, usage)))
}

/// What the answer is to include beside itself: log-probabilities, or nothing. What else there is to include belongs to tools
/// of the service, or hides thoughts that are no secret here.
fn include(fields: &mut Fields) -> Result<bool, Failure> {
    let wanted = fields.list("include")?.unwrap_or_default();
    Ok(wanted.iter().any(|value| value == "message.output_text.logprobs"))
}

/// What all forms of a response say alike.
struct ResponseShape {
    /// Who may go on from it.
    caller: Caller,
    app: Arc<Served>,
    id: String,
    /// The answer before this one, by its id.
    previous: Value,
    /// What was said before, where the answer is to be kept.
    before: Option<Vec<Message>>,
    effort: Option<String>,
    created: u64,
    instructions: Option<String>,
    max_tokens: Option<usize>,
    metadata: Map<String, Value>,
    temperature: f32,
    top_p: f32,
    logprobs: bool,
    toolbox: Toolbox,
    /// As they were given.
    tools: Value,
    tool_choice: Value,
    text: Value,
    parallel: bool,
}

impl ResponseShape {
    fn response(&self, finish: Option<&Finish>, output: &[Value], usage: Option<Usage>) -> Value {
        let incomplete = match finish {
            Some(Finish::Length) => json!({ "reason": "max_output_tokens" }),
            _ => Value::Null,
        };
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": finish.map_or("in_progress", status),
            "background": false,
            "error": null,
            "incomplete_details": incomplete,
            "instructions": self.instructions,
            "max_output_tokens": self.max_tokens,
            "model": self.app.name,
            "output": output,
            "parallel_tool_calls": self.parallel,
            "previous_response_id": self.previous,
            "reasoning": { "effort": self.effort, "summary": null },
            "store": self.before.is_some(),
            "temperature": self.temperature,
            "text": self.text,
            "tool_choice": self.tool_choice,
            "tools": self.tools,
            "top_p": self.top_p,
            "truncation": "disabled",
            "usage": usage.map(usage_json),
            "metadata": self.metadata,
            "timings": usage.map(|usage| usage.timings_json()),
        })
    }

    fn whole(&self, texts: Vec<Collected>, usage: Usage) -> Value {
        let mut output = Vec::new();
        let mut finish = Finish::Length;
        for text in texts {
            finish = text.finish;
            let last = status(&finish);
            let mut items = Vec::new();
            if !text.reasoning.is_empty() {
                items.push(Item::Thoughts(text.reasoning));
            }
            if !text.text.is_empty() || text.calls.is_empty() {
                items.push(Item::Text(text.text, text.tokens));
            }
            items.extend(text.calls.into_iter().map(Item::Call));
            output.extend(items.iter().map(|item| item.json(self, &self.app.id(item.prefix()), last)));
        }
        self.keep(&output);
        self.response(Some(&finish), &output, Some(usage))
    }

    /// Keeps the answer for those that go on from it.
    fn keep(&self, output: &[Value]) {
        // A call that broke off is none; its text is there.
        let whole = |item: &&Value| item["type"] == "message" || item["status"] != "incomplete";
        if let Some(before) = &self.before {
            let mut output: Vec<Value> = output.iter().filter(whole).cloned().collect();
            let parts = output.iter_mut().filter_map(|item| item.get_mut("content")?.as_array_mut());
            parts.flatten().filter_map(Value::as_object_mut).for_each(|part| drop(part.remove("logprobs")));
            self.app.store.keep(self.id.clone(), &self.caller, before.clone(), output);
        }
    }

    fn logprobs(&self, tokens: &[Scored]) -> Value {
        if !self.logprobs {
            return json!([]);
        }
        tokens.iter().map(|scored| scored_json(&self.app, scored)).collect()
    }
}

fn status(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop(_) | Finish::Calls => "completed",
        Finish::Length => "incomplete",
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": { "cached_tokens": usage.cached, "cache_write_tokens": 0 },
        "output_tokens": usage.generated,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": usage.prompt + usage.generated,
    })
}

/// One item of the output.
#[derive(Debug)]
enum Item {
    Thoughts(String),
    Text(String, Vec<Scored>),
    Call(CallPart),
}

impl Item {
    /// What the item's id begins with.
    fn prefix(&self) -> &'static str {
        match self {
            Self::Thoughts(_) => "rs_",
            Self::Text(..) => "msg_",
            Self::Call(_) => "fc_",
        }
    }

    /// The item as it is so far; one that has just begun has no content yet.
    fn json(&self, shape: &ResponseShape, id: &str, status: &str) -> Value {
        let content = self
            .part(shape)
            .filter(|_| status != "in_progress")
            .map_or_else(|| json!([]), |part| json!([part]));
        match self {
            Self::Thoughts(_) => {
                json!({ "id": id, "type": "reasoning", "status": status, "summary": [], "content": content })
            }
            Self::Text(..) => {
                json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": content })
            }
            Self::Call(CallPart { id: call, name, arguments }) => {
                let Origin { name, namespace, custom, .. } = shape.toolbox.origin(name);
                let (kind, field, value) = match custom {
                    true => ("custom_tool_call", "input", text_input(arguments)),
                    false => ("function_call", "arguments", arguments.clone()),
                };
                let mut item = json!({
                    "id": id, "type": kind, "status": status, "call_id": call, "name": name, (field): value,
                });
                if let Some(namespace) = namespace {
                    item["namespace"] = namespace.into();
                }
                item
            }
        }
    }

    /// Its one part of content; a call has none.
    fn part(&self, shape: &ResponseShape) -> Option<Value> {
        match self {
            Self::Thoughts(text) => Some(json!({ "type": "reasoning_text", "text": text })),
            Self::Text(text, tokens) => {
                let logprobs = shape.logprobs(tokens);
                Some(json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs }))
            }
            Self::Call(_) => None,
        }
    }
}

/// The text that a tool of text is called with; nothing until it is whole.
fn text_input(arguments: &str) -> String {
    let arguments: Value = crate::json::generated(arguments).unwrap_or_default();
    arguments["input"].as_str().unwrap_or_default().to_owned()
}

/// A stream of items, each event with its number.
struct Items {
    shape: ResponseShape,
    number: u64,
    /// Items that are whole.
    output: Vec<Value>,
    /// The item that is being written, and its id.
    open: Option<(Item, String)>,
    /// Tokens that no delta has shown yet.
    unshown: Vec<Scored>,
    finish: Finish,
}

impl Items {
    fn new(shape: ResponseShape) -> Self {
        Self { shape, number: 0, output: Vec::new(), open: None, unshown: Vec::new(), finish: Finish::Length }
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

    /// Sends an event about the open item, or about its content.
    fn about(&mut self, name: &str, content: bool, fields: Value, out: &mut Events) {
        let id = self.open.as_ref().map(|(_, id)| id.as_str());
        let mut place = json!({ "item_id": id, "output_index": self.output.len() });
        if content {
            place["content_index"] = 0.into();
        }
        if let (Some(place), Value::Object(fields)) = (place.as_object_mut(), fields) {
            place.extend(fields);
        }
        self.send(name, place, out);
    }

    /// Begins an item, after the one before it is whole.
    fn begin_item(&mut self, item: Item, out: &mut Events) {
        self.end_item("completed", out);
        let id = self.shape.app.id(item.prefix());
        let (shown, part) = (item.json(&self.shape, &id, "in_progress"), item.part(&self.shape));
        self.open = Some((item, id));
        let index = self.output.len();
        self.send("response.output_item.added", json!({ "output_index": index, "item": shown }), out);
        if let Some(part) = part {
            self.about("response.content_part.added", true, json!({ "part": part }), out);
        }
    }

    fn end_item(&mut self, status: &str, out: &mut Events) {
        let Some((item, id)) = &mut self.open else { return };
        if let Item::Text(_, tokens) = item {
            tokens.append(&mut self.unshown);
        }
        let (shown, part) = (item.json(&self.shape, id, status), item.part(&self.shape));
        let (name, done) = match item {
            Item::Thoughts(text) => ("response.reasoning_text.done", json!({ "text": text })),
            Item::Text(text, tokens) => {
                let logprobs = self.shape.logprobs(tokens);
                ("response.output_text.done", json!({ "text": text, "logprobs": logprobs }))
            }
            Item::Call(CallPart { name, arguments, .. }) => match self.shape.toolbox.origin(name) {
                Origin { custom: true, .. } => {
                    ("response.custom_tool_call_input.done", json!({ "input": text_input(arguments) }))
                }
                Origin { name, .. } => {
                    ("response.function_call_arguments.done", json!({ "name": name, "arguments": arguments }))
                }
            },
        };
        self.about(name, part.is_some(), done, out);
        if let Some(part) = part {
            self.about("response.content_part.done", true, json!({ "part": part }), out);
        }
        let index = self.output.len();
        self.send("response.output_item.done", json!({ "output_index": index, "item": shown }), out);
        self.output.push(shown);
        self.open = None;
    }

    fn part(&mut self, part: AnswerPart, out: &mut Events) {
        match part {
            AnswerPart::Reasoning(text) => {
                if !matches!(self.open, Some((Item::Thoughts(_), _))) {
                    self.begin_item(Item::Thoughts(String::new()), out);
                }
                if let Some((Item::Thoughts(thoughts), _)) = &mut self.open {
                    *thoughts += &text;
                }
                self.about("response.reasoning_text.delta", true, json!({ "delta": text }), out);
            }
            AnswerPart::Broken(text) => {
                self.end_item("incomplete", out);
                self.part(AnswerPart::Text(text), out);
            }
            AnswerPart::Text(text) => {
                if !matches!(self.open, Some((Item::Text(..), _))) {
                    self.begin_item(Item::Text(String::new(), Vec::new()), out);
                }
                let unshown = std::mem::take(&mut self.unshown);
                let delta = json!({ "delta": text, "logprobs": self.shape.logprobs(&unshown) });
                if let Some((Item::Text(whole, tokens), _)) = &mut self.open {
                    *whole += &text;
                    tokens.extend(unshown);
                }
                self.about("response.output_text.delta", true, delta, out);
            }
            AnswerPart::Call { id, name, .. } => {
                self.begin_item(Item::Call(CallPart { id, name, arguments: String::new() }), out);
            }
            AnswerPart::Arguments { text, .. } => {
                if let Some((Item::Call(call), _)) = &mut self.open {
                    call.arguments += &text;
                    if self.shape.toolbox.origin(&call.name).custom {
                        return;
                    }
                }
                self.about("response.function_call_arguments.delta", false, json!({ "delta": text }), out);
            }
        }
    }
}

impl Encoder for Items {
    fn begin(&mut self, out: &mut Events) {
        let response = self.shape.response(None, &[], None);
        self.send("response.created", json!({ "response": response }), out);
        self.send("response.in_progress", json!({ "response": response }), out);
    }

    fn update(&mut self, update: Update, out: &mut Events) {
        self.unshown.extend(update.token);
        for part in update.parts {
            self.part(part, out);
        }
        if let Some(finish) = update.finish {
            self.finish = finish;
        }
    }

    fn end(&mut self, usage: Usage, out: &mut Events) {
        if self.open.is_none() && self.output.is_empty() {
            // An answer of no text is a message of none.
            self.begin_item(Item::Text(String::new(), Vec::new()), out);
        }
        self.end_item(status(&self.finish), out);
        self.shape.keep(&self.output);
        let response = self.shape.response(Some(&self.finish), &self.output, Some(usage));
        let name = match self.finish {
            Finish::Stop(_) | Finish::Calls => "response.completed",
            Finish::Length => "response.incomplete",
        };
        self.send(name, json!({ "response": response }), out);
    }

    fn fail(&mut self, failure: &Failure, out: &mut Events) {
        let error = json!({ "code": "server_error", "message": failure.message, "param": failure.param });
        self.send("error", error, out);
        let mut response = self.shape.response(None, &[], None);
        response["status"] = "failed".into();
        response["error"] = json!({ "code": "server_error", "message": failure.message });
        self.send("response.failed", json!({ "response": response }), out);
    }
}
