//! The constraints of sequences in flight. The mask of a sequence's next token is computed on a thread beside the step that
//! computes its logits: it depends on the tokens so far and not on them. Following a token takes microseconds, and is done between
//! two steps; where it takes long it has a thread, too.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::Builder;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::apart;
use crate::error::{Error, Result, caught, panic_text};
use crate::refusals;
use crate::sample::Constraint;
use crate::sample::constraint::Mask;

/// Threads that compute masks at most: one takes 50 µs, where a step takes milliseconds.
const MAX_THREADS: usize = 4;
/// A job that works for so long takes, or frees, much memory.
const MUCH: Duration = Duration::from_millis(1);

/// What is wanted of a constraint.
enum Job {
    Mask(Constraint, Back),
    /// To follow a token.
    Follow(Constraint, u32, Back),
    /// The end of what has it: freeing the memory of one that is large takes longer than a step.
    End(Box<dyn Send>),
}

/// Where a result goes: to the sequence that waits for it, unless that has ended.
#[derive(Clone)]
struct Back {
    to: Sender<State>,
    wanted: Weak<()>,
}

impl Back {
    /// For who has the other end and the mark.
    fn new() -> (Self, Receiver<State>, Arc<()>) {
        let ((to, from), mark) = (channel(), Arc::new(()));
        (Self { to, wanted: Arc::downgrade(&mark) }, from, mark)
    }

    fn is_wanted(&self) -> bool {
        self.wanted.strong_count() > 0
    }
}

impl Job {
    fn constraint(&self) -> Option<&Constraint> {
        match self {
            Self::Mask(constraint, _) | Self::Follow(constraint, ..) => Some(constraint),
            Self::End(_) => None,
        }
    }

    /// Whether it is the end of what has it, or has become that.
    fn is_end(&self) -> bool {
        match self {
            Self::Mask(_, back) | Self::Follow(.., back) => !back.is_wanted(),
            Self::End(_) => true,
        }
    }

    fn is_slow(&self) -> bool {
        self.is_end() || self.constraint().is_some_and(Constraint::is_slow)
    }

    /// What its text took so far. Ends come first: nobody waits for them, and their memory is in no budget.
    fn took(&self) -> Duration {
        let of = self.constraint().filter(|_| !self.is_end());
        of.map_or(Duration::ZERO, Constraint::took)
    }

    fn done(self) {
        #[cfg(test)]
        tests::delay();
        let started = apart::worked();
        // What nobody takes is freed here.
        let _ = match self {
            Self::Mask(mut constraint, back) if back.is_wanted() => {
                let mask = constraint.mask();
                back.to.send(State::Ready(constraint, mask))
            }
            Self::Follow(mut constraint, token, back) if back.is_wanted() => {
                let progress = followed(&mut constraint, token);
                back.to.send(State::Followed(constraint, progress))
            }
            Self::Mask(..) | Self::Follow(..) => Ok(()),
            Self::End(what) => {
                drop(what);
                Ok(())
            }
        };
        if apart::worked().saturating_sub(started) >= MUCH {
            apart::freed_much();
        }
    }
}

/// Threads that compute masks, started with the first constraint; they end when the pool does.
#[derive(Default)]
pub(super) struct MaskPool {
    jobs: Option<Arc<Jobs>>,
}

/// Masks to be computed.
#[derive(Default)]
struct Jobs {
    waiting: Mutex<Waiting>,
    /// There is a job, or there will be none.
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: Vec<Job>,
    closed: bool,
}

impl Jobs {
    fn push(&self, job: Job) {
        self.waiting.lock().jobs.push(job);
        // Not every thread does every job.
        self.changed.notify_all();
    }

    /// The job whose text has had the least work so far, so that one whose constraint takes long waits for the others and they
    /// not for it; of several the first. Of those that do take long, where these are `slow`, else of the others. None once the
    /// pool is gone.
    fn next(&self, slow: bool) -> Option<Job> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.closed {
                return None;
            }
            let jobs = &waiting.jobs;
            let of = (0..jobs.len()).filter(|&i| jobs[i].is_slow() == slow);
            if let Some(cheapest) = of.min_by_key(|&i| jobs[i].took()) {
                return Some(waiting.jobs.remove(cheapest));
            }
            self.changed.wait(&mut waiting);
        }
    }
}

impl Drop for MaskPool {
    fn drop(&mut self) {
        if let Some(jobs) = &self.jobs {
            jobs.waiting.lock().closed = true;
            jobs.changed.notify_all();
        }
    }
}

