//! What takes too long or too much: slow and silent clients, those that do not read, those that go away, a full queue.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Answer, LONG, Noise, Server, chat, endless, expected, read_some, with};

#[test]
fn slow_heads_and_silent_connections_are_ended() {
    let server = Server::start(&["--header-timeout", "0.5", "--max-connections", "8"]);
    // More of them than there may be connections: those that wait for a place get one.
    let start = Instant::now();
    let slow: Vec<TcpStream> = (0..20)
        .map(|i| {
            let mut stream = server.connect();
            if i % 2 == 0 {
                stream.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc").unwrap();
            }
            stream
        })
        .collect();
    server.post("/v1/chat/completions", &chat(json!({ "max_tokens": 1 }))).ok();
    for mut stream in slow {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}");
    }
    assert!(start.elapsed() < LONG);
}

#[test]
fn connections_without_a_request_give_up_their_places() {
    let server = Server::start(&["--max-connections", "8"]);
    let noted = server.post("/tokenize", &json!({ "content": "a" })).ok();
    let start = Instant::now();
    // Heads that are never whole, and connections that say nothing.
    let mut slow: Vec<TcpStream> = (0..40)
        .map(|i| {
            let mut stream = server.connect();
            if i % 2 == 0 {
                stream.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc").unwrap();
            }
            stream
        })
        .collect();
    assert_eq!(server.post("/tokenize", &json!({ "content": "a" })).ok(), noted);
    // Long before the 20 s of --header-timeout.
    assert!(start.elapsed().as_secs() < 15, "{:?}", start.elapsed());
    let mut rest = Vec::new();
    slow[0].read_to_end(&mut rest).unwrap_or_default();
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
}

#[test]
fn connections_that_find_no_descriptor_wait_for_one() {
    const MOST: u32 = 40;
    let server = Server::with_descriptors(MOST);
    let before = descriptors(&server);
    let mut held: Vec<TcpStream> = (0..MOST).map(|_| server.connect()).collect();
    server.hear("no connection is accepted until this is over");
    server.hear("Too many open files");
    // Once, however often it is tried.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.times("no connection is accepted"), 1);
    // Those that have one are served, and who waits is as soon as another goes.
    let health = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    held[0].write_all(health).unwrap();
    assert_eq!(Answer::read(&mut held[0]).ok()["status"], "ok");
    let mut late = server.connect();
    late.write_all(health).unwrap();
    late.set_nonblocking(true).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let early = late.read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(early, Err(std::io::ErrorKind::WouldBlock));
    late.set_nonblocking(false).unwrap();
    drop(held);
    assert_eq!(Answer::read(&mut late).ok()["status"], "ok");
    drop(late);
    server.hear("connections are accepted again");
    let start = Instant::now();
    while descriptors(&server) != before {
        assert!(start.elapsed() < LONG, "{:?} descriptors, {before:?} before", descriptors(&server));
        std::thread::sleep(Duration::from_millis(10));
    }
    let next = server.post("/v1/chat/completions", &chat(json!({ "max_tokens": 12 }))).ok();
    assert_eq!(next["choices"][0]["message"]["content"], expected(12));
}

/// Files that a server has open; none where the system does not tell.
fn descriptors(server: &Server) -> Option<usize> {
    std::fs::read_dir(format!("/proc/{}/fd", server.child.id())).ok().map(Iterator::count)
}

#[test]
fn a_request_keeps_its_place() {
    let noise = Noise::new();
    let server = Server::endless(&noise, &["--max-connections", "2", "--parallel", "2"]);
    let mut writing = server.begin("/v1/chat/completions", &endless());
    read_some(&mut writing);
    let _silent: Vec<TcpStream> = (0..6).map(|_| server.connect()).collect();
    for _ in 0..3 {
        server.get("/health").ok();
    }
    read_some(&mut writing);
}

#[test]
fn a_slow_body_is_ended() {
    let server = Server::start(&["--body-timeout", "0.5"]);
    let mut stream = server.connect();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\nconnection: close\r\n\r\n{";
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut stream).refusal(408), "the body took too long");
    // One that breaks off is nobody's request.
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    drop(stream);
    server.get("/health").ok();
}

#[test]
fn a_client_that_goes_away_frees_its_sequence() {
    let noise = Noise::new();
    let server = Server::endless(&noise, &["--parallel", "1"]);
    // While it decodes.
    let mut decoding = server.begin("/v1/chat/completions", &endless());
    read_some(&mut decoding);
    // While it waits.
    let waiting = server.begin("/v1/chat/completions", &endless());
    server.wait_for("backstop_sequences_queued", |queued| queued == 1.0);
    drop(waiting);
    drop(decoding);
    // Both are gone: the next one runs.
    server.post("/v1/chat/completions", &chat(json!({ "max_tokens": 2 }))).ok();
    server.wait_for("backstop_sequences_running", |running| running == 0.0);
    // While its prompt is read: a long one, in many steps.
    let words = "hello world ".repeat(10_000);
    let prefilling = server.begin("/v1/completions", &json!({ "prompt": words, "max_tokens": 5 }));
    server.wait_for("backstop_sequences_running", |running| running == 1.0);
    drop(prefilling);
    server.wait_for("backstop_sequences_running", |running| running == 0.0);
    // Without a stream, too.
    let whole = server.begin("/v1/chat/completions", &with(endless(), json!({ "stream": false })));
    server.wait_for("backstop_sequences_running", |running| running == 1.0);
    drop(whole);
    server.wait_for("backstop_sequences_running", |running| running == 0.0);
    server.wait_for("backstop_cancelled_total", |cancelled| cancelled >= 4.0);
}

