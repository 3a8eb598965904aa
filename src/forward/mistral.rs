//! `mistral`: Llama with a sliding window, which the configuration resolves per layer.
//! Jiang et al. 2023, "Mistral 7B".

use super::{Forward, Loader, llama};
use crate::error::Result;

pub(super) fn load(loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
    llama::load(loader)
}
