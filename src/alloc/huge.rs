//! Huge pages for what was written on small ones: reading it misses the table of pages less often, and the processor reads ahead
//! over its small boundaries. They are made behind the load, on a thread that stands back: asked for before, they would be zeroed one after
//! the other while somebody waits, which takes longer than small ones do on some virtual machines.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Weak};
use std::thread::Builder;
use std::time::{Duration, Instant};

use memmap2::{MmapMut, MmapOptions};
use parking_lot::{Condvar, Mutex};

use crate::{apart, refusals};

/// A huge page of x86-64, and of aarch64 where small ones have 4 KiB.
pub(super) const HUGE: usize = 2 << 20;
/// How long the first of them are left alone: a short run ends before.
const BEFORE: Duration = Duration::from_secs(1);

/// What smaller parts are taken from: several lie on one huge page.
const SHARED: usize = 4 * HUGE;
/// Bytes of a cache line.
const LINE: usize = 64;
/// MADV_COLLAPSE, which not every C library has a name for.
#[cfg(target_os = "linux")]
const COLLAPSE: libc::c_int = 25;

/// A mapping, of which the part from the first boundary of huge pages on is used.
#[derive(Debug)]
struct Map {
    _map: MmapMut,
    start: *mut u8,
    len: usize,
    /// Bytes of it that parts have.
    used: AtomicUsize,
}

// SAFETY: the memory goes with the mapping, to whichever thread; who may read and write it is said by parts.
unsafe impl Send for Map {}
// SAFETY: as above; a mapping shared gives nothing but its parts.
unsafe impl Sync for Map {}

impl Map {
    /// Zeros.
    fn new(len: usize) -> io::Result<Arc<Self>> {
        let mut map = MmapOptions::new().len(len.saturating_add(HUGE)).map_anon()?;
        let before = map.as_ptr().align_offset(HUGE).min(HUGE);
        let start = map.as_mut_ptr().wrapping_add(before);
        Ok(Arc::new(Self { _map: map, start, len, used: AtomicUsize::new(0) }))
    }
}

/// Bytes of a mapping that are nobody else's.
#[derive(Debug)]
pub(super) struct Part {
    map: Arc<Map>,
    range: Range<usize>,
}

thread_local! {
    /// The mapping from which this thread takes small parts; it goes with the last of them. A model is packed by one thread: so no mapping
    /// has parts of two that are unloaded at different times.
    static OPEN: RefCell<Weak<Map>> = const { RefCell::new(Weak::new()) };
}

impl Part {
    /// Zeros, from the boundary of a cache line on, or of a huge page where they are as many.
    pub fn new(len: usize) -> io::Result<Self> {
        if len >= HUGE {
            let map = Map::new(len)?;
            map.used.store(len, Relaxed);
            return Ok(Self { map, range: 0..len });
        }
        OPEN.with_borrow_mut(|open| {
            let room = |map: &Arc<Map>| len <= map.len - map.used.load(Relaxed);
            let map = match open.upgrade().filter(room) {
                Some(map) => map,
                None => {
                    let map = Map::new(SHARED)?;
                    want(std::mem::replace(open, Arc::downgrade(&map)));
                    map
                }
            };
            let start = map.used.load(Relaxed);
            map.used.store((start + len).next_multiple_of(LINE).min(SHARED), Relaxed);
            Ok(Self { map, range: start..start + len })
        })
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
        cfg!(all(target_os = "linux", not(miri))) && said().is_ok_and(|said| !said.contains("[never]"))
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

/// Moves a page at a time, so that who lets go of the memory meanwhile has it back soon. How many were moved.
fn moved(map: &Weak<Map>) -> usize {
    let mut pages = 0;
    for page in 0.. {
        // A page that is not used whole would be given whole.
        let Some(map) = map.upgrade().filter(|map| (page + 1) * HUGE <= map.used.load(Relaxed)) else {
            break;
        };
        let start = map.start.wrapping_add(page * HUGE);
        #[cfg(target_os = "linux")]
        // SAFETY: the range is memory of this mapping, which `map` keeps. What it holds stays what it is, and where, for those who
        // read and write it meanwhile, too.
        let refused = unsafe { libc::madvise(start.cast(), HUGE, COLLAPSE) } != 0;
        #[cfg(not(target_os = "linux"))]
        let refused = !start.is_null();
        match refused.then(|| io::Error::last_os_error().kind()) {
            None => pages += 1,
            // Linux before 6.1 knows no such advice.
            Some(io::ErrorKind::InvalidInput | io::ErrorKind::OutOfMemory) => break,
            // Small ones are as good, but for speed.
            Some(_) => {}
        }
    }
    pages
}

/// Waits until all memory is where it is to be, for a time: what measures does.
pub(crate) fn settle(most: Duration) {
    let until = Instant::now() + most;
    let mut work = WORK.lock();
    while work.runs && !DONE.wait_until(&mut work, until).timed_out() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_meanwhile_is_moved_and_stays_what_it_is() {
        if !are_there() {
            println!("skipped: this system has no huge pages");
            return;
        }
        // Two that do not fit beside each other twice: the rest of a page is nobody's, and is not moved.
        let of = [HUGE, 3 * HUGE + 4096, HUGE - LINE, HUGE - LINE, HUGE - LINE, HUGE / 2];
        let mut parts = of.map(|len| Part::new(len).unwrap());
        for (i, part) in parts.iter_mut().enumerate() {
            part.bytes_mut().fill(i as u8 + 1);
        }
        let is = |i: usize| parts[i].bytes().iter().all(|byte| *byte == i as u8 + 1);
        let maps = [0, 1, 2].map(|i| Arc::downgrade(&parts[i].map));
        let moved = std::thread::scope(|scope| {
            let read = scope.spawn(|| (0..20).all(|_| (0..of.len()).all(is)));
            let moved = [0, 1, 2].map(|i| super::moved(&maps[i]));
            assert!(read.join().unwrap());
            moved
        });
        assert!((0..of.len()).all(is));
        assert!(Arc::ptr_eq(&parts[2].map, &parts[5].map));
        // Linux before 6.1 moves none.
        if moved != [0; 3] {
            assert_eq!(moved, [1, 3, 3]);
        }
        drop(parts);
        assert_eq!(maps.map(|map| map.strong_count()), [0; 3]);
    }

    #[test]
    fn threads_share_no_mapping() {
        let here = Part::new(LINE).unwrap();
        let there = std::thread::spawn(|| Part::new(LINE).unwrap()).join().unwrap();
        assert!(!Arc::ptr_eq(&here.map, &there.map));
    }
}
