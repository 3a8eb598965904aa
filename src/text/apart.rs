//! Work that a hostile file could make endless, on a thread of its own, which is given up on after a while.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

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
        let _ = send.send(work());
    };
    let thread = Builder::new().name(name.into()).stack_size(stack).spawn(work).map_err(Lost::NoThread)?;
    receive.recv_timeout(time).map_err(|error| match error {
        RecvTimeoutError::Timeout => Lost::Late(thread),
        RecvTimeoutError::Disconnected => Lost::Panicked,
    })
}
