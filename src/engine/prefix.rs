//! A radix tree over token ids whose edges are pages: what is cached of the beginnings of sequences.
//!
//! A node is a page: at most `PAGE` tokens, as many in every inner node, and what is cached of them. Its children continue
//! it and are found by their tokens. They are in the order of these, so that the one that shares the longest beginning with some tokens is
//! a neighbour of the place where those would stand.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

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
    page: Option<P>,
    bytes: u64,
    /// In the order of their tokens.
    children: Vec<NodeId>,
    /// Who forbids that it is evicted.
    users: usize,
    /// When it was last of use.
    used: u64,
}

/// The tree of pages `P`, one for each `K`: sequences share pages where their `K`s are equal.
#[derive(Debug)]
pub(super) struct PrefixTree<K, P> {
    page: usize,
    nodes: Vec<Node<P>>,
    /// Nodes that were evicted, for new ones.
    free: Vec<NodeId>,
    roots: Vec<(K, NodeId)>,
    /// Leaves without users, the least recently used first.
    idle: BTreeSet<(u64, NodeId)>,
    clock: u64,
    bytes: u64,
    used_bytes: u64,
}

impl<K: PartialEq, P> PrefixTree<K, P> {
    /// An empty tree whose pages have `page` tokens.
    pub fn new(page: usize) -> Self {
        Self {
            page,
            nodes: Vec::new(),
            free: Vec::new(),
            roots: Vec::new(),
            idle: BTreeSet::new(),
            clock: 0,
            bytes: 0,
            used_bytes: 0,
        }
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the pages that have users: all others can be evicted.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// What is cached of `node`.
    pub fn page(&self, node: NodeId) -> Option<&P> {
        self.node(node).page.as_ref()
    }

    /// The longest beginning of `tokens` that is cached, of at most `most` tokens.
    pub fn find(&self, key: &K, tokens: &[u32], most: usize) -> Found {
        let mut found = Found::default();
        let Some(mut at) = self.root(key) else { return found };
        let mut rest = &tokens[..most.min(tokens.len())];
        while !rest.is_empty() {
            let Some((child, common)) = self.nearest(at, rest) else { break };
            if common < self.page {
                found.part = Some((child, common));
                break;
            }
            found.whole.push(child);
            (at, rest) = (child, &rest[common..]);
        }
        found
    }

    /// The page after `parent` that begins with `tokens`; with no parent, the first one.
    pub fn child(&self, key: &K, parent: Option<NodeId>, tokens: &[u32]) -> Option<NodeId> {
        let (child, common) = self.nearest(parent.or_else(|| self.root(key))?, tokens)?;
        (common == tokens.len()).then_some(child)
    }

    /// Adds a page after `parent`, or a first one, which [`Self::child`] has not found. Unused pages of fewer tokens that begin
    /// the same are replaced.
    pub fn insert(&mut self, key: K, parent: Option<NodeId>, tokens: &[u32], page: P, bytes: u64) -> NodeId {
        debug_assert!(!tokens.is_empty() && tokens.len() <= self.page);
        let parent = parent.or_else(|| self.root(&key)).unwrap_or_else(|| {
            let root = self.add(None, &[], None, 0);
            self.roots.push((key, root));
            root
        });
        debug_assert!(
            [0, self.page].contains(&self.node(parent).tokens.len()),
            "a page after one that is not full"
        );
        let node = self.add(Some(parent), tokens, Some(page), bytes);
        let place = self.place(parent, tokens);
        self.nodes[parent.0].children.insert(place, node);
        self.refresh(parent, |_| ());
        self.refresh(node, |_| ());
        for len in 1..tokens.len() {
            let place = self.place(parent, &tokens[..len]);
            if let Some(&short) = self.node(parent).children.get(place)
                && *self.node(short).tokens == tokens[..len]
                && self.node(short).users == 0
            {
                self.remove(short);
            }
        }
        node
    }

    /// Notes that these pages, and those before them, are of use now.
    pub fn touch(&mut self, nodes: &[NodeId]) {
        self.clock += 1;
        let now = self.clock;
        nodes.iter().for_each(|&node| self.refresh(node, |node| node.used = now));
    }

    /// Forbids that a page is evicted; the pages before it have as many users.
    pub fn hold(&mut self, node: NodeId) {
        if self.node(node).users == 0 {
            self.used_bytes += self.node(node).bytes;
        }
        self.refresh(node, |node| node.users += 1);
    }

    /// Takes back one [`Self::hold`].
    pub fn let_go(&mut self, node: NodeId) {
        self.refresh(node, |node| node.users -= 1);
        if self.node(node).users == 0 {
            self.used_bytes -= self.node(node).bytes;
        }
    }

    /// Evicts the leaf that was not of use for longest; whether there was one without users.
    pub fn evict(&mut self) -> bool {
        let Some(&(_, node)) = self.idle.first() else { return false };
        self.remove(node);
        true
    }

    /// All pages.
    #[cfg(test)]
    pub fn pages(&self) -> impl Iterator<Item = &P> {
        self.nodes.iter().filter_map(|node| node.page.as_ref())
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

    fn add(&mut self, parent: Option<NodeId>, tokens: &[u32], page: Option<P>, bytes: u64) -> NodeId {
        self.clock += 1;
        let node = Node {
            parent,
            tokens: tokens.into(),
            page,
            bytes,
            children: Vec::new(),
            users: 0,
            used: self.clock,
        };
        self.bytes += bytes;
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

    /// Takes out a leaf without users, and its root with the last of its pages.
    fn remove(&mut self, id: NodeId) {
        let node = &mut self.nodes[id.0];
        debug_assert!(node.children.is_empty() && node.users == 0);
        (node.page, node.tokens) = (None, Box::default());
        self.idle.remove(&(node.used, id));
        self.bytes -= node.bytes;
        self.free.push(id);
        let Some(parent) = node.parent else { return };
        self.nodes[parent.0].children.retain(|&child| child != id);
        self.refresh(parent, |_| ());
        if self.node(parent).parent.is_none() && self.node(parent).children.is_empty() {
            self.roots.retain(|(_, root)| *root != parent);
            self.remove(parent);
        }
    }

    /// Changes a node, and keeps its place among the idle ones true.
    fn refresh(&mut self, id: NodeId, change: impl FnOnce(&mut Node<P>)) {
        let node = &mut self.nodes[id.0];
        let before = node.used;
        change(node);
        let is_idle = node.children.is_empty() && node.users == 0 && node.parent.is_some();
        let now = node.used;
        self.idle.remove(&(before, id));
        if is_idle {
            self.idle.insert((now, id));
        }
    }
}
