//! The sequences of one request: started together, their pieces taken as they come. Dropping it ends them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::app::random;
use super::budget::Charge;
use super::failure::Failure;
use super::metrics::whole_pages;
use super::places::QueuePlace;
use super::served::Served;
use super::until::{Until, Watch};
use crate::chat::Turn;
use crate::engine::{Event, FinishReason, Sink, Stats};
use crate::error::Error;
use crate::generate::{Assembler, Options};
use crate::sample::Logprobs;
use crate::text::{ReplyEvent, ReplyParser};

/// Why a text ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Finish {
    /// At the model's end-of-sequence token or, where there is one, at this stop string.
    Stop(Option<String>),
    /// Likewise, and it calls tools.
    Calls,
    /// `max_tokens`, or the context, is used up.
    Length,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum AnswerPart {
    /// What the model thinks before it answers.
    Reasoning(String),
    /// Text for the reader.
    Text(String),
    /// A call of a tool begins.
    Call {
        /// Which of the text's calls.
        index: usize,
        /// The call's own id.
        id: String,
        /// The tool's name.
        name: String,
    },
    /// The arguments of the call that began last go on.
    Arguments {
        /// Which call.
        index: usize,
        /// JSON, as written.
        text: String,
    },
    /// The call that began last is none. This is its text: in place of it, or behind it where it has been told of.
    Broken(String),
}

/// What one token brings, or the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Update {
    /// Which of the request's texts.
    pub choice: usize,
    /// What is now certain.
    pub parts: Vec<AnswerPart>,
    /// The token with its log-probability, where that was asked for.
    pub token: Option<Scored>,
    /// Set in a text's last update.
    pub finish: Option<Finish>,
    /// What the text took, in its last update.
    pub timings: Option<Timings>,
}

impl Update {
    /// Bytes of what a whole answer keeps of it.
    fn bytes(&self) -> usize {
        let text = |part: &AnswerPart| match part {
            AnswerPart::Reasoning(text)
            | AnswerPart::Text(text)
            | AnswerPart::Broken(text)
            | AnswerPart::Arguments { text, .. } => text.len(),
            AnswerPart::Call { id, name, .. } => id.len() + name.len(),
        };
        let scored = |scored: &Scored| size_of::<Scored>() + size_of_val(&scored.top[..]);
        self.parts.iter().map(text).sum::<usize>() + self.token.as_ref().map_or(0, scored)
    }
}

/// A token and its log-probability under the model.
#[derive(Debug, Clone)]
pub(crate) struct Scored {
    pub token: u32,
    pub logprob: f32,
    /// The most likely tokens.
    pub top: Vec<(u32, f32)>,
}

/// A whole text.
#[derive(Debug, Clone)]
pub(crate) struct Collected {
    pub reasoning: String,
    pub text: String,
    pub calls: Vec<CallPart>,
    pub tokens: Vec<Scored>,
    pub finish: Finish,
    /// What the text took.
    pub timings: Option<Timings>,
}

/// A whole call of a tool.
#[derive(Debug, Clone)]
pub(crate) struct CallPart {
    pub id: String,
    pub name: String,
    /// A JSON object, as written.
    pub arguments: String,
}

/// Tokens that a request took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Of the prompts, each counted once.
    pub prompt: usize,
    /// Of these, those whose keys and values were kept: for each prompt, what its first text found.
    pub cached: usize,
    /// Of all texts.
    pub generated: usize,
    /// What the first text took.
    pub timings: Option<Timings>,
}

/// What a text took of the engine.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Timings(Stats);

impl Timings {
    /// To the first token, and from there to the last.
    pub fn times(&self) -> (Duration, Duration) {
        (self.0.prompt_time, self.0.generation_time)
    }

    /// Tokens that were generated.
    pub fn generated(&self) -> usize {
        self.0.generated_tokens
    }

    /// In llama.cpp's form: tokens that were computed, milliseconds, tokens a second.
    pub fn json(&self) -> Value {
        // The rate, too, is of what is told: that of what was computed would tell the exact number.
        let stats = Stats { cached_tokens: whole_pages(&self.0), ..self.0 };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let each = |rate: f64| if rate > 0.0 { 1e3 / rate } else { 0.0 };
        json!({
            "cache_n": stats.cached_tokens,
            "prompt_n": stats.prompt_tokens - stats.cached_tokens,
            "prompt_ms": ms(stats.prompt_time),
            "prompt_per_token_ms": each(stats.prompt_rate()),
            "prompt_per_second": stats.prompt_rate(),
            "predicted_n": stats.generated_tokens,
            "predicted_ms": ms(stats.generation_time),
            "predicted_per_token_ms": each(stats.generation_rate()),
            "predicted_per_second": stats.generation_rate(),
            "draft_n": stats.drafted_tokens,
            "draft_n_accepted": stats.accepted_tokens,
        })
    }
}

