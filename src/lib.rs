//! # backstop
//!
//! A local LLM runtime: models run on MLX where MLX is, and on pure-Rust CPU kernels everywhere, the second standing
//! behind the first op by op.

pub mod backend;
pub mod config;
pub mod error;
pub mod forward;
mod json;
pub mod sample;
pub mod tensor;
pub mod text;
pub mod weights;

pub use error::{Error, Result};
