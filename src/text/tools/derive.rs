//! The format of a model's calls, told from what its chat template makes of known ones.

use serde_json::Value as Json;

use super::mark::marks;
use super::python::PythonCall;
use super::{ArgumentTags, CallFormat, CallObject, ID, INDEX, ToolFormat};

/// A call that a template was given.
#[derive(Debug, Clone)]
pub(in crate::text) struct ProbeCall {
    pub name: String,
    /// Of the first call: a string, a number, an object, and a string.
    pub arguments: Json,
    pub id: String,
}

/// What a template made of an answer.
#[derive(Debug, Clone, Copy)]
pub(in crate::text) struct Shown<'a> {
    /// What stands between the user's text and the assistant's, where that is plain text.
    pub header: &'a str,
    /// What stands behind the assistant's text.
    pub ending: &'a str,
    /// The mark that ends thoughts.
    pub thoughts_end: Option<&'a str>,
    /// What stands between the user's text and the first result of a call.
    pub answer: &'a str,
    /// The calls of the answer, one or two.
    pub calls: &'a [ProbeCall],
}

/// The format of the calls, and their text; none where it is not of a known kind. Whether it is right shows when the text is
/// read with it.
pub(in crate::text) fn derive(shown: &Shown<'_>) -> Option<(ToolFormat, String)> {
    let mut answer = behind_header(shown)?.to_owned();
    // Llama 4's template begins calls with code that is none.
    answer = answer.replace("<|python_start|><|python_end|>", "");
    for call in shown.calls.iter().filter(|call| !call.id.contains(&call.name)) {
        answer = answer.replace(&call.id, &ID.to_string());
    }
    let mut found: Vec<Located<'_>> = Vec::new();
    for (i, call) in shown.calls.iter().enumerate() {
        let from = found.last().map_or(0, |last| last.end);
        let to = shown.calls.get(i + 1).map_or(Some(answer.len()), |next| find(&answer, &next.name, from));
        found.push(locate(&answer, call, from, to?)?);
    }
    let (first, last) = (found.first()?, found.last()?);
    let behind = &answer[last.end..];
    let ended = up_to_turn_end(behind, shown.ending);
    let before = &answer[..first.start];
    let around = match found.get(1) {
        Some(second) => Around::new(before, &answer[first.end..second.start], ended.unwrap_or(behind)),
        None => {
            Around { open: before, begin: "", end: "", separator: None, close: ended.unwrap_or_default() }
        }
    };
    // Where the turn's end is not known, neither is what closes the calls.
    let around = Around { close: ended.map_or("", |_| around.close), ..around };
    let Around { open, begin, end, separator, close } = around;
    let opened = format!("{open}{begin}");
    let is_list = open.trim_end().ends_with('[');
    if is_list != close.trim_start().starts_with(']')
        || marks(shown.ending).iter().any(|mark| opened.contains(mark))
    {
        return None;
    }
    let mut end = end.to_owned();
    let mark = if begin.trim().is_empty() { open } else { begin };
    let marked = mark.trim_start().starts_with(['<', '[']);
    let call = match &first.kind {
        Kind::Object(_) => CallFormat::Object(one_object(&found)?),
        Kind::Named(_) | Kind::Python if !marked => return None,
        Kind::Named(middle) => CallFormat::Named(match &found.get(1).map(|second| &second.kind) {
            Some(Kind::Named(other)) => one_text(middle, other)?,
            Some(_) => return None,
            None => (*middle).to_owned(),
        }),
        Kind::Python if found.iter().all(|call| matches!(call.kind, Kind::Python)) => CallFormat::Python,
        Kind::Python => return None,
        Kind::Tagged { open, string, other, between } => {
            if begin.trim().is_empty() {
                return None;
            }
            let tags = Around::new(open, between, &end);
            let separator = tags.separator.unwrap_or_default();
            // What stands between arguments stands behind the last one too.
            let close = tags.close.strip_prefix(separator)?;
            if tags.begin.is_empty() || tags.end.trim().is_empty() || string.trim().is_empty() {
                return None;
            }
            let cut = close.find('>')? + 1;
            let made = ArgumentTags {
                open: tags.open.to_owned(),
                begin: tags.begin.to_owned(),
                string: (*string).to_owned(),
                other: (*other).to_owned(),
                end: format!("{}{separator}", tags.end),
                close: close[..cut].to_owned(),
            };
            end = close[cut..].to_owned();
            CallFormat::Tagged(made)
        }
    };
    let text_end = last.end + ended.map_or(around.end.len(), str::len);
    let format = ToolFormat {
        open: open.to_owned(),
        begin: begin.to_owned(),
        call,
        end,
        separator: separator.map(str::to_owned),
        close: close.to_owned(),
    };
    Some((format, answer[..text_end].replace(ID, "zqx000000")))
}

