//! Special tokens' texts inside messages: wrapped in noncharacters before a template is rendered, found and unwrapped
//! after it, so that what a user typed stays text and what the template wrote is parsed.

use std::collections::BTreeSet;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value as Json;

use crate::error::{Error, Result};

const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';
/// Stands before `0` to `3` for the four characters themselves, where a message holds them.
const ESCAPE: char = '\u{FDD2}';
/// Ends the text of a message that is to be continued.
const CONTINUE: char = '\u{FDD3}';
pub(super) const ALL: [char; 4] = [OPEN, CLOSE, ESCAPE, CONTINUE];

/// Bytes of all texts that are looked for: each is a state of the finder's. Real models have some ten thousand.
const MAX_TEXTS: usize = 1 << 20;
/// How deep messages, tools and documents may nest.
const MAX_DEPTH: usize = 48;

/// The texts that are wrapped.
#[derive(Debug, Clone)]
pub(crate) struct Guarded {
    texts: BTreeSet<String>,
    longest: usize,
    finder: AhoCorasick,
}

impl Guarded {
    pub fn new(texts: impl IntoIterator<Item = String>) -> Result<Self> {
        let texts: BTreeSet<String> = texts.into_iter().filter(|text| !text.is_empty()).collect();
        let longest = texts.iter().map(|text| escaped(text).len()).max().unwrap_or(0);
        Ok(Self { finder: longest_first(texts.iter())?, texts, longest })
    }

    /// With more of them.
    pub fn and(&self, more: impl IntoIterator<Item = String>) -> Result<Self> {
        Self::new(self.texts.iter().cloned().chain(more))
    }

    /// Whether a text is one of them.
    pub fn holds(&self, text: &str) -> bool {
        self.texts.contains(text)
    }

    /// The value with these texts in its strings wrapped.
    pub fn protect(&self, value: &Json, depth: usize) -> Result<Json, String> {
        if depth > MAX_DEPTH {
            return Err(format!("messages nest deeper than {MAX_DEPTH}"));
        }
        Ok(match value {
            Json::String(text) => Json::String(self.wrap(text)),
            Json::Array(items) => {
                let items = items.iter().map(|v| self.protect(v, depth + 1));
                Json::Array(items.collect::<Result<_, _>>()?)
            }
            Json::Object(entries) => {
                let entries = entries.iter().map(|(k, v)| Ok((self.wrap(k), self.protect(v, depth + 1)?)));
                Json::Object(entries.collect::<Result<_, String>>()?)
            }
            other => other.clone(),
        })
    }

    fn wrap(&self, text: &str) -> String {
        if !text.contains(ALL) && !self.finder.is_match(text) {
            return text.to_owned();
        }
        let mut out = String::with_capacity(text.len() + 16);
        let mut done = 0;
        for found in self.finder.find_iter(text) {
            escape(&mut out, &text[done..found.start()]);
            out.push(OPEN);
            // A text with a sentinel in it would seem to end there.
            escape(&mut out, &text[found.range()]);
            out.push(CLOSE);
            done = found.end();
        }
        escape(&mut out, &text[done..]);
        out
    }

    /// The one that `text` begins with, where [`CLOSE`] follows, and its length as it was written.
    fn closed(&self, text: &str) -> Option<(String, usize)> {
        let near = text.char_indices().take_while(|(at, _)| *at <= self.longest);
        let (at, _) = near.into_iter().find(|(_, c)| *c == CLOSE)?;
        Some((unescaped(&text[..at]), at)).filter(|(text, _)| self.texts.contains(text))
    }

    /// The text without sentinels, and the ranges that were wrapped. A wrapping that a template cut apart is dropped.
    pub fn split(&self, text: &str) -> (String, Vec<Range<usize>>) {
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
                    if let Some((token, written)) = self.closed(rest) {
                        literal.push(out.len()..out.len() + token.len());
                        out.push_str(&token);
                        rest = &rest[written + CLOSE.len_utf8()..];
                    }
                }
                ESCAPE => {
                    if let Some(original) = original(rest) {
                        out.push(original);
                        rest = &rest[1..];
                    }
                }
                _ => {}
            }
        }
        out.push_str(rest);
        (out, literal)
    }
}

/// Finds the first of these texts, and of those that begin at one place the longest; in time that grows with the text alone.
pub(super) fn longest_first<'a>(texts: impl Iterator<Item = &'a String> + Clone) -> Result<AhoCorasick> {
    let bytes: usize = texts.clone().map(String::len).sum();
    if bytes > MAX_TEXTS {
        let what =
            format!("special tokens: their texts are {bytes} bytes, at most {MAX_TEXTS} are supported");
        return Err(Error::Tokenizer(what));
    }
    let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
    finder.map_err(|e| Error::Tokenizer(format!("special tokens: {e}")))
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            OPEN => out.extend([ESCAPE, '0']),
            CLOSE => out.extend([ESCAPE, '1']),
            ESCAPE => out.extend([ESCAPE, '2']),
            CONTINUE => out.extend([ESCAPE, '3']),
            c => out.push(c),
        }
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    escape(&mut out, text);
    out
}

/// The character that [`ESCAPE`] before `rest` stands for.
fn original(rest: &str) -> Option<char> {
    match rest.chars().next()? {
        '0' => Some(OPEN),
        '1' => Some(CLOSE),
        '2' => Some(ESCAPE),
        '3' => Some(CONTINUE),
        _ => None,
    }
}

/// What [`escape`] made a text of. An escape of nothing is dropped.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match original(rest.as_str()).filter(|_| c == ESCAPE) {
            Some(original) => {
                out.push(original);
                rest.next();
            }
            None if c == ESCAPE => {}
            None => out.push(c),
        }
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
