//! The header of a safetensors file, read more strictly than the `safetensors` crate reads it: the crate names the
//! element types, this module refuses what could be read in two ways and says where.
//!
//! Format: a little-endian `u64` header length, that many bytes of JSON starting with `{`, then the data, which the
//! tensors of the header tile without a hole.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};
use crate::json::quote;
use crate::tensor::Shape;

/// Bytes of the longest header, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;
/// Tensors in one file. With [`MAX_NAMES`] it keeps the parsed header below 64 MiB, however hostile the file.
const MAX_TENSORS: usize = 1 << 17;
/// Bytes of all names in one file.
const MAX_NAMES: usize = 16 << 20;
/// Bytes of one JSON string; training tools store images in the metadata.
const MAX_STRING: usize = 16 << 20;
/// Dimensions of one tensor; weights of language models have at most four.
const MAX_RANK: usize = 8;
/// Header, tensor, list: nothing in the format nests deeper.
const MAX_DEPTH: usize = 3;

/// One tensor of a header; `range` is absolute in the file and lies inside it.
#[derive(Debug, Clone)]
pub(crate) struct HeaderEntry {
    pub name: Box<str>,
    pub dtype: Dtype,
    pub shape: Shape,
    pub range: Range<usize>,
}

/// Reads the header of a file of `file` bytes, of which `copy` gives some; no data is read. Entries come in the order of their
/// names.
pub(crate) fn parse(
    path: &Path,
    file: usize,
    copy: impl Fn(Range<usize>) -> Result<Vec<u8>>,
) -> Result<Vec<HeaderEntry>> {
    let fail = |what: String| Error::format(path, what);
    let Some(rest) = file.checked_sub(8) else {
        return Err(fail(format!("file is {file} bytes, expected at least 8 of header length")));
    };
    let prefix = copy(0..8)?.try_into().map_err(|_| fail("the header's length cannot be read".to_owned()))?;
    let declared = u64::from_le_bytes(prefix);
    if declared == 0 || declared > MAX_HEADER {
        return Err(fail(format!("header length is {declared}, expected 1 to {MAX_HEADER}")));
    }
    let len = declared as usize;
    let Some(data) = rest.checked_sub(len) else {
        return Err(fail(format!("header length is {declared}, but {rest} bytes follow it")));
    };
    let header = &*copy(8..8 + len)?;
    if header[0] != b'{' {
        return Err(fail(format!("header starts with byte {:#04x}, expected '{{'", header[0])));
    }
    scan(header).map_err(|what| fail(format!("header: {what}")))?;
    let text = std::str::from_utf8(header).map_err(|e| fail(format!("header is not UTF-8: {e}")))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let mut entries = HeaderSeed
        .deserialize(&mut json)
        .and_then(|entries| json.end().map(|()| entries))
        .map_err(|e| fail(format!("header: {e}")))?;

    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if let Some(twin) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(fail(format!("header: duplicate tensor name {}", quote(&twin[0].name))));
    }
    check_layout(&entries, data).map_err(fail)?;
    for entry in &mut entries {
        entry.range = entry.range.start + 8 + len..entry.range.end + 8 + len;
    }
    Ok(entries)
}

