//! Several models by name over one machine: each is loaded when it is asked for, as many as memory holds, and the one that was
//! not used the longest gives way. One is loaded at a time, on a thread of its own.

mod keep;
mod lease;
mod loads;
mod room;
mod status;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::alloc::give_back;
use crate::backend::LlmBackendKind;
use crate::backend::select;
use crate::engine::Machine;
use crate::error::{Error, Result};
use crate::model::{LoadOptions, Model, ModelFiles};
use crate::refusals;
pub use keep::Keep;
pub use lease::Lease;
pub use status::{ModelMoves, ModelState, ModelStatus};

/// How long a failure to load is told without another try.
const RETRY: Duration = Duration::from_secs(2);
/// How often a load that waits for room looks whether somebody still wants it, and who unloads whether others have let go.
const LOOK: Duration = Duration::from_millis(100);
/// How long who unloads a model waits for one that is in use.
const MOMENT: Duration = Duration::from_millis(200);

/// Reads what a model is. It may not ask the [`Models`] that it was offered to for another.
pub type Open = Arc<dyn Fn() -> Result<ModelFiles> + Send + Sync>;

/// A model that may be asked for.
#[derive(Clone)]
pub struct Offer {
    /// The name that it goes by.
    pub name: String,
    /// Other names for it; `*` is any that nothing else has.
    pub aliases: Vec<String>,
    /// Bytes of its weights, where they are known.
    pub size: Option<u64>,
    /// Reads what it is, each time that it is loaded.
    pub open: Open,
    /// How it is loaded; threads and memory are those of all.
    pub options: LoadOptions,
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Offer({})", self.name)
    }
}

/// What all models share.
#[derive(Debug, Clone, Default)]
pub struct ModelsOptions {
    /// Bytes that all models may take together; what the machine has when the first is loaded, where absent.
    pub memory: Option<u64>,
    /// Threads of the CPU kernels; one per core where absent.
    pub threads: Option<usize>,
    /// How long a model stays that nobody uses; forever where absent.
    pub idle_unload: Option<Duration>,
}

/// Who waits for a model. What it does in [`is_gone`](Self::is_gone), and when it is dropped, may not ask [`Models`] anything.
pub trait Waiter: Send {
    /// Whether nobody waits any more.
    fn is_gone(&self) -> bool;
    /// Takes the model, or why there is none.
    fn give(self: Box<Self>, lease: Result<Lease>);
}

struct Channel(mpsc::Sender<Result<Lease>>);

impl Waiter for Channel {
    fn is_gone(&self) -> bool {
        false
    }

    fn give(self: Box<Self>, lease: Result<Lease>) {
        let _ = self.0.send(lease);
    }
}

struct Ask {
    entry: usize,
    keep: Keep,
    waiter: Box<dyn Waiter>,
}

enum Stage {
    Unloaded,
    Loading {
        /// Whether it is to go once those who wait have used it.
        unload: bool,
    },
    Loaded(Box<Loaded>),
    /// Its engine ends; what it has of the memory is not free yet.
    Unloading {
        kind: LlmBackendKind,
        charge: u64,
    },
    Failed {
        error: Arc<Error>,
        at: Instant,
    },
}

struct Loaded {
    model: Model,
    kind: LlmBackendKind,
    /// Bytes that it may take.
    charge: u64,
    leases: usize,
    /// When it was used last.
    used: Instant,
    keep: Keep,
    /// How often it was to be unloaded: who had it before says no more how long it stays.
    told: u64,
    /// Whether it gives way as soon as nobody uses it: who asks for it waits until it is loaded anew.
    leaving: bool,
    /// Whether it stays whatever happens, since there is nothing that it could be loaded from.
    pinned: bool,
}

struct Entry {
    name: String,
    aliases: Vec<String>,
    size: Option<u64>,
    /// What it is loaded from; none of one that was loaded by somebody else.
    from: Option<(Open, LoadOptions)>,
    stage: Stage,
}

impl Entry {
    /// Whether it is on its way out.
    fn is_unloading(&self) -> bool {
        matches!(self.stage, Stage::Unloading { .. })
    }
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    asks: VecDeque<Ask>,
    /// What each backend had for models before the first was loaded.
    had: Vec<(LlmBackendKind, Option<u64>)>,
    moves: ModelMoves,
    ending: bool,
}

struct Shared {
    options: ModelsOptions,
    /// Bytes that a backend has left for models.
    available: fn(LlmBackendKind) -> Option<u64>,
    machine: Machine,
    state: Mutex<State>,
    /// Rings where something was asked or given back.
    bell: Condvar,
}

