//! The memory that K and V may take: what running sequences have a right to, and beginnings of sequences that are kept for
//! others, within one budget.
//!
//! A sequence is admitted with the bytes of its worst case, so that it never runs out; what it shares of others counts once.
//! What is kept beside that is evicted when somebody needs the room.
//!
//! Layers with a window hold a part of a sequence, and move on with it: their panes of what lies behind go to the tree, where they
//! are evicted first, and the sequence has a right to new ones in their place. While several sequences use one pane, it counts
//! for each of them, since each moves on by itself.

mod kept;

use std::sync::Arc;

use super::disk::Disk;
use super::prefix::{Found, NodeId, PrefixTree, TreeBytes};
use super::request::Space;
use super::runtime::Runtime;
use crate::backend::kv::PAGE;
use crate::backend::rope::Frequencies;
use crate::backend::{KvCost, KvPage, PageAndPane};
use crate::error::{Error, Result};
use crate::forward::step::SequenceState;

/// What K and V of all sequences may take, and what they take each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    pub bytes: u64,
    pub cost: KvCost,
    /// Bytes of a token that nobody shares, beside its K and V.
    pub beside: u64,
}

impl Budget {
    /// `bytes`, or half of what can be counted where that is less.
    pub fn new(bytes: u64, cost: KvCost) -> Self {
        Self { bytes: bytes.min(u64::MAX / 2), cost, beside: 0 }
    }

    /// Where each token takes so many bytes more.
    pub fn with_beside(self, beside: u64) -> Self {
        Self { beside, ..self }
    }

    /// What a sequence takes that shares nothing.
    pub fn alone(&self) -> KvCost {
        KvCost { token: self.cost.token.saturating_add(self.beside), ..self.cost }
    }

