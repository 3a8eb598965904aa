//! Which tokens the next step takes: every decoding sequence its one, then prompts in chunks, oldest first, within the
//! step's budget.

use super::EngineOptions;

/// Tokens of one sequence that wait to be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// The sequence, as the engine indexes it.
    pub sequence: usize,
    /// Tokens not yet cached: 1 while decoding.
    pub tokens: usize,
}

/// How many tokens each sequence contributes to the next step, in the order of `waiting`; those with none are left out.
pub(crate) fn plan(options: &EngineOptions, waiting: &[Waiting]) -> Vec<Waiting> {
    let mut budget = options.step_tokens.max(1);
    let mut taken = vec![0; waiting.len()];
    // A decoding sequence is never stalled by a prompt.
    let (decoding, prefilling): (Vec<usize>, Vec<usize>) =
        (0..waiting.len()).filter(|&i| waiting[i].tokens > 0).partition(|&i| waiting[i].tokens == 1);
    for i in decoding.into_iter().chain(prefilling) {
        taken[i] = waiting[i].tokens.min(options.prefill_chunk.max(1)).min(budget);
        budget -= taken[i];
    }
    let runs = waiting.iter().zip(taken).map(|(of, tokens)| Waiting { tokens, ..*of });
    runs.filter(|run| run.tokens > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(step_tokens: usize, prefill_chunk: usize, waiting: &[usize]) -> Vec<(usize, usize)> {
        let options = EngineOptions { step_tokens, prefill_chunk, ..EngineOptions::default() };
        let waiting: Vec<Waiting> =
            waiting.iter().enumerate().map(|(sequence, &tokens)| Waiting { sequence, tokens }).collect();
        plan(&options, &waiting).iter().map(|run| (run.sequence, run.tokens)).collect()
    }

    #[test]
    fn decoding_sequences_come_before_prompts() {
        assert_eq!(planned(10, 8, &[100, 1, 50, 1]), [(0, 8), (1, 1), (3, 1)]);
        assert_eq!(planned(20, 8, &[100, 1, 50, 1]), [(0, 8), (1, 1), (2, 8), (3, 1)]);
        assert_eq!(planned(1, 8, &[100, 1]), [(1, 1)]);
        assert_eq!(planned(0, 0, &[3]), [(0, 1)]);
        assert!(planned(8, 8, &[0]).is_empty());
    }
}
