//! What of a JSON schema can be enforced: everything else is refused by name before it is compiled.

use std::collections::{BTreeSet, HashSet};

use llguidance::derivre::RegexBuilder;
use llguidance::regex_to_lark;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Bytes of a schema written without spaces.
pub(super) const MAX_BYTES: usize = 256 << 10;
/// Schemas within a schema.
const MAX_SCHEMAS: usize = 4096;
/// How deep schemas and values nest.
const MAX_DEPTH: usize = 64;
/// References that lead to references.
const MAX_HOPS: usize = 16;
/// What lengths and counts are bounded by: a text has fewer tokens.
const MAX_COUNT: u64 = 1 << 20;

/// Between the parts of a value: nothing, a space, or a line end and what indents the next line. Where any white space
/// may follow any, a model can write it until its tokens are used up.
const WHITESPACE: &str = r"\x20|\x0A[\x20\x09]{0,32}";

/// Said about a value, and no condition on it.
const ANNOTATIONS: [&str; 15] = [
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "discriminator",
    "contentMediaType",
    "contentEncoding",
    "contentSchema",
    "$schema",
    "strict",
];

/// Formats that are enforced, but for what a pattern cannot see: every February has 29 days, every minute may have a leap second,
/// and the lengths of an address and of a host name are not bounded.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Keywords of JSON Schema that no grammar here can enforce.
const UNENFORCED: [&str; 20] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "$anchor",
    "$vocabulary",
];

/// The schema as it is compiled: without annotations, with the white space that is allowed.
///
/// # Errors
/// [`Error::Schema`] with the place and the keyword that cannot be enforced, is malformed, or is over a limit.
pub(super) fn prepare(schema: &Value) -> Result<Value> {
    let mut screen = Screen {
        root: schema,
        places: HashSet::new(),
        references: Vec::new(),
        refers_into_unions: false,
        asked: Vec::new(),
    };
    // Depth first: what follows recurses.
    screen.depth(schema, "", 0)?;
    let text = schema.to_string();
    screen.refers_into_unions = text.contains("/oneOf/");
    let bytes = text.len();
    if bytes > MAX_BYTES {
        return refuse("", "", format!("{bytes} bytes, expected at most {MAX_BYTES}"));
    }
    let prepared = match screen.schema(schema, "")? {
        Value::Bool(true) => Map::new(),
        Value::Object(members) => members,
        _ => return refuse("", "false", "no value is allowed"),
    };
    for (path, target) in &screen.references {
        if !screen.places.contains(target) {
            return refuse(path, "$ref", format!("{target:?} is no schema within this one"));
        }
    }
    let mut prepared = Value::Object(prepared);
    for (place, name) in &screen.asked {
        // A place within a union has another name by now.
        match prepared.pointer_mut(place) {
            Some(target) => ask_for(target, name),
            None => return refuse(place, "oneOf", "what it refers to cannot be told apart"),
        }
    }
    let Value::Object(mut prepared) = prepared else { return refuse("", "", "it is no object") };
    prepared.insert("x-guidance".into(), json!({ "whitespace_pattern": WHITESPACE }));
    Ok(Value::Object(prepared))
}

fn refuse<T>(path: &str, keyword: &str, what: impl Into<String>) -> Result<T> {
    let path = if path.is_empty() { "#".to_owned() } else { format!("#{path}") };
    Err(Error::Schema { path, keyword: keyword.to_owned(), what: what.into() })
}

struct Screen<'a> {
    /// What references point into.
    root: &'a Value,
    /// Where schemas are, as `$ref` writes it.
    places: HashSet<String>,
    /// Where a `$ref` is, and what it says.
    references: Vec<(String, String)>,
    /// Whether a reference may lead into a `oneOf`, which then has to keep its name.
    refers_into_unions: bool,
    /// Places of schemas that have to ask for a property.
    asked: Vec<(String, String)>,
}

