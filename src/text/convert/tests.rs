use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tempfile::TempDir;

use super::proto::Model;
use super::ranks::Ranks;
use crate::Result;
use crate::text::{Specials, Tokenizer};

/// A directory of these files.
fn dir(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn load(files: &[(&str, Vec<u8>)]) -> Result<Tokenizer> {
    let dir = dir(files);
    Tokenizer::open(dir.path(), 1 << 20).map(|tokenizer| tokenizer.expect("a vocabulary"))
}

/// A text's ids with what is put around it; what looks like a special token is text.
fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_with(text, Specials { add: true, parse: false }).unwrap()
}

/// The error names the file, and says this.
#[track_caller]
fn refused(files: &[(&str, Vec<u8>)], file: &str, what: &str) {
    let dir = dir(files);
    let error = Tokenizer::open(dir.path(), 1 << 20).unwrap_err().to_string();
    let path = dir.path().join(file).display().to_string();
    assert!(error.starts_with(&path) && error.contains(what), "{error}\nexpected {file} and {what}");
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn piece(text: &[u8], score: f32, kind: u64) -> Vec<u8> {
    let score = [varint(2 << 3 | 5), score.to_le_bytes().to_vec()].concat();
    bytes(1, &[bytes(1, text), score, number(3, kind)].concat())
}

/// `▁ab` of `▁`, `a`, `b` and `ab`; a BPE model, but for what `more` says after it.
fn model(more: &[u8]) -> Vec<u8> {
    let normal = [("▁ab", -1.0), ("ab", 0.0), ("▁", -2.0), ("a", -3.0), ("b", -4.0)];
    let mut out = [piece(b"<unk>", 0.0, 2), piece(b"<s>", 0.0, 3), piece(b"</s>", 0.0, 3)].concat();
    for (text, score) in normal {
        out.extend(piece(text.as_bytes(), score, 1));
    }
    out.extend(bytes(2, &number(3, 2)));
    out.extend(bytes(3, &number(4, 0)));
    out.extend(more);
    out
}

#[test]
fn sentencepiece_is_read() {
    let tokenizer = load(&[("tokenizer.model", model(&[]))]).unwrap();
    assert_eq!(ids(&tokenizer, "ab"), [1, 3]);
    assert_eq!(ids(&tokenizer, " aba"), [1, 5, 3, 6]);
    assert_eq!(ids(&tokenizer, "acd"), [1, 5, 6, 0], "unknown characters are one token");
    assert_eq!(ids(&tokenizer, "<s>"), [1, 5, 0], "a control piece is in no text");
    assert_eq!(tokenizer.encode("ab<s>").unwrap(), [1, 3, 1], "but where it is asked for");
    assert_eq!(tokenizer.eos(), Some(2));
    assert_eq!(tokenizer.decode(&[1, 3, 4, 5, 6]).unwrap(), "abab a");
    let config = json!({"add_bos_token": false, "add_eos_token": true}).to_string();
    let files = [("tokenizer.model", model(&[])), ("tokenizer_config.json", config.into())];
    let tokenizer = load(&files).unwrap();
    assert_eq!(ids(&tokenizer, "ab"), [3, 2]);
}

#[test]
fn user_defined_pieces_are_found_whole_and_control_pieces_never() {
    let tokenizer = load(&[("tokenizer.model", model(&piece(b"[x]", 0.0, 4)))]).unwrap();
    assert_eq!(ids(&tokenizer, "a[x]b"), [1, 5, 6, 8, 7]);
    assert_eq!(ids(&tokenizer, "[x]ab"), [1, 5, 8, 4]);
    assert_eq!(ids(&tokenizer, "[x]<s>[x]"), [1, 5, 8, 0, 0, 8]);
    // Without a space in front they are added tokens.
    let more = [piece(b"[x]", 0.0, 4), bytes(3, &number(3, 0))].concat();
    let tokenizer = load(&[("tokenizer.model", model(&more))]).unwrap();
    assert_eq!(ids(&tokenizer, "[x]ab"), [1, 8, 4]);
}

#[test]
fn a_cut_message_is_refused_at_every_byte_or_read() {
    let whole = model(&piece(b"[x]", 0.0, 4));
    for end in 0..whole.len() {
        let cut = &whole[..end];
        let read = Model::read(cut);
        let dir = dir(&[("tokenizer.model", cut.to_vec())]);
        match Tokenizer::open(dir.path(), 1 << 20) {
            // Some fields end here.
            Ok(_) => assert!(read.is_ok(), "{end}"),
            Err(error) => assert!(error.to_string().contains("tokenizer.model: "), "{end}: {error}"),
        }
    }
}

#[test]
fn hostile_messages_are_refused() {
    let refused =
        |more: &[u8], what: &str| refused(&[("tokenizer.model", model(more))], "tokenizer.model", what);
    let long = [varint(1 << 3 | 2), varint(u64::MAX)].concat();
    refused(&long, "18446744073709551615 bytes are named, 0 are left");
    refused(&[0x0A, 0x80], "1 bytes are named, 0 are left");
    refused(&[0x08; 1], "1 bytes are named");
    refused(&[&[0x30][..], &[0xFF; 11]].concat(), "an integer is longer than 10 bytes");
    refused(&[0x33], "field 6 has wire type 3");
    refused(&[0x02, 0x00], "a field has number 0");
    refused(&number(1, 5), "pieces[8] is an integer, expected bytes");
    refused(&bytes(1, &number(1, 5)), "pieces[8].piece is an integer, expected bytes");
    refused(&bytes(1, &bytes(2, b"abcd")), "pieces[8].score is bytes, expected a number of 4 bytes");
    refused(&bytes(1, &[]), "pieces[8].piece is \"\"");
    refused(&piece(b"\xFF", 0.0, 1), "pieces[8].piece: not UTF-8");
    refused(&piece(b"x", f32::NAN, 1), "pieces[8].score is NaN");
    refused(&piece(b"x", 0.0, 7), "pieces[8].type is 7, expected 1 to 6");
    refused(&piece(b"x", 0.0, 5), "pieces[8].type is 5 (UNUSED)");
    refused(&piece(b"ab", -7.0, 1), "pieces[8] is \"ab\", expected another text than pieces[4]");
    refused(&piece(b"x", 0.0, 2), "pieces 0 and 8 have type 2 (UNKNOWN)");
    refused(&piece(b"ba", -1.0, 1), "has the score -1 of pieces[3]");
    refused(&piece("a".repeat(300).as_bytes(), -9.0, 1), "expected at most 256 characters");
    refused(&bytes(2, &number(3, 3)), "trainer_spec.model_type is 3, expected 1 (UNIGRAM) or 2 (BPE)");
    refused(&bytes(2, &number(24, 1)), "trainer_spec.treat_whitespace_as_suffix");
    refused(&bytes(2, &number(35, 1)), "no piece of type 6 (BYTE) is <0x00>");
    refused(&bytes(3, &number(5, 0)), "normalizer_spec.escape_whitespaces");
    refused(&bytes(5, &bytes(2, b"x")), "denormalizer_spec.precompiled_charsmap");
    refused(
        &bytes(3, &bytes(2, b"x")),
        "normalizer_spec.precompiled_charsmap is there, which has no exact form here",
    );
    let spaces = [bytes(2, &number(3, 1)), bytes(3, &number(4, 0))].concat();
    refused(
        &spaces,
        "normalizer_spec.remove_extra_whitespaces is false beside trainer_spec.model_type UNIGRAM",
    );
    let many: Vec<u8> = (0..300).flat_map(|i| piece(format!("[{i}]").as_bytes(), 0.0, 4)).collect();
    refused(&many, "300 pieces are user-defined beside add_dummy_prefix");
}

#[test]
fn unigrams_that_would_become_others_are_refused() {
    let unigram = [bytes(2, &number(3, 1)), bytes(3, &number(4, 1))].concat();
    let refused = |more: &[u8], what: &str| {
        let more = [&unigram[..], more].concat();
        refused(&[("tokenizer.model", model(&more))], "tokenizer.model", what);
    };
    refused(&piece(b"ax", -5.0, 1), "pieces[8] is \"ax\", and no piece is its character 'x'");
    refused(&piece(b"x", 1.0, 1), "pieces[8].score is 1, expected a logarithm");
    // `<s>` has no character that the vocabulary has: SentencePiece would find them unknown.
    refused(&[], "no piece is one of its characters");
    let letters: Vec<u8> =
        ["<", ">", "s", "u", "n", "k", "/"].iter().flat_map(|text| piece(text.as_bytes(), -9.0, 1)).collect();
    let tokenizer = load(&[("tokenizer.model", model(&[unigram, letters].concat()))]).unwrap();
    assert_eq!(ids(&tokenizer, "ab"), [1, 3]);
    assert_eq!(ids(&tokenizer, "a<s>"), [1, 5, 6, 8, 10, 9], "a control piece is in no text");
}

#[test]
fn a_class_that_is_not_known_is_refused() {
    for (file, bytes) in [("tokenizer.model", model(&[])), ("tiktoken.model", ranks(&[]))] {
        let config = json!({"tokenizer_class": "XLMRobertaTokenizerFast"}).to_string();
        let files = [(file, bytes), ("tokenizer_config.json", config.into())];
        refused(&files, "tokenizer_config.json", "tokenizer_class is \"XLMRobertaTokenizer\"");
    }
}

#[test]
fn tokens_of_the_configuration_are_checked() {
    let refused = |config: serde_json::Value, file: &str, what: &str| {
        let files = [("tokenizer.model", model(&[])), ("tokenizer_config.json", config.to_string().into())];
        refused(&files, file, what);
    };
    let config = "tokenizer_config.json";
    refused(json!({"added_tokens_decoder": 5}), config, "added_tokens_decoder is 5");
    refused(json!({"added_tokens_decoder": {"x": {}}}), config, "added_tokens_decoder.x is \"x\"");
    refused(json!({"added_tokens_decoder": {"4294967295": {}}}), config, "expected an id below");
    refused(json!({"added_tokens_decoder": {"8": 1}}), config, "added_tokens_decoder.8 is 1");
    let token = |content: &str| json!({"content": content, "special": true});
    let twice = json!({"8": token("x"), "9": token("x")});
    refused(json!({"added_tokens_decoder": twice}), config, "expected another text");
    refused(json!({"legacy": 1}), config, "legacy is 1, expected true or false");
    refused(json!({"bos_token": "none", "add_bos_token": true}), config, "no token is its bos_token");
    // A hole after the vocabulary would give the tokens other ids.
    refused(json!({"added_tokens_decoder": {"9": token("x")}}), "tokenizer.model", "\"x\" has id 9");
    refused(json!({"added_tokens_decoder": {"4": token("▁")}}), "tokenizer.model", "another text than");
}

/// tiktoken's file of all bytes, and these tokens after them.
fn ranks(more: &[&[u8]]) -> Vec<u8> {
    let single = (0..=255u8).map(|byte| vec![byte]);
    let tokens = single.chain(more.iter().map(|token| token.to_vec()));
    let lines = tokens.enumerate().map(|(rank, token)| format!("{} {rank}\n", STANDARD.encode(token)));
    lines.collect::<String>().into_bytes()
}

const ADDED: &str = r#"{"bos_token": "<|a|>", "add_bos_token": true,
    "added_tokens_decoder": {"258": {"content": "<|a|>", "special": true}, "260": {"content": "<|b|>", "special": true}}}"#;

