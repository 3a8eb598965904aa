//! The memory that K and V may take: what running sequences have a right to, and beginnings of sequences that are kept for
//! others, within one budget.
//!
//! A sequence is admitted with the bytes of its worst case, so that it never runs out; what it shares of others counts once.
//! What is kept beside that is evicted when somebody needs the room.

use std::sync::Arc;

use super::prefix::{Found, NodeId, PrefixTree};
use super::runtime::Runtime;
use crate::backend::kv::PAGE;
use crate::backend::rope::Frequencies;
use crate::backend::{KvCost, KvPage};
use crate::error::{Error, Result};
use crate::forward::step::SequenceState;

/// What K and V of all sequences may take, and what they take each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    pub bytes: u64,
    pub cost: KvCost,
}

impl Budget {
    /// `bytes`, or half of what can be counted where that is less.
    pub fn new(bytes: u64, cost: KvCost) -> Self {
        Self { bytes: bytes.min(u64::MAX / 2), cost }
    }

    /// Refuses a sequence that would not fit if it were the only one.
    pub fn check(&self, prompt: usize, generated: usize) -> Result<()> {
        let needed = self.cost.of_sequence(prompt.saturating_add(generated));
        if needed > self.bytes {
            let what = match generated {
                0 => format!("the KV cache of {prompt} tokens"),
                _ => format!("the KV cache of {prompt} tokens of prompt and {generated} to generate"),
            };
            return Err(Error::Memory { what, needed, available: self.bytes });
        }
        Ok(())
    }
}

/// The budget, and who has a part of it.
#[derive(Debug)]
pub(super) struct Memory {
    budget: Budget,
    /// What sequences have a right to beside pages of the tree.
    reserved: u64,
    tree: PrefixTree<Arc<[Arc<Frequencies>]>, KvPage>,
    counts: Counts,
}

/// What became of requests and pages since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Sequences that began with what was kept.
    pub hits: u64,
    /// The tokens of theirs that were not computed.
    pub hit_tokens: u64,
    /// Pages that had to go.
    pub evicted: u64,
}

/// What a running sequence has of the memory, until [`Memory::release`].
#[derive(Debug)]
pub(super) struct Lease {
    /// Pages of the tree that it began with or has brought there, from the first on.
    pages: Vec<NodeId>,
    /// Bytes reserved beside those that it shares.
    own: u64,
}

impl Memory {
    pub fn new(budget: Budget) -> Self {
        Self { budget, reserved: 0, tree: PrefixTree::new(PAGE), counts: Counts::default() }
    }

    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// Bytes of the pages that are kept, whoever uses them.
    pub fn kept(&self) -> u64 {
        self.tree.bytes()
    }

    /// Of these, bytes of pages that running sequences use.
    pub fn shared(&self) -> u64 {
        self.tree.used_bytes()
    }

    /// Bytes that running sequences have a right to beside the shared ones.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// All pages that are kept.
    #[cfg(test)]
    pub fn pages(&self) -> impl Iterator<Item = &KvPage> {
        self.tree.pages()
    }

    /// Bytes that a sequence has allocated beside what it shares.
    pub fn own(&self, state: &SequenceState, lease: &Lease) -> u64 {
        (state.kv.bytes() as u64).saturating_sub(self.whole_pages(lease.pages.len()))
    }

    /// Starts a sequence that will hold at most `tokens`, with the longest beginning of its prompt that is kept, of at most
    /// `skippable` tokens. None while there is no room for it.
    pub fn admit(
        &mut self,
        runtime: &Runtime,
        prompt: &[u32],
        tokens: usize,
        skippable: usize,
    ) -> Option<(SequenceState, Lease)> {
        let frequencies = runtime.sequence(prompt.len()).frequencies;
        let found = self.tree.find(&frequencies, prompt, skippable);
        // A page that is copied takes room beside its copy: where there is too little, its tokens are computed anew.
        let mut ways = vec![found.clone(), Found { part: None, ..found }, Found::default()];
        ways.dedup();
        for found in ways {
            let nodes: Vec<NodeId> = found.nodes().collect();
            let shared = if self.budget.cost.shared { found.whole.len() } else { 0 };
            let own = self.budget.cost.of_sequence(tokens).saturating_sub(self.whole_pages(shared));
            nodes.iter().for_each(|&node| self.tree.hold(node));
            let state = if self.make_room(own) { self.start(runtime, prompt, &found) } else { None };
            let held = if state.is_some() { shared } else { 0 };
            nodes[held..].iter().for_each(|&node| self.tree.let_go(node));
            let Some(state) = state else { continue };
            self.tree.touch(&nodes);
            self.counts.hits += u64::from(!nodes.is_empty());
            self.counts.hit_tokens += state.history.len() as u64;
            self.reserved += own;
            return Some((state, Lease { pages: nodes[..held].to_vec(), own }));
        }
        None
    }

