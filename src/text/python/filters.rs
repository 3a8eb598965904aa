//! Filters and tests where minijinja's differ from Jinja2's, or are missing.

use std::collections::HashSet;
use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, Value};

use super::methods::{is_space, lines, padded};
use super::ops::items;
use super::repr::{write_repr, write_str};
use super::{escaped, format, refuse, written};
use crate::text::budget::MAX_BYTES;

/// The value as a text, and whether it is marked as safe.
fn soft(value: &Value) -> Result<(String, bool), Error> {
    Ok((written(|out| write_str(out, value))?, value.is_safe()))
}

fn marked(text: String, safe: bool) -> Value {
    if safe { Value::from_safe_string(text) } else { Value::from(text) }
}

fn length(value: &Value) -> Result<usize, Error> {
    match value.len() {
        _ if value.is_undefined() => Ok(0),
        Some(length) => Ok(length),
        None => Err(refuse(format!("a value of type {} has no length", value.kind()))),
    }
}

fn list(value: &Value) -> Result<Value, Error> {
    Ok(Value::from(items(value)?))
}

/// The pairs of a mapping; an undefined value has none.
fn pairs(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    match value.as_object().filter(|_| value.kind() == ValueKind::Map).and_then(|o| o.try_iter_pairs()) {
        Some(pairs) => Ok(pairs.map(|(key, item)| Value::from(Tuple::from([key, item]))).collect()),
        None => Err(refuse("items takes a mapping")),
    }
}

fn string(value: &Value) -> Result<Value, Error> {
    soft(value).map(|(text, safe)| marked(text, safe))
}

fn upper(value: &Value) -> Result<Value, Error> {
    soft(value).map(|(text, safe)| marked(text.to_uppercase(), safe))
}

fn lower(value: &Value) -> Result<Value, Error> {
    soft(value).map(|(text, safe)| marked(text.to_lowercase(), safe))
}

fn capitalize(value: &Value) -> Result<Value, Error> {
    let (text, safe) = soft(value)?;
    let mut rest = text.chars();
    let first: String = rest.next().into_iter().flat_map(char::to_uppercase).collect();
    Ok(marked(first + &rest.as_str().to_lowercase(), safe))
}

fn trim(value: &Value, characters: Option<&str>) -> Result<Value, Error> {
    let (text, safe) = soft(value)?;
    let set: Option<HashSet<char>> = characters.map(|set| set.chars().collect());
    let goes = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
    Ok(marked(text.trim_matches(goes).to_owned(), safe))
}

fn float(value: &Value, default: Option<&Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let named: Option<Value> = kwargs.get("default")?;
    kwargs.assert_all_used()?;
    let number = match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => text.trim_matches(is_space).parse().ok(),
        (ValueKind::Bool, _) => Some(f64::from(u8::from(value.is_true()))),
        _ => f64::try_from(value.clone()).ok(),
    };
    let default = default.cloned().or(named);
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from))
}

fn escape(value: &Value) -> Result<Value, Error> {
    match value.is_safe() {
        true => Ok(value.clone()),
        false => forceescape(value),
    }
}

fn forceescape(value: &Value) -> Result<Value, Error> {
    Ok(Value::from_safe_string(escaped(&soft(value)?.0)))
}

fn wordcount(value: &Value) -> Result<usize, Error> {
    let word = |c: &char| c.is_alphanumeric() || *c == '_';
    let text = soft(value)?.0;
    let starts = text.chars().zip(std::iter::once(' ').chain(text.chars()));
    Ok(starts.filter(|(c, before)| word(c) && !word(before)).count())
}

fn center(value: &Value, width: Option<i64>) -> Result<Value, Error> {
    let (text, safe) = soft(value)?;
    Ok(marked(padded(&text, width.unwrap_or(80), " ", "center")?, safe))
}

/// `replace(old, new, count)`, of whatever is no string, too.
fn replace(
    value: &Value,
    old: &Value,
    new: &Value,
    count: Option<i64>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let count = count.or(kwargs.get("count")?);
    kwargs.assert_all_used()?;
    let (text, old, new) = (soft(value)?.0, soft(old)?.0, soft(new)?.0);
    let count = count.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let made = text.matches(&*old).take(count).count().saturating_mul(new.len());
    if text.len().saturating_add(made) > MAX_BYTES {
        return Err(refuse("replace makes too large a value"));
    }
    Ok(Value::from(text.replacen(&*old, &new, count)))
}

