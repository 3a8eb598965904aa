//! Sampling on the host, from logits: constraints, penalties, filters, a counter-based draw, and the stop matcher.

pub mod constraint;
mod penalties;
mod philox;
pub(crate) mod reply;
mod sampler;
mod schema;
mod stop;

pub use constraint::{Constraint, Grammar, GrammarCompiler};
pub use sampler::{Logprobs, Place, Sampled, Sampler, SamplingOptions};
pub use stop::{MAX_STOP_BYTES, MAX_STOPS, StopMatcher};

#[cfg(test)]
mod tests;
