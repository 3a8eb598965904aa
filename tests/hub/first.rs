//! The first minute of somebody who has the README and no model: what it says to type is typed, and its keys are counted.
//!
//! `BACKSTOP_FIRST_PROGRAM` names another program than that of the tests, and `BACKSTOP_FIRST_GGUF` the file that it downloads.

use std::process::Command;
use std::time::{Duration, Instant};

use super::served::Hub;
use super::terminal::Terminal;

const README: &str = include_str!("../../README.md");
const NAMES: &str = include_str!("../../docs/names.md");
const GGUF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf/whole.gguf");

/// The lines of the README's first conversation, without what it says of them.
fn lines() -> Vec<&'static str> {
    let (_, section) = README.split_once("\n## First conversation\n").unwrap();
    let block = section.split("```").nth(1).unwrap().strip_prefix("sh\n").unwrap();
    block.lines().map(|line| line.split(" #").next().unwrap().trim_end()).collect()
}

/// What is typed, step by step, and how long it takes until the next can be.
struct Steps {
    table: String,
    keys: usize,
    since: Instant,
}

impl Steps {
    fn new() -> Self {
        Self { table: String::new(), keys: 0, since: Instant::now() }
    }

    /// After a step: its keys, which the documentation has, and the seconds since the one before.
    #[track_caller]
    fn took(&mut self, step: &str, typed: &str) {
        let keys = typed.len();
        let (row, seconds) = (format!("| {step} | {keys} |"), self.since.elapsed().as_secs_f64());
        assert!(NAMES.contains(&format!("\n{row} ")), "docs/names.md lacks {row}");
        self.table += &format!("{row} {seconds:.2} |\n");
        self.keys += keys;
        self.since = Instant::now();
    }
}

#[test]
fn the_first_conversation_of_the_readme_is_one() {
    let [install, chat] = lines()[..] else { panic!("{:?}", lines()) };
    let build = format!("\n| `{install}`, Enter: the build | {} |", install.len() + 1);
    assert!(NAMES.contains(&build), "docs/names.md lacks {build}");
    let args: Vec<&str> = chat.strip_prefix("backstop ").unwrap().split(' ').collect();
    let (home, hub) = (tempfile::tempdir().unwrap(), Hub::new());
    let gguf = std::env::var("BACKSTOP_FIRST_GGUF").unwrap_or_else(|_| GGUF.to_owned());
    let gguf = std::fs::read(&gguf).unwrap_or_else(|error| panic!("{gguf}: {error}"));
    let files: [(&str, &[u8]); 2] = [("Qwen3-0.6B-Q8_0.gguf", &gguf), ("README.md", b"x")];
    hub.put("Qwen/Qwen3-0.6B-GGUF", &files);
    drop(gguf);
    let program = std::env::var_os("BACKSTOP_FIRST_PROGRAM");
    let mut command = Command::new(program.unwrap_or_else(|| env!("CARGO_BIN_EXE_backstop").into()));
    hub.environment(&mut command, home.path());
    command.args(&args).env("XDG_STATE_HOME", home.path());
    let mut steps = Steps::new();
    // A shell has the first line.
    let mut terminal = Terminal::start(command);
    terminal.shows("qwen3:0.6b is not on this machine. Download Qwen/Qwen3-0.6B-GGUF:Q8_0 (");
    terminal.shows("[Y/n] ");
    steps.took(&format!("`{chat}`, Enter: until it asks whether to download"), &format!("{chat}\r"));
    terminal.keys("\r");
    terminal.shows("/help lists the commands");
    terminal.shows("> ");
    steps.took("Enter: downloaded, checked and loaded", "\r");
    terminal.keys("Hello\r");
    // The answer begins behind what was typed.
    terminal.shows("Hello");
    terminal.shows("\r\n");
    let begun = terminal.shows_one(char::is_alphanumeric);
    steps.took("`Hello`, Enter: the first word of the answer", "Hello\r");
    let line = begun + &terminal.shows("\n");
    steps.took("its first line", "");
    let Steps { table, keys, .. } = steps;
    println!("{keys} keys to an answer: {line:?}\n\n| step | keys | seconds |\n|---|---|---|\n{table}");
    assert!(
        NAMES.contains(&format!("it takes {keys} keys, Enter included")),
        "docs/names.md has other than {keys} keys"
    );
    let asked = hub.files_seen();
    assert!(!asked.is_empty() && asked.iter().all(|seen| seen.path.ends_with(".gguf")), "{asked:?}");
    terminal.keys("\x03");
    terminal.shows("> ");
    // The answer may have had such a mark, and a key is lost that comes while the terminal changes its mode.
    let ends = (0..30).find_map(|_| {
        terminal.keys("\x04");
        terminal.ends_within(Duration::from_secs(1))
    });
    assert_eq!(ends, Some(Some(0)));
}
