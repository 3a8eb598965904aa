//! What the engine is asked, and where its answers go.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::lost::{Taker, Waiting};
use crate::error::{Error, Result};
use crate::forward::{Adapter, Pooling};
use crate::sample::{Constraint, Logprobs, SamplingOptions};

/// Tokens, and what is wanted of them.
#[derive(Debug)]
pub(crate) struct Request {
    /// Token ids, at least one.
    pub tokens: Vec<u32>,
    /// What is wanted of them.
    pub kind: RequestKind,
    /// Whose kept beginnings it may go on from; see [`Space`].
    pub space: Space,
    /// The adapter that it is computed with, until it ends.
    pub adapter: Option<Arc<Adapter>>,
    /// Set by the one who asked, to end it early.
    pub cancel: Arc<AtomicBool>,
    /// Tokens whose keys and values are cached, for whoever waits for a long prompt.
    pub cached: Arc<AtomicUsize>,
}

/// Whose beginnings are kept together: sequences go on from those of an equal one alone, so that nobody learns from the time that
/// a prompt takes, or from its `cached_tokens`, how the prompts of others begin. Its first line is its owner's name.
pub(crate) type Space = Option<Arc<str>>;

/// Whose space this is; nobody's is empty.
pub(super) fn owner(space: &Space) -> &str {
    space.as_deref().and_then(|space| space.lines().next()).unwrap_or_default()
}

/// What is wanted of some tokens.
#[derive(Debug)]
pub(crate) enum RequestKind {
    /// The tokens that follow them.
    Generate(Box<GenerateRequest>),
    /// One vector of all of them.
    Embed(EmbedRequest),
    /// The logits of some of them.
    Score(ScoreRequest),
}

/// How tokens are to be generated.
#[derive(Debug)]
pub(crate) struct GenerateRequest {
    /// How the next token is chosen.
    pub sampling: SamplingOptions,
    /// What the text is to be, where that is said.
    pub constraint: Option<Constraint>,
    /// Tokens to generate before one of `eos` may come.
    pub min_tokens: usize,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Ids that end the sequence.
    pub eos: Vec<u32>,
    /// Ids that end messages in a prompt, whether or not they end the sequence.
    pub marks: Vec<u32>,
    /// Ids that never come.
    pub suppressed: Arc<[u32]>,
    /// Where the results go.
    pub events: Sink,
}

/// Which vector is wanted.
#[derive(Debug)]
pub(crate) struct EmbedRequest {
    /// What is made of the last hidden states.
    pub pooling: Arc<Pooling>,
    /// Where the tokens of a second text begin, of a pair; past all of them without one.
    pub second: usize,
    /// Takes the vector.
    pub answer: Answer<Vec<f32>>,
}

/// Which logits are wanted.
#[derive(Debug)]
pub(crate) struct ScoreRequest {
    /// Positions of the tokens after which the model is asked, at least one. None behind them is computed.
    pub rows: Range<usize>,
    /// Takes them in their order.
    pub sink: RowSink,
}

impl EmbedRequest {
    /// The mean of one text's hidden states, scaled to length 1.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn mean(answer: Answer<Vec<f32>>) -> Self {
        Self { pooling: Arc::new(Pooling::mean(0)), second: usize::MAX, answer }
    }
}

impl Request {
    /// Whose it is: of the engine's time, each owner has as much as another.
    pub fn owner(&self) -> &str {
        owner(&self.space)
    }

    /// What its beginnings are kept by: what an adapter computes is nothing for others, and no owner's name is an adapter's.
    pub fn beginnings(&self) -> Space {
        let owner = self.space.as_deref();
        match (&self.adapter, owner) {
            (Some(adapter), None) => Some(format!("\0adapter {}", adapter.key).into()),
            (Some(adapter), Some(owner)) => Some(format!("\0adapter {} of {owner}", adapter.key).into()),
            (None, Some(owner)) if owner.starts_with('\0') => Some(format!("\0{owner}").into()),
            (None, _) => self.space.clone(),
        }
    }

