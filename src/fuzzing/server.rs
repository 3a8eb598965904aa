//! The server, over sockets: bodies of every route, and any bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value as Json;

use super::input::Input;
use super::seeds::{ROUTES, fixture};
use crate::backend::select::BackendRequest;
use crate::model::{LoadOptions, Model, ModelFiles};
use crate::server::{Listener, Options, serve};

/// How long an answer may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a connection is silent before it is ended: requests that are whole have their answers then, mostly.
const SILENCE: Duration = Duration::from_millis(20);

/// A server of this process, of a model of noise with a chat template.
fn address() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let options = Options { port: 0, parallel: 4, ..Options::default() };
        let listener = Listener::bind(&options).expect("a port of this machine");
        let address = listener.address();
        std::thread::spawn(move || {
            let files = ModelFiles::open(&fixture("gguf/whole.gguf")).expect("a fixture");
            let load = LoadOptions {
                backend: BackendRequest::Cpu,
                threads: Some(1),
                max_sequences: Some(options.parallel),
                kv_memory: Some(16 << 20),
                ..LoadOptions::default()
            };
            let model = Model::load_with(files, load).expect("a fixture");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let served = serve(listener, model, options, std::future::pending());
            runtime.expect("a runtime").block_on(served).expect("the server runs");
        });
        address
    })
}

/// What the server answers until it closes the connection, which an end of what is sent makes it do; nothing where it does so
/// before. It is sent once the server has been silent for `silence`.
fn ask(bytes: &[u8], silence: Option<Duration>) -> Vec<u8> {
    let mut stream = TcpStream::connect(address()).expect("the server listens");
    // It may refuse what it has not read yet.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    for patience in silence.into_iter().chain([PATIENCE]) {
        stream.set_read_timeout(Some(patience)).expect("a timeout");
        match stream.read_to_end(&mut answer) {
            Ok(_) => return answer,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return answer,
            Err(_) if patience < PATIENCE => drop(stream.shutdown(Shutdown::Write)),
            Err(error) => panic!(
                "{error}: {:?} to {:?}",
                answer.escape_ascii().to_string(),
                bytes.escape_ascii().to_string()
            ),
        }
    }
    answer
}

/// The input: a route, and a body.
///
/// Every request has one answer, which is no fault of the server's: JSON, or events or lines that are.
pub(super) fn request(data: &[u8]) {
    let mut input = Input(data);
    let route = input.pick(&ROUTES);
    let head = format!(
        "POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        input.0.len()
    );
    let answer = ask(&[head.as_bytes(), input.0].concat(), None);
    let text = String::from_utf8(answer).expect("an answer is UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.get(9..12).and_then(|status| status.parse::<u16>().ok()).unwrap_or_default();
    assert!((200..500).contains(&status) || status == 503, "{route}: {text}");
    let head = head.to_ascii_lowercase();
    if head.contains("content-type: application/x-ndjson") {
        // Between them stand the sizes of chunks.
        body.lines().map(str::trim_start).filter(|line| line.starts_with('{')).for_each(is_json);
    } else if head.contains("content-type: text/event-stream") {
        let lines = body.lines().filter_map(|line| line.strip_prefix("data: "));
        for event in lines.filter(|event| *event != "[DONE]") {
            is_json(event);
        }
    } else {
        is_json(body);
    }
}

fn is_json(text: &str) {
    let value = serde_json::from_str::<Json>(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let error = &value["error"];
    assert!(!error.to_string().contains("panicked"), "{text}");
}

/// Any bytes on a connection: each answer is one of HTTP/1.1, the connection ends, and the server lives on.
pub(super) fn http(data: &[u8]) {
    let answer = ask(data, Some(SILENCE));
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answer));
    let alive = ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", None);
    assert!(alive.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&alive));
}

#[cfg(test)]
mod tests {
    use super::ROUTES;
    use crate::server::ROUTES as SERVED;

    /// Routes that take no body, that load and unload what the others need, or that do nothing but refuse.
    const LEFT_OUT: [&str; 18] = [
        "/",
        "/health",
        "/metrics",
        "/props",
        "/v1/models",
        "/v1/models/load",
        "/v1/models/unload",
        "/v1/adapters/load",
        "/v1/adapters/unload",
        "/api/version",
        "/api/tags",
        "/api/ps",
        "/api/pull",
        "/api/push",
        "/api/create",
        "/api/copy",
        "/api/delete",
        "/api/blobs",
    ];

    #[test]
    fn every_route_is_fuzzed_or_left_out() {
        let mut known = [&ROUTES[..], &LEFT_OUT].concat();
        let mut served = SERVED.to_vec();
        known.sort_unstable();
        served.sort_unstable();
        assert_eq!(known, served);
    }
}
