//! The tree against a list of all that it should hold, searched by brute force.

use super::{NodeId, PrefixTree};
use crate::engine::tests::Random;

const PAGE: usize = 4;

/// A page, by all tokens up to its end.
#[derive(Debug, Clone, PartialEq)]
struct Kept {
    key: u8,
    tokens: Vec<u32>,
    users: usize,
    used: u64,
}

#[derive(Default)]
struct Naive {
    entries: Vec<Kept>,
    clock: u64,
}

fn bytes(tokens: usize) -> u64 {
    10 + tokens as u64
}

/// The tokens of the page that `len` tokens end in.
fn last_page(len: usize) -> usize {
    (len - 1) % PAGE + 1
}

impl Naive {
    fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| bytes(last_page(entry.tokens.len()))).sum()
    }

    fn used_bytes(&self) -> u64 {
        let used = self.entries.iter().filter(|entry| entry.users > 0);
        used.map(|entry| bytes(last_page(entry.tokens.len()))).sum()
    }

    fn find(&self, key: u8, tokens: &[u32]) -> usize {
        let common = |entry: &Kept| entry.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.entries.iter().filter(|entry| entry.key == key).map(common).max().unwrap_or(0)
    }

    /// The page that the last of `tokens` are in, where it begins with them.
    fn page(&self, key: u8, tokens: &[u32]) -> Option<usize> {
        let pages = tokens.len().div_ceil(PAGE);
        let fits = |entry: &Kept| entry.key == key && entry.tokens.starts_with(tokens);
        self.entries.iter().position(|entry| fits(entry) && entry.tokens.len().div_ceil(PAGE) == pages)
    }

    fn insert(&mut self, key: u8, tokens: &[u32]) {
        self.clock += 1;
        let whole = (tokens.len() - 1) / PAGE * PAGE;
        let replaced = |entry: &Kept| {
            let len = entry.tokens.len();
            entry.key == key
                && entry.users == 0
                && len > whole
                && len < tokens.len()
                && tokens.starts_with(&entry.tokens)
        };
        self.entries.retain(|entry| !replaced(entry));
        self.entries.push(Kept { key, tokens: tokens.to_vec(), users: 0, used: self.clock });
    }

    fn evict(&mut self) -> bool {
        let inner = |of: &Kept| {
            let continues = |other: &Kept| {
                other.key == of.key
                    && other.tokens.len() > of.tokens.len()
                    && other.tokens.starts_with(&of.tokens)
            };
            of.tokens.len().is_multiple_of(PAGE) && self.entries.iter().any(continues)
        };
        let idle =
            (0..self.entries.len()).filter(|&i| self.entries[i].users == 0 && !inner(&self.entries[i]));
        let Some(oldest) = idle.min_by_key(|&i| self.entries[i].used) else { return false };
        self.entries.remove(oldest);
        true
    }
}

struct Both {
    tree: PrefixTree<u8, Vec<u32>>,
    naive: Naive,
    /// Pages that somebody holds, each from the first of its key on.
    held: Vec<(Vec<NodeId>, u8)>,
}

impl Both {
    /// Brings a sequence into both, page by page.
    fn insert(&mut self, key: u8, tokens: &[u32]) -> Vec<NodeId> {
        let mut path = Vec::new();
        for page in tokens.chunks(PAGE) {
            let end = path.len() * PAGE + page.len();
            let there = self.naive.page(key, &tokens[..end]);
            let node = match self.tree.child(&key, path.last().copied(), page) {
                Some(node) => {
                    assert!(there.is_some(), "{:?} is not there", &tokens[..end]);
                    node
                }
                None => {
                    assert!(there.is_none(), "{:?} is there", &tokens[..end]);
                    self.naive.insert(key, &tokens[..end]);
                    let (all, bytes) = (tokens[..end].to_vec(), bytes(page.len()));
                    self.tree.insert(key, path.last().copied(), page, all, bytes)
                }
            };
            path.push(node);
        }
        self.tree.touch(&path);
        self.naive.clock += 1;
        let now = self.naive.clock;
        path.iter().for_each(|&node| self.entry(key, node).used = now);
        path
    }

