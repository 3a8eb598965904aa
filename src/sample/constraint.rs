//! Constraints: what a text may be, as the set of tokens that may come next, through llguidance.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, SimpleVob, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use parking_lot::Mutex;
use serde_json::Value;

use super::schema;
use crate::error::{caught, panic_text};
use crate::text::Tokenizer;
use crate::text::apart::{self, Lost};
use crate::{Error, Result};

/// Bytes of a grammar; of a schema, written without spaces.
const MAX_BYTES: usize = schema::MAX_BYTES;
/// Bytes of a regular expression.
const MAX_REGEX: usize = 16 << 10;
/// Lines of a grammar, each of which may be a rule: the compiler recurses from rule to rule.
const MAX_LINES: usize = 4096;
/// How deep brackets of a grammar nest; those of a schema within it are two for each of its levels.
const MAX_DEPTH: usize = 128;
/// States of a lexer, at one to two kilobytes each.
const MAX_LEXER_STATES: usize = 50_000;
/// The stack of the compiling thread: reserved, not touched.
const STACK: usize = 256 << 20;
/// What compiling may take. Its work is bounded; this is for what the bounds do not see.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a text is to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// A JSON value that a schema allows. Names come in the order of `properties`.
    JsonSchema(Value),
    /// What a regular expression matches as a whole, in the syntax of the `regex` crate, without anchors and look-around.
    Regex(String),
    /// What a grammar in llguidance's variant of Lark derives from `start`.
    Lark(String),
}

impl Grammar {
    /// What it is, in words.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::JsonObject | Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Lark(_) => "grammar",
        }
    }

    fn bad<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(Error::Grammar { kind: self.kind(), what: what.into() })
    }

    /// Refuses what is over a limit.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::JsonObject | Self::JsonSchema(_) => Ok(()),
            Self::Regex(regex) if regex.is_empty() || regex.len() > MAX_REGEX => {
                self.bad(format!("{} bytes, expected 1 to {MAX_REGEX}", regex.len()))
            }
            Self::Regex(_) => Ok(()),
            Self::Lark(grammar) if grammar.len() > MAX_BYTES => {
                self.bad(format!("{} bytes, expected at most {MAX_BYTES}", grammar.len()))
            }
            Self::Lark(grammar) if grammar.lines().count() > MAX_LINES => {
                self.bad(format!("more than {MAX_LINES} lines"))
            }
            Self::Lark(grammar) if depth(grammar) > MAX_DEPTH => {
                self.bad(format!("brackets nest deeper than {MAX_DEPTH}"))
            }
            // It can let a schema within the grammar ignore what cannot be enforced.
            Self::Lark(grammar) if grammar.contains("x-guidance") => self.bad("x-guidance is not allowed"),
            Self::Lark(_) => Ok(()),
        }
    }

    /// As llguidance takes it.
    fn compiled(&self) -> Result<TopLevelGrammar> {
        Ok(TopLevelGrammar::from_grammar(match self {
            Self::JsonObject => GrammarWithLexer::from_json_schema(schema::any_object()?),
            Self::JsonSchema(schema) => GrammarWithLexer::from_json_schema(schema::prepare(schema)?),
            Self::Regex(regex) => GrammarWithLexer::from_regex(regex),
            Self::Lark(grammar) => GrammarWithLexer::from_lark(grammar.clone()),
        }))
    }
}

/// How deep brackets nest, outside strings, patterns and comments.
fn depth(grammar: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let mut bytes = grammar.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'(' | b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'#' => while bytes.next_if(|&b| b != b'\n').is_some() {},
            b'/' if bytes.peek() == Some(&b'/') => while bytes.next_if(|&b| b != b'\n').is_some() {},
            b'"' | b'/' => {
                while let Some(inner) = bytes.next_if(|&b| b != b'\n') {
                    match inner {
                        b'\\' => drop(bytes.next()),
                        _ if inner == byte => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}

/// Makes constraints for one vocabulary.
pub struct GrammarCompiler {
    factory: Arc<ParserFactory>,
    /// The thread that was given up on last.
    late: Mutex<Option<JoinHandle<()>>>,
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
        factory.quiet();
        factory.limits_mut().max_lexer_states = MAX_LEXER_STATES;
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory: Arc::new(factory), late: Mutex::new(None) })
    }

    /// A constraint for one text.
    ///
    /// # Errors
    /// [`Error::Schema`] with the place and the keyword that cannot be enforced; [`Error::Grammar`] for a syntax error,
    /// what allows no text, and what is over a limit: 256 KiB, 4,096 schemas or lines, 64 levels, the size of what they
    /// are compiled to, 5 s.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint> {
        grammar.check()?;
        self.compile_checked(grammar)
    }

    /// A constraint of a grammar that was put together here, of parts that were checked.
    pub(crate) fn compile_checked(&self, grammar: &Grammar) -> Result<Constraint> {
        let kind = grammar.kind();
        let bad = |what: String| Err(Error::Grammar { kind, what });
        let mut late = self.late.lock();
        if late.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return bad("an earlier grammar, which took too long, is still being compiled".into());
        }
        *late = None;
        let (factory, grammar) = (Arc::clone(&self.factory), grammar.clone());
        let made = apart::run("grammar", STACK, PATIENCE, move || {
            let mut matcher = Matcher::new(factory.create_parser(grammar.compiled()?));
            // What allows nothing is refused here and not in the middle of a request.
            let result = matcher.compute_mask().map(|_| ());
            match result {
                Ok(()) => Ok(Constraint { matcher: Box::new(matcher), kind }),
                Err(error) => grammar.bad(explained(&error.to_string())),
            }
        });
        match made {
            Ok(made) => made,
            Err(Lost::NoThread(error)) => bad(error.to_string()),
            Err(Lost::Panicked) => bad("its compiler panicked".into()),
            Err(Lost::Late(thread)) => {
                *late = Some(thread);
                bad(format!("compiling it took longer than {} s", PATIENCE.as_secs()))
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
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        // A shallow clone shares its lexer's tables, and the lock around them, with the original.
        Self { matcher: Box::new(self.matcher.deep_clone()), kind: self.kind }
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
        let mask = self.matcher.compute_mask_or_eos();
        mask.map(Mask).map_err(|error| self.failed(&error))
    }

    /// Goes on by a token.
    ///
    /// # Errors
    /// [`Error::Grammar`] for a token that may not come next.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        self.matcher.consume_token(token).map_err(|error| self.failed(&error))
    }

    /// Whether the text is whole and nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }

    /// Whether the text is whole as it is; something may still be able to follow.
    pub fn is_accepting(&mut self) -> bool {
        self.is_complete() || self.matcher.is_accepting().unwrap_or(false)
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