impl Usage {
    /// The timings as a member of an answer; null where there are none yet.
    pub fn timings_json(&self) -> Value {
        self.timings.map_or(Value::Null, |timings| timings.json())
    }
}

struct Sequence {
    text: Assembler,
    /// Tells thoughts, text and calls apart; none where all is text.
    parser: Option<ReplyParser>,
    /// What else it may end by, and whether it has.
    watch: Watch,
    cut: bool,
    /// Whether a call has come to its end.
    called: bool,
    last_token: Option<Instant>,
}

/// What the engine has made of a text, until it is taken.
struct Queued {
    choice: usize,
    event: Event,
    _charge: Charge,
}

/// Bytes of an event that waits.
fn bytes(event: &Event) -> usize {
    let top = match event {
        Event::Token { logprobs: Some(logprobs), .. } => size_of_val(&logprobs.top[..]),
        _ => 0,
    };
    size_of::<Queued>() + top
}

/// The sequences of one request.
pub(crate) struct Answers {
    app: Arc<Served>,
    events: UnboundedReceiver<Queued>,
    /// See [`App::until_cut`](super::app::App::until_cut).
    cut: Pin<Box<dyn Future<Output = Failure> + Send>>,
    sequences: Vec<Sequence>,
    /// How many have not ended.
    live: usize,
    asked: Instant,
    /// Texts of each prompt.
    n: usize,
    usage: Usage,
}

/// What is generated from: prompts, and how many texts of each.
pub(crate) struct Job {
    pub prompts: Vec<Vec<u32>>,
    pub n: usize,
    pub options: Options,
    /// What tells the parts of each text apart; a text is all one where there is none.
    pub parser: Option<ReplyParser>,
    /// What else ends a text.
    pub until: Until,
}

impl Job {
    /// `n` texts behind each prompt, of which nothing is parsed.
    pub fn plain(prompts: Vec<Vec<u32>>, n: usize, options: Options) -> Self {
        Self { prompts, n, options, parser: None, until: Until::default() }
    }

    /// `n` answers to a turn of a conversation.
    pub fn of_turn(turn: &Turn, n: usize, options: Options) -> Self {
        let (prompts, parser) = (vec![turn.tokens.clone()], Some(turn.parser()));
        Self { prompts, n, options: turn.options(options), parser, until: Until::default() }
    }
}

