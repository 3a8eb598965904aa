use super::*;

/// What is shown: each character with the parameters of the sequence that is on.
fn shown(styled: &str) -> Vec<(char, String)> {
    let (mut on, mut all) = (String::new(), Vec::new());
    let mut rest = styled;
    while let Some(c) = rest.chars().next() {
        if let Some(sequence) = rest.strip_prefix("\x1b[") {
            let (code, after) = sequence.split_once('m').unwrap();
            on = if code == "0" { String::new() } else { code.to_owned() };
            rest = after;
            continue;
        }
        all.push((c, on.clone()));
        rest = &rest[c.len_utf8()..];
    }
    assert_eq!(on, "", "a style is left on: {styled:?}");
    all
}

/// The text in parts.
fn streamed<'a>(parts: impl IntoIterator<Item = &'a str>) -> Vec<(char, String)> {
    let mut markdown = Markdown::default();
    let mut all = Vec::new();
    let mut taken = 0;
    for part in parts {
        // No style is on between two parts, where a thought or an error may be written.
        all.extend(shown(&markdown.push(part)));
        taken += part.chars().count();
        assert!(markdown.held() <= MOST_HELD, "{} bytes are held back", markdown.held());
        assert!(taken - all.len() <= markdown.held(), "a character is lost");
    }
    all.extend(shown(&markdown.finish()));
    all
}

fn text(shown: &[(char, String)]) -> String {
    shown.iter().map(|(c, _)| c).collect()
}

/// Runs of one style: `[bold]`, and so on.
fn runs(whole: &str) -> Vec<(String, String)> {
    let mut runs: Vec<(String, String)> = Vec::new();
    for (c, style) in streamed([whole]) {
        match runs.last_mut() {
            Some((text, last)) if *last == style => text.push(c),
            _ => runs.push((c.to_string(), style)),
        }
    }
    runs
}

