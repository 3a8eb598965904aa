//! What all requests share: the models, the places for sequences, the counters.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Options;
use super::budget::Budget;
use super::described::Described;
use super::failure::{Dialect, Failure, thread_failed};
use super::metrics::Metrics;
use super::places::{Encoders, Places, QueuePlace};
use super::store::{Caller, Store};
use crate::models::{ModelStatus, Models};

/// Texts that are made into tokens at one time: each takes up to two threads.
const ENCODERS: usize = 4;
/// How long what was looked for is not looked for again.
const LOOK: Duration = Duration::from_secs(1);
/// Downloads that may be asked for at one time: each takes a thread.
const PULLS: usize = 4;

/// The server's state.
pub(crate) struct App {
    pub models: Models,
    pub options: Options,
    pub metrics: Metrics,
    /// Places for the sequences of each model, by its name.
    places: Mutex<HashMap<String, Arc<Places>>>,
    /// What models are that somebody asked about, by their names; nothing of those whose files cannot be read.
    described: Mutex<HashMap<String, Option<Arc<Described>>>>,
    /// Who reads that of all models.
    describing: tokio::sync::Mutex<()>,
    /// Who looks for models that others have brought, and when that was done last.
    looked: Arc<tokio::sync::Mutex<Option<Instant>>>,
    /// Models by other names that they were asked for by, or that there was none, and when that was found.
    other_names: Mutex<HashMap<String, (Instant, Option<String>)>>,
    /// Places for requests that wait for their models, and for those that wait for one to be downloaded.
    pub waiting: Arc<Places>,
    pub pulling: Arc<Places>,
    /// What bodies and answers may hold.
    pub budget: Arc<Budget>,
    /// Whether the address is this machine's alone.
    pub loopback: bool,
    /// Whether the server is about to end.
    pub draining: AtomicBool,
    /// Whether what is not answered yet is to be refused: the time for it is over.
    pub cut: watch::Sender<bool>,
    /// Seconds since 1970.
    pub started: u64,
    /// Fields that the log has told of as passed over.
    noted: Mutex<HashSet<String>>,
    /// Answers of `/v1/responses` that later requests may go on from.
    pub store: Store,
    pub encoders: Encoders,
    /// Whose turn it is to have a long text made into tokens.
    pub long: Encoders,
    /// Makes ids of one process unlike those of another.
    salt: u64,
    ids: AtomicU64,
}

impl App {
    pub fn new(models: Models, options: Options, loopback: bool) -> Self {
        let keys = options.api_keys.len();
        Self {
            models,
            metrics: Metrics::default(),
            places: Mutex::default(),
            described: Mutex::default(),
            describing: tokio::sync::Mutex::default(),
            looked: Arc::default(),
            other_names: Mutex::default(),
            waiting: Places::new(options.parallel + options.max_queue, keys),
            pulling: Places::new(PULLS, 1),
            // The largest body fits by itself.
            budget: Budget::new(options.buffer_memory.max(options.body_limit)),
            loopback,
            draining: AtomicBool::new(false),
            cut: watch::Sender::new(false),
            started: now(),
            noted: Mutex::default(),
            store: Store::default(),
            encoders: Encoders::new(ENCODERS, keys),
            long: Encoders::new(1, keys),
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

    /// Comes, with what is said to who still waits then, once what is not answered yet is to be refused.
    pub fn until_cut(&self) -> impl Future<Output = Failure> + Send + use<> {
        let mut cut = self.cut.subscribe();
        async move {
            let _ = cut.wait_for(|cut| *cut).await;
            let what = "the server ends, and this was not done when --drain-timeout was over: ask again once it is there";
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, what).retry_after(1)
        }
    }

    /// An id that no other answer has: `PREFIX-…`.
    pub fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:08x}", self.salt, self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Looks for a model that is called so among those that others have brought, where none is, and for one that has another name.
    /// Where one takes any name, nobody waits for that.
    pub async fn look_for(self: &Arc<Self>, called: Option<&str>, dialect: Dialect) {
        let Some(called) = called.filter(|called| self.named(called, dialect).is_none()) else { return };
        // An adapter of a model that is known, mostly.
        let adapted = self.meant_exactly(Some(called), dialect).is_some();
        if self.models.find(Some(called)).is_some() && !adapted {
            let app = Arc::clone(self);
            tokio::spawn(async move { app.look().await });
            return;
        }
        if !adapted {
            self.look().await;
        }
        if self.named(called, dialect).is_none() {
            self.look_for_other_name(called).await;
        }
    }

