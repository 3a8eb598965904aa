//! Grammars of arguments that are each written by itself: the properties of a tool's parameters in their order, those that are not
//! required or not.

use serde_json::Value;

use super::super::schema;
use super::{Literals, literal, named};
use crate::error::{Error, Result};
use crate::text::{ArgumentTags, Tool, is_string, takes_in_python};

/// The arguments of a tool.
struct Arguments<'a> {
    tool: &'a Tool,
    properties: Vec<(&'a String, &'a Value)>,
    required: Vec<&'a str>,
    /// What their schemas may refer to.
    definitions: Vec<(&'a String, &'a Value)>,
}

impl<'a> Arguments<'a> {
    /// `takes`: whether an argument of a name is read back.
    ///
    /// # Errors
    /// [`Error::Schema`] for what is asked of all of them together, and for a name that is not read back.
    fn of(tool: &'a Tool, takes: impl Fn(&str) -> bool) -> Result<Self> {
        let known =
            ["type", "properties", "required", "additionalProperties", "title", "description", "$schema"];
        let parameters = tool.parameters.as_ref().and_then(Value::as_object);
        let (mut definitions, mut properties, mut required) = (Vec::new(), Vec::new(), Vec::new());
        for (keyword, value) in parameters.into_iter().flatten() {
            match keyword.as_str() {
                "$defs" | "definitions" => definitions.push((keyword, value)),
                "properties" => properties.extend(value.as_object().into_iter().flatten()),
                "required" => {
                    let names = value.as_array().into_iter().flatten();
                    required.extend(names.filter_map(Value::as_str));
                }
                other if known.contains(&other) => {}
                other => return Err(refused(tool, "#", other)),
            }
        }
        let missing = required.iter().find(|key| !properties.iter().any(|(known, _)| known == *key));
        if let Some(missing) = missing {
            return Err(refused(tool, &format!("#/required/{missing}"), "required"));
        }
        if let Some((key, _)) = properties.iter().find(|(key, _)| !takes(key)) {
            return Err(refused(tool, &path(key), "properties"));
        }
        Ok(Self { tool, properties, required, definitions })
    }

    /// A schema of an argument, beside which stands what it refers to.
    fn prepared(&self, key: &str, schema: &Value) -> Result<Value> {
        let mut schema = schema.clone();
        for (name, value) in &self.definitions {
            if let Some(members) = schema.as_object_mut() {
                members.insert((*name).clone(), (*value).clone());
            }
        }
        schema::prepare(&schema).map_err(|error| named(self.tool, &path(key), error))
    }

    fn is_required(&self, key: &str) -> bool {
        self.required.contains(&key)
    }
}

fn path(key: &str) -> String {
    format!("#/properties/{key}")
}

fn refused(tool: &Tool, path: &str, keyword: &str) -> Error {
    Error::Schema {
        path: format!("tool {}: {path}", tool.name),
        keyword: keyword.to_owned(),
        what: "it cannot be enforced in the way in which this model writes calls".to_owned(),
    }
}

/// Arguments between tags. Strings end where their mark stands, so that nothing else can be asked of them but to be one of some.
pub(super) fn tagged(
    literals: &Literals<'_>,
    tags: &ArgumentTags,
    at: usize,
    tool: &Tool,
    lines: &mut Vec<String>,
) -> Result<String> {
    let all = Arguments::of(tool, |key| tags.takes(key))?;
    let mut arguments = Vec::new();
    for (j, &(key, schema)) in all.properties.iter().enumerate() {
        let string = is_string(Some(schema));
        let only = schema.get("const").map(std::slice::from_ref);
        let choices = schema.get("enum").and_then(Value::as_array).map(Vec::as_slice).or(only);
        let (end, rule) = (literals.sequence(&tags.end), format!("argument_{at}_{j}"));
        let value = match (string, choices) {
            (false, _) => {
                lines.push(format!("{rule}: %json {}", all.prepared(key, schema)?));
                format!("{rule} {end}")
            }
            (true, Some(choices)) => {
                let texts: Vec<String> = choices.iter().filter_map(Value::as_str).map(literal).collect();
                if texts.len() < choices.len() || texts.is_empty() {
                    return Err(refused(tool, &path(key), "enum"));
                }
                format!("({}) {end}", texts.join(" | "))
            }
            (true, None) => {
                if let Some(keyword) = bound(schema) {
                    return Err(refused(tool, &path(key), keyword));
                }
                lines.push(literals.until(&rule, &tags.end));
                rule
            }
        };
        let middle = if string { &tags.string } else { &tags.other };
        let begin = literals.sequence(&format!("{}{key}{middle}", tags.begin));
        arguments.push(match all.is_required(key) {
            true => format!("{begin} {value}"),
            false => format!("({begin} {value})?"),
        });
    }
    Ok(arguments.join(" "))
}

/// Arguments of a call in Python, which are JSON here: Python knows its strings, numbers, lists and objects, and the parser its
/// words.
pub(super) fn python(
    literals: &Literals<'_>,
    at: usize,
    tool: &Tool,
    lines: &mut Vec<String>,
) -> Result<String> {
    let all = Arguments::of(tool, takes_in_python)?;
    let count = all.properties.len();
    // What may follow an argument, from the `j`th on.
    let rest = |j: usize| if j < count { format!(" rest_{at}_{j}") } else { String::new() };
    let (mut first, mut open) = (Vec::new(), true);
    for (j, &(key, schema)) in all.properties.iter().enumerate() {
        lines.push(format!("value_{at}_{j}: %json {}", all.prepared(key, schema)?));
        lines.push(format!("argument_{at}_{j}: {} value_{at}_{j}", literals.sequence(&format!("{key}="))));
        let (next, required) = (rest(j + 1), all.is_required(key));
        let again = format!("{} argument_{at}_{j}", literals.sequence(", "));
        if j > 0 {
            lines.push(match required {
                true => format!("rest_{at}_{j}: {again}{next}"),
                false => format!("rest_{at}_{j}: ({again})?{next}"),
            });
        }
        if open {
            first.push(format!("argument_{at}_{j}{next}"));
        }
        open &= !required;
    }
    Ok(match (first.is_empty(), open) {
        (true, _) => String::new(),
        (false, true) => format!("({})?", first.join(" | ")),
        (false, false) => format!("({})", first.join(" | ")),
    })
}

/// The keyword by which a schema of strings asks for more than a string; a union of one with something else may be any text.
fn bound(schema: &Value) -> Option<&str> {
    const FREE: [&str; 8] =
        ["type", "title", "description", "default", "examples", "deprecated", "discriminator", "format"];
    for (keyword, value) in schema.as_object().into_iter().flatten() {
        match (keyword.as_str(), value.as_array()) {
            ("anyOf" | "oneOf", Some(choices)) if choices.iter().all(|choice| bound(choice).is_none()) => {}
            (free, _) if FREE.contains(&free) => {}
            (other, _) => return Some(other),
        }
    }
    None
}