#[test]
fn tiktoken_is_read() {
    for name in ["tokenizer.model", "tiktoken.model"] {
        let files = [(name, ranks(&[b"he", b"hey"])), ("tokenizer_config.json", ADDED.into())];
        let tokenizer = load(&files).unwrap();
        assert_eq!(ids(&tokenizer, "hey\n"), [258, 257, 10]);
        assert_eq!(tokenizer.token_id("<|reserved_token_259|>"), Some(259));
        assert_eq!(tokenizer.token_id("<|b|>"), Some(260));
    }
}

#[test]
fn hostile_ranks_are_refused() {
    let whole = ranks(&[b"he"]);
    let refused = |ranks: &[u8], what: &str| {
        let files = [("tiktoken.model", ranks.to_vec()), ("tokenizer_config.json", ADDED.into())];
        refused(&files, "tiktoken.model", what);
    };
    refused(b"", "no token is the byte 0x00");
    refused(&whole[7..], "line 1: rank 1, expected 0");
    refused(&[&whole[..], b"!!!! 257\n"].concat(), "line 258 is \"!!!! 257\", expected base64");
    refused(&[&whole[..], b"aGV5\n"].concat(), "line 258 is \"aGV5\"");
    refused(&[&whole[..], b"aGV5 -1\n"].concat(), "line 258 is");
    refused(&[&whole[..], b"aGV5 99999999999999999999999\n"].concat(), "line 258 is");
    refused(&[&whole[..], b"aGV5 300\n"].concat(), "line 258: rank 300, expected 257");
    refused(&[&whole[..], b"aGU= 257\n"].concat(), "ranks 256 and 257 have one token, \"he\"");
    refused(&[&whole[..], b" 257\n"].concat(), "the token of rank 257 is empty");
    refused(&[&whole[..], b"\xFF 257\n"].concat(), "line 258 is");
    for end in 0..whole.len() {
        let dir = dir(&[("tiktoken.model", whole[..end].to_vec())]);
        assert!(Tokenizer::open(dir.path(), 1 << 20).is_err(), "without special tokens: {end}");
    }
}