fn styled(whole: &str, expected: &[(&str, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    assert_eq!(runs(whole), expected, "{whole:?}");
}

/// All ways to cut a text into parts give the same characters in the same styles.
fn all_cuttings(whole: &str) {
    let expected = streamed([whole]);
    assert_eq!(text(&expected), whole);
    let borders: Vec<usize> = whole.char_indices().map(|(at, _)| at).skip(1).collect();
    assert!(borders.len() <= 12, "{whole:?} is too long");
    for mask in 0..1_u32 << borders.len() {
        let chosen = borders.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1).map(|(_, &at)| at);
        let (mut parts, mut from) = (Vec::new(), 0);
        for at in chosen.chain([whole.len()]) {
            parts.push(&whole[from..at]);
            from = at;
        }
        assert_eq!(streamed(parts.iter().copied()), expected, "{parts:?}");
    }
}

#[test]
fn lines_have_styles() {
    styled("# A *b* c\nd", &[("# A ", "1;36"), ("*b*", "1;3;36"), (" c", "1;36"), ("\nd", "")]);
    styled("#no\n####### no", &[("#no\n####### no", "")]);
    styled(
        "- a\n  12. b\n> c",
        &[("-", "36"), (" a\n", ""), ("  12.", "36"), (" b\n", ""), (">", "36"), (" c", "")],
    );
    styled("-a 1.b", &[("-a 1.b", "")]);
    styled(
        "a **b** *c* ***d***",
        &[("a ", ""), ("**b**", "1"), (" ", ""), ("*c*", "3"), (" ", ""), ("***d***", "1;3")],
    );
    styled("**a *b* c**", &[("**a ", "1"), ("*b*", "1;3"), (" c**", "1")]);
    styled("2 * 3 ** 4 snake_case_name __init__", &[("2 * 3 ** 4 snake_case_name ", ""), ("__init__", "1")]);
    styled("\\*a\\* \\`b", &[("\\*a\\* \\`b", "")]);
    styled("`a*b*` ``c`d`` e", &[("`a*b*`", "36"), (" ", ""), ("``c`d``", "36"), (" e", "")]);
    // What is never closed ends with its line.
    styled("**a\nb `c\nd", &[("**a", "1"), ("\nb ", ""), ("`c", "36"), ("\nd", "")]);
}

#[test]
fn code_has_colours() {
    styled(
        "```rust\nlet x = 'a'; // 1\n```\nb",
        &[
            ("```rust", "2"),
            ("\n", ""),
            ("let", "35"),
            (" x = ", ""),
            ("'a'", "32"),
            ("; ", ""),
            ("// 1", "2"),
            ("\n", ""),
            ("```", "2"),
            ("\nb", ""),
        ],
    );
    styled(
        "~~~py\nif \"a\\\"b\": #c\n  f(1.5)\n~~~",
        &[
            ("~~~py", "2"),
            ("\n", ""),
            ("if", "35"),
            (" ", ""),
            ("\"a\\\"b\"", "32"),
            (": ", ""),
            ("#c", "2"),
            ("\n  f(", ""),
            ("1", "33"),
            (".", ""),
            ("5", "33"),
            (")\n", ""),
            ("~~~", "2"),
        ],
    );
    // A language that is not known is plain, and marks within code are none.
    styled("````x\n**a** `b`\n```\n````", &[("````x", "2"), ("\n**a** `b`\n```\n", ""), ("````", "2")]);
    styled(
        "```rust\nfn f<'a>(r: r#\"b\"c\"#)",
        &[("```rust", "2"), ("\n", ""), ("fn", "35"), (" f<'a>(r: ", ""), ("r#\"b\"c\"#", "32"), (")", "")],
    );
    styled(
        "```sql\nSELECT 'a\nb' -- c",
        &[
            ("```sql", "2"),
            ("\n", ""),
            ("SELECT", "35"),
            (" ", ""),
            ("'a", "32"),
            ("\n", ""),
            ("b'", "32"),
            (" ", ""),
            ("-- c", "2"),
        ],
    );
    styled(
        "```diff\n+a\n-b\n c\n",
        &[("```diff", "2"), ("\n", ""), ("+a", "32"), ("\n", ""), ("-b", "31"), ("\n c\n", "")],
    );
    styled(
        "```html\n<!-- a --><b c=\"d\">e</b>",
        &[
            ("```html", "2"),
            ("\n", ""),
            ("<!-- a -->", "2"),
            ("<", ""),
            ("b", "35"),
            (" c=", ""),
            ("\"d\"", "32"),
            (">e</", ""),
            ("b", "35"),
            (">", ""),
        ],
    );
    styled(
        "```c\n/* a\n*/ int b",
        &[
            ("```c", "2"),
            ("\n", ""),
            ("/* a", "2"),
            ("\n", ""),
            ("*/", "2"),
            (" ", ""),
            ("int", "35"),
            (" b", ""),
        ],
    );
}

#[test]
fn no_cutting_changes_a_character_or_its_style() {
    for whole in [
        "# a *b*\n**c**",
        "**a _b_ c**",
        "`a` ``b`c``",
        "- a\n1. b\n> c",
        "\\*a\\*b*c*",
        "```\na\n```\nb",
        "```c\nif//b\n",
        "```rs\n'a''b'",
        "~~~py\n'''\n''",
        "  ```\n  a\n``",
        "***a*** _b_c_",
        "**\n*\n__\n`\n#",
        "```a`b``` c",
        "č*ž*\t`š`\n",
        "12345678901.",
        "```go\n\"\\\"a\n",
        "####### # #",
    ] {
        all_cuttings(whole);
    }
}

#[test]
fn random_texts_come_out_whole() {
    const WORDS: [&str; 40] = [
        "*", "**", "_", "`", "``", "```", "~~~", "\n", "\n", " ", " ", "a", "if", "1.", "- ", "# ", "> ",
        "\\", "\"", "'", "\"\"\"", "//", "/*", "*/", "rust", "py", "html", "<", "/", "b>", "<!--", "-->",
        "č", "\t", "r#\"", "\"#", "--", "sql", "+", "diff",
    ];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as usize % below
    };
    for _ in 0..3_000 {
        let fence = ["", "", "```rust\n", "~~~py\n", "```html\n", "```sh\n"][draw(6)];
        let whole = fence.to_owned() + &(0..draw(40)).map(|_| WORDS[draw(40)]).collect::<String>();
        let expected = streamed([&*whole]);
        assert_eq!(text(&expected), whole);
        let single: Vec<String> = whole.chars().map(String::from).collect();
        assert_eq!(streamed(single.iter().map(|c| &**c)), expected, "{whole:?}");
        let mut cut = whole.len().min(draw(12));
        let (mut parts, mut rest) = (Vec::new(), &*whole);
        while !rest.is_empty() {
            while !rest.is_char_boundary(cut) {
                cut -= 1;
            }
            let (part, after) = rest.split_at(cut);
            parts.push(part);
            rest = after;
            cut = rest.len().min(1 + draw(12));
        }
        assert_eq!(streamed(parts.iter().copied()), expected, "{parts:?}");
    }
}

#[test]
fn long_marks_are_not_held_back() {
    for long in ["`", "*", "_", "#", " ", "~", "1", "-", "a", "\"", "/", "\\", "č", "```"] {
        for fence in ["", "```rust\n", "~~~\n", "a "] {
            let whole = fence.to_owned() + &long.repeat(2_000);
            let single: Vec<String> = whole.chars().map(String::from).collect();
            assert_eq!(text(&streamed(single.iter().map(|c| &**c))), whole, "{long:?} after {fence:?}");
        }
    }
}

#[test]
fn a_new_text_begins_plain() {
    let mut markdown = Markdown::default();
    markdown.push("**a `b\n```rust\nlet");
    markdown.finish();
    assert_eq!(markdown.push("let a\n") + &markdown.finish(), "let a\n");
}
