//! The terminal as it was, where a signal ends the process in the middle of a line.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, tcgetattr, tcgetpgrp, tcsetattr, ttyname};

use super::super::exit_at_once;
use super::super::interrupt::Ends;

/// What an editor of lines asks of the terminal beside its mode: that what is pasted comes between marks.
const NO_MARKS: &[u8] = b"\x1b[?2004l";

/// From here on SIGTERM, and SIGHUP where it came not ignored, end the process with the terminal as it is now.
///
/// # Errors
/// Where the signals cannot be caught.
pub fn keep() -> anyhow::Result<()> {
    let Some(terminal) = terminal() else { return Ok(()) };
    let Ok(before) = tcgetattr(&terminal) else { return Ok(()) };
    let what = "cannot catch SIGTERM and SIGHUP";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context(what)?;
    let mut ends = {
        let _inside = runtime.enter();
        Ends::new()?
    };
    let wait = move || {
        let signal = runtime.block_on(ends.next());
        // Behind another program it is that one's, and setting its mode would stop this one.
        let behind = tcgetpgrp(&terminal).is_ok_and(|front| front != getpgrp());
        if !behind {
            // The terminal may be gone, or take nothing.
            let _ = tcsetattr(&terminal, OptionalActions::Now, &before);
            write_soon(&terminal, NO_MARKS);
        }
        exit_at_once(signal.code())
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context(what)?;
    Ok(())
}

/// Writes to a terminal that may be full, or in the middle of another thread's write, for a moment; one that stands still takes nothing.
fn write_soon(terminal: &OwnedFd, mut bytes: &[u8]) {
    /// How long the end waits for it.
    const SOON: Duration = Duration::from_secs(1);
    let started = Instant::now();
    while !bytes.is_empty() && started.elapsed() < SOON {
        match rustix::io::write(terminal, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::AGAIN | Errno::INTR) => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => return,
        }
    }
}

/// The terminal that lines are edited on, opened anew: a write to it never waits, and whoever else has it open still may. What
/// stderr is does not matter.
fn terminal() -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let of = |path: &CStr| open(path, flags, Mode::empty()).ok();
    // As the editor has it: without a terminal of its session, that of stdin.
    of(c"/dev/tty").or_else(|| of(&ttyname(std::io::stdin(), Vec::new()).ok()?))
}
