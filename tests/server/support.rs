//! A server in a process of its own, and a client that sends the bytes that it is told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[path = "../support/noise.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
pub mod noise;
#[path = "../support/signals.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod signals;
pub use noise::{Noise, header};

use crate::script::Script;

/// How long anything may take on a machine that has other things to do.
pub const LONG: Duration = Duration::from_secs(60);

/// A client of a server, which sends each request on a connection of its own.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    pub address: SocketAddr,
}

/// A running server; killed when dropped.
pub struct Server {
    pub child: Child,
    pub client: Client,
    /// What it has said since it listens.
    said: Arc<Mutex<String>>,
}

impl std::ops::Deref for Server {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Server {
    /// The built-in model.
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
        command.args(["serve", "--port", "0"]).args(args);
        signals::hangs_up(&mut command);
        Self::by(command)
    }

    /// The built-in model in a process that may open so many files.
    pub fn with_descriptors(most: u32) -> Self {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {most}; exec \"$0\" serve --port 0");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_backstop")]);
        Self::by(command)
    }

    /// The built-in model in a process to which SIGHUP is nothing.
    pub fn under_nohup() -> Self {
        let command = signals::under_nohup(&["serve", "--port", "0"]);
        Self::by(command)
    }

    fn by(mut command: Command) -> Self {
        command.env_remove("RUST_LOG").env_remove("BACKSTOP_API_KEY");
        // No models of the person whose machine this is.
        signals::without_models(&mut command);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("the server ended: {said}")).unwrap();
            if let Some(address) = line.strip_prefix("listening on http://") {
                break address.parse().unwrap();
            }
            said += &line;
        };
        // Whatever else it says is read, so that it never waits for a reader.
        let said = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| *heard.lock().unwrap() += &format!("{line}\n"));
        });
        Self { child, client: Client { address }, said }
    }

    /// Waits until it says this.
    #[track_caller]
    pub fn hear(&self, wanted: &str) {
        let start = Instant::now();
        while !self.said.lock().unwrap().contains(wanted) {
            assert!(start.elapsed() < LONG, "it never said {wanted}: {}", self.said.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How often it has said so.
    pub fn times(&self, what: &str) -> usize {
        self.said.lock().unwrap().matches(what).count()
    }

    /// A model that generates until it is told to stop.
    pub fn endless(noise: &Noise, args: &[&str]) -> Self {
        Self::start(&[&[noise.path(), "--ctx", "150000"], args].concat())
    }

    pub fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// The exit code, once it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < LONG, "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Script {
    pub fn serve(&self) -> Server {
        Server::start(&[self.path().to_str().unwrap()])
    }
}

impl Client {
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &[], body.to_string().as_bytes())
    }

    /// One request on a connection of its own.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(&head(self.address, method, path, headers, body.len())).unwrap();
        // A server that refuses may answer before it has read.
        let _ = stream.write_all(body);
        Answer::read(&mut stream)
    }

    /// Sends a POST and returns the connection, with nothing of the answer read.
    pub fn begin(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = self.connect();
        let body = body.to_string();
        stream.write_all(&head(self.address, "POST", path, &[], body.len())).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        stream
    }

    /// A value of `/metrics`; 0 where it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until `/metrics` shows what is wanted.
    #[track_caller]
    pub fn wait_for(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        let start = Instant::now();
        while !wanted(self.metric(name)) {
            assert!(start.elapsed() < LONG, "{name} stays {}", self.metric(name));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The head of a request.
pub fn head(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    length: usize,
) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    let has = |name: &str| headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
    if !has("host") {
        text += &format!("host: {address}\r\n");
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if length > 0 && !has("content-length") && !has("transfer-encoding") {
        text += &format!("content-length: {length}\r\n");
    }
    text += "connection: close\r\n\r\n";
    text.into_bytes()
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads to the end of the connection.
    pub fn read(stream: &mut impl Read) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Self::parse(&bytes)
    }

    pub fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let pair = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let headers: Vec<_> = lines.map(pair).collect();
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let body = &bytes[end + 4..];
        let body = if chunked { unchunked(body) } else { body.to_vec() };
        Self { status, headers, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {} {text}", self.status))
    }

    /// The answer of a request that succeeded.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The message of one that did not.
    #[track_caller]
    pub fn refusal(&self, status: u16) -> String {
        let body = self.json();
        assert_eq!(self.status, status, "{body}");
        body["error"]["message"].as_str().unwrap().to_owned()
    }

    /// The data of a stream of events.
    pub fn events(&self) -> Vec<String> {
        assert_eq!(self.header("content-type"), Some("text/event-stream"), "{}", self.text());
        events(&self.text())
    }
}

/// The names and the data of a stream of events that have both.
#[track_caller]
pub fn named_events(answer: &Answer) -> Vec<(String, Value)> {
    assert_eq!(answer.header("content-type"), Some("text/event-stream"), "{}", answer.text());
    let text = answer.text();
    let blocks = text.split("\n\n").filter(|block| !block.is_empty());
    let pair = |block: &str| {
        let (name, data) = block.split_once('\n').unwrap_or_else(|| panic!("{block:?} in {text}"));
        let name = name.strip_prefix("event: ").unwrap_or_else(|| panic!("{block:?} in {text}"));
        let data = data.strip_prefix("data: ").unwrap_or_else(|| panic!("{block:?} in {text}"));
        (name.to_owned(), serde_json::from_str(data).unwrap())
    };
    blocks.map(pair).collect()
}

pub fn events(text: &str) -> Vec<String> {
    text.split("\n\n").filter_map(|event| event.strip_prefix("data: ").map(str::to_owned)).collect()
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        out.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
    out
}

/// A question that the built-in model can go on with.
pub fn chat(more: Value) -> Value {
    with(json!({ "messages": [{ "role": "user", "content": "Once upon a time" }], "temperature": 0 }), more)
}

pub fn with(mut base: Value, more: Value) -> Value {
    let members = more.as_object().unwrap().clone();
    base.as_object_mut().unwrap().extend(members);
    base
}

/// What the library says to the same.
pub fn expected(max_tokens: usize) -> String {
    let model = backstop::Model::builtin().unwrap();
    let options = backstop::Options { max_tokens: Some(max_tokens), ..backstop::Options::default() };
    model.generate("Once upon a time", &options).unwrap().text().unwrap()
}

/// A text that goes on for as long as a test needs it to, where the model is noise.
pub fn endless() -> Value {
    chat(json!({ "stream": true, "max_tokens": 140_000 }))
}

/// Reads a stream until it has brought some text.
pub fn read_some(stream: &mut impl Read) -> String {
    let mut text = String::new();
    let mut bytes = [0; 4096];
    while text.matches("data: ").count() < 3 {
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the stream ended: {text}");
        text += &String::from_utf8_lossy(&bytes[..count]);
    }
    text
}
