//! Grammars whose compiling may take any time and memory are compiled in a process of their own first, which the system stops at
//! a limit: a thread cannot be stopped.
//!
//! What explodes is the search for a text that two conditions have in common: numbers that are multiples, intersections of
//! patterns. llguidance limits that search in most places, but not where a lexer begins.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use llguidance::ParserFactory;
use llguidance::toktrie::ApproximateTokEnv;
use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use super::grammar::{self, Grammar, STACK};
use crate::apart;
use crate::error::caught;
use crate::error::{Error, Result};

/// The program's argument for [`answer`].
pub const COMMAND: &str = "check-grammar";
/// Seconds of work that compiling may take.
pub const WORK: u64 = 2;
/// Bytes of memory that it may take.
pub const MEMORY: u64 = 64 << 20;
/// Bytes of stack of the thread that compiles, reserved and not touched.
pub const STACK_BYTES: u64 = STACK as u64;
/// How long the process is waited for on a machine that has no time for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Processes at a time.
const MOST: usize = 2;
/// Grammars that are remembered to have passed.
const REMEMBERED: usize = 256;

/// Runs the program that checks grammars.
#[derive(Debug)]
pub(super) struct Checker {
    program: PathBuf,
    passed: Mutex<VecDeque<u64>>,
    hashes: RandomState,
    running: Mutex<usize>,
    ended: Condvar,
}

impl Checker {
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            passed: Mutex::default(),
            hashes: RandomState::new(),
            running: Mutex::new(0),
            ended: Condvar::new(),
        }
    }

    /// Refuses what takes too much to compile.
    ///
    /// # Errors
    /// [`Error::Grammar`] for that, and where the program cannot be run; [`Error::Busy`] where it had no time.
    pub fn check(&self, grammar: &Grammar) -> Result<()> {
        let text = written(grammar).to_string();
        let hash = self.hashes.hash_one(&text);
        if self.passed.lock().contains(&hash) {
            return Ok(());
        }
        let bad = |what: String| Err(Error::Grammar { kind: grammar.kind(), what });
        let mut running = self.running.lock();
        let waited = self.ended.wait_while_for(&mut running, |running| *running >= MOST, PATIENCE);
        if waited.timed_out() && *running >= MOST {
            return Err(busy(grammar));
        }
        *running += 1;
        drop(running);
        let status = self.run(&text);
        *self.running.lock() -= 1;
        self.ended.notify_one();

        match status {
            Ok(Some(status)) if status.success() => {
                let mut passed = self.passed.lock();
                passed.truncate(REMEMBERED - 1);
                passed.push_front(hash);
                Ok(())
            }
            // A number is that of an error of its own, such as an option that it does not know; a signal ends what is over a limit.
            Ok(Some(status)) if status.code().is_some() => {
                bad(format!("{} cannot check it: {status}", self.program.display()))
            }
            Ok(None) => Err(busy(grammar)),
            Ok(Some(_)) => bad(format!(
                "compiling it takes more than {WORK} s of work or {} MiB: multiples of large numbers and intersections of \
                 patterns do",
                MEMORY >> 20
            )),
            Err(error) => bad(format!("{} cannot check it: {error}", self.program.display())),
        }
    }

    /// How the process ended; none where it had to be stopped.
    fn run(&self, text: &str) -> io::Result<Option<ExitStatus>> {
        let mut command = Command::new(&self.program);
        command.arg(COMMAND).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // At its limit there is no memory for a backtrace: what is refused while one is made waits for itself for ever.
        command.env("RUST_BACKTRACE", "0");
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // Where it has ended already, its status says why.
            let _ = stdin.write_all(text.as_bytes());
        }
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if started.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

/// The process that checks: compiles the grammar that `input` has for the simplest vocabulary. It says nothing; that it ends is
/// what is wanted, and errors are found once more by who asked. Limits have been set by the caller.
///
/// # Errors
/// [`Error::Io`], and input that no checker wrote.
pub fn answer(mut input: impl Read) -> Result<()> {
    // Who generates text goes first.
    apart::lower(apart::own_id());
    let stdin = Path::new("stdin");
    let bad = |what: &str| Error::format(stdin, what);
    let mut text = String::new();
    input.read_to_string(&mut text).map_err(|e| Error::io(stdin, e))?;
    let wanted = serde_json::from_str(&text).ok().and_then(read).ok_or_else(|| bad("no grammar"))?;
    let work = move || {
        let factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env());
        let Ok(mut factory) = factory else { return };
        grammar::limit(&mut factory);
        // A panic is met once more as well.
        let _ = caught(|| wanted.compiled().map(|compiled| grammar::begin(&factory, compiled)));
    };
    apart::run("grammar", STACK, Duration::MAX, work).map_err(|_| bad("no thread"))
}

/// It is not known whether it may be compiled.
fn busy(grammar: &Grammar) -> Error {
    Error::Busy { what: format!("{}: it was not checked within {} s", grammar.kind(), PATIENCE.as_secs()) }
}

