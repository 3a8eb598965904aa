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

/// While its weights are read: there is a handler for none of them yet.
#[cfg(target_os = "linux")]
#[test]
fn a_run_ends_by_a_signal_while_it_loads() {
    let wide = Wide::new();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let args = ["run", PROMPT, "--no-mmap", "--threads", "1", "--ctx", "64", "--model", wide.path()];
        let mut child = command(&args).spawn().unwrap();
        // A part of the file, and far more than all else.
        while resident(&child).is_none_or(|bytes| bytes < 80 << 20) {
            assert!(child.try_wait().unwrap().is_none(), "it ended before");
            std::thread::sleep(Duration::from_millis(1));
        }
        send(&child, signal);
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        assert_eq!(end(child), (None, Some(signal)));
        let said = [std::io::read_to_string(out).unwrap(), std::io::read_to_string(err).unwrap()];
        assert_eq!(said, ["", ""]);
    }
}

#[test]
fn a_run_after_nohup_goes_on_at_a_hang_up() {
    let noise = Noise::new();
    let args =
        ["run", PROMPT, "--raw", "--temperature", "1", "--ctx", "200000", "-v", "--model", noise.path()];
    let mut command = under_nohup(&args);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("generating")), "-v says when it begins");
    send(&child, libc::SIGHUP);
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none());
    send(&child, libc::SIGTERM);
    assert_eq!(end(child), (None, Some(libc::SIGTERM)));
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
