//! Oniguruma's syntax, which `tokenizer.json` is written for, in that of the `regex` crates.

use std::fmt::Write;

use super::cost;
use super::fold::{self, Part};

/// The longest pattern, in bytes. The longest published one has under 3,000; one that is made of a SentencePiece model has
/// some for each of its control pieces.
const MAX_LEN: usize = 256 << 10;
/// How deep groups and classes may stand in each other; published patterns have 4.
const MAX_DEPTH: usize = 32;
/// How often an atom may be repeated: `a{2}?` is once, and that perhaps.
const MAX_REPEATS: usize = 2;

/// A pattern in the syntax of the `regex` crates.
#[derive(Debug, PartialEq)]
pub(super) struct Translated {
    pub pattern: String,
    /// Whether it looks around, refers back, or gives nothing back (`++`, `(?>…)`): more than an automaton does.
    pub backtracks: bool,
}

/// Translates a pattern.
///
/// # Errors
/// What is too long, too deep or too large when it is compiled, what is not closed, and by its name what the two read differently.
pub(super) fn translate(pattern: &str) -> Result<Translated, String> {
    if pattern.len() > MAX_LEN {
        return Err(format!("a pattern of {} bytes, at most {MAX_LEN}", pattern.len()));
    }
    let mut scanner =
        Scanner { rest: pattern, out: String::new(), backtracks: false, folds: false, last: None };
    scanner.alternatives()?;
    cost::check(&scanner.out)?;
    Ok(Translated { pattern: scanner.out, backtracks: scanner.backtracks })
}

struct Scanner<'a> {
    rest: &'a str,
    out: String,
    backtracks: bool,
    /// Whether letters stand for both of their cases.
    folds: bool,
    /// The letter before, where they do and no more than the bounds of groups lie between.
    last: Option<char>,
}

/// What can be repeated.
#[derive(Clone, Copy)]
struct Atom {
    /// Where it begins in what is written.
    start: usize,
    /// How often it is repeated already.
    repeats: usize,
}

impl<'a> Scanner<'a> {
    fn take(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    /// Everything up to `end`, which goes too.
    fn until(&mut self, end: char) -> Option<&'a str> {
        let (inside, rest) = self.rest.split_once(end)?;
        self.rest = rest;
        Some(inside)
    }

    /// A character as itself.
    fn literal(&mut self, c: char) {
        // What is no letter, digit or space may stand behind a backslash, but for `<` and `>`.
        if c.is_ascii_punctuation() && c != '<' && c != '>' {
            self.out.push('\\');
        }
        self.out.push(c);
    }

    fn code(&mut self, code: Option<u32>) -> Result<(), String> {
        let code =
            code.filter(|&code| char::from_u32(code).is_some()).ok_or("a code that no character has")?;
        let _ = write!(self.out, "\\x{{{code:X}}}");
        Ok(())
    }

