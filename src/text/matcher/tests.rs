//! What patterns find, against backtracking, and within what.

use tokenizers::pattern::Pattern;

use super::*;
use crate::text::patterns;

/// Matches with their texts between bars.
fn pieces(matcher: &Matcher, text: &str) -> String {
    let pieces = matcher.find_matches(text).unwrap();
    pieces
        .iter()
        .map(|&((start, end), found)| format!("{}{}", if found { '|' } else { '·' }, &text[start..end]))
        .collect()
}

/// A text of `len` characters of all kinds that patterns tell apart.
fn jumble(len: usize, mut seed: u64) -> String {
    const KINDS: [&str; 14] =
        ["a", "B", "é", "中", "7", "٣", " ", "  ", "\n", "\r\n", "\u{a0}", "'", "!", "\u{301}"];
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    (0..len).map(|_| KINDS[(next() % KINDS.len() as u64) as usize]).collect()
}

#[test]
fn published_patterns_find_what_backtracking_finds() {
    for pattern in
        [patterns::LLAMA3, patterns::QWEN2, patterns::TEKKEN, patterns::GPT4O, patterns::GPT2, patterns::KIMI]
    {
        let matcher = Matcher::regex(pattern).unwrap();
        assert!(matches!(*matcher.0, Engine::Automaton(_)), "{pattern}");
        let other = Matcher(Arc::new(Engine::Backtracking(fancy_regex::Regex::new(pattern).unwrap())));
        for seed in 1..200 {
            let text = jumble(1 + seed % 61, 0x9E37_79B9 * seed as u64);
            assert_eq!(pieces(&matcher, &text), pieces(&other, &text), "{pattern} on {text:?}");
        }
        let text = "I'LL say 12345 times:   中文!!\n\n  x \r\n\t y  ";
        assert_eq!(pieces(&matcher, text), pieces(&other, text));
    }
}

#[test]
fn white_space_keeps_its_last_character_for_the_word() {
    let matcher = Matcher::regex(patterns::GPT2).unwrap();
    assert_eq!(pieces(&matcher, "a   b \u{3000}\u{3000}c  "), "|a|  | b| \u{3000}|\u{3000}|c|  ");
    assert_eq!(pieces(&matcher, " "), "| ");
    let single = Matcher::regex(r"\S+|\s+(?!\S)|\s").unwrap();
    assert_eq!(pieces(&single, "a   b"), "|a|  | |b");
}

#[test]
fn matches_among_other_text() {
    let of = |pattern: &str| Matcher::regex(pattern).unwrap();
    assert_eq!(pieces(&of(r"\p{N}{1,3}"), "ab1234c5"), "·ab|123|4·c|5");
    assert_eq!(pieces(&of(r"\s+$"), "a  b  \n c "), "·a  b|  ·\n c| ");
    assert_eq!(pieces(&of("(?i:ab|a)"), "xABaxb"), "·x|AB|a·xb");
    assert_eq!(pieces(&of("b*"), "abba"), "|·a|bb·a|");
    assert_eq!(pieces(&of("a|ab"), "ab"), "|a·b");
    assert_eq!(pieces(&of(r"(?<=a)b|\bc"), "ab c"), "·a|b· |c");
    let text = Matcher::from_json(&serde_json::json!({"String": "aa"})).unwrap();
    assert_eq!(pieces(&text, "aaab"), "|aa·ab");
    assert_eq!(pieces(&Matcher::from_json(&serde_json::json!({"String": ""})).unwrap(), "ab"), "·ab");
}

