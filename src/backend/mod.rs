//! Backends: the ops, the dispatch that routes each of them, and the fallback policy.
//!
//! [`ops::Backend`] is what a backend is. [`cpu`] and [`mlx`] are two, which do not know each other. [`LlmBackendDispatch`] is the
//! enum over them, and one itself: it sends every op to MLX first where MLX runs the model. An op that MLX cannot do, or fails
//! at, is computed by the CPU kernel instead; the pair of op and reason is logged once and counted. Where evaluations fail again
//! and again for one reason, the model stays on the CPU. Under [`Policy::Deny`] each of these is an error.

pub mod batch;
mod check;
pub mod cpu;
mod dispatch;
mod fallback;
mod inputs;
mod kind;
pub mod kv;
mod machine;
#[cfg(has_mlx)]
pub mod mlx;
#[cfg(not(has_mlx))]
#[path = "mlx/absent.rs"]
pub mod mlx;
mod observe;
pub mod ops;
mod pages;
mod profile;
pub mod ranks;
mod recur;
pub mod recurrent;
pub mod rope;
pub mod select;
mod values;

pub use dispatch::{LlmBackendDispatch, Op};
pub use fallback::{FallbackReport, Faults, Policy, Routing};
pub use inputs::{InputSum, InputSums};
pub use kind::LlmBackendKind;
pub(crate) use pages::{HostPart, PartKind, PartShapes};
pub use pages::{KvCost, KvPage, PageAndPane, SequenceKv};
pub use profile::OpTime;
pub use values::{LayerState, PreparedMatrix, PreparedStack, PreparedVector, RecurrentState, Tensor};
