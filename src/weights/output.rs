//! Output that appears under its name when it is whole, and not before.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::refusals;

/// A file or directory in the making. It is made beside its place, as `.<name>.backstop-partial/whole`, and renamed by
/// [`commit`](Self::commit); dropped before that, it is gone. What a killed process left is taken over by the next one.
#[derive(Debug)]
pub struct Output {
    target: PathBuf,
    partial: PathBuf,
    /// Held until the end: a second process with the same target is refused.
    _lock: File,
}

impl Output {
    /// Begins the output `target`, whose directory must be there.
    ///
    /// # Errors
    /// [`Error::Format`] where `target` exists, is no name, or is being written by another process; [`Error::Io`].
    pub fn create(target: &Path) -> Result<Self> {
        let Some(name) = target.file_name() else {
            return Err(Error::format(target, "is no name for an output"));
        };
        refuse_existing(target)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".backstop-partial");
        let partial = parent(target).join(hidden);
        match fs::create_dir(&partial) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                // A link would lead elsewhere what is removed below.
                if !partial.symlink_metadata().map_err(|e| Error::io(&partial, e))?.is_dir() {
                    return Err(Error::format(
                        &partial,
                        "is no directory; expected none, or what an earlier run left",
                    ));
                }
            }
            result => result.map_err(|e| Error::io(&partial, e))?,
        }
        let path = partial.join("lock");
        let lock = File::create(&path).map_err(|e| Error::io(&path, e))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(Error::format(target, "is being written by another process"));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
            Ok(()) => {}
        }
        let output = Self { target: target.to_owned(), partial, _lock: lock };
        remove(&output.path()).map_err(|e| Error::io(&output.path(), e))?;
        Ok(output)
    }

    /// Where it is made: nothing is there yet.
    pub fn path(&self) -> PathBuf {
        self.partial.join("whole")
    }

    /// Gives it its name. Its files have been written through to the disk by those who wrote them.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Format`] where something has the name by now.
    pub fn commit(self) -> Result<()> {
        let path = self.path();
        if path.is_dir() {
            sync_dir(&path)?;
        }
        refuse_existing(&self.target)?;
        fs::rename(&path, &self.target).map_err(|e| Error::io(&self.target, e))?;
        sync_dir(parent(&self.target))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // What cannot be removed is taken over by the next run.
        let _ = fs::remove_dir_all(&self.partial);
    }
}

/// Writes a small file through to the disk.
///
/// # Errors
/// [`Error::Io`].
pub fn write_through(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create_new(path)?;
        refusals::write_all(&mut file, bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(path, e))
}

fn refuse_existing(target: &Path) -> Result<()> {
    if target.symlink_metadata().is_ok() {
        return Err(Error::format(target, "exists; expected a new name (remove it, or name another)"));
    }
    Ok(())
}

/// The directory that holds `path`.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

/// Makes renames and new names in a directory last.
fn sync_dir(dir: &Path) -> Result<()> {
    // Elsewhere a directory cannot be opened as a file.
    if cfg!(unix) {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(dir, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_the_name_before_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model");
        let entries = || fs::read_dir(dir.path()).unwrap().count();
        let output = Output::create(&target).unwrap();
        fs::create_dir(output.path()).unwrap();
        write_through(&output.path().join("part"), b"part").unwrap();
        assert!(!target.exists());
        let second = Output::create(&target).unwrap_err().to_string();
        assert!(second.ends_with("model: is being written by another process"), "{second}");
        drop(output);
        assert_eq!(entries(), 0);

        // What a killed process leaves: no lock, some files.
        let left = dir.path().join(".model.backstop-partial/whole");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("part"), "half").unwrap();
        let output = Output::create(&target).unwrap();
        assert!(!left.exists());
        fs::create_dir(output.path()).unwrap();
        write_through(&output.path().join("part"), b"part").unwrap();
        output.commit().unwrap();
        assert_eq!(fs::read(target.join("part")).unwrap(), b"part");
        assert_eq!(entries(), 1);
        let third = Output::create(&target).unwrap_err().to_string();
        assert!(third.contains("model: exists; expected a new name"), "{third}");
    }
}
