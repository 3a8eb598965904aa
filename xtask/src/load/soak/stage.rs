//! A server under soak: what it takes before and after, and that nothing of it is left over.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::plan::{Counts, Plan, Scene};
use super::question::single_user;
use super::report::Report;
use super::scatter;
use crate::load::process::{Server, Taken};

/// How long what is left over may take to go: tokio keeps an idle thread for 10 s.
const SETTLE: Duration = Duration::from_secs(30);
/// Memory that the allocator may keep for itself.
const SLACK: u64 = 48 << 20;
/// How often somebody looks whether the server is well.
const LOOK: Duration = Duration::from_millis(100);

/// How much is asked.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// Requests of all clients.
    Requests(usize),
    Time(Duration),
}

impl Bound {
    /// Whether request `number` is still made, `since` the beginning.
    pub fn allows(self, number: usize, since: Instant) -> bool {
        match self {
            Self::Requests(requests) => number < requests,
            Self::Time(time) => since.elapsed() < time,
        }
    }
}

/// A server that has answered each question once, as to a single user.
pub struct Stage {
    pub server: Server,
    pub wanted: Vec<Vec<String>>,
    pub before: Taken,
    /// Of that, what was kept of prompts, in bytes.
    kept: u64,
}

impl Stage {
    /// Starts the plan's server with the arguments `more`; `key` is then what it asks for.
    pub fn new(program: &Path, plan: &Plan, more: &[&str], key: Option<&str>) -> Result<Self> {
        let wanted = single_user(program, plan.model.as_deref(), &plan.questions)?;
        let mut server = Server::backstop(program, &plan.args(more))?;
        server.key = key.map(str::to_owned);
        let mut stage = Self { before: server.taken()?, kept: 0, server, wanted };
        // Threads, buffers and caches come with the first requests.
        let scene = stage.scene(plan);
        for question in 0..plan.questions.len() {
            scene.answered(question).with_context(|| format!("{}", plan.questions[question].body))?;
        }
        drop(scene);
        thread::sleep(Duration::from_secs(12));
        (stage.before, stage.kept) = (stage.server.taken()?, stage.kept()?);
        Ok(stage)
    }

    pub fn scene<'a>(&'a self, plan: &'a Plan) -> Scene<'a> {
        Scene {
            address: self.server.address,
            key: self.server.key.as_deref(),
            questions: &plan.questions,
            wanted: &self.wanted,
            busy: AtomicUsize::new(0),
            held: Default::default(),
        }
    }

    /// Bytes of beginnings of prompts that are kept, which is no leak.
    fn kept(&self) -> Result<u64> {
        Ok(self.server.metric("backstop_kv_kept_bytes")? as u64)
    }

    /// What the server takes once nothing happens any more.
    ///
    /// # Errors
    /// What is left over.
    pub fn settled(&self, report: &mut Report) -> Result<()> {
        let before = self.before;
        let allowed = (before.own + SLACK).saturating_sub(self.kept) + self.kept()?;
        let start = Instant::now();
        let after = loop {
            let taken = self.server.taken()?;
            let gone = taken.threads <= before.threads
                && taken.descriptors <= before.descriptors
                && taken.own <= allowed;
            if gone || start.elapsed() > SETTLE {
                break taken;
            }
            thread::sleep(Duration::from_millis(500));
        };
        report.taken = Some((before, after));
        let mut over = Vec::new();
        for name in ["backstop_sequences_running", "backstop_sequences_queued"] {
            if self.server.metric(name)? != 0.0 {
                over.push(format!("{name} is not 0"));
            }
        }
        for (what, more) in [
            ("descriptors", after.descriptors > before.descriptors),
            ("threads", after.threads > before.threads),
            ("memory", after.own > allowed),
        ] {
            if more {
                over.push(format!("{what} left over"));
            }
        }
        ensure!(over.is_empty(), "{}", over.join(", "));
        Ok(())
    }
}

/// Looks at `/health` and at the metrics `names` until `done`: the longest that `/health` took, in seconds, and the most
/// that each metric was.
pub fn watch(server: &Server, names: &[&str], done: &AtomicBool) -> Result<(f64, Vec<f64>)> {
    let (mut slowest, mut most) = (0.0f64, vec![0.0f64; names.len()]);
    while !done.load(Ordering::Relaxed) {
        let start = Instant::now();
        let health = server.get("/health").context("/health")?;
        slowest = slowest.max(start.elapsed().as_secs_f64());
        ensure!(health.starts_with("HTTP/1.1 200"), "/health: {health:?}");
        for (name, most) in names.iter().zip(&mut most) {
            *most = most.max(server.metric(name)?);
        }
        thread::sleep(LOOK);
    }
    Ok((slowest, most))
}

/// A soak by `clients` that ask without a pause.
pub fn soak(program: &Path, plan: &Plan, clients: usize, bound: Bound, report: &mut Report) -> Result<()> {
    let stage = Stage::new(program, plan, &[], None)?;
    let scene = stage.scene(plan);
    let (next, made, counts) = (AtomicUsize::new(0), AtomicUsize::new(0), Counts::default());
    let (failed, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let start = Instant::now();
    let client = || -> Result<()> {
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if !bound.allows(number, start) {
                return Ok(());
            }
            made.fetch_add(1, Ordering::Relaxed);
            let outcome = (plan.act)(&scene, scatter(number as u64));
            failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
            counts.add(outcome.with_context(|| format!("request {number}"))?);
        }
        Ok(())
    };
    let (asked, beside, watched) = thread::scope(|scope| {
        let beside = plan.beside.as_ref().map(|beside| scope.spawn(|| beside(&done)));
        let watched = scope.spawn(|| watch(&stage.server, plan.seen, &done));
        let running: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        let asked: Vec<_> = running.into_iter().map(join).collect();
        done.store(true, Ordering::Relaxed);
        (asked, beside.map_or(Ok(()), join), join(watched))
    });
    report.seconds = start.elapsed().as_secs_f64();
    report.busy = scene.busy.load(Ordering::Relaxed);
    drop(scene);
    report.counts = counts;
    asked.into_iter().collect::<Result<Vec<_>>>()?;
    beside?;
    let (slowest, most) = watched?;
    report.health = slowest;
    ensure!(report.counts.sum() == made.into_inner(), "requests were lost");
    for (name, most) in plan.seen.iter().zip(most) {
        report.notes.push(format!("{name} up to {most}"));
        ensure!(most > 0.0, "{name} was never above 0: this soak has missed what it is for");
    }
    stage.settled(report)
}

/// What a thread came to.
pub fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a client panicked"))?
}
