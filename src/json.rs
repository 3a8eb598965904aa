//! JSON read strictly: duplicate keys (escaped twins too), NaN, nesting bombs and floods of values are refused before they
//! cost anything. One reader for the files of a model and the bodies of requests, which differ in limits and values.
//!
//! [`strict`] makes values of a text. [`typed`] checks a text in the same way, keeps nothing of it, and hands it to a type of
//! serde's, which by itself would pass over keys that are given twice. [`generated`] is for what a model wrote.

mod fields;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor,
};

use smallvec::SmallVec;

use crate::error::{Error, Result};

pub(crate) use fields::Fields;

/// Bytes of the largest JSON file that is read.
pub(crate) const MAX_FILE: u64 = 64 << 20;
/// `config.json` nests three levels deep; the index of the largest published model has 92,000 values, which at 112 bytes each
/// stay below 32 MiB.
const LIMITS: Limits = Limits { depth: 32, values: 1 << 18 };

/// A JSON file of a tokenizer. Gemma's, the largest, has 1.9 million values, most of them those of its merges; nothing is kept of a
/// value that is only counted.
pub(crate) const LONG: Limits = Limits { depth: 32, values: 1 << 23 };
/// What a person or a client asks. Schemas of tools are the deepest that is honest; at 72 bytes each, as many values stay below
/// 20 MiB.
pub(crate) const ASKED: Limits = Limits { depth: 64, values: 1 << 18 };

/// What a text may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Deepest nesting.
    pub depth: usize,
    /// Values, those within others counted.
    pub values: usize,
}

/// A value that JSON is read into.
pub(crate) trait Json: Sized {
    /// The members of an object.
    type Members: Default;

    fn null() -> Self;
    fn bool(b: bool) -> Self;
    fn unsigned(n: u64) -> Self;
    /// Negative integers only.
    fn negative(n: i64) -> Self;
    /// Finite.
    fn float(x: f64) -> Self;
    fn string(s: &str) -> Self;
    fn array(items: Vec<Self>) -> Self;
    fn object(members: Self::Members) -> Self;
    /// Whether a member is the first of its key, which it may take.
    fn is_first(members: &mut Self::Members, key: &mut String) -> bool;
    /// Adds a member that is the first of its key; empty where the key was taken.
    fn insert(members: &mut Self::Members, key: String, value: Self);
}

/// Reads the one value of a text within limits.
///
/// # Errors
/// What is no JSON, a key given twice (escaped twins too), numbers out of range, and what is beyond the limits.
pub(crate) fn strict<V: Json>(text: &str, limits: Limits) -> serde_json::Result<V> {
    let mut left = limits.values;
    let mut json = serde_json::Deserializer::from_str(text);
    let value = Seed { depth: 0, left: &mut left, limits, made: PhantomData }.deserialize(&mut json)?;
    json.end()?;
    Ok(value)
}

/// Reads what a person wrote, as strictly as the body of a request.
///
/// # Errors
/// Those of the reader: what is no JSON, keys given twice, numbers out of range, nesting over 64.
pub fn strict_json(text: &str) -> serde_json::Result<serde_json::Value> {
    strict(text, ASKED)
}

/// Reads a text within limits into a type of serde's; strings without escapes are borrowed from the text.
///
/// # Errors
/// Those of [`strict`], and what the type refuses.
pub(crate) fn typed<'a, T: Deserialize<'a>>(text: &'a str, limits: Limits) -> serde_json::Result<T> {
    let Checked = strict(text, limits)?;
    serde_json::from_str(text)
}

/// Reads what a model wrote, or a template in its place. A key that is given twice is no error: the last counts, as for all
/// who read the answer, and grammars of calls cannot keep a model from it.
///
/// # Errors
/// What is no JSON, is nested over 127 deep, or is no `T`.
pub(crate) fn generated<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(text)
}

/// As [`generated`], of the value that a text begins with, and its length in bytes; none where it begins with none.
pub(crate) fn generated_prefix(text: &str) -> Option<(serde_json::Value, usize)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let value = values.next()?.ok()?;
    Some((value, values.byte_offset()))
}

/// The members of an object, in key order.
pub(crate) type Object = BTreeMap<String, Value>;

/// A JSON value; integers that fit keep their exact value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    UInt(u64),
    /// Negative integers only.
    Int(i64),
    Float(f64),
    String(String),
    Array(Vec<Value>),
    Object(Object),
}

impl Json for Value {
    type Members = Object;

    fn null() -> Self {
        Self::Null
    }

