//! How targets read their input, and where they put files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Stands between the parts of an input that stands for several files.
pub(super) const CUT: &[u8] = b"\xff\n--\n";

/// The parts of an input, the last ones empty where there are fewer than `N`.
pub(super) fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut rest = data;
    std::array::from_fn(|i| {
        let cut = memchr::memmem::find(rest, CUT).filter(|_| i + 1 < N);
        let (part, behind) = match cut {
            Some(at) => (&rest[..at], &rest[at + CUT.len()..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = behind;
        part
    })
}

/// An input of such parts.
pub(super) fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(CUT)
}

/// Choices that an input makes, each a byte; zeros behind its end.
#[derive(Debug, Clone)]
pub(super) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// A number below `bound`, which is at most 256.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    pub fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// The next bytes, as many as there are.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A folder of this input's own, which goes with the value.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("backstop-fuzz-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder for the input's files");
        Self(dir)
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("a file of the input");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Panics where an error tells of a panic that was caught: it is a fault of this crate all the same.
pub(super) fn sound<T>(result: crate::error::Result<T>) -> Option<T> {
    result.map_err(|error| assert!(!error.to_string().contains("panicked"), "{error}")).ok()
}
