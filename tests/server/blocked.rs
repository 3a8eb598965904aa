//! Handlers that take their time, on all threads that there are for them: connections, signals and `/health` go on.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Answer, LONG, Noise, Server, endless, read_some};

/// How long handlers are blocked: far longer than what is to be answered meanwhile takes.
const BLOCK: Duration = Duration::from_secs(20);
/// What is answered at once, on a machine that has other things to do.
const SOON: Duration = Duration::from_secs(5);

/// Blocks every thread that answers requests.
fn block(server: &Server) -> Vec<TcpStream> {
    let path = format!("/block?{}", BLOCK.as_millis());
    let blocked = (0..4).map(|_| server.begin(&path, &json!({}))).collect();
    // Nobody is left who could answer.
    let start = Instant::now();
    loop {
        let mut stream = server.begin("/tokenize", &json!({ "content": "a" }));
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        if stream.read(&mut [0]).is_err() {
            return blocked;
        }
        assert!(start.elapsed() < SOON, "the handlers are not blocked");
    }
}

#[test]
fn health_and_signals_wait_for_no_handler() {
    let mut server = Server::start(&[]);
    let start = Instant::now();
    let mut blocked = block(&server);
    for path in ["/health", "/health/"] {
        let asked = Instant::now();
        assert_eq!(server.get(path).ok()["status"], "ok");
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    }
    // What is no request is refused by the connection itself.
    let mut stream = server.connect();
    std::io::Write::write_all(&mut stream, b"GET / HTTP/9.9\r\n\r\n").unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 16);
    let asked = Instant::now();
    server.signal("-TERM");
    while TcpStream::connect(server.address).is_ok() {
        assert!(asked.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(start.elapsed() < BLOCK, "{:?}", start.elapsed());
    // Answers come to their end all the same.
    assert_eq!(Answer::read(&mut blocked[0]).status, 204);
    drop(blocked);
    assert_eq!(server.ended(), Some(0));
    assert!(start.elapsed() < LONG + BLOCK);
}

#[test]
fn a_second_signal_waits_for_no_handler() {
    let noise = Noise::new();
    let mut server = Server::endless(&noise, &[]);
    let mut stream = server.begin("/v1/chat/completions", &endless());
    read_some(&mut stream);
    let start = Instant::now();
    let _blocked = block(&server);
    server.signal("-INT");
    while TcpStream::connect(server.address).is_ok() {
        assert!(start.elapsed() < BLOCK);
        std::thread::sleep(Duration::from_millis(5));
    }
    server.signal("-INT");
    assert_eq!(server.ended(), Some(130));
    assert!(start.elapsed() < BLOCK, "{:?}", start.elapsed());
}
