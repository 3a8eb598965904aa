//! Many clients that answer for nothing: some go away, some ask what cannot be; every answer is held against that of a
//! single user, and nothing of the server may be left over.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use super::process::{Server, program};
use super::{Backstop, client};

/// What `load soak` takes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Clients at a time
    #[arg(long, value_name = "N", default_value = "32")]
    pub(super) clients: NonZeroUsize,
    /// Requests of all of them
    #[arg(long, value_name = "N", default_value = "5000")]
    pub(super) requests: NonZeroUsize,
    #[command(flatten)]
    backstop: Backstop,
}

/// Of a hundred requests, those that are cancelled, and those that are hostile.
const CANCELLED: u64 = 30;
const HOSTILE: u64 = 5;
/// Kinds of prompts and lengths: as many as a single user is asked for beforehand.
const KINDS: u64 = 40;
/// How long what is left over may take to go: tokio keeps an idle thread for 10 s.
const SETTLE: Duration = Duration::from_secs(30);
/// Memory that the allocator may keep for itself.
const SLACK: u64 = 48 << 20;

#[derive(Debug, Default)]
struct Counts {
    answered: AtomicUsize,
    cancelled: AtomicUsize,
    refused: AtomicUsize,
    busy: AtomicUsize,
}

pub fn run(options: &Options) -> Result<()> {
    let [clients, requests] = [options.clients, options.requests].map(NonZeroUsize::get);
    let program = program(&options.backstop)?;
    let wanted = single_user(&program)?;
    let server = Server::backstop(&program, &["--parallel", "16", "--max-queue", "8"])?;
    // Threads, buffers and caches come with the first requests.
    for kind in 0..KINDS {
        ask(server.address, kind, None)?;
    }
    thread::sleep(Duration::from_secs(12));
    let before = server.taken()?;
    let (next, counts) = (AtomicUsize::new(0), Counts::default());
    let start = Instant::now();
    let work = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= requests {
                return Ok(());
            }
            one(server.address, number as u64, &wanted, &counts)
                .with_context(|| format!("request {number}"))?;
        }
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..clients).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    println!(
        "{requests} requests by {clients} clients in {seconds:.1} s: {} answered as to a single user, {} cancelled, \
         {} hostile ones refused; {} times the queue was full, and the client came back",
        of(&counts.answered),
        of(&counts.cancelled),
        of(&counts.refused),
        of(&counts.busy)
    );
    ensure!(
        of(&counts.answered) + of(&counts.cancelled) + of(&counts.refused) == requests,
        "requests were lost"
    );
    let after = settled(&server, before.threads)?;
    println!("before {before:?}\nafter  {after:?}");
    for name in ["backstop_sequences_running", "backstop_sequences_queued"] {
        ensure!(server.metric(name)? == 0.0, "{name} is not 0");
    }
    ensure!(after.descriptors <= before.descriptors, "descriptors are left over");
    ensure!(after.threads <= before.threads, "threads are left over");
    ensure!(after.memory <= before.memory + SLACK, "memory is left over");
    Ok(())
}

/// What the server takes once nothing happens any more.
fn settled(server: &Server, threads: usize) -> Result<super::process::Taken> {
    let start = Instant::now();
    loop {
        let taken = server.taken()?;
        if taken.threads <= threads || start.elapsed() > SETTLE {
            return Ok(taken);
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// The texts of all kinds of requests, asked one after another of a server that does one at a time.
fn single_user(program: &std::path::Path) -> Result<HashMap<u64, String>> {
    let server = Server::backstop(program, &["--parallel", "1"])?;
    (0..KINDS).map(|kind| Ok((kind, ask(server.address, kind, None)?.text))).collect()
}

fn request(kind: u64) -> Value {
    let beginnings = ["Once upon a time", "One day", "The cat", "In the garden", "Tom had a"];
    let prompt = beginnings[(kind % 5) as usize];
    json!({ "prompt": prompt, "max_tokens": 8 + 4 * kind, "temperature": 0, "stream": true, "ignore_eos": true })
}

fn ask(address: SocketAddr, kind: u64, leave: Option<usize>) -> Result<client::Answer> {
    client::stream(address, "/v1/completions", &request(kind), leave)
}

/// A number that says all about request `number`.
fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn one(address: SocketAddr, number: u64, wanted: &HashMap<u64, String>, counts: &Counts) -> Result<()> {
    let random = mixed(number);
    let (chance, kind) = (random % 100, (random >> 8) % KINDS);
    if chance < HOSTILE {
        hostile(address, random >> 16)?;
        counts.refused.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    let leave = (chance < HOSTILE + CANCELLED).then_some(((random >> 16) % 40) as usize);
    loop {
        let answer = ask(address, kind, leave)?;
        match answer.status {
            429 => {
                counts.busy.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20 + random % 30));
            }
            _ if leave.is_some() => {
                let full = wanted.get(&kind).context("a kind that is not known")?;
                ensure!(full.starts_with(&answer.text), "another's text: {:?}, not {full:?}", answer.text);
                counts.cancelled.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            200 => {
                ensure!(wanted.get(&kind) == Some(&answer.text), "another's text: {:?}", answer.text);
                counts.answered.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            status => bail!("{status}: {}", answer.text),
        }
    }
}

/// A request that cannot be meant: it is refused with 4xx, or its connection ends.
fn hostile(address: SocketAddr, random: u64) -> Result<()> {
    use std::io::{Read, Write};
    let long = format!("{{\"prompt\": {}", "[".repeat(20_000));
    let bodies: [&str; 6] = [
        "{\"prompt\": \"x\", \"prompt\": \"y\"}",
        "{\"prompt\": 1e999}",
        &long,
        "{\"prompt\": \"x\", \"max_tokens\": -1}",
        "{\"prompt\": [4000000000]}",
        "\u{0}",
    ];
    let body = bodies[(random % 6) as usize];
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(Duration::from_secs(120)))?;
    // Some break off in the middle.
    let cut = if random.is_multiple_of(4) { body.len() / 2 } else { body.len() };
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes())?;
    let _ = connection.write_all(&body.as_bytes()[..cut]);
    if cut < body.len() {
        return Ok(());
    }
    let mut answer = String::new();
    let _ = connection.read_to_string(&mut answer);
    ensure!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{body:.60}: {answer}");
    Ok(())
}
