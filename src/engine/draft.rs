//! Drafts: tokens that are guessed before they are computed.
//!
//! A step that computes one token of a sequence reads all weights for it. Guesses of what follows are further rows of the same run,
//! which cost little beside that. The sampler then chooses from each row in turn as it always does: where it chooses what was
//! guessed, the next row is right, too; the first other choice ends it, and the caches go back to where that was. So a draft changes
//! how many steps a text takes, and none of its tokens. On the CPU, where a row's bits do not depend on the rows beside it, that
//! is exact.
//!
//! How many guesses a step takes is decided by [`Pace`]: what rows cost, which is measured, against how often such guesses were right.

mod ahead;
mod earlier;
mod follow;
mod lookup;
mod model;
mod pace;

use std::time::{Duration, Instant};

use crate::alloc;
use crate::error::{Error, Result};
use crate::tensor::MatrixView;
pub(super) use ahead::ByAhead;
#[cfg(test)]
pub(super) use ahead::OTHERS;
pub(super) use earlier::Earlier;
pub(crate) use lookup::Lookup;
pub(super) use model::ByModel;
pub(super) use pace::{Candidate, Odds, Pace, Price};

/// Most tokens of a draft.
pub(super) const MOST: usize = 16;

/// Guesses that are computed before it is known how long one takes.
const FIRST: usize = 4;

/// Drafts that are declined before one is tried all the same, at least and at most.
const PATIENCE: [u32; 2] = [16, 1024];

/// Whether tokens are guessed, from what the text so far repeats or by a layer that the model has for it, and checked several at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Drafts {
    /// On the CPU, where no bit of a text depends on it.
    #[default]
    Auto,
    /// On every backend. MLX computes several rows in another order than one: near ties may go another way than without.
    On,
    /// Never.
    Off,
}

impl Drafts {
    /// What they are called.
    pub const NAMES: [&str; 3] = ["auto", "on", "off"];
}

impl std::str::FromStr for Drafts {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(format!("expected one of {}", Self::NAMES.join(", "))),
        }
    }
}

/// Guesses what comes next of one sequence.
pub(crate) trait Drafter {
    /// What may follow `tokens`, all of the sequence so far, of which `prompt` were given; `most` tokens at most. One that has to
    /// compute its guesses goes on with the next one while `pays` says so of those that it has.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), and what a computation may fail with; the sequence then goes on without
    /// drafts.
    fn guess(&mut self, tokens: &[u32], prompt: usize, most: usize, pays: Pays<'_>) -> Result<Guess>;

    /// Whether guesses are computed, which takes time.
    fn computes(&self) -> bool {
        false
    }

    /// Whether it is to be shown what the model makes of the text.
    fn sees(&self) -> bool {
        false
    }

    /// Is shown what the model made, behind its last norm, of the tokens of the text from `start` on: `[n, width]`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn see(&mut self, _start: usize, _made: MatrixView<'_>) -> Result<()> {
        Ok(())
    }
}

/// Of what a drafter has to see before its first guess, tokens at most for its time to tell what guesses take.
const FEW: usize = 8;

/// Guesses that `next` computes one after the other, at most `most` and at least one, while that `pays`. The first is behind `missing` tokens
/// of the text, and the others are each behind the one before, which `next` is given.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory); those of `next`.
fn computed(
    missing: usize,
    most: usize,
    pays: Pays<'_>,
    mut next: impl FnMut(Option<u32>) -> Result<(u32, f32)>,
) -> Result<Guess> {
    let mut guess = Guess::default();
    alloc::reserve(&mut guess.tokens, most, "guesses")?;
    alloc::reserve(&mut guess.signs, most, "guesses")?;
    let (mut began, mut guesses) = (Instant::now(), 1_u32);
    let (mut token, mut likely) = next(None)?;
    // What it had missed of the text is no part of what guesses take.
    if missing > FEW {
        (began, guesses) = (Instant::now(), 0);
    }
    loop {
        guess.tokens.push(token);
        guess.signs.push(Sign::Likely(likely));
        if guess.tokens.len() >= most || !pays(&guess) {
            let cost = began.elapsed().checked_div(guesses);
            guess.cost = cost.as_ref().map(Duration::as_secs_f64);
            return Ok(guess);
        }
        (token, likely) = next(Some(token))?;
        guesses += 1;
    }
}

