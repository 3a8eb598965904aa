//! What this machine can do at most: what kernels are measured against.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::isa::{IntKernel, IntSimd, Isa, Kernel, Simd, array_of, unrolled};
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

/// `f32` operations per second (an FMA is two) of `threads` threads that run chains of FMAs of `isa` in registers: the best
/// of five.
pub fn fma_peak(threads: usize, isa: Isa) -> f64 {
    const STEPS: usize = 1 << 21;
    peak(threads, || {
        black_box(isa.dispatch(Chains(STEPS)));
        STEPS * CHAINS * isa.lanes() * 2
    })
}

/// Operations per second (a multiplication and an addition are two) of `threads` threads that run chains of products of
/// bytes, by the instructions that `isa` has for them and as quantized weights of four bits use them: the best of five.
pub fn int8_peak(threads: usize, isa: Isa) -> f64 {
    const STEPS: usize = 1 << 18;
    peak(threads, || isa.dispatch_int(ByteChains(STEPS)))
}

/// The most operations per second of tasks that return how many they did.
fn peak(threads: usize, task: impl Fn() -> usize + Sync) -> f64 {
    let pool = Pool::new(threads);
    let tasks = pool.threads() * 4;
    let mut best = 0.0_f64;
    for _ in 0..ROUNDS {
        let operations = AtomicUsize::new(0);
        let start = Instant::now();
        pool.run(tasks, |_| {
            operations.fetch_add(task(), Ordering::Relaxed);
        });
        best = best.max(operations.into_inner() as f64 / start.elapsed().as_secs_f64());
    }
    best
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

/// Chains of sums of products of bytes; returns the operations.
struct ByteChains(usize);

/// Quads of a block of 32 columns.
const QUADS: usize = 8;

impl IntKernel for ByteChains {
    type Out = usize;

    #[inline(always)]
    fn run<S: IntSimd>(self, s: S) -> usize {
        // Without an instruction that adds four products, each chain has sums of pairs beside it: six fill AVX2's registers.
        // AVX-512 has as many as a tile of the kernel.
        match S::WIDE_BIAS {
            0 if S::F::REGISTERS >= 32 => self.chains::<S, 16>(s),
            0 => self.chains::<S, CHAINS>(s),
            _ => self.chains::<S, { CHAINS / 2 }>(s),
        }
    }
}

impl ByteChains {
    #[inline(always)]
    fn chains<S: IntSimd, const G: usize>(self, s: S) -> usize {
        let x = [1_i8; 4 * QUADS * 16];
        let codes = [s.splat_i32(black_box(0x0101_0101)); QUADS];
        let mut sums = [s.splat_i32(0); G];
        for _ in 0..self.0 {
            // Through the box, no step can be the one before; rows of their own, so that no chain can be another.
            let first = black_box(&x).as_ptr();
            let rows = array_of!(G, |g| first.wrapping_add(4 * QUADS * g));
            // SAFETY: each row is 4 * QUADS bytes of `x`, which has 16 >= G of them.
            sums = unsafe { s.dot(4, sums, &codes, rows) };
        }
        let float = s.float();
        black_box(array_of!(G, |g| float.reduce_add(s.to_float(sums[g]))));
        self.0 * G * QUADS * S::F::LANES * 4 * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes are a quarter of a float: where instructions are made for them, they do more. What no instruction is made for
    /// has a rate nevertheless.
    #[test]
    #[cfg_attr(miri, ignore = "it measures speed")]
    fn bytes_have_a_peak_of_their_own() {
        for isa in Isa::variants() {
            let (floats, bytes) = (fma_peak(1, isa), int8_peak(1, isa));
            assert!(floats > 1e8 && bytes > 1e8, "{isa}: {floats} and {bytes} a second");
        }
    }
}
