//! Guesses of a text that follows its prompt and writes it in another way: records in another format, code under another name, a list
//! as a table.
//!
//! The text is laid beside the prompt. Of each token of the prompt it is learnt what it became: itself, nothing, or some tokens, also
//! such as were put in behind it. What comes is then guessed to be what the prompt's next tokens became before, behind the same
//! token if that is known, and those that were never met are copied. Where the text is another, it is laid beside what follows in the
//! prompt anew, so that rare tokens meet and little of the prompt is passed over, until the two are together again. For each token of the
//! prompt that the text has passed there are two entries of a map, at most.

use std::collections::HashMap;

use crate::alloc;
use crate::error::{Error, Result};

const WHAT: &str = "what the tokens of a prompt became";
/// Tokens of the text that may differ before it follows no more, and how far ahead in the prompt it is looked for.
const WINDOW: usize = 32;
/// What two equal tokens are worth, where the window of the prompt has the token once, and where more often.
const MEETS: [i32; 2] = [30, 10];
/// What it is worth that the tokens before them were equal, too; what each token of the prompt costs that is passed over.
const NEXT: i32 = 10;
const PASSED: i32 = 3;
/// Worth of tokens that met from which on both are together again.
const TOGETHER: i32 = 30;
/// Nothing.
const NONE: u32 = u32::MAX;

/// What a token of the prompt became: itself where that is none.
type Became = Option<Box<[u32]>>;

/// A text that follows its prompt.
#[derive(Debug, Default)]
pub(super) struct Follow {
    /// Where the prompt goes on behind what the text has, while it follows.
    at: Option<usize>,
    /// Tokens of the text behind that which did not become of a token yet.
    waiting: Vec<u32>,
    /// Whether these begin what the prompt's next tokens became before.
    together: bool,
    /// Tokens of the text that were looked at.
    seen: usize,
    /// What the token before `at` became.
    last: Vec<u32>,
    /// By a token of the prompt and the next one, or [`NONE`]: what it became last. By [`NONE`] and a token: what was put in before it.
    became: HashMap<(u32, u32), Became>,
    /// Tokens in a row that came as they were expected.
    streak: usize,
}

/// Where a token of the text, and one of the prompt's window, were equal: their numbers from 1 on.
type Pair = (usize, usize);

impl Follow {
    /// Whether the text is known to follow its prompt.
    pub fn follows(&self) -> bool {
        self.at.is_some()
    }

    /// Tokens in a row that came as they were expected.
    pub fn streak(&self) -> usize {
        self.streak
    }

    /// The text of `len` tokens goes on where the prompt does at `at`.
    pub fn begin(&mut self, at: usize, len: usize) {
        (self.at, self.seen, self.together, self.streak) = (Some(at), len, true, 0);
        self.waiting.clear();
        self.last.clear();
    }

