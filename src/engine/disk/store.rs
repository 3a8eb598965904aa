//! A directory of parts, each in a file of its own whose name is its key, and of what is remembered of models.
//!
//! A file appears under its name when it is whole, and is never changed: so several processes may share a directory without
//! a lock. What was of use longest ago is removed first; of a beginning, its end before its start.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::file::{self, Missing};
use super::key::Key;
use crate::backend::{HostPart, PartKind, PartShapes};
use crate::error::{Error, Result};

/// How often the directory is listed anew where others may write to it, too.
const LISTED: Duration = Duration::from_secs(60);
/// After which a file in the making is taken for one that a killed process left, and ahead of which a clock was set back. Longer
/// than parts of one text take to be written: all have the time of the first.
const LEFT: Duration = Duration::from_secs(600);
/// Hashes of files that are remembered.
const REMEMBERED: usize = 256;
/// Between the times of use of two parts of a beginning that were of use at once.
const APART: Duration = Duration::from_micros(1);

/// The directory.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    budget: u64,
    used: Arc<Used>,
    counts: Counts,
}

/// What the directory holds, as far as is known: for all models of this process that keep their prompts there.
#[derive(Debug, Default)]
struct Used {
    bytes: AtomicU64,
    listed: Mutex<Option<Instant>>,
}

impl Used {
    /// Of a directory by its path without links.
    fn of(dir: PathBuf) -> Arc<Self> {
        static ALL: Mutex<Vec<(PathBuf, Weak<Used>)>> = Mutex::new(Vec::new());
        let mut all = ALL.lock();
        all.retain(|(_, used)| used.strong_count() > 0);
        if let Some(used) = all.iter().find(|(of, _)| *of == dir).and_then(|(_, used)| used.upgrade()) {
            return used;
        }
        let used = Arc::default();
        all.push((dir, Arc::downgrade(&used)));
        used
    }
}

/// What became of parts since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub read: AtomicU64,
    pub written: AtomicU64,
    pub removed: AtomicU64,
    pub damaged: AtomicU64,
    pub failed: AtomicU64,
}

/// A file of the directory that holds a part or a hash, or is in the making.
struct Entry {
    used: SystemTime,
    path: PathBuf,
    bytes: u64,
    kind: EntryKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum EntryKind {
    Part,
    Hash,
    Making,
}

impl Store {
    /// Opens `dir`, which is made where it is not there, for at most `budget` bytes.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] where it is no directory, or somebody else may write to it.
    pub fn open(dir: &Path, budget: u64) -> Result<Self> {
        let io = |e| Error::io(dir, e);
        make(dir).map_err(io)?;
        let meta = fs::metadata(dir).map_err(io)?;
        if !meta.is_dir() {
            return Err(Error::format(dir, "is no directory, expected one for the cache of prompts"));
        }
        let used = Used::of(dir.canonicalize().map_err(io)?);
        let store = Self { dir: dir.to_owned(), budget, used, counts: Counts::default() };
        #[cfg(unix)]
        store.check_owner(&meta)?;
        store.list(&mut store.used.listed.lock(), 0, SystemTime::now());
        Ok(store)
    }

    /// Whether nobody else may put files there: what is read becomes what a model has read.
    #[cfg(unix)]
    fn check_owner(&self, dir: &fs::Metadata) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        let mode = dir.mode() & 0o7777;
        if mode & 0o022 != 0 {
            let what =
                format!("others may write to it (mode {mode:o}): chmod 700 it, or name another directory");
            return Err(Error::format(&self.dir, what));
        }
        // Whose this process is shows in a file that it makes.
        let path = self.making("owner");
        let made = File::create_new(&path).and_then(|file| file.metadata());
        let _ = fs::remove_file(&path);
        let me = made.map_err(|e| Error::io(&self.dir, e))?.uid();
        if me != dir.uid() {
            let what =
                format!("belongs to user {}, and this process to {me}: name another directory", dir.uid());
            return Err(Error::format(&self.dir, what));
        }
        Ok(())
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Bytes that the directory holds, as far as is known.
    pub fn bytes(&self) -> u64 {
        self.used.bytes.load(Ordering::Relaxed)
    }