/// Models by name; dropping it unloads them.
pub struct Models {
    shared: Arc<Shared>,
    loads: Option<JoinHandle<()>>,
}

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_list().entries(state.entries.iter().map(|entry| &entry.name)).finish()
    }
}

impl Models {
    /// Models that are yet to be offered.
    ///
    /// # Errors
    /// A system that gives no thread.
    pub fn new(options: ModelsOptions) -> Result<Self> {
        Self::on(options, select::memory_for)
    }

    /// Models on a machine that has so many bytes left for them.
    fn on(options: ModelsOptions, available: fn(LlmBackendKind) -> Option<u64>) -> Result<Self> {
        let machine = Machine::new(options.threads);
        let (state, bell) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { options, available, machine, state, bell });
        let loads = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("backstop-models".into());
        let loads = refusals::spawn(thread, move || loads.run())
            .map_err(|source| Error::Thread { what: "what loads models", source })?;
        Ok(Self { shared, loads: Some(loads) })
    }

    /// Adds a model that is loaded when it is asked for. The first is what a request without a name means.
    ///
    /// # Errors
    /// A name that another model has.
    pub fn offer(&self, offer: Offer) -> Result<()> {
        let Offer { name, aliases, size, open, options } = offer;
        let from = Some((open, options));
        self.shared.state.lock().add(Entry { name, aliases, size, from, stage: Stage::Unloaded })
    }

    /// Adds a model that is loaded, and stays so, on threads of its own.
    ///
    /// # Errors
    /// A name that another model has.
    pub fn add(&self, name: impl Into<String>, aliases: Vec<String>, model: Model) -> Result<()> {
        let (kind, size) = (model.info().selection.kind, Some(model.info().weight_bytes));
        let charge = model.info().memory;
        let loaded = Loaded {
            model,
            kind,
            charge,
            leases: 0,
            used: Instant::now(),
            keep: Keep::Forever,
            told: 0,
            leaving: false,
            pinned: true,
        };
        let (name, stage) = (name.into(), Stage::Loaded(Box::new(loaded)));
        self.shared.state.lock().add(Entry { name, aliases, size, from: None, stage })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shared.state.lock().entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of the model that goes by `name`; of the first where none is asked for.
    pub fn find(&self, name: Option<&str>) -> Option<String> {
        let state = self.shared.state.lock();
        state.find(name).map(|entry| state.entries[entry].name.clone())
    }

    /// The name of the model that goes by exactly this name, whoever else takes any.
    pub fn named(&self, name: &str) -> Option<String> {
        let state = self.shared.state.lock();
        state.find_named(name).map(|entry| state.entries[entry].name.clone())
    }

    /// The model by one of its names, where it is loaded.
    pub fn lease(&self, name: &str, keep: Keep) -> Option<Lease> {
        let mut state = self.shared.state.lock();
        let entry = state.find(Some(name))?;
        self.shared.lease(&mut state, entry, keep)
    }

    /// Gives the model by one of its names to `waiter`: at once where it is loaded, else when it is.
    pub fn ask(&self, name: &str, keep: Keep, waiter: Box<dyn Waiter>) {
        let mut state = self.shared.state.lock();
        let Some(entry) = state.find(Some(name)) else {
            drop(state);
            return waiter.give(Err(unknown(name)));
        };
        if let Some(lease) = self.shared.lease(&mut state, entry, keep) {
            drop(state);
            return waiter.give(Ok(lease));
        }
        if let Stage::Failed { error, at } = &state.entries[entry].stage
            && at.elapsed() < RETRY
        {
            let error = failed(&state.entries[entry].name, error);
            drop(state);
            return waiter.give(Err(error));
        }
        state.asks.retain(|ask| !ask.waiter.is_gone());
        state.asks.push_back(Ask { entry, keep, waiter });
        self.shared.bell.notify_all();
    }

    /// The model by one of its names, loaded if need be. Waits for it.
    ///
    /// # Errors
    /// A name that no model has, and why it cannot be loaded.
    pub fn get(&self, name: &str, keep: Keep) -> Result<Lease> {
        let (sender, receiver) = mpsc::channel();
        self.ask(name, keep, Box::new(Channel(sender)));
        receiver.recv().map_err(|_| Error::Engine("models are loaded no more".into()))?
    }

    /// What the files of a model say, by one of its names.
    ///
    /// # Errors
    /// A name that no model has, one that was loaded by somebody else, and files that cannot be read.
    pub fn files(&self, name: &str) -> Result<ModelFiles> {
        Ok(self.files_and_options(name)?.0)
    }

    /// As [`files`](Self::files), with how it would be loaded.
    ///
    /// # Errors
    /// As [`files`](Self::files).
    pub(crate) fn files_and_options(&self, name: &str) -> Result<(ModelFiles, LoadOptions)> {
        let from = {
            let state = self.shared.state.lock();
            state.find(Some(name)).and_then(|entry| state.entries[entry].from.clone())
        };
        let (open, options) = from.ok_or_else(|| unknown(name))?;
        Ok((open()?, options))
    }

    /// Unloads a model: now where nobody uses it, else as soon as nobody does, unless it is asked for before.
    ///
    /// # Errors
    /// A name that no model has, and a model that could not be loaded again.
    pub fn unload(&self, name: &str) -> Result<()> {
        let mut state = self.shared.state.lock();
        let entry = state.find(Some(name)).ok_or_else(|| unknown(name))?;
        match &mut state.entries[entry].stage {
            Stage::Loaded(loaded) if loaded.pinned => {
                let what = "it stays loaded for as long as this process runs: there is nothing that it could be loaded from again";
                return Err(Error::Task { model: name.to_owned(), what: what.to_owned() });
            }
            Stage::Loaded(loaded) => loaded.unload(),
            Stage::Loading { unload } => *unload = true,
            Stage::Failed { .. } => state.entries[entry].stage = Stage::Unloaded,
            Stage::Unloaded | Stage::Unloading { .. } => {}
        }
        if state.is_free(entry) {
            self.shared.retire(&mut state, entry);
        }
        self.shared.bell.notify_all();
        Ok(())
    }

    /// Waits until a model is unloaded, for a time; for a moment where somebody uses it. Whether it is.
    pub fn wait_unloaded(&self, name: &str, most: Duration) -> bool {
        let started = Instant::now();
        let mut state = self.shared.state.lock();
        loop {
            let Some(entry) = state.find(Some(name)) else { return true };
            let most = match &state.entries[entry].stage {
                Stage::Unloaded | Stage::Failed { .. } => return true,
                Stage::Unloading { .. } => most,
                Stage::Loaded(loaded) if loaded.keep != Keep::For(Duration::ZERO) => return false,
                // The step of the last answer is not over yet.
                Stage::Loaded(loaded) if loaded.leases == 0 => most,
                // Its answer may be out, and its request not over.
                Stage::Loaded(_) => most.min(MOMENT),
                Stage::Loading { .. } => return false,
            };
            if self.shared.bell.wait_until(&mut state, started + most).timed_out()
                && started.elapsed() >= most
            {
                return false;
            }
        }
    }

    /// How often models were loaded and unloaded.
    pub fn moves(&self) -> ModelMoves {
        self.shared.state.lock().moves
    }

    /// What is known of each, in the order in which they were offered.
    pub fn list(&self) -> Vec<ModelStatus> {
        let state = self.shared.state.lock();
        let queued = |entry: usize| state.asks.iter().any(|ask| ask.entry == entry);
        let of = |(index, entry): (usize, &Entry)| {
            let (mut model, mut leases, mut expires_in, mut reason) = (None, 0, None, None);
            let (mut size, mut memory) = (entry.size, None);
            if let Stage::Unloading { charge, .. } = &entry.stage {
                memory = Some(*charge);
            }
            let at = match &entry.stage {
                Stage::Loaded(loaded) => {
                    memory = Some(loaded.charge);
                    model = Some(loaded.model.clone());
                    size = size.or(Some(loaded.model.info().weight_bytes));
                    leases = loaded.leases;
                    let stays = loaded.stays(&self.shared.options);
                    expires_in = match leases {
                        0 => stays.map(|stays| stays.saturating_sub(loaded.used.elapsed())),
                        _ => stays,
                    };
                    ModelState::Loaded
                }
                Stage::Loading { .. } => ModelState::Loading,
                Stage::Unloaded | Stage::Unloading { .. } | Stage::Failed { .. } if queued(index) => {
                    ModelState::Loading
                }
                Stage::Unloading { .. } => ModelState::Unloading,
                Stage::Unloaded => ModelState::Unloaded,
                Stage::Failed { error, .. } => {
                    reason = Some(error.to_string());
                    ModelState::Failed
                }
            };
            let (name, aliases) = (entry.name.clone(), entry.aliases.clone());
            ModelStatus { name, aliases, state: at, reason, size, memory, model, leases, expires_in }
        };
        state.entries.iter().enumerate().map(of).collect()
    }
}

