//! Linear layers of a Llama-1B against this machine's limits, measured in the same run.
//!
//! `cargo bench --bench linear -- [threads=1,2] [isa=avx512] [type=bf16] [t=1,2,512] [shape=2048x2048] [seconds=0.5]`
//!
//! Decode (few rows) is stated as a fraction of the read bandwidth, prefill as one of the FMA peak. The best of the
//! repetitions counts, as it does for the limits: others use the machine too.

use std::time::{Duration, Instant};

use backstop::backend::cpu::isa::Isa;
use backstop::backend::cpu::kernels::matmul::{WeightView, linear};
use backstop::backend::cpu::limits;
use backstop::backend::cpu::pool::{Pool, Scratch};
use backstop::tensor::DType;

/// N x K of Llama-3.2-1B: q and o, k and v, gate and up, down, the head.
const SHAPES: [(usize, usize); 5] = [(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192), (128_256, 2048)];
const ROWS: [usize; 12] = [1, 2, 4, 6, 8, 12, 16, 24, 32, 64, 128, 512];
/// Weights are taken in turn from this much memory, so that no cache holds the next ones.
const POOL_BYTES: usize = 512 << 20;

fn main() {
    let arg =
        |name: &str| std::env::args().find_map(|a| a.strip_prefix(&format!("{name}=")).map(str::to_owned));
    let list = |name: &str| -> Option<Vec<usize>> {
        Some(arg(name)?.split(',').map(|n| n.parse().expect("a number")).collect())
    };
    let isa =
        arg("isa").map_or_else(Isa::detect, |name| Isa::by_name(&name).expect("an ISA of this machine"));
    let dtype = match arg("type").as_deref() {
        Some("f32") => DType::F32,
        Some("f16") => DType::F16,
        _ => DType::BF16,
    };
    let shapes = arg("shape").map_or(SHAPES.to_vec(), |s| {
        let (n, k) = s.split_once('x').expect("shape=NxK");
        vec![(n.parse().expect("N"), k.parse().expect("K"))]
    });
    let budget = Duration::from_secs_f64(arg("seconds").map_or(0.5, |s| s.parse().expect("seconds")));
    // Small normal numbers in each type: 0x3c.. is below 1.1 as f16, 0.02 as bf16 and f32.
    let weights: Vec<u8> =
        (0..POOL_BYTES + (64 << 20)).map(|i| if i % 2 == 1 { 0x3c } else { i as u8 }).collect();

    for threads in list("threads").unwrap_or(vec![1, 2]) {
        let pool = Pool::new(threads);
        let mut scratch = Scratch::new(&pool);
        let (bytes, flops) = (limits::read_bandwidth(threads), limits::fma_peak(threads));
        println!("\n{isa} {dtype}, {threads} threads: {:.1} GB/s, {:.1} GFLOP/s", bytes / 1e9, flops / 1e9);
        println!(
            "{:>14} {:>4} {:>9} {:>7} {:>5} {:>8} {:>5}",
            "N x K", "T", "ms", "GB/s", "%", "GFLOP/s", "%"
        );
        for &(n, k) in &shapes {
            for &t in list("t").as_deref().unwrap_or(&ROWS) {
                let size = n * k * dtype.size();
                if n > 100_000 && (t > 1 && t < 512 || size > weights.len()) {
                    continue;
                }
                let x: Vec<f32> = (0..t * k).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
                let mut out = vec![0.0f32; t * n];
                let (mut best, mut at) = (f64::INFINITY, 0);
                let start = Instant::now();
                let mut rounds = 0;
                while rounds < 3 || start.elapsed() < budget {
                    if at + size > POOL_BYTES.max(size) {
                        at = 0;
                    }
                    let w = WeightView::new(&weights[at..at + size], dtype, n, k);
                    at += size;
                    let begin = Instant::now();
                    linear(&pool, isa, &x, w, None, &mut out, &mut scratch);
                    best = best.min(begin.elapsed().as_secs_f64());
                    rounds += 1;
                }
                let (rate, work) = (size as f64 / best, 2.0 * (n * k * t) as f64 / best);
                println!(
                    "{:>14} {t:>4} {:>9.3} {:>7.1} {:>5.0} {:>8.1} {:>5.0}",
                    format!("{n} x {k}"),
                    best * 1e3,
                    rate / 1e9,
                    100.0 * rate / bytes,
                    work / 1e9,
                    100.0 * work / flops
                );
            }
        }
    }
}
