//! Schemas, patterns and grammars that cannot be enforced, are malformed, or are to cost too much: each is refused by an
//! error that names it, in time.

use std::time::{Duration, Instant};

use backstop::Error;
use backstop::sample::Grammar;
use serde_json::{Value, json};

use crate::support::{Random, Vocabulary};

/// What compiling may take in a test, unoptimised and beside others.
const PATIENCE: Duration = Duration::from_secs(20);

fn vocabulary() -> Vocabulary {
    Vocabulary::new("assets/stories", "</s>")
}

#[test]
fn what_cannot_be_enforced_is_named() {
    let vocabulary = vocabulary();
    let object = |properties: Value| json!({ "type": "object", "properties": { "a/b": properties } });
    for (schema, path, keyword) in [
        (json!({ "not": {} }), "#", "not"),
        (json!({ "if": {}, "then": {}, "else": {} }), "#", "if"),
        (json!({ "type": "array", "uniqueItems": true }), "#", "uniqueItems"),
        (json!({ "type": "array", "contains": {} }), "#", "contains"),
        (json!({ "dependentRequired": {} }), "#", "dependentRequired"),
        (json!({ "propertyNames": {} }), "#", "propertyNames"),
        (json!({ "unevaluatedProperties": false }), "#", "unevaluatedProperties"),
        (json!({ "$dynamicRef": "#a" }), "#", "$dynamicRef"),
        (json!({ "type": "string", "nullable": true }), "#", "nullable"),
        (json!({ "minimun": 3 }), "#", "minimun"),
        (json!({ "x-guidance": { "lenient": true }, "not": {} }), "#", "x-guidance"),
        (object(json!({ "not": {} })), "#/properties/a~1b", "not"),
        (object(json!({ "$anchor": "here" })), "#/properties/a~1b", "$anchor"),
        (object(json!({ "$id": "http://example.org/" })), "#/properties/a~1b", "$id"),
        (json!({ "items": [{}, { "anyOf": [{ "not": {} }] }] }), "#/items/1/anyOf/0", "not"),
        (json!({ "$defs": { "d": { "not": {} } } }), "#/$defs/d", "not"),
        (json!({ "additionalProperties": { "not": {} } }), "#/additionalProperties", "not"),
        (json!({ "type": "string", "format": 3 }), "#", "format"),
        (json!({ "type": "string", "pattern": "(?=a)b" }), "#", "pattern"),
        (json!({ "type": "string", "pattern": "(a)\\1" }), "#", "pattern"),
        (json!({ "type": "string", "pattern": "(" }), "#", "pattern"),
        (json!({ "type": "string", "pattern": 1 }), "#", "pattern"),
        (json!({ "patternProperties": { "[": {} } }), "#", "patternProperties"),
        (json!({ "type": "string", "maxLength": 1e9 as u64 }), "#", "maxLength"),
        (json!({ "type": "string", "minLength": -1 }), "#", "minLength"),
        (json!({ "type": "array", "maxItems": 1.5 }), "#", "maxItems"),
        (json!({ "type": "object", "minProperties": 2 }), "#", "minProperties"),
        (json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 0.5 }), "#", "exclusiveMinimum"),
        (json!({ "$ref": "http://example.org/schema" }), "#", "$ref"),
        (json!({ "$ref": "file:///etc/passwd" }), "#", "$ref"),
        (json!({ "$ref": "#/$defs/none" }), "#", "$ref"),
        (json!({ "$ref": "#/title", "title": { "type": "string" } }), "#", "$ref"),
        (json!({ "$ref": 1 }), "#", "$ref"),
        (json!({ "anyOf": {} }), "#", "anyOf"),
        (json!({ "properties": [] }), "#", "properties"),
        (json!({ "items": 3 }), "#/items", ""),
        (json!(false), "#", "false"),
        (json!(3), "#", ""),
    ] {
        match vocabulary.compile(&Grammar::JsonSchema(schema.clone())).map(drop) {
            Err(Error::Schema { path: at, keyword: named, .. }) => {
                assert_eq!((at.as_str(), named.as_str()), (path, keyword), "{schema}");
            }
            other => panic!("{schema}: {other:?}"),
        }
    }
    // What is found only by compiling, and what its message has to name.
    for (schema, named) in [
        (json!({ "oneOf": [{ "type": "string" }, { "type": "string", "maxLength": 3 }] }), "oneOf"),
        (json!({ "type": "string", "minLength": 3, "maxLength": 2 }), "minLength"),
        (json!({ "type": "integer", "minimum": 3, "maximum": 2 }), "minimum"),
        (json!({ "type": "colour" }), "type"),
        (json!({ "enum": [] }), "Unsatisfiable"),
        (json!({ "type": "object", "properties": { "a": false }, "required": ["a"] }), "Unsatisfiable"),
        (json!({ "allOf": [{ "type": "string" }, { "type": "null" }] }), "Unsatisfiable"),
        (json!({ "$ref": "#" }), "it allows no text"),
        (
            json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }),
            "it allows no text",
        ),
    ] {
        match vocabulary.compile(&Grammar::JsonSchema(schema.clone())).map(drop) {
            Err(error @ Error::Grammar { kind: "JSON schema", .. }) => {
                println!("{schema}: {error}");
                assert!(error.to_string().contains(named), "{schema}: {error}");
            }
            other => panic!("{schema}: {other:?}"),
        }
    }
}

