//! Clients that ask without a pause: tokens per second of all of them together, and the time to the first token, beside
//! llama.cpp's server on the same file.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};

use super::process::{Server, program};
use super::{Backstop, Setting, client, llama, quantile};
use crate::clients::target;
use crate::random_model;
use crate::util::root;

/// What `load speed` takes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Clients at a time
    #[arg(long, value_name = "N", default_value = "8")]
    clients: NonZeroUsize,
    /// Requests of each of them, one after the other
    #[arg(long, value_name = "N", default_value = "1")]
    requests: NonZeroUsize,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value = "128")]
    prompt: NonZeroUsize,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value = "128")]
    generate: NonZeroUsize,
    /// Rounds, each of both servers
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroUsize,
    /// llama.cpp's server, or none [default: built under target/load]
    #[arg(long, value_name = "PROGRAM|none")]
    llama_server: Option<PathBuf>,
    #[command(flatten)]
    setting: Setting,
    #[command(flatten)]
    backstop: Backstop,
}

/// What clients ask for.
#[derive(Debug, Clone, Copy)]
pub struct LoadWork {
    pub clients: usize,
    /// Of each client, one after the other.
    pub requests: usize,
    /// Tokens.
    pub prompt: usize,
    pub generate: usize,
}

/// What a round measures.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Tokens per second, of all clients.
    pub rate: f64,
    /// Seconds to the first token of each request.
    pub first: Vec<f64>,
}

impl LoadWork {
    /// Tokens of one sequence: pages of 64, and room for a round's warming up.
    fn context(self) -> usize {
        (self.prompt + self.generate).next_multiple_of(64) + 64
    }
}

/// Which server is asked, where their fields differ.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Own,
    Llama,
}

pub fn run(options: &Options) -> Result<()> {
    let work = LoadWork {
        clients: options.clients.get(),
        requests: options.requests.get(),
        prompt: options.prompt.get(),
        generate: options.generate.get(),
    };
    let threads = options.setting.threads()?.to_string();
    let backstop = program(&options.backstop)?;
    let llama = llama::server(options.llama_server.as_deref())?;
    let model = model(&options.setting)?;
    let (mut own, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..options.rounds.get() {
        own.push(own_round(&backstop, &model, work, &threads)?);
        if let Some(llama) = &llama {
            theirs.push(llama_round(llama, &model, work, &threads)?);
        }
        let shown = |of: &[Measured]| of.last().map_or_else(String::new, |last| format!("{:8.1}", last.rate));
        eprintln!("round {}: backstop {} tok/s, llama.cpp {} tok/s", round + 1, shown(&own), shown(&theirs));
    }
    let LoadWork { clients, requests, prompt, generate } = work;
    println!(
        "{clients} clients, {requests} requests each, {prompt} + {generate} tokens, {threads} threads, {} rounds",
        options.rounds,
    );
    println!("| server | tok/s, median | first token, median | first token, p95 |\n|---|---|---|---|");
    for (name, of) in [("backstop", &own), ("llama.cpp", &theirs)] {
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

/// A round of `backstop serve`, started for it.
pub fn own_round(program: &Path, model: &Path, work: LoadWork, threads: &str) -> Result<Measured> {
    let (path, slots) = (model.to_string_lossy(), work.clients.to_string());
    let context = work.context().to_string();
    let args = [&*path, "--threads", threads, "--parallel", &slots, "--ctx", &context];
    let server = Server::backstop(program, &args)?;
    measure(Kind::Own, server.address, work)
}

/// The same of llama.cpp's server.
pub fn llama_round(program: &Path, model: &Path, work: LoadWork, threads: &str) -> Result<Measured> {
    let (path, slots) = (model.to_string_lossy(), work.clients.to_string());
    let context = (work.context() * work.clients).to_string();
    let args = ["-m", &*path, "-t", threads, "-tb", threads, "-np", &slots, "-c", &context];
    let server = Server::llama(program, &args)?;
    measure(Kind::Llama, server.address, work)
}

/// The model as `--model` names it, else a random SmolLM2-135M in Q4_0.
pub fn model(setting: &Setting) -> Result<PathBuf> {
    if let Some(model) = &setting.model {
        return Ok(model.clone());
    }
    let home = target(&root()?).join("load");
    let model = home.join("smollm2-135m-q4_0-ascii.gguf");
    if !model.exists() {
        fs::create_dir_all(&home)?;
        random_model::write("smollm2-135m", "q4_0", &model)?;
    }
    Ok(model)
}

fn measure(kind: Kind, address: SocketAddr, work: LoadWork) -> Result<Measured> {
    // One request that does not count: pages are touched, threads are there.
    ask(kind, address, usize::MAX, LoadWork { generate: 4, ..work })?;
    let start = Instant::now();
    let run = |client: usize| {
        (0..work.requests)
            .map(|i| ask(kind, address, client * work.requests + i, work))
            .collect::<Result<Vec<_>>>()
    };
    let answers = thread::scope(|scope| {
        let running: Vec<_> = (0..work.clients).map(|client| scope.spawn(move || run(client))).collect();
        let joined = running.into_iter().map(|one| one.join().map_err(|_| anyhow!("a client panicked"))?);
        joined.collect::<Result<Vec<_>>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let answers: Vec<client::Answer> = answers.into_iter().flatten().collect();
    let tokens: usize = answers.iter().map(|answer| answer.tokens).sum();
    ensure!(tokens == work.clients * work.requests * work.generate, "{tokens} tokens came");
    Ok(Measured {
        rate: tokens as f64 / seconds,
        first: answers.iter().filter_map(|answer| answer.first).collect(),
    })
}

/// A prompt of token ids that no other request shares a beginning with.
fn ask(kind: Kind, address: SocketAddr, number: usize, work: LoadWork) -> Result<client::Answer> {
    let mut state = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut id = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Ordinary tokens of any vocabulary.
        1000 + state % 30_000
    };
    let ids: Vec<u64> = (0..work.prompt).map(|_| id()).collect();
    let mut body = json!({
        "prompt": ids, "max_tokens": work.generate, "temperature": 0, "stream": true, "ignore_eos": true,
        "stream_options": { "include_usage": true },
    });
    if kind == Kind::Llama {
        // No request begins like another: there is nothing to look for.
        body["cache_prompt"] = Value::Bool(false);
    }
    let answer = client::stream(address, "/v1/completions", &body, None)?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(answer)
}
