//! The kinds of soak whose clients ask what can be answered.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::json;

use super::plan::{Outcome, Plan, Scene};
use super::question::{self, Api, Question, story};
use super::raw;
use crate::load::client::Reading;

/// Of a hundred mixed requests, those that are cancelled, and those that are hostile.
const CANCELLED: u64 = 30;
const HOSTILE: u64 = 5;

/// Many sequences in flight, and few that wait.
const CROWD: [&str; 4] = ["--parallel", "16", "--max-queue", "8"];

/// Completions of many lengths, and shorter answers of every API, streamed or not.
fn ordinary() -> Vec<Question> {
    let beginnings = ["Once upon a time", "One day", "The cat", "In the garden", "Tom had a"];
    let prompt = |number: u64| beginnings[(number % 5) as usize];
    let long = (0..40).map(|number| Question::new(Api::Completions, prompt(number), 8 + 4 * number, true));
    let of_apis = (0..24).map(|number| {
        let api = Api::ALL[(number % 4) as usize];
        Question::new(api, prompt(number), 8 + 3 * number, number % 3 != 0)
    });
    long.chain(of_apis).collect()
}

pub fn mixed() -> Plan {
    let mut questions = ordinary();
    questions.extend(question::constrained().into_iter().step_by(3));
    Plan::new(&CROWD, questions, |scene, random| {
        let (chance, question) = (random % 100, scene.pick(random >> 8));
        match chance {
            _ if chance < HOSTILE => raw::senseless(scene, random >> 16),
            _ if chance < HOSTILE + CANCELLED => scene.cancelled(question, ((random >> 32) % 40) as usize),
            _ => scene.answered(question),
        }
    })
}

/// Every client leaves midway.
pub fn cancel_only() -> Plan {
    let mut questions = ordinary();
    questions.extend(question::constrained().into_iter().step_by(5));
    Plan::new(&CROWD, questions, |scene, random| {
        scene.cancelled(scene.pick(random >> 8), ((random >> 32) % 60) as usize)
    })
}

/// Every answer has a format; some ask for what cannot be enforced.
pub fn constrained_only() -> Plan {
    Plan::new(&CROWD, question::constrained(), |scene, random| match random % 20 {
        0 => raw::unenforceable(scene, random >> 16),
        1 => scene.cancelled(scene.pick(random >> 8), ((random >> 32) % 20) as usize),
        _ => scene.answered(scene.pick(random >> 8)),
    })
}

/// Bytes of two pages of the built-in model: 64 tokens, 6 layers, K and V of 2 heads of 32 in bf16.
const TWO_PAGES: &str = "196608";

/// Memory for one sequence of two pages, or two of one: all others wait for it.
pub fn two_page_budget() -> Plan {
    let questions = ["Once upon a time", "The cat", "One day", "Tom had a"].into_iter().flat_map(|prompt| {
        let completions =
            [20, 50, 90, 110].map(|tokens| Question::new(Api::Completions, prompt, tokens, true));
        let others =
            [Api::Chat, Api::Responses, Api::Messages].map(|api| Question::new(api, prompt, 40, true));
        completions.into_iter().chain(others)
    });
    let args = [&CROWD[..], &["--kv-memory", TWO_PAGES]].concat();
    let mut plan = Plan::new(&args, questions.collect(), |scene, random| {
        let question = scene.pick(random >> 8);
        match random % 10 {
            0..3 => scene.cancelled(question, ((random >> 32) % 40) as usize),
            _ => scene.answered(question),
        }
    });
    plan.seen = &["backstop_sequences_waiting_for_memory"];
    plan
}

/// Beginnings, and prompts that go on from each.
const BEGINNINGS: u64 = 40;
const ENDS: u64 = 3;

/// Prompts that begin alike: 40 beginnings of three or four pages where 61 pages are kept at most, some by running sequences.
pub fn prefix_churn() -> Plan {
    let questions = (0..BEGINNINGS * ENDS).map(|number| {
        let prompt = format!("{}. {}", story(number / ENDS, 180), story(1000 + number, 8));
        Question::new(Api::Completions, &prompt, 4 + number % 16, number % 2 == 0)
    });
    let args = ["--parallel", "6", "--max-queue", "32", "--kv-memory", "6000000"];
    let mut plan = Plan::new(&args, questions.collect(), |scene, random| {
        let question = scene.pick(random >> 8);
        match random % 10 {
            0 => scene.cancelled(question, ((random >> 32) % 8) as usize),
            _ => scene.answered(question),
        }
    });
    plan.seen = &["backstop_kv_evicted_pages_total", "backstop_prefix_hits_total"];
    plan
}

/// How long the server waits for a reader.
const STALL: &str = "2";

/// Half of the clients read a few bytes at a time, or stop reading; the others get their answers.
pub fn slow_readers() -> Plan {
    let mut questions = ordinary();
    // More of it than the kernel holds for a reader.
    let mut long = Question::new(Api::Completions, "Once upon a time", 440, true);
    long.body["n"] = json!(8);
    questions.push(long);
    let args = ["--parallel", "24", "--max-queue", "64", "--stall-timeout", STALL];
    Plan::new(&args, questions, |scene, random| {
        let long = scene.questions.len() - 1;
        let events = Some(((random >> 32) % 8 + 2) as usize);
        let (question, reading) = match random % 16 {
            0..8 => return scene.answered((random >> 8) as usize % long),
            // Some hundred bytes a second, of many a short answer all of it.
            8..11 => {
                (long, Reading { leave: events, pace: Some((64, Duration::from_millis(100))), stop: None })
            }
            11 => {
                (long, Reading { leave: Some(2), pace: Some((24, Duration::from_millis(500))), stop: None })
            }
            12 => return paced(scene, (random >> 8) as usize % long),
            _ => (long, Reading { leave: events, pace: None, stop: Some(Duration::from_secs(6)) }),
        };
        let answer = scene.ask(question, reading)?;
        scene.begins(question, &answer)?;
        ensure!(!answer.whole, "a client that did not read for 6 s got {} events", answer.events);
        Ok(if reading.stop.is_some() { Outcome::Cut } else { Outcome::Cancelled })
    })
}

/// Reads all of an answer, slowly.
fn paced(scene: &Scene<'_>, question: usize) -> Result<Outcome> {
    let pace = Some((2048, Duration::from_millis(50)));
    let answer = scene.ask(question, Reading { pace, ..Reading::default() })?;
    if scene.questions[question].streamed() && !answer.whole {
        bail!("a slow reader was cut off after {:?}", answer.texts);
    }
    scene.whole(question, &answer)?;
    Ok(Outcome::Answered)
}

/// A new connection for each request, half of them closed at odd points.
pub fn connection_churn() -> Plan {
    let questions = ordinary().into_iter().step_by(4).collect();
    Plan::new(&[&CROWD[..], &["--max-connections", "128"]].concat(), questions, raw::odd_connection)
}

/// Half of the clients send more than is taken.
pub fn oversize_bodies() -> Plan {
    let questions = ordinary().into_iter().step_by(4).collect();
    Plan::new(&CROWD, questions, |scene, random| match random % 2 {
        0 => raw::oversize(scene.address, scene.key, random >> 16),
        _ => scene.answered(scene.pick(random >> 8)),
    })
}