    /// Refuses a sequence that would not fit if it were the only one.
    pub fn check(&self, prompt: usize, generated: usize) -> Result<()> {
        let needed = self.alone().of_sequence(prompt.saturating_add(generated));
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
pub(super) struct Memory {
    budget: Budget,
    /// What sequences have a right to beside pages of the tree, and what is being read from disk.
    reserved: u64,
    tree: PrefixTree<TreeKey, KvPage>,
    counts: Counts,
    disk: Option<Disk>,
    /// Whether something was kept since all that is was handed to the disk.
    unsaved: bool,
    /// How often something was lost on its way to the disk when it was last handed over anew.
    lost: u64,
    /// Of what is reserved, what adapters take.
    adapters: u64,
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

/// Why what a sequence computed is brought to the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Whole pages, behind which others may begin.
    Whole,
    /// Whole pages that it passes by.
    Passed,
    /// All of it so far, behind which others may begin; it goes on.
    Part,
    /// All of it, at its end.
    Last,
}

/// What sequences that share pages have in common, beside their tokens.
type TreeKey = (Space, Arc<[Arc<Frequencies>]>);

/// What a running sequence has of the memory, until [`Memory::release`].
#[derive(Debug)]
pub(super) struct Lease {
    /// Pages of the tree that it began with or has brought there, from the first on. It holds their panes from page `behind` on.
    pages: Vec<NodeId>,
    /// Pages that lie behind the windows of what comes next.
    behind: usize,
    /// Bytes reserved beside those that it shares.
    own: u64,
    /// Most tokens that it will hold.
    most: usize,
    /// Whose beginnings it shares.
    space: Space,
}

impl Lease {
    /// The pages whose panes it holds.
    fn panes(&self) -> &[NodeId] {
        &self.pages[self.behind.min(self.pages.len())..]
    }
}

impl Memory {
    pub fn new(budget: Budget, disk: Option<Disk>) -> Self {
        let tree = PrefixTree::new(PAGE, budget.cost.window, budget.cost.fixed > 0);
        Self {
            budget,
            reserved: 0,
            tree,
            counts: Counts::default(),
            disk,
            unsaved: false,
            lost: 0,
            adapters: 0,
        }
    }

    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// What adapters leave of the budget.
    pub fn budget_beside_adapters(&self) -> Budget {
        Budget { bytes: self.budget.bytes.saturating_sub(self.adapters), ..self.budget }
    }

    /// Bytes that adapters take.
    pub fn adapters(&self) -> u64 {
        self.adapters
    }

    /// Takes the memory of an adapter, if there is room for it.
    pub fn take_adapter(&mut self, bytes: u64) -> bool {
        let has_room = self.set_aside(bytes);
        self.adapters += if has_room { bytes } else { 0 };
        has_room
    }

    /// Gives back the memory of adapters.
    pub fn put_adapter_back(&mut self, bytes: u64) {
        self.put_back(bytes);
        self.adapters -= bytes;
    }

    /// Bytes of the pages that are kept, whoever uses them.
    pub fn kept(&self) -> u64 {
        self.tree.bytes().all
    }

    /// Of these, bytes of pages that running sequences use.
    pub fn shared(&self) -> u64 {
        self.tree.bytes().used
    }

    /// Bytes that running sequences have a right to beside the shared ones.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// All pages that are kept.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn pages(&self) -> impl Iterator<Item = &KvPage> {
        self.tree.pages()
    }

    /// Bytes that a sequence has allocated beside what it shares.
    pub fn own(&self, state: &SequenceState, lease: &Lease) -> u64 {
        (state.kv.bytes() as u64).saturating_sub(self.shared_of(lease.pages.len(), lease.panes().len()))
    }

    /// Starts a sequence that will hold at most `tokens`, with the longest beginning of its prompt that is kept, of at most
    /// `skippable` tokens. None while there is no room for it.
    pub fn admit(
        &mut self,
        runtime: &Runtime,
        prompt: &[u32],
        tokens: usize,
        skippable: usize,
        space: &Space,
    ) -> Option<(SequenceState, Lease)> {
        let (state, lease) = self.begin(runtime, prompt.len(), &prompt[..skippable], tokens, space)?;
        self.counts.hits += u64::from(!state.history.is_empty());
        self.counts.hit_tokens += state.history.len() as u64;
        Some((state, lease))
    }

    /// A running sequence anew, after its caches got lost: with the longest beginning of `tokens` that is kept. Its prompt has
    /// `prompt` tokens.
    ///
    /// # Errors
    /// Where what it shared with others is not to be had any more, and there is no room for as much of its own.
    pub fn restart(
        &mut self,
        runtime: &Runtime,
        prompt: usize,
        tokens: &[u32],
        lease: &mut Lease,
    ) -> Result<SequenceState> {
        let (most, space) = (lease.most, lease.space.clone());
        let none = Lease { pages: Vec::new(), behind: 0, own: 0, most, space: space.clone() };
        self.let_go(std::mem::replace(lease, none));
        // What MLX keeps for others is a copy, made by the one that may have failed.
        let tokens = if self.budget.cost.shared { tokens } else { &[] };
        match self.begin(runtime, prompt, tokens, most, &space) {
            Some((state, new)) => {
                *lease = new;
                Ok(state)
            }
            None => {
                let needed = self.budget.alone().of_sequence(most);
                let available = self.budget.bytes.saturating_sub(self.reserved + self.tree_charge());
                let what = format!("the KV cache of {most} tokens, to be computed anew");
                Err(Error::Memory { what, needed, available })
            }
        }
    }

    /// A sequence that will hold at most `most` tokens, with the longest beginning of `tokens` that is kept. None while there is no
    /// room for it.
    fn begin(
        &mut self,
        runtime: &Runtime,
        prompt: usize,
        tokens: &[u32],
        most: usize,
        space: &Space,
    ) -> Option<(SequenceState, Lease)> {
        let key = (space.clone(), runtime.sequence(prompt).frequencies);
        let found = self.tree.find(&key, tokens, tokens.len());
        // A page that is copied takes room beside its copy: where there is too little, its tokens are computed anew.
        let whole = self.tree.up_to(found.whole.clone(), found.whole.len() * PAGE);
        let mut ways = vec![found, whole, Found::default()];
        ways.dedup();
        for found in ways {
            let nodes: Vec<NodeId> = found.nodes().collect();
            let pages = if self.budget.cost.shared { found.whole.len() } else { 0 };
            let (pages_held, space) = (nodes[..pages].to_vec(), space.clone());
            let mut lease = Lease { pages: pages_held, behind: found.first, own: 0, most, space };
            let needed = self.budget.alone().of_sequence(most);
            lease.own = needed.saturating_sub(self.shared_of(pages, lease.panes().len()));
            nodes.iter().for_each(|&node| self.tree.hold(node));
            nodes[found.first..].iter().for_each(|&node| self.tree.hold_pane(node));
            // Nobody holds a snapshot: room may be made of the one in the tree.
            let snapshot = nodes.last().and_then(|&last| self.tree.snapshot(last).cloned());
            let state = match self.make_room(lease.own) {
                true => self.start(runtime, prompt, tokens, &found, snapshot.as_ref()),
                false => None,
            };
            let (held, held_panes) =
                if state.is_some() { (pages, pages.max(found.first)) } else { (0, found.first) };
            nodes[held_panes..].iter().for_each(|&node| self.tree.let_go_pane(node));
            nodes[held..].iter().for_each(|&node| self.tree.let_go(node));
            let Some(state) = state else { continue };
            self.tree.touch(&nodes, found.first);
            if let Some(&last) = nodes.last() {
                self.tree.touch_snapshot(last);
            }
            self.reserved += lease.own;
            return Some((state, lease));
        }
        None
    }

    /// A sequence that begins with what was found of `tokens`; none where that cannot be copied.
    fn start(
        &self,
        runtime: &Runtime,
        prompt: usize,
        tokens: &[u32],
        found: &Found,
        snapshot: Option<&KvPage>,
    ) -> Option<SequenceState> {
        let len = found.whole.len() * PAGE + found.part.map_or(0, |(_, len)| len);
        if len == 0 {
            return Some(runtime.sequence(prompt));
        }
        let page = |(i, node): (usize, NodeId)| {
            let pane = self.tree.pane(node).filter(|_| i >= found.first);
            Some((self.tree.page(node)?.clone(), pane.cloned()))
        };
        let pages: Vec<PageAndPane> = found.nodes().enumerate().filter_map(page).collect();
        match runtime.restore(prompt, &tokens[..len], &pages, snapshot) {
            Ok(state) => Some(state),
            Err(error) => {
                tracing::warn!(%error, "pages cannot be restored, their tokens are computed anew");
                None
            }
        }
    }

    /// Keeps the whole pages of a running sequence's first `len` tokens for others that begin alike.
    pub fn share(&mut self, runtime: &Runtime, state: &mut SequenceState, lease: &mut Lease, len: usize) {
        // Behind the last whole page nobody could begin where layers are recurrent: see `snapshot`.
        if self.budget.cost.fixed == 0 {
            self.keep(runtime, state, lease, len / PAGE * PAGE, Keep::Whole);
        }
    }

    /// Keeps all of a running sequence, and what its recurrent layers keep, for others that begin alike.
    pub fn snapshot(&mut self, runtime: &Runtime, state: &mut SequenceState, lease: &mut Lease) {
        let len = state.history.len();
        if self.budget.cost.fixed > 0 && state.kv.len() == len {
            self.keep(runtime, state, lease, len, Keep::Part);
        }
    }

    /// Gives back what lies behind the windows of a running sequence's layers. What is of its first `len` tokens is kept for others
    /// while there is room. Whether that freed memory, of pages that others have brought.
    pub fn give_back(
        &mut self,
        runtime: &Runtime,
        state: &mut SequenceState,
        lease: &mut Lease,
        len: usize,
    ) -> bool {
        let behind = self.budget.cost.first_held(state.kv.len());
        if !self.budget.cost.shared || behind <= lease.behind {
            return false;
        }
        let taken = self.taken();
        let whole = len.min(state.history.len()) / PAGE;
        if whole.min(behind) > lease.pages.len() {
            self.keep(runtime, state, lease, whole * PAGE, Keep::Passed);
        }
        state.kv.give_back();
        let passed = lease.panes().len();
        let nodes: Vec<NodeId> = lease.panes()[..passed.min(behind - lease.behind)].to_vec();
        lease.behind = behind;
        for node in nodes {
            self.tree.let_go_pane(node);
            // For the next one of its own. The one that it let go can be evicted, if nobody else uses it.
            let bytes = self.budget.cost.of_pane();
            let made = self.make_room(bytes);
            debug_assert!(made, "a pane that was let go makes room");
            lease.own += bytes;
            self.reserved += bytes;
        }
        self.taken() < taken
    }

    /// Takes back what a sequence had; what it computed is kept while there is room.
    pub fn release(&mut self, runtime: &Runtime, mut state: SequenceState, mut lease: Lease) {
        let len = state.history.len().min(state.kv.len());
        self.keep(runtime, &mut state, &mut lease, len, Keep::Last);
        drop(state);
        self.let_go(lease);
    }

    fn let_go(&mut self, lease: Lease) {
        lease.panes().iter().for_each(|&node| self.tree.let_go_pane(node));
        lease.pages.iter().for_each(|&node| self.tree.let_go(node));
        self.reserved -= lease.own;
    }

    /// Brings the pages of the first `len` tokens to the tree, those that it does not have. Where pages are shared, the
    /// sequence holds the whole ones from here on, and has a right to so much less.
    fn keep(
        &mut self,
        runtime: &Runtime,
        state: &mut SequenceState,
        lease: &mut Lease,
        len: usize,
        how: Keep,
    ) {
        let cost = self.budget.cost;
        // Taken out while the state changes: no copy of it is made.
        let history = std::mem::take(&mut state.history);
        let tokens = &history[..len.min(history.len())];
        let pages: Vec<&[u32]> = tokens.chunks(PAGE).collect();
        let key = (lease.space.clone(), Arc::clone(&state.frequencies));
        let mut path: Vec<NodeId> = Vec::with_capacity(pages.len());
        while let Some(page) = pages.get(path.len())
            && let Some(node) = self.node_of(&key, path.last().copied(), page)
        {
            self.tree.hold(node);
            path.push(node);
        }
        let there = path.len();
        // Those that are there may be without panes that are here; not a pane of part of a page for one of more tokens.
        let lost = (lease.behind..there).find(|&i| self.tree.lacks_pane(path[i], pages[i].len()));
        let first = lost.unwrap_or(there);
        for ((i, tokens), (page, pane)) in
            (first..).zip(&pages[first..]).zip(self.made(runtime, state, &pages, first, how))
        {
            let node = match path.get(i) {
                Some(node) => *node,
                None => {
                    let bytes = cost.of_page(tokens.len());
                    let node = self.tree.insert(key.clone(), path.last().copied(), tokens, page, bytes);
                    self.tree.hold(node);
                    path.push(node);
                    node
                }
            };
            if let Some(pane) = pane
                && self.tree.lacks_pane(node, tokens.len())
            {
                self.tree.set_pane(node, pane, cost.of_pane());
            }
        }
        let first = if how == Keep::Passed { path.len() } else { cost.first_seen(tokens.len()) };
        self.tree.touch(&path, first);
        if cost.shared {
            for i in lease.pages.len()..path.len() {
                if how == Keep::Part && pages[i].len() < PAGE {
                    // The sequence goes on in a copy of its own.
                    if let Err(error) = state.kv.own_last() {
                        tracing::warn!(%error, "the last page of a sequence is shared until it is written to");
                    }
                    break;
                }
                let has_pane = cost.windowed > 0 && i >= lease.behind;
                if has_pane && pages[i].len() == PAGE && self.tree.pane(path[i]).is_none() {
                    // It could not be brought: this page and those behind it stay the sequence's own.
                    break;
                }
                if i < there
                    && let Some(page) = self.tree.page(path[i])
                {
                    // Somebody else brought it first: one of the two is enough.
                    state.kv.take_over(i, page, self.tree.pane(path[i]));
                }
                let bytes = self.shared_of(1, usize::from(has_pane));
                lease.own -= bytes;
                self.reserved -= bytes;
                if pages[i].len() == PAGE {
                    self.tree.hold(path[i]);
                    if has_pane {
                        self.tree.hold_pane(path[i]);
                    }
                    lease.pages.push(path[i]);
                }
            }
        }
        if matches!(how, Keep::Part | Keep::Last)
            && cost.fixed > 0
            && path.len() == pages.len()
            && let Some(&last) = path.last()
        {
            // Once the pages count for the tree alone.
            self.set_snapshot(runtime, state, last, tokens.len());
        }
        path.into_iter().for_each(|node| self.tree.let_go(node));
        self.unsaved = true;
        state.history = history;
        debug_assert!(self.tree_charge() + self.reserved <= self.budget.bytes);
    }

    /// The page of the tree after `parent` that has what a sequence keeps of `tokens`: where layers are recurrent, of no more than these.
    fn node_of(&self, key: &TreeKey, parent: Option<NodeId>, tokens: &[u32]) -> Option<NodeId> {
        match self.budget.cost.fixed {
            0 => self.tree.child(key, parent, tokens),
            _ => self.tree.whole_child(key, parent, tokens),
        }
    }

    /// Keeps what recurrent layers keep behind `node`, the last of a sequence's `len` tokens, where there is room for it.
    fn set_snapshot(&mut self, runtime: &Runtime, state: &SequenceState, node: NodeId, len: usize) {
        let bytes = self.budget.cost.fixed / 2;
        if state.kv.len() != len || !state.kv.recurrent_is_at(len) {
            return;
        }
        if self.tree.snapshot(node).is_some() {
            return self.tree.touch_snapshot(node);
        }
        if !self.make_room(bytes) {
            return;
        }
        match runtime.snapshot(state) {
            Ok(Some(snapshot)) => self.tree.set_snapshot(node, snapshot, bytes),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a state cannot be kept for other sequences"),
        }
    }

    /// The pages from `first` on, as many as there is room for.
    fn made(
        &mut self,
        runtime: &Runtime,
        state: &SequenceState,
        pages: &[&[u32]],
        first: usize,
        how: Keep,
    ) -> Vec<PageAndPane> {
        let (mut end, mut bytes) = (first, 0);
        while let Some(page) = pages.get(end) {
            // Where they are shared, they are the sequence's own until now; but for a part of one, which it goes on in a copy of.
            let copied = how == Keep::Part && page.len() < PAGE;
            if !self.budget.cost.shared || copied {
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
        if self.budget.bytes.checked_sub(self.taken()).is_none_or(|free| free < bytes) {
            return false;
        }
        while self.tree_charge() + self.reserved + bytes > self.budget.bytes {
            self.save_next_evicted();
            if !self.tree.evict() {
                break;
            }
            self.counts.evicted += 1;
        }
        true
    }

    /// What running sequences have a right to, and what they share.
    fn taken(&self) -> u64 {
        let TreeBytes { used, repeated, .. } = self.tree.bytes();
        self.reserved.saturating_add(used).saturating_add(repeated)
    }

    /// What the tree's pages and panes count for.
    fn tree_charge(&self) -> u64 {
        let TreeBytes { all, repeated, .. } = self.tree.bytes();
        all + repeated
    }

    /// Bytes of so many whole pages and panes that sequences share.
    fn shared_of(&self, pages: usize, panes: usize) -> u64 {
        pages as u64 * self.budget.cost.of_page(PAGE) + panes as u64 * self.budget.cost.of_pane()
    }
}
