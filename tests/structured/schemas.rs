//! Thousands of random schemas, and what is drawn from them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use backstop::Error;
use backstop::sample::Grammar;
use serde_json::{Map, Value, json};

use crate::support::{Random, Vocabulary};
use crate::validator::check;

/// A random schema of the keywords that are enforced.
fn schema(random: &mut Random, depth: usize) -> Value {
    let kinds = if depth == 0 { 6 } else { 12 };
    match random.below(kinds) {
        0 => json!({ "type": "null" }),
        1 => json!({ "type": "boolean" }),
        2 => integer(random),
        3 => number(random),
        4 => string(random),
        5 => literals(random),
        6 => array(random, depth),
        7 => {
            let options: Vec<Value> = (0..1 + random.below(3)).map(|_| schema(random, depth - 1)).collect();
            json!({ "anyOf": options })
        }
        8 => json!({ "type": ["null", "string", "integer"], "maxLength": 4 }),
        9 => {
            // Told apart by a constant, as tagged unions are.
            let tagged = |tag: &str, of: Value| {
                json!({ "type": "object", "properties": { "tag": { "const": tag }, "of": of },
                    "required": ["tag", "of"], "additionalProperties": false })
            };
            json!({ "oneOf": [tagged("a", schema(random, depth - 1)), tagged("b", schema(random, depth - 1))] })
        }
        10 => json!({ "allOf": [integer(random), { "type": "integer", "minimum": -1000 }] }),
        _ => object(random, depth),
    }
}

fn integer(random: &mut Random) -> Value {
    let low = random.below(2000) as i64 - 1000;
    let mut made =
        json!({ "type": "integer", "minimum": low, "maximum": low + 1 + random.below(500) as i64 });
    if random.one_in(4) {
        made = json!({ "type": "integer", "multipleOf": 1 + random.below(9), "minimum": 0, "maximum": 999 });
    }
    made
}

fn number(random: &mut Random) -> Value {
    let low = random.below(100) as f64 / 8.0;
    match random.below(3) {
        0 => json!({ "type": "number", "minimum": low, "exclusiveMaximum": low + 10.0 }),
        1 => json!({ "type": "number", "exclusiveMinimum": -low, "maximum": low + 0.5 }),
        _ => json!({ "type": "number" }),
    }
}

fn string(random: &mut Random) -> Value {
    let min = random.below(4);
    match random.below(5) {
        0 => json!({ "type": "string", "minLength": min, "maxLength": min + random.below(6) }),
        1 => {
            json!({ "type": "string", "pattern": random.pick(&["^[a-z]{2,5}$", "^\\d+(\\.\\d+)?$", "b", "^(é|日本|😀)+$"]) })
        }
        // The longest local part of an address has 64 characters, which no pattern of the format bounds.
        2 => {
            json!({ "type": "string", "format": random.pick(&["uuid", "ipv4", "time", "email", "hostname"]), "maxLength": 40 })
        }
        3 => json!({ "type": "string", "enum": ["red", "green", "a \"quoted\" one", "日本語", ""] }),
        _ => json!({ "type": "string" }),
    }
}

fn literals(random: &mut Random) -> Value {
    let all = [
        json!(1),
        json!("x"),
        json!(null),
        json!(true),
        json!([1, "é"]),
        json!({ "k": [null] }),
        json!(-2.5),
    ];
    if random.one_in(2) {
        return json!({ "const": random.pick(&all) });
    }
    json!({ "enum": (0..1 + random.below(4)).map(|_| random.pick(&all).clone()).collect::<Vec<_>>() })
}

fn array(random: &mut Random, depth: usize) -> Value {
    let min = random.below(3);
    let mut made = json!({ "type": "array", "items": schema(random, depth - 1), "minItems": min,
        "maxItems": min + random.below(4) });
    if random.one_in(4) {
        let first: Vec<Value> = (0..1 + random.below(2)).map(|_| schema(random, depth - 1)).collect();
        made = json!({ "type": "array", "prefixItems": first, "items": false, "minItems": first.len() });
    }
    made
}