    fn bool(b: bool) -> Self {
        Self::Bool(b)
    }

    fn unsigned(n: u64) -> Self {
        Self::UInt(n)
    }

    fn negative(n: i64) -> Self {
        Self::Int(n)
    }

    fn float(x: f64) -> Self {
        Self::Float(x)
    }

    fn string(s: &str) -> Self {
        Self::String(s.to_owned())
    }

    fn array(items: Vec<Self>) -> Self {
        Self::Array(items)
    }

    fn object(members: Object) -> Self {
        Self::Object(members)
    }

    fn is_first(members: &mut Object, key: &mut String) -> bool {
        !members.contains_key(key)
    }

    fn insert(members: &mut Object, key: String, value: Self) {
        members.insert(key, value);
    }
}

impl Json for serde_json::Value {
    type Members = serde_json::Map<String, Self>;

    fn null() -> Self {
        Self::Null
    }

    fn bool(b: bool) -> Self {
        b.into()
    }

    fn unsigned(n: u64) -> Self {
        n.into()
    }

    fn negative(n: i64) -> Self {
        n.into()
    }

    fn float(x: f64) -> Self {
        x.into()
    }

    fn string(s: &str) -> Self {
        s.into()
    }

    fn array(items: Vec<Self>) -> Self {
        items.into()
    }

    fn object(members: Self::Members) -> Self {
        members.into()
    }

    fn is_first(members: &mut Self::Members, key: &mut String) -> bool {
        !members.contains_key(key)
    }

    fn insert(members: &mut Self::Members, key: String, value: Self) {
        members.insert(key, value);
    }
}

/// A value that was read and not kept.
struct Checked;

/// The keys of an object that is checked. Most objects have a few, a vocabulary hundreds of thousands.
#[derive(Default)]
struct Keys {
    few: SmallVec<[String; 8]>,
    many: HashSet<String>,
}

impl Json for Checked {
    type Members = Keys;

    fn null() -> Self {
        Self
    }

    fn bool(_: bool) -> Self {
        Self
    }

    fn unsigned(_: u64) -> Self {
        Self
    }

    fn negative(_: i64) -> Self {
        Self
    }

    fn float(_: f64) -> Self {
        Self
    }

    fn string(_: &str) -> Self {
        Self
    }

    fn array(_: Vec<Self>) -> Self {
        Self
    }

    fn object(_: Keys) -> Self {
        Self
    }

    fn is_first(keys: &mut Keys, key: &mut String) -> bool {
        if keys.few.contains(key) {
            return false;
        }
        let taken = std::mem::take(key);
        if keys.few.len() < keys.few.inline_size() {
            keys.few.push(taken);
            return true;
        }
        match keys.many.replace(taken) {
            None => true,
            Some(other) => {
                *key = other;
                false
            }
        }
    }

    fn insert(_: &mut Keys, _: String, _: Self) {}
}

impl fmt::Display for Value {
    /// The value as an error shows it: scalars as written, containers by their size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::UInt(n) => write!(f, "{n}"),
            Self::Int(n) => write!(f, "{n}"),
            Self::Float(x) => write!(f, "{x:?}"),
            Self::String(s) => f.write_str(&quote(s)),
            Self::Array(items) => write!(f, "a list of {}", items.len()),
            Self::Object(members) => write!(f, "an object of {} members", members.len()),
        }
    }
}

/// A string of a file as an error shows it: quoted, control characters escaped, at most 96 characters.
pub(crate) fn quote(s: &str) -> String {
    match s.char_indices().nth(96) {
        None => format!("{s:?}"),
        Some((end, _)) => format!("{:?}… ({} bytes)", &s[..end], s.len()),
    }
}

fn check_len(path: &Path, len: u64) -> Result<()> {
    if len > MAX_FILE {
        return Err(Error::format(path, format!("file is {len} bytes, expected at most {MAX_FILE}")));
    }
    Ok(())
}

/// Parses a file whose outermost value is an object.
pub(crate) fn parse_object(path: &Path, bytes: &[u8]) -> Result<Object> {
    check_len(path, bytes.len() as u64)?;
    let text = std::str::from_utf8(bytes).map_err(|e| Error::format(path, format!("not UTF-8: {e}")))?;
    let value = strict(text, LIMITS).map_err(|e| Error::format(path, format!("not valid JSON: {e}")))?;
    match value {
        Value::Object(members) => Ok(members),
        other => Err(Error::format(path, format!("outermost value is {other}, expected an object"))),
    }
}

