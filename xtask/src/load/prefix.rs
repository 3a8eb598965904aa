//! What a beginning that another request had before is worth: the time to the first token of a long prompt, and of the next
//! prompts that begin alike.

use std::net::SocketAddr;
use std::num::NonZeroUsize;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::process::{Server, program};
use super::{Backstop, Setting, client, quantile, speed};

/// What `load prefix` takes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Tokens of the beginning
    #[arg(long, value_name = "N", default_value = "1000")]
    shared: NonZeroUsize,
    /// Tokens that follow it
    #[arg(long, value_name = "N", default_value = "16")]
    own: NonZeroUsize,
    /// Beginnings
    #[arg(long, value_name = "N", default_value = "9")]
    rounds: NonZeroUsize,
    /// The server's memory for keys and values
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    kv_memory: String,
    #[command(flatten)]
    setting: Setting,
    #[command(flatten)]
    backstop: Backstop,
}

/// The part of the first request's time that the second may take.
const TARGET: f64 = 0.1;

pub fn run(options: &Options) -> Result<()> {
    let [shared, own, rounds] = [options.shared, options.own, options.rounds].map(NonZeroUsize::get);
    let threads = options.setting.threads()?.to_string();
    let model = speed::model(&options.setting)?;
    let memory = options.kv_memory.as_str();
    let ctx = (shared + own + 8).next_multiple_of(64).to_string();
    let args = [&*model.to_string_lossy(), "--threads", &threads, "--ctx", &ctx, "--kv-memory", memory];
    let server = Server::backstop(&program(&options.backstop)?, &args.map(AsRef::as_ref))?;
    // One request that does not count: pages are touched, threads are there.
    ask(server.address, &prompt(u64::MAX, shared))?;
    let (mut first, mut second, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds as u64 {
        let beginning = prompt(2 * round, shared);
        let mut times = [0.0; 2];
        for (i, time) in times.iter_mut().enumerate() {
            let hits = server.metric("backstop_prefix_hit_tokens_total")?;
            let end = prompt(2 * (rounds as u64 + 2 * round) + i as u64 + 1, own);
            *time = ask(server.address, &[&beginning[..], &end].concat())?;
            let found = server.metric("backstop_prefix_hit_tokens_total")? - hits;
            ensure!(i == 0 || found >= shared as f64, "only {found} tokens were found");
        }
        first.push(times[0]);
        second.push(times[1]);
        ratios.push(times[1] / times[0]);
    }
    let part = quantile(&mut ratios, 0.5);
    println!(
        "prompts of {shared} shared and {own} own tokens, {threads} threads, {rounds} rounds: first token after {:.1} ms, with \
         the beginning kept after {:.1} ms; ratio of a round {:.1} % in the median, {:.1} to {:.1} %",
        quantile(&mut first, 0.5) * 1e3,
        quantile(&mut second, 0.5) * 1e3,
        part * 100.0,
        quantile(&mut ratios, 0.0) * 100.0,
        quantile(&mut ratios, 1.0) * 100.0,
    );
    ensure!(part <= TARGET, "more than {:.0} % of the first request's time", TARGET * 100.0);
    Ok(())
}

/// Ordinary tokens of any vocabulary, which no other number has.
fn prompt(number: u64, len: usize) -> Vec<u64> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut id = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        1000 + state % 30_000
    };
    (0..len).map(|_| id()).collect()
}

/// Seconds to the first token.
fn ask(address: SocketAddr, prompt: &[u64]) -> Result<f64> {
    let body = json!({
        "prompt": prompt, "max_tokens": 2, "temperature": 0, "stream": true, "ignore_eos": true,
    });
    let answer = client::stream(address, "/v1/completions", &body, None)?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    answer.first.context("no token came")
}
