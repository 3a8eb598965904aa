//! Huge pages for what was written on small ones: reading it misses the table of pages less often, and the processor reads ahead
//! over its small boundaries. They are made behind the load, on a thread that stands back: asked for before, they would be zeroed one after
//! the other while somebody waits, which takes longer than small ones do on some virtual machines.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Weak};
use std::thread::Builder;
use std::time::{Duration, Instant};

use memmap2::{MmapMut, MmapOptions};
use parking_lot::{Condvar, Mutex};

use crate::{apart, refusals};

/// A huge page of x86-64, and of aarch64 where small ones have 4 KiB.
pub(super) const HUGE: usize = 2 << 20;
/// How long a load is left alone: a short run ends before.
const BEFORE: Duration = Duration::from_secs(1);

/// A mapping, and what is used of it: from the first boundary of huge pages on.
#[derive(Debug)]
pub(super) struct Map {
    map: MmapMut,
    range: Range<usize>,
}

impl Map {
    /// Zeros on small pages.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(bytes.saturating_add(HUGE)).map_anon()?;
        let start = map.as_ptr().align_offset(HUGE).min(HUGE);
        Ok(Self { map, range: start..start + bytes })
    }

    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.range.clone()]
    }
}

/// What is yet to be moved, and whether there is a thread that does it.
#[derive(Default)]
struct Work {
    maps: VecDeque<Weak<Map>>,
    runs: bool,
}

static WORK: Mutex<Work> = Mutex::new(Work { maps: VecDeque::new(), runs: false });
static DONE: Condvar = Condvar::new();

/// Whether the system has them and its administrator allows them.
pub(super) fn are_there() -> bool {
    static THERE: LazyLock<bool> = LazyLock::new(|| {
        let said = || std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        cfg!(target_os = "linux") && said().is_ok_and(|said| !said.contains("[never]"))
    });
    *THERE
}

/// Has the memory of `map` moved to huge pages, soon.
pub(super) fn want(map: &Arc<Map>) {
    let mut work = WORK.lock();
    work.maps.push_back(Arc::downgrade(map));
    if !work.runs {
        let thread = Builder::new().name("backstop-pages".into());
        work.runs = refusals::spawn(thread, || {
            std::thread::sleep(BEFORE);
            apart::lower(apart::own_id());
            while let Some(map) = next() {
                moved(&map);
            }
        })
        .is_ok();
    }
}

/// The next one; none, and no thread any longer, where there is no other.
fn next() -> Option<Weak<Map>> {
    let mut work = WORK.lock();
    let next = work.maps.pop_front();
    if next.is_none() {
        work.runs = false;
        DONE.notify_all();
    }
    next
}

/// Moves a page at a time, so that who lets go of the memory meanwhile has it back at once.
fn moved(map: &Weak<Map>) {
    for page in 0.. {
        let Some(map) = map.upgrade() else { return };
        let Some(bytes) = map.bytes().chunks_exact(HUGE).nth(page) else { return };
        #[cfg(target_os = "linux")]
        // SAFETY: the range is memory of this mapping, which `map` keeps. What it holds stays what it is, and where.
        let refused =
            unsafe { libc::madvise(bytes.as_ptr().cast_mut().cast(), HUGE, libc::MADV_COLLAPSE) } != 0;
        #[cfg(not(target_os = "linux"))]
        let refused = bytes.is_empty();
        // Linux before 6.1 knows no such advice; later ones may have no such page now. Small ones are as good, but for speed.
        if refused {
            return;
        }
    }
}

/// Waits until all memory is where it is to be, for a time: what measures does.
pub(crate) fn settle(most: Duration) {
    let until = Instant::now() + most;
    let mut work = WORK.lock();
    while work.runs && !DONE.wait_until(&mut work, until).timed_out() {}
}
