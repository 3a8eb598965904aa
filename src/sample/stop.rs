//! Stop strings in a stream of text.

use crate::error::{Error, Result};

/// How many stop strings a request may have.
pub const MAX_STOPS: usize = 16;
/// How long a stop string may be, in bytes.
pub const MAX_STOP_BYTES: usize = 512;

/// Looks for stop strings in text that arrives in pieces. What it returns does not depend on how the text was cut: the
/// stop that is complete first ends the text (the longest, where several end there), and is not part of it.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop.
    held: String,
    matched: Option<usize>,
}

impl StopMatcher {
    /// A matcher for `stops`; none is allowed.
    ///
    /// # Errors
    /// [`Error::Option`] for more than [`MAX_STOPS`] stops, an empty one, or one over [`MAX_STOP_BYTES`].
    pub fn new(stops: &[String]) -> Result<Self> {
        let bad = |got: String, expected| Err(Error::Option { option: "stop", got, expected });
        if stops.len() > MAX_STOPS {
            return bad(format!("{} strings", stops.len()), "at most 16 strings");
        }
        for stop in stops {
            if stop.is_empty() || stop.len() > MAX_STOP_BYTES {
                return bad(format!("a string of {} bytes", stop.len()), "strings of 1 to 512 bytes");
            }
        }
        Ok(Self { stops: stops.to_vec(), held: String::new(), matched: None })
    }

    /// Takes the next piece and returns the text that is certainly before any stop. After a match: nothing.
    pub fn push(&mut self, piece: &str) -> String {
        if self.matched.is_some() {
            return String::new();
        }
        let before = self.held.len();
        self.held.push_str(piece);
        let text = self.held.as_bytes();
        for end in before + 1..=text.len() {
            let ending = self.stops.iter().enumerate().filter(|s| text[..end].ends_with(s.1.as_bytes()));
            if let Some((index, stop)) = ending.max_by_key(|s| s.1.len()) {
                self.matched = Some(index);
                let cut = end - stop.len();
                let mut out = std::mem::take(&mut self.held);
                out.truncate(cut);
                return out;
            }
        }
        // A prefix of a stop begins at a character, so that the cut is on a boundary.
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = text.len().saturating_sub(longest.saturating_sub(1));
        let may_begin = |i: usize| self.stops.iter().any(|s| s.as_bytes().starts_with(&text[i..]));
        let cut = (from..text.len()).find(|&i| may_begin(i)).unwrap_or(text.len());
        let rest = self.held.split_off(cut);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text still held back; call at the end of a stream that no stop ended.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop that was found.
    pub fn matched(&self) -> Option<&str> {
        self.matched.map(|i| self.stops[i].as_str())
    }
}