#[test]
fn a_cancelled_sequence_ends_within_two_steps() {
    let noise = Noise::new();
    let server = Server::endless(&noise, &[]);
    let mut stream = server.begin("/v1/chat/completions", &endless());
    read_some(&mut stream);
    drop(stream);
    server.wait_for("backstop_cancelled_total", |cancelled| cancelled == 1.0);
    let after = server.metric("backstop_steps_total");
    server.wait_for("backstop_sequences_running", |running| running == 0.0);
    let last = server.metric("backstop_steps_total");
    assert!(last <= after + 2.0, "{after} {last}");

    // While its prompt is read, in dozens of steps.
    let prompt = "hello world ".repeat(10_000);
    let prefilling = server.begin("/v1/completions", &json!({ "prompt": prompt, "max_tokens": 5 }));
    server.wait_for("backstop_steps_total", |steps| steps > last);
    drop(prefilling);
    server.wait_for("backstop_cancelled_total", |cancelled| cancelled == 2.0);
    let after = server.metric("backstop_steps_total");
    server.wait_for("backstop_sequences_running", |running| running == 0.0);
    let last = server.metric("backstop_steps_total");
    assert!(last <= after + 2.0, "{after} {last}");
}

#[test]
fn a_client_that_leaves_the_queue_leaves_its_place_to_the_next() {
    let noise = Noise::new();
    let server = Server::endless(&noise, &["--parallel", "1", "--max-queue", "1"]);
    let mut running = server.begin("/v1/chat/completions", &endless());
    read_some(&mut running);
    for _ in 0..3 {
        let waiting = server.begin("/v1/chat/completions", &endless());
        server.wait_for("backstop_sequences_queued", |queued| queued == 1.0);
        drop(waiting);
        server.wait_for("backstop_sequences_queued", |queued| queued == 0.0);
    }
    read_some(&mut running);
}

#[test]
fn a_client_that_does_not_read_is_ended_and_the_others_go_on() {
    let noise = Noise::new();
    let server = Server::endless(&noise, &["--stall-timeout", "0.5"]);
    let stalled = server.begin("/v1/chat/completions", &with(endless(), json!({ "n": 4 })));
    let mut other = server.begin("/v1/chat/completions", &endless());
    read_some(&mut other);
    server.wait_for("backstop_sequences_running", |running| running == 5.0);
    // What the kernel takes is soon full.
    let start = Instant::now();
    while server.metric("backstop_sequences_running") > 1.0 {
        read_some(&mut other);
        assert!(start.elapsed() < LONG, "the client that does not read is not ended");
    }
    read_some(&mut other);
    drop((stalled, other));
    server.wait_for("backstop_sequences_running", |running| running == 0.0);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let noise = Noise::new();
    let server = Server::endless(&noise, &["--parallel", "1", "--max-queue", "1"]);
    let mut running = server.begin("/v1/chat/completions", &endless());
    read_some(&mut running);
    let queued = server.begin("/v1/chat/completions", &chat(json!({ "max_tokens": 2 })));
    server.wait_for("backstop_sequences_queued", |queued| queued == 1.0);
    let full = server.post("/v1/chat/completions", &chat(json!({ "max_tokens": 2 })));
    let wanted = "all 2 places are taken (--parallel and --max-queue): try again later";
    assert_eq!(full.refusal(429), wanted);
    let after: u64 = full.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&after));
    assert_eq!(full.json()["error"]["type"], "rate_limit_error");
    let never = server.post("/v1/chat/completions", &chat(json!({ "n": 3 })));
    assert_eq!(never.refusal(400), "3 texts at once, at most 2 fit (--parallel and --max-queue)");
    // The queue moves on.
    drop(running);
    let mut queued = queued;
    Answer::read(&mut queued).ok();
    server.post("/v1/chat/completions", &chat(json!({ "max_tokens": 2 }))).ok();
}

#[test]
fn two_requests_on_one_connection() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    let body = chat(json!({ "max_tokens": 3 })).to_string();
    let one = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n{body}",
        server.address,
        body.len()
    );
    for _ in 0..2 {
        stream.write_all(one.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        while !bytes.ends_with(b"}") {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0);
            bytes.extend_from_slice(&buffer[..count]);
        }
        Answer::parse(&bytes).ok();
    }
}
