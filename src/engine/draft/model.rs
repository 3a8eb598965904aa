//! Guesses of a smaller model of the same vocabulary, which computes the text beside the one whose text it is.
//!
//! It takes its most likely token, one after the other, while that pays; what it has not seen yet of the text it computes before, a
//! part in each step where that is much. Where the text repeats what came before, that is copied instead, which costs nothing.

use std::rc::Rc;

use super::lookup::Lookup;
use super::{Drafter, Guess, Pays, computed, copied_or, most_likely};
use crate::backend::batch::Batch;
use crate::engine::runtime::Runtime;
use crate::error::{Error, Result};
use crate::forward::step::SequenceState;

/// Tokens of the text that are computed before one step.
const CHUNK: usize = 256;

/// The guesses of a smaller model for one sequence.
pub(in crate::engine) struct ByModel {
    runtime: Rc<Runtime>,
    /// Tokens that the text may have: rows behind them are padding.
    vocab: usize,
    /// Made with the first guess, and the tokens that it has seen.
    state: Option<SequenceState>,
    lookup: Lookup,
}

impl ByModel {
    /// Guesses of `runtime`, none of whose layers is recurrent, among the first `vocab` tokens, and copies of `lookup`.
    pub fn new(runtime: Rc<Runtime>, vocab: usize, lookup: Lookup) -> Self {
        Self { runtime, vocab, state: None, lookup }
    }

    /// Computes `tokens` behind those that `state` has seen; what comes next, with its probability.
    fn next(
        runtime: &Runtime,
        vocab: usize,
        state: &mut SequenceState,
        tokens: &[u32],
    ) -> Result<(u32, f32)> {
        let batch = Batch::of(&[(state.history.len(), tokens)]);
        let logits = runtime.step(&batch, std::slice::from_mut(state))?;
        most_likely(logits.row(0), vocab)
    }

    /// Guesses behind `tokens`.
    fn compute(&mut self, tokens: &[u32], prompt: usize, most: usize, pays: Pays<'_>) -> Result<Guess> {
        let runtime = &self.runtime;
        let guess = Guess::default();
        let room = runtime.config().max_context().saturating_sub(tokens.len());
        if room == 0 || !pays(&guess) {
            return Ok(guess);
        }
        runtime.check_files()?;
        let state = self.state.get_or_insert_with(|| runtime.sequence(prompt));
        let same = state.history.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let seen = same.min(tokens.len().saturating_sub(1));
        state.kv.truncate(seen);
        state.history.truncate(seen);
        if state.kv.len() != seen {
            return Err(Error::Engine("the draft model cannot go back".into()));
        }
        let missing = &tokens[seen..];
        if missing.len() > CHUNK {
            let mut batch = Batch::of(&[(seen, &missing[..CHUNK])]);
            batch.outputs.clear();
            runtime.step(&batch, std::slice::from_mut(state))?;
            return Ok(guess);
        }
        computed(missing.len(), most.min(room), pays, |guessed| match guessed {
            None => Self::next(runtime, self.vocab, state, missing),
            Some(token) => Self::next(runtime, self.vocab, state, &[token]),
        })
    }
}

impl Drafter for ByModel {
    fn guess(&mut self, tokens: &[u32], prompt: usize, most: usize, pays: Pays<'_>) -> Result<Guess> {
        let copied = self.lookup.guess(tokens, prompt, most, pays)?;
        copied_or(copied, || self.compute(tokens, prompt, most, pays))
    }

    fn computes(&self) -> bool {
        true
    }
}
