//! The thread that looks for the beginnings of prompts, and reads them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Instant, SystemTime};

use super::{Key, Shared};
use crate::backend::kv::PAGE;
use crate::backend::{HostPart, PartKind};

/// A prompt whose beginning is looked for.
#[derive(Debug)]
pub(in crate::engine) struct Find {
    /// What its pages' keys start from.
    pub beginning: Key,
    /// Those that need not be computed.
    pub tokens: Vec<u32>,
    /// Whole pages that memory holds.
    pub there: usize,
    /// Tokens that its sequence could begin with as it is.
    pub cached: usize,
}

/// What is to be read for it.
#[derive(Debug, Clone)]
pub(in crate::engine) struct Plan {
    /// Tokens that its sequence could begin with then.
    pub len: usize,
    /// Tokens that are not to be computed for it.
    pub gained: usize,
    pub bytes: u64,
    parts: Vec<PlannedPart>,
}

#[derive(Debug, Clone)]
struct PlannedPart {
    key: Key,
    kind: PartKind,
    index: usize,
}

/// What was read.
#[derive(Debug)]
pub(in crate::engine) struct Brought {
    /// Tokens that a sequence can begin with where it is in memory.
    pub len: usize,
    pub gained: usize,
    pub bytes: u64,
    /// Each with the page that it is of.
    parts: Vec<(usize, PartKind, HostPart)>,
}

impl Brought {
    /// Takes out a part.
    pub fn take(&mut self, index: usize, kind: PartKind) -> Option<HostPart> {
        let place = self.parts.iter().position(|(of, is, _)| (*of, *is) == (index, kind))?;
        Some(self.parts.swap_remove(place).2)
    }
}

/// What is asked.
pub(super) enum Job {
    Find(Find),
    Load(Plan),
}

/// What comes of it.
pub(in crate::engine) enum Answer {
    /// It is there, and worth reading.
    Found(Plan),
    /// It was read.
    Loaded(Brought),
    /// Neither.
    Nothing,
}

/// Learns the model's hash, where that is to be read, then answers until nobody asks any more.
pub(super) fn run(shared: &Shared, jobs: &Receiver<Job>, answer: impl Fn(Answer) -> bool) {
    if shared.base.get().is_none() {
        let started = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| shared.cache.model.read(shared.store(), &shared.stop))) {
            Ok(Some(model)) => {
                let seconds = started.elapsed().as_secs_f64();
                tracing::info!(
                    seconds,
                    "the model's files were read: the cache on disk is used from here on"
                );
                shared.set_base(model);
            }
            _ if shared.stop.load(Ordering::Relaxed) => return,
            _ => {
                tracing::warn!("the model's files cannot be read whole, or change: there is no cache on disk")
            }
        }
    }
    // Bytes a second of what was read so far.
    let mut rate = None;
    for job in jobs {
        let found = catch_unwind(AssertUnwindSafe(|| match job {
            Job::Find(find) => look(shared, &find, &mut rate).map(Answer::Found),
            Job::Load(plan) => load(shared, plan, &mut rate).map(Answer::Loaded),
        }));
        if !answer(found.ok().flatten().unwrap_or(Answer::Nothing)) {
            return;
        }
    }
}

/// The longest beginning that is there, where it pays to read it.
fn look(shared: &Shared, find: &Find, rate: &mut Option<f64>) -> Option<Plan> {
    let plan = search(shared, find)?;
    let prefill = f64::from_bits(shared.prefill.load(Ordering::Relaxed));
    if shared.cache.always || prefill == 0.0 {
        return Some(plan);
    }
    let Some(rate) = rate else { return Some(plan) };
    if plan.bytes as f64 / *rate <= plan.gained as f64 / prefill {
        return Some(plan);
    }
    // A disk that was slow once may have been busy: some time it is asked again.
    *rate *= 1.1;
    None
}

