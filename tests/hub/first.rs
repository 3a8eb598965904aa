//! The first minute of somebody who has the README and no model: what it says to type is typed, and its keys are counted.

use std::time::{Duration, Instant};

use super::served::Hub;
use super::terminal::Terminal;

const README: &str = include_str!("../../README.md");
const NAMES: &str = include_str!("../../docs/names.md");
const GGUF: &[u8] = include_bytes!("../fixtures/gguf/whole.gguf");

/// The lines of the README's first conversation, without what it says of them.
fn lines() -> Vec<&'static str> {
    let (_, section) = README.split_once("\n## First conversation\n").unwrap();
    let block = section.split("```").nth(1).unwrap().strip_prefix("sh\n").unwrap();
    block.lines().map(|line| line.split(" #").next().unwrap().trim_end()).collect()
}

/// How many keys the documentation says it takes.
fn keys_in_the_documentation() -> usize {
    let (before, _) = NAMES.split_once(" keys, Enter included: the README's").unwrap();
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_first_conversation_of_the_readme_is_one() {
    let [install, chat] = lines()[..] else { panic!("{:?}", lines()) };
    assert_eq!(install, "cargo install --path . --locked");
    let args: Vec<&str> = chat.strip_prefix("backstop ").unwrap().split(' ').collect();
    let (home, hub) = (tempfile::tempdir().unwrap(), Hub::new());
    let files: [(&str, &[u8]); 2] = [("Qwen3-0.6B-Q8_0.gguf", GGUF), ("README.md", b"x")];
    hub.put("Qwen/Qwen3-0.6B-GGUF", &files);
    let started = Instant::now();
    // What a shell takes.
    let mut keys = chat.len() + 1;
    let mut command = hub.command(home.path(), &args);
    command.env("XDG_STATE_HOME", home.path());
    let mut terminal = Terminal::start(command);
    let mut types = |terminal: &mut Terminal, text: &str| {
        keys += text.len();
        terminal.keys(text);
    };
    terminal.shows("qwen3:0.6b is not on this machine. Download Qwen/Qwen3-0.6B-GGUF:Q8_0 (");
    terminal.shows("[Y/n] ");
    types(&mut terminal, "\r");
    terminal.shows("/help lists the commands");
    terminal.shows("> ");
    types(&mut terminal, "Hello\r");
    // The answer begins behind what was typed.
    terminal.shows("Hello");
    terminal.shows("\r\n");
    let answer = loop {
        let more = terminal.shows("\n");
        if more.chars().any(char::is_alphanumeric) {
            break more;
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    println!("{keys} keys and {seconds:.1} s to the first line of an answer: {answer:?}");
    assert_eq!(keys, keys_in_the_documentation());
    assert_eq!(hub.files_seen().len(), 1);
    terminal.keys("\x03");
    terminal.shows("> ");
    // The answer may have had such a mark, and a key is lost that comes while the terminal changes its mode.
    let ends = (0..30).find_map(|_| {
        terminal.keys("\x04");
        terminal.ends_within(Duration::from_secs(1))
    });
    assert_eq!(ends, Some(Some(0)));
}