    /// Finds out whether a name that no model has is another one of its files.
    async fn look_for_other_name(self: &Arc<Self>, called: &str) {
        /// Names that are remembered, and bytes of the longest: none is longer that means anything.
        const MOST: (usize, usize) = (256, 512);
        let Some(look) = self.options.look.clone().filter(|_| called.len() <= MOST.1) else { return };
        // One at a time: each looks through folders.
        let _alone = self.looked.lock().await;
        if self.other_names.lock().get(called).is_some_and(|(when, _)| when.elapsed() < LOOK) {
            return;
        }
        let name = called.to_owned();
        let found = tokio::task::spawn_blocking(move || look.stands_for(&name)).await;
        let mut names = self.other_names.lock();
        if names.len() >= MOST.0 {
            names.clear();
        }
        names.insert(called.to_owned(), (Instant::now(), found.ok().flatten()));
    }

    /// Offers the models that others have brought.
    async fn look(self: &Arc<Self>) {
        let Some(look) = self.options.look.clone() else { return };
        let mut looked = Arc::clone(&self.looked).lock_owned().await;
        if looked.is_some_and(|last| last.elapsed() < LOOK) {
            return;
        }
        let app = Arc::clone(self);
        // It goes on where who asked goes away, and nobody looks beside it. One that panics brings nothing.
        let _ = tokio::task::spawn_blocking(move || {
            *looked = Some(Instant::now());
            for offer in look.look() {
                let name = offer.name.clone();
                match app.models.offer(offer) {
                    Ok(()) => tracing::info!(model = %name, "offered, too"),
                    Err(error) => tracing::warn!(model = %name, %error, "not offered"),
                }
            }
            *looked = Some(Instant::now());
        })
        .await;
    }

    /// The name of the model that is called so; none means the first.
    ///
    /// # Errors
    /// 404 where no model is, in the words that the API's clients look for.
    pub fn find(&self, called: Option<&str>, dialect: Dialect) -> Result<String, Failure> {
        let exact = called.and_then(|called| self.named(called, dialect));
        // One that takes any name comes after all that have it.
        if let Some(name) = exact.or_else(|| self.models.find(called)) {
            return Ok(name);
        }
        let called = called.unwrap_or_default();
        let quoted = crate::json::quote(called);
        let what = match dialect {
            Dialect::Ollama => {
                // In Ollama's own quotes; what is long is cut, and no control character gets into the log.
                let name = quoted.strip_prefix('"').unwrap_or(&quoted);
                format!("model '{}' not found", name.strip_suffix('"').unwrap_or(name))
            }
            Dialect::OpenAi | Dialect::Anthropic => {
                let all = self.options.look.as_ref().is_some_and(|look| look.is_all());
                let more = match all {
                    true => "`backstop pull NAME` brings one to this machine",
                    false => "--all offers all that are on this machine",
                };
                format!(
                    "the model {quoted} does not exist, this server has {} ({more}, --alias NAME adds a name, --alias '*' takes any)",
                    self.names()
                )
            }
        };
        let failure = Failure::new(StatusCode::NOT_FOUND, what).with_code("model_not_found");
        Err(Failure { param: Some("model".into()), ..failure })
    }

    /// The name of the model that goes by exactly this name, or was found to go by it; in Ollama's API with or without the tag that a name without one has.
    pub fn named(&self, called: &str, dialect: Dialect) -> Option<String> {
        let other = match called.strip_suffix(":latest") {
            _ if dialect != Dialect::Ollama => None,
            Some(plain) => Some(plain.to_owned()),
            None => Some(format!("{called}:latest")),
        };
        let known = self.models.named(called).or_else(|| self.models.named(&other?));
        known.or_else(|| {
            let name = self.other_names.lock().get(called)?.1.clone()?;
            self.models.named(&name)
        })
    }

