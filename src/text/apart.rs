//! Work that a hostile file could make endless, on a thread of its own, which is given up on after a while.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::error::caught;
use crate::refusals;

/// The time that this thread has worked since it began. Unlike a clock, it stands still while other programs have the
/// processor: what is limited by it is not refused on a busy machine.
#[cfg(unix)]
pub(crate) fn worked() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `time`, which lives on this stack, and nowhere else.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    if failed != 0 {
        return Duration::ZERO;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Where a thread's own time is not known, a clock takes its place.
#[cfg(not(unix))]
pub(crate) fn worked() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// Why there is no result.
pub(crate) enum Lost {
    /// The thread could not be started.
    NoThread(io::Error),
    /// It still works.
    Late(JoinHandle<()>),
    /// It panicked.
    Panicked,
}

/// What `work` returns within `time`, on a thread called `name` with `stack` bytes of stack.
pub(crate) fn run<T: Send + 'static>(
    name: &str,
    stack: usize,
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Lost> {
    let (send, receive) = sync_channel(1);
    let work = move || {
        // Where it panics, what is waited for is gone.
        let _ = caught(work).map(|result| send.send(result));
    };
    let thread = Builder::new().name(name.into()).stack_size(stack);
    let thread = refusals::spawn(thread, work).map_err(Lost::NoThread)?;
    receive.recv_timeout(time).map_err(|error| match error {
        RecvTimeoutError::Timeout => Lost::Late(thread),
        RecvTimeoutError::Disconnected => Lost::Panicked,
    })
}
