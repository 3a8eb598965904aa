//! What memory a pattern takes to be compiled, counted before it is.
//!
//! The tree of a pattern has all of its parts at once, whatever its program's limit is: `\w` is two bytes, and its ranges take
//! 27,000.

/// What a unit stands for: a plain character's nodes.
const UNIT: usize = 256;
/// The most: 64 MiB. A published pattern takes under a fiftieth of them.
pub(super) const MOST: usize = 256 << 10;

/// Units of what was measured with `regex-syntax` 0.8 and `fancy-regex` 0.17, which takes the more.
const GROUP: usize = 2;
const QUANTIFIER: usize = 4;
const CLASS: usize = 8;
const MEMBER: usize = 2;
/// `.`, and what is as common as white space or digits.
const SET: usize = 8;
/// `\p{L}` has 677 ranges.
const PROPERTY: usize = 32;
/// A letter that stands for both of its cases, which is a class.
const FOLDED: usize = 6;

/// Refuses a translated pattern that would take more.
///
/// # Errors
/// That it does.
pub(super) fn check(translated: &str) -> Result<(), String> {
    match units(translated) > MOST {
        true => Err(format!("it would take over {} MiB to compile", (MOST * UNIT) >> 20)),
        false => Ok(()),
    }
}

/// The units of a translated pattern: what is open in it, where, was checked.
fn units(pattern: &str) -> usize {
    let (mut units, mut depth) = (0_usize, 0_usize);
    // Whether letters are folded, in each group that is open.
    let mut folds = vec![false];
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let is_folded = folds.last().copied().unwrap_or_default();
        units += match c {
            '\\' => {
                let escaped = rest.chars().next().unwrap_or_default();
                rest = &rest[escaped.len_utf8().min(rest.len())..];
                match escaped {
                    'p' | 'P' => {
                        rest = rest.split_once('}').map_or(rest, |(_, behind)| behind);
                        PROPERTY
                    }
                    's' | 'S' | 'd' | 'D' => SET,
                    _ if depth > 0 => MEMBER,
                    _ => 1,
                }
            }
            '[' => {
                depth += 1;
                CLASS
            }
            ']' if depth > 0 => {
                depth -= 1;
                1
            }
            _ if depth > 0 => MEMBER,
            '(' => {
                folds.push(is_folded);
                let end = rest.find([':', ')']).unwrap_or(0);
                if let Some(flags) = rest[..end].strip_prefix('?')
                    && flags.bytes().all(|flag| matches!(flag, b'i' | b's' | b'm' | b'-'))
                {
                    let off = flags.split_once('-').map_or("", |(_, off)| off);
                    let folded = !off.contains('i') && (is_folded || flags.contains('i'));
                    // Without a colon they are for the rest of the group around.
                    if rest[end..].starts_with(')') {
                        folds.pop();
                    }
                    folds.pop();
                    folds.push(folded);
                    rest = &rest[end + 1..];
                }
                GROUP
            }
            ')' => {
                folds.pop();
                1
            }
            '*' | '+' | '?' | '{' => QUANTIFIER,
            '.' => SET,
            _ if is_folded && c.is_alphabetic() => FOLDED,
            _ => 1,
        };
    }
    units
}

#[cfg(test)]
mod tests {
    use super::super::syntax::translate;
    use super::*;
    use crate::text::patterns;

    #[test]
    fn what_takes_memory_counts() {
        for (pattern, expected) in [
            ("ab", 2),
            (r"a\!b", 3),
            ("a*", 1 + QUANTIFIER),
            ("[ab]", CLASS + 2 * MEMBER + 1),
            (r"[\p{L}a]", CLASS + PROPERTY + MEMBER + 1),
            (r"\s.", 2 * SET),
            ("(?i:ab)c", GROUP + 2 * FOLDED + 2),
            ("(?i)a-", GROUP + FOLDED + 1),
        ] {
            assert_eq!(units(pattern), expected, "{pattern}");
        }
        let folded = |pattern: &str, letters: usize| {
            let plain = pattern.replace('i', "s");
            assert_eq!(units(pattern) - units(&plain), letters * (FOLDED - 1), "{pattern}");
        };
        folded("(?i:(?-i:a)b)a", 1);
        folded("(?i)(?:a)b", 2);
        folded("(?i:a(?:b(?s:c)))d", 3);
    }

    #[test]
    fn published_patterns_take_a_fiftieth() {
        for pattern in [
            patterns::LLAMA3,
            patterns::QWEN2,
            patterns::TEKKEN,
            patterns::GPT4O,
            patterns::GPT2,
            patterns::KIMI,
        ] {
            let translated = translate(pattern).unwrap().pattern;
            assert!(units(&translated) * 50 < MOST, "{} {pattern}", units(&translated));
        }
    }

    #[test]
    fn what_a_short_text_stands_for_is_counted_before_it_is_made() {
        let long = |unit: &str| unit.repeat((250 << 10) / unit.len());
        for pattern in [
            long(r"\w"),
            long(r"\p{L}"),
            long("[[:graph:]]"),
            long("[a]"),
            long("."),
            long(r"\d"),
            long("a+"),
            format!("[{}]", long("a")),
            format!("(?i:[{}])", long(r"\p{L}")),
            format!("(?i:{})", long("a")),
            format!("(?i:{})", long("ß")),
            format!("(?i:{})(?=b)", long("k")),
        ] {
            let error = translate(&pattern).unwrap_err();
            assert_eq!(error, "it would take over 64 MiB to compile", "{:.20}", pattern);
        }
        // Plain text as long as a pattern may be, as names of control pieces are.
        let names = "<unused>|".repeat((256 << 10) / 9);
        assert!(translate(&names[..names.len() - 1]).is_ok());
    }
}
