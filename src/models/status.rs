//! What is known of models.

use std::time::Duration;

use crate::model::Model;

/// Where a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelState {
    /// In its files.
    Unloaded,
    /// On its way, or in the queue for it.
    Loading,
    /// In memory.
    Loaded,
    /// On its way out.
    Unloading,
    /// In its files, after it could not be loaded.
    Failed,
}

impl ModelState {
    /// As the server tells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::Loading => "loading",
            Self::Loaded => "loaded",
            Self::Unloading => "unloading",
            Self::Failed => "failed",
        }
    }
}

/// What is known of a model.
#[derive(Debug, Clone)]
pub struct ModelStatus {
    /// The name that it goes by.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Where it is.
    pub state: ModelState,
    /// Why it could not be loaded.
    pub reason: Option<String>,
    /// Bytes of its weights, where they are known.
    pub size: Option<u64>,
    /// Bytes that it may take of the memory, from when it is loaded until it is gone.
    pub memory: Option<u64>,
    /// The model, where it is loaded.
    pub model: Option<Model>,
    /// How many use it.
    pub leases: usize,
    /// How long it stays if nobody uses it; none where it stays until memory is needed.
    pub expires_in: Option<Duration>,
}

/// How often models came and went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModelMoves {
    /// Those that were loaded.
    pub loads: u64,
    /// Those that were unloaded, whose memory is free again.
    pub unloads: u64,
}
