//! What a model thinks before it answers: `<think>…</think>` at the beginning of a text, split from the answer.

use super::tools::mark::marks;

/// Marks that templates name which write no thoughts of earlier turns.
const MARKS: [(&str, &str); 4] = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
];

/// The marks that a model thinks between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningFormat {
    /// Where it begins.
    pub open: String,
    /// Where it ends.
    pub close: String,
}

impl ReasoningFormat {
    /// The marks that a template's source names; none where it names none.
    pub(super) fn of_source(source: &str) -> Option<Self> {
        let known = MARKS.into_iter().find(|(open, close)| source.contains(open) || source.contains(close));
        known.map(|(open, close)| Self { open: open.to_owned(), close: close.to_owned() })
    }

    /// The marks next to a thought that a template wrote `before` and `behind`, up to the answer; `plain` stands before an answer
    /// without thoughts. None where there is more between them than marks: the answer is then a message of its own.
    pub(super) fn between(before: &str, behind: &str, plain: &str) -> Option<Self> {
        let (open, close) = (*marks(before).last()?, *marks(behind).first()?);
        let text: String = marks(behind).iter().fold(behind.to_owned(), |text, mark| text.replace(mark, ""));
        let whole = [open, close].iter().all(|mark| mark.ends_with(['>', ']'])) && open != close;
        let alone = whole && before.trim_end().ends_with(open) && text.trim().is_empty();
        // What begins every answer begins no thoughts.
        let header = plain.contains(open) && !plain.contains(close);
        (alone && !header).then(|| Self { open: open.to_owned(), close: close.to_owned() })
    }

    /// Whether a prompt ends where the model is to think: its template wrote the mark that begins it.
    pub fn is_open(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(&self.open)
    }

    /// Whether `text`, the beginning of an answer, ends among its thoughts.
    pub fn is_open_in(&self, text: &str) -> bool {
        text.rfind(&self.open).is_some_and(|open| !text[open..].contains(&self.close))
    }
}

/// A piece of a text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ThoughtPart {
    Reasoning(String),
    Content(String),
}

/// Splits text that comes in pieces. Line ends beside the marks are the template's and belong to neither part.
#[derive(Debug, Clone)]
pub(super) struct ReasoningSplitter {
    format: ReasoningFormat,
    state: State,
    /// Text that may be a part of a mark, or line ends in front of one.
    held: String,
    parts: Vec<ThoughtPart>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far: it may begin.
    Start,
    /// Between the marks; `begun`: there was text.
    Inside { begun: bool },
    /// After the mark that ends it: line ends.
    Behind,
    /// The answer.
    Content,
}

impl ReasoningSplitter {
    /// A splitter for a text whose prompt has (`open`) or has not begun the thinking.
    pub(super) fn new(format: ReasoningFormat, open: bool) -> Self {
        let state = if open { State::Inside { begun: false } } else { State::Start };
        Self { format, state, held: String::new(), parts: Vec::new() }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<ThoughtPart> {
        for (at, c) in text.char_indices() {
            if self.state == State::Content {
                self.emit(&text[at..]);
                break;
            }
            self.take(c);
        }
        std::mem::take(&mut self.parts)
    }

    /// What is left at the end of the text.
    pub(super) fn finish(&mut self) -> Vec<ThoughtPart> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Start | State::Content => {
                self.state = State::Content;
                self.emit(&held);
            }
            State::Inside { .. } => self.emit(held.trim_end_matches('\n')),
            State::Behind => {}
        }
        std::mem::take(&mut self.parts)
    }

    fn emit(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let inside = matches!(self.state, State::Inside { .. });
        match (self.parts.last_mut(), inside) {
            (Some(ThoughtPart::Reasoning(last)), true) | (Some(ThoughtPart::Content(last)), false) => {
                last.push_str(text)
            }
            (_, true) => self.parts.push(ThoughtPart::Reasoning(text.to_owned())),
            (_, false) => self.parts.push(ThoughtPart::Content(text.to_owned())),
        }
    }

    fn take(&mut self, c: char) {
        self.held.push(c);
        match self.state {
            State::Start => {
                let tail = self.held.trim_start();
                if tail == self.format.open {
                    self.held.clear();
                    self.state = State::Inside { begun: false };
                } else if !self.format.open.starts_with(tail) {
                    self.state = State::Content;
                    let held = std::mem::take(&mut self.held);
                    self.emit(&held);
                }
            }
            State::Inside { begun } => self.inside(begun),
            State::Behind if c == '\n' => self.held.clear(),
            State::Behind | State::Content => {
                self.state = State::Content;
                let held = std::mem::take(&mut self.held);
                self.emit(&held);
            }
        }
    }

    fn inside(&mut self, mut begun: bool) {
        loop {
            if !begun && self.held == "\n" {
                self.held.clear();
            }
            let tail = self.held.trim_start_matches('\n');
            if tail == self.format.close {
                self.held.clear();
                self.state = State::Behind;
                return;
            }
            if self.format.close.starts_with(tail) {
                self.state = State::Inside { begun };
                return;
            }
            let first = tail.chars().next().map_or(0, char::len_utf8);
            let rest = self.held.split_off(self.held.len() - tail.len() + first);
            let given = std::mem::replace(&mut self.held, rest);
            self.emit(&given);
            begun = true;
        }
    }
}
