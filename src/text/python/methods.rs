//! Methods of `str`, `list` and `dict` that minijinja's `pycompat` has not, or has otherwise.

use std::collections::HashSet;

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, Value};

use super::ops::items;
use super::{refuse, written};
use crate::text::budget::MAX_BYTES;

/// What a method gives; none is left to `pycompat`. That of a text which is marked as safe is, too.
pub(in crate::text) fn method(value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let made = match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => of_text(text, name, args)?,
        (ValueKind::Seq, _) if name == "index" => {
            let (what,): (&Value,) = from_args(args)?;
            let at = items(value)?.iter().position(|item| item == what);
            Some(Value::from(at.ok_or_else(|| refuse("the list has no such item"))?))
        }
        (ValueKind::Seq | ValueKind::Map, _) if name == "copy" => Some(value.clone()),
        _ => None,
    };
    Ok(match made {
        Some(made) if value.is_safe() && made.kind() == ValueKind::String => {
            Some(Value::from_safe_string(made.as_str().unwrap_or_default().to_owned()))
        }
        made => made,
    })
}

fn of_text(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (characters,): (Option<&str>,) = from_args(args)?;
            let set: Option<HashSet<char>> = characters.map(|set| set.chars().collect());
            let goes = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
            let text = if name == "rstrip" { text } else { text.trim_start_matches(goes) };
            Value::from(if name == "lstrip" { text } else { text.trim_end_matches(goes) })
        }
        "split" | "rsplit" => split(text, args, name == "rsplit")?,
        "splitlines" => {
            let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(kwargs.get("keepends")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            lines(text, keep).into_iter().map(Value::from).collect()
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let found = part(text, start, end).and_then(|(part, offset)| {
                let at = if name.starts_with('r') { part.rfind(what) } else { part.find(what) };
                Some((offset + part[..at?].chars().count()) as i64)
            });
            match found {
                Some(at) => Value::from(at),
                None if name.ends_with("find") => Value::from(-1),
                None => return Err(refuse("substring not found")),
            }
        }
        "count" => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            Value::from(part(text, start, end).map_or(0, |(part, _)| part.matches(what).count()))
        }
        "startswith" | "endswith" => {
            let (what, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let several = if what.is_tuple() { items(what)? } else { vec![what.clone()] };
            let part = part(text, start, end);
            let mut fits = false;
            for one in &several {
                let one = one.as_str().ok_or_else(|| refuse(format!("{name} takes a string or a tuple")))?;
                fits |= part.is_some_and(|(part, _)| match name {
                    "startswith" => part.starts_with(one),
                    _ => part.ends_with(one),
                });
            }
            Value::from(fits)
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(refuse("empty separator"));
            }
            let (before, separator, after) = match name {
                "partition" => text.split_once(separator).map_or((text, "", ""), |(b, a)| (b, separator, a)),
                _ => text.rsplit_once(separator).map_or(("", "", text), |(b, a)| (b, separator, a)),
            };
            Value::from(Tuple::from([before, separator, after].map(Value::from)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            Value::from(padded(text, width, fill.unwrap_or(" "), name)?)
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let signed = text.starts_with(['-', '+']);
            let (sign, number) = text.split_at(usize::from(signed));
            let number = padded(number, width.saturating_sub(i64::from(signed)), "0", "rjust")?;
            Value::from(format!("{sign}{number}"))
        }
        "join" => {
            let (parts,): (&Value,) = from_args(args)?;
            let parts = items(parts)?;
            let joined = written(|out| {
                use std::fmt::Write;
                for (i, part) in parts.iter().enumerate() {
                    out.write_str(if i > 0 { text } else { "" })?;
                    out.write_str(part.as_str().unwrap_or_default())?;
                }
                Ok(())
            })?;
            if let Some(other) = parts.iter().find(|part| part.kind() != ValueKind::String) {
                return Err(refuse(format!("join takes strings, not {}", other.kind())));
            }
            Value::from(joined)
        }
        "title" => {
            let mut within = false;
            let mut title = String::with_capacity(text.len());
            for c in text.chars() {
                if within {
                    title.extend(c.to_lowercase());
                } else {
                    title.extend(c.to_uppercase());
                }
                within = c.is_uppercase() || c.is_lowercase();
            }
            Value::from(title)
        }
        "swapcase" => {
            let swap = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        // The folds that lower case leaves, of letters in use.
        "casefold" => Value::from(text.to_lowercase().replace('ß', "ss").replace('ς', "σ")),
        _ => return Ok(None),
    }))
}

/// What `str.isspace` takes for white space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// The text between two positions, which count characters and may be negative, and where it begins; none where the
/// first lies behind the second.
fn part(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(&str, usize)> {
    if start.is_none() && end.is_none() {
        return Some((text, 0));
    }
    let length = text.chars().count() as i64;
    let place = |at: i64| if at < 0 { (at + length).max(0) } else { at };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(length)).min(length));
    if start > end {
        return None;
    }
    let byte = |at: i64| text.char_indices().nth(at as usize).map_or(text.len(), |(at, _)| at);
    Some((&text[byte(start)..byte(end)], start as usize))
}

fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, most, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(kwargs.get("sep")?);
    let most = most.or(kwargs.get("maxsplit")?);
    kwargs.assert_all_used()?;
    let most = most.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let pieces = most.saturating_add(1);
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(refuse("empty separator")),
        Some(separator) if from_right => text.rsplitn(pieces, separator).collect(),
        Some(separator) => text.splitn(pieces, separator).collect(),
        None => words(text, most, from_right),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The words between white space; what is left after `most` cuts is the last, from the right the first.
fn words(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        rest = if from_right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            return parts;
        }
        let cut = match parts.len() < most {
            true if from_right => rest.rfind(is_space),
            true => rest.find(is_space),
            false => None,
        };
        let Some(at) = cut else {
            parts.push(rest);
            return parts;
        };
        if from_right {
            let behind = at + rest[at..].chars().next().map_or(0, char::len_utf8);
            parts.push(&rest[behind..]);
            rest = &rest[..at];
        } else {
            parts.push(&rest[..at]);
            rest = &rest[at..];
        }
    }
}

/// `str.splitlines`.
pub(super) fn lines(text: &str, keep: bool) -> Vec<&str> {
    let ends = |c: char| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let at = rest.find(ends).unwrap_or(rest.len());
        let length = match rest[at..].starts_with("\r\n") {
            true => 2,
            false => rest[at..].chars().next().map_or(0, char::len_utf8),
        };
        lines.push(&rest[..if keep { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    lines
}

/// The text padded to a width in characters: `center`, `ljust` or `rjust`.
pub(super) fn padded(text: &str, width: i64, fill: &str, how: &str) -> Result<String, Error> {
    if fill.chars().count() != 1 {
        return Err(refuse("the fill character must be exactly one character long"));
    }
    let width = usize::try_from(width).unwrap_or(0);
    if width.saturating_mul(fill.len()) > MAX_BYTES {
        return Err(refuse(format!("{how} makes too large a value")));
    }
    let missing = width.saturating_sub(text.chars().count());
    let left = match how {
        "ljust" => 0,
        "rjust" => missing,
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)))
}
