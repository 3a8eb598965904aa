//! GGUF files, versions 2 and 3, in one part or several: metadata, and tensors in their own types.
//!
//! Format: magic, version, counts of tensors and of metadata entries; the entries; the tensors' names, shapes, types and
//! offsets; padding to the alignment; the data. Specification: `ggml/docs/gguf.md`. What the format leaves open is
//! refused: no value is read in two ways, and each declared length is checked against the bytes that remain.

mod encoders;
mod load;
mod metadata;
mod pretokenizer;
mod reader;
mod split;
mod tensors;
#[cfg(test)]
mod tests;
mod tokenizer;
mod vocabulary;
pub(crate) mod write;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

pub use metadata::{Metadata, Strings};
pub(crate) use pretokenizer::{DIGIT, DIGITS, pre_name};
pub use tensors::TensorType;
pub(crate) use vocabulary::ends;

use crate::error::{Error, Result};
use crate::tensor::Bytes;
use crate::weights::source::Source;
use reader::Reader;
use tensors::TensorEntry;

/// The first four bytes of every file.
const MAGIC: [u8; 4] = *b"GGUF";
/// What data is aligned to where the metadata does not say.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The largest alignment accepted: that of the largest memory page in use.
const MAX_ALIGNMENT: u64 = 64 << 10;

/// Whether a file is called or begins as a GGUF file.
pub(crate) fn is_gguf(path: &Path) -> Result<bool> {
    if path.extension().is_some_and(|extension| extension == "gguf") {
        return Ok(true);
    }
    let mut magic = Vec::new();
    let file = crate::files::open(path)?;
    file.take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(|e| Error::io(path, e))?;
    Ok(magic == MAGIC)
}

/// What a file's name says of the model: without `.gguf` and the number of the part.
pub(crate) fn model_name(file: &str) -> &str {
    match split::stem(file) {
        Some((stem, ..)) => stem,
        None => file.strip_suffix(".gguf").unwrap_or(file),
    }
}

/// What a file's name says of its place among the parts of a model: the name without them, the number of the part and how many
/// there are; none where the model is in one file.
#[cfg(feature = "hub")]
pub(crate) fn part_of(file: &str) -> Option<(&str, u64, u64)> {
    split::stem(file)
}

/// Bytes that are read of a file first; then four times as many, until its header is among them.
const FIRST: usize = 1 << 20;
/// Bytes of the longest header: that of a vocabulary of a quarter of a million tokens has some twenty million.
const MAX_HEADER: usize = 256 << 20;

/// One file: its metadata and its tensors. No data is read but what follows the header closely.
fn parse(path: &Arc<Path>, source: &Source) -> Result<(Metadata, Vec<TensorEntry>)> {
    let len = source.len();
    let mut first = FIRST;
    loop {
        let mut head = Arc::new(source.copy(0..first.min(len))?);
        let mut reader = Reader::new(path, &head, len);
        let parsed = parse_head(path, &(Arc::clone(&head) as Arc<dyn Bytes>), &mut reader);
        let header = reader.at();
        if !reader.ran_out() {
            let (mut metadata, tensors) = parsed?;
            // Cut in place: a vocabulary is not held twice.
            metadata.keep(Arc::new(Vec::<u8>::new()));
            if let Some(bytes) = Arc::get_mut(&mut head) {
                bytes.truncate(header);
                bytes.shrink_to_fit();
            }
            metadata.keep(head);
            return Ok((metadata, tensors));
        }
        if first >= MAX_HEADER {
            return Err(Error::format(path, format!("its header is over {} MiB", MAX_HEADER >> 20)));
        }
        first *= 4;
    }
}

fn parse_head(
    path: &Arc<Path>,
    owner: &Arc<dyn Bytes>,
    reader: &mut Reader<'_>,
) -> Result<(Metadata, Vec<TensorEntry>)> {
    let magic = reader.u32(format_args!("magic"))?.to_le_bytes();
    if magic != MAGIC {
        let what = format!("magic is {:?}, expected \"GGUF\"", String::from_utf8_lossy(&magic));
        return Err(Error::format(path, what));
    }
    let version = reader.u32(format_args!("version"))?;
    match version {
        2 | 3 => {}
        1 => return Err(Error::format(path, "version is 1, expected 2 or 3: convert the model anew")),
        swapped if swapped != 0 && swapped & 0xffff == 0 => {
            let what = format!(
                "version is {swapped:#010x}: the file is byte-swapped (big-endian), expected little-endian"
            );
            return Err(Error::format(path, what));
        }
        other => return Err(Error::format(path, format!("version is {other}, expected 2 or 3"))),
    }
    let tensors = reader.count(tensors::least_entry(), format_args!("tensor count"))?;
    let entries = reader.count(Metadata::least_entry(), format_args!("metadata count"))?;
    let metadata = Metadata::read(path, owner, reader, entries)?;
    let alignment = metadata.uint("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(metadata.refuse("general.alignment", format!("a power of two, at most {MAX_ALIGNMENT}")));
    }
    let mut tensors = tensors::read(reader, tensors)?;
    let header = reader.at();
    let start = header
        .checked_next_multiple_of(alignment as usize)
        .ok_or_else(|| Error::format(path, format!("header of {header} bytes: its padding overflows")))?;
    tensors::place(path, &mut tensors, alignment as usize, start, reader.len())?;
    Ok((metadata, tensors))
}
