//! Models in several files: `name-00001-of-00003.gguf` and its siblings, as `llama-gguf-split` writes them.

use std::path::{Path, PathBuf};

use super::Metadata;
use crate::error::{Error, Result};
use crate::json::quote;

/// Parts of one model.
const MAX_PARTS: u64 = 1000;

/// What a part says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    /// From 0.
    pub number: u64,
    pub count: u64,
    /// Tensors in all parts.
    pub tensors: u64,
}

impl Split {
    /// What `metadata` says; nothing where the model is in one file.
    pub fn of(metadata: &Metadata) -> Result<Option<Self>> {
        const COUNT: &str = "split.count";
        let count = match metadata.uint(COUNT)? {
            None | Some(0) => return Ok(None),
            Some(count) if count > MAX_PARTS => {
                return Err(metadata.refuse(COUNT, format!("at most {MAX_PARTS}")));
            }
            Some(count) => count,
        };
        let required = |key: &str| metadata.uint(key)?.ok_or_else(|| metadata.refuse(key, "an integer"));
        let number = required("split.no")?;
        if number >= count {
            return Err(metadata.refuse("split.no", format!("an integer below split.count, {count}")));
        }
        Ok(Some(Self { number, count, tensors: required("split.tensors.count")? }))
    }
}

/// The paths of all parts, `path` being the first, whose name must say so.
pub(super) fn siblings(path: &Path, split: Split) -> Result<Vec<PathBuf>> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let count = split.count;
    if split.number != 0 {
        let first = part_name(stem(&name).map_or("…", |(stem, ..)| stem), 1, count);
        let what = format!("part {} of {count}; give the first, {}", split.number + 1, quote(&first));
        return Err(Error::format(path, what));
    }
    match stem(&name) {
        Some((stem, 1, of)) if of == count => {
            Ok((1..=count).map(|part| path.with_file_name(part_name(stem, part, count))).collect())
        }
        _ if count == 1 => Ok(vec![path.to_owned()]),
        _ => {
            let what = format!(
                "file name is {}, expected one ending in {}: split.count is {count}",
                quote(&name),
                quote(&part_name("", 1, count))
            );
            Err(Error::format(path, what))
        }
    }
}

fn part_name(stem: &str, part: u64, count: u64) -> String {
    format!("{stem}-{part:05}-of-{count:05}.gguf")
}

/// `name-00001-of-00003.gguf` → `name`, 1 and 3.
pub(super) fn stem(name: &str) -> Option<(&str, u64, u64)> {
    let rest = name.strip_suffix(".gguf")?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |digits: &str| {
        (digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit()))
            .then(|| digits.parse().ok())
            .flatten()
    };
    Some((stem, number(part)?, number(count)?))
}
