//! Which tokens the next step takes, within its budget: every decoding sequence its one, then a chunk of the oldest prompt, then
//! chunks of the others, the shortest first.
//!
//! So no prompt stalls those who decode by more than a chunk, the oldest one goes on in every step, and a short one does not
//! wait for long ones that came before it. That is so for one owner by itself.
//!
//! Where sequences of several owners wait, a step takes at most as many times what the owner with the least to do would take
//! alone as there are owners. While another is expected back, or owners are left out since there are more than places, steps are
//! short: the others' next turn is not far. Who wants more than its part has its sequences take turns.

use super::EngineOptions;
use super::shares::{Cost, parts};

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
    /// A number for whose sequence it is.
    pub owner: usize,
    /// The last step that took any of it.
    pub turn: u64,
}

/// What a step still has room for.
#[derive(Debug, Clone, Copy)]
struct Room {
    tokens: usize,
    scored: usize,
}

impl Room {
    /// How many of the tokens that wait a step takes; `oldest` is the oldest sequence that does not decode.
    fn take(&mut self, options: &EngineOptions, waiting: &Waiting, oldest: bool) -> usize {
        let &Waiting { tokens, unscored, most, whole, .. } = waiting;
        let taken = match whole {
            true if tokens <= self.tokens || oldest => tokens,
            true => 0,
            false => tokens
                .min(most.max(1))
                .min(options.prefill_chunk.max(1))
                .min(self.tokens)
                .min(unscored.saturating_add(self.scored)),
        };
        self.tokens = self.tokens.saturating_sub(taken);
        self.scored -= taken.saturating_sub(unscored);
        taken
    }

    /// Takes of those in `indices`, the oldest first, as if there were no others.
    fn fill(&mut self, options: &EngineOptions, waiting: &[Waiting], indices: &[usize], taken: &mut [usize]) {
        // A decoding sequence is never stalled by a prompt.
        let (decoding, mut prompts): (Vec<usize>, Vec<usize>) =
            indices.iter().partition(|&&i| waiting[i].tokens == 1);
        let oldest = prompts.first().copied();
        if let Some((_, others)) = prompts.split_first_mut() {
            others.sort_by_key(|&i| waiting[i].tokens);
        }
        for i in decoding.into_iter().chain(prompts) {
            taken[i] = self.take(options, &waiting[i], Some(i) == oldest);
        }
    }

    /// Takes of those in `indices` in turns, those that decode first, but for a row that is a prompt's.
    fn fill_short(
        &mut self,
        options: &EngineOptions,
        waiting: &[Waiting],
        indices: &[usize],
        taken: &mut [usize],
    ) {
        let places = options.max_sequences.max(1);
        let (decoding, prompts): (Vec<usize>, Vec<usize>) =
            indices.iter().partition(|&&i| waiting[i].tokens == 1);
        if self.tokens < 2 || decoding.is_empty() || prompts.is_empty() {
            return self.take_turns(options, waiting, indices, places, taken);
        }
        self.tokens -= 1;
        self.take_turns(options, waiting, &decoding, places, taken);
        self.tokens += 1;
        self.take_turns(options, waiting, &prompts, places, taken);
    }

    /// Takes of at most so many `places` of those in `indices`, whose last turn is longest ago first.
    fn take_turns(
        &mut self,
        options: &EngineOptions,
        waiting: &[Waiting],
        indices: &[usize],
        mut places: usize,
        taken: &mut [usize],
    ) {
        let mut turns = indices.to_vec();
        turns.sort_by_cached_key(|&i| turn(waiting, i));
        for i in turns {
            if places == 0 || self.tokens == 0 {
                break;
            }
            taken[i] = self.take(options, &waiting[i], false);
            places -= usize::from(taken[i] > 0);
        }
    }
}