    /// A running sequence that begins with `tokens` as it was before its caches got lost: with the pages that it shares of
    /// these, and nothing else.
    pub fn restart(&self, runtime: &Runtime, prompt: usize, tokens: &[u32], lease: &Lease) -> SequenceState {
        let shared = lease.pages.iter().take(tokens.len() / PAGE);
        let pages: Vec<KvPage> = shared.filter_map(|&node| self.tree.page(node).cloned()).collect();
        let restored = match pages.is_empty() {
            true => None,
            false => runtime.restore(prompt, &tokens[..pages.len() * PAGE], &pages).ok(),
        };
        restored.unwrap_or_else(|| runtime.sequence(prompt))
    }

    /// A sequence that begins with what was found; none where that cannot be copied.
    fn start(&self, runtime: &Runtime, prompt: &[u32], found: &Found) -> Option<SequenceState> {
        let len = found.whole.len() * PAGE + found.part.map_or(0, |(_, len)| len);
        if len == 0 {
            return Some(runtime.sequence(prompt.len()));
        }
        let pages: Vec<KvPage> = found.nodes().filter_map(|node| self.tree.page(node).cloned()).collect();
        match runtime.restore(prompt.len(), &prompt[..len], &pages) {
            Ok(state) => Some(state),
            Err(error) => {
                tracing::warn!(%error, "pages cannot be restored, their tokens are computed anew");
                None
            }
        }
    }

    /// Keeps the whole pages of a running sequence's first `len` tokens for others that begin alike.
    pub fn share(&mut self, runtime: &Runtime, state: &mut SequenceState, lease: &mut Lease, len: usize) {
        self.keep(runtime, state, lease, len / PAGE * PAGE);
    }

    /// Takes back what a sequence had; what it computed is kept while there is room.
    pub fn release(&mut self, runtime: &Runtime, mut state: SequenceState, mut lease: Lease) {
        let len = state.history.len().min(state.kv.len());
        self.keep(runtime, &mut state, &mut lease, len);
        drop(state);
        lease.pages.iter().for_each(|&node| self.tree.let_go(node));
        self.reserved -= lease.own;
    }

    /// Brings the pages of the first `len` tokens to the tree, those that it does not have. Where pages are shared, the
    /// sequence holds the whole ones from here on, and has a right to so much less.
    fn keep(&mut self, runtime: &Runtime, state: &mut SequenceState, lease: &mut Lease, len: usize) {
        let tokens: Vec<u32> = state.history[..len.min(state.history.len())].to_vec();
        let pages: Vec<&[u32]> = tokens.chunks(PAGE).collect();
        let mut path: Vec<NodeId> = Vec::with_capacity(pages.len());
        while let Some(page) = pages.get(path.len())
            && let Some(node) = self.tree.child(&state.frequencies, path.last().copied(), page)
        {
            self.tree.hold(node);
            path.push(node);
        }
        let there = path.len();
        for (tokens, page) in pages[there..].iter().zip(self.made(runtime, state, &pages, there)) {
            let bytes = self.budget.cost.of_page(tokens.len());
            let key = Arc::clone(&state.frequencies);
            let node = self.tree.insert(key, path.last().copied(), tokens, page, bytes);
            self.tree.hold(node);
            path.push(node);
        }
        self.tree.touch(&path);
        if self.budget.cost.shared {
            for i in lease.pages.len()..path.len() {
                if pages[i].len() == PAGE {
                    self.tree.hold(path[i]);
                    lease.pages.push(path[i]);
                }
                if i < there
                    && let Some(page) = self.tree.page(path[i])
                {
                    // Somebody else brought it first: one of the two is enough.
                    state.kv.take_over(i, page);
                }
                let bytes = self.whole_pages(1);
                lease.own -= bytes;
                self.reserved -= bytes;
            }
        }
        path.into_iter().for_each(|node| self.tree.let_go(node));
        debug_assert!(self.tree.bytes() + self.reserved <= self.budget.bytes);
    }

    /// The pages from `first` on, as many as there is room for.
    fn made(
        &mut self,
        runtime: &Runtime,
        state: &SequenceState,
        pages: &[&[u32]],
        first: usize,
    ) -> Vec<KvPage> {
        let (mut end, mut bytes) = (first, 0);
        while let Some(page) = pages.get(end) {
            // Where they are shared, they are the sequence's own until now.
            if !self.budget.cost.shared {
                bytes += self.budget.cost.of_page(page.len());
                if !self.make_room(bytes) {
                    break;
                }
            }
            end += 1;
        }
        match runtime.pages(state, first..end) {
            Ok(made) => made.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "pages cannot be kept for other sequences");
                Vec::new()
            }
        }
    }

    /// Evicts what nobody uses until `bytes` more are free; whether there is so much.
    fn make_room(&mut self, bytes: u64) -> bool {
        let free = |held: u64| self.budget.bytes.saturating_sub(self.reserved).checked_sub(held);
        if free(self.tree.used_bytes()).is_none_or(|free| free < bytes) {
            return false;
        }
        while self.tree.bytes() + self.reserved + bytes > self.budget.bytes {
            self.tree.evict();
            self.counts.evicted += 1;
        }
        true
    }

    /// Bytes of `count` whole pages.
    fn whole_pages(&self, count: usize) -> u64 {
        count as u64 * self.budget.cost.of_page(PAGE)
    }
}
