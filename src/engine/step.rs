//! The next step as data: which rows of which slots it computes, and whose logits are wanted.

use std::ops::Range;

use super::EngineOptions;
use super::runtime::Launched;
use super::scheduler::{Waiting, plan};
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

/// The next step by the scheduler; its runs index `slots`.
pub(super) fn planned(options: &EngineOptions, slots: &[Slot], config: &Config) -> Batch {
    let apart = slots.iter().position(Slot::is_apart);
    let waiting: Vec<Waiting> = (slots.iter().enumerate())
        .map(|(sequence, slot)| {
            let takes_part = apart.is_none_or(|apart| apart == sequence);
            let tokens = if takes_part { slot.waiting() } else { 0 };
            let unscored = slot.sequence.unscored(slot.cached());
            Waiting { sequence, tokens, unscored, most: slot.before_stop(), whole: config.bidirectional }
        })
        .collect();
    let scored = (SCORED_BYTES / (size_of::<f32>() * config.vocab_size.max(1))).max(1);
    let (mut tokens, mut runs, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
    for Waiting { sequence, tokens: len, .. } in plan(options, scored, &waiting) {
        let slot = &slots[sequence];
        let start = slot.cached();
        let run = Run { sequence, row: tokens.len(), len, start };
        tokens.extend_from_slice(&slot.sequence.tokens[start..start + len]);
        outputs.extend(slot.sequence.outputs(start..run.end()).map(|position| run.row + position - start));
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
