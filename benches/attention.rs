//! Attention of Llama-1B's shape (32 query heads, 8 key/value heads of 64) against this machine's limits, measured in
//! the same run.
//!
//! `cargo bench --bench attention -- [threads=1,2] [isa=avx512] [type=bf16] [heads=32] [kv=8] [dim=64] [pool=512] [seconds=0.5]`
//!
//! Decode is stated as a fraction of the read bandwidth, prefill as one of the FMA peak, counting the pairs that the
//! causal mask leaves. The best of the repetitions counts, as it does for the limits: others use the machine too.

use std::ops::Range;
use std::time::{Duration, Instant};

use backstop::backend::cpu::isa::Isa;
use backstop::backend::cpu::kernels::attention::{Attention, AttentionRun, AttentionScratch, attention};
use backstop::backend::cpu::limits;
use backstop::backend::cpu::pool::Pool;
use backstop::backend::kv::{HostKv, KvShape};
use backstop::tensor::DType;

/// Rows, and keys with this step's: decode at two contexts, prefill, a chunk after a prefix, a short run.
const STEPS: [(usize, usize); 5] = [(1, 512), (1, 4096), (512, 512), (128, 4096), (8, 4096)];
fn main() {
    let arg =
        |name: &str| std::env::args().find_map(|a| a.strip_prefix(&format!("{name}=")).map(str::to_owned));
    let number = |name: &str, default| arg(name).map_or(default, |n| n.parse().expect("a number"));
    let isa =
        arg("isa").map_or_else(Isa::detect, |name| Isa::by_name(&name).expect("an ISA of this machine"));
    let dtype = match arg("type").as_deref() {
        Some("f32") => DType::F32,
        Some("f16") => DType::F16,
        _ => DType::BF16,
    };
    let (heads, shape) =
        (number("heads", 32), KvShape { heads: number("kv", 8), head_dim: number("dim", 64), dtype });
    let budget = Duration::from_secs_f64(arg("seconds").map_or(0.5, |s| s.parse().expect("seconds")));
    // Decode takes caches in turn from this much memory, so that no processor cache holds the next one.
    let pool_bytes = number("pool", 512) << 20;
    let threads: Vec<usize> = arg("threads")
        .map_or(vec![1, 2], |list| list.split(',').map(|n| n.parse().expect("a number")).collect());

    for threads in threads {
        let pool = Pool::new(threads);
        let mut scratch = AttentionScratch::default();
        let (bytes, flops) = (limits::read_bandwidth(threads), limits::fma_peak(threads));
        println!("\n{isa} {dtype}, {threads} threads: {:.1} GB/s, {:.1} GFLOP/s", bytes / 1e9, flops / 1e9);
        println!(
            "{:>5} {:>5} {:>9} {:>7} {:>5} {:>8} {:>5}",
            "rows", "keys", "ms", "GB/s", "%", "GFLOP/s", "%"
        );
        for (rows, keys) in STEPS {
            let size = keys * shape.token_bytes();
            let copies = if rows == 1 { (pool_bytes / size).max(1) } else { 2 };
            let mut kv = HostKv::new(shape);
            let tokens: Vec<f32> =
                (0..keys * shape.heads * shape.head_dim).map(|i| (i % 97) as f32 / 48.0 - 1.0).collect();
            kv.write(0, &tokens, &tokens).expect("a cache from its start");
            let caches = vec![kv; copies];
            let width = heads * shape.head_dim;
            let q: Vec<f32> = (0..rows * width).map(|i| (i % 89) as f32 / 44.0 - 1.0).collect();
            let visible: Vec<Range<usize>> = (keys - rows..keys).map(|own| 0..own + 1).collect();
            let pairs: usize = visible.iter().map(ExactSizeIterator::len).sum();
            let mut out = vec![0.0f32; q.len()];
            let mut best = f64::INFINITY;
            let start = Instant::now();
            let mut rounds = 0;
            while rounds < 3 || start.elapsed() < budget {
                let runs = [AttentionRun { row: 0, len: rows, kv: &caches[rounds % copies] }];
                let args = Attention { q: &q, runs: &runs, visible: &visible, scale: 0.125, soft_cap: None };
                let begin = Instant::now();
                attention(&pool, isa, args, &mut out, &mut scratch);
                best = best.min(begin.elapsed().as_secs_f64());
                rounds += 1;
            }
            let (rate, work) = (size as f64 / best, (4 * pairs * width) as f64 / best);
            println!(
                "{rows:>5} {keys:>5} {:>9.3} {:>7.1} {:>5.0} {:>8.1} {:>5.0}",
                best * 1e3,
                rate / 1e9,
                100.0 * rate / bytes,
                work / 1e9,
                100.0 * work / flops
            );
        }
    }
}
