//! What an engine is doing, as other threads see it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::disk::{self, DiskLoad};
use super::memory::Counts;

/// What an engine is doing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Sequences that wait for a place or for memory.
    pub queued: usize,
    /// Of these, those that have a place and wait for memory, in their order.
    pub waiting_for_memory: usize,
    /// Sequences in flight.
    pub running: usize,
    /// Steps that have ended.
    pub steps: u64,
    /// Since the last step ended, or since the engine started.
    pub idle: Duration,
    /// The same or, where that is less, since there is something to do again.
    pub stalled: Duration,
    /// The memory of the KV cache.
    pub kv: KvLoad,
    /// The cache on disk, where there is one.
    pub disk: Option<DiskLoad>,
}

/// What K and V take, in bytes, and what was found in them. Of what several sequences share, each byte counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLoad {
    /// What they may take.
    pub budget: u64,
    /// What they take: `kept`, and what running sequences have beside it.
    pub used: u64,
    /// What beginnings of sequences take that are kept for others; it gives way to sequences that need the room.
    pub kept: u64,
    /// Of this, what running sequences use.
    pub shared: u64,
    /// What running sequences have a right to beside what they share: they never run out.
    pub reserved: u64,
    /// Sequences that began with what was kept, since the start.
    pub hits: u64,
    /// Tokens of theirs that were not computed.
    pub hit_tokens: u64,
    /// Pages that gave way, since the start.
    pub evicted: u64,
}

/// What the engine's thread writes of itself.
pub(super) struct Gauges {
    started: Instant,
    pub queued: AtomicUsize,
    pub waiting: AtomicUsize,
    pub running: AtomicUsize,
    steps: AtomicU64,
    /// When the last step ended, in milliseconds since the start.
    last_step: AtomicU64,
    /// When something was asked while there was nothing to do, likewise.
    woken: AtomicU64,
    kv: KvGauges,
    /// Bytes of the budget that adapters take.
    pub adapters: AtomicU64,
    pub disk: OnceLock<Arc<disk::Shared>>,
}

#[derive(Debug, Default)]
struct KvGauges {
    used: AtomicU64,
    kept: AtomicU64,
    shared: AtomicU64,
    reserved: AtomicU64,
    hits: AtomicU64,
    hit_tokens: AtomicU64,
    evicted: AtomicU64,
}

impl Gauges {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            queued: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            steps: AtomicU64::new(0),
            last_step: AtomicU64::new(0),
            woken: AtomicU64::new(0),
            kv: KvGauges::default(),
            adapters: AtomicU64::new(0),
            disk: OnceLock::new(),
        }
    }

    /// A sequence joins the queue.
    pub fn asked(&self) {
        if self.queued.fetch_add(1, Ordering::Relaxed) == 0 && self.running.load(Ordering::Relaxed) == 0 {
            self.woken.store(self.now(), Ordering::Relaxed);
        }
    }

    pub fn step_ended(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.last_step.store(self.now(), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub fn measured(&self, used: u64, kept: u64, shared: u64, reserved: u64, counts: Counts) {
        let kv = &self.kv;
        let values = [
            (&kv.used, used),
            (&kv.kept, kept),
            (&kv.shared, shared),
            (&kv.reserved, reserved),
            (&kv.hits, counts.hits),
            (&kv.hit_tokens, counts.hit_tokens),
            (&kv.evicted, counts.evicted),
        ];
        values.iter().for_each(|(gauge, value)| gauge.store(*value, Ordering::Relaxed));
    }

    /// All of it, of an engine with this budget.
    pub fn load(&self, budget: u64) -> Load {
        let of = |gauge: &AtomicU64| gauge.load(Ordering::Relaxed);
        let (last, woken) = (of(&self.last_step), of(&self.woken));
        let since = |time: u64| self.started.elapsed().saturating_sub(Duration::from_millis(time));
        Load {
            queued: self.queued.load(Ordering::Relaxed),
            waiting_for_memory: self.waiting.load(Ordering::Relaxed),
            running: self.running.load(Ordering::Relaxed),
            steps: of(&self.steps),
            idle: since(last),
            stalled: since(last.max(woken)),
            kv: KvLoad {
                budget,
                used: of(&self.kv.used),
                kept: of(&self.kv.kept),
                shared: of(&self.kv.shared),
                reserved: of(&self.kv.reserved),
                hits: of(&self.kv.hits),
                hit_tokens: of(&self.kv.hit_tokens),
                evicted: of(&self.kv.evicted),
            },
            disk: self.disk.get().map(|disk| disk.load()),
        }
    }
}
