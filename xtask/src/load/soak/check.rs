//! What constrained answers must be: held against the schema, the pattern or the grammar that was asked for.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// A format, and how an answer is held against it without the server's own code.
#[derive(Debug, Clone)]
pub enum Check {
    /// JSON of the schema.
    Schema(Value),
    Regex(&'static str, fn(&str) -> bool),
    Lark(&'static str, fn(&str) -> bool),
}

impl Check {
    /// # Errors
    /// A text that is not what was asked for.
    pub fn holds(&self, text: &str) -> Result<()> {
        match self {
            Self::Schema(schema) => {
                let value = serde_json::from_str(text).with_context(|| format!("no JSON: {text:?}"))?;
                satisfies(&value, schema).with_context(|| format!("{text:?}"))
            }
            Self::Regex(form, is) | Self::Lark(form, is) => {
                ensure!(is(text), "{text:?} is not of the form {form:?}");
                Ok(())
            }
        }
    }
}

/// Whether `value` is as `schema` says, of the keywords that are used here.
///
/// # Errors
/// The keyword that it does not satisfy, or one that is not known.
fn satisfies(value: &Value, schema: &Value) -> Result<()> {
    let rules = schema.as_object().context("no schema")?;
    let number = value.as_f64();
    let count = match value {
        Value::String(text) => Some(text.chars().count()),
        Value::Array(items) => Some(items.len()),
        _ => None,
    };
    for (keyword, rule) in rules {
        let limit = rule.as_f64().unwrap_or_default();
        let holds = match keyword.as_str() {
            "type" => match rule.as_str() {
                Some("object") => value.is_object(),
                Some("array") => value.is_array(),
                Some("string") => value.is_string(),
                // -0 among them, which serde_json reads as a float.
                Some("integer") => number.is_some_and(|number| number.fract() == 0.0),
                Some("boolean") => value.is_boolean(),
                _ => bail!("the type {rule} is not known"),
            },
            "enum" => rule.as_array().is_some_and(|all| all.contains(value)),
            "const" => rule == value,
            "minimum" => number.is_none_or(|number| number >= limit),
            "maximum" => number.is_none_or(|number| number <= limit),
            "multipleOf" => number.is_none_or(|number| number % limit == 0.0),
            "minLength" | "minItems" => count.is_none_or(|count| count as f64 >= limit),
            "maxLength" | "maxItems" => count.is_none_or(|count| count as f64 <= limit),
            "items" => {
                value.as_array().into_iter().flatten().try_for_each(|item| satisfies(item, rule))?;
                true
            }
            "properties" => {
                let rules = rule.as_object().context("properties")?;
                for (name, rule) in rules {
                    value.get(name).map_or(Ok(()), |member| satisfies(member, rule))?;
                }
                true
            }
            "required" => {
                let names = rule.as_array().context("required")?;
                names.iter().all(|name| name.as_str().is_some_and(|name| value.get(name).is_some()))
            }
            "additionalProperties" => value.as_object().is_none_or(|members| {
                members.keys().all(|name| rules.get("properties").is_some_and(|all| all.get(name).is_some()))
            }),
            "anyOf" => rule.as_array().into_iter().flatten().any(|one| satisfies(value, one).is_ok()),
            _ => bail!("the keyword {keyword} is not known"),
        };
        ensure!(holds, "{value} does not satisfy {keyword}: {rule}");
    }
    Ok(())
}

/// A girl's or a boy's card, lists, unions, numbers.
fn schemas() -> [Value; 5] {
    let word = json!({ "type": "string", "minLength": 1, "maxLength": 8 });
    let object = |properties: Value, required: Value| json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false });
    [
        object(
            json!({ "name": word, "age": { "type": "integer", "minimum": 1, "maximum": 12 },
                "pet": { "enum": ["cat", "dog", "none"] } }),
            json!(["name", "age", "pet"]),
        ),
        json!({ "type": "array", "items": { "type": "integer", "minimum": -99, "maximum": 99 }, "minItems": 2, "maxItems": 5 }),
        json!({ "anyOf": [object(json!({ "yes": { "type": "boolean" } }), json!(["yes"])), { "enum": ["maybe"] }] }),
        object(
            json!({ "who": object(json!({ "first": word }), json!(["first"])),
                "tags": { "type": "array", "items": { "enum": ["red", "big", "old"] }, "minItems": 1, "maxItems": 3 } }),
            json!(["who", "tags"]),
        ),
        json!({ "type": "integer", "minimum": 0, "maximum": 5000, "multipleOf": 7 }),
    ]
}

fn telephone(text: &str) -> bool {
    let digits = |part: &str, count: usize| part.len() == count && part.bytes().all(|b| b.is_ascii_digit());
    text.split_once('-').is_some_and(|(area, rest)| digits(area, 3) && digits(rest, 4))
}

fn sentence(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or_default();
    let Some((who, what)) = text.split_once(' ') else { return false };
    ["Tom", "Lily"].contains(&who) && what.split(' ').all(|word| ["ran", "and", "sang"].contains(&word))
}

/// A number between brackets that are closed.
fn nested(text: &str) -> bool {
    let depth = text.bytes().take_while(|&byte| byte == b'(').count();
    let inner = &text[depth..];
    inner.len() > depth
        && inner[..inner.len() - depth].bytes().all(|byte| byte.is_ascii_digit())
        && inner[inner.len() - depth..].bytes().all(|byte| byte == b')')
}

/// The formats that every API takes.
pub fn everywhere() -> impl Iterator<Item = Check> {
    schemas().into_iter().map(Check::Schema)
}

/// The formats that completions and chats alone take.
pub fn of_completions() -> [Check; 4] {
    let grammar =
        "start: WHO (\" \" WHAT){1,6} \".\"\nWHO: \"Tom\" | \"Lily\"\nWHAT: \"ran\" | \"and\" | \"sang\"";
    [
        Check::Regex("[0-9]{3}-[0-9]{4}", telephone),
        Check::Regex("(Tom|Lily)( (ran|and|sang)){1,6}\\.", sentence),
        Check::Lark(grammar, sentence),
        Check::Lark("start: n\nn: \"(\" n \")\" | /[0-9]{1,3}/", nested),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_held_against_values() {
        let [card, numbers, union, nested, multiple] = schemas();
        for (schema, good, bad) in [
            (
                &card,
                json!({ "name": "Tom", "age": 3, "pet": "cat" }),
                json!({ "name": "Tom", "age": 13, "pet": "cat" }),
            ),
            (&card, json!({ "name": "x", "age": 1, "pet": "none" }), json!({ "name": "x", "age": 1 })),
            (&numbers, json!([1, 2]), json!([1])),
            (&union, json!("maybe"), json!("no")),
            (&union, json!({ "yes": true }), json!({ "yes": true, "no": 1 })),
            (
                &nested,
                json!({ "who": { "first": "a" }, "tags": ["red"] }),
                json!({ "who": { "first": "" }, "tags": ["red"] }),
            ),
            (&multiple, json!(14), json!(15)),
        ] {
            satisfies(&good, schema).unwrap();
            assert!(satisfies(&bad, schema).is_err(), "{bad}");
        }
    }

    #[test]
    fn forms_are_known() {
        assert!(telephone("123-4567") && !telephone("123-456") && !telephone("1234-567"));
        assert!(sentence("Tom ran and sang.") && !sentence("Tom.") && !sentence("Sue ran."));
        assert!(nested("((12))") && nested("7") && !nested("((1)") && !nested("()"));
    }
}
