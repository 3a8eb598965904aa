//! The Hugging Face cache: repositories as Python's `huggingface_hub` lays them out, so that what it has downloaded is found
//! here and the other way round.
//!
//! ```text
//! models--org--name/blobs/HASH                 the bytes of files, by their hashes
//!                   snapshots/COMMIT/PATH      links to them, relative
//!                   refs/main                  the commit that a revision stood for when it was downloaded
//! .locks/models--org--name/HASH.lock           held by who writes a blob
//! ```

mod removed;

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::choose::{self, Choice, Entry, Form};
use super::fit::Fit;
use super::name::{RepositoryId, is_commit};
use super::origin::Origin;
use crate::error::{Error, HubFault, Result};
use crate::files;
use crate::json;
pub use removed::Removed;

/// The folder of repositories.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// A model of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// Its repository.
    pub id: RepositoryId,
    /// What stands for its commit, where it is not `main`.
    pub revision: Option<String>,
    /// What its files are.
    pub form: Form,
    /// The directory, or the first GGUF file.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether all of its files are here. One that lacks some is not [found](Cache::find); its download completes it.
    pub whole: bool,
}

/// A model that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The directory, or the first GGUF file.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// What its files are.
    pub form: Form,
    /// Whose it is.
    pub origin: Origin,
}

/// A file of a snapshot.
struct Linked {
    path: String,
    bytes: u64,
}

