//! Ctrl-C: it ends what runs, and without anything that could be ended, or the second time, the process. And the signals that
//! others end a process by, for commands that do something about them.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{INTERRUPTED, term};

/// What Ctrl-C ends.
static RUNNING: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

/// Whether the next Ctrl-C that finds nothing to end is passed over.
static PASSED_OVER: AtomicBool = AtomicBool::new(false);

/// Has one Ctrl-C that finds nothing to end change nothing: it was meant for what ended in that moment.
///
/// # Errors
/// Where it cannot be caught.
pub fn pass_one_over() -> anyhow::Result<()> {
    PASSED_OVER.store(true, Ordering::Relaxed);
    catch()
}

/// As long as it lives, Ctrl-C calls what it was made with, once.
pub struct Interruptible;

impl Interruptible {
    pub fn new(end: impl FnOnce() + Send + 'static) -> anyhow::Result<Self> {
        catch()?;
        *RUNNING.lock() = Some(Box::new(end));
        Ok(Self)
    }
}

/// Has Ctrl-C end the process with the terminal as it should be, from here on, unless there is something else that it ends.
///
/// # Errors
/// Where it cannot be caught.
pub fn catch() -> anyhow::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = ctrlc::set_handler(|| {
            let running = RUNNING.lock().take();
            match running {
                Some(end) => end(),
                None if PASSED_OVER.swap(false, Ordering::Relaxed) => {}
                None => {
                    term::clear_at_end();
                    super::exit_at_once(INTERRUPTED)
                }
            }
        });
    });
    result.context("cannot catch Ctrl-C")
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        *RUNNING.lock() = None;
    }
}

/// SIGTERM and SIGHUP. One that came ignored, as `nohup` has SIGHUP, stays ignored.
pub struct Ends {
    terminations: Signal,
    hangups: Option<Signal>,
}

/// One of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Terminated,
    HungUp,
}

impl Ends {
    /// Catches them from here on, within a runtime.
    ///
    /// # Errors
    /// Where they cannot be caught.
    pub fn new() -> anyhow::Result<Self> {
        let hangups = match super::ignores_hangups() {
            true => None,
            false => Some(signal(SignalKind::hangup()).context("cannot catch SIGHUP")?),
        };
        Ok(Self { terminations: signal(SignalKind::terminate()).context("cannot catch SIGTERM")?, hangups })
    }

    /// The next one.
    pub async fn next(&mut self) -> End {
        let hung_up = async {
            match &mut self.hangups {
                Some(hangups) => drop(hangups.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminations.recv() => End::Terminated,
            () = hung_up => End::HungUp,
        }
    }
}

impl End {
    /// The exit code after it, as shells have it: 128 and the signal.
    pub fn code(self) -> u8 {
        match self {
            Self::Terminated => 143,
            Self::HungUp => 129,
        }
    }
}
