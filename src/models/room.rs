//! Room for a model in the memory of several: what each gets, and who gives way.

use std::sync::Arc;
use std::time::Instant;

use super::{Keep, Loaded, Shared, Stage, State};
use crate::backend::LlmBackendKind;
use crate::backend::select::{self, MemoryNeed};
use crate::engine::EngineOptions;
use crate::error::{Error, Result};
use crate::model::{LEAST_CONTEXT, LoadOptions, MemorySetting, Model, ModelFiles};

/// What a model may take.
pub(super) struct Room {
    /// Bytes; none where the machine does not say how many it has.
    memory: Option<u64>,
}

/// Room for a model while another waits for more than there is.
pub(super) struct Ahead {
    pub room: Room,
    /// Whether the other will have less for it.
    pub takes: bool,
}

/// What a model is, how it is loaded, and what it takes at least.
pub(super) struct Wanted {
    files: ModelFiles,
    options: LoadOptions,
    kind: LlmBackendKind,
    /// Bytes with a short context.
    least: u64,
    /// Whether it is one of several.
    among_others: bool,
}

impl Shared {
    /// Reads what a model is.
    pub(super) fn open(&self, entry: usize) -> Result<Wanted> {
        let (from, among_others) = {
            let state = self.state.lock();
            (state.entries[entry].from.clone(), state.entries.len() > 1)
        };
        let Some((open, options)) = from else {
            return Err(Error::Engine("there is nothing that the model could be loaded from".into()));
        };
        wanted(open()?, options, among_others, self.options.memory)
    }

    /// Loads a model into the room that was made for it.
    pub(super) fn load(&self, wanted: Wanted, room: Room) -> Result<Loaded> {
        let started = Instant::now();
        let Wanted { files, options, kind, among_others, .. } = wanted;
        let name = files.name();
        // The only one has what there is, by the rules of one model.
        let alone = !among_others && self.options.memory.is_none();
        let memory = room.memory.filter(|_| !alone);
        let kv_memory = options.kv_memory.or_else(|| Some(kv_memory(&files, kind, &options, memory?)));
        let machine = Some(self.machine.clone());
        // Other ranks compute it with this process once.
        let pinned = options.ranks.is_some();
        let options = LoadOptions { machine, memory, kv_memory, ..options };
        let model = Model::load_with(files, options)?;
        let charge = model.info().memory;
        tracing::info!(model = name, seconds = started.elapsed().as_secs_f64(), "loaded");
        let kind = model.info().selection.kind;
        Ok(Loaded {
            model,
            kind,
            charge,
            leases: 0,
            used: Instant::now(),
            keep: Keep::Usual,
            told: 0,
            leaving: false,
            pinned,
        })
    }

    /// Room for a model, once there is some: until then one that nobody uses is unloaded, and one that somebody does is to leave.
    pub(super) fn make_room(
        self: &Arc<Self>,
        state: &mut State,
        entry: usize,
        wanted: &Wanted,
    ) -> Result<Option<Room>> {
        let Some(had) = self.had(state, wanted.kind) else {
            return Ok(Some(self.room(state, entry, wanted, None)));
        };
        // Nobody is unloaded for one that cannot have enough.
        let stays = self.sum(state, wanted.kind, |stage| match stage {
            Stage::Loaded(loaded) if loaded.pinned => Some((loaded.kind, loaded.charge)),
            _ => None,
        });
        if (self.options.memory.is_some() || stays > 0) && stays.saturating_add(wanted.least) > had {
            let (needed, available) = (wanted.least, had.saturating_sub(stays));
            return Err(Error::Memory { what: wanted.files.name(), needed, available });
        }
        loop {
            let taken = self.taken(state, wanted.kind);
            // Others, who are no models, may have taken memory since.
            let is_there = || (self.available)(wanted.kind).is_none_or(|available| wanted.least <= available);
            let fits = taken.saturating_add(wanted.least) <= had;
            if taken == 0 || fits && (is_there() || !self.has_idle(state, wanted.kind)) {
                // Alone it may have what there is: weights are read from their file as far as there is room.
                return Ok(Some(self.room(state, entry, wanted, Some(had))));
            }
            // One that is to leave goes once nobody uses it any more: here.
            let leaves = |(index, entry): (usize, &super::Entry)| match &entry.stage {
                Stage::Loaded(loaded) if loaded.leaving && !state.is_free(index) => {
                    self.shares(loaded.kind, wanted.kind).then_some(loaded.charge)
                }
                _ => None,
            };
            let leaving = state.entries.iter().enumerate().filter_map(leaves);
            let unloading = self.unloading(state, wanted.kind);
            // What others took is not waited for until an answer is out.
            let going = if fits { unloading } else { leaving.fold(unloading, u64::saturating_add) };
            let enough = going > 0 && taken.saturating_sub(going).saturating_add(wanted.least) <= had;
            let loaded = |(index, entry): (usize, &super::Entry)| match &entry.stage {
                Stage::Loaded(loaded) if self.shares(loaded.kind, wanted.kind) && !loaded.pinned => {
                    // Of those in use, the one that is leaving already.
                    Some((!state.is_free(index), !loaded.leaving, loaded.used, index))
                }
                _ => None,
            };
            match state.entries.iter().enumerate().filter_map(loaded).min().filter(|_| !enough) {
                Some((false, _, _, idle)) => {
                    tracing::info!(model = state.entries[idle].name, "unloading: another needs its memory");
                    self.retire(state, idle);
                }
                Some((true, _, _, busy)) => {
                    if let Stage::Loaded(loaded) = &mut state.entries[busy].stage {
                        loaded.leaving = true;
                    }
                    return Ok(None);
                }
                None => return Ok(None),
            }
        }
    }

