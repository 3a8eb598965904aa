//! Good clients alone, and then beside connections that send a byte now and then.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use serde_json::json;

use super::process::{Server, program};
use super::{Backstop, client, quantile};

/// What `load slow` takes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Connections that send a byte now and then
    #[arg(long, value_name = "N", default_value = "200")]
    connections: NonZeroUsize,
    /// Requests of the good clients
    #[arg(long, value_name = "N", default_value = "400")]
    requests: NonZeroUsize,
    #[command(flatten)]
    backstop: Backstop,
}

/// How many good clients there are.
const GOOD: usize = 4;
/// How often each of the others sends a byte.
const PAUSE: Duration = Duration::from_millis(500);

pub fn run(options: &Options) -> Result<()> {
    let [connections, requests] = [options.connections, options.requests].map(NonZeroUsize::get);
    let server = Server::backstop(&program(&options.backstop)?, &["stories"])?;
    measure(server.address, requests / 4)?;
    let mut alone = measure(server.address, requests)?;
    let (done, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    let beside = thread::scope(|scope| {
        scope.spawn(|| drip(server.address, connections, &done, &opened));
        // The first of them are there.
        while opened.load(Ordering::Relaxed) < connections {
            thread::sleep(Duration::from_millis(10));
        }
        let beside = measure(server.address, requests);
        done.store(true, Ordering::Relaxed);
        beside
    });
    let mut beside = beside?;
    let (p99, slow) = (quantile(&mut alone, 0.99), quantile(&mut beside, 0.99));
    println!(
        "{GOOD} clients, {requests} requests: median {:.1} ms and p99 {:.1} ms alone; {:.1} and {:.1} ms beside {} slow \
         connections",
        quantile(&mut alone, 0.5) * 1e3,
        p99 * 1e3,
        quantile(&mut beside, 0.5) * 1e3,
        slow * 1e3,
        connections,
    );
    ensure!(slow <= 2.0 * p99, "p99 more than doubles");
    Ok(())
}

/// Seconds that each request took.
fn measure(address: SocketAddr, requests: usize) -> Result<Vec<f64>> {
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 32, "temperature": 0, "stream": true });
    let run = || -> Result<Vec<f64>> {
        (0..requests / GOOD)
            .map(|_| Ok(client::stream(address, "/v1/completions", &body, None)?.total))
            .collect()
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..GOOD).map(|_| scope.spawn(run)).collect();
        let joined = running.into_iter().map(|one| one.join().map_err(|_| anyhow!("a client panicked"))?);
        Ok(joined.collect::<Result<Vec<_>>>()?.concat())
    })
}

/// Keeps `connections` open, each with a head that never ends; those that the server ends are opened anew.
fn drip(address: SocketAddr, connections: usize, done: &AtomicBool, opened: &AtomicUsize) {
    let open = || TcpStream::connect(address).ok();
    let mut slow: Vec<Option<TcpStream>> = Vec::new();
    for _ in 0..connections {
        slow.push(open());
        opened.fetch_add(1, Ordering::Relaxed);
    }
    while !done.load(Ordering::Relaxed) {
        for connection in &mut slow {
            let sent = connection.as_mut().map(|connection| connection.write_all(b"x"));
            if !matches!(sent, Some(Ok(()))) {
                *connection = open();
            }
        }
        thread::sleep(PAUSE);
    }
}
