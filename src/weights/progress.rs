//! How far a load is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How far a load is, for whoever waits for it. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct LoadProgress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    total: AtomicU64,
}

impl LoadProgress {
    /// Bytes of weights that are read, or brought into their form in memory, and of how many; none before that is known.
    pub fn bytes(&self) -> Option<(u64, u64)> {
        let total = self.0.total.load(Ordering::Relaxed);
        // What two weights share is read twice.
        let done = self.0.done.load(Ordering::Relaxed).min(total);
        (total > 0).then_some((done, total))
    }

    /// So many more are to come.
    pub(crate) fn expect(&self, bytes: u64) {
        self.0.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many have come.
    pub(crate) fn came(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }
}
