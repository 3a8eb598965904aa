//! A cache of beginnings on disk: what memory has no room for, and what outlives the process.
//!
//! A page, a pane or a snapshot is a file under the hash of all that its bits depend on: the version of this program, the
//! instruction set and the settings that change bits, the model's bytes, whose beginning it is, and the tokens up to its end,
//! page by page. So a lookup walks from a page to the next, and what is found has the bits of what would be computed.
//!
//! The engine never waits for the disk: one thread looks for and reads what requests begin with, while these wait apart from
//! the queue, another writes what is handed to it, and what does not fit into its queue is dropped. Whatever goes wrong is a
//! miss.

mod file;
mod key;
mod model;
mod reader;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::request::Space;
use crate::backend::rope::Frequencies;
use crate::backend::{KvCost, PartShapes};
use crate::error::{Error, Result};
use crate::refusals;

pub(super) use key::Key;
pub(crate) use model::ModelBytes;
pub(super) use reader::{Answer, Brought, Find, Plan};
use store::Store;
pub(super) use writer::{Save, SavedPart};

/// Tokens of the shortest beginning that is written, and looked for: reading fewer saves too little.
pub(super) const LEAST: usize = 256;

/// Raised whenever the CPU's kernels, or a family's forward pass, come to other bits, or a page to lie otherwise in memory.
const BITS: u32 = 1;

/// Bytes that may wait to be written, beside the engine's memory.
const QUEUE: u64 = 256 << 20;

/// How long after a failure to write it is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// How long the end of an engine may take for what is not written yet.
pub(crate) const AT_END: Duration = Duration::from_secs(10);

/// A cache of the beginnings of prompts on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// Its directory, to which nobody else may write; made where it is not there.
    pub dir: PathBuf,
    /// Bytes that its files may take together.
    pub bytes: u64,
}

impl CacheOptions {
    /// Bytes where nobody says how many.
    pub const BYTES: u64 = 8 << 30;
}

/// A cache before there is an engine.
#[derive(Debug)]
pub(crate) struct Cache {
    store: Store,
    model: ModelBytes,
    /// Whether to read what would be computed sooner.
    always: bool,
    /// Bytes that may wait to be written.
    queue: u64,
}

impl Cache {
    /// Opens the directory for a model.
    ///
    /// # Errors
    /// Those of the directory.
    pub fn open(options: &CacheOptions, model: ModelBytes) -> Result<Self> {
        Ok(Self { store: Store::open(&options.dir, options.bytes)?, model, always: false, queue: QUEUE })
    }

    /// One that is always read, for models that are faster than any disk.
    #[cfg(test)]
    pub fn always(self) -> Self {
        Self { always: true, ..self }
    }

    /// One in whose queue there is room for as many bytes.
    #[cfg(test)]
    pub fn queue(self, queue: u64) -> Self {
        Self { queue, ..self }
    }
}

/// What a cache on disk holds and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLoad {
    /// Whether the model's bytes are known: before that nothing is read or written.
    pub ready: bool,
    /// Bytes that its files may take.
    pub budget: u64,
    /// Bytes that they take, as far as is known.
    pub bytes: u64,
    /// Prompts that began with what was read.
    pub hits: u64,
    /// Tokens of theirs that were read.
    pub hit_tokens: u64,
    /// Prompts of which nothing was there that was worth reading.
    pub misses: u64,
    /// Bytes of keys, values and states that were read.
    pub read: u64,
    /// The same that were written.
    pub written: u64,
    /// Files that were removed for others.
    pub removed: u64,
    /// Files that were damaged.
    pub damaged: u64,
    /// Files that could not be written, and beginnings that came faster than the disk takes them.
    pub dropped: u64,
}

/// What was handed over and could not be written.
#[derive(Debug, Default)]
struct Lost {
    times: u64,
    last: Option<Instant>,
}

