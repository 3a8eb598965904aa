//! What bodies of requests and answers not yet written hold together, and what becomes of those for which there is no room.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{Answer, Noise, Server, endless, head, read_some, with};

const USED: &str = "backstop_buffer_used_bytes";

/// A server that holds 3,000 bytes.
fn small(more: &[&str]) -> Server {
    Server::start(&[&["--body-limit", "2000", "--buffer-memory", "3000"], more].concat())
}

/// Begins a body of `length` bytes, and sends all but the last of them.
fn begun(server: &Server, length: usize) -> TcpStream {
    let mut stream = server.connect();
    stream.write_all(&head(server.address, "POST", "/tokenize", &[], length)).unwrap();
    stream.write_all(&body(length)[..length - 1]).unwrap();
    stream
}

/// `{"content": "xx…"}` of `length` bytes.
fn body(length: usize) -> Vec<u8> {
    let base = json!({ "content": "" }).to_string().len();
    json!({ "content": "x".repeat(length - base) }).to_string().into_bytes()
}

#[test]
fn a_body_for_which_there_is_no_room_is_told_to_come_back() {
    let server = small(&[]);
    assert_eq!(server.metric("backstop_buffer_budget_bytes"), 3000.0);
    // One that declares much and sends nothing takes nothing.
    let mut silent = server.connect();
    silent.write_all(&head(server.address, "POST", "/tokenize", &[], 2000)).unwrap();
    let mut waiting = begun(&server, 2000);
    server.wait_for(USED, |used| used >= 1999.0);
    // What still fits is answered, to the byte.
    let ask = |path: &str, length: usize| server.request("POST", path, &[], &body(length));
    ask("/tokenize", 1001).ok();
    let full = ask("/tokenize", 1002);
    let wanted = "the 3000 bytes for bodies and answers are taken (--buffer-memory): try again later";
    assert_eq!(full.refusal(503), wanted);
    assert_eq!(full.header("retry-after"), Some("1"));
    let openai = json!({ "message": wanted, "type": "server_error", "param": null, "code": null });
    assert_eq!(full.json(), json!({ "error": openai }));
    let anthropic = ask("/v1/messages", 1002);
    assert_eq!((anthropic.status, anthropic.header("retry-after")), (503, Some("1")));
    let error = json!({ "type": "overloaded_error", "message": wanted });
    assert_eq!(anthropic.json(), json!({ "type": "error", "error": error }));
    // A request without a body needs none.
    server.get("/health").ok();
    server.get("/v1/models").ok();
    // Its room comes back when the body is there and its request answered, or when its client goes away.
    waiting.write_all(&body(2000)[1999..]).unwrap();
    Answer::read(&mut waiting).ok();
    server.wait_for(USED, |used| used < 1000.0);
    let gone = begun(&server, 2000);
    server.wait_for(USED, |used| used >= 1999.0);
    drop(gone);
    server.wait_for(USED, |used| used < 1000.0);
    ask("/tokenize", 2000).ok();
}

#[test]
fn a_body_without_a_length_takes_room_as_it_is_read() {
    let server = small(&[]);
    let _waiting = begun(&server, 2000);
    server.wait_for(USED, |used| used >= 1999.0);
    let ask = |length: usize| {
        let body = body(length);
        let chunk = [format!("{length:x}\r\n").as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
        server.request("POST", "/tokenize", &[("transfer-encoding", "chunked")], &chunk)
    };
    ask(1001).ok();
    let wanted = "the 3000 bytes for bodies and answers are taken (--buffer-memory): try again later";
    assert_eq!(ask(1002).refusal(503), wanted);
}

#[test]
fn the_largest_body_fits_by_itself() {
    let server = Server::start(&["--body-limit", "5000", "--buffer-memory", "1000"]);
    assert_eq!(server.metric("backstop_buffer_budget_bytes"), 5000.0);
    server.request("POST", "/tokenize", &[], &body(5000)).ok();
}

/// Events that nobody reads are held, too.
#[test]
fn answers_that_wait_leave_less_room() {
    let noise = Noise::new();
    let server = Server::endless(&noise, &["--body-limit", "20000", "--buffer-memory", "20000"]);
    let unread = server.begin("/v1/chat/completions", &with(endless(), json!({ "n": 4 })));
    server.wait_for(USED, |used| used > 200_000.0);
    let full = server.post("/tokenize", &json!({ "content": "a" }));
    let wanted = "the 20000 bytes for bodies and answers are taken (--buffer-memory): try again later";
    assert_eq!(full.refusal(503), wanted);
    // With the answer goes what it held.
    drop(unread);
    server.wait_for(USED, |used| used < 1000.0);
    let mut next = server.begin("/v1/chat/completions", &endless());
    read_some(&mut next);
}

/// A long answer is whole whether it is written at once or as it is read.
#[test]
fn long_texts_become_tokens_and_back() {
    let server = Server::start(&[]);
    let words = "Once upon a time there was \"a cat\" named Zoë.\n".repeat(5_000);
    let ask = |more: Value| server.post("/tokenize", &with(json!({ "content": words }), more));
    let plain = ask(json!({}));
    assert_eq!(plain.header("transfer-encoding"), Some("chunked"));
    let tokens = plain.ok()["tokens"].as_array().unwrap().clone();
    assert_eq!(plain.json()["count"], tokens.len());
    let pieces = ask(json!({ "with_pieces": true })).ok();
    assert_eq!(pieces["count"], tokens.len());
    let pieces = pieces["tokens"].as_array().unwrap();
    assert!(pieces.len() == tokens.len() && pieces.iter().zip(&tokens).all(|(piece, id)| piece["id"] == *id));
    assert!(pieces[..4].iter().all(|piece| piece["piece"].is_string()), "{:?}", &pieces[..4]);
    let back = server.post("/detokenize", &json!({ "tokens": tokens }));
    assert_eq!(back.ok(), json!({ "content": words }));
    assert_eq!(back.header("transfer-encoding"), Some("chunked"));
    // What is short has a length.
    let short = server.post("/tokenize", &json!({ "content": "a" }));
    assert_eq!(short.header("content-length"), Some(short.body.len().to_string().as_str()));
    server.wait_for(USED, |used| used < 1000.0);
}

/// What a client does not read of a long answer is not made.
#[test]
fn a_long_answer_waits_for_its_reader() {
    let server = Server::start(&[]);
    let mut stream = server.begin("/tokenize", &json!({ "content": "cat ".repeat(500_000) }));
    let mut first = [0; 64];
    stream.read_exact(&mut first).unwrap();
    // The ids, and little of the five megabytes of text that they become.
    let ids = 4.0 * 1_000_000.0;
    server.wait_for(USED, |used| (ids..ids + 2e6).contains(&used));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.len() > 3_000_000, "{}", rest.len());
    server.wait_for(USED, |used| used < 1000.0);
}
