//! The engine's thread: takes requests, plans steps, runs them, samples, reports.

mod ahead;
mod looking;

#[cfg(any(test, feature = "fuzzing"))]
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use super::disk::{Disk, LEAST};
use super::draft::{ByAhead, ByModel, Drafter, Drafting, Drafts, Earlier, Lookup, Pace};
use super::guide::MaskPool;
use super::load::Gauges;
use super::memory::{Budget, Memory};
use super::queue::Queue;
use super::request::{Request, RequestKind, Space};
use super::runtime::{Runtime, StepOutputs};
use super::sequence::{Sequence, SequenceKind};
use super::shares::{Cost, Lately};
use super::slot::Slot;
use super::step::{InFlight, draft, planned, with_logits};
use super::{Command, EngineOptions, Machine};
use crate::alloc::give_back_freed;
#[cfg(any(test, feature = "fuzzing"))]
use crate::backend::KvPage;
use crate::backend::batch::Batch;
use crate::backend::kv::PAGE;
use crate::error::{Error, Result, panic_text};
use crate::forward::Adapter;
use looking::Looking;

/// How often an idle engine looks whether it is to end.
const IDLE: Duration = Duration::from_millis(50);
/// How long an engine has nothing to do before what is kept goes to the disk, too, and what the allocator keeps to the system.
const QUIET: Duration = Duration::from_secs(2);
/// How long a step waits for constraints that are not ready when its logits are. A sequence whose constraint takes longer is left
/// out of the next steps instead of holding up the others.
const MASK_GRACE: Duration = Duration::from_millis(1);

pub(super) struct Worker {
    runtime: Runtime,
    options: EngineOptions,
    inbox: Receiver<Command>,
    stop: Arc<AtomicBool>,
    queue: Queue,
    /// The oldest first.
    slots: Vec<Slot>,
    memory: Memory,
    /// The next step, where it was started ahead.
    started: Option<InFlight>,
    /// The slots of the step that runs.
    stepping: Vec<usize>,
    gauges: Arc<Gauges>,
    masks: MaskPool,
    pace: Pace,
    /// What was answered, for guesses of further answers.
    earlier: Earlier,
    cost: Cost,
    lately: Lately,
    /// Steps so far.
    steps: u64,
    /// Of the first parked request, what the disk is to answer.
    looking: Looking,
    /// Since when.
    asked: Instant,
    /// When there was something to do last.
    busy: Instant,
}

impl Worker {
    pub(super) fn new(
        runtime: Runtime,
        options: EngineOptions,
        inbox: Receiver<Command>,
        stop: Arc<AtomicBool>,
        gauges: Arc<Gauges>,
        budget: Budget,
        disk: Option<Disk>,
    ) -> Self {
        if let Some(disk) = &disk {
            let _ = gauges.disk.set(Arc::clone(disk.shared()));
        }
        // The CPU's recurrent layers go back to any token of a step with guesses.
        let pace = Pace::new(budget.cost.fixed > 0 && runtime.bit_settings().is_none());
        Self {
            runtime,
            options,
            inbox,
            stop,
            queue: Queue::new(Arc::clone(&gauges)),
            slots: Vec::new(),
            memory: Memory::new(budget, disk),
            started: None,
            stepping: Vec::new(),
            gauges,
            masks: MaskPool::default(),
            pace,
            earlier: Earlier::default(),
            cost: Cost::default(),
            lately: Lately::default(),
            steps: 0,
            looking: Looking::No,
            asked: Instant::now(),
            busy: Instant::now(),
        }
    }

