//! What a kind of soak is: how its server is started, what each client does, and what must hold at the end.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::question::Question;
use crate::load::client::{self, Answer, Reading};

/// What a client does as its next request, of which the number says all.
pub type Act = fn(&Scene<'_>, u64) -> Result<Outcome>;
/// What goes on beside the clients, until the flag is set.
pub type Beside = Box<dyn Fn(&AtomicBool) -> Result<()> + Sync>;

/// A kind of soak.
pub struct Plan {
    /// A model's directory [default: the built-in model].
    pub model: Option<String>,
    /// The server's arguments beside it.
    pub args: Vec<String>,
    pub questions: Vec<Question>,
    pub act: Act,
    pub beside: Option<Beside>,
    /// Values of `/metrics` that must have been above 0 at some time, or the soak has missed what it is for.
    pub seen: &'static [&'static str],
}

impl Plan {
    pub fn new(args: &[&str], questions: Vec<Question>, act: Act) -> Self {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Self { model: None, args, questions, act, beside: None, seen: &[] }
    }

    /// What its server is started with, and `more`.
    pub fn args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let model = self.model.as_deref().unwrap_or("stories");
        let own = std::iter::once(model).chain(self.args.iter().map(String::as_str));
        own.chain(more.iter().copied()).collect()
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// As to a single user.
    Answered,
    /// Its client went away, and had what begins the single user's text.
    Cancelled,
    /// It could not be meant, and was refused.
    Refused,
    /// Its client did not read, and was cut off.
    Cut,
}

/// How requests ended.
#[derive(Debug, Default)]
pub struct Counts([AtomicUsize; 4]);

impl Counts {
    pub fn add(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn of(&self, outcome: Outcome) -> usize {
        self.0[outcome as usize].load(Ordering::Relaxed)
    }

    pub fn sum(&self) -> usize {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// What the clients of a soak share.
pub struct Scene<'a> {
    pub address: SocketAddr,
    pub key: Option<&'a str>,
    pub questions: &'a [Question],
    /// The texts of each question, as a single user is told.
    pub wanted: &'a [Vec<String>],
    /// Times that the queue was full.
    pub busy: AtomicUsize,
    /// Connections that are left open for a while.
    pub held: Mutex<VecDeque<TcpStream>>,
}

impl Scene<'_> {
    /// The question that `random` picks.
    pub fn pick(&self, random: u64) -> usize {
        (random % self.questions.len() as u64) as usize
    }

    /// Asks, and comes back while the queue is full.
    pub fn ask(&self, question: usize, reading: Reading) -> Result<Answer> {
        let Question { api, body, .. } = &self.questions[question];
        loop {
            let answer = client::ask(self.address, api.path(), self.key, body, reading)?;
            if answer.status != 429 {
                return Ok(answer);
            }
            self.wait();
        }
    }

    /// The queue was full.
    fn wait(&self) {
        let before = self.busy.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(20 + before as u64 % 30));
    }

    /// Sends a request that must be refused with one of `statuses`, and comes back while the queue is full.
    pub fn refused(&self, request: &[u8], statuses: &[u16]) -> Result<Outcome> {
        loop {
            let answer = client::raw(self.address, request)?;
            if client::status(&answer)? != Some(429) {
                return refused(&answer, statuses);
            }
            self.wait();
        }
    }

    /// Asks, and holds the whole answer against the single user's.
    pub fn answered(&self, question: usize) -> Result<Outcome> {
        let answer = self.ask(question, Reading::default())?;
        self.whole(question, &answer)?;
        Ok(Outcome::Answered)
    }

    /// Whether an answer is the single user's to the letter.
    pub fn whole(&self, question: usize, answer: &Answer) -> Result<()> {
        if answer.status != 200 {
            bail!("{}: {}", answer.status, answer.text());
        }
        let wanted = &self.wanted[question];
        ensure!(answer.texts == *wanted, "another's text: {:?}, not {wanted:?}", answer.texts);
        match &self.questions[question].check {
            Some(check) => check.holds(answer.text()),
            None => Ok(()),
        }
    }

    /// Whether what has come of an answer begins the single user's.
    pub fn begins(&self, question: usize, answer: &Answer) -> Result<()> {
        ensure!(matches!(answer.status, 0 | 200), "{}: {}", answer.status, answer.text());
        let wanted = &self.wanted[question];
        let same = answer.texts.len() <= wanted.len()
            && answer.texts.iter().zip(wanted).all(|(text, wanted)| wanted.starts_with(text.as_str()));
        ensure!(same, "another's text: {:?}, not {wanted:?}", answer.texts);
        Ok(())
    }

    /// Asks, and goes away after `events` of them; of an answer that is no stream, after a while.
    pub fn cancelled(&self, question: usize, events: usize) -> Result<Outcome> {
        use std::io::Write;
        let Question { api, body, .. } = &self.questions[question];
        if self.questions[question].streamed() {
            let reading = Reading { leave: Some(events), ..Reading::default() };
            let answer = self.ask(question, reading)?;
            // One that was short came to its end before.
            if answer.whole {
                self.whole(question, &answer)?
            } else {
                self.begins(question, &answer)?
            }
            return Ok(Outcome::Cancelled);
        }
        let request = client::post(self.address, api.path(), self.key, body.to_string().as_bytes());
        let mut connection = client::connect(self.address)?;
        connection.write_all(&request).context("the request was not taken")?;
        thread::sleep(Duration::from_millis(events as u64));
        Ok(Outcome::Cancelled)
    }

    /// Leaves a connection open; the oldest of more than `most` is closed.
    pub fn hold(&self, connection: TcpStream, most: usize) {
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        held.push_back(connection);
        if held.len() > most {
            held.pop_front();
        }
    }
}

/// Whether an answer is one of these refusals; its client may also have lost it with its connection.
pub fn refused(answer: &[u8], statuses: &[u16]) -> Result<Outcome> {
    let status = client::status(answer)?;
    let text = || String::from_utf8_lossy(&answer[..answer.len().min(600)]).into_owned();
    ensure!(status.is_none_or(|status| statuses.contains(&status)), "expected {statuses:?}: {}", text());
    Ok(Outcome::Refused)
}
