//! `backstop tasks`: multiple choice.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Context;
use backstop::LoadOptions;
use backstop::perplexity::Mean;
use backstop::tasks::{Answered, Question, answer_all};
use serde_json::{Value, json};

use super::args::{SessionArgs, TasksArgs};
use super::interrupt::Interruptible;
use super::progress::Progress;
use super::stream::print;
use super::summary::aligned;
use super::{Interrupted, names};

pub fn tasks(args: &TasksArgs) -> anyhow::Result<ExitCode> {
    let (path, text) = names::text(&args.read)?;
    let name = path.display().to_string();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let mut questions = Vec::new();
    for (at, line) in lines.take(args.limit.unwrap_or(usize::MAX)) {
        let question =
            Question::parse(line).map_err(|what| anyhow::anyhow!("{name}: line {}: {what}", at + 1))?;
        questions.push(question);
    }
    anyhow::ensure!(!questions.is_empty(), "{name}: has no question, expected a line of JSON for each");

    let session = SessionArgs { ctx: args.ctx, threads: args.threads, ..SessionArgs::default() };
    let sequences = |options| LoadOptions { max_sequences: Some(args.at_once), ..options };
    let model =
        super::load_as(&names::replace(&args.model, args.read.model()), &session, false, sequences)?.model;
    let mut out = args.answers.as_ref().map(|path| {
        let file = File::create_new(path).with_context(|| path.display().to_string())?;
        anyhow::Ok((path.display().to_string(), BufWriter::new(file)))
    });
    let mut out = out.take().transpose()?;

    let started = Instant::now();
    let stopped = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stopped);
    let _interruptible = Interruptible::new(move || set.store(true, Ordering::Relaxed))?;
    let (done, right, count) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), questions.len());
    let shown = (Arc::clone(&done), Arc::clone(&right));
    let progress = Progress::start(move || {
        let (done, right) = (shown.0.load(Ordering::Relaxed), shown.1.load(Ordering::Relaxed));
        format!("{done} of {count} questions, {:.1} % right", 100.0 * right as f64 / done.max(1) as f64)
    });
    let mut answers: BTreeMap<usize, Answered> = BTreeMap::new();
    let ended = answer_all(&model, &questions, args.at_once, |at, said| {
        done.fetch_add(1, Ordering::Relaxed);
        right.fetch_add(usize::from(said.likeliest() == questions[at].answer), Ordering::Relaxed);
        answers.insert(at, said);
        !stopped.load(Ordering::Relaxed)
    });
    drop(progress);
    // Those that are known are written, whatever ended it.
    if let Some((path, file)) = &mut out {
        let lines = answers.iter().map(|(at, said)| line(*at, &questions[*at], said));
        let write = || {
            lines.into_iter().try_for_each(|line| writeln!(file, "{line}"))?;
            file.flush()
        };
        write().with_context(|| path.clone())?;
    }
    ended?;
    if answers.len() < questions.len() {
        return Err(Interrupted(format!("interrupted after {} of {count} questions", answers.len())).into());
    }
    let scores = Scores::of(&questions, &answers, |_| true);
    let seconds = started.elapsed().as_secs_f64();
    let cut = answers.values().filter(|said| said.cut).count();
    let device = model.engine().backend();
    if args.json {
        let subjects = subjects(&questions, &answers);
        let mut report = json!({
            "model": { "name": model.info().name, "device": device },
            "questions": count,
            "acc": scores.acc(),
            "acc_norm": scores.acc_norm(),
            "cut": cut,
            "seconds": seconds,
        });
        if !subjects.is_empty() {
            let subjects = subjects
                .into_iter()
                .map(|(name, scores)| (name, json!({ "questions": scores.count, "acc": scores.acc() })));
            report["subjects"] = Value::Object(subjects.collect());
        }
        print(&format!("{report}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![
        ["model".to_owned(), format!("{}: {device}", model.info().name)],
        ["questions".to_owned(), format!("{count}, {:.1} in a second", count as f64 / seconds.max(1e-9))],
        ["acc".to_owned(), percent(scores.acc)],
        ["acc_norm".to_owned(), percent(scores.acc_norm)],
    ];
    if cut > 0 {
        rows.push([
            "cut".to_owned(),
            format!("{cut} questions had no room and lost their beginning (--ctx)"),
        ]);
    }
    for (name, scores) in subjects(&questions, &answers) {
        rows.push([name, format!("{} of {}", percent(scores.acc), scores.count)]);
    }
    print(&aligned(&rows, 2))?;
    Ok(ExitCode::SUCCESS)
}

/// The share of questions that are right, and its standard error.
struct Scores {
    count: usize,
    acc: Mean,
    acc_norm: Mean,
}

impl Scores {
    fn of(
        questions: &[Question],
        answers: &BTreeMap<usize, Answered>,
        takes: impl Fn(&Question) -> bool,
    ) -> Self {
        let asked: Vec<(&Question, &Answered)> =
            answers.iter().map(|(at, said)| (&questions[*at], said)).filter(|(of, _)| takes(of)).collect();
        let mean = |right: fn(&Question, &Answered) -> bool| {
            Mean::of(asked.iter().map(|(of, said)| f64::from(u8::from(right(of, said)))))
        };
        Self {
            count: asked.len(),
            acc: mean(|of, said| said.likeliest() == of.answer),
            acc_norm: mean(|of, said| said.likeliest_by_length(of) == of.answer),
        }
    }

    fn acc(&self) -> Value {
        json!({ "value": self.acc.value, "error": self.acc.error })
    }

    fn acc_norm(&self) -> Value {
        json!({ "value": self.acc_norm.value, "error": self.acc_norm.error })
    }
}

/// The scores of each subject, where questions have any.
fn subjects(questions: &[Question], answers: &BTreeMap<usize, Answered>) -> BTreeMap<String, Scores> {
    let names: std::collections::BTreeSet<&String> =
        questions.iter().filter_map(|question| question.subject.as_ref()).collect();
    let of =
        |name: &String| Scores::of(questions, answers, |question| question.subject.as_ref() == Some(name));
    names.into_iter().map(|name| (name.clone(), of(name))).collect()
}

fn percent(mean: Mean) -> String {
    format!("{:.2} ± {:.2} %", 100.0 * mean.value, 100.0 * mean.error)
}

/// A line of the file of answers.
fn line(at: usize, question: &Question, said: &Answered) -> Value {
    json!({
        "question": at,
        "answer": question.answer,
        "acc": said.likeliest(),
        "acc_norm": said.likeliest_by_length(question),
        "log_likelihood": said.sums,
        "greedy": said.greedy,
        "cut": said.cut,
    })
}