    /// What a model is, where it is loaded, or somebody asked about it before.
    pub fn described(&self, status: &ModelStatus) -> Option<Arc<Described>> {
        let mut known = self.described.lock();
        match &status.model {
            Some(model) => {
                let described = Arc::new(Described::of(model));
                known.insert(status.name.clone(), Some(Arc::clone(&described)));
                Some(described)
            }
            None => known.get(&status.name).cloned().flatten(),
        }
    }

    /// What a model is, from its files where it is not loaded.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub async fn describe(self: &Arc<Self>, status: &ModelStatus) -> Result<Arc<Described>, Failure> {
        if let Some(described) = self.described(status) {
            return Ok(described);
        }
        let (app, name) = (Arc::clone(self), status.name.clone());
        let read = tokio::task::spawn_blocking(move || app.read(&name)).await;
        let described = Arc::new(read.map_err(|_| thread_failed())??);
        self.described.lock().insert(status.name.clone(), Some(Arc::clone(&described)));
        Ok(described)
    }

    /// What a model is, from its files.
    fn read(&self, name: &str) -> crate::error::Result<Described> {
        let (files, options) = self.models.files_and_options(name)?;
        Described::of_files(&files, options.context)
    }

    /// All models, where what they are is known, or was tried to be read: from the files of those that are not loaded, once.
    pub async fn listed(self: &Arc<Self>) -> Vec<ModelStatus> {
        self.look().await;
        let all = self.models.list();
        let unknown = |app: &Self, status: &ModelStatus| {
            status.model.is_none() && !app.described.lock().contains_key(&status.name)
        };
        if !all.iter().any(|status| unknown(self, status)) {
            return all;
        }
        let _alone = self.describing.lock().await;
        let names: Vec<String> =
            all.iter().filter(|status| unknown(self, status)).map(|status| status.name.clone()).collect();
        let app = Arc::clone(self);
        // A model whose reading panics stays unknown.
        let _ = tokio::task::spawn_blocking(move || {
            for name in names {
                let read = app.read(&name);
                if let Err(error) = &read {
                    tracing::debug!(model = %name, %error, "cannot be described");
                }
                app.described.lock().entry(name).or_insert(read.ok().map(Arc::new));
            }
        })
        .await;
        all
    }

    /// The names of the models, the first of them where there are many.
    fn names(&self) -> String {
        const MOST: usize = 8;
        let models = self.models.list();
        let shown = models.iter().take(MOST).map(|model| crate::json::quote(&model.name).to_string());
        let more = if models.len() > MOST { ", …" } else { "" };
        format!("{}{more}", shown.collect::<Vec<_>>().join(", "))
    }

    /// The places for sequences of a model.
    pub fn places_of(&self, name: &str) -> Arc<Places> {
        let most = self.options.parallel + self.options.max_queue;
        Arc::clone(
            self.places
                .lock()
                .entry(name.to_owned())
                .or_insert_with(|| Places::new(most, self.options.api_keys.len())),
        )
    }

    /// `count` of `places`.
    ///
    /// # Errors
    /// 429 while there are not as many for this caller; 400 where there never are.
    pub fn take(
        &self,
        places: &Arc<Places>,
        count: usize,
        caller: &Caller,
    ) -> Result<Vec<QueuePlace>, Failure> {
        let most = places.most;
        let of = if self.options.api_keys.len() > 1 { " of one key" } else { "" };
        if count > most {
            let what = format!("{count} texts at once, at most {most}{of} fit (--parallel and --max-queue)");
            return Err(Failure::bad(what));
        }
        places.take(count, caller).ok_or_else(|| {
            let what =
                format!("all {most} places{of} are taken (--parallel and --max-queue): try again later");
            Failure::new(StatusCode::TOO_MANY_REQUESTS, what)
                .retry_after(self.metrics.retry_after(self.options.parallel))
        })
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