fn object(random: &mut Random, depth: usize) -> Value {
    let mut properties = Map::new();
    let names = ["a", "name", "größe", "with space", "q\"uote", "b/c", "z"];
    for name in names.iter().take(1 + random.below(names.len())) {
        properties.insert((*name).into(), schema(random, depth - 1));
    }
    let required: Vec<&String> = properties.keys().filter(|_| random.one_in(2)).collect();
    let mut made = json!({ "type": "object", "properties": properties, "required": required });
    match random.below(4) {
        0 => made["additionalProperties"] = schema(random, depth - 1),
        1 => {
            made["patternProperties"] = json!({ "^x_[a-z]+$": schema(random, depth - 1) });
            made["additionalProperties"] = json!(false);
        }
        _ => made["additionalProperties"] = json!(false),
    }
    if random.one_in(4) {
        let (low, high) = (random.below(2), 1 + random.below(3));
        made = json!({ "type": "object", "additionalProperties": schema(random, depth - 1),
            "minProperties": low, "maxProperties": low.max(high) });
    }
    made
}

#[test]
fn what_is_drawn_from_random_schemas_validates() {
    let vocabularies = [
        Vocabulary::new("assets/stories", "</s>"),
        Vocabulary::new("tests/fixtures/text/chatml", "<|im_end|>"),
        Vocabulary::new("tests/fixtures/text/llama2", "</s>"),
    ];
    let (mut valid, mut refused, mut endless) = (0, Vec::new(), 0);
    for seed in 0..3000 {
        let random = &mut Random(seed);
        let schema = schema(random, 3);
        let vocabulary = &vocabularies[seed as usize % vocabularies.len()];
        let mut constraint = match vocabulary.compile(&Grammar::JsonSchema(schema.clone())) {
            Ok(constraint) => constraint,
            Err(error @ (Error::Schema { .. } | Error::Grammar { .. })) => {
                refused.push(format!("{seed}: {error}: {schema}"));
                continue;
            }
            Err(other) => panic!("{seed}: {other}: {schema}"),
        };
        let Some(text) = vocabulary.draw(&mut constraint, random, 1500) else {
            endless += 1;
            continue;
        };
        let value: Value = match serde_json::from_str(&text) {
            Ok(value) => value,
            // JSON bounds no exponent.
            Err(error) if error.to_string().contains("number out of range") => continue,
            Err(error) => panic!("{seed}: {error}: {text}"),
        };
        if let Err(error) = check(&schema, &value) {
            panic!("{seed}: {error}\n{schema}\n{text}");
        }
        valid += 1;
    }
    println!("{valid} valid, {} refused, {endless} without an end", refused.len());
    refused.iter().take(40).for_each(|line| println!("{line:.300}"));
    assert!(valid >= 2400, "{valid} valid, {} refused, {endless} without an end", refused.len());
}

