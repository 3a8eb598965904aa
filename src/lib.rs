//! # backstop
//!
//! A local LLM runtime: models run on MLX where MLX is, and on pure-Rust CPU kernels everywhere, the second standing
//! behind the first op by op.

pub mod backend;
mod chat;
pub mod config;
pub mod engine;
pub mod error;
pub mod forward;
pub mod generate;
mod json;
pub mod model;
pub mod parity;
pub mod quant;
pub mod quantize;
pub mod sample;
#[cfg(feature = "server")]
pub mod server;
pub mod tensor;
pub mod text;
pub mod weights;

pub use backend::select::backends;
pub use chat::Turn;
pub use engine::{FinishReason, Stats};
pub use error::{Error, Result};
pub use generate::{Canceller, Generation, Options, Piece, generate};
pub use model::{LoadOptions, MemorySetting, Model, ModelFiles, ModelInfo, TemplateChoice};
pub use sample::{Logprobs, SamplingOptions};