    /// A text from its first character on, each of which stands for both of its cases: what several of them are together does,
    /// too. One that is repeated stands alone.
    fn folded(&mut self, first: char, behind: bool) -> Result<(), String> {
        let quantified = |rest: &str| rest.starts_with(['*', '+', '?']) || braced(rest).is_some();
        let mut text = String::from(first);
        while !quantified(self.rest)
            && let Some(c) = self.rest.chars().next().filter(|c| !r"()[|.^$\".contains(*c))
            && !quantified(&self.rest[c.len_utf8()..])
        {
            text.push(c);
            self.next();
        }
        if self.last.is_some_and(|last| fold::joins(last, first)) {
            return Err("`(?i)` with one character's letters in several groups".into());
        }
        for part in fold::parts(&text) {
            match part {
                Part::One(c) => self.literal(c),
                Part::Several(..) if behind => {
                    return Err("`(?i)` with a character that folds to several in `(?<=…)`".into());
                }
                Part::Several(letters, ones) => {
                    self.out.push_str("(?:");
                    letters.into_iter().for_each(|c| self.literal(c));
                    for &one in ones {
                        self.out.push('|');
                        self.literal(one);
                    }
                    self.out.push(')');
                }
            }
        }
        self.last = text.chars().next_back();
        Ok(())
    }

    /// A repetition of `atom`, or of what repeats it.
    fn repeat(&mut self, atom: &mut Option<Atom>, quantifier: &str) -> Result<(), String> {
        let shown = &quantifier[..1];
        let atom = atom.as_mut().ok_or_else(|| format!("`{shown}` repeats nothing"))?;
        if atom.repeats == MAX_REPEATS {
            return Err(format!("a repetition of what is repeated {MAX_REPEATS} times"));
        }
        if atom.repeats > 0 {
            self.out.insert_str(atom.start, "(?:");
            self.out.push(')');
        }
        self.out.push_str(quantifier);
        atom.repeats += 1;
        Ok(())
    }

    fn alternatives(&mut self) -> Result<(), String> {
        // Of each group that is open, where it begins, and whether letters were folded before it.
        let mut groups: Vec<(usize, bool)> = Vec::new();
        // What can be repeated, and whether this is where a group begins.
        let (mut atom, mut first) = (None, true);
        // Whether a group began or ended right before.
        let mut bounded = false;
        // The depth of the group that looks behind, where one is open.
        let mut behind = None;
        while let Some(c) = self.next() {
            let was_first = std::mem::take(&mut first);
            // A letter right before joins the text of another one, or is repeated, and stands alone.
            let before = self.last;
            let last = before.filter(|_| bounded);
            bounded = matches!(c, '(' | ')');
            if !bounded {
                self.last = None;
            }
            let one = Some(Atom { start: self.out.len(), repeats: 0 });
            match c {
                '(' => {
                    groups.push((self.out.len(), self.folds));
                    if groups.len() > MAX_DEPTH {
                        return Err(format!("groups over {MAX_DEPTH} deep"));
                    }
                    if self.rest.starts_with("?<=") || self.rest.starts_with("?<!") {
                        behind = behind.or(Some(groups.len()));
                    }
                    if !self.group(was_first && groups.len() == 1)? {
                        groups.pop();
                    }
                    (atom, first) = (None, true);
                }
                ')' => {
                    behind = behind.filter(|&opened| opened < groups.len());
                    let (start, folds) = groups.pop().ok_or("a group is closed that was not opened")?;
                    self.folds = folds;
                    self.out.push(')');
                    atom = Some(Atom { start, repeats: 0 });
                }
                '|' => {
                    self.out.push('|');
                    atom = None;
                }
                '[' => {
                    self.class(1)?;
                    atom = one;
                }
                '.' => {
                    self.out.push('.');
                    atom = one;
                }
                // Of any line, as in Ruby.
                '^' => {
                    // Behind the last line end there is no line.
                    self.out.push_str(r"(?:\A|(?m:^)(?!\z))");
                    self.backtracks = true;
                    atom = None;
                }
                '$' => {
                    self.out.push_str("(?m:$)");
                    atom = None;
                }
                // As in Oniguruma; it would look at all that is behind, at every place.
                '*' | '+' | '?' if behind.is_some() => return Err("a repetition in `(?<=…)`".into()),
                '*' | '+' | '?' => {
                    let mut quantifier = String::from(c);
                    if self.take("?") {
                        quantifier.push('?');
                    } else if self.take("+") {
                        quantifier.push('+');
                        self.backtracks = true;
                    }
                    self.repeat(&mut atom, &quantifier)?;
                }
                '{' => match self.counts()? {
                    Some(_) if behind.is_some() => return Err("a repetition in `(?<=…)`".into()),
                    Some(counts) if counts == "{1}" && before.is_some_and(fold::takes_part) => {
                        return Err("`(?i)` with `{1}`, behind which letters may be one character".into());
                    }
                    Some(counts) => self.repeat(&mut atom, &counts)?,
                    None => {
                        self.literal('{');
                        atom = one;
                    }
                },
                '\\' => atom = self.escape()?.then_some(one).flatten(),
                other if self.folds => {
                    self.last = last;
                    self.folded(other, behind.is_some())?;
                    atom = one;
                }
                other => {
                    self.literal(other);
                    atom = one;
                }
            }
        }
        if !groups.is_empty() {
            return Err("a group is not closed".into());
        }
        Ok(())
    }

    /// What stands behind `(`. Whether a group was opened, which flags for the rest of one do not.
    fn group(&mut self, first: bool) -> Result<bool, String> {
        if !self.take("?") {
            self.out.push_str("(?:");
            return Ok(true);
        }
        for around in ["=", "!", "<=", "<!", ">"] {
            if self.take(around) {
                self.out.push_str("(?");
                self.out.push_str(around);
                self.backtracks = true;
                return Ok(true);
            }
        }
        if self.take("<") {
            self.until('>').ok_or("a name is not closed")?;
            self.out.push_str("(?:");
            return Ok(true);
        }
        let end = self.rest.find([':', ')']).ok_or("a group is not closed")?;
        let flags = &self.rest[..end];
        let whole = self.rest[end..].starts_with(')');
        let (on, off) = flags.split_once('-').unwrap_or((flags, ""));
        if !on.chars().chain(off.chars()).all(|flag| matches!(flag, 'i' | 'm')) {
            return Err(format!(
                "`(?{}`: flags that the two read differently",
                flags.chars().take(8).collect::<String>()
            ));
        }
        // Flags for the rest of a group take its other alternatives in with them, but at its beginning all is the same.
        if whole && !first {
            return Err("`(?i)` behind other things in its group".into());
        }
        self.rest = &self.rest[end + 1..];
        self.folds = !off.contains('i') && (self.folds || on.contains('i'));
        // Ruby's `m` lets `.` take newlines.
        let _ = write!(self.out, "(?{}{}", flags.replace('m', "s"), if whole { ')' } else { ':' });
        Ok(!whole)
    }

    /// `{n}`, `{n,}`, `{n,m}`, `{,m}` behind `{`; nothing where it is a brace.
    ///
    /// As in Ruby, `{n,m}?` takes the fewest, but `{n}?` is a repetition that may be absent, and a `+` behind any of them is
    /// another repetition. `{n,n}?` finds what `{n}?` does in some texts and not in others.
    fn counts(&mut self) -> Result<Option<String>, String> {
        let Some((written, rest)) = counted(self.rest) else { return Ok(None) };
        let (least, most) = written.split_once(',').unwrap_or((written, written));
        self.rest = rest;
        let value = |text: &str, absent| match text {
            "" => Ok(absent),
            text => text
                .parse::<u32>()
                .map_err(|_| format!("`{{{}}}`: a count", text.chars().take(16).collect::<String>())),
        };
        let (least, most) = (value(least, 0)?, value(most, u32::MAX)?);
        if least > most {
            return Err(format!("`{{{least},{most}}}` counts down"));
        }
        let mut counts = match (least, most) {
            (least, u32::MAX) => format!("{{{least},}}"),
            (least, most) if least == most => format!("{{{least}}}"),
            (least, most) => format!("{{{least},{most}}}"),
        };
        if written.contains(',') && self.take("?") {
            if least == most {
                return Err(format!("`{{{least},{most}}}?`, which is read in two ways"));
            }
            counts.push('?');
        }
        Ok(Some(counts))
    }

    /// What stands behind a backslash outside of a class. Whether it can be repeated.
    fn escape(&mut self) -> Result<bool, String> {
        let c = self.rest.chars().next().ok_or("a backslash at the end")?;
        match c {
            'b' | 'B' => {
                self.next();
                let _ = write!(self.out, "\\{c}");
                self.backtracks = true;
                return Ok(false);
            }
            'A' | 'z' => {
                self.next();
                let _ = write!(self.out, "\\{c}");
                return Ok(false);
            }
            'Z' => {
                self.next();
                self.out.push_str(r"(?=\n?\z)");
                self.backtracks = true;
                return Ok(false);
            }
            // Properties have no case outside of a class.
            'p' | 'P' => {
                self.out.push_str("(?-i:");
                self.set_or_char()?;
                self.out.push(')');
            }
            _ => self.set_or_char()?,
        }
        Ok(true)
    }

    /// A character or a set of them behind a backslash, in a class or outside.
    fn set_or_char(&mut self) -> Result<(), String> {
        let c = self.next().ok_or("a backslash at the end")?;
        match c {
            'p' | 'P' => {
                if !self.take("{") {
                    return Err(format!("`\\{c}` without braces"));
                }
                let name = self.until('}').ok_or("a property is not closed")?;
                let (name, negated) = name.strip_prefix('^').map_or((name, false), |name| (name, true));
                let letter = if (c == 'P') != negated { 'P' } else { 'p' };
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                    return Err("a property's name is none".into());
                }
                let _ = write!(self.out, "\\{letter}{{{name}}}");
            }
            // Without the joiners that the other has among them.
            'w' => self.out.push_str(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]"),
            'W' => self.out.push_str(r"[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]"),
            's' | 'S' | 'd' | 'D' | 't' | 'n' | 'r' | 'f' | 'v' | 'a' => {
                let _ = write!(self.out, "\\{c}");
            }
            'e' => self.out.push_str(r"\x1B"),
            'h' => self.out.push_str("[0-9A-Fa-f]"),
            'x' if self.take("{") => {
                let digits = self.until('}').ok_or("a code is not closed")?;
                let code = u32::from_str_radix(digits, 16).ok();
                self.alone(code)?;
                self.code(code)?;
            }
            'x' | 'u' => {
                let count = if c == 'x' { 2 } else { 4 };
                let digits = self.rest.get(..count).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
                let digits = digits.ok_or_else(|| format!("`\\{c}` without {count} digits"))?;
                self.rest = &self.rest[count..];
                let code = u32::from_str_radix(digits, 16).ok();
                self.alone(code)?;
                // Above, `\x` is a byte in Oniguruma.
                self.code(code.filter(|&code| c == 'u' || code < 0x80))?;
            }
            c if c.is_ascii_alphanumeric() => return Err(format!("`\\{c}` is not known")),
            c => {
                self.alone(Some(c.into()))?;
                self.literal(c);
            }
        }
        Ok(())
    }

