//! The engine's thread: takes requests, plans steps, runs them, samples, reports.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use super::guide::{Guide, MaskPool};
use super::runtime::{Launched, Runtime};
use super::scheduler::{Waiting, plan};
use super::{Command, EngineOptions, Event, FinishReason, Gauges, Request, Stats};
use crate::backend::batch::{Batch, Run, Tokens};
use crate::error::{Error, Result, panic_text};
use crate::forward::step::SequenceState;
use crate::sample::{Place, Sampled, Sampler};
use crate::tensor::HostTensor;

/// How often an idle engine looks whether it is to end.
const IDLE: Duration = Duration::from_millis(50);
/// How long a step waits for masks that are not ready when its logits are. A sequence whose mask takes longer is left out
/// of the next steps instead of holding up the others.
const MASK_GRACE: Duration = Duration::from_millis(1);

/// One sequence in flight; its caches are at the same index of the worker's states.
struct Sequence {
    request: Request,
    sampler: Sampler,
    guide: Option<Guide>,
    /// Whether the text so far is what the constraint asks for; none without one.
    conforms: Option<bool>,
    /// Logits that wait for their mask. `[V]`
    held: Option<Vec<f32>>,
    /// Whether the next token is the largest logit, whatever came before.
    greedy: bool,
    /// The prompt and what was generated.
    tokens: Vec<u32>,
    /// Tokens whose keys and values are cached.
    cached: usize,
    stats: Stats,
    started: Instant,
    first_token: Option<Instant>,
    /// Whether it was in a step that failed with others in it: it is computed anew by itself, so that only the one at fault
    /// ends.
    apart: bool,
    ended: bool,
}

impl Sequence {
    fn send(&mut self, event: Event) {
        // Whoever asked may have gone; the sequence then ends as cancelled.
        if !self.request.events.send(event) {
            self.request.cancel.store(true, Ordering::Relaxed);
        }
    }

    fn finish(&mut self, reason: FinishReason) {
        if let Some(first) = self.first_token {
            self.stats.generation_time = first.elapsed();
        }
        self.ended = true;
        self.send(Event::Finished { reason, stats: self.stats, conforms: self.conforms });
    }

    fn fail(&mut self, error: Error) {
        self.ended = true;
        self.send(Event::Failed(error));
    }

    /// Waits until `deadline` for what has to be known before a token is chosen; whether it is.
    fn wait(&mut self, deadline: Instant) -> bool {
        self.guide.as_mut().is_none_or(|guide| guide.wait(deadline))
    }

    /// Chooses the next token from its logits `[V]`; a panic ends this sequence alone.
    fn choose(&mut self, logits: &[f32], context: usize) {
        let choose = || self.sample(logits).and_then(|sampled| self.accept(sampled, context));
        let result = catch_unwind(AssertUnwindSafe(choose)).unwrap_or_else(|panic| {
            let what = panic_text(&*panic);
            tracing::error!(what, "choosing a token panicked");
            Err(Error::Engine(format!("choosing a token panicked: {what}")))
        });
        if let Err(error) = result {
            self.fail(error);
        }
    }

    fn sample(&mut self, logits: &[f32]) -> Result<Sampled> {
        let early = self.stats.generated_tokens < self.request.min_tokens;
        let place = Place {
            tokens: &self.tokens,
            prompt: self.request.prompt.len(),
            mask: self.guide.as_ref().map(Guide::mask).transpose()?,
            banned: if early { &self.request.eos } else { &[] },
        };
        self.sampler.sample(logits, place)
    }

    /// Takes the chosen token.
    fn accept(&mut self, sampled: Sampled, context: usize) -> Result<()> {
        let Sampled { token, logprobs } = sampled;
        let now = Instant::now();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.stats.prompt_time = now - self.started;
        }
        let ends = self.request.eos.contains(&token);
        let mut complete = false;
        if let Some(guide) = &mut self.guide {
            if ends {
                // The token is not part of the text.
                self.conforms = Some(guide.may_end());
            } else {
                let progress = guide.accept(token)?;
                (complete, self.conforms) = (progress.complete, Some(progress.accepting));
            }
        }
        self.stats.generated_tokens += 1;
        self.tokens.push(token);
        self.send(Event::Token { token, logprobs });
        if ends || complete {
            self.finish(FinishReason::Stop);
        } else if self.stats.generated_tokens >= self.request.max_tokens || self.tokens.len() >= context {
            self.finish(FinishReason::Length);
        }
        Ok(())
    }
}

