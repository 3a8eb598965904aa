//! Which tokens the next step takes, within its budget: every decoding sequence its one, then a chunk of the oldest prompt, then
//! chunks of the others, the shortest first.
//!
//! So no prompt stalls those who decode by more than a chunk, the oldest one goes on in every step, and a short one does not
//! wait for long ones that came before it.

use super::EngineOptions;

/// Tokens of one sequence that wait to be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// The sequence, as the engine indexes it.
    pub sequence: usize,
    /// Tokens not yet cached: 1 while decoding.
    pub tokens: usize,
    /// How many of these come before the first one whose logits count as scored.
    pub unscored: usize,
    /// How many of these a step takes at most, at least one.
    pub most: usize,
    /// Whether they are computed at once or not at all: each sees those behind it.
    pub whole: bool,
}

/// How many tokens each sequence contributes to the next step, in the order of `waiting`, the oldest first; those with none
/// are left out. At most `scored` rows, at least one, have logits that count as scored. The oldest sequence that is to be whole is,
/// however long.
pub(crate) fn plan(options: &EngineOptions, scored: usize, waiting: &[Waiting]) -> Vec<Waiting> {
    let mut budget = options.step_tokens.max(1);
    let mut scored = scored.max(1);
    let mut taken = vec![0; waiting.len()];
    // A decoding sequence is never stalled by a prompt.
    let (decoding, mut prompts): (Vec<usize>, Vec<usize>) =
        (0..waiting.len()).filter(|&i| waiting[i].tokens > 0).partition(|&i| waiting[i].tokens == 1);
    let oldest = prompts.first().copied();
    if let Some((_, others)) = prompts.split_first_mut() {
        others.sort_by_key(|&i| waiting[i].tokens);
    }
    for i in decoding.into_iter().chain(prompts) {
        let Waiting { tokens, unscored, most, whole, .. } = waiting[i];
        taken[i] = match whole {
            true if tokens <= budget || Some(i) == oldest => tokens,
            true => 0,
            false => tokens
                .min(most.max(1))
                .min(options.prefill_chunk.max(1))
                .min(budget)
                .min(unscored.saturating_add(scored)),
        };
        budget = budget.saturating_sub(taken[i]);
        scored -= taken[i].saturating_sub(unscored);
    }
    let runs = waiting.iter().zip(taken).map(|(of, tokens)| Waiting { tokens, ..*of });
    runs.filter(|run| run.tokens > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(step_tokens: usize, prefill_chunk: usize, waiting: &[usize]) -> Vec<(usize, usize)> {
        let options = EngineOptions { step_tokens, prefill_chunk, ..EngineOptions::default() };
        let waiting: Vec<Waiting> = (waiting.iter().enumerate())
            .map(|(sequence, &tokens)| Waiting {
                sequence,
                tokens,
                unscored: usize::MAX,
                most: usize::MAX,
                whole: false,
            })
            .collect();
        plan(&options, 1, &waiting).iter().map(|run| (run.sequence, run.tokens)).collect()
    }

    #[test]
    fn scored_rows_are_bounded_and_hold_up_nobody() {
        let options = EngineOptions { step_tokens: 100, prefill_chunk: 50, ..EngineOptions::default() };
        let planned = |waiting: &[(usize, usize)]| -> Vec<(usize, usize)> {
            let waiting: Vec<Waiting> = (waiting.iter().enumerate())
                .map(|(sequence, &(tokens, unscored))| Waiting {
                    sequence,
                    tokens,
                    unscored,
                    most: usize::MAX,
                    whole: false,
                })
                .collect();
            plan(&options, 8, &waiting).iter().map(|run| (run.sequence, run.tokens)).collect()
        };
        let others = usize::MAX;
        // Of the oldest, what comes before its scored rows, and eight of these; then nobody else's.
        assert_eq!(planned(&[(40, 10), (40, 0), (1, others), (20, others)]), [(0, 18), (2, 1), (3, 20)]);
        assert_eq!(planned(&[(40, 10), (41, 30), (1, others)]), [(0, 18), (1, 30), (2, 1)]);
        // A last row that is scored does not decode, and comes first all the same.
        assert_eq!(planned(&[(60, 0), (1, 0)]), [(0, 7), (1, 1)]);
        assert_eq!(planned(&[(40, 0), (40, 3)]), [(0, 8), (1, 3)]);
    }

    #[test]
    fn whole_texts_are_not_cut() {
        let options = EngineOptions { step_tokens: 100, prefill_chunk: 50, ..EngineOptions::default() };
        let planned = |waiting: &[usize]| -> Vec<(usize, usize)> {
            let waiting: Vec<Waiting> = (waiting.iter().enumerate())
                .map(|(sequence, &tokens)| Waiting {
                    sequence,
                    tokens,
                    unscored: usize::MAX,
                    most: usize::MAX,
                    whole: true,
                })
                .collect();
            plan(&options, 8, &waiting).iter().map(|run| (run.sequence, run.tokens)).collect()
        };
        assert_eq!(planned(&[80, 60, 15, 1]), [(0, 80), (2, 15), (3, 1)]);
        // The oldest is longer than a step: of the others, what is one token comes first, and the rest waits.
        assert_eq!(planned(&[300, 60, 1]), [(0, 300), (2, 1)]);
        assert_eq!(planned(&[60, 300, 40]), [(0, 60), (2, 40)]);
    }

    #[test]
    fn decoding_sequences_come_before_prompts() {
        assert_eq!(planned(10, 8, &[100, 1, 50, 1]), [(0, 8), (1, 1), (3, 1)]);
        assert_eq!(planned(20, 8, &[100, 1, 50, 1]), [(0, 8), (1, 1), (2, 8), (3, 1)]);
        assert_eq!(planned(1, 8, &[100, 1]), [(1, 1)]);
        assert_eq!(planned(0, 0, &[3]), [(0, 1)]);
        assert!(planned(8, 8, &[0]).is_empty());
    }

    #[test]
    fn the_oldest_prompt_goes_on_and_of_the_others_the_shortest_come_first() {
        assert_eq!(planned(1024, 512, &[8000, 8000, 100]), [(0, 512), (1, 412), (2, 100)]);
        assert_eq!(planned(1024, 512, &[8000, 900, 600, 300]), [(0, 512), (2, 212), (3, 300)]);
        // Of equal ones the older.
        assert_eq!(planned(1024, 512, &[700, 700, 700]), [(0, 512), (1, 512)]);
    }

    /// Whatever else there is: one chunk of a new prompt at most, a token of each who decodes, and no prompt waits for ever.
    #[test]
    fn a_long_prompt_adds_one_chunk_and_everybody_goes_on() {
        let (step_tokens, prefill_chunk) = (64, 16);
        let mut waiting = [8000, 1, 40, 1, 700, 16, 1];
        let mut last = 0;
        for step in 0.. {
            let runs = planned(step_tokens, prefill_chunk, &waiting);
            assert!(runs.iter().map(|run| run.1).sum::<usize>() <= step_tokens, "step {step}");
            for decoding in [1, 3, 6] {
                assert!(runs.contains(&(decoding, 1)), "step {step}");
            }
            let oldest = (0..waiting.len()).find(|&i| waiting[i] > 1);
            let Some(oldest) = oldest else { break };
            assert!(runs.contains(&(oldest, waiting[oldest].min(prefill_chunk))), "step {step}");
            for (sequence, tokens) in runs {
                assert!(tokens <= prefill_chunk);
                if waiting[sequence] > 1 {
                    // A prompt that is through decodes from here on.
                    waiting[sequence] = (waiting[sequence] - tokens).max(1);
                }
            }
            last = step;
        }
        assert_eq!(last, 8000 / prefill_chunk - 1);
    }
}
