//! Tool calls in generated text, read as they come. How a model writes them is data, told from what its chat template makes
//! of calls.

use std::fmt;

pub(super) use parser::ToolParser;
pub(crate) use python::takes as takes_in_python;

pub(super) mod derive;
mod literal;
pub(super) mod mark;
pub(super) mod named;
mod object;
mod parser;
mod python;
pub(crate) mod tagged;

/// Stands in a text of a format for an identifier that the model makes up.
pub(crate) const ID: char = '\u{FDEE}';
/// Stands in a text of a format for the number of a call.
pub(crate) const INDEX: char = '\u{FDEF}';

/// How a model writes its tool calls, as its chat template shows it: `open`, the calls with `separator` between them, and
/// `close`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolFormat {
    /// Before the first call.
    pub open: String,
    /// Before each call.
    pub begin: String,
    /// A call.
    pub call: CallFormat,
    /// After each call.
    pub end: String,
    /// Between two calls; none where the template writes one at most.
    pub separator: Option<String>,
    /// After the last call.
    pub close: String,
}

/// How one call is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallFormat {
    /// A JSON object with the name and the arguments as members.
    Object(CallObject),
    /// The name, this text, and the arguments as a JSON object.
    Named(String),
    /// The name, and each argument between tags.
    Tagged(ArgumentTags),
    /// A call as Python writes it: the name, and `key=value` each in parentheses.
    Python,
}

/// A call as a JSON object: `head`, the name, `middle`, the arguments, `tail`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallObject {
    /// From its `{` to the name.
    pub head: String,
    /// Between the name and the arguments.
    pub middle: String,
    /// After the arguments.
    pub tail: String,
    /// The member that is the name.
    pub name: String,
    /// The member that is the arguments.
    pub arguments: String,
}

/// The tags around arguments: the name, `open`, the arguments, `close`. An argument is `begin`, its key, `string` or `other`,
/// its value, and `end`. Strings stand without quotes, other values in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgumentTags {
    /// After the name.
    pub open: String,
    /// Before a key.
    pub begin: String,
    /// Between a key and a string.
    pub string: String,
    /// Between a key and another value; most models write the same for both.
    pub other: String,
    /// After a value.
    pub end: String,
    /// After the last argument.
    pub close: String,
}

impl ToolFormat {
    /// Whether a call stands by itself, as JSON, or calls do in a list, without a mark before: it is then the beginning of the text.
    pub(super) fn is_bare(&self) -> bool {
        let open = match self.call {
            CallFormat::Object(_) => "",
            CallFormat::Python => "[",
            CallFormat::Named(_) | CallFormat::Tagged(_) => return false,
        };
        self.open.trim() == open && self.begin.trim().is_empty()
    }

    /// Whether a call's name is a part of what its template takes for its id, or makes one of: `functions.NAME:INDEX`.
    pub(super) fn names_by_id(&self) -> bool {
        let CallFormat::Named(middle) = &self.call else { return false };
        self.begin.ends_with("functions.")
            && middle.strip_prefix(':').is_some_and(|rest| rest.starts_with(INDEX))
    }

    /// All texts around names and arguments.
    pub(super) fn texts(&self) -> Vec<&str> {
        let mut texts = vec![self.open.as_str(), &self.begin, &self.end, &self.close];
        texts.extend(self.separator.as_deref());
        match &self.call {
            CallFormat::Object(call) => texts.extend([call.head.as_str(), &call.middle, &call.tail]),
            CallFormat::Named(middle) => texts.push(middle),
            CallFormat::Tagged(tags) => texts.extend([
                tags.open.as_str(),
                &tags.begin,
                &tags.string,
                &tags.other,
                &tags.end,
                &tags.close,
            ]),
            CallFormat::Python => {}
        }
        if self.is_bare() && matches!(self.call, CallFormat::Object(_)) {
            texts.push(parser::PYTHON_TAG);
        }
        texts
    }
}

impl fmt::Display for ToolFormat {
    /// What calls look like, two where there may be several.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = match &self.call {
            CallFormat::Object(CallObject { head, middle, tail, .. }) => {
                format!("{head}NAME{middle}ARGUMENTS{tail}")
            }
            CallFormat::Named(middle) => format!("NAME{middle}ARGUMENTS"),
            CallFormat::Tagged(ArgumentTags { open, begin, string, other, end, close }) => {
                let other = match string == other {
                    true => String::new(),
                    false => format!("{begin}KEY{other}JSON{end}"),
                };
                format!("NAME{open}{begin}KEY{string}VALUE{end}{other}{close}")
            }
            CallFormat::Python => "NAME(KEY=VALUE)".to_owned(),
        };
        let Self { open, begin, end, close, .. } = self;
        let call = format!("{begin}{body}{end}");
        let again = self.separator.as_ref().map_or_else(String::new, |between| format!("{between}{call}"));
        let text = format!("{open}{call}{again}{close}");
        f.write_str(&text.replace(ID, "ID").replace(INDEX, "INDEX"))
    }
}

/// What a piece of text turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyEvent {
    /// What the model thinks before it answers.
    Reasoning(String),
    /// The answer's text.
    Content(String),
    /// A tool call begins, the `index`th of this text.
    Call {
        /// Which one, from 0.
        index: usize,
        /// The tool's name.
        name: String,
    },
    /// The arguments of the call that began last go on: JSON, as written.
    Arguments {
        /// Which call.
        index: usize,
        /// What follows.
        text: String,
    },
    /// The call that began last is whole: its arguments are a JSON object.
    CallEnd {
        /// Which call.
        index: usize,
    },
    /// The call that began last is none: it breaks off, or is not JSON. Whoever can take it back puts `text` into the answer
    /// instead of it; whoever cannot, behind it.
    CallBroken {
        /// Which call.
        index: usize,
        /// All that was written of it, the mark before it included.
        text: String,
    },
}

impl ReplyEvent {
    /// Adds `next` to the last of `events` where both go on with the same thing.
    pub(crate) fn add(events: &mut Vec<Self>, next: Self) {
        match (events.last_mut(), &next) {
            (Some(Self::Content(text)), Self::Content(more))
            | (Some(Self::Reasoning(text)), Self::Reasoning(more))
            | (Some(Self::Arguments { text, .. }), Self::Arguments { text: more, .. }) => text.push_str(more),
            _ => events.push(next),
        }
    }

    /// Adds more of the arguments of a call that has no number yet.
    fn add_arguments(events: &mut Vec<Self>, text: &str) {
        Self::add(events, Self::Arguments { index: 0, text: text.to_owned() });
    }

    /// Adds text of a JSON string within the arguments.
    fn add_quoted(events: &mut Vec<Self>, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        Self::add_arguments(events, &quoted[1..quoted.len() - 1]);
    }

    /// The same event of another call.
    fn at(self, to: usize) -> Self {
        match self {
            Self::Call { name, .. } => Self::Call { index: to, name },
            Self::Arguments { text, .. } => Self::Arguments { index: to, text },
            other => other,
        }
    }
}
