//! What a person sees: the binary on a pseudo-terminal.

use std::process::Command;

use crate::support::*;

#[path = "../support/terminal.rs"]
mod process;
use process::Terminal;

/// The binary on a terminal, with what it keeps in `state`.
fn started(state: &str, args: &[&str]) -> Terminal {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
    command.args(args).env_remove("RUST_LOG").env("XDG_STATE_HOME", state);
    Terminal::start(command)
}

#[test]
fn a_person_chats() {
    let noise = Noise::new();
    let state = tempfile::tempdir().unwrap();
    let args = ["chat", "--model", noise.path(), "--temperature", "1", "--ctx", "200000", "-v"];
    let mut terminal = started(state.path().to_str().unwrap(), &args);
    terminal.shows("/help lists the commands");
    terminal.shows("> ");
    terminal.keys("Hello\r");
    // The answer would not end: Ctrl-C stops it, and the prompt is back.
    terminal.shows("generating");
    terminal.keys("\x03");
    terminal.shows(", interrupted");
    terminal.shows("> ");
    // Ctrl-C takes back what was typed, and does not end; the arrow brings back what was said.
    terminal.keys("nonsense\x03");
    terminal.shows("nonsense");
    terminal.shows("> ");
    terminal.keys("\x1b[A");
    terminal.shows("Hello");
    terminal.keys("\x03");
    terminal.shows("> ");
    terminal.keys("/nonsense\r");
    terminal.shows("\x1b[1;31merror:\x1b[0m there is no command /nonsense");
    terminal.shows("> ");
    terminal.keys("\x03");
    assert_eq!(terminal.ends(), Some(0));
    let history = std::fs::read_to_string(state.path().join("backstop/chat_history")).unwrap();
    assert!(history.ends_with("Hello\n/nonsense\n"), "{history}");
}

#[test]
fn a_history_that_cannot_be_kept_is_no_error() {
    let noise = Noise::new();
    let args = ["chat", "--model", noise.path(), "--max-tokens", "2"];
    let mut terminal = started("/dev/null", &args);
    terminal.shows("> ");
    terminal.keys("Hello\r");
    terminal.shows("the history is not kept: /dev/null/backstop/chat_history: ");
    terminal.shows("2 tokens at ");
    terminal.shows("> ");
    terminal.keys("\x04");
    assert_eq!(terminal.ends(), Some(0));
}

#[test]
fn a_long_prompt_shows_how_far_it_is() {
    let noise = Noise::new();
    let prompt = "\u{1}".repeat(100_000);
    let args = ["run", &prompt, "--raw", "--model", noise.path(), "--ctx", "200000"];
    let mut terminal = started("/dev/null", &args);
    terminal.shows("reading 100000 tokens, ");
    terminal.shows(" read … ");
    terminal.keys("\x03");
    terminal.shows("0 tokens, interrupted");
    assert_eq!(terminal.ends(), Some(130));
}

#[test]
fn ctrl_c_on_the_terminal_ends_a_run_with_its_summary() {
    let noise = Noise::new();
    let args = ["run", PROMPT, "--model", noise.path(), "--temperature", "1", "--ctx", "200000", "-v"];
    let mut terminal = started("/dev/null", &args);
    terminal.shows("generating");
    terminal.keys("\x03");
    terminal.shows("\x1b[2mmodel");
    terminal.shows(", interrupted");
    assert_eq!(terminal.ends(), Some(130));

    let mut terminal = started("/dev/null", &["run"]);
    terminal.shows("no PROMPT: give one, or `-` to type it here");
    assert_eq!(terminal.ends(), Some(2));
}