    /// Tokens that it may hold in the end, in a context of `context`.
    pub fn most_tokens(&self, context: usize) -> usize {
        match &self.kind {
            RequestKind::Generate(it) => self.tokens.len().saturating_add(it.max_tokens).min(context),
            RequestKind::Embed(_) => self.tokens.len(),
            RequestKind::Score(it) => it.rows.end,
        }
    }

    /// How many of its first tokens need not be computed where their keys and values are kept: those whose hidden states
    /// nobody asks for. Of a vector it is all of them that are computed.
    pub fn skippable(&self) -> usize {
        match &self.kind {
            RequestKind::Generate(_) => self.tokens.len().saturating_sub(1),
            RequestKind::Embed(_) => 0,
            RequestKind::Score(it) => it.rows.start,
        }
    }

    /// Who waits for it.
    pub(super) fn waiting(&self) -> Arc<dyn Waiting> {
        match &self.kind {
            RequestKind::Generate(it) => Arc::clone(&it.events.0) as Arc<dyn Waiting>,
            RequestKind::Embed(it) => Arc::clone(&it.answer.0) as Arc<dyn Waiting>,
            RequestKind::Score(it) => Arc::clone(&it.sink.0) as Arc<dyn Waiting>,
        }
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Ends it with an error before it has begun.
    pub fn fail(self, error: Error) {
        match self.kind {
            RequestKind::Generate(mut it) => {
                it.events.send(Event::Failed(error));
            }
            RequestKind::Embed(it) => it.answer.give(Err(error)),
            RequestKind::Score(mut it) => {
                it.sink.send(Err(error));
            }
        }
    }

    /// Ends it, since it was cancelled before it had begun. What is left of it takes time to be freed.
    pub fn turn_away(self) -> Option<Constraint> {
        let RequestKind::Generate(mut it) = self.kind else { return None };
        let conforms = it.constraint.as_ref().map(|_| false);
        let (reason, stats) = (FinishReason::Cancelled, Stats::default());
        it.events.send(Event::Finished { reason, stats, conforms });
        it.constraint
    }
}

/// Cancels a request when it is dropped, and does nothing where that has ended.
#[derive(Debug, Default)]
pub(crate) struct CancelOnDrop(pub Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Takes the events of one sequence on the engine's thread, which it must not block. It lives as long as the engine holds
/// the sequence.
pub(crate) struct Sink(Arc<Taker<Box<TakeEvent>>>);

type TakeEvent = dyn FnMut(Event) -> bool + Send;

impl Sink {
    /// A sink that hands each event to `take`, which says whether anybody still listens.
    pub fn new(take: impl FnMut(Event) -> bool + Send + 'static) -> Self {
        Self(Arc::new(Taker(Mutex::new(Some(Box::new(take))))))
    }

    pub(super) fn send(&mut self, event: Event) -> bool {
        self.0.0.lock().as_mut().is_some_and(|take| take(event))
    }
}

impl Waiting for Taker<Box<TakeEvent>> {
    fn fail(&self, error: Error) {
        if let Some(mut take) = self.0.lock().take() {
            take(Event::Failed(error));
        }
    }
}

/// Takes the one answer of a request on the engine's thread, which it must not block. A cancelled request drops it.
pub(crate) struct Answer<T>(Arc<Taker<TakeAnswer<T>>>);

type TakeAnswer<T> = Box<dyn FnOnce(Result<T>) + Send>;

impl<T> Answer<T> {
    /// Hands the answer to `take`.
    pub fn new(take: impl FnOnce(Result<T>) + Send + 'static) -> Self {
        Self(Arc::new(Taker(Mutex::new(Some(Box::new(take))))))
    }

    pub(super) fn give(self, answer: Result<T>) {
        let take = self.0.0.lock().take();
        if let Some(take) = take {
            take(answer);
        }
    }
}

impl<T> Waiting for Taker<TakeAnswer<T>> {
    fn fail(&self, error: Error) {
        if let Some(take) = self.0.lock().take() {
            take(Err(error));
        }
    }
}

/// Takes rows of logits `[V]` on the engine's thread, which it must not block, one after the other; an error is the last. It
/// is dropped behind the last row.
pub(crate) struct RowSink(Arc<Taker<Box<TakeRow>>>);

type TakeRow = dyn FnMut(Result<&[f32]>) -> bool + Send;

impl RowSink {
    /// A sink that hands each row to `take`, which says whether anybody still listens.
    pub fn new(take: impl FnMut(Result<&[f32]>) -> bool + Send + 'static) -> Self {
        Self(Arc::new(Taker(Mutex::new(Some(Box::new(take))))))
    }

    pub(super) fn send(&mut self, row: Result<&[f32]>) -> bool {
        self.0.0.lock().as_mut().is_some_and(|take| take(row))
    }
}

impl Waiting for Taker<Box<TakeRow>> {
    fn fail(&self, error: Error) {
        if let Some(mut take) = self.0.lock().take() {
            take(Err(error));
        }
    }
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

impl<T> std::fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answer")
    }
}

impl std::fmt::Debug for RowSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RowSink")
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, its constraint left nothing to follow, or a stop string was met.
    Stop,
    /// `max_tokens`, or the context, is used up.
    Length,
    /// The one who asked cancelled it.
    Cancelled,
}

