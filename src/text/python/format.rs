//! `format % values`.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::repr::{write_repr, write_str};
use super::{escaped, refuse, written};
use crate::text::budget::{Limited, MAX_BYTES};

/// The widest field, and the most digits.
const MAX_WIDTH: usize = 999;

#[derive(Default)]
struct Spec {
    left: bool,
    zero: bool,
    plus: bool,
    blank: bool,
    width: usize,
    precision: Option<usize>,
}

/// `format % values`: a tuple has one value for each `%`, a mapping one for each `%(name)`, and anything else is the
/// only one. In a format that is marked as safe, values are escaped.
pub(super) fn percent(format: &Value, values: &Value) -> Result<Value, Error> {
    let text = format.as_str().unwrap_or_default();
    let single = [values.clone()];
    let listed: Vec<Value>;
    let positional: &[Value] = if values.is_tuple() {
        listed = super::ops::items(values)?;
        &listed
    } else {
        &single
    };
    let (mut used, mut named, mut taken) = (0, false, 0);
    let mut rest = text;
    let mut failure = None;
    let made = written(|out| {
        while let Some(at) = rest.find('%') {
            out.write_str(&rest[..at])?;
            rest = &rest[at + 1..];
            let mut next = |name: Option<&str>| match name {
                Some(name) => {
                    named = true;
                    values.get_attr(name).ok().filter(|value| !value.is_undefined())
                }
                None => {
                    used += 1;
                    positional.get(used - 1).cloned()
                }
            };
            if let Err(error) = field(out, &mut rest, &mut next, format.is_safe(), &mut taken) {
                failure = Some(error);
                return Ok(());
            }
        }
        out.write_str(rest)
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let mapping = values.kind() == ValueKind::Map;
    if used < positional.len() && !named && !mapping {
        return Err(refuse("not all arguments converted during string formatting"));
    }
    Ok(if format.is_safe() { Value::from_safe_string(made) } else { Value::from(made) })
}

/// Writes one field, whose `%` is behind.
fn field(
    out: &mut Limited,
    rest: &mut &str,
    next: &mut dyn FnMut(Option<&str>) -> Option<Value>,
    safe: bool,
    // Bytes of the values, however little of them is shown.
    taken: &mut usize,
) -> Result<(), Error> {
    let name = match rest.strip_prefix('(') {
        Some(inner) => {
            let (name, behind) = inner.split_once(')').ok_or_else(|| refuse("incomplete format key"))?;
            *rest = behind;
            Some(name)
        }
        None => None,
    };
    let mut spec = Spec::default();
    while let Some(flag) = rest.chars().next().filter(|c| "-0+ #".contains(*c)) {
        match flag {
            '-' => spec.left = true,
            '0' => spec.zero = true,
            '+' => spec.plus = true,
            ' ' => spec.blank = true,
            _ => return Err(refuse("# in a format is not supported")),
        }
        *rest = &rest[1..];
    }
    spec.width = digits(rest)?.unwrap_or(0);
    if let Some(behind) = rest.strip_prefix('.') {
        *rest = behind;
        spec.precision = Some(digits(rest)?.unwrap_or(0));
    }
    let kind = rest.chars().next().ok_or_else(|| refuse("incomplete format"))?;
    *rest = &rest[kind.len_utf8()..];
    let large = || refuse("the template made too large a string");
    if kind == '%' {
        return out.write_char('%').map_err(|_| large());
    }
    let value = next(name).ok_or_else(|| refuse("not enough arguments for format string"))?;
    let body = match kind {
        's' | 'r' => {
            let text = match kind {
                's' => written(|out| write_str(out, &value))?,
                _ => written(|out| write_repr(out, &value, 0))?,
            };
            *taken += text.len();
            if *taken > MAX_BYTES {
                return Err(large());
            }
            let text = if safe && !value.is_safe() { escaped(&text) } else { text };
            match spec.precision {
                Some(most) => text.chars().take(most).collect(),
                None => text,
            }
        }
        'd' | 'i' | 'u' => whole(&value, kind)?.to_string(),
        'x' => signed(whole(&value, kind)?, |n| format!("{n:x}")),
        'X' => signed(whole(&value, kind)?, |n| format!("{n:X}")),
        'o' => signed(whole(&value, kind)?, |n| format!("{n:o}")),
        'f' | 'F' => {
            let number = f64::try_from(value.clone()).map_err(|_| refuse("%f: a number is required"))?;
            format!("{number:.*}", spec.precision.unwrap_or(6))
        }
        other => return Err(refuse(format!("%{other} in a format is not supported"))),
    };
    pad(out, &body, &spec, !matches!(kind, 's' | 'r')).map_err(|_| large())
}

/// A number at the beginning.
fn digits(rest: &mut &str) -> Result<Option<usize>, Error> {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (number, behind) = rest.split_at(end);
    *rest = behind;
    if number.is_empty() {
        return Ok(None);
    }
    let number = number.parse().ok().filter(|n| *n <= MAX_WIDTH);
    number.map(Some).ok_or_else(|| refuse("a width of over 999 in a format is not supported"))
}

/// The value as a whole number; a fraction is cut off.
fn whole(value: &Value, kind: char) -> Result<i128, Error> {
    let number = match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        ValueKind::Number if "diu".contains(kind) => {
            let number = f64::try_from(value.clone()).ok();
            number.filter(|x| x.abs() < 1e36).map(|x| x.trunc() as i128)
        }
        _ => None,
    };
    number.ok_or_else(|| refuse(format!("%{kind}: a number is required, not {}", value.kind())))
}

fn signed(number: i128, write: impl Fn(u128) -> String) -> String {
    let text = write(number.unsigned_abs());
    if number < 0 { format!("-{text}") } else { text }
}

fn pad(out: &mut Limited, body: &str, spec: &Spec, number: bool) -> std::fmt::Result {
    let (sign, body) = match body.strip_prefix('-') {
        Some(behind) if number => ("-", behind),
        _ if number && spec.plus => ("+", body),
        _ if number && spec.blank => (" ", body),
        _ => ("", body),
    };
    let missing = spec.width.saturating_sub(sign.len() + body.chars().count());
    let zeros = number && spec.zero && !spec.left;
    match (spec.left, zeros) {
        (true, _) => write!(out, "{sign}{body}{}", " ".repeat(missing)),
        (_, true) => write!(out, "{sign}{}{body}", "0".repeat(missing)),
        _ => write!(out, "{}{sign}{body}", " ".repeat(missing)),
    }
}
