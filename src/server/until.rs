//! When a text ends that neither its tokens nor a stop string end, as editors ask for it.

use std::time::{Duration, Instant};

/// Where a text is to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Until {
    /// At the first line that ends so long after the first token.
    pub time: Option<Duration>,
    /// At the second line, or a later one, whose first letter stands further left than this.
    pub indent: usize,
}

/// How far it is.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    until: Until,
    began: Option<Instant>,
    /// Spaces and tabs of the line so far, where nothing else stands in it; none in the first line.
    blank: Option<usize>,
}

impl Watch {
    pub fn new(until: Until) -> Self {
        Self { until, began: None, blank: None }
    }

    /// Reads what comes next of the text, at `now`; whether it ends there.
    pub fn ends(&mut self, text: &str, now: Instant) -> bool {
        let began = *self.began.get_or_insert(now);
        let late = self.until.time.is_some_and(|time| now.saturating_duration_since(began) > time);
        text.chars().any(|letter| match (letter, self.blank) {
            ('\n', _) => {
                self.blank = Some(0);
                late
            }
            (' ' | '\t', Some(blank)) => {
                self.blank = Some(blank + 1);
                false
            }
            (_, Some(blank)) => {
                self.blank = None;
                blank < self.until.indent
            }
            (_, None) => false,
        })
    }
}

impl Until {
    /// What of a text is kept that ended so: not the line that stands too far left.
    pub fn kept<'a>(&self, text: &'a str) -> &'a str {
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let letters = line.trim_start_matches([' ', '\t']);
            let blank = line.len() - letters.len();
            let is_empty = matches!(letters, "" | "\n");
            if start > 0 && !is_empty && blank < self.indent {
                return &text[..start];
            }
            start += line.len();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(until: Until, pieces: &[(&str, u64)]) -> Option<usize> {
        let (mut watch, start) = (Watch::new(until), Instant::now());
        pieces.iter().position(|(text, ms)| watch.ends(text, start + Duration::from_millis(*ms)))
    }

    #[test]
    fn a_text_ends_with_a_line_once_its_time_is_over() {
        let until = Until { time: Some(Duration::from_millis(10)), ..Until::default() };
        assert_eq!(
            ends(until, &[("a\n", 100), ("b", 105), ("c\n", 110), ("d", 111), ("e\nf", 112)]),
            Some(4)
        );
        assert_eq!(ends(until, &[("a", 0), ("b", 99), ("c", 999)]), None);
        assert_eq!(ends(Until::default(), &[("a\n", 0), ("\n", 999_999)]), None);
    }

    #[test]
    fn a_text_ends_before_a_line_that_stands_further_left() {
        let until = Until { indent: 2, ..Until::default() };
        // The first line goes on from another one.
        assert_eq!(
            ends(until, &[("a\n", 0), ("  b\n", 0), (" ", 0), (" c", 0), ("\n\n", 0), (" d", 0)]),
            Some(5)
        );
        assert_eq!(ends(until, &[("a\n\t\tb\n  }\n}", 0)]), Some(0));
        assert_eq!(ends(Until::default(), &[("a\nb\nc", 0)]), None);
        for (text, kept) in [
            ("a\n  b\n d", "a\n  b\n"),
            ("a\n  b\n\n  c", "a\n  b\n\n  c"),
            ("a\nb", "a\n"),
            ("a", "a"),
            ("", ""),
        ] {
            assert_eq!(until.kept(text), kept, "{text:?}");
        }
        assert_eq!(Until::default().kept("a\nb"), "a\nb");
    }
}
