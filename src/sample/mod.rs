//! Sampling on the host, from logits: constraints, penalties, filters, a counter-based draw, and the stop matcher.

pub mod constraint;
mod distribution;
mod grammar;
mod options;
mod penalties;
mod philox;
pub(crate) mod reply;
mod sampler;
mod schema;
mod stop;
#[doc(hidden)]
pub mod trial;

pub use constraint::{Constraint, GrammarCompiler};
pub(crate) use distribution::Distribution;
pub use grammar::Grammar;
pub use options::SamplingOptions;
pub use sampler::{DrawPlace, Logprobs, Sampled, Sampler};
pub use stop::{MAX_STOP_BYTES, MAX_STOPS, StopMatcher};

#[cfg(test)]
mod tests;

/// What there is before the first line end, at most 300 characters.
fn first_line(text: &str) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    let line =
        line.strip_prefix("panic: ").map_or(line.to_owned(), |what| format!("its compiler panicked: {what}"));
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
