//! Guesses that are copied: where the last tokens occurred before, what followed them there may follow again.
//!
//! A text that follows its prompt, changing it here and there, is looked for near where it was.
//!
//! Edits of files, answers that quote and structured text repeat much of what came before. All places where the last two tokens
//! occurred are linked, the latest first; of some of these the one with the longest match counts. That is 8 bytes a token beside a table of
//! the pairs, where a suffix automaton takes about 60, and it finds the same matches but where a pair is very common.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{Drafter, Guess};
use crate::alloc;
use crate::error::{Error, Result};

const WHAT: &str = "an index of the tokens of a sequence";
/// Places that are looked at for a guess.
const PLACES: usize = 32;
/// Tokens of a match that are compared.
const LONGEST: usize = 64;
/// No place.
const NONE: u32 = u32::MAX;

/// Tokens that a match has at least, to count more than going on where the text left what it copied.
const SURE: usize = 6;
/// Tokens in a row that were copied of the prompt, for it to be what the text follows.
const COPYING: usize = 4;
/// How far ahead of where the text was it is looked for in the prompt, and how far back.
const SLIP: [usize; 2] = [24, 8];
/// Guesses in a row that were all wrong, after which the text does not follow the prompt any more.
const MISSES: usize = 4;

/// Where pairs of tokens ended.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    /// The last place of each pair: the index of its second token.
    last: HashMap<(u32, u32), u32>,
    /// For each index the place before of the pair that ends there.
    before: Vec<u32>,
    /// What the text follows, where it does.
    trail: Option<Trail>,
}

/// A place of the prompt that the text has come to.
#[derive(Debug, Clone, Copy)]
struct Trail {
    /// The last token that was copied.
    at: usize,
    /// The token that the last guess began with, where that was of the trail, and the tokens that there were.
    guessed: Option<(usize, usize)>,
    /// Guesses of it in a row that were wrong.
    misses: usize,
}

impl Lookup {
    /// Takes the pairs of `tokens` that have something behind them.
    fn learn(&mut self, tokens: &[u32]) -> Result<()> {
        let known = self.before.len();
        let end = tokens.len().saturating_sub(1).min(NONE as usize);
        if end <= known {
            return Ok(());
        }
        alloc::reserve_more(&mut self.before, end - known, WHAT)?;
        let none = |_| Error::OutOfMemory {
            what: WHAT,
            bytes: ((end - known) * size_of::<(u32, u32, u32)>()) as u64,
        };
        self.last.try_reserve(end - known).map_err(none)?;
        for at in known..end {
            let before = match at {
                0 => NONE,
                _ => match self.last.entry((tokens[at - 1], tokens[at])) {
                    Entry::Occupied(mut last) => last.insert(at as u32),
                    Entry::Vacant(none) => {
                        none.insert(at as u32);
                        NONE
                    }
                },
            };
            self.before.push(before);
        }
        Ok(())
    }

    /// The places of the last two of `tokens`, the latest first.
    fn places(&self, tokens: &[u32]) -> impl Iterator<Item = usize> {
        let pair = tokens.last_chunk().map(|&[a, b]| (a, b));
        let first = pair.and_then(|pair| self.last.get(&pair).copied());
        let next = |at: &u32| self.before.get(*at as usize).copied().filter(|&at| at != NONE);
        std::iter::successors(first, next).map(|at| at as usize)
    }
}

impl Lookup {
    /// The last of the places whose match is longest, and how long it is; 0 without one.
    fn longest(&self, tokens: &[u32]) -> (usize, usize) {
        let mut best = (0, 0);
        for at in self.places(tokens).take(PLACES) {
            let pairs = tokens[..=at].iter().rev().zip(tokens.iter().rev());
            let matched = pairs.take(LONGEST).take_while(|(a, b)| a == b).count();
            if matched > best.1 {
                best = (at, matched);
            }
            if matched == LONGEST {
                break;
            }
        }
        best
    }

    /// Where the text goes on in the prompt it follows, of which it may have replaced, put in or left out something, and whether it
    /// has come to the same two tokens there.
    fn follow(&mut self, tokens: &[u32], prompt: usize) -> Option<(usize, bool)> {
        let trail = self.trail.as_mut()?;
        if let Some((from, len)) = trail.guessed.take() {
            let copied = tokens[len..].iter().zip(&tokens[from..prompt]).take_while(|(a, b)| a == b).count();
            match copied {
                0 => trail.misses += 1,
                _ => (trail.at, trail.misses) = (from + copied - 1, 0),
            }
            if copied > 0 && copied == tokens.len() - len && trail.at + 1 < prompt {
                return Some((trail.at + 1, true));
            }
            if trail.misses > MISSES {
                self.trail = None;
                return None;
            }
        }
        let at = trail.at;
        let &pair = tokens.last_chunk::<2>()?;
        let is_here = |at: &usize| *at > 0 && *at + 1 < prompt && tokens[at - 1..=*at] == pair;
        let [ahead, back] = SLIP;
        let near = (at..at + ahead).chain((at.saturating_sub(back)..at).rev()).find(is_here);
        match near {
            Some(near) => Some((near + 1, true)),
            // One token may stand for another.
            None => Some((at + 2, false)).filter(|(from, _)| *from < prompt),
        }
    }
}

