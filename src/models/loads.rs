//! The thread that loads and unloads: in the order of the requests, but for those that have room now while one before them waits
//! until others have let go of theirs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::room::{Room, Wanted};
use super::{Ask, Entry, LOOK, Loaded, Shared, Stage, State, failed};
use crate::engine::AT_END;
use crate::error::{Error, Result, panic_text};
use crate::refusals;

/// How many models are loaded before one that waits for room which they take from it.
pub(super) const AHEAD: usize = 4;

/// How long the end waits for models that are on their way out: as long as what their caches write may take, and a bit.
pub(super) const UNLOADING: Duration =
    if cfg!(test) { Duration::from_secs(4) } else { Duration::from_secs(AT_END.as_secs() + 1) };

/// A model whose files were read, and that waits for room.
struct Opened {
    entry: usize,
    wanted: Wanted,
    /// How many have taken room that it could have had.
    ahead: usize,
}

/// What is to be done next.
enum Next {
    Give(usize),
    Open(usize),
    Load(usize, Result<Room>),
}

impl Shared {
    /// Loads what is asked for, and unloads what is idle, until the end.
    pub(super) fn run(self: Arc<Self>) {
        let mut opened: Vec<Opened> = Vec::new();
        loop {
            let mut state = self.state.lock();
            if state.ending {
                // Who still waits learns it by the end of the channel.
                let asks = std::mem::take(&mut state.asks);
                let there = state.entries.iter_mut().filter(|entry| !entry.is_unloading());
                let there = there.map(|entry| std::mem::replace(&mut entry.stage, Stage::Unloaded)).collect();
                drop(state);
                drop(asks);
                return self.end(there);
            }
            state.asks.retain(|ask| !ask.waiter.is_gone());
            opened.retain(|opened| {
                let wanted = state.asks.iter().any(|ask| ask.entry == opened.entry);
                if !wanted {
                    state.entries[opened.entry].stage = Stage::Unloaded;
                }
                wanted
            });
            match self.next(&mut state, &mut opened) {
                Some(Next::Give(entry)) => {
                    let given = self.give(&mut state, entry, None);
                    drop(state);
                    given.into_iter().for_each(|(ask, lease)| ask.waiter.give(lease));
                }
                Some(Next::Open(entry)) => {
                    state.entries[entry].stage = Stage::Loading { unload: false };
                    drop(state);
                    match caught(|| self.open(entry)) {
                        Ok(wanted) => opened.push(Opened { entry, wanted, ahead: 0 }),
                        Err(error) => self.settle(entry, Err(error)),
                    }
                }
                Some(Next::Load(index, room)) => {
                    drop(state);
                    let Opened { entry, wanted, .. } = opened.remove(index);
                    self.settle(entry, room.and_then(|room| caught(|| self.load(wanted, room))));
                }
                None => {
                    let (now, idle) = (Instant::now(), state.next_idle(&self.options));
                    if let Some((due, entry)) = idle
                        && due <= now
                    {
                        self.retire(&mut state, entry);
                        continue;
                    }
                    let look = (!opened.is_empty()).then(|| now + LOOK);
                    match idle.map(|(due, _)| due).into_iter().chain(look).min() {
                        Some(until) => {
                            self.bell.wait_until(&mut state, until);
                        }
                        None => self.bell.wait(&mut state),
                    }
                }
            }
        }
    }

