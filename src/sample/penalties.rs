//! Penalties for tokens seen before, and the caller's biases.

use super::SamplingOptions;

/// Applies `options`' biases and penalties to `logits` (`[V]`, already a copy), given the tokens so far.
///
/// Per token seen `n` times in the last `penalty_window` tokens (0: in all of them), as in CTRL (Keskar et al., 2019)
/// and OpenAI's API:
///
/// ```text
/// l ← l / repeat_penalty  where l > 0, else l · repeat_penalty
/// l ← l − n · frequency_penalty − presence_penalty
/// ```
pub(super) fn apply(options: &SamplingOptions, logits: &mut [f32], history: &[u32]) {
    for &(token, bias) in &options.logit_bias {
        if let Some(l) = logits.get_mut(token as usize) {
            *l += bias;
        }
    }
    let repeat = options.repeat_penalty;
    let (presence, frequency) = (options.presence_penalty, options.frequency_penalty);
    if repeat == 1.0 && presence == 0.0 && frequency == 0.0 {
        return;
    }
    let window = if options.penalty_window == 0 { history.len() } else { options.penalty_window };
    let mut seen = history[history.len().saturating_sub(window)..].to_vec();
    seen.sort_unstable();
    for run in seen.chunk_by(|a, b| a == b) {
        if let Some(l) = logits.get_mut(run[0] as usize) {
            *l = if *l > 0.0 { *l / repeat } else { *l * repeat };
            *l -= run.len() as f32 * frequency + presence;
        }
    }
}

/// Whether [`apply`] would change anything.
pub(super) fn active(options: &SamplingOptions) -> bool {
    !options.logit_bias.is_empty()
        || options.repeat_penalty != 1.0
        || options.presence_penalty != 0.0
        || options.frequency_penalty != 0.0
}
