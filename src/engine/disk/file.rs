//! One part in one file.
//!
//! ```text
//! magic  8 bytes   the format's name and version
//! key   32 bytes   which part it is
//! kind   8 bytes   page, pane or snapshot, little-endian
//! bytes  8 bytes   how many follow, little-endian
//! …                the part, as it lies in memory
//! check 32 bytes   BLAKE3 of all before it
//! ```
//!
//! How many bytes a part has is known of the model, and none of them is taken before a file has as many.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::path::Path;

use super::key::Key;
use crate::backend::{HostPart, PartKind, PartShapes};
use crate::error::{Error, Result};
use crate::refusals::{self, Site};

const MAGIC: [u8; 8] = *b"bstpkv\0\x01";
const HEADER: usize = 56;
const CHECK: usize = 32;

/// Why a part is not to be had.
#[derive(Debug)]
pub(super) enum Missing {
    /// There is no such file.
    Absent,
    /// The file is not what was written.
    Damaged(String),
    /// There is no memory for it.
    Memory(Error),
    /// The system does not let it be read now: it may be whole.
    Unreadable(String),
}

/// Bytes of the file of a part of `bytes`.
pub(super) const fn size(bytes: u64) -> u64 {
    bytes + (HEADER + CHECK) as u64
}

fn header(key: &Key, kind: PartKind, bytes: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let parts: [&[u8]; 4] = [&MAGIC, key.bytes(), &(kind as u64).to_le_bytes(), &bytes.to_le_bytes()];
    let mut rest = &mut header[..];
    parts.iter().for_each(|part| {
        // They are as long as the header.
        let _ = rest.write_all(part);
    });
    header
}

/// Writes a new file that only its owner may read.
///
/// # Errors
/// Those of the file.
pub(super) fn write(path: &Path, key: &Key, kind: PartKind, part: &HostPart, bytes: u64) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = BufWriter::with_capacity(1 << 18, options.open(path).map_err(|e| Error::io(path, e))?);
    let (mut hasher, mut written) = (blake3::Hasher::new(), 0);
    let mut give = |bytes: &[u8]| {
        hasher.update(bytes);
        written += bytes.len() as u64;
        refusals::write_all(&mut file, bytes).map_err(|e| Error::io(path, e))
    };
    give(&header(key, kind, bytes))?;
    part.give(&mut give)?;
    if written != size(bytes) - CHECK as u64 {
        return Err(Error::format(path, format!("{written} bytes were written of {bytes} and a header")));
    }
    let check = hasher.finalize();
    file.write_all(check.as_bytes()).and_then(|()| file.flush()).map_err(|e| Error::io(path, e))
}

/// Reads a part; a snapshot behind `len` tokens.
pub(super) fn read(
    path: &Path,
    key: &Key,
    kind: PartKind,
    shapes: &PartShapes,
    len: usize,
) -> std::result::Result<HostPart, Missing> {
    let bytes = shapes.bytes(kind);
    let mut file = open(path)?;
    let found = file.metadata().map_err(|e| Missing::Unreadable(e.to_string()))?;
    if !found.is_file() || found.len() != size(bytes) {
        let what = format!("{} bytes, expected a file of {}", found.len(), size(bytes));
        return Err(Missing::Damaged(what));
    }
    let mut hasher = blake3::Hasher::new();
    let mut take = |to: &mut [u8]| {
        let read = refusals::io(Site::Read).and_then(|()| file.read_exact(to));
        read.map_err(|e| Error::io(path, e))?;
        hasher.update(to);
        Ok(())
    };
    let mut head = [0; HEADER];
    take(&mut head).map_err(Missing::of)?;
    if head != header(key, kind, bytes) {
        return Err(Missing::Damaged("its header is another".to_owned()));
    }
    let part = shapes.take(kind, len, &mut take).map_err(Missing::of)?;
    let (mut check, mut behind) = ([0; CHECK], [0]);
    file.read_exact(&mut check).map_err(|e| Missing::Damaged(e.to_string()))?;
    // It may have grown since it was asked for its length.
    let more = file.read(&mut behind).map_err(|e| Missing::Damaged(e.to_string()))?;
    if more != 0 || check != *hasher.finalize().as_bytes() {
        return Err(Missing::Damaged("its bytes are not what was written".to_owned()));
    }
    Ok(part)
}

/// Opens a file, and neither follows a link nor waits for whoever writes to a pipe.
fn open(path: &Path) -> std::result::Result<File, Missing> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Missing::Absent,
        // A link, in a place where none was put.
        _ if error.raw_os_error() == Some(libc::ELOOP) => Missing::Damaged(error.to_string()),
        _ => Missing::Unreadable(error.to_string()),
    })
}

impl Missing {
    fn of(error: Error) -> Self {
        match error {
            Error::OutOfMemory { .. } => Self::Memory(error),
            Error::Io { ref source, .. } if source.kind() != ErrorKind::UnexpectedEof => {
                Self::Unreadable(error.to_string())
            }
            other => Self::Damaged(other.to_string()),
        }
    }
}