#[test]
fn what_says_nothing_is_let_be() {
    let vocabulary = vocabulary();
    for schema in [
        json!(true),
        json!({}),
        json!({ "title": "T", "description": "D", "default": 1, "examples": [], "deprecated": true, "$comment": "c" }),
        json!({ "$schema": "http://json-schema.org/draft-07/schema#", "$id": "http://example.org/", "type": "null" }),
        json!({ "type": "array", "uniqueItems": false }),
        json!({ "type": "string", "format": "color" }),
        json!({ "x-order": 3, "type": "object", "readOnly": true }),
        json!({ "$defs": { "node": { "type": "object", "properties": { "next": { "$ref": "#/$defs/node" } } } },
            "$ref": "#/$defs/node" }),
        json!({ "type": "object", "properties": { "type": { "type": "string" }, "not": { "type": "null" } } }),
    ] {
        let made = vocabulary.compile(&Grammar::JsonSchema(schema.clone()));
        assert!(made.is_ok(), "{schema}: {made:?}");
    }
}

#[test]
fn bad_patterns_and_grammars_are_refused() {
    let vocabulary = vocabulary();
    for regex in ["", "(", "a{2,1}", "(?=a)", "(a)\\1", "[", &"a".repeat(20_000), "[^\\s\\S]"] {
        let error = vocabulary.compile(&Grammar::Regex(regex.into())).map(drop);
        assert!(
            matches!(error, Err(Error::Grammar { kind: "regular expression", .. })),
            "{regex:.40}: {error:?}"
        );
    }
    for lark in [
        "",
        "start",
        "start: nothing",
        "begin: \"a\"",
        "start: \"a",
        "start: start \"a\"",
        "start: %json { \"not\": {} }",
        "start: %json { \"x-guidance\": { \"lenient\": true }, \"not\": {} }",
        "%import nothing.here\nstart: \"a\"",
        "start: <no_such_token>",
        "start: <[99999999]>",
        "start: @other",
        "\u{0}",
    ] {
        let error = vocabulary.compile(&Grammar::Lark(lark.into())).map(drop);
        assert!(matches!(error, Err(Error::Grammar { kind: "grammar", .. })), "{lark}: {error:?}");
    }
}