/// What has to be read for the longest beginning of which everything is there.
fn search(shared: &Shared, find: &Find) -> Option<Plan> {
    let (store, cost) = (shared.store(), &shared.cost);
    let has = |key: &Key, kind| store.has(key, kind, &shared.shapes);
    // The keys of whole pages that are there, one after the other; first what they start from.
    let mut keys = vec![find.beginning];
    let mut last = find.beginning;
    for (index, page) in find.tokens.chunks_exact(PAGE).enumerate() {
        last = last.then(page);
        if index >= find.there && !has(&last, PartKind::Page) {
            break;
        }
        keys.push(last);
    }
    let whole = keys.len() - 1;
    let mut panes: Vec<Option<bool>> = vec![None; whole];
    // One may lie behind any token: names are read once, and no file is asked for by each.
    let snapshots = (cost.fixed > 0).then(|| store.keys(PartKind::Snapshot));
    for pages in (0..=whole).rev() {
        let start = pages * PAGE;
        let rest = &find.tokens[start..find.tokens.len().min(start + PAGE - 1)];
        // A sequence may have ended within a page: behind any of its tokens.
        for part in (0..=rest.len()).rev() {
            let len = start + part;
            if len <= find.cached {
                return None;
            }
            let (end, parts) = match part {
                0 => (keys[pages], pages),
                part => (keys[pages].then(&rest[..part]), pages + 1),
            };
            if parts == 0 {
                return None;
            }
            let is_there = snapshots.as_ref().is_none_or(|keys| keys.contains(&end))
                && (part == 0 || has(&end, PartKind::Page))
                && (snapshots.is_none() || has(&end, PartKind::Snapshot));
            if !is_there {
                continue;
            }
            let key = |index: usize| if index < pages { keys[index + 1] } else { end };
            let first = if cost.windowed > 0 { cost.first_seen(len) } else { parts };
            let mut seen = (first..parts).rev();
            // Of whole pages it is asked once.
            let has_panes = seen.all(|i| match panes.get_mut(i).filter(|_| i < pages) {
                Some(known) => *known.get_or_insert_with(|| has(&key(i), PartKind::Pane)),
                None => has(&key(i), PartKind::Pane),
            });
            if !has_panes {
                continue;
            }
            let planned = |kind| move |index: usize| PlannedPart { key: key(index), kind, index };
            let now = SystemTime::now();
            for index in 0..parts {
                PartKind::ALL.iter().for_each(|kind| store.touch(&key(index), *kind, (now, index)));
            }
            let parts: Vec<PlannedPart> = (find.there..parts)
                .map(planned(PartKind::Page))
                .chain((first..parts).map(planned(PartKind::Pane)))
                .chain((cost.fixed > 0).then(|| planned(PartKind::Snapshot)(parts - 1)))
                .collect();
            let bytes = parts.iter().map(|part| shared.shapes.bytes(part.kind)).sum();
            return Some(Plan { len, gained: len - find.cached, bytes, parts });
        }
    }
    None
}

/// Reads all of it, or nothing.
fn load(shared: &Shared, plan: Plan, rate: &mut Option<f64>) -> Option<Brought> {
    let Plan { len, gained, bytes, parts } = plan;
    let started = Instant::now();
    let read = |PlannedPart { key, kind, index }: PlannedPart| {
        if shared.stop.load(Ordering::Relaxed) {
            return None;
        }
        Some((index, kind, shared.store().read(&key, kind, &shared.shapes, len)?))
    };
    // All of them, so that whatever is damaged among them is removed, and written anew.
    let parts: Vec<Option<_>> = parts.into_iter().map(read).collect();
    let parts = parts.into_iter().collect::<Option<Vec<_>>>()?;
    if bytes > 0 {
        let now = bytes as f64 / started.elapsed().as_secs_f64().max(1e-9);
        *rate = Some(rate.map_or(now, |before| before * 0.5 + now * 0.5));
    }
    Some(Brought { len, gained, bytes, parts })
}
