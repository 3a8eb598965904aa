//! Guesses of a layer that the model has for it behind its last, which reads what the model made of each token.
//!
//! What the model makes of tokens comes to it with every step, and is kept until the next guess. It begins with the last of the prompt's
//! tokens, not with the first: it sees fewer keys then than it was trained with, and a prompt costs nothing more. Where the text repeats
//! what came before, that is copied instead.

use std::rc::Rc;

use super::lookup::Lookup;
use super::{Drafter, Guess, Pays, computed, copied_or, most_likely};
use crate::alloc;
use crate::backend::batch::Batch;
use crate::engine::runtime::{Runtime, StepOutputs};
use crate::error::{Error, Result};
use crate::forward::FIRST;
use crate::forward::step::SequenceState;
use crate::tensor::{HostTensor, MatrixView};

const WHAT: &str = "what the model made of the last tokens";
/// Tokens of the text that it has yet to see, at most: of more the last.
const MOST: usize = 128;
/// Tokens of the text that tell whether the first ones of the vocabulary are most of what comes, and how many of these may be others.
const LAST: usize = 64;
pub(in crate::engine) const OTHERS: usize = 12;

/// The guesses of a layer ahead for one sequence.
pub(in crate::engine) struct ByAhead {
    /// Of that layer alone.
    runtime: Rc<Runtime>,
    /// Tokens that the text may have: rows behind them are padding.
    vocab: usize,
    /// Made with the first guess. It holds the tokens behind those from `base` to `from`.
    state: Option<SequenceState>,
    base: usize,
    from: usize,
    /// What the model made of the tokens from `from` on. `[n, width]`
    rows: Vec<f32>,
    width: usize,
    lookup: Lookup,
}

impl ByAhead {
    /// Guesses of the layer that is `runtime`, among the first `vocab` tokens, and copies of `lookup`.
    pub fn new(runtime: Rc<Runtime>, vocab: usize, lookup: Lookup) -> Self {
        let width = runtime.config().hidden_size.max(1);
        Self { runtime, vocab, state: None, base: 0, from: 0, rows: Vec::new(), width, lookup }
    }

    /// Tokens whose rows are there.
    fn waiting(&self) -> usize {
        self.rows.len() / self.width
    }

    /// Forgets what it has seen, and goes on with what the model makes of the token at `position`.
    fn begin(&mut self, position: usize) {
        (self.state, self.base, self.from) = (None, position, position);
    }

    /// Computes `tokens`, each behind its row of `carried`; what comes next, with its probability, and what the layer made of each.
    fn next(
        (runtime, vocab, of_first): (&Runtime, usize, bool),
        state: &mut SequenceState,
        tokens: &[u32],
        carried: HostTensor,
    ) -> Result<(u32, f32, HostTensor)> {
        let batch = Batch::of(&[(state.history.len(), tokens)]);
        let StepOutputs { logits, hidden } =
            runtime.step_behind(&batch, carried, of_first, std::slice::from_mut(state))?;
        let (best, likely) = most_likely(logits.row(0), vocab)?;
        let hidden = hidden.ok_or_else(|| Error::Engine("a step gave no hidden states".into()))?;
        Ok((best, likely, hidden))
    }

    /// Guesses behind `tokens`.
    fn compute(&mut self, tokens: &[u32], prompt: usize, most: usize, pays: Pays<'_>) -> Result<Guess> {
        let guess = Guess::default();
        let (missing, end) = (self.waiting(), self.from + self.waiting());
        let seen = self.from - self.base;
        let room = self.runtime.config().max_context().saturating_sub(seen + missing);
        // The model has made something of all but the last token.
        if missing == 0 || end + 1 != tokens.len() || room == 0 || !pays(&guess) {
            return Ok(guess);
        }
        let runtime = &self.runtime;
        runtime.check_files()?;
        let state = self.state.get_or_insert_with(|| runtime.sequence(prompt));
        let rows = HostTensor::from_vec(&[missing, self.width], std::mem::take(&mut self.rows));
        let first = &tokens[self.from + 1..];
        self.from = end;
        let last = &tokens[tokens.len().saturating_sub(LAST)..];
        // Of a language whose tokens have high numbers the whole head guesses.
        let of_first = last.iter().filter(|&&token| token as usize >= FIRST).count() <= OTHERS;
        let by = (&**runtime, self.vocab, of_first);
        // Behind the text what the model made of it, and behind a guess what the layer made before.
        let mut carried = rows;
        let guess = computed(missing, most.min(room), pays, |guessed| {
            let token = guessed.as_ref().map(std::slice::from_ref);
            let rows = std::mem::replace(&mut carried, HostTensor::from_vec(&[0, 0], Vec::new()));
            let (token, likely, made) = Self::next(by, state, token.unwrap_or(first), rows)?;
            let last = alloc::copy_of(made.row(made.shape()[0] - 1), WHAT)?;
            carried = HostTensor::from_vec(&[1, self.width], last);
            Ok((token, likely))
        })?;
        // Of what it guessed itself it keeps nothing: the model's own rows of these tokens come.
        let seen = end - self.base;
        state.kv.truncate(seen);
        state.history.truncate(seen);
        if state.kv.len() != seen {
            return Err(Error::Engine("the layer ahead cannot go back".into()));
        }
        Ok(guess)
    }
}

impl Drafter for ByAhead {
    fn guess(&mut self, tokens: &[u32], prompt: usize, most: usize, pays: Pays<'_>) -> Result<Guess> {
        let copied = self.lookup.guess(tokens, prompt, most, pays)?;
        copied_or(copied, || self.compute(tokens, prompt, most, pays))
    }

    fn computes(&self) -> bool {
        true
    }

    fn sees(&self) -> bool {
        true
    }

    fn see(&mut self, start: usize, made: MatrixView<'_>) -> Result<()> {
        let [rows, _] = made.shape();
        if start > self.from + self.waiting() {
            self.rows.clear();
            self.begin(start);
        }
        // Of what was computed again it has the rows.
        let known = (self.from + self.waiting()).saturating_sub(start).min(rows);
        let new = known.max(rows.saturating_sub(MOST))..rows;
        if new.start > known {
            self.rows.clear();
            self.begin(start + new.start);
        }
        if self.waiting() + new.len() > MOST {
            // Some more, so that this is not done with each token.
            let surplus = (self.waiting() + new.len() - MOST / 2).min(self.waiting());
            self.rows.drain(..surplus * self.width);
            self.begin(self.from + surplus);
        }
        alloc::reserve_more(&mut self.rows, new.len() * self.width, WHAT)?;
        new.for_each(|row| self.rows.extend_from_slice(made.row(row)));
        Ok(())
    }
}
