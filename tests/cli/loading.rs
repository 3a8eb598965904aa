//! What a person sees while a model is loaded: how far that is, and nothing of it once it is over.

use std::process::Command;

use super::terminal::process::Terminal;
use crate::support::*;

#[path = "../support/held.rs"]
mod held;
use held::Held;

/// The binary on a terminal.
fn started(args: &[&str]) -> Terminal {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
    command
        .args(args)
        .env_remove("RUST_LOG")
        .env_remove("BACKSTOP_API_KEY")
        .env("XDG_STATE_HOME", "/dev/null");
    Terminal::start(command)
}

/// The thread that loads, held once it has read so many bytes.
fn held_after(terminal: &Terminal, bytes: usize) -> Held {
    Held::hold(&terminal.child, "backstop-engine", |child| resident(child).is_some_and(|here| here >= bytes))
}

/// The lines that are left on a terminal that was sent `text`.
fn screen(text: &str) -> Vec<String> {
    let (mut lines, mut column) = (vec![Vec::new()], 0);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let line: &mut Vec<char> = lines.last_mut().unwrap();
        rest = &rest[c.len_utf8()..];
        match c {
            '\r' => column = 0,
            '\n' => lines.push(Vec::new()),
            '\x1b' => {
                let end = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap();
                if &rest[..=end] == "[K" {
                    line.truncate(column);
                }
                rest = &rest[end + 1..];
            }
            c => {
                match line.get_mut(column) {
                    Some(there) => *there = c,
                    None => line.push(c),
                }
                column += 1;
            }
        }
    }
    lines.into_iter().map(String::from_iter).collect()
}

#[test]
fn a_load_says_how_far_it_is_and_ctrl_c_ends_it_without_a_trace() {
    // What is not read yet when the thread is held takes far longer than to hold it.
    let wide = Wide::of(4_200_000);
    let of = &wide.size;
    for command in [&["run", PROMPT][..], &["chat"], &["serve", "--port", "0", "--parallel", "1"]] {
        let more = ["--no-mmap", "--threads", "1", "--ctx", "64", "--model", wide.path()];
        let mut terminal = started(&[command, &more].concat());
        let held = held_after(&terminal, 700 << 20);
        let mut text = terminal.shows("loading ");
        let told = terminal.shows(&format!(" MB of {of} …"));
        let done: f64 = told.rsplit(": ").next().unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!((530.0..1_100.0).contains(&done), "{told}");
        text += &told;
        text += &terminal.shows(" s\x1b[K");
        terminal.keys("\x03");
        text += &terminal.shows("\r\x1b[K");
        held.ends();
        assert_eq!(terminal.ends(), Some(130), "{command:?}");
        text += &terminal.rest();
        assert_eq!(screen(&text), [""], "{command:?}: {text:?}");
    }
}

#[test]
fn nothing_is_left_of_a_load_that_is_over() {
    let wide = Wide::new();
    let more = ["--no-mmap", "--threads", "2", "--ctx", "64", "--model", wide.path()];
    let run = |more: &[&'static str]| [&["run", PROMPT, "--raw", "--max-tokens", "1"], more].concat();
    let chat = |more: &[&'static str]| [&["chat", "--no-history"], more].concat();
    for (command, shown, last) in [
        (run(&[]), true, "\x1b[2mmodel"),
        (run(&["--no-summary"]), false, ""),
        (run(&["--json"]), false, "}\r\n"),
        (vec!["serve", "--port", "0", "--parallel", "1"], true, "try: "),
        (chat(&[]), true, "> "),
        (chat(&["--no-summary"]), false, "> "),
    ] {
        let mut terminal = started(&[&command[..], &more].concat());
        let held = held_after(&terminal, 100 << 20);
        let mut text = String::new();
        match shown {
            true => text += &terminal.shows("loading "),
            // Long enough for a line that is not to come.
            false => std::thread::sleep(std::time::Duration::from_millis(800)),
        }
        held.release();
        text += &terminal.shows(last);
        match command[0] {
            "chat" => terminal.keys("\x04"),
            "serve" => terminal.keys("\x03"),
            _ => {}
        }
        assert_eq!(terminal.ends(), Some(0), "{command:?}");
        text += &terminal.rest();
        assert_eq!(text.contains("loading"), shown, "{command:?}: {text:?}");
        let left = screen(&text);
        assert!(left.iter().all(|line| !line.contains("loading")), "{command:?}: {left:?}");
    }
}