/// Unions as pydantic writes them: references, and a property that tells which one is meant.
#[test]
fn references_are_told_apart_by_their_constants() {
    let vocabulary = Vocabulary::new("tests/fixtures/text/chatml", "<|im_end|>");
    let kind = |kind: &str, more: &str, required: Value| {
        json!({ "type": "object", "properties": { "kind": { "const": kind }, (more): { "type": "boolean" } },
            "required": required, "additionalProperties": false })
    };
    let union = |required: Value, told: Value| {
        json!({ "$defs": { "Cat": kind("cat", "purrs", required.clone()), "Dog": kind("dog", "barks", required) },
            "oneOf": [{ "$ref": "#/$defs/Cat" }, { "$ref": "#/$defs/Dog" }, { "type": "null" }], "discriminator": told })
    };
    let objects = |mut union: Value| {
        union["oneOf"].as_array_mut().unwrap().pop();
        union
    };
    let told = json!({ "propertyName": "kind" });
    for schema in [
        objects(union(json!(["kind"]), Value::Null)),
        // With a default the property need not be there: what tells the kinds apart is asked for.
        objects(union(json!([]), told.clone())),
        json!({ "oneOf": [{ "$ref": "#/$defs/a" }, { "type": "null" }], "$defs": { "a": { "type": "string" } } }),
    ] {
        let (mut kinds, mut random) = (BTreeSet::new(), Random(5));
        for _ in 0..60 {
            let mut constraint = vocabulary.compile(&Grammar::JsonSchema(schema.clone())).unwrap();
            let Some(text) = vocabulary.draw(&mut constraint, &mut random, 400) else { continue };
            let value: Value = serde_json::from_str(&text).unwrap();
            let other = match value["kind"].as_str() {
                Some("cat") => value.get("barks"),
                Some("dog") => value.get("purrs"),
                _ => value.get("kind").or((!value.is_string() && !value.is_null()).then_some(&value)),
            };
            assert!(other.is_none(), "{schema}: {text}");
            kinds.insert(if value.is_string() { "text".to_owned() } else { value["kind"].to_string() });
        }
        assert_eq!(kinds.len(), 2, "{kinds:?}: {schema}");
    }
    // A tree, whose kinds have defaults.
    let tree = json!({ "$ref": "#/$defs/Node", "$defs": {
        "Node": { "oneOf": [{ "$ref": "#/$defs/Leaf" }, { "$ref": "#/$defs/Both" }], "discriminator": told },
        "Leaf": { "type": "object", "properties": { "kind": { "const": "leaf" } }, "additionalProperties": false },
        "Both": { "type": "object", "properties": { "kind": { "const": "both" }, "left": { "$ref": "#/$defs/Node" } },
            "required": ["left"], "additionalProperties": false },
    } });
    let mut random = Random(9);
    let drawn: Vec<Value> = (0..40)
        .filter_map(|_| {
            let mut constraint = vocabulary.compile(&Grammar::JsonSchema(tree.clone())).unwrap();
            vocabulary.draw(&mut constraint, &mut random, 600)
        })
        .map(|text| serde_json::from_str(&text).unwrap())
        .collect();
    assert!(
        drawn.iter().any(|node| node["kind"] == "leaf") && drawn.iter().any(|node| node["kind"] == "both")
    );
    assert!(drawn.iter().all(|node| node["kind"] == "leaf" || node["left"]["kind"].is_string()), "{drawn:?}");
    // Nothing tells these apart: the compiler's own refusal.
    for schema in [union(json!([]), Value::Null), union(json!(["kind"]), told)] {
        let error = vocabulary.compile(&Grammar::JsonSchema(schema)).unwrap_err().to_string();
        assert!(error.contains("oneOf"), "{error}");
    }
}

/// What a mask of 128,000 tokens costs: the step that runs beside it takes longer.
#[test]
fn masks_of_a_large_vocabulary_are_fast() {
    let started = Instant::now();
    let vocabulary = Vocabulary::large(128_000);
    println!("the vocabulary in {:.1?}", started.elapsed());
    let person = json!({ "type": "object", "properties": { "name": { "type": "string" }, "age": { "type": "integer" },
        "tags": { "type": "array", "items": { "enum": ["red", "green", "blue"] } } }, "required": ["name", "age"],
        "additionalProperties": false });
    for (what, grammar) in [
        ("any object", Grammar::JsonObject),
        ("a schema", Grammar::JsonSchema(person)),
        ("a pattern", Grammar::Regex("([a-z]+ ){3,40}".into())),
    ] {
        let started = Instant::now();
        let mut constraint = vocabulary.compile(&grammar).unwrap();
        let compiled = started.elapsed();
        let (mut random, mut times) = (Random(3), Vec::new());
        for _ in 0..300 {
            let started = Instant::now();
            let mask = constraint.mask().unwrap();
            times.push(started.elapsed());
            let mut token = random.below(128_000) as u32;
            while !mask.allows(token) {
                token = (token + 1) % 128_000;
            }
            if token == vocabulary.eos {
                break;
            }
            constraint.accept(token).unwrap();
            if constraint.is_complete() {
                constraint = vocabulary.compile(&grammar).unwrap();
            }
        }
        times.sort_unstable();
        let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
        println!(
            "{what}: compiled in {compiled:.1?}, {} masks: median {median:.1?}, longest {most:.1?}",
            times.len()
        );
        assert!(median < Duration::from_millis(20), "{what}: {median:?}");
    }
}
