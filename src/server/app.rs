//! What all requests share: the model, the places for sequences, the counters.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::Options;
use super::budget::Budget;
use super::failure::Failure;
use super::metrics::Metrics;
use super::store::Store;
use crate::error::Result;
use crate::model::Model;

/// Texts that are made into tokens at one time: each takes up to two threads.
const ENCODERS: usize = 4;

/// The server's state.
pub(crate) struct App {
    pub model: Model,
    /// The name that clients see; `options.aliases` are others.
    pub name: String,
    /// What makes answers with one seed equal.
    pub fingerprint: String,
    pub options: Options,
    pub metrics: Metrics,
    pub places: Arc<Places>,
    /// What bodies and answers may hold.
    pub budget: Arc<Budget>,
    /// Whether the address is this machine's alone.
    pub loopback: bool,
    /// Whether the server is about to end.
    pub draining: AtomicBool,
    /// Seconds since 1970.
    pub started: u64,
    /// Fields that the log has told of as passed over.
    noted: Mutex<HashSet<String>>,
    /// Answers of `/v1/responses` that later requests may go on from.
    pub store: Store,
    encoders: Semaphore,
    /// Makes ids of one process unlike those of another.
    salt: u64,
    ids: AtomicU64,
}

impl App {
    pub fn new(model: Model, options: Options, loopback: bool) -> Self {
        let name = if model.info().is_builtin() { "stories".to_owned() } else { model.info().name.clone() };
        let places = Places { taken: AtomicUsize::new(0), most: options.parallel + options.max_queue };
        let kind = model.info().selection.kind.name();
        let fingerprint = format!("backstop-{}-{kind}", env!("CARGO_PKG_VERSION"));
        Self {
            model,
            name,
            fingerprint,
            metrics: Metrics::default(),
            places: Arc::new(places),
            // The largest body fits by itself.
            budget: Budget::new(options.buffer_memory.max(options.body_limit)),
            loopback,
            draining: AtomicBool::new(false),
            started: now(),
            noted: Mutex::default(),
            store: Store::default(),
            encoders: Semaphore::new(ENCODERS),
            salt: random(),
            ids: AtomicU64::new(0),
            options,
        }
    }

    /// Tells of fields that were passed over: in a header of the answer, and in the log, once a name.
    pub fn told(&self, names: &[String], answer: &mut HeaderMap) {
        /// Names that the log remembers, and those that a header shows.
        const MOST: (usize, usize) = (256, 16);
        if names.is_empty() {
            return;
        }
        let mut noted = self.noted.lock();
        for name in names {
            // `tools[3].type` and `tools[4].type` are one name.
            let name: String = name.chars().filter(|c| !c.is_ascii_digit()).take(64).collect();
            if noted.len() < MOST.0 && noted.insert(name.clone()) {
                tracing::warn!(field = name, "a field of a request is passed over");
            }
        }
        let plain = |name: &&String| {
            (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
        };
        let shown: Vec<&str> = names.iter().filter(plain).take(MOST.1).map(String::as_str).collect();
        if let Ok(value) = HeaderValue::from_str(&shown.join(", ")) {
            answer.insert(HeaderName::from_static("x-backstop-ignored"), value);
        }
    }

    /// An id that no other answer has: `PREFIX-…`.
    pub fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:08x}", self.salt, self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// The bytes of the text of a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Ok(tokenizer) = self.model.tokenizer() else { return Vec::new() };
        match tokenizer.token_bytes(id) {
            Ok(bytes) => bytes.unwrap_or_default(),
            // Such a token has no bytes of its own: these are those that it has alone.
            Err(_) => tokenizer.decode(&[id]).unwrap_or_default().into_bytes(),
        }
    }

    /// Refuses a model that is not this one; none means this one.
    pub fn check_model(&self, asked: Option<&str>) -> Result<(), Failure> {
        match asked {
            Some(asked)
                if asked != self.name
                    && !self.options.aliases.iter().any(|alias| alias == asked || alias == "*") =>
            {
                let what = format!(
                    "the model {} does not exist, this server has {} (--alias NAME adds a name, --alias '*' takes any)",
                    crate::json::quote(asked),
                    crate::json::quote(&self.name)
                );
                let failure = Failure::new(StatusCode::NOT_FOUND, what).with_code("model_not_found");
                Err(Failure { param: Some("model".into()), ..failure })
            }
            _ => Ok(()),
        }
    }

    /// Does `work` on a thread where it may take its time: making tokens of text, and text of messages.
    pub async fn apart<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Model) -> Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let _permit = self.encoders.acquire().await.map_err(|_| thread_failed())?;
        self.beside(work).await
    }

    /// Does `work` on a thread where it may wait, as for the engine.
    pub async fn beside<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Model) -> Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let model = self.model.clone();
        let done = tokio::task::spawn_blocking(move || work(&model)).await;
        Ok(done.map_err(|_| thread_failed())??)
    }

    /// Places for `count` sequences.
    ///
    /// # Errors
    /// 429 while there are not as many; 400 where there never are.
    pub fn places(&self, count: usize) -> Result<Vec<QueuePlace>, Failure> {
        let most = self.places.most;
        if count > most {
            let what = format!("{count} texts at once, at most {most} fit (--parallel and --max-queue)");
            return Err(Failure::bad(what));
        }
        self.places.take(count).ok_or_else(|| {
            let what = format!("all {most} places are taken (--parallel and --max-queue): try again later");
            Failure::new(StatusCode::TOO_MANY_REQUESTS, what)
                .retry_after(self.metrics.retry_after(self.options.parallel))
        })
    }
}

fn thread_failed() -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "a thread of the server failed")
}

/// Places for sequences, in flight or in the queue.
#[derive(Debug)]
pub(crate) struct Places {
    taken: AtomicUsize,
    most: usize,
}

/// One place; free again once it is dropped.
#[derive(Debug)]
pub(crate) struct QueuePlace(Arc<Places>);

impl Places {
    fn take(self: &Arc<Self>, count: usize) -> Option<Vec<QueuePlace>> {
        let more = |taken: usize| (taken + count <= self.most).then_some(taken + count);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some((0..count).map(|_| QueuePlace(Arc::clone(self))).collect())
    }

    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A number that cannot be told beforehand, of the randomness that hash maps are seeded with.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back() {
        let places = Arc::new(Places { taken: AtomicUsize::new(0), most: 3 });
        let two = places.take(2).unwrap();
        assert!(places.take(2).is_none());
        let one = places.take(1).unwrap();
        assert_eq!(places.taken(), 3);
        drop((two, one));
        assert_eq!(places.taken(), 0);
        assert_eq!(places.take(3).unwrap().len(), 3);
    }
}
