//! A radix tree over token ids whose edges are pages: what is cached of the beginnings of sequences.
//!
//! A node is a page: at most `PAGE` tokens, as many in every inner node, and what is cached of them. Its children continue
//! it and are found by their tokens. They are in the order of these, so that the one that shares the longest beginning with some tokens is
//! a neighbour of the place where those would stand.
//!
//! Where a model has windows, a node may have a pane beside its page: what the layers with a window keep of its tokens. A sequence
//! begins only where the panes are there that its next token sees. They are evicted apart from the pages, and those first that
//! nobody has begun or ended behind: sequences pass by many, and few are places to begin at.
//!
//! Where a model has recurrent layers, a node may have a snapshot: what these keep after its tokens. A sequence begins only at the
//! end of a node that has one, since there is no part of it for fewer tokens. Nobody holds a snapshot: who begins with it copies it.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use super::disk::Key;
use crate::backend::PartKind;

/// A node, until it is evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeId(usize);

/// What the tree holds of the beginning of some tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The whole pages, first to last.
    pub whole: Vec<NodeId>,
    /// The page after those, and how many of its tokens belong to the beginning.
    pub part: Option<(NodeId, usize)>,
    /// Of these pages the first whose pane is needed; as many as there are where none is.
    pub first: usize,
}

impl Found {
    /// The pages, first to last.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.whole.iter().copied().chain(self.part.map(|(node, _)| node))
    }
}

#[derive(Debug)]
struct Node<P> {
    /// None for a root.
    parent: Option<NodeId>,
    /// Empty for a root.
    tokens: Box<[u32]>,
    /// None for a root.
    page: Option<Held<P>>,
    pane: Option<Held<P>>,
    /// Without users, always.
    snapshot: Option<Held<P>>,
    /// In the order of their tokens.
    children: Vec<NodeId>,
    on_disk: OnDisk,
}

/// What a cache on disk has of a node, as far as is known here.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OnDisk {
    /// Of its page, once somebody has asked.
    pub key: Option<Key>,
    /// Which of its parts were handed over, or come from there.
    parts: [bool; 3],
}

impl OnDisk {
    pub fn has(&self, kind: PartKind) -> bool {
        self.parts[kind as usize]
    }

    pub fn set(&mut self, kind: PartKind, has: bool) {
        self.parts[kind as usize] = has;
    }
}

/// A page or a pane.
#[derive(Debug)]
struct Held<P> {
    page: P,
    bytes: u64,
    /// Who forbids that it is evicted.
    users: usize,
    /// When it was last of use. A pane that has not been of use yet has 0.
    used: u64,
}

/// Bytes of pages and panes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TreeBytes {
    /// Of all.
    pub all: u64,
    /// Of those that have users: all others can be evicted.
    pub used: u64,
    /// Of panes, once for each user but the first.
    pub repeated: u64,
}

/// The tree of pages `P`, one for each `K`: sequences share pages where their `K`s are equal.
#[derive(Debug)]
pub(super) struct PrefixTree<K, P> {
    page: usize,
    /// The last keys that a token sees in layers with a window.
    window: Option<usize>,
    /// Whether the model has recurrent layers.
    recurrent: bool,
    nodes: Vec<Node<P>>,
    /// Nodes that were evicted, for new ones.
    free: Vec<NodeId>,
    roots: Vec<(K, NodeId)>,
    /// Leaves without users, the least recently used first.
    idle: BTreeSet<(u64, NodeId)>,
    /// Panes without users of other nodes, likewise.
    idle_panes: BTreeSet<(u64, NodeId)>,
    /// Snapshots, likewise.
    snapshots: BTreeSet<(u64, NodeId)>,
    clock: u64,
    bytes: TreeBytes,
}

impl<K: PartialEq, P> PrefixTree<K, P> {
    /// An empty tree whose pages have `page` tokens, of a model with layers whose tokens see the last `window` keys, and with recurrent
    /// ones or not.
    pub fn new(page: usize, window: Option<usize>, recurrent: bool) -> Self {
        Self {
            page,
            window,
            recurrent,
            nodes: Vec::new(),
            free: Vec::new(),
            roots: Vec::new(),
            idle: BTreeSet::new(),
            idle_panes: BTreeSet::new(),
            snapshots: BTreeSet::new(),
            clock: 0,
            bytes: TreeBytes::default(),
        }
    }

    /// Bytes of pages and panes.
    pub fn bytes(&self) -> TreeBytes {
        self.bytes
    }

