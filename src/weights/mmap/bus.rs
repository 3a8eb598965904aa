//! What happens where a page of a mapped file cannot be read: the file was cut short, or its disk has failed. The system sends
//! SIGBUS to the thread that touched the page, which by default is the end of the process.
//!
//! Here a handler puts zeros in the place of the page and all that follow it in the map, notes that it did, and the thread goes on.
//! Whoever computes with the map asks afterwards, and throws away what was computed.

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Maps at a time. The largest published checkpoints are in some two hundred files.
const MAPS: usize = 4096;

/// A map that the handler knows.
struct Slot {
    /// Its first address; 0 for a free slot, 1 for one that is being taken.
    start: AtomicUsize,
    /// The address behind its last page.
    end: AtomicUsize,
    hit: AtomicBool,
}

static SLOTS: [Slot; MAPS] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), hit: AtomicBool::new(false) } };
        MAPS];
/// Bytes of a page; 0 before the first map.
static PAGE: AtomicUsize = AtomicUsize::new(0);
/// What was there before the handler.
static BEFORE: OnceLock<Before> = OnceLock::new();

struct Before(libc::sigaction);

// SAFETY: it is a plain value that is written once and then only read.
unsafe impl Send for Before {}
// SAFETY: as above.
unsafe impl Sync for Before {}

/// Has the handler look after a map until it is dropped.
#[derive(Debug)]
pub(super) struct Guard(Option<usize>);

impl Guard {
    /// For a map that is dropped after the guard, or not touched afterwards.
    pub fn new(map: &[u8]) -> io::Result<Self> {
        install()?;
        if map.is_empty() {
            return Ok(Self(None));
        }
        let (start, page) = (map.as_ptr() as usize, PAGE.load(Ordering::Relaxed));
        let free =
            |slot: &Slot| slot.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let Some(at) = SLOTS.iter().position(free) else {
            return Err(io::Error::other(format!("{MAPS} files are mapped, which is the most")));
        };
        let slot = &SLOTS[at];
        slot.hit.store(false, Ordering::Relaxed);
        slot.end.store((start + map.len()).next_multiple_of(page), Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
        Ok(Self(Some(at)))
    }

    /// Whether zeros took the place of a part of the map.
    pub fn was_hit(&self) -> bool {
        self.0.is_some_and(|at| SLOTS[at].hit.load(Ordering::Acquire))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(at) = self.0 {
            SLOTS[at].start.store(0, Ordering::Release);
        }
    }
}

/// Installs the handler, once.
fn install() -> io::Result<()> {
    static FAILED: OnceLock<i32> = OnceLock::new();
    BEFORE.get_or_init(|| {
        // SAFETY: the call has no conditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        PAGE.store(usize::try_from(page).unwrap_or(4096), Ordering::Relaxed);
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all-zero bytes are a valid `sigaction`: no flags, an empty mask, the default handler.
        let mut new: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        new.sa_sigaction =
            on_bus as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: both pointers are of values on this stack; the handler only does what a signal handler may.
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const new, before.as_mut_ptr()) } != 0 {
            let _ = FAILED.set(io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        // SAFETY: it was zeroed, and the call has written to it if it did not fail.
        Before(unsafe { before.assume_init() })
    });
    FAILED.get().map_or(Ok(()), |&code| Err(io::Error::from_raw_os_error(code)))
}

/// Touches atomics and makes one system call: nothing that a handler may not do.
extern "C" fn on_bus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system hands a valid `siginfo_t` to a handler with `SA_SIGINFO`.
    let address = unsafe { (*info).si_addr() } as usize;
    let page = PAGE.load(Ordering::Relaxed);
    for slot in &SLOTS {
        let (start, end) = (slot.start.load(Ordering::Acquire), slot.end.load(Ordering::Relaxed));
        if start > 1 && start <= address && address < end {
            let first = address / page * page;
            // SAFETY: the pages lie in a map that is alive, since a thread reads it, and that belongs to its `MappedFile` alone; the
            // new ones can be read as those were, and go with the map.
            let zeros = unsafe {
                let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANON;
                libc::mmap(first as *mut libc::c_void, end - first, libc::PROT_READ, flags, -1, 0)
            };
            if zeros != libc::MAP_FAILED {
                slot.hit.store(true, Ordering::Release);
                return;
            }
        }
    }
    hand_on(signal, info, context);
}

/// A fault that is none of a map's: what would have happened without the handler.
fn hand_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get().map_or(libc::SIG_DFL, |before| before.0.sa_sigaction);
    if before == libc::SIG_DFL || before == libc::SIG_IGN {
        // SAFETY: setting the default handler has no conditions; the fault then occurs again, and ends the process.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let with_info = BEFORE.get().is_some_and(|before| before.0.sa_flags & libc::SA_SIGINFO != 0);
    // SAFETY: it is the handler that the process had, of the kind that its flags say, called as the system would.
    unsafe {
        if with_info {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            let handler: Handler = std::mem::transmute::<usize, Handler>(before);
            handler(signal, info, context);
        } else {
            let handler = std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(before);
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use crate::Error;
    use crate::files::OpenFile;
    use crate::tensor::Bytes;
    use crate::weights::MappedFile;

    #[test]
    fn pages_that_are_gone_are_zeros_and_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let page = super::PAGE.load(std::sync::atomic::Ordering::Relaxed).max(4096);
        std::fs::write(&path, vec![7; 5 * page + 1]).unwrap();
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        let map = || MappedFile::new(OpenFile::open(&path).unwrap()).unwrap();
        let (whole, other) = (map(), map());
        assert_eq!((whole.bytes()[5 * page], whole.check().is_ok()), (7, true));
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(2 * page as u64 + 1).unwrap();
        // The end of the last page that there is was the file's and is zeros; those behind it are gone.
        assert_eq!((whole.bytes()[0], whole.bytes()[2 * page]), (7, 7));
        assert!(!whole.was_touched());
        assert_eq!((whole.bytes()[4 * page], whole.bytes()[5 * page], whole.bytes()[3 * page]), (0, 0, 0));
        assert_eq!((whole.bytes()[0], whole.bytes()[2 * page]), (7, 7));
        let said = |result: crate::Result<()>| match result {
            Err(Error::Changed { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        assert!(whole.was_touched());
        assert_eq!(said(whole.check()), format!("{} bytes have become {}", 5 * page + 1, 2 * page + 1));
        // Nobody touched what is gone through the other map.
        assert!(!other.was_touched());
        // As the failure of a disk is, whose file has the size that it had.
        file.set_len(5 * page as u64 + 1).unwrap();
        std::fs::File::set_modified(&file, before).unwrap();
        assert_eq!(said(whole.check()), "a part of it can no longer be read");
        assert!(other.check().is_ok());
        drop((whole, other));
        (&file).write_all(&[1]).unwrap();
        assert_eq!(map().bytes()[0], 1);
    }
}
