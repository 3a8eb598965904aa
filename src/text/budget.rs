//! What a rendering may make: bytes, values, depth, time.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use crate::apart;

/// How long a rendering may work, by its thread's own time: many times what its instructions take on a slow machine, so
/// that a template is refused for what it does and not for where it runs.
pub(super) const TIME: Duration = Duration::from_secs(5);
/// Of so many times that the time is asked for, it is once.
const ASKED: usize = 16;
/// The largest string, and the largest output, in bytes.
pub(super) const MAX_BYTES: usize = 8 << 20;
/// Bytes written in all, captured text included, and bytes of all strings made.
pub(super) const MAX_EMITTED: usize = 32 << 20;
const MAX_MADE: usize = 256 << 20;
/// Nodes and string bytes of one value, each counted as often as it occurs; nodes looked at in all.
pub(super) const MAX_NODES: usize = 200_000;
const MAX_VALUE_BYTES: usize = 64 << 20;
const MAX_WALKED: usize = 16 << 20;
/// How deep values may nest.
const MAX_DEPTH: usize = 64;

/// What one rendering may still make.
pub(super) struct Budget {
    /// The time of this thread past which it is over.
    pub(super) until: Duration,
    /// How often the time was asked for.
    asked: AtomicUsize,
    pub(super) emitted: AtomicUsize,
    made: AtomicUsize,
    walked: AtomicUsize,
}

pub(super) fn refuse(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

impl Budget {
    pub(super) fn new(until: Duration) -> Arc<Self> {
        let zero = || AtomicUsize::new(0);
        Arc::new(Self { until, asked: zero(), emitted: zero(), made: zero(), walked: zero() })
    }

    pub(super) fn time(&self) -> Result<(), Error> {
        // The system is asked now and then: it takes longer than most of what lies between.
        if self.asked.fetch_add(1, Relaxed).is_multiple_of(ASKED) && apart::worked() > self.until {
            return Err(refuse(format!("the template took longer than {} s", TIME.as_secs())));
        }
        Ok(())
    }

    pub(super) fn made(&self, bytes: usize) -> Result<(), Error> {
        if bytes > MAX_BYTES || self.made.fetch_add(bytes, Relaxed) + bytes > MAX_MADE {
            return Err(refuse("the template made too large a string"));
        }
        Ok(())
    }

    /// The value with lazy sequences made real, if it is small and shallow enough.
    pub(super) fn own(&self, value: &Value) -> Result<Value, Error> {
        self.time()?;
        if let Some(text) = value.as_str() {
            self.made(text.len())?;
            return Ok(value.clone());
        }
        let mut walk = Walk { nodes: 0, bytes: 0 };
        let owned = walk.own(value, 0)?;
        if self.walked.fetch_add(walk.nodes, Relaxed) + walk.nodes > MAX_WALKED {
            return Err(refuse("the template made too many values"));
        }
        Ok(owned.unwrap_or_else(|| value.clone()))
    }
}

struct Walk {
    nodes: usize,
    bytes: usize,
}

impl Walk {
    /// `Some` where the value had to be made anew.
    fn own(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        self.nodes += 1;
        self.bytes += value.as_str().map_or(0, str::len);
        if self.nodes > MAX_NODES || self.bytes > MAX_VALUE_BYTES || depth > MAX_DEPTH {
            return Err(refuse("the template made too large or too deep a value"));
        }
        match value.kind() {
            ValueKind::Map => {
                let namespace = value.as_object().is_some_and(|o| o.type_name().contains("Namespace"));
                if namespace && depth > 0 {
                    return Err(refuse("a namespace inside another value is not supported"));
                }
                if let Some(object) = value.as_object()
                    && let Some(pairs) = object.try_iter_pairs()
                {
                    for (key, item) in pairs {
                        self.own(&key, depth + 1)?;
                        if self.own(&item, depth + 1)?.is_some() {
                            return Err(refuse("a lazy sequence in a mapping is not supported, use |list"));
                        }
                    }
                }
                Ok(None)
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let mut remade = value.kind() == ValueKind::Iterable;
                let mut items = Vec::new();
                for item in value.try_iter()?.checked() {
                    let item = item?;
                    let owned = self.own(&item, depth + 1)?;
                    remade |= owned.is_some();
                    items.push(owned.unwrap_or(item));
                }
                let make = |items| {
                    if value.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) }
                };
                Ok(remade.then(|| make(items)))
            }
            _ => Ok(None),
        }
    }
}

/// Writes to a string of at most [`MAX_BYTES`].
pub(super) struct Limited(pub(super) String);

impl Write for Limited {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if self.0.len() + s.len() > MAX_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(s);
        Ok(())
    }
}