    /// Refuses a character that `(?i)` reads together with others, where it is looked at alone.
    fn alone(&self, code: Option<u32>) -> Result<(), String> {
        match code.and_then(char::from_u32).filter(|&c| self.folds && fold::takes_part(c)) {
            Some(c) => {
                Err(format!("`(?i)` with {c:?} as a code or escaped, which several characters may fold with"))
            }
            None => Ok(()),
        }
    }

    /// A class behind `[`.
    fn class(&mut self, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("classes over {MAX_DEPTH} deep"));
        }
        self.out.push('[');
        let negated = self.take("^");
        if negated {
            self.out.push('^');
        }
        let start = self.out.len();
        if self.take("]") {
            self.out.push_str("\\]");
        }
        loop {
            let Some(c) = self.next() else { return Err("a class is not closed".into()) };
            match c {
                ']' => break,
                '[' if self.take(":") => self.posix()?,
                '[' => self.class(depth + 1)?,
                '&' if self.take("&") => self.out.push_str("&&"),
                '\\' => self.set_or_char()?,
                '-' if self.rest.starts_with('-') => return Err("`--` in a class".into()),
                // A range, or itself at an end of the class.
                '-' => {
                    let itself = self.rest.starts_with(']') || self.out.len() == start;
                    self.out.push_str(if itself { "\\-" } else { "-" });
                }
                other if self.folds && !negated && fold::is_several(other) => {
                    return Err(format!("`(?i)` with {other:?}, which is several characters, in a class"));
                }
                other => self.literal(other),
            }
        }
        self.out.push(']');
        Ok(())
    }

    /// `[:name:]` behind `[:`, which is Unicode's.
    fn posix(&mut self) -> Result<(), String> {
        let (name, rest) = self.rest.split_once(":]").ok_or("a class is not closed")?;
        self.rest = rest;
        let (name, negated) = name.strip_prefix('^').map_or((name, false), |name| (name, true));
        // What is assigned, but for control characters and ends of lines.
        let (set, negated) = match name {
            "graph" => (r"\p{Cc}\p{Cn}\s", !negated),
            "print" => (r"\p{Cc}\p{Cn}\p{Zl}\p{Zp}", !negated),
            _ => (Self::posix_set(name)?, negated),
        };
        let _ = write!(self.out, "[{}{set}]", if negated { "^" } else { "" });
        Ok(())
    }

    fn posix_set(name: &str) -> Result<&'static str, String> {
        Ok(match name {
            "alpha" => r"\p{Alphabetic}",
            "alnum" => r"\p{Alphabetic}\p{Nd}",
            "ascii" => r"\x00-\x7F",
            "blank" => r"\p{Zs}\t",
            "cntrl" => r"\p{Cc}",
            "digit" => r"\p{Nd}",
            "lower" => r"\p{Lowercase}",
            "punct" => r"\p{P}\p{S}",
            "space" => r"\s",
            "upper" => r"\p{Uppercase}",
            "word" => r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}",
            "xdigit" => "0-9A-Fa-f",
            _ => return Err(format!("`[:{}:]` is not known", name.chars().take(16).collect::<String>())),
        })
    }
}