    /// What is cached of `node`.
    pub fn page(&self, node: NodeId) -> Option<&P> {
        self.node(node).page.as_ref().map(|held| &held.page)
    }

    /// What layers with a window keep of `node`.
    pub fn pane(&self, node: NodeId) -> Option<&P> {
        self.node(node).pane.as_ref().map(|held| &held.page)
    }

    /// What recurrent layers keep after the tokens of `node`.
    pub fn snapshot(&self, node: NodeId) -> Option<&P> {
        self.node(node).snapshot.as_ref().map(|held| &held.page)
    }

    /// The longest beginning of `tokens` that is cached, of at most `most` tokens, with the panes that the token after it sees.
    pub fn find(&self, key: &K, tokens: &[u32], most: usize) -> Found {
        let (mut path, mut len) = (Vec::new(), 0);
        let Some(mut at) = self.root(key) else { return Found::default() };
        let mut rest = &tokens[..most.min(tokens.len())];
        while !rest.is_empty() {
            let Some((child, common)) = self.nearest(at, rest) else { break };
            if self.recurrent && common < self.node(child).tokens.len() {
                // Not all of its tokens: but there may be a page of as few as are common.
                if let Some(short) = self.shorter(at, &rest[..common]) {
                    path.push(short);
                    len += self.node(short).tokens.len();
                }
                break;
            }
            path.push(child);
            len += common;
            if common < self.page {
                break;
            }
            (at, rest) = (child, &rest[common..]);
        }
        self.up_to(path, len)
    }

    /// The longest beginning of at most `len` tokens of `path` that has the panes that the token after it sees.
    pub fn up_to(&self, mut path: Vec<NodeId>, mut len: usize) -> Found {
        loop {
            path.truncate(len.div_ceil(self.page));
            while self.recurrent
                && let Some(&last) = path.last()
            {
                let end = (path.len() - 1) * self.page + self.node(last).tokens.len();
                if end == len && self.snapshot(last).is_some() {
                    break;
                }
                path.pop();
                let Node { parent, tokens, .. } = self.node(last);
                let shorter = parent.and_then(|parent| self.shorter(parent, &tokens[..tokens.len() - 1]));
                len = path.len() * self.page + shorter.map_or(0, |short| self.node(short).tokens.len());
                path.extend(shorter);
            }
            if self.recurrent && path.is_empty() {
                return Found::default();
            }
            let first = self.window.map_or(path.len(), |window| (len + 1).saturating_sub(window) / self.page);
            let first = first.min(path.len());
            if let Some(gone) = path[first..].iter().rposition(|&node| self.pane(node).is_none())
                && self.window.is_some()
            {
                // Every place within that page, and every one behind it up to here, sees of it.
                len = (first + gone) * self.page;
                continue;
            }
            let part = len % self.page;
            let part = if part > 0 { path.pop().map(|node| (node, part)) } else { None };
            return Found { whole: path, part, first };
        }
    }

    /// The page after `parent` that begins with `tokens`; with no parent, the first one.
    pub fn child(&self, key: &K, parent: Option<NodeId>, tokens: &[u32]) -> Option<NodeId> {
        let (child, common) = self.nearest(parent.or_else(|| self.root(key))?, tokens)?;
        (common == tokens.len()).then_some(child)
    }

    /// The page after `parent` of these tokens and no more; with no parent, the first one.
    pub fn whole_child(&self, key: &K, parent: Option<NodeId>, tokens: &[u32]) -> Option<NodeId> {
        self.exact(parent.or_else(|| self.root(key))?, tokens)
    }

    /// The longest page after `parent` that holds a beginning of `tokens` and no more, and has a snapshot.
    fn shorter(&self, parent: NodeId, tokens: &[u32]) -> Option<NodeId> {
        let of =
            |len: usize| self.exact(parent, &tokens[..len]).filter(|&node| self.snapshot(node).is_some());
        (1..=tokens.len()).rev().find_map(of)
    }

    /// The child of these tokens and no more.
    fn exact(&self, parent: NodeId, tokens: &[u32]) -> Option<NodeId> {
        let child = *self.node(parent).children.get(self.place(parent, tokens))?;
        (*self.node(child).tokens == *tokens).then_some(child)
    }