#[test]
fn steps_are_counted() {
    // Every character looks at the rest of the text, once.
    let matcher = Matcher::regex("a*b|a").unwrap();
    let found = |matcher: &Matcher, text: &str| matcher.find_matches(text);
    assert_eq!(found(&matcher, &"a".repeat(5_000)).unwrap().len(), 5_000);
    let error = found(&matcher, &"a".repeat(100_000)).unwrap_err().to_string();
    assert_eq!(error, "a text of 100000 bytes takes a pattern more steps than any honest one");
    let matcher = Matcher::regex("(?:a+(?=a|b))+c").unwrap();
    let error = found(&matcher, &"a".repeat(64)).unwrap_err().to_string();
    assert!(error.contains("Max limit for backtracking count exceeded"), "{error}");
    // What is looked at is no step: the time that it takes counts.
    let regex = fancy_regex::Regex::new("a(?=a*[bc])|a").unwrap();
    let little = (Duration::from_millis(50), Duration::ZERO);
    let error = backtrack(&regex, &"a".repeat(40_000), little, |_, _| {}).unwrap_err();
    assert_eq!(error, "a text of 40000 bytes takes a pattern more steps than any honest one");
}

#[test]
fn a_pattern_with_look_around_takes_a_long_text() {
    let matcher = Matcher::regex(r"(?<!\d)(?>\d+)\b").unwrap();
    let text = "a".repeat(2 << 20) + " 12";
    let found = Pattern::find_matches(&&matcher, &text).unwrap();
    assert_eq!(found[1..], [((text.len() - 2, text.len()), true)]);
}

#[test]
fn folded_letters_are_compiled_at_once() {
    let of = |count: usize| Matcher::regex(&format!("(?i:{})", "ß".repeat(count)));
    assert_eq!(pieces(&of(1_000).unwrap(), "ß"), "·ß");
    let error = of(20_000).err().unwrap();
    assert!(error.ends_with("ßßß\": it would take over 64 MiB to compile"), "{error}");
}

#[test]
fn what_is_too_large_is_refused() {
    let error = |pattern: &str| Matcher::regex(pattern).err().unwrap();
    let large = error(r"(?:\p{L}{1000}){1000}");
    assert!(large.starts_with("pattern \"(?:\\\\p{L}{1000}){1000}\": "), "{large}");
    assert!(error(r"\p{Nonsense}").contains("Unicode property not found"), "{}", error(r"\p{Nonsense}"));
    assert!(error(&"[".repeat(3600)).ends_with("classes over 32 deep"));
}

/// `tools/fixtures/patterns.py` asked `tokenizers`.
#[test]
fn patterns_find_what_oniguruma_finds() {
    let fixture: Value =
        serde_json::from_str(include_str!("../../../tests/fixtures/text/patterns.json")).unwrap();
    let found = fixture["found"].as_array().unwrap();
    assert!(found.len() > 300, "{}", found.len());
    let of = |row: &Value, i: usize| row[i].as_str().unwrap().to_owned();
    let mut wrong = Vec::new();
    for row in found {
        let (pattern, text, expected) = (of(row, 0), of(row, 1), of(row, 2));
        let matcher = match Matcher::regex(&pattern) {
            Ok(matcher) => matcher,
            Err(error) => {
                wrong.push(error);
                continue;
            }
        };
        // An empty match cuts a text and takes nothing of it: the other side shows none.
        let pieces = (&matcher).find_matches(&text).unwrap();
        let pieces = pieces.iter().filter(|((start, end), _)| start < end);
        let got: String = pieces
            .map(|&((start, end), found)| format!("{}{}", if found { '|' } else { '·' }, &text[start..end]))
            .collect();
        if got != expected {
            wrong.push(format!("{pattern} on {text:?}: {got:?}, expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), found.len(), wrong.join("\n"));
}

#[test]
fn posix_classes_have_the_members_that_oniguruma_gives_them() {
    let fixture: Value =
        serde_json::from_str(include_str!("../../../tests/fixtures/text/patterns.json")).unwrap();
    let all: String = ('\0'..=char::MAX).collect();
    for (name, expected) in fixture["classes"].as_object().unwrap() {
        let matcher = Matcher::regex(&format!("[[:{name}:]]")).unwrap();
        let (mut count, mut sum) = (0_u64, 0_u64);
        let found = matcher.each(&all, |start, _| {
            count += 1;
            sum += u64::from(u32::from(all[start..].chars().next().unwrap()));
        });
        found.unwrap();
        assert_eq!(serde_json::json!([count, sum]), *expected, "{name}");
    }
}
