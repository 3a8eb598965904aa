//! The thread pool: parallel regions of a few microseconds, some hundred and fifty of them per token.
//!
//! Tasks are claimed from a counter, so that a thread which the system holds up does not hold up the others; which
//! thread computes a task never shows in a result. Workers spin for a moment after a region, because the next one
//! follows within microseconds, and then park, because machines are shared. A worker that arrives late finds the region
//! closed and lets it be: the caller waits only for those inside.

#[cfg(all(test, loom))]
mod models;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, Condvar, JoinHandle, Mutex, Ordering, UnsafeCell, Wait};

use crate::alloc;
use crate::error::Result;

/// How long a worker looks for the next region before it parks: several times the serial gap between two ops, and the
/// order of what waking it costs.
const SPIN: Duration = Duration::from_micros(50);
/// The same where there are more threads than cores: spinning takes the core from a thread with work.
const SPIN_OVERSUBSCRIBED: Duration = Duration::from_micros(2);

/// Regions are numbered from bit 17 of the state up; bit 16 says that the region is open, below are those inside.
const OPEN: u64 = 1 << 16;
const EPOCH: u64 = 1 << 17;
const INSIDE: u64 = OPEN - 1;

/// What a region runs: `(worker, task)`.
type Body<'a> = &'a (dyn Fn(usize, usize) + Sync);

sync::thread_local! {
    /// The worker index of the region that this thread is in: a nested region runs on it, serially.
    static INSIDE_REGION: Cell<Option<usize>> = Cell::new(None);
}

/// A cache line of its own, so that claims do not disturb those who watch the state (128: lines are fetched in pairs).
#[derive(Default)]
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// Region number, open bit, workers inside.
    state: Line<AtomicU64>,
    /// The next task to claim.
    next: Line<AtomicUsize>,
    /// Number of tasks, and what to do: written while the region is closed and nobody inside.
    job: UnsafeCell<(usize, Option<Body<'static>>)>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
    stop: AtomicBool,
    spin: Duration,
}

// SAFETY: `job` is written by the holder of the pool's lock alone, while the region is closed and nobody is inside
// (both read from `state` with Acquire); workers read it only between entering an open region and leaving it.
unsafe impl Sync for Shared {}
// SAFETY: the body is `Sync`, so a reference to it may move to other threads; the rest is `Send`.
unsafe impl Send for Shared {}

impl Shared {
    /// Claims and runs tasks until none is left; the first panic is kept and empties the counter.
    fn work(&self, worker: usize, tasks: usize, body: Body<'_>) {
        let outer = INSIDE_REGION.with(|inside| inside.replace(Some(worker)));
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.0.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                body(worker, task);
            }
        }));
        INSIDE_REGION.with(|inside| inside.set(outer));
        if let Err(payload) = result {
            self.next.0.store(tasks, Ordering::Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(|e| e.into_inner());
            match *first {
                None => *first = Some(payload),
                // Dropping it could panic, and this thread would never leave the region.
                Some(_) => std::mem::forget(payload),
            }
        }
    }

    fn worker(&self, index: usize) {
        let mut seen = 0;
        loop {
            let Some(state) = self.await_region(seen) else { return };
            seen = state / EPOCH;
            // Somebody else may enter or leave meanwhile: try until inside, or the region is closed or over.
            let mut state = state;
            loop {
                if state / EPOCH != seen || state & OPEN == 0 {
                    break;
                }
                match self.state.0.compare_exchange_weak(
                    state,
                    state + 1,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                ) {
                    Ok(_) => {
                        // SAFETY: this thread is inside an open region: the job was written before the region was
                        // opened (Acquire above), and is not written again until this thread has left.
                        let (tasks, body) = self.job.with(|job| unsafe { *job });
                        if let Some(body) = body {
                            self.work(index, tasks, body);
                        }
                        self.state.0.fetch_sub(1, Ordering::Release);
                        break;
                    }
                    Err(now) => state = now,
                }
            }
        }
    }

    /// Spins, then parks, until a region newer than `seen` is open; `None` when the pool is dropped.
    fn await_region(&self, seen: u64) -> Option<u64> {
        let fresh = |state: u64| state / EPOCH != seen && state & OPEN != 0;
        let wait = Wait::new(self.spin);
        loop {
            for _ in 0..sync::LOOKS {
                let state = self.state.0.load(Ordering::Acquire);
                if fresh(state) {
                    return Some(state);
                }
                sync::spin_loop();
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if wait.is_over() {
                break;
            }
        }
        let mut bed = self.bed.lock().unwrap_or_else(|e| e.into_inner());
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        sync::seq_cst();
        let found = loop {
            // SeqCst pairs with `run`: either this load sees the open region, or `run` sees the sleeper and rings.
            let state = self.state.0.load(Ordering::SeqCst);
            if fresh(state) {
                break Some(state);
            }
            if self.stop.load(Ordering::SeqCst) {
                break None;
            }
            bed = self.bell.wait(bed).unwrap_or_else(|e| e.into_inner());
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        found
    }

    fn ring(&self) {
        sync::seq_cst();
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.bed.lock());
            self.bell.notify_all();
        }
    }
}