/// How many tokens each sequence contributes to the next step, in the order of `waiting`, the oldest first; those with none
/// are left out. At most `scored` rows, at least one, have logits that count as scored. The oldest sequence that is to be whole is,
/// however long. `cost` says what steps take, and `expected` whether another than the only owner is expected back.
pub(crate) fn plan(
    options: &EngineOptions,
    scored: usize,
    waiting: &[Waiting],
    cost: &Cost,
    expected: bool,
) -> Vec<Waiting> {
    let mut room = Room { tokens: options.step_tokens.max(1), scored: scored.max(1) };
    let mut taken = vec![0; waiting.len()];
    let ready: Vec<usize> = (0..waiting.len()).filter(|&i| waiting[i].tokens > 0).collect();
    let mut owners: Vec<usize> = ready.iter().map(|&i| waiting[i].owner).collect();
    owners.sort_unstable();
    owners.dedup();
    let whole = ready.iter().any(|&i| waiting[i].whole);
    if owners.len() < 2 || whole {
        let before = room;
        room.fill(options, waiting, &ready, &mut taken);
        let short = if expected { cost.short(before.tokens).max(1) } else { before.tokens };
        if taken.iter().sum::<usize>() > short && !whole {
            taken.fill(0);
            Room { tokens: short, ..before }.fill_short(options, waiting, &ready, &mut taken);
        }
    } else {
        let mut owners: Vec<Vec<usize>> = owners
            .iter()
            .map(|&owner| ready.iter().copied().filter(|&i| waiting[i].owner == owner).collect())
            .collect();
        // Whose last turn is longest ago comes first.
        owners.sort_by_cached_key(|of| of.iter().map(|&i| turn(waiting, i)).max());
        let places = options.max_sequences.max(1);
        if owners.len() > places {
            room.tokens = cost.short(room.tokens).max(1);
            owners.truncate(places);
        }
        share(options, waiting, &owners, cost, &mut room, &mut taken);
    }
    let runs = waiting.iter().zip(taken).map(|(of, tokens)| Waiting { tokens, ..*of });
    runs.filter(|run| run.tokens > 0).collect()
}

/// When a sequence had its last turn. Of equal ones another comes first in each step.
fn turn(waiting: &[Waiting], i: usize) -> (u64, u64) {
    let last = waiting.iter().map(|of| of.turn).max().unwrap_or_default();
    (waiting[i].turn, (i as u64).wrapping_add(last) % waiting.len() as u64)
}