    /// Looks at what has come of the text.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn advance(&mut self, tokens: &[u32], prompt: usize) -> Result<()> {
        while let Some(&token) = tokens.get(self.seen).filter(|_| self.at.is_some()) {
            self.seen += 1;
            alloc::reserve_more(&mut self.waiting, 1, WHAT)?;
            self.waiting.push(token);
            if self.is_expected(tokens, prompt)? {
                (self.together, self.streak) = (true, self.streak + 1);
            } else {
                (self.together, self.streak) = (false, 0);
                self.meet(tokens, prompt)?;
            }
            if self.waiting.len() > WINDOW {
                self.at = None;
            }
        }
        self.seen = tokens.len();
        Ok(())
    }

    /// What is expected behind `tokens`, at most `most` tokens; nothing while the text is another.
    pub fn guess(&self, tokens: &[u32], prompt: usize, most: usize) -> Result<Vec<u32>> {
        let mut guess = Vec::new();
        let Some(at) = self.at.filter(|_| self.together) else { return Ok(guess) };
        let all = most + self.waiting.len();
        alloc::reserve(&mut guess, all, WHAT)?;
        // Of what becomes nothing, no more is passed over than would be looked for.
        for at in (at..prompt).take(all + WINDOW) {
            if guess.len() >= all {
                break;
            }
            let [became, more] = self.of(tokens, at, prompt);
            guess.extend(became.iter().chain(more).take(all - guess.len()));
        }
        guess.drain(..self.waiting.len().min(guess.len()));
        Ok(guess)
    }

    /// What the token at `at` of the prompt became before, in two parts.
    fn of<'t>(&'t self, tokens: &'t [u32], at: usize, prompt: usize) -> [&'t [u32]; 2] {
        let of = |token: u32, next: u32| self.became.get(&(token, next));
        let (token, next) = (&tokens[at..=at], tokens[..prompt].get(at + 1).copied());
        if let Some(became) = next.and_then(|next| of(token[0], next)) {
            return [became.as_deref().unwrap_or(token), &[]];
        }
        match of(token[0], NONE) {
            Some(Some(became)) => [became, &[]],
            // What was copied is so again, with what came before the next one.
            _ => [token, next.and_then(|next| of(NONE, next)?.as_deref()).unwrap_or(&[])],
        }
    }

    /// Learns what the token at `at` of the prompt became.
    fn learn(&mut self, tokens: &[u32], at: usize, prompt: usize, became: &[u32]) -> Result<()> {
        let entries = (3 * size_of::<((u32, u32), Became)>()) as u64;
        self.became.try_reserve(3).map_err(|_| Error::OutOfMemory { what: WHAT, bytes: entries })?;
        let token = tokens[at];
        let next = tokens[..prompt].get(at + 1).copied().unwrap_or(NONE);
        for next in [next, NONE] {
            let became = match became == [token] {
                true => None,
                false => Some(alloc::copy_of(became, WHAT)?.into_boxed_slice()),
            };
            self.became.insert((token, next), became);
        }
        Ok(())
    }

    /// Whether what waits begins what the prompt's next tokens became before. Of those of which it has all it is learnt.
    fn is_expected(&mut self, tokens: &[u32], prompt: usize) -> Result<bool> {
        let Some(first) = self.at else { return Ok(false) };
        let (mut at, mut len) = (first, 0);
        // Behind each token of the prompt of which all is there: how much that is.
        let mut whole: Vec<usize> = Vec::new();
        while len < self.waiting.len() && at < prompt.min(first + 2 * WINDOW) {
            let [became, more] = self.of(tokens, at, prompt);
            let come = &self.waiting[len..];
            if became.iter().chain(more).zip(come).any(|(became, come)| became != come) {
                return Ok(false);
            }
            len += became.len() + more.len();
            at += 1;
            if len <= self.waiting.len() {
                alloc::reserve_more(&mut whole, 1, WHAT)?;
                whole.push(len);
            }
        }
        if len < self.waiting.len() {
            return Ok(false);
        }
        let waiting = std::mem::take(&mut self.waiting);
        let mut begin = 0;
        for (at, &end) in (first..).zip(&whole) {
            let became = &waiting[begin..end];
            self.learn(tokens, at, prompt, became)?;
            self.last.clear();
            self.last.extend_from_slice(became);
            begin = end;
        }
        self.at = Some(first + whole.len());
        self.waiting = waiting;
        self.waiting.drain(..begin);
        Ok(true)
    }

    /// Lays what waits beside what follows in the prompt; where the two come together, goes on from there.
    fn meet(&mut self, tokens: &[u32], prompt: usize) -> Result<()> {
        let Some(first) = self.at else { return Ok(()) };
        let window = &tokens[first..(first + WINDOW).min(prompt)];
        let Some((pairs, worth)) = best(&self.waiting, window) else { return Ok(()) };
        let Some(&(end, last)) = pairs.last() else { return Ok(()) };
        let in_row = pairs.len() > 1 && pairs[pairs.len() - 2] == (end - 1, last - 1);
        if end != self.waiting.len() || !(in_row || worth >= TOGETHER) {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.waiting);
        let mut before: Pair = (0, 0);
        for (of_text, of_prompt) in pairs {
            let other = &waiting[before.0..of_text - 1];
            if before.1 + 1 < of_prompt {
                // All of it became of the first token that it stands for.
                self.learn(tokens, first + before.1, prompt, other)?;
                for passed in before.1 + 1..of_prompt - 1 {
                    self.learn(tokens, first + passed, prompt, &[])?;
                }
            } else if !other.is_empty() && first + before.1 > 0 {
                // It was put in behind the token before.
                let at = first + before.1 - 1;
                if before.1 > 0 {
                    self.last.clear();
                    self.last.push(tokens[at]);
                }
                let mut became = std::mem::take(&mut self.last);
                became.extend_from_slice(other);
                self.learn(tokens, at, prompt, &became)?;
                let put_in = alloc::copy_of(other, WHAT)?.into_boxed_slice();
                self.became.insert((NONE, window[before.1]), Some(put_in));
            } else {
                self.became.remove(&(NONE, window[before.1]));
            }
            let at = first + of_prompt - 1;
            self.learn(tokens, at, prompt, &tokens[at..=at])?;
            before = (of_text, of_prompt);
        }
        self.last.clear();
        self.last.push(tokens[first + before.1 - 1]);
        self.at = Some(first + before.1);
        self.together = true;
        Ok(())
    }
}

