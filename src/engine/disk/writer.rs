//! The thread that writes what the engine hands over.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Instant, SystemTime};

use super::{Key, Shared};
use crate::backend::{HostPart, PartKind, PartShapes};

/// What is new of a beginning.
pub(in crate::engine) struct Save {
    /// The keys of all of its pages.
    pub keys: Vec<Key>,
    /// Page by page.
    pub parts: Vec<SavedPart>,
}

/// What is to be written of page `index`.
pub(in crate::engine) struct SavedPart {
    pub index: usize,
    pub kind: PartKind,
    pub part: HostPart,
}

impl Save {
    pub fn bytes(&self, shapes: &PartShapes) -> u64 {
        self.parts.iter().map(|part| shapes.bytes(part.kind)).sum()
    }
}

/// Writes until nobody hands anything over any more.
pub(super) fn run(shared: &Shared, saves: &Receiver<Save>) {
    let mut told = false;
    for save in saves {
        let mut left = save.bytes(&shared.shapes);
        let written = catch_unwind(AssertUnwindSafe(|| write(shared, save, &mut left)));
        if !matches!(written, Ok(Ok(()))) {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            let mut lost = shared.lost.lock();
            (lost.times, lost.last) = (lost.times + 1, Some(Instant::now()));
        }
        if let Ok(Err(what)) = written
            && !std::mem::replace(&mut told, true)
        {
            tracing::warn!(
                what,
                "the beginning of a prompt is not kept on disk, which is tried again; further ones are not told of"
            );
        }
        *shared.waiting.lock() -= left;
        shared.fewer.notify_all();
    }
}

/// Writes the parts; each is let go of once it is written, and `left` are the bytes of those that are not.
fn write(shared: &Shared, save: Save, left: &mut u64) -> Result<(), String> {
    let store = shared.store();
    // Asked after it was computed: of a file that has changed since, nobody knows what was read.
    if !shared.cache.model.is_unchanged() {
        return Err("the model's files have changed since it was loaded".into());
    }
    let now = SystemTime::now();
    for (index, key) in save.keys.iter().enumerate() {
        PartKind::ALL.iter().for_each(|kind| store.touch(key, *kind, (now, index)));
    }
    for SavedPart { index, kind, part } in save.parts {
        if shared.until.get().is_some_and(|until| Instant::now() > *until) {
            return Err("the time for it is over".into());
        }
        let place = (now, index);
        store.write(&save.keys[index], kind, &part, &shared.shapes, place).map_err(|e| e.to_string())?;
        let bytes = shared.shapes.bytes(kind);
        // Before there is room for others.
        drop(part);
        *left -= bytes;
        *shared.waiting.lock() -= bytes;
        shared.fewer.notify_all();
    }
    Ok(())
}