/// A `config.json` as it may be that Python wrote: `Infinity`, which is no JSON, becomes what transformers 5 has in its place,
/// `{"__float__": "Infinity"}`.
pub(crate) fn of_python(bytes: &[u8]) -> Cow<'_, [u8]> {
    const WORD: &[u8] = b"Infinity";
    // Configurations are short.
    if bytes.len() > 1 << 20 || !bytes.windows(WORD.len()).any(|at| at == WORD) {
        return Cow::Borrowed(bytes);
    }
    let (mut out, mut in_string, mut rest) = (Vec::with_capacity(2 * bytes.len()), false, bytes);
    while let Some((&byte, after)) = rest.split_first() {
        if !in_string && rest.starts_with(WORD) && out.last() != Some(&b'-') {
            out.extend_from_slice(br#"{"__float__": "Infinity"}"#);
            rest = &rest[WORD.len()..];
            continue;
        }
        out.push(byte);
        rest = after;
        match (byte, after.split_first()) {
            (b'"', _) => in_string = !in_string,
            (b'\\', Some((&escaped, after))) if in_string => {
                out.push(escaped);
                rest = after;
            }
            _ => {}
        }
    }
    Cow::Owned(out)
}

/// As [`parse_object`], for values that go to where serde's are taken.
pub(crate) fn parse_members(path: &Path, bytes: &[u8]) -> Result<serde_json::Map<String, serde_json::Value>> {
    check_len(path, bytes.len() as u64)?;
    let text = std::str::from_utf8(bytes).map_err(|e| Error::format(path, format!("not UTF-8: {e}")))?;
    match strict(text, LIMITS).map_err(|e| Error::format(path, format!("not valid JSON: {e}")))? {
        serde_json::Value::Object(members) => Ok(members),
        _ => Err(Error::format(path, "expected an object outermost")),
    }
}

/// Parses a file of long lists into a type of serde's, within `limits`.
pub(crate) fn parse_typed<'a, T: Deserialize<'a>>(path: &Path, bytes: &'a [u8], limits: Limits) -> Result<T> {
    check_len(path, bytes.len() as u64)?;
    let text = std::str::from_utf8(bytes).map_err(|e| Error::format(path, format!("not UTF-8: {e}")))?;
    typed(text, limits).map_err(|e| Error::format(path, format!("not valid JSON: {e}")))
}

/// A member that a type of [`typed`] keeps as a value, with as few values as [`parse_object`] takes: for
/// `deserialize_with`.
pub(crate) fn strict_member<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<serde_json::Value, D::Error> {
    let mut left = LIMITS.values;
    Seed { depth: 0, left: &mut left, limits: LIMITS, made: PhantomData }.deserialize(deserializer)
}

struct Seed<'a, V> {
    depth: usize,
    left: &'a mut usize,
    limits: Limits,
    made: PhantomData<V>,
}

impl<V> Seed<'_, V> {
    fn inner(&mut self) -> Seed<'_, V> {
        Seed { depth: self.depth + 1, left: self.left, limits: self.limits, made: PhantomData }
    }

    fn enter<E: de::Error>(&self) -> Result<(), E> {
        if self.depth >= self.limits.depth {
            return Err(E::custom(format_args!("nesting deeper than {}", self.limits.depth)));
        }
        Ok(())
    }
}

impl<'de, V: Json> DeserializeSeed<'de> for Seed<'_, V> {
    type Value = V;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V, D::Error> {
        let most = self.limits.values;
        let left = self.left.checked_sub(1);
        *self.left = left.ok_or_else(|| de::Error::custom(format_args!("more than {most} values")))?;
        deserializer.deserialize_any(self)
    }
}

