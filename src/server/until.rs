//! When a text ends that neither its tokens nor a stop string end, as editors ask for it.

use std::time::{Duration, Instant};

/// Where a text is to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Until {
    /// With the first line that ends so long after the first token.
    pub time: Option<Duration>,
    /// Before the second line, or a later one, whose first letter stands further left than this.
    pub indent: usize,
}

/// How far it is.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    until: Until,
    began: Option<Instant>,
    /// What the line so far begins with, where nothing else stands in it; none in the first line. It is held until it is known
    /// whether the line belongs to the text.
    blank: Option<String>,
}

impl Watch {
    pub fn new(until: Until) -> Self {
        Self { until, began: None, blank: None }
    }

    /// Reads what comes next of the text, at `now`: what of it is certain, and whether the text ends with that.
    pub fn push(&mut self, text: String, now: Instant) -> (String, bool) {
        if self.until == Until::default() {
            return (text, false);
        }
        let began = *self.began.get_or_insert(now);
        let late = self.until.time.is_some_and(|time| now.saturating_duration_since(began) > time);
        let mut out = String::with_capacity(text.len());
        for letter in text.chars() {
            match (letter, &mut self.blank) {
                ('\n', blank) => {
                    out.extend(blank.replace(String::new()));
                    out.push(letter);
                    if late {
                        return (out, true);
                    }
                }
                (' ' | '\t' | '\r', Some(blank)) => blank.push(letter),
                (_, None) => out.push(letter),
                (_, Some(blank)) => {
                    let indent = blank.chars().filter(|&letter| letter != '\r').count();
                    if indent < self.until.indent {
                        return (out, true);
                    }
                    out.push_str(blank);
                    out.push(letter);
                    self.blank = None;
                }
            }
        }
        (out, false)
    }

    /// What was held, where the text ended otherwise.
    pub fn finish(&mut self) -> String {
        self.blank.take().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that is left of these pieces and their times, and whether it was ended.
    fn left(until: Until, pieces: &[(&str, u64)]) -> (String, bool) {
        let (mut watch, start) = (Watch::new(until), Instant::now());
        let mut text = String::new();
        for (piece, ms) in pieces {
            let (more, ends) = watch.push((*piece).to_owned(), start + Duration::from_millis(*ms));
            text += &more;
            if ends {
                return (text, true);
            }
        }
        (text + &watch.finish(), false)
    }

    #[test]
    fn a_text_ends_with_a_line_once_its_time_is_over() {
        let until = Until { time: Some(Duration::from_millis(10)), ..Until::default() };
        let pieces = [("a\n", 100), ("b", 105), ("c\n", 110), ("d", 111), ("e\nf", 112)];
        assert_eq!(left(until, &pieces), ("a\nbc\nde\n".to_owned(), true));
        assert_eq!(left(until, &[("a", 0), ("b", 99), ("c", 999)]), ("abc".to_owned(), false));
        assert_eq!(left(Until::default(), &[("a\n", 0), ("\n", 999_999)]), ("a\n\n".to_owned(), false));
    }

    #[test]
    fn a_text_ends_before_a_line_that_stands_further_left() {
        let until = Until { indent: 2, ..Until::default() };
        for (text, kept, ends) in [
            // The first line goes on from another one.
            ("a\n  b\n d", "a\n  b\n", true),
            ("a\n\t\tb\n  }\n}", "a\n\t\tb\n  }\n", true),
            ("a\n  b\n\n  c", "a\n  b\n\n  c", false),
            ("a\r\n  b\r\n\r\n  c\r\n ", "a\r\n  b\r\n\r\n  c\r\n ", false),
            ("a\nb", "a\n", true),
            ("a", "a", false),
            ("", "", false),
        ] {
            let letters: Vec<String> = text.chars().map(String::from).collect();
            let letters: Vec<(&str, u64)> = letters.iter().map(|letter| (letter.as_str(), 0)).collect();
            for pieces in [&[(text, 0)][..], &letters] {
                assert_eq!(left(until, pieces), (kept.to_owned(), ends), "{text:?}");
            }
            assert_eq!(left(Until::default(), &[(text, 0)]), (text.to_owned(), false));
        }
    }
}