/// How `text` is best laid beside `window`, in tokens that are equal, and what that is worth.
fn best(text: &[u32], window: &[u32]) -> Option<(Vec<Pair>, i32)> {
    /// The worth of what ends with a pair, or before it, and the pair.
    #[derive(Clone, Copy)]
    struct End {
        worth: i32,
        pair: Pair,
    }
    const NOTHING: End = End { worth: 0, pair: (0, 0) };
    let is_rare = |token: u32| window.iter().filter(|&&other| other == token).count() == 1;
    let width = window.len() + 1;
    // What ends with each pair, with the pair before it; and the best of what ends at it or before, as if all of the window behind it were
    // passed over from the beginning on.
    let mut of_pair = [[None::<End>; WINDOW + 1]; WINDOW + 2];
    let mut so_far = [[NOTHING; WINDOW + 1]; WINDOW + 2];
    let mut top: Option<End> = None;
    for (t, &token) in (1..).zip(text.iter().take(WINDOW + 1)) {
        for k in 1..width {
            let [above, left] = [so_far[t - 1][k], so_far[t][k - 1]];
            let mut far = if above.worth >= left.worth { above } else { left };
            if window[k - 1] == token {
                let passed = PASSED * (k as i32 - 1);
                let before = so_far[t - 1][k - 1];
                let mut end = End { worth: before.worth - passed, pair: before.pair };
                if let Some(next) = of_pair[t - 1][k - 1]
                    && next.worth + NEXT > end.worth
                {
                    end = End { worth: next.worth + NEXT, pair: (t - 1, k - 1) };
                }
                end.worth += MEETS[usize::from(!is_rare(token))];
                of_pair[t][k] = Some(end);
                let of_far = end.worth + PASSED * k as i32;
                if of_far > far.worth {
                    far = End { worth: of_far, pair: (t, k) };
                }
                if top.is_none_or(|top| end.worth >= top.worth) {
                    top = Some(End { worth: end.worth, pair: (t, k) });
                }
            }
            so_far[t][k] = far;
        }
    }
    let top = top?;
    let mut pairs = Vec::with_capacity(WINDOW);
    let mut pair = top.pair;
    while pair != (0, 0) {
        pairs.push(pair);
        pair = of_pair[pair.0][pair.1].map_or((0, 0), |end| end.pair);
    }
    pairs.reverse();
    Some((pairs, top.worth))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a text of `answer` goes on behind `prompt`, guess by guess: how many steps it takes, and how many guesses were wrong.
    fn steps(prompt: &[u32], answer: &[u32], from: usize) -> (usize, usize) {
        let mut follow = Follow::default();
        let mut text = [prompt, &answer[..from]].concat();
        follow.begin(from, text.len());
        let (mut steps, mut wrong) = (0, 0);
        while text.len() < prompt.len() + answer.len() {
            follow.advance(&text, prompt.len()).unwrap();
            let rest = &answer[text.len() - prompt.len()..];
            let guess = follow.guess(&text, prompt.len(), 8).unwrap();
            let right = guess.iter().zip(rest).take_while(|(a, b)| a == b).count();
            wrong += guess.len() - right;
            text.extend(&rest[..(right + 1).min(rest.len())]);
            steps += 1;
        }
        (steps, wrong)
    }

    /// Records `7 a 8 b 9`, whose values differ.
    fn records(count: u32, write: impl Fn(u32, u32) -> Vec<u32>) -> Vec<u32> {
        (0..count).flat_map(|i| write(100 + i, 200 + i * 7 % 5)).collect()
    }

    #[test]
    fn what_was_written_in_another_way_is_guessed_in_that_way() {
        let prompt = records(30, |a, b| vec![7, a, 8, b, 9]);
        // Copied; other separators, of more tokens and of fewer; some put in, and some left out.
        type Written = fn(u32, u32) -> Vec<u32>;
        let ways: [(Written, usize); 5] = [
            (|a, b| vec![7, a, 8, b, 9], 18),
            (|a, b| vec![17, a, 18, b, 19], 26),
            (|a, b| vec![17, 27, a, 18, 28, 38, b, 19], 41),
            (|a, b| vec![7, a, 28, 8, b, 9], 24),
            (|a, b| vec![a, b, 9], 13),
        ];
        for (write, most) in ways {
            let answer = records(30, write);
            let (steps, wrong) = steps(&prompt, &answer, 0);
            assert!(steps <= most && wrong <= 20, "{:?}: {steps} steps, {wrong} wrong", &answer[..8]);
        }
    }

    #[test]
    fn what_has_nothing_of_the_prompt_is_followed_no_more() {
        let prompt: Vec<u32> = (0..50).collect();
        let mut follow = Follow::default();
        follow.begin(0, 50);
        let mut text = prompt.clone();
        for token in 1000..1000 + WINDOW as u32 + 1 {
            text.push(token);
            follow.advance(&text, 50).unwrap();
            assert!(follow.guess(&text, 50, 4).unwrap().is_empty());
        }
        assert!(!follow.follows());
        // Behind the end of the prompt there is nothing.
        follow.begin(50, text.len());
        assert!(follow.guess(&text, 50, 4).unwrap().is_empty());
        text.push(3);
        follow.advance(&text, 50).unwrap();
        assert!(follow.guess(&text, 50, 4).unwrap().is_empty());
    }

    #[test]
    fn rare_tokens_meet_and_little_is_passed_over() {
        // The only 5, though there is a 1 before it and one behind.
        assert_eq!(best(&[9, 5], &[1, 2, 5, 1]).unwrap(), (vec![(2, 3)], MEETS[0] - 2 * PASSED));
        // The nearest of equals.
        assert_eq!(best(&[1], &[2, 1, 1]).unwrap().0, [(1, 2)]);
        // Those in a row.
        let (pairs, worth) = best(&[1, 2, 8], &[1, 3, 1, 2, 8]).unwrap();
        assert_eq!(pairs, [(1, 3), (2, 4), (3, 5)]);
        assert_eq!(worth, MEETS[1] + 2 * MEETS[0] + 2 * NEXT - 2 * PASSED);
        assert!(best(&[1, 2], &[3, 4]).is_none() && best(&[], &[3]).is_none() && best(&[1], &[]).is_none());
        // What is longer than the window.
        assert!(best(&[7; 3 * WINDOW], &[7; WINDOW]).is_some());
    }
}