/// What is copied where that is sure, else what is computed, if anything is.
fn copied_or(copied: Guess, compute: impl FnOnce() -> Result<Guess>) -> Result<Guess> {
    if copied.is_sure() {
        return Ok(copied);
    }
    let computed = compute()?;
    Ok(if computed.tokens.is_empty() { copied } else { computed })
}

/// The most likely token of a row of logits, among the first `vocab`, and its probability.
fn most_likely(row: &[f32], vocab: usize) -> Result<(u32, f32)> {
    let row = &row[..vocab.min(row.len())];
    let best = (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
    let sum: f32 = row.iter().map(|&logit| (logit - row[best]).exp()).sum();
    if !sum.is_finite() {
        return Err(Error::Engine("logits of guesses are no numbers".into()));
    }
    Ok((best as u32, 1.0 / sum))
}

/// Whether one more guess behind these is worth computing.
pub(crate) type Pays<'a> = &'a mut dyn FnMut(&Guess) -> bool;

/// What a guess is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Sign {
    /// So many of the tokens before it are those that came before, where it is copied from; 0 where it stands beside another.
    Match(usize),
    /// The prompt's next tokens became it before, and so many before it in a row came as they did.
    Followed(usize),
    /// A smaller model gives it this probability.
    Likely(f32),
}

/// What may come next.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Guess {
    /// None where nothing tells.
    pub tokens: Vec<u32>,
    /// What each is made of.
    pub signs: Vec<Sign>,
    /// Seconds that computing one of them took, where they were computed and that is known.
    pub cost: Option<f64>,
}

impl Guess {
    /// Whether it is copied, and so sure that nothing better is computed.
    fn is_sure(&self) -> bool {
        match self.signs.first() {
            Some(Sign::Match(len)) => *len >= lookup::SURE,
            Some(Sign::Followed(streak)) => *streak >= 2,
            Some(Sign::Likely(_)) | None => false,
        }
    }
}

/// The drafts of one sequence.
pub(super) struct Drafting {
    drafter: Box<dyn Drafter>,
    odds: Odds,
    /// What the step that is planned, or that runs, takes of it.
    offered: Guess,
    /// Of those that are copied, and of those that are computed.
    copied: Tries,
    computed: Tries,
    /// Whether what the step takes was computed though it does not seem to pay.
    explores: bool,
    /// Tokens whose masks were there in time.
    in_time: usize,
    /// Steps to go without guesses, since the mask of the first token was late, and how many if the next is.
    pause: u32,
    next_pause: u32,
}

/// When guesses of a kind that do not seem to pay are tried all the same.
#[derive(Debug, Clone, Copy)]
struct Tries {
    /// Those that were not worth it since one was tried.
    declined: u32,
    patience: u32,
}

impl Tries {
    const NEW: Self = Self { declined: 0, patience: PATIENCE[0] };

    /// One more was not worth it; whether one is due.
    fn decline(&mut self) -> bool {
        self.declined = self.declined.saturating_add(1);
        self.declined >= self.patience
    }

    /// One was tried, and some were `right`.
    fn judge(&mut self, right: bool) {
        let [least, most] = PATIENCE;
        self.declined = 0;
        self.patience = if right { least } else { (self.patience * 2).min(most) };
    }
}

impl Drafting {
    pub fn new(drafter: Box<dyn Drafter>) -> Self {
        let (odds, offered) = (Odds::default(), Guess::default());
        Self {
            drafter,
            odds,
            offered,
            copied: Tries::NEW,
            computed: Tries::NEW,
            explores: false,
            in_time: MOST,
            pause: 0,
            next_pause: 1,
        }
    }