impl MaskPool {
    /// Frees a constraint that no sequence has.
    pub(super) fn end(&mut self, constraint: Constraint) {
        // Without a thread it is freed here.
        if let Ok(jobs) = self.start() {
            jobs.push(Job::End(Box::new(constraint)));
        }
    }

    fn start(&mut self) -> Result<&Arc<Jobs>> {
        if self.jobs.is_none() {
            let jobs = Self { jobs: Some(Arc::default()) };
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
            // The first ones are for what takes long; a step goes before them.
            for (i, slow) in [true, false].into_iter().flat_map(|slow| (0..threads).map(move |i| (i, slow))) {
                let jobs = jobs.jobs.clone();
                let work = move || {
                    if slow {
                        apart::lower(apart::own_id());
                    }
                    while let Some(job) = jobs.as_deref().and_then(|jobs| jobs.next(slow)) {
                        // A panic drops where it goes with its constraint, which ends its sequence alone.
                        if let Err(panic) = caught(|| job.done()) {
                            tracing::error!(what = panic_text(&*panic), "a constraint panicked");
                        }
                    }
                };
                let kind = if slow { "slow" } else { "mask" };
                let thread = Builder::new().name(format!("backstop-{kind}-{i}"));
                match refusals::spawn(thread, work) {
                    Ok(_) => {}
                    // One of each is enough.
                    Err(_) if i > 0 => {}
                    Err(source) => return Err(Error::Thread { what: "the masks of a grammar", source }),
                }
            }
            *self = jobs;
        }
        self.jobs.as_ref().ok_or_else(|| Error::Engine("no thread for masks".into()))
    }
}

/// The constraint of a sequence.
pub(super) struct Guide {
    jobs: Arc<Jobs>,
    state: State,
}

enum State {
    /// On its way to the mask of the next token, or behind one that was chosen.
    Computing { computed: Receiver<State>, _wanted: Arc<()> },
    /// The mask of the next token.
    Ready(Constraint, Result<Mask>),
    /// Behind a token that was chosen.
    Followed(Constraint, Result<Progress>),
    /// Its thread is gone, or its text has ended.
    Gone,
}

impl Guide {
    /// Begins with the mask of the first token.
    pub(super) fn new(pool: &mut MaskPool, constraint: Constraint) -> Result<Self> {
        let mut guide = Self { jobs: Arc::clone(pool.start()?), state: State::Gone };
        guide.compute(|back| Job::Mask(constraint, back));
        Ok(guide)
    }

    fn compute(&mut self, job: impl FnOnce(Back) -> Job) {
        let (back, computed, mark) = Back::new();
        self.jobs.push(job(back));
        self.state = State::Computing { computed, _wanted: mark };
    }

    /// Waits until `deadline` for the mask, or for the end of [`Self::follow`]; whether it is there, or never will be.
    pub(super) fn wait(&mut self, deadline: Instant) -> bool {
        if let State::Computing { computed, .. } = &self.state {
            self.state = match computed.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(state) => state,
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => State::Gone,
            };
        }
        true
    }

    /// The mask of the next token.
    ///
    /// # Errors
    /// A constraint that cannot be followed any further.
    pub(super) fn mask(&self) -> Result<&Mask> {
        match &self.state {
            State::Ready(_, Ok(mask)) => Ok(mask),
            State::Ready(constraint, Err(error)) => Err(constraint.repeated(error)),
            _ => Err(Error::Engine("the mask of a constraint was lost".into())),
        }
    }

    /// Whether the text could end as it is.
    pub(super) fn may_end(&mut self) -> bool {
        match &mut self.state {
            State::Ready(constraint, _) => constraint.is_accepting(),
            _ => false,
        }
    }

    /// Goes on by a token that the mask allows, on another thread where that takes long: the next [`Self::wait`] then waits for
    /// it. Whether [`Self::progress`] is known.
    ///
    /// # Errors
    /// A token that is followed before its mask is known.
    pub(super) fn follow(&mut self, token: u32) -> Result<bool> {
        let State::Ready(mut constraint, _) = std::mem::replace(&mut self.state, State::Gone) else {
            return Err(Error::Engine("a token was chosen before its mask was known".into()));
        };
        #[cfg(test)]
        let slow = tests::is_delayed() || constraint.is_slow();
        #[cfg(not(test))]
        let slow = constraint.is_slow();
        if slow {
            self.compute(|back| Job::Follow(constraint, token, back));
        } else {
            let progress = followed(&mut constraint, token);
            self.state = State::Followed(constraint, progress);
        }
        Ok(!slow)
    }

    /// How far the text is with the token that was followed. The next mask is on its way then.
    ///
    /// # Errors
    /// A token that may not come next.
    pub(super) fn progress(&mut self) -> Result<Progress> {
        let State::Followed(constraint, progress) = std::mem::replace(&mut self.state, State::Gone) else {
            return Err(Error::Engine("a constraint was lost that followed a token".into()));
        };
        match progress {
            Ok(Progress { complete: false, .. }) => self.compute(|back| Job::Mask(constraint, back)),
            _ => self.jobs.push(Job::End(Box::new(constraint))),
        }
        progress
    }
}

