//! Times as they are typed.

use std::str::FromStr;
use std::time::Duration;

use backstop::models::Keep;

/// From a thousandth of a second to a day, in seconds.
pub fn seconds(text: &str) -> Result<Duration, String> {
    /// A day.
    const MOST: f64 = 86_400.0;
    text.parse()
        .ok()
        .filter(|seconds| (0.001..=MOST).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("expected seconds from 0.001 to {MOST}"))
}

/// After which time a model that nobody uses is unloaded; none is never.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Idle(pub Option<Duration>);

impl FromStr for Idle {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        match text.parse() {
            Ok(Keep::For(time)) => Ok(Self(Some(time))),
            Ok(_) => Ok(Self(None)),
            Err(_) => Err("expected a time such as 600, 30s, 10m or 1h30m, or off".to_owned()),
        }
    }
}

/// How long ago something was, as people say it.
pub fn ago(since: Duration) -> String {
    const UNITS: [(&str, u64); 6] = [
        ("year", 31_557_600),
        ("month", 2_629_800),
        ("week", 604_800),
        ("day", 86_400),
        ("hour", 3_600),
        ("minute", 60),
    ];
    let seconds = since.as_secs();
    let unit = UNITS.into_iter().map(|(unit, length)| (unit, seconds / length)).find(|(_, count)| *count > 0);
    match unit {
        None => "just now".to_owned(),
        Some((unit, 1)) => format!("1 {unit} ago"),
        Some((unit, count)) => format!("{count} {unit}s ago"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_ago_are_in_the_largest_unit() {
        for (seconds, said) in [
            (0, "just now"),
            (59, "just now"),
            (60, "1 minute ago"),
            (7_199, "1 hour ago"),
            (172_800, "2 days ago"),
            (1_209_600, "2 weeks ago"),
            (63_115_200, "2 years ago"),
        ] {
            assert_eq!(ago(Duration::from_secs(seconds)), said, "{seconds}");
        }
    }

    #[test]
    fn idle_times_are_seconds_or_have_units() {
        for (text, seconds) in [
            ("10m", 600.0),
            ("600", 600.0),
            ("1h30m", 5400.0),
            ("0", 0.0),
            ("300ms", 0.3),
            ("1h0m5s", 3605.0),
            ("1.5h", 5400.0),
        ] {
            assert_eq!(text.parse(), Ok(Idle(Some(Duration::from_secs_f64(seconds)))), "{text}");
        }
        // Ollama has it so that less than nothing is never.
        for never in ["off", "-1", "-1m"] {
            assert_eq!(never.parse(), Ok(Idle(None)), "{never}");
        }
        for text in ["", "m", "10 m", "1h30", "1d", "h1", "OFF"] {
            assert!(text.parse::<Idle>().is_err(), "{text}");
        }
    }
}
