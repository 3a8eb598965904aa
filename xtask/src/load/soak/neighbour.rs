//! A good client alone, and then beside a hostile one: what the second costs the first.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};

use super::attack::{Attack, Hostile, Made};
use super::plan::{Counts, Plan, Scene};
use super::question::{self, Api, Question, story};
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

/// A good client of `model`, or of the built-in one, beside `attacks`.
pub fn run(
    program: &Path,
    model: Option<String>,
    attacks: &[Attack],
    bound: Bound,
    report: &mut Report,
) -> Result<()> {
    let (alone, beside) = match bound {
        Bound::Requests(requests) => {
            let alone = (requests as f64 * ALONE) as usize;
            (Bound::Requests(alone), Bound::Requests(requests - alone))
        }
        Bound::Time(time) => (Bound::Time(time.mul_f64(ALONE)), Bound::Time(time.mul_f64(1.0 - ALONE))),
    };
    // Prompts of more than a page, which somebody could guess, and short answers; one in so many has a format.
    let secrets: Vec<String> = (0..16).map(|number| format!("{}.", story(7000 + number, 80))).collect();
    let mut questions: Vec<Question> = Vec::new();
    for (number, prompt) in secrets.iter().enumerate() {
        let api = if number % 2 == 0 { Api::Completions } else { Api::Chat };
        questions.push(Question::new(api, prompt, 16, number % 4 < 2));
    }
    questions.extend(question::constrained().into_iter().last());
    let plan = Plan::new(&[], questions, |scene, random| scene.answered(scene.pick(random)));
    let plan = Plan { model, ..plan };
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
    let mut before = measure(&plan, &scene, alone, &report.counts);
    let (done, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let made: Vec<Made> = attacks.iter().map(|_| Made::default()).collect();
    let (mut after, attacked, watched) = thread::scope(|scope| {
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
                scope.spawn(move || {
                    give_way();
                    attack.run(&hostile).with_context(|| attack.name())
                })
            })
            .collect();
        thread::sleep(ONSET);
        let measured = measure(&plan, &scene, beside, &report.counts);
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
    let settled = stage.settled(report);
    let [p50, p99] = [0.5, 0.99].map(|part| quantile(&mut before.seconds, part) * 1e3);
    let [p50_beside, p99_beside] = [0.5, 0.99].map(|part| quantile(&mut after.seconds, part) * 1e3);
    report.notes.push(format!(
        "a good client: {} requests alone, median {p50:.1} ms, p99 {p99:.1} ms; {} beside the hostile one, median \
         {p50_beside:.1} ms, p99 {p99_beside:.1} ms: {:.1} and {:.1} times",
        before.seconds.len(),
        after.seconds.len(),
        p50_beside / p50,
        p99_beside / p99,
    ));
    // All that did not hold is told, not only the first of it.
    let mut failures = Vec::new();
    let wrong: Vec<_> = before.wrong.iter().chain(&after.wrong).collect();
    if let Some(first) = wrong.first() {
        failures.push(format!("{} answers of the good client are wrong, the first: {first:#}", wrong.len()));
    }
    match watched {
        Ok((slowest, _)) => report.health = slowest,
        Err(error) => failures.push(format!("{error:#}")),
    }
    if report.health > HEALTH {
        failures.push(format!("/health took {:.2} s", report.health));
    }
    let times = p99_beside / p99;
    // Also where no request was made, and it is no number.
    if times.is_nan() || times > TIMES {
        failures.push(format!("the good client's p99 is {times:.1} times as long"));
    }
    let others = attacked.into_iter().chain([settled]).filter_map(Result::err);
    failures.extend(others.map(|error| format!("{error:#}")));
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// Has the system run other threads before this one: who attacks does so with a processor of its own, and takes none of the server's.
fn give_way() {
    #[cfg(target_os = "linux")]
    // SAFETY: numbers alone; 0 is the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
}

/// What a good client got.
#[derive(Default)]
struct Measured {
    /// Of each request, from the first attempt to the end.
    seconds: Vec<f64>,
    /// What was wrong with its answers.
    wrong: Vec<Error>,
}

fn measure(plan: &Plan, scene: &Scene<'_>, bound: Bound, counts: &Counts) -> Measured {
    let start = Instant::now();
    let mut measured = Measured::default();
    while bound.allows(measured.seconds.len(), start) {
        let asked = Instant::now();
        match (plan.act)(scene, scatter(measured.seconds.len() as u64)) {
            Ok(outcome) => counts.add(outcome),
            Err(error) => measured.wrong.push(error),
        }
        measured.seconds.push(asked.elapsed().as_secs_f64());
    }
    measured
}
