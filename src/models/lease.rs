//! Models in use.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::{Keep, Shared, Stage};
use crate::model::Model;

/// A model in use: it is not unloaded before this is dropped.
pub struct Lease {
    pub(super) shared: Arc<Shared>,
    pub(super) entry: usize,
    pub(super) name: String,
    pub(super) model: Model,
    /// How often the model was to be unloaded before.
    pub(super) told: u64,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({})", self.name)
    }
}

impl Lease {
    /// The name that the model goes by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Says how long the model stays that nobody uses, unless it was to be unloaded meanwhile.
    pub fn keep(&self, keep: Keep) {
        let mut state = self.shared.state.lock();
        if let Some(Stage::Loaded(loaded)) = state.entries.get_mut(self.entry).map(|entry| &mut entry.stage)
            && loaded.told == self.told
        {
            loaded.keep_as(keep);
        }
        self.shared.bell.notify_all();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if let Some(Stage::Loaded(loaded)) = state.entries.get_mut(self.entry).map(|entry| &mut entry.stage) {
            loaded.leases = loaded.leases.saturating_sub(1);
            loaded.used = Instant::now();
        }
        self.shared.bell.notify_all();
    }
}
