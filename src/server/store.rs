//! Answers of `/v1/responses` that later requests go on from, by the answer's id or by an item's: few, and the oldest go first.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::text::Message;

/// Answers that are kept, and bytes of memory that they take: a coding agent's long session is some megabytes.
const MOST: (usize, usize) = (256, 64 << 20);

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
    /// What was said before it, but for instructions: those are each request's own.
    pub messages: Vec<Message>,
    /// Its items.
    pub output: Vec<Value>,
    bytes: usize,
}

impl Store {
    /// Keeps an answer, and lets go of the oldest ones where there are too many.
    pub fn keep(&self, id: String, messages: Vec<Message>, output: Vec<Value>) {
        let said = |message: &Message| message.role.len() + taken(&message.content) + members(&message.extra);
        let bytes = messages.iter().map(said).sum::<usize>() + output.iter().map(taken).sum::<usize>();
        if bytes > MOST.1 {
            return;
        }
        let mut kept = self.0.lock();
        kept.bytes += bytes;
        kept.answers.push_back(Arc::new(Answer { id, messages, output, bytes }));
        while kept.answers.len() > MOST.0 || kept.bytes > MOST.1 {
            let Some(oldest) = kept.answers.pop_front() else { break };
            kept.bytes -= oldest.bytes;
        }
    }

    /// The answer of this id.
    pub fn answer(&self, id: &str) -> Option<Arc<Answer>> {
        self.0.lock().answers.iter().rev().find(|answer| answer.id == id).cloned()
    }

    /// The item of this id, in any answer.
    pub fn item(&self, id: &str) -> Option<Value> {
        let kept = self.0.lock();
        let mut items = kept.answers.iter().rev().flat_map(|answer| &answer.output);
        items.find(|item| item["id"] == id).cloned()
    }
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
        let store = Store::default();
        for i in 0..300 {
            let said = vec![Message::new("user", i.to_string())];
            store.keep(format!("resp_{i}"), said, vec![json!({ "id": format!("msg_{i}"), "n": i })]);
        }
        assert!(store.answer("resp_43").is_none() && store.item("msg_43").is_none());
        assert_eq!(store.answer("resp_44").unwrap().messages[0].content, "44");
        assert_eq!(store.item("msg_299").unwrap()["n"], 299);
        let large = |n: usize| vec![Message::new("user", "x".repeat(n))];
        store.keep("half".into(), large(MOST.1 / 2), Vec::new());
        assert!(store.answer("resp_299").is_some());
        store.keep("more".into(), large(MOST.1 / 2), Vec::new());
        assert!(store.answer("half").is_none() && store.answer("more").is_some());
        store.keep("too much".into(), large(MOST.1), Vec::new());
        assert!(store.answer("too much").is_none() && store.answer("more").is_some());
        // A number is two bytes of JSON, and far more of memory.
        let numbers = vec![json!({ "id": "msg_0", "n": vec![0; MOST.1 / 32] })];
        store.keep("numbers".into(), Vec::new(), numbers);
        assert!(store.answer("numbers").is_none() && store.answer("more").is_some());
    }
}
