//! Operators where minijinja's differ from Python's, or end in a panic.

use std::cmp::Ordering;
use std::fmt::Write;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, Value};

use super::{escaped, refuse, written};
use crate::text::budget::MAX_NODES;

/// A string of up to as many bytes is turned into a list of its characters.
const MAX_CHARACTERS: usize = 1 << 16;

/// What a loop goes through. None cannot be; a string becomes a list, so that the loop has a length.
pub(super) fn iterable(value: &Value) -> Result<Value, Error> {
    match value.as_str() {
        _ if value.is_none() => Err(refuse("'NoneType' object is not iterable")),
        Some(text) if text.len() <= MAX_CHARACTERS => Ok(text.chars().map(Value::from).collect()),
        _ => Ok(value.clone()),
    }
}

/// The value's items.
pub(super) fn items(value: &Value) -> Result<Vec<Value>, Error> {
    let items = iterable(value)?.try_iter()?.checked().take(MAX_NODES + 1);
    let items: Vec<Value> = items.collect::<Result<_, _>>()?;
    if items.len() > MAX_NODES {
        return Err(refuse("the template made too large or too deep a value"));
    }
    Ok(items)
}

fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// Both as whole numbers, where both are; booleans count as 0 and 1.
fn whole(a: &Value, b: &Value) -> Option<(i128, i128)> {
    let one = |value: &Value| match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    };
    Some((one(a)?, one(b)?))
}

fn float(value: &Value) -> Result<f64, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(f64::from(u8::from(value.is_true()))),
        _ => f64::try_from(value.clone()),
    }
}

fn of_whole(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
}

fn unsupported(a: &Value, operator: &str, b: &Value) -> Error {
    refuse(format!("{} {operator} {} is not supported", a.kind(), b.kind()))
}

/// `a + b`. Beside a text that is marked as safe, another is escaped.
pub(super) fn add(a: &Value, b: &Value) -> Result<Value, Error> {
    if is_number(a) && is_number(b) {
        return match whole(a, b) {
            Some((x, y)) => x.checked_add(y).map(of_whole).ok_or_else(|| refuse("integer overflow")),
            None => Ok(Value::from(float(a)? + float(b)?)),
        };
    }
    if let (ValueKind::String, ValueKind::String) = (a.kind(), b.kind()) {
        let safe = a.is_safe() || b.is_safe();
        let text = written(|out| {
            for value in [a, b] {
                let text = value.as_str().unwrap_or_default();
                out.write_str(&if safe && !value.is_safe() { escaped(text) } else { text.into() })?;
            }
            Ok(())
        })?;
        return Ok(if safe { Value::from_safe_string(text) } else { Value::from(text) });
    }
    if !is_list(a) || !is_list(b) || a.is_tuple() != b.is_tuple() {
        return Err(unsupported(a, "+", b));
    }
    let (mut joined, more) = (items(a)?, items(b)?);
    if joined.len() + more.len() > MAX_NODES {
        return Err(refuse("the template made too large or too deep a value"));
    }
    joined.extend(more);
    Ok(if a.is_tuple() { Value::from(Tuple::from(joined)) } else { Value::from(joined) })
}

/// `a % b` of numbers: the sign is the divisor's.
pub(super) fn remainder(a: &Value, b: &Value) -> Result<Value, Error> {
    if !is_number(a) || !is_number(b) {
        return Err(unsupported(a, "%", b));
    }
    if let Some((x, y)) = whole(a, b) {
        let rest = x.checked_rem(y).ok_or_else(|| refuse("integer modulo by zero"))?;
        return Ok(of_whole(if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest }));
    }
    let (x, y) = (float(a)?, float(b)?);
    if y == 0.0 {
        return Err(refuse("float modulo by zero"));
    }
    let rest = x % y;
    Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest.abs().copysign(y) }))
}

/// How two values of one type are ordered; those of different types are not.
pub(super) fn ordering(a: &Value, b: &Value) -> Result<Ordering, Error> {
    if is_number(a) && is_number(b) {
        return match whole(a, b) {
            Some((x, y)) => Ok(x.cmp(&y)),
            None => Ok(float(a)?.partial_cmp(&float(b)?).unwrap_or(Ordering::Equal)),
        };
    }
    match (a.kind(), b.kind()) {
        (ValueKind::String, ValueKind::String) => Ok(a.as_str().cmp(&b.as_str())),
        _ if is_list(a) && is_list(b) && a.is_tuple() == b.is_tuple() => {
            let (left, right) = (items(a)?, items(b)?);
            match left.iter().zip(&right).find(|(x, y)| x != y) {
                Some((x, y)) => ordering(x, y),
                None => Ok(left.len().cmp(&right.len())),
            }
        }
        _ => Err(unsupported(a, "<", b)),
    }
}

/// `value[start:stop:step]`. As in Jinja2, what has no slices gives an undefined value.
pub(super) fn slice(value: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value, Error> {
    let place = |at: &Value| if at.is_none() { Ok(None) } else { i64::try_from(at.clone()).map(Some) };
    let (start, stop, step) = (place(start)?, place(stop)?, place(step)?.unwrap_or(1));
    if step == 0 {
        return Err(refuse("slice step cannot be zero"));
    }
    match (value.kind(), value.as_str()) {
        (ValueKind::Undefined, _) => Err(refuse("an undefined value has no slices")),
        (ValueKind::String, Some(text)) => {
            let picked: String = if step == 1 {
                let mut picks = picks(text.chars().count(), start, stop, step);
                let first = picks.next();
                let count = first.map_or(0, |_| 1 + picks.count());
                text.chars().skip(first.unwrap_or(0)).take(count).collect()
            } else {
                let characters: Vec<char> = text.chars().collect();
                picks(characters.len(), start, stop, step).map(|i| characters[i]).collect()
            };
            Ok(if value.is_safe() { Value::from_safe_string(picked) } else { Value::from(picked) })
        }
        (ValueKind::Seq | ValueKind::Iterable, _) => {
            let items = items(value)?;
            let picked: Vec<Value> =
                picks(items.len(), start, stop, step).map(|i| items[i].clone()).collect();
            Ok(if value.is_tuple() { Value::from(Tuple::from(picked)) } else { Value::from(picked) })
        }
        _ => Ok(Value::UNDEFINED),
    }
}

/// Python's `slice.indices`.
fn picks(length: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let length = length as i64;
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |at: i64| if at < 0 { (at + length).max(low) } else { at.min(high) };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    let (mut at, stop) = (start.map_or(first, place), stop.map_or(last, place));
    std::iter::from_fn(move || {
        let inside = if step > 0 { at < stop } else { at > stop };
        inside.then(|| {
            let here = at as usize;
            at = at.saturating_add(step);
            here
        })
    })
}
