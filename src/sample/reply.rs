//! Grammars of whole answers: thoughts, then text or tool calls as the model's family writes them.

use serde_json::{Map, Value};

use super::constraint::Grammar;
use super::schema;
use crate::text::{ReplyFormat, Tokenizer, Tool, ToolFormat, is_string};
use crate::{Error, Result};

/// What an answer has to be.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReplyGrammar<'a> {
    /// How its model marks thoughts and calls.
    pub format: ReplyFormat,
    /// Whether the prompt has begun the thoughts.
    pub thinking: bool,
    /// Tools, one of which may be called; where there is no `text`, has to be.
    pub tools: &'a [Tool],
    /// Whether several may be called.
    pub parallel: bool,
    /// What the text is to be.
    pub text: Option<&'a Grammar>,
}

impl ReplyGrammar<'_> {
    /// The grammar, for the tokens of `tokenizer`.
    ///
    /// # Errors
    /// [`Error::Option`] where the format of calls is not known; [`Error::Schema`] for arguments that cannot be enforced.
    pub(crate) fn grammar(&self, tokenizer: &Tokenizer) -> Result<Grammar> {
        if let (Some(text), true, None) = (self.text, self.tools.is_empty(), self.format.reasoning) {
            text.check()?;
            return Ok(text.clone());
        }
        let mut lines = Vec::new();
        let mut bodies = Vec::new();
        if let Some(text) = self.text {
            lines.push(format!("text: {}", nested(text)?));
            bodies.push("text");
        }
        if !self.tools.is_empty() {
            self.calls(tokenizer, &mut lines)?;
            bodies.push("calls");
        }
        let body = bodies.join(" | ");
        let start = match self.format.reasoning {
            None => format!("start: {body}"),
            Some(format) => {
                let close = mark(tokenizer, format.close);
                match close.strip_prefix('"') {
                    // A special token is no text: all text before it is thought.
                    None => lines.push(format!("thoughts: /(?s:.*)/ {close}")),
                    Some(_) => lines.push(format!("thoughts[lazy]: /(?s:.*){}/", escaped(format.close))),
                }
                lines.push("gap: /\\n{0,2}/".to_owned());
                lines.push(format!("answer: gap ({body})"));
                let open = mark(tokenizer, format.open);
                match self.thinking {
                    true => "start: thoughts answer".to_owned(),
                    false => format!("start: {open} thoughts answer | {body}"),
                }
            }
        };
        lines.insert(0, start);
        Ok(Grammar::Lark(lines.join("\n")))
    }

    /// Rules of `calls`.
    fn calls(&self, tokenizer: &Tokenizer, lines: &mut Vec<String>) -> Result<()> {
        let Some(format) = self.format.tools else {
            return Err(Error::Option {
                option: "tool_choice",
                got: "one that is to be enforced".into(),
                expected: "auto or none, since this model's template does not show how it writes calls",
            });
        };
        let mark = |name| mark(tokenizer, name);
        let mut calls = Vec::new();
        for (i, tool) in self.tools.iter().enumerate() {
            if format == ToolFormat::Xml {
                calls.push(xml_call(i, tool, lines)?);
                continue;
            }
            let arguments =
                tool.parameters.as_ref().map_or_else(schema::any_object, |p| object_schema(tool, p))?;
            lines.push(format!("arguments_{i}: %json {arguments}"));
            let name = Value::from(tool.name.as_str());
            let key = if format == ToolFormat::Llama3 { "parameters" } else { "arguments" };
            let head = literal(&format!("{{\"name\": {name}, \"{key}\": "));
            calls.push(match format {
                ToolFormat::MistralArgs => {
                    format!(
                        "{} {} {} arguments_{i}",
                        mark("[TOOL_CALLS]"),
                        literal(&tool.name),
                        mark("[ARGS]")
                    )
                }
                _ => format!("{head} arguments_{i} \"}}\""),
            });
        }
        lines.push(format!("call: {}", calls.join(" | ")));
        let more =
            |separator: &str| if self.parallel { format!(" ({separator} call)*") } else { String::new() };
        let rule = match format {
            ToolFormat::Hermes | ToolFormat::Xml => {
                lines.push(format!(
                    "tagged: {} \"\\n\" call \"\\n\" {}",
                    mark("<tool_call>"),
                    mark("</tool_call>")
                ));
                if self.parallel { "tagged (\"\\n\" tagged)*".to_owned() } else { "tagged".to_owned() }
            }
            ToolFormat::Llama3 => format!("call{}", more("\"; \"")),
            ToolFormat::Mistral => format!("{} \"[\" call{} \"]\"", mark("[TOOL_CALLS]"), more("\", \"")),
            ToolFormat::MistralArgs => format!("call{}", more("")),
        };
        lines.push(format!("calls: {rule}"));
        Ok(())
    }
}

