//! What OpenAI's two APIs of completions say alike.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::answers::{Finish, Scored, Timings, Usage};
use super::app::now;
use super::served::Served;

/// What all parts of an answer have in common.
pub(crate) struct ChunkShape {
    pub app: Arc<Served>,
    /// Whether log-probabilities were asked for.
    pub logprobs: bool,
    id: String,
    created: u64,
}

impl ChunkShape {
    /// Of an answer whose id begins with `prefix`.
    pub fn new(app: &Arc<Served>, prefix: &str, logprobs: bool) -> Self {
        Self { app: Arc::clone(app), logprobs, id: app.id(prefix), created: now() }
    }

    /// The answer, or a chunk of it.
    pub fn object(&self, kind: &str, choices: Value, usage: Option<Value>) -> Value {
        self.with_timings(kind, choices, usage, None)
    }

    /// The last chunk of a text, with what it took.
    pub fn last(&self, kind: &str, choices: Value, usage: Option<Value>, timings: Option<Timings>) -> Value {
        self.with_timings(kind, choices, usage, timings.map(|timings| timings.json()))
    }

    /// The whole answer.
    pub fn whole(&self, kind: &str, choices: Value, usage: Usage) -> Value {
        self.with_timings(kind, choices, Some(usage_json(usage)), Some(usage.timings_json()))
    }

    fn with_timings(
        &self,
        kind: &str,
        choices: Value,
        usage: Option<Value>,
        timings: Option<Value>,
    ) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.app.name,
            "choices": choices,
            "system_fingerprint": self.app.fingerprint,
        });
        if let Some(usage) = usage {
            object["usage"] = usage;
        }
        if let Some(timings) = timings {
            object["timings"] = timings;
        }
        object
    }
}

/// A token with its log-probability and those of the most likely ones, as chats and responses show it.
pub(crate) fn scored_json(app: &Served, scored: &Scored) -> Value {
    let mut entry = token_json(app, scored.token, scored.logprob);
    let top = scored.top.iter().map(|&(token, logprob)| token_json(app, token, logprob));
    entry.insert("top_logprobs".into(), top.map(Value::Object).collect::<Vec<_>>().into());
    Value::Object(entry)
}

/// Bytes that are no whole character show as U+FFFD in `token`.
fn token_json(app: &Served, token: u32, logprob: f32) -> Map<String, Value> {
    let bytes = app.token_bytes(token);
    let mut entry = Map::new();
    entry.insert("token".into(), String::from_utf8_lossy(&bytes).into());
    entry.insert("logprob".into(), logprob_json(logprob));
    entry.insert("bytes".into(), bytes.into());
    entry
}

/// JSON has no infinity: what cannot be is the smallest number that OpenAI's API gives.
pub(crate) fn logprob_json(logprob: f32) -> Value {
    f64::from(logprob).max(-9999.0).into()
}

/// OpenAI's name for the end of a text.
pub(crate) fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop(_) => "stop",
        Finish::Calls => "tool_calls",
        Finish::Length => "length",
    }
}

/// OpenAI's usage.
pub(crate) fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        "prompt_tokens_details": { "cached_tokens": usage.cached },
    })
}