/// The answer without what begins a plain one too, and without empty thoughts.
fn behind_header<'a>(shown: &Shown<'a>) -> Option<&'a str> {
    let (header, answer) = (shown.header, shown.answer);
    let mut common = common_prefix(header, answer);
    if common < header.len() {
        common = outside_mark(&answer[..common]);
    }
    let answer = &answer[common..];
    let name = answer.find(&shown.calls.first()?.name)?;
    let thoughts = shown.thoughts_end.and_then(|end| Some(answer[..name].rfind(end)? + end.len()));
    Some(&answer[thoughts.unwrap_or(0)..])
}

/// The length of `text` without the mark that it ends within.
fn outside_mark(text: &str) -> usize {
    match text.rfind(['<', '[']) {
        Some(open) if text.rfind(['>', ']']).is_none_or(|close| close < open) => open,
        _ => text.len(),
    }
}

/// What stands before the end of the turn, where that is among the text.
fn up_to_turn_end<'a>(text: &'a str, ending: &str) -> Option<&'a str> {
    let at = marks(ending).into_iter().find_map(|mark| text.find(mark))?;
    Some(&text[..at])
}

/// What stands around items of a kind: calls, or arguments.
#[derive(Debug, Clone, Copy)]
struct Around<'a> {
    /// Before the first one.
    open: &'a str,
    /// Before each.
    begin: &'a str,
    /// After each.
    end: &'a str,
    /// Between two; none where there is one.
    separator: Option<&'a str>,
    /// After the last one.
    close: &'a str,
}

impl<'a> Around<'a> {
    /// Of what stands before the first, between two, and behind the last one. What the first two end with begins an item, what
    /// the last two begin with ends one.
    fn new(before: &'a str, between: &'a str, behind: &'a str) -> Self {
        let common = &before[before.len() - common_suffix(before, between)..];
        let begin = common.find(['<', '[', '{']).map_or("", |at| &common[at..]);
        let rest = &between[..between.len() - begin.len()];
        let mut common = common_prefix(rest, behind);
        if common < rest.len() {
            common = rest[..common].rfind(['>', ']', '}']).map_or(0, |at| at + 1);
        }
        let end = rest[..common].trim_end();
        Self {
            open: &before[..before.len() - begin.len()],
            begin,
            end,
            separator: Some(&rest[end.len()..]),
            close: &behind[end.len()..],
        }
    }
}

/// Where a call is, as far as its own text goes.
#[derive(Debug)]
struct Located<'a> {
    start: usize,
    end: usize,
    kind: Kind<'a>,
}

#[derive(Debug)]
enum Kind<'a> {
    Object(CallObject),
    /// What stands between the name and the arguments.
    Named(&'a str),
    /// A call in Python.
    Python,
    Tagged {
        /// What stands between the name and the first key.
        open: &'a str,
        /// What stands between a key and a string, and between a key and a number.
        string: &'a str,
        other: &'a str,
        /// What stands between the first value and the second key.
        between: &'a str,
    },
}

