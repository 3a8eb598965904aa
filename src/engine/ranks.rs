//! A model that several ranks compute together: the first one has the engine, and says each step before it does it; the others do the
//! same step on their parts of the weights.
//!
//! What is said are words that are summed over all ranks, of which the others have zeros: a head, and what does not fit there behind
//! it. Between two messages each rank computes the same sums in the same order, those of a step's layers, so that what a rank sends is
//! what the others wait for. Where a rank is lost, MLX may wait for ever: an [`Alarm`] notices.

use std::borrow::BorrowMut;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::alarm::{Alarm, Slowest};
use super::lost::Lost;
use crate::backend::batch::{Batch, Run, Tokens};
use crate::backend::ranks::{Order, Orders, Rank, Told, VARIABLES};
use crate::backend::{LlmBackendDispatch, PageAndPane};
use crate::error::{Error, Result};
use crate::files;
use crate::forward::step::SequenceState;

/// Words of the head of a message.
const HEAD: usize = 256;
/// In each head, with the number of the message.
const MARK: u32 = 0x6261_636b;
/// Words of a head before those of the message.
const FRONT: usize = 3;
/// How long loading may take, and the first step: weights are read then.
const FIRST: Duration = Duration::from_secs(1800);
/// How many times as long as the slowest step so far, of as many rows, one may take beside the patience of the ranks.
const SLOWER: u32 = 4;
/// Words of a message, at most: more than any step has.
const MOST: usize = 1 << 24;
/// How often the first rank says something at least.
const SILENCE: Duration = Duration::from_millis(50);
/// How long the others sleep where there is nothing to do: waiting for a message takes a core.
const SLEEP: Duration = Duration::from_millis(45);

/// How a model is computed together with others.
#[derive(Debug, Clone, Copy)]
pub struct Ranks {
    /// Which of them this process is.
    pub rank: Rank,
    /// How long a rank may keep the others waiting, but for the first step.
    pub patience: Duration,
    /// Told why another rank is taken for lost. MLX then waits for it, and does not return: whoever asked for something is answered
    /// by nobody else, and the process cannot go on with the model.
    pub lost: fn(&str),
}

impl Ranks {
    /// As MLX's [`VARIABLES`] say, where they are there.
    ///
    /// # Errors
    /// One of them alone; a number that is none, or not below that of the ranks; a file that is no list of addresses.
    pub fn of_environment(patience: Duration, lost: fn(&str)) -> Result<Option<Self>> {
        let [rank, hosts] = VARIABLES.map(std::env::var_os);
        let expected = "MLX_RANK and MLX_HOSTFILE together, as `backstop launch` sets them";
        let (rank, hosts) = match (rank, hosts) {
            (None, None) => return Ok(None),
            (Some(rank), Some(hosts)) => (rank, PathBuf::from(hosts)),
            (rank, _) => {
                let got = VARIABLES[usize::from(rank.is_none())].to_owned() + " alone";
                return Err(Error::Option { option: "ranks", got, expected });
            }
        };
        let of = addresses(&hosts)?;
        let got = rank.to_string_lossy();
        let index = got.parse().map_err(|_| Error::Option {
            option: "rank",
            got: got.to_string(),
            expected: "a number, in MLX_RANK",
        })?;
        Ok(Some(Self { rank: Rank::new(index, of)?, patience, lost }))
    }
}

/// How many ranks a host file has: `[["10.0.0.1:32323"], ["10.0.0.2:32323"]]`.
fn addresses(path: &Path) -> Result<usize> {
    let hosts: Option<Vec<Vec<String>>> = serde_json::from_slice(&files::read_json(path)?).ok();
    let is_whole = |hosts: &Vec<Vec<String>>| !hosts.is_empty() && hosts.iter().all(|of| !of.is_empty());
    hosts.filter(is_whole).map(|hosts| hosts.len()).ok_or_else(|| Error::Format {
        path: path.to_owned(),
        what: "it is no host file: a list of a list of addresses for each rank, as [[\"10.0.0.1:32323\"], [\"10.0.0.2:32323\"]]".to_owned(),
    })
}