impl Cache {
    /// The cache in a folder, which need not be there yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn repository(&self, id: &RepositoryId) -> PathBuf {
        self.root.join(id.folder())
    }

    pub(super) fn blob(&self, id: &RepositoryId, hash: &str) -> PathBuf {
        self.repository(id).join("blobs").join(hash)
    }

    pub(super) fn snapshot(&self, id: &RepositoryId, commit: &str) -> PathBuf {
        self.repository(id).join("snapshots").join(commit)
    }

    /// The commit that a revision stood for.
    fn commit(&self, id: &RepositoryId, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = files::read(&self.repository(id).join("refs").join(revision), 256).ok()?;
        let text = String::from_utf8(text).ok()?.trim().to_owned();
        is_commit(&text).then_some(text)
    }

    /// The model of a repository, where all of it is here: its directory, or its first GGUF file. Of several variants the one
    /// that is preferred, where none is named.
    pub fn find(&self, id: &RepositoryId, revision: Option<&str>, variant: Option<&str>) -> Option<PathBuf> {
        self.find_fitting(id, revision, variant, Fit::default()).map(|found| found.path)
    }

    /// As [`find`](Self::find), of several variants one that fits; where none does, the one that needs the least.
    pub(super) fn find_fitting(
        &self,
        id: &RepositoryId,
        revision: Option<&str>,
        variant: Option<&str>,
        fit: Fit,
    ) -> Option<Found> {
        let commit = self.commit(id, revision.unwrap_or("main"))?;
        let snapshot = self.snapshot(id, &commit);
        let files = linked(&snapshot);
        let entries: Vec<Entry<'_>> = files.iter().map(Linked::entry).collect();
        let choice = choose::choose_here(id.as_str(), &entries, variant, fit)?;
        is_whole(&snapshot, &files, &choice).then(|| {
            let bytes = choice.files.iter().map(|&at| files[at].bytes).fold(0, u64::saturating_add);
            let (path, origin) = (place(&snapshot, &choice.form), Origin::Hub);
            Found { path, bytes, form: choice.form, origin }
        })
    }

    /// All models, by their names, those that lack files among them.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be read; that it is not there is no error.
    pub fn list(&self) -> Result<Vec<Cached>> {
        let mut all = Vec::new();
        for folder in names(&self.root)? {
            let Some(id) = RepositoryId::of_folder(&folder) else { continue };
            let refs = self.refs(&id);
            for commit in names(&self.repository(&id).join("snapshots"))? {
                if !is_commit(&commit) {
                    continue;
                }
                let of = |(name, to): &(String, String)| (*to == commit).then(|| name.clone());
                let mut names = refs.iter().filter_map(of);
                let revision = match refs.iter().any(|(name, to)| name == "main" && *to == commit) {
                    true => None,
                    false => Some(names.next().unwrap_or_else(|| commit.clone())),
                };
                let snapshot = self.snapshot(&id, &commit);
                let files = linked(&snapshot);
                let entries: Vec<Entry<'_>> = files.iter().map(Linked::entry).collect();
                for choice in choose::all(&entries) {
                    let whole = is_whole(&snapshot, &files, &choice);
                    let path = place(&snapshot, &choice.form);
                    let bytes = choice.files.iter().map(|&at| files[at].bytes).fold(0, u64::saturating_add);
                    let (id, revision) = (id.clone(), revision.clone());
                    all.push(Cached { id, revision, form: choice.form, path, bytes, whole });
                }
            }
        }
        all.sort_by(|a, b| (a.id.as_str(), &a.revision, &a.path).cmp(&(b.id.as_str(), &b.revision, &b.path)));
        Ok(all)
    }

    /// The names of a repository's revisions, and their commits.
    fn refs(&self, id: &RepositoryId) -> Vec<(String, String)> {
        let root = self.repository(id).join("refs");
        let mut all = Vec::new();
        walk(&root, "", DEPTH, &mut |path, _| {
            if let Some(commit) = self.commit(id, path).filter(|_| !is_commit(path)) {
                all.push((path.to_owned(), commit));
            }
        });
        all.sort();
        all
    }

    /// Whether anything is here of a repository.
    pub fn holds(&self, id: &RepositoryId) -> bool {
        self.repository(id).is_dir()
    }

    /// The lock that who writes a blob holds, as Python does; none while another process has it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn lock(&self, id: &RepositoryId, hash: &str) -> Result<Option<File>> {
        let path = self.locks(id)?.join(format!("{hash}.lock"));
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            // Who had it may have taken the file away, as some of Python's locks do: then others hold the one that is there now.
            Ok(()) => Ok(is_at(&file, &path).then_some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(Error::io(&path, e)),
        }
    }

    /// The folder of a repository's locks, where what is renamed into its place is made, too: in the repository's own folders
    /// Python would take what a killed process leaves for a part of it.
    fn locks(&self, id: &RepositoryId) -> Result<PathBuf> {
        let folder = self.root.join(".locks").join(id.folder());
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        Ok(folder)
    }

    /// The locks of all of a repository's blobs.
    fn lock_all(&self, id: &RepositoryId) -> Result<Vec<File>> {
        let folder = self.root.join(".locks").join(id.folder());
        let mut locks = Vec::new();
        for name in names(&folder)?.into_iter().filter(|name| name.ends_with(".lock")) {
            let path = folder.join(name);
            let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
            match file.try_lock() {
                Ok(()) => locks.push(file),
                Err(TryLockError::WouldBlock) => {
                    let what = format!("{id} is being downloaded by another process: end that first");
                    return Err(Error::hub(HubFault::Busy, what));
                }
                Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
            }
        }
        Ok(locks)
    }

    /// Puts a file of a snapshot into its place: a link to its blob.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn link(&self, id: &RepositoryId, commit: &str, path: &str, hash: &str) -> Result<()> {
        let place = self.snapshot(id, commit).join(path);
        // `snapshots/COMMIT/` and each folder of the path.
        let up = "../".repeat(2 + path.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{hash}"));
        if fs::read_link(&place).is_ok_and(|there| there == target) {
            return Ok(());
        }
        let folder = place.parent().unwrap_or(&place);
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let blob = self.blob(id, hash);
        let (made, ()) = made_anew(&self.locks(id)?, "link", |made| symlink(&target, made, &blob))?;
        fs::rename(&made, &place).map_err(|e| Error::io(&place, e))
    }

    /// Writes down the commit that a revision stands for.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn set_ref(&self, id: &RepositoryId, revision: &str, commit: &str) -> Result<()> {
        if self.commit(id, revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.repository(id).join("refs").join(revision);
        let (made, mut file) = made_anew(&self.locks(id)?, "ref", |made| File::create_new(made))?;
        let mut write = || {
            fs::create_dir_all(path.parent().unwrap_or(&path))?;
            file.write_all(commit.as_bytes())?;
            fs::rename(&made, &path)
        };
        write().map_err(|e| Error::io(&path, e))
    }
}

