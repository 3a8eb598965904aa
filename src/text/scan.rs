//! JSON character by character: what is valid so far, and where a value ends.

/// How deep arrays and objects may nest.
const MAX_DEPTH: usize = 64;

/// What a character was to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Part of it; more has to follow, or may.
    More,
    /// Its last one.
    Last,
    /// It follows a value that was whole without it, as only numbers are.
    After,
    /// No value goes on like this.
    Bad,
}

/// One JSON value (RFC 8259), from its first character.
#[derive(Debug, Clone)]
pub(super) struct JsonScan {
    /// The brackets that are open.
    stack: Vec<char>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Value,
    /// After `[`: a value or `]`.
    FirstItem,
    /// After `{`: a key or `}`.
    FirstKey,
    Key,
    Colon,
    /// After a value within brackets.
    Comma,
    String {
        key: bool,
    },
    Escape {
        key: bool,
    },
    /// Digits of `\u` still to come.
    Hex {
        key: bool,
        left: u8,
    },
    /// Of `true`, `false`, `null`: what is still to come.
    Word(&'static str),
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    End,
}

impl JsonScan {
    pub(super) fn new() -> Self {
        Self { stack: Vec::new(), state: State::Value }
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, c: char) -> Step {
        use State::*;
        let space = matches!(c, ' ' | '\t' | '\n' | '\r');
        self.state = match (self.state, c) {
            (End, _) => return Step::Bad,
            (Value | FirstItem | FirstKey | Key | Colon | Comma, _) if space => return Step::More,
            (FirstItem, ']') | (FirstKey, '}') => return self.close(c),
            (Value | FirstItem, _) => match c {
                '{' => self.open(c, FirstKey),
                '[' => self.open(c, FirstItem),
                '"' => String { key: false },
                't' => Word("rue"),
                'f' => Word("alse"),
                'n' => Word("ull"),
                '-' => Minus,
                '0' => Zero,
                '1'..='9' => Integer,
                _ => return self.bad(),
            },
            (FirstKey | Key, '"') => String { key: true },
            (Colon, ':') => Value,
            (Comma, ',') if self.stack.last() == Some(&'{') => Key,
            (Comma, ',') => Value,
            (Comma, ']' | '}') => return self.close(c),
            (String { key }, '"') if key => Colon,
            (String { .. }, '"') => return self.end(),
            (String { key }, '\\') => Escape { key },
            (String { .. }, '\0'..='\u{1f}') => return self.bad(),
            (String { .. }, _) => return Step::More,
            (Escape { key }, 'u') => Hex { key, left: 4 },
            (Escape { key }, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => String { key },
            (Hex { key, left: 1 }, _) if c.is_ascii_hexdigit() => String { key },
            (Hex { key, left }, _) if c.is_ascii_hexdigit() => Hex { key, left: left - 1 },
            (Word(rest), _) if rest.starts_with(c) && rest.len() == 1 => return self.end(),
            (Word(rest), _) if rest.starts_with(c) => Word(&rest[1..]),
            (Minus, '0') => Zero,
            (Minus, '1'..='9') => Integer,
            (Integer, '0'..='9') => Integer,
            (Zero | Integer, '.') => Point,
            (Point | Fraction, '0'..='9') => Fraction,
            (Zero | Integer | Fraction, 'e' | 'E') => Exponent,
            (Exponent, '+' | '-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, '0'..='9') => ExponentDigits,
            (Zero | Integer | Fraction | ExponentDigits, _) => {
                // A number ends where something else begins, which belongs to what it stands in.
                return match self.end() {
                    Step::Last => Step::After,
                    _ => self.push(c),
                };
            }
            _ => return self.bad(),
        };
        if self.stack.len() > MAX_DEPTH {
            return self.bad();
        }
        Step::More
    }

    fn open(&mut self, bracket: char, next: State) -> State {
        self.stack.push(bracket);
        next
    }

    fn close(&mut self, bracket: char) -> Step {
        let open = self.stack.pop();
        if open != Some(if bracket == '}' { '{' } else { '[' }) {
            return self.bad();
        }
        self.end()
    }

    /// A value has ended.
    fn end(&mut self) -> Step {
        if self.stack.is_empty() {
            self.state = State::End;
            return Step::Last;
        }
        self.state = State::Comma;
        Step::More
    }

    fn bad(&mut self) -> Step {
        self.state = State::End;
        Step::Bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the value at the beginning of `text` ends, in bytes.
    fn end(text: &str) -> Result<Option<usize>, usize> {
        let mut scan = JsonScan::new();
        for (at, c) in text.char_indices() {
            match scan.push(c) {
                Step::More => {}
                Step::Last => return Ok(Some(at + c.len_utf8())),
                Step::After => return Ok(Some(at)),
                Step::Bad => return Err(at),
            }
        }
        Ok(None)
    }

    #[test]
    fn values_end_where_they_end() {
        for whole in [
            "{}",
            "[]",
            r#"{"a": 1, "b": [true, null, -0.5e+10, "x"]}"#,
            r#""é\u00e9\n\"""#,
            "true",
            "null",
            "[[], {}]",
            r#"{"a":{"b":{}}}"#,
            "[1,2 , 3]",
            "[0]",
            "[1.5]",
            "[1e5]",
        ] {
            assert_eq!(end(whole), Ok(Some(whole.len())), "{whole}");
            assert_eq!(end(&format!("  {whole}x")), Ok(Some(whole.len() + 2)), "{whole}");
            for cut in (1..whole.len()).filter(|&cut| whole.is_char_boundary(cut)) {
                assert_eq!(end(&whole[..cut]), Ok(None), "{}", &whole[..cut]);
            }
        }
        assert_eq!(end("12 "), Ok(Some(2)));
        assert_eq!(end("-1.5e3,"), Ok(Some(6)));
    }

    #[test]
    fn what_serde_refuses_is_bad() {
        for (text, at) in [
            ("}", 0),
            ("{1", 1),
            ("{\"a\" 1", 5),
            ("{\"a\":}", 5),
            ("{\"a\":1,}", 7),
            ("[1,]", 3),
            ("[1 2", 3),
            ("01", 1),
            ("\"\n", 1),
            ("\"\\x", 2),
            ("\"\\u12g", 5),
            ("tru_", 3),
            ("[}", 1),
            ("{]", 1),
            ("-x", 1),
            ("[1.]", 3),
            ("[1e]", 3),
            ("nul1", 3),
            ("{\"a\":1]", 6),
            ("[1}", 2),
            ("+1", 0),
            (".5", 0),
            ("'a'", 0),
        ] {
            let whole = text.len() > 2 || serde_json::from_str::<serde_json::Value>(text).is_err();
            assert!(whole);
            match end(text) {
                Err(bad) => assert_eq!(bad, at, "{text}"),
                // A zero is a number, and what follows is not part of it.
                Ok(Some(end)) => assert_eq!((text, end), ("01", 1)),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert_eq!(end(&"[".repeat(100)), Err(MAX_DEPTH));
    }
}