/// What the first rank says.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// Nothing: the next message comes after so many milliseconds.
    Wait(u32),
    /// It ends.
    End,
    /// A step.
    Step(Vec<u32>),
}

impl Message {
    fn words(self) -> (u32, Vec<u32>) {
        match self {
            Self::Wait(time) => (0, vec![time]),
            Self::End => (1, Vec::new()),
            Self::Step(words) => (2, words),
        }
    }

    fn of(kind: u32, words: Vec<u32>) -> Option<Self> {
        match (kind, &*words) {
            (0, &[time]) => Some(Self::Wait(time)),
            (1, []) => Some(Self::End),
            (2, _) => Some(Self::Step(words)),
            _ => None,
        }
    }
}

/// The orders and the message that words are; none where they are neither.
fn parted(kind: u32, words: &[u32]) -> Option<(Vec<Order>, Message)> {
    let (&len, rest) = words.split_first()?;
    let (mut of_orders, body) = rest.split_at_checked(len as usize)?;
    let mut orders = Vec::new();
    while !of_orders.is_empty() {
        let (order, more) = Order::read(of_orders)?;
        orders.push(order);
        of_orders = more;
    }
    Some((orders, Message::of(kind, body.to_vec())?))
}

/// What a rank knows of the others.
pub(crate) struct Company {
    ranks: Ranks,
    alarm: Alarm,
    /// Messages so far.
    messages: Cell<u32>,
    /// Whether no step has ended yet.
    fresh: Cell<bool>,
    /// The rows of the step that runs, and since when.
    running: Cell<Option<(usize, Instant)>>,
    slowest: Cell<Slowest>,
    /// Sequences and pages so far.
    numbers: Cell<u32>,
    /// What the others are to do before the next step.
    orders: Orders,
    /// When something was said last.
    said: Cell<Instant>,
    /// Who waits for what is computed, and why that comes no more.
    lost: Arc<Lost>,
}

impl Company {
    /// Joins the others on MLX; waits until all are there.
    ///
    /// # Errors
    /// Ranks that do not find each other; a dispatch without MLX.
    pub fn join(dispatch: &LlmBackendDispatch, ranks: Ranks) -> Result<Self> {
        let lost: Arc<Lost> = Arc::default();
        let told = Arc::clone(&lost);
        let alarm = Alarm::start(move |why| {
            told.end(why);
            (ranks.lost)(why);
        })?;
        alarm.set(FIRST, format!("another rank was not started in {} s", FIRST.as_secs()));
        let rank = dispatch.join_ranks()?;
        alarm.clear();
        if rank != ranks.rank {
            return Err(Error::Backend {
                backend: "mlx",
                reason: format!("MLX takes {} for {rank}", ranks.rank),
            });
        }
        Ok(Self {
            ranks,
            alarm,
            messages: Cell::new(0),
            fresh: Cell::new(true),
            running: Cell::new(None),
            slowest: Cell::default(),
            numbers: Cell::new(0),
            orders: Orders::default(),
            said: Cell::new(Instant::now()),
            lost,
        })
    }

    /// Waits until all have loaded their part.
    ///
    /// # Errors
    /// A rank that has another `model` than the first.
    pub fn check_model(&self, dispatch: &LlmBackendDispatch, model: u64) -> Result<()> {
        let (index, of) = (self.ranks.rank.index(), self.ranks.rank.of());
        // Each says what it has.
        let mut own = vec![0; 2 * of];
        own[2 * index..][..2].copy_from_slice(&[model as u32, (model >> 32) as u32]);
        self.alarm.set(
            FIRST,
            format!("another rank has not loaded its part of the model in {} s", FIRST.as_secs()),
        );
        let all = self.heard(dispatch.sum_words(&own))?;
        self.said.set(Instant::now());
        match (0..of).find(|&other| all[2 * other..][..2] != all[..2]) {
            None => Ok(()),
            Some(other) => {
                let reason =
                    format!("rank {other} was started with another model, or another version, than rank 0");
                Err(Error::Backend { backend: "mlx", reason })
            }
        }
    }

