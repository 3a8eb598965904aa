//! Penalties for tokens seen before, and the caller's biases.

use super::options::SamplingOptions;
use crate::alloc;
use crate::error::Result;

/// Applies `options`' biases and penalties to `logits` (`[V]`, already a copy), given the tokens so far, of which the first
/// `prompt` are the prompt's.
///
/// As in CTRL (Keskar et al., 2019), per token seen in the last `penalty_window` tokens (0: in all of them), and as in
/// OpenAI's API, per token generated `n` times before:
///
/// ```text
/// l ← l / repeat_penalty  where l > 0, else l · repeat_penalty
/// l ← l − n · frequency_penalty − presence_penalty
/// ```
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub(super) fn apply(
    options: &SamplingOptions,
    logits: &mut [f32],
    tokens: &[u32],
    prompt: usize,
) -> Result<()> {
    for &(token, bias) in &options.logit_bias {
        if let Some(l) = logits.get_mut(token as usize) {
            *l += bias;
        }
    }
    let repeat = options.repeat_penalty;
    if repeat != 1.0 {
        let window = if options.penalty_window == 0 { tokens.len() } else { options.penalty_window };
        for_each(&tokens[tokens.len().saturating_sub(window)..], logits, |l, _| {
            *l = if *l > 0.0 { *l / repeat } else { *l * repeat };
        })?;
    }
    let (presence, frequency) = (options.presence_penalty, options.frequency_penalty);
    if presence != 0.0 || frequency != 0.0 {
        for_each(&tokens[prompt.min(tokens.len())..], logits, |l, n| *l -= n as f32 * frequency + presence)?;
    }
    Ok(())
}

/// Calls `change` with the logit of each different token of `seen`, and how often it is there.
fn for_each(seen: &[u32], logits: &mut [f32], change: impl Fn(&mut f32, usize)) -> Result<()> {
    let mut seen = alloc::copy_of(seen, "the tokens that penalties count")?;
    seen.sort_unstable();
    for run in seen.chunk_by(|a, b| a == b) {
        if let Some(l) = logits.get_mut(run[0] as usize) {
            change(l, run.len());
        }
    }
    Ok(())
}

/// Whether [`apply`] would change anything.
pub(super) fn active(options: &SamplingOptions) -> bool {
    !options.logit_bias.is_empty()
        || options.repeat_penalty != 1.0
        || options.presence_penalty != 0.0
        || options.frequency_penalty != 0.0
}
