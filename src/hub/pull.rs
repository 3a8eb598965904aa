//! A model, from the hub to the cache.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cache::{self, Cache};
use super::choose::{self, Entry, Form, TooLarge};
use super::client::Client;
use super::download::{self, Brought, Job, Stage};
use super::fit::Fit;
use super::listing::{FileHash, Listing, RemoteFile};
use super::name::{RepositoryId, is_commit};
use super::parts;

use crate::error::{Error, HubFault, Result, Size};
use crate::json::quote;

/// How often a lock that another process holds is tried.
const TICK: Duration = Duration::from_millis(100);

/// What is to be downloaded, and what is here of it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The repository.
    pub id: RepositoryId,
    /// The revision that was asked for.
    pub revision: String,
    /// Its commit.
    pub commit: String,
    /// What the files are.
    pub form: Form,
    /// The files.
    pub files: Vec<RemoteFile>,
    /// The variant that would have been taken, did it fit.
    pub passed: Option<TooLarge>,
    /// The variant that was asked for, and what it had to fit.
    asked: (Option<String>, Fit),
}

/// How far a download is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// What is being done.
    pub stage: Stage,
    /// The path of the file that it is done to.
    pub file: &'a str,
    /// Bytes that are here, of all files.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
    /// Bytes that came by now, since the download began.
    pub came: u64,
}

