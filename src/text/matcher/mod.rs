//! Matches of a `tokenizer.json`'s patterns: what Oniguruma would find, with every step counted.
//!
//! A pattern becomes a lazy automaton, so that a step is a byte, and no text makes it go back further than to where it
//! began. Look-around has no automaton. What nearly all published patterns have of it, `\s+(?!\S)`, is white space but for
//! the last character where something follows, and is done so; the rest backtracks, with a limit.

mod cost;
mod fold;
mod syntax;

use std::sync::Arc;
use std::time::Duration;

use memchr::memmem;
use parking_lot::Mutex;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::hybrid::{dfa, regex};
use regex_automata::nfa::thompson;
use regex_automata::{Anchored, Input, PatternID};
use serde_json::Value;

use crate::apart;

/// White space up to where something follows it, then what is left of it: how patterns end that keep a space for the word.
const TAILS: [&str; 2] = [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)|\s"];
/// What stands for a tail.
const WHITE: &str = r"\s+";
/// Bytes of the program of an automaton, and of its states. Those of the largest published pattern take under a tenth.
const PROGRAM: usize = 8 << 20;
const STATES: usize = 16 << 20;
/// Steps that a text may take, whatever its length and for each of its bytes: an honest pattern takes two or three a byte.
const STEPS: (usize, usize) = (16 << 20, 256);
/// Steps that a pattern with look-around may take for one match, two for each byte of the longest text, and how long it may
/// work on a text, whatever its length and for each of its bytes: what it looks at is not counted among the steps.
const BACKTRACKS: usize = 64 << 20;
const WORK: (Duration, Duration) = (Duration::from_secs(10), Duration::from_micros(10));

/// A pattern of a `tokenizer.json`. Clones share what was compiled.
#[derive(Clone)]
pub(super) struct Matcher(Arc<Engine>);

enum Engine {
    /// A text itself; an empty one is nowhere.
    Text(String),
    Automaton(Box<Automaton>),
    Backtracking(fancy_regex::Regex),
}

impl Matcher {
    /// What `{"String": …}` or `{"Regex": …}` finds.
    ///
    /// # Errors
    /// What is neither, and a pattern that is no such, or one too large.
    pub fn from_json(json: &Value) -> Result<Self, String> {
        if let Some(text) = json["String"].as_str() {
            return Ok(Self(Arc::new(Engine::Text(text.into()))));
        }
        Self::regex(json["Regex"].as_str().ok_or("pattern: expected a String or a Regex")?)
    }

    /// What a pattern in Oniguruma's syntax finds.
    ///
    /// # Errors
    /// As [`Self::from_json`].
    pub fn regex(pattern: &str) -> Result<Self, String> {
        let named = |what: String| {
            let shown: String = pattern.chars().take(60).collect();
            format!("pattern {shown:?}: {what}")
        };
        let tail = TAILS.into_iter().find_map(|tail| pattern.strip_suffix(tail));
        if let Some(rest) = tail
            && let Ok(translated) = syntax::translate(rest)
            && !translated.backtracks
        {
            return Automaton::new(&[&translated.pattern, WHITE]).map(Self::automaton).map_err(named);
        }
        let translated = syntax::translate(pattern).map_err(named)?;
        if !translated.backtracks {
            return Automaton::new(&[&translated.pattern]).map(Self::automaton).map_err(named);
        }
        let regex = fancy_regex::RegexBuilder::new(&translated.pattern)
            .backtrack_limit(BACKTRACKS)
            .delegate_size_limit(PROGRAM)
            .delegate_dfa_size_limit(STATES)
            .build()
            .map_err(|error| named(innermost(&error)))?;
        Ok(Self(Arc::new(Engine::Backtracking(regex))))
    }

    fn automaton(automaton: Automaton) -> Self {
        Self(Arc::new(Engine::Automaton(Box::new(automaton))))
    }

    /// Calls `each` with the beginning and the end of each match, in order; of empty ones, those that no match ends at.
    fn each(&self, text: &str, mut each: impl FnMut(usize, usize)) -> Result<(), String> {
        match &*self.0 {
            Engine::Text(sought) if sought.is_empty() => {}
            Engine::Text(sought) => {
                let sought = sought.as_bytes();
                memmem::find_iter(text.as_bytes(), sought).for_each(|at| each(at, at + sought.len()));
            }
            Engine::Automaton(automaton) => automaton.each(text, each)?,
            Engine::Backtracking(regex) => backtrack(regex, text, WORK, each)?,
        }
        Ok(())
    }
}

/// What an error comes from in the end, which is what names it.
fn innermost(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .last()
        .map_or_else(String::new, ToString::to_string)
}

/// As [`Matcher::each`], within `limit`.
fn backtrack(
    regex: &fancy_regex::Regex,
    text: &str,
    limit: (Duration, Duration),
    mut each: impl FnMut(usize, usize),
) -> Result<(), String> {
    let (base, per_byte) = limit;
    let until = apart::worked() + base + per_byte * u32::try_from(text.len()).unwrap_or(u32::MAX);
    for (i, found) in regex.find_iter(text).enumerate() {
        let found = found.map_err(|error| error.to_string())?;
        each(found.start(), found.end());
        if i % 16 == 0 && apart::worked() > until {
            return Err(too_many(text));
        }
    }
    Ok(())
}

fn too_many(text: &str) -> String {
    format!("a text of {} bytes takes a pattern more steps than any honest one", text.len())
}

/// Byte ranges that make up a text, in order, each with whether it is a match.
type Pieces = Vec<((usize, usize), bool)>;