impl Answers {
    /// Starts `job` in the places that it has, one for each text.
    ///
    /// Events wait in a channel without a bound of its own: a sequence has at most as many as the context has tokens, and
    /// the engine's thread never waits for a reader. While they take what bodies and answers may take together, no body is let in.
    pub fn start(app: &Arc<Served>, job: &Job, places: Vec<QueuePlace>) -> Result<Self, Failure> {
        let (sender, events) = unbounded_channel();
        let mut places = places.into_iter();
        let mut options = job.options.clone();
        let mut sequences = Vec::new();
        for prompt in &job.prompts {
            for i in 0..job.n {
                let (sender, place, budget) = (sender.clone(), places.next(), Arc::clone(&app.budget));
                let choice = sequences.len();
                options.sampling.sequence = i as u64;
                let sink = Sink::new(move |event| {
                    // The place is free once the engine has let go of the sequence.
                    let _held = &place;
                    let charge = budget.charge(bytes(&event));
                    sender.send(Queued { choice, event, _charge: charge }).is_ok()
                });
                let text = app.model.start(prompt.clone(), &options, sink)?;
                let parser = job.parser.clone();
                let watch = Watch::new(job.until);
                sequences.push(Sequence { text, parser, watch, cut: false, called: false, last_token: None });
            }
        }
        let prompt = job.prompts.iter().map(Vec::len).sum();
        let usage = Usage { prompt, ..Usage::default() };
        let live = sequences.len();
        let cut = Box::pin(app.until_cut());
        Ok(Self { app: Arc::clone(app), events, cut, sequences, live, asked: app.asked, n: job.n, usage })
    }

    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// What has been used so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The next update; none once every text has ended.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Update, Failure>>> {
        while self.live > 0 {
            let update = match (self.cut.as_mut().poll(cx), self.events.poll_recv(cx)) {
                (Poll::Ready(failure), _) => Some(Err(failure)),
                (_, Poll::Pending) => return Poll::Pending,
                (_, Poll::Ready(Some(Queued { choice, event, .. }))) => self.take(choice, event),
                (_, Poll::Ready(None)) => {
                    Some(Err(Error::Engine("it ended without an answer".into()).into()))
                }
            };
            match update {
                None => {}
                Some(Ok(update)) => return Poll::Ready(Some(Ok(update))),
                Some(Err(failure)) => {
                    // The other texts end with it: dropped, each tells the engine.
                    self.live = 0;
                    self.sequences.clear();
                    return Poll::Ready(Some(Err(failure)));
                }
            }
        }
        Poll::Ready(None)
    }

    fn take(&mut self, choice: usize, event: Event) -> Option<Result<Update, Failure>> {
        let sequence = self.sequences.get_mut(choice)?;
        let mut piece = match sequence.text.take(event)? {
            Ok(piece) => piece,
            Err(error) => return Some(Err(error.into())),
        };
        let mut update = Update { choice, ..Update::default() };
        let ends;
        (piece.text, ends) = sequence.watch.push(piece.text, Instant::now());
        if ends {
            sequence.cut = true;
            sequence.text.stop_here();
        }
        if piece.finish.is_some() && !sequence.cut {
            piece.text += &sequence.watch.finish();
        }
        if sequence.cut && piece.text.is_empty() {
            // The token belongs to what was cut.
            piece.logprobs = None;
        }
        let mut events = match &mut sequence.parser {
            _ if piece.text.is_empty() => Vec::new(),
            Some(parser) => parser.push(&piece.text),
            None => vec![ReplyEvent::Content(piece.text)],
        };
        if sequence.parser.as_ref().is_some_and(ReplyParser::is_done) {
            sequence.text.stop_here();
        }
        if piece.finish.is_some() {
            events.extend(sequence.parser.as_mut().map(ReplyParser::finish).unwrap_or_default());
        }
        for event in events {
            update.parts.extend(match event {
                ReplyEvent::Reasoning(text) => Some(AnswerPart::Reasoning(text)),
                ReplyEvent::Content(text) => Some(AnswerPart::Text(text)),
                ReplyEvent::CallBroken { text, .. } => Some(AnswerPart::Broken(text)),
                ReplyEvent::Call { index, name } => {
                    Some(AnswerPart::Call { index, id: self.app.id("call_"), name })
                }
                ReplyEvent::Arguments { index, text } => Some(AnswerPart::Arguments { index, text }),
                ReplyEvent::CallEnd { .. } => {
                    sequence.called = true;
                    None
                }
            });
        }
        if let Some(token) = piece.token {
            let now = Instant::now();
            self.app.metrics.token(self.asked, sequence.last_token.replace(now), now);
            self.usage.generated += 1;
            let scored = |logprobs: Logprobs| Scored { token, logprob: logprobs.token, top: logprobs.top };
            update.token = piece.logprobs.map(scored);
        }
        if let Some(reason) = piece.finish {
            let stats = sequence.text.stats().unwrap_or_default();
            self.ended(choice, &stats);
            update.timings = Some(Timings(stats));
            update.finish = match reason {
                FinishReason::Stop if self.sequences[choice].cut => Some(Finish::Length),
                FinishReason::Stop if self.sequences[choice].called => Some(Finish::Calls),
                FinishReason::Stop => {
                    Some(Finish::Stop(self.sequences[choice].text.stop().map(str::to_owned)))
                }
                FinishReason::Length => Some(Finish::Length),
                FinishReason::Cancelled => {
                    let what = "the server ended this text";
                    return Some(Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, what)));
                }
            };
        }
        Some(Ok(update))
    }

    fn ended(&mut self, choice: usize, stats: &Stats) {
        self.live -= 1;
        if choice.is_multiple_of(self.n) {
            self.usage.cached += whole_pages(stats);
        }
        if choice == 0 {
            self.usage.timings = Some(Timings(*stats));
        }
        self.app.metrics.ended(self.asked, stats);
    }

    /// Waits for all texts.
    pub async fn collect(mut self) -> Result<(Vec<Collected>, Usage), Failure> {
        let empty = Collected {
            reasoning: String::new(),
            text: String::new(),
            calls: Vec::new(),
            tokens: Vec::new(),
            finish: Finish::Length,
            timings: None,
        };
        let mut texts = vec![empty; self.len()];
        let mut charge = self.app.budget.charge(0);
        while let Some(update) = std::future::poll_fn(|cx| self.poll_next(cx)).await {
            let update = update?;
            charge.add(update.bytes());
            let text = &mut texts[update.choice];
            for part in update.parts {
                match part {
                    AnswerPart::Reasoning(piece) => text.reasoning += &piece,
                    AnswerPart::Text(piece) => text.text += &piece,
                    AnswerPart::Broken(piece) => {
                        text.calls.pop();
                        text.text += &piece;
                    }
                    AnswerPart::Call { id, name, .. } => {
                        text.calls.push(CallPart { id, name, arguments: String::new() });
                    }
                    AnswerPart::Arguments { text: piece, .. } => {
                        if let Some(call) = text.calls.last_mut() {
                            call.arguments += &piece;
                        }
                    }
                }
            }
            text.tokens.extend(update.token);
            text.timings = update.timings.or(text.timings);
            text.finish = update.finish.unwrap_or(std::mem::replace(&mut text.finish, Finish::Length));
        }
        Ok((texts, self.usage))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.live > 0 {
            self.app.metrics.cancelled.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

/// The seed of a request that names none.
pub(crate) fn any_seed() -> u64 {
    random()
}
