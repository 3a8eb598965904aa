//! Bundles: a program with a model's files behind it, in one file, which are read in place.
//!
//! Behind the program lie the model's files, each from a multiple of [`ALIGN`] on, so that they can be mapped; then an index, as
//! strict JSON; then [`TRAILER`] bytes: a magic number, the version, the index' length and its checksum, in little-endian. A file of
//! the model goes by a path below the program's own, `/usr/bin/story/stories/config.json`, which the system has no file under.

use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::{files, json};

/// What files begin at: pages of Apple's machines, and whole pages of most others.
pub const ALIGN: u64 = 16 << 10;
/// Bytes at the end that say what lies before them.
pub const TRAILER: u64 = 32;
const MAGIC: [u8; 8] = *b"BKSTPBDL";
const VERSION: u32 = 1;
/// Bytes of an index, and files in it, more than any model has.
const MOST_INDEX: u64 = 4 << 20;
const MOST_FILES: usize = 4096;

/// What a bundle holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// The model's path below the bundle's: a directory, or the first GGUF file.
    pub model: String,
    /// Bytes of the program before the model.
    pub program: u64,
    /// The model's files.
    pub files: Vec<Member>,
}

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its path below the bundle's.
    pub path: String,
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub bytes: u64,
    /// The SHA-256 of them, in hexadecimal digits.
    pub sha256: String,
}

/// What a path within a bundle names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Folder,
    File(Range<u64>),
}

impl Bundle {
    /// Reads the index of a bundle; nothing where a file is none.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for a bundle that is damaged, or of a later version.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let file = files::open(path)?;
        let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        Self::read(path, &file, len)
    }

    fn read(path: &Path, file: &File, len: u64) -> Result<Option<Self>> {
        let Some(behind) = len.checked_sub(TRAILER) else { return Ok(None) };
        let mut trailer = [0; TRAILER as usize];
        files::read_exact_at(file, &mut trailer, behind).map_err(|e| Error::io(path, e))?;
        let Some(rest) = trailer.strip_prefix(&MAGIC) else { return Ok(None) };
        let number = |at: usize| {
            let bytes = rest.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        let (version, index_len, sum) = (number(0), number(8), number(16));
        let fail = |what: String| Error::format(path, format!("{what}: bundle it anew"));
        if version != u64::from(VERSION) {
            return Err(fail(format!("is a bundle of version {version}, expected {VERSION}")));
        }
        if index_len > MOST_INDEX || index_len > behind {
            return Err(fail(format!("is a damaged bundle: its index has {index_len} bytes")));
        }
        let mut index = vec![0; index_len as usize];
        files::read_exact_at(file, &mut index, behind - index_len).map_err(|e| Error::io(path, e))?;
        if checksum(&index) != sum {
            return Err(fail("is a damaged bundle: its index is not what was written".to_owned()));
        }
        let limits = json::Limits { depth: 8, values: 8 * MOST_FILES };
        let text = std::str::from_utf8(&index).map_err(|e| fail(format!("its index is not UTF-8: {e}")))?;
        let bundle: Self = json::typed(text, limits).map_err(|e| fail(format!("its index is wrong: {e}")))?;
        bundle.check(behind - index_len).map_err(|what| fail(format!("is a damaged bundle: {what}")))?;
        Ok(Some(bundle))
    }

    /// Whether the index is of files that lie before `end`, one behind the other.
    fn check(&self, end: u64) -> Result<(), String> {
        if self.program == 0 {
            return Err("there is no program before its files".to_owned());
        }
        let mut from = self.program;
        for member in &self.files {
            let parts =
                member.path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'));
            let plain = parts
                && Path::new(&member.path).components().all(|part| matches!(part, Component::Normal(_)));
            let until = member.start.checked_add(member.bytes);
            if !plain || member.path.is_empty() || member.start % ALIGN != 0 || member.start < from {
                return Err(format!("the place of {} is wrong", json::quote(&member.path)));
            }
            from = until
                .filter(|until| *until <= end)
                .ok_or_else(|| format!("{} reaches beyond its end", json::quote(&member.path)))?;
        }
        match self.place(&self.model) {
            Some(_) => Ok(()),
            None => Err(format!("there is no model {}", json::quote(&self.model))),
        }
    }

    /// The trailer and the index of a bundle, which end it.
    ///
    /// # Errors
    /// None: an index can always be written.
    pub fn tail(&self) -> Result<Vec<u8>> {
        let index = serde_json::to_vec(self)
            .map_err(|e| Error::format(Path::new(&self.model), format!("no index can be made: {e}")))?;
        let mut tail = index.clone();
        tail.extend(MAGIC);
        for number in [u64::from(VERSION), index.len() as u64, checksum(&index)] {
            tail.extend(number.to_le_bytes());
        }
        Ok(tail)
    }

    /// Bytes of the files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add)
    }

    fn place(&self, path: &str) -> Option<Place> {
        if let Some(file) = self.files.iter().find(|file| file.path == path) {
            return Some(Place::File(file.start..file.start + file.bytes));
        }
        let below = |file: &Member| file.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        self.files.iter().any(below).then_some(Place::Folder)
    }
}