/// One pass over the header's bytes that bounds what the JSON parser may allocate: nesting and string lengths.
fn scan(header: &[u8]) -> Result<(), String> {
    let (mut depth, mut at) = (0usize, 0usize);
    while at < header.len() {
        match header[at] {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(format!("nesting deeper than {MAX_DEPTH} at byte {at}"));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let start = at;
                at += 1;
                while at < header.len() && header[at] != b'"' {
                    at += if header[at] == b'\\' { 2 } else { 1 };
                    if at - start > MAX_STRING {
                        return Err(format!("string at byte {start} is over {MAX_STRING} bytes"));
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Checks that each range fits its shape and type, and that the ranges tile the data exactly.
fn check_layout(entries: &[HeaderEntry], data_len: usize) -> Result<(), String> {
    let mut order: Vec<u32> = (0..entries.len() as u32).collect();
    order.sort_unstable_by_key(|&i| {
        let range = &entries[i as usize].range;
        (range.start, range.end)
    });
    let mut at = 0;
    for entry in order.into_iter().map(|i| &entries[i as usize]) {
        let (name, Range { start, end }) = (quote(&entry.name), entry.range.clone());
        if start > end {
            return Err(format!("tensor {name}: data_offsets [{start}, {end}] end before they begin"));
        }
        if end > data_len {
            return Err(format!(
                "tensor {name}: data_offsets [{start}, {end}] leave the {data_len} bytes of data"
            ));
        }
        let bits = entry
            .shape
            .iter()
            .try_fold(entry.dtype.bitsize(), |bits, &dim| bits.checked_mul(dim))
            .ok_or_else(|| {
                format!("tensor {name}: shape {:?} of {} overflows", &entry.shape[..], entry.dtype)
            })?;
        if bits % 8 != 0 || bits / 8 != end - start {
            return Err(format!(
                "tensor {name}: data_offsets [{start}, {end}] hold {} bytes, expected {} of {:?} {}",
                end - start,
                bits / 8,
                &entry.shape[..],
                entry.dtype,
            ));
        }
        if start < at {
            return Err(format!(
                "tensor {name}: data_offsets [{start}, {end}] overlap data that ends at {at}"
            ));
        }
        if start > at {
            return Err(format!("tensor {name}: data_offsets [{start}, {end}] leave a hole from {at}"));
        }
        at = end;
    }
    if at != data_len {
        return Err(format!("{} trailing bytes after the last tensor, which ends at {at}", data_len - at));
    }
    Ok(())
}

/// The whole header, an object of tensors and `__metadata__`.
struct HeaderSeed;

impl<'de> DeserializeSeed<'de> for HeaderSeed {
    type Value = Vec<HeaderEntry>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<HeaderEntry>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed {
    type Value = Vec<HeaderEntry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<HeaderEntry>, A::Error> {
        let mut entries = Vec::new();
        let mut name_bytes = 0;
        let mut metadata = false;
        while let Some(name) = map.next_key::<Box<str>>()? {
            if &*name == "__metadata__" {
                if std::mem::replace(&mut metadata, true) {
                    return Err(de::Error::custom("duplicate __metadata__"));
                }
                map.next_value_seed(MetadataSeed)?;
                continue;
            }
            name_bytes += name.len();
            if name_bytes > MAX_NAMES {
                return Err(de::Error::custom(format_args!("tensor names take more than {MAX_NAMES} bytes")));
            }
            if entries.len() == MAX_TENSORS {
                return Err(de::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
            }
            let entry = map.next_value_seed(TensorSeed(name))?;
            entries.push(entry);
        }
        Ok(entries)
    }
}

/// `__metadata__`, an object of strings. Nothing in it changes how the file is read, so nothing is kept.
struct MetadataSeed;

impl<'de> DeserializeSeed<'de> for MetadataSeed {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("__metadata__ to be an object of strings")
    }

    /// As MLX writes none.
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = std::collections::BTreeSet::new();
        while let Some(key) = map.next_key::<Box<str>>()? {
            map.next_value_seed(MetadataString(&key))?;
            let shown = quote(&key);
            if keys.len() == 4096 {
                return Err(de::Error::custom("__metadata__: more than 4096 keys"));
            }
            if key.len() > 4096 || !keys.insert(key) {
                return Err(de::Error::custom(format_args!(
                    "__metadata__: duplicate or overlong key {shown}"
                )));
            }
        }
        Ok(())
    }
}

struct MetadataString<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for MetadataString<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for MetadataString<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "__metadata__ value of {} to be a string", quote(self.0))
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Dtype,
    Shape,
    DataOffsets,
}

/// One tensor: `{"dtype": …, "shape": […], "data_offsets": [begin, end]}`.
struct TensorSeed(Box<str>);

impl<'de> DeserializeSeed<'de> for TensorSeed {
    type Value = HeaderEntry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<HeaderEntry, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TensorSeed {
    type Value = HeaderEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor {} to be an object", quote(&self.0))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderEntry, A::Error> {
        let fail = |what: fmt::Arguments<'_>| -> A::Error {
            de::Error::custom(format_args!("tensor {}: {what}", quote(&self.0)))
        };
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key::<Field>().map_err(|e| fail(format_args!("{e}")))? {
            let twice = match field {
                Field::Dtype => {
                    let value = map.next_value::<Dtype>();
                    dtype.replace(value.map_err(|e| fail(format_args!("dtype: {e}")))?).is_some()
                }
                Field::Shape => {
                    let value = map.next_value_seed(SizesSeed { most: MAX_RANK });
                    shape.replace(value.map_err(|e| fail(format_args!("shape: {e}")))?).is_some()
                }
                Field::DataOffsets => {
                    let value = map.next_value_seed(SizesSeed { most: 2 });
                    offsets.replace(value.map_err(|e| fail(format_args!("data_offsets: {e}")))?).is_some()
                }
            };
            if twice {
                return Err(fail(format_args!("a field is given twice")));
            }
        }
        let dtype = dtype.ok_or_else(|| fail(format_args!("dtype is missing")))?;
        let shape: Shape = shape.ok_or_else(|| fail(format_args!("shape is missing")))?;
        let offsets: Shape = offsets.ok_or_else(|| fail(format_args!("data_offsets is missing")))?;
        let [start, end] = offsets[..] else {
            return Err(fail(format_args!("data_offsets has {} values, expected 2", offsets.len())));
        };
        Ok(HeaderEntry { name: self.0, dtype, shape, range: start..end })
    }
}

/// A short list of sizes: non-negative integers only.
struct SizesSeed {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for SizesSeed {
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SizesSeed {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {} non-negative integers", self.most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut sizes = Shape::new();
        while let Some(size) = seq.next_element::<usize>()? {
            if sizes.len() == self.most {
                return Err(de::Error::custom(format_args!("more than {} values", self.most)));
            }
            sizes.push(size);
        }
        Ok(sizes)
    }
}