    /// Room for a model that is there now, while `first` waits for more.
    pub(super) fn room_ahead(
        &self,
        state: &mut State,
        entry: usize,
        wanted: &Wanted,
        first: &Wanted,
    ) -> Option<Ahead> {
        let Some(had) = self.had(state, wanted.kind) else {
            return Some(Ahead { room: self.room(state, entry, wanted, None), takes: false });
        };
        let taken = self.taken(state, wanted.kind);
        if taken > 0 && taken.saturating_add(wanted.least) > had {
            return None;
        }
        if !self.shares(first.kind, wanted.kind) {
            return Some(Ahead { room: self.room(state, entry, wanted, Some(had)), takes: false });
        }
        // What is there beside the first once those are gone that it waits for.
        let leaving = self.sum(state, wanted.kind, |stage| match stage {
            Stage::Loaded(loaded) if loaded.leaving => Some((loaded.kind, loaded.charge)),
            _ => None,
        });
        let stay = taken.saturating_sub(leaving).saturating_sub(self.unloading(state, wanted.kind));
        let beside = had.saturating_sub(stay).saturating_sub(first.least.saturating_sub(MemoryNeed::RESERVE));
        let takes = beside < wanted.least;
        let Room { memory } = self.room(state, entry, wanted, Some(had));
        let memory = if takes { Some(wanted.least) } else { Some(beside) }.into_iter().chain(memory).min();
        Some(Ahead { room: Room { memory }, takes })
    }

    /// What a backend had for models before the first of those was loaded that there are.
    fn had(&self, state: &mut State, kind: LlmBackendKind) -> Option<u64> {
        if self.options.memory.is_some() {
            return self.options.memory;
        }
        if self.taken(state, kind) == 0 {
            state.had.retain(|(of, _)| !self.shares(*of, kind));
        }
        if let Some((_, had)) = state.had.iter().find(|(of, _)| *of == kind) {
            return *had;
        }
        let had = (self.available)(kind);
        state.had.push((kind, had));
        had
    }

    /// Whether a model that shares the memory of `kind` may go at once.
    fn has_idle(&self, state: &State, kind: LlmBackendKind) -> bool {
        let mut entries = state.entries.iter().enumerate();
        entries.any(|(index, entry)| match &entry.stage {
            Stage::Loaded(loaded) => self.shares(loaded.kind, kind) && state.is_free(index),
            Stage::Unloading { kind: other, .. } => self.shares(*other, kind),
            _ => false,
        })
    }

    /// What is free for a model of what its backend had.
    fn room(&self, state: &State, entry: usize, wanted: &Wanted, had: Option<u64>) -> Room {
        let left = |had: u64| had.saturating_sub(self.taken(state, wanted.kind));
        let share = had.map(|had| share(state, entry, wanted.least, had).min(left(had)));
        // Others may have taken some since, who are no models.
        let memory = [share, (self.available)(wanted.kind)].into_iter().flatten().min();
        Room { memory }
    }

    /// Bytes of those that are on their way out.
    fn unloading(&self, state: &State, kind: LlmBackendKind) -> u64 {
        self.sum(state, kind, |stage| match stage {
            Stage::Unloading { kind, charge } => Some((*kind, *charge)),
            _ => None,
        })
    }

