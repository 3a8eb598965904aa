//! Answers of `/v1/responses` that later requests go on from, by the answer's id or by an item's: few, and the oldest go first.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::text::Message;

/// Answers that are kept, and bytes of memory that they take: a coding agent's long session is some megabytes.
const MOST: (usize, usize) = (256, 64 << 20);

/// What stands for the key that came with a request, where there are keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Caller(pub Option<Arc<str>>);

impl Caller {
    /// A hash of the key: what is kept on disk outlives the names and the order that keys have today.
    pub fn of_key(key: &str) -> Self {
        Self(Some(blake3::hash(key.as_bytes()).to_hex().as_str().into()))
    }
}

/// The answers that are kept.
#[derive(Debug, Default)]
pub(crate) struct Store(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    answers: VecDeque<Arc<Answer>>,
    bytes: usize,
}

/// An answer, and the conversation before it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub id: String,
    /// Whose it is.
    caller: Caller,
    /// What was said before it, but for instructions: those are each request's own.
    pub messages: Vec<Message>,
    /// Its items.
    pub output: Vec<Value>,
    bytes: usize,
}

impl Store {
    /// Keeps an answer, and lets go of the oldest ones where there are too many.
    pub fn keep(&self, id: String, caller: &Caller, messages: Vec<Message>, output: Vec<Value>) {
        let bytes = messages.iter().map(said).sum::<usize>() + output.iter().map(taken).sum::<usize>();
        if bytes > MOST.1 {
            return;
        }
        let mut kept = self.0.lock();
        kept.bytes += bytes;
        let caller = caller.clone();
        kept.answers.push_back(Arc::new(Answer { id, caller, messages, output, bytes }));
        while kept.answers.len() > MOST.0 || kept.bytes > MOST.1 {
            let Some(oldest) = kept.answers.pop_front() else { break };
            kept.bytes -= oldest.bytes;
        }
    }

    /// The caller's answer of this id.
    pub fn answer(&self, id: &str, caller: &Caller) -> Option<Arc<Answer>> {
        let kept = self.0.lock();
        kept.answers.iter().rev().find(|answer| answer.id == id && answer.caller == *caller).cloned()
    }

    /// The item of this id, in any answer of the caller's.
    pub fn item(&self, id: &str, caller: &Caller) -> Option<Value> {
        let kept = self.0.lock();
        let of_caller = kept.answers.iter().rev().filter(|answer| answer.caller == *caller);
        let mut items = of_caller.flat_map(|answer| &answer.output);
        items.find(|item| item["id"] == id).cloned()
    }
}

/// Bytes of memory that a message takes, about.
pub(crate) fn said(message: &Message) -> usize {
    message.role.len() + taken(&message.content) + members(&message.extra)
}

/// Bytes of memory that a value takes, about.
fn taken(value: &Value) -> usize {
    let within = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(taken).sum(),
        Value::Object(map) => members(map),
        _ => 0,
    };
    size_of::<Value>() + within
}

fn members(map: &Map<String, Value>) -> usize {
    // A key, its hash and its place in the index.
    map.iter().map(|(key, value)| 48 + key.len() + taken(value)).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let (store, me, other) = (Store::default(), Caller::default(), Caller(Some("other".into())));
        for i in 0..300 {
            let said = vec![Message::new("user", i.to_string())];
            store.keep(format!("resp_{i}"), &me, said, vec![json!({ "id": format!("msg_{i}"), "n": i })]);
        }
        assert!(store.answer("resp_43", &me).is_none() && store.item("msg_43", &me).is_none());
        assert_eq!(store.answer("resp_44", &me).unwrap().messages[0].content, "44");
        assert_eq!(store.item("msg_299", &me).unwrap()["n"], 299);
        assert!(store.answer("resp_44", &other).is_none() && store.item("msg_299", &other).is_none());
        let large = |n: usize| vec![Message::new("user", "x".repeat(n))];
        store.keep("half".into(), &me, large(MOST.1 / 2), Vec::new());
        assert!(store.answer("resp_299", &me).is_some());
        store.keep("more".into(), &me, large(MOST.1 / 2), Vec::new());
        assert!(store.answer("half", &me).is_none() && store.answer("more", &me).is_some());
        store.keep("too much".into(), &me, large(MOST.1), Vec::new());
        assert!(store.answer("too much", &me).is_none() && store.answer("more", &me).is_some());
        // A number is two bytes of JSON, and far more of memory.
        let numbers = vec![json!({ "id": "msg_0", "n": vec![0; MOST.1 / 32] })];
        store.keep("numbers".into(), &me, Vec::new(), numbers);
        assert!(store.answer("numbers", &me).is_none() && store.answer("more", &me).is_some());
    }
}