/// A step whose evaluation has begun.
struct InFlight {
    batch: Batch,
    /// The sequence of each row of logits.
    rows: Vec<usize>,
    launched: Launched,
}

/// A decode step that was started before its tokens were known, on the guess that each is the greedy choice.
struct Ahead {
    batch: Batch,
    /// An error is the step's own once its tokens are known.
    launched: Result<Launched>,
}

pub(super) struct Worker {
    runtime: Runtime,
    options: EngineOptions,
    inbox: Receiver<Command>,
    stop: Arc<AtomicBool>,
    queue: VecDeque<Request>,
    sequences: Vec<Sequence>,
    states: Vec<SequenceState>,
    /// Caches of ended sequences, the oldest first.
    kept: VecDeque<SequenceState>,
    /// The next step, where it was started ahead.
    started: Option<InFlight>,
    /// The sequences of the step that runs.
    stepping: Vec<usize>,
    gauges: Arc<Gauges>,
    masks: MaskPool,
}

impl Worker {
    pub(super) fn new(
        runtime: Runtime,
        options: EngineOptions,
        inbox: Receiver<Command>,
        stop: Arc<AtomicBool>,
        gauges: Arc<Gauges>,
    ) -> Self {
        Self {
            runtime,
            options,
            inbox,
            stop,
            queue: VecDeque::new(),
            sequences: Vec::new(),
            states: Vec::new(),
            kept: VecDeque::new(),
            started: None,
            stepping: Vec::new(),
            gauges,
            masks: MaskPool::default(),
        }
    }

