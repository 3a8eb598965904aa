//! `POST /v1/responses`: OpenAI's newer API. The last answers are kept, for requests that go on from them.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::answers::{Answers, Call, Collected, Finish, Job, Part, Scored, Update, Usage};
use super::app::{App, now};
use super::failure::{Failure, json_body};
use super::forms;
use super::json::{Fields, shown};
use super::openai::scored_json;
use super::params::{self, IGNORED, text_of};
use super::routes::{Reply, fields};
use super::sse::{self, Encoder, Events};
use crate::generate::Options;
use crate::text::{Chat, Message};

/// Reads the conversation of a request: what was kept of an earlier answer, and the items of `input`.
struct Input<'a> {
    app: &'a App,
    messages: Vec<Message>,
    /// What the assistant thought before what follows.
    thoughts: Vec<String>,
}

impl Input<'_> {
    /// The messages of `previous_response_id` and of `input`, a string or a list of items.
    fn read(app: &App, fields: &mut Fields) -> Result<Vec<Message>, Failure> {
        let mut this = Input { app, messages: Vec::new(), thoughts: Vec::new() };
        if let Some(id) = fields.string("previous_response_id")? {
            let kept = app.store.answer(&id).ok_or_else(|| {
                let what = format!("{} is not kept: send the whole conversation", crate::json::quote(&id));
                let failure =
                    fields.wrong("previous_response_id", what).with_code("previous_response_not_found");
                Failure { status: StatusCode::NOT_FOUND, ..failure }
            })?;
            this.messages.extend(kept.messages.iter().cloned());
            for (i, item) in kept.output.iter().enumerate() {
                this.item(fields.item("output", i, item.clone())?)?;
            }
        }
        let given = fields.take("input");
        match fields.required("input", given)? {
            Value::String(text) => this.messages.push(Message::new("user", text)),
            Value::Array(items) if !items.is_empty() => {
                for (i, item) in items.into_iter().enumerate() {
                    this.item(fields.item("input", i, item)?)?;
                }
            }
            other => {
                let what = format!("expected a string or a list of items, got {}", shown(&other));
                return Err(fields.wrong("input", what));
            }
        }
        Ok(this.messages)
    }

    fn item(&mut self, mut item: Fields) -> Result<(), Failure> {
        let kind = item.string("type")?;
        match kind.as_deref() {
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
                let text = text_of(&item, "content", item.required("content", content)?)?;
                self.say(Message::new(role, text));
            }
            Some("function_call") => {
                let arguments = item.string("arguments")?.unwrap_or_default();
                self.call(item, arguments.into())?;
            }
            // A tool that takes a text is, to a model, a function that takes it.
            Some("custom_tool_call") => {
                let input = item.string("input")?.unwrap_or_default();
                self.call(item, json!({ "input": input }))?;
            }
            Some("local_shell_call") => {
                let action = item.take("action").unwrap_or_else(|| json!({}));
                let id = item.string("call_id")?;
                self.calls(params::call(id, "local_shell".to_owned(), action));
            }
            Some("function_call_output" | "custom_tool_call_output" | "local_shell_call_output") => {
                let id = item.string("call_id")?;
                let id = match id {
                    Some(id) => id,
                    None => {
                        let id = item.string("id")?;
                        item.required("call_id", id)?
                    }
                };
                let output = item.take("output");
                let text = match item.required("output", output)? {
                    // Some tools answer in an object.
                    object @ Value::Object(_) => object.to_string(),
                    other => text_of(&item, "output", other)?,
                };
                let mut result = Message::new("tool", text);
                result.extra.insert("tool_call_id".into(), id.into());
                self.say(result);
            }
            // The template decides what of earlier thoughts the model is to see again.
            Some("reasoning") => {
                for name in ["content", "summary"] {
                    let Some(parts) = item.list(name)? else { continue };
                    let text = |part: &Value| Some(part.get("text")?.as_str()?.to_owned());
                    let texts: Vec<String> = parts.iter().filter_map(text).collect();
                    if !texts.is_empty() {
                        self.thoughts.extend(texts);
                        break;
                    }
                }
            }
            Some("item_reference") => {
                let id = item.string("id")?;
                let id = item.required("id", id)?;
                let Some(kept) = self.app.store.item(&id) else {
                    let what = format!("{} is not kept: send the item itself", crate::json::quote(&id));
                    return Err(Failure { status: StatusCode::NOT_FOUND, ..item.wrong("id", what) });
                };
                // Nothing that is kept refers to anything.
                self.item(item.at("item", kept)?)?;
            }
            // What the service's own tools did; the answer that they led to stands in the conversation.
            Some(other) if other.ends_with("_call") || other.starts_with("mcp_") || other == "compaction" => {
                item.note("type");
            }
            Some(other) => {
                let what = format!("items of type {} are not supported", crate::json::quote(other));
                return Err(item.wrong("type", what));
            }
        }
        Ok(())
    }

    /// Appends a message, with what was thought before it where it is the assistant's.
    fn say(&mut self, mut message: Message) {
        let thoughts = std::mem::take(&mut self.thoughts);
        if message.role == "assistant" && !thoughts.is_empty() {
            message.extra.insert("reasoning_content".into(), thoughts.join("\n").into());
        }
        self.messages.push(message);
    }

    fn call(&mut self, mut item: Fields, arguments: Value) -> Result<(), Failure> {
        let (id, name) = (item.string("call_id")?, item.string("name")?);
        let (id, name) = (item.required("call_id", id)?, item.required("name", name)?);
        self.calls(params::call(Some(id), name, arguments));
        Ok(())
    }

    /// Appends a call. Calls that follow each other, or the assistant's text, are one turn.
    fn calls(&mut self, call: Value) {
        if self.messages.last().is_none_or(|last| last.role != "assistant") {
            self.say(Message { role: "assistant".into(), ..Message::default() });
        }
        if let Some(last) = self.messages.last_mut()
            && let Value::Array(calls) = last.extra.entry("tool_calls").or_insert_with(|| json!([]))
        {
            calls.push(call);
        }
    }
}

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

