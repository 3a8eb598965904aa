//! A model's bytes as a hash: two models of one name, or one whose files were changed in place, are two.

use std::fs::Metadata;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::key::Key;
use super::store::Store;
use crate::error::{Error, Result};
use crate::files;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// The files that a model was loaded from, as they were then.
#[derive(Debug)]
pub(crate) struct ModelBytes {
    files: Vec<(PathBuf, Stamp)>,
    /// Of what lies in no file.
    rest: Key,
}

/// What a system says of a file's bytes without reading them. Whoever writes to a file changes it, but for a time that they set
/// back, and even that changes the time of the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([u64; 7]);

impl Stamp {
    /// Of a file, which may lie in a bundle: then of all of that.
    fn of(path: &Path) -> Result<Self> {
        let (file, _) = files::open_part(path)?;
        file.metadata().map(|meta| Self::new(&meta)).map_err(|e| Error::io(path, e))
    }

    #[cfg(unix)]
    fn new(meta: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()].map(|x| x as u64);
        let [modified, modified_ns, changed, changed_ns] = times;
        Self([meta.dev(), meta.ino(), meta.len(), modified, modified_ns, changed, changed_ns])
    }

    #[cfg(not(unix))]
    fn new(meta: &Metadata) -> Self {
        let since = meta.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let since = since.unwrap_or_default();
        Self([0, 0, meta.len(), since.as_secs(), since.subsec_nanos().into(), 0, 0])
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|x| x.to_le_bytes()).collect()
    }
}

impl ModelBytes {
    /// Of `files`, in an order of the caller's, and `rest`, which lies in none of them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(files: impl IntoIterator<Item = PathBuf>, rest: &[&[u8]]) -> Result<Self> {
        let stamped = |path: PathBuf| Stamp::of(&path).map(|stamp| (path, stamp));
        let files = files.into_iter().map(stamped).collect::<Result<_>>()?;
        Ok(Self { files, rest: Key::of(rest.iter().copied()) })
    }

    /// Whether the files are what they were.
    pub fn is_unchanged(&self) -> bool {
        self.files.iter().all(|(path, stamp)| Stamp::of(path).is_ok_and(|now| now == *stamp))
    }

    /// The hash, where nothing has to be read for it: `store` remembers it.
    pub fn known(&self, store: &Store) -> Option<Key> {
        self.joined(|path, stamp| store.remembered(&place(path, stamp)))
    }

    /// The hash, read where it is not known, and remembered. None once `stop` is set, or where a file changes meanwhile.
    pub fn read(&self, store: &Store, stop: &AtomicBool) -> Option<Key> {
        let key = self.joined(|path, stamp| {
            let known = store.remembered(&place(path, stamp));
            known.or_else(|| {
                let key = hash(path, stop)?;
                // What was read is what the stamp is of.
                if Stamp::of(path).ok()? != *stamp {
                    return None;
                }
                store.remember(&place(path, stamp), &key);
                Some(key)
            })
        })?;
        self.is_unchanged().then_some(key)
    }

    fn joined(&self, of: impl Fn(&Path, &Stamp) -> Option<Key>) -> Option<Key> {
        let keys = self.files.iter().map(|(path, stamp)| of(path, stamp)).collect::<Option<Vec<Key>>>()?;
        let parts = keys.iter().map(|key| &key.bytes()[..]);
        Some(Key::of(parts.chain([&self.rest.bytes()[..]])))
    }
}

/// Under which a file's hash is remembered.
fn place(path: &Path, stamp: &Stamp) -> Key {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    Key::of([&b"file"[..], path.as_os_str().as_encoded_bytes(), &stamp.bytes()])
}

fn hash(path: &Path, stop: &AtomicBool) -> Option<Key> {
    let ((mut file, _), mut chunk) = (files::bundle::reader(path).ok()?, vec![0; CHUNK]);
    let mut hasher = blake3::Hasher::new();
    loop {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        match file.read(&mut chunk).ok()? {
            0 => return Some(hasher.into()),
            n => hasher.update(&chunk[..n]),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_hash_is_read_once_and_anew_for_other_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache"), 1 << 20).unwrap();
        let (path, go, stop) = (dir.path().join("weights"), AtomicBool::new(false), AtomicBool::new(true));
        let of = |rest: &[u8]| ModelBytes::new([path.clone()], &[rest]).unwrap();
        std::fs::write(&path, vec![1; CHUNK + 5]).unwrap();
        let first = of(b"");
        assert_eq!(first.known(&store), None);
        assert_eq!(first.read(&store, &stop), None);
        let key = first.read(&store, &go).unwrap();
        // Nothing is read any more.
        assert_eq!((of(b"").known(&store), of(b"").read(&store, &stop)), (Some(key), Some(key)));
        assert_ne!(of(b"settings").known(&store), Some(key));

        // Changed in place, with its size and its time as they were.
        let time = path.metadata().unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, vec![2; CHUNK + 5]).unwrap();
        File::open(&path).unwrap().set_modified(time).unwrap();
        assert!(!first.is_unchanged() && first.read(&store, &go).is_none());
        let changed = of(b"");
        assert_eq!(changed.known(&store), None);
        assert_ne!(changed.read(&store, &go).unwrap(), key);
        // A copy has the hash of what it is a copy of.
        let copy = dir.path().join("copy");
        std::fs::write(&copy, vec![1; CHUNK + 5]).unwrap();
        assert_eq!(ModelBytes::new([copy], &[b""]).unwrap().read(&store, &go), Some(key));
    }
}
