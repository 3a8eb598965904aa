//! The next step as data: which rows of which slots it computes, and whose logits are wanted.

use std::ops::Range;
use std::time::Instant;

use super::EngineOptions;
use super::draft::Pace;
use super::runtime::Launched;
use super::scheduler::{Waiting, plan};
use super::shares::{Cost, Lately};
use super::slot::Slot;
use crate::backend::batch::{Batch, Run, Tokens};
use crate::config::Config;
use crate::error::Result;

/// Bytes of the logits of rows that are scored in one step, at most: all of a chunk of 512 where the vocabulary has 32,768
/// tokens.
const SCORED_BYTES: usize = 64 << 20;

/// A step whose evaluation has begun.
pub(super) struct InFlight {
    pub batch: Batch,
    pub launched: Launched,
}

/// A decode step that was started before its tokens were known, on the guess that each is the greedy choice.
pub(super) struct Ahead {
    pub batch: Batch,
    /// An error is the step's own once its tokens are known.
    pub launched: Result<Launched>,
}

/// Rows of a step whose logits are taken, where more than one of a sequence are: at least one.
fn most_outputs(config: &Config) -> usize {
    (SCORED_BYTES / (size_of::<f32>() * config.vocab_size.max(1))).max(1)
}

/// Of each slot, the first one with the same owner.
fn owners(slots: &[Slot]) -> Vec<usize> {
    let first = |slot: &Slot| slots.iter().position(|other| other.owner() == slot.owner());
    slots.iter().enumerate().map(|(i, slot)| first(slot).unwrap_or(i)).collect()
}

/// Has the next step take guesses of the sequences that decode, as far as they pay. Beside a prompt of the same owner it takes none:
/// there is little to gain beside what such a step takes. Beside another's it does, as if they were alone: of such a step each owner has its
/// part.
pub(super) fn draft(options: &EngineOptions, slots: &mut [Slot], config: &Config, pace: &mut Pace) {
    let at_work = || slots.iter().filter(|slot| slot.waiting() > 0);
    let mut outputs = most_outputs(config).saturating_sub(at_work().count());
    let alike = at_work().all(Slot::is_decoding) || at_work().any(Slot::is_apart);
    if alike || at_work().all(|slot| slot.owner() == slots[0].owner()) {
        return draft_of(options, slots.iter_mut().collect(), &mut outputs, pace);
    }
    let owners = owners(slots);
    for owner in 0..slots.len() {
        let own = slots.iter_mut().zip(&owners).filter(|(_, of)| **of == owner);
        let own: Vec<&mut Slot> = own.map(|(slot, _)| slot).collect();
        if !own.is_empty() {
            draft_of(options, own, &mut outputs, pace);
        }
    }
}

/// The same of some slots, whose guesses have at most so many `outputs`.
fn draft_of(options: &EngineOptions, slots: Vec<&mut Slot>, outputs: &mut usize, pace: &mut Pace) {
    let waiting = || slots.iter().filter(|slot| slot.waiting() > 0);
    let (rows, tokens) = waiting().fold((0, 0), |(rows, tokens), slot| (rows + slot.waiting(), tokens + 1));
    let free = options.step_tokens.saturating_sub(rows).min(*outputs);
    let mut left = if waiting().all(|slot| slot.is_decoding()) { free } else { 0 };
    let (mut drafts, mut candidates) = (Vec::new(), Vec::new());
    let price = pace.price(rows, tokens);
    for slot in slots {
        let most = match slot.waiting() {
            0 => 0,
            waiting => options.prefill_chunk.saturating_sub(waiting).min(left),
        };
        // What is computed is not to be computed for rows that others take.
        let most = if slot.computes_guesses() { most.min(left.div_ceil(tokens.max(1))) } else { most };
        if let Some(draft) = slot.guess(most, options.context, price, pace) {
            candidates.push(draft.candidate(pace));
            drafts.push(draft);
        }
    }
    let depths = pace.depths(rows, tokens, &candidates, left);
    #[cfg(any(test, feature = "fuzzing"))]
    let depths = match options.drafter {
        Some(_) => vec![usize::MAX; candidates.len()],
        None => depths,
    };
    for (draft, depth) in drafts.into_iter().zip(depths) {
        let settled = draft.settle(depth.min(left), || left > depth && pace.explore(rows));
        left = left.saturating_sub(settled);
        *outputs = outputs.saturating_sub(settled);
    }
}

/// The next step by the scheduler; its runs index `slots`.
pub(super) fn planned(
    options: &EngineOptions,
    slots: &[Slot],
    config: &Config,
    cost: &Cost,
    lately: &mut Lately,
) -> Batch {
    let now = Instant::now();
    let at_work = || slots.iter().filter(|slot| slot.waiting() > 0);
    at_work().for_each(|slot| lately.see(slot.owner(), now));
    let expected = at_work().next().is_some_and(|slot| lately.expects_another(slot.owner(), now));
    let apart = slots.iter().position(Slot::is_apart);
    let owners = owners(slots);
    let waiting: Vec<Waiting> = (slots.iter().enumerate())
        .map(|(sequence, slot)| {
            let takes_part = apart.is_none_or(|apart| apart == sequence);
            let tokens = if takes_part { slot.waiting() + slot.offered().len() } else { 0 };
            let unscored = slot.sequence.unscored(slot.cached());
            let (most, owner) = (slot.before_stop(), owners[sequence]);
            let whole = config.bidirectional;
            Waiting { sequence, tokens, unscored, most, whole, owner, turn: slot.turn }
        })
        .collect();
    let scored = most_outputs(config);
    let (mut tokens, mut runs, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
    for Waiting { sequence, tokens: len, .. } in plan(options, scored, &waiting, cost, expected) {
        let slot = &slots[sequence];
        let start = slot.cached();
        let run = Run { sequence, row: tokens.len(), len, start };
        // What is guessed comes behind all that is known, and the logits of each row of it are wanted.
        let known = len.min(slot.waiting());
        tokens.extend_from_slice(&slot.sequence.tokens[start..start + known]);
        tokens.extend_from_slice(&slot.offered()[..len - known]);
        let wanted = slot.sequence.outputs(start..start + known).chain(start + known..run.end());
        outputs.extend(wanted.map(|position| run.row + position - start));
        runs.push(run);
    }
    Batch { tokens: Tokens::Known(tokens), runs, outputs }
}

/// The runs of a step, each with the rows that its outputs have among the logits.
pub(super) fn with_logits(batch: &Batch) -> impl Iterator<Item = (&Run, Range<usize>)> {
    let mut next = 0;
    batch.runs.iter().map(move |run| {
        let first = next;
        next += batch.outputs[first..].iter().take_while(|row| run.rows().contains(row)).count();
        (run, first..next)
    })
}
