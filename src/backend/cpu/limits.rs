//! What this machine can do at most: what kernels are measured against.

use std::hint::black_box;
use std::time::Instant;

use super::isa::{Isa, Kernel, Simd};
use super::pool::Pool;

/// Larger than any cache share that a machine of this kind gives to one process' stream.
const STREAM_BYTES: usize = 512 << 20;
/// Each region's share of the stream: claiming it is nothing beside reading it.
const CHUNK: usize = 1 << 18;
/// Measurements, of which the best counts: others use the machine too.
const ROUNDS: usize = 5;

/// Bytes per second that `threads` threads read from memory, summing 512 MiB of `f32` with vector loads: the best of
/// five passes.
pub fn read_bandwidth(threads: usize) -> f64 {
    let pool = Pool::new(threads);
    let isa = Isa::detect();
    let mut data = vec![0.0f32; STREAM_BYTES / 4];
    // Written by those who read it: every page is there, and near them.
    pool.run_chunks(&mut data, CHUNK / 4, |i, chunk| chunk.fill(i as f32));
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        pool.run(data.len().div_ceil(CHUNK / 4), |i| {
            let chunk = &data[i * (CHUNK / 4)..];
            black_box(isa.dispatch(Sum(&chunk[..chunk.len().min(CHUNK / 4)])));
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    STREAM_BYTES as f64 / best
}

/// `f32` operations per second (an FMA is two) of `threads` threads that run chains of FMAs in registers: the best of
/// five.
pub fn fma_peak(threads: usize) -> f64 {
    const STEPS: usize = 1 << 21;
    let pool = Pool::new(threads);
    let isa = Isa::detect();
    let tasks = pool.threads() * 4;
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        pool.run(tasks, |_| {
            black_box(isa.dispatch(Chains(STEPS)));
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (tasks * STEPS * CHAINS * isa.lanes() * 2) as f64 / best
}

/// The sum of a slice, four vectors at a time.
struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut acc = [s.zero(); 4];
        for part in self.0.chunks_exact(4 * S::LANES) {
            s.prefetch(part.as_ptr().wrapping_add(1024).cast());
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = s.add(*acc, s.load(&part[i * S::LANES..]));
            }
        }
        s.reduce_add4(acc).into_iter().sum()
    }
}

/// Latency 4 on two ports needs eight chains to fill; twelve leave room in AVX2's sixteen registers.
const CHAINS: usize = 12;

struct Chains(usize);

impl Kernel for Chains {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
        let mut acc = [b; CHAINS];
        for _ in 0..self.0 {
            for acc in &mut acc {
                *acc = s.fma(*acc, a, b);
            }
        }
        acc.into_iter().map(|v| s.reduce_add(v)).sum()
    }
}