/// What the engine and the two threads share.
pub(super) struct Shared {
    cache: Arc<Cache>,
    shapes: PartShapes,
    cost: KvCost,
    settings: String,
    /// Of everything but owner and tokens, once it is known.
    base: OnceLock<Key>,
    stop: AtomicBool,
    /// Until when what waits may still be written, once the engine ends.
    until: OnceLock<Instant>,
    /// Bytes that wait to be written.
    waiting: Mutex<u64>,
    /// Told when there are fewer.
    fewer: Condvar,
    /// Tokens a second of prompts, as `f64`; 0 before the first.
    prefill: AtomicU64,
    lost: Mutex<Lost>,
    hits: AtomicU64,
    hit_tokens: AtomicU64,
    misses: AtomicU64,
    dropped: AtomicU64,
}

impl Shared {
    fn store(&self) -> &Store {
        &self.cache.store
    }

    fn set_base(&self, model: Key) {
        let program = format!(
            "backstop {} bits {BITS} {} {}",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::ARCH,
            if cfg!(target_endian = "little") { "little" } else { "big" }
        );
        let layout = self.shapes.describe();
        let parts = [program.as_bytes(), self.settings.as_bytes(), layout.as_bytes(), model.bytes()];
        let _ = self.base.set(Key::of(parts));
    }

    /// What it holds and has done.
    pub fn load(&self) -> DiskLoad {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = self.store().counts();
        DiskLoad {
            ready: self.base.get().is_some(),
            budget: self.store().budget(),
            bytes: self.store().bytes(),
            hits: of(&self.hits),
            hit_tokens: of(&self.hit_tokens),
            misses: of(&self.misses),
            read: of(&counts.read),
            written: of(&counts.written),
            removed: of(&counts.removed),
            damaged: of(&counts.damaged),
            dropped: of(&self.dropped) + of(&counts.failed),
        }
    }
}

/// What the engine's thread has of a cache on disk. Dropped, it writes nothing more.
pub(super) struct Disk {
    shared: Arc<Shared>,
    looks: Option<Sender<reader::Job>>,
    saves: Option<Sender<Save>>,
    /// Disconnected when both threads have ended.
    ended: Receiver<()>,
}

