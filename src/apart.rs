//! Work that a hostile file could make endless, on a thread of its own, which is given up on after a while.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::error::caught;
use crate::refusals;

/// The time that this thread has worked since it began. Unlike a clock, it stands still while other programs have the
/// processor: what is limited by it is not refused on a busy machine.
#[cfg(unix)]
pub(crate) fn worked() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `time`, which lives on this stack, and nowhere else.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    if failed != 0 {
        return Duration::ZERO;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Where a thread's own time is not known, a clock takes its place.
#[cfg(not(unix))]
pub(crate) fn worked() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// Whether much was freed that the allocator may keep.
static FREED: AtomicBool = AtomicBool::new(false);

/// Says that much was freed: it is given back once somebody has nothing else to do.
pub(crate) fn freed_much() {
    FREED.store(true, Relaxed);
}

/// Whether much was freed since this was asked last.
pub(crate) fn was_much_freed() -> bool {
    FREED.swap(false, Relaxed)
}

/// Work beside the steps that takes longer lets them go first: a step waits for the slowest of its threads.
pub(crate) const LONG: Duration = Duration::from_millis(20);
/// How much further back than this process long work stands: a ninth of the time of a thread that wants the same core. A process
/// that stands at 10 or more itself has less to go back: 19 is the last.
#[cfg(target_os = "linux")]
const BACK: i32 = 10;
/// Nanoseconds for which it has a core at a time. The system's own milliseconds would be some steps of a small model.
#[cfg(target_os = "linux")]
const SLICE: u64 = 100_000;

/// The calling thread, as [`lower`] knows it.
pub(crate) fn own_id() -> i32 {
    #[cfg(target_os = "linux")]
    // SAFETY: it takes nothing and always succeeds.
    return unsafe { libc::gettid() };
    #[cfg(not(target_os = "linux"))]
    0
}

/// Has the system run other threads before this one, where it can be told so of one thread: on Linux. Threads that it starts
/// later are as it is.
pub(crate) fn lower(thread: i32) {
    #[cfg(target_os = "linux")]
    {
        static BEFORE: std::sync::LazyLock<i32> = std::sync::LazyLock::new(|| {
            // SAFETY: numbers alone. The first thread of a process has its id, and a nice value: −1 is one, and no error.
            unsafe { libc::getpriority(libc::PRIO_PROCESS, std::process::id()) }
        });
        let nice = (*BEFORE + BACK).min(19);
        if !set_back(thread, nice)
            && let Ok(thread) = libc::id_t::try_from(thread)
        {
            // SAFETY: numbers alone; a thread that has ended is an error, which changes nothing.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, nice) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = thread;
}

/// Sets a thread's nice value, and short turns; whether that is possible.
#[cfg(target_os = "linux")]
fn set_back(thread: i32, nice: i32) -> bool {
    // SAFETY: a number alone.
    let policy = unsafe { libc::sched_getscheduler(thread) };
    if ![libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&policy) {
        return false;
    }
    // SAFETY: all of it are numbers, for which zero is one.
    let mut wanted: libc::sched_attr = unsafe { std::mem::zeroed() };
    wanted.size = size_of::<libc::sched_attr>() as u32;
    wanted.sched_policy = policy as u32;
    wanted.sched_nice = nice;
    // Before 6.12 this says nothing.
    wanted.sched_runtime = SLICE;
    // SAFETY: the call reads `wanted` alone; a thread that has ended is an error, which changes nothing.
    unsafe { libc::syscall(libc::SYS_sched_setattr, thread, &raw const wanted, 0) == 0 }
}

/// In place of the id of a thread: it is to be lowered.
const LATE: i32 = -1;

/// Why there is no result.
pub(crate) enum Lost {
    /// The thread could not be started.
    NoThread(io::Error),
    /// It still works.
    Late(JoinHandle<()>),
    /// It panicked.
    Panicked,
}

/// What `work` returns within `time`, which other threads go before once it is [`LONG`], on a thread called `name` with `stack` bytes of stack.
pub(crate) fn run<T: Send + 'static>(
    name: &str,
    stack: usize,
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Lost> {
    let (send, receive) = sync_channel(1);
    let id = Arc::new(AtomicI32::new(0));
    let own = Arc::clone(&id);
    let work = move || {
        if own.swap(own_id(), Relaxed) == LATE {
            lower(own_id());
        }
        // Where it panics, what is waited for is gone.
        let _ = caught(work).map(|result| send.send(result));
        if worked() >= LONG {
            freed_much();
        }
    };
    let thread = Builder::new().name(name.into()).stack_size(stack);
    let thread = refusals::spawn(thread, work).map_err(Lost::NoThread)?;
    let early = match receive.recv_timeout(time.min(LONG)) {
        Err(RecvTimeoutError::Timeout) => {
            let id = id.swap(LATE, Relaxed);
            // One that has not begun sees to it itself.
            if id > 0 {
                lower(id);
            }
            receive.recv_timeout(time.saturating_sub(LONG))
        }
        early => early,
    };
    early.map_err(|error| match error {
        RecvTimeoutError::Timeout => Lost::Late(thread),
        RecvTimeoutError::Disconnected => Lost::Panicked,
    })
}
