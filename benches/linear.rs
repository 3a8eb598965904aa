//! Linear layers of a Llama-1B on the CPU kernels, against this machine's limits.
//!
//! `cargo bench --bench linear`, or some of it: `cargo bench --bench linear -- 'bf16, 2 threads/2048x2048, T 1$'`
//!
//! Few rows are stated in bytes of weights a second, to be compared with the read bandwidth; many in floating-point
//! operations a second (criterion's `elem/s`), to be compared with the FMA peak.

use backstop::backend::cpu::isa::Isa;
use backstop::backend::cpu::kernels::matmul::{WeightView, linear};
use backstop::backend::cpu::pool::{Pool, Scratch};
use backstop::tensor::DType;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

mod shared;

/// N x K of Llama-3.2-1B: q and o, k and v, gate and up, down; the head is measured at one row.
const SHAPES: [(usize, usize); 4] = [(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192)];
const HEAD: (usize, usize) = (128_256, 2048);
/// Decode, a few sequences, a short prompt, a long one.
const ROWS: [usize; 4] = [1, 8, 64, 512];
/// From this many rows on, arithmetic is the limit.
const MANY: usize = 16;
/// Weights are taken in turn from this much memory, so that no cache holds the next ones.
const POOL_BYTES: usize = 512 << 20;

fn benches(criterion: &mut Criterion) {
    let isa = Isa::detect();
    // Small normal numbers in each type: 0x3c.. is below 1.1 as f16, 0.02 as bf16 and f32.
    let weights: Vec<u8> =
        (0..POOL_BYTES + (64 << 20)).map(|i| if i % 2 == 1 { 0x3c } else { i as u8 }).collect();
    for threads in shared::THREADS {
        shared::print_limits(threads);
        let pool = Pool::new(threads);
        let mut scratch = Scratch::new(&pool);
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            // The types differ in how they are widened, which one shape shows.
            let shapes = if dtype == DType::BF16 { &SHAPES[..] } else { &SHAPES[..1] };
            let mut cases: Vec<(usize, usize, usize)> =
                shapes.iter().flat_map(|&(n, k)| ROWS.map(|t| (n, k, t))).collect();
            if dtype == DType::BF16 {
                cases.push((HEAD.0, HEAD.1, 1));
            }
            let mut group = criterion.benchmark_group(format!("linear: {isa} {dtype}, {threads} threads"));
            for (n, k, t) in cases {
                let size = n * k * dtype.size();
                let x: Vec<f32> = (0..t * k).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
                let mut out = vec![0.0f32; t * n];
                let mut at = 0;
                group.throughput(if t < MANY {
                    Throughput::Bytes(size as u64)
                } else {
                    Throughput::Elements((2 * n * k * t) as u64)
                });
                group.bench_function(format!("{n}x{k}, T {t}"), |bencher| {
                    bencher.iter(|| {
                        if at + size > POOL_BYTES.max(size) {
                            at = 0;
                        }
                        let w = WeightView::new(&weights[at..at + size], dtype, n, k);
                        at += size;
                        linear(&pool, isa, &x, w, None, &mut out, &mut scratch).expect("memory");
                    });
                });
            }
        }
    }
}

criterion_group! { name = group; config = shared::criterion(); targets = benches }
criterion_main!(group);
