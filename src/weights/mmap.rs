//! Memory-mapped files: with [`bus`], the only unsafe code of the loaders.

#[cfg(unix)]
mod bus;

use memmap2::{Mmap, MmapOptions};

use crate::error::{Error, Result};
use crate::files::OpenFile;
use crate::tensor::Bytes;

/// A file mapped read-only. Its pages are read from disk when they are first touched.
///
/// A file that is cut short under the map has no pages any more that could be read: zeros take their place, and
/// [`MappedFile::check`] says so.
#[derive(Debug)]
pub struct MappedFile {
    /// Dropped before the map.
    #[cfg(unix)]
    guard: bus::Guard,
    map: Mmap,
    file: OpenFile,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses.
    pub(super) fn new(file: OpenFile) -> Result<Self> {
        // SAFETY: the map is read-only and private to this process. Model files are written under another name and renamed when
        // complete. One that another program changes in place has other bytes then, which every reader takes for numbers,
        // never for lengths or places; pages that are missing are replaced by `bus`.
        let map = unsafe { MmapOptions::new().offset(file.start()).len(file.len()).map(file.file()) }
            .map_err(|e| Error::io(file.path(), e))?;
        #[cfg(unix)]
        let guard = bus::Guard::new(&map).map_err(|e| Error::io(file.path(), e))?;
        Ok(Self {
            #[cfg(unix)]
            guard,
            map,
            file,
        })
    }

    pub(super) fn file(&self) -> &OpenFile {
        &self.file
    }

    /// Whether a page was touched that the file did not have any more, or that could not be read.
    pub(super) fn was_touched(&self) -> bool {
        #[cfg(unix)]
        return self.guard.was_hit();
        #[cfg(not(unix))]
        false
    }

    /// Whether what was read is what the file had when it was opened.
    ///
    /// # Errors
    /// [`Error::Changed`], [`Error::Io`].
    pub fn check(&self) -> Result<()> {
        // What the file says of itself is clearer.
        self.file.check()?;
        match self.was_touched() {
            true => Err(self.file.changed("a part of it can no longer be read".to_owned())),
            false => Ok(()),
        }
    }

    /// Tells the system that the file will be read from front to back. Best effort.
    pub fn advise_sequential(&self) {
        #[cfg(unix)]
        let _ = self.map.advise(memmap2::Advice::Sequential);
    }

    /// Tells the system to read the whole file ahead, in the background. Best effort.
    pub fn advise_willneed(&self) {
        #[cfg(unix)]
        let _ = self.map.advise(memmap2::Advice::WillNeed);
    }
}

impl Bytes for MappedFile {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn release(&self, part: std::ops::Range<usize>) {
        // Whole pages inside the part alone: its neighbours stay.
        #[cfg(target_os = "linux")]
        {
            const PAGE: usize = 4096;
            let (start, end) = (part.start.next_multiple_of(PAGE), part.end / PAGE * PAGE);
            if start < end {
                let advice = memmap2::UncheckedAdvice::DontNeed;
                // SAFETY: the pages are of a private, read-only map of a file: the next read brings back the same bytes.
                let _ = unsafe { self.map.unchecked_advise_range(advice, start, end - start) };
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = part;
    }
}
