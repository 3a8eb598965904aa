//! Signals at each stage of a command that has no handler of its own for them: an end within a bound, by the signal, and no file
//! under its final name. What Ctrl-C ends, and how, is said where each command is tested.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/perplexity/text.txt");
/// From a signal to the end of a process, on a busy machine.
const BOUND: Duration = Duration::from_secs(10);

fn send(child: &Child, signal: i32) {
    // SAFETY: the process is our child and not yet waited for, so that the id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

/// Exit code and signal of a process that was just sent one.
fn end(mut child: Child) -> (Option<i32>, Option<i32>) {
    let sent = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if sent.elapsed() > BOUND {
            child.kill().unwrap();
            panic!("it goes on");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    (status.code(), status.signal())
}

#[test]
fn a_run_ends_by_a_signal_in_prefill_and_in_generation() {
    let noise = Noise::new();
    let common =
        ["run", "-", "--raw", "--temperature", "1", "--ctx", "200000", "--threads", "1", "-v", "--model"];
    // The first takes minutes to read, the second as long to answer.
    for prompt in [&vec![1; 150_000][..], b"a"] {
        for signal in [libc::SIGTERM, libc::SIGHUP] {
            let args = [&common[..], &[noise.path()]].concat();
            let mut child = command(&args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(prompt).unwrap();
            let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
            assert!(log.any(|line| line.unwrap().contains("generating")), "-v says when it begins");
            // It is passed over, as Rust's programs do: a closed pipe is told by the write.
            send(&child, libc::SIGPIPE);
            std::thread::sleep(Duration::from_millis(100));
            assert!(child.try_wait().unwrap().is_none());
            send(&child, signal);
            assert_eq!(end(child), (None, Some(signal)), "{} bytes", prompt.len());
        }
    }
}

/// At whatever stage each signal comes, and Ctrl-C too: the file is whole, or not there.
#[test]
fn what_is_written_at_the_end_is_whole_or_absent() {
    let noise = Noise::new();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let file = out.to_str().unwrap();
    let commands: [&[&str]; 3] = [
        &["imatrix", TEXT, "--model", noise.path(), "--window", "64", "-o", file],
        &["perplexity", TEXT, "--model", noise.path(), "--window", "64", "--positions", file],
        &["quantize", noise.path(), "--to", "gguf", "--type", "Q8_0", "-o", file],
    ];
    for args in commands {
        ok(args);
        let whole = read(&out).unwrap();
        fs::remove_file(&out).unwrap();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            for wait in [0, 4, 16, 64, 256] {
                let child = command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                std::thread::sleep(Duration::from_millis(wait));
                send(&child, signal);
                let ended = end(child);
                let there = read(&out);
                match ended {
                    (Some(0), None) => assert_eq!(there.as_ref(), Some(&whole), "{args:?} {signal} {wait}"),
                    // Before the handler is there, Ctrl-C is any other signal.
                    (Some(130), None) if signal == libc::SIGINT => {}
                    (None, Some(by)) => assert_eq!(by, signal, "{args:?} {wait}"),
                    other => panic!("{other:?}: {args:?} {signal} {wait}"),
                }
                assert!(there.is_none_or(|there| there == whole), "{args:?} {signal} {wait}");
                let _ = fs::remove_file(&out);
            }
        }
        // What an end left aside is in nobody's way.
        ok(args);
        assert_eq!(read(&out).unwrap(), whole);
        fs::remove_file(&out).unwrap();
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    fs::read(path).ok()
}
