//! Sampling on the host, from logits: penalties, filters, a counter-based draw, and the stop matcher.

mod penalties;
mod philox;
mod sampler;
mod stop;

pub use sampler::{Sampled, Sampler, SamplingOptions};
pub use stop::{MAX_STOP_BYTES, MAX_STOPS, StopMatcher};

#[cfg(test)]
mod tests;
