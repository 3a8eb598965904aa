//! Grammars of whole answers: thoughts, then text or tool calls as the model's family writes them.

use serde_json::Value;

use super::grammar::Grammar;
use super::schema;
use crate::error::{Error, Result};
use crate::text::{CallFormat, CallObject, ID, INDEX, ReplyFormat, Tokenizer, Tool, ToolFormat};

mod arguments;
mod channels;

/// What an answer has to be.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReplyGrammar<'a> {
    /// How its model marks thoughts and calls.
    pub format: ReplyFormat,
    /// Whether the prompt has begun the thoughts.
    pub thinking: bool,
    /// Tools, one of which may be called; where there is no `text`, has to be.
    pub tools: &'a [Tool],
    /// Whether several may be called.
    pub parallel: bool,
    /// What the text is to be.
    pub text: Option<&'a Grammar>,
}

impl ReplyGrammar<'_> {
    /// The grammar, for the tokens of `tokenizer`.
    ///
    /// # Errors
    /// [`Error::Option`] where the format of calls is not known; [`Error::Schema`] for arguments that cannot be enforced.
    pub(crate) fn grammar(&self, tokenizer: &Tokenizer) -> Result<Grammar> {
        if let (Some(text), true, None) = (self.text, self.tools.is_empty(), &self.format.reasoning) {
            text.check()?;
            return Ok(text.clone());
        }
        let literals = Literals { tokenizer };
        if let Some(of) = self.format.channels {
            return self.messages(of, &literals);
        }
        let mut lines = Vec::new();
        let mut bodies = Vec::new();
        if let Some(text) = self.text {
            lines.push(format!("text: {}", nested(text)?));
            bodies.push("text");
        }
        if !self.tools.is_empty() {
            self.calls(&literals, &mut lines)?;
            bodies.push("calls");
        }
        let body = bodies.join(" | ");
        let start = match &self.format.reasoning {
            None => format!("start: {body}"),
            Some(format) => {
                lines.push(literals.until("thoughts", &format.close));
                lines.push("gap: /\\n{0,2}/".to_owned());
                lines.push(format!("answer: gap ({body})"));
                match self.thinking {
                    true => "start: thoughts answer".to_owned(),
                    false => format!("start: {} thoughts answer | {body}", literals.sequence(&format.open)),
                }
            }
        };
        lines.insert(0, start);
        Ok(Grammar::Lark(lines.join("\n")))
    }

    /// Rules of `calls`: what the template writes around names and arguments, to the letter.
    fn calls(&self, literals: &Literals<'_>, lines: &mut Vec<String>) -> Result<()> {
        let format = self.format.tools.as_deref().ok_or_else(unknown_calls)?;
        let ToolFormat { open, begin, call, end, separator, close } = format;
        let mut calls = Vec::new();
        for (i, tool) in self.tools.iter().enumerate() {
            let (head, tail) = match call {
                CallFormat::Tagged(tags) => {
                    calls.push(format!(
                        "{} {} {}",
                        literals.sequence(&format!("{begin}{}{}", tool.name, tags.open)),
                        arguments::tagged(literals, tags, i, tool, lines)?,
                        literals.sequence(&format!("{}{end}", tags.close)),
                    ));
                    continue;
                }
                CallFormat::Python => {
                    calls.push(format!(
                        "{} {} {}",
                        literals.sequence(&format!("{begin}{}(", tool.name)),
                        arguments::python(literals, i, tool, lines)?,
                        literals.sequence(&format!("){end}")),
                    ));
                    continue;
                }
                CallFormat::Named(middle) => {
                    (format!("{begin}{}{middle}", tool.name), literals.sequence(end))
                }
                CallFormat::Object(CallObject { head, middle, tail, .. }) => {
                    let end = literals.sequence(&format!("{tail}{end}"));
                    let tail = match tail.contains(ID) {
                        // Not every call has the identifier that its template writes.
                        true => format!("({end} | {})", literals.sequence(&format!("}}{}", format.end))),
                        false => end,
                    };
                    (format!("{begin}{head}{}{middle}", tool.name), tail)
                }
            };
            lines.push(format!("arguments_{i}: %json {}", arguments_schema(tool)?));
            calls.push(format!("{} arguments_{i} {tail}", literals.sequence(&head)));
        }
        lines.push(format!("call: {}", calls.join(" | ")));
        let more = match separator {
            Some(separator) if self.parallel => format!("({} call)*", literals.sequence(separator)),
            _ => String::new(),
        };
        // Behind thoughts there may be line ends anyway.
        let open = if self.format.reasoning.is_some() { open.trim_start() } else { open.as_str() };
        lines.push(format!("calls: {} call {more} {}", literals.sequence(open), literals.sequence(close)));
        Ok(())
    }
}