impl<'de, V: Json> Visitor<'de> for Seed<'_, V> {
    type Value = V;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<V, E> {
        Ok(V::null())
    }

    fn visit_bool<E>(self, b: bool) -> Result<V, E> {
        Ok(V::bool(b))
    }

    fn visit_u64<E>(self, n: u64) -> Result<V, E> {
        Ok(V::unsigned(n))
    }

    fn visit_i64<E>(self, n: i64) -> Result<V, E> {
        Ok(u64::try_from(n).map_or_else(|_| V::negative(n), V::unsigned))
    }

    fn visit_f64<E>(self, x: f64) -> Result<V, E> {
        Ok(V::float(x))
    }

    fn visit_str<E>(self, s: &str) -> Result<V, E> {
        Ok(V::string(s))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<V, A::Error> {
        self.enter()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.inner())? {
            items.push(item);
        }
        Ok(V::array(items))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<V, A::Error> {
        self.enter()?;
        let mut members = V::Members::default();
        while let Some(mut key) = map.next_key::<String>()? {
            if !V::is_first(&mut members, &mut key) {
                return Err(de::Error::custom(format_args!("duplicate key {}", quote(&key))));
            }
            let value = map.next_value_seed(self.inner())?;
            V::insert(&mut members, key, value);
        }
        Ok(V::object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, what: &str) {
        let error = parse_object(Path::new("config.json"), text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("config.json: ") && error.contains(what), "{error}");
    }

    #[test]
    fn what_is_read_into_types_is_as_strict() {
        #[derive(Debug, serde::Deserialize)]
        struct Named<'a> {
            name: &'a str,
        }
        let read = |text: &'static str| typed::<Named<'_>>(text, Limits { depth: 2, values: 12 });
        assert_eq!(read(r#"{"name": "x", "other": [1, "1", null]}"#).unwrap().name, "x");
        let nine = r#"{"a":0,"b":0,"c":0,"d":0,"e":0,"f":0,"g":0,"h":0,"i":0,"name":"x"}"#;
        assert_eq!(read(nine).unwrap().name, "x");
        for (text, what) in [
            // Members that the type passes over count too.
            (r#"{"name": "x", "o": {"a": 1, "a": 1}}"#, "duplicate key \"a\""),
            (r#"{"name": "x", "nam\u0065": "y"}"#, "duplicate key \"name\""),
            (r#"{"a":0,"b":0,"c":0,"d":0,"e":0,"f":0,"g":0,"h":0,"i":0,"i":0}"#, "duplicate key \"i\""),
            (r#"{"a":0,"b":0,"c":0,"d":0,"e":0,"f":0,"g":0,"h":0,"i":0,"a":0}"#, "duplicate key \"a\""),
            (r#"{"name": "x", "o": [[1]]}"#, "nesting deeper than 2"),
            (r#"{"name": "x", "o": [1,2,3,4,5,6,7,8,9,10]}"#, "more than 12 values"),
            (r#"{"name": "x"} x"#, "trailing characters"),
            (r#"{"name": 1}"#, "invalid type"),
            (r#"{}"#, "missing field `name`"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn an_infinity_of_python_s_is_one_of_transformers() {
        for (python, expected) in [
            (
                r#"{"a": [0.0, Infinity], "b": Infinity}"#,
                r#"{"a": [0.0, {"__float__": "Infinity"}], "b": {"__float__": "Infinity"}}"#,
            ),
            (r#"{"Infinity": "\\\"Infinity", "a": "\\"}"#, r#"{"Infinity": "\\\"Infinity", "a": "\\"}"#),
            (r#"{"a": -Infinity}"#, r#"{"a": -Infinity}"#),
            (r#"{"a": Inf}"#, r#"{"a": Inf}"#),
        ] {
            assert_eq!(std::str::from_utf8(&of_python(python.as_bytes())).unwrap(), expected);
        }
    }

    #[test]
    fn hostile_json_is_refused() {
        refused(r#"{"a": 1, "a": 2}"#, "duplicate key \"a\"");
        refused(r#"{"a": 1, "\u0061": 2}"#, "duplicate key \"a\"");
        refused(r#"{"a": NaN}"#, "expected value");
        refused(r#"{"a": Infinity}"#, "expected value");
        refused(r#"{"a": -Infinity}"#, "invalid number");
        refused(r#"{"a": 1e999}"#, "number out of range");
        refused(r#"{"a": 1} x"#, "trailing characters");
        refused(r#"{"a": 1"#, "EOF");
        refused("[1]", "a list of 1, expected an object");
        refused("", "EOF");
        refused(&format!("{{\"a\": {}", "[".repeat(1 << 20)), "nesting deeper than 32");
        refused(&format!("{{\"a\": {}", "{\"a\":".repeat(1 << 20)), "nesting deeper than 32");
        refused(&format!("{{\"a\": [{}0]}}", "0,".repeat(1 << 19)), "more than 262144 values");
        let error = parse_object(Path::new("f"), b"{\"\xff\": 1}").unwrap_err().to_string();
        assert!(error.contains("not UTF-8"), "{error}");
        let big = vec![b' '; (MAX_FILE + 1) as usize];
        let error = parse_object(Path::new("f"), &big).unwrap_err().to_string();
        assert_eq!(error, "f: file is 67108865 bytes, expected at most 67108864");
    }
}
