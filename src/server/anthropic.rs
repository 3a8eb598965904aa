//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's API.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::answers::{AnswerPart, Answers, CallPart, Collected, Finish, Job, Update, Usage};
use super::failure::{Dialect, Failure, json_body};
use super::forms;
use super::json::{Fields, shown};
use super::params::{self, text_of};
use super::request::Reply;
use super::served::Served;
use super::sse::{self, Encoder, Events};
use crate::generate::Options;
use crate::sample::Grammar;
use crate::text::{Chat, Message, PromptEnd};

/// The conversation of a request.
struct Conversation {
    chat: Chat,
    /// What the text is to be.
    format: Option<Grammar>,
}

impl Conversation {
    fn take(fields: &mut Fields) -> Result<Self, Failure> {
        // Caching is the engine's own business, and changes no answer.
        fields.ignore(&["metadata", "service_tier", "cache_control", "user_profile_id", "workspace_id"]);
        fields.hints(&["context_management", "container", "mcp_servers", "betas", "speed", "inference_geo"]);
        if fields.take("thread").is_some() {
            // In the form by which both of Anthropic's packages know to send the whole conversation instead.
            let details = json!({ "error_code": "thread_unsupported_request", "unsupported": ["thread"] });
            let failure = fields.wrong("thread", "not supported: send the whole conversation");
            return Err(Failure { details: Some(Box::new(details)), ..failure });
        }
        let mut messages = Vec::new();
        if let Some(system) = fields.take("system") {
            let text = system_text(fields, system)?;
            messages.extend((!text.is_empty()).then(|| Message::new("system", text)));
        }
        let mut chat = Chat::default();
        forms::message_tools(fields, &mut chat)?;
        let list = fields.list("messages")?;
        let list = fields.required("messages", list)?;
        if list.is_empty() {
            return Err(fields.wrong("messages", "expected at least one"));
        }
        for (i, value) in list.into_iter().enumerate() {
            message(fields.item("messages", i, value)?, &chat, &mut messages)?;
        }
        if messages.iter().all(|message| message.role == "system") {
            return Err(fields.wrong("messages", "expected a message of the user"));
        }
        chat.messages = messages;
        if chat.messages.last().is_some_and(|last| last.role == "assistant") {
            // In this API its last message is the beginning of the answer.
            chat.prompt_end = PromptEnd::Within;
        }
        chat.variables = params::template_variables(fields)?;
        forms::thinking(fields, &mut chat)?;
        let format = forms::output_config(fields, &mut chat)?;
        Ok(Self { chat, format })
    }
}

/// The system prompt, without the line by which Claude Code is billed: it changes from request to request, and nothing that
/// follows it could be kept.
fn system_text(fields: &Fields, system: Value) -> Result<String, Failure> {
    const BILLING: &str = "x-anthropic-billing-header:";
    let blocks = match system {
        Value::Array(blocks) => {
            let billing =
                |block: &Value| block["text"].as_str().is_some_and(|text| text.starts_with(BILLING));
            Value::Array(blocks.into_iter().filter(|block| !billing(block)).collect())
        }
        other => other,
    };
    text_of(fields, "system", blocks)
}

