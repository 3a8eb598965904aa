//! One file: parallel ranges, going on where they broke off, and the hash of the whole.

use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, HeaderValue, StatusCode, header};

use super::address::Address;
use super::client::{Client, Failure};
use super::listing::{FileHash, RemoteFile};
use super::name::RepositoryId;
use super::parts::{Parts, UNIT};
use crate::error::{Error, HubFault, Result};

/// Connections for one file.
const CONNECTIONS: usize = 4;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);
/// Bytes that are read or hashed at a time.
const CHUNK: usize = 64 << 10;

/// What is being done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Another process downloads it, which is waited for.
    Waiting,
    /// It is on its way.
    Downloading,
    /// Its hash is computed.
    Checking,
}

/// A file that is to be downloaded.
pub(super) struct Job<'a> {
    pub client: &'a Client,
    pub id: &'a RepositoryId,
    pub file: &'a RemoteFile,
    pub address: Address,
    /// Whether to end where the hub calls the file otherwise (`ETag`) than before.
    pub by_tag: bool,
}

/// What has become of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Brought {
    /// It is here.
    Here,
    /// It was stopped.
    Stopped,
    /// Another file may lie there by now.
    Renamed,
}

/// Told of the bytes that are here; whether to go on.
pub(super) type Tell<'a> = &'a mut dyn FnMut(Stage, u64) -> bool;

/// Downloads a file to `blob`, whose lock the caller holds.
///
/// # Errors
/// [`Error::Hub`] and [`Error::Io`].
pub(super) fn download(job: &Job<'_>, blob: &Path, tell: Tell<'_>) -> Result<Brought> {
    if job.file.hash == FileHash::Absent {
        return Err(unchecked(job));
    }
    // What came of an earlier run may be wrong, of a disk that lost power; what comes of this one is the hub's fault.
    let mut fresh = super::parts::bytes_here(blob, job.file.size) == 0;
    loop {
        let parts = Parts::open(blob, job.file.size)?;
        match fetch(job, &parts, tell)? {
            Brought::Here => {}
            ended => return Ok(ended),
        }
        let Some(right) = check(job, &parts, tell)? else { return Ok(Brought::Stopped) };
        if right {
            parts.commit(blob)?;
            return Ok(Brought::Here);
        }
        parts.discard(blob);
        if fresh {
            let what = format!(
                "{}: {} is not what the hub lists: its hash is another. Nothing of it is kept; pull again, and if that fails \
                 too, what hands the file out is broken or hostile",
                job.id, job.file.path
            );
            return Err(Error::hub(HubFault::Changed, what));
        }
        fresh = true;
    }
}

/// What the connections of a file share.
struct Shared<'a> {
    job: &'a Job<'a>,
    parts: &'a Parts,
    /// Bytes that are here, those of units that are not whole among them.
    bytes: AtomicU64,
    stop: AtomicBool,
    error: Mutex<Option<Error>>,
    /// What the hub calls the file, and whether it calls it otherwise now.
    tag: Mutex<Option<HeaderValue>>,
    renamed: AtomicBool,
    /// Where the last redirect led, which is asked first.
    place: Mutex<Option<Address>>,
    /// Held by the one connection that reads a file from a server without ranges.
    whole: Mutex<()>,
}

/// Brings all bytes.
fn fetch(job: &Job<'_>, parts: &Parts, tell: Tell<'_>) -> Result<Brought> {
    let shared = Shared {
        job,
        parts,
        bytes: parts.here().into(),
        stop: false.into(),
        error: Mutex::new(None),
        tag: Mutex::new(None),
        renamed: false.into(),
        place: Mutex::new(None),
        whole: Mutex::new(()),
    };
    let teller = thread::current();
    let went_on = thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..CONNECTIONS.min(parts.size().div_ceil(UNIT) as usize) {
            let started = thread::Builder::new().name("download".into()).spawn_scoped(scope, || {
                shared.work();
                // What is over at once is not waited for.
                teller.unpark();
            });
            match started {
                Ok(worker) => workers.push(worker),
                Err(_) if !workers.is_empty() => break,
                Err(source) => return Err(Error::Thread { what: "a download", source }),
            }
        }
        let mut on = true;
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::park_timeout(TICK);
            if on && !tell(Stage::Downloading, shared.bytes.load(Ordering::Relaxed)) {
                on = false;
                job.client.stop().store(true, Ordering::Relaxed);
            }
        }
        Ok(on)
    })?;
    if let Some(error) = shared.error.into_inner() {
        return Err(error);
    }
    let stopped = !went_on || job.client.is_stopped();
    Ok(match shared.renamed.into_inner() {
        _ if stopped => Brought::Stopped,
        true => Brought::Renamed,
        false if parts.is_whole() => Brought::Here,
        false => Brought::Stopped,
    })
}

