//! The library's error: every variant names the file or the op, what was expected and what was got.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// What a library call returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call of the library failed. The binary and the examples wrap it in `anyhow`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },

    /// A file of the model is malformed, hostile or not supported.
    #[error("{}: {what}", path.display())]
    Format {
        /// The file concerned.
        path: PathBuf,
        /// The field, its value and what was expected.
        what: String,
    },

    /// A file of the model was changed by another program while it was in use.
    #[error("{}: changed while it was in use ({what}): load the model anew", path.display())]
    Changed {
        /// The file concerned.
        path: PathBuf,
        /// How that is known.
        what: String,
    },

    /// `config.json` holds a value that cannot be run.
    #[error("{}: {field} is {got}, expected {expected}", path.display())]
    Config {
        /// The file concerned.
        path: PathBuf,
        /// The field's name as written in the file.
        field: String,
        /// The value found, or `missing`.
        got: String,
        /// The values that are accepted.
        expected: String,
    },

    /// A weight that the model needs is missing or has another shape.
    #[error("{}: tensor {name}: {what}", path.display())]
    Weight {
        /// The file or directory concerned.
        path: PathBuf,
        /// The tensor's name in the checkpoint.
        name: String,
        /// What was expected and what was found.
        what: String,
    },

    /// An op was called with shapes that do not fit each other.
    #[error("{op}: {what}")]
    Shape {
        /// The op's name, as in the report of fallbacks.
        op: &'static str,
        /// What was expected and what was got.
        what: String,
    },

    /// An op or an evaluation failed on a backend, and the policy denies the fallback (or it failed on the CPU too).
    #[error("{op} failed on {backend}: {reason}")]
    Op {
        /// The op's name.
        op: &'static str,
        /// The backend that failed.
        backend: &'static str,
        /// What the backend said.
        reason: String,
    },

    /// The backend asked for cannot be had on this machine or in this build.
    #[error("backend {backend}: {reason}")]
    Backend {
        /// The backend asked for.
        backend: &'static str,
        /// Why it cannot be used, and what to do.
        reason: String,
    },

    /// The prompt cannot be run.
    #[error("prompt: {0}")]
    Prompt(String),

    /// The prompt and the context do not fit each other; nothing is truncated silently.
    #[error(
        "the prompt has {}{prompt} tokens and the context {context}: shorten it{}",
        if *at_least { "at least " } else { "" },
        if context < trained { format!(", or give it a context of up to {trained}") } else { String::new() }
    )]
    ContextFull {
        /// Tokens in the prompt.
        prompt: usize,
        /// Whether they are the least that it may have: it was refused before it was encoded.
        at_least: bool,
        /// Tokens that the context holds.
        context: usize,
        /// Tokens that the model was trained for.
        trained: usize,
    },

    /// A sampling option is out of range.
    #[error("{option} is {got}, expected {expected}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The value given.
        got: String,
        /// The values that are accepted.
        expected: &'static str,
    },

    /// A context was asked for that is longer than what the model was trained for.
    #[error("ctx is {asked}, expected at most {trained}, what the model was trained for")]
    Context {
        /// Tokens that were asked for.
        asked: usize,
        /// Tokens that the model was trained for.
        trained: usize,
    },

    /// The tokenizer failed on a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),

    /// The chat template failed, or was stopped at a limit.
    #[error("chat template: {0}")]
    Template(String),

    /// A JSON schema asks for what cannot be enforced.
    #[error("JSON schema: {path}: {keyword}: {what}")]
    Schema {
        /// Where the schema with the keyword is, as `$ref` writes it.
        path: String,
        /// The keyword; empty where it is the schema itself.
        keyword: String,
        /// What cannot be enforced, and what can.
        what: String,
    },

    /// A grammar cannot be compiled, or not be followed.
    #[error("{kind}: {what}")]
    Grammar {
        /// What it is: `JSON schema`, `regular expression`, `grammar`.
        kind: &'static str,
        /// What is wrong with it, or the limit that it is over.
        what: String,
    },

    /// The logits hold no token that can be chosen.
    #[error("sampling: {0}")]
    Sampling(String),

    /// A model of several could not be loaded.
    #[error("{model} cannot be loaded: {source}")]
    Load {
        /// Its name.
        model: String,
        /// Why not.
        #[source]
        source: std::sync::Arc<Self>,
    },

    /// The model is of another kind than what was asked of it takes.
    #[error("{model}: {what}")]
    Task {
        /// The model, or its family.
        model: String,
        /// What it does, and what it does not.
        what: String,
    },

    /// There is not enough memory for what was asked.
    #[error("{what} needs {}", wanting(*needed, *available))]
    Memory {
        /// What the memory was for.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },

    /// The system gave no memory for what this load or request wanted; what others have is as it was.
    #[error("cannot take {} of memory for {what}", Size(*bytes))]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// Bytes that were asked for.
        bytes: u64,
    },

    /// The system started no thread for what this load or request wanted.
    #[error("cannot start a thread for {what}: {source}")]
    Thread {
        /// What the thread was for.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },

    /// The machine had no time for what this request wanted. It may have later.
    #[error("{what}: the machine is busy")]
    Busy {
        /// What was wanted, and how long it was waited for.
        what: String,
    },

    /// The engine ended this request, or has itself ended.
    #[error("engine: {0}")]
    Engine(String),

    /// A name did not become files.
    #[error("{what}")]
    Hub {
        /// What is at fault.
        fault: HubFault,
        /// The name or address concerned, what was expected, what was got, and what to do.
        what: String,
    },
}