/// A pool of `threads` threads, of which the caller is one.
///
/// With one thread, one task, or inside a task of a region, `run` is a plain loop on the calling thread.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One region at a time: callers of several threads queue here.
    turn: Mutex<()>,
}

impl Pool {
    /// Starts `threads - 1` workers; zero counts as one. Fewer where the system refuses to start a thread.
    pub fn new(threads: usize) -> Self {
        // The state counts those inside in 16 bits.
        let threads = threads.clamp(1, 1 << 12);
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let shared = Arc::new(Shared {
            state: Line::default(),
            next: Line::default(),
            job: UnsafeCell::new((0, None)),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
            stop: AtomicBool::new(false),
            spin: if threads > cores { SPIN_OVERSUBSCRIBED } else { SPIN },
        });
        let workers = (1..threads)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                let name = format!("backstop-{index}");
                sync::spawn(sync::Builder::new().name(name), move || shared.worker(index)).ok()
            })
            .collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    /// One thread per core that this process may use.
    pub fn per_core() -> Self {
        Self::new(std::thread::available_parallelism().map_or(1, |n| n.get()))
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `body(task)` for every task in `0..tasks`, each once, in any order and on any thread; returns when all
    /// are done.
    ///
    /// # Panics
    /// With the first panic of a task, after every thread has left the region; tasks not yet claimed are dropped.
    #[inline]
    pub fn run<F: Fn(usize) + Sync>(&self, tasks: usize, body: F) {
        self.run_on(tasks, |_, task| body(task));
    }

    /// As [`run`](Self::run), with the index of the worker, in `0..threads()`, as the first argument: two tasks that
    /// run at the same time have different ones.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn run_on<F: Fn(usize, usize) + Sync>(&self, tasks: usize, body: F) {
        let nested = INSIDE_REGION.with(Cell::get);
        if self.workers.is_empty() || tasks <= 1 || nested.is_some() {
            let worker = nested.unwrap_or(0);
            for task in 0..tasks {
                body(worker, task);
            }
            return;
        }
        self.run_shared(tasks, &body);
    }

    fn run_shared(&self, tasks: usize, body: Body<'_>) {
        let turn = self.turn.lock().unwrap_or_else(|e| e.into_inner());
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The reference is read by threads inside the region, and this function
        // does not return (nor unwind: `work` catches) before the region is closed and the last one has left.
        let erased = unsafe { std::mem::transmute::<Body<'_>, Body<'static>>(body) };
        // SAFETY: the lock is held, the region before was closed and left, so nobody else looks at the job.
        shared.job.with_mut(|job| unsafe { *job = (tasks, Some(erased)) });
        shared.next.0.store(0, Ordering::Relaxed);
        // The state is closed and empty: nobody else writes it now.
        let epoch = shared.state.0.load(Ordering::Relaxed) / EPOCH;
        shared.state.0.store(((epoch + 1) * EPOCH) | OPEN, Ordering::SeqCst);
        shared.ring();

        shared.work(0, tasks, body);

        let mut state = shared.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut rounds = 0u32;
        while state & INSIDE != 0 {
            // A worker is in its last task. Spin for about a task's time, then let others have the core.
            if rounds < sync::ROUNDS && self.shared.spin == SPIN {
                sync::spin_loop();
            } else {
                sync::yield_now();
            }
            rounds = rounds.saturating_add(1);
            state = shared.state.0.load(Ordering::Acquire);
        }
        let panic = shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        drop(turn);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Cuts `data` into chunks of `chunk` elements (the last may be shorter) and runs `body(index, chunk)` for each.
    ///
    /// # Panics
    /// Where `chunk` is zero; with the first panic of a task.
    pub fn run_chunks<T: Send, F: Fn(usize, &mut [T]) + Sync>(&self, data: &mut [T], chunk: usize, body: F) {
        assert!(chunk > 0, "run_chunks: chunks of no elements");
        let len = data.len();
        let parts = Parts::new(data);
        self.run(len.div_ceil(chunk), |task| {
            let start = task * chunk;
            // SAFETY: chunks of different tasks do not overlap, and each task runs once.
            let part = unsafe { parts.slice(start, chunk.min(len - start)) };
            body(task, part);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.bed.lock());
        self.shared.bell.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks: it ends by returning.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

/// A mutable slice whose parts different tasks write.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a, T> {
    data: *mut T,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: `Parts` is a mutable slice handed out in pieces that do not overlap (the contract of `slice`).
unsafe impl<T: Send> Sync for Parts<'_, T> {}
// SAFETY: as a mutable slice of `Send` elements.
unsafe impl<T: Send> Send for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Borrows `data` until the last part is dropped.
    pub fn new(data: &'a mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), slice: std::marker::PhantomData }
    }

    /// Elements `start..start + len`.
    ///
    /// # Panics
    /// Where they leave the slice.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "{len} elements at {start} of {}", self.len);
        // SAFETY: inside the slice that `new` borrowed for 'a; the caller vouches that parts do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

/// Working memory of kernels: a buffer of `f32` for each worker, aligned to a cache line, that grows to the largest
/// request and is kept.
#[derive(Debug, Default)]
pub struct Scratch {
    slots: Vec<parking_lot::Mutex<Vec<CacheLine>>>,
    shared: Buffer,
}

/// A buffer that all workers of a region read; it is aligned to a cache line.
#[derive(Debug, Default)]
pub struct Buffer {
    lines: Vec<CacheLine>,
    len: usize,
}

impl Buffer {
    /// The elements, whatever they hold.
    pub fn as_slice(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    /// The elements, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// 64 bytes: a line of every cache that backstop meets, and an AVX-512 register.
#[derive(Debug, Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct CacheLine([f32; 16]);

impl Scratch {
    /// Empty buffers for the threads of `pool`.
    pub fn new(pool: &Pool) -> Self {
        let mut scratch = Self::default();
        scratch.for_threads_of(pool);
        scratch
    }

    fn for_threads_of(&mut self, pool: &Pool) {
        self.slots.resize_with(pool.threads().max(self.slots.len()), Default::default);
    }

    /// Makes room for `len` elements per thread of `pool`: kernels call it before a region, so that tasks find their
    /// memory ready, and no region is left half done for want of it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn reserve(&mut self, pool: &Pool, len: usize) -> Result<()> {
        self.for_threads_of(pool);
        for slot in &mut self.slots {
            grow(slot.get_mut(), len)?;
        }
        Ok(())
    }

    /// Takes the buffer that all workers share, with room for `len` elements; [`put_shared`](Self::put_shared) brings
    /// it back, so that the next call finds the memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn take_shared(&mut self, len: usize) -> Result<Buffer> {
        grow(&mut self.shared.lines, len)?;
        let mut buffer = std::mem::take(&mut self.shared);
        buffer.len = len;
        Ok(buffer)
    }

    /// Returns what [`take_shared`](Self::take_shared) gave.
    pub fn put_shared(&mut self, buffer: Buffer) {
        self.shared = buffer;
    }

    /// Hands `len` elements of `worker`'s buffer, whatever they hold, to `body`.
    ///
    /// # Panics
    /// Where `worker` or `len` exceed what was reserved, or where the buffer is in use further up the stack.
    #[inline]
    pub fn with<R>(&self, worker: usize, len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
        let mut slot = self.slots[worker].try_lock().expect("scratch: the worker's buffer is in use");
        body(&mut bytemuck::cast_slice_mut(&mut slot)[..len])
    }
}

/// Room for `len` elements, as [`alloc::replace`].
fn grow(lines: &mut Vec<CacheLine>, len: usize) -> Result<()> {
    alloc::replace(lines, len.div_ceil(16), "a kernel's working memory")
}
