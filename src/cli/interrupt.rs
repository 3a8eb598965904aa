//! Ctrl-C: it ends what runs, and without anything that could be ended, or the second time, the process.

use std::sync::Once;

use anyhow::Context;
use parking_lot::Mutex;

use super::INTERRUPTED;

/// What Ctrl-C ends.
static RUNNING: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

/// As long as it lives, Ctrl-C calls what it was made with, once.
pub struct Interruptible;

impl Interruptible {
    pub fn new(end: impl FnOnce() + Send + 'static) -> anyhow::Result<Self> {
        static ONCE: Once = Once::new();
        let mut result = Ok(());
        ONCE.call_once(|| {
            result = ctrlc::set_handler(|| {
                let running = RUNNING.lock().take();
                match running {
                    Some(end) => end(),
                    None => super::exit_at_once(INTERRUPTED),
                }
            });
        });
        result.context("cannot catch Ctrl-C")?;
        *RUNNING.lock() = Some(Box::new(end));
        Ok(Self)
    }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        *RUNNING.lock() = None;
    }
}
