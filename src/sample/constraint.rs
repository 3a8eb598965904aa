//! Constraints: what a text may be, as the set of tokens that may come next, through llguidance.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, SimpleVob, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use parking_lot::Mutex;

use super::grammar::{self, Grammar, STACK};
use super::trial;
use crate::apart::{self, Lost};
use crate::error::{Error, Result};
use crate::error::{caught, panic_text};
use crate::text::Tokenizer;

/// What compiling may take. Its work is bounded; this is for what the bounds do not see, on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(60);
/// What it may take where its work is not bounded and nothing checked it before.
const UNCHECKED: Duration = Duration::from_secs(5);
/// Threads that were given up on and still compile, at most.
const MAX_LATE: usize = 4;
/// Work on the masks of one text: what is free, and what each token adds. A mask takes some 50 µs.
const MASKS: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(20)];
/// Work on following its tokens.
const STEPS: [Duration; 2] = [Duration::from_millis(20), Duration::from_micros(300)];
/// Work of a mask that takes long; most take 50 µs.
const SLOW: Duration = Duration::from_millis(5);
/// Work on following its tokens that is long: what is free, and what each token adds. Most take 20 µs, between two steps of all.
const SLOW_STEPS: [Duration; 2] = [Duration::from_millis(1), Duration::from_micros(100)];

/// Makes constraints for one vocabulary.
pub struct GrammarCompiler {
    factory: Arc<ParserFactory>,
    checker: Option<trial::Checker>,
    /// Threads that were given up on.
    late: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// A compiler for the tokens of `tokenizer`, of which `eos` end a text. It takes a pass over the vocabulary.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where a token's bytes depend on its neighbours.
    pub fn new(tokenizer: &Tokenizer, eos: &[u32]) -> Result<Self> {
        let vocab = tokenizer.vocab_size();
        let mut words = Vec::with_capacity(vocab);
        for id in 0..vocab as u32 {
            let bytes = tokenizer.token_bytes(id)?.unwrap_or_default();
            if tokenizer.is_special(id) || eos.contains(&id) {
                // Never text: a mark that no UTF-8 has.
                let text = tokenizer.token_text(id).unwrap_or_default();
                words.push([&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat());
            } else {
                words.push(bytes);
            }
        }
        let eos: Vec<u32> = eos.iter().copied().filter(|&id| (id as usize) < vocab).collect();
        let made = caught(|| {
            let info = TokRxInfo::new(vocab as u32, eos.first().copied().unwrap_or(INVALID_TOKEN));
            let mut trie = TokTrie::from(&info, &words);
            if !eos.is_empty() {
                trie = trie.with_eos_tokens(&eos);
            }
            let env: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            ParserFactory::new_simple(&env)
        });
        let bad = |what: String| Error::Tokenizer(format!("no constraints can be made for it: {what}"));
        let mut factory = match made {
            Ok(made) => made.map_err(|error| bad(error.to_string()))?,
            Err(panic) => return Err(bad(panic_text(&*panic).to_owned())),
        };
        grammar::limit(&mut factory);
        Ok(Self { factory: Arc::new(factory), checker: None, late: Mutex::default() })
    }

    /// Has `program`, which is `backstop` itself, compile in a process of its own first what may take any time and memory: what
    /// takes more than 2 s of work or 64 MiB is then refused. Without it, a thread goes on with that which cannot be stopped.
    #[must_use]
    pub fn with_checker(mut self, program: PathBuf) -> Self {
        self.checker = Some(trial::Checker::new(program));
        self
    }

    /// A constraint for one text.
    ///
    /// # Errors
    /// [`Error::Schema`] with the place and the keyword that cannot be enforced; [`Error::Grammar`] for a syntax error,
    /// what allows no text, and what is over a limit: 256 KiB, 4,096 schemas or lines, 64 levels, the size of what they
    /// are compiled to, the work and memory that [`Self::with_checker`] names.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint> {
        grammar.check()?;
        self.compile_checked(grammar)
    }

    /// A constraint of a grammar that was put together here, of parts that were checked.
    pub(crate) fn compile_checked(&self, grammar: &Grammar) -> Result<Constraint> {
        let kind = grammar.kind();
        let bad = |what: String| Err(Error::Grammar { kind, what });
        let patience = match &self.checker {
            _ if !trial::may_explode(grammar) => PATIENCE,
            Some(checker) => checker.check(grammar).map(|()| PATIENCE)?,
            None => UNCHECKED,
        };
        let late = {
            let mut late = self.late.lock();
            late.retain(|thread| !thread.is_finished());
            late.len()
        };
        if late >= MAX_LATE {
            return bad(format!("{late} earlier grammars, which took too long, are still being compiled"));
        }
        let (factory, grammar) = (Arc::clone(&self.factory), grammar.clone());
        let made = apart::run("grammar", STACK, patience, move || {
            let started = apart::worked();
            let begun = grammar::begin(&factory, grammar.compiled()?);
            let compiling = apart::worked().saturating_sub(started);
            let work = Work { compiling, ..Work::default() };
            match begun {
                Ok(matcher) => Ok(Constraint { matcher: Box::new(matcher), kind, work }),
                Err(error) => grammar.bad(explained(&error)),
            }
        });
        match made {
            Ok(made) => made,
            Err(Lost::NoThread(source)) => Err(Error::Thread { what: "a grammar", source }),
            Err(Lost::Panicked) => bad("its compiler panicked".into()),
            Err(Lost::Late(thread)) => {
                self.late.lock().push(thread);
                bad(format!("compiling it took longer than {} s", patience.as_secs()))
            }
        }
    }
}

