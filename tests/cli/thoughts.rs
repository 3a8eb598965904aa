//! What a person sees of a model's thoughts.

use std::process::Command;

use crate::script::{QWEN3, Script};
use crate::support::*;
use crate::terminal::process::Terminal;

/// A model that thinks before it answers `sheep`.
fn sheep() -> Script {
    Script::new(
        QWEN3,
        &[("sheep", &["<think>", "\nI count", " sheep.", "\n</think>", "\n\nBlue", " skies", "!"])],
    )
}

#[test]
fn thoughts_are_shown_folded_or_hidden() {
    let (script, state) = (sheep(), tempfile::tempdir().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
    command.args(["chat", "--plain", "--no-history", "--temperature", "0", "--model"]).arg(script.path());
    command.env_remove("RUST_LOG").env("XDG_STATE_HOME", state.path());
    let mut terminal = Terminal::start(command);
    let dim = |text: &str| text.replace("\x1b[2m", "").replace("\x1b[0m", "");
    // Each is another conversation, so that all are asked the same.
    for (set, thoughts) in [("", "I count sheep."), ("fold", "thought for "), ("hide", "")] {
        terminal.shows("> ");
        if !set.is_empty() {
            terminal.keys(&format!("/set thoughts {set}\r"));
            terminal.shows(&format!("thoughts is {set}"));
            terminal.shows("> ");
        }
        terminal.keys("sheep\r");
        terminal.shows("sheep");
        terminal.shows("\r\n");
        let shown = terminal.shows("Blue skies!");
        assert_eq!(shown.contains("\x1b[2mI count"), set.is_empty(), "{set}: {shown:?}");
        assert_eq!(dim(&shown).contains("I count sheep."), set.is_empty(), "{set}: {shown:?}");
        assert_eq!(shown.contains("count"), set.is_empty(), "{set}: {shown:?}");
        assert_eq!(shown.contains("\x1b[2mthought for "), set == "fold", "{set}: {shown:?}");
        assert!(dim(&shown).contains(thoughts), "{set}: {shown:?}");
        terminal.shows("8 tokens at ");
        terminal.shows("> ");
        terminal.keys("/clear\r");
        terminal.shows("a new conversation");
    }
    terminal.shows("> ");
    terminal.keys("\x04");
    assert_eq!(terminal.ends(), Some(0));
}

#[test]
fn thoughts_never_go_where_the_text_goes() {
    let (script, dir) = (sheep(), tempfile::tempdir().unwrap());
    let args = ["run", "sheep", "--temperature", "0", "--model", script.path().to_str().unwrap()];
    assert_eq!(ok(&args).out, "Blue skies!");
    // A person sees them while a file has the text.
    let file = dir.path().join("text");
    let mut command = Command::new("sh");
    command.args(["-c", "file=$1; shift; exec \"$@\" > \"$file\"", "sh"]).arg(&file);
    command.arg(env!("CARGO_BIN_EXE_backstop")).args(args).env_remove("RUST_LOG");
    let mut terminal = Terminal::start(command);
    let shown = terminal.shows("8 tokens at ");
    assert!(shown.contains("\x1b[2mI count") && !shown.contains("Blue"), "{shown:?}");
    assert_eq!(terminal.ends(), Some(0));
    assert_eq!(std::fs::read_to_string(file).unwrap(), "Blue skies!");
}

#[test]
fn a_long_thought_shows_that_it_goes_on_and_ctrl_c_ends_it() {
    let (noise, dir) = (Noise::new(), tempfile::tempdir().unwrap());
    let template = dir.path().join("template");
    let text = "{#- </think> -#}{%- for m in messages -%}{{ m.content }}|{%- endfor -%}\
                {%- if add_generation_prompt -%}<think>{%- endif -%}";
    std::fs::write(&template, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
    command.args(["chat", "--model", noise.path(), "--ctx", "200000", "--temperature", "1", "--no-history"]);
    command.arg("--chat-template").arg(&template).env_remove("RUST_LOG").env("XDG_STATE_HOME", dir.path());
    let mut terminal = Terminal::start(command);
    terminal.shows("> ");
    terminal.keys("/set thoughts fold\r");
    terminal.shows("thoughts is fold");
    terminal.shows("> ");
    terminal.keys("Hello\r");
    terminal.shows(" thinking … ");
    terminal.keys("\x03");
    // The line is cleared, and says how long it took.
    terminal.shows("\r\x1b[K\x1b[2mthought for ");
    terminal.shows(", interrupted");
    terminal.shows("> ");
    terminal.keys("\x04");
    assert_eq!(terminal.ends(), Some(0));
}
