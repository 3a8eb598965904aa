//! Memory-mapped files: the only unsafe code of the loaders.

use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::files;
use crate::tensor::Bytes;

/// A file mapped read-only. Its pages are read from disk when they are first touched.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps a regular file.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses; [`Error::Format`] for what is no regular file (a pipe would block).
    pub fn open(path: &Path) -> Result<Self> {
        let file = files::open(path)?;
        // SAFETY: the map is read-only and private to this process; model files are written under another name and
        // renamed when complete, never changed in place. Should another program truncate one, touching the missing
        // pages ends the process with SIGBUS, as in every runtime that maps its weights: no memory is corrupted.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Self { map })
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