    /// Guesses at most `most` tokens behind `tokens`, of which `prompt` were given, in a step of such a `price`; how many it did.
    ///
    /// # Errors
    /// Those of the drafter.
    pub fn guess(
        &mut self,
        tokens: &[u32],
        prompt: usize,
        most: usize,
        price: Price,
        pace: &mut Pace,
    ) -> Result<usize> {
        let pauses = self.pause > 0;
        self.pause = self.pause.saturating_sub(1);
        let most = most.min(self.in_time);
        self.offered = Guess::default();
        if pauses || most == 0 {
            return Ok(0);
        }
        let (own, others, cost) = (self.odds, pace.odds, pace.cost());
        // One that would not pay is computed now and then, to see whether that is still so.
        let declined = self.drafter.computes() && !pays(&own, &others, cost, &Guess::default(), price);
        self.explores = declined && self.computed.decline() && pace.may_explore();
        let explores = self.explores;
        let mut pays = |guess: &Guess| match explores {
            true => guess.tokens.is_empty(),
            false => pays(&own, &others, cost, guess, price),
        };
        let began = Instant::now();
        self.offered = self.drafter.guess(tokens, prompt, most, &mut pays)?;
        if let Some(cost) = self.offered.cost {
            pace.guessed(cost);
        }
        if explores {
            pace.explored(began.elapsed());
        }
        self.offered.tokens.truncate(most);
        Ok(self.offered.tokens.len())
    }

    /// How likely the first token of the guess is right, the first two, and so on.
    pub fn candidate(&self, pace: &Pace) -> Candidate {
        let Guess { tokens, signs, .. } = &self.offered;
        Candidate::new(tokens.len(), |i| self.odds.of(signs[i], &pace.odds))
    }

    /// Whether guessing takes time.
    pub fn computes(&self) -> bool {
        self.drafter.computes()
    }

    /// Whether it is to be shown what the model makes of the text.
    pub fn sees(&self) -> bool {
        self.drafter.sees()
    }

    /// Shows it that; see [`Drafter::see`].
    ///
    /// # Errors
    /// Those of the drafter.
    pub fn see(&mut self, start: usize, made: MatrixView<'_>) -> Result<()> {
        self.drafter.see(start, made)
    }

    /// Takes the first `depth` of what was guessed into the next step; how many that are. Where it is none, one is tried now and then,
    /// where that `may` be, to see whether that is still right.
    pub fn settle(&mut self, depth: usize, may: impl FnOnce() -> bool) -> usize {
        let mut taken = depth;
        if depth == 0 {
            let is_due = match self.offered.signs.first() {
                // What it was computed for; its time is counted.
                Some(Sign::Likely(_)) => self.explores || self.computed.decline() && may(),
                _ => self.copied.decline() && may(),
            };
            taken = usize::from(is_due);
        }
        self.offered.tokens.truncate(taken);
        self.offered.tokens.len()
    }

    /// Has the next step take nothing.
    pub fn clear(&mut self) {
        self.offered.tokens.clear();
    }

    /// What the next step takes.
    pub fn offered(&self) -> &[u32] {
        &self.offered.tokens
    }

    /// Takes what the step was given out of the plan.
    pub fn take(&mut self) -> Guess {
        std::mem::take(&mut self.offered)
    }

    /// Learns that the first `right` of `offered` tokens of `guess`, at least one, were chosen, and whether the next one is not known
    /// since its mask was late.
    pub fn judge(&mut self, guess: &Guess, offered: usize, right: usize, held: bool, pace: &mut Pace) {
        let judged = if held { right } else { offered.min(right + 1) };
        for (i, &sign) in guess.signs.iter().enumerate().take(judged) {
            self.odds.note(sign, i < right);
            pace.odds.note(sign, i < right);
        }
        match guess.signs.first() {
            Some(Sign::Likely(_)) => self.computed.judge(right > 0),
            _ => self.copied.judge(right > 0),
        }
        if !held {
            self.in_time = (self.in_time + 1).min(MOST);
            self.next_pause = 1;
        } else if right > 0 {
            self.in_time = right;
        } else {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(PATIENCE[1]);
        }
    }
}

/// Whether one more guess behind `guess` is expected to bring more in the time that it `cost`s, with its row, than the step does
/// without drafts.
fn pays(own: &Odds, others: &Odds, cost: Option<f64>, guess: &Guess, price: Price) -> bool {
    let before: f32 = guess.signs.iter().map(|&sign| own.of(sign, others)).product();
    match cost {
        Some(cost) => f64::from(before * own.of_model(others)) > price.rate * (cost + price.row),
        None => price.rate.is_finite() && guess.tokens.len() < FIRST,
    }
}
