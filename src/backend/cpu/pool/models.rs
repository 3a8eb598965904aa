//! The pool's protocol in every order that its threads can run in, by [loom](https://docs.rs/loom): `cargo xtask sanitize loom`.
//!
//! Each model leaves out the orders in which threads are interrupted more often than it says: there are too many of them. What
//! is wrong shows with two or three.

use super::*;
use loom::cell::UnsafeCell as Cell;

/// Runs `model` in all orders with at most so many preemptions.
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // LOOM_MAX_PREEMPTIONS says otherwise.
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(model);
}

/// A number for each task, plain memory: loom fails a model in which two accesses to it have no order.
struct Counts(Vec<Cell<u32>>);

// SAFETY: loom follows every access to the cells, runs one thread at a time, and fails those that could be at the same time.
unsafe impl Sync for Counts {}

impl Counts {
    fn new(tasks: usize) -> Self {
        Self((0..tasks).map(|_| Cell::new(0)).collect())
    }

    fn add(&self, task: usize) {
        // SAFETY: the pointer is to the cell's own number, and nobody else has one at this time.
        self.0[task].with_mut(|count| unsafe { *count += 1 });
    }

    fn all(&self, expected: u32) {
        for (task, count) in self.0.iter().enumerate() {
            // SAFETY: as above.
            let count = count.with(|count| unsafe { *count });
            assert_eq!(count, expected, "task {task}");
        }
    }
}

/// Runs a region: after it, each task has run once, and has ended.
fn region(pool: &Pool, tasks: usize) {
    let counts = Counts::new(tasks);
    pool.run(tasks, |task| counts.add(task));
    counts.all(1);
}

#[test]
fn every_task_runs_once_and_ends_before_its_region() {
    check(4, || region(&Pool::new(2), 2));
    check(3, || region(&Pool::new(2), 3));
}

#[test]
fn three_threads_share_the_tasks_of_a_region() {
    check(2, || region(&Pool::new(3), 3));
}

/// A worker that comes late to the first region meets its end, the second one, or the end of the pool.
#[test]
fn a_late_worker_runs_no_task_of_another_region() {
    check(3, || {
        let pool = Pool::new(2);
        region(&pool, 2);
        region(&pool, 2);
    });
}

#[test]
fn two_late_workers_run_no_task_of_another_region() {
    check(1, || {
        let pool = Pool::new(3);
        region(&pool, 2);
        region(&pool, 2);
    });
}

/// Each task waits for the other, so that the region ends only if the worker hears of it.
#[test]
fn a_worker_that_parks_is_woken() {
    check(4, || {
        let pool = Pool::new(2);
        let (met, meeting) = (Mutex::new(0), Condvar::new());
        pool.run(2, |_| {
            let mut met = met.lock().unwrap();
            *met += 1;
            meeting.notify_all();
            while *met < 2 {
                met = meeting.wait(met).unwrap();
            }
        });
    });
}

#[test]
fn a_panic_is_told_once_all_threads_have_left() {
    check(3, || {
        let pool = Pool::new(2);
        let counts = Counts::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(2, |task| {
                counts.add(task);
                // Without the hook, which would print it in every order.
                resume_unwind(Box::new(task));
            });
        }));
        let task = *caught.expect_err("a task has panicked").downcast::<usize>().expect("its payload");
        // SAFETY: nobody is in the region any longer, which loom checks.
        assert_eq!(counts.0[task].with(|count| unsafe { *count }), 1);
        // The panic stays with its region.
        region(&pool, 2);
    });
}

#[test]
fn a_pool_that_is_dropped_has_no_threads() {
    check(9, || {
        let pool = Pool::new(2);
        let shared = Arc::clone(&pool.shared);
        drop(pool);
        assert_eq!(Arc::strong_count(&shared), 1);
    });
}

#[test]
fn callers_of_two_threads_take_turns() {
    check(2, || {
        let pool = Arc::new(Pool::new(2));
        let other = {
            let pool = Arc::clone(&pool);
            loom::thread::spawn(move || region(&pool, 2))
        };
        region(&pool, 2);
        other.join().unwrap();
    });
}

#[test]
fn a_nested_region_runs_on_its_worker() {
    check(3, || {
        let pool = Pool::new(2);
        let counts = Counts::new(4);
        pool.run_on(2, |outer, task| {
            pool.run_on(2, |inner, nested| {
                assert_eq!(inner, outer);
                counts.add(2 * task + nested);
            });
        });
        counts.all(1);
    });
}
