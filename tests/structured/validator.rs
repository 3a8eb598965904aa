//! Whether a value is what a schema says: the keywords that the tests use, by their definition (JSON Schema 2020-12).

use std::net::Ipv4Addr;

use serde_json::{Map, Value};

/// What is wrong with `value`; nothing where `schema` allows it.
pub fn check(schema: &Value, value: &Value) -> Result<(), String> {
    let members = match schema {
        Value::Bool(true) => return Ok(()),
        Value::Object(members) => members,
        other => return Err(format!("{other} allows nothing")),
    };
    for (keyword, of) in members {
        if !keyword_allows(members, keyword, of, value) {
            return Err(format!("{keyword}: {of} does not allow {value}"));
        }
    }
    Ok(())
}

fn ok(schema: &Value, value: &Value) -> bool {
    check(schema, value).is_ok()
}

fn keyword_allows(schema: &Map<String, Value>, keyword: &str, of: &Value, value: &Value) -> bool {
    let list = || of.as_array().unwrap();
    let limit = || of.as_f64().unwrap();
    let number = |holds: &dyn Fn(f64) -> bool| value.as_f64().is_none_or(holds);
    let text = |holds: &dyn Fn(&str) -> bool| value.as_str().is_none_or(holds);
    let items = |holds: &dyn Fn(&[Value]) -> bool| value.as_array().is_none_or(|items| holds(items));
    let object = |holds: &dyn Fn(&Map<String, Value>) -> bool| value.as_object().is_none_or(holds);
    match keyword {
        "type" => match of {
            Value::Array(names) => names.iter().any(|name| is_type(value, name.as_str().unwrap())),
            name => is_type(value, name.as_str().unwrap()),
        },
        "const" => of == value,
        "enum" => list().contains(value),
        "anyOf" => list().iter().any(|schema| ok(schema, value)),
        "oneOf" => list().iter().filter(|schema| ok(schema, value)).count() == 1,
        "allOf" => list().iter().all(|schema| ok(schema, value)),
        "minimum" => number(&|x| x >= limit()),
        "maximum" => number(&|x| x <= limit()),
        "exclusiveMinimum" => number(&|x| x > limit()),
        "exclusiveMaximum" => number(&|x| x < limit()),
        "multipleOf" => number(&|x| (x / limit()).fract() == 0.0),
        "minLength" => text(&|text| text.chars().count() as f64 >= limit()),
        "maxLength" => text(&|text| text.chars().count() as f64 <= limit()),
        "pattern" => text(&|text| matches_pattern(of.as_str().unwrap(), text)),
        "format" => text(&|text| has_format(of.as_str().unwrap(), text)),
        "minItems" => items(&|items| items.len() as f64 >= limit()),
        "maxItems" => items(&|items| items.len() as f64 <= limit()),
        "prefixItems" => items(&|items| list().iter().zip(items).all(|(schema, item)| ok(schema, item))),
        "items" => items(&|items| {
            let first = schema.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
            items.iter().skip(first).all(|item| ok(of, item))
        }),
        "required" => {
            object(&|members| list().iter().all(|name| members.contains_key(name.as_str().unwrap())))
        }
        "minProperties" => object(&|members| members.len() as f64 >= limit()),
        "maxProperties" => object(&|members| members.len() as f64 <= limit()),
        "properties" => object(&|members| {
            members.iter().all(|(name, value)| of.get(name).is_none_or(|schema| ok(schema, value)))
        }),
        "patternProperties" => object(&|members| {
            let all = of.as_object().unwrap();
            members.iter().all(|(name, value)| {
                all.iter().all(|(pattern, schema)| !matches_pattern(pattern, name) || ok(schema, value))
            })
        }),
        "additionalProperties" => object(&|members| {
            let named = |name: &String| schema.get("properties").is_some_and(|all| all.get(name).is_some());
            let patterns = schema.get("patternProperties").and_then(Value::as_object);
            let matched =
                |name: &String| patterns.is_some_and(|all| all.keys().any(|p| matches_pattern(p, name)));
            members.iter().all(|(name, value)| named(name) || matched(name) || ok(of, value))
        }),
        other => panic!("the test knows no {other}"),
    }
}

fn is_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|x| x.fract() == 0.0),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type is {other}"),
    }
}

/// The patterns of the tests, each by hand: a library's would be that of what is tested.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let letters = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase());
    match pattern {
        "^[a-z]{2,5}$" => letters(text) && (2..=5).contains(&text.len()),
        "^\\d+(\\.\\d+)?$" => match text.split_once('.') {
            Some((whole, part)) => digits(whole) && digits(part),
            None => digits(text),
        },
        "b" => text.contains('b'),
        "^(é|日本|😀)+$" => {
            !text.is_empty() && text.replace("日本", "é").chars().all(|c| c == 'é' || c == '😀')
        }
        "^x_[a-z]+$" => text.strip_prefix("x_").is_some_and(letters),
        other => panic!("the test knows no pattern {other}"),
    }
}

fn has_format(format: &str, text: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let host = |text: &str| {
        text.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
    };
    match format {
        "uuid" => text.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && text.split('-').all(hex),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "hostname" => host(text),
        "email" => text.rsplit_once('@').is_some_and(|(local, domain)| {
            !local.is_empty() && (host(domain) || (domain.starts_with('[') && domain.ends_with(']')))
        }),
        "time" => {
            let fields: Vec<u8> =
                [0, 3, 6].iter().filter_map(|&at| text.get(at..at + 2)?.parse().ok()).collect();
            let zone =
                text.ends_with(['z', 'Z']) || text.rfind(['+', '-']).is_some_and(|at| text.len() == at + 6);
            matches!(fields[..], [0..24, 0..60, 0..61]) && zone
        }
        other => panic!("the test knows no format {other}"),
    }
}
