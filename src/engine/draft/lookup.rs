//! Guesses that are copied: where the last tokens occurred before, what followed them there may follow again.
//!
//! A copy that left its source by a token or a few goes on there, before two tokens are alike again.
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
/// Tokens in a row that were copied right, to count as copying.
const COPYING: usize = 4;
/// How far from where it is expected the text is looked for in what it copies.
const SLIP: usize = 8;
/// Guesses in a row that were all wrong, after which the text is no copy any more.
const MISSES: usize = 4;

/// Where pairs of tokens ended.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    /// The last place of each pair: the index of its second token.
    last: HashMap<(u32, u32), u32>,
    /// For each index the place before of the pair that ends there.
    before: Vec<u32>,
    copied: Option<Copied>,
}

/// What the text is a copy of.
#[derive(Debug, Clone, Copy)]
struct Copied {
    /// The token that was guessed for position `len`.
    from: usize,
    len: usize,
    /// Tokens that were right before, in a row.
    right: usize,
    /// Guesses since then.
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

    /// Where the text goes on in what it copied, after it left that: behind the same token, if that is near, else behind one that
    /// another stands for.
    fn beside(&self, tokens: &[u32]) -> Option<Copied> {
        let Copied { from, len, right, misses } = self.copied?;
        let grown = tokens.len() - len;
        let same = tokens[len..].iter().zip(&tokens[from..]).take_while(|(a, b)| a == b).count();
        let right = if same > 0 { right + same } else { right };
        let misses = if same > 0 { 0 } else { misses + 1 };
        let now = Copied { from: from + grown, len: tokens.len(), right, misses };
        if same == grown {
            return Some(now);
        }
        if right < COPYING || misses > MISSES {
            return None;
        }
        let (token, expected) = (tokens.last()?, from + grown - 1);
        let is_same = |at: &usize| *at >= from + same && *at + 1 < len && tokens[*at] == *token;
        let near = (0..=SLIP).flat_map(|by| [expected + by, expected.saturating_sub(by)]).find(is_same);
        Some(Copied { from: near.unwrap_or(expected) + 1, ..now })
    }
}

impl Drafter for Lookup {
    fn guess(&mut self, tokens: &[u32], most: usize) -> Result<Guess> {
        self.learn(tokens)?;
        let (at, mut matched) = self.longest(tokens);
        let beside = self.beside(tokens).filter(|copied| copied.from < tokens.len());
        self.copied = match beside {
            Some(copied) if matched < SURE => {
                matched = if copied.from == at + 1 { matched } else { 1 };
                Some(copied)
            }
            _ if matched == 0 => None,
            // What has been matched is what would have been copied right.
            _ => Some(Copied { from: at + 1, len: tokens.len(), right: matched, misses: 0 }),
        };
        let Some(Copied { from, .. }) = self.copied else { return Ok(Guess::default()) };
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
        let guess = Lookup::default().guess(tokens, most).unwrap();
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

    /// A copy in which a token was replaced goes on behind it, and so does one in which some were put in or left out.
    #[test]
    fn a_changed_copy_goes_on() {
        let source: Vec<u32> = (100..160).collect();
        let goes_on = |changed: &[u32], wanted: &[u32]| {
            let mut lookup = Lookup::default();
            let text = [&source[..], &[7], &source[..10]].concat();
            assert_eq!(lookup.guess(&text, 3).unwrap().tokens, source[10..13]);
            let mut text = text;
            for token in changed {
                text.push(*token);
                let guess = lookup.guess(&text, 3).unwrap();
                if guess.tokens == wanted {
                    return;
                }
            }
            panic!("{changed:?} is not followed");
        };
        goes_on(&[5], &source[11..14]);
        goes_on(&[5, 6], &source[12..15]);
        goes_on(&[5, 6, source[10], source[11]], &source[12..15]);
        goes_on(&[source[14]], &source[15..18]);
        // No copy is seen in four tokens that are in no other.
        let mut lookup = Lookup::default();
        let mut text = [&source[..], &source[..10]].concat();
        lookup.guess(&text, 3).unwrap();
        for _ in 0..=MISSES {
            text.push(5);
            lookup.guess(&text, 3).unwrap();
        }
        assert!(lookup.copied.is_none_or(|copied| copied.from > source.len()), "{:?}", lookup.copied);
    }

    /// Token by token it knows what it knows of all at once.
    #[test]
    fn it_learns_as_the_text_grows() {
        let mut random = crate::engine::rig::Random(7);
        let tokens: Vec<u32> = (0..3000).map(|_| random.below(12) as u32).collect();
        let mut lookup = Lookup::default();
        let mut guesses = 0;
        for len in 0..tokens.len() {
            let grown = lookup.guess(&tokens[..len], 8).unwrap();
            let fresh = Lookup::default().guess(&tokens[..len], 8).unwrap();
            assert!(grown == fresh || grown.matched < SURE, "{len}");
            guesses += usize::from(!grown.tokens.is_empty());
        }
        assert!(guesses > 2000, "{guesses}");
    }
}
