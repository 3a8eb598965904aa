//! Drafts: tokens that are guessed before they are computed.
//!
//! A step that computes one token of a sequence reads all weights for it. Guesses of what follows are further rows of the same run,
//! which cost little beside that. The sampler then chooses from each row in turn as it always does: where it chooses what was
//! guessed, the next row is right, too; the first other choice ends it, and the caches go back to where that was. So a draft changes
//! how many steps a text takes, and none of its tokens. On the CPU, where a row's bits do not depend on the rows beside it, that
//! is exact.
//!
//! How many guesses a step takes is decided by [`Pace`]: what rows cost, which is measured, against how often such guesses were right.

mod lookup;
mod pace;

use crate::error::Result;
pub(crate) use lookup::Lookup;
pub(super) use pace::{Candidate, Odds, Pace};

/// Most tokens of a draft.
pub(super) const MOST: usize = 16;

/// Drafts that are declined before one is tried all the same, at least and at most.
const PATIENCE: [u32; 2] = [16, 1024];

/// Whether tokens are guessed from what the text so far repeats, and checked several at a time.
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
pub(crate) trait Drafter: Send {
    /// What may follow `tokens`, all of the sequence so far, of which `prompt` were given; `most` tokens at most.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory); the sequence then goes on without drafts.
    fn guess(&mut self, tokens: &[u32], prompt: usize, most: usize) -> Result<Guess>;
}

/// What may come next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Guess {
    /// None where nothing tells.
    pub tokens: Vec<u32>,
    /// For each, how many of the tokens before it are those that came before, where it is copied from; 0 where it stands beside
    /// another.
    pub matched: Vec<usize>,
}

/// The drafts of one sequence.
pub(super) struct Drafting {
    drafter: Box<dyn Drafter>,
    odds: Odds,
    /// What the step that is planned, or that runs, takes of it.
    offered: Guess,
    /// Guesses that were not worth a row since one was tried.
    declined: u32,
    patience: u32,
    /// Tokens whose masks were there in time.
    in_time: usize,
    /// Steps to go without guesses, since the mask of the first token was late, and how many if the next is.
    pause: u32,
    next_pause: u32,
}

impl Drafting {
    pub fn new(drafter: Box<dyn Drafter>) -> Self {
        let [patience, _] = PATIENCE;
        let offered = Guess::default();
        let odds = Odds::default();
        Self { drafter, odds, offered, declined: 0, patience, in_time: MOST, pause: 0, next_pause: 1 }
    }

    /// Guesses at most `most` tokens behind `tokens`, of which `prompt` were given; how many it did.
    ///
    /// # Errors
    /// Those of the drafter.
    pub fn guess(&mut self, tokens: &[u32], prompt: usize, most: usize) -> Result<usize> {
        let pauses = self.pause > 0;
        self.pause = self.pause.saturating_sub(1);
        let most = most.min(self.in_time);
        self.offered = match most {
            _ if pauses => Guess::default(),
            0 => Guess::default(),
            _ => self.drafter.guess(tokens, prompt, most)?,
        };
        self.offered.tokens.truncate(most);
        Ok(self.offered.tokens.len())
    }

    /// How likely the first token of the guess is right, the first two, and so on.
    pub fn candidate(&self, pace: &Pace) -> Candidate {
        let Guess { tokens, matched } = &self.offered;
        Candidate::new(tokens.len(), |i| self.odds.of(matched[i], &pace.odds))
    }

    /// Takes the first `depth` of what was guessed into the next step; how many that are. Where it is none, one is tried now and then,
    /// where that `may` be, to see whether that is still right.
    pub fn settle(&mut self, depth: usize, may: impl FnOnce() -> bool) -> usize {
        let mut taken = depth;
        if depth == 0 {
            self.declined += 1;
            taken = usize::from(self.declined >= self.patience && may());
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
        for (i, &matched) in guess.matched.iter().enumerate().take(judged) {
            self.odds.note(matched, i < right);
            pace.odds.note(matched, i < right);
        }
        let [least, most] = PATIENCE;
        self.declined = 0;
        self.patience = if right > 0 { least } else { (self.patience * 2).min(most) };
        if !held {
            self.in_time = (self.in_time + 1).min(MOST);
            self.next_pause = 1;
        } else if right > 0 {
            self.in_time = right;
        } else {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(most);
        }
    }
}
