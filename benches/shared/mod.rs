//! What the benches of kernels share.

use std::time::Duration;

use backstop::backend::cpu::{Isa, limits};
use criterion::Criterion;

/// Thread counts that are measured.
pub const THREADS: [usize; 2] = [1, 2];

/// Short samples, and few: a case takes about two seconds.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}

/// Prints what this machine can do with `threads` threads, measured now: what the rates are to be compared with.
pub fn print_limits(threads: usize) {
    let (bytes, flops) = (limits::read_bandwidth(threads), limits::fma_peak(threads, Isa::detect()));
    println!("\n{threads} threads can read {:.1} GB/s and do {:.1} GFLOP/s", bytes / 1e9, flops / 1e9);
}
