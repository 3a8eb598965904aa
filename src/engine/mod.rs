//! The engine: one thread owns the backend and runs every sequence; others talk to it over channels.
//!
//! Texts, embeddings and scores are sequences alike: they wait in one queue, have their part of one memory budget, and share
//! the steps. They join and leave between steps. A step that fails or panics ends the requests concerned, never the engine.

mod alarm;
mod disk;
mod draft;
mod follow;
mod guide;
mod load;
mod lost;
pub mod machine;
mod memory;
mod prefix;
mod queue;
mod ranks;
mod request;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod rig;
pub mod runtime;
mod scheduler;
mod sequence;
mod shares;
mod slot;
mod step;
mod worker;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::backend::FallbackReport;
use crate::backend::ranks::Rank;
use crate::error::{Error, Result};
use crate::forward::Adapter;
use crate::refusals;

pub(crate) use disk::{AT_END, Cache, ModelBytes};
pub use disk::{CacheOptions, DiskLoad};
pub use draft::Drafts;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use draft::{Drafter, Lookup};
pub use load::{KvLoad, Load};
pub use machine::Machine;
pub(crate) use ranks::Company;
pub use ranks::Ranks;
pub(crate) use request::{
    Answer, CancelOnDrop, EmbedRequest, Event, GenerateRequest, Request, RequestKind, RowSink, ScoreRequest,
    Sink,
};
pub use request::{FinishReason, Stats};
pub use runtime::Runtime;

use disk::Disk;
use load::Gauges;
use lost::Lost;
use memory::Budget;

/// How the engine cuts its work into steps.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Most tokens of one sequence in one step: a longer prompt is prefilled in chunks.
    pub prefill_chunk: usize,
    /// Most tokens of all sequences in one step.
    pub step_tokens: usize,
    /// Most sequences in one step; others wait.
    pub max_sequences: usize,
    /// Tokens that a sequence may hold.
    pub context: usize,
    /// Bytes that K and V of all sequences may take, what is kept for sequences that begin alike included.
    pub kv_memory: u64,
    /// Whether tokens are guessed before they are computed; no text depends on it.
    pub drafts: Drafts,
    /// What guesses them instead, however much that costs.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) drafter: Option<fn() -> Box<dyn Drafter>>,
    /// What the engine shares with others; its steps then take turns with theirs.
    pub machine: Option<Machine>,
    /// Where beginnings of sequences are kept beside the memory, and longer than the engine lives; the CPU's alone.
    pub(crate) cache: Option<Arc<Cache>>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            prefill_chunk: 512,
            step_tokens: 1024,
            max_sequences: 16,
            context: 4096,
            kv_memory: 4 << 30,
            drafts: Drafts::default(),
            #[cfg(any(test, feature = "fuzzing"))]
            drafter: None,
            machine: None,
            cache: None,
        }
    }
}

/// How often it is looked whether another rank is lost, where an answer is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// What the engine is asked.
enum Command {
    /// Tokens to run.
    Run(Request),
    /// Something to do with the runtime between steps.
    With(Box<dyn FnOnce(&Runtime) + Send>),
    /// What the cache on disk has of a request.
    Disk(disk::Answer),
    /// An adapter to be prepared.
    LoadAdapter(Arc<Adapter>, Sender<Result<()>>),
    /// Adapters that nobody holds any longer are to be freed.
    FreeAdapters,
}

/// The cache on disk that `options` ask for, where the runtime can have one. Its answers come by `commands`.
fn disk(options: &EngineOptions, runtime: &Runtime, commands: Sender<Command>) -> Result<Option<Disk>> {
    let Some(cache) = &options.cache else { return Ok(None) };
    let Some(settings) = runtime.bit_settings() else {
        tracing::info!(
            "the cache of prompts on disk is for the CPU's keys and values: there is none with MLX"
        );
        return Ok(None);
    };
    let cost = runtime.kv_cost(options.prefill_chunk.max(1));
    let answer = move |answer| commands.send(Command::Disk(answer)).is_ok();
    Disk::start(Arc::clone(cache), runtime.part_shapes(), cost, settings, answer).map(Some)
}

