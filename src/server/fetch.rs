//! Models that come while the server runs: those that requests have downloaded, and those that others bring.

use std::fmt::Debug;

use crate::error::Result;
use crate::models::Offer;

/// How far a download is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetching {
    /// Whether what came is being checked.
    pub checking: bool,
    /// Bytes that are here.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
}

/// Who downloads models by name.
pub trait Fetch: Debug + Send + Sync {
    /// Downloads the model that is called `name`, where it is not here; `tell` is told how far it is, and says whether to go on. None
    /// where it was stopped.
    ///
    /// # Errors
    /// A name that is none, and a download that fails.
    fn fetch(&self, name: &str, tell: &mut dyn FnMut(&Fetching) -> bool) -> Result<Option<Offer>>;
}

/// Who looks for models that others have brought.
pub trait Look: Debug + Send + Sync {
    /// The offer that is meant by another name of the same files, without asking anybody.
    fn stands_for(&self, called: &str) -> Option<String>;

    /// Whether all models of the machine are looked for.
    fn is_all(&self) -> bool;

    /// Models that were not there before.
    fn look(&self) -> Vec<Offer>;
}
