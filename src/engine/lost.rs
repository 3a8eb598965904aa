//! Requests of an engine whose thread may never come back: MLX waits for a rank that is lost, and does not return.

use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// Who waits for something of the engine, and may be told that it does not come.
pub(super) trait Waiting: Send + Sync {
    fn fail(&self, error: Error);
}

/// What takes results, until it is told that none come.
pub(super) struct Taker<T>(pub Mutex<Option<T>>);

/// Why an engine's thread will not answer, and who waits for it.
#[derive(Default)]
pub(super) struct Lost {
    why: OnceLock<String>,
    waiting: Mutex<Vec<Weak<dyn Waiting>>>,
}

impl Lost {
    /// Has somebody be told, should it come to that.
    ///
    /// # Errors
    /// Where it has come to that.
    pub fn tell(&self, who: &Arc<dyn Waiting>) -> Result<()> {
        let mut waiting = self.waiting.lock();
        self.check()?;
        waiting.retain(|who| who.strong_count() > 0);
        waiting.push(Arc::downgrade(who));
        Ok(())
    }

    /// Why nothing is answered any more, where that is so.
    pub fn check(&self) -> Result<()> {
        self.why.get().map_or(Ok(()), |why| Err(Error::Engine(why.clone())))
    }

    /// Ends all who wait: `why` is told to those who come later, too.
    pub fn end(&self, why: &str) {
        let waiting = {
            let mut waiting = self.waiting.lock();
            let _ = self.why.set(why.to_owned());
            std::mem::take(&mut *waiting)
        };
        for who in waiting.iter().filter_map(Weak::upgrade) {
            who.fail(Error::Engine(why.to_owned()));
        }
    }
}