/// A grammar as a part of another one.
fn nested(grammar: &Grammar) -> Result<String> {
    grammar.check()?;
    Ok(match grammar {
        Grammar::JsonObject => format!("%json {}", schema::any_object()?),
        Grammar::JsonSchema(schema) => format!("%json {}", schema::prepare(schema)?),
        Grammar::Regex(regex) => format!("/{}/", llguidance::regex_to_lark(regex, "")),
        Grammar::Lark(lark) => format!("%lark {{\n{lark}\n}}"),
    })
}

/// What is said of a call that is to be enforced where their form is not known.
fn unknown_calls() -> Error {
    Error::Option {
        option: "tool_choice",
        got: "one that is to be enforced".into(),
        expected: "auto or none, since this model's template writes no calls, or writes them in a form that is not known here",
    }
}

/// The schema of a tool's arguments, which are an object whatever it says.
fn arguments_schema(tool: &Tool) -> Result<Value> {
    let Some(parameters) = &tool.parameters else { return schema::any_object() };
    let mut parameters = parameters.clone();
    if let Some(members) = parameters.as_object_mut() {
        members.entry("type").or_insert_with(|| "object".into());
    }
    schema::prepare(&parameters).map_err(|error| named(tool, "", error))
}

/// An error of a schema within `place` of a tool's.
fn named(tool: &Tool, place: &str, error: Error) -> Error {
    match error {
        Error::Schema { path, keyword, what } => {
            Error::Schema { path: format!("tool {}: {place}{path}", tool.name), keyword, what }
        }
        other => other,
    }
}

/// Texts of a format in Lark's form.
struct Literals<'a> {
    tokenizer: &'a Tokenizer,
}

/// A part of a text.
enum Piece<'a> {
    /// A special token, which is no text to a grammar.
    Special(u32),
    Text(&'a str),
    /// Something that the model makes up, as a pattern.
    Pattern(&'static str),
}

impl Literals<'_> {
    /// A text as the sequence of its parts; empty where it is.
    fn sequence(&self, text: &str) -> String {
        sequence(&self.pieces(text))
    }

    /// A rule of any text up to `end`, and `end`.
    fn until(&self, rule: &str, end: &str) -> String {
        let pieces = self.pieces(end);
        match pieces.iter().position(|piece| matches!(piece, Piece::Special(_))) {
            // Before a special token, all is the text.
            Some(at) => format!("{rule}: /(?s:.*)/ {}", sequence(&pieces[at..])),
            None => format!("{rule}[lazy]: /(?s:.*){}/", escaped(end)),
        }
    }

    fn pieces<'t>(&self, text: &'t str) -> Vec<Piece<'t>> {
        let special = self.tokenizer.special_texts().filter(|special| !special.is_empty());
        let mut special: Vec<&str> = special.filter(|special| text.contains(special)).collect();
        special.sort_by_key(|special| std::cmp::Reverse(special.len()));
        let (mut pieces, mut rest, mut plain) = (Vec::new(), text, 0);
        while let Some(c) = rest[plain..].chars().next() {
            let here = &rest[plain..];
            let token = special.iter().find(|special| here.starts_with(**special));
            let token = token.and_then(|token| Some((token.len(), self.tokenizer.token_id(token)?)));
            let (len, piece) = match (token, c) {
                (Some((len, id)), _) => (len, Piece::Special(id)),
                (None, ID) => (c.len_utf8(), Piece::Pattern("/[A-Za-z0-9]{9}/")),
                (None, INDEX) => (c.len_utf8(), Piece::Pattern("/[0-9]{1,3}/")),
                _ => {
                    plain += c.len_utf8();
                    continue;
                }
            };
            if plain > 0 {
                pieces.push(Piece::Text(&rest[..plain]));
            }
            pieces.push(piece);
            rest = &rest[plain + len..];
            plain = 0;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest));
        }
        pieces
    }
}

fn sequence(pieces: &[Piece<'_>]) -> String {
    let lark = |piece: &Piece<'_>| match piece {
        Piece::Special(id) => format!("<[{id}]>"),
        Piece::Text(text) => literal(text),
        Piece::Pattern(pattern) => (*pattern).to_owned(),
    };
    pieces.iter().map(lark).collect::<Vec<_>>().join(" ")
}

/// A text in Lark's form, which is JSON's.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A text as a pattern within slashes.
fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '\n' => "\\n".to_owned(),
        c if "\\/.+*?()|[]{}^$#&-~".contains(c) => format!("\\{c}"),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
#[path = "reply/tests.rs"]
mod tests;