#[test]
fn what_costs_too_much_is_refused_or_done_in_time() {
    let vocabulary = vocabulary();
    let nested = |n: usize| {
        (0..n).fold(json!({ "type": "null" }), |inner, _| json!({ "type": "array", "items": inner }))
    };
    let chain = |n: usize| {
        let next =
            |i: usize| json!({ "type": "array", "items": { "$ref": format!("#/$defs/d{}", (i + 1) % n) } });
        let defs: serde_json::Map<String, Value> = (0..n).map(|i| (format!("d{i}"), next(i))).collect();
        json!({ "$ref": "#/$defs/d0", "$defs": defs })
    };
    let bare_chain = |n: usize| {
        let next = |i: usize| {
            if i + 1 == n {
                json!({ "type": "null" })
            } else {
                json!({ "$ref": format!("#/$defs/d{}", i + 1) })
            }
        };
        let defs: serde_json::Map<String, Value> = (0..n).map(|i| (format!("d{i}"), next(i))).collect();
        json!({ "$ref": "#/$defs/d0", "$defs": defs })
    };
    let wide = |n: usize| {
        let properties: serde_json::Map<String, Value> =
            (0..n).map(|i| (format!("p{i}"), json!({}))).collect();
        json!({ "type": "object", "properties": properties })
    };
    let product = |n: usize| {
        let either = json!({ "anyOf": [{ "type": "object", "properties": { "a": {} } }, { "type": "object", "properties": { "b": {} } }] });
        json!({ "allOf": vec![either; n] })
    };
    let rules = |n: usize| (0..n).map(|i| format!("r{i}: \"a\" r{}\n", i + 1)).collect::<String>();
    let grammars = [
        Grammar::JsonSchema(nested(30)),
        Grammar::JsonSchema(nested(100)),
        Grammar::JsonSchema(chain(2000)),
        Grammar::JsonSchema(chain(5000)),
        Grammar::JsonSchema(bare_chain(2000)),
        Grammar::JsonSchema(wide(2000)),
        Grammar::JsonSchema(product(24)),
        Grammar::JsonSchema(json!({ "enum": (0..20_000).collect::<Vec<_>>() })),
        Grammar::JsonSchema(json!({ "enum": ["x".repeat(300_000)] })),
        Grammar::JsonSchema(json!({ "type": "string", "minLength": 1_000_000, "maxLength": 1_048_576 })),
        Grammar::JsonSchema(json!({ "type": "array", "minItems": 1_000_000 })),
        Grammar::JsonSchema(json!({ "type": "string", "pattern": "(a{1,1000}){1,1000}" })),
        Grammar::JsonSchema(json!({ "type": "integer", "minimum": 1e300, "multipleOf": 1e-300 })),
        Grammar::JsonSchema(
            json!({ "type": "number", "minimum": 1e-308, "maximum": 1e308, "multipleOf": 0.1 }),
        ),
        Grammar::Regex("((((a{1,100}){1,100}){1,100}){1,100}){1,100}".into()),
        Grammar::Regex("(a|b|ab)*c{500}(x|y)*".into()),
        Grammar::Regex("(".repeat(8000) + &")".repeat(8000)),
        Grammar::Regex(".*a.{200}".into()),
        Grammar::Regex("a{999999999}".into()),
        Grammar::Lark(format!("start: {}\"a\"{}", "(".repeat(100), ")".repeat(100))),
        Grammar::Lark(format!("start: {}", "(".repeat(10_000))),
        Grammar::Lark(format!("start: r0\n{}r4000: \"b\"\n", rules(4000))),
        Grammar::Lark(format!("start: r0\n{}r9000: \"b\"\n", rules(9000))),
        Grammar::Lark("start: \"a\"{1000000000}".into()),
        Grammar::Lark("start: a a a a a a\na: \"x\"* b\nb: \"x\"* | a".into()),
    ];
    for grammar in &grammars {
        let started = Instant::now();
        let made = vocabulary.compile(grammar);
        let took = started.elapsed();
        let what: String = format!("{grammar:?}").chars().take(60).collect();
        println!(
            "{what}: {took:.1?} {:.150}",
            made.as_ref().err().map_or("made".into(), ToString::to_string)
        );
        assert!(took < PATIENCE, "{what} took {took:?}");
        let mut constraint = match made {
            Ok(constraint) => constraint,
            Err(Error::Schema { .. } | Error::Grammar { .. }) => continue,
            Err(other) => panic!("{what}: {other}"),
        };
        let started = Instant::now();
        let mut random = Random(1);
        for _ in 0..30 {
            let Ok(mask) = constraint.mask() else { break };
            let allowed: Vec<u32> =
                (2..vocabulary.tokenizer.vocab_size() as u32).filter(|&t| mask.allows(t)).collect();
            if allowed.is_empty()
                || constraint.accept(*random.pick(&allowed)).is_err()
                || constraint.is_complete()
            {
                break;
            }
        }
        println!("  30 tokens in {:.1?}", started.elapsed());
        assert!(started.elapsed() < PATIENCE, "{what}: {:?}", started.elapsed());
    }
}

/// What a mutated grammar does, it says: no panic, no endless work.
#[test]
fn mutated_grammars_do_not_panic() {
    let vocabulary = vocabulary();
    let seeds = [
        "start: greeting (\",\" name)* END\ngreeting: \"hi\" | \"hello\"i\nname: /[A-Z][a-z]{1,9}/\nEND: \"!\" | \"?\"\n",
        "start: %json { \"type\": \"object\", \"properties\": { \"a\": { \"$ref\": \"#\" } } }\n%ignore /[ ]+/\n",
        "start: a[lazy] <[1]>\na[lazy]: /(?s:.*)end/ & ~/x+/\n",
    ];
    let mut random = Random(5);
    for i in 0..1500 {
        let mut bytes = seeds[i % seeds.len()].as_bytes().to_vec();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = *random.pick(b"(){}[]|\"/:*+?.<>@%~&a1\n\\ "),
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, *random.pick(b"(){}[]|\"/:*+?.<>@%~&a1\n\\ ")),
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let started = Instant::now();
        let made = vocabulary.compile(&Grammar::Lark(text.clone())).map(drop);
        if let Err(error) = made {
            assert!(matches!(error, Error::Grammar { .. }), "{text}: {error}");
            assert!(!error.to_string().contains("took longer"), "{text}: {error}");
        }
        assert!(started.elapsed() < PATIENCE, "{text}: {:?}", started.elapsed());
    }
}
