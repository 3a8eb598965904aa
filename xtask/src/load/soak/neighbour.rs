//! A good client alone, and then beside a hostile one: what the second costs the first.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::attack::{Attack, Hostile, Made};
use super::plan::{Counts, Outcome, Plan, Scene};
use super::question::{Api, Question, story};
use super::report::Report;
use super::scatter;
use super::stage::{Bound, Stage, join, watch};
use crate::clients::target;
use crate::load::quantile;
use crate::util::root;

/// The part of `--minutes` or `--requests` for which the good client is alone.
const ALONE: f64 = 0.3;
/// How often its time may become longer, at the 99th percentile.
const TIMES: f64 = 3.0;
/// Seconds that `/health` may take.
const HEALTH: f64 = 1.0;
/// Both clients' keys, as `--api-key-file` takes them.
const KEYS: &str = "good good-secret\nhostile hostile-secret\n";
/// How long attacks go on before the good client is timed.
const ONSET: Duration = Duration::from_secs(3);

pub fn run(program: &Path, attacks: &[Attack], bound: Bound, report: &mut Report) -> Result<()> {
    let (alone, beside) = match bound {
        Bound::Requests(requests) => {
            let alone = (requests as f64 * ALONE) as usize;
            (Bound::Requests(alone), Bound::Requests(requests - alone))
        }
        Bound::Time(time) => (Bound::Time(time.mul_f64(ALONE)), Bound::Time(time.mul_f64(1.0 - ALONE))),
    };
    // Prompts of more than a page, which somebody could guess, and short answers.
    let secrets: Vec<String> = (0..16).map(|number| format!("{}.", story(7000 + number, 80))).collect();
    let questions = secrets.iter().enumerate().map(|(number, prompt)| {
        Question::new(if number % 2 == 0 { Api::Completions } else { Api::Chat }, prompt, 16, number % 4 < 2)
    });
    let plan = Plan::new(&[], questions.collect(), |scene, random| scene.answered(scene.pick(random)));
    let home = target(&root()?).join("load");
    fs::create_dir_all(&home)?;
    let keys = home.join(format!("keys-{}", std::process::id()));
    fs::write(&keys, KEYS)?;
    let more = ["--api-key-file", &*keys.to_string_lossy()];
    let stage = Stage::new(program, &plan, &more, Some("good-secret"));
    fs::remove_file(&keys)?;
    let stage = stage?;
    let scene = stage.scene(&plan);
    let start = Instant::now();
    let mut before = measure(&plan, &scene, alone, &report.counts).context("alone")?;
    let (done, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let made: Vec<Made> = attacks.iter().map(|_| Made::default()).collect();
    let (measured, attacked, watched) = thread::scope(|scope| {
        let watched = scope.spawn(|| watch(&stage.server, &[], &stop));
        let attacking: Vec<_> = attacks
            .iter()
            .zip(&made)
            .map(|(&attack, made)| {
                let hostile = Hostile {
                    address: stage.server.address,
                    key: "hostile-secret",
                    secrets: &secrets,
                    done: &done,
                    made,
                };
                scope.spawn(move || attack.run(&hostile).with_context(|| attack.name()))
            })
            .collect();
        thread::sleep(ONSET);
        let measured = measure(&plan, &scene, beside, &report.counts).context("beside a hostile client");
        done.store(true, Ordering::Relaxed);
        let attacked: Vec<Result<()>> = attacking.into_iter().map(join).collect();
        stop.store(true, Ordering::Relaxed);
        (measured, attacked, join(watched))
    });
    report.seconds = start.elapsed().as_secs_f64();
    report.busy = scene.busy.load(Ordering::Relaxed);
    drop(scene);
    let of = attacks.iter().zip(&made).map(|(attack, made)| format!("{}: {}", attack.name(), made.shown()));
    report.notes.extend(of);
    let health = watched.as_ref().map_or(f64::INFINITY, |(slowest, _)| *slowest);
    report.health = health;
    let settled = stage.settled(report);
    let mut after = measured?;
    let [p50, p99] = [0.5, 0.99].map(|part| quantile(&mut before, part) * 1e3);
    let [p50_beside, p99_beside] = [0.5, 0.99].map(|part| quantile(&mut after, part) * 1e3);
    report.notes.push(format!(
        "a good client: {} requests alone, median {p50:.1} ms, p99 {p99:.1} ms; {} beside the hostile one, median \
         {p50_beside:.1} ms, p99 {p99_beside:.1} ms: {:.1} and {:.1} times; /health within {:.0} ms",
        before.len(),
        after.len(),
        p50_beside / p50,
        p99_beside / p99,
        health * 1e3
    ));
    attacked.into_iter().collect::<Result<Vec<_>>>()?;
    watched?;
    ensure!(health <= HEALTH, "/health took {health:.2} s");
    ensure!(p99_beside <= TIMES * p99, "the good client's p99 is {:.1} times as long", p99_beside / p99);
    settled
}

/// Seconds that each of the good client's requests took, from the first attempt to the end.
fn measure(plan: &Plan, scene: &Scene<'_>, bound: Bound, counts: &Counts) -> Result<Vec<f64>> {
    let start = Instant::now();
    let mut seconds = Vec::new();
    while bound.allows(seconds.len(), start) {
        let asked = Instant::now();
        let outcome = (plan.act)(scene, scatter(seconds.len() as u64))
            .with_context(|| format!("request {}", seconds.len()))?;
        counts.add(outcome);
        ensure!(outcome == Outcome::Answered, "it was {outcome:?}");
        seconds.push(asked.elapsed().as_secs_f64());
    }
    ensure!(seconds.len() > 1, "too few requests were made");
    Ok(seconds)
}