    /// Adds a page after `parent`, or a first one, which [`Self::child`] has not found. Unused pages of fewer tokens that begin
    /// the same are replaced.
    pub fn insert(&mut self, key: K, parent: Option<NodeId>, tokens: &[u32], page: P, bytes: u64) -> NodeId {
        debug_assert!(!tokens.is_empty() && tokens.len() <= self.page);
        let parent = parent.or_else(|| self.root(&key)).unwrap_or_else(|| {
            let root = self.add(None, &[], None);
            self.roots.push((key, root));
            root
        });
        debug_assert!(
            [0, self.page].contains(&self.node(parent).tokens.len()),
            "a page after one that is not full"
        );
        let node = self.add(Some(parent), tokens, Some((page, bytes)));
        let place = self.place(parent, tokens);
        self.nodes[parent.0].children.insert(place, node);
        self.refresh(parent, |_| ());
        self.refresh(node, |_| ());
        for len in 1..tokens.len() {
            let place = self.place(parent, &tokens[..len]);
            if let Some(&short) = self.node(parent).children.get(place)
                && *self.node(short).tokens == tokens[..len]
                && self.node(short).is_idle()
                && self.snapshot(short).is_none()
            {
                self.remove(short);
            }
        }
        node
    }

    /// Whether `node` could be given a pane of the first `tokens` of its page: it has none, and has no more tokens.
    pub fn lacks_pane(&self, node: NodeId, tokens: usize) -> bool {
        self.window.is_some() && self.pane(node).is_none() && self.node(node).tokens.len() == tokens
    }

    /// Gives a page its pane, with all of its tokens, which it does not have.
    pub fn set_pane(&mut self, node: NodeId, pane: P, bytes: u64) {
        debug_assert!(self.lacks_pane(node, self.node(node).tokens.len()));
        self.bytes.all += bytes;
        self.on_disk_mut(node).set(PartKind::Pane, false);
        self.refresh(node, |node| node.pane = Some(Held { page: pane, bytes, users: 0, used: 0 }));
    }

    /// Gives a page the snapshot behind it, which it does not have.
    pub fn set_snapshot(&mut self, node: NodeId, snapshot: P, bytes: u64) {
        debug_assert!(self.recurrent && self.snapshot(node).is_none());
        self.clock += 1;
        let used = self.clock;
        self.bytes.all += bytes;
        self.on_disk_mut(node).set(PartKind::Snapshot, false);
        self.refresh(node, |node| node.snapshot = Some(Held { page: snapshot, bytes, users: 0, used }));
    }

    /// Notes that a snapshot is of use now.
    pub fn touch_snapshot(&mut self, node: NodeId) {
        self.clock += 1;
        let now = self.clock;
        self.refresh(node, |node| node.snapshot.iter_mut().for_each(|held| held.used = now));
    }

    /// Notes that these pages, and those before them, are of use now, and the panes from that of page `first` on.
    pub fn touch(&mut self, nodes: &[NodeId], first: usize) {
        self.clock += 1;
        let now = self.clock;
        for (i, &node) in nodes.iter().enumerate() {
            self.refresh(node, |node| {
                let pane = node.pane.as_mut().filter(|_| i >= first);
                node.page.iter_mut().chain(pane).for_each(|held| held.used = now);
            });
        }
    }

    /// Forbids that a page is evicted; the pages before it have as many users.
    pub fn hold(&mut self, node: NodeId) {
        let mut bytes = 0;
        self.refresh(node, |node| {
            if let Some(page) = &mut node.page {
                bytes = if page.users == 0 { page.bytes } else { 0 };
                page.users += 1;
            }
        });
        self.bytes.used += bytes;
    }

    /// Takes back one [`Self::hold`].
    pub fn let_go(&mut self, node: NodeId) {
        let mut bytes = 0;
        self.refresh(node, |node| {
            if let Some(page) = &mut node.page {
                page.users -= 1;
                bytes = if page.users == 0 { page.bytes } else { 0 };
            }
        });
        self.bytes.used -= bytes;
    }

    /// Forbids that a pane is evicted. Who holds it holds its page.
    pub fn hold_pane(&mut self, node: NodeId) {
        let (mut first, mut others) = (0, 0);
        self.refresh(node, |node| {
            if let Some(pane) = &mut node.pane {
                *(if pane.users == 0 { &mut first } else { &mut others }) = pane.bytes;
                pane.users += 1;
            }
        });
        self.bytes.used += first;
        self.bytes.repeated += others;
    }