/// A running engine; clones talk to the same one, and the last one dropped ends it.
#[derive(Clone)]
pub struct Engine {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

/// What is known of an engine from outside its thread.
struct Shared {
    backend: String,
    report: Arc<FallbackReport>,
    thread: parking_lot::Mutex<Option<JoinHandle<()>>>,
    stop: Arc<AtomicBool>,
    gauges: Arc<Gauges>,
    budget: Budget,
    max_sequences: usize,
    /// Which of several ranks it is.
    rank: Rank,
    /// Who waits for it, where it computes with others.
    lost: Option<Arc<Lost>>,
    /// What following the first one came to.
    ended: Arc<parking_lot::Mutex<Option<Result<()>>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.lock().take()
            && thread.thread().id() != std::thread::current().id()
            // It may never come back.
            && self.lost.as_ref().is_none_or(|lost| lost.check().is_ok())
        {
            // Another rank may be lost while it ends.
            while self.lost.is_some() && !thread.is_finished() {
                if self.lost.as_ref().is_some_and(|lost| lost.check().is_err()) {
                    return;
                }
                std::thread::sleep(LOOK);
            }
            let _ = thread.join();
        }
    }
}

impl Engine {
    /// Starts the engine's thread and builds the runtime there: a backend's streams belong to the thread that made them.
    ///
    /// # Errors
    /// Those of `build`, and a thread that cannot be started.
    pub fn start(
        options: EngineOptions,
        build: impl FnOnce() -> Result<Runtime> + Send + 'static,
    ) -> Result<Self> {
        let (commands, inbox) = channel();
        let (ready, started) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let gauges = Arc::new(Gauges::new());
        let shown = Arc::clone(&gauges);
        let answers = commands.clone();
        let max_sequences = options.max_sequences.max(1);
        let ended: Arc<parking_lot::Mutex<Option<Result<()>>>> = Arc::default();
        let followed = Arc::clone(&ended);
        let work = move || match build() {
            Ok(runtime) if runtime.follows() => {
                let backend = runtime.dispatch().describe();
                let report = Arc::clone(runtime.dispatch().report());
                let rank = runtime.dispatch().rank();
                let budget = Budget::new(0, runtime.kv_cost(1));
                if ready.send(Ok((backend, report, budget, rank, None))).is_ok() {
                    *followed.lock() = Some(follow::follow(&runtime));
                }
            }
            Ok(runtime) => {
                let backend = runtime.dispatch().describe();
                let report = Arc::clone(runtime.dispatch().report());
                let cost = runtime.kv_cost(options.prefill_chunk.max(1));
                let budget = Budget::new(options.kv_memory, cost).with_beside(runtime.draft_cost());
                let disk = match disk(&options, &runtime, answers) {
                    Ok(disk) => disk,
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                let rank = runtime.dispatch().rank();
                let lost = runtime.company().map(Company::lost);
                if ready.send(Ok((backend, report, budget, rank, lost))).is_ok() {
                    worker::Worker::new(runtime, options, inbox, stopped, shown, budget, disk).run();
                }
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        let thread = refusals::spawn(std::thread::Builder::new().name("backstop-engine".into()), work)
            .map_err(|source| Error::Thread { what: "an engine", source })?;
        let (backend, report, budget, rank, lost) =
            started.recv().map_err(|_| Error::Engine("it ended while it loaded the model".into()))??;
        let thread = parking_lot::Mutex::new(Some(thread));
        let shared =
            Shared { backend, report, thread, stop, gauges, budget, max_sequences, rank, lost, ended };
        Ok(Self { commands, shared: Arc::new(shared) })
    }

    /// The backend in words.
    pub fn backend(&self) -> &str {
        &self.shared.backend
    }

    /// Fallbacks and replays so far.
    pub fn report(&self) -> &FallbackReport {
        &self.shared.report
    }

    /// Which of several ranks it is.
    pub fn rank(&self) -> Rank {
        self.shared.rank
    }

    /// Does what the first rank says, until that ends.
    ///
    /// # Errors
    /// Where another rank is lost.
    pub fn follow(&self) -> Result<()> {
        if let Some(thread) = self.shared.thread.lock().take() {
            let _ = thread.join();
        }
        let ended = self.shared.ended.lock().take();
        ended.unwrap_or_else(|| Err(Error::Engine("it ended while it followed rank 0".into())))
    }

    /// What it is doing now.
    pub fn load(&self) -> Load {
        self.shared.gauges.load(self.shared.budget.bytes)
    }

    /// Tokens of the longest sequence that its memory holds.
    pub fn kv_tokens(&self) -> usize {
        let budget = self.budget();
        budget.alone().tokens_in(budget.bytes)
    }

    /// Tokens of as many sequences of one length as run at once, each, in its memory.
    pub fn kv_tokens_each(&self) -> usize {
        let budget = self.budget();
        budget.alone().tokens_in(budget.bytes / self.shared.max_sequences as u64)
    }

    /// Most sequences in one step, at least one.
    pub fn max_sequences(&self) -> usize {
        self.shared.max_sequences
    }

    /// Whether nobody else holds it, so that dropping it ends it.
    pub(crate) fn is_last(&self) -> bool {
        Arc::strong_count(&self.shared) == 1
    }

    /// Whether nothing runs or waits in it.
    pub(crate) fn is_idle(&self) -> bool {
        let load = self.load();
        load.running + load.queued == 0
    }

    /// Refuses a sequence that can never fit its memory.
    pub(crate) fn check_memory(&self, prompt: usize, generated: usize) -> Result<()> {
        self.budget().check(prompt, generated)
    }

    /// What adapters leave of the budget.
    fn budget(&self) -> Budget {
        let (budget, adapters) = (self.shared.budget, &self.shared.gauges.adapters);
        Budget { bytes: budget.bytes.saturating_sub(adapters.load(Ordering::Relaxed)), ..budget }
    }

    /// Queues a request.
    pub(crate) fn submit(&self, request: Request) -> Result<()> {
        if let Some(lost) = &self.shared.lost {
            lost.tell(&request.waiting())?;
        }
        self.shared.gauges.asked();
        self.send(Command::Run(request))
    }

    /// Runs `work` on the engine's thread between two steps, and returns what it returns.
    ///
    /// # Errors
    /// Where the engine has ended, or `work` panicked.
    pub fn with<T: Send + 'static>(&self, work: impl FnOnce(&Runtime) -> T + Send + 'static) -> Result<T> {
        let (result, done) = channel();
        self.send(Command::With(Box::new(move |runtime| {
            let _ = result.send(work(runtime));
        })))?;
        self.receive(&done)
    }

    /// Prepares an adapter between two steps. It is there until nobody else holds it, and [`Self::free_adapters`] is called or a
    /// sequence that had one ends.
    ///
    /// # Errors
    /// A module that has no place for adapters, and one of another shape; an adapter that the memory has no room for.
    pub(crate) fn load_adapter(&self, adapter: &Arc<Adapter>) -> Result<()> {
        let (result, done) = channel();
        self.send(Command::LoadAdapter(Arc::clone(adapter), result))?;
        self.receive(&done)?
    }

    /// Frees the adapters that nobody holds any longer.
    pub(crate) fn free_adapters(&self) -> Result<()> {
        self.send(Command::FreeAdapters)
    }

    /// Whether it can answer.
    ///
    /// # Errors
    /// A rank that it computed with is lost.
    pub(crate) fn check(&self) -> Result<()> {
        self.shared.lost.as_ref().map_or(Ok(()), |lost| lost.check())
    }

    /// Waits for an answer, as long as one may come.
    fn receive<T>(&self, answers: &Receiver<T>) -> Result<T> {
        if self.shared.lost.is_none() {
            return receive(answers);
        }
        loop {
            match answers.recv_timeout(LOOK) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Timeout) => self.check()?,
                Err(RecvTimeoutError::Disconnected) => return receive(answers),
            }
        }
    }

    fn send(&self, command: Command) -> Result<()> {
        self.check()?;
        self.commands.send(command).map_err(|_| Error::Engine("it has ended".into()))
    }
}

/// Waits for an answer of the engine.
pub(crate) fn receive<T>(answers: &Receiver<T>) -> Result<T> {
    answers.recv().map_err(|_| Error::Engine("it ended without an answer".into()))
}
