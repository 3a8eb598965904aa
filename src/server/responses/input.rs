//! What a request of `/v1/responses` brings: the conversation in items, and tools of several kinds.

use std::collections::HashSet;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::super::failure::Failure;
use super::super::forms::{allowed, named_choice, tool_json};
use super::super::json::{Fields, shown};
use super::super::params::{self, text_of};
use super::super::served::Served;
use crate::text::{Chat, Message, ToolChoice};

/// The tools of a request as the model is shown them: functions with names of their own.
#[derive(Debug, Default)]
pub(super) struct Toolbox {
    /// In templates' form.
    pub tools: Vec<Value>,
    origins: Vec<Origin>,
}

/// What the client calls a tool.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Origin {
    /// The name that the model is shown.
    shown: String,
    pub name: String,
    /// The group of tools that it belongs to.
    pub namespace: Option<String>,
    /// Whether it takes a text: to the model, a function with one argument, `input`.
    pub custom: bool,
}

impl Toolbox {
    /// Adds the tools of the list `field`. Kinds that only the service can run are passed over.
    pub fn add(&mut self, fields: &Fields, field: &str, list: Vec<Value>) -> Result<(), Failure> {
        for (i, tool) in list.into_iter().enumerate() {
            let mut tool = fields.item(field, i, tool)?;
            match tool.string("type")?.as_deref() {
                None | Some("function" | "custom") => self.one(tool, None)?,
                Some("namespace") => {
                    let name = tool.string("name")?;
                    let name = tool.required("name", name)?;
                    for (j, inner) in tool.list("tools")?.unwrap_or_default().into_iter().enumerate() {
                        self.one(tool.item("tools", j, inner)?, Some(&name))?;
                    }
                }
                Some(_) => fields.note(&format!("{field}[{i}]")),
            }
        }
        Ok(())
    }

    fn one(&mut self, mut tool: Fields, namespace: Option<&str>) -> Result<(), Failure> {
        // Within a group the kind may be there still.
        let custom = match tool.string("type")?.as_deref() {
            Some("custom") => true,
            Some("function") => false,
            _ => tool.peek("format").is_some(),
        };
        let name = tool.string("name")?;
        let name = tool.required("name", name)?;
        let mut description = tool.string("description")?;
        let mut parameters = tool.take("parameters");
        if custom {
            parameters = Some(json!({
                "type": "object", "properties": { "input": { "type": "string" } }, "required": ["input"],
            }));
            if let Some(mut format) = tool.object("format")?
                && let Some(grammar) = format.string("definition")?
            {
                let told = format!("The input follows this grammar:\n{grammar}");
                description = Some(description.map_or(told.clone(), |text| format!("{text}\n\n{told}")));
            }
        }
        let taken = self.origins.iter().position(|known| known.shown == name);
        let shown = match (namespace, taken) {
            (Some(namespace), Some(_)) => format!("{namespace}__{name}"),
            // A tool of no group has its own name; one of a group that came before gives way.
            (None, Some(at)) if self.origins[at].namespace.is_some() => {
                let other = &mut self.origins[at];
                other.shown = format!("{}__{name}", other.namespace.as_deref().unwrap_or_default());
                self.tools[at]["function"]["name"] = other.shown.as_str().into();
                name.clone()
            }
            _ => name.clone(),
        };
        self.tools.push(tool_json(shown.clone(), description, parameters));
        self.origins.push(Origin { shown, name, namespace: namespace.map(str::to_owned), custom });
        Ok(())
    }

    /// The name that the model knows a tool by.
    pub fn shown(&self, namespace: Option<&str>, name: String) -> String {
        let of = |known: &&Origin| known.name == name && known.namespace.as_deref() == namespace;
        self.origins.iter().find(of).map_or(name.clone(), |known| known.shown.clone())
    }

    /// What the client calls the tool that the model calls `shown`.
    pub fn origin(&self, shown: &str) -> Origin {
        let known = self.origins.iter().find(|known| known.shown == shown).cloned();
        let plain = || Origin { shown: shown.into(), name: shown.into(), namespace: None, custom: false };
        known.unwrap_or_else(plain)
    }

