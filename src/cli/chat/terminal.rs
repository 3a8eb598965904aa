//! The terminal as it was, where a signal ends the process in the middle of a line.

use std::io::{Write, stderr, stdin};

use anyhow::Context;
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, tcgetattr, tcgetpgrp, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

use super::super::exit_at_once;

/// What an editor of lines asks of the terminal beside its mode: that what is pasted comes between marks.
const NO_MARKS: &[u8] = b"\x1b[?2004l";

/// From here on SIGTERM and SIGHUP end the process with the terminal as it is now.
///
/// # Errors
/// Where the signals cannot be caught.
pub fn keep() -> anyhow::Result<()> {
    let Ok(before) = tcgetattr(stdin()) else { return Ok(()) };
    let what = "cannot catch SIGTERM and SIGHUP";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context(what)?;
    let (mut terminations, mut hangups) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate()).context(what)?, signal(SignalKind::hangup()).context(what)?)
    };
    let wait = move || {
        let signal = runtime.block_on(async {
            tokio::select! {
                _ = terminations.recv() => libc::SIGTERM,
                _ = hangups.recv() => libc::SIGHUP,
            }
        });
        // Behind another program it is that one's, and setting its mode would stop this one.
        let behind = tcgetpgrp(stdin()).is_ok_and(|front| front != getpgrp());
        if !behind {
            // The terminal may be gone.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
            let _ = stderr().write_all(NO_MARKS);
        }
        // As shells have it: 128 and the signal.
        exit_at_once(128 | signal as u8)
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context(what)?;
    Ok(())
}
