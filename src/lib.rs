//! # backstop
//!
//! A local LLM runtime: models run on MLX where MLX is, and on pure-Rust CPU kernels everywhere, the second standing
//! behind the first op by op.
//!
//! ## A text
//!
//! [`Model::load`] takes a directory with `config.json` and `*.safetensors`, or a GGUF file; [`Model::builtin`] needs no file.
//! A [`Generation`] is an iterator of [`Piece`]s, which come as they are generated.
//!
//! ```
//! use backstop::{Model, Options, SamplingOptions};
//!
//! let model = Model::builtin()?;
//! let sampling = SamplingOptions { temperature: 0.8, seed: 7, ..model.default_sampling() };
//! let options = Options { max_tokens: Some(32), sampling, ..Options::default() };
//! let mut generation = model.generate("Once upon a time", &options)?;
//! for piece in &mut generation {
//!     print!("{}", piece?.text);
//! }
//! let stats = generation.stats().expect("the last piece has come");
//! assert!(stats.generated_tokens <= 32);
//! # Ok::<(), backstop::Error>(())
//! ```
//!
//! A [`Model`] is a handle: clones share one engine, and generations of several threads share its steps.
//!
//! ## A conversation
//!
//! A [`Chat`] holds what was said, and the tools that may be called. [`Model::chat`] generates the assistant's turn by the model's
//! chat template; [`Generation::reply`] tells what the model thinks, says and calls apart.
//!
//! ```
//! use backstop::{Chat, Message, Model, Options};
//!
//! let model = Model::builtin()?;
//! let options = Options { max_tokens: Some(16), ..Options::default() };
//! let mut chat = Chat::new(vec![Message::new("system", "Be brief.")]);
//! for line in ["Once upon a time", "And then?"] {
//!     chat.messages.push(Message::new("user", line));
//!     let mut answer = model.chat(&chat, &options)?;
//!     for piece in &mut answer {
//!         print!("{}", piece?.text);
//!     }
//!     chat.messages.push(answer.reply().to_message());
//! }
//! assert_eq!(chat.messages.len(), 5);
//! # Ok::<(), backstop::Error>(())
//! ```
//!
//! [`Model::prepare`] also holds the answer to a JSON schema, a regular expression or a grammar.
//!
//! ## The end, before it comes
//!
//! Dropping a generation ends it. A [`Canceller`] does so from another thread; the last piece then says
//! [`FinishReason::Cancelled`].
//!
//! ```
//! use backstop::{FinishReason, Model, Options};
//!
//! let model = Model::builtin()?;
//! let mut generation = model.generate("Once upon a time", &Options { ignore_eos: true, ..Options::default() })?;
//! let canceller = generation.canceller();
//! std::thread::spawn(move || canceller.cancel()).join().unwrap();
//! let last = generation.by_ref().last().expect("a generation has a last piece")?;
//! assert_eq!(last.finish, Some(FinishReason::Cancelled));
//! # Ok::<(), backstop::Error>(())
//! ```
//!
//! ## Files and settings
//!
//! [`ModelFiles::open`] reads what a model is, without its weights; [`Model::load_with`] takes [`LoadOptions`]: the backend,
//! threads, the context, the KV cache's type and memory, and what happens where MLX cannot do an op. [`backends`] says what there
//! is on this machine. Every refusal is an [`Error`] that names what was expected and what was got.
//!
//! Modules that this page does not list are the runtime's own, open to its tests and benches: they change without notice.
//!
//! ## Features
//!
//! `cli` is the command `backstop`, and `server` and `hub` the modules of these names; all are on by default.
//! `default-features = false` leaves the library alone, without their dependencies. `mlx` compiles MLX in on Linux; on Apple Silicon it always is.

pub mod adapters;
mod alloc;
mod apart;
#[doc(hidden)]
pub mod backend;
mod chat;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod engine;
mod error;
mod files;
#[doc(hidden)]
pub mod forward;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod generate;
#[cfg(feature = "hub")]
pub mod hub;
pub mod imatrix;
mod json;
mod model;
pub mod models;
pub mod parity;
pub mod perplexity;
#[doc(hidden)]
pub mod quant;
pub mod quantize;
#[cfg(feature = "fault-injection")]
#[doc(hidden)]
pub mod refusals;
#[cfg(not(feature = "fault-injection"))]
mod refusals;
pub mod sample;
#[cfg(feature = "server")]
pub mod server;
pub mod tasks;
#[doc(hidden)]
pub mod tensor;
pub mod text;
#[doc(hidden)]
pub mod weights;

pub use backend::cpu::{Activations, Isa};
pub use backend::kv::KvType;
pub use backend::ops::OpKind;
pub use backend::select::{BackendRequest, backends};
pub use backend::{LlmBackendKind, Policy};
pub use chat::{Shown, Turn};
pub use engine::{CacheOptions, Drafts, FinishReason, Ranks, Stats};
pub use error::{Error, HubFault, Result};
#[doc(hidden)]
pub use files::bundle;
pub use generate::{Canceller, Generation, Options, Piece, generate};
#[doc(hidden)]
pub use json::strict_json;
pub use model::{
    AdapterInfo, AdapterSource, LEAST_CONTEXT, LoadOptions, MemorySetting, Model, ModelFiles, ModelInfo,
    TemplateChoice,
};
pub use sample::{Constraint, Grammar, Logprobs, SamplingOptions};
pub use tensor::DType;
pub use text::{Chat, Infill, Message, PromptEnd, Reply, Tool, ToolCall, ToolChoice};
pub use weights::LoadProgress;
