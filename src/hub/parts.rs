//! A file in the making: its bytes at their places, and beside it which of them have come.
//!
//! `NAME.backstop-partial` has the file's size from the beginning. `NAME.backstop-parts` has a byte for each unit, `1` for one
//! that has come; it is written after the unit's bytes are, so that a process that is killed loses the units in flight and
//! nothing else. After a loss of power either may be wrong, which the hash of the whole finds. Names and form are not those of
//! Python's `.incomplete` files, which it would continue at their end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::alloc;
use crate::error::{Error, HubFault, Result, Size};
use crate::refusals::{self, Site};

/// Bytes of a unit: what a broken connection costs at most.
pub(super) const UNIT: u64 = 256 << 10;
/// Bytes of the largest file. What is kept in memory of it grows with the size that a hub lists: a byte for each unit, 64 MiB
/// for this one.
const MAX_SIZE: u64 = 1 << 44;
/// Units that one request asks for: an eighth of the file's, within these.
const SPAN: (usize, usize) = (4, 128);

/// A file in the making.
pub(super) struct Parts {
    path: PathBuf,
    data: File,
    journal: File,
    size: u64,
    units: Mutex<Vec<State>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    /// Somebody has asked for it.
    Asked,
    Here,
}

/// `blob` with another ending, among the blobs.
fn beside(blob: &Path, ending: &str) -> PathBuf {
    let mut name = blob.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    blob.with_file_name(name)
}

/// Where a blob is made.
pub(super) fn partial(blob: &Path) -> PathBuf {
    beside(blob, ".backstop-partial")
}

fn journal(blob: &Path) -> PathBuf {
    beside(blob, ".backstop-parts")
}

/// Whether a file of the cache is what a broken download left.
pub(super) fn is_left_over(name: &str) -> bool {
    [".backstop-partial", ".backstop-parts", ".incomplete"].iter().any(|ending| name.ends_with(ending))
}

/// Removes what is here of a blob in the making. The caller holds the blob's lock.
pub(super) fn remove(blob: &Path) {
    // What stays is begun anew, or found wrong once more.
    let _ = std::fs::remove_file(journal(blob));
    let _ = std::fs::remove_file(partial(blob));
}

/// Bytes that are here of a blob in the making.
pub(super) fn bytes_here(blob: &Path, size: u64) -> u64 {
    let count = size.div_ceil(UNIT);
    let is = |path: &Path, len: u64| std::fs::metadata(path).is_ok_and(|meta| meta.len() == len);
    if size > MAX_SIZE || !is(&partial(blob), size) || !is(&journal(blob), count) {
        return 0;
    }
    let Ok(flags) = crate::files::read(&journal(blob), count) else { return 0 };
    let here = flags.iter().enumerate().filter(|(_, flag)| **flag == b'1');
    here.map(|(unit, _)| unit_bytes(unit, size)).sum()
}

fn unit_bytes(unit: usize, size: u64) -> u64 {
    UNIT.min(size - (unit as u64 * UNIT).min(size))
}