impl Disk {
    /// Starts the threads. `settings` is all that changes bits beside the model and this program; answers go to `answer`.
    ///
    /// # Errors
    /// A system that gives no threads.
    pub fn start(
        cache: Arc<Cache>,
        shapes: PartShapes,
        cost: KvCost,
        settings: String,
        answer: impl Fn(Answer) -> bool + Send + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            cache,
            shapes,
            cost,
            settings,
            base: OnceLock::new(),
            stop: AtomicBool::new(false),
            until: OnceLock::new(),
            waiting: Mutex::new(0),
            fewer: Condvar::new(),
            prefill: AtomicU64::new(0),
            lost: Mutex::default(),
            hits: AtomicU64::new(0),
            hit_tokens: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        if let Some(model) = shared.cache.model.known(shared.store()) {
            shared.set_base(model);
        }
        let ((looks, jobs), (saves, saved), (alive, ended)) = (channel(), channel(), channel::<()>());
        let (of_reader, of_writer, also_alive) = (Arc::clone(&shared), Arc::clone(&shared), alive.clone());
        spawn("backstop-cache-reader", move || {
            reader::run(&of_reader, &jobs, answer);
            drop(alive);
        })?;
        spawn("backstop-cache-writer", move || {
            writer::run(&of_writer, &saved);
            drop(also_alive);
        })?;
        Ok(Self { shared, looks: Some(looks), saves: Some(saves), ended })
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The key that the beginnings of `space` start from, once the model's bytes are known.
    pub fn beginning(&self, space: &Space, frequencies: &[Arc<Frequencies>]) -> Option<Key> {
        Some(self.shared.base.get()?.beginning(space.as_deref(), frequencies))
    }

    /// Whether the model's bytes are known.
    pub fn is_ready(&self) -> bool {
        self.shared.base.get().is_some()
    }

    /// Has a beginning looked for; one answer follows. False where the reader has ended.
    pub fn find(&self, find: Find) -> bool {
        self.ask(reader::Job::Find(find))
    }

    /// Has it read; one answer follows, as for [`Self::find`].
    pub fn load(&self, plan: Plan) -> bool {
        self.ask(reader::Job::Load(plan))
    }

    fn ask(&self, job: reader::Job) -> bool {
        self.looks.as_ref().is_some_and(|looks| looks.send(job).is_ok())
    }

    /// Hands over what is to be written, where there is room for it before `patience`, or now.
    pub fn save(&self, save: Save, patience: Option<Instant>) -> bool {
        let bytes = save.bytes(&self.shared.shapes);
        {
            let mut waiting = self.shared.waiting.lock();
            // A part that is larger than the queue gets it to itself.
            while *waiting > 0 && *waiting + bytes > self.shared.cache.queue {
                let Some(until) = patience else { return false };
                if self.shared.fewer.wait_until(&mut waiting, until).timed_out() {
                    return false;
                }
            }
            *waiting += bytes;
            debug_assert!(*waiting <= self.shared.cache.queue || save.parts.len() == 1);
        }
        self.saves.as_ref().is_some_and(|saves| saves.send(save).is_ok())
    }

    /// How many of these parts, the first ones, have room in the queue together; one at least.
    pub fn at_once(&self, parts: &[SavedPart]) -> usize {
        let mut bytes = 0_u64;
        let fits = |part: &&SavedPart| {
            bytes = bytes.saturating_add(self.shared.shapes.bytes(part.kind));
            bytes <= self.shared.cache.queue
        };
        parts.iter().take_while(fits).count().max(1)
    }

    /// How often something that was handed over could not be written.
    pub fn lost(&self) -> u64 {
        self.shared.lost.lock().times
    }

    /// Whether it is time to try again what has been lost since the `seen`th time.
    pub fn is_retry_due(&self, seen: u64) -> bool {
        let lost = self.shared.lost.lock();
        lost.times != seen && lost.last.is_none_or(|last| last.elapsed() >= RETRY)
    }

    /// Until when what is left may be written, now that the engine ends.
    pub fn end(&self) -> Instant {
        *self.shared.until.get_or_init(|| Instant::now() + AT_END)
    }

    /// Counts a beginning that could not be handed over before it had to go.
    pub fn count_dropped(&self) {
        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what came of a look: tokens that were read, 0 where it was for nothing.
    pub fn count_found(&self, tokens: usize) {
        let count = if tokens > 0 { &self.shared.hits } else { &self.shared.misses };
        count.fetch_add(1, Ordering::Relaxed);
        self.shared.hit_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// Notes that `tokens` of prompts took `time`.
    pub fn prefilled(&self, tokens: usize, time: Duration) {
        let rate = tokens as f64 / time.as_secs_f64().max(1e-9);
        let before = f64::from_bits(self.shared.prefill.load(Ordering::Relaxed));
        let mean = if before == 0.0 { rate } else { before * 0.75 + rate * 0.25 };
        self.shared.prefill.store(mean.to_bits(), Ordering::Relaxed);
    }
}

impl Drop for Disk {
    /// Lets what was handed over be written until it is due.
    fn drop(&mut self) {
        let until = self.end();
        self.shared.stop.store(true, Ordering::Relaxed);
        (self.looks, self.saves) = (None, None);
        // A disk that does not answer is left to itself.
        let patience = until.saturating_duration_since(Instant::now()) + Duration::from_secs(1);
        if self.ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the disk of the cache does not answer: what was to be written is lost");
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let builder = std::thread::Builder::new().name(name.into());
    refusals::spawn(builder, work)
        .map(drop)
        .map_err(|source| Error::Thread { what: "a cache on disk", source })
}