/// The counts in `n}`, `n,}`, `n,m}` or `,m}`, and what follows; nothing where these are none.
fn counted(rest: &str) -> Option<(&str, &str)> {
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != ',')?;
    let (written, rest) = (&rest[..end], rest[end..].strip_prefix('}')?);
    let is_one = written.contains(|c: char| c != ',') && written.matches(',').count() < 2;
    is_one.then_some((written, rest))
}

/// The same behind a brace.
fn braced(rest: &str) -> Option<(&str, &str)> {
    counted(rest.strip_prefix('{')?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn automaton(pattern: &str) -> String {
        let translated = translate(pattern).unwrap();
        assert!(!translated.backtracks, "{pattern}");
        translated.pattern
    }

    #[test]
    fn what_both_read_alike_stays() {
        assert_eq!(
            automaton(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+"),
            r"(?i:\'s|\'t)|[^\r\n\p{L}\p{N}]?(?-i:\p{L})+"
        );
        assert_eq!(automaton(r" ?[^(\s|[.,!?…。])]+"), r" ?[^\(\s\|[\.\,\!\?…。]\)]+");
        assert_eq!(automaton("[!-/a-z-]"), r"[\!-\/a-z\-]");
        assert_eq!(automaton(r"[!-/:-@\[-`{-~]"), r"[\!-\/\:-\@\[-\`\{-\~]");
        assert_eq!(automaton("[^-a^-z]"), r"[^\-a\^-z]");
        assert_eq!(automaton("[]a]"), r"[\]a]");
        assert_eq!(automaton(r"[\p{L}&&[^\p{Han}]]{1,3}"), r"[\p{L}&&[^\p{Han}]]{1,3}");
    }

    #[test]
    fn what_is_written_otherwise_is_written_so() {
        assert_eq!(automaton("(?m:.)a$"), "(?s:.)a(?m:$)");
        assert_eq!(automaton(r"(a)\p{^L}\h[[:alpha:]_]"), r"(?:a)(?-i:\P{L})[0-9A-Fa-f][[\p{Alphabetic}]\_]");
        assert_eq!(automaton(r"a{,3}{"), r"a{0,3}\{");
        assert_eq!(automaton(r"\u4e00-\x{9fff}"), r"\x{4E00}\-\x{9FFF}");
        assert_eq!(automaton("(?i)a|b~~&"), r"(?i)a|b\~\~\&");
        assert_eq!(automaton("[[:^graph:][:punct:]]"), r"[[\p{Cc}\p{Cn}\s][\p{P}\p{S}]]");
    }

    #[test]
    fn repetitions_are_rubys() {
        assert_eq!(automaton(r"(ab){1,3}+c{2}?"), r"(?:(?:ab){1,3})+(?:c{2})?");
        assert_eq!(automaton("a{1,2}?b{2,2}c{,3}?d{2}??"), "a{1,2}?b{2}c{0,3}?(?:d{2})??");
        assert_eq!(automaton("[a-c]{2}{3}d**"), "(?:[a-c]{2}){3}(?:d*)*");
    }

    #[test]
    fn characters_that_are_several_are_folded() {
        assert_eq!(automaton("(?i:ß|FIT?)ss"), "(?i:(?:ss|ß|ẞ)|(?:fi|ﬁ)T?)ss");
        assert_eq!(automaton("(?i)ss(?-i:ss)s+s"), "(?i)(?:ss|ß|ẞ)(?-i:ss)s+s");
    }

    #[test]
    fn what_an_automaton_cannot_do_is_said() {
        for pattern in [r"a(?!b)", "(?<=(?:a))b+", "a++", r"\ba", "(?>a)", r"a\Z"] {
            assert!(translate(pattern).unwrap().backtracks, "{pattern}");
        }
    }

    #[test]
    fn what_the_two_read_differently_is_refused_by_name() {
        for (pattern, why) in [
            ("(?=(?i)a)ab", "`(?i)` behind other things in its group"),
            ("a(?i)b|c", "`(?i)` behind other things in its group"),
            ("(?<=(?:a|b)+)c+", "a repetition in `(?<=…)`"),
            ("(?<!a{1,2})b", "a repetition in `(?<=…)`"),
            ("(?x: a)", "`(?x`: flags that the two read differently"),
            (r"\Ka", "`\\K` is not known"),
            (r"(a)\1", "`\\1` is not known"),
            ("a{2}{3}{4}", "a repetition of what is repeated 2 times"),
            ("a{3,1}", "`{3,1}` counts down"),
            ("a{2,2}?b", "`{2,2}?`, which is read in two ways"),
            ("a{1,9999999999}", "`{9999999999}`: a count"),
            ("(?i:s(?:s))", "`(?i)` with one character's letters in several groups"),
            (r"(?i:s\x73)", "`(?i)` with 's' as a code or escaped, which several characters may fold with"),
            (r"(?i:s\ſ)", "`(?i)` with 'ſ' as a code or escaped, which several characters may fold with"),
            ("(?i:s{1}s)", "`(?i)` with `{1}`, behind which letters may be one character"),
            ("(?i:[ß])", "`(?i)` with 'ß', which is several characters, in a class"),
            ("(?<=(?i:ß))a", "`(?i)` with a character that folds to several in `(?<=…)`"),
            ("[a--b]", "`--` in a class"),
            ("[[:emoji:]]", "`[:emoji:]` is not known"),
            (r"\xff", "a code that no character has"),
            ("(a", "a group is not closed"),
            ("a)", "a group is closed that was not opened"),
            ("[a", "a class is not closed"),
            ("*", "`*` repeats nothing"),
        ] {
            assert_eq!(translate(pattern), Err(why.to_owned()), "{pattern}");
        }
        assert_eq!(translate(&"[".repeat(3600)), Err("classes over 32 deep".into()));
        assert_eq!(translate(&"(".repeat(3600)), Err("groups over 32 deep".into()));
        assert_eq!(translate(&"ß".repeat(200_000)), Err("a pattern of 400000 bytes, at most 262144".into()));
    }
}
