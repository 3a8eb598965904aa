mod longest;
mod strict;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::json;

use super::*;
use crate::Error;

fn template(source: &str) -> crate::Result<ChatTemplate> {
    let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let special = special.map(|(k, v)| (k.to_owned(), v.to_owned()));
    ChatTemplate::from_source(Path::new("t.jinja"), source, BTreeMap::from(special))
}

fn render(source: &str, messages: &[Message]) -> crate::Result<String> {
    let options = RenderOptions { add_generation_prompt: true, ..Default::default() };
    // There is no conversation without a message.
    let any = [Message::new("user", "")];
    let messages = if messages.is_empty() { &any } else { messages };
    Ok(template(source)?.render(messages, &options)?.text().to_owned())
}

fn user(text: &str) -> Vec<Message> {
    vec![Message::new("user", text)]
}

#[test]
fn templates_are_jinja2s() {
    for (source, expected) in [
        (
            "{{ bos_token }}{% for m in messages %}\n  {% if true %}\n[{{ m.role }}]{{ m['content'] }}\n{% endif %}{% endfor %}",
            "<s>[user]hi\n",
        ),
        ("{{ none }}|{{ true }}|{{ undefined_name }}|{{ 1.0 }}|{{ [1, 'a'] }}", "None|True||1.0|[1, 'a']"),
        (
            "{% set ns = namespace(x='') %}{% for i in range(3) %}{% set ns.x = ns.x + 'ab' %}{% endfor %}{{ ns.x }}",
            "ababab",
        ),
        ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "hi"}"#),
        (
            "{{ {'a': [1, '<é>'], 'b': {}} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1,\n    \"<é>\"\n  ],\n  \"b\": {}\n}",
        ),
        ("{{ messages[::-1][0].content.strip().upper() }}{{ 'x' * 3 }}{{ 2 * 3 }}", "HIxxx6"),
        ("{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}{{ 'a,b'.split(',')[-1] }}", "a1b"),
        ("{% generation %}\nx{% endgeneration %}", "x"),
        ("{% macro f(a, b=2) %}{{ a + b }}{% endmacro %}{{ f(1) }}{{ f(1, b=5) }}", "36"),
        (
            "{% for i in [1,2,3,4] %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ loop.index0 }}{% endfor %}",
            "02",
        ),
        ("{{ ['b', 'a'] | sort | join('-') }}{{ messages | map(attribute='role') | list }}", "a-b['user']"),
        (
            "{{ messages is iterable }}{{ messages[0] is mapping }}{{ 'x' is string }}{{ x is defined }}",
            "TrueTrueTrueFalse",
        ),
        (
            "{% set x %}a{{ 1 }}b{% endset %}{{ x | replace('1', '22') | length }}{{ '%s-%d' | format('q', 3) }}",
            "4q-3",
        ),
        ("{% for m in messages recursive %}{{ loop.depth }}{% endfor %}", "1"),
        (
            "{{ (messages + [{'role': 'a'}]) | length }}{{ 7 // 2 }}{{ 'a' in 'cab' }}{{ 1 if false else 'z' }}",
            "23Truez",
        ),
    ] {
        assert_eq!(render(source, &user("hi")).unwrap(), expected, "{source}");
    }
    let error = render("\n{{ raise_exception('roles must alternate') }}", &[]).unwrap_err().to_string();
    assert!(error.contains("t.jinja") && error.contains("roles must alternate"), "{error}");
    assert!(render("{{ nothing.at.all }}", &[]).is_err());
    assert!(render("{%}", &[]).is_err() && render("{%", &[]).is_err());
    let now =
        RenderOptions { now: Some(UNIX_EPOCH + Duration::from_secs(1_709_210_096)), ..Default::default() };
    let t = template("{{ strftime_now('%d %b %Y %H:%M:%S %A %j %-I') }}").unwrap();
    assert_eq!(
        t.render(&[Message::new("user", "")], &now).unwrap().text(),
        "29 Feb 2024 12:34:56 Thursday 060 12"
    );
}

