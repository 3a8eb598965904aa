//! A file that is there whole or not at all.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::NamedTempFile;

/// A file in the making. It takes its place, or that of one that is there, with [`Self::finish`]; dropped before, nothing is left
/// of it. What is no regular file, as `/dev/stdout`, is written as it comes.
pub struct Whole {
    out: BufWriter<Out>,
    /// As it was typed.
    typed: PathBuf,
}

enum Out {
    /// With its place.
    Beside(NamedTempFile, PathBuf),
    There(File),
}

impl Whole {
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        Self::with(path, tempfile::Builder::new().permissions(Permissions::from_mode(0o666)))
    }

    /// One that its owner alone reads, unless there is one that others read, too.
    pub fn private(path: &Path) -> anyhow::Result<Self> {
        Self::with(path, &tempfile::Builder::new())
    }

    fn with(path: &Path, made: &tempfile::Builder<'_, '_>) -> anyhow::Result<Self> {
        let named = || path.display().to_string();
        // A link stays one: what it leads to is written.
        let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let there = std::fs::metadata(&target).ok();
        let out = if there.is_some_and(|there| !there.is_file()) {
            Out::There(File::options().write(true).open(&target).with_context(named)?)
        } else {
            let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Out::Beside(made.tempfile_in(dir).with_context(named)?, target)
        };
        Ok(Self { out: BufWriter::new(out), typed: path.to_owned() })
    }

    /// As it was typed.
    pub fn name(&self) -> String {
        self.typed.display().to_string()
    }

    /// Writes what is left, and puts it into its place.
    pub fn finish(self) -> anyhow::Result<()> {
        let put = || match self.out.into_inner().map_err(io::IntoInnerError::into_error)? {
            Out::There(_) => Ok(()),
            Out::Beside(file, path) => {
                // What is there stays as open as it is.
                if let Ok(there) = std::fs::metadata(&path) {
                    file.as_file().set_permissions(there.permissions())?;
                }
                file.persist(&path).map(drop::<File>).map_err(|error| error.error)
            }
        };
        put().with_context(|| self.typed.display().to_string())
    }
}

impl Write for Whole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Beside(file, _) => file.write(bytes),
            Self::There(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Beside(file, _) => file.flush(),
            Self::There(file) => file.flush(),
        }
    }
}