    /// The others, in words.
    fn others(&self) -> String {
        match (self.ranks.rank.leads(), self.ranks.rank.of()) {
            (true, 2) => "rank 1".to_owned(),
            (true, of) => format!("one of the ranks 1 to {}", of - 1),
            (false, _) => "rank 0, or what is between,".to_owned(),
        }
    }

    /// Somebody is waited for from here on.
    fn wait(&self) {
        let patience = match self.running.get() {
            Some(_) if self.fresh.get() => FIRST,
            Some((rows, _)) => {
                self.ranks.patience.saturating_add(self.slowest.get().expected(rows).saturating_mul(SLOWER))
            }
            None => self.ranks.patience,
        };
        let (others, seconds) = (self.others(), patience.as_secs_f32());
        let what = format!("{others} has not answered for {seconds:.0} s (--rank-timeout)");
        self.alarm.set(patience, what);
    }

    /// What a step gives, or why nothing can be computed any more: the ranks no longer wait for the same.
    pub fn heard<T>(&self, result: Result<T>) -> Result<T> {
        self.alarm.clear();
        let error = match result {
            Ok(result) => {
                if let Some((rows, since)) = self.running.take() {
                    let mut slowest = self.slowest.get();
                    // The first reads the weights.
                    if !self.fresh.replace(false) {
                        slowest.see(rows, since.elapsed());
                        self.slowest.set(slowest);
                    }
                }
                return Ok(result);
            }
            Err(error) => error,
        };
        self.lost.check()?;
        // What MLX's ring says, and what is said wrong, is another's; anything else is this one's own.
        let why = match error.to_string() {
            text if text.contains("[ring]") => format!("{} is lost: {text}", self.others()),
            text => format!("rank {} failed: {text}", self.ranks.rank.index()),
        };
        self.lost.end(&why);
        (self.ranks.lost)(&why);
        Err(Error::Engine(why))
    }