impl Drop for Models {
    fn drop(&mut self) {
        self.shared.state.lock().ending = true;
        self.shared.bell.notify_all();
        // Models are gone when this returns: what libraries do at a process's end is not to meet them at work.
        if let Some(loads) =
            self.loads.take().filter(|loads| loads.thread().id() != std::thread::current().id())
        {
            let _ = loads.join();
        }
    }
}

fn unknown(name: &str) -> Error {
    Error::Task { model: crate::json::quote(name).to_string(), what: "there is no model of this name".into() }
}

fn failed(name: &str, error: &Arc<Error>) -> Error {
    Error::Load { model: name.to_owned(), source: Arc::clone(error) }
}

impl Loaded {
    /// Has it stay for another time.
    fn keep_as(&mut self, keep: Keep) {
        if !self.pinned && keep != Keep::AsBefore {
            self.keep = keep;
        }
    }

    /// Has it go when nobody uses it.
    fn unload(&mut self) {
        self.keep = Keep::For(Duration::ZERO);
        self.told += 1;
    }

    /// How long it stays when nobody uses it.
    fn stays(&self, options: &ModelsOptions) -> Option<Duration> {
        match self.keep {
            Keep::Usual | Keep::AsBefore => options.idle_unload,
            Keep::For(time) => Some(time),
            Keep::Forever => None,
        }
    }
}

