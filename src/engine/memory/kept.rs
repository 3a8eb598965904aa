//! What is kept, in memory and on disk: what goes there, and what comes from there.

use std::time::Instant;

use super::{Memory, NodeId, TreeKey};
use crate::alloc;
use crate::backend::PartKind;
use crate::backend::kv::PAGE;
use crate::engine::disk::{Brought, Disk, Find, Key, LEAST, Save, SavedPart};
use crate::engine::request::Space;
use crate::engine::runtime::Runtime;

/// What became of a beginning that was to be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handed {
    /// All of it is there already, or it is not worth it.
    Nothing,
    Over,
    /// There was no room for it.
    Refused,
}

impl Memory {
    /// The cache on disk, where there is one.
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    fn key_of(&self, runtime: &Runtime, prompt: usize, space: &Space) -> TreeKey {
        (space.clone(), runtime.sequence(prompt).frequencies)
    }

    /// What to look for on disk for a sequence whose prompt has `prompt` tokens and begins with `tokens`, which need not be
    /// computed: nothing where memory has nearly all of them.
    pub fn wanted(&self, runtime: &Runtime, prompt: usize, tokens: &[u32], space: &Space) -> Option<Find> {
        let disk = self.disk.as_ref().filter(|_| tokens.len() >= LEAST)?;
        let key = self.key_of(runtime, prompt, space);
        let beginning = disk.beginning(space, &key.1)?;
        let found = self.tree.find(&key, tokens, tokens.len());
        let cached = found.whole.len() * PAGE + found.part.map_or(0, |(_, len)| len);
        if tokens.len() - cached < PAGE {
            return None;
        }
        let (mut there, mut last) = (0, None);
        while let Some(page) = tokens.chunks_exact(PAGE).nth(there)
            && let Some(node) = self.tree.whole_child(&key, last, page)
        {
            (there, last) = (there + 1, Some(node));
        }
        let tokens = alloc::copy_of(tokens, "the tokens of a prompt that is looked for on disk").ok()?;
        Some(Find { beginning, tokens, there, cached })
    }

    /// Sets room aside for what is read, until [`Self::bring`] or [`Self::put_back`]; whether there is any.
    pub fn set_aside(&mut self, bytes: u64) -> bool {
        let has_room = self.make_room(bytes);
        self.reserved += if has_room { bytes } else { 0 };
        has_room
    }

    /// Takes back what was set aside.
    pub fn put_back(&mut self, bytes: u64) {
        self.reserved -= bytes;
    }

    /// Brings to the tree what was read of the beginning of `tokens`, with the room that was set aside for it.
    pub fn bring(
        &mut self,
        runtime: &Runtime,
        prompt: usize,
        tokens: &[u32],
        space: &Space,
        mut of: Brought,
    ) {
        self.put_back(of.bytes);
        let (key, cost) = (self.key_of(runtime, prompt, space), self.budget.cost);
        let tokens = &tokens[..of.len.min(tokens.len())];
        let mut path: Vec<NodeId> = Vec::with_capacity(tokens.len().div_ceil(PAGE));
        for (index, tokens) in tokens.chunks(PAGE).enumerate() {
            let last = path.last().copied();
            let node = match self.node_of(&key, last, tokens) {
                Some(node) => node,
                None => {
                    let Some(page) = of.take(index, PartKind::Page) else { break };
                    let bytes = cost.of_page(tokens.len());
                    if !self.make_room(bytes) {
                        break;
                    }
                    let node = self.tree.insert(key.clone(), last, tokens, page.into(), bytes);
                    self.tree.on_disk_mut(node).set(PartKind::Page, true);
                    node
                }
            };
            self.tree.hold(node);
            path.push(node);
            if self.tree.lacks_pane(node, tokens.len())
                && let Some(pane) = of.take(index, PartKind::Pane)
                && self.make_room(cost.of_pane())
            {
                self.tree.set_pane(node, pane.into(), cost.of_pane());
                self.tree.on_disk_mut(node).set(PartKind::Pane, true);
            }
        }
        let is_whole = path.len() == tokens.len().div_ceil(PAGE);
        if let Some(&last) = path.last().filter(|_| is_whole)
            && self.tree.snapshot(last).is_none()
            && let Some(snapshot) = of.take(path.len() - 1, PartKind::Snapshot)
            && self.make_room(cost.fixed / 2)
        {
            self.tree.set_snapshot(last, snapshot.into(), cost.fixed / 2);
            self.tree.on_disk_mut(last).set(PartKind::Snapshot, true);
        }
        self.tree.touch(&path, cost.first_seen(tokens.len()));
        path.into_iter().for_each(|node| self.tree.let_go(node));
        if let Some(disk) = self.disk.as_ref() {
            disk.count_found(if is_whole { of.gained } else { 0 });
        }
        debug_assert!(self.tree_charge() + self.reserved <= self.budget.bytes);
    }

