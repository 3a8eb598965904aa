//! A cursor over a file's bytes: every length is checked against what remains before anything is taken.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};

/// Reads little-endian values from front to back.
pub(super) struct Reader<'a> {
    path: &'a Path,
    /// The file, or its beginning.
    bytes: &'a [u8],
    /// Bytes of the file.
    len: usize,
    at: usize,
    ran_out: bool,
}

impl<'a> Reader<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8], len: usize) -> Self {
        Self { path, bytes, len, at: 0, ran_out: false }
    }

    /// Whether something lies in the file and not in its beginning.
    pub fn ran_out(&self) -> bool {
        self.ran_out
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes of the file.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.len - self.at
    }

    /// A malformed file; `field` and `what` come before and after a colon.
    pub fn fail(&self, field: fmt::Arguments<'_>, what: fmt::Arguments<'_>) -> Error {
        Error::format(self.path, format!("{field}: {what}"))
    }

    /// The next `len` bytes, as a range of the file.
    pub fn take(&mut self, len: u64, field: fmt::Arguments<'_>) -> Result<Range<usize>> {
        if len > self.left() as u64 {
            return Err(self.fail(field, format_args!("{len} bytes, but {} remain", self.left())));
        }
        if len > (self.bytes.len() - self.at) as u64 {
            self.ran_out = true;
            return Err(self.fail(field, format_args!("{len} bytes, which were not read")));
        }
        let start = self.at;
        self.at += len as usize;
        Ok(start..self.at)
    }

    fn array<const N: usize>(&mut self, field: fmt::Arguments<'_>) -> Result<[u8; N]> {
        let range = self.take(N as u64, field)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[range]);
        Ok(array)
    }

    pub fn u8(&mut self, field: fmt::Arguments<'_>) -> Result<u8> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub fn u16(&mut self, field: fmt::Arguments<'_>) -> Result<u16> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub fn u32(&mut self, field: fmt::Arguments<'_>) -> Result<u32> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, field: fmt::Arguments<'_>) -> Result<u64> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each: as many must fit into what remains.
    pub fn count(&mut self, least: u64, field: fmt::Arguments<'_>) -> Result<usize> {
        let count = self.u64(field)?;
        if count > i64::MAX as u64 {
            return Err(self.fail(field, format_args!("{}, expected no negative count", count as i64)));
        }
        let left = self.left() as u64;
        if count > left / least {
            let what = format_args!(
                "{count}, but the {left} bytes that remain hold at most {} of {least} bytes",
                left / least
            );
            return Err(self.fail(field, what));
        }
        Ok(count as usize)
    }

    /// A string: its length, then its bytes.
    pub fn string(&mut self, field: fmt::Arguments<'_>) -> Result<Range<usize>> {
        let len = self.u64(field)?;
        self.take(len, field)
    }

    /// A string that must be UTF-8 and have from 1 to `most` bytes: a name.
    pub fn name(&mut self, most: usize, field: fmt::Arguments<'_>) -> Result<(&'a str, Range<usize>)> {
        let len = self.u64(field)?;
        if len == 0 || len > most as u64 {
            return Err(self.fail(field, format_args!("length {len}, expected 1 to {most} bytes")));
        }
        let range = self.take(len, field)?;
        match std::str::from_utf8(&self.bytes[range.clone()]) {
            Ok(name) => Ok((name, range)),
            Err(error) => Err(self.fail(field, format_args!("not UTF-8: {error}"))),
        }
    }
}
