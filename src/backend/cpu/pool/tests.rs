use super::*;

fn counts(pool: &Pool, tasks: usize) {
    let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run_on(tasks, |worker, task| {
        assert!(worker < pool.threads());
        hits[task].fetch_add(1, Ordering::Relaxed);
    });
    assert!(hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1), "every task once");
}

#[test]
fn every_task_runs_once() {
    for threads in [0, 1, 2, 3, 8] {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads.max(1));
        for tasks in [0, 1, 2, 3, 7, 64, if cfg!(miri) { 100 } else { 1000 }] {
            counts(&pool, tasks);
        }
    }
}

#[test]
fn thousands_of_small_regions() {
    let rounds = if cfg!(miri) { 20 } else { 20_000 };
    for threads in [2, 5] {
        let pool = Pool::new(threads);
        let sum = AtomicUsize::new(0);
        for round in 0..rounds {
            pool.run(4, |task| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
            if round % (rounds / 5) == 0 {
                // Long enough for the workers to park.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        assert_eq!(sum.into_inner(), rounds * 6);
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    for threads in [1, 2, 4] {
        let pool = Pool::new(threads);
        for round in 0..if cfg!(miri) { 3 } else { 50 } {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(16, |task| assert!(task != round % 16, "task {task} fails"));
            }));
            let payload = caught.expect_err("the panic reaches the caller");
            let text = payload.downcast_ref::<String>().expect("the message of the task");
            assert_eq!(*text, format!("task {} fails", round % 16));
            counts(&pool, 16);
        }
    }
}

/// A payload whose drop panics: where a second one was dropped, its thread never left the region.
#[test]
fn of_two_panics_the_second_is_kept_too() {
    struct Payload;
    impl Drop for Payload {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let pool = Pool::new(2);
    let both = std::sync::Barrier::new(2);
    let caught = catch_unwind(AssertUnwindSafe(|| {
        pool.run(2, |_| {
            both.wait();
            resume_unwind(Box::new(Payload));
        });
    }));
    let payload = caught.expect_err("the panic reaches the caller");
    assert!(payload.is::<Payload>());
    std::mem::forget(payload);
    counts(&pool, 16);
}

#[test]
fn nested_regions_run_on_their_worker() {
    let pool = Pool::new(3);
    let sum = AtomicUsize::new(0);
    pool.run_on(8, |outer, _| {
        pool.run_on(8, |inner, task| {
            assert_eq!(inner, outer);
            sum.fetch_add(task, Ordering::Relaxed);
        });
    });
    assert_eq!(sum.into_inner(), 8 * 28);
}

#[test]
fn callers_of_several_threads_take_turns() {
    let rounds = if cfg!(miri) { 3 } else { 300 };
    let pool = Pool::new(2);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..rounds).for_each(|_| counts(&pool, 5)));
        }
    });
}

#[test]
fn chunks_cover_the_slice() {
    let pool = Pool::new(2);
    let mut data = vec![0; 103];
    pool.run_chunks(&mut data, 10, |index, chunk| chunk.fill(index + 1));
    assert!(data.iter().enumerate().all(|(i, x)| *x == i / 10 + 1));
    pool.run_chunks(&mut data[..0], 10, |_, _| panic!("no task"));
}

#[test]
fn scratch_is_kept_and_per_worker() {
    let pool = Pool::new(2);
    let mut scratch = Scratch::new(&pool);
    scratch.reserve(&pool, 100).unwrap();
    pool.run_on(8, |worker, task| {
        scratch.with(worker, 100, |x| {
            assert_eq!((x.len(), x.as_ptr() as usize % 64), (100, 0));
            x.fill(task as f32);
            assert!(x.iter().all(|x| *x == task as f32));
        });
    });
    scratch.with(0, 10, |_| {
        assert!(catch_unwind(AssertUnwindSafe(|| scratch.with(0, 1, |_| ()))).is_err());
    });
}
