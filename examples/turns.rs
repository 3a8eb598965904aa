//! What the kept beginnings of a conversation save: the time to the first token of each turn, as the conversation goes on and computed
//! anew, whose tokens and log-probabilities must be equal to the bit:
//! `cargo run --release --example turns -- MODEL --turns 10`.
//!
//! Messages are random tokens, each with the model's end of text behind it; answers are what the model says.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use backstop::{LoadOptions, Model, ModelFiles, Options, SamplingOptions};
use clap::Parser;

#[derive(Parser)]
#[command(about = "Measure the turns of a conversation")]
struct Args {
    /// The model.
    model: PathBuf,
    /// Turns.
    #[arg(long, default_value = "10")]
    turns: usize,
    /// Tokens of the first message, which says what the model is to be.
    #[arg(long, default_value = "600")]
    system: usize,
    /// Tokens of each message of the user.
    #[arg(long, default_value = "60")]
    user: usize,
    /// Tokens of each answer.
    #[arg(long, default_value = "60")]
    answer: usize,
    /// Ask each question in another wording first, which is then edited.
    #[arg(long)]
    edit: bool,
    /// Conversations of other people between two turns, as long as this one.
    #[arg(long, default_value = "0")]
    others: usize,
    /// Memory for keys, values and states, in MiB.
    #[arg(long)]
    kv_memory: Option<u64>,
    /// Threads.
    #[arg(long)]
    threads: Option<usize>,
}

/// Ordinary tokens, which no other number has.
fn words(number: u64, len: usize, vocab: usize) -> Vec<u32> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut id = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) % (vocab as u64 / 2)
    };
    (0..len).map(|_| id() as u32 + vocab as u32 / 4).collect()
}

/// An answer: its tokens, what they were drawn by, the seconds to the first one, and how many of the prompt's were kept.
struct Answer {
    tokens: Vec<u32>,
    bits: Vec<u32>,
    seconds: f64,
    cached: usize,
}

fn ask(model: &Model, prompt: &[u32], tokens: usize, salt: &str) -> anyhow::Result<Answer> {
    let options = Options {
        max_tokens: Some(tokens),
        ignore_eos: true,
        sampling: SamplingOptions { logprobs: Some(4), ..SamplingOptions::default() },
        cache_salt: Some(Arc::from(salt)),
        ..Options::default()
    };
    let mut answer = model.generate_tokens(prompt.to_vec(), &options)?;
    let mut bits = Vec::new();
    for piece in &mut answer {
        let Some(logprobs) = piece?.logprobs else { continue };
        bits.push(logprobs.token.to_bits());
        bits.extend(logprobs.top.iter().flat_map(|&(id, of)| [id, of.to_bits()]));
    }
    let stats = answer.stats().context("no statistics came")?;
    let (seconds, cached) = (stats.prompt_time.as_secs_f64(), stats.cached_tokens);
    Ok(Answer { tokens: answer.tokens().to_vec(), bits, seconds, cached })
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let options = LoadOptions {
        threads: args.threads,
        kv_memory: args.kv_memory.map(|mib| mib << 20),
        ..LoadOptions::default()
    };
    let model = Model::load_with(ModelFiles::open(&args.model)?, options)?;
    let vocab = model.info().config.vocab_size;
    let end = model.eos().first().copied().unwrap_or(2);
    let mut told = words(1, args.system, vocab);
    told.push(end);
    ask(&model, &words(2, args.system, vocab), 2, "warm")?;
    println!("turn  prompt  kept  first token  anew       ratio");
    let mut worst = 0.0_f64;
    for turn in 0..args.turns as u64 {
        if args.edit {
            let other = [&told[..], &words(1000 + turn, args.user, vocab), &[end]].concat();
            ask(&model, &other, args.answer, "own")?;
        }
        for other in 0..args.others {
            let salt = format!("other {turn} {other}");
            ask(&model, &words(turn << 32 | other as u64, told.len(), vocab), args.answer, &salt)?;
        }
        told.extend(words(2000 + turn, args.user, vocab));
        told.push(end);
        let answer = ask(&model, &told, args.answer, "own")?;
        let anew = ask(&model, &told, args.answer, &format!("anew {turn}"))?;
        ensure!(anew.cached == 0, "the measure itself was kept");
        ensure!(answer.tokens == anew.tokens, "turn {turn}: other tokens than anew");
        ensure!(answer.bits == anew.bits, "turn {turn}: other bits than anew");
        let ratio = answer.seconds / anew.seconds;
        if turn > 0 {
            worst = worst.max(ratio);
        }
        println!(
            "{:>4}  {:>6}  {:>4}  {:>8.1} ms  {:>7.1} ms  {:>4.1} %",
            turn + 1,
            told.len(),
            answer.cached,
            answer.seconds * 1e3,
            anew.seconds * 1e3,
            ratio * 100.0
        );
        told.extend(&answer.tokens);
        told.push(end);
    }
    println!(
        "all answers are equal to the bit; the largest ratio after the first turn is {:.1} %",
        worst * 100.0
    );
    Ok(())
}