/// Why a name did not become files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubFault {
    /// It is no name.
    Name,
    /// The model is not on this machine, and nothing was downloaded.
    Absent,
    /// The hub wants to know who asks, or has not let them in (401, 403).
    Gated,
    /// The hub has no such repository, revision or variant, or the repository no files that can be run.
    NotFound,
    /// The hub could not be reached, or broke off again and again.
    Network,
    /// What the hub sent is not what it may send.
    Answer,
    /// What the hub sent is not what it listed.
    Changed,
    /// What was asked for does not fit: the disk, or the memory.
    Space,
    /// Another process has what is needed.
    Busy,
}

impl Error {
    /// Wraps an error of the operating system with the file it concerns.
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// A malformed file.
    pub(crate) fn format(path: &Path, what: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), what: what.into() }
    }

    /// A value of `config.json` that cannot be run.
    pub(crate) fn config(
        path: &Path,
        field: impl Into<String>,
        got: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Config {
            path: path.to_owned(),
            field: field.into(),
            got: got.to_string(),
            expected: expected.into(),
        }
    }

    /// A model that generates no text was asked for some.
    pub(crate) fn no_text(model: &str) -> Self {
        let what = "it reads whole texts and generates none: it is for embeddings, or for scores of pairs";
        Self::Task { model: model.to_owned(), what: what.to_owned() }
    }

    /// A model without an output head was asked for text.
    pub(crate) fn no_head(model: &str) -> Self {
        let what = "it has no output head (lm_head.weight), and generates nothing: it is for embeddings";
        Self::Task { model: model.to_owned(), what: what.to_owned() }
    }

    /// A name that did not become files.
    #[cfg(feature = "hub")]
    pub(crate) fn hub(fault: HubFault, what: impl Into<String>) -> Self {
        Self::Hub { fault, what: what.into() }
    }

    /// Shapes that do not fit each other.
    pub(crate) fn shape(op: &'static str, what: impl Into<String>) -> Self {
        Self::Shape { op, what: what.into() }
    }
}

/// What is needed and what there is, in bytes where both are about the same.
fn wanting(needed: u64, available: u64) -> String {
    match (Size(needed).to_string(), Size(available).to_string()) {
        (needs, has) if needs != has => format!("{needs}, {has} are available"),
        _ => format!("{needed} bytes, {available} are available"),
    }
}

/// A number of bytes as people say it.
pub(crate) struct Size(pub u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            1 => f.write_str("1 byte"),
            0..1_000_000 => write!(f, "{} bytes", self.0),
            1_000_000..1_000_000_000 => write!(f, "{:.1} MB", self.0 as f64 / 1e6),
            1_000_000_000..1_000_000_000_000 => write!(f, "{:.2} GB", self.0 as f64 / 1e9),
            _ => write!(f, "{:.2} TB", self.0 as f64 / 1e12),
        }
    }
}

thread_local! {
    /// Whether a panic of this thread is looked for, and told of as an error.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What `work` makes, a call of a library with what a file or a request holds; what it panics with comes back, and nothing is
/// printed of it.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> std::thread::Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(keep_quiet);
    let before = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    result
}

/// Has panics that are looked for be told to no hook that there is now.
pub(crate) fn keep_quiet() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !QUIET.get() {
            before(panic);
        }
    }));
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_caught_is_told_and_ends_with_its_call() {
        assert_eq!(caught(|| 3).unwrap(), 3);
        let panic = caught(|| caught(|| panic!("inner {}", 1)).map_err(|_| panic!("outer")).unwrap_or(()));
        assert_eq!(panic_text(&*panic.unwrap_err()), "outer");
        assert!(!QUIET.get());
    }
}
