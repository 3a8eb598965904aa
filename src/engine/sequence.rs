//! One sequence in flight: its tokens so far, and what becomes of what the model computes of them.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use super::guide::{Guide, MaskPool};
use super::request::{
    Answer, EmbedRequest, Event, FinishReason, GenerateRequest, Request, RequestKind, ScoreRequest, Stats,
};
use crate::alloc;
use crate::error::{Error, Result, panic_text};
use crate::forward::Pooling;
use crate::sample::{DrawPlace, Sampled, Sampler};
use crate::tensor::MatrixView;

/// One sequence in flight.
pub(super) struct Sequence {
    /// Those that were given, and what was generated.
    pub tokens: Vec<u32>,
    /// How many were given.
    pub prompt: usize,
    pub kind: SequenceKind,
    cancel: Arc<AtomicBool>,
    /// See [`Request::cached`].
    progress: Arc<AtomicUsize>,
}

/// What is wanted of a sequence.
pub(super) enum SequenceKind {
    Generate(Box<Generating>),
    Embed(Embedding),
    /// Its rows begin with the next one to be given out.
    Score(ScoreRequest),
}

impl Sequence {
    /// Puts a request into flight, `cached` of whose tokens need not be computed. None where it cannot be followed, which it is
    /// told.
    pub fn start(request: Request, cached: usize, vocab: usize, masks: &mut MaskPool) -> Option<Self> {
        let Request { tokens, kind, space: _, adapter: _, cancel, cached: progress } = request;
        let prompt = tokens.len();
        let kind = match kind {
            RequestKind::Generate(it) => {
                let stats = Stats { prompt_tokens: prompt, cached_tokens: cached, ..Stats::default() };
                SequenceKind::Generate(Box::new(Generating::start(*it, stats, vocab, masks)?))
            }
            RequestKind::Embed(it) => SequenceKind::Embed(Embedding::new(it)),
            RequestKind::Score(it) => SequenceKind::Score(it),
        };
        let sequence = Self { tokens, prompt, kind, cancel, progress };
        sequence.show(cached);
        Some(sequence)
    }

