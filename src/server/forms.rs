//! What an answer is to be: formats that are enforced, tools and their choice, in the words of each API.

use serde_json::{Value, json};

use super::failure::Failure;
use super::json::{Fields, shown};
use crate::sample::Grammar;
use crate::text::{self, Chat, ToolChoice};

/// OpenAI's `response_format`, with `regex` and `lark` beside its own kinds; none where text is free.
pub(crate) fn response_format(fields: &mut Fields) -> Result<Option<Grammar>, Failure> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    let kind = format.string("type")?;
    let grammar = match format.required("type", kind)?.as_str() {
        "text" => None,
        "json_object" => Some(Grammar::JsonObject),
        "json_schema" => {
            let named = format.object("json_schema")?;
            Some(named_schema(format.required("json_schema", named)?)?)
        }
        "regex" => {
            let regex = format.string("regex")?;
            Some(Grammar::Regex(format.required("regex", regex)?))
        }
        "lark" => {
            let grammar = format.string("grammar")?;
            Some(Grammar::Lark(format.required("grammar", grammar)?))
        }
        other => return Err(unknown_format(&format, other)),
    };
    format.finish()?;
    Ok(grammar)
}

fn unknown_format(format: &Fields, kind: &str) -> Failure {
    let kind = crate::json::quote(kind);
    format.wrong("type", format_args!("expected text, json_object, json_schema, regex or lark, got {kind}"))
}

/// `{"name", "schema", "strict", "description"}`: a schema is always enforced, strict or not.
fn named_schema(mut named: Fields) -> Result<Grammar, Failure> {
    named.ignore(&["name", "description", "strict"]);
    let schema = named.take("schema");
    let schema = named.required("schema", schema)?;
    named.finish()?;
    Ok(Grammar::JsonSchema(schema))
}

/// The `text` of OpenAI's responses: its `format` has the schema's members beside the type.
pub(crate) fn text_format(fields: &mut Fields) -> Result<Option<Grammar>, Failure> {
    let Some(mut text) = fields.object("text")? else { return Ok(None) };
    let format = text.object("format")?;
    text.hints(&["verbosity"]);
    text.finish()?;
    let Some(mut format) = format else { return Ok(None) };
    let kind = format.string("type")?;
    match format.required("type", kind)?.as_str() {
        "text" => format.finish().map(|()| None),
        "json_object" => format.finish().map(|()| Some(Grammar::JsonObject)),
        "json_schema" => named_schema(format).map(Some),
        other => Err(unknown_format(&format, other)),
    }
}

/// OpenAI's tools of a chat.
pub(crate) fn chat_tools(fields: &mut Fields, chat: &mut Chat) -> Result<(), Failure> {
    for (i, tool) in fields.list("tools")?.unwrap_or_default().into_iter().enumerate() {
        // A tool of another kind, such as the service's own search, is one that is not there.
        match tool.get("type").and_then(Value::as_str) {
            None | Some("function") => chat.tools.push(tool),
            Some(_) => fields.note(&format!("tools[{i}]")),
        }
    }
    chat.tool_choice = match fields.take("tool_choice") {
        None => ToolChoice::Auto,
        Some(Value::String(choice)) => named_choice(fields, &choice)?,
        Some(object) => {
            let mut choice = fields.at("tool_choice", object)?;
            if choice.peek("type").is_some_and(|kind| kind == "allowed_tools") {
                let inner = choice.object("allowed_tools")?;
                let inner = choice.required("allowed_tools", inner)?;
                allowed(inner, chat, |tool| Some(tool["function"]["name"].as_str()?.to_owned()))?
            } else {
                choice.only("type", &["function".into()])?;
                let function = choice.object("function")?;
                let mut function = choice.required("function", function)?;
                let name = function.string("name")?;
                let name = function.required("name", name)?;
                function.finish()?;
                choice.finish()?;
                ToolChoice::Named(name)
            }
        }
    };
    chat.single_call = fields.flag("parallel_tool_calls")? == Some(false);
    Ok(())
}

/// `{"mode", "tools"}`: the only tools that may be called, by the names that `name` reads of them.
pub(crate) fn allowed(
    mut choice: Fields,
    chat: &mut Chat,
    name: impl Fn(&Value) -> Option<String>,
) -> Result<ToolChoice, Failure> {
    let names: Vec<String> = choice.list("tools")?.unwrap_or_default().iter().filter_map(name).collect();
    chat.tools.retain(|tool| names.iter().any(|name| tool["function"]["name"] == name.as_str()));
    match choice.string("mode")?.as_deref() {
        None | Some("auto") => Ok(ToolChoice::Auto),
        Some("required") => Ok(ToolChoice::Required),
        Some(other) => {
            let what = format!("expected auto or required, got {}", crate::json::quote(other));
            Err(choice.wrong("mode", what))
        }
    }
}