    fn find(&mut self, key: u8, tokens: &[u32], most: usize) {
        let found = self.tree.find(&key, tokens, most);
        let len = found.whole.len() * PAGE + found.part.map_or(0, |(_, len)| len);
        assert_eq!(len, self.naive.find(key, &tokens[..most.min(tokens.len())]), "{tokens:?}, {most}");
        for (i, &node) in found.whole.iter().enumerate() {
            assert_eq!(self.tree.page(node).unwrap(), &tokens[..(i + 1) * PAGE]);
        }
        if let Some((node, _)) = found.part {
            assert!(self.tree.page(node).unwrap().starts_with(&tokens[..len]));
        }
    }

    /// What the list has of a page of the tree.
    fn entry(&mut self, key: u8, node: NodeId) -> &mut Kept {
        let tokens = self.tree.page(node).unwrap();
        self.naive.entries.iter_mut().find(|entry| entry.key == key && entry.tokens == *tokens).unwrap()
    }

    fn hold(&mut self, nodes: Vec<NodeId>, key: u8, by: isize) {
        for &node in &nodes {
            let users = &mut self.entry(key, node).users;
            *users = users.checked_add_signed(by).unwrap();
            if by > 0 { self.tree.hold(node) } else { self.tree.let_go(node) }
        }
        if by > 0 {
            self.held.push((nodes, key));
        }
    }

    fn check(&self) {
        assert_eq!(self.tree.bytes(), self.naive.bytes());
        assert_eq!(self.tree.used_bytes(), self.naive.used_bytes());
    }
}

#[test]
fn it_holds_finds_and_evicts_what_a_list_would() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let mut both = Both { tree: PrefixTree::new(PAGE), naive: Naive::default(), held: Vec::new() };
        let budget = 60 + random.below(400);
        for _ in 0..400 {
            let key = random.below(2) as u8;
            // Two kinds of tokens, so that sequences have long beginnings in common.
            let len = 1 + random.below(22) as usize;
            let tokens: Vec<u32> = (0..len).map(|_| u32::from(random.below(5) == 0)).collect();
            match random.below(6) {
                0..=2 => {
                    let path = both.insert(key, &tokens);
                    if random.below(3) == 0 {
                        both.hold(path, key, 1);
                    }
                }
                3 => both.find(key, &tokens, random.below(24) as usize),
                4 if !both.held.is_empty() => {
                    let which = random.below(both.held.len() as u64) as usize;
                    let (nodes, key) = both.held.swap_remove(which);
                    both.hold(nodes, key, -1);
                }
                _ => assert_eq!(both.tree.evict(), both.naive.evict()),
            }
            // As an engine would, down to what somebody holds.
            while both.tree.bytes() > budget && both.tree.bytes() > both.tree.used_bytes() {
                assert!(both.tree.evict() && both.naive.evict());
            }
            both.check();
            assert!(both.tree.bytes() <= budget.max(both.tree.used_bytes()));
        }
        while let Some((nodes, key)) = both.held.pop() {
            both.hold(nodes, key, -1);
        }
        while both.tree.evict() {
            assert!(both.naive.evict());
            both.check();
        }
        assert!(both.naive.entries.is_empty() && both.tree.roots.is_empty());
        assert_eq!(both.tree.bytes(), 0);
    }
}

#[test]
fn the_tokens_decide_and_a_key_keeps_trees_apart() {
    let mut tree = PrefixTree::new(2);
    let first = tree.insert('a', None, &[1, 2], "1 2", 1);
    let part = tree.insert('a', Some(first), &[3], "3", 1);
    assert_eq!(tree.find(&'a', &[1, 2, 3, 4], 9).nodes().collect::<Vec<_>>(), [first, part]);
    assert_eq!(tree.find(&'a', &[1, 2, 3, 4], 2).nodes().collect::<Vec<_>>(), [first]);
    assert_eq!(tree.find(&'a', &[1, 2, 3, 4], 1).part, Some((first, 1)));
    assert_eq!(tree.find(&'a', &[2, 1], 9), super::Found::default());
    assert_eq!(tree.find(&'b', &[1, 2], 9), super::Found::default());
    // One that goes further takes the place of the one that it begins with, unless that is in use.
    let longer = tree.insert('a', Some(first), &[3, 4], "3 4", 1);
    assert_eq!((tree.bytes(), tree.find(&'a', &[1, 2, 3, 4], 9).whole), (2, vec![first, longer]));
    let part = tree.insert('a', Some(longer), &[5], "5", 1);
    tree.hold(part);
    tree.insert('a', Some(longer), &[5, 6], "5 6", 1);
    assert_eq!(tree.bytes(), 4);
    tree.let_go(part);
    assert_eq!(tree.used_bytes(), 0);
}
