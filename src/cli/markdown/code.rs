//! The words of a block of code as they come: comments, quoted text, numbers and keywords, by the table of what languages
//! have. No grammar: a model's code may be wrong, and whatever it is takes time by its length alone.

use super::languages::{Language, Quote, language};
use super::style::{Style, Styled};

/// Bytes of a word that are waited for; a longer one is no keyword.
const MOST_WORD: usize = 64;

/// A block of code on its way.
#[derive(Debug)]
pub struct Code {
    language: Option<&'static Language>,
    held: String,
    within: Within,
    before: Option<char>,
    /// Behind `<` or `</`: the next word is a tag's name.
    tag: bool,
}

/// What the next character is a part of.
#[derive(Debug, Clone, Copy)]
enum Within {
    Code,
    /// A word whose beginning is shown already.
    Word,
    /// To the end of the line.
    Line(Style),
    /// To an end.
    Comment(&'static str),
    Quoted(&'static Quote),
}

impl Code {
    /// A block of what `name` says after the fence.
    pub fn new(name: &str) -> Self {
        Self { language: language(name), held: String::new(), within: Within::Code, before: None, tag: false }
    }

    /// Shows the next part, but for what may be part of a longer word or mark.
    pub fn push(&mut self, text: &str, out: &mut Styled) {
        let Some(language) = self.language else { return out.put(text, Style::PLAIN) };
        for c in text.chars() {
            self.held.push(c);
            while !self.held.is_empty() && self.step(language, false, out) {}
        }
    }

    /// Shows what is held back.
    pub fn finish(&mut self, out: &mut Styled) {
        let Some(language) = self.language else { return };
        while !self.held.is_empty() && self.step(language, true, out) {}
    }

    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Shows one word or mark, where it is known what it is; `last`: nothing follows.
    fn step(&mut self, language: &'static Language, last: bool, out: &mut Styled) -> bool {
        let Some((bytes, style, then)) = self.next(language, last) else { return false };
        let rest = self.held.split_off(bytes);
        out.put(&self.held, style);
        let end = self.held.chars().next_back();
        if matches!(self.within, Within::Code | Within::Word) {
            self.tag = match &*self.held {
                "<" => language.tags,
                "/" | "!" | "?" => self.tag,
                _ => false,
            };
        }
        (self.before, self.held, self.within) = (end.or(self.before), rest, then);
        true
    }

    /// How many bytes of what is held are the next word or mark, what it is, and what follows is within.
    fn next(&self, language: &'static Language, last: bool) -> Option<(usize, Style, Within)> {
        let held = &*self.held;
        let first = held.chars().next()?;
        let one = first.len_utf8();
        match self.within {
            Within::Line(style) => {
                let then = if first == '\n' { Within::Code } else { self.within };
                Some((one, style, then))
            }
            Within::Comment(end) => match mark(held, end, last)? {
                true => Some((end.len(), Style::Comment, Within::Code)),
                false => Some((one, Style::Comment, self.within)),
            },
            Within::Quoted(quote) => self.quoted(quote, one, last),
            Within::Word if is_word(first) => Some((one, Style::PLAIN, Within::Word)),
            Within::Code | Within::Word => self.plain(language, first, last),
        }
    }

    fn quoted(&self, quote: &'static Quote, one: usize, last: bool) -> Option<(usize, Style, Within)> {
        let held = &*self.held;
        if quote.escapes && held.starts_with('\\') {
            let Some(escaped) = held[1..].chars().next() else {
                return last.then_some((1, Style::Quoted, self.within));
            };
            // A line's end is looked at by itself.
            let more = if escaped == '\n' && quote.one_line { 0 } else { escaped.len_utf8() };
            return Some((1 + more, Style::Quoted, self.within));
        }
        if held.starts_with('\n') && quote.one_line {
            return Some((1, Style::PLAIN, Within::Code));
        }
        Some(match mark(held, quote.end, last)? {
            true => (quote.end.len(), Style::Quoted, Within::Code),
            false => (one, Style::Quoted, self.within),
        })
    }

    fn plain(&self, language: &'static Language, first: char, last: bool) -> Option<(usize, Style, Within)> {
        let held = &*self.held;
        let one = first.len_utf8();
        let line_start = self.before.is_none_or(|c| c == '\n');
        if language.diff && line_start {
            let style = match first {
                '+' => Style::Added,
                '-' => Style::Removed,
                '@' => Style::Keyword,
                '\n' => return Some((1, Style::PLAIN, Within::Code)),
                _ => Style::PLAIN,
            };
            return Some((one, style, Within::Line(style)));
        }
        // Some begin with letters, and the longer ones come first.
        for quote in language.quotes {
            if mark(held, quote.start, last)? {
                return Some((quote.start.len(), Style::Quoted, Within::Quoted(quote)));
            }
        }
        if is_word(first) {
            let end = held.find(|c| !is_word(c));
            let bytes = match end {
                Some(end) => end,
                None if last => held.len(),
                None if held.len() >= MOST_WORD => return Some((held.len(), Style::PLAIN, Within::Word)),
                None => return None,
            };
            return Some((bytes, self.word(language, &held[..bytes]), Within::Code));
        }
        for &start in language.line_comments {
            // `$#` and `a#b` are none.
            let apart = !start.starts_with(['#', ';'])
                || self.before.is_none_or(|c| c.is_whitespace() || matches!(c, ';' | ')'));
            if apart && mark(held, start, last)? {
                return Some((start.len(), Style::Comment, Within::Line(Style::Comment)));
            }
        }
        if let Some((start, end)) = language.comment
            && mark(held, start, last)?
        {
            return Some((start.len(), Style::Comment, Within::Comment(end)));
        }
        if language.characters && first == '\'' {
            // 'x' and '\n' are characters, 'a alone is a lifetime.
            let mut next = held[1..].chars();
            return match (next.next(), next.next()) {
                (Some('\\'), _) => Some((1, Style::Quoted, Within::Quoted(&Quote::CHARACTER))),
                (Some(c), Some('\'')) => Some((2 + c.len_utf8(), Style::Quoted, Within::Code)),
                (Some(c), None) if !last && c != '\n' => None,
                (None, _) if !last => None,
                _ => Some((1, Style::PLAIN, Within::Code)),
            };
        }
        Some((one, Style::PLAIN, Within::Code))
    }

    fn word(&self, language: &Language, word: &str) -> Style {
        let keyword = |word: &str| language.keywords.split(' ').any(|keyword| keyword == word);
        match word {
            _ if self.tag => Style::Keyword,
            _ if word.starts_with(|c: char| c.is_ascii_digit()) => Style::Number,
            _ if language.any_case && keyword(&word.to_ascii_lowercase()) => Style::Keyword,
            _ if keyword(word) => Style::Keyword,
            _ => Style::PLAIN,
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `held` begins with `mark`; none where that depends on what comes.
fn mark(held: &str, mark: &str, last: bool) -> Option<bool> {
    if held.starts_with(mark) {
        return Some(true);
    }
    let undecided = !last && mark.starts_with(held);
    (!undecided).then_some(false)
}
