//! How it ends.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Answer, LONG, Noise, Server, chat, endless, events, read_some, with};

/// A text that takes long enough to be interrupted, and ends.
const TOKENS: usize = 3000;

#[test]
fn sigterm_lets_answers_end_and_takes_no_more() {
    for signal in ["-TERM", "-INT", "-HUP"] {
        let noise = Noise::new();
        let mut server = Server::endless(&noise, &[]);
        let body = chat(json!({ "stream": true, "max_tokens": TOKENS }));
        let mut stream = server.begin("/v1/chat/completions", &body);
        let mut text = read_some(&mut stream);
        let mut whole = server.begin("/v1/chat/completions", &with(body, json!({ "stream": false })));
        server.wait_for("backstop_sequences_running", |running| running == 2.0);
        server.signal(signal);
        let start = Instant::now();
        // Nobody listens any more.
        while std::net::TcpStream::connect(server.address).is_ok() {
            assert!(start.elapsed() < LONG);
            std::thread::sleep(Duration::from_millis(5));
        }
        stream.read_to_string(&mut text).unwrap();
        assert!(text.contains("data: [DONE]"), "{}", &text[text.len() - 200..]);
        assert_eq!(Answer::read(&mut whole).ok()["usage"]["completion_tokens"], TOKENS);
        assert_eq!(server.ended(), Some(0));
        assert!(events(&text).len() > 3);
    }
}

#[test]
fn an_idle_connection_does_not_hold_it_up() {
    let mut server = Server::start(&[]);
    let idle = server.connect();
    server.get("/health").ok();
    server.signal("-TERM");
    assert_eq!(server.ended(), Some(0));
    drop(idle);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let noise = Noise::new();
    for (signal, again, code) in [("-TERM", "-TERM", 143), ("-INT", "-INT", 130), ("-HUP", "-TERM", 143)] {
        let mut server = Server::endless(&noise, &[]);
        let mut stream = server.begin("/v1/chat/completions", &endless());
        read_some(&mut stream);
        server.signal(signal);
        let start = Instant::now();
        while std::net::TcpStream::connect(server.address).is_ok() {
            assert!(start.elapsed() < LONG);
            std::thread::sleep(Duration::from_millis(5));
        }
        if signal != again {
            // As a terminal that closes: each of its processes is told, some of them twice.
            server.signal(signal);
            read_some(&mut stream);
            std::thread::sleep(Duration::from_millis(200));
            assert!(server.child.try_wait().unwrap().is_none());
        }
        server.signal(again);
        assert_eq!(server.ended(), Some(code));
    }
}

#[test]
fn after_nohup_a_hang_up_ends_nothing() {
    let mut server = Server::under_nohup();
    server.signal("-HUP");
    std::thread::sleep(Duration::from_millis(200));
    server.get("/health").ok();
    assert!(server.child.try_wait().unwrap().is_none());
    server.signal("-TERM");
    assert_eq!(server.ended(), Some(0));
    assert_eq!(server.times("ending, once the answers are out"), 1);
}

#[test]
fn an_answer_that_takes_too_long_is_cut_off() {
    let noise = Noise::new();
    let mut server = Server::endless(&noise, &["--drain-timeout", "0.3"]);
    let mut stream = server.begin("/v1/chat/completions", &endless());
    let mut text = read_some(&mut stream);
    server.signal("-TERM");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    text += &String::from_utf8_lossy(&rest);
    assert!(!text.contains("[DONE]"));
    assert_eq!(server.ended(), Some(0));
    assert!(text.contains(CUT), "{text}");
}

/// What is said to who waits when the time is over.
const CUT: &str = "the server ends, and this was not done when --drain-timeout was over";

#[test]
fn a_full_queue_is_answered_to_its_end_or_told_why_not() {
    let noise = Noise::new();
    let args = ["--parallel", "1", "--max-queue", "4"];
    // Those that wait are answered once they can be.
    let mut server = Server::endless(&noise, &args);
    let mut running = server.begin("/v1/chat/completions", &endless());
    read_some(&mut running);
    let short = || server.begin("/v1/chat/completions", &chat(json!({ "max_tokens": 5 })));
    let waiting = [short(), short(), short(), short()];
    server.wait_for("backstop_sequences_queued", |queued| queued == 4.0);
    server.signal("-TERM");
    let start = Instant::now();
    while std::net::TcpStream::connect(server.address).is_ok() {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(running);
    for mut stream in waiting {
        assert_eq!(Answer::read(&mut stream).ok()["usage"]["completion_tokens"], 5);
    }
    assert_eq!(server.ended(), Some(0));

    // Those that wait too long are told so.
    let mut server = Server::endless(&noise, &[&args[..], &["--drain-timeout", "0.3"]].concat());
    let mut running = server.begin("/v1/chat/completions", &endless());
    let mut text = read_some(&mut running);
    let message = json!([{ "role": "user", "content": "Hello" }]);
    let whole = [
        ("/v1/chat/completions", chat(json!({ "max_tokens": 2 }))),
        ("/v1/messages", json!({ "messages": message, "max_tokens": 2 })),
        ("/api/chat", json!({ "messages": message, "stream": false })),
    ];
    let whole = whole.map(|(path, body)| server.begin(path, &body));
    let mut streamed =
        server.begin("/v1/chat/completions", &chat(json!({ "max_tokens": 2, "stream": true })));
    server.wait_for("backstop_sequences_queued", |queued| queued == 4.0);
    let full = server.post("/v1/chat/completions", &chat(json!({ "max_tokens": 2 })));
    assert_eq!(full.status, 429);
    server.signal("-TERM");
    for mut stream in whole {
        let answer = Answer::read(&mut stream);
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.text());
        assert!(answer.text().contains(CUT), "{}", answer.text());
    }
    let answer = Answer::read(&mut streamed);
    assert!(answer.status == 200 && answer.events().pop().unwrap().contains(CUT), "{}", answer.text());
    running.read_to_string(&mut text).unwrap();
    assert!(text.contains(CUT), "{text}");
    assert_eq!(server.ended(), Some(0));
}
