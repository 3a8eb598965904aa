//! The metadata of a GGUF file: keys and values as views of the file. Nothing of a list is copied until it is asked for.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::reader::Reader;
use crate::error::{Error, Result};
use crate::json::quote;
use crate::tensor::Bytes;

/// Entries of one file: published models have about fifty.
const MAX_ENTRIES: usize = 1 << 16;
/// Bytes of a key, as the format's specification says.
const MAX_KEY: usize = (1 << 16) - 1;
/// Bytes of the smallest entry: length and one byte of key, type, one byte of value.
const LEAST_ENTRY: u64 = 8 + 1 + 4 + 1;

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    /// In the order of their numbers in the file.
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// Bytes of a value; of a string or a list, those of its length.
    const fn size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::String | Self::Array | Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::U8 | Self::I8 | Self::U16 | Self::I16 | Self::U32 | Self::I32 | Self::U64 | Self::I64 => {
                "integers"
            }
            Self::F32 | Self::F64 => "numbers",
            Self::Bool => "booleans",
            Self::String => "strings",
            Self::Array => "lists",
        }
    }
}

/// One value; strings and lists are ranges of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Uint(u64),
    /// Negative integers only.
    Int(i64),
    Float(f64),
    Bool(bool),
    String(Range<usize>),
    Array {
        kind: Kind,
        len: usize,
        range: Range<usize>,
    },
}

/// A key and its value, as ranges of the file and as it is read.
#[derive(Debug, Clone)]
struct MetadataEntry {
    key: Range<usize>,
    value: Value,
    /// The value's type and bytes.
    stored: Range<usize>,
}

/// The metadata of a model: that of its first file.
#[derive(Clone)]
pub struct Metadata {
    path: Arc<Path>,
    owner: Arc<dyn Bytes>,
    /// In the order of the keys.
    entries: Vec<MetadataEntry>,
}

impl Metadata {
    /// Takes the place of the bytes that it was read from, with the same beginning.
    pub(super) fn keep(&mut self, owner: Arc<dyn Bytes>) {
        self.owner = owner;
    }

    /// Reads `count` entries.
    pub(super) fn read(
        path: &Arc<Path>,
        owner: &Arc<dyn Bytes>,
        reader: &mut Reader<'_>,
        count: usize,
    ) -> Result<Self> {
        if count > MAX_ENTRIES {
            let what = format_args!("{count}, expected at most {MAX_ENTRIES}");
            return Err(reader.fail(format_args!("metadata count"), what));
        }
        let mut entries = Vec::with_capacity(count);
        for i in 0..count {
            let (name, key) = reader.name(MAX_KEY, format_args!("key {i} of the metadata"))?;
            let start = reader.at();
            let value = value(reader, name, owner.bytes())?;
            entries.push(MetadataEntry { key, value, stored: start..reader.at() });
        }
        let metadata = |entries| Self { path: Arc::clone(path), owner: Arc::clone(owner), entries };
        let bytes = owner.bytes();
        let key = |entry: &MetadataEntry| &bytes[entry.key.clone()];
        entries.sort_by(|a, b| key(a).cmp(key(b)));
        if let Some(pair) = entries.windows(2).find(|pair| key(&pair[0]) == key(&pair[1])) {
            let key = String::from_utf8_lossy(key(&pair[0]));
            return Err(Error::format(path, format!("metadata: duplicate key {}", quote(&key))));
        }
        Ok(metadata(entries))
    }

    /// The smallest bytes that an entry takes.
    pub(super) const fn least_entry() -> u64 {
        LEAST_ENTRY
    }

    /// The file that holds the metadata.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about a value.
    pub fn error(&self, key: &str, got: impl ToString, expected: impl Into<String>) -> Error {
        Error::config(&self.path, key, got, expected)
    }

    /// An error about a value as the file has it, or about its absence.
    pub fn refuse(&self, key: &str, expected: impl Into<String>) -> Error {
        let got = self.get(key).map_or_else(|| "missing".to_owned(), |value| self.show(value));
        self.error(key, got, expected)
    }