fn written(grammar: &Grammar) -> Value {
    match grammar {
        Grammar::JsonObject => json!({ "json": null }),
        Grammar::JsonSchema(schema) => json!({ "json": schema }),
        Grammar::Regex(regex) => json!({ "regex": regex }),
        Grammar::Lark(lark) => json!({ "lark": lark }),
    }
}

fn read(written: Value) -> Option<Grammar> {
    let Value::Object(members) = written else { return None };
    match members.into_iter().next()? {
        (kind, Value::Null) if kind == "json" => Some(Grammar::JsonObject),
        (kind, schema) if kind == "json" => Some(Grammar::JsonSchema(schema)),
        (kind, Value::String(text)) if kind == "regex" => Some(Grammar::Regex(text)),
        (kind, Value::String(text)) if kind == "lark" => Some(Grammar::Lark(text)),
        _ => None,
    }
}

/// Whether what is compiled has two conditions to be met at once. Everything else is compiled in proportion to its size.
pub(super) fn may_explode(grammar: &Grammar) -> bool {
    match grammar {
        Grammar::JsonObject | Grammar::Regex(_) => false,
        Grammar::JsonSchema(schema) => meets(schema),
        Grammar::Lark(lark) => lark.contains(['&', '~']) || lark.contains("%json"),
    }
}

/// Whether a schema within `schema` has conditions to be met at once. A property of such a name counts as one, too, which costs
/// a check.
fn meets(schema: &Value) -> bool {
    const CONDITIONS: [&[&str]; 8] = [
        &["pattern"],
        &["format"],
        &["minLength", "maxLength"],
        &["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
        &["enum", "const"],
        &["properties", "patternProperties", "additionalProperties"],
        &["$ref"],
        &["anyOf", "oneOf"],
    ];
    match schema {
        Value::Array(items) => items.iter().any(meets),
        Value::Object(members) => {
            let has = |name: &&str| members.contains_key(*name);
            let alone = ["multipleOf", "allOf", "patternProperties"].iter().any(has);
            let together = CONDITIONS.iter().filter(|names| names.iter().any(has)).count() > 1;
            alone || together || members.values().any(meets)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_met_at_once_is_seen() {
        let schema = |schema: Value| may_explode(&Grammar::JsonSchema(schema));
        for harmless in [
            json!({ "type": "object", "properties": { "a": { "type": "string", "maxLength": 9 }, "b": { "enum": [1, 2] } } }),
            json!({ "anyOf": [{ "type": "string", "pattern": "^a+$" }, { "$ref": "#/$defs/a" }], "$defs": { "a": { "format": "date" } } }),
            json!(true),
        ] {
            assert!(!schema(harmless.clone()), "{harmless}");
        }
        for suspect in [
            json!({ "items": { "multipleOf": 7 } }),
            json!({ "allOf": [{ "type": "string" }] }),
            json!({ "properties": { "a": { "pattern": "a", "minLength": 3 } } }),
            json!({ "$ref": "#/$defs/a", "maximum": 3 }),
            json!({ "anyOf": [{ "format": "date", "pattern": "a" }] }),
        ] {
            assert!(schema(suspect.clone()), "{suspect}");
        }
        for (lark, expected) in
            [("start: /a/", false), ("start: /a/ & /b/", true), ("start: A\nA: ~/b/", true)]
        {
            assert_eq!(may_explode(&Grammar::Lark(lark.into())), expected, "{lark}");
        }
        assert!(may_explode(&Grammar::Lark("start: %json { \"type\": \"object\" }".into())));
        assert!(!may_explode(&Grammar::Regex("(a&~b){3}".into())));
    }

    #[test]
    fn grammars_come_back_as_they_were_written() {
        for grammar in [
            Grammar::JsonObject,
            Grammar::JsonSchema(json!({ "a": [1, "x"] })),
            Grammar::Regex("a\"\n".into()),
            Grammar::Lark("start: \"a\"\n".into()),
        ] {
            let text = written(&grammar).to_string();
            assert_eq!(read(serde_json::from_str(&text).unwrap()), Some(grammar));
        }
        for wrong in ["[]", "{}", "{\"what\": \"a\"}", "{\"regex\": 1}", "\u{0}"] {
            assert!(answer(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_program_that_is_none_is_an_error() {
        let grammar = Grammar::JsonSchema(json!({ "multipleOf": 3 }));
        let said = |program: &str| Checker::new(program.into()).check(&grammar).unwrap_err().to_string();
        assert!(
            said("/nowhere/backstop")
                .starts_with("JSON schema: /nowhere/backstop cannot check it: No such file")
        );
        assert_eq!(said("false"), "JSON schema: false cannot check it: exit status: 1");
        assert!(Checker::new("true".into()).check(&grammar).is_ok());
    }
}
