//! Guesses that are copied: where the last tokens occurred before, what followed them there may follow again.
//!
//! Edits of files, answers that quote and structured text repeat much of what came before. All places where the last two tokens
//! occurred are linked, the latest first; of some of these the one with the longest match counts. That is about 50 bytes a token, most
//! of it the table of pairs, and it finds the same matches but where a pair is very common. A text that
//! follows its prompt, changing it here and there, is looked for near where it was.
//!
//! What was answered before, to the same one, is as good a place as any, and counts as if it stood before the prompt: answers of one form
//! are guessed in it, with the values of the text.
//!
//! Each token of a guess is looked up behind those before it, as if they were right: records of one form are guessed in their form,
//! which is that of the record before, with values that are those of the prompt.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use super::follow::Follow;
use super::{Drafter, Guess, Pays, Sign};
use crate::alloc;
use crate::error::{Error, Result};

const WHAT: &str = "an index of the tokens of a sequence";
/// Places that are looked at for a token.
const PLACES: usize = 16;
/// Tokens of a match that are compared.
const LONGEST: usize = 32;
/// No place.
const NONE: u32 = u32::MAX;

/// Tokens that a match has at least, to count more than going on where the text left what it copied.
pub(super) const SURE: usize = 6;
/// Tokens in a row that were copied of the prompt, for it to be what the text follows.
const COPYING: usize = 4;
/// How far ahead of where the text was it is looked for in the prompt, and how far back.
const SLIP: [usize; 2] = [24, 8];
/// Guesses in a row that were all wrong, after which the text does not follow the prompt any more.
const MISSES: usize = 4;

/// Where pairs of tokens ended.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    /// The last place of each pair: the index of its second token. Of a single token, its pair is with [`NONE`].
    last: HashMap<(u32, u32), u32>,
    /// For each index the place before of the pair that ends there.
    before: Vec<u32>,
    /// What the text follows, where it does.
    trail: Option<Trail>,
    /// What it makes of the tokens that it follows.
    follow: Follow,
    /// What was answered before; and with it the text, where there is any.
    earlier: Rc<[u32]>,
    all: Vec<u32>,
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
    /// Whether the last token of the text is that one.
    is_here: bool,
}

/// A text with what is guessed behind it.
struct Text<'a> {
    tokens: &'a [u32],
    guess: &'a [u32],
}

impl Text<'_> {
    fn len(&self) -> usize {
        self.tokens.len() + self.guess.len()
    }

    fn token(&self, at: usize) -> u32 {
        self.tokens.get(at).copied().unwrap_or_else(|| self.guess[at - self.tokens.len()])
    }

    /// The last two tokens.
    fn pair(&self) -> Option<(u32, u32)> {
        let last = self.len().checked_sub(2)?;
        Some((self.token(last), self.token(last + 1)))
    }

    /// How many of the last tokens are those up to `at`.
    fn matched(&self, at: usize) -> usize {
        let last = self.len() - 1;
        (0..=at.min(LONGEST - 1)).take_while(|by| self.token(at - by) == self.token(last - by)).count()
    }
}

impl Lookup {
    /// Of a text behind answers that were given before.
    pub fn behind(earlier: Rc<[u32]>) -> Self {
        Self { earlier, ..Self::default() }
    }