/// Takes of each of several owners what is its part; `owners` are their sequences, the oldest first.
fn share(
    options: &EngineOptions,
    waiting: &[Waiting],
    owners: &[Vec<usize>],
    cost: &Cost,
    room: &mut Room,
    taken: &mut [usize],
) {
    let alone: Vec<Vec<usize>> = owners
        .iter()
        .map(|indices| {
            let mut alone = vec![0; waiting.len()];
            room.clone().fill(options, waiting, indices, &mut alone);
            alone
        })
        .collect();
    let rows: Vec<usize> = alone.iter().map(|taken| taken.iter().sum()).collect();
    let places: Vec<usize> =
        alone.iter().map(|taken| taken.iter().filter(|&&taken| taken > 0).count()).collect();
    let least = rows.iter().filter_map(|&rows| cost.time(rows)).min_by(f64::total_cmp);
    let most = least.map_or(room.tokens, |least| cost.rows_within(least * owners.len() as f64, room.tokens));
    // Whichever of its sequences have their turn.
    let scored_of = |&i: &usize| {
        let of = &waiting[i];
        of.tokens.min(of.most).min(options.prefill_chunk).saturating_sub(of.unscored)
    };
    let scored: Vec<usize> = owners.iter().map(|indices| indices.iter().map(scored_of).sum()).collect();
    let row_parts = parts(most, &rows);
    let scored_parts = parts(room.scored, &scored);
    let place_parts = parts(options.max_sequences.max(1), &places);
    for (part, indices) in owners.iter().enumerate() {
        let mut own =
            Room { tokens: row_parts[part].min(room.tokens), scored: scored_parts[part].min(room.scored) };
        let before = own;
        if rows[part] <= own.tokens && places[part] <= place_parts[part] {
            own.fill(options, waiting, indices, taken);
        } else {
            own.take_turns(options, waiting, indices, place_parts[part], taken);
        }
        room.tokens -= before.tokens - own.tokens;
        room.scored -= before.scored - own.scored;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What a sequence is that says nothing else.
    const IDLE: Waiting = Waiting {
        sequence: 0,
        tokens: 0,
        unscored: usize::MAX,
        most: usize::MAX,
        whole: false,
        owner: 0,
        turn: 0,
    };

    fn planned(step_tokens: usize, prefill_chunk: usize, waiting: &[usize]) -> Vec<(usize, usize)> {
        let options = EngineOptions { step_tokens, prefill_chunk, ..EngineOptions::default() };
        let waiting: Vec<Waiting> = (waiting.iter().enumerate())
            .map(|(sequence, &tokens)| Waiting { sequence, tokens, ..IDLE })
            .collect();
        plan(&options, 1, &waiting, &Cost::default(), false)
            .iter()
            .map(|run| (run.sequence, run.tokens))
            .collect()
    }

    /// Steps of a row take 10.9 ms, and each more of them 1 ms.
    fn cost() -> Cost {
        let mut cost = Cost::default();
        for rows in [1, 2, 4, 8, 16, 32, 64, 101] {
            cost.observe(rows, Duration::from_micros(9900 + 1000 * rows as u64), true);
        }
        cost
    }

    /// Sequences of owners, with the tokens that wait and the last step that took any.
    fn shared(max_sequences: usize, waiting: &[(usize, usize, u64)]) -> Vec<(usize, usize)> {
        let options =
            EngineOptions { step_tokens: 64, prefill_chunk: 32, max_sequences, ..EngineOptions::default() };
        let waiting: Vec<Waiting> = (waiting.iter().enumerate())
            .map(|(sequence, &(owner, tokens, turn))| Waiting { sequence, tokens, owner, turn, ..IDLE })
            .collect();
        plan(&options, 64, &waiting, &cost(), false).iter().map(|run| (run.sequence, run.tokens)).collect()
    }

    #[test]
    fn a_step_is_as_many_times_as_long_as_there_are_owners() {
        // One row takes 10.9 ms, so 21.8 ms are for two owners: eleven rows, of which the one who decodes has its own.
        assert_eq!(shared(16, &[(0, 1, 1), (1, 500, 1)]), [(0, 1), (1, 10)]);
        assert_eq!(shared(16, &[(1, 500, 1), (0, 1, 1)]), [(0, 10), (1, 1)]);
        // Of three owners, 32.7 ms are for 22 rows.
        assert_eq!(shared(16, &[(0, 1, 1), (1, 500, 1), (2, 500, 1)]), [(0, 1), (1, 11), (2, 10)]);
        // Those who want the same have it; a chunk takes 41.9 ms, two of them 73.9.
        assert_eq!(shared(16, &[(0, 500, 1), (1, 500, 1)]), [(0, 32), (1, 32)]);
        // Of one owner all goes on as before.
        assert_eq!(shared(16, &[(1, 1, 1), (1, 500, 1), (1, 40, 1)]), [(0, 1), (1, 32), (2, 31)]);
    }

    #[test]
    fn one_owner_has_short_steps_while_another_is_expected_back() {
        let planned = |step_tokens: usize, waiting: &[(usize, u64)]| -> Vec<(usize, usize)> {
            let options = EngineOptions {
                step_tokens,
                prefill_chunk: 512,
                max_sequences: 200,
                ..EngineOptions::default()
            };
            let waiting: Vec<Waiting> = (waiting.iter().enumerate())
                .map(|(sequence, &(tokens, turn))| Waiting { sequence, tokens, turn, ..IDLE })
                .collect();
            plan(&options, 64, &waiting, &cost(), true).iter().map(|run| (run.sequence, run.tokens)).collect()
        };
        // By what is known, 100 rows take a tenth of a second.
        assert_eq!(planned(1024, &[(8000, 1)]), [(0, 100)]);
        assert_eq!(planned(64, &[(8000, 1)]), [(0, 64)]);
        assert_eq!(planned(1024, &[(60, 1), (1, 1), (39, 1)]), [(0, 60), (1, 1), (2, 39)]);
        // What is too much for it comes in turns.
        assert_eq!(planned(1024, &[(8000, 2), (1, 1), (30, 1)]), [(0, 69), (1, 1), (2, 30)]);
        assert_eq!(planned(1024, &[(8000, 1), (1, 1), (30, 2)]), [(0, 99), (1, 1)]);
        // Nobody who decodes waits for prompts, and none of these for ever.
        assert_eq!(planned(1024, &[(8000, 1), (1, 2), (500, 2), (1, 2)]), [(0, 98), (1, 1), (3, 1)]);
        assert_eq!(planned(1024, &[&[(8000, 1)][..], &[(1, 9); 120]].concat()).len(), 100);
        assert_eq!(planned(1024, &[&[(8000, 1)][..], &[(1, 9); 120]].concat())[0], (0, 1));
        let (mut turns, mut counts) = ([0; 120], [0; 120]);
        for step in 1..=120 {
            let taken = planned(1024, &turns.map(|turn| (1, turn)));
            assert_eq!(taken.len(), 100);
            for (sequence, _) in taken {
                (turns[sequence], counts[sequence]) = (step, counts[sequence] + 1);
            }
        }
        assert!(counts.iter().all(|count| (95..=105).contains(count)), "{counts:?}");
    }

    #[test]
    fn who_wants_more_than_its_part_takes_turns() {
        let many: Vec<_> = (0..12).map(|i| (1, 1, if i < 10 { 7 } else { 6 })).collect();
        let all = [&[(0, 1, 7)], &many[..]].concat();
        // Those that were left out come first; of equal ones another is left out each time.
        let taken = shared(16, &all);
        assert_eq!(taken.len(), 11, "{taken:?}");
        assert!([0, 11, 12].iter().all(|&i| taken.contains(&(i, 1))), "{taken:?}");
        // No more sequences in a step than may be.
        assert_eq!(shared(3, &all), [(0, 1), (11, 1), (12, 1)]);
        // An owner of many is not before one of few because one of its own waits.
        assert_eq!(shared(1, &[(0, 1, 5), (1, 1, 1), (1, 1, 9)]), [(0, 1)]);
        // Nor more owners: the one that waits longest comes first.
        assert_eq!(shared(1, &[(0, 1, 9), (1, 1, 8)]), [(1, 1)]);
        assert_eq!(shared(1, &[(0, 1, 9), (1, 1, 10)]), [(0, 1)]);
    }

    /// Who is left out waits for no longer step than who is expected back.
    #[test]
    fn more_owners_than_places_have_short_steps() {
        let options = EngineOptions { max_sequences: 1, ..EngineOptions::default() };
        let long = Waiting { tokens: 8000, turn: 1, ..IDLE };
        let decoding = Waiting { sequence: 1, tokens: 1, owner: 1, turn: 2, ..IDLE };
        let taken = plan(&options, 64, &[long, decoding], &cost(), false);
        assert_eq!(taken, [Waiting { tokens: 100, ..long }]);
    }

    #[test]
    fn more_owners_than_places_have_as_many_turns() {
        let (mut turns, mut counts) = ([0; 3], [0; 3]);
        for step in 1..=300 {
            let waiting: Vec<_> = (0..3).map(|owner| (owner, 1, turns[owner])).collect();
            for (owner, _) in shared(2, &waiting) {
                (turns[owner], counts[owner]) = (step, counts[owner] + 1);
            }
        }
        assert_eq!(counts.iter().sum::<usize>(), 600);
        assert!(counts.iter().all(|count| (180..=220).contains(count)), "{counts:?}");
    }

    #[test]
    fn scored_rows_are_bounded_and_hold_up_nobody() {
        let options = EngineOptions { step_tokens: 100, prefill_chunk: 50, ..EngineOptions::default() };
        let planned = |waiting: &[(usize, usize)]| -> Vec<(usize, usize)> {
            let waiting: Vec<Waiting> = (waiting.iter().enumerate())
                .map(|(sequence, &(tokens, unscored))| Waiting { sequence, tokens, unscored, ..IDLE })
                .collect();
            plan(&options, 8, &waiting, &Cost::default(), false)
                .iter()
                .map(|run| (run.sequence, run.tokens))
                .collect()
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
    fn of_several_owners_none_has_all_scored_rows() {
        let options = EngineOptions { step_tokens: 64, prefill_chunk: 32, ..EngineOptions::default() };
        let planned = |scored: usize, waiting: &[(usize, usize)]| -> Vec<(usize, usize)> {
            let waiting: Vec<Waiting> = (waiting.iter().enumerate())
                .map(|(owner, &(tokens, unscored))| Waiting {
                    sequence: owner,
                    tokens,
                    unscored,
                    owner,
                    ..IDLE
                })
                .collect();
            plan(&options, scored, &waiting, &cost(), false)
                .iter()
                .map(|run| (run.sequence, run.tokens))
                .collect()
        };
        assert_eq!(planned(8, &[(300, 0), (200, 0)]), [(0, 4), (1, 4)]);
        // What one does not want is the other's.
        assert_eq!(planned(8, &[(300, 0), (200, 31)]), [(0, 7), (1, 17)]);
        assert_eq!(planned(8, &[(300, 0), (200, usize::MAX)]), [(0, 8), (1, 17)]);
    }

    #[test]
    fn whole_texts_are_not_cut() {
        let options = EngineOptions { step_tokens: 100, prefill_chunk: 50, ..EngineOptions::default() };
        let planned = |waiting: &[usize]| -> Vec<(usize, usize)> {
            let waiting: Vec<Waiting> = (waiting.iter().enumerate())
                .map(|(sequence, &tokens)| Waiting { sequence, tokens, whole: true, ..IDLE })
                .collect();
            plan(&options, 8, &waiting, &Cost::default(), false)
                .iter()
                .map(|run| (run.sequence, run.tokens))
                .collect()
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
