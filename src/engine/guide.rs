//! The constraints of sequences in flight. The mask of a sequence's next token is computed on a thread beside the step that
//! computes its logits: it depends on the tokens so far and not on them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::refusals;
use crate::sample::Constraint;
use crate::sample::constraint::Mask;
use crate::text::apart;

/// Threads that compute masks at most: one takes 50 µs, where a step takes milliseconds.
const MAX_THREADS: usize = 4;

/// A constraint, and where it goes with its mask.
type Job = (Constraint, Sender<(Constraint, Result<Mask>)>);

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

    /// The job whose text has had the least work so far, so that one whose masks take long waits for the others and they not
    /// for it; of several the first. Of those whose masks do take long, where these are `slow`, else of the others. None once
    /// the pool is gone.
    fn next(&self, slow: bool) -> Option<Job> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.closed {
                return None;
            }
            let jobs = &waiting.jobs;
            let of = (0..jobs.len()).filter(|&i| jobs[i].0.has_slow_masks() == slow);
            if let Some(cheapest) = of.min_by_key(|&i| jobs[i].0.masks_took()) {
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
    fn start(&mut self) -> Result<&Arc<Jobs>> {
        if self.jobs.is_none() {
            let jobs = Self { jobs: Some(Arc::default()) };
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
            // The first ones are for masks that take long; a step goes before them.
            for (i, slow) in [true, false].into_iter().flat_map(|slow| (0..threads).map(move |i| (i, slow))) {
                let jobs = jobs.jobs.clone();
                let work = move || {
                    if slow {
                        apart::lower(apart::own_id());
                    }
                    while let Some((mut constraint, back)) = jobs.as_deref().and_then(|jobs| jobs.next(slow))
                    {
                        #[cfg(test)]
                        tests::delay();
                        let mask = constraint.mask();
                        // Its sequence may have ended.
                        let _ = back.send((constraint, mask));
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
    /// On its way to the mask of the next token.
    Computing(Receiver<(Constraint, Result<Mask>)>),
    /// The mask of the next token.
    Ready(Constraint, Result<Mask>),
    /// Its thread is gone, or its text has ended.
    Gone,
}

impl Guide {
    /// Begins with the mask of the first token.
    pub(super) fn new(pool: &mut MaskPool, constraint: Constraint) -> Result<Self> {
        let mut guide = Self { jobs: Arc::clone(pool.start()?), state: State::Gone };
        guide.compute(constraint);
        Ok(guide)
    }

    fn compute(&mut self, constraint: Constraint) {
        let (back, mask) = channel();
        self.jobs.push((constraint, back));
        self.state = State::Computing(mask);
    }

    /// Waits for the mask until `deadline`; whether it is there, or never will be.
    pub(super) fn wait(&mut self, deadline: Instant) -> bool {
        if let State::Computing(mask) = &self.state {
            self.state = match mask.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((constraint, mask)) => State::Ready(constraint, mask),
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
            _ => Err(Error::Engine("the thread that computes masks has ended".into())),
        }
    }

    /// Whether the text could end as it is.
    pub(super) fn may_end(&mut self) -> bool {
        match &mut self.state {
            State::Ready(constraint, _) => constraint.is_accepting(),
            _ => false,
        }
    }

    /// Goes on by a token: whether the text is whole with it, and whether nothing can follow it.
    ///
    /// # Errors
    /// A token that may not come next.
    pub(super) fn accept(&mut self, token: u32) -> Result<Progress> {
        let State::Ready(mut constraint, _) = std::mem::replace(&mut self.state, State::Gone) else {
            return Err(Error::Engine("a token was chosen before its mask was known".into()));
        };
        constraint.accept(token)?;
        let complete = constraint.is_complete();
        let progress = Progress { complete, accepting: complete || constraint.is_accepting() };
        if !complete {
            self.compute(constraint);
        }
        Ok(progress)
    }
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
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::Jobs;
    use crate::sample::Grammar;
    use crate::{FinishReason, Model, Options};

    /// What a mask takes longer, in milliseconds.
    static DELAY: AtomicU64 = AtomicU64::new(0);

    pub(super) fn delay() {
        std::thread::sleep(Duration::from_millis(DELAY.load(Ordering::Relaxed)));
    }

    #[test]
    fn who_has_taken_least_comes_first() {
        let model = Model::builtin().unwrap();
        let made = |pattern: &str| model.constraint(&Grammar::Regex(pattern.into())).unwrap();
        let mut worked = made("[a-z]+");
        worked.mask().unwrap();
        let jobs = Jobs::default();
        let (back, _mask) = channel();
        for constraint in [worked.clone(), made("[0-9]+"), worked] {
            jobs.push((constraint, back.clone()));
        }
        let took: Vec<bool> = (0..3).map(|_| !jobs.next(false).unwrap().0.masks_took().is_zero()).collect();
        assert_eq!(took, [false, true, true]);
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