/// Whether a file is the one that its path names now.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let which = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let there = fs::metadata(path).map(which).ok();
    there.is_some() && there == file.metadata().map(which).ok()
}

/// A file that is open keeps its name.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Folders in a snapshot, one in another.
const DEPTH: usize = 16;

/// What `make` made of a path in `folder` at which nothing was, however many processes make such: two in containers of their own may
/// have one number.
fn made_anew<T>(
    folder: &Path,
    kind: &str,
    make: impl Fn(&Path) -> std::io::Result<T>,
) -> Result<(PathBuf, T)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let random = RandomState::new();
    loop {
        let number = random.hash_one((std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let path = folder.join(format!("{kind}.{number:016x}"));
        match make(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return Ok((path.clone(), made.map_err(|e| Error::io(&path, e))?)),
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path, _: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Links need rights that most users of Windows do not have.
#[cfg(not(unix))]
fn symlink(_: &Path, link: &Path, blob: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, link)
}

impl Linked {
    fn entry(&self) -> Entry<'_> {
        Entry { path: &self.path, bytes: self.bytes }
    }
}

/// The files of a snapshot whose bytes are here.
fn linked(snapshot: &Path) -> Vec<Linked> {
    let mut files = Vec::new();
    walk(snapshot, "", DEPTH, &mut |path, bytes| files.push(Linked { path: path.to_owned(), bytes }));
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// Tells of the files below a folder, by their paths with `/` and their sizes. What cannot be read is not there.
pub(super) fn walk(root: &Path, below: &str, depth: usize, tell: &mut dyn FnMut(&str, u64)) {
    let Ok(entries) = fs::read_dir(root.join(below)) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        // A folder that is a link could lead round.
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match fs::metadata(root.join(&path)) {
            Ok(meta) if meta.is_file() => tell(&path, meta.len()),
            Ok(_) if is_dir && depth > 1 => walk(root, &path, depth - 1, tell),
            _ => {}
        }
    }
}

/// What lies in a folder, by name; nothing where it is not there.
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(|e| Error::io(folder, e))?,
    };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Refuses a folder that is a link: what is removed below it would lie elsewhere.
fn own(folder: &Path) -> Result<()> {
    // Joined with nothing, a path ends in a slash, behind which there is no link any more.
    let path: PathBuf = folder.components().collect();
    if path.is_symlink() {
        let what = "is a link, and what it leads to is not removed: remove both by hand";
        return Err(Error::format(&path, what));
    }
    Ok(())
}

/// Whether all shards are here that an index names, and a tokenizer, without which others may have downloaded it; a GGUF model is whole
/// by the names of its parts.
fn is_whole(snapshot: &Path, files: &[Linked], choice: &Choice) -> bool {
    const INDEX: &str = "model.safetensors.index.json";
    let paths: HashSet<&str> = files.iter().map(|file| &*file.path).collect();
    let has = |path: &str| paths.contains(path);
    let is_tokenizer = |path: &str| {
        ["tokenizer.", "tekken.", "vocab.", "spiece.", "sentencepiece."]
            .iter()
            .any(|begin| path.starts_with(begin))
            || path.ends_with(".tiktoken")
    };
    if choice.form == Form::Safetensors && !files.iter().any(|file| is_tokenizer(&file.path)) {
        return false;
    }
    if choice.form != Form::Safetensors || !has(INDEX) {
        // A shard without its index is a part of a download.
        let shard = |&at: &usize| files[at].path.contains("-of-") && files[at].path.ends_with(".safetensors");
        return choice.form != Form::Safetensors || !choice.files.iter().any(shard);
    }
    let path = snapshot.join(INDEX);
    let index = files::read_json(&path).and_then(|bytes| json::parse_object(&path, &bytes));
    let Ok(Some(json::Value::Object(map))) = index.map(|mut index| index.remove("weight_map")) else {
        return false;
    };
    map.values().all(|shard| matches!(shard, json::Value::String(shard) if has(shard)))
}

/// The directory, or the first GGUF file.
pub(super) fn place(snapshot: &Path, form: &Form) -> PathBuf {
    match form {
        Form::Safetensors => snapshot.to_owned(),
        Form::Gguf { first, .. } => snapshot.join(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";
    const OTHER: &str = "aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd";

    fn put(cache: &Cache, id: &RepositoryId, commit: &str, path: &str, bytes: &str) {
        let hash: String = bytes.bytes().map(|byte| format!("{byte:02x}")).collect();
        let blob = cache.blob(id, &hash);
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(blob, bytes).unwrap();
        cache.link(id, commit, path, &hash).unwrap();
    }

    #[test]
    fn models_are_found_when_they_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, id) = (Cache::new(dir.path()), RepositoryId::new("a/b").unwrap());
        assert_eq!(cache.find(&id, None, None), None);
        fs::write(dir.path().join("models--a--file"), "no folder").unwrap();
        assert_eq!(cache.list().unwrap(), []);
        put(&cache, &id, COMMIT, "config.json", "{}");
        put(&cache, &id, COMMIT, "model-00001-of-00002.safetensors", "1");
        cache.set_ref(&id, "main", COMMIT).unwrap();
        assert_eq!(cache.find(&id, None, None), None);
        let whole = || cache.list().unwrap().iter().map(|cached| cached.whole).collect::<Vec<_>>();
        assert_eq!(whole(), [false]);
        let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
        put(&cache, &id, COMMIT, "model.safetensors.index.json", index);
        assert_eq!(cache.find(&id, None, None), None);
        put(&cache, &id, COMMIT, "model-00002-of-00002.safetensors", "22");
        // Python's AutoModel asks for no tokenizer.
        assert_eq!(cache.find(&id, None, None), None);
        put(&cache, &id, COMMIT, "tokenizer.json", "{ }");
        let snapshot = dir.path().join("models--a--b/snapshots").join(COMMIT);
        for revision in [None, Some("main"), Some(COMMIT)] {
            assert_eq!(cache.find(&id, revision, None).as_deref(), Some(&*snapshot));
        }
        assert_eq!(cache.find(&id, Some("v2"), None), None);
        assert_eq!(cache.find(&id, None, Some("Q8_0")), None);
        let link = fs::read_link(snapshot.join("config.json")).unwrap();
        assert_eq!(link, Path::new("../../blobs/7b7d"));
        let listed = cache.list().unwrap();
        assert_eq!((listed.len(), listed[0].bytes), (1, 2 + 1 + 2 + 3 + index.len() as u64));
        assert!(listed[0].whole);
        // A blob that is gone is no file.
        fs::remove_file(cache.blob(&id, "3232")).unwrap();
        assert_eq!((cache.find(&id, None, None), whole()), (None, vec![false]));
    }

    #[test]
    fn variants_are_removed_with_the_last_link_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, id) = (Cache::new(dir.path()), RepositoryId::new("a/b").unwrap());
        put(&cache, &id, COMMIT, "m-Q8_0.gguf", "eight");
        put(&cache, &id, COMMIT, "x/m-Q4_0-00001-of-00002.gguf", "four");
        put(&cache, &id, COMMIT, "x/m-Q4_0-00002-of-00002.gguf", "fourth");
        put(&cache, &id, OTHER, "m-Q8_0.gguf", "eight");
        // What is of no use here, and is somebody's.
        put(&cache, &id, OTHER, &format!("{}x.bin", "a/".repeat(40)), "deep");
        cache.set_ref(&id, "main", COMMIT).unwrap();
        cache.set_ref(&id, "refs/pr/1", OTHER).unwrap();
        let listed: Vec<_> =
            cache.list().unwrap().into_iter().map(|cached| (cached.revision, cached.bytes)).collect();
        assert_eq!(listed, [(None, 5), (None, 10), (Some("refs/pr/1".to_owned()), 5)]);
        let found = cache.find(&id, None, Some("q4_0")).unwrap();
        assert!(found.ends_with("x/m-Q4_0-00001-of-00002.gguf"), "{found:?}");
        assert_eq!(fs::read(&found).unwrap(), b"four");
        let error = cache.remove(&id, None, Some("Q2_K")).unwrap_err().to_string();
        assert_eq!(error, "a/b has no Q2_K here: backstop list shows what is");
        // Of a file that changed at the hub before its model was whole, no snapshot knows.
        fs::write(cache.blob(&id, "6f6c64"), "old").unwrap();
        assert_eq!(cache.remove(&id, None, Some("Q4_0")).unwrap(), Removed { bytes: 13, files: 3 });
        assert!(!cache.blob(&id, "6f6c64").exists());
        // The other revision still has it.
        assert_eq!(cache.remove(&id, Some("main"), None).unwrap(), Removed { bytes: 0, files: 0 });
        assert_eq!(cache.find(&id, None, None), None);
        assert!(cache.find(&id, Some("refs/pr/1"), None).is_some());
        // Somebody writes.
        let lock = cache.lock(&id, "ab").unwrap();
        assert!(lock.is_some() && cache.lock(&id, "ab").unwrap().is_none());
        let error = cache.remove(&id, None, None).unwrap_err();
        assert!(matches!(error, Error::Hub { fault: HubFault::Busy, .. }), "{error}");
        drop(lock);
        assert_eq!(cache.remove(&id, None, None).unwrap(), Removed { bytes: 9, files: 2 });
        assert!(!cache.holds(&id));
        let error = cache.remove(&id, None, None).unwrap_err().to_string();
        assert!(error.starts_with("a/b is not in "), "{error}");
    }

    #[test]
    fn of_several_that_are_here_the_one_that_fits_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, id) = (Cache::new(dir.path()), RepositoryId::new("a/b").unwrap());
        for (name, len) in [("m-Q4_K_M.gguf", 50), ("m-Q3_K_M.gguf", 30), ("m-Q8_0.gguf", 80)] {
            put(&cache, &id, COMMIT, name, &"x".repeat(len));
        }
        cache.set_ref(&id, "main", COMMIT).unwrap();
        let fit = |bytes, mlx| Fit { memory: Some(Fit::default().needs(bytes, None)), mlx, ..Fit::default() };
        let found = |variant, fit| cache.find_fitting(&id, None, variant, fit).unwrap();
        let taken = |fit| found(None, fit).form.gguf().unwrap().to_owned();
        assert_eq!(taken(fit(50, false)), "Q4_K_M");
        assert_eq!(taken(fit(49, false)), "Q3_K_M");
        // What needs the least, where none fits: MLX widens three bits to eight.
        assert_eq!((taken(fit(1, false)), taken(fit(1, true))), ("Q3_K_M".to_owned(), "Q3_K_M".to_owned()));
        assert_eq!(taken(fit(70, true)), "Q4_K_M");
        assert_eq!(found(Some("Q8_0"), fit(1, false)).bytes, 80);
        assert_eq!(cache.find(&id, None, None), Some(found(None, Fit::default()).path));
    }

    #[test]
    fn refs_that_are_none_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, id) = (Cache::new(dir.path()), RepositoryId::new("a/b").unwrap());
        put(&cache, &id, COMMIT, "m.gguf", "x");
        for text in ["", "main", "../../../etc", "0123", &"x".repeat(300)] {
            fs::create_dir_all(dir.path().join("models--a--b/refs")).unwrap();
            fs::write(dir.path().join("models--a--b/refs/main"), text).unwrap();
            assert_eq!(cache.find(&id, None, None), None, "{text:?}");
        }
        cache.set_ref(&id, "main", COMMIT).unwrap();
        assert!(cache.find(&id, None, None).is_some());
    }
}
