//! Where the bytes of a checkpoint's files come from: headers are read, and checked as copies that nobody else can change;
//! tensors are mapped, or read one by one.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::mmap::MappedFile;
use crate::alloc;
use crate::error::{Error, Result};
use crate::files::OpenFile;
use crate::tensor::{Aligned, Bytes};

/// How a checkpoint's tensors are brought into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// By a map of the file, whose pages are read when they are touched.
    #[default]
    Map,
    /// By reading each one, for file systems that map badly and files that may change.
    Read,
}

/// The bytes of one file.
pub(super) enum Source {
    Mapped(Arc<MappedFile>),
    Read(Arc<OpenFile>),
    /// A part of the binary.
    Static(&'static [u8]),
}

impl Source {
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let file = OpenFile::open(path)?;
        Ok(match access {
            Access::Map => Self::Mapped(Arc::new(MappedFile::new(file)?)),
            Access::Read => Self::Read(Arc::new(file)),
        })
    }

    fn file(&self) -> Option<&OpenFile> {
        match self {
            Self::Mapped(map) => Some(map.file()),
            Self::Read(file) => Some(file),
            Self::Static(_) => None,
        }
    }

    /// Bytes of the file.
    pub fn len(&self) -> usize {
        match self {
            Self::Mapped(map) => map.bytes().len(),
            Self::Read(file) => file.len(),
            Self::Static(bytes) => bytes.len(),
        }
    }

    /// A copy of bytes `range`, which lie in the file.
    pub fn copy(&self, range: Range<usize>) -> Result<Vec<u8>> {
        if let Self::Static(bytes) = self {
            return alloc::copy_of(&bytes[range], "a file's header");
        }
        let mut copy = alloc::zeroed(range.len(), "a file's header")?;
        if let Some(file) = self.file() {
            file.read(range.start as u64, &mut copy)?;
        }
        Ok(copy)
    }

    /// Bytes `range`, which lie in the file, to be computed with.
    pub fn bytes(&self, range: &Range<usize>) -> Result<(Arc<dyn Bytes>, Range<usize>)> {
        match self {
            Self::Mapped(map) => Ok((Arc::clone(map) as Arc<dyn Bytes>, range.clone())),
            Self::Static(bytes) => Ok((Arc::new(*bytes), range.clone())),
            Self::Read(file) => {
                let mut copy = Aligned::zeros(range.len())?;
                file.read(range.start as u64, copy.bytes_mut())?;
                Ok((Arc::new(copy), 0..range.len()))
            }
        }
    }

    /// The map, where there is one.
    pub fn map(&self) -> Option<&Arc<MappedFile>> {
        match self {
            Self::Mapped(map) => Some(map),
            Self::Read(_) | Self::Static(_) => None,
        }
    }

    /// Whether what was read is what the file had when it was opened.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Mapped(map) => map.check(),
            Self::Read(file) => file.check(),
            Self::Static(_) => Ok(()),
        }
    }
}

/// The files that something still reads through maps. Once one has changed, that stays so: nobody knows what was read of it.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Watched>);

#[derive(Debug, Default)]
struct Watched {
    files: Vec<Weak<MappedFile>>,
    /// When the files were asked last.
    asked: Mutex<Option<Instant>>,
    changed: OnceLock<(PathBuf, String)>,
}

impl Watch {
    /// How often files are asked for their size and time.
    const EVERY: Duration = Duration::from_millis(50);

    pub(super) fn new<'a>(files: impl Iterator<Item = &'a Arc<MappedFile>>) -> Self {
        let files = files.map(Arc::downgrade).collect();
        Self(Arc::new(Watched { files, asked: Mutex::default(), changed: OnceLock::new() }))
    }

    /// Whether the files are what they were when they were opened. A file that has become too short is known of at once,
    /// another change within 50 ms.
    ///
    /// # Errors
    /// [`Error::Changed`], from the first change on.
    pub fn check(&self) -> Result<()> {
        let watched = &*self.0;
        if watched.changed.get().is_none() {
            let due = {
                let mut asked = watched.asked.lock();
                let due = asked.is_none_or(|asked| asked.elapsed() >= Self::EVERY);
                if due {
                    *asked = Some(Instant::now());
                }
                due
            };
            // What nobody has mapped any more was copied.
            let maps = watched.files.iter().filter_map(Weak::upgrade);
            for map in maps {
                let result = if due || map.was_touched() { map.check() } else { Ok(()) };
                // A file that cannot be asked says nothing of what is mapped.
                if let Err(Error::Changed { path, what }) = result {
                    let _ = watched.changed.set((path, what));
                }
            }
        }
        match watched.changed.get() {
            Some((path, what)) => Err(Error::Changed { path: path.clone(), what: what.clone() }),
            None => Ok(()),
        }
    }
}