    /// Until it is dropped, a panic is the end: the others are in the middle of a step.
    pub(super) fn guard(&self) -> Guard<'_> {
        Guard(self)
    }

    /// Who waits for what is computed.
    pub(super) fn lost(&self) -> Arc<Lost> {
        Arc::clone(&self.lost)
    }

    /// Says something, as the first rank.
    fn say(&self, dispatch: &LlmBackendDispatch, message: Message) -> Result<()> {
        self.lost.check()?;
        let mut words = vec![0];
        self.orders.take().iter().for_each(|order| order.write(&mut words));
        words[0] = words.len() as u32 - 1;
        let (kind, body) = message.words();
        words.extend(body);
        let number = self.messages.get().wrapping_add(1);
        self.messages.set(number);
        let mut head = vec![MARK ^ number, kind, words.len() as u32];
        let (first, rest) = words.split_at(words.len().min(HEAD - FRONT));
        head.extend(first);
        head.resize(HEAD, 0);
        self.wait();
        let said = dispatch.sum_words(&head).and_then(|_| match rest {
            [] => Ok(()),
            rest => dispatch.sum_words(rest).map(drop),
        });
        self.said.set(Instant::now());
        self.heard(said)
    }

    /// What the first rank says, and what is to be done before.
    pub(super) fn listen(&self, dispatch: &LlmBackendDispatch) -> Result<(Vec<Order>, Message)> {
        let number = self.messages.get().wrapping_add(1);
        self.messages.set(number);
        self.wait();
        let message = dispatch.sum_words(&[0; HEAD]).and_then(|head| {
            let (mark, kind, len) = (head[0], head[1], head[2] as usize);
            let mut words = head[FRONT..FRONT + len.min(HEAD - FRONT)].to_vec();
            let lost = || Error::Engine("what rank 0 says is no message".to_owned());
            if mark != MARK ^ number || len > MOST {
                return Err(lost());
            }
            if len > words.len() {
                words.extend(dispatch.sum_words(&vec![0; len - words.len()])?);
            }
            parted(kind, &words).ok_or_else(lost)
        });
        self.heard(message)
    }

    /// A step of so many rows begins.
    pub fn begin(&self, rows: usize) {
        self.running.set(Some((rows, Instant::now())));
        self.wait();
    }

    /// Says a step, as the first rank: the others compute the same.
    pub fn say_step(
        &self,
        dispatch: &LlmBackendDispatch,
        batch: &Batch,
        sequences: &mut [impl BorrowMut<SequenceState>],
    ) -> Result<()> {
        let Tokens::Known(tokens) = &batch.tokens else {
            return Err(Error::Engine("a step of several ranks has tokens that are not known".to_owned()));
        };
        let sizes = [batch.runs.len(), batch.outputs.len(), tokens.len()];
        let mut words: Vec<u32> = sizes.map(|size| size as u32).to_vec();
        for run in &batch.runs {
            let state = sequences[run.sequence].borrow_mut();
            let told = state.told.get_or_insert_with(|| Told::sequence(self.number(), &self.orders));
            let second = u32::try_from(state.second).unwrap_or(u32::MAX);
            words.extend([told.number(), state.prompt as u32, second, run.start as u32, run.len as u32]);
        }
        words.extend(batch.outputs.iter().map(|&row| row as u32));
        words.extend(tokens);
        self.say(dispatch, Message::Step(words))?;
        self.begin(batch.rows());
        Ok(())
    }

    /// The next number.
    fn number(&self) -> u32 {
        self.numbers.set(self.numbers.get().wrapping_add(1));
        self.numbers.get()
    }

    /// Has the others keep the same pages of a sequence, from page `first` on, as the first rank; none where they know nothing of it.
    pub fn say_kept(
        &self,
        state: &SequenceState,
        first: usize,
        pages: Vec<PageAndPane>,
    ) -> Option<Vec<PageAndPane>> {
        if !self.ranks.rank.leads() {
            return Some(pages);
        }
        let sequence = state.told.as_ref()?.number();
        let told =
            |(page, pane): PageAndPane| (page.with_told(Told::page(self.number(), &self.orders)), pane);
        let pages: Vec<PageAndPane> = pages.into_iter().map(told).collect();
        self.orders.add(Order::Keep {
            sequence,
            len: state.kv.len() as u32,
            first: first as u32,
            pages: pages.iter().filter_map(|(page, _)| page.told()).collect(),
        });
        Some(pages)
    }

    /// Has the others begin a sequence with the same pages, as the first rank.
    ///
    /// # Errors
    /// Pages that they do not have.
    pub fn say_begun(&self, mut state: SequenceState, pages: &[PageAndPane]) -> Result<SequenceState> {
        if self.ranks.rank.leads() {
            let pages: Option<Vec<u32>> = pages.iter().map(|(page, _)| page.told()).collect();
            let unknown = || Error::Engine("the other ranks have no such pages".to_owned());
            let (pages, sequence) = (pages.ok_or_else(unknown)?, self.number());
            let [prompt, len] = [state.prompt, state.kv.len()].map(|size| size as u32);
            self.orders.add(Order::Begin { sequence, prompt, len, pages });
            state.told = Some(Told::sequence(sequence, &self.orders));
        }
        Ok(state)
    }

    /// Says that there is nothing to do, where nothing was said for a while: the others wait, asleep where it is `quiet`.
    pub fn keep(&self, dispatch: &LlmBackendDispatch, quiet: bool) {
        if self.ranks.rank.leads() && self.said.get().elapsed() >= SILENCE {
            let time = if quiet { SLEEP.as_millis() as u32 } else { 0 };
            // Whoever waits is told of an error.
            let _ = self.say(dispatch, Message::Wait(time));
        }
    }

    /// Says that it ends.
    pub fn dismiss(&self, dispatch: &LlmBackendDispatch) {
        if self.ranks.rank.leads() {
            let _ = self.say(dispatch, Message::End);
        }
    }
}