impl Drop for Guide {
    fn drop(&mut self) {
        // One on its way is in the channel, or finds that nobody wants it.
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Gone => {}
            state => self.jobs.push(Job::End(Box::new(state))),
        }
    }
}

fn followed(constraint: &mut Constraint, token: u32) -> Result<Progress> {
    constraint.accept(token)?;
    let complete = constraint.is_complete();
    Ok(Progress { complete, accepting: complete || constraint.is_accepting() })
}

/// How far a text is on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// Whether nothing can follow.
    pub complete: bool,
    /// Whether it could end here.
    pub accepting: bool,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use super::{Back, Job, Jobs};
    use crate::sample::Grammar;
    use crate::{FinishReason, Model, Options};

    /// What a mask takes longer, and following a token, in milliseconds.
    static DELAY: AtomicU64 = AtomicU64::new(0);

    pub(super) fn delay() {
        std::thread::sleep(Duration::from_millis(DELAY.load(Ordering::Relaxed)));
    }

    pub(super) fn is_delayed() -> bool {
        DELAY.load(Ordering::Relaxed) > 0
    }

    #[test]
    fn who_has_taken_least_comes_first() {
        let model = Model::builtin().unwrap();
        let mut fresh = model.constraint(&Grammar::Regex("[a-z]+".into())).unwrap();
        fresh.set_work(Duration::ZERO);
        let mut worked = fresh.clone();
        worked.set_work(Duration::from_millis(1));
        let jobs = Jobs::default();
        let (back, computed, mark) = Back::new();
        for constraint in [worked.clone(), fresh.clone(), worked] {
            jobs.push(Job::Mask(constraint, back.clone()));
        }
        let took: Vec<bool> = (0..3).map(|_| !jobs.next(false).unwrap().took().is_zero()).collect();
        assert_eq!(took, [false, true, true]);
        // Ends come before what takes long.
        let mut slow = fresh.clone();
        slow.set_work(Duration::from_secs(1));
        jobs.push(Job::Mask(slow.clone(), back.clone()));
        jobs.push(Job::End(Box::new(fresh)));
        let ends: Vec<bool> = (0..2).map(|_| jobs.next(true).unwrap().is_end()).collect();
        assert_eq!(ends, [true, false]);
        // What nobody waits for any longer is an end, and is not computed.
        jobs.push(Job::Mask(slow, back));
        drop(mark);
        let job = jobs.next(true).unwrap();
        assert!(job.is_end() && job.took().is_zero());
        job.done();
        assert!(computed.try_recv().is_err());
    }

    #[test]
    fn slow_masks_hold_up_nobody_else() {
        let model = Model::builtin().unwrap();
        let constraint = Some(model.constraint(&Grammar::Regex("[a-z]{1,2}[0-9]{4}".into())).unwrap());
        let held = Options { constraint, ..Options::default() };
        let free = Options { max_tokens: Some(20), ..Options::default() };
        let texts = || {
            let held: Vec<_> = (0..3).map(|_| model.generate("Once", &held).unwrap()).collect();
            let started = Instant::now();
            let mut running = model.generate("Once upon", &free).unwrap();
            let text: String = (&mut running).map(|piece| piece.unwrap().text).collect();
            let took = started.elapsed();
            let held: Vec<String> = held.into_iter().map(|text| text.text().unwrap()).collect();
            (text, held, took)
        };
        let (text, constrained, _) = texts();
        DELAY.store(400, Ordering::Relaxed);
        let (same, delayed, took) = texts();
        // Alone, it is waited for.
        let mut last = model.generate("Once", &held).unwrap();
        let finish = (&mut last).filter_map(|piece| piece.unwrap().finish).last();
        DELAY.store(0, Ordering::Relaxed);
        assert_eq!((same, delayed), (text, constrained));
        assert!(took < Duration::from_millis(20 * 400), "{took:?}: it waited for every mask");
        assert_eq!((finish, last.conforms()), (Some(FinishReason::Stop), Some(true)));
    }
}
