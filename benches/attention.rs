//! Attention of Llama-1B's shape (32 query heads, 8 key/value heads of 64) on the CPU kernels, against this machine's
//! limits.
//!
//! `cargo bench --bench attention`, or some of it: `cargo bench --bench attention -- 'bf16, 2 threads/1 of 4096'`
//!
//! Decode is stated in bytes of the cache a second, to be compared with the read bandwidth; prefill in floating-point
//! operations a second (criterion's `elem/s`), to be compared with the FMA peak, counting the pairs that the causal mask
//! leaves.

use std::ops::Range;

use backstop::backend::cpu::isa::Isa;
use backstop::backend::cpu::kernels::attention::{Attention, AttentionRun, AttentionScratch, attention};
use backstop::backend::cpu::pool::Pool;
use backstop::backend::kv::{HostKv, KvShape, KvType};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

mod shared;

/// Rows, and keys with this step's: decode at two contexts, prefill, a chunk after a prefix, a short run.
const STEPS: [(usize, usize); 5] = [(1, 512), (1, 4096), (512, 512), (128, 4096), (8, 4096)];
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 64;
/// Decode takes caches in turn from this much memory, so that no processor cache holds the next one.
const POOL_BYTES: usize = 512 << 20;

fn benches(criterion: &mut Criterion) {
    let isa = Isa::detect();
    let width = HEADS * HEAD_DIM;
    for threads in shared::THREADS {
        shared::print_limits(threads);
        let pool = Pool::new(threads);
        let mut scratch = AttentionScratch::default();
        for kind in KvType::ALL {
            let shape = KvShape::new(KV_HEADS, HEAD_DIM, kind);
            let mut group = criterion.benchmark_group(format!("attention: {isa} {kind}, {threads} threads"));
            for (rows, keys) in STEPS {
                let size = keys * shape.token_bytes();
                let copies = if rows == 1 { POOL_BYTES / size } else { 2 };
                let filled = || {
                    let tokens: Vec<f32> =
                        (0..keys * KV_HEADS * HEAD_DIM).map(|i| (i % 97) as f32 / 48.0 - 1.0).collect();
                    let mut kv = HostKv::new(shape);
                    kv.write(0, &tokens, &tokens).expect("a cache from its start");
                    vec![kv; copies]
                };
                // Made where the case is not filtered out, and once.
                let mut caches = None;
                let q: Vec<f32> = (0..rows * width).map(|i| (i % 89) as f32 / 44.0 - 1.0).collect();
                let visible: Vec<Range<usize>> = (keys - rows..keys).map(|own| 0..own + 1).collect();
                let pairs: usize = visible.iter().map(ExactSizeIterator::len).sum();
                let mut out = vec![0.0f32; q.len()];
                let mut round = 0;
                group.throughput(if rows == 1 {
                    Throughput::Bytes(size as u64)
                } else {
                    Throughput::Elements((4 * pairs * width) as u64)
                });
                group.bench_function(format!("{rows} of {keys}"), |bencher| {
                    let caches = caches.get_or_insert_with(filled);
                    bencher.iter(|| {
                        let runs = [AttentionRun { row: 0, len: rows, kv: &caches[round % copies] }];
                        let args = Attention {
                            q: &q,
                            runs: &runs,
                            visible: &visible,
                            scale: 0.125,
                            soft_cap: None,
                            sinks: None,
                            bias: None,
                        };
                        round += 1;
                        attention(&pool, isa, args, &mut out, &mut scratch).expect("memory");
                    });
                });
            }
        }
    }
}

criterion_group! { name = group; config = shared::criterion(); targets = benches }
criterion_main!(group);
