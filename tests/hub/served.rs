//! A hub of the tests' own: repositories in memory, over HTTP on loopback, with faults.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backstop::hub::Settings;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What was asked.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    /// First and last byte.
    pub range: Option<(u64, u64)>,
    pub authorization: Option<String>,
}

impl Seen {
    /// Whether it asks for a file, and not for a listing.
    pub fn is_file(&self) -> bool {
        self.path.contains("/resolve/")
    }
}

/// What is done about a request.
#[derive(Debug, Clone)]
pub enum Action {
    Serve,
    /// Another status, with headers.
    Status(u16, Vec<(&'static str, String)>),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// So many bytes at a time, with a pause between.
    Slow(usize, Duration),
    /// The whole file, whatever range was asked for.
    NoRanges,
    /// A whole file with another length than was listed.
    NoRangesOf(u64),
    /// Other bytes, as many.
    Wrong,
    /// Another `Content-Range`.
    ContentRange(String),
    /// Another `ETag`.
    Called(String),
    /// A body that does not end.
    Endless,
    /// Nothing at all, for a while.
    Hang(Duration),
    /// Nothing until the flag is set.
    After(Arc<AtomicBool>),
    /// Nothing until so many requests wait for the same.
    Together(usize),
}

/// How long a process is waited for: far longer than any takes.
const NET: Duration = Duration::from_secs(600);
/// How long a request waits for others.
const LONG: Duration = Duration::from_secs(60);

type Rule = Box<dyn FnMut(&Seen, usize) -> Action + Send>;

#[derive(Default)]
struct Repository {
    files: Vec<(String, Arc<Vec<u8>>)>,
    /// In place of the listing.
    listing: Option<String>,
}

struct State {
    repositories: Mutex<BTreeMap<String, Repository>>,
    rule: Mutex<Rule>,
    seen: Mutex<Vec<Seen>>,
    sent: AtomicU64,
    /// Requests that wait for each other, and the most that did.
    together: Mutex<(usize, usize)>,
    met: Condvar,
    over: AtomicBool,
}

/// A hub that listens until it is dropped.
pub struct Hub {
    state: Arc<State>,
    address: String,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            repositories: Mutex::default(),
            rule: Mutex::new(Box::new(|_, _| Action::Serve)),
            seen: Mutex::default(),
            sent: AtomicU64::new(0),
            together: Mutex::default(),
            met: Condvar::new(),
            over: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.over.load(Ordering::Relaxed) {
                    break;
                }
                let state = Arc::clone(&shared);
                // That a client goes away is what is tested.
                std::thread::spawn(move || drop(answer(&state, stream)));
            }
        });
        Self { state, address }
    }

    /// A hub with a repository `org/model` of these files.
    pub fn with(files: &[(&str, &[u8])]) -> Self {
        let hub = Self::new();
        hub.put("org/model", files);
        hub
    }

    pub fn put(&self, repository: &str, files: &[(&str, &[u8])]) {
        let files =
            files.iter().map(|(path, bytes)| ((*path).to_owned(), Arc::new(bytes.to_vec()))).collect();
        locked(&self.state.repositories).insert(repository.to_owned(), Repository { files, listing: None });
    }

    /// Lists something else than there is.
    pub fn lists(&self, repository: &str, listing: String) {
        locked(&self.state.repositories).entry(repository.to_owned()).or_default().listing = Some(listing);
    }

    /// The listing as it would be.
    pub fn listing(&self, repository: &str) -> Value {
        listing(&locked(&self.state.repositories)[repository])
    }

    /// What is done about requests from now on; told of the request, and how many came for its path before.
    pub fn rule(&self, rule: impl FnMut(&Seen, usize) -> Action + Send + 'static) {
        *locked(&self.state.rule) = Box::new(rule);
    }

    pub fn seen(&self) -> Vec<Seen> {
        locked(&self.state.seen).clone()
    }

    /// Requests for files.
    pub fn files_seen(&self) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.is_file() && seen.method == "GET").collect()
    }

    pub fn forget(&self) {
        locked(&self.state.seen).clear();
        self.state.sent.store(0, Ordering::Relaxed);
    }

    /// Bytes of files that were sent.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }

    /// The most requests that waited for each other.
    pub fn together(&self) -> usize {
        locked(&self.state.together).1
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn settings(&self, home: &Path) -> Settings {
        Settings {
            cache: home.join("hub"),
            endpoint: self.address.clone(),
            token: None,
            offline: false,
            lm_studio: Vec::new(),
            ollama: Vec::new(),
        }
    }

    /// The command, with an environment of its own.
    pub fn command(&self, home: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
        self.environment(&mut command, home);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn environment(&self, command: &mut Command, home: &Path) {
        let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
        for name in proxies.iter().chain(&[
            "HF_TOKEN",
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "XDG_CACHE_HOME",
            "RUST_LOG",
        ]) {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.env("HF_HOME", home).env("HOME", home).env("HF_ENDPOINT", &self.address);
        command.env("OLLAMA_MODELS", home.join("ollama"));
    }

    /// Runs it.
    pub fn run(&self, home: &Path, args: &[&str]) -> Ran {
        let output = ended(self.command(home, args).spawn().unwrap());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Runs it to success.
    pub fn ok(&self, home: &Path, args: &[&str]) -> Ran {
        let ran = self.run(home, args);
        assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
        ran
    }
}

/// What a process of [`Hub::command`], or another whose output is piped, has said at its end; one that does not end is killed.
#[track_caller]
pub fn ended(child: Child) -> Output {
    let id = child.id().to_string();
    let (over, waits) = mpsc::channel::<()>();
    let net = std::thread::spawn(move || {
        let late = waits.recv_timeout(NET) == Err(mpsc::RecvTimeoutError::Timeout);
        late.then(|| Command::new("kill").args(["-KILL", &id]).status())
    });
    let output = child.wait_with_output().unwrap();
    drop(over);
    assert!(net.join().unwrap().is_none(), "no end in {NET:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address.trim_start_matches("http://"));
    }
}

#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes))
}

fn is_large(path: &str) -> bool {
    path.ends_with(".gguf") || path.ends_with(".safetensors")
}

fn git_hash(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(hash.finalize())
}

/// The name of a file's blob.
pub fn etag(path: &str, bytes: &[u8]) -> String {
    if is_large(path) { sha256(bytes) } else { git_hash(bytes) }
}

fn listing(repository: &Repository) -> Value {
    let file = |(path, bytes): &(String, Arc<Vec<u8>>)| {
        let mut file = json!({ "rfilename": path, "size": bytes.len(), "blobId": git_hash(bytes) });
        if is_large(path) {
            file["lfs"] = json!({ "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134 });
        }
        file
    };
    let files: Vec<Value> = repository.files.iter().map(file).collect();
    json!({ "id": "org/model", "modelId": "org/model", "sha": COMMIT, "private": false, "tags": [], "siblings": files })
}

/// The listing that Python asks for.
fn tree_of(repository: &Repository) -> Value {
    let file = |(path, bytes): &(String, Arc<Vec<u8>>)| {
        let mut file = json!({ "type": "file", "path": path, "size": bytes.len(), "oid": git_hash(bytes) });
        if is_large(path) {
            file["lfs"] = json!({ "oid": sha256(bytes), "size": bytes.len(), "pointerSize": 134 });
        }
        file
    };
    repository.files.iter().map(file).collect()
}

/// Every file below a folder that is no link, by its path, and its bytes.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let path = entry.path().strip_prefix(root).unwrap().to_owned();
                files.insert(path, std::fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

fn answer(state: &State, mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    lines.read_line(&mut head)?;
    let (mut range, mut authorization) = (None, None);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let Some((name, value)) = line.trim().split_once(": ") else { continue };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let (first, last) = value.trim_start_matches("bytes=").split_once('-').unwrap();
                range = first.parse().ok().zip(last.parse().ok().or(Some(u64::MAX)));
            }
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let seen = Seen { method: method.to_owned(), path: path.to_owned(), range, authorization };
    let before = {
        let mut all = locked(&state.seen);
        all.push(seen.clone());
        all.iter().filter(|other| other.path == seen.path && other.method == seen.method).count() - 1
    };
    let action = (locked(&state.rule))(&seen, before);
    respond(state, &mut stream, &seen, &action)
}

fn respond(state: &State, stream: &mut TcpStream, seen: &Seen, action: &Action) -> std::io::Result<()> {
    let plain = |stream: &mut TcpStream, status: u16, headers: &[(&str, String)], body: &[u8]| {
        let mut head =
            format!("HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if seen.method == "HEAD" { Ok(()) } else { stream.write_all(body) }
    };
    match action {
        Action::Status(status, headers) => return plain(stream, *status, headers, b"no"),
        Action::Hang(pause) => std::thread::sleep(*pause),
        Action::After(flag) => {
            let begun = Instant::now();
            while !flag.load(Ordering::Relaxed) && begun.elapsed() < LONG {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Action::Together(count) => {
            let mut together = locked(&state.together);
            together.0 += 1;
            together.1 = together.1.max(together.0);
            state.met.notify_all();
            let fewer = |(_, most): &mut (usize, usize)| *most < *count;
            let waited = state.met.wait_timeout_while(together, LONG, fewer);
            waited.unwrap_or_else(PoisonError::into_inner).0.0 -= 1;
        }
        Action::Endless => {
            stream.write_all(b"HTTP/1.1 200 x\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 1 << 16])?;
            }
        }
        _ => {}
    }
    let (bytes, is_file, tag) = match find(state, seen) {
        Some(Found::Listing(text)) => (Arc::new(text.into_bytes()), false, None),
        Some(Found::File(path, bytes)) => {
            let tag = etag(&path, &bytes);
            (bytes, true, Some(tag))
        }
        None => return plain(stream, 404, &[("X-Error-Code", "EntryNotFound".into())], b"{}"),
    };
    let total = bytes.len() as u64;
    let mut headers = Vec::new();
    if let Some(tag) = tag {
        let usual = format!("\"{tag}\"");
        headers.push(("ETag", if let Action::Called(tag) = action { tag.clone() } else { usual }));
        headers.push(("X-Repo-Commit", COMMIT.to_owned()));
        headers.push(("Accept-Ranges", "bytes".to_owned()));
    } else {
        headers.push(("Content-Type", "application/json".to_owned()));
    }
    let whole = matches!(action, Action::NoRanges | Action::NoRangesOf(_));
    let (start, end, status) = match seen.range.filter(|_| is_file && !whole) {
        Some((first, last)) if first < total => (first, last.saturating_add(1).min(total), 206),
        Some(_) => return plain(stream, 416, &[], b""),
        None => (0, total, 200),
    };
    if status == 206 {
        let usual = format!("bytes {start}-{}/{total}", end - 1);
        headers.push((
            "Content-Range",
            if let Action::ContentRange(text) = action { text.clone() } else { usual },
        ));
    }
    let length = if let Action::NoRangesOf(length) = action { *length } else { end - start };
    let mut head = format!("HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {length}\r\n");
    for (name, value) in &headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if seen.method == "HEAD" {
        return Ok(());
    }
    let mut body = bytes[start as usize..end as usize].to_vec();
    if matches!(action, Action::Wrong) {
        body.iter_mut().for_each(|byte| *byte ^= 1);
    }
    let (step, pause) =
        if let Action::Slow(step, pause) = action { (*step, *pause) } else { (usize::MAX, Duration::ZERO) };
    if let Action::Cut(most) = action {
        body.truncate(*most);
    }
    for chunk in body.chunks(step.min(body.len().max(1))) {
        stream.write_all(chunk)?;
        if is_file {
            state.sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
        std::thread::sleep(pause);
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // Until the client has gone: what it has not read yet would be lost.
    let _ = stream.read(&mut [0; 1]);
    Ok(())
}

enum Found {
    Listing(String),
    File(String, Arc<Vec<u8>>),
}

fn find(state: &State, seen: &Seen) -> Option<Found> {
    let repositories = locked(&state.repositories);
    let path = seen.path.split('?').next()?.trim_start_matches('/');
    if let Some((id, _)) = path.strip_prefix("api/models/").and_then(|rest| rest.split_once("/tree/")) {
        return Some(Found::Listing(tree_of(repositories.get(id)?).to_string()));
    }
    if let Some(rest) = path.strip_prefix("api/models/") {
        let (id, revision) = rest.split_once("/revision/")?;
        let repository = repositories.get(id).filter(|_| revision == "main" || revision == COMMIT)?;
        return Some(Found::Listing(
            repository.listing.clone().unwrap_or_else(|| listing(repository).to_string()),
        ));
    }
    let (id, rest) = path.split_once("/resolve/")?;
    let (_, file) = rest.split_once('/')?;
    let file = file.replace("%20", " ");
    let (path, bytes) = repositories.get(id)?.files.iter().find(|(path, _)| *path == file)?;
    Some(Found::File(path.clone(), Arc::clone(bytes)))
}

/// Bytes that do not repeat.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}