    /// Hands what is evicted next to the disk, where that is worth it.
    pub(super) fn save_next_evicted(&mut self) {
        if self.disk.is_none() {
            return;
        }
        if let Some((node, kind)) = self.tree.next_evicted()
            && !self.tree.on_disk(node).has(kind)
            // Nobody has begun or ended behind it.
            && (kind != PartKind::Pane || self.tree.pane_was_used(node))
            && self.save(node, None) == Handed::Refused
            && let Some(disk) = &self.disk
        {
            disk.count_dropped();
        }
    }

    /// Whether something is kept that the disk does not have.
    pub fn has_unsaved(&self) -> bool {
        let retries = |disk: &Disk| self.unsaved || disk.is_retry_due(self.lost);
        self.disk.as_ref().is_some_and(|disk| disk.is_ready() && retries(disk))
    }

    /// What could not be written, nobody knows of which: all of it counts as not handed over. What is there is not written again.
    fn forget_lost(&mut self) {
        let lost = self.disk.as_ref().map_or(0, Disk::lost);
        if std::mem::replace(&mut self.lost, lost) != lost {
            self.tree.nothing_on_disk();
            self.unsaved = true;
        }
    }

    /// Hands all that is kept and new to the disk, the last used first, waiting until `patience` for room in its queue; what could
    /// not be written again, too, where it has patience or that is due. Whether something is left.
    pub fn save_all(&mut self, patience: Option<Instant>) -> bool {
        let is_due = |disk: &Disk| patience.is_some() || disk.is_retry_due(self.lost);
        if self.disk.as_ref().is_some_and(is_due) {
            self.forget_lost();
        }
        if self.unsaved && self.disk.as_ref().is_some_and(Disk::is_ready) {
            let leaves = self.tree.leaves();
            self.unsaved = leaves.into_iter().any(|leaf| self.save(leaf, patience) == Handed::Refused);
        }
        self.unsaved
    }

    /// Hands the pages up to `node` to the disk, those that it does not have, with the panes behind which somebody has begun
    /// or may begin, and the snapshots.
    fn save(&mut self, node: NodeId, patience: Option<Instant>) -> Handed {
        let Some(disk) = &self.disk else { return Handed::Nothing };
        let path = self.tree.path(node);
        let Some(&last) = path.last() else { return Handed::Nothing };
        let len = (path.len() - 1) * PAGE + self.tree.tokens(last).len();
        if len < LEAST {
            return Handed::Nothing;
        }
        let seen = self.budget.cost.first_seen(len);
        let mut parts: Vec<SavedPart> = (path.iter().enumerate())
            .flat_map(|(index, &node)| {
                let pane = (index >= seen || self.tree.pane_was_used(node)).then(|| self.tree.pane(node));
                let parts = [
                    (PartKind::Page, self.tree.page(node)),
                    (PartKind::Pane, pane.flatten()),
                    (PartKind::Snapshot, self.tree.snapshot(node)),
                ];
                let on_disk = self.tree.on_disk(node);
                parts.into_iter().filter_map(move |(kind, page)| {
                    let part = page.filter(|_| !on_disk.has(kind))?.host()?;
                    Some(SavedPart { index, kind, part })
                })
            })
            .collect();
        if parts.is_empty() {
            return Handed::Nothing;
        }
        let known = path.iter().rposition(|&node| self.tree.on_disk(node).key.is_some());
        let start = match known {
            Some(index) => self.tree.on_disk(path[index]).key,
            None => self.tree.key(last).and_then(|(space, of)| disk.beginning(space, of)),
        };
        let Some(mut key) = start else { return Handed::Nothing };
        for &node in &path[known.map_or(0, |index| index + 1)..] {
            key = key.then(self.tree.tokens(node));
            self.tree.on_disk_mut(node).key = Some(key);
        }
        let keys: Vec<Key> = path.iter().filter_map(|&node| self.tree.on_disk(node).key).collect();
        // As much at once as the queue has room for: what waits there is memory beside the budget.
        while !parts.is_empty() {
            let later = parts.split_off(disk.at_once(&parts));
            let marks: Vec<(NodeId, PartKind)> =
                parts.iter().map(|part| (path[part.index], part.kind)).collect();
            if !disk.save(Save { keys: keys.clone(), parts }, patience) {
                return Handed::Refused;
            }
            marks.into_iter().for_each(|(node, kind)| self.tree.on_disk_mut(node).set(kind, true));
            parts = later;
        }
        Handed::Over
    }

    /// What a look came to nothing.
    pub fn found_nothing(&self) {
        if let Some(disk) = &self.disk {
            disk.count_found(0);
        }
    }
}