    /// Takes back one [`Self::hold_pane`].
    pub fn let_go_pane(&mut self, node: NodeId) {
        let (mut first, mut others) = (0, 0);
        self.refresh(node, |node| {
            if let Some(pane) = &mut node.pane {
                pane.users -= 1;
                *(if pane.users == 0 { &mut first } else { &mut others }) = pane.bytes;
            }
        });
        self.bytes.used -= first;
        self.bytes.repeated -= others;
    }

    /// What [`Self::evict`] takes out next: of which node which part, or all of it where that is its page.
    pub fn next_evicted(&self) -> Option<(NodeId, PartKind)> {
        let others =
            self.idle.first().into_iter().chain(self.idle_panes.first()).map(|(used, _)| *used).min();
        if let Some(&(used, node)) = self.snapshots.first()
            && others.is_none_or(|other| used <= other)
        {
            return Some((node, PartKind::Snapshot));
        }
        match (self.idle.first(), self.idle_panes.first()) {
            (Some(leaf), Some(pane)) if pane < leaf => Some((pane.1, PartKind::Pane)),
            (Some((_, leaf)), _) => Some((*leaf, PartKind::Page)),
            (None, Some((_, pane))) => Some((*pane, PartKind::Pane)),
            (None, None) => None,
        }
    }

    /// Evicts the leaf, the pane or the snapshot that was not of use for longest; whether there was one without users.
    pub fn evict(&mut self) -> bool {
        match self.next_evicted() {
            Some((node, PartKind::Snapshot)) => self.remove_snapshot(node),
            Some((pane, PartKind::Pane)) => self.remove_pane(pane),
            Some((leaf, PartKind::Page)) => self.remove_leaf(leaf),
            None => return false,
        }
        true
    }

    /// The pages up to `node`, the first one first.
    pub fn path(&self, node: NodeId) -> Vec<NodeId> {
        let parent = |node: &NodeId| self.node(*node).parent;
        let mut path: Vec<NodeId> = std::iter::successors(Some(node), parent).collect();
        // The root is no page.
        path.pop();
        path.reverse();
        path
    }

    /// Which tree `node` is in.
    pub fn key(&self, node: NodeId) -> Option<&K> {
        let root = std::iter::successors(Some(node), |node| self.node(*node).parent).last()?;
        self.roots.iter().find(|(_, of)| *of == root).map(|(key, _)| key)
    }

    /// The tokens of `node`'s page.
    pub fn tokens(&self, node: NodeId) -> &[u32] {
        &self.node(node).tokens
    }

    /// Whether somebody has begun or ended behind `node`'s pane.
    pub fn pane_was_used(&self, node: NodeId) -> bool {
        self.node(node).pane.as_ref().is_some_and(|pane| pane.used > 0)
    }

    /// Pages that none follows, the last used first.
    pub fn leaves(&self) -> Vec<NodeId> {
        let used = |id: usize| self.nodes[id].page.as_ref().map(|page| page.used);
        let is_leaf = |id: &usize| self.nodes[*id].children.is_empty() && used(*id).is_some();
        let mut leaves: Vec<usize> = (0..self.nodes.len()).filter(is_leaf).collect();
        leaves.sort_by_key(|id| std::cmp::Reverse(used(*id)));
        leaves.into_iter().map(NodeId).collect()
    }

