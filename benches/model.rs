//! A whole model on the CPU against this machine's limits, measured in the same run.
//!
//! `cargo bench --bench model -- model=DIR [threads=1,2] [prompt=512] [generate=32] [reps=5]`
//!
//! Prefill is stated as a fraction of the f32 FMA peak (two operations for each weight of a projection and token, the
//! head once), decode as one of the read bandwidth (every weight's bytes and the cached keys and values, once a token).
//! Medians of `reps` repetitions; the limits are measured before each and their median counts.

use std::path::PathBuf;
use std::time::Instant;

use backstop::backend::Policy;
use backstop::backend::batch::Batch;
use backstop::backend::cpu::limits;
use backstop::backend::select::BackendRequest;
use backstop::{LoadOptions, Model, ModelFiles};

fn arg(name: &str) -> Option<String> {
    std::env::args().find_map(|a| a.strip_prefix(&format!("{name}=")).map(str::to_owned))
}

fn number(name: &str, default: usize) -> usize {
    arg(name).map_or(default, |n| n.parse().expect("a number"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Peak resident memory of this process, in bytes.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()).unwrap_or(0.0)
        * 1024.0
}

fn main() {
    let Some(dir) = arg("model").map(PathBuf::from) else {
        println!("skipped: model=DIR is not given (cargo xtask random-model makes one)");
        return;
    };
    let (prompt, generate, reps) = (number("prompt", 512), number("generate", 32), number("reps", 5));
    let threads: Vec<usize> = arg("threads")
        .map_or(vec![1, 2], |list| list.split(',').map(|n| n.parse().expect("a number")).collect());
    for threads in threads {
        let files = ModelFiles::open(&dir).expect("a model");
        let weights = files.checkpoint.total_bytes() as f64;
        let config = files.config.clone();
        let kv_token = files.kv_token_bytes(files.dtype()) as f64;
        let options = LoadOptions {
            backend: BackendRequest::Cpu,
            threads: Some(threads),
            policy: Policy::Deny,
            ..LoadOptions::default()
        };
        let model = Model::load_with(files, options).expect("a model that loads");
        let projections = config.num_hidden_layers
            * (config.hidden_size
                * config.head_dim
                * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
                + 3 * config.hidden_size * config.intermediate_size);
        let flops = 2.0 * (prompt * projections + config.hidden_size * config.vocab_size) as f64;
        let (mut prefill, mut decode, mut bandwidth, mut peak) = (vec![], vec![], vec![], vec![]);
        for _ in 0..reps {
            bandwidth.push(limits::read_bandwidth(threads));
            peak.push(limits::fma_peak(threads));
            let vocab = config.vocab_size as u32;
            let (in_prompt, in_decode) = model
                .engine()
                .with(move |runtime| {
                    let ids: Vec<u32> = (0..prompt as u32).map(|i| i * 7919 % vocab).collect();
                    let mut state = runtime.sequence(prompt);
                    let start = Instant::now();
                    let batch = Batch::of(&[(0, &ids)]);
                    runtime.step(&batch, std::slice::from_mut(&mut state)).expect("a prefill");
                    let in_prompt = start.elapsed().as_secs_f64();
                    let mut each = Vec::new();
                    for i in 0..generate {
                        let start = Instant::now();
                        let batch = Batch::of(&[(prompt + i, &[(i as u32 * 31) % vocab])]);
                        runtime.step(&batch, std::slice::from_mut(&mut state)).expect("a decode step");
                        each.push(start.elapsed().as_secs_f64());
                    }
                    (in_prompt, median(each))
                })
                .expect("an engine");
            prefill.push(in_prompt);
            decode.push(in_decode);
        }
        let (prefill, decode) = (median(prefill), median(decode));
        let (bandwidth, peak) = (median(bandwidth), median(peak));
        let read = (weights + kv_token * (prompt + generate / 2) as f64) / decode;
        println!(
            "{threads} threads: prompt {:.1} tok/s ({:.1} GFLOP/s, {:.0} % of the FMA peak of {:.0}), \
             generation {:.2} tok/s ({:.2} GB/s, {:.0} % of the read bandwidth of {:.2}), peak memory {:.0} MB",
            prompt as f64 / prefill,
            flops / prefill / 1e9,
            100.0 * flops / prefill / peak,
            peak / 1e9,
            decode.recip(),
            read / 1e9,
            100.0 * read / bandwidth,
            bandwidth / 1e9,
            peak_memory() / 1e6,
        );
    }
}