pub(crate) async fn create(State(app): State<Arc<App>>, request: Request) -> Reply {
    let asked = Instant::now();
    let mut fields = fields(&app, request).await?;
    app.check_model(fields.string("model")?.as_deref())?;
    let instructions = fields.string("instructions")?;
    refuse(&mut fields)?;
    let previous = fields.peek("previous_response_id").cloned();
    let before = Input::read(&app, &mut fields)?;
    let mut chat = Chat::default();
    chat.messages.extend(instructions.as_ref().map(|text| Message::new("system", text.as_str())));
    chat.messages.extend(before.iter().cloned());
    let keep = fields.flag("store")?.unwrap_or(true);
    let metadata = fields.object("metadata")?.map_or_else(Map::new, Fields::rest);
    fields.ignore(&IGNORED);
    fields.hints(&["max_tool_calls", "truncation", "context_management", "prediction", "moderation"]);
    let max_tokens = params::max_tokens(&mut fields, &["max_output_tokens"])?;
    let mut sampling = params::sampling(&app, &mut fields)?;
    let top = fields.whole("top_logprobs", 0, 20)?;
    let logprobs = include(&mut fields)?;
    if top.is_some() && !logprobs {
        return Err(fields.wrong("top_logprobs", "it needs message.output_text.logprobs in include"));
    }
    sampling.logprobs = logprobs.then_some(top.unwrap_or(0) as usize);
    let stream = fields.flag("stream")?.unwrap_or(false);
    fields.ignore(&["stream_options"]);
    let echoed = ["tools", "tool_choice", "text"].map(|name| fields.peek(name).cloned());
    let format = forms::text_format(&mut fields)?;
    forms::response_tools(&mut fields, &mut chat)?;
    chat.variables = params::template_variables(&mut fields)?;
    let mut effort = None;
    if let Some(mut reasoning) = fields.object("reasoning")? {
        effort = reasoning.string("effort")?;
        if let Some(effort) = &effort {
            params::effort(effort, &mut chat.variables);
        }
        reasoning.ignore(&["summary", "generate_summary", "context"]);
        reasoning.finish()?;
    }
    fields.finish()?;

    let parallel = !chat.single_call;
    let places = app.places(1)?;
    let turn = app.apart(move |model| model.prepare(&chat, format.as_ref())).await?;
    let [tools, tool_choice, text] = echoed;
    let shape = Shape {
        id: app.id("resp_"),
        previous: previous.unwrap_or(Value::Null),
        before: keep.then_some(before),
        effort,
        tools: tools.unwrap_or_else(|| json!([])),
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
        app: Arc::clone(&app),
    };
    let options = Options { max_tokens, sampling, ..Options::default() };
    let job = Job::of_turn(&turn, 1, options);
    let answers = Answers::start(&app, &job, places, asked)?;
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
struct Shape {
    app: Arc<App>,
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
    /// As they were given.
    tools: Value,
    tool_choice: Value,
    text: Value,
    parallel: bool,
}

impl Shape {
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
        if let Some(before) = &self.before {
            self.app.store.keep(self.id.clone(), before.clone(), output.to_vec());
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
        "input_tokens_details": { "cached_tokens": usage.cached },
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
    Call(Call),
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
    fn json(&self, shape: &Shape, id: &str, status: &str) -> Value {
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
            Self::Call(Call { id: call, name, arguments }) => json!({
                "id": id, "type": "function_call", "status": status, "call_id": call, "name": name,
                "arguments": arguments,
            }),
        }
    }

    /// Its one part of content; a call has none.
    fn part(&self, shape: &Shape) -> Option<Value> {
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

/// A stream of items, each event with its number.
struct Items {
    shape: Shape,
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
    fn new(shape: Shape) -> Self {
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
            Item::Call(Call { name, arguments, .. }) => {
                ("response.function_call_arguments.done", json!({ "name": name, "arguments": arguments }))
            }
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

    fn part(&mut self, part: Part, out: &mut Events) {
        match part {
            Part::Reasoning(text) => {
                if !matches!(self.open, Some((Item::Thoughts(_), _))) {
                    self.begin_item(Item::Thoughts(String::new()), out);
                }
                if let Some((Item::Thoughts(thoughts), _)) = &mut self.open {
                    *thoughts += &text;
                }
                self.about("response.reasoning_text.delta", true, json!({ "delta": text }), out);
            }
            Part::Text(text) | Part::Broken(text) => {
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
            Part::Call { id, name, .. } => {
                self.begin_item(Item::Call(Call { id, name, arguments: String::new() }), out);
            }
            Part::Arguments { text, .. } => {
                if let Some((Item::Call(call), _)) = &mut self.open {
                    call.arguments += &text;
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
