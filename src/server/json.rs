//! Request bodies: JSON read strictly, and fields taken one by one; what nobody took is told of, or refused.
//!
//! A configuration's fields are looked at in place, in any order, and several times: they are `json::Fields`.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::failure::Failure;
use super::store::Caller;
use crate::json::{ASKED, strict};

/// The object in a body.
///
/// # Errors
/// 400 for what is no JSON object, for a key given twice (escaped twins too), numbers out of range, nesting over 64 and
/// more than 262,144 values.
pub(crate) fn parse(bytes: &[u8], notes: &Notes, caller: Caller) -> Result<Fields, Failure> {
    let bad = |what: String| Failure::bad(format!("the body is not valid JSON: {what}"));
    let text = std::str::from_utf8(bytes).map_err(|error| bad(format!("not UTF-8: {error}")))?;
    let value = strict(text, ASKED).map_err(|error| bad(error.to_string()))?;
    match value {
        Value::Object(members) => Ok(Fields { path: String::new(), members, notes: notes.clone(), caller }),
        other => Err(Failure::bad(format!("the body is {}, expected an object", shown(&other)))),
    }
}

/// A value as an error shows it: scalars as written, containers by their size.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => crate::json::quote(text),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(members) => format!("an object of {} members", members.len()),
        scalar => scalar.to_string(),
    }
}

/// What a request asks for that is passed over: the log and a header of the answer tell of it. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(Arc<Noted>);

#[derive(Debug, Default)]
struct Noted {
    /// Whether a field that is not known is refused.
    strict: bool,
    /// Names of fields.
    names: Mutex<Vec<String>>,
}

impl Notes {
    /// None yet. `strict`: fields that are not known are refused.
    pub fn new(strict: bool) -> Self {
        Self(Arc::new(Noted { strict, names: Mutex::default() }))
    }

    /// Passes a field over. What is beyond a number that anybody reads is not remembered.
    pub fn add(&self, name: String) {
        const MOST: usize = 64;
        let mut names = self.0.names.lock();
        if names.len() < MOST && !names.contains(&name) {
            names.push(name);
        }
    }

    /// The fields that were passed over.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.names.lock())
    }
}

/// The members of an object that have not been taken yet. Null counts as absent.
#[derive(Debug)]
pub(crate) struct Fields {
    /// Where the object is in the body, with a dot behind it; empty for the body itself.
    path: String,
    members: Map<String, Value>,
    notes: Notes,
    caller: Caller,
}

impl Fields {
    /// An object of the request, at `path`.
    pub fn at(&self, path: &str, value: Value) -> Result<Self, Failure> {
        match value {
            Value::Object(members) => {
                let (notes, caller) = (self.notes.clone(), self.caller.clone());
                Ok(Self { path: format!("{path}."), members, notes, caller })
            }
            other => Err(Failure::field(path, format_args!("expected an object, got {}", shown(&other)))),
        }
    }

    /// Whose key came with the request.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Whose kept beginnings the request may go on from: its key's, and of those what has the same `cache_salt`, vLLM's field.
    pub fn space(&mut self) -> Result<Option<Arc<str>>, Failure> {
        const MOST: usize = 256;
        let salt = self.string("cache_salt")?;
        if salt.as_ref().is_some_and(|salt| salt.is_empty() || salt.len() > MOST) {
            return Err(self.wrong("cache_salt", format_args!("expected 1 to {MOST} bytes")));
        }
        let Some(salt) = salt else { return Ok(self.caller.0.clone()) };
        // A hash has no line end.
        let key = self.caller.0.as_deref().unwrap_or_default();
        Ok(Some(format!("{key}\n{salt}").into()))
    }

    /// An object in the list `field`.
    pub fn item(&self, field: &str, index: usize, value: Value) -> Result<Self, Failure> {
        self.at(&format!("{}[{index}]", self.name(field)), value)
    }

    /// The full name of a field.
    pub fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// An error of a field.
    pub fn wrong(&self, field: &str, what: impl fmt::Display) -> Failure {
        Failure::field(&self.name(field), what)
    }

    pub fn take(&mut self, field: &str) -> Option<Value> {
        self.members.shift_remove(field).filter(|value| !value.is_null())
    }

    /// A field that stays to be taken.
    pub fn peek(&self, field: &str) -> Option<&Value> {
        self.members.get(field).filter(|value| !value.is_null())
    }

    /// Has `change` put a field into the form in which it is read.
    pub fn change(&mut self, field: &str, change: impl FnOnce(&mut Value)) {
        if let Some(value) = self.members.get_mut(field) {
            change(value);
        }
    }

    fn typed<T>(
        &mut self,
        field: &str,
        expected: &str,
        get: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match get(&value) {
            Some(typed) => Ok(Some(typed)),
            None => Err(self.wrong(field, format_args!("expected {expected}, got {}", shown(&value)))),
        }
    }

