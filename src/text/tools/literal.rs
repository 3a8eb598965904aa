//! Values in Python's notation, as some models and templates write them, read as JSON.

use serde_json::Value as Json;

/// Stands for half of a surrogate pair.
const LOST: char = char::REPLACEMENT_CHARACTER;

/// A value in Python's notation: quotes of either kind, tuples, `True`, `False`, `None`, a comma after the last item.
pub(super) fn json(text: &str) -> Option<Json> {
    let mut json = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' => {
                let (mut inner, mut escapes) = (String::new(), Unescape::default());
                loop {
                    let next = chars.next()?;
                    let taken = escapes.is_within() && escapes.push(next, &mut inner);
                    if !taken && next == c {
                        break;
                    }
                    if !taken {
                        escapes.push(next, &mut inner);
                    }
                }
                escapes.finish(&mut inner);
                json += &Json::from(inner).to_string();
            }
            '(' => json.push('['),
            ')' | ']' | '}' => {
                let end = json.trim_end().len();
                if json[..end].ends_with(',') {
                    json.truncate(end - 1);
                }
                json.push(if c == ')' { ']' } else { c });
            }
            c if c.is_alphabetic() => {
                let mut word = String::from(c);
                while let Some(next) = chars.next_if(|next| next.is_alphanumeric()) {
                    word.push(next);
                }
                json += match word.as_str() {
                    "True" => "true",
                    "False" => "false",
                    "None" | "none" => "null",
                    other => other,
                };
            }
            c => json.push(c),
        }
    }
    crate::json::generated(&json).ok()
}

/// Reads what stands between the quotes of a string.
#[derive(Debug, Clone, Default)]
pub(super) struct Unescape {
    /// A backslash, and what follows it.
    held: String,
    /// The first half of a surrogate pair, as JSON writes it.
    high: Option<u32>,
}

impl Unescape {
    /// Whether a backslash waits for what it stands before.
    pub(super) fn is_within(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes the next character and adds to `out` what is then certain; false where it does not belong to what a backslash began,
    /// which is then as it was written: it is to be taken once more.
    pub(super) fn push(&mut self, c: char, out: &mut String) -> bool {
        if self.held.is_empty() {
            if c == '\\' {
                self.held.push(c);
            } else {
                self.lost(out);
                out.push(c);
            }
            return true;
        }
        let digits = match self.held.chars().nth(1) {
            Some('x') => 2,
            Some('u') => 4,
            Some(_) => 8,
            None => 0,
        };
        if digits == 0 {
            match c {
                'x' | 'u' | 'U' => self.held.push(c),
                c => {
                    self.held.clear();
                    self.lost(out);
                    simple(c, out);
                }
            }
            return true;
        }
        if !c.is_ascii_hexdigit() {
            self.finish(out);
            return false;
        }
        self.held.push(c);
        if self.held.len() == 2 + digits {
            let code = u32::from_str_radix(&self.held[2..], 16).unwrap_or(u32::from(LOST));
            self.held.clear();
            self.code(code, out);
        }
        true
    }

    /// What is left at the end of the string.
    pub(super) fn finish(&mut self, out: &mut String) {
        self.lost(out);
        *out += &std::mem::take(&mut self.held);
    }

    fn code(&mut self, code: u32, out: &mut String) {
        match (code, self.high) {
            (0xDC00..=0xDFFF, Some(high)) => {
                self.high = None;
                out.push(
                    char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (code - 0xDC00)).unwrap_or(LOST),
                );
            }
            (0xD800..=0xDBFF, _) => {
                self.lost(out);
                self.high = Some(code);
            }
            _ => {
                self.lost(out);
                out.push(char::from_u32(code).unwrap_or(LOST));
            }
        }
    }

    fn lost(&mut self, out: &mut String) {
        if self.high.take().is_some() {
            out.push(LOST);
        }
    }
}

/// What one character behind a backslash stands for; one that has no meaning there stands for both.
fn simple(c: char, out: &mut String) {
    match c {
        'n' => out.push('\n'),
        't' => out.push('\t'),
        'r' => out.push('\r'),
        'b' => out.push('\u{8}'),
        'f' => out.push('\u{c}'),
        'v' => out.push('\u{b}'),
        'a' => out.push('\u{7}'),
        '0' => out.push('\0'),
        '\n' => {}
        '\\' | '\'' | '"' | '/' => out.push(c),
        other => out.extend(['\\', other]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_is_read_as_json() {
        for (python, wanted) in [
            ("['x', True, None, -1.5]", r#"["x",true,null,-1.5]"#),
            ("{'a': (1, 2,), \"b\": [],}", r#"{"a":[1,2],"b":[]}"#),
            (r"'it\'s \x41\u00e9\U0001F600\ud83d\ude00 \d'", r#""it's Aé😀😀 \\d""#),
            (r#""\ud83d x \u12 \xq""#, r#""� x \\u12 \\xq""#),
            (r#"'"'"#, r#""\"""#),
            ("'\n'", r#""\n""#),
        ] {
            assert_eq!(json(python).map(|json| json.to_string()).as_deref(), Some(wanted), "{python}");
        }
        for none in ["three", "'a", "f(1)", "[1", "{1: 2}", "'a' 'b'", "", "1 + 1"] {
            assert_eq!(json(none), None, "{none}");
        }
    }
}
