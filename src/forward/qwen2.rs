//! `qwen2`: Llama with biases on the query, key and value projections, which the checkpoint holds.
//! Yang et al. 2024, "Qwen2 Technical Report".

use super::{Forward, Loader, llama};
use crate::error::Result;

pub(super) fn load(loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
    llama::load(loader)
}