    /// The first of those who wait for whom something can be done. Once the first has room, or is gone, nobody is to leave any
    /// more.
    fn next(self: &Arc<Self>, state: &mut State, opened: &mut [Opened]) -> Option<Next> {
        let mut order: Vec<usize> = Vec::new();
        for ask in &state.asks {
            if !order.contains(&ask.entry) {
                order.push(ask.entry);
            }
        }
        let mut first: Option<usize> = None;
        for entry in order {
            match &state.entries[entry].stage {
                // One that is on its way out can be loaded once it is gone.
                Stage::Unloading { .. } => continue,
                Stage::Loaded(loaded) if loaded.leaving => continue,
                Stage::Loaded(_) => return Some(Next::Give(entry)),
                Stage::Unloaded | Stage::Failed { .. } => return Some(Next::Open(entry)),
                Stage::Loading { .. } => {}
            }
            let index = opened.iter().position(|opened| opened.entry == entry)?;
            let Some(before) = first else {
                match self.make_room(state, entry, &opened[index].wanted).transpose() {
                    Some(room) => {
                        self.all_stay(state);
                        return Some(Next::Load(index, room));
                    }
                    None => first = Some(index),
                }
                continue;
            };
            let there = &opened[before];
            let fits = self.room_ahead(state, entry, &opened[index].wanted, &there.wanted);
            // What is on its way out is gone in a moment: that is waited for.
            let in_use =
                || state.entries.iter().any(|entry| matches!(&entry.stage, Stage::Loaded(it) if it.leaving));
            match fits.filter(|fits| !fits.takes || there.ahead < AHEAD && in_use()) {
                Some(fits) => {
                    opened[before].ahead += usize::from(fits.takes);
                    return Some(Next::Load(index, Ok(fits.room)));
                }
                None => continue,
            }
        }
        // Whoever asks for one that was to leave can have it now.
        if first.is_none() && self.all_stay(state) { self.next(state, opened) } else { None }
    }

    /// Who was to leave and still is there may stay; whether there was one.
    fn all_stay(&self, state: &mut State) -> bool {
        let mut any = false;
        for other in &mut state.entries {
            if let Stage::Loaded(loaded) = &mut other.stage {
                any |= std::mem::take(&mut loaded.leaving);
            }
        }
        any
    }

    /// Gives a model, or why it cannot be loaded, to all who ask for it.
    fn settle(self: &Arc<Self>, entry: usize, result: Result<Loaded>) {
        let mut state = self.state.lock();
        let unload = matches!(state.entries[entry].stage, Stage::Loading { unload: true });
        let (stage, failure) = match result {
            Ok(loaded) => (Stage::Loaded(Box::new(loaded)), None),
            Err(error) => {
                tracing::info!(model = state.entries[entry].name, %error, "a model cannot be loaded");
                let error = Arc::new(error);
                (Stage::Failed { error: Arc::clone(&error), at: Instant::now() }, Some(error))
            }
        };
        state.moves.loads += u64::from(failure.is_none());
        state.entries[entry].stage = stage;
        let given = self.give(&mut state, entry, failure);
        if let (Stage::Loaded(loaded), true) = (&mut state.entries[entry].stage, unload) {
            loaded.unload();
        }
        drop(state);
        given.into_iter().for_each(|(ask, lease)| ask.waiter.give(lease));
    }

    /// Ends all models at once: each may take some seconds for what its cache on disk has not written yet. Those that are on the
    /// way out already are waited for as long.
    fn end(&self, there: Vec<Stage>) {
        let ends = there.into_iter().map(|stage| {
            // Where there is no thread it ends here.
            refusals::spawn(std::thread::Builder::new().name("backstop-unload".into()), move || drop(stage))
        });
        let ends: Vec<_> = ends.collect();
        let until = Instant::now() + UNLOADING;
        let mut state = self.state.lock();
        while state.entries.iter().any(Entry::is_unloading) {
            if self.bell.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        drop(state);
        ends.into_iter().flatten().for_each(|end| {
            let _ = end.join();
        });
    }

    /// What those who ask for a model get.
    fn give(
        self: &Arc<Self>,
        state: &mut State,
        entry: usize,
        failure: Option<Arc<Error>>,
    ) -> Vec<(Ask, Result<super::Lease>)> {
        let (asks, others): (Vec<Ask>, Vec<Ask>) =
            std::mem::take(&mut state.asks).into_iter().partition(|ask| ask.entry == entry);
        state.asks = others.into();
        let mut given = Vec::new();
        for ask in asks {
            match (self.lease(state, entry, ask.keep), &failure) {
                (Some(lease), _) => given.push((ask, Ok(lease))),
                (None, Some(error)) => given.push((ask, Err(failed(&state.entries[entry].name, error)))),
                (None, None) => state.asks.push_back(ask),
            }
        }
        given
    }
}

/// What panics while files are read is not to end all loading.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Error::Engine(format!("loading panicked: {}", panic_text(&*panic)))))
}