/// What the compiler's words mean for whoever wrote the grammar.
fn explained(error: &str) -> String {
    if error.contains("NoExtensionBias") {
        return "it allows no text".to_owned();
    }
    if error.contains("oneOf constraints are not supported") {
        return "oneOf: its alternatives may overlap, which cannot be enforced: use anyOf, or tell them apart by their types \
            or by a required property of different constants"
            .to_owned();
    }
    super::first_line(error)
}

/// What the next tokens of one text may be. A clone goes its own way.
pub struct Constraint {
    /// Over a kilobyte.
    matcher: Box<Matcher>,
    kind: &'static str,
    work: Work,
}

/// What following a text has taken so far, in the time of the threads that did it.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    /// Up to the first mask, which says what the next ones may take.
    compiling: Duration,
    masks: Duration,
    steps: Duration,
    /// Of these the last one's.
    last: Duration,
    tokens: u32,
}

impl Work {
    /// Refuses more than `[free, each]` allows.
    fn check(&self, spent: Duration, [free, each]: [Duration; 2]) -> std::result::Result<(), String> {
        if spent <= free + each * self.tokens {
            return Ok(());
        }
        let (ms, tokens) = (spent.as_millis(), self.tokens);
        Err(format!("{tokens} tokens took {ms} ms of work, more than is allowed: it may be ambiguous"))
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        // A shallow clone shares its lexer's tables, and the lock around them, with the original.
        Self { matcher: Box::new(self.matcher.deep_clone()), kind: self.kind, work: self.work }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Constraint {
    /// The tokens that may come next; those that end the text are among them where it may end here.
    ///
    /// # Errors
    /// [`Error::Grammar`] where that takes more than its bounded work.
    pub fn mask(&mut self) -> Result<Mask> {
        let started = apart::worked();
        let mask = self.matcher.compute_mask_or_eos();
        self.work.masks += apart::worked().saturating_sub(started);
        let mask = mask.map_err(|error| self.failed(&error))?;
        self.work.check(self.work.masks, MASKS).map_err(|what| self.failed(&what))?;
        Ok(Mask(mask))
    }

    /// Goes on by a token.
    ///
    /// # Errors
    /// [`Error::Grammar`] for a token that may not come next, and where the tokens so far took more than their bounded work.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        let started = apart::worked();
        let accepted = self.matcher.consume_token(token);
        self.work.last = apart::worked().saturating_sub(started);
        self.work.steps += self.work.last;
        self.work.tokens += 1;
        accepted.map_err(|error| self.failed(&error))?;
        self.work.check(self.work.steps, STEPS).map_err(|what| self.failed(&what))
    }

    /// The work that it took so far.
    pub(crate) fn took(&self) -> Duration {
        self.work.compiling + self.work.masks + self.work.steps
    }

    #[cfg(test)]
    pub(crate) fn set_work(&mut self, masks: Duration) {
        self.work = Work { masks, ..Work::default() };
    }

    /// Whether its masks take long, or following its tokens does, each and all together, or did with the last one.
    pub(crate) fn is_slow(&self) -> bool {
        let Work { compiling, masks, steps, last, tokens } = self.work;
        let ([free, each], masks) = (SLOW_STEPS, compiling + masks);
        (masks > apart::LONG && masks > SLOW * tokens) || steps > free + each * tokens || last > free
    }

    /// Whether the text is whole and nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }

    /// Whether the text is whole as it is; something may still be able to follow.
    pub fn is_accepting(&mut self) -> bool {
        let started = apart::worked();
        let accepting = self.is_complete() || self.matcher.is_accepting().unwrap_or(false);
        self.work.steps += apart::worked().saturating_sub(started);
        accepting
    }

    /// An error of [`Self::mask`] once more: errors cannot be cloned.
    pub(crate) fn repeated(&self, error: &Error) -> Error {
        match error {
            Error::Grammar { kind, what } => Error::Grammar { kind, what: what.clone() },
            other => Error::Grammar { kind: self.kind, what: other.to_string() },
        }
    }

    fn failed(&self, error: &impl std::fmt::Display) -> Error {
        let what = super::first_line(&error.to_string());
        Error::Grammar { kind: self.kind, what: format!("it cannot be followed any further: {what}") }
    }
}

/// A set of tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask(SimpleVob);

impl Mask {
    /// The set of `tokens` out of `vocab`; for tests and other sources of constraints.
    pub fn of(vocab: usize, tokens: impl IntoIterator<Item = u32>) -> Self {
        let mut set = SimpleVob::alloc(vocab);
        tokens.into_iter().filter(|&token| (token as usize) < vocab).for_each(|token| set.allow_token(token));
        Self(set)
    }

    /// Whether `token` is in the set.
    pub fn allows(&self, token: u32) -> bool {
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }

    /// How many tokens are in the set.
    pub fn count(&self) -> usize {
        self.0.num_set()
    }

    /// −∞ for the logits of all other tokens.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        let words = self.0.as_slice();
        for (chunk, index) in logits.chunks_mut(32).zip(0..) {
            let word = words.get(index).copied().unwrap_or(0);
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in chunk.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}