impl FinishReason {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a sequence took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens whose keys and values were still cached.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Tokens that were guessed and then computed beside others.
    pub drafted_tokens: usize,
    /// Of these, tokens that were chosen: each a token without a step of its own.
    pub accepted_tokens: usize,
    /// From the start of the first step to the first token.
    pub prompt_time: Duration,
    /// From the first token to the last.
    pub generation_time: Duration,
}

impl Stats {
    /// Tokens of the prompt computed per second.
    pub fn prompt_rate(&self) -> f64 {
        rate(self.prompt_tokens - self.cached_tokens, self.prompt_time)
    }

    /// Tokens generated per second, the first one (which the prompt's time holds) not counted.
    pub fn generation_rate(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.generation_time)
    }
}

fn rate(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// What the engine reports of a sequence that generates.
#[derive(Debug)]
pub(crate) enum Event {
    /// A token was chosen.
    Token {
        /// Its id.
        token: u32,
        /// How likely the model found it, where that was asked for.
        logprobs: Option<Logprobs>,
    },
    /// The sequence ended.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What it took.
        stats: Stats,
        /// Whether the text is what its constraint asks for; none without one.
        conforms: Option<bool>,
    },
    /// The sequence ended with an error.
    Failed(Error),
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{TryRecvError, channel};

    use super::super::lost::Lost;
    use super::*;

    #[test]
    fn who_waits_is_told_once_that_nothing_comes_and_who_comes_later_at_once() {
        let lost = Lost::default();
        let ((events, heard), (vectors, vector)) = (channel(), channel());
        let mut sink = Sink::new(move |event| events.send(matches!(event, Event::Failed(_))).is_ok());
        let answer: Answer<Vec<f32>> = Answer::new(move |answer| _ = vectors.send(answer.is_err()));
        let waiting: [Arc<dyn Waiting>; 2] = [Arc::clone(&sink.0) as _, Arc::clone(&answer.0) as _];
        waiting.iter().for_each(|who| lost.tell(who).unwrap());
        let gone: Arc<dyn Waiting> = RowSink::new(|_| panic!("nobody waits for it")).0;
        lost.tell(&gone).unwrap();
        drop((waiting, gone));
        assert_eq!((lost.check().is_ok(), heard.try_recv()), (true, Err(TryRecvError::Empty)));
        lost.end("rank 1 is lost");
        lost.end("again");
        assert_eq!((heard.try_recv(), vector.try_recv()), (Ok(true), Ok(true)));
        // What the engine still says is heard by nobody.
        assert!(!sink.send(Event::Failed(Error::Engine(String::new()))));
        answer.give(Ok(Vec::new()));
        assert_eq!(heard.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(vector.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(lost.check().unwrap_err().to_string(), "engine: rank 1 is lost");
        let late: Arc<dyn Waiting> = Sink::new(|_| true).0;
        assert!(lost.tell(&late).is_err());
    }
}