impl Screen<'_> {
    fn depth(&self, value: &Value, keyword: &str, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return refuse("", keyword, format!("it nests deeper than {MAX_DEPTH}"));
        }
        match value {
            Value::Array(items) => items.iter().try_for_each(|v| self.depth(v, keyword, depth + 1)),
            Value::Object(members) => members.iter().try_for_each(|(k, v)| self.depth(v, k, depth + 1)),
            _ => Ok(()),
        }
    }

    fn schema(&mut self, schema: &Value, path: &str) -> Result<Value> {
        self.places.insert(format!("#{path}"));
        if self.places.len() > MAX_SCHEMAS {
            return refuse(path, "", format!("more than {MAX_SCHEMAS} schemas"));
        }
        let members = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(members) => members,
            other => {
                return refuse(path, "", format!("{other} is no schema, expected an object or a boolean"));
            }
        };
        let mut kept = Map::new();
        for (keyword, value) in members {
            if let Some(value) = self.keyword(members, keyword, value, path)? {
                kept.insert(keyword.clone(), value);
            }
        }
        if let Some(choices) = members.get("oneOf").and_then(Value::as_array)
            && !members.contains_key("anyOf")
            && !self.refers_into_unions
            && let Some(required) = self.apart(choices, members)
            && let Some(Value::Array(mut list)) = kept.shift_remove("oneOf")
        {
            if let Some(name) = required {
                list.iter_mut()
                    .zip(choices)
                    .for_each(|(kept, choice)| self.require(kept, choice, name.clone()));
            }
            kept.insert("anyOf".into(), list.into());
        }
        Ok(Value::Object(kept))
    }

    /// Whether no value is of two of `choices`: by their types, or by a property of different constants. The name of that
    /// property, where it has yet to be required. The compiler sees as much, but not through references.
    fn apart(&self, choices: &[Value], members: &Map<String, Value>) -> Option<Option<String>> {
        let disjoint = |sets: Option<Vec<Vec<String>>>| {
            let all: Option<Vec<String>> = sets.map(|sets| sets.concat());
            all.is_some_and(|all| all.iter().collect::<HashSet<_>>().len() == all.len())
        };
        let choices: Vec<&Map<String, Value>> =
            choices.iter().map(|choice| self.target(choice)?.as_object()).collect::<Option<_>>()?;
        if disjoint(choices.iter().map(|choice| types(choice)).collect()) {
            return Some(None);
        }
        // Of a value that is no object, a property says nothing.
        if choices.iter().any(|choice| choice.get("type").is_none_or(|kind| kind != "object")) {
            return None;
        }
        let told = members.get("discriminator").and_then(|told| told.get("propertyName")?.as_str());
        choices.first()?.get("properties")?.as_object()?.keys().find_map(|name| {
            let values = |choice: &Map<String, Value>| constants(choice.get("properties")?.get(name)?);
            let required = |choice: &Map<String, Value>| {
                let all = choice.get("required").and_then(Value::as_array);
                all.is_some_and(|all| all.iter().any(|one| one == name.as_str()))
            };
            let everywhere = choices.iter().all(|choice| required(choice));
            let tells = everywhere || told == Some(name.as_str());
            let apart = tells && disjoint(choices.iter().map(|&choice| values(choice)).collect());
            apart.then(|| (!everywhere).then(|| name.clone()))
        })
    }

    /// Has a choice ask for a property, the one that tells it from the others: one that is absent tells nothing. What a
    /// reference leads to asks for it everywhere, which allows less and nothing else.
    fn require(&mut self, kept: &mut Value, choice: &Value, name: String) {
        match self.place(choice) {
            Some(place) => self.asked.push((place, name)),
            None => ask_for(kept, &name),
        }
    }

    /// The place that a schema's reference leads to in the end, as a JSON pointer; none where it is no reference.
    fn place(&self, schema: &Value) -> Option<String> {
        let (mut schema, mut place) = (schema, None);
        for _ in 0..MAX_HOPS {
            let Some(reference) = schema.get("$ref").and_then(Value::as_str) else { break };
            let pointer = reference.strip_prefix('#').unwrap_or(reference);
            schema = self.root.pointer(pointer)?;
            place = Some(pointer.to_owned());
        }
        place
    }

    /// What a schema's reference leads to, where it is one.
    fn target<'b>(&'b self, schema: &'b Value) -> Option<&'b Value> {
        let mut schema = schema;
        for _ in 0..MAX_HOPS {
            let Some(reference) = schema.get("$ref").and_then(Value::as_str) else { return Some(schema) };
            let pointer = reference.strip_prefix('#').unwrap_or(reference);
            schema = self.root.pointer(pointer)?;
        }
        None
    }

    /// A keyword as it is compiled; nothing where it says nothing about values.
    fn keyword(
        &mut self,
        members: &Map<String, Value>,
        keyword: &str,
        value: &Value,
        path: &str,
    ) -> Result<Option<Value>> {
        let here = format!("{path}/{}", escape(keyword));
        let kept = match keyword {
            "items" if value.is_array() => self.list(value, keyword, path, &here)?,
            "items" | "additionalItems" | "additionalProperties" => self.schema(value, &here)?,
            "anyOf" | "oneOf" | "allOf" | "prefixItems" => self.list(value, keyword, path, &here)?,
            "properties" | "patternProperties" | "$defs" | "definitions" => {
                let Some(map) = value.as_object() else {
                    return refuse(path, keyword, "expected an object of schemas");
                };
                let mut kept = Map::new();
                for (name, schema) in map {
                    if keyword == "patternProperties" {
                        pattern(name, path, keyword)?;
                    }
                    kept.insert(name.clone(), self.schema(schema, &format!("{here}/{}", escape(name)))?);
                }
                Value::Object(kept)
            }
            "$ref" => {
                let Some(target) = value.as_str() else { return refuse(path, keyword, "expected a string") };
                // Some clients leave out the sign that says: within this schema.
                let sign = if target.starts_with('/') { "#" } else { "" };
                let target = format!("{sign}{target}");
                self.references.push((path.to_owned(), target.clone()));
                target.into()
            }
            "pattern" => {
                let Some(text) = value.as_str() else { return refuse(path, keyword, "expected a string") };
                pattern(text, path, keyword)?;
                value.clone()
            }
            "format" => match value.as_str() {
                Some(name) if FORMATS.contains(&name) => value.clone(),
                Some(name) => {
                    passed_over(name);
                    return Ok(None);
                }
                None => return refuse(path, keyword, "expected a string"),
            },
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                if value.as_u64().is_none_or(|n| n > MAX_COUNT) {
                    return refuse(
                        path,
                        keyword,
                        format!("{value}, expected a whole number up to {MAX_COUNT}"),
                    );
                }
                self.count(members, keyword, value, path)?;
                value.clone()
            }
            "exclusiveMinimum" | "exclusiveMaximum" => {
                self.bounds(members, keyword, path)?;
                value.clone()
            }
            "enum" | "const" | "type" | "required" | "minimum" | "maximum" | "multipleOf" => value.clone(),
            "uniqueItems" if *value == Value::Bool(false) => return Ok(None),
            // The root's own name changes nothing, since references name places within it.
            "$id" | "id" if path.is_empty() => return Ok(None),
            "$schema" => value.clone(),
            _ if ANNOTATIONS.contains(&keyword) => return Ok(None),
            _ if keyword.starts_with("x-") && keyword != "x-guidance" => return Ok(None),
            _ if UNENFORCED.contains(&keyword) => return refuse(path, keyword, "it cannot be enforced"),
            _ => return refuse(path, keyword, "it is no keyword that can be enforced"),
        };
        Ok(Some(kept))
    }

    fn list(&mut self, value: &Value, keyword: &str, path: &str, here: &str) -> Result<Value> {
        let Some(list) = value.as_array() else { return refuse(path, keyword, "expected a list of schemas") };
        let list = list.iter().enumerate().map(|(i, schema)| self.schema(schema, &format!("{here}/{i}")));
        Ok(Value::Array(list.collect::<Result<_>>()?))
    }

    /// Of a number between two bounds with one whole part, the compiler takes an exclusive bound for an inclusive one.
    fn bounds(&self, members: &Map<String, Value>, keyword: &str, path: &str) -> Result<()> {
        let bound = |names: [&str; 2]| names.into_iter().find_map(|name| members.get(name)?.as_f64());
        let low = bound(["exclusiveMinimum", "minimum"]);
        let high = bound(["exclusiveMaximum", "maximum"]);
        let close = low.zip(high).is_some_and(|(low, high)| low.trunc() == high.trunc());
        if close && members.get("type").is_none_or(|kind| kind != "integer") {
            return refuse(
                path,
                keyword,
                "beside another bound with the same whole part, it cannot be enforced",
            );
        }
        Ok(())
    }

    /// Names that the schema does not give could be written twice, which counts once: only one of them can be asked for.
    fn count(&self, members: &Map<String, Value>, keyword: &str, value: &Value, path: &str) -> Result<()> {
        let required = members.get("required").and_then(Value::as_array).map_or(0, Vec::len) as u64;
        if keyword == "minProperties" && value.as_u64().is_some_and(|n| n > required + 1) {
            let most = required + 1;
            return refuse(
                path,
                keyword,
                format!("{value}, at most {most} (one more than `required`) can be enforced"),
            );
        }
        Ok(())
    }
}