#[test]
fn hostile_templates_are_stopped() {
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    let deep = "[".repeat(100_000);
    let sum = format!("{{{{ 1{} }}}}", "+1".repeat(100_000));
    let elifs = format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(10_000));
    let ifs = "{% if a %}".repeat(20_000);
    let raw = format!(
        "{{% set x %}}{{% for i in range(100000) %}}{}{{% endfor %}}{{% endset %}}",
        "r".repeat(200_000)
    );
    let cases = [
        "{{ '-' * 10**10 }}",
        "{{ 'aaaaaaaaaa' * 90000000 }}",
        "{% set n = 10 ** 8 %}{{ 'ab' * n }}",
        "{% set n = 10 ** 8 %}{{ (1,) * n }}{{ [1] * n }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}{{ ns == ns }}",
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}",
        loops,
        "{% for a in range(9999) %}{% for b in range(9999) %}xxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
        "{{ range(10 ** 9) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('a') }}",
        "{% for m in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% from 'x' import y %}",
        "{% extends 'x' %}",
        "{% block a %}{% endblock %}",
        "{{ 'a' | no_such_filter }}",
        "{{ 'a' is no_such_test }}",
        "{{ no_such_function() }}",
        "{{ 'a'.no_such_method() }}",
        "{{ '%0999999999d' | format(1) }}",
        "{{ '%*d' | format(999999999, 1) }}",
        "{{ '{:>999999999}'.format('a') }}",
        "{% set s = 'a' * 60000 %}{{ s | replace('a', s) }}",
        "{% set s = 'a' * 60000 %}{{ s.replace('a', s) }}",
        "{% set s = 'a' * 60000 %}{{ s | list | join(s) }}",
        "{% set s = 'a' * 60000 %}{{ s.join(s | list) }}",
        "{{ 'a\nb' | indent(999999999) }}",
        "{{ 'a\nb' | indent(width=999999999) }}",
        "{{ (['a'] * 199999) | map('center', 8000000) | list | length }}",
        "{% set s = 'a' * 8000000 %}{{ ('%(a).0s' * 900000) % {'a': s} }}",
        "{{ [1] | batch(999999999, 'x') | list }}",
        "{{ [1] | slice(999999999, 'x') | list }}",
        "{{ [[1]] | tojson(indent=999999999) }}",
        "{% set s = 'a' * 60000 %}{% set l = [s] * 100000 %}{{ l | unique | list }}",
        "{% set s = 'a' * 60000 %}{{ ([s] * 1000) | sum(start='') }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% set ns.x = ns.x | map('reverse') %}{% endfor %}{{ ns.x | list }}",
        "{% if %}",
        "{{",
        &format!("{{{{ {deep}"),
        &sum,
        &elifs,
        &ifs,
        &raw,
    ];
    let mut failed = Vec::new();
    for source in cases {
        let got = render(source, &user("hi"));
        let head: String = source.chars().take(120).collect();
        if !matches!(got, Err(Error::Template(_))) {
            failed.push(format!("{head}: {:.200}", format!("{got:?}")));
        }
        // By what it does, and not by the last net of the clock.
        let net = format!("longer than {} s", super::template::NET.as_secs());
        assert!(!format!("{got:?}").contains(&net), "{head}");
    }
    assert!(failed.is_empty(), "{failed:#?}");
    // Counted, and not timed.
    let error = render(loops, &user("hi")).unwrap_err().to_string();
    assert!(error.contains("the template ran too many instructions"), "{error}");
    // Harmless however often: slices of slices are made real.
    let source = "{% set ns = namespace(x=[1,2]) %}{% for i in range(9999) %}{% set ns.x = ns.x[0:] %}{% endfor %}{{ ns.x }}";
    assert_eq!(render(source, &[]).unwrap(), "[1, 2]");
    // The caller's thread lives on, and renders the next.
    assert_eq!(render("{{ 1 }}", &[]).unwrap(), "1");
}