/// A `tekken.json` of all bytes and `he`, with these changes.
fn tekken(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let single = (0..=255u8).map(|byte| vec![byte]).chain([b"he".to_vec(), b"cut".to_vec()]);
    let vocab: Vec<_> = single
        .enumerate()
        .map(|(rank, token)| json!({"rank": rank, "token_bytes": STANDARD.encode(token), "token_str": null}))
        .collect();
    let special: Vec<_> = ["<unk>", "<s>", "</s>"]
        .iter()
        .enumerate()
        .map(|(rank, text)| json!({"rank": rank, "token_str": text, "is_control": true}))
        .collect();
    let mut file = json!({
        "config": {
            "pattern": r"\s+|\S+",
            "num_vocab_tokens": 258,
            "default_vocab_size": 262,
            "default_num_special_tokens": 5,
            "version": "v11",
        },
        "vocab": vocab,
        "special_tokens": special,
    });
    change(&mut file);
    file.to_string().into_bytes()
}

#[test]
fn tekken_is_read_before_what_is_beside_it() {
    let files = [("tekken.json", tekken(|_| ())), ("tokenizer.model", b"not read".to_vec())];
    let tokenizer = load(&files).unwrap();
    assert_eq!(ids(&tokenizer, "he cut")[..3], [1, 261, 37]);
    assert_eq!(tokenizer.token_id("<SPECIAL_4>"), Some(4));
    assert_eq!(tokenizer.vocab_size(), 262, "the vocabulary is cut to config.default_vocab_size");
}