    /// Runs until every engine handle is gone.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.turn();
            self.busy = Instant::now();
        }
        if let Some(company) = self.runtime.company() {
            company.dismiss(self.runtime.dispatch());
        }
        let until = self.memory.disk().map(Disk::end);
        self.save_all(until);
    }

    /// Hands what is kept to the disk, but for what was computed of files that have changed.
    pub(super) fn save_all(&mut self, patience: Option<Instant>) {
        if self.runtime.check_files().is_ok() {
            let saved = catch_unwind(AssertUnwindSafe(|| self.memory.save_all(patience)));
            if let Err(panic) = saved {
                tracing::error!(what = panic_text(&*panic), "what is kept could not be handed to the disk");
            }
        }
    }

    /// What happens between two looks at the inbox: at most one step.
    pub(super) fn turn(&mut self) {
        self.cancel();
        self.guarded_admit();
        self.settle();
        if self.slots.iter().any(|slot| slot.waiting() > 0) {
            self.guarded_step();
            self.gauges.step_ended();
        } else {
            self.keep_company(false);
        }
        self.retire();
        self.measure();
    }

    /// Has other ranks know that there is nothing to do.
    fn keep_company(&self, quiet: bool) {
        if let Some(company) = self.runtime.company() {
            company.keep(self.runtime.dispatch(), quiet);
        }
    }

    /// Takes what was asked; waits where there is nothing to do. False once the engine is to end.
    pub(super) fn receive(&mut self) -> bool {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            self.wait_no_longer();
            let idle = self.slots.is_empty() && self.queue.is_empty();
            let command = if idle {
                match self.inbox.recv_timeout(IDLE) {
                    Ok(command) => command,
                    Err(RecvTimeoutError::Timeout) => {
                        self.keep_company(self.busy.elapsed() >= QUIET);
                        if self.busy.elapsed() >= QUIET {
                            if self.memory.has_unsaved() {
                                self.save_all(None);
                            }
                            give_back_freed();
                        }
                        continue;
                    }
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
                Command::Run(request) => self.take_in(request),
                Command::Disk(answer) => self.guarded_answer(answer),
                Command::LoadAdapter(adapter, answer) => {
                    let made = catch_unwind(AssertUnwindSafe(|| self.load_adapter(&adapter)));
                    // What is unloaded is what nobody holds: the one who asked is told of a panic by a channel that closes.
                    drop(adapter);
                    let _ = made.map(|made| answer.send(made));
                }
                Command::FreeAdapters => self.free_adapters(),
                Command::With(work) => {
                    // A panic drops the answer's channel, which the one who asked sees as an error.
                    let _ = catch_unwind(AssertUnwindSafe(|| work(&self.runtime)));
                }
            }
        }
    }

    /// Queues a request, behind a look on disk where there is one.
    fn take_in(&mut self, request: Request) {
        let is_ready = self.memory.disk().is_some_and(Disk::is_ready);
        let waits = !matches!(self.looking, Looking::Late(_));
        if is_ready && waits && request.skippable() >= LEAST {
            self.queue.park(request);
            self.look();
        } else {
            self.queue.push(request);
        }
    }

    /// Admits; a panic ends the request that was being admitted, whose channel closes.
    fn guarded_admit(&mut self) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.admit())) {
            tracing::error!(what = panic_text(&*panic), "a request panicked before its first step");
        }
    }

    /// Puts requests into slots while there are slots and memory. Whoever has none does not wait until others leave one: where all
    /// are taken they take turns.
    fn admit(&mut self) {
        let most = self.options.max_sequences.max(1);
        while self.slots.len() < 2 * most {
            let places = if self.slots.len() < most { usize::MAX } else { 1 };
            if self.queue.is_empty() {
                return;
            }
            // Of few owners, each is counted once for all who wait.
            let mut counts: Vec<(&str, usize)> = Vec::new();
            for owner in self.slots.iter().map(Slot::owner) {
                match counts.iter_mut().find(|known| known.0 == owner) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((owner, 1)),
                }
            }
            let running =
                |owner: &str| counts.iter().find(|known| known.0 == owner).map_or(0, |known| known.1);
            let Some(request) = self.queue.next(places, running) else { return };
            if let Err(error) = self.check(&request) {
                request.fail(error);
                continue;
            }
            let most = request.most_tokens(self.options.context);
            let (tokens, skippable, space) = (&request.tokens, request.skippable(), request.beginnings());
            let Some((mut state, lease)) = self.memory.admit(&self.runtime, tokens, most, skippable, &space)
            else {
                return self.queue.block(request);
            };
            state.adapter = request.adapter.clone();
            let owner = request.space.clone();
            let vocab = self.runtime.config().vocab_size;
            match Sequence::start(request, state.history.len(), vocab, &mut self.masks) {
                Some(sequence) => {
                    let writes = matches!(sequence.kind, SequenceKind::Generate(_));
                    let draft = if writes { self.drafting(&owner) } else { None };
                    self.slots.push(Slot::new(sequence, state, lease, (owner, self.steps), draft));
                }
                None => self.memory.release(&self.runtime, state, lease),
            }
            self.gauges.running.store(self.slots.len(), Ordering::Relaxed);
        }
    }

    /// Refuses what can never run.
    fn check(&self, request: &Request) -> Result<()> {
        self.runtime.check_files()?;
        let config = self.runtime.config();
        if config.bidirectional && !matches!(request.kind, RequestKind::Embed(_)) {
            return Err(Error::no_text(config.model_type));
        }
        let (prompt, context) = (request.tokens.len(), self.options.context);
        // A token that is generated takes its place, too.
        let (room, generated) = match &request.kind {
            RequestKind::Generate(it) => (context.saturating_sub(1), it.max_tokens),
            RequestKind::Embed(_) | RequestKind::Score(_) => (context, 0),
        };
        if prompt == 0 {
            return Err(Error::Prompt("it has no token".to_owned()));
        }
        if prompt > room {
            let trained = self.runtime.config().max_context();
            return Err(Error::ContextFull { prompt, at_least: false, context, trained });
        }
        if let RequestKind::Score(it) = &request.kind
            && (it.rows.is_empty() || it.rows.end > prompt)
        {
            let got = format!("{:?} of {prompt} tokens", it.rows);
            return Err(Error::Option {
                option: "rows",
                got,
                expected: "at least one, and none behind the last",
            });
        }
        self.memory.budget_beside_adapters().check(prompt, generated.min(context - prompt))
    }

    /// Prepares an adapter, whose memory is a part of the budget.
    fn load_adapter(&mut self, adapter: &Arc<Adapter>) -> Result<()> {
        // Of those that were unloaded some may have been in use then.
        self.free_adapters();
        let bytes = adapter.bytes();
        if !self.memory.take_adapter(bytes) {
            let budget = self.memory.budget().bytes;
            let available = budget.saturating_sub(self.memory.reserved() + self.memory.shared());
            return Err(Error::Memory { what: format!("{adapter:?}"), needed: bytes, available });
        }
        let made = catch_unwind(AssertUnwindSafe(|| self.runtime.adapter(adapter).map(drop)));
        let made = made.unwrap_or_else(|panic| Err(Error::Engine(panic_text(&*panic).to_owned())));
        if made.is_err() {
            self.memory.put_adapter_back(bytes);
        }
        self.gauges.adapters.store(self.memory.adapters(), Ordering::Relaxed);
        made
    }

    /// Frees the adapters that were unloaded and that no sequence has any longer.
    fn free_adapters(&mut self) {
        let bytes = self.runtime.free_adapters();
        if bytes > 0 {
            self.memory.put_adapter_back(bytes);
            self.gauges.adapters.store(self.memory.adapters(), Ordering::Relaxed);
            self.queue.memory_freed();
        }
    }

    /// Ends what was cancelled, in flight or in the queue, whose place is then another's.
    fn cancel(&mut self) {
        while let Some(request) = self.queue.next_cancelled() {
            if let Some(constraint) = request.turn_away() {
                self.masks.end(constraint);
            }
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.sequence.is_cancelled()) {
            slot.cancel();
        }
        self.retire();
    }

    /// Takes ended sequences out; keeps what they computed for others while there is room.
    fn retire(&mut self) {
        if self.slots.iter().any(Slot::is_ended)
            && let Some(started) = self.started.take()
        {
            self.forget(&started.batch.runs);
        }
        for i in (0..self.slots.len()).rev() {
            if self.slots[i].is_ended() {
                let slot = self.slots.remove(i);
                if let Some((space, answer)) = slot.answer() {
                    self.earlier.keep(space, answer);
                }
                slot.release(&self.runtime, &mut self.memory);
                self.queue.memory_freed();
            }
        }
        self.free_adapters();
        self.gauges.running.store(self.slots.len(), Ordering::Relaxed);
    }

    /// Shows others what is waiting, and what the memory holds.
    fn measure(&self) {
        let own: u64 = self.slots.iter().map(|slot| self.memory.own(&slot.state, &slot.lease)).sum();
        self.gauges.waiting.store(self.queue.waiting_for_memory(), Ordering::Relaxed);
        let memory = &self.memory;
        let (kept, shared, reserved) = (memory.kept(), memory.shared(), memory.reserved());
        self.gauges.measured(kept + own, kept, shared, reserved, memory.counts());
    }

    /// Goes on with sequences whose constraints were late; where nothing else is to be done, waits for one.
    fn settle(&mut self) {
        let (now, context) = (Instant::now(), self.options.context);
        let mut settled = false;
        for slot in &mut self.slots {
            settled |= slot.settle(now, context);
        }
        let idle = !settled && self.slots.iter().all(Slot::is_held);
        if idle && let Some(slot) = self.slots.first_mut() {
            // No longer: another's may be there before, and somebody may come or go.
            slot.settle(now + MASK_GRACE, context);
        }
        self.retire();
    }

    /// A step whose panic ends at most the sequences that it ran.
    fn guarded_step(&mut self) {
        let machine = self.options.machine.clone();
        let turn = machine.as_ref().map(Machine::turn);
        let result = catch_unwind(AssertUnwindSafe(|| self.step()));
        drop(turn);
        let stepping = std::mem::take(&mut self.stepping);
        if let Err(panic) = result {
            let what = panic_text(&*panic);
            tracing::error!(what, "a step panicked");
            self.started = None;
            self.blame(&stepping, Error::Engine(format!("a step panicked: {what}")));
        }
    }

    /// Ends the sequence of a step that failed. Of several nobody knows which one it was: each goes on by itself, computed anew
    /// where its caches may hold anything, and ends if it fails then.
    fn blame(&mut self, slots: &[usize], error: Error) {
        // What guesses wanted is not the text's own need: where every cache is as it was, it goes on without.
        let refused = matches!(error, Error::OutOfMemory { .. });
        let mut drafted = false;
        for &slot in slots.iter().filter(|_| refused) {
            drafted |= self.slots[slot].drop_draft();
        }
        if drafted && slots.iter().all(|&slot| self.slots[slot].is_as_before()) {
            return;
        }
        if let &[slot] = slots {
            return self.slots[slot].fail(error);
        }
        for &slot in slots {
            // Where memory alone was refused, every cache is as it was before the step.
            let whole = matches!(error, Error::OutOfMemory { .. }) && self.slots[slot].set_apart();
            if !whole {
                self.slots[slot].restart(&self.runtime, &mut self.memory);
            }
        }
    }

    /// One step: the one that was started ahead, or the one that the scheduler plans. While it runs, the next decode step
    /// is built on the greedy choice of this one, where every sequence chooses greedily.
    fn step(&mut self) {
        if self.started.is_none() {
            draft(&self.options, &mut self.slots, self.runtime.config(), &mut self.pace);
        }
        let began = Instant::now();
        let current = match self.started.take() {
            Some(started) => {
                self.stepping = started.batch.runs.iter().map(|run| run.sequence).collect();
                started
            }
            None => {
                let (config, lately) = (self.runtime.config(), &mut self.lately);
                let batch = planned(&self.options, &self.slots, config, &self.cost, lately);
                self.stepping = batch.runs.iter().map(|run| run.sequence).collect();
                self.steps += 1;
                for &slot in &self.stepping {
                    self.slots[slot].turn = self.steps;
                }
                match self.runtime.launch(&batch, &mut self.slots, false) {
                    Ok(launched) => InFlight { batch, launched },
                    Err(error) => {
                        let outputs = self.recover(&batch, error);
                        return self.take(&batch, outputs);
                    }
                }
            }
        };
        let ahead = self.start_ahead(&current);
        let InFlight { batch, launched } = current;
        let with_hidden = self.wants_hidden(&batch);
        let result = self.runtime.outputs(&launched, with_hidden);
        let failed = result.is_err();
        let decodes = batch.runs.iter().all(|run| self.slots[run.sequence].is_decoding());
        if let Some(disk) = self.memory.disk()
            && batch.runs.iter().any(|run| run.len >= PAGE)
        {
            disk.prefilled(batch.runs.iter().map(|run| run.len).sum(), began.elapsed());
        }
        let outputs = match result {
            Ok(outputs) => {
                self.runtime.commit(&batch, &mut self.slots);
                Ok(outputs)
            }
            Err(error) => self.recover(&batch, error),
        };
        self.take(&batch, outputs);
        let rows = batch.runs.iter().map(|run| run.len).sum();
        if !failed {
            self.cost.observe(rows, began.elapsed(), !batch.outputs.is_empty() || with_hidden);
        }
        if decodes && !failed {
            let drafts = batch.outputs.len();
            self.pace.observe(rows, began.elapsed(), drafts > batch.runs.len());
        }
        let Some(ahead) = ahead else { return };
        if !failed {
            self.started = self.confirm(ahead);
        }
    }

    /// What guesses the tokens of a new sequence of that space, where that is asked for.
    fn drafting(&self, space: &Space) -> Option<Box<Drafting>> {
        #[cfg(any(test, feature = "fuzzing"))]
        if let Some(drafter) = self.options.drafter {
            return Some(Box::new(Drafting::new(drafter())));
        }
        let drafts = match self.options.drafts {
            // Who names a model for it wants it.
            Drafts::Auto => {
                let named = self.runtime.draft().or(self.runtime.ahead());
                self.runtime.bit_settings().is_some() || named.is_some()
            }
            Drafts::On => true,
            Drafts::Off => false,
        };
        let vocab = self.runtime.config().vocab_size;
        let drafter = || -> Box<dyn Drafter> {
            let lookup = Lookup::behind(self.earlier.of(space));
            match (self.runtime.draft(), self.runtime.ahead()) {
                (Some(draft), _) => Box::new(ByModel::new(Rc::clone(draft), vocab, lookup)),
                (None, Some(ahead)) => Box::new(ByAhead::new(Rc::clone(ahead), vocab, lookup)),
                (None, None) => Box::new(lookup),
            }
        };
        drafts.then(|| Box::new(Drafting::new(drafter())))
    }

    fn wants_hidden(&self, batch: &Batch) -> bool {
        batch.runs.iter().any(|run| self.slots[run.sequence].wants_hidden())
    }

    /// The results of a step that failed, where it may be replayed.
    fn recover(&mut self, batch: &Batch, error: Error) -> Result<StepOutputs> {
        let with_hidden = self.wants_hidden(batch);
        self.runtime.recover(batch, &mut self.slots, with_hidden, error)
    }

    /// Hands out the results of a step, and keeps the pages of prompts that are through for others that begin alike.
    fn take(&mut self, batch: &Batch, outputs: Result<StepOutputs>) {
        // What was computed of a file that changed is nobody's answer.
        if self.runtime.check_files().is_err() {
            for slot in &mut self.slots {
                if let Err(error) = self.runtime.check_files() {
                    slot.fail(error);
                }
            }
            return;
        }
        let outputs = match outputs {
            Ok(outputs) => outputs,
            Err(error) => {
                let slots: Vec<usize> = batch.runs.iter().map(|run| run.sequence).collect();
                return self.blame(&slots, error);
            }
        };
        let deadline = Instant::now() + MASK_GRACE;
        for (run, rows) in with_logits(batch) {
            let slot = &mut self.slots[run.sequence];
            if slot.take(run, &outputs, rows, deadline, self.options.context, &mut self.pace) {
                self.memory.share(&self.runtime, &mut slot.state, &mut slot.lease, slot.sequence.prompt);
                self.queue.memory_freed();
            }
            if !slot.is_whole() && !slot.is_ended() {
                slot.restart(&self.runtime, &mut self.memory);
                continue;
            }
            if slot.is_at_stop() {
                self.memory.snapshot(&self.runtime, &mut slot.state, &mut slot.lease);
                self.queue.memory_freed();
            }
            if !slot.is_ended() {
                let len = if slot.sequence.is_kept() { slot.sequence.prompt } else { 0 };
                if self.memory.give_back(&self.runtime, &mut slot.state, &mut slot.lease, len) {
                    self.queue.memory_freed();
                }
            }
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Worker {
    /// Where the memory is that is kept, and that of sequences, with bytes.
    pub(super) fn memory_by_hand(&self) -> [BTreeMap<usize, u64>; 2] {
        let kept = self.memory.pages().flat_map(KvPage::memory).collect();
        [kept, self.slots.iter().flat_map(|slot| slot.state.kv.memory()).collect()]
    }

    #[cfg(test)]
    pub(super) fn earlier(&self, space: &Space) -> Rc<[u32]> {
        self.earlier.of(space)
    }

    #[cfg(test)]
    pub(super) fn set_drafts(&mut self, drafts: Drafts) {
        self.options.drafts = drafts;
    }

    #[cfg(test)]
    pub(super) fn set_cost(&mut self, cost: Cost) {
        self.cost = cost;
    }

    /// Tokens cached of the sequence whose prompt has `prompt` tokens; all once it has ended.
    #[cfg(test)]
    pub(super) fn cached(&self, prompt: usize) -> usize {
        let of = self.slots.iter().find(|slot| slot.sequence.prompt == prompt);
        of.map_or(prompt, Slot::cached)
    }
}