#[test]
fn typed_special_tokens_stay_text() {
    let t = template("<s>{{ messages[0].content | trim }}</s>").unwrap();
    let r = t.render(&user("  a</s>b\u{FDD1}\u{FDD2}0\u{0}\u{FEFF} "), &RenderOptions::default()).unwrap();
    assert_eq!(r.text(), "<s>a</s>b\u{FDD1}\u{FDD2}0\u{0}\u{FEFF}</s>");
    assert_eq!(r.literal(), std::slice::from_ref(&(4..8)));
    // A token that holds what tokens are wrapped in does not come apart into another.
    let mut odd = template("{{ messages[0].content }}").unwrap();
    odd.protect(["<a\u{FDD1}b>", "<ab>", "\u{FDD2}0"]).unwrap();
    let whole = odd.render(&user("<a\u{FDD1}b>\u{FDD2}0"), &RenderOptions::default()).unwrap();
    assert_eq!((whole.text(), whole.literal()), ("<a\u{FDD1}b>\u{FDD2}0", &[0..7, 7..11][..]));
    let Some(tokenizer) = stories() else { return };
    let (bos, eos) = (tokenizer.token_id("<s>").unwrap(), tokenizer.token_id("</s>").unwrap());
    let ids = tokenizer.encode_rendered(&r).unwrap();
    assert_eq!((ids[0], ids[ids.len() - 1]), (bos, eos));
    assert!(!ids[1..ids.len() - 1].contains(&eos) && !ids[1..].contains(&bos));
    let plain = t.render(&user("ab"), &RenderOptions::default()).unwrap();
    let ids = tokenizer.encode_rendered(&plain).unwrap();
    assert_eq!(ids.iter().filter(|&&i| i == bos).count(), 1);
}

#[test]
fn a_final_message_goes_on() {
    let on = RenderOptions { continue_final_message: true, ..RenderOptions::default() };
    let go_on = |source: &str, last: &str| {
        let messages = [Message::new("user", "a\u{FDD3} b"), Message::new("assistant", last)];
        template(source)?.render(&messages, &on).map(|rendered| rendered.text().to_owned())
    };
    let source = "{% for m in messages %}<{{ m.content }}>{% endfor %}!";
    assert_eq!(go_on(source, " Hello ").unwrap(), "<a\u{FDD3} b>< Hello ");
    let trimmed = source.replace("m.content", "m.content | trim");
    assert_eq!(go_on(&trimmed, " Hello ").unwrap(), "<a\u{FDD3} b><Hello");
    assert_eq!(go_on(&trimmed, "Hello").unwrap(), "<a\u{FDD3} b><Hello");
    // The last place counts where it is written twice.
    let twice = format!("[{{{{ messages[1].content }}}}]{source}");
    assert_eq!(go_on(&twice, "Hi").unwrap(), "[Hi ]<a\u{FDD3} b><Hi");
    let error = |source: &str, last: &str| go_on(source, last).unwrap_err().to_string();
    assert!(error(source, " ").ends_with("the last message has no text to continue"));
    assert!(
        error("{{ messages[0].content }}", "x")
            .ends_with("it leaves out the message that is to be continued")
    );
}

#[test]
fn templates_are_found_as_transformers_finds_them() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ChatTemplate::load(dir.path()).unwrap().is_none());
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let list =
        json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ bos_token }}"}]);
    write(
        "tokenizer_config.json",
        &json!({"bos_token": {"content": "<b>"}, "chat_template": list}).to_string(),
    );
    let t = ChatTemplate::load(dir.path()).unwrap().unwrap();
    assert_eq!(t.render(&[Message::new("user", "")], &RenderOptions::default()).unwrap().text(), "D<b>");
    assert_eq!(
        t.select("tool_use")
            .unwrap()
            .render(&[Message::new("user", "")], &RenderOptions::default())
            .unwrap()
            .text(),
        "T"
    );
    assert!(t.select("none").is_err());
    write("chat_template.jinja", "J{{ bos_token }}");
    let t = ChatTemplate::load(dir.path()).unwrap().unwrap();
    assert_eq!(t.render(&[Message::new("user", "")], &RenderOptions::default()).unwrap().text(), "J<b>");
}

/// SentencePiece as in Llama 2: no pre-tokenizer, so that a prompt is one word.
fn sentence_json() -> serde_json::Value {
    let mut vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2});
    for b in 0..256 {
        vocab[format!("<0x{b:02X}>")] = json!(3 + b);
    }
    for (id, t) in (259..).zip(["▁", "a", "b", "▁▁", "▁▁▁▁", "aa", "aaaa", "ab", "▁a"]) {
        vocab[t] = json!(id);
    }
    let special = |id: u32, t: &str| {
        json!({"id": id, "content": t, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab,
            "merges": [["▁", "▁"], ["▁▁", "▁▁"], ["a", "a"], ["aa", "aa"], ["a", "b"], ["▁", "a"]]},
    })
}