    /// Whether models on these backends have one memory: what was asked for is of all, and Apple's GPU has that of its CPU.
    fn shares(&self, one: LlmBackendKind, other: LlmBackendKind) -> bool {
        one == other || self.options.memory.is_some() || cfg!(target_os = "macos")
    }

    /// Bytes of the models that share the memory of `kind`, of those that `of` has.
    fn sum(
        &self,
        state: &State,
        kind: LlmBackendKind,
        of: impl Fn(&Stage) -> Option<(LlmBackendKind, u64)>,
    ) -> u64 {
        let charges = state.entries.iter().filter_map(|entry| of(&entry.stage));
        let charges = charges.filter(|(other, _)| self.shares(*other, kind)).map(|(_, charge)| charge);
        charges.fold(0, u64::saturating_add)
    }

    /// Bytes that the loaded models may take which share the memory of `kind`.
    fn taken(&self, state: &State, kind: LlmBackendKind) -> u64 {
        self.sum(state, kind, |stage| match stage {
            Stage::Loaded(loaded) => Some((loaded.kind, loaded.charge)),
            Stage::Unloading { kind, charge } => Some((*kind, *charge)),
            _ => None,
        })
    }
}

/// Bytes that a model takes beside its keys and values.
fn fixed(files: &ModelFiles, kind: LlmBackendKind, options: &LoadOptions) -> u64 {
    let need = files.memory_need(files.memory_setting(kind, options));
    need.weights.saturating_add(need.activations)
}

/// Bytes that keys and values may take of `memory`: those of twice as many sequences as run at once, as far as they fit, and of one
/// of a short context at least.
fn kv_memory(files: &ModelFiles, kind: LlmBackendKind, options: &LoadOptions, memory: u64) -> u64 {
    let of = |context: usize| {
        let setting = MemorySetting { context, ..files.memory_setting(kind, options) };
        files.memory_need(setting).kv
    };
    let context = options.context.unwrap_or_else(|| files.fitting_context(kind, options, Some(memory)));
    let sequences = options.max_sequences.unwrap_or(EngineOptions::default().max_sequences).max(1);
    let most = of(context).saturating_mul(2 * sequences as u64);
    let left = memory.saturating_sub(fixed(files, kind, options)).saturating_sub(MemoryNeed::RESERVE);
    left.max(of(context.min(LEAST_CONTEXT))).min(most)
}

/// What a model is, and what it takes.
fn wanted(files: ModelFiles, options: LoadOptions, among_others: bool, had: Option<u64>) -> Result<Wanted> {
    let on_mlx = files.memory_need(files.memory_setting(LlmBackendKind::Mlx, &options));
    let kind = select::select(options.backend, &on_mlx)?.kind;
    let trained = files.config().max_context();
    // One number for several models: each takes what it can of it.
    let context = options.context.map(|context| if among_others { context.min(trained) } else { context });
    let options = LoadOptions { context, ..options };
    let least = |context: usize| {
        let need = files.memory_need(MemorySetting { context, ..files.memory_setting(kind, &options) });
        MemoryNeed { kv: options.kv_memory.unwrap_or(need.kv), ..need }.total()
    };
    let short = least(trained.min(LEAST_CONTEXT));
    // A context that was asked for is made room for, where it can be had.
    let asked = context
        .map(|context| least(context.min(trained)))
        .filter(|&least| had.is_none_or(|had| least <= had));
    let least = asked.unwrap_or(short);
    Ok(Wanted { files, options, kind, least, among_others })
}

/// What a model may take of `had` bytes: all, where it is the only one; where all fit, what they leave in equal parts beside its
/// own weights; else half of what it leaves itself.
pub(super) fn share(state: &State, entry: usize, least: u64, had: u64) -> u64 {
    let others = state.entries.iter().enumerate().filter(|(index, _)| *index != entry);
    let (count, sizes) = others.fold((1, Some(0_u64)), |(count, sum), (_, other)| {
        (count + 1, sum.zip(other.size).and_then(|(sum, size)| sum.checked_add(size)))
    });
    if count == 1 {
        return had;
    }
    let all = sizes.map(|sizes| sizes.saturating_add(least)).filter(|&all| all <= had);
    match all {
        Some(all) => least + (had - all) / count,
        None => least.saturating_add(had.saturating_sub(least) / 2),
    }
}
