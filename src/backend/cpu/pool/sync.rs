//! What the pool is made of: the standard library's atomics, locks and threads, or [loom]'s in their place under
//! `cfg(loom)`, where `models` tries every order in which threads can run.
//!
//! [loom]: https://docs.rs/loom

#[cfg(loom)]
pub(super) use self::modelled::*;
#[cfg(not(loom))]
pub(super) use self::standard::*;

#[cfg(not(loom))]
mod standard {
    use std::time::{Duration, Instant};

    pub use std::hint::spin_loop;
    pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub use std::sync::{Arc, Condvar, Mutex};
    pub use std::thread::{Builder, JoinHandle, yield_now};

    /// Starts a thread.
    pub fn spawn<T: Send + 'static>(
        builder: Builder,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<JoinHandle<T>> {
        crate::refusals::spawn(builder, work)
    }

    /// How often a worker looks for a region between two looks at the clock.
    pub const LOOKS: u32 = 16;

    /// How often the caller looks for the last worker before it yields.
    pub const ROUNDS: u32 = 2048;

    /// How long a worker spins.
    pub struct Wait {
        start: Instant,
        time: Duration,
    }

    impl Wait {
        #[inline]
        pub fn new(time: Duration) -> Self {
            Self { start: Instant::now(), time }
        }

        #[inline]
        pub fn is_over(&self) -> bool {
            self.start.elapsed() >= self.time
        }
    }

    /// [`std::cell::UnsafeCell`] with loom's way in.
    pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub const fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        #[inline(always)]
        pub fn with<R>(&self, look: impl FnOnce(*const T) -> R) -> R {
            look(self.0.get())
        }

        #[inline(always)]
        pub fn with_mut<R>(&self, change: impl FnOnce(*mut T) -> R) -> R {
            change(self.0.get())
        }
    }

    /// Accesses that are `SeqCst` need no fence between them.
    #[inline(always)]
    pub fn seq_cst() {}

    macro_rules! local {
        ($(#[$doc:meta])* static $name:ident: $type:ty = $value:expr;) => {
            std::thread_local! { $(#[$doc])* static $name: $type = const { $value }; }
        };
    }

    pub(in super::super) use local as thread_local;
}

#[cfg(loom)]
mod modelled {
    use std::time::Duration;

    pub use loom::cell::UnsafeCell;
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub use loom::sync::{Arc, Condvar, Mutex};
    pub use loom::thread::{Builder, JoinHandle, yield_now};
    pub use loom::thread_local;

    pub fn spawn<T: Send + 'static>(
        builder: Builder,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<JoinHandle<T>> {
        builder.spawn(work)
    }

    /// Each further look multiplies the orders to try, and finds nothing that the first does not.
    pub const LOOKS: u32 = 1;

    /// The caller yields at once: until a worker has left, nothing that it sees changes.
    pub const ROUNDS: u32 = 0;

    /// Not loom's, which lets all others go first: a worker could then never be overtaken on its way to bed.
    pub fn spin_loop() {}

    /// A model has no clock: a worker spins for one round.
    pub struct Wait;

    impl Wait {
        pub fn new(_time: Duration) -> Self {
            Self
        }

        pub fn is_over(&self) -> bool {
            true
        }
    }

    /// Loom takes an access that is `SeqCst` for `AcqRel`. A fence between two of them gives back the order of the two.
    pub fn seq_cst() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}