    /// Takes the pairs of `tokens` that have something behind them.
    fn learn(&mut self, tokens: &[u32]) -> Result<()> {
        let known = self.before.len();
        let end = tokens.len().saturating_sub(1).min(NONE as usize);
        if end <= known {
            return Ok(());
        }
        alloc::reserve_more(&mut self.before, end - known, WHAT)?;
        let more = 2 * (end - known);
        let bytes = (more * size_of::<(u32, u32, u32)>()) as u64;
        self.last.try_reserve(more).map_err(|_| Error::OutOfMemory { what: WHAT, bytes })?;
        for at in known..end {
            self.last.insert((NONE, tokens[at]), at as u32);
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

    /// The last of the places whose match is longest, and how long it is; 0 without one.
    fn longest(&self, text: &Text<'_>) -> (usize, usize) {
        let place = |pair| self.last.get(&pair).copied();
        let next = |at: &u32| self.before.get(*at as usize).copied().filter(|&at| at != NONE);
        let places = std::iter::successors(text.pair().and_then(place), next);
        let mut best = (0, 0);
        for at in places.take(PLACES).map(|at| at as usize) {
            let matched = text.matched(at);
            if matched > best.1 {
                best = (at, matched);
            }
            if matched == LONGEST {
                break;
            }
        }
        if best.1 > 0 || text.len() == 0 {
            return best;
        }
        place((NONE, text.token(text.len() - 1))).map_or(best, |at| (at as usize, 1))
    }

    /// Learns what became of the last guess of the trail.
    fn settle(&mut self, tokens: &[u32], prompt: usize) {
        let Some(trail) = &mut self.trail else { return };
        trail.is_here = false;
        let Some((from, len)) = trail.guessed.take_if(|(_, len)| *len < tokens.len()) else { return };
        let copied = tokens[len..].iter().zip(&tokens[from..prompt]).take_while(|(a, b)| a == b).count();
        if copied > 0 {
            (trail.at, trail.misses) = (from + copied - 1, 0);
            trail.is_here = copied == tokens.len() - len;
        } else {
            trail.misses += 1;
            if trail.misses > MISSES {
                self.trail = None;
            }
        }
    }
}

impl Trail {
    /// Where the text goes on in the prompt, of which it may have replaced, put in or left out something, and whether it is sure to
    /// have come there.
    fn next(&self, text: &Text<'_>, prompt: usize) -> Option<(usize, bool)> {
        let at = self.at;
        if self.is_here && at + 1 < prompt {
            return Some((at + 1, true));
        }
        let pair = text.pair()?;
        let is_same =
            |at: &usize| *at > 0 && *at + 1 < prompt && (text.token(at - 1), text.token(*at)) == pair;
        let [ahead, back] = SLIP;
        match (at..at + ahead).chain((at.saturating_sub(back)..at).rev()).find(is_same) {
            Some(near) => Some((near + 1, true)),
            // One token may stand for another.
            None => Some((at + 2, false)).filter(|(from, _)| *from < prompt),
        }
    }
}

impl Lookup {
    /// What followed the last tokens before, of which `first` is the [longest](Self::longest) match.
    fn copied(&mut self, tokens: &[u32], prompt: usize, most: usize, first: (usize, usize)) -> Guess {
        self.settle(tokens, prompt);
        let mut guess =
            Guess { tokens: Vec::with_capacity(most), signs: Vec::with_capacity(most), cost: None };
        let mut trail = self.trail;
        while guess.tokens.len() < most {
            let text = Text { tokens, guess: &guess.tokens };
            let (at, longest) = if guess.tokens.is_empty() { first } else { self.longest(&text) };
            let followed = trail.and_then(|trail| trail.next(&text, prompt));
            let (from, matched) = match followed {
                Some((from, true)) => (from, if from == at + 1 { longest } else { 2 }),
                Some((from, false)) if longest < SURE => (from, 0),
                _ if longest == 0 => break,
                _ => (at + 1, longest),
            };
            let is_trail = followed.is_some_and(|(of_trail, _)| of_trail == from);
            if guess.tokens.is_empty() {
                let guessed = is_trail.then_some((from, tokens.len()));
                if let Some(trail) = self.trail.as_mut().filter(|_| is_trail) {
                    trail.guessed = guessed;
                } else if longest >= COPYING && at + 1 < prompt {
                    let guessed = (from == at + 1).then_some((from, tokens.len()));
                    self.trail = Some(Trail { at, guessed, misses: 0, is_here: false });
                    trail = self.trail;
                }
            }
            if let Some(trail) = &mut trail {
                trail.is_here = is_trail || from == trail.at + 1;
                trail.at = if trail.is_here { from } else { trail.at };
            }
            let token = text.token(from);
            guess.tokens.push(token);
            guess.signs.push(Sign::Match(matched));
        }
        guess
    }

    /// What may follow `tokens`, which end `all`.
    fn guess_of(&mut self, all: &[u32], tokens: &[u32], prompt: usize, most: usize) -> Result<Guess> {
        self.learn(all)?;
        let earlier = all.len() - tokens.len();
        let first = self.longest(&Text { tokens: all, guess: &[] });
        let copied = self.copied(all, earlier + prompt, most, first);
        self.follow.advance(tokens, prompt)?;
        let (at, longest) = first;
        // Only what was given is rewritten.
        if !self.follow.follows()
            && tokens.len() > prompt
            && longest >= COPYING
            && (earlier..earlier + prompt).contains(&(at + 1))
        {
            self.follow.begin(at + 1 - earlier, tokens.len());
        }
        let followed = self.follow.guess(tokens, prompt, most)?;
        if !followed.is_empty() {
            let signs = vec![Sign::Followed(self.follow.streak()); followed.len()];
            return Ok(Guess { tokens: followed, signs, cost: None });
        }
        Ok(copied)
    }
}

impl Drafter for Lookup {
    fn guess(&mut self, tokens: &[u32], prompt: usize, most: usize, _: Pays<'_>) -> Result<Guess> {
        if self.earlier.is_empty() {
            return self.guess_of(tokens, tokens, prompt, most);
        }
        let mut all = std::mem::take(&mut self.all);
        if all.is_empty() {
            alloc::reserve_more(&mut all, self.earlier.len() + tokens.len(), WHAT)?;
            all.extend_from_slice(&self.earlier);
        }
        let new = &tokens[all.len() - self.earlier.len()..];
        alloc::reserve_more(&mut all, new.len(), WHAT)?;
        all.extend_from_slice(new);
        let guess = self.guess_of(&all, tokens, prompt, most);
        self.all = all;
        guess
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(tokens: &[u32], most: usize) -> (Vec<u32>, usize) {
        let guess = Lookup::default().guess(tokens, 0, most, &mut |_| true).unwrap();
        let matched = guess.signs.first().map_or(0, |sign| match *sign {
            Sign::Match(len) => len,
            Sign::Followed(_) | Sign::Likely(_) => unreachable!(),
        });
        (guess.tokens, matched)
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
            assert_eq!(lookup.guess(&text, prompt.len(), 3, &mut |_| true).unwrap().tokens, source[10..13]);
            let mut guess = Guess::default();
            for token in changed {
                text.push(*token);
                guess = lookup.guess(&text, prompt.len(), 3, &mut |_| true).unwrap();
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
            lookup.guess(&text[..len], prompt.len(), 3, &mut |_| true).unwrap();
        }
        assert_eq!(lookup.guess(&text, prompt.len(), 3, &mut |_| true).unwrap().tokens, [21, 22, 23]);
        text.extend([21, 22, 23, 8]);
        assert_eq!(lookup.guess(&text, prompt.len(), 2, &mut |_| true).unwrap().tokens, [9, 1]);
        text.extend([9, 1]);
        assert_eq!(lookup.guess(&text, prompt.len(), 3, &mut |_| true).unwrap().tokens, [30, 31, 32]);
    }

    /// Answers before the text are places as good as those in it, but nothing that is rewritten.
    #[test]
    fn earlier_answers_are_copied() {
        let form: Vec<u32> = (50..80).collect();
        let mut lookup = Lookup::behind(Rc::from(&form[..]));
        let prompt = [1, 2, 3];
        let mut text = [&prompt[..], &form[..4]].concat();
        assert_eq!(lookup.guess(&text, 3, 3, &mut |_| true).unwrap().tokens, form[4..7]);
        // A value of the text's own, behind which the form goes on.
        let mut guess = Guess::default();
        for token in [form[4], 9, form[6]] {
            text.push(token);
            guess = lookup.guess(&text, 3, 3, &mut |_| true).unwrap();
        }
        assert_eq!(guess.tokens, form[7..10]);
        assert!(!lookup.follow.follows());
        text.extend(&form[7..30]);
        assert_eq!(lookup.guess(&text, 3, 3, &mut |_| true).unwrap().tokens, prompt);
        // Longer matches of the text itself count more, and the later ones of equal length.
        let mut lookup = Lookup::behind(Rc::from([4, 5, 6, 7].as_slice()));
        assert_eq!(lookup.guess(&[4, 5, 8, 4, 5], 5, 1, &mut |_| true).unwrap().tokens, [8]);
        let mut lookup = Lookup::behind(Rc::from([3, 4, 5, 6, 7].as_slice()));
        assert_eq!(lookup.guess(&[4, 5, 8, 3, 4, 5], 6, 1, &mut |_| true).unwrap().tokens, [6]);
    }

    /// Token by token it knows what it knows of all at once.
    #[test]
    fn it_learns_as_the_text_grows() {
        let mut random = crate::engine::rig::Random(7);
        let tokens: Vec<u32> = (0..3000).map(|_| random.below(12) as u32).collect();
        let mut lookup = Lookup::default();
        let mut guesses = 0;
        for len in 0..tokens.len() {
            let grown = lookup.guess(&tokens[..len], 0, 8, &mut |_| true).unwrap();
            let fresh = Lookup::default().guess(&tokens[..len], 0, 8, &mut |_| true).unwrap();
            assert_eq!(grown, fresh, "{len}");
            guesses += usize::from(!grown.tokens.is_empty());
        }
        assert!(guesses > 2000, "{guesses}");
    }
}