impl Shared<'_> {
    /// Takes range after range.
    fn work(&self) {
        while !self.stop.load(Ordering::Relaxed)
            && let Some(range) = self.parts.next()
        {
            let done = self.range(&range);
            self.parts.give_back(&range);
            match done {
                Ok(()) => {}
                Err(Failure::Final(error)) => {
                    self.error.lock().get_or_insert(error);
                    self.stop.store(true, Ordering::Relaxed);
                }
                Err(Failure::Stopped | Failure::Again(..)) => self.stop.store(true, Ordering::Relaxed),
            }
        }
    }

    /// Brings a range, however often it breaks off, as long as a unit comes in a few tries.
    fn range(&self, range: &Range<u64>) -> std::result::Result<(), Failure> {
        let (mut at, mut tries, mut counted) = (range.start, 0, range.start);
        while at < range.end {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let (why, wait) = match self.some(&mut at, range) {
                Ok(()) => continue,
                Err(Failure::Again(why, wait)) => (why, wait),
                Err(other) => return Err(other),
            };
            tries += 1;
            if at - counted >= UNIT {
                (tries, counted) = (0, at);
            }
            if tries >= self.job.client.tries() {
                return Err(self
                    .job
                    .client
                    .given_up(self.job.id, &format!("{}: {why}", self.job.file.path))
                    .into());
            }
            tracing::info!(file = self.job.file.path, at, why, "a connection broke off");
            self.job.client.pause(tries, wait, || self.stop.load(Ordering::Relaxed));
        }
        Ok(())
    }

    /// Asks for what of a range is not here yet, from `at` on, and takes what comes.
    fn some(&self, at: &mut u64, range: &Range<u64>) -> std::result::Result<(), Failure> {
        let Job { client, id, address, by_tag, .. } = self.job;
        let place = self.place.lock().clone();
        let (asked, end) = (*at..range.end, range.end);
        let (response, from) = match &place {
            Some(place) => client.get(id, place, Some(&asked)).inspect_err(|_| *self.place.lock() = None)?,
            None => client.get(id, address, Some(&asked))?,
        };
        if response.status() == StatusCode::OK {
            drop(response);
            return self.all_at_once(at, end);
        }
        self.check_range(response.headers(), &asked)?;
        // Elsewhere it is called as it pleases them.
        if *by_tag && from.origin() == address.origin() && self.is_renamed(response.headers()) {
            self.renamed.store(true, Ordering::Relaxed);
            self.stop.store(true, Ordering::Relaxed);
            return Ok(());
        }
        // An address that is signed for an hour saves the hub a request for each range.
        if from.origin() != address.origin() {
            *self.place.lock() = Some(from);
        }
        let mut body = response.into_body().into_reader().take(end - *at);
        let mut chunk = vec![0; CHUNK];
        while *at < end {
            let read = self.read(&mut body, &mut chunk, *at)?;
            self.parts.write(range.start, *at, &chunk[..read])?;
            self.bytes.fetch_add(read as u64, Ordering::Relaxed);
            *at += read as u64;
        }
        Ok(())
    }

    /// The next bytes, at least one.
    fn read(&self, body: &mut impl Read, chunk: &mut [u8], at: u64) -> std::result::Result<usize, Failure> {
        if self.stop.load(Ordering::Relaxed) || self.job.client.is_stopped() {
            return Err(Failure::Stopped);
        }
        match body.read(chunk) {
            Ok(0) => Err(self.job.client.broken(format!("the connection ended at byte {at}"))),
            Ok(read) => Ok(read),
            Err(error) => Err(self.job.client.broken(format!("the connection broke at byte {at}: {error}"))),
        }
    }

    /// What a server without ranges sends: all of the file, once.
    fn all_at_once(&self, at: &mut u64, end: u64) -> std::result::Result<(), Failure> {
        let _one = self.whole.lock();
        let Job { client, id, file, address, .. } = self.job;
        if !self.parts.is_whole() {
            let (response, _) = client.get(id, address, None)?;
            let length = response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
            if let Some(length) = length.filter(|length| length.parse() != Ok(file.size)) {
                return Err(self.other_size(length).into());
            }
            let mut body = response.into_body().into_reader();
            let mut chunk = vec![0; CHUNK];
            let mut place = 0;
            self.bytes.store(0, Ordering::Relaxed);
            while place < file.size {
                let most = chunk.len().min(usize::try_from(file.size - place).unwrap_or(usize::MAX));
                let read = self.read(&mut body, &mut chunk[..most], place)?;
                self.parts.write(0, place, &chunk[..read])?;
                place += read as u64;
                self.bytes.store(place, Ordering::Relaxed);
            }
        }
        *at = end;
        Ok(())
    }

    /// Whether a part of a file is the one that was asked for.
    fn check_range(&self, headers: &HeaderMap, asked: &Range<u64>) -> Result<()> {
        let text =
            headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or("missing");
        let parsed = || {
            let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
            let (start, last) = range.split_once('-')?;
            Some((start.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?, total.trim()))
        };
        match parsed() {
            Some((_, _, total)) if total != "*" && total.parse() != Ok(self.job.file.size) => {
                Err(self.other_size(total))
            }
            Some((start, last, _)) if start == asked.start && (start..asked.end).contains(&last) => Ok(()),
            _ => {
                let what = format!(
                    "{}: {}: asked for the bytes {}-{}, got Content-Range {text:?}",
                    self.job.id,
                    self.job.file.path,
                    asked.start,
                    asked.end - 1
                );
                Err(Error::hub(HubFault::Answer, what))
            }
        }
    }

    /// Whether the hub calls the file otherwise than it did.
    fn is_renamed(&self, headers: &HeaderMap) -> bool {
        let Some(tag) = headers.get(header::ETAG) else { return false };
        self.tag.lock().get_or_insert_with(|| tag.clone()) != tag
    }

    fn other_size(&self, got: &str) -> Error {
        let what = format!(
            "{}: {} has {got} bytes where it lies, and {} in the hub's listing: it changed meanwhile, or the hub is wrong; pull again",
            self.job.id, self.job.file.path, self.job.file.size
        );
        Error::hub(HubFault::Changed, what)
    }
}