impl Parts {
    /// Goes on with what is there of `blob`, or begins. The caller holds the blob's lock.
    ///
    /// # Errors
    /// [`Error::Hub`] for a size that no file has, [`Error::OutOfMemory`] and [`Error::Io`].
    pub fn open(blob: &Path, size: u64) -> Result<Self> {
        const WHAT: &str = "the parts of a download";
        if size > MAX_SIZE {
            let what = format!(
                "the hub lists a file of {}, expected at most {}: it is wrong, and nothing is written for it",
                Size(size),
                Size(MAX_SIZE)
            );
            return Err(Error::hub(HubFault::Answer, what));
        }
        let path = partial(blob);
        let flags = journal(blob);
        let opened = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            // A link that somebody put there is not followed.
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW);
            options.open(path).map_err(|e| Error::io(path, e))
        };
        let (data, mut journal) = (opened(&path)?, opened(&flags)?);
        let count = size.div_ceil(UNIT) as usize;
        let mut here = Vec::new();
        let len =
            |file: &File, path: &Path| file.metadata().map_err(|e| Error::io(path, e)).map(|meta| meta.len());
        if len(&data, &path)? == size && len(&journal, &flags)? == count as u64 {
            // One byte more tells the reader that this is the end.
            alloc::reserve(&mut here, count + 1, WHAT)?;
            (&mut journal).take(count as u64).read_to_end(&mut here).map_err(|e| Error::io(&flags, e))?;
        } else {
            // The disk says first whether it has files of this size.
            let begun = journal.set_len(0).and_then(|()| data.set_len(0)).and_then(|()| data.set_len(size));
            begun.map_err(|e| Error::io(&path, e))?;
            alloc::reserve(&mut here, count, WHAT)?;
            here.resize(count, b'0');
            write_all_at(&journal, &here, 0).map_err(|e| Error::io(&flags, e))?;
        }
        let state = |flag: &u8| if *flag == b'1' { State::Here } else { State::Absent };
        let units = alloc::collect(here.iter().map(state), WHAT)?;
        Ok(Self { path, data, journal, size, units: Mutex::new(units) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that are here.
    pub fn here(&self) -> u64 {
        let units = self.units.lock();
        let here = units.iter().enumerate().filter(|(_, state)| **state == State::Here);
        here.map(|(unit, _)| unit_bytes(unit, self.size)).sum()
    }

    pub fn is_whole(&self) -> bool {
        self.units.lock().iter().all(|state| *state == State::Here)
    }

    /// The next range that nobody has asked for.
    pub fn next(&self) -> Option<Range<u64>> {
        let mut units = self.units.lock();
        let first = units.iter().position(|state| *state == State::Absent)?;
        let span = (units.len() / 8).clamp(SPAN.0, SPAN.1);
        let run = units[first..].iter().take(span).take_while(|state| **state == State::Absent).count();
        units[first..first + run].fill(State::Asked);
        Some(first as u64 * UNIT..((first + run) as u64 * UNIT).min(self.size))
    }

    /// What was asked for did not come: others may ask for it.
    pub fn give_back(&self, range: &Range<u64>) {
        let mut units = self.units.lock();
        let (first, end) = ((range.start / UNIT) as usize, range.end.div_ceil(UNIT) as usize);
        for state in &mut units[first..end] {
            if *state == State::Asked {
                *state = State::Absent;
            }
        }
    }

    /// Writes bytes, and notes the units that are whole by that: all from `from` to `at` have been written.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, from: u64, at: u64, bytes: &[u8]) -> Result<()> {
        let written = refusals::io(Site::Download).and_then(|()| write_all_at(&self.data, bytes, at));
        written.map_err(|e| Error::io(&self.path, e))?;
        let end = at + bytes.len() as u64;
        let first = from.max(at - at % UNIT).div_ceil(UNIT) as usize;
        let last = if end == self.size { end.div_ceil(UNIT) } else { end / UNIT } as usize;
        for unit in first..last {
            write_all_at(&self.journal, b"1", unit as u64).map_err(|e| Error::io(&self.path, e))?;
            self.units.lock()[unit] = State::Here;
        }
        Ok(())
    }

    /// Gives the whole file its name, written through to the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn commit(self, blob: &Path) -> Result<()> {
        let commit = || {
            self.data.sync_all()?;
            std::fs::rename(&self.path, blob)?;
            match std::fs::remove_file(journal(blob)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        commit().map_err(|e| Error::io(blob, e))
    }

    /// Removes what is here: it is not what it should be.
    pub fn discard(self, blob: &Path) {
        drop(self);
        remove(blob);
    }
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
        bytes = &bytes[written..];
        at += written as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_here_when_all_their_bytes_are() {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("ab");
        let size = 3 * UNIT + 7;
        let parts = Parts::open(&blob, size).unwrap();
        assert_eq!(parts.next(), Some(0..size));
        assert_eq!(parts.next(), None);
        // Half of the first unit, then on into the second.
        let half = vec![1; (UNIT / 2) as usize];
        parts.write(0, 0, &half).unwrap();
        assert_eq!(parts.here(), 0);
        parts.write(0, UNIT / 2, &vec![1; UNIT as usize]).unwrap();
        assert_eq!(parts.here(), UNIT);
        // Who began in the midst of a unit does not make it whole.
        parts.write(UNIT + 1, UNIT + 1, &vec![2; (2 * UNIT - 1) as usize]).unwrap();
        assert_eq!(parts.here(), 2 * UNIT);
        parts.write(3 * UNIT, 3 * UNIT, &[3; 7]).unwrap();
        assert_eq!((parts.here(), parts.is_whole()), (2 * UNIT + 7, false));
        drop(parts);
        // What a killed process left.
        assert_eq!(bytes_here(&blob, size), 2 * UNIT + 7);
        assert_eq!(bytes_here(&blob, size + 1), 0);
        let parts = Parts::open(&blob, size).unwrap();
        assert_eq!(parts.next(), Some(UNIT..2 * UNIT));
        parts.give_back(&(UNIT..2 * UNIT));
        let range = parts.next().unwrap();
        parts.write(range.start, range.start, &vec![4; UNIT as usize]).unwrap();
        assert!(parts.is_whole());
        parts.commit(&blob).unwrap();
        assert_eq!(std::fs::metadata(&blob).unwrap().len(), size);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_does_not_fit_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("ab");
        let parts = Parts::open(&blob, UNIT).unwrap();
        parts.write(0, 0, &vec![1; UNIT as usize]).unwrap();
        assert!(parts.is_whole());
        assert!(!Parts::open(&blob, UNIT - 1).unwrap().is_whole());
        std::fs::write(journal(&blob), "1").unwrap();
        std::fs::write(partial(&blob), "short").unwrap();
        assert_eq!(Parts::open(&blob, UNIT).unwrap().here(), 0);
        // A size that takes memory is refused before anything is made.
        let before = std::fs::read_dir(dir.path()).unwrap().count();
        for size in [MAX_SIZE + 1, u64::MAX] {
            let error = Parts::open(&dir.path().join("huge"), size).err().unwrap();
            let expected =
                format!("the hub lists a file of {}, expected at most 17.59 TB: it is wrong", Size(size));
            assert!(error.to_string().starts_with(&expected), "{error}");
            assert_eq!(bytes_here(&dir.path().join("huge"), size), 0);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before);
        // A file without bytes is whole at once.
        assert!(Parts::open(&dir.path().join("empty"), 0).unwrap().is_whole());
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(dir.path().join("elsewhere"), partial(&dir.path().join("link")))
                .unwrap();
            assert!(Parts::open(&dir.path().join("link"), 1).is_err());
        }
    }
}