    pub fn string(&mut self, field: &str) -> Result<Option<String>, Failure> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field, format_args!("expected a string, got {}", shown(&other)))),
        }
    }

    pub fn required<T>(&self, field: &str, value: Option<T>) -> Result<T, Failure> {
        value.ok_or_else(|| self.wrong(field, "missing"))
    }

    pub fn flag(&mut self, field: &str) -> Result<Option<bool>, Failure> {
        self.typed(field, "true or false", Value::as_bool)
    }

    /// A number that `f32` holds as a finite one.
    pub fn number(&mut self, field: &str) -> Result<Option<f32>, Failure> {
        let finite = |value: &Value| value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        self.typed(field, "a number", finite)
    }

    pub fn whole(&mut self, field: &str, least: u64, most: u64) -> Result<Option<u64>, Failure> {
        let within = |value: &Value| value.as_u64().filter(|n| (least..=most).contains(n));
        self.typed(field, &format!("a whole number from {least} to {most}"), within)
    }

    /// Takes -1, which some clients send for no limit.
    pub fn none_below(&mut self, field: &str) {
        if self.peek(field).is_some_and(|value| value.as_i64() == Some(-1)) {
            self.take(field);
        }
    }

    /// A whole number of 64 bits, signed or not; -1 is none.
    pub fn seed(&mut self, field: &str) -> Result<Option<u64>, Failure> {
        self.none_below(field);
        let bits = |value: &Value| value.as_u64().or_else(|| Some(value.as_i64()? as u64));
        self.typed(field, "a whole number of 64 bits", bits)
    }

    pub fn object(&mut self, field: &str) -> Result<Option<Fields>, Failure> {
        let name = self.name(field);
        self.take(field).map(|value| self.at(&name, value)).transpose()
    }

    pub fn list(&mut self, field: &str) -> Result<Option<Vec<Value>>, Failure> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong(field, format_args!("expected a list, got {}", shown(&other)))),
        }
    }

    /// Takes fields that change nothing about the answer.
    pub fn ignore(&mut self, fields: &[&str]) {
        for field in fields {
            self.members.shift_remove(*field);
        }
    }

    /// Takes hints that nothing here follows, and tells of those that are there.
    pub fn hints(&mut self, fields: &[&str]) {
        for field in fields {
            if self.take(field).is_some() {
                self.notes.add(self.name(field));
            }
        }
    }

    /// Tells of a field that is passed over.
    pub fn note(&self, field: &str) {
        self.notes.add(self.name(field));
    }

    /// Takes a field that is supported at its default alone.
    pub fn only(&mut self, field: &str, defaults: &[Value]) -> Result<(), Failure> {
        match self.take(field) {
            Some(value) if !defaults.contains(&value) => {
                Err(self.wrong(field, format_args!("{} is not supported", shown(&value))))
            }
            _ => Ok(()),
        }
    }

    /// What has not been taken.
    pub fn rest(self) -> Map<String, Value> {
        self.members
    }

    /// Tells of what nobody has taken, or refuses it where the server is to be strict.
    pub fn finish(self) -> Result<(), Failure> {
        for (field, _) in self.members.iter().filter(|(_, value)| !value.is_null()) {
            let name = self.name(field);
            if self.notes.0.strict {
                let what = format!("unknown field {}", crate::json::quote(&name));
                return Err(Failure { param: Some(name), ..Failure::bad(what) });
            }
            self.notes.add(name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, what: &str) {
        let failure = parse(text.as_bytes(), &Notes::default(), Caller::default()).map(|_| ()).unwrap_err();
        assert_eq!(failure.status.as_u16(), 400);
        assert!(failure.message.contains(what), "{}", failure.message);
    }

    #[test]
    fn hostile_bodies_are_refused() {
        refused("", "EOF");
        refused("[1]", "the body is a list of 1, expected an object");
        refused(r#"{"a": 1} x"#, "trailing characters");
        refused(r#"{"a": 1, "\u0061": 2}"#, "duplicate key \"a\"");
        refused(r#"{"a": {"b": [{"c": 1, "c": 2}]}}"#, "duplicate key \"c\"");
        refused(r#"{"a": 1e999}"#, "number out of range");
        refused(r#"{"a": NaN}"#, "expected value");
        refused(&format!("{{\"a\": {}", "[".repeat(10_000)), "nesting deeper than 64");
        refused(&format!("{{\"a\": {}", "{\"a\":".repeat(10_000)), "nesting deeper than 64");
        refused(&format!("{{\"a\": [{}0]}}", "0,".repeat(1 << 19)), "more than 262144 values");
        let failure = parse(b"{\"\xff\": 1}", &Notes::default(), Caller::default()).unwrap_err();
        assert!(failure.message.contains("not UTF-8"), "{}", failure.message);
    }

    #[test]
    fn fields_are_typed_and_none_is_left() {
        let body =
            br#"{"z": 1, "a": "x", "n": -1, "t": 1e60, "gone": null, "o": {"b": true, "c": 2}, "h": []}"#;
        let mut fields = parse(body, &Notes::new(true), Caller::default()).unwrap();
        let error = fields.whole("n", 1, 9).unwrap_err();
        assert_eq!(error.message, "n: expected a whole number from 1 to 9, got -1");
        assert_eq!(fields.number("t").unwrap_err().message, "t: expected a number, got 1e+60");
        assert_eq!(fields.string("a").unwrap().as_deref(), Some("x"));
        assert_eq!(fields.flag("absent").unwrap(), None);
        let mut inner = fields.object("o").unwrap().unwrap();
        assert_eq!(inner.flag("b").unwrap(), Some(true));
        assert_eq!(inner.finish().unwrap_err().message, "unknown field \"o.c\"");
        assert_eq!(fields.only("z", &[2.into()]).unwrap_err().message, "z: 1 is not supported");
        let notes = fields.notes.clone();
        fields.hints(&["h", "absent", "gone"]);
        fields.finish().unwrap();
        assert_eq!(notes.take(), ["h"]);
        let notes = Notes::new(false);
        parse(body, &notes, Caller::default()).unwrap().finish().unwrap();
        assert_eq!(notes.take(), ["z", "a", "n", "t", "o", "h"]);
    }
}
