//! Files of a model: where they may lie, and how they are opened. What is no file, such as a pipe that nobody writes to, is an
//! error at once.

#[doc(hidden)]
pub mod bundle;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::alloc;
use crate::error::{Error, Result};
use crate::json;
use crate::refusals::{self, Site};
use bundle::Place;

/// Opens a regular file to be read; `path` may be a link to one.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] for what is no regular file.
pub(crate) fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    // A pipe would wait for somebody to write to it, before anything could be asked of it. Files do not know the flag.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(|e| Error::io(path, e))?;
    if !file.metadata().map_err(|e| Error::io(path, e))?.is_file() {
        return Err(Error::format(path, "not a regular file"));
    }
    Ok(file)
}

/// As [`open`], of a file that may lie in a bundle, with the bytes of what was opened that are the file's.
///
/// # Errors
/// As [`open`], and a bundle that is damaged.
pub(crate) fn open_part(path: &Path) -> Result<(File, Range<u64>)> {
    match open(path) {
        // Where a file stands in the place of a folder it may be a bundle.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotADirectory => {
            match bundle::find(path)? {
                Some((root, Place::File(part))) => Ok((open(&root)?, part)),
                Some((_, Place::Folder)) => Err(Error::format(path, "not a regular file")),
                None => Err(Error::io(path, source)),
            }
        }
        file => {
            let file = file?;
            let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
            Ok((file, 0..len))
        }
    }
}

/// Whether something has this name, a dangling link included: it is an error then, not another layout.
pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok() || place(path).is_some()
}

/// Whether a path leads to something, links followed.
pub(crate) fn is_there(path: &Path) -> bool {
    path.exists() || place(path).is_some()
}

/// Whether nothing has this name, as far as the system says.
pub(crate) fn is_absent(path: &Path) -> bool {
    let absent = |e: io::Error| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
    path.symlink_metadata().is_err_and(absent) && place(path).is_none()
}

/// The bytes of a JSON file of a model's directory, at most [`json::MAX_FILE`] of them.
///
/// # Errors
/// As [`read_beside`].
pub(crate) fn read_json(path: &Path) -> Result<Vec<u8>> {
    read_beside(path, json::MAX_FILE)
}

/// Whether this is a directory, or a folder of a bundle.
pub(crate) fn is_dir(path: &Path) -> bool {
    path.is_dir() || place(path) == Some(Place::Folder)
}

/// What a path leads to in a bundle. One that is damaged has nothing: its program says so before it asks.
fn place(path: &Path) -> Option<Place> {
    bundle::find(path).ok().flatten().map(|(_, place)| place)
}

/// The names in a directory, or in a folder of a bundle, in no order.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotADirectory => {
            return bundle::names(dir)?.ok_or_else(|| Error::io(dir, e));
        }
        entries => entries.map_err(|e| Error::io(dir, e))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // Files of a model have names that are text.
        names.extend(entry.map_err(|e| Error::io(dir, e))?.file_name().into_string().ok());
    }
    Ok(names)
}

/// The path with links followed; of one into a bundle, the way to that.
fn real(path: &Path) -> Result<PathBuf> {
    let error = match path.canonicalize() {
        Ok(real) => return Ok(real),
        Err(error) => error,
    };
    if error.kind() == ErrorKind::NotADirectory
        && let Some((root, _)) = bundle::find(path)?
        && let Ok(below) = path.strip_prefix(&root)
    {
        return Ok(root.canonicalize().map_err(|e| Error::io(&root, e))?.join(below));
    }
    Err(Error::io(path, error))
}

/// The bytes of a regular file, at most `limit` of them.
///
/// # Errors
/// As [`open`], and [`Error::Format`] for one with more.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (mut file, part) = open_part(path)?;
    let len = part.end - part.start;
    file.seek(SeekFrom::Start(part.start)).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    if len <= limit {
        // One byte more tells the reader that this is the end.
        alloc::reserve(&mut bytes, len as usize + 1, "a file of a model")?;
        // What grows meanwhile is more than it may be; in a bundle another file follows.
        let mut file = file.take(if part.start > 0 { len } else { limit + 1 });
        let read = refusals::io(Site::Read).and_then(|()| file.read_to_end(&mut bytes));
        read.map_err(|e| Error::io(path, e))?;
        if refusals::hit(Site::ShortRead, bytes.len()) {
            bytes.truncate(bytes.len() / 2);
        }
        if (bytes.len() as u64) < len {
            let what = format!("it ended after {} of {len} bytes", bytes.len());
            return Err(Error::io(path, std::io::Error::new(std::io::ErrorKind::UnexpectedEof, what)));
        }
    }
    let len = len.max(bytes.len() as u64);
    if len > limit {
        return Err(Error::format(path, format!("file is {len} bytes, expected at most {limit}")));
    }
    Ok(bytes)
}

