//! The least number of tokens that a text may have, told before it is encoded.

use serde_json::{Value, json};
use tokenizers::{NormalizedString, Normalizer as _};

use super::{byte_level_json, from_json, sentence_json};
use crate::text::Tokenizer;
use crate::text::steps::Normalizers;

fn with(mut file: Value, at: &str, value: Value) -> Tokenizer {
    *file.pointer_mut(at).unwrap() = value;
    from_json(&file, 512).unwrap()
}

/// Bytes of which two tokens are the least, less one: those that one token may stand for.
fn longest(tokenizer: &Tokenizer) -> usize {
    (1..10_000).find(|&bytes| tokenizer.least_tokens(bytes + 1) == 2).unwrap_or(0)
}

#[test]
fn the_longest_token_is_known_where_nothing_drops_text() {
    // `▁▁▁▁`, each of three bytes.
    let sentence = from_json(&sentence_json(), 512).unwrap();
    assert_eq!(longest(&sentence), 12);
    assert_eq!(
        (sentence.least_tokens(0), sentence.least_tokens(1), sentence.least_tokens(1201)),
        (0, 1, 101)
    );
    // `<|end|>`; then `ĠĠĠĠ`, four bytes, of up to eight that NFC makes one of.
    let bytes = |normalizer: Value| with(byte_level_json(), "/normalizer", normalizer);
    assert_eq!(longest(&bytes(Value::Null)), 7);
    for (normalizer, wanted) in [
        (json!({ "type": "NFC" }), 32),
        (json!({ "type": "NFKD" }), 32),
        (json!({ "type": "Lowercase" }), 16),
        (json!({ "type": "Replace", "pattern": { "String": "abc" }, "content": "x" }), 12),
        (json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }, { "type": "Lowercase" }] }), 128),
    ] {
        assert_eq!(longest(&bytes(normalizer.clone())), wanted, "{normalizer}");
    }
    // A character that is not known is a token of its own.
    let mut unknown = sentence_json();
    unknown["model"]["byte_fallback"] = false.into();
    assert_eq!(longest(&with(unknown, "/model/fuse_unk", false.into())), 12);
    // A token that is found in what the normalizer made: six times longer by NFC and byte-level characters, and eight times shorter.
    assert_eq!(longest(&with(byte_level_json(), "/added_tokens/0/normalized", true.into())), 7 * 6 * 8);
}

#[test]
fn a_token_that_may_stand_for_any_text_has_no_bound() {
    let replaced =
        |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
    let split =
        json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "Removed", "invert": false });
    for (at, value) in [
        ("/normalizer", json!({ "type": "Strip", "strip_left": true, "strip_right": true })),
        ("/normalizer", json!({ "type": "StripAccents" })),
        ("/normalizer", json!({ "type": "Nmt" })),
        ("/normalizer", replaced(json!({ "String": "a" }), "")),
        ("/normalizer", replaced(json!({ "Regex": " +" }), " ")),
        (
            "/normalizer",
            json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }, { "type": "StripAccents" }] }),
        ),
        ("/pre_tokenizer", json!({ "type": "Whitespace" })),
        ("/pre_tokenizer", json!({ "type": "Sequence", "pretokenizers": [split] })),
        ("/pre_tokenizer", Value::Null),
        ("/added_tokens/0/lstrip", true.into()),
        ("/added_tokens/0/rstrip", true.into()),
        ("/model/end_of_word_suffix", "</w>".into()),
    ] {
        assert_eq!(with(byte_level_json(), at, value.clone()).least_tokens(1 << 30), 0, "{at} {value}");
    }
    // Without a token for each byte, characters are dropped, or any number of them is one `<unk>`.
    let mut lacks = byte_level_json();
    let vocab = lacks["model"]["vocab"].as_object_mut().unwrap();
    let id = vocab.remove("Z").unwrap();
    vocab.insert("ZZ".into(), id);
    assert_eq!(from_json(&lacks, 512).unwrap().least_tokens(1 << 30), 0);
    let unknown = with(sentence_json(), "/model/byte_fallback", false.into());
    assert_eq!(unknown.least_tokens(1 << 30), 0);
    assert_eq!(unknown.encode(&"é".repeat(1000)).unwrap().len(), 3);
}

/// No text has fewer tokens than are told: of spaces, of repeats, and of characters that normal forms put together.
#[test]
fn no_text_has_fewer_tokens() {
    let texts = [
        "a",
        " ",
        "    ",
        "aaaa",
        "\u{1FBE}\u{308}\u{301}",
        "\u{1100}\u{1161}\u{11A8}",
        "\u{212A}",
        "u\u{308}\u{304}",
        "\u{1D414}\u{308}\u{304}",
        "\u{1F77}\u{308}",
        "\u{FB03}",
        "\u{2F800}",
        "é",
        "\u{0}",
        "<|end|>",
        "<s>",
    ];
    let forms = ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"].map(|form| json!({ "type": form }));
    let mut tokenizers = vec![from_json(&sentence_json(), 512).unwrap()];
    tokenizers.extend(forms.map(|form| with(byte_level_json(), "/normalizer", form)));
    for tokenizer in &tokenizers {
        for (i, text) in texts.iter().enumerate() {
            for other in &texts[i..] {
                let text = [*text, *other].concat().repeat(64);
                let (least, got) =
                    (tokenizer.least_tokens(text.len()), tokenizer.encode(&text).unwrap().len());
                assert!(0 < least && least <= got, "{text:?}: {least} of {got}");
            }
        }
    }
}

/// The factors of the normal forms hold for each character.
#[test]
fn no_character_shrinks_further() {
    for (form, factor) in [("NFC", 4), ("NFD", 4), ("NFKC", 4), ("NFKD", 4), ("Lowercase", 4)] {
        let normalizers = Normalizers::from_json(&json!({ "type": form })).unwrap().unwrap();
        for c in (0..0x3_0000).filter_map(char::from_u32) {
            let mut text = NormalizedString::from(c.to_string());
            normalizers.normalize(&mut text).unwrap();
            assert!(text.get().len() * factor >= c.len_utf8(), "{form} {c:?}");
        }
    }
}
