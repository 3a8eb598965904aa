//! What a person sees: the binary on a pseudo-terminal.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::*;

#[path = "../support/terminal.rs"]
pub mod process;
use process::Terminal;

/// The binary on a terminal, with what it keeps in `state`.
fn started(state: &str, args: &[&str]) -> Terminal {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
    command.args(args).env_remove("RUST_LOG").env("XDG_STATE_HOME", state);
    hangs_up(&mut command);
    Terminal::start(command)
}

/// What was meant for an answer may come when that has just ended, and the prompt has not begun.
#[test]
fn an_interrupt_that_finds_nothing_to_end_does_not_end_a_conversation() {
    let noise = Noise::new();
    let state = tempfile::tempdir().unwrap();
    let args = ["chat", "--model", noise.path(), "--no-history", "--max-tokens", "2"];
    let mut terminal = started(state.path().to_str().unwrap(), &args);
    terminal.shows("> ");
    for _ in 0..40 {
        terminal.keys("Hi\r");
        terminal.shows("tok/s");
        send(&terminal.child, libc::SIGINT);
        assert_eq!(terminal.ends_within(Duration::from_millis(50)), None);
        terminal.shows("> ");
    }
    terminal.keys("\x04");
    assert_eq!(terminal.ends(), Some(0));
    assert!(terminal.is_as_before());
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
    // At an empty prompt, the second one ends.
    terminal.keys("\x03");
    terminal.shows("Ctrl-C once more, or Ctrl-D, ends");
    terminal.shows("> ");
    terminal.keys("\x03");
    assert_eq!(terminal.ends(), Some(0));
    let file = state.path().join("backstop/chat_history");
    let history = std::fs::read_to_string(&file).unwrap();
    assert!(history.ends_with("Hello\n/nonsense\n"), "{history}");
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));

    // Another conversation has it, one without a history neither reads nor writes it.
    let mut terminal = started(state.path().to_str().unwrap(), &args);
    terminal.shows("> ");
    terminal.keys("\x1b[A");
    terminal.shows("/nonsense");
    terminal.keys("\x03\x04");
    assert_eq!(terminal.ends(), Some(0));
    let mut terminal = started(state.path().to_str().unwrap(), &[&args[..], &["--no-history"]].concat());
    terminal.shows("> ");
    terminal.keys("\x1b[A/history\r");
    terminal.shows("nothing was said yet");
    terminal.shows("> ");
    terminal.keys("\x04");
    assert_eq!(terminal.ends(), Some(0));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), history);
}

#[test]
fn several_lines_are_one_message() {
    let noise = Noise::new();
    let state = tempfile::tempdir().unwrap();
    let args = ["chat", "--model", noise.path(), "--max-tokens", "2", "--plain"];
    let mut terminal = started(state.path().to_str().unwrap(), &args);
    for (keys, told) in [
        ("\x1b[200~one\ntwo \\\nthree\x1b[201~\r", "one\r\ntwo \\\r\nthree\r\n"),
        ("\"\"\"\rfour\r/five \\\r\"\"\"\r", "four\r\n/five \\\r\n"),
        ("six\\\rseven\r", "six\r\nseven\r\n"),
    ] {
        terminal.shows("> ");
        terminal.keys(keys);
        terminal.shows("; 2 tokens");
        terminal.shows("> ");
        terminal.keys("/history\r");
        terminal.shows("you:");
        terminal.shows(told);
        terminal.shows("> ");
        terminal.keys("/clear\r");
        terminal.shows("a new conversation");
    }
    terminal.shows("> ");
    // Tab completes what only one thing can be.
    terminal.keys("/set thoughts f\t\r");
    terminal.shows("thoughts is fold");
    terminal.shows("> ");
    terminal.keys("\x04");
    assert_eq!(terminal.ends(), Some(0));
}

#[test]
fn an_editor_changes_what_was_said() {
    let noise = Noise::new();
    let dir = tempfile::tempdir().unwrap();
    let editor = dir.path().join("editor");
    std::fs::write(
        &editor,
        "grep -q Hello \"$2\" && test \"$1\" = --wait && echo Good-bye there > \"$2\"; true",
    )
    .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
    command.args(["chat", "--model", noise.path(), "--max-tokens", "2", "--plain", "--no-history"]);
    command.env_remove("RUST_LOG").env("XDG_STATE_HOME", "/dev/null");
    command.env("VISUAL", format!("sh {} --wait", editor.display()));
    let mut terminal = Terminal::start(command);
    terminal.shows("> ");
    terminal.keys("Hello there\r");
    terminal.shows("; 2 tokens");
    terminal.shows("> ");
    terminal.keys("/edit\r");
    terminal.shows("; 2 tokens");
    terminal.shows("> ");
    terminal.keys("/history\r");
    terminal.shows("you:\x1b[0m Good-bye there\r\n");
    terminal.shows("> ");
    // The second time there is nothing to change.
    terminal.keys("/edit\r");
    terminal.shows("nothing was changed");
    terminal.shows("> ");
    terminal.keys("\x04");
    assert_eq!(terminal.ends(), Some(0));
}

