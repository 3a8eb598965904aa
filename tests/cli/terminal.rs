//! What a person sees: the binary on a pseudo-terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr::null_mut;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::support::*;

/// A process on a terminal of its own.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn start(state: &str, args: &[&str]) -> Self {
        let (mut ours, mut theirs) = (-1, -1);
        // SAFETY: the call writes two descriptors into places of our own; null means the defaults.
        let result = unsafe { libc::openpty(&mut ours, &mut theirs, null_mut(), null_mut(), null_mut()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both descriptors were just opened, and nobody else has them.
        let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
        command
            .args(args)
            .stdin(theirs.try_clone().unwrap())
            .stdout(theirs.try_clone().unwrap())
            .stderr(theirs);
        command
            .env_remove("RUST_LOG")
            .env_remove("NO_COLOR")
            .env("TERM", "xterm")
            .env("XDG_STATE_HOME", state);
        // SAFETY: both calls may be made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // A session whose terminal is stdin, so that Ctrl-C there is a signal.
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY as _, 0);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        drop(command);
        let keyboard = File::from(ours);
        let mut output = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keyboard, screen, seen: String::new() }
    }

    fn keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` shows, and forgets what came up to it.
    fn shows(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let bytes =
                self.screen.recv_timeout(left).unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.seen));
            self.seen += &String::from_utf8_lossy(&bytes);
        }
    }

    fn ends(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[test]
fn a_person_chats() {
    let noise = Noise::new();
    let state = tempfile::tempdir().unwrap();
    let args = ["chat", "--model", noise.path(), "--temperature", "1", "--ctx", "200000", "-v"];
    let mut terminal = Terminal::start(state.path().to_str().unwrap(), &args);
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
    let mut terminal = Terminal::start("/dev/null", &args);
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
    let mut terminal = Terminal::start("/dev/null", &args);
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
    let mut terminal = Terminal::start("/dev/null", &args);
    terminal.shows("generating");
    terminal.keys("\x03");
    terminal.shows("\x1b[2mmodel");
    terminal.shows(", interrupted");
    assert_eq!(terminal.ends(), Some(130));

    let mut terminal = Terminal::start("/dev/null", &["run"]);
    terminal.shows("no PROMPT: give one, or `-` to type it here");
    assert_eq!(terminal.ends(), Some(2));
}
