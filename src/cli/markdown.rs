//! Markdown on a terminal as it comes: headings, emphasis, code. Every character is shown, in its order: styles are put between
//! them, and what is taken out with the styles is the text. What a character means may only show in those behind it; so few are
//! held back, never more than [`MOST_HELD`] bytes.

mod code;
mod languages;
mod style;

use code::Code;
use style::{Style, Styled};

/// Bytes that may be held back: more than any mark has, or a line that opens a block of code.
const MOST_HELD: usize = 128;

/// A text on its way to a terminal.
#[derive(Debug, Default)]
pub struct Markdown {
    /// What is not shown yet.
    held: String,
    place: Place,
    line: Line,
    block: Option<Block>,
}

/// Where in a line the next character is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Where it may begin a mark of the whole line.
    #[default]
    Start,
    Within,
}

/// What is open within a line of text. At its end all is closed, so that a mark that is none costs one line at most.
#[derive(Debug, Default)]
struct Line {
    heading: bool,
    bold: bool,
    italic: bool,
    /// Backticks that opened a span of code.
    span: Option<usize>,
    /// After a backslash.
    escaped: bool,
    before: Option<char>,
}

/// A block of code, and what opened it.
#[derive(Debug)]
struct Block {
    fence: char,
    length: usize,
    code: Code,
}

/// What the beginning of a line is.
enum Beginning {
    /// More has to come.
    Open,
    Text,
    /// `#` and a space.
    Heading,
    /// So many bytes are a bullet, a number or the mark of a quotation.
    Mark(usize),
}

impl Markdown {
    /// The next part of the text, which holds no control characters but line ends and tabs, as it is to be shown.
    pub fn push(&mut self, text: &str) -> String {
        let mut out = Styled::default();
        for next in text.chars() {
            match (&self.block, self.place) {
                (Some(_), _) => self.in_block(next, &mut out),
                (None, Place::Start) => self.at_start(next, &mut out),
                (None, Place::Within) => self.within(next, &mut out),
            }
        }
        out.end()
    }

    /// The end of the text: what was held back. What follows is another text.
    pub fn finish(&mut self) -> String {
        let mut out = Styled::default();
        match (&mut self.block, self.place) {
            (Some(block), Place::Start) if block.closes(&self.held) => out.put(&self.held, Style::Mark),
            (Some(block), _) => {
                block.code.push(&self.held, &mut out);
                block.code.finish(&mut out);
            }
            (None, place) => {
                if place == Place::Start {
                    self.settle(&mut out);
                }
                self.end_run(None, &mut out);
            }
        }
        *self = Self::default();
        out.end()
    }

    /// A character at the beginning of a line of text.
    fn at_start(&mut self, next: char, out: &mut Styled) {
        if next == '\n' {
            match Block::opened_by(&self.held) {
                Some(block) => {
                    out.put(&self.held, Style::Mark);
                    self.held.clear();
                    self.block = Some(block);
                }
                None => {
                    self.settle(out);
                    self.end_run(Some(next), out);
                }
            }
            return self.end_line(out);
        }
        self.held.push(next);
        match beginning(&self.held) {
            Beginning::Open if self.held.len() < MOST_HELD - 4 => {}
            Beginning::Open | Beginning::Text => self.settle(out),
            Beginning::Heading => {
                self.line.heading = true;
                self.settle(out);
            }
            Beginning::Mark(bytes) => {
                let rest = self.held.split_off(bytes);
                out.put(&self.held, Style::List);
                self.held = rest;
                self.line.before = Some(' ');
                self.settle(out);
            }
        }
    }

    /// What was held at the beginning of a line is text.
    fn settle(&mut self, out: &mut Styled) {
        self.place = Place::Within;
        for c in std::mem::take(&mut self.held).chars() {
            self.within(c, out);
        }
    }

    /// A character within a line of text.
    fn within(&mut self, next: char, out: &mut Styled) {
        if self.held.starts_with(next) && self.held.len() < MOST_HELD - 4 {
            return self.held.push(next);
        }
        self.end_run(Some(next), out);
        if next == '\n' {
            return self.end_line(out);
        }
        let escaped = std::mem::take(&mut self.line.escaped);
        let mark = match next {
            '`' => !escaped,
            '*' | '_' => !escaped && self.line.span.is_none(),
            _ => false,
        };
        if mark {
            return self.held.push(next);
        }
        self.line.escaped = next == '\\' && !escaped && self.line.span.is_none();
        self.put(next.encode_utf8(&mut [0; 4]), out);
    }