/// Whether the bytes hash to what the hub says; nothing where it was stopped.
fn check(job: &Job<'_>, parts: &Parts, tell: Tell<'_>) -> Result<Option<bool>> {
    match &job.file.hash {
        FileHash::Sha256(hash) => hashed(job, parts, Sha256::new(), hash, tell),
        FileHash::Git(hash) => {
            let start = Sha1::new().chain_update(format!("blob {}\0", job.file.size));
            hashed(job, parts, start, hash, tell)
        }
        FileHash::Absent => Err(unchecked(job)),
    }
}

fn unchecked(job: &Job<'_>) -> Error {
    let what = format!("{}: {} has no hash to check it by: it is not downloaded", job.id, job.file.path);
    Error::hub(HubFault::Answer, what)
}

fn hashed(
    job: &Job<'_>,
    parts: &Parts,
    mut hash: impl Digest,
    expected: &str,
    tell: Tell<'_>,
) -> Result<Option<bool>> {
    const STEP: u64 = 64 << 20;
    let file = std::fs::File::open(parts.path()).map_err(|e| Error::io(parts.path(), e))?;
    let mut from = file.take(parts.size());
    let (mut chunk, mut told, mut at) = (vec![0; 1 << 20], 0, 0);
    loop {
        let read = from.read(&mut chunk).map_err(|e| Error::io(parts.path(), e))?;
        if read == 0 {
            break;
        }
        hash.update(&chunk[..read]);
        at += read as u64;
        if at - told >= STEP {
            told = at;
            if job.client.is_stopped() || !tell(Stage::Checking, at) {
                return Ok(None);
            }
        }
    }
    let digest = hash.finalize();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Some(hex == expected))
}