/// As [`read`], of a file that a model's directory has under a name of its own: what it links to must belong to the model, since
/// what it holds may become a prompt.
///
/// # Errors
/// As [`read`], and [`Error::Format`] for a link to elsewhere.
pub(crate) fn read_beside(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if path.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) {
        Home::of(dir)?.resolve(path, &name)?;
    }
    read(path, limit)
}

/// Where the files of a model directory may resolve to.
pub(crate) struct Home {
    dir: PathBuf,
    /// The directory, links followed.
    real: PathBuf,
    /// `blobs` of the repository in the Hugging Face cache, where `real` is one of its snapshots, or a folder in one.
    blobs: Option<PathBuf>,
}

impl Home {
    pub fn of(dir: &Path) -> Result<Self> {
        let real = real(dir)?;
        let above = |dir: &&Path| dir.file_name() == Some(OsStr::new("snapshots"));
        let snapshots = real.ancestors().skip(1).take(2).find(above);
        let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
        Ok(Self { dir: dir.to_owned(), real, blobs })
    }

    /// The directory, as it was named.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Follows links, and refuses what lies elsewhere.
    pub fn resolve(&self, path: &Path, name: &str) -> Result<PathBuf> {
        let real = real(path)?;
        let parent = real.parent();
        if parent == Some(&self.real) || (self.blobs.is_some() && parent == self.blobs.as_deref()) {
            return Ok(real);
        }
        let what = format!("{name:?} is a link to {real:?}, outside the model's directory");
        Err(Error::format(path, what))
    }
}

/// A file that is kept open, and what it was when it was opened.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: File,
    path: PathBuf,
    /// The bytes of the opened file that are this one's.
    part: Range<u64>,
    /// All bytes of the opened file.
    len: u64,
    modified: Option<SystemTime>,
}

impl OpenFile {
    pub fn open(path: &Path) -> Result<Self> {
        let (file, part) = open_part(path)?;
        let meta = file.metadata().map_err(|e| Error::io(path, e))?;
        Ok(Self { file, path: path.to_owned(), part, len: meta.len(), modified: meta.modified().ok() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that it had.
    pub fn len(&self) -> usize {
        (self.part.end - self.part.start) as usize
    }

    /// Where it begins in what was opened.
    pub fn start(&self) -> u64 {
        self.part.start
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Fills `bytes` with those from `start` on.
    ///
    /// # Errors
    /// [`Error::Changed`] where it has become too short, and [`Error::Io`].
    pub fn read(&self, start: u64, bytes: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, bytes, self.part.start + start).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                self.changed(format!("it has no byte {start} to {} any more", start + bytes.len() as u64))
            }
            _ => Error::io(&self.path, e),
        })
    }

    /// Whether the file is what it was when it was opened.
    ///
    /// # Errors
    /// [`Error::Changed`], and [`Error::Io`].
    pub fn check(&self) -> Result<()> {
        let meta = self.file.metadata().map_err(|e| Error::io(&self.path, e))?;
        if meta.len() != self.len {
            return Err(self.changed(format!("{} bytes have become {}", self.len, meta.len())));
        }
        if meta.modified().ok() != self.modified {
            return Err(self.changed("it was written to".to_owned()));
        }
        Ok(())
    }

    pub fn changed(&self, what: String) -> Error {
        Error::Changed { path: self.path.clone(), what }
    }
}

#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, start)
}

#[cfg(not(unix))]
pub(crate) fn read_exact_at(mut file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_pipe_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("config.json");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [&*pipe, Path::new("/dev/zero"), dir.path()] {
            let error = read(path, 10).unwrap_err().to_string();
            assert_eq!(error, format!("{}: not a regular file", path.display()));
        }
    }

    #[test]
    fn what_is_beside_a_model_lies_in_its_directory_or_its_cache() {
        let root = tempfile::tempdir().unwrap();
        let (snapshot, blobs) = (root.path().join("snapshots/1"), root.path().join("blobs"));
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir(&blobs).unwrap();
        std::fs::write(blobs.join("ab"), "blob").unwrap();
        std::fs::write(root.path().join("secret"), "secret").unwrap();
        let path = |name: &str| snapshot.join(name);
        symlink("../../blobs/ab", path("a")).unwrap();
        symlink("a", path("b")).unwrap();
        symlink("../../secret", path("c")).unwrap();
        symlink("nowhere", path("d")).unwrap();
        assert_eq!(read_beside(&path("a"), 4).unwrap(), b"blob");
        assert_eq!(read_beside(&path("b"), 4).unwrap(), b"blob");
        let error = read_beside(&path("a"), 3).unwrap_err().to_string();
        assert_eq!(error, format!("{}: file is 4 bytes, expected at most 3", path("a").display()));
        let error = read_beside(&path("c"), 9).unwrap_err().to_string();
        assert!(
            error.contains("\"c\" is a link to ") && error.ends_with("outside the model's directory"),
            "{error}"
        );
        assert!(matches!(read_beside(&path("d"), 9), Err(Error::Io { .. })));
        // One that a person names may link to anywhere.
        assert_eq!(read(&path("c"), 9).unwrap(), b"secret");
    }
}