    /// Shows that `cached` tokens are.
    pub fn show(&self, cached: usize) {
        self.progress.store(cached, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Tokens that are to be cached for what is wanted next.
    pub fn goal(&self) -> usize {
        match &self.kind {
            SequenceKind::Generate(_) | SequenceKind::Embed(_) => self.tokens.len(),
            SequenceKind::Score(it) => it.rows.end,
        }
    }

    /// Positions in `run` whose logits are wanted: several of a sequence that is scored, the last token's of one that
    /// generates.
    pub fn outputs(&self, run: Range<usize>) -> Range<usize> {
        let wanted = match &self.kind {
            SequenceKind::Generate(_) => self.tokens.len() - 1..self.tokens.len(),
            SequenceKind::Embed(_) => run.end..run.end,
            SequenceKind::Score(it) => it.rows.clone(),
        };
        let end = wanted.end.min(run.end);
        wanted.start.clamp(run.start, run.end).min(end)..end
    }

    /// Where the tokens of its second text begin; past all of them without one.
    pub fn second(&self) -> usize {
        match &self.kind {
            SequenceKind::Embed(it) => it.second,
            SequenceKind::Generate(_) | SequenceKind::Score(_) => usize::MAX,
        }
    }

    /// Whether the hidden states of its rows are wanted.
    pub fn wants_hidden(&self) -> bool {
        matches!(self.kind, SequenceKind::Embed(_))
    }

    /// How many of its tokens a step may take from position `start` on before it makes logits of rows that are scored.
    pub fn unscored(&self, start: usize) -> usize {
        match &self.kind {
            SequenceKind::Score(it) => it.rows.start.saturating_sub(start),
            SequenceKind::Generate(_) | SequenceKind::Embed(_) => usize::MAX,
        }
    }

    /// How many of its first tokens need not be computed anew where their keys and values are kept; see
    /// [`Request::skippable`].
    pub fn skippable(&self) -> usize {
        match &self.kind {
            SequenceKind::Generate(_) => self.tokens.len() - 1,
            SequenceKind::Embed(_) => 0,
            SequenceKind::Score(it) => it.rows.start,
        }
    }

    /// Places in its prompt, ascending, behind which others are likely to go on another way: those of a model with recurrent layers
    /// begin where a copy of these was kept. Behind its last two messages, before its last token, and every so often.
    pub fn stops(&self) -> Vec<usize> {
        const EVERY: usize = 2048;
        let last = self.skippable();
        let mut stops: Vec<usize> =
            (EVERY..last).step_by(EVERY).chain([last]).filter(|&stop| stop > 0).collect();
        if let SequenceKind::Generate(it) = &self.kind {
            let ends = (0..last).rev().filter(|&at| it.request.marks.contains(&self.tokens[at]));
            stops.extend(ends.map(|at| at + 1).take(2));
        }
        stops.sort_unstable();
        stops.dedup();
        stops
    }

    /// Whether others may begin with what it computed. What is embedded would only push out what conversations go on from.
    pub fn is_kept(&self) -> bool {
        !matches!(self.kind, SequenceKind::Embed(_))
    }

    /// Tells the one who asked that an error ended it.
    pub fn fail(&mut self, error: Error) {
        match &mut self.kind {
            SequenceKind::Generate(it) => {
                it.request.events.send(Event::Failed(error));
            }
            SequenceKind::Embed(it) => {
                if let Some(answer) = it.answer.take() {
                    answer.give(Err(error));
                }
            }
            SequenceKind::Score(it) => {
                it.sink.send(Err(error));
            }
        }
    }

    /// Tells the one who asked that it was cancelled. A token that is chosen, and not taken, is none of its text.
    pub fn finish_cancelled(&mut self) {
        if let SequenceKind::Generate(it) = &mut self.kind {
            it.finish(FinishReason::Cancelled);
        }
    }

    /// Chooses the next token of a sequence that generates from its logits `[V]`. It may be what was `guessed`. Of one that is
    /// [`Choice::Held`] it is chosen: the next call takes it, whatever the logits, once [`Generating::wait`] has waited.
    ///
    /// # Errors
    /// Logits of which no token can be chosen, and a constraint that cannot be followed.
    pub fn choose(&mut self, logits: &[f32], context: usize, guessed: Option<u32>) -> Result<Choice> {
        let SequenceKind::Generate(generating) = &mut self.kind else { return Ok(Choice::GoesOn) };
        alloc::reserve_more(&mut self.tokens, 1, "the tokens of a sequence")?;
        let sampled = match generating.chosen.take() {
            Some(sampled) => sampled,
            None => {
                let sampled = generating.sample(&self.tokens, self.prompt, logits)?;
                if !generating.follow(sampled.token)? {
                    generating.chosen = Some(sampled);
                    return Ok(Choice::Held);
                }
                generating.stats.accepted_tokens += usize::from(guessed == Some(sampled.token));
                sampled
            }
        };
        let (ended, heard) = generating.accept(&mut self.tokens, sampled, context)?;
        if !heard {
            // Whoever asked has gone; the sequence then ends as cancelled.
            self.cancel.store(true, Ordering::Relaxed);
        }
        let Some(reason) = ended else { return Ok(Choice::GoesOn) };
        generating.finish(reason);
        Ok(Choice::Last)
    }
}

/// What a chosen token is to its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// Others follow.
    GoesOn,
    /// The last one.
    Last,
    /// Its constraint has not followed it yet.
    Held,
}

impl ScoreRequest {
    /// Gives out the next rows, `logits` `[n, V]`. Whether somebody listens.
    pub fn give(&mut self, logits: MatrixView<'_>) -> bool {
        logits.iter().all(|row| {
            self.rows.start += 1;
            self.sink.send(Ok(row))
        })
    }
}

/// A sequence that generates: how its next token is chosen.
pub(super) struct Generating {
    request: GenerateRequest,
    sampler: Sampler,
    guide: Option<Guide>,
    /// The token that its constraint follows.
    chosen: Option<Sampled>,
    /// Whether the text so far is what the constraint asks for; none without one.
    conforms: Option<bool>,
    /// Whether the next token is the largest logit, whatever came before.
    greedy: bool,
    stats: Stats,
    started: Instant,
    first_token: Option<Instant>,
}

impl Generating {
    /// None where the request cannot be followed, which it is told.
    fn start(mut request: GenerateRequest, stats: Stats, vocab: usize, masks: &mut MaskPool) -> Option<Self> {
        let constraint = request.constraint.take();
        let conforms = constraint.as_ref().map(|_| false);
        let make = || {
            let sampler = Sampler::new(request.sampling.clone(), vocab)?;
            Ok((sampler, constraint.map(|it| Guide::new(masks, it)).transpose()?))
        };
        let made = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|panic| {
            Err(Error::Engine(format!("a request panicked: {}", panic_text(&*panic))))
        });
        let (sampler, guide) = match made {
            Ok(made) => made,
            Err(error) => {
                request.events.send(Event::Failed(error));
                return None;
            }
        };
        // Of a constrained sequence the greedy choice is not known before its mask is.
        let greedy = request.sampling.is_plainly_greedy() && guide.is_none() && request.min_tokens == 0;
        let started = Instant::now();
        let chosen = None;
        Some(Self { request, sampler, guide, chosen, conforms, greedy, stats, started, first_token: None })
    }

    /// Whether the backend may choose the next token by itself, and the sequence goes on behind that one.
    pub fn may_run_ahead(&self) -> bool {
        self.greedy && self.stats.generated_tokens + 1 < self.request.max_tokens
    }