impl State {
    fn add(&mut self, entry: Entry) -> Result<()> {
        let named = |name: &String| name != "*" && self.find_named(name).is_some();
        if named(&entry.name) || entry.aliases.iter().any(named) {
            let what = "another model goes by this name, or by one of its aliases".to_owned();
            return Err(Error::Task { model: crate::json::quote(&entry.name).to_string(), what });
        }
        self.entries.push(entry);
        Ok(())
    }

    fn find_named(&self, name: &str) -> Option<usize> {
        let is = |entry: &Entry| entry.name == name || entry.aliases.iter().any(|alias| alias == name);
        self.entries.iter().position(is)
    }

    fn find(&self, name: Option<&str>) -> Option<usize> {
        let Some(name) = name else { return (!self.entries.is_empty()).then_some(0) };
        self.find_named(name).or_else(|| self.find_named("*"))
    }

    /// Whether a model is loaded that nobody uses, and that may go. Who went away may have left a step behind, which is not over.
    fn is_free(&self, entry: usize) -> bool {
        match &self.entries[entry].stage {
            Stage::Loaded(loaded) => loaded.leases == 0 && !loaded.pinned && loaded.model.engine().is_idle(),
            _ => false,
        }
    }

    /// When the next model has been idle for as long as it may, and which.
    fn next_idle(&self, options: &ModelsOptions) -> Option<(Instant, usize)> {
        let due = |(index, entry): (usize, &Entry)| match &entry.stage {
            Stage::Loaded(loaded) if loaded.leases == 0 && !loaded.pinned => {
                let due = loaded.used.checked_add(loaded.stays(options)?)?;
                let now = Instant::now();
                // Its engine is looked at again.
                Some((if due <= now && !self.is_free(index) { now + LOOK } else { due }, index))
            }
            _ => None,
        };
        self.entries.iter().enumerate().filter_map(due).min()
    }
}

impl Shared {
    /// A lease of a model that is loaded and stays.
    fn lease(self: &Arc<Self>, state: &mut State, entry: usize, keep: Keep) -> Option<Lease> {
        let Entry { name, stage: Stage::Loaded(loaded), .. } = &mut state.entries[entry] else { return None };
        if loaded.leaving {
            return None;
        }
        loaded.leases += 1;
        loaded.used = Instant::now();
        loaded.keep_as(keep);
        let (model, told) = (loaded.model.clone(), loaded.told);
        Some(Lease { shared: Arc::clone(self), entry, name: name.clone(), model, told })
    }

    /// Begins to unload a model that nobody uses. It has its memory until its engine has ended, on a thread that nobody waits for, and
    /// until whoever looks at it has let go.
    fn retire(self: &Arc<Self>, state: &mut State, entry: usize) {
        let stage = std::mem::replace(&mut state.entries[entry].stage, Stage::Unloaded);
        let Stage::Loaded(loaded) = stage else {
            state.entries[entry].stage = stage;
            return;
        };
        let Loaded { model, kind, charge, .. } = *loaded;
        state.entries[entry].stage = Stage::Unloading { kind, charge };
        let (shared, name) = (Arc::clone(self), state.entries[entry].name.clone());
        let end = move || {
            while !model.engine().is_last() {
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(model);
            give_back();
            tracing::info!(model = name, "unloaded");
            let mut state = shared.state.lock();
            state.moves.unloads += 1;
            if let Some(entry) = state.entries.get_mut(entry) {
                entry.stage = Stage::Unloaded;
            }
            shared.bell.notify_all();
        };
        let thread = std::thread::Builder::new().name("backstop-unload".into());
        if refusals::spawn(thread, end).is_err() {
            // The model is gone with what should have run: its end was waited for here.
            state.entries[entry].stage = Stage::Unloaded;
            state.moves.unloads += 1;
            self.bell.notify_all();
        }
    }
}
