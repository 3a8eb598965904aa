//! Values as typed, and what they are.

use backstop::AdapterSource;
use backstop::backend::kv::KvType;
use clap::builder::{PossibleValuesParser, TypedValueParser};

pub fn kv_type() -> impl TypedValueParser<Value = KvType> {
    PossibleValuesParser::new(KvType::NAMES).try_map(|name| name.parse::<KvType>())
}

pub fn adapter(text: &str) -> Result<AdapterSource, String> {
    text.parse().map_err(|error: backstop::Error| error.to_string())
}

pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&n| n >= 1)
        .ok_or_else(|| format!("expected a whole number from 1 to {}", usize::MAX))
}

pub fn connections(text: &str) -> Result<usize, String> {
    /// More than there are ports, and than a process may have open.
    const MOST: usize = 1 << 20;
    let number = text.parse().ok().filter(|n| (1..=MOST).contains(n));
    number.ok_or_else(|| format!("expected a whole number from 1 to {MOST}"))
}

pub fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    let unit = UNITS.into_iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)));
    let (number, unit) = unit.unwrap_or((text.strip_suffix('B').unwrap_or(text), 1));
    let number = number.trim_end();
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let bytes = number.parse::<u64>().ok().filter(|_| digits).and_then(|number| number.checked_mul(unit));
    bytes.filter(|&bytes| bytes > 0).ok_or_else(|| {
        "expected a whole number of bytes, or of kB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 512MB".into()
    })
}

/// A seed; -1 is one that nobody knows beforehand.
pub fn seed(text: &str) -> Result<u64, String> {
    use std::hash::{BuildHasher, RandomState};
    if text == "-1" {
        return Ok(RandomState::new().hash_one(0));
    }
    text.parse()
        .map_err(|_| format!("expected a whole number from 0 to {}, or -1 for a random one", u64::MAX))
}

pub fn bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    parsed.ok_or_else(|| "expected a token id, = and a number".to_owned())
}

pub fn threads(text: &str) -> Result<usize, String> {
    /// Threads that the kernels' pool has at most.
    const MOST: usize = 1 << 12;
    text.parse()
        .ok()
        .filter(|n| (1..=MOST).contains(n))
        .ok_or_else(|| format!("expected a whole number from 1 to {MOST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_in_thousands_or_in_powers_of_two() {
        for (text, bytes) in [
            ("1", 1),
            ("17B", 17),
            ("512MB", 512_000_000),
            ("4GiB", 4 << 30),
            ("3 kB", 3_000),
            ("2KiB", 2_048),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "0", "0GB", "-1", "+1", "1.5GB", "4G", "GB", "1 MB MB", "18446744073709551615KiB", "1e9"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
