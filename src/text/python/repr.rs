//! `str` and `repr` of values.

use std::fmt::{self, Write};

use minijinja::Value;
use minijinja::value::ValueKind;

use crate::text::json::number;

/// How deep a value may nest; those that templates make are refused before.
const MAX_DEPTH: usize = 128;

/// `str(value)`; an undefined value is nothing.
pub(in crate::text) fn write_str(out: &mut impl Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => write_repr(out, value, 0),
    }
}

/// `repr(value)`.
pub(super) fn write_repr(out: &mut dyn Write, value: &Value, depth: usize) -> fmt::Result {
    if depth > MAX_DEPTH {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.write_str(&number(value)),
        ValueKind::String if value.is_safe() => {
            out.write_str("Markup(")?;
            quoted(out, value.as_str().unwrap_or_default())?;
            out.write_char(')')
        }
        ValueKind::String => quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            let Ok(items) = value.try_iter() else { return write!(out, "{value}") };
            let tuple = value.is_tuple();
            out.write_char(if tuple { '(' } else { '[' })?;
            let mut count = 0;
            for item in items {
                if count > 0 {
                    out.write_str(", ")?;
                }
                count += 1;
                write_repr(out, &item, depth + 1)?;
            }
            out.write_str(match (tuple, count) {
                (true, 1) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            })
        }
        ValueKind::Map => {
            let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
            out.write_char('{')?;
            for (i, (key, item)) in pairs.into_iter().flatten().enumerate() {
                if i > 0 {
                    out.write_str(", ")?;
                }
                write_repr(out, &key, depth + 1)?;
                out.write_str(": ")?;
                write_repr(out, &item, depth + 1)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

fn quoted(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            _ if c == quote || c == '\\' => write!(out, "\\{c}")?,
            ' '..='~' => out.write_char(c)?,
            // Marks of what a message holds, which are taken out of what is rendered.
            _ if printable(c) || super::super::sentinel::ALL.contains(&c) => out.write_char(c)?,
            _ => match u32::from(c) {
                code @ ..=0xFF => write!(out, "\\x{code:02x}")?,
                code @ ..=0xFFFF => write!(out, "\\u{code:04x}")?,
                code => write!(out, "\\U{code:08x}")?,
            },
        }
    }
    out.write_char(quote)
}

/// What Python calls printable: all but controls, formats, private and unassigned characters, and white space other
/// than the space. Rust's `escape_debug` keeps the same ones, and combining marks behind a first character.
fn printable(c: char) -> bool {
    let mut buffer = [b'a'; 5];
    let length = 1 + c.encode_utf8(&mut buffer[1..]).len();
    let text = std::str::from_utf8(&buffer[..length]).unwrap_or_default();
    text.escape_debug().nth(1) != Some('\\')
}