    /// Whether there is a value.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let bytes = self.owner.bytes();
        let found = self.entries.binary_search_by(|entry| bytes[entry.key.clone()].cmp(key.as_bytes()));
        found.ok().map(|i| &self.entries[i].value)
    }

    /// Every key, and its value's type and bytes as the file has them.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let bytes = self.owner.bytes();
        self.entries.iter().map(move |entry| (&bytes[entry.key.clone()], &bytes[entry.stored.clone()]))
    }

    /// A value as an error shows it.
    fn show(&self, value: &Value) -> String {
        match value {
            Value::Uint(n) => n.to_string(),
            Value::Int(n) => n.to_string(),
            Value::Float(x) => format!("{x:?}"),
            Value::Bool(b) => b.to_string(),
            Value::String(range) => quote(&String::from_utf8_lossy(&self.owner.bytes()[range.clone()])),
            Value::Array { kind, len, .. } => format!("a list of {len} {}", kind.name()),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::Config`] for another type, and what is not UTF-8.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(range)) => std::str::from_utf8(&self.owner.bytes()[range.clone()])
                .map(Some)
                .map_err(|_| self.refuse(key, "UTF-8")),
            Some(_) => Err(self.refuse(key, "a string")),
        }
    }

    /// An integer that is not negative.
    ///
    /// # Errors
    /// [`Error::Config`] for another type or a negative value.
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Uint(n)) => Ok(Some(*n)),
            Some(_) => Err(self.refuse(key, "an integer, not negative")),
        }
    }

    /// An integer that is not negative, or a list of them, one for each layer, that are all the same.
    ///
    /// # Errors
    /// [`Error::Config`] for another type, a negative value, or layers that differ.
    pub fn per_layer(&self, key: &str) -> Result<Option<u64>> {
        if !matches!(self.get(key), Some(Value::Array { .. })) {
            return self.uint(key);
        }
        let all = self.ints(key)?.unwrap_or_default();
        match all.first().and_then(|&first| u64::try_from(first).ok()) {
            Some(first) if all.iter().all(|&n| n as u64 == first) => Ok(Some(first)),
            _ => Err(self.refuse(key, "the same integer for each layer, not negative")),
        }
    }

    /// Integers that are not negative, one for each layer, or one for all.
    ///
    /// # Errors
    /// [`Error::Config`] for another type, an empty list, or a negative value.
    pub fn layers(&self, key: &str) -> Result<Option<Vec<u64>>> {
        if !matches!(self.get(key), Some(Value::Array { .. })) {
            return Ok(self.uint(key)?.map(|all| vec![all]));
        }
        let all = self.ints(key)?.unwrap_or_default();
        let all: Option<Vec<u64>> = all.into_iter().map(|n| u64::try_from(n).ok()).collect();
        match all.filter(|all| !all.is_empty()) {
            Some(all) => Ok(Some(all)),
            None => Err(self.refuse(key, "an integer for each layer, not negative")),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// [`Error::Config`] for another type.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(Value::Uint(n)) => Ok(Some(*n as f64)),
            Some(Value::Int(n)) => Ok(Some(*n as f64)),
            Some(_) => Err(self.refuse(key, "a number")),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// [`Error::Config`] for another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.refuse(key, "true or false")),
        }
    }

    /// The flags of a list of them, or of integers that stand for them; none where the value is no list.
    ///
    /// # Errors
    /// [`Error::Config`] for a list of something else.
    pub fn flags(&self, key: &str) -> Result<Option<Vec<bool>>> {
        match self.get(key) {
            Some(Value::Array { kind: Kind::Bool, range, .. }) => {
                Ok(Some(self.owner.bytes()[range.clone()].iter().map(|&byte| byte != 0).collect()))
            }
            Some(Value::Array { .. }) => {
                Ok(self.ints(key)?.map(|ints| ints.into_iter().map(|n| n != 0).collect()))
            }
            _ => Ok(None),
        }
    }

    /// The strings of a list.
    ///
    /// # Errors
    /// [`Error::Config`] for another type; the strings themselves may not be UTF-8.
    pub fn strings(&self, key: &str) -> Result<Option<Strings<'_>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array { kind: Kind::String, len, range }) => {
                Ok(Some(Strings { bytes: &self.owner.bytes()[range.clone()], left: *len }))
            }
            Some(_) => Err(self.refuse(key, "a list of strings")),
        }
    }

    /// The numbers of a list of 32-bit ones.
    ///
    /// # Errors
    /// [`Error::Config`] for another type.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array { kind: Kind::F32, range, .. }) => {
                let words = self.owner.bytes()[range.clone()].chunks_exact(4);
                Ok(Some(words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
            }
            Some(_) => Err(self.refuse(key, "a list of 32-bit floating-point numbers")),
        }
    }

    /// The integers of a list of 32-bit ones.
    ///
    /// # Errors
    /// [`Error::Config`] for another type.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array { kind: kind @ (Kind::I32 | Kind::U32), range, .. }) => {
                let words = self.owner.bytes()[range.clone()].chunks_exact(4);
                let words = words.map(|b| [b[0], b[1], b[2], b[3]]);
                Ok(Some(match kind {
                    Kind::U32 => words.map(|b| i64::from(u32::from_le_bytes(b))).collect(),
                    _ => words.map(|b| i64::from(i32::from_le_bytes(b))).collect(),
                }))
            }
            Some(_) => Err(self.refuse(key, "a list of 32-bit integers")),
        }
    }

    /// The bytes of a list of them, with a sign or without.
    ///
    /// # Errors
    /// [`Error::Config`] for another type.
    pub fn bytes(&self, key: &str) -> Result<Option<&[u8]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array { kind: Kind::I8 | Kind::U8, range, .. }) => {
                Ok(Some(&self.owner.bytes()[range.clone()]))
            }
            Some(_) => Err(self.refuse(key, "a list of bytes")),
        }
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} entries)", self.path.display(), self.entries.len())
    }
}

/// The strings of a list, one after the other.
#[derive(Debug, Clone)]
pub struct Strings<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let (len, rest) = self.bytes.split_first_chunk::<8>()?;
        let (string, rest) = rest.split_at_checked(u64::from_le_bytes(*len) as usize)?;
        self.bytes = rest;
        Some(string)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// A type's number, then the value.
fn value(reader: &mut Reader<'_>, key: &str, file: &[u8]) -> Result<Value> {
    let name = quote(key);
    match kind(reader, &name)? {
        Kind::Array => {
            let kind = kind(reader, &name)?;
            if kind == Kind::Array {
                let what = format_args!("a list of lists, expected a list of scalars or strings");
                return Err(reader.fail(format_args!("metadata {name}"), what));
            }
            let len = reader.count(kind.size(), format_args!("length of the list {name}"))?;
            let start = reader.at();
            match kind {
                Kind::String => {
                    for i in 0..len {
                        reader.string(format_args!("metadata {name}[{i}]"))?;
                    }
                }
                _ => {
                    reader.take(len as u64 * kind.size(), format_args!("metadata {name}"))?;
                }
            }
            let range = start..reader.at();
            if kind == Kind::Bool
                && let Some(i) = file[range.clone()].iter().position(|&byte| byte > 1)
            {
                let what = format_args!("{}, expected a boolean, 0 or 1", file[start + i]);
                return Err(reader.fail(format_args!("metadata {name}[{i}]"), what));
            }
            Ok(Value::Array { kind, len, range })
        }
        kind => scalar(reader, kind, &name),
    }
}

fn kind(reader: &mut Reader<'_>, name: &str) -> Result<Kind> {
    let number = reader.u32(format_args!("type of {name}"))?;
    Kind::ALL.get(number as usize).copied().ok_or_else(|| {
        reader.fail(format_args!("type of {name}"), format_args!("{number}, expected 0 to 12"))
    })
}

fn scalar(reader: &mut Reader<'_>, kind: Kind, name: &str) -> Result<Value> {
    let field = format_args!("metadata {name}");
    let signed = |n: i64| u64::try_from(n).map_or(Value::Int(n), Value::Uint);
    Ok(match kind {
        Kind::U8 => Value::Uint(reader.u8(field)?.into()),
        Kind::I8 => signed((reader.u8(field)? as i8).into()),
        Kind::U16 => Value::Uint(reader.u16(field)?.into()),
        Kind::I16 => signed((reader.u16(field)? as i16).into()),
        Kind::U32 => Value::Uint(reader.u32(field)?.into()),
        Kind::I32 => signed((reader.u32(field)? as i32).into()),
        Kind::U64 => Value::Uint(reader.u64(field)?),
        Kind::I64 => signed(reader.u64(field)? as i64),
        Kind::F32 => Value::Float(f32::from_bits(reader.u32(field)?).into()),
        Kind::F64 => Value::Float(f64::from_bits(reader.u64(field)?)),
        Kind::Bool => match reader.u8(field)? {
            byte @ 0..=1 => Value::Bool(byte == 1),
            byte => return Err(reader.fail(field, format_args!("{byte}, expected a boolean, 0 or 1"))),
        },
        Kind::String | Kind::Array => Value::String(reader.string(field)?),
    })
}