#[test]
fn markdown_has_colours_where_they_are_wanted() {
    let noise = Noise::new();
    let tick = noise.load().encode_prompt("`", false).unwrap();
    assert_eq!(tick.len(), 1);
    let bias = format!("--logit-bias={}=100", tick[0]);
    let args = ["chat", "--model", noise.path(), "--max-tokens", "1", "--no-history", &bias];
    for (variable, plain, coloured) in [
        ("NO_COLOR=", None, true),
        ("NO_COLOR=1", None, false),
        ("TERM=dumb", None, false),
        ("NO_COLOR=", Some("--plain"), false),
    ] {
        let mut command = Command::new("env");
        command.arg(variable).arg(env!("CARGO_BIN_EXE_backstop")).args(args).args(plain);
        command.env_remove("RUST_LOG").env("XDG_STATE_HOME", "/dev/null");
        let mut terminal = Terminal::start(command);
        terminal.shows("> ");
        terminal.keys("Hello\r");
        let shown = terminal.shows("; 1 token");
        assert_eq!(shown.contains("\x1b[36m`\x1b[0m\r\n"), coloured, "{variable} {plain:?}: {shown:?}");
        assert!(shown.contains('`'), "{shown:?}");
        terminal.shows("> ");
        terminal.keys("\x04");
        assert_eq!(terminal.ends(), Some(0), "{variable}");
    }
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

#[test]
fn a_conversation_outlives_two_models_that_cannot_be_loaded() {
    let (one, two, state) = (Noise::new(), Noise::new(), tempfile::tempdir().unwrap());
    let (one, two) = (Path::new(one.path()), Path::new(two.path()));
    // What weights lack shows when they are loaded.
    let config = two.join("config.json");
    let whole = std::fs::read_to_string(&config).unwrap();
    let mut broken: serde_json::Value = serde_json::from_str(&whole).unwrap();
    broken["num_hidden_layers"] = 40.into();
    std::fs::write(&config, broken.to_string()).unwrap();
    let args = ["chat", one.to_str().unwrap(), "--max-tokens", "4", "--temperature", "0", "--no-history"];
    let mut terminal = started(state.path().to_str().unwrap(), &args);
    terminal.shows("/help lists the commands");
    terminal.shows("> ");
    terminal.keys("Hello\r");
    terminal.shows("stopped at --max-tokens");
    terminal.shows("> ");
    std::fs::remove_file(one.join("config.json")).unwrap();
    terminal.keys(&format!("/load {}\r", two.display()));
    terminal.shows("the model before it cannot be loaded any more, either");
    terminal.shows("What was said is kept: /load NAME goes on with another model, Ctrl-D ends");
    terminal.shows("> ");
    terminal.keys("Bye\r");
    terminal.shows("there is no model. What was said is kept");
    terminal.shows("> ");
    std::fs::write(&config, whole).unwrap();
    terminal.keys(&format!("/load {}\r", two.display()));
    terminal.shows("/help lists the commands");
    terminal.shows("> ");
    terminal.keys("/history\r");
    terminal.shows("you:");
    terminal.shows("Hello");
    terminal.shows("> ");
    terminal.keys("\x04");
    assert_eq!(terminal.ends(), Some(0));
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let noise = Noise::new();
    let state = tempfile::tempdir().unwrap();
    let args = ["chat", "--model", noise.path(), "--temperature", "1", "--ctx", "200000", "-v"];
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGHUP, 129)] {
        for generating in [false, true] {
            let mut terminal = started(state.path().to_str().unwrap(), &args);
            terminal.shows("> ");
            if generating {
                terminal.keys("Hello\r");
                terminal.shows("generating");
            } else {
                terminal.keys("Hel");
                terminal.shows("Hel");
                assert!(!terminal.is_as_before());
            }
            send(&terminal.child, signal);
            terminal.shows("\x1b[?2004l");
            assert_eq!(terminal.ends(), Some(code), "{signal} {generating}");
            assert!(terminal.is_as_before(), "{signal} {generating}");
        }
    }
}

/// Nothing of the end waits for standard error, which is another pipe.
#[test]
fn a_signal_ends_a_chat_whose_stderr_takes_no_more() {
    let (noise, dir) = (Noise::new(), tempfile::tempdir().unwrap());
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let opened = |options: &mut OpenOptions, flags| options.custom_flags(flags).open(&pipe).unwrap();
    let reader = opened(File::options().read(true), libc::O_NONBLOCK);
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
    command.args(["chat", "--model", noise.path(), "--no-history"]).env_remove("RUST_LOG");
    command.env("XDG_STATE_HOME", dir.path());
    let mut terminal = Terminal::start_with(command, Some(opened(File::options().write(true), 0)));
    terminal.shows("> ");
    terminal.keys("Hel");
    terminal.shows("Hel");
    // Another opening of it, so that the one that the chat has still waits.
    let mut filler = opened(File::options().write(true), libc::O_NONBLOCK);
    for len in [4096, 1] {
        while filler.write(&[b'.'; 4096][..len]).is_ok() {}
    }
    assert!(!terminal.is_as_before());
    send(&terminal.child, libc::SIGTERM);
    terminal.shows("\x1b[?2004l");
    assert_eq!(terminal.ends(), Some(143));
    assert!(terminal.is_as_before());
    drop(reader);
}

#[test]
fn a_chat_after_nohup_goes_on_at_a_hang_up() {
    let (noise, state) = (Noise::new(), tempfile::tempdir().unwrap());
    let mut command = under_nohup(&["chat", "--model", noise.path(), "--no-history"]);
    command.env_remove("RUST_LOG").env("XDG_STATE_HOME", state.path());
    let mut terminal = Terminal::start(command);
    terminal.shows("> ");
    terminal.keys("Hel");
    terminal.shows("Hel");
    send(&terminal.child, libc::SIGHUP);
    terminal.keys("\x03/history\r");
    terminal.shows("nothing was said yet");
    terminal.shows("> ");
    send(&terminal.child, libc::SIGTERM);
    assert_eq!(terminal.ends(), Some(143));
    assert!(terminal.is_as_before());
}