    /// Takes `tool_choice` and `parallel_tool_calls`.
    pub fn choose(&self, fields: &mut Fields, chat: &mut Chat) -> Result<(), Failure> {
        chat.tool_choice = match fields.take("tool_choice") {
            None => ToolChoice::Auto,
            Some(Value::String(choice)) => named_choice(fields, &choice)?,
            Some(object) => {
                let mut choice = fields.at("tool_choice", object)?;
                if choice.peek("type").is_some_and(|kind| kind == "allowed_tools") {
                    allowed(choice, chat, |tool| {
                        let namespace = tool["namespace"].as_str();
                        Some(self.shown(namespace, tool["name"].as_str()?.to_owned()))
                    })?
                } else {
                    choice.only("type", &["function".into(), "custom".into()])?;
                    let name = choice.string("name")?;
                    let name = choice.required("name", name)?;
                    let namespace = choice.string("namespace")?;
                    choice.finish()?;
                    ToolChoice::Named(self.shown(namespace.as_deref(), name))
                }
            }
        };
        chat.single_call = fields.flag("parallel_tool_calls")? == Some(false);
        Ok(())
    }
}

/// Reads the conversation of a request: what was kept of an earlier answer, and the items of `input`.
pub(super) struct Input<'a> {
    app: &'a Served,
    /// The tools that the request names, and those that its items add.
    tools: &'a mut Toolbox,
    messages: Vec<Message>,
    /// What the assistant thought before what follows.
    thoughts: Vec<String>,
    /// Items that were referred to: each is there once, so that a request brings back no more than was kept.
    referred: HashSet<String>,
}

impl Input<'_> {
    /// The messages of `previous_response_id` and of `input`, a string or a list of items.
    pub fn read(app: &Served, fields: &mut Fields, tools: &mut Toolbox) -> Result<Vec<Message>, Failure> {
        let mut this =
            Input { app, tools, messages: Vec::new(), thoughts: Vec::new(), referred: HashSet::new() };
        if let Some(id) = fields.string("previous_response_id")? {
            let kept = app.store.answer(&id, fields.caller()).ok_or_else(|| {
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
                if !self.referred.insert(id.clone()) {
                    return Err(
                        item.wrong("id", format_args!("{} is there already", crate::json::quote(&id)))
                    );
                }
                let Some(kept) = self.app.store.item(&id, item.caller()) else {
                    let what = format!("{} is not kept: send the item itself", crate::json::quote(&id));
                    return Err(Failure { status: StatusCode::NOT_FOUND, ..item.wrong("id", what) });
                };
                // Nothing that is kept refers to anything.
                self.item(item.at("item", kept)?)?;
            }
            Some("additional_tools") => {
                let tools = item.list("tools")?.unwrap_or_default();
                self.tools.add(&item, "tools", tools)?;
            }
            // What the service's own tools did; the answer that they led to stands in the conversation.
            Some(other)
                if other.ends_with("_call")
                    || other.starts_with("mcp_")
                    || ["compaction", "configuration_update"].contains(&other) =>
            {
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
        let name = self.tools.shown(item.string("namespace")?.as_deref(), name);
        self.calls(params::call(Some(id), name, arguments));
        Ok(())
    }

    /// Appends a call. Calls that follow each other, or the assistant's text, are one turn.
    fn calls(&mut self, call: Value) {
        if self.messages.last().is_none_or(|last| last.role != "assistant") {
            self.say(Message { role: "assistant".into(), ..Message::default() });
        }
        let thoughts = std::mem::take(&mut self.thoughts);
        if let Some(last) = self.messages.last_mut()
            && !thoughts.is_empty()
        {
            let before = last.extra.get("reasoning_content").and_then(Value::as_str).map(str::to_owned);
            let all = before.into_iter().chain(thoughts).collect::<Vec<_>>().join("\n");
            last.extra.insert("reasoning_content".into(), all.into());
        }
        if let Some(last) = self.messages.last_mut()
            && let Value::Array(calls) = last.extra.entry("tool_calls").or_insert_with(|| json!([]))
        {
            calls.push(call);
        }
    }
}