/// Finds a call in `text[from..to]`.
fn locate<'a>(text: &'a str, call: &ProbeCall, from: usize, to: usize) -> Option<Located<'a>> {
    let name = find(text, &call.name, from)?;
    let name_end = name + call.name.len();
    let is = |at: &usize| object(&text[*at..]).is_some_and(|(value, _)| value == call.arguments);
    for (at, _) in text[from..name].rmatch_indices('{') {
        let start = from + at;
        let Some((Json::Object(members), len)) = object(&text[start..]) else { continue };
        let key = |wanted: &dyn Fn(&Json) -> bool| {
            members.iter().find(|(_, value)| wanted(value)).map(|(key, _)| key.clone())
        };
        let named = key(&|value| value.as_str() == Some(call.name.as_str()));
        let (Some(named), Some(given)) = (named, key(&|value| *value == call.arguments)) else { continue };
        let end = start + len;
        let arguments = braces(text, name_end, end).find(is)?;
        let (_, len) = object(&text[arguments..])?;
        let object = CallObject {
            head: text[start..name].to_owned(),
            middle: text[name_end..arguments].to_owned(),
            tail: text[arguments + len..end].to_owned(),
            name: named,
            arguments: given,
        };
        return Some(Located { start, end, kind: Kind::Object(object) });
    }
    if let Some(arguments) = braces(text, name_end, to).find(is) {
        let (_, len) = object(&text[arguments..])?;
        let kind = Kind::Named(&text[name_end..arguments]);
        return Some(Located { start: name, end: arguments + len, kind });
    }
    match PythonCall::len(&text[name..to], &call.name) {
        Some(len) => Some(Located { start: name, end: name + len, kind: Kind::Python }),
        None => tagged(text, call, name, to),
    }
}

/// A call whose arguments are told by their keys and values; what an object looks like is not asked.
fn tagged<'a>(text: &'a str, call: &ProbeCall, name: usize, to: usize) -> Option<Located<'a>> {
    let name_end = name + call.name.len();
    // Of each key: where it begins and ends, and where its value does.
    let mut spans: Vec<[usize; 4]> = Vec::new();
    let mut from = name_end;
    for (key, value) in call.arguments.as_object()? {
        let value = match value {
            Json::String(text) => text.clone(),
            Json::Number(number) => number.to_string(),
            _ => continue,
        };
        let key_at = find(&text[..to], key, from)?;
        let value_at = find(&text[..to], &value, key_at + key.len())?;
        from = value_at + value.len();
        spans.push([key_at, key_at + key.len(), value_at, from]);
    }
    let (first, last) = (spans.first()?, spans.last()?);
    let second = spans.get(1).unwrap_or(first);
    let kind = Kind::Tagged {
        open: &text[name_end..first[0]],
        string: &text[first[1]..first[2]],
        other: &text[second[1]..second[2]],
        between: text.get(first[3]..second[0]).unwrap_or_default(),
    };
    (text[first[1]..first[2]] == text[last[1]..last[2]]).then_some(Located { start: name, end: from, kind })
}

/// The objects of all calls as one, in which what differs is a number.
fn one_object(found: &[Located<'_>]) -> Option<CallObject> {
    let mut objects = found.iter().map(|located| match &located.kind {
        Kind::Object(object) => Some(object),
        _ => None,
    });
    let first = objects.next()??.clone();
    objects.try_fold(first, |one, other| {
        let other = other?;
        let same = one.name == other.name && one.arguments == other.arguments;
        same.then_some(())?;
        Some(CallObject {
            head: one_text(&one.head, &other.head)?,
            middle: one_text(&one.middle, &other.middle)?,
            tail: one_text(&one.tail, &other.tail)?,
            ..one
        })
    })
}

/// One text of two that differ in nothing but a number.
fn one_text(a: &str, b: &str) -> Option<String> {
    if a == b {
        return Some(a.to_owned());
    }
    let start = common_prefix(a, b);
    let end = common_suffix(&a[start..], &b[start..]);
    let number = |text: &str| {
        let digits = &text[start..text.len() - end];
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
    };
    (number(a) && number(b)).then(|| format!("{}{INDEX}{}", &a[..start], &a[a.len() - end..]))
}

fn find(text: &str, wanted: &str, from: usize) -> Option<usize> {
    Some(from + text.get(from..)?.find(wanted)?)
}

/// Where there is a `{` in `text[from..to]`.
fn braces(text: &str, from: usize, to: usize) -> impl Iterator<Item = usize> {
    text.get(from..to).unwrap_or_default().match_indices('{').map(move |(at, _)| from + at)
}

/// The JSON object that `text` begins with, and its length.
fn object(text: &str) -> Option<(Json, usize)> {
    crate::json::generated_prefix(text)
}

fn common_prefix(a: &str, b: &str) -> usize {
    let differs = a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y);
    differs.map_or(a.len().min(b.len()), |((at, _), _)| at)
}

fn common_suffix(a: &str, b: &str) -> usize {
    let same = a.chars().rev().zip(b.chars().rev()).take_while(|(x, y)| x == y);
    same.map(|(x, _)| x.len_utf8()).sum()
}