/// Appends what a message is to a chat template: results of tools are messages of their own there.
fn message(mut fields: Fields, chat: &Chat, out: &mut Vec<Message>) -> Result<(), Failure> {
    let role = fields.string("role")?;
    let role = fields.required("role", role)?;
    if !["user", "assistant", "system"].contains(&role.as_str()) {
        let what = format!("expected user, assistant or system, got {}", crate::json::quote(&role));
        return Err(fields.wrong("role", what));
    }
    let content = fields.take("content");
    let content = fields.required("content", content)?;
    let blocks = match content {
        Value::String(text) if !text.is_empty() || role != "assistant" => {
            push(out, Message::new(role, text));
            return Ok(());
        }
        // One of the assistant that says nothing is as good as none, and nothing can go on from it.
        Value::String(_) => return Ok(()),
        Value::Array(blocks) => blocks,
        other => {
            let what = format!("expected a string or a list of blocks, got {}", shown(&other));
            return Err(fields.wrong("content", what));
        }
    };
    let (mut texts, mut calls, mut thoughts) = (Vec::new(), Vec::new(), Vec::new());
    for (i, block) in blocks.into_iter().enumerate() {
        let mut block = fields.item("content", i, block)?;
        let kind = block.string("type")?;
        match (block.required("type", kind)?.as_str(), role.as_str()) {
            ("text", _) => {
                let text = block.string("text")?;
                texts.push(block.required("text", text)?);
            }
            ("document", "user") => texts.push(params::document(block)?),
            ("tool_use", "assistant") => {
                let (id, tool) = (block.string("id")?, block.string("name")?);
                let tool = block.required("name", tool)?;
                let input = block.object("input")?.map_or_else(Map::new, Fields::rest);
                calls.push(params::call(id, tool, input));
            }
            ("thinking", "assistant") => {
                let text = block.string("thinking")?;
                thoughts.push(block.required("thinking", text)?);
            }
            // Thoughts that only the service can read, and what its own tools did.
            ("redacted_thinking", "assistant") => {}
            (kind, "assistant") if kind == "server_tool_use" || kind.ends_with("_tool_result") => {
                block.note("type");
            }
            ("tool_result", "user") => {
                let id = block.string("tool_use_id")?;
                let id = block.required("tool_use_id", id)?;
                let content = block.take("content");
                let content = content.map(|content| with_definitions(content, chat));
                let text = content.map(|content| text_of(&block, "content", content)).transpose()?;
                let text = text.unwrap_or_default();
                let text = match block.flag("is_error")? {
                    Some(true) => format!("Error: {text}"),
                    _ => text,
                };
                let mut result = Message::new("tool", text);
                result.extra.insert("tool_call_id".into(), id.into());
                out.push(result);
            }
            (kind, role) => {
                let kind = crate::json::quote(kind);
                let what = format!("blocks of type {kind} are not supported in a message of the {role}");
                return Err(block.wrong("type", what));
            }
        }
    }
    let silent = texts.is_empty() || role == "assistant" && texts.iter().all(|text| text.is_empty());
    if silent && calls.is_empty() && thoughts.is_empty() {
        return Ok(());
    }
    let mut made = Message::new(role, texts.join("\n"));
    if !thoughts.is_empty() {
        made.extra.insert("reasoning_content".into(), thoughts.join("\n").into());
    }
    if !calls.is_empty() {
        if texts.is_empty() {
            made.content = Value::Null;
        }
        made.extra.insert("tool_calls".into(), calls.into());
    }
    push(out, made);
    Ok(())
}

/// A result with the definitions of the tools that it refers to: those were not shown before.
fn with_definitions(mut content: Value, chat: &Chat) -> Value {
    for block in content.as_array_mut().into_iter().flatten() {
        if block["type"] != "tool_reference" {
            continue;
        }
        let named = |tool: &&Value| tool["function"]["name"] == block["tool_name"];
        let tool = chat.deferred.iter().chain(&chat.tools).find(named);
        let text = tool.map_or_else(|| format!("There is no tool {}.", block["tool_name"]), Value::to_string);
        *block = json!({ "type": "text", "text": text });
    }
    content
}

/// Turns of one side that follow each other are one turn.
fn push(out: &mut Vec<Message>, message: Message) {
    if let Some(last) = out.last_mut()
        && last.role == message.role
        && last.extra.is_empty()
        && message.extra.is_empty()
        && let (Value::String(before), Value::String(more)) = (&mut last.content, &message.content)
    {
        *before += "\n";
        *before += more;
        return;
    }
    out.push(message);
}

pub(crate) async fn create(app: Arc<Served>, mut fields: Fields) -> Reply {
    let Conversation { chat, format } = Conversation::take(&mut fields)?;
    // The service requires it; of a server for oneself, the model's own limit is meant.
    let max_tokens = params::max_tokens(&mut fields, &["max_tokens"])?;
    let sampling = params::sampling(&app, &mut fields)?;
    let stop = params::stops(&mut fields, "stop_sequences")?;
    let stream = fields.flag("stream")?.unwrap_or(false);
    let cache_salt = fields.space()?;
    fields.finish()?;
    let places = app.places(1)?;
    let turn = app.apart(move |model| model.prepare(&chat, format.as_ref())).await?;
    let options = Options { max_tokens, sampling, stop, cache_salt, ..Options::default() };
    let job = Job::of_turn(&turn, 1, options);
    let answers = Answers::start(&app, &job, places)?;
    let shape = MessageShape { id: app.id("msg_"), model: app.name.clone() };
    if stream {
        let usage = answers.usage();
        return Ok(sse::stream(answers, Blocks { shape, usage, open: None, next: 0, stop: None }));
    }
    let (texts, usage) = answers.collect().await?;
    Ok(json_body(&shape.whole(texts, usage)))
}

pub(crate) async fn count(app: Arc<Served>, mut fields: Fields) -> Reply {
    let Conversation { chat, format } = Conversation::take(&mut fields)?;
    // What a request to generate has beside its conversation takes no tokens of the prompt.
    fields.ignore(&["max_tokens", "stream", "stop_sequences", "temperature", "top_k", "top_p"]);
    fields.finish()?;
    let turn = app.apart(move |model| model.prepare_to_count(&chat, format.as_ref())).await?;
    Ok(json_body(&json!({ "input_tokens": turn.tokens.len() })))
}

struct MessageShape {
    id: String,
    model: String,
}