/// Adds a property to those that a schema requires.
fn ask_for(schema: &mut Value, name: &str) {
    let Some(members) = schema.as_object_mut() else { return };
    let required = members.entry("required").or_insert_with(|| json!([]));
    if let Some(required) = required.as_array_mut()
        && !required.iter().any(|one| one == name)
    {
        required.push(name.into());
    }
}

/// The types of the values of a schema; none where they are not known.
fn types(schema: &Map<String, Value>) -> Option<Vec<String>> {
    match schema.get("type")? {
        Value::String(kind) => Some(vec![kind.clone()]),
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
    // Every integer is a number.
    .filter(|kinds| !kinds.iter().any(|kind| kind == "number" || kind == "integer"))
}

/// The only values of a schema, as JSON; none where there are others.
fn constants(schema: &Value) -> Option<Vec<String>> {
    if let Some(value) = schema.get("const") {
        return Some(vec![value.to_string()]);
    }
    let values = schema.get("enum")?.as_array()?;
    Some(values.iter().map(Value::to_string).collect())
}

/// Tells of a format that is not enforced, once a name.
fn passed_over(format: &str) {
    /// Names that are remembered.
    const MOST: usize = 64;
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut told = TOLD.lock();
    if told.len() < MOST && told.insert(format.to_owned()) {
        let known = FORMATS.join(", ");
        tracing::warn!("the format {} of a schema is not enforced: {known} are", crate::json::quote(format));
    }
}

/// A name in a JSON pointer (RFC 6901).
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Refuses a pattern that cannot be compiled: look-around, back references, a syntax error.
fn pattern(pattern: &str, path: &str, keyword: &str) -> Result<()> {
    let made = RegexBuilder::new().mk_regex_for_serach(&regex_to_lark(pattern, "dw"));
    match made {
        Ok(_) => Ok(()),
        Err(error) => refuse(path, keyword, super::first_line(&error.to_string())),
    }
}

/// The schema of any object.
pub(super) fn any_object() -> Result<Value> {
    prepare(&json!({ "type": "object" }))
}
