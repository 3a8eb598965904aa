//! What a person at a terminal is asked, and sees.

use std::time::Duration;

use super::served::{Action, Hub, noise, tree};

use super::terminal::Terminal;

/// What Ollama's `run` does, and llama.cpp's options say what they say there.
#[test]
fn a_name_by_itself_is_talked_to() {
    let (hub, home) = (Hub::new(), tempfile::tempdir().unwrap());
    hub.put("org/model", &[("m.gguf", &std::fs::read(super::commands::GGUF).unwrap())]);
    hub.ok(home.path(), &["pull", "org/model"]);
    for args in [
        &["run", "org/model", "-n", "4"][..],
        &["run", "-m", "org/model", "-c", "64", "-t", "1", "--temp", "0"],
    ] {
        let mut command = hub.command(home.path(), args);
        command.env("XDG_STATE_HOME", home.path());
        let mut terminal = Terminal::start(command);
        terminal.shows("/help lists the commands");
        terminal.shows("> ");
        terminal.keys("\x04");
        assert_eq!(terminal.ends(), Some(0), "{args:?}");
    }
    for args in [&["run", "org/model", "--json"][..], &["run", "org/model", "--raw"], &["run"]] {
        let mut terminal = Terminal::start(hub.command(home.path(), args));
        terminal.shows("no PROMPT: give one, or `-` to type it here");
        assert_eq!(terminal.ends(), Some(2), "{args:?}");
    }
    let ran = hub.run(home.path(), &["run", "-hf", "org/model", "-n", "2", "--no-summary", "-p", "Hello"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let ran = hub.run(home.path(), &["run", "org/model", "-ngl", "99", "Hello"]);
    let expected = "error: -ngl is an option of llama.cpp: here, ";
    assert!(ran.code == Some(2) && ran.err.starts_with(expected), "{}", ran.err);
    for path in ["./nosuch.gguf", "nosuch.gguf", "/nosuch"] {
        let ran = hub.run(home.path(), &["run", path]);
        assert_eq!((ran.code, &*ran.out), (Some(1), ""), "{path}: {}", ran.err);
        assert!(ran.err.contains(path), "{}", ran.err);
    }
    let says = |args: &[&str]| hub.ok(home.path(), &[&["run", "--no-summary", "-n", "4"], args].concat()).out;
    assert_eq!(says(&["-m", "org/model", "-p", "- Hello"]), says(&["org/model", "-p", "- Hello"]));
}

#[test]
fn a_person_is_asked_before_anything_is_downloaded_or_removed() {
    let bytes = noise(1_200_000, 6);
    let (hub, home) = (Hub::with(&[("m.gguf", &bytes)]), tempfile::tempdir().unwrap());
    let question = "org/model is not on this machine. Download org/model:m (1.2 MB)? [Y/n] ";
    for answer in ["n\n", "what\n", "\u{4}"] {
        let mut terminal = Terminal::start(hub.command(home.path(), &["inspect", "org/model"]));
        terminal.shows(question);
        terminal.keys(answer);
        terminal.shows("nothing was downloaded; `backstop pull org/model` does it");
        assert_eq!(terminal.ends(), Some(1), "{answer:?}");
    }
    assert_eq!((hub.files_seen().len(), tree(&home.path().join("hub")).len()), (0, 0));
    hub.rule(
        |seen, _| {
            if seen.is_file() { Action::Slow(20_000, Duration::from_millis(40)) } else { Action::Serve }
        },
    );
    let mut terminal = Terminal::start(hub.command(home.path(), &["inspect", "org/model"]));
    terminal.shows(question);
    terminal.keys("\n");
    terminal.shows("m.gguf: ");
    terminal.shows("/s, ");
    terminal.shows(" s left");
    // It is no model: what it is not is said once it is here.
    terminal.shows("magic is ");
    assert_eq!(terminal.ends(), Some(1));
    assert!(hub.ok(home.path(), &["list"]).out.contains("org/model:m  GGUF"));

    let mut terminal = Terminal::start(hub.command(home.path(), &["rm", "org/model"]));
    terminal.shows("Remove org/model from ");
    terminal.shows("? [y/N] ");
    terminal.keys("\n");
    terminal.shows("nothing was removed");
    assert_eq!(terminal.ends(), Some(1));
    let mut terminal = Terminal::start(hub.command(home.path(), &["rm", "org/model"]));
    terminal.shows("? [y/N] ");
    terminal.keys("y\n");
    terminal.shows("org/model is removed: 1.2 MB are free");
    assert_eq!(terminal.ends(), Some(0));
}
