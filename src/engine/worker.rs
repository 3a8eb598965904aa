//! The engine's thread: takes requests, plans steps, runs them, samples, reports.

#[cfg(test)]
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use super::guide::{Guide, MaskPool};
use super::load::Gauges;
use super::memory::{Budget, Lease, Memory};
use super::runtime::{Launched, Runtime};
use super::scheduler::{Waiting, plan};
use super::sequence::Sequence;
use super::{Command, EngineOptions, Event, FinishReason, Request, Stats};
#[cfg(test)]
use crate::backend::KvPage;
use crate::backend::batch::{Batch, Run, Tokens};
use crate::error::{Error, Result, panic_text};
use crate::forward::step::SequenceState;
use crate::sample::Sampler;
use crate::tensor::HostTensor;

/// How often an idle engine looks whether it is to end.
const IDLE: Duration = Duration::from_millis(50);
/// How long a step waits for masks that are not ready when its logits are. A sequence whose mask takes longer is left out
/// of the next steps instead of holding up the others.
const MASK_GRACE: Duration = Duration::from_millis(1);

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
    /// Requests that wait, the oldest first.
    queue: VecDeque<Request>,
    /// Whether the oldest of them waits for memory.
    blocked: bool,
    /// Whether there may be more since it was last tried.
    freed: bool,
    /// The oldest first.
    sequences: Vec<Sequence>,
    states: Vec<SequenceState>,
    memory: Memory,
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
        budget: Budget,
    ) -> Self {
        Self {
            runtime,
            options,
            inbox,
            stop,
            queue: VecDeque::new(),
            blocked: false,
            freed: false,
            sequences: Vec::new(),
            states: Vec::new(),
            memory: Memory::new(budget),
            started: None,
            stepping: Vec::new(),
            gauges,
            masks: MaskPool::default(),
        }
    }

    /// Runs until every engine handle is gone.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.turn();
        }
    }

    /// What happens between two looks at the inbox: at most one step.
    pub(super) fn turn(&mut self) {
        self.cancel();
        self.guarded_admit();
        self.settle();
        if self.sequences.iter().any(|s| s.held.is_none()) {
            self.guarded_step();
            self.gauges.step_ended();
        }
        self.share();
        self.retire();
        self.measure();
    }

    /// Takes what was asked; waits where there is nothing to do. False once the engine is to end.
    pub(super) fn receive(&mut self) -> bool {
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

    /// Starts queued sequences, the oldest first, while there are places and memory. One that waits for memory is not
    /// overtaken by those that came later, or it might wait for ever.
    fn admit(&mut self) {
        while self.sequences.len() < self.options.max_sequences.max(1) && (self.freed || !self.blocked) {
            let Some(mut request) = self.dequeue(0) else { return };
            if let Err(error) = self.check(&request) {
                let _ = request.events.send(Event::Failed(error));
                continue;
            }
            let tokens = request.prompt.len().saturating_add(request.max_tokens).min(self.options.context);
            let Some((state, lease)) = self.memory.admit(&self.runtime, &request.prompt, tokens) else {
                self.queue.push_front(request);
                self.gauges.queued.fetch_add(1, Ordering::Relaxed);
                (self.blocked, self.freed) = (true, false);
                return;
            };
            self.start(request, state, lease);
        }
    }

    /// Refuses what can never run.
    fn check(&self, request: &Request) -> Result<()> {
        let (prompt, context) = (request.prompt.len(), self.options.context);
        if prompt == 0 || prompt >= context {
            return Err(Error::ContextFull { prompt, context, trained: self.runtime.config().max_context() });
        }
        self.memory.budget().check(prompt, request.max_tokens.min(context - prompt))
    }

    /// Takes a request out of the queue.
    fn dequeue(&mut self, index: usize) -> Option<Request> {
        let request = self.queue.remove(index)?;
        self.gauges.queued.fetch_sub(1, Ordering::Relaxed);
        self.blocked = false;
        Some(request)
    }

    /// Puts a request into flight.
    fn start(&mut self, mut request: Request, state: SequenceState, lease: Lease) {
        let vocab = self.runtime.config().vocab_size;
        let constraint = request.constraint.take();
        let conforms = constraint.as_ref().map(|_| false);
        let make = || {
            let sampler = Sampler::new(request.sampling.clone(), vocab)?;
            Ok((sampler, constraint.map(|it| Guide::new(&mut self.masks, it)).transpose()?))
        };
        let made = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|panic| {
            Err(Error::Engine(format!("a request panicked: {}", panic_text(&*panic))))
        });
        let (sampler, guide) = match made {
            Ok(made) => made,
            Err(error) => {
                self.memory.release(&self.runtime, state, lease);
                let _ = request.events.send(Event::Failed(error));
                return;
            }
        };
        let cached = state.history.len();
        request.cached.store(cached, Ordering::Relaxed);
        let stats = Stats { prompt_tokens: request.prompt.len(), cached_tokens: cached, ..Stats::default() };
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
            ended: false,
            failed: false,
            lease,
            shared: false,
            apart: false,
            request,
        });
        self.gauges.running.store(self.sequences.len(), Ordering::Relaxed);
    }

    /// Ends what was cancelled, in flight or in the queue, whose place is then another's.
    fn cancel(&mut self) {
        let cancelled = |request: &mut Request| request.cancel.load(Ordering::Relaxed);
        while let Some(at) = self.queue.iter_mut().position(cancelled) {
            let Some(request) = self.dequeue(at) else { break };
            turn_away(request);
        }
        for sequence in &mut self.sequences {
            if sequence.request.cancel.load(Ordering::Relaxed) {
                sequence.finish(FinishReason::Cancelled);
            }
        }
        self.retire();
    }

    /// Keeps the pages of prompts that have been computed for others that begin alike.
    fn share(&mut self) {
        for (sequence, state) in self.sequences.iter_mut().zip(&mut self.states) {
            let prompt = sequence.request.prompt.len();
            if !sequence.shared && !sequence.ended && sequence.cached >= prompt {
                sequence.shared = true;
                self.memory.share(&self.runtime, state, &mut sequence.lease, prompt);
                self.freed = true;
            }
        }
    }

    /// Takes ended sequences out; keeps what they computed for others while there is room.
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
            let sequence = self.sequences.remove(i);
            let mut state = self.states.remove(i);
            if sequence.failed {
                state.history.clear();
            }
            self.memory.release(&self.runtime, state, sequence.lease);
            self.freed = true;
        }
        self.gauges.running.store(self.sequences.len(), Ordering::Relaxed);
    }

    /// Shows others what is waiting, and what the memory holds.
    fn measure(&self) {
        let own = self.sequences.iter().zip(&self.states);
        let own: u64 = own.map(|(sequence, state)| self.memory.own(state, &sequence.lease)).sum();
        let waiting = if self.blocked { self.queue.len() } else { 0 };
        self.gauges.waiting.store(waiting, Ordering::Relaxed);
        let memory = &self.memory;
        let (kept, shared, reserved) = (memory.kept(), memory.shared(), memory.reserved());
        self.gauges.measured(kept + own, kept, shared, reserved, memory.counts());
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
            let prompt = sequence.request.prompt.len();
            *state = self.memory.restart(&self.runtime, prompt, &sequence.tokens, &sequence.lease);
            sequence.apart = true;
            sequence.cached = state.history.len();
            sequence.request.cached.store(sequence.cached, Ordering::Relaxed);
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
        let whole = (self.queue.is_empty() || self.blocked) && current.rows.len() == self.sequences.len();
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
        let right = self.runtime.dispatch().ids(guess).is_ok_and(|guess| guess == ids);
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

#[cfg(test)]
impl Worker {
    /// Where the memory is that is kept, and that of sequences, with bytes.
    pub(super) fn memory_by_hand(&self) -> [BTreeMap<usize, u64>; 2] {
        let kept = self.memory.pages().flat_map(KvPage::memory).collect();
        [kept, self.states.iter().flat_map(|state| state.kv.memory()).collect()]
    }

    /// Tokens cached of the sequence whose prompt has `prompt` tokens; all once it has ended.
    pub(super) fn cached(&self, prompt: usize) -> usize {
        self.sequences.iter().find(|s| s.request.prompt.len() == prompt).map_or(prompt, |s| s.cached)
    }
}