/// `join(separator, attribute)`.
fn join(
    value: &Value,
    separator: Option<&Value>,
    attribute: Option<&str>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let named: Option<Value> = kwargs.get("d")?;
    let attribute = attribute.or(kwargs.get("attribute")?);
    kwargs.assert_all_used()?;
    let separator = match separator.cloned().or(named) {
        Some(separator) => soft(&separator)?.0,
        None => String::new(),
    };
    let mut items = items(value)?;
    if let Some(path) = attribute {
        for item in &mut items {
            for name in path.split('.') {
                *item = match name.parse::<usize>() {
                    Ok(index) => item.get_item_by_index(index)?,
                    Err(_) => item.get_attr(name)?,
                };
            }
        }
    }
    let joined = written(|out| {
        for (i, item) in items.iter().enumerate() {
            out.write_str(if i > 0 { &separator } else { "" })?;
            write_str(out, item)?;
        }
        Ok(())
    })?;
    Ok(Value::from(joined))
}

/// `indent(width=4, first=False, blank=False)`; the width may be a text.
fn indent(
    value: &Value,
    width: Option<&Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let named: Option<Value> = kwargs.get("width")?;
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let indention = match width.cloned().or(named) {
        None => " ".repeat(4),
        Some(width) => match (width.as_str(), width.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(count)) if count <= MAX_BYTES => " ".repeat(count),
            (None, Some(_)) => return Err(refuse("indent makes too large a value")),
            _ => return Err(refuse("indent takes a width or a text")),
        },
    };
    let (text, safe) = soft(value)?;
    // Jinja2 adds a line end, so that one at the end of the text begins an empty line.
    let text = text + "\n";
    let made = written(|out| {
        for (i, line) in lines(&text, false).into_iter().enumerate() {
            let indented = if i == 0 { first } else { blank || !line.is_empty() };
            out.write_str(if i > 0 { "\n" } else { "" })?;
            out.write_str(if indented { &indention } else { "" })?;
            out.write_str(line)?;
        }
        Ok(())
    })?;
    Ok(marked(made, safe))
}

/// `format(…)` with values by position or by name.
fn format_filter(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let (text, safe) = soft(value)?;
    let args = args.into_values();
    let named = args.first().filter(|value| value.is_kwargs()).cloned();
    let values = named.unwrap_or_else(|| Value::from(Tuple::from(args)));
    format::percent(&marked(text, safe), &values)
}

fn pprint(value: &Value) -> Result<String, Error> {
    written(|out| write_repr(out, value, 0))
}

fn is_iterable(value: &Value) -> bool {
    let scalar = matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number);
    value.kind() == ValueKind::String || (!scalar && value.try_iter().is_ok())
}

/// What has a length and is indexed: mappings and texts, too.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Iterable | ValueKind::Map
    ) && !is_namespace(value)
}

fn is_mapping(value: &Value) -> bool {
    value.kind() == ValueKind::Map && !is_namespace(value)
}

fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().contains("Namespace"))
}

pub(super) fn install(env: &mut Environment<'_>) {
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_filter("list", list);
    env.add_filter("items", pairs);
    env.add_filter("string", string);
    env.add_filter("upper", upper);
    env.add_filter("lower", lower);
    env.add_filter("capitalize", capitalize);
    env.add_filter("trim", trim);
    env.add_filter("float", float);
    env.add_filter("e", escape);
    env.add_filter("escape", escape);
    env.add_filter("forceescape", forceescape);
    env.add_filter("wordcount", wordcount);
    env.add_filter("center", center);
    env.add_filter("replace", replace);
    env.add_filter("join", join);
    env.add_filter("indent", indent);
    env.add_filter("format", format_filter);
    env.add_filter("pprint", pprint);
    env.add_test("iterable", is_iterable);
    env.add_test("sequence", is_sequence);
    env.add_test("mapping", is_mapping);
    env.add_test("callable", is_callable);
}
