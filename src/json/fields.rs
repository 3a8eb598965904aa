//! Typed access to the members of a JSON object: `null` counts as absent, and a wrong value is an error that names
//! file, field, value and what is accepted.
//!
//! The server's fields are another type, since they are taken out of a request, so that what nobody took can be told of, and
//! fail with a status.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Object, Value};
use crate::error::{Error, Result};

/// The members of one object of a file.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    prefix: &'a str,
    object: &'a Object,
    /// What the file calls a member (`rope_scaling.factor`, with the prefix) where that is another name.
    names: Option<&'a BTreeMap<String, String>>,
}

impl<'a> Fields<'a> {
    /// The outermost object of `path`.
    pub fn new(path: &'a Path, object: &'a Object) -> Self {
        Self { path, prefix: "", object, names: None }
    }

    /// The object called `name` in `path`.
    pub fn at(path: &'a Path, name: &'a str, object: &'a Object) -> Self {
        Self { path, prefix: name, object, names: None }
    }

    /// Members that `path` calls by other names.
    pub fn renamed(path: &'a Path, object: &'a Object, names: &'a BTreeMap<String, String>) -> Self {
        Self { path, prefix: "", object, names: Some(names) }
    }

    /// The members of the object called `name`, if it is there and not empty.
    pub fn object(&self, name: &'a str) -> Result<Option<Fields<'a>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) if object.is_empty() => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { prefix: name, object, ..*self })),
            Some(other) => Err(self.error(name, other, "an object")),
        }
    }

    /// The members themselves, for objects whose keys are data.
    pub fn members(&self) -> &'a Object {
        self.object
    }

    /// The members of an object inside this one; errors carry this one's name.
    pub fn within(&self, object: &'a Object) -> Fields<'a> {
        Fields { object, ..*self }
    }

    /// An error about a member.
    pub fn error(&self, name: impl AsRef<str>, got: impl ToString, expected: impl Into<String>) -> Error {
        let name = name.as_ref();
        let field = if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) };
        let field = self.names.and_then(|names| names.get(&field)).cloned().unwrap_or(field);
        Error::config(self.path, field, got, expected)
    }

    /// An error about a member that must be there.
    pub fn missing(&self, name: &str, expected: impl Into<String>) -> Error {
        self.error(name, "missing", expected)
    }

    /// A member, unless it is absent or `null`.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| **value != Value::Null)
    }

    /// Whether a member is there and `null`: for some fields that is not the same as absent.
    pub fn is_null(&self, name: &str) -> bool {
        self.object.get(name) == Some(&Value::Null)
    }

    /// An integer within bounds, both inclusive.
    pub fn size(&self, name: &str, least: usize, most: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value {
            Value::UInt(n) => usize::try_from(*n).ok().filter(|n| (least..=most).contains(n)),
            _ => None,
        }
        .map(Some)
        .ok_or_else(|| self.error(name, value, format!("an integer from {least} to {most}")))
    }

    /// Integers within bounds: one, or a list of them.
    pub fn sizes(&self, name: &str, least: usize, most: usize) -> Result<Option<Vec<usize>>> {
        let Some(Value::Array(items)) = self.get(name) else {
            return Ok(self.size(name, least, most)?.map(|one| vec![one]));
        };
        let item = |(i, value): (usize, &Value)| match value {
            Value::UInt(n) if (least as u64..=most as u64).contains(n) => Ok(*n as usize),
            _ => Err(self.error(format!("{name}[{i}]"), value, format!("an integer from {least} to {most}"))),
        };
        items.iter().enumerate().map(item).collect::<Result<_>>().map(Some)
    }

    /// An integer that must be there.
    pub fn required(&self, name: &str, least: usize, most: usize) -> Result<usize> {
        self.size(name, least, most)?
            .ok_or_else(|| self.missing(name, format!("an integer from {least} to {most}")))
    }

    /// An integer from 1 on that must be there, unless there is a `default`.
    pub fn size_or(&self, name: &str, default: Option<usize>, most: usize) -> Result<usize> {
        match (self.size(name, 1, most)?, default) {
            (Some(size), _) | (None, Some(size)) => Ok(size),
            (None, None) => self.required(name, 1, most),
        }
    }

    /// A number within bounds, both inclusive, integers included.
    pub fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        number(value, least, most)
            .map(Some)
            .ok_or_else(|| self.error(name, value, format!("a number from {least:?} to {most:?}")))
    }

    /// A list of numbers within bounds.
    pub fn numbers(&self, name: &str, least: f64, most: f64) -> Result<Option<Vec<f32>>> {
        let Some(items) = self.list(name)? else { return Ok(None) };
        let item = |(i, value)| {
            let expected = || format!("a number from {least:?} to {most:?}");
            number(value, least, most)
                .map(|x| x as f32)
                .ok_or_else(|| self.error(format!("{name}[{i}]"), value, expected()))
        };
        items.iter().enumerate().map(item).collect::<Result<_>>().map(Some)
    }

    /// `true` or `false`.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.error(name, other, "true or false")),
        }
    }

    /// A string.
    pub fn string(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.error(name, other, "a string")),
        }
    }

    /// A list.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.error(name, other, "a list")),
        }
    }

    /// A token id.
    pub fn token(&self, name: &str) -> Result<Option<u32>> {
        self.get(name).map(|value| self.token_of(name, value)).transpose()
    }

    /// Token ids: one, or a list of them.
    pub fn tokens(&self, name: &str) -> Result<Option<Vec<u32>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(ids)) => ids
                .iter()
                .enumerate()
                .map(|(i, id)| self.token_of(&format!("{name}[{i}]"), id))
                .collect::<Result<_>>()
                .map(Some),
            Some(id) => self.token_of(name, id).map(|id| Some(vec![id])),
        }
    }

    fn token_of(&self, name: &str, value: &Value) -> Result<u32> {
        match value {
            Value::UInt(n) => u32::try_from(*n).ok().filter(|&id| id < 1 << 30),
            _ => None,
        }
        .ok_or_else(|| self.error(name, value, "a token id, an integer from 0 to 2^30"))
    }
}

fn number(value: &Value, least: f64, most: f64) -> Option<f64> {
    let x = match value {
        Value::UInt(n) => *n as f64,
        Value::Int(n) => *n as f64,
        Value::Float(x) => *x,
        _ => return None,
    };
    (least..=most).contains(&x).then_some(x)
}
