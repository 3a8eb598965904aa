//! Times as they are typed.

use std::str::FromStr;
use std::time::Duration;

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
        let time = duration(text);
        time.map(|time| Self(Some(time)))
            .ok_or_else(|| "expected a time such as 600, 30s, 10m or 1h30m, or off".to_owned())
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

/// Whole seconds, or whole numbers with units.
fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let number_of = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let ms = |number: &str, unit: u64| number.parse::<u64>().ok()?.checked_mul(unit);
    if number_of(text) == text.len() {
        return ms(text, 1000).map(Duration::from_millis);
    }
    let (mut rest, mut sum) = (text, 0_u64);
    while !rest.is_empty() {
        let (number, behind) = rest.split_at(number_of(rest));
        let end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, _) = behind.split_at(end);
        let (_, unit) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(ms(number, unit)?)?;
        rest = &behind[end..];
    }
    Some(Duration::from_millis(sum))
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
        ] {
            assert_eq!(text.parse(), Ok(Idle(Some(Duration::from_secs_f64(seconds)))), "{text}");
        }
        assert_eq!("off".parse(), Ok(Idle(None)));
        for text in ["", "-1", "+1", "1.5h", "m", "10 m", "1h30", "1d", "h1", "OFF", "18446744073709551615"] {
            assert!(text.parse::<Idle>().is_err(), "{text}");
        }
    }
}