    /// Runs until every engine handle is gone.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.guarded_admit();
            self.cancel();
            self.settle();
            if self.sequences.iter().any(|s| s.held.is_none()) {
                self.guarded_step();
                self.gauges.step_ended();
            }
            self.retire();
        }
    }

    /// Takes what was asked; waits where there is nothing to do. False once the engine is to end.
    fn receive(&mut self) -> bool {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let idle = self.sequences.is_empty() && self.queue.is_empty();
            let command = if idle {
                match self.inbox.recv_timeout(IDLE) {
                    Ok(command) => command,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return false,
                }
            } else {
                match self.inbox.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return true,
                    // Nobody can be listening for what is still in flight.
                    Err(TryRecvError::Disconnected) => return false,
                }
            };
            match command {
                Command::Run(request) => self.queue.push_back(request),
                Command::With(work) => {
                    // A panic drops the answer's channel, which the one who asked sees as an error.
                    let _ = catch_unwind(AssertUnwindSafe(|| work(&self.runtime)));
                }
            }
        }
    }

    /// Admits; a panic ends the request that was being admitted, whose channel closes.
    fn guarded_admit(&mut self) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.admit())) {
            tracing::error!(what = panic_text(&*panic), "a request panicked before its first step");
        }
    }

    /// Starts queued sequences while there is room.
    fn admit(&mut self) {
        while self.sequences.len() < self.options.max_sequences.max(1) {
            let Some(mut request) = self.queue.pop_front() else { return };
            self.gauges.queued.fetch_sub(1, Ordering::Relaxed);
            if request.cancel.load(Ordering::Relaxed) {
                turn_away(request);
                continue;
            }
            if request.prompt.is_empty() || request.prompt.len() >= self.options.context {
                let _ = request.events.send(Event::Failed(Error::ContextFull {
                    prompt: request.prompt.len(),
                    context: self.options.context,
                    trained: self.runtime.config().max_context(),
                }));
                continue;
            }
            let vocab = self.runtime.config().vocab_size;
            let sampler = match Sampler::new(request.sampling.clone(), vocab) {
                Ok(sampler) => sampler,
                Err(error) => {
                    let _ = request.events.send(Event::Failed(error));
                    continue;
                }
            };
            let constraint = request.constraint.take();
            let conforms = constraint.as_ref().map(|_| false);
            let guide = match constraint.map(|it| Guide::new(&mut self.masks, it)).transpose() {
                Ok(guide) => guide,
                Err(error) => {
                    let _ = request.events.send(Event::Failed(error));
                    continue;
                }
            };
            let state = self.reuse(&request.prompt);
            let cached = state.history.len();
            request.cached.store(cached, Ordering::Relaxed);
            let stats =
                Stats { prompt_tokens: request.prompt.len(), cached_tokens: cached, ..Stats::default() };
            self.states.push(state);
            self.sequences.push(Sequence {
                tokens: request.prompt.clone(),
                // Of a constrained sequence the greedy choice is not known before its mask is.
                greedy: request.sampling.is_plainly_greedy() && guide.is_none() && request.min_tokens == 0,
                sampler,
                guide,
                conforms,
                held: None,
                cached,
                stats,
                started: Instant::now(),
                first_token: None,
                apart: false,
                ended: false,
                request,
            });
            self.gauges.running.store(self.sequences.len(), Ordering::Relaxed);
        }
    }

    /// The kept cache that shares the longest beginning with `prompt`, cut to it, or an empty one. At least one token
    /// is left to compute, since its logits are wanted.
    fn reuse(&mut self, prompt: &[u32]) -> SequenceState {
        let fresh = self.runtime.sequence(prompt.len());
        let common = |state: &SequenceState| {
            if *state.frequencies != *fresh.frequencies {
                return 0;
            }
            let common = state.history.iter().zip(prompt).take_while(|(a, b)| a == b).count();
            common.min(prompt.len() - 1)
        };
        let best = (0..self.kept.len()).max_by_key(|&i| common(&self.kept[i]));
        match best.map(|i| (i, common(&self.kept[i]))) {
            Some((i, len)) if len > 0 => {
                let mut state = self.kept.remove(i).unwrap_or(fresh);
                state.kv.truncate(len);
                state.history.truncate(len);
                state
            }
            _ => fresh,
        }
    }

    /// Ends what was cancelled, in flight or in the queue, whose place is then another's.
    fn cancel(&mut self) {
        let cancelled = |request: &mut Request| request.cancel.load(Ordering::Relaxed);
        while let Some(at) = self.queue.iter_mut().position(cancelled) {
            let Some(request) = self.queue.remove(at) else { break };
            self.gauges.queued.fetch_sub(1, Ordering::Relaxed);
            turn_away(request);
        }
        for sequence in &mut self.sequences {
            if sequence.request.cancel.load(Ordering::Relaxed) {
                sequence.finish(FinishReason::Cancelled);
            }
        }
        self.retire();
    }

    /// Takes ended sequences out; keeps a few of their caches.
    fn retire(&mut self) {
        if self.sequences.iter().any(|s| s.ended)
            && let Some(started) = self.started.take()
        {
            self.forget(&started.batch.runs);
        }
        for i in (0..self.sequences.len()).rev() {
            if !self.sequences[i].ended {
                continue;
            }
            self.sequences.swap_remove(i);
            let mut state = self.states.swap_remove(i);
            state.kv.truncate(state.history.len());
            if self.options.kept_caches > 0 && !state.history.is_empty() {
                if self.kept.len() == self.options.kept_caches {
                    self.kept.pop_front();
                }
                self.kept.push_back(state);
            }
        }
        self.gauges.running.store(self.sequences.len(), Ordering::Relaxed);
    }

    /// Chooses tokens from logits that had to wait for their masks; where nothing else is to be done, waits for one.
    fn settle(&mut self) {
        let idle = !self.sequences.is_empty() && self.sequences.iter().all(|s| s.held.is_some());
        let mut deadline = Instant::now() + if idle { IDLE } else { Duration::ZERO };
        for sequence in &mut self.sequences {
            if sequence.held.is_some() && sequence.wait(deadline) {
                deadline = Instant::now();
                if let Some(logits) = sequence.held.take() {
                    sequence.choose(&logits, self.options.context);
                }
            }
        }
        self.retire();
    }

    /// A step whose panic ends at most the sequences that it ran.
    fn guarded_step(&mut self) {
        let result = catch_unwind(AssertUnwindSafe(|| self.step()));
        let stepping = std::mem::take(&mut self.stepping);
        if let Err(panic) = result {
            let what = panic_text(&*panic);
            tracing::error!(what, "a step panicked");
            self.started = None;
            self.blame(&stepping, Error::Engine(format!("a step panicked: {what}")));
        }
    }

    /// Ends the sequence of a step that failed. Of several nobody knows which one it was: each is computed anew by itself, and
    /// ends if it fails then.
    fn blame(&mut self, sequences: &[usize], error: Error) {
        if let &[sequence] = sequences {
            self.states[sequence].history.clear();
            self.sequences[sequence].fail(error);
            return;
        }
        for &sequence in sequences {
            let (state, sequence) = (&mut self.states[sequence], &mut self.sequences[sequence]);
            *state = self.runtime.sequence(sequence.request.prompt.len());
            sequence.apart = true;
            sequence.cached = 0;
            sequence.request.cached.store(0, Ordering::Relaxed);
        }
    }

    /// One step: the one that was started ahead, or the one that the scheduler plans. While it runs, the next decode step
    /// is built on the greedy choice of this one, where every sequence chooses greedily.
    fn step(&mut self) {
        let current = match self.started.take() {
            Some(started) => {
                self.stepping = started.batch.runs.iter().map(|run| run.sequence).collect();
                started
            }
            None => {
                let (batch, rows) = self.planned();
                self.stepping = batch.runs.iter().map(|run| run.sequence).collect();
                match self.runtime.launch(&batch, &mut self.states, false) {
                    Ok(launched) => InFlight { batch, rows, launched },
                    Err(error) => {
                        let logits = self.runtime.recover(&batch, &mut self.states, error);
                        return self.take(&batch, &rows, logits);
                    }
                }
            }
        };
        let ahead = self.start_ahead(&current);
        let InFlight { batch, rows, launched } = current;
        let result = self.runtime.read(&launched);
        let failed = result.is_err();
        let logits = match result {
            Ok(logits) => {
                self.runtime.commit(&batch, &mut self.states);
                Ok(logits)
            }
            Err(error) => self.runtime.recover(&batch, &mut self.states, error),
        };
        self.take(&batch, &rows, logits);
        let Some(ahead) = ahead else { return };
        if !failed {
            self.started = self.confirm(ahead);
        }
    }

    /// The next step by the scheduler: its batch, and the sequence of each row of logits.
    fn planned(&self) -> (Batch, Vec<usize>) {
        let apart = self.sequences.iter().position(|s| s.apart);
        let waiting: Vec<Waiting> = (self.sequences.iter().enumerate())
            .map(|(sequence, s)| Waiting {
                sequence,
                tokens: if apart.is_none_or(|apart| apart == sequence) {
                    s.tokens.len() - s.cached
                } else {
                    0
                },
            })
            .collect();
        let (mut tokens, mut runs, mut outputs, mut rows) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for Waiting { sequence, tokens: len } in plan(&self.options, &waiting) {
            let start = self.sequences[sequence].cached;
            runs.push(Run { sequence, row: tokens.len(), len, start });
            tokens.extend_from_slice(&self.sequences[sequence].tokens[start..start + len]);
            if len == waiting[sequence].tokens {
                outputs.push(tokens.len() - 1);
                rows.push(sequence);
            }
        }
        (Batch { tokens: Tokens::Known(tokens), runs, outputs }, rows)
    }

    /// Starts the step after `current` before its tokens are known: where every sequence decodes greedily, has room for
    /// another token, and the backend can choose it by itself.
    fn start_ahead(&mut self, current: &InFlight) -> Option<Ahead> {
        let whole = self.queue.is_empty() && current.rows.len() == self.sequences.len();
        let eligible = self.sequences.iter().all(|s| {
            s.greedy
                && s.stats.generated_tokens + 1 < s.request.max_tokens
                && s.tokens.len() + 1 < self.options.context
        });
        let ready = (current.rows.iter().zip(&current.batch.runs)).all(|(&row, run)| row == run.sequence);
        if !whole || !eligible || !ready {
            return None;
        }
        let guess = self.runtime.dispatch().greedy_tokens(current.launched.logits()?)?;
        let runs: Vec<Run> = (current.batch.runs.iter().enumerate())
            .map(|(row, run)| Run { sequence: run.sequence, row, len: 1, start: run.end() })
            .collect();
        let batch = Batch { tokens: Tokens::Pending(guess), outputs: (0..runs.len()).collect(), runs };
        let launched = self.runtime.launch(&batch, &mut self.states, false);
        Some(Ahead { batch, launched })
    }

    /// The step that was started ahead, now that its tokens are known; nothing where a guess was wrong or a sequence
    /// ended, and the step is then as if it had not been.
    fn confirm(&mut self, ahead: Ahead) -> Option<InFlight> {
        let Ahead { batch: Batch { tokens, runs, outputs }, launched } = ahead;
        if runs.iter().any(|run| self.sequences[run.sequence].ended) {
            self.forget(&runs);
            if let Err(error) = launched {
                // Nobody needs the step, but its caches are not to be continued.
                tracing::warn!(%error, "a step that was started ahead failed");
                runs.iter().for_each(|run| self.states[run.sequence].history.clear());
            }
            return None;
        }
        let ids: Vec<u32> =
            (runs.iter()).filter_map(|run| self.sequences[run.sequence].tokens.last().copied()).collect();
        let rows: Vec<usize> = runs.iter().map(|run| run.sequence).collect();
        let launched = match launched {
            Ok(launched) => launched,
            Err(error) => {
                let batch = Batch { tokens: Tokens::Known(ids), outputs, runs };
                let logits = self.runtime.recover(&batch, &mut self.states, error);
                self.take(&batch, &rows, logits);
                return None;
            }
        };
        let Tokens::Pending(guess) = &tokens else { return None };
        let guessed = self.runtime.dispatch().to_host(guess);
        let right =
            guessed.is_ok_and(|guess| guess.data().iter().map(|&id| id as u32).eq(ids.iter().copied()));
        if !right {
            self.forget(&runs);
            return None;
        }
        Some(InFlight { batch: Batch { tokens: Tokens::Known(ids), outputs, runs }, rows, launched })
    }

    /// Takes what `runs` wrote out of the caches.
    fn forget(&mut self, runs: &[Run]) {
        for run in runs {
            self.states[run.sequence].kv.truncate(run.start);
        }
    }

    /// Takes the logits of a step: samples a token for each sequence that has a row.
    fn take(&mut self, batch: &Batch, rows: &[usize], logits: Result<HostTensor>) {
        let logits = match logits {
            Ok(logits) => logits,
            Err(error) => {
                let sequences: Vec<usize> = batch.runs.iter().map(|run| run.sequence).collect();
                return self.blame(&sequences, error);
            }
        };
        for run in &batch.runs {
            let sequence = &mut self.sequences[run.sequence];
            sequence.cached = run.end();
            sequence.request.cached.store(run.end(), Ordering::Relaxed);
        }
        let deadline = Instant::now() + MASK_GRACE;
        for (row, &sequence) in rows.iter().enumerate() {
            let sequence = &mut self.sequences[sequence];
            sequence.apart = false;
            if sequence.wait(deadline) {
                sequence.choose(logits.row(row), self.options.context);
            } else {
                sequence.held = Some(logits.row(row).to_vec());
            }
        }
    }
}

/// Ends a request that was cancelled before it had a place.
fn turn_away(mut request: Request) {
    let conforms = request.constraint.as_ref().map(|_| false);
    let (reason, stats) = (FinishReason::Cancelled, Stats::default());
    let _ = request.events.send(Event::Finished { reason, stats, conforms });
}