pub(crate) fn named_choice(fields: &Fields, choice: &str) -> Result<ToolChoice, Failure> {
    match choice {
        "auto" => Ok(ToolChoice::Auto),
        "none" => Ok(ToolChoice::None),
        "required" => Ok(ToolChoice::Required),
        other => {
            let other = crate::json::quote(other);
            let what = format!("expected auto, none, required or a function by its name, got {other}");
            Err(fields.wrong("tool_choice", what))
        }
    }
}

/// Anthropic's tools: `{"name", "description", "input_schema"}` each.
pub(crate) fn message_tools(fields: &mut Fields, chat: &mut Chat) -> Result<(), Failure> {
    for (i, tool) in fields.list("tools")?.unwrap_or_default().into_iter().enumerate() {
        let mut tool = fields.item("tools", i, tool)?;
        if tool.string("type")?.is_some_and(|kind| kind != "custom") {
            fields.note(&format!("tools[{i}]"));
            continue;
        }
        let name = tool.string("name")?;
        let name = tool.required("name", name)?;
        let (description, schema) = (tool.string("description")?, tool.take("input_schema"));
        let deferred = tool.flag("defer_loading")? == Some(true);
        let list = if deferred { &mut chat.deferred } else { &mut chat.tools };
        list.push(tool_json(name, description, schema));
    }
    let Some(mut choice) = fields.object("tool_choice")? else { return Ok(()) };
    chat.single_call = choice.flag("disable_parallel_tool_use")? == Some(true);
    let kind = choice.string("type")?;
    chat.tool_choice = match choice.required("type", kind)?.as_str() {
        "auto" => ToolChoice::Auto,
        "none" => ToolChoice::None,
        "any" => ToolChoice::Required,
        "tool" => {
            let name = choice.string("name")?;
            ToolChoice::Named(choice.required("name", name)?)
        }
        other => {
            let other = crate::json::quote(other);
            return Err(choice.wrong("type", format_args!("expected auto, any, tool or none, got {other}")));
        }
    };
    choice.finish()
}

/// A tool as chat templates take it.
pub(crate) fn tool_json(name: String, description: Option<String>, parameters: Option<Value>) -> Value {
    let mut function = json!({ "name": name });
    if let Some(description) = description {
        function["description"] = description.into();
    }
    if let Some(parameters) = parameters {
        function["parameters"] = parameters;
    }
    json!({ "type": "function", "function": function })
}

/// Anthropic's `output_config`: a schema, or nothing; how much the model is to think goes to the template.
pub(crate) fn output_config(fields: &mut Fields, chat: &mut Chat) -> Result<Option<Grammar>, Failure> {
    // The older place of the format.
    let mut format = fields.object("output_format")?;
    if let Some(mut config) = fields.object("output_config")? {
        if let Some(effort) = config.string("effort")? {
            text::effort(&effort, &mut chat.variables);
        }
        format = config.object("format")?.or(format);
        config.finish()?;
    }
    let Some(mut format) = format else { return Ok(None) };
    format.only("type", &["json_schema".into()])?;
    let schema = format.take("schema");
    let schema = format.required("schema", schema)?;
    format.finish()?;
    Ok(Some(Grammar::JsonSchema(schema)))
}

/// Anthropic's `thinking`, as the variable that templates of thinking models know.
pub(crate) fn thinking(fields: &mut Fields, chat: &mut Chat) -> Result<(), Failure> {
    let Some(mut thinking) = fields.object("thinking")? else { return Ok(()) };
    let kind = thinking.string("type")?;
    let on = match thinking.required("type", kind)?.as_str() {
        "disabled" => false,
        "adaptive" | "enabled" => true,
        other => {
            let other = shown(&other.into());
            return Err(
                thinking.wrong("type", format_args!("expected enabled, adaptive or disabled, got {other}"))
            );
        }
    };
    // A budget is a wish: what is thought counts against max_tokens like all else.
    thinking.hints(&["budget_tokens", "display"]);
    thinking.finish()?;
    text::thinking(on, &mut chat.variables);
    Ok(())
}