impl MessageShape {
    fn message(&self, content: Vec<Value>, stop: (Value, Value), usage: Usage) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop.0,
            "stop_sequence": stop.1,
            "usage": usage_json(usage),
        })
    }

    fn whole(&self, texts: Vec<Collected>, usage: Usage) -> Value {
        let mut content = Vec::new();
        let mut stop = (Value::Null, Value::Null);
        for text in texts {
            if !text.reasoning.is_empty() {
                content.push(json!({ "type": "thinking", "thinking": text.reasoning, "signature": "" }));
            }
            if !text.text.is_empty() {
                content.push(json!({ "type": "text", "text": text.text }));
            }
            for CallPart { id, name, arguments } in text.calls {
                let input: Value = crate::json::generated(&arguments).unwrap_or_else(|_| json!({}));
                content.push(json!({ "type": "tool_use", "id": id, "name": name, "input": input }));
            }
            stop = stop_reason(&text.finish);
        }
        let mut message = self.message(content, stop, usage);
        message["timings"] = usage.timings_json();
        message
    }
}

/// The reason, and the stop sequence that was met.
fn stop_reason(finish: &Finish) -> (Value, Value) {
    match finish {
        Finish::Stop(None) => ("end_turn".into(), Value::Null),
        Finish::Stop(Some(stop)) => ("stop_sequence".into(), stop.as_str().into()),
        Finish::Calls => ("tool_use".into(), Value::Null),
        Finish::Length => ("max_tokens".into(), Value::Null),
    }
}

/// Tokens that were cached are not part of `input_tokens`.
fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.generated,
    })
}

/// What a block of the answer holds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Thinking,
    Text,
    Call,
}

/// A stream of blocks.
struct Blocks {
    shape: MessageShape,
    /// What is known of the usage before the first token.
    usage: Usage,
    /// The block that is being written.
    open: Option<Kind>,
    /// The index of the next block.
    next: usize,
    stop: Option<Finish>,
}

impl Blocks {
    fn close(&mut self, out: &mut Events) {
        if self.open.take().is_some() {
            let stop = json!({ "type": "content_block_stop", "index": self.next - 1 });
            out.named("content_block_stop", &stop);
        }
    }

    fn open(&mut self, kind: Kind, block: &Value, out: &mut Events) {
        self.close(out);
        let start = json!({ "type": "content_block_start", "index": self.next, "content_block": block });
        out.named("content_block_start", &start);
        self.open = Some(kind);
        self.next += 1;
    }

    fn delta(&self, delta: &Value, out: &mut Events) {
        let delta = json!({ "type": "content_block_delta", "index": self.next - 1, "delta": delta });
        out.named("content_block_delta", &delta);
    }
}

impl Encoder for Blocks {
    fn begin(&mut self, out: &mut Events) {
        let message = self.shape.message(Vec::new(), (Value::Null, Value::Null), self.usage);
        out.named("message_start", &json!({ "type": "message_start", "message": message }));
        self.heartbeat(out);
    }

    fn update(&mut self, update: Update, out: &mut Events) {
        for part in update.parts {
            match part {
                AnswerPart::Reasoning(text) => {
                    if self.open != Some(Kind::Thinking) {
                        let block = json!({ "type": "thinking", "thinking": "", "signature": "" });
                        self.open(Kind::Thinking, &block, out);
                    }
                    self.delta(&json!({ "type": "thinking_delta", "thinking": text }), out);
                }
                AnswerPart::Call { id, name, .. } => {
                    let block = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
                    self.open(Kind::Call, &block, out);
                }
                AnswerPart::Arguments { text, .. } => {
                    self.delta(&json!({ "type": "input_json_delta", "partial_json": text }), out);
                }
                AnswerPart::Text(text) | AnswerPart::Broken(text) => {
                    if self.open != Some(Kind::Text) {
                        self.open(Kind::Text, &json!({ "type": "text", "text": "" }), out);
                    }
                    self.delta(&json!({ "type": "text_delta", "text": text }), out);
                }
            }
        }
        self.stop = update.finish.or(self.stop.take());
    }

    fn end(&mut self, usage: Usage, out: &mut Events) {
        self.close(out);
        let (reason, sequence) = self.stop.as_ref().map_or((Value::Null, Value::Null), stop_reason);
        let delta = json!({ "stop_reason": reason, "stop_sequence": sequence });
        let (used, timings) = (usage_json(usage), usage.timings_json());
        let delta = json!({ "type": "message_delta", "delta": delta, "usage": used, "timings": timings });
        out.named("message_delta", &delta);
        out.named("message_stop", &json!({ "type": "message_stop" }));
    }

    fn fail(&mut self, failure: &Failure, out: &mut Events) {
        out.named("error", &failure.json(Dialect::Anthropic));
    }

    fn heartbeat(&mut self, out: &mut Events) {
        out.ping();
    }
}