#[test]
fn hostile_tekken_files_are_refused() {
    let refused = |change: fn(&mut serde_json::Value), what: &str| {
        refused(&[("tekken.json", tekken(change))], "tekken.json", what);
    };
    refused(
        |file| file["vocab"][7]["token_bytes"] = json!("?"),
        "vocab[7].token_bytes is \"?\", expected base64",
    );
    refused(|file| file["vocab"][7]["rank"] = json!(9), "vocab[7].rank is 9, expected 7");
    refused(|file| file["vocab"][7]["token_bytes"] = json!("AA=="), "ranks 0 and 7 have one token");
    refused(|file| file["vocab"][7]["token_bytes"] = json!("aGVs"), "no token is the byte 0x07");
    refused(|file| file["config"]["default_vocab_size"] = json!(264), "config.default_vocab_size is 264");
    refused(|file| file["config"]["default_vocab_size"] = json!(2), "config.default_vocab_size is 2");
    refused(|file| file["config"]["default_vocab_size"] = json!(u64::MAX), "config.default_vocab_size");
    refused(
        |file| file["config"]["default_num_special_tokens"] = json!(2),
        "default_num_special_tokens is 2",
    );
    refused(
        |file| file["config"]["default_num_special_tokens"] = json!(u64::MAX),
        "default_num_special_tokens is 18446744073709551615",
    );
    refused(|file| file["special_tokens"][1]["rank"] = json!(2), "special_tokens[1].rank is 2");
    refused(|file| file["special_tokens"][1]["token_str"] = json!("<unk>"), "\"<unk>\" is there twice");
    refused(|file| file["special_tokens"][1]["token_str"] = json!("bos"), "special_tokens: no <s>");
    refused(|file| file["special_tokens"] = json!(null), "config.version is \"v11\" without special_tokens");
    refused(|file| file["config"]["pattern"] = json!("("), "");
}

