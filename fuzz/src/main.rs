//! libFuzzer's program for all targets of `backstop::fuzzing`: `BACKSTOP_FUZZ_TARGET` names the one that it runs, and
//! `BACKSTOP_FUZZ_CORPUS` a folder that its seeds go to. `cargo xtask fuzz` builds and starts it.

#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backstop::fuzzing::{TARGETS, Target};

/// Bytes that one input may take beside what was there before it.
const MOST: usize = 512 << 20;
/// Processor time that one input may take: the longest that a bound allows (a pattern's 10 s), instrumented.
const PATIENCE: Duration = Duration::from_secs(60);

static TARGET: OnceLock<&Target> = OnceLock::new();

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The system's allocator, which ends the program where an input takes too much.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

impl Counting {
    fn take(bytes: usize) {
        let live = LIVE.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if live > LIMIT.load(Ordering::Relaxed) {
            // Others may allocate while the report is made.
            LIMIT.store(usize::MAX, Ordering::Relaxed);
            let _ = writeln!(std::io::stderr(), "an input takes {live} bytes with the last {bytes}");
            std::process::abort();
        }
    }

    fn give(bytes: usize) {
        LIVE.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::give(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::take(size);
        Self::give(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Chooses the target, writes its seeds, and makes panics of this project's own code the end of the program even where they would
/// be caught: what the libraries panic on becomes an error by design.
fn begin() {
    let name = std::env::var("BACKSTOP_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("BACKSTOP_FUZZ_TARGET is {name:?}, expected one of {}", names.join(", "));
        std::process::exit(2);
    };
    TARGET.get_or_init(|| target);
    if let Some(corpus) = std::env::var_os("BACKSTOP_FUZZ_CORPUS") {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(Path::new(&corpus).join(format!("seed-{number:03}")), seed).expect("a seed");
        }
    }
    // libfuzzer-sys has set a hook that ends the program at any panic.
    drop(std::panic::take_hook());
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let library = panic.location().is_some_and(|place| place.file().contains("/.cargo/registry/"));
        if library && std::thread::current().name() != Some("main") {
            return;
        }
        show(panic);
        if !library {
            std::process::abort();
        }
    }));
}

/// Processor time of all threads so far. The clock would count what other programs take, too.
fn spent() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a place that the call may write to.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "no clock of this process");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

libfuzzer_sys::fuzz_target!(init: begin(), |data: &[u8]| {
    LIMIT.store(LIVE.load(Ordering::Relaxed).saturating_add(MOST), Ordering::Relaxed);
    let before = spent();
    if let Some(target) = TARGET.get() {
        (target.run)(data);
    }
    LIMIT.store(usize::MAX, Ordering::Relaxed);
    let took = spent().saturating_sub(before);
    assert!(took <= PATIENCE, "an input takes {took:?} of processor time");
});