/// Byte-level BPE with Qwen's normalizer and pattern.
fn byte_level_json() -> serde_json::Value {
    let mut vocab = json!({});
    let mut next = 0u32;
    for b in 0..=255u32 {
        let itself = matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let c = if itself {
            b
        } else {
            next += 1;
            0x100 + next - 1
        };
        vocab[char::from_u32(c).unwrap().to_string()] = json!(b);
    }
    for (i, t) in ["ĠĠ", "ĠĠĠĠ", "aa", "aaaa", "Ġa"].iter().enumerate() {
        vocab[*t] = json!(256 + i);
    }
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 261, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [["Ġ", "Ġ"], ["ĠĠ", "ĠĠ"], ["a", "a"], ["aa", "aa"], ["Ġ", "a"]]},
    })
}

fn from_json(json: &serde_json::Value, rows: usize) -> crate::Result<Tokenizer> {
    Tokenizer::from_bytes(Path::new("tokenizer.json"), json.to_string().as_bytes(), rows)
}

fn stories() -> Option<Tokenizer> {
    from_json(&sentence_json(), 512).ok()
}

fn with_pattern(pattern: &str) -> crate::Result<Tokenizer> {
    let mut json = byte_level_json();
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(pattern);
    from_json(&json, 512)
}

#[test]
fn hostile_patterns_end() {
    /// What becomes of 40 and of a million equal letters: nothing, or why not.
    const FINE: [&str; 2] = ["", ""];
    const STEPS: &str = "takes a pattern more steps than any honest one";
    for (pattern, expected) in [
        ("(a+)+$", FINE),
        ("(a+)+b", ["", ""]),
        ("((a+)+)+b|a", ["", STEPS]),
        ("(a|aa)+$", FINE),
        ("(a*)*b", FINE),
        ("(.*)(.*)(.*)[bc]", FINE),
        ("(?=a)", FINE),
        ("", FINE),
    ] {
        let tokenizer = with_pattern(pattern).unwrap();
        for (text, expected) in ["a".repeat(40), "a".repeat(1_000_000)].into_iter().zip(expected) {
            let start = Instant::now();
            let got = tokenizer.encode(&text).map(|ids| tokenizer.decode(&ids).unwrap());
            println!("{pattern}: {} in {:?}", text.len(), start.elapsed());
            match got {
                Ok(decoded) => assert_eq!((decoded, expected), (text, ""), "{pattern}"),
                Err(error) => {
                    assert!(
                        !expected.is_empty() && error.to_string().contains(expected),
                        "{pattern}: {error}"
                    );
                }
            }
        }
    }
    for (pattern, why) in [
        ("(a{0,1000}){0,1000}b", "heap usage during NFA compilation exceeded limit of 8388608"),
        ("(?:(?:a|b){1,99999}){1,99999}c", "heap usage during NFA compilation exceeded limit of 8388608"),
        (r"(?<x>a\g<x>?b)", "`\\g` is not known"),
        ("(?<=a{1,100})b", "a repetition in `(?<=…)`"),
        ("(?<=(a|b)*)c", "a repetition in `(?<=…)`"),
        (&"[".repeat(3600), "classes over 32 deep"),
        (&"ß".repeat(200_000), "a pattern of 400000 bytes, at most 262144"),
    ] {
        let error = with_pattern(pattern).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

/// Each match looks at the rest of the text, once.
#[test]
fn a_text_that_takes_too_long_is_given_up_on() {
    let tokenizer = with_pattern("a(?=a*[bc])|a").unwrap().with_patience(Duration::from_millis(100));
    let ids = tokenizer.encode("aa").unwrap();
    let error = tokenizer.encode(&"a".repeat(40_000)).unwrap_err().to_string();
    assert!(error.contains("a text of 40000 bytes took longer than 0.1 s"), "{error}");
    // Another text does not wait for it, but for the fourth one.
    assert_eq!(tokenizer.encode("aa").unwrap(), ids);
    for _ in 0..3 {
        tokenizer.encode(&"a".repeat(40_000)).unwrap_err();
    }
    let error = tokenizer.encode("aa").unwrap_err().to_string();
    assert!(error.contains("still busy with 4 earlier texts"), "{error}");
    let start = Instant::now();
    while tokenizer.encode("aa").is_err() {
        assert!(start.elapsed() < Duration::from_secs(120), "the earlier texts do not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(tokenizer.encode("aa").unwrap(), ids);
}

#[test]
fn texts_round_trip_whole_and_streamed() {
    for json in [sentence_json(), byte_level_json()] {
        let tokenizer = from_json(&json, 512).unwrap();
        for text in
            ["", "a", " ab", "héé 🦀 a\u{301}\u{0}\u{FEFF}\u{202E}", "a</s>b<|end|>c", "日本\n\n  aaaa"]
        {
            let ids = tokenizer.encode_with(text, Specials { add: true, parse: false }).unwrap();
            if ids.is_empty() {
                assert!(text.is_empty());
                continue;
            }
            let expected = if json["normalizer"]["type"] == "NFC" {
                text.replace("a\u{301}", "á")
            } else {
                text.into()
            };
            assert_eq!(tokenizer.decode(&ids).unwrap(), expected);
            for cut in 0..ids.len() {
                let mut stream = Detokenizer::new(&tokenizer, &ids[..cut]);
                let tail: String = ids[cut..].iter().map(|&id| stream.push(id).unwrap()).collect();
                let whole = tokenizer.decode(&ids[..cut]).unwrap();
                if !whole.ends_with('\u{FFFD}') {
                    assert_eq!(whole + &tail + &stream.finish().unwrap(), expected, "{cut}");
                }
            }
        }
        // Any ids: the stream's text is the library's where that is valid.
        let mut x = 1u32;
        for _ in 0..200 {
            let ids: Vec<u32> = (0..20)
                .map(|_| {
                    x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (x >> 16) % 270
                })
                .collect();
            let (ours, theirs) = (tokenizer.decode(&ids).unwrap(), tokenizer.library_decode(&ids).unwrap());
            if !theirs.contains('\u{FFFD}') || json["decoder"]["type"] == "ByteLevel" {
                assert_eq!(ours, theirs);
            }
        }
    }
}

/// `steps` normalizers, each of which replaces `old` by `times` as much.
fn replacements(old: &str, times: usize, steps: usize) -> serde_json::Value {
    let step = json!({"type": "Replace", "pattern": {"String": old}, "content": "a".repeat(times)});
    json!({"type": "Sequence", "normalizers": vec![step; steps]})
}

#[test]
fn hostile_tokenizers_are_refused() {
    let good = sentence_json();
    from_json(&good, 268).unwrap();
    // An id without a row is met when it is used.
    from_json(&good, 267).unwrap();
    let mut large = good.clone();
    let token = json!({ "id": 268, "content": "x".repeat(1 << 20), "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false });
    large["added_tokens"].as_array_mut().unwrap().push(token);
    let error = from_json(&large, 269).unwrap_err().to_string();
    assert!(
        error.contains("special tokens: their texts are") && error.contains("at most 1048576"),
        "{error}"
    );
    let twice = |key: &str| good.to_string().replacen(&format!("{key}:"), &format!("{key}:0,{key}:"), 1);
    let mut longer = good.clone();
    longer["normalizer"] = replacements("a", 8, 2);
    from_json(&longer, 268).unwrap();
    let with = |pointer: &str, value: serde_json::Value| {
        let mut json = good.clone();
        *json.pointer_mut(pointer).unwrap() = value;
        from_json(&json, 268)
    };
    let mut deep = json!(1);
    for _ in 0..40 {
        deep = json!([deep]);
    }
    for result in [
        with("/model/vocab/ab", json!(5)),
        with("/model/vocab/ab", json!(-1)),
        with("/model/vocab/ab", json!(1u64 << 40)),
        with("/added_tokens/1/id", json!(2)),
        with("/added_tokens/1/id", json!(267)),
        with("/added_tokens/1/content", json!("new")),
        with("/normalizer", deep),
        with("/normalizer", json!({"type": "NoSuch"})),
        with("/normalizer", replacements("a", 9, 2)),
        with("/normalizer", replacements("", 65, 1)),
        with("/post_processor/single/0", json!({"Sequence": {"id": "A", "type_id": 0}})),
        with("/model/merges", json!([["x", "y"]])),
        with("/model", json!({})),
        from_json(&json!([]), 268),
        Tokenizer::from_bytes(Path::new("t"), twice("\"ab\"").as_bytes(), 268),
        Tokenizer::from_bytes(Path::new("t"), twice("\"type\"").as_bytes(), 268),
    ] {
        assert!(matches!(result, Err(Error::Format { .. })), "{result:?}");
    }
    for bytes in [&b""[..], b"{", b"\xff\xfe", &[b'['; 100_000]] {
        assert!(Tokenizer::from_bytes(Path::new("t"), bytes, 10).is_err());
    }
}

#[test]
fn there_is_no_conversation_without_a_message() {
    let error = template("{{ 1 }}").unwrap().render(&[], &RenderOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "chat template: t.jinja: the conversation has no message");
}

/// A conversation without a content, or with arguments as a text, is rendered in the first form that the template takes.
#[test]
fn conversations_are_tried_in_the_forms_that_templates_expect() {
    let call = json!([{ "type": "function", "function": { "name": "f", "arguments": "{\"a\": 1}" } }]);
    let mut calls = Message { role: "assistant".into(), ..Message::default() };
    calls.extra.insert("tool_calls".into(), call);
    calls.extra.insert("name".into(), serde_json::Value::Null);
    let render = |source: &str| render(source, std::slice::from_ref(&calls));
    let arguments = "{{ messages[0].tool_calls[0].function.arguments";
    for (source, wanted) in [
        // Absent, and arguments an object.
        ("{{ messages[0].content is defined }} {{ messages[0].name is defined }}".to_owned(), "False False"),
        (format!("{arguments} is mapping }}}}"), "True"),
        (format!("{arguments}.a }}}}"), "1"),
        // Null where absent is refused, and empty where both are.
        (
            "{% if messages[0].content is not defined %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content is none }}"
                .to_owned(),
            "True",
        ),
        ("{{ messages[0].content + '!' }}".to_owned(), "!"),
        // Text where an object is refused.
        (format!("{arguments} + '!' }}}}"), "{\"a\": 1}!"),
    ] {
        assert_eq!(render(&source).unwrap(), wanted, "{source}");
    }
    // The first complaint is told.
    let error = render("{{ raise_exception('never ' ~ (messages[0].content is defined)) }}").unwrap_err();
    assert!(error.to_string().contains("never False"), "{error}");
}

#[test]
fn thoughts_have_the_names_that_templates_read() {
    for name in ["reasoning_content", "reasoning", "thinking"] {
        let mut said = Message::new("assistant", "x");
        said.extra.insert(name.into(), "hm".into());
        let source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}";
        assert_eq!(render(source, &[said]).unwrap(), "hm hm", "{name}");
    }
}

/// What ends a turn is what stands behind the assistant's text, unless it also stands behind what it thinks.
#[test]
fn a_turn_ends_as_its_template_ends_it() {
    let tokens = ["<|end|>", "<|return|>", "<|user|>", "</s>"].map(str::to_owned);
    for (source, wanted) in [
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}", vec!["</s>"]),
        ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}", vec!["<|user|>"]),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", vec![]),
        ("{{ raise_exception('never') }}", vec![]),
        // Harmony's: a channel of thoughts ends as the last but one turn does.
        (
            "{% for m in messages %}{% if m.thinking and loop.last %}{{ m.thinking }}<|end|>{% endif %}{{ m.content }}\
             {% if loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}",
            vec!["<|return|>"],
        ),
    ] {
        assert_eq!(template(source).unwrap().turn_ends(&tokens), wanted, "{source}");
    }
}

/// Text that follows a special token does not begin as a text begins.
#[test]
fn what_a_user_types_changes_no_id_of_the_templates_text() {
    let mut json = sentence_json();
    json["normalizer"] = json!(null);
    json["pre_tokenizer"] =
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false });
    let tokenizer = from_json(&json, 512).unwrap();
    let mut t = template("<s>{{ messages[0].content }}</s>ab").unwrap();
    t.protect(tokenizer.special_texts()).unwrap();
    let ids = |text: &str| {
        let rendered = t.render(&user(text), &RenderOptions::default()).unwrap();
        tokenizer.encode_rendered(&rendered).unwrap()
    };
    let (plain, typed) = (ids("a"), ids("a</s>"));
    let behind = |ids: &[u32]| {
        let end = tokenizer.token_id("</s>").unwrap();
        ids[ids.iter().rposition(|&id| id == end).unwrap()..].to_vec()
    };
    assert_eq!(behind(&plain), behind(&typed));
    assert_eq!(plain[..2], typed[..2]);
    let end = tokenizer.token_id("</s>").unwrap();
    assert_eq!([&plain, &typed].map(|ids| ids.iter().filter(|&&id| id == end).count()), [1, 1]);
}
