//! What the system is asked for and may refuse: memory, threads, reading, writing. In a build for tests (the feature
//! `fault-injection`) a [`Refusals`] has it refuse the n-th time; elsewhere asking costs nothing.

use std::io;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// Memory, through `alloc`: [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    Memory,
    /// A thread: `EAGAIN`.
    Thread,
    /// Reading a small file of a model: `EIO`.
    Read,
    /// The same: the file ends in the middle, without an error.
    ShortRead,
    /// Writing to a model in the making: `ENOSPC`, behind a half of the bytes.
    Write,
    /// Writing to a file that is being downloaded: `ENOSPC`.
    #[cfg(feature = "hub")]
    Download,
}

impl Site {
    /// What the system says where it refuses.
    fn error(self) -> io::Error {
        #[cfg(unix)]
        let code = match self {
            Self::Memory => libc::ENOMEM,
            Self::Thread => libc::EAGAIN,
            Self::Read | Self::ShortRead => libc::EIO,
            Self::Write => libc::ENOSPC,
            #[cfg(feature = "hub")]
            Self::Download => libc::ENOSPC,
        };
        #[cfg(unix)]
        return io::Error::from_raw_os_error(code);
        #[cfg(not(unix))]
        io::Error::other("refused by a test")
    }
}

/// Whether a test refuses this call, for `bytes` bytes.
#[inline(always)]
pub(crate) fn hit(site: Site, bytes: usize) -> bool {
    #[cfg(feature = "fault-injection")]
    return plan::hit(site, bytes);
    #[cfg(not(feature = "fault-injection"))]
    {
        let _ = (site, bytes);
        false
    }
}

/// The system's error, where a test refuses this call.
///
/// # Errors
/// What the system would say.
#[inline]
pub(crate) fn io(site: Site) -> io::Result<()> {
    if hit(site, 0) { Err(site.error()) } else { Ok(()) }
}

/// Writes `bytes` to a file in the making.
///
/// # Errors
/// Those of the file.
pub(crate) fn write_all(file: &mut impl io::Write, bytes: &[u8]) -> io::Result<()> {
    if hit(Site::Write, bytes.len()) {
        file.write_all(&bytes[..bytes.len() / 2])?;
        return Err(Site::Write.error());
    }
    file.write_all(bytes)
}

/// Starts a thread.
///
/// # Errors
/// Where the system has none to give.
pub(crate) fn spawn<T: Send + 'static>(
    builder: std::thread::Builder,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<std::thread::JoinHandle<T>> {
    io(Site::Thread).and_then(|()| builder.spawn(work))
}

#[cfg(feature = "fault-injection")]
pub use plan::Refusals;

#[cfg(feature = "fault-injection")]
mod plan {
    use std::sync::atomic::{AtomicBool, Ordering};

    use parking_lot::{Mutex, MutexGuard};

    use super::Site;

    /// Whether there is a plan: asked before its lock is.
    static ARMED: AtomicBool = AtomicBool::new(false);
    static PLAN: Mutex<Option<Plan>> = Mutex::new(None);
    /// Who has the plan. It is the whole process's, since one request works on several threads.
    static TURN: Mutex<()> = Mutex::new(());

    struct Plan {
        site: Site,
        /// Calls for fewer bytes are left alone and not counted.
        least: usize,
        before: u64,
        left: u64,
        hits: u64,
    }

    /// Has calls refused until it is dropped. Others who want to wait for that.
    pub struct Refusals(#[allow(dead_code)] MutexGuard<'static, ()>);

    impl Refusals {
        /// The `n`-th call (from 0) of `site` is refused.
        pub fn nth(site: Site, n: u64) -> Self {
            Self::of(site, n, 1, 0)
        }

        /// All calls for memory of at least `bytes` are refused.
        pub fn of_at_least(bytes: usize) -> Self {
            Self::of(Site::Memory, 0, u64::MAX, bytes)
        }

        /// `left` calls of `site` for at least `least` bytes are refused, behind the first `before`.
        pub fn of(site: Site, before: u64, left: u64, least: usize) -> Self {
            let turn = TURN.lock();
            *PLAN.lock() = Some(Plan { site, least, before, left, hits: 0 });
            ARMED.store(true, Ordering::SeqCst);
            Self(turn)
        }

        /// Calls that were refused.
        pub fn hits(&self) -> u64 {
            PLAN.lock().as_ref().map_or(0, |plan| plan.hits)
        }
    }

    impl Drop for Refusals {
        fn drop(&mut self) {
            ARMED.store(false, Ordering::SeqCst);
            *PLAN.lock() = None;
        }
    }

    pub(super) fn hit(site: Site, bytes: usize) -> bool {
        if !ARMED.load(Ordering::Relaxed) {
            return false;
        }
        let mut plan = PLAN.lock();
        let Some(plan) = plan.as_mut().filter(|plan| plan.site == site && plan.least <= bytes) else {
            return false;
        };
        if plan.before > 0 {
            plan.before -= 1;
            return false;
        }
        let hit = plan.left > 0;
        plan.left = plan.left.saturating_sub(1);
        plan.hits += u64::from(hit);
        hit
    }
}