impl Drafter for Lookup {
    fn guess(&mut self, tokens: &[u32], prompt: usize, most: usize) -> Result<Guess> {
        self.learn(tokens)?;
        let (at, longest) = self.longest(tokens);
        let followed = self.follow(tokens, prompt);
        let (from, matched) = match followed {
            Some((from, true)) => (from, if from == at + 1 { longest } else { 2 }),
            Some((from, false)) if longest < SURE => (from, 1),
            _ if longest == 0 => return Ok(Guess::default()),
            _ => (at + 1, longest),
        };
        let is_trail = followed.is_some_and(|(of_trail, _)| of_trail == from);
        if let Some(trail) = self.trail.as_mut().filter(|_| is_trail) {
            trail.guessed = Some((from, tokens.len()));
        } else if longest >= COPYING && at + 1 < prompt {
            let guessed = (from == at + 1).then_some((from, tokens.len()));
            self.trail = Some(Trail { at, guessed, misses: 0 });
        }
        let mut guess = Guess { tokens: Vec::with_capacity(most), matched };
        for from in (from..).take(most) {
            // Past the end of what there is, the guess repeats itself.
            let token = tokens.get(from).unwrap_or_else(|| &guess.tokens[from - tokens.len()]);
            guess.tokens.push(*token);
        }
        Ok(guess)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(tokens: &[u32], most: usize) -> (Vec<u32>, usize) {
        let guess = Lookup::default().guess(tokens, 0, most).unwrap();
        (guess.tokens, guess.matched)
    }

    #[test]
    fn what_followed_the_longest_match_is_guessed() {
        assert_eq!(guess(&[], 4), (vec![], 0));
        assert_eq!(guess(&[1, 2, 3], 4), (vec![], 0));
        assert_eq!(guess(&[1, 2, 3, 4, 9, 1, 2], 2), (vec![3, 4], 2));
        // The latest of equally long ones.
        assert_eq!(guess(&[1, 2, 3, 1, 2, 4, 1, 2], 1), (vec![4], 2));
        // A longer one counts more.
        assert_eq!(guess(&[7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1), (vec![3], 3));
        // What repeats goes on repeating.
        assert_eq!(guess(&[5, 6, 5, 6], 5), (vec![5, 6, 5, 6, 5], 2));
        assert_eq!(guess(&[3; 200], 3), (vec![3, 3, 3], LONGEST));
    }

    /// The prompt is followed where the text replaces a token, puts some in or leaves some out.
    #[test]
    fn a_changed_copy_goes_on() {
        let source: Vec<u32> = (100..160).collect();
        let prompt = [&source[..], &[7]].concat();
        let goes_on = |changed: &[u32], wanted: &[u32]| {
            let mut lookup = Lookup::default();
            let mut text = [&prompt[..], &source[..10]].concat();
            assert_eq!(lookup.guess(&text, prompt.len(), 3).unwrap().tokens, source[10..13]);
            let mut guess = Guess::default();
            for token in changed {
                text.push(*token);
                guess = lookup.guess(&text, prompt.len(), 3).unwrap();
            }
            assert_eq!(guess.tokens, wanted, "{changed:?}");
        };
        goes_on(&[source[10]], &source[11..14]);
        goes_on(&[5], &source[11..14]);
        goes_on(&[5, source[11]], &source[12..15]);
        goes_on(&[5, 6, source[10], source[11]], &source[12..15]);
        goes_on(&[source[14], source[15]], &source[16..19]);
        // What stands between is guessed of the answer, and what stands beside it of the prompt.
        let prompt: Vec<u32> = [[1, 10, 11, 12, 13], [1, 20, 21, 22, 23], [1, 30, 31, 32, 33]].concat();
        let mut text = [&prompt[..], &[8, 9, 1, 10, 11, 12, 13, 8, 9, 1, 20]].concat();
        let mut lookup = Lookup::default();
        for len in prompt.len()..text.len() {
            lookup.guess(&text[..len], prompt.len(), 3).unwrap();
        }
        assert_eq!(lookup.guess(&text, prompt.len(), 3).unwrap().tokens, [21, 22, 23]);
        text.extend([21, 22, 23, 8]);
        assert_eq!(lookup.guess(&text, prompt.len(), 2).unwrap().tokens[0], 30);
        text.extend([9, 1]);
        assert_eq!(lookup.guess(&text, prompt.len(), 3).unwrap().tokens, [30, 31, 32]);
    }

    /// Token by token it knows what it knows of all at once.
    #[test]
    fn it_learns_as_the_text_grows() {
        let mut random = crate::engine::rig::Random(7);
        let tokens: Vec<u32> = (0..3000).map(|_| random.below(12) as u32).collect();
        let mut lookup = Lookup::default();
        let mut guesses = 0;
        for len in 0..tokens.len() {
            let grown = lookup.guess(&tokens[..len], 0, 8).unwrap();
            let fresh = Lookup::default().guess(&tokens[..len], 0, 8).unwrap();
            assert_eq!(grown, fresh, "{len}");
            guesses += usize::from(!grown.tokens.is_empty());
        }
        assert!(guesses > 2000, "{guesses}");
    }
}