/// FNV-1a of 64 bits: any single byte that differs changes it.
fn checksum(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// The bundle that a path which the system does not know leads into, its own path, and what the path names in it; nothing where it
/// leads into none.
///
/// # Errors
/// As [`Bundle::open`].
pub(crate) fn find(path: &Path) -> Result<Option<(PathBuf, Place)>> {
    let Some((root, bundle, below)) = around(path)? else { return Ok(None) };
    Ok(bundle.place(&below).map(|place| (root, place)))
}

/// The names below a folder of a bundle; nothing where the path is none.
///
/// # Errors
/// As [`Bundle::open`].
pub(crate) fn names(path: &Path) -> Result<Option<Vec<String>>> {
    let Some((_, bundle, below)) = around(path)? else { return Ok(None) };
    let of = |file: &Member| {
        let rest = file.path.strip_prefix(&below)?.strip_prefix('/')?;
        Some(rest.split('/').next().unwrap_or(rest).to_owned())
    };
    let mut names: Vec<String> = bundle.files.iter().filter_map(of).collect();
    names.dedup();
    Ok(Some(names))
}

/// The bundle that lies on the way of a path, with the rest of it.
fn around(path: &Path) -> Result<Option<(PathBuf, Bundle, String)>> {
    // The first that is there decides: a directory has no bundle above it.
    for root in path.ancestors().skip(1).filter(|root| *root != Path::new("")) {
        match std::fs::metadata(root) {
            Ok(meta) if meta.is_file() => {
                let Some(bundle) = Bundle::open(root)? else { return Ok(None) };
                let below = path.strip_prefix(root).ok().and_then(Path::to_str);
                return Ok(below.map(|below| (root.to_owned(), bundle, below.to_owned())));
            }
            Ok(_) => return Ok(None),
            Err(_) => {}
        }
    }
    Ok(None)
}

/// Where a file of a model's directory lies, links followed.
///
/// # Errors
/// A link to what is no part of the model, which is not to be passed on with it.
pub fn beside(path: &Path) -> Result<PathBuf> {
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    files::Home::of(dir)?.resolve(path, &name)
}

/// A file to be read from its beginning, wherever it lies, and its bytes.
///
/// # Errors
/// [`Error::Io`], and [`Error::Format`] for what is no regular file.
pub fn reader(path: &Path) -> Result<(std::io::Take<File>, u64)> {
    use std::io::{Read, Seek, SeekFrom};
    let (mut file, part) = files::open_part(path)?;
    file.seek(SeekFrom::Start(part.start)).map_err(|e| Error::io(path, e))?;
    let bytes = part.end - part.start;
    Ok((file.take(bytes), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bundle of two files behind a program of 100 bytes.
    fn written(dir: &Path) -> (PathBuf, Bundle, Vec<u8>) {
        let member = |path: &str, start: u64, bytes: u64| Member {
            path: path.to_owned(),
            start,
            bytes,
            sha256: "0".repeat(64),
        };
        let files = vec![member("m/a", ALIGN, 3), member("m/sub/b", 2 * ALIGN, 0)];
        let bundle = Bundle { model: "m".to_owned(), program: 100, files };
        let mut bytes = vec![7; 2 * ALIGN as usize];
        bytes[ALIGN as usize..][..3].copy_from_slice(b"abc");
        bytes.extend(bundle.tail().unwrap());
        let path = dir.join("program");
        std::fs::write(&path, &bytes).unwrap();
        (path, bundle, bytes)
    }

    #[test]
    fn files_of_a_bundle_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (path, bundle, _) = written(dir.path());
        assert_eq!(Bundle::open(&path).unwrap(), Some(bundle));
        assert_eq!(files::read(&path.join("m/a"), 9).unwrap(), b"abc");
        assert_eq!(files::read_beside(&path.join("m/sub/b"), 9).unwrap(), b"");
        assert!(files::is_dir(&path.join("m")) && files::is_dir(&path.join("m/sub")));
        assert!(files::exists(&path.join("m/a")) && !files::is_dir(&path.join("m/a")));
        for absent in ["m/c", "m/a/b", "n", "m/s"] {
            assert!(!files::exists(&path.join(absent)) && files::is_absent(&path.join(absent)), "{absent}");
        }
        let home = files::Home::of(&path.join("m")).unwrap();
        assert_eq!(home.resolve(&path.join("m/a"), "a").unwrap(), path.canonicalize().unwrap().join("m/a"));
        assert!(home.resolve(&path.join("m/sub/b"), "b").is_err());
        assert_eq!(files::names(&path.join("m")).unwrap(), ["a", "sub"]);
        assert!(files::names(&path.join("n")).unwrap().is_empty());
        let other = dir.path().join("other");
        std::fs::write(&other, "no bundle").unwrap();
        assert_eq!(Bundle::open(&other).unwrap(), None);
        assert!(files::read(&other.join("m/a"), 9).is_err());
    }

    #[test]
    fn damaged_bundles_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, bundle, good) = written(dir.path());
        let index = bundle.tail().unwrap().len() - TRAILER as usize;
        let refused = |bytes: &[u8], expected: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = Bundle::open(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.ends_with(": bundle it anew"), "{error}");
        };
        // Every bit of the index.
        for at in good.len() - TRAILER as usize - index..good.len() - TRAILER as usize {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            refused(&bytes, "is a damaged bundle: its index is not what was written");
        }
        let trailer = good.len() - TRAILER as usize;
        for (at, value, expected) in [
            (8, 2, "is a bundle of version 2, expected 1"),
            (23, 1, "is a damaged bundle: its index has"),
            (16, good[trailer + 16] ^ 1, "is a damaged bundle"),
            (24, good[trailer + 24] ^ 1, "its index is not what was written"),
        ] {
            let mut bytes = good.clone();
            bytes[trailer + at] = value;
            refused(&bytes, expected);
        }
        // What the index says is checked, too.
        let with = |change: &dyn Fn(&mut Bundle)| {
            let mut bundle = bundle.clone();
            change(&mut bundle);
            let mut bytes = good[..2 * ALIGN as usize].to_vec();
            bytes.extend(bundle.tail().unwrap());
            bytes
        };
        refused(&with(&|of| of.files[1].bytes = 1), "\"m/sub/b\" reaches beyond its end");
        refused(&with(&|of| of.files[1].bytes = u64::MAX), "\"m/sub/b\" reaches beyond its end");
        refused(&with(&|of| of.files[0].start = 2 * ALIGN), "\"m/a\" reaches beyond its end");
        refused(&with(&|of| of.files[0].start += 1), "the place of \"m/a\" is wrong");
        refused(&with(&|of| of.files[0].path = "../x".to_owned()), "the place of \"../x\" is wrong");
        refused(&with(&|of| of.program = 1 << 40), "the place of \"m/a\" is wrong");
        refused(
            &with(&|of| (of.program, of.files[0].start) = (0, 0)),
            "there is no program before its files",
        );
        refused(&with(&|of| of.files[0].start = 0), "the place of \"m/a\" is wrong");
        refused(&with(&|of| of.model = "n".to_owned()), "there is no model \"n\"");
        // One that is cut has no index.
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert_eq!(Bundle::open(&path).unwrap(), None);
    }
}
