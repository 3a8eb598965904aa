//! Steps that are started before the tokens of those before them are known.

use super::Worker;
use crate::backend::batch::{Batch, Run, Tokens};
use crate::engine::draft::Drafting;
use crate::engine::slot::Slot;
use crate::engine::step::{Ahead, InFlight, draft, with_logits};

impl Worker {
    /// Starts the step after `current` before its tokens are known: where every sequence decodes greedily, has room for
    /// another token, and the backend can choose it by itself.
    pub(super) fn start_ahead(&mut self, current: &InFlight) -> Option<Ahead> {
        let nobody_comes = self.queue.is_empty() || self.queue.waiting_for_memory() > 0;
        // Guesses that are computed are so behind tokens that are known.
        let eligible = self
            .slots
            .iter()
            .all(|slot| slot.may_run_ahead(self.options.context) && !slot.computes_guesses());
        // Each of them has one row of logits, that of its last token.
        let whole = current.batch.outputs.len() == self.slots.len();
        let ready = with_logits(&current.batch).enumerate().all(|(i, (_, rows))| rows == (i..i + 1));
        if !nobody_comes || !eligible || !whole || !ready {
            return None;
        }
        let guess = self.runtime.dispatch().greedy_tokens(current.launched.logits()?)?;
        // A step with drafts has to know its tokens. What would be guessed now most likely will be, one token further.
        draft(&self.options, &mut self.slots, self.runtime.config(), &mut self.pace);
        let drafts = self.slots.iter().any(|slot| !slot.offered().is_empty());
        self.slots.iter_mut().filter_map(Slot::draft_mut).for_each(Drafting::clear);
        if drafts {
            return None;
        }
        let runs: Vec<Run> = (current.batch.runs.iter().enumerate())
            .map(|(row, run)| Run { sequence: run.sequence, row, len: 1, start: run.end() })
            .collect();
        let batch = Batch { tokens: Tokens::Pending(guess), outputs: (0..runs.len()).collect(), runs };
        let launched = self.runtime.launch(&batch, &mut self.slots, false);
        Some(Ahead { batch, launched })
    }

    /// The step that was started ahead, now that its tokens are known; nothing where a guess was wrong or a sequence
    /// ended, and the step is then as if it had not been.
    pub(super) fn confirm(&mut self, ahead: Ahead) -> Option<InFlight> {
        let Ahead { batch: Batch { tokens, runs, outputs }, launched } = ahead;
        if runs.iter().any(|run| self.slots[run.sequence].is_ended()) {
            self.forget(&runs);
            if let Err(error) = launched {
                // Nobody needs the step, but its caches are not to be continued.
                tracing::warn!(%error, "a step that was started ahead failed");
                for run in &runs {
                    self.slots[run.sequence].restart(&self.runtime, &mut self.memory);
                }
            }
            return None;
        }
        let ids: Vec<u32> =
            runs.iter().filter_map(|run| self.slots[run.sequence].sequence.tokens.last().copied()).collect();
        let launched = match launched {
            Ok(launched) => launched,
            Err(error) => {
                let batch = Batch { tokens: Tokens::Known(ids), outputs, runs };
                let outputs = self.recover(&batch, error);
                self.take(&batch, outputs);
                return None;
            }
        };
        let Tokens::Pending(guess) = &tokens else { return None };
        let right = self.runtime.dispatch().ids(guess).is_ok_and(|guess| guess == ids);
        if !right {
            self.forget(&runs);
            return None;
        }
        Some(InFlight { batch: Batch { tokens: Tokens::Known(ids), outputs, runs }, launched })
    }

    /// Takes what `runs` wrote out of the caches.
    pub(super) fn forget(&mut self, runs: &[Run]) {
        for run in runs {
            let slot = &mut self.slots[run.sequence];
            slot.state.kv.truncate(run.start);
            // A recurrent state that moved between backends within the step goes back to its beginning alone.
            if slot.state.kv.len() != run.start {
                slot.restart(&self.runtime, &mut self.memory);
            }
        }
    }
}
