//! Guesses of a smaller model of the same vocabulary, which computes the text beside the one whose text it is.
//!
//! It takes its most likely token, one after the other, while that pays; what it has not seen yet of the text it computes before, a
//! part in each step where that is much. Where the text repeats what came before, that is copied instead, which costs nothing.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::lookup::Lookup;
use super::{Drafter, Guess, Pays, Sign, most_likely};
use crate::alloc;
use crate::backend::batch::Batch;
use crate::engine::runtime::Runtime;
use crate::error::{Error, Result};
use crate::forward::step::SequenceState;

/// Tokens of the text that are computed before one step.
const CHUNK: usize = 256;
/// Of these, those that the first guess of a step has to see at most for its time to tell what guesses take.
const FEW: usize = 8;

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
    /// Guesses of `runtime`, none of whose layers is recurrent, among the first `vocab` tokens.
    pub fn new(runtime: Rc<Runtime>, vocab: usize) -> Self {
        Self { runtime, vocab, state: None, lookup: Lookup::default() }
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
        let mut guess = Guess::default();
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
        let most = most.min(room);
        alloc::reserve(&mut guess.tokens, most, "guesses")?;
        alloc::reserve(&mut guess.signs, most, "guesses")?;
        let (mut began, mut guesses) = (Instant::now(), 0_u32);
        let (mut token, mut likely) = Self::next(runtime, self.vocab, state, missing)?;
        // What it had missed of the text is no part of what guesses take.
        if missing.len() > FEW {
            began = Instant::now();
        } else {
            guesses += 1;
        }
        loop {
            guess.tokens.push(token);
            guess.signs.push(Sign::Likely(likely));
            if guess.tokens.len() >= most || !pays(&guess) {
                let cost = began.elapsed().checked_div(guesses);
                guess.cost = cost.as_ref().map(Duration::as_secs_f64);
                return Ok(guess);
            }
            (token, likely) = Self::next(runtime, self.vocab, state, &[token])?;
            guesses += 1;
        }
    }
}

impl Drafter for ByModel {
    fn guess(&mut self, tokens: &[u32], prompt: usize, most: usize, pays: Pays<'_>) -> Result<Guess> {
        let copied = self.lookup.guess(tokens, prompt, most, pays)?;
        if copied.is_sure() {
            return Ok(copied);
        }
        let computed = self.compute(tokens, prompt, most, pays)?;
        Ok(if computed.tokens.is_empty() { copied } else { computed })
    }

    fn computes(&self) -> bool {
        true
    }
}
