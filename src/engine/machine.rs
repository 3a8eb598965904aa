//! What the models of one process share: the threads of the CPU's kernels.

use std::fmt;
use std::sync::Arc;

use parking_lot::{FairMutex, FairMutexGuard};

use crate::backend::cpu::pool::Pool;

/// Threads for several models. Clones are the same ones.
///
/// Engines that share them take turns, a step each: two that computed at once would take the cores from each other, and wait in
/// every op for a thread that the system has put aside.
#[derive(Clone)]
pub struct Machine {
    pool: Arc<Pool>,
    turn: Arc<FairMutex<()>>,
}

impl Machine {
    /// `threads` threads; one per core where absent.
    pub fn new(threads: Option<usize>) -> Self {
        let pool = Arc::new(threads.map_or_else(Pool::per_core, Pool::new));
        Self { pool, turn: Arc::default() }
    }

    /// The threads.
    pub(crate) fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool)
    }

    /// The right to run a step, in the order in which it was asked for.
    pub(crate) fn turn(&self) -> FairMutexGuard<'_, ()> {
        self.turn.lock()
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine({} threads)", self.pool.threads())
    }
}