    /// Of what there are parts of this kind, by the names of their files.
    pub fn keys(&self, kind: PartKind) -> HashSet<Key> {
        let listed = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let key = |entry: fs::DirEntry| {
            let name = entry.file_name();
            Key::parse(name.to_str()?.strip_suffix(kind.name())?.strip_suffix('.')?)
        };
        listed.filter_map(key).collect()
    }

    fn path(&self, key: &Key, kind: PartKind) -> PathBuf {
        self.dir.join(format!("{key}.{}", kind.name()))
    }

    /// The name of a file in the making, which no other has.
    fn making(&self, of: &str) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let time = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
        self.dir.join(format!(".{of}.{process}-{time:x}-{count}.making"))
    }

    /// Whether there is a part, as far as the length of its file says.
    pub fn has(&self, key: &Key, kind: PartKind, shapes: &PartShapes) -> bool {
        let meta = self.path(key, kind).symlink_metadata();
        meta.is_ok_and(|meta| meta.is_file() && meta.len() == file::size(shapes.bytes(kind)))
    }

    /// Reads a part, a snapshot behind `len` tokens. A file that is damaged is removed.
    pub fn read(&self, key: &Key, kind: PartKind, shapes: &PartShapes, len: usize) -> Option<HostPart> {
        let path = self.path(key, kind);
        match file::read(&path, key, kind, shapes, len) {
            Ok(part) => {
                self.counts.read.fetch_add(shapes.bytes(kind), Ordering::Relaxed);
                Some(part)
            }
            Err(Missing::Absent) => None,
            Err(Missing::Memory(error)) => {
                tracing::warn!(%error, "a prompt's beginning is computed anew");
                None
            }
            Err(Missing::Unreadable(what)) => {
                tracing::warn!(
                    what,
                    "{} cannot be read: a prompt's beginning is computed anew",
                    path.display()
                );
                None
            }
            Err(Missing::Damaged(what)) => {
                tracing::warn!(what, "{} is damaged, and was removed", path.display());
                self.counts.damaged.fetch_add(1, Ordering::Relaxed);
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Writes a part that is not there, and removes others for it. Its time of use is that of the page `index` of a beginning
    /// that was of use at `now`.
    ///
    /// # Errors
    /// What keeps it from being written; nothing is there then.
    pub fn write(
        &self,
        key: &Key,
        kind: PartKind,
        part: &HostPart,
        shapes: &PartShapes,
        (now, index): (SystemTime, usize),
    ) -> Result<()> {
        if self.has(key, kind, shapes) {
            self.touch(key, kind, (now, index));
            return Ok(());
        }
        let size = file::size(shapes.bytes(kind));
        if !self.make_room(size, now) {
            return Ok(());
        }
        let making = self.making("part");
        let written = file::write(&making, key, kind, part, shapes.bytes(kind)).and_then(|()| {
            set_used(&making, now, index);
            let path = self.path(key, kind);
            fs::rename(&making, &path).map_err(|e| Error::io(&path, e))
        });
        match written {
            Ok(()) => {
                self.counts.written.fetch_add(shapes.bytes(kind), Ordering::Relaxed);
            }
            Err(_) => {
                let _ = fs::remove_file(&making);
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
                *self.used.listed.lock() = None;
            }
        }
        written
    }

    /// Notes that a part, if there is one, is of use, as [`Self::write`].
    pub fn touch(&self, key: &Key, kind: PartKind, (now, index): (SystemTime, usize)) {
        set_used(&self.path(key, kind), now, index);
    }

    /// Removes what was of use longest ago, until `bytes` more have room; false where they never have. They count from here on.
    fn make_room(&self, bytes: u64, now: SystemTime) -> bool {
        if bytes > self.budget {
            return false;
        }
        // Held until they count: others of this process write, too.
        let mut listed = self.used.listed.lock();
        let due = listed.is_none_or(|listed| listed.elapsed() > LISTED);
        if due || self.bytes().saturating_add(bytes) > self.budget {
            self.list(&mut listed, bytes, now);
        }
        self.used.bytes.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    /// Lists the directory; where it holds too much for `bytes` more, removes a sixteenth more than that, so that it is not
    /// listed for each file.
    ///
    /// The system's clock may jump. What was of use long after `now` was so before it was set back, and thus before all that has
    /// been of use since. A clock that is set back by less than [`LEFT`] is not told from one that others have: for that long, what is
    /// new goes before what was of use right before the jump. That costs hits and never makes a wrong one: a time says what goes first, and
    /// nothing else.
    fn list(&self, listed: &mut Option<Instant>, bytes: u64, now: SystemTime) {
        let mut entries: Vec<Entry> = self.entries();
        let ahead = now.checked_add(LEFT).unwrap_or(now);
        let place = |entry: &Entry| (entry.used <= ahead, entry.used);
        entries.sort_by(|a, b| (place(a), &a.path).cmp(&(place(b), &b.path)));
        let hashes = entries.iter().filter(|entry| entry.kind == EntryKind::Hash).count();
        let mut forgotten = hashes.saturating_sub(REMEMBERED);
        entries.retain(|entry| {
            let goes = match entry.kind {
                EntryKind::Part => false,
                EntryKind::Hash => forgotten > 0,
                EntryKind::Making => {
                    let age = now.duration_since(entry.used);
                    age.unwrap_or_else(|ahead| ahead.duration()) > LEFT
                }
            };
            if entry.kind == EntryKind::Hash {
                forgotten = forgotten.saturating_sub(1);
            }
            !goes || fs::remove_file(&entry.path).is_err()
        });
        let mut held: u64 = entries.iter().map(|entry| entry.bytes).sum();
        if held.saturating_add(bytes) > self.budget {
            let most = self.budget.saturating_sub(bytes).saturating_sub(self.budget / 16);
            for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Part) {
                if held <= most {
                    break;
                }
                // Another process may have removed it.
                let _ = fs::remove_file(&entry.path);
                held -= entry.bytes;
                self.counts.removed.fetch_add(1, Ordering::Relaxed);
            }
        }
        *listed = Some(Instant::now());
        self.used.bytes.store(held, Ordering::Relaxed);
    }

    /// The files that are ours by their names.
    fn entries(&self) -> Vec<Entry> {
        let listed = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let entry = |entry: fs::DirEntry| {
            let kind = kind_of(&entry.file_name())?;
            let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            Some(Entry { used, path: entry.path(), bytes: meta.len(), kind })
        };
        listed.filter_map(entry).collect()
    }

    /// The hash that is remembered under `place`.
    pub fn remembered(&self, place: &Key) -> Option<Key> {
        let path = self.dir.join(format!("{place}.hash"));
        let bytes: [u8; 64] = crate::files::read(&path, 64).ok()?.try_into().ok()?;
        let (hash, check) = bytes.split_at(32);
        let hash: [u8; 32] = hash.try_into().ok()?;
        if Key::of([&place.bytes()[..], &hash]).bytes() != check {
            let _ = fs::remove_file(&path);
            return None;
        }
        set_used(&path, SystemTime::now(), 0);
        Some(hash.into())
    }

    /// Remembers a hash under `place`; where that fails, it is read again the next time.
    pub fn remember(&self, place: &Key, hash: &Key) {
        let making = self.making("hash");
        let check = Key::of([&place.bytes()[..], hash.bytes()]);
        let written = fs::write(&making, [&hash.bytes()[..], check.bytes()].concat())
            .and_then(|()| fs::rename(&making, self.dir.join(format!("{place}.hash"))));
        if let Err(error) = written {
            tracing::warn!(%error, "the hash of a model's file is not remembered");
            let _ = fs::remove_file(&making);
        }
    }
}

/// Makes a directory that only its owner may look into.
fn make(dir: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

fn set_used(path: &Path, now: SystemTime, index: usize) {
    let time = now.checked_sub(APART * u32::try_from(index).unwrap_or(u32::MAX)).unwrap_or(now);
    let set = || {
        // A name that leads elsewhere is nobody's part.
        if path.symlink_metadata()?.is_file() { File::open(path)?.set_modified(time) } else { Ok(()) }
    };
    // One that is not there, or another's, keeps its time.
    let _ = set();
}

/// What a file is by its name; none that is not ours.
fn kind_of(name: &OsStr) -> Option<EntryKind> {
    let (stem, ending) = name.to_str()?.rsplit_once('.')?;
    let is_key = stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    match ending {
        "making" if stem.starts_with('.') => Some(EntryKind::Making),
        "hash" if is_key => Some(EntryKind::Hash),
        _ if is_key && PartKind::ALL.iter().any(|kind| kind.name() == ending) => Some(EntryKind::Part),
        _ => None,
    }
}