    /// Forgets which parts a cache on disk has.
    pub fn nothing_on_disk(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.on_disk.parts = [false; 3]);
    }

    pub fn on_disk(&self, node: NodeId) -> &OnDisk {
        &self.node(node).on_disk
    }

    pub fn on_disk_mut(&mut self, node: NodeId) -> &mut OnDisk {
        &mut self.nodes[node.0].on_disk
    }

    /// All pages and panes.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn pages(&self) -> impl Iterator<Item = &P> {
        let held = self.nodes.iter().flat_map(|node| [&node.page, &node.pane, &node.snapshot]);
        held.flatten().map(|held| &held.page)
    }

    fn root(&self, key: &K) -> Option<NodeId> {
        self.roots.iter().find(|(of, _)| of == key).map(|(_, root)| *root)
    }

    fn node(&self, node: NodeId) -> &Node<P> {
        &self.nodes[node.0]
    }

    /// Where a child with `tokens` stands, or would.
    fn place(&self, parent: NodeId, tokens: &[u32]) -> usize {
        self.node(parent).children.partition_point(|&child| *self.node(child).tokens < *tokens)
    }

    /// The child that shares the longest beginning with `tokens`, and how long that is; none where no child shares any.
    fn nearest(&self, parent: NodeId, tokens: &[u32]) -> Option<(NodeId, usize)> {
        let children = &self.node(parent).children;
        let place = self.place(parent, &tokens[..tokens.len().min(self.page)]);
        let neighbours = children[place.saturating_sub(1)..].iter().take(2);
        let common =
            |child: NodeId| self.node(child).tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        neighbours
            .map(|&child| (child, common(child)))
            .max_by_key(|&(_, common)| common)
            .filter(|&(_, n)| n > 0)
    }

    fn add(&mut self, parent: Option<NodeId>, tokens: &[u32], page: Option<(P, u64)>) -> NodeId {
        self.clock += 1;
        let page = page.map(|(page, bytes)| Held { page, bytes, users: 0, used: self.clock });
        self.bytes.all += page.as_ref().map_or(0, |page| page.bytes);
        let (tokens, children) = (tokens.into(), Vec::new());
        let on_disk = OnDisk::default();
        let node = Node { parent, tokens, page, pane: None, snapshot: None, children, on_disk };
        match self.free.pop() {
            Some(id) => {
                self.nodes[id.0] = node;
                id
            }
            None => {
                self.nodes.push(node);
                NodeId(self.nodes.len() - 1)
            }
        }
    }

    /// Takes out a leaf, and those before it that are one then and have lost their panes: nothing can begin behind them.
    fn remove_leaf(&mut self, id: NodeId) {
        let mut next = self.remove(id);
        while self.window.is_some()
            && let Some(parent) = next
            && self.node(parent).is_idle()
            && self.pane(parent).is_none()
        {
            next = self.remove(parent);
        }
    }

    /// Takes out a leaf without users, and its root with the last of its pages; the page before it.
    fn remove(&mut self, id: NodeId) -> Option<NodeId> {
        self.remove_pane(id);
        self.remove_snapshot(id);
        let node = &mut self.nodes[id.0];
        debug_assert!(node.children.is_empty() && node.page.as_ref().is_none_or(|page| page.users == 0));
        node.tokens = Box::default();
        if let Some(page) = node.page.take() {
            self.bytes.all -= page.bytes;
            self.idle.remove(&(page.used, id));
        }
        self.free.push(id);
        let parent = node.parent?;
        self.nodes[parent.0].children.retain(|&child| child != id);
        self.refresh(parent, |_| ());
        if self.node(parent).parent.is_some() {
            return Some(parent);
        }
        if self.node(parent).children.is_empty() {
            self.roots.retain(|(_, root)| *root != parent);
            self.remove(parent);
        }
        None
    }

    /// Takes out a pane without users.
    fn remove_pane(&mut self, id: NodeId) {
        let mut bytes = 0;
        self.refresh(id, |node| {
            bytes = node.pane.take().map_or(0, |pane| {
                debug_assert_eq!(pane.users, 0, "a pane that is used");
                pane.bytes
            });
        });
        self.bytes.all -= bytes;
    }

    /// Takes out a snapshot.
    fn remove_snapshot(&mut self, id: NodeId) {
        let mut bytes = 0;
        self.refresh(id, |node| bytes = node.snapshot.take().map_or(0, |snapshot| snapshot.bytes));
        self.bytes.all -= bytes;
    }

    /// Changes a node, and keeps its place among the idle ones true.
    fn refresh(&mut self, id: NodeId, change: impl FnOnce(&mut Node<P>)) {
        let node = &mut self.nodes[id.0];
        if let Some(page) = &node.page {
            self.idle.remove(&(page.used, id));
        }
        if let Some(pane) = &node.pane {
            self.idle_panes.remove(&(pane.used, id));
        }
        if let Some(snapshot) = &node.snapshot {
            self.snapshots.remove(&(snapshot.used, id));
        }
        change(node);
        if let Some(snapshot) = &node.snapshot {
            self.snapshots.insert((snapshot.used, id));
        }
        match (&node.page, &node.pane) {
            (Some(page), _) if node.is_idle() => {
                self.idle.insert((page.used, id));
            }
            (_, Some(pane)) if pane.users == 0 => {
                self.idle_panes.insert((pane.used, id));
            }
            _ => {}
        }
    }
}

impl<P> Node<P> {
    /// Whether it is a leaf without users.
    fn is_idle(&self) -> bool {
        self.children.is_empty() && self.page.as_ref().is_some_and(|page| page.users == 0)
    }
}
