//! How long a model stays that nobody uses, and how that is typed.

use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, Result};

/// How long a model stays that nobody uses.
///
/// As text it is seconds, or a duration as Go writes it, `1h30m` or `1.5s`; below zero it is forever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// As all do.
    #[default]
    Usual,
    /// As was said before.
    AsBefore,
    /// For as long.
    For(Duration),
    /// Until memory is needed.
    Forever,
}

impl Keep {
    /// For so many seconds; forever below zero, and where no process runs as long.
    pub fn seconds(seconds: f64) -> Self {
        Duration::try_from_secs_f64(seconds).map_or(Self::Forever, Self::For)
    }
}

impl FromStr for Keep {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        go_seconds(text).map(Self::seconds).ok_or_else(|| Error::Option {
            option: "keep_alive",
            got: format!("{text:?}"),
            expected: "seconds, or a duration such as 30s, 10m or 1h30m",
        })
    }
}

/// Seconds of a duration as Go writes it: `1h30m`, `1.5s`, `-1`.
fn go_seconds(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if plain { text.parse::<f64>().ok() } else { None }
    };
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if let Some(seconds) = number(rest) {
        return Some(sign * seconds);
    }
    if rest.is_empty() {
        return None;
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (amount, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == &unit[..end])?;
        sum += number(amount)? * scale;
        rest = &unit[end..];
    }
    Some(sign * sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, seconds) in [
            ("10m", 600.0),
            ("1h30m", 5400.0),
            ("1.5s", 1.5),
            ("-1", -1.0),
            ("-1s", -1.0),
            ("0", 0.0),
            ("300", 300.0),
            ("250ms", 0.25),
            ("+2h0.5m", 7230.0),
        ] {
            assert_eq!(go_seconds(text), Some(seconds), "{text}");
        }
        for text in ["", "m", "1x", "1h2", "-", "1..2s", "1e3s", "inf", "NaN", "5 m"] {
            assert_eq!(go_seconds(text), None, "{text}");
        }
    }

    #[test]
    fn below_zero_and_beyond_all_time_is_forever() {
        for (text, keep) in [
            ("10m", Keep::For(Duration::from_secs(600))),
            ("0", Keep::For(Duration::ZERO)),
            ("-1", Keep::Forever),
            ("-5m", Keep::Forever),
            ("99999999999999999999999h", Keep::Forever),
        ] {
            assert_eq!(text.parse::<Keep>().unwrap(), keep, "{text}");
        }
        let error = "soon".parse::<Keep>().unwrap_err().to_string();
        assert!(error.contains("\"soon\"") && error.contains("1h30m"), "{error}");
    }
}