/// See [`Company::guard`].
pub(super) struct Guard<'a>(&'a Company);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.heard::<()>(Err(Error::Engine("a step panicked".to_owned())));
        }
    }
}

/// A step as the first rank said it.
pub(super) struct Step {
    /// Number, length of the prompt, and where a second text begins, of each run's sequence.
    pub sequences: Vec<[u32; 3]>,
    pub batch: Batch,
}

impl Step {
    /// None where the words are none of a step.
    pub fn read(words: &[u32]) -> Option<Self> {
        let (&[runs, outputs, tokens], rest) = words.split_first_chunk::<3>()?;
        let (runs, rest) = rest.split_at_checked(5 * runs as usize)?;
        let (outputs, rest) = rest.split_at_checked(outputs as usize)?;
        let (tokens, []) = rest.split_at_checked(tokens as usize)? else { return None };
        let mut batch =
            Batch { tokens: Tokens::Known(tokens.to_vec()), runs: Vec::new(), outputs: Vec::new() };
        batch.outputs.extend(outputs.iter().map(|&row| row as usize));
        let (mut sequences, mut row) = (Vec::new(), 0);
        let mut known = BTreeSet::new();
        for (sequence, run) in runs.chunks_exact(5).enumerate() {
            if !known.insert(run[0]) {
                return None;
            }
            let (start, len) = (run[3] as usize, run[4] as usize);
            batch.runs.push(Run { sequence, row, len, start });
            sequences.push([run[0], run[1], run[2]]);
            row += len;
        }
        (row == tokens.len()).then_some(Self { sequences, batch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_as_they_are_said_and_nothing_else_is_one() {
        let words = [2, 2, 5, /* runs */ 3, 40, 9, 4, 3, 8, 50, u32::MAX, 0, 2]
            .into_iter()
            .chain([2, 4, /* tokens */ 10, 11, 12, 20, 21]);
        let words: Vec<u32> = words.collect();
        let step = Step::read(&words).unwrap();
        assert_eq!(step.sequences, [[3, 40, 9], [8, 50, u32::MAX]]);
        let run = |sequence, row, len, start| Run { sequence, row, len, start };
        assert_eq!(step.batch.runs, [run(0, 0, 3, 4), run(1, 3, 2, 0)]);
        assert_eq!(step.batch.outputs, [2, 4]);
        assert!(matches!(step.batch.tokens, Tokens::Known(ids) if ids == [10, 11, 12, 20, 21]));
        for len in 0..words.len() {
            assert!(Step::read(&words[..len]).is_none(), "{len} words");
        }
        for (at, word) in [(0, u32::MAX), (1, 1), (2, 6), (7, 2), (8, 3)] {
            let mut wrong = words.clone();
            wrong[at] = word;
            assert!(Step::read(&wrong).is_none(), "word {at} is {word}");
        }
        for message in [Message::Wait(45), Message::End, Message::Step(words)] {
            let said = format!("{message:?}");
            let (kind, body) = message.words();
            let orders = [Order::Forget(3), Order::ForgetPage(4)];
            let mut words = vec![0];
            orders.iter().for_each(|order| order.write(&mut words));
            words[0] = words.len() as u32 - 1;
            words.extend(body);
            let (read, message) = parted(kind, &words).unwrap();
            assert_eq!((&read[..], format!("{message:?}")), (&orders[..], said));
            words[0] -= 1;
            assert!(parted(kind, &words).is_none());
        }
        assert_eq!(
            [Message::of(1, vec![1]), Message::of(0, vec![]), Message::of(9, vec![])],
            [None, None, None]
        );
    }
}
