//! What a text is to be, and its compiling through llguidance within limits.

use std::sync::Once;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use super::schema;
use crate::error::keep_quiet;
use crate::error::{Error, Result};

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
pub(super) const STACK: usize = 256 << 20;
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

    pub(super) fn bad<T>(&self, what: impl Into<String>) -> Result<T> {
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
    pub(super) fn compiled(&self) -> Result<TopLevelGrammar> {
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

/// Sets what bounds the work of compiling and of masks.
pub(super) fn limit(factory: &mut ParserFactory) {
    // The library's hook makes a backtrace of each panic, and names of its addresses: where memory is limited that may fail, and
    // waits for itself for ever then. It is set at its first call, so that ours comes before it.
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let _ = llguidance::panic_utils::catch_unwind(|| Ok(()));
        keep_quiet();
    });
    factory.quiet();
    factory.limits_mut().max_lexer_states = MAX_LEXER_STATES;
    factory.limits_mut().verbose_errors = false;
}

/// Compiles. What allows nothing is refused here and not in the middle of a request.
pub(super) fn begin(
    factory: &ParserFactory,
    grammar: TopLevelGrammar,
) -> std::result::Result<Matcher, String> {
    let mut matcher = Matcher::new(factory.create_parser(grammar));
    matcher.compute_mask().map(|_| ()).map_err(|error| error.to_string())?;
    Ok(matcher)
}
