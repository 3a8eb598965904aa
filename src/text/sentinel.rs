//! Special tokens' texts inside messages: wrapped in noncharacters before a template is rendered, found and unwrapped
//! after it, so that what a user typed stays text and what the template wrote is parsed.

use std::ops::Range;

use serde_json::Value as Json;

const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';
/// Stands before `0` to `3` for the four characters themselves, where a message holds them.
const ESCAPE: char = '\u{FDD2}';
/// Ends the text of a message that is to be continued.
const CONTINUE: char = '\u{FDD3}';
pub(super) const ALL: [char; 4] = [OPEN, CLOSE, ESCAPE, CONTINUE];

/// How deep messages, tools and documents may nest.
const MAX_DEPTH: usize = 48;

/// The value with the special texts in its strings wrapped. `special`: the longest first.
pub(super) fn protect(value: &Json, special: &[String], depth: usize) -> Result<Json, String> {
    if depth > MAX_DEPTH {
        return Err(format!("messages nest deeper than {MAX_DEPTH}"));
    }
    Ok(match value {
        Json::String(text) => Json::String(wrap(text, special)),
        Json::Array(items) => {
            let items = items.iter().map(|v| protect(v, special, depth + 1));
            Json::Array(items.collect::<Result<_, _>>()?)
        }
        Json::Object(entries) => {
            let entries =
                entries.iter().map(|(k, v)| Ok((wrap(k, special), protect(v, special, depth + 1)?)));
            Json::Object(entries.collect::<Result<_, String>>()?)
        }
        other => other.clone(),
    })
}

fn wrap(text: &str, special: &[String]) -> String {
    let own = text.contains(ALL);
    if !own && !special.iter().any(|s| text.contains(s.as_str())) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(token) = special.iter().find(|s| rest.starts_with(s.as_str())) {
            out.push(OPEN);
            out.push_str(token);
            out.push(CLOSE);
            rest = &rest[token.len()..];
            continue;
        }
        match first {
            OPEN => out.extend([ESCAPE, '0']),
            CLOSE => out.extend([ESCAPE, '1']),
            ESCAPE => out.extend([ESCAPE, '2']),
            CONTINUE => out.extend([ESCAPE, '3']),
            c => out.push(c),
        }
        rest = &rest[first.len_utf8()..];
    }
    out
}

/// Marks where the text of a message ends, after [`protect`]: a template that trims it takes the space away.
pub(super) fn mark_end(text: &mut String) {
    text.extend([CONTINUE, ' ']);
}

/// The text up to the marked end of a message, without the white space before it where the template trimmed it.
pub(super) fn up_to_end(mut text: String) -> Option<String> {
    let at = text.rfind(CONTINUE)?;
    let whole = text[at + CONTINUE.len_utf8()..].starts_with(' ');
    text.truncate(if whole { at } else { text[..at].trim_end().len() });
    Some(text)
}

/// The text without sentinels, and the ranges that were wrapped. A wrapping that a template cut apart is dropped.
pub(super) fn split(text: &str, special: &[String]) -> (String, Vec<Range<usize>>) {
    let mut out = String::with_capacity(text.len());
    let mut literal = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ALL) {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        let sign = tail.chars().next().unwrap_or(CLOSE);
        rest = &tail[sign.len_utf8()..];
        match sign {
            OPEN => {
                let closed =
                    |s: &&String| rest.strip_prefix(s.as_str()).is_some_and(|r| r.starts_with(CLOSE));
                if let Some(token) = special.iter().find(closed) {
                    literal.push(out.len()..out.len() + token.len());
                    out.push_str(token);
                    rest = &rest[token.len() + CLOSE.len_utf8()..];
                }
            }
            ESCAPE => {
                let original = match rest.chars().next() {
                    Some('0') => OPEN,
                    Some('1') => CLOSE,
                    Some('2') => ESCAPE,
                    Some('3') => CONTINUE,
                    _ => continue,
                };
                out.push(original);
                rest = &rest[1..];
            }
            _ => {}
        }
    }
    out.push_str(rest);
    (out, literal)
}
