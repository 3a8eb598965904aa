//! Long texts take turns: what the library makes of one on the way to its tokens is some hundred times as large as the text.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::alloc::give_back;

/// Bytes of a text that is long.
pub(super) const LONG: usize = 1 << 20;

/// The turn of the whole process: the memory is, too.
static TAKEN: Mutex<bool> = Mutex::new(false);
static FREE: Condvar = Condvar::new();

/// A turn, over once it is dropped.
pub(super) struct Turn(());

impl Turn {
    /// Waits for it, for so long.
    pub(super) fn wait(patience: Duration) -> Option<Self> {
        let mut taken = TAKEN.lock();
        if FREE.wait_while_for(&mut taken, |taken| *taken, patience).timed_out() && *taken {
            return None;
        }
        *taken = true;
        Some(Self(()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The library's parts are small, and the allocator keeps what is free among others.
        give_back();
        *TAKEN.lock() = false;
        FREE.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn one_has_the_turn_at_a_time() {
        // Beside other tests.
        let turn = Turn::wait(Duration::from_secs(60)).unwrap();
        assert!(Turn::wait(Duration::from_millis(1)).is_none());
        let next = thread::spawn(|| Turn::wait(Duration::from_secs(60)).is_some());
        drop(turn);
        assert!(next.join().unwrap());
    }
}