    /// Shows equal marks that were held, before `next`, and opens or closes what they stand for.
    fn end_run(&mut self, next: Option<char>, out: &mut Styled) {
        let run = std::mem::take(&mut self.held);
        let Some(mark) = run.chars().next() else { return };
        let length = run.len();
        if mark == '`' {
            match self.line.span {
                Some(opened) => {
                    self.put(&run, out);
                    self.line.span = (opened != length).then_some(opened);
                }
                None => {
                    self.line.span = Some(length);
                    self.put(&run, out);
                }
            }
            return;
        }
        let space = |c: Option<char>| c.is_none_or(char::is_whitespace);
        let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let before = self.line.before;
        let (bold, italic) = (length >= 2, length % 2 == 1);
        let open = (self.line.bold || !bold) && (self.line.italic || !italic);
        let outside = |c| mark == '*' || !letter(c);
        if length > 3 {
            self.put(&run, out);
        } else if open && !space(before) && outside(next) {
            self.put(&run, out);
            (self.line.bold, self.line.italic) = (self.line.bold && !bold, self.line.italic && !italic);
        } else {
            let opens = !space(next) && outside(before);
            self.line.bold |= opens && bold;
            self.line.italic |= opens && italic;
            self.put(&run, out);
        }
    }

    /// Shows text of this line.
    fn put(&mut self, text: &str, out: &mut Styled) {
        let Line { heading, bold, italic, span, .. } = self.line;
        let style = match span {
            Some(_) => Style::Span,
            None => Style::Text { heading, bold, italic },
        };
        out.put(text, style);
        self.line.before = text.chars().next_back().or(self.line.before);
    }

    fn end_line(&mut self, out: &mut Styled) {
        out.put("\n", Style::PLAIN);
        self.line = Line::default();
        self.place = Place::Start;
    }

    /// A character of a block of code, or of its end.
    fn in_block(&mut self, next: char, out: &mut Styled) {
        let Some(block) = &mut self.block else { return };
        if self.place == Place::Within {
            block.code.push(next.encode_utf8(&mut [0; 4]), out);
            if next == '\n' {
                self.place = Place::Start;
            }
            return;
        }
        if next == '\n' && block.closes(&self.held) {
            block.code.finish(out);
            out.put(&self.held, Style::Mark);
            self.held.clear();
            self.block = None;
            return self.end_line(out);
        }
        self.held.push(next);
        if !block.may_close(&self.held) || self.held.len() >= MOST_HELD - 4 {
            block.code.push(&self.held, out);
            self.held.clear();
            self.place = if next == '\n' { Place::Start } else { Place::Within };
        }
    }

    /// Bytes that are held back.
    #[cfg(test)]
    fn held(&self) -> usize {
        self.held.len() + self.block.as_ref().map_or(0, |block| block.code.held())
    }
}

impl Block {
    /// The block that a line opens: ``` or ~~~, and a language.
    fn opened_by(line: &str) -> Option<Self> {
        let line = line.trim_start();
        let fence = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
        let info = line.trim_start_matches(fence);
        let length = line.len() - info.len();
        if length < 3 || (fence == '`' && info.contains('`')) {
            return None;
        }
        let name =
            info.trim_start().split(|c: char| c.is_whitespace() || matches!(c, ',' | '{' | ':')).next();
        Some(Self { fence, length, code: Code::new(name.unwrap_or_default()) })
    }

    /// Whether a line, without its end, closes it.
    fn closes(&self, line: &str) -> bool {
        let line = line.trim();
        line.len() >= self.length && line.chars().all(|c| c == self.fence)
    }

    /// Whether a line that begins so may close it.
    fn may_close(&self, line: &str) -> bool {
        let rest = line.trim_start().trim_start_matches(self.fence);
        !line.ends_with('\n') && rest.trim_start().is_empty()
    }
}

/// What a line is that begins with `held`, which holds no line end.
fn beginning(held: &str) -> Beginning {
    let rest = held.trim_start();
    let indent = held.len() - rest.len();
    let Some(first) = rest.chars().next() else { return Beginning::Open };
    let run = rest.len() - rest.trim_start_matches(first).len();
    let after = rest[run..].chars().next();
    match first {
        '`' | '~' if after.is_none() && run < 3 => Beginning::Open,
        // The whole line tells.
        '`' | '~' if run >= 3 && !(first == '`' && rest[run..].contains('`')) => Beginning::Open,
        '#' if run > 6 => Beginning::Text,
        '#' => match after {
            None => Beginning::Open,
            Some(' ' | '\t') => Beginning::Heading,
            Some(_) => Beginning::Text,
        },
        '>' => Beginning::Mark(indent + 1),
        '-' | '*' | '+' if run == 1 => match after {
            None => Beginning::Open,
            Some(' ' | '\t') => Beginning::Mark(indent + 1),
            Some(_) => Beginning::Text,
        },
        '0'..='9' => {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let mut after = rest[digits..].chars();
            match (after.next(), after.next()) {
                _ if digits > 9 => Beginning::Text,
                (None, _) | (Some('.' | ')'), None) => Beginning::Open,
                (Some('.' | ')'), Some(' ' | '\t')) => Beginning::Mark(indent + digits + 1),
                _ => Beginning::Text,
            }
        }
        _ => Beginning::Text,
    }
}

#[cfg(test)]
mod tests;