/// A grammar as a part of another one.
fn nested(grammar: &Grammar) -> Result<String> {
    grammar.check()?;
    Ok(match grammar {
        Grammar::JsonObject => format!("%json {}", schema::any_object()?),
        Grammar::JsonSchema(schema) => format!("%json {}", schema::prepare(schema)?),
        Grammar::Regex(regex) => format!("/{}/", llguidance::regex_to_lark(regex, "")),
        Grammar::Lark(lark) => format!("%lark {{\n{lark}\n}}"),
    })
}

/// The schema of a tool's arguments, which are an object whatever it says.
fn object_schema(tool: &Tool, parameters: &Value) -> Result<Value> {
    let mut parameters = parameters.clone();
    if let Some(members) = parameters.as_object_mut() {
        members.entry("type").or_insert_with(|| "object".into());
    }
    schema::prepare(&parameters).map_err(|error| named(tool, "", error))
}

/// An error of a schema within `place` of a tool's.
fn named(tool: &Tool, place: &str, error: Error) -> Error {
    match error {
        Error::Schema { path, keyword, what } => {
            Error::Schema { path: format!("tool {}: {place}{path}", tool.name), keyword, what }
        }
        other => other,
    }
}

/// A call of Qwen3-Coder's: the properties of its parameters in their order, those that are not required or not. Strings end
/// where their mark stands, so that nothing else can be asked of them but to be one of some.
fn xml_call(at: usize, tool: &Tool, lines: &mut Vec<String>) -> Result<String> {
    let refused = |path: &str, keyword: &str| Error::Schema {
        path: format!("tool {}: {path}", tool.name),
        keyword: keyword.to_owned(),
        what: "it cannot be enforced in the way in which this model writes calls".to_owned(),
    };
    let none = Map::new();
    let parameters = tool.parameters.as_ref().and_then(Value::as_object).unwrap_or(&none);
    let known = ["type", "properties", "required", "additionalProperties", "title", "description", "$schema"];
    if let Some(keyword) = parameters.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(refused("#", keyword));
    }
    let required: Vec<&str> = parameters
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let properties = parameters.get("properties").and_then(Value::as_object).unwrap_or(&none);
    if let Some(missing) = required.iter().find(|key| !properties.contains_key(**key)) {
        return Err(refused(&format!("#/required/{missing}"), "required"));
    }
    let mut call = literal(&format!("<function={}>\n", tool.name));
    for (j, (key, schema)) in properties.iter().enumerate() {
        let path = format!("#/properties/{key}");
        let begin = literal(&format!("<parameter={key}>\n"));
        let choices = schema.get("enum").and_then(Value::as_array);
        let value = match (is_string(Some(schema)), choices) {
            (false, _) => {
                let schema = schema::prepare(schema).map_err(|error| named(tool, &path, error))?;
                lines.push(format!("argument_{at}_{j}: %json {schema}"));
                format!("argument_{at}_{j} {}", literal("\n</parameter>\n"))
            }
            (true, Some(choices)) => {
                let texts: Vec<String> = choices.iter().filter_map(Value::as_str).map(literal).collect();
                if texts.len() < choices.len() || texts.is_empty() {
                    return Err(refused(&path, "enum"));
                }
                format!("({}) {}", texts.join(" | "), literal("\n</parameter>\n"))
            }
            (true, None) => {
                let free = ["type", "title", "description", "default", "examples"];
                let keywords = schema.as_object().into_iter().flat_map(Map::keys);
                if let Some(keyword) = keywords.into_iter().find(|key| !free.contains(&key.as_str())) {
                    return Err(refused(&path, keyword));
                }
                lines.push(format!("argument_{at}_{j}[lazy]: /(?s:.*)\\n<\\/parameter>/"));
                format!("argument_{at}_{j} \"\\n\"")
            }
        };
        call += &match required.contains(&key.as_str()) {
            true => format!(" {begin} {value}"),
            false => format!(" ({begin} {value})?"),
        };
    }
    Ok(format!("{call} {}", literal("</function>")))
}

/// A mark: its token where that is special, else its text.
fn mark(tokenizer: &Tokenizer, mark: &str) -> String {
    match tokenizer.token_id(mark).filter(|&id| tokenizer.is_special(id)) {
        Some(id) => format!("<[{id}]>"),
        None => literal(mark),
    }
}

/// A text in Lark's form, which is JSON's.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A text as a pattern within slashes.
fn escaped(text: &str) -> String {
    let special = |c: char| !c.is_alphanumeric() && !matches!(c, '<' | '>');
    text.chars().map(|c| if special(c) { format!("\\{c}") } else { c.to_string() }).collect()
}

#[cfg(test)]
#[path = "reply/tests.rs"]
mod tests;
