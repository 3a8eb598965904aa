//! Clients that ask without a pause: tokens per second of all of them together, and the time to the first token.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::process::{Server, program};
use super::{Options, client, quantile};
use crate::clients::target;
use crate::random_model;
use crate::util::{quiet, root};

pub const OPTIONS: [&str; 9] = [
    "--clients",
    "--requests",
    "--prompt",
    "--generate",
    "--rounds",
    "--threads",
    "--llama-python",
    "--backstop",
    "--model",
];

/// What a round measures.
#[derive(Debug, Clone, Default)]
struct Measured {
    /// Tokens per second, of all clients.
    rate: f64,
    /// Seconds to the first token of each request.
    first: Vec<f64>,
}

pub fn run(options: &Options) -> Result<()> {
    let clients = options.number("--clients", 8)?;
    let requests = options.number("--requests", 1)?;
    let (prompt, generate) = (options.number("--prompt", 128)?, options.number("--generate", 128)?);
    let rounds = options.number("--rounds", 5)?;
    let threads = options.number("--threads", thread::available_parallelism()?.get())?.to_string();
    let backstop = program(options)?;
    let model = match options.text("--model") {
        Some(model) => model.into(),
        None => {
            let home = target(&root()?).join("load");
            let model = home.join("smollm2-135m-q4_0.gguf");
            if !model.exists() {
                fs::create_dir_all(&home)?;
                random_model::write("smollm2-135m", "q4_0", &model)?;
            }
            model
        }
    };
    let (mut own, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let path = model.to_string_lossy();
        let slots = clients.to_string();
        {
            let args = [&*path, "--threads", &threads, "--parallel", &slots, "--ctx", "512"];
            let server = Server::backstop(&backstop, &args)?;
            own.push(round_of(server.address, clients, requests, prompt, generate)?);
        }
        if let Some(python) = options.text("--llama-python") {
            let mut command = Command::new(python);
            command.arg(root()?.join("tools/peers/llama_cpp_batch.py")).arg(&*path);
            command.args(["--threads", &threads, "--clients", &slots]);
            command.args(["--prompt", &prompt.to_string(), "--generate", &generate.to_string()]);
            theirs.push(peer(&mut command)?);
        }
        let shown = |of: &[Measured]| of.last().map_or_else(String::new, |last| format!("{:8.1}", last.rate));
        eprintln!("round {}: backstop {} tok/s, llama.cpp {} tok/s", round + 1, shown(&own), shown(&theirs));
    }
    println!(
        "{clients} clients, {requests} requests each, {prompt} + {generate} tokens, {threads} threads, {rounds} rounds"
    );
    println!("| server | tok/s, median | first token, median | first token, p95 |\n|---|---|---|---|");
    for (name, of) in [("backstop's server", &own), ("llama.cpp's library", &theirs)] {
        if of.is_empty() {
            continue;
        }
        let mut rates: Vec<f64> = of.iter().map(|round| round.rate).collect();
        let mut first: Vec<f64> = of.iter().flat_map(|round| round.first.clone()).collect();
        println!(
            "| {name} | {:.1} | {:.0} ms | {:.0} ms |",
            quantile(&mut rates, 0.5),
            quantile(&mut first, 0.5) * 1e3,
            quantile(&mut first, 0.95) * 1e3
        );
    }
    if !theirs.is_empty() {
        let mut ratios: Vec<f64> =
            own.iter().zip(&theirs).map(|(own, theirs)| own.rate / theirs.rate).collect();
        println!("ratio of a round, median: {:.2}", quantile(&mut ratios, 0.5));
    }
    Ok(())
}

/// What the script of llama.cpp's library prints.
fn peer(command: &mut Command) -> Result<Measured> {
    let printed: Value = serde_json::from_slice(&quiet(command)?.stdout)?;
    let rate = printed["rate"].as_f64().with_context(|| format!("no rate in {printed}"))?;
    let first = printed["first"].as_array().with_context(|| format!("no first in {printed}"))?;
    Ok(Measured { rate, first: first.iter().filter_map(Value::as_f64).collect() })
}

fn round_of(
    address: SocketAddr,
    clients: usize,
    requests: usize,
    prompt: usize,
    generate: usize,
) -> Result<Measured> {
    // One request that does not count: pages are touched, threads are there.
    ask(address, usize::MAX, prompt, 4)?;
    let start = Instant::now();
    let run = |client: usize| {
        (0..requests)
            .map(|i| ask(address, client * requests + i, prompt, generate))
            .collect::<Result<Vec<_>>>()
    };
    let answers = thread::scope(|scope| {
        let running: Vec<_> = (0..clients).map(|client| scope.spawn(move || run(client))).collect();
        let joined = running.into_iter().map(|one| one.join().map_err(|_| anyhow!("a client panicked"))?);
        joined.collect::<Result<Vec<_>>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let answers: Vec<client::Answer> = answers.into_iter().flatten().collect();
    let tokens: usize = answers.iter().map(|answer| answer.tokens).sum();
    ensure!(tokens == clients * requests * generate, "{tokens} tokens came");
    Ok(Measured {
        rate: tokens as f64 / seconds,
        first: answers.iter().filter_map(|answer| answer.first).collect(),
    })
}

/// A prompt of token ids that no other request shares a beginning with.
fn ask(address: SocketAddr, number: usize, prompt: usize, generate: usize) -> Result<client::Answer> {
    let mut state = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut id = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Ordinary tokens of any vocabulary.
        1000 + state % 30_000
    };
    let ids: Vec<u64> = (0..prompt).map(|_| id()).collect();
    let body = json!({
        "prompt": ids, "max_tokens": generate, "temperature": 0, "stream": true, "ignore_eos": true,
        "stream_options": { "include_usage": true },
    });
    let answer = client::stream(address, "/v1/completions", &body, None)?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text);
    Ok(answer)
}