    /// Tokens that may be guessed behind `len`: the last one of a text is nobody's guess.
    pub fn room(&self, len: usize, context: usize) -> usize {
        let left = self.request.max_tokens.saturating_sub(self.stats.generated_tokens);
        left.min(context.saturating_sub(len)).saturating_sub(1)
    }

    /// Notes that a step computed so many guesses.
    pub fn drafted(&mut self, guesses: usize) {
        self.stats.drafted_tokens += guesses;
    }

    /// Waits until `deadline` for what has to be known before a token is chosen; whether it is.
    pub fn wait(&mut self, deadline: Instant) -> bool {
        self.guide.as_mut().is_none_or(|guide| guide.wait(deadline))
    }

    fn sample(&mut self, tokens: &[u32], prompt: usize, logits: &[f32]) -> Result<Sampled> {
        let early = self.stats.generated_tokens < self.request.min_tokens;
        let place = DrawPlace {
            tokens,
            prompt,
            mask: self.guide.as_ref().map(Guide::mask).transpose()?,
            banned: if early { &self.request.eos } else { &[] },
            suppressed: &self.request.suppressed,
        };
        self.sampler.sample(logits, place)
    }

    /// Has the constraint follow a token, where there is one; whether that is done.
    fn follow(&mut self, token: u32) -> Result<bool> {
        match &mut self.guide {
            // What ends the text is not part of it.
            Some(guide) if !self.request.eos.contains(&token) => guide.follow(token),
            _ => Ok(true),
        }
    }

    /// Takes the chosen token: why the sequence ends with it, if it does, and whether somebody listens.
    fn accept(
        &mut self,
        tokens: &mut Vec<u32>,
        sampled: Sampled,
        context: usize,
    ) -> Result<(Option<FinishReason>, bool)> {
        let Sampled { token, logprobs } = sampled;
        let now = Instant::now();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.stats.prompt_time = now - self.started;
        }
        let ends = self.request.eos.contains(&token);
        let mut complete = false;
        if let Some(guide) = &mut self.guide {
            if !ends {
                let progress = guide.progress()?;
                (complete, self.conforms) = (progress.complete, Some(progress.accepting));
            } else if self.stats.generated_tokens == 0 {
                // Behind other tokens it is known.
                self.conforms = Some(guide.may_end());
            }
        }
        self.stats.generated_tokens += 1;
        tokens.push(token);
        let heard = self.request.events.send(Event::Token { token, logprobs });
        let full = self.stats.generated_tokens >= self.request.max_tokens || tokens.len() >= context;
        let reason = match () {
            () if ends || complete => Some(FinishReason::Stop),
            () if full => Some(FinishReason::Length),
            () => None,
        };
        Ok((reason, heard))
    }

    fn finish(&mut self, reason: FinishReason) {
        if let Some(first) = self.first_token {
            self.stats.generation_time = first.elapsed();
        }
        let (stats, conforms) = (self.stats, self.conforms);
        self.request.events.send(Event::Finished { reason, stats, conforms });
    }
}

/// The vector of hidden states in the making.
pub(super) struct Embedding {
    pooling: Arc<Pooling>,
    second: usize,
    /// Until it is given.
    answer: Option<Answer<Vec<f32>>>,
    /// Of those of the first `pooled` rows that are taken, `[D]`; empty before the first.
    sum: Vec<f64>,
    pooled: usize,
}

impl Embedding {
    fn new(request: EmbedRequest) -> Self {
        let EmbedRequest { pooling, second, answer } = request;
        Self { pooling, second, answer: Some(answer), sum: Vec::new(), pooled: 0 }
    }

    /// Adds the hidden states `[n, D]` of a run that begins at position `start` of `tokens`. Those that are in the sum already,
    /// which a sequence that is computed anew brings again, are not added twice.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn add(&mut self, start: usize, hidden: MatrixView<'_>, tokens: usize) -> Result<()> {
        for (position, values) in (start..).zip(hidden.iter()).skip(self.pooled.saturating_sub(start)) {
            if self.pooling.takes(position, tokens) {
                alloc::resize(&mut self.sum, values.len(), "a vector of a text")?;
                self.sum.iter_mut().zip(values).for_each(|(sum, &x)| *sum += f64::from(x));
            }
            self.pooled = position + 1;
        }
        Ok(())
    }

    /// Gives the vector, if all `tokens` are pooled; whether they are.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Engine`] where an element is no finite number.
    pub fn finish(&mut self, tokens: usize) -> Result<bool> {
        if self.pooled < tokens {
            return Ok(false);
        }
        let vector = self.pooling.vector(&self.sum, tokens)?;
        // As of logits: what is no number is nobody's answer.
        if let Some(i) = vector.iter().position(|x| !x.is_finite()) {
            let what = format!("element {i} of the vector of a text is {}", vector[i]);
            return Err(Error::Engine(what));
        }
        if let Some(answer) = self.answer.take() {
            answer.give(Ok(vector));
        }
        Ok(true)
    }
}