impl tokenizers::pattern::Pattern for &Matcher {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Pieces> {
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut pieces = Vec::with_capacity(inside.len() / 4);
        let mut done = 0;
        self.each(inside, |start, end| {
            if done != start {
                pieces.push(((done, start), false));
            }
            pieces.push(((start, end), true));
            done = end;
        })?;
        if done != inside.len() {
            pieces.push(((done, inside.len()), false));
        }
        Ok(pieces)
    }
}

/// Automata of one pattern, or of one and its tail.
struct Automaton {
    regex: regex::Regex,
    /// The states that were made so far; as many as threads have used them at once.
    caches: Mutex<Vec<regex::Cache>>,
}

impl Automaton {
    fn new(patterns: &[&str]) -> Result<Self, String> {
        let states = dfa::Config::new().cache_capacity(STATES).skip_cache_capacity_check(true);
        let program = thompson::Config::new().nfa_size_limit(Some(PROGRAM));
        let regex = regex::Builder::new().dfa(states).thompson(program).build_many(patterns);
        let regex = regex.map_err(|error| innermost(&error))?;
        Ok(Self { regex, caches: Mutex::default() })
    }

    fn each(&self, text: &str, each: impl FnMut(usize, usize)) -> Result<(), String> {
        let cache = self.caches.lock().pop();
        let mut cache = cache.unwrap_or_else(|| self.regex.create_cache());
        let (forward, reverse) = cache.as_parts_mut();
        let (base, per_byte) = STEPS;
        let mut search = Search {
            automaton: self,
            text,
            forward,
            reverse,
            steps: base.saturating_add(per_byte.saturating_mul(text.len())),
        };
        let found = search.each(each);
        self.caches.lock().push(cache);
        found
    }
}

/// One pass over a text.
struct Search<'a> {
    automaton: &'a Automaton,
    text: &'a str,
    forward: &'a mut Cache,
    reverse: &'a mut Cache,
    /// Those left.
    steps: usize,
}

impl Search<'_> {
    fn each(&mut self, mut each: impl FnMut(usize, usize)) -> Result<(), String> {
        let mut at = 0;
        let mut last = None;
        while at <= self.text.len() {
            let Some((start, end)) = self.find(at)? else { break };
            if start == end && last == Some(end) {
                at = end + self.text[end..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            each(start, end);
            (at, last) = (end, Some(end));
        }
        Ok(())
    }

    /// The first match that begins at `at` or behind it.
    fn find(&mut self, at: usize) -> Result<Option<(usize, usize)>, String> {
        // Nearly always a match begins where the last one ended.
        if let Some((end, pattern)) = self.ahead(at, Anchored::Yes)? {
            return Ok(Some(self.given_back(at, end, pattern)));
        }
        let Some((end, pattern)) = self.ahead(at, Anchored::No)? else { return Ok(None) };
        let start = self.back(at, end)?;
        Ok(Some(self.given_back(start, end, pattern)))
    }

    /// A match of white space that something follows gives back its last character, unless it is the only one.
    fn given_back(&self, start: usize, end: usize, pattern: PatternID) -> (usize, usize) {
        if pattern == PatternID::ZERO || end == self.text.len() {
            return (start, end);
        }
        let last = self.text[start..end].chars().next_back().map_or(0, char::len_utf8);
        (start, if end - last == start { end } else { end - last })
    }

    fn spend(&mut self, steps: usize) -> Result<(), String> {
        let left = self.steps.checked_sub(steps);
        self.steps = left.ok_or_else(|| too_many(self.text))?;
        Ok(())
    }

    /// The end and the pattern of the match that begins first, at `start` alone where it is anchored.
    fn ahead(&mut self, start: usize, anchored: Anchored) -> Result<Option<(usize, PatternID)>, String> {
        let dfa = self.automaton.regex.forward();
        let input = Input::new(self.text).range(start..).anchored(anchored);
        let mut state = dfa.start_state_forward(self.forward, &input).map_err(|e| e.to_string())?;
        let mut found = None;
        let bytes = self.text.as_bytes();
        for (at, &byte) in bytes.iter().enumerate().skip(start) {
            state = dfa.next_state(self.forward, state, byte).map_err(gave_up)?;
            if state.is_match() {
                found = Some((at, dfa.match_pattern(self.forward, state, 0)));
            } else if state.is_dead() {
                self.spend(at - start + 1)?;
                return Ok(found);
            }
        }
        self.spend(bytes.len() - start + 1)?;
        state = dfa.next_eoi_state(self.forward, state).map_err(gave_up)?;
        if state.is_match() {
            found = Some((bytes.len(), dfa.match_pattern(self.forward, state, 0)));
        }
        Ok(found)
    }

    /// The first beginning, from `least` on, of what matches up to `end`.
    fn back(&mut self, least: usize, end: usize) -> Result<usize, String> {
        let dfa: &DFA = self.automaton.regex.reverse();
        let input = Input::new(self.text).range(least..end).anchored(Anchored::Yes);
        let mut state = dfa.start_state_reverse(self.reverse, &input).map_err(|e| e.to_string())?;
        let mut found = end;
        let bytes = self.text.as_bytes();
        for at in (least..end).rev() {
            state = dfa.next_state(self.reverse, state, bytes[at]).map_err(gave_up)?;
            if state.is_match() {
                found = at + 1;
            } else if state.is_dead() {
                self.spend(end - at)?;
                return Ok(found);
            }
        }
        self.spend(end - least + 1)?;
        state = match least.checked_sub(1) {
            Some(before) => dfa.next_state(self.reverse, state, bytes[before]).map_err(gave_up)?,
            None => dfa.next_eoi_state(self.reverse, state).map_err(gave_up)?,
        };
        if state.is_match() {
            found = least;
        }
        Ok(found)
    }
}

fn gave_up(error: regex_automata::hybrid::CacheError) -> String {
    format!("a pattern has too many states: {error}")
}

#[cfg(test)]
mod tests;