#[test]
fn byte_pairs_are_read_or_refused() {
    let vocab = json!({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}).to_string();
    let merges = "#version: 0.2\na b\n";
    let config = json!({"tokenizer_class": "GPT2Tokenizer"}).to_string();
    let files = |merges: &'static str| {
        dir(&[
            ("vocab.json", vocab.clone().into()),
            ("merges.txt", merges.into()),
            ("tokenizer_config.json", config.clone().into()),
        ])
    };
    let loaded = files(merges);
    let tokenizer = Tokenizer::open(loaded.path(), 4).unwrap().unwrap();
    assert_eq!(ids(&tokenizer, "abab"), [2, 2]);
    assert_eq!(tokenizer.special_texts().collect::<Vec<_>>(), ["<|endoftext|>"]);
    for (merges, what) in [
        ("a b\na", "line 2 is \"a\", expected two tokens"),
        ("a b c", "line 1 is \"a b c\""),
        ("", ""),
        ("a b\n\na b", "line 2 is \"\""),
        ("b a", "line 1 needs \"ba\", which vocab.json does not have"),
        ("a x", "line 1 needs \"x\""),
    ] {
        match Tokenizer::open(files(merges).path(), 4) {
            Ok(_) => assert_eq!(merges, ""),
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("merges.txt: ") && error.contains(what), "{error}");
            }
        }
    }
    let twice = r#"{"a": 0, "a": 1}"#;
    let files: [(&str, Vec<u8>); 3] =
        [("vocab.json", twice.into()), ("merges.txt", Vec::new()), ("tokenizer_config.json", config.into())];
    refused(&files, "vocab.json", "duplicate key \"a\"");
    let none = dir(&[("vocab.json", b"{}".to_vec())]);
    assert!(Tokenizer::open(none.path(), 4).unwrap().is_none());
    assert!(Tokenizer::open(Path::new("/nonexistent"), 4).unwrap().is_none());
}

#[test]
fn merges_go_by_rank_and_then_by_their_parts() {
    let single = (0..=255u8).map(|byte| vec![byte]);
    let ranks = Ranks::of(single.chain([b"bc".to_vec(), b"ab".to_vec(), b"abc".to_vec()])).unwrap();
    assert_eq!(ranks.merges().unwrap(), [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]);
}
