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

/// What smaller parts are taken from: several lie on one huge page.
const SHARED: usize = 4 * HUGE;

/// A mapping, of which the part from the first boundary of huge pages on is used.
#[derive(Debug)]
struct Map {
    _map: MmapMut,
    start: *mut u8,
    len: usize,
}

// SAFETY: the memory goes with the mapping, to whichever thread; who may read and write it is said by parts.
unsafe impl Send for Map {}
// SAFETY: as above; a mapping shared gives nothing but its parts.
unsafe impl Sync for Map {}

impl Map {
    /// Zeros on small pages.
    fn new(len: usize) -> io::Result<Arc<Self>> {
        let mut map = MmapOptions::new().len(len.saturating_add(HUGE)).map_anon()?;
        let before = map.as_ptr().align_offset(HUGE).min(HUGE);
        let start = map.as_mut_ptr().wrapping_add(before);
        Ok(Arc::new(Self { _map: map, start, len }))
    }
}

/// Bytes of a mapping that are nobody else's.
#[derive(Debug)]
pub(super) struct Part {
    map: Arc<Map>,
    range: Range<usize>,
}

/// The mapping from which small parts are taken, and how much of it has been. It goes with the last of them.
static OPEN: Mutex<(Weak<Map>, usize)> = Mutex::new((Weak::new(), 0));

impl Part {
    /// Zeros, from the boundary of a cache line on, or of a huge page where they are as many.
    pub fn new(len: usize) -> io::Result<Self> {
        if len >= HUGE {
            return Ok(Self { map: Map::new(len)?, range: 0..len });
        }
        let mut open = OPEN.lock();
        let room = open.0.upgrade().filter(|map| len <= map.len - open.1);
        let map = match room {
            Some(map) => map,
            None => {
                let map = Map::new(SHARED)?;
                let full = std::mem::replace(&mut *open, (Arc::downgrade(&map), 0)).0;
                want(full);
                map
            }
        };
        let range = open.1..open.1 + len;
        open.1 = range.end.next_multiple_of(64);
        Ok(Self { map, range })
    }

    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: within the mapping, which `map` keeps; the range is this part's alone, and is written through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.map.start.add(self.range.start), self.range.len()) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.map.start.add(self.range.start), self.range.len()) }
    }

    /// It is written: a mapping of its own is whole.
    pub fn written(&self) {
        if self.range.len() == self.map.len {
            want(Arc::downgrade(&self.map));
        }
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
fn want(map: Weak<Map>) {
    if map.strong_count() == 0 {
        return;
    }
    let mut work = WORK.lock();
    work.maps.push_back(map);
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
        let Some(map) = map.upgrade().filter(|map| (page + 1) * HUGE <= map.len) else { return };
        let start = map.start.wrapping_add(page * HUGE);
        #[cfg(target_os = "linux")]
        // SAFETY: the range is memory of this mapping, which `map` keeps. What it holds stays what it is, and where, for those who
        // read and write it meanwhile, too.
        let refused = unsafe { libc::madvise(start.cast(), HUGE, libc::MADV_COLLAPSE) } != 0;
        #[cfg(not(target_os = "linux"))]
        let refused = start.is_null();
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