impl Plan {
    /// What a model of the hub is made of; nothing where the client was stopped.
    ///
    /// # Errors
    /// [`Error::Hub`], for a file among them that the hub lists without a hash, too.
    pub fn make(
        client: &Client,
        id: &RepositoryId,
        revision: Option<&str>,
        variant: Option<&str>,
        fit: Fit,
    ) -> Result<Option<Self>> {
        let revision = revision.unwrap_or("main");
        let Some(listing) = client.listing(id, revision)? else { return Ok(None) };
        let entries = listing.files.iter().map(|file| Entry { path: &file.path, bytes: file.size });
        let choice = choose::choose(id.as_str(), &entries.collect::<Vec<_>>(), variant, fit)?;
        let Listing { commit, files } = listing;
        if is_commit(revision) && commit != revision {
            let what =
                format!("the hub was asked for {id} at commit {revision}, and answers with commit {commit}");
            return Err(Error::hub(HubFault::Answer, what));
        }
        let files: Vec<RemoteFile> = choice.files.iter().map(|&at| files[at].clone()).collect();
        if let Some(file) = files.iter().find(|file| file.hash == FileHash::Absent) {
            let other = match choice.form {
                Form::Safetensors => "",
                Form::Gguf { .. } => "; NAME:VARIANT takes another file of this repository",
            };
            let what = format!(
                "{id}: the hub lists {} without a hash to check it by (lfs.sha256, or blobId and size), and what cannot be \
                 checked is not downloaded{other}",
                quote(&file.path)
            );
            return Err(Error::hub(HubFault::Answer, what));
        }
        let asked = (variant.map(str::to_owned), fit);
        Ok(Some(Self {
            id: id.clone(),
            revision: revision.to_owned(),
            commit,
            form: choice.form,
            files,
            passed: choice.passed,
            asked,
        }))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).fold(0, u64::saturating_add)
    }

    /// Bytes of them that the cache has, those of files that are not whole among them.
    pub fn here(&self, cache: &Cache) -> u64 {
        self.files.iter().map(|file| here(cache, &self.id, file)).fold(0, u64::saturating_add)
    }

    /// Where the model will be: its directory, or its first GGUF file.
    pub fn path(&self, cache: &Cache) -> PathBuf {
        cache::place(&cache.snapshot(&self.id, &self.commit), &self.form)
    }

    /// Downloads what is not here. `tell` is told how far it is about ten times a second, and says whether to go on. Comes
    /// with the path of the model, or with nothing where it was stopped; what has come is kept, and the next download goes on
    /// there. Where the hub has other files meanwhile, it lists them again, once, and those are downloaded.
    ///
    /// # Errors
    /// [`Error::Hub`] and [`Error::Io`].
    pub fn download(
        &self,
        client: &Client,
        cache: &Cache,
        tell: &mut dyn FnMut(&Progress<'_>) -> bool,
    ) -> Result<Option<PathBuf>> {
        let error = match self.bring_all(client, cache, true, tell) {
            Ok(Brought::Here) => return Ok(Some(self.path(cache))),
            Ok(Brought::Stopped) => return Ok(None),
            Ok(Brought::Renamed) => None,
            // A file that was listed is gone, or is another.
            Err(error @ Error::Hub { fault: HubFault::Changed | HubFault::NotFound, .. }) => Some(error),
            Err(error) => return Err(error),
        };
        let (variant, fit) = &self.asked;
        let now = match (Self::make(client, &self.id, Some(&self.revision), variant.as_deref(), *fit), error)
        {
            (Ok(None), _) => return Ok(None),
            (Ok(Some(now)), _) if now.commit != self.commit || now.files != self.files => {
                tracing::warn!(
                    "{} changed at the hub meanwhile: what is another file there is begun anew",
                    self.id
                );
                self.remove_parts(cache, &now)?;
                now
            }
            // Several servers may call one file by several names: its hash says which it is.
            (_, None) => self.clone(),
            (_, Some(error)) => return Err(error),
        };
        let brought = now.bring_all(client, cache, false, tell)?;
        Ok((brought == Brought::Here).then(|| now.path(cache)))
    }

    /// Removes what is here of files that are not among those that there are `now`.
    fn remove_parts(&self, cache: &Cache, now: &Self) -> Result<()> {
        for file in self.files.iter().filter(|file| now.files.iter().all(|other| other.hash != file.hash)) {
            // Whoever else downloads one does what they will.
            if let Some(_lock) = cache.lock(&self.id, file.hash.as_str())? {
                parts::remove(&cache.blob(&self.id, file.hash.as_str()));
            }
        }
        Ok(())
    }

    /// Brings what is not here, and puts all in its place. `by_tag` as in [`Job`].
    fn bring_all(
        &self,
        client: &Client,
        cache: &Cache,
        by_tag: bool,
        tell: &mut dyn FnMut(&Progress<'_>) -> bool,
    ) -> Result<Brought> {
        self.check_space(cache)?;
        let (total, mut whole, mut came) = (self.bytes(), 0_u64, 0_u64);
        for file in &self.files {
            let before = here(cache, &self.id, file);
            let blob = cache.blob(&self.id, file.hash.as_str());
            let mut told = |stage, bytes: u64| {
                let came = came + bytes.saturating_sub(before);
                tell(&Progress { stage, file: &file.path, done: whole.saturating_add(bytes), total, came })
            };
            let address = client.file(&self.id, &self.commit, &file.path);
            let job = Job { client, id: &self.id, file, address, by_tag };
            match bring(&job, cache, &blob, &mut told).map_err(|error| self.or_full(cache, error))? {
                Brought::Here => {}
                other => return Ok(other),
            }
            came += file.size - before.min(file.size);
            whole = whole.saturating_add(file.size);
        }
        // A model is in its place once all of it is here: what says that it is one, last.
        let (last, others): (Vec<_>, Vec<_>) = self.files.iter().partition(|file| file.path == "config.json");
        for file in others.into_iter().chain(last) {
            cache.link(&self.id, &self.commit, &file.path, file.hash.as_str())?;
        }
        if !is_commit(&self.revision) {
            cache.set_ref(&self.id, &self.revision, &self.commit)?;
        }
        Ok(Brought::Here)
    }

    /// Bytes that are not here: those of a file that is not whole have their room.
    fn missing(&self, cache: &Cache) -> u64 {
        self.bytes().saturating_sub(self.here(cache))
    }

    /// Whether the disk has room for what is not here.
    fn check_space(&self, cache: &Cache) -> Result<()> {
        match free_near(cache.root()) {
            Some(free) => self.check_room(cache, free),
            None => Ok(()),
        }
    }

    fn check_room(&self, cache: &Cache, free: u64) -> Result<()> {
        /// What is left for others.
        const SPARE: u64 = 64 << 20;
        let missing = self.missing(cache);
        let lacks = missing.saturating_add(SPARE).saturating_sub(free);
        if missing == 0 || lacks == 0 {
            return Ok(());
        }
        let what = format!(
            "{} needs {} more on the disk, and {} for others, and {} has {} free, which is {} too little: {MAKE_ROOM}",
            self.id,
            Size(missing),
            Size(SPARE),
            cache.root().display(),
            Size(free),
            Size(lacks)
        );
        Err(Error::hub(HubFault::Space, what))
    }

    /// That the disk is full, where that ended a download.
    fn or_full(&self, cache: &Cache, error: Error) -> Error {
        let full = |kind| matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        match &error {
            Error::Io { path, source } if full(source.kind()) => {
                let what = format!(
                    "{}: {source}: of {} there are {} still to come, and the next pull goes on with what is here; {MAKE_ROOM}",
                    path.display(),
                    self.id,
                    Size(self.missing(cache))
                );
                Error::hub(HubFault::Space, what)
            }
            _ => error,
        }
    }
}

const MAKE_ROOM: &str = "make room (backstop rm NAME), or set HF_HUB_CACHE to a folder elsewhere";

/// Bytes that are free on the disk of a folder that need not be there yet.
fn free_near(folder: &Path) -> Option<u64> {
    // Of a path that begins here, the last one is empty.
    let here = |path| if path == Path::new("") { Path::new(".") } else { path };
    folder.ancestors().map(here).find(|path| path.is_dir()).and_then(free_space)
}

/// Brings one file, or waits until another process has.
fn bring(
    job: &Job<'_>,
    cache: &Cache,
    blob: &Path,
    told: &mut dyn FnMut(Stage, u64) -> bool,
) -> Result<Brought> {
    let Job { client, id, file, .. } = job;
    let is_here = || fs::metadata(blob).is_ok_and(|meta| meta.is_file() && meta.len() == file.size);
    let here = |on| if on { Brought::Here } else { Brought::Stopped };
    if is_here() {
        return Ok(here(told(Stage::Downloading, file.size)));
    }
    let folder = blob.parent().unwrap_or(blob);
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let _lock = loop {
        if let Some(lock) = cache.lock(id, file.hash.as_str())? {
            break lock;
        }
        let bytes = parts::bytes_here(blob, file.size);
        if client.is_stopped() || !told(Stage::Waiting, bytes) {
            return Ok(Brought::Stopped);
        }
        std::thread::sleep(TICK);
    };
    // Who had the lock may have brought it.
    if is_here() {
        return Ok(here(told(Stage::Downloading, file.size)));
    }
    download::download(job, blob, told)
}

/// Bytes of a file that the cache has.
fn here(cache: &Cache, id: &RepositoryId, file: &RemoteFile) -> u64 {
    let blob = cache.blob(id, file.hash.as_str());
    match fs::metadata(&blob) {
        Ok(meta) if meta.is_file() && meta.len() == file.size => file.size,
        _ => parts::bytes_here(&blob, file.size),
    }
}

/// Bytes that a folder's disk has free for this user.
#[cfg(unix)]
pub fn free_space(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes that a folder's disk has free for this user.
#[cfg(not(unix))]
pub fn free_space(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_has_room_for_exactly_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, id) = (Cache::new(dir.path()), RepositoryId::new("a/b").unwrap());
        let file = |path: &str, hash: &str, size| RemoteFile {
            path: path.to_owned(),
            size,
            hash: FileHash::Sha256(hash.to_owned()),
        };
        let mut plan = Plan {
            id,
            revision: "main".to_owned(),
            commit: "0".repeat(40),
            form: Form::Safetensors,
            files: vec![file("a", "aa", 1_000_000), file("b", "bb", 5_000_000_000)],
            passed: None,
            asked: (None, Fit::default()),
        };
        let needed = 5_001_000_000 + (64 << 20);
        plan.check_room(&cache, needed).unwrap();
        let said = |plan: &Plan, free| plan.check_room(&cache, free).unwrap_err().to_string();
        let expected = format!(
            "a/b needs 5.00 GB more on the disk, and 67.1 MB for others, and {} has 5.07 GB free, which is 1 byte too little: {MAKE_ROOM}",
            dir.path().display()
        );
        assert_eq!(said(&plan, needed - 1), expected);
        assert!(said(&plan, 0).contains("which is 5.07 GB too little:"), "{}", said(&plan, 0));
        // What is here needs no room more, and what is all here none at all.
        let blob = cache.blob(&plan.id, "aa");
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, vec![0; 1_000_000]).unwrap();
        plan.check_room(&cache, needed - 1_000_000).unwrap();
        assert!(said(&plan, needed - 1_000_001).contains("which is 1 byte too little:"));
        plan.files.pop();
        plan.check_room(&cache, 0).unwrap();
    }
}
