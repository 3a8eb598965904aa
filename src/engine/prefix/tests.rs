//! The tree against a list of all that it should hold, searched by brute force.

use std::collections::BTreeSet;

use super::{NodeId, PrefixTree, TreeBytes};
use crate::engine::rig::Random;

const PAGE: usize = 4;
const WINDOW: usize = 6;
/// Bytes of a pane.
const PANE: u64 = 7;

/// A page or a pane, by its key and all tokens up to its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    is_pane: bool,
    key: u8,
    tokens: Vec<u32>,
}

/// What the list has of it.
#[derive(Debug, Clone, PartialEq)]
struct Kept {
    name: Name,
    users: usize,
    used: u64,
}

#[derive(Default)]
struct Naive {
    window: Option<usize>,
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
    fn bytes(&self) -> TreeBytes {
        let mut sum = TreeBytes::default();
        for entry in &self.entries {
            let bytes = if entry.name.is_pane { PANE } else { bytes(last_page(entry.name.tokens.len())) };
            sum.all += bytes;
            sum.used += if entry.users > 0 { bytes } else { 0 };
            sum.repeated += if entry.name.is_pane { entry.users.saturating_sub(1) as u64 * bytes } else { 0 };
        }
        sum
    }

    fn pages(&self, key: u8) -> impl Iterator<Item = &Kept> {
        self.entries.iter().filter(move |entry| entry.name.key == key && !entry.name.is_pane)
    }

    fn pane(&self, name: &Name) -> Option<&Kept> {
        let pane = Name { is_pane: true, ..name.clone() };
        self.entries.iter().find(|entry| entry.name == pane)
    }

    /// The longest beginnings of `tokens`: of whole pages with the panes that are needed, and with any page behind them.
    fn find(&self, key: u8, tokens: &[u32]) -> [usize; 2] {
        let begins = |len: usize| {
            let first = self.window.map_or(usize::MAX, |window| (len + 1).saturating_sub(window) / PAGE);
            (0..len.div_ceil(PAGE)).all(|page| {
                let end = len.min((page + 1) * PAGE);
                self.pages(key).any(|entry| {
                    let has = &entry.name.tokens;
                    has.len() > page * PAGE
                        && has.len() <= (page + 1) * PAGE
                        && has.starts_with(&tokens[..end])
                        && (page < first || self.pane(&entry.name).is_some())
                })
            })
        };
        let longest = (0..=tokens.len()).rev().find(|&len| begins(len)).unwrap_or(0);
        let whole = (0..=longest / PAGE).rev().find(|&pages| begins(pages * PAGE)).unwrap_or(0);
        [whole * PAGE, longest]
    }

    /// Whether the page that the last of `tokens` are in is there and begins with them.
    fn has(&self, key: u8, tokens: &[u32]) -> bool {
        let pages = tokens.len().div_ceil(PAGE);
        self.pages(key).any(|entry| {
            entry.name.tokens.starts_with(tokens) && entry.name.tokens.len().div_ceil(PAGE) == pages
        })
    }

    fn insert(&mut self, key: u8, tokens: &[u32]) {
        self.clock += 1;
        let whole = (tokens.len() - 1) / PAGE * PAGE;
        let replaced = |entry: &Kept| {
            let len = entry.name.tokens.len();
            entry.name.key == key
                && entry.users == 0
                && len > whole
                && len < tokens.len()
                && tokens.starts_with(&entry.name.tokens)
        };
        // Without users a page has a pane without users.
        let gone: Vec<Name> =
            self.pages(key).filter(|entry| replaced(entry)).map(|e| e.name.clone()).collect();
        self.entries.retain(|entry| {
            !gone.iter().any(|name| name.tokens == entry.name.tokens && name.key == entry.name.key)
        });
        let name = Name { is_pane: false, key, tokens: tokens.to_vec() };
        self.entries.push(Kept { name, users: 0, used: self.clock });
    }

    /// Whether it is a page without users that none comes after.
    fn is_idle(&self, of: &Name) -> bool {
        let continues = |other: &Kept| {
            other.name.tokens.len() > of.tokens.len() && other.name.tokens.starts_with(&of.tokens)
        };
        let page = Name { is_pane: false, ..of.clone() };
        let users = self.pages(of.key).find(|entry| entry.name == page).map(|entry| entry.users);
        users == Some(0) && !(of.tokens.len().is_multiple_of(PAGE) && self.pages(of.key).any(continues))
    }

    /// Evicts what `gone` names, which is to be what was not used for longest, and what nothing can begin behind then.
    fn evict(&mut self, gone: &BTreeSet<Name>) -> bool {
        let may = |entry: &&Kept| {
            if entry.name.is_pane {
                entry.users == 0 && !self.is_idle(&entry.name)
            } else {
                self.is_idle(&entry.name)
            }
        };
        let Some(oldest) = self.entries.iter().filter(may).map(|entry| entry.used).min() else {
            return !gone.is_empty();
        };
        let is_oldest = |entry: &&Kept| entry.used == oldest && gone.contains(&entry.name);
        let first = self.entries.iter().filter(may).find(is_oldest).map(|entry| entry.name.clone());
        let mut next = Some(first.unwrap_or_else(|| panic!("{gone:?} is not the oldest")));
        let mut left = gone.clone();
        while let Some(name) = next {
            assert!(left.remove(&name), "{name:?} is still there");
            let at = self.entries.iter().position(|entry| entry.name == name).unwrap();
            self.entries.swap_remove(at);
            if name.is_pane {
                break;
            }
            // Its pane goes with it, and pages before it that are of no use.
            let pane = Name { is_pane: true, ..name.clone() };
            if left.remove(&pane) {
                self.entries.retain(|entry| entry.name != pane);
            }
            let before = (name.tokens.len() - 1) / PAGE * PAGE;
            let before = Name { tokens: name.tokens[..before].to_vec(), ..name };
            let useless = self.window.is_some() && self.is_idle(&before) && self.pane(&before).is_none();
            next = useless.then_some(before);
        }
        assert!(left.is_empty(), "{left:?} are gone, too");
        true
    }
}

struct Both {
    tree: PrefixTree<u8, Name>,
    naive: Naive,
    /// Pages that somebody holds, each from the first of its key on, and how many of the last ones with their panes.
    held: Vec<(Vec<NodeId>, usize)>,
}

impl Both {
    fn new(window: Option<usize>) -> Self {
        let naive = Naive { window, ..Naive::default() };
        Self { tree: PrefixTree::new(PAGE, window, false), naive, held: Vec::new() }
    }

    /// Brings a sequence into both, page by page, of the last ones the panes.
    fn insert(&mut self, key: u8, tokens: &[u32], panes: usize) -> Vec<NodeId> {
        let mut path: Vec<NodeId> = Vec::new();
        let first = tokens.len().div_ceil(PAGE).saturating_sub(panes);
        for (i, page) in tokens.chunks(PAGE).enumerate() {
            let end = i * PAGE + page.len();
            let there = self.naive.has(key, &tokens[..end]);
            let node = self.tree.child(&key, path.last().copied(), page);
            assert_eq!(node.is_some(), there, "{:?}", &tokens[..end]);
            let node = node.unwrap_or_else(|| {
                self.naive.insert(key, &tokens[..end]);
                let name = Name { is_pane: false, key, tokens: tokens[..end].to_vec() };
                self.tree.insert(key, path.last().copied(), page, name, bytes(page.len()))
            });
            if i >= first && self.tree.pane(node).is_none() {
                let name = Name { is_pane: true, ..self.tree.page(node).unwrap().clone() };
                self.naive.entries.push(Kept { name: name.clone(), users: 0, used: 0 });
                self.tree.set_pane(node, name, PANE);
            }
            path.push(node);
        }
        self.tree.touch(&path, first);
        self.naive.clock += 1;
        let now = self.naive.clock;
        self.change(&path, path.len() - first, |kept| kept.used = now);
        path
    }

    fn find(&mut self, key: u8, tokens: &[u32], most: usize) {
        let found = self.tree.find(&key, tokens, most);
        let len = found.whole.len() * PAGE + found.part.map_or(0, |(_, len)| len);
        let [whole, longest] = self.naive.find(key, &tokens[..most.min(tokens.len())]);
        // Of pages that begin alike, one with a pane and one without, it may take either.
        let least = if self.naive.window.is_some() { whole } else { longest };
        assert!((least..=longest).contains(&len), "{tokens:?}, {most}: {len}, {least} to {longest}");
        for (i, node) in found.nodes().enumerate() {
            let end = len.min((i + 1) * PAGE);
            assert!(self.tree.page(node).unwrap().tokens.starts_with(&tokens[..end]));
            assert!(i < found.first || self.tree.pane(node).is_some());
        }
        let first = self.naive.window.map_or(usize::MAX, |window| (len + 1).saturating_sub(window) / PAGE);
        assert_eq!(found.first, first.min(found.nodes().count()));
    }

    /// Changes what the list has of pages of the tree, and of the panes of the last ones.
    fn change(&mut self, nodes: &[NodeId], panes: usize, change: impl Fn(&mut Kept)) {
        for (i, &node) in nodes.iter().enumerate() {
            let page = self.tree.page(node).into_iter();
            let pane = self.tree.pane(node).filter(|_| i + panes >= nodes.len());
            for name in page.chain(pane) {
                change(self.naive.entries.iter_mut().find(|entry| entry.name == *name).unwrap());
            }
        }
    }

    fn hold(&mut self, nodes: Vec<NodeId>, panes: usize) {
        self.change(&nodes, panes, |kept| kept.users += 1);
        nodes.iter().for_each(|&node| self.tree.hold(node));
        nodes[nodes.len() - panes..].iter().for_each(|&node| self.tree.hold_pane(node));
        self.held.push((nodes, panes));
    }

    fn let_go(&mut self, which: usize) {
        let (nodes, panes) = self.held.swap_remove(which);
        self.change(&nodes, panes, |kept| kept.users -= 1);
        nodes[nodes.len() - panes..].iter().for_each(|&node| self.tree.let_go_pane(node));
        nodes.iter().for_each(|&node| self.tree.let_go(node));
    }

    fn evict(&mut self) -> bool {
        let done = self.tree.evict();
        let left: BTreeSet<&Name> = self.tree.pages().collect();
        let gone = self.naive.entries.iter().map(|entry| &entry.name).filter(|name| !left.contains(name));
        let gone: BTreeSet<Name> = gone.cloned().collect();
        assert_eq!(self.naive.evict(&gone), done);
        done
    }

    fn check(&self) {
        assert_eq!(self.tree.bytes(), self.naive.bytes());
        let names = |of: &mut dyn Iterator<Item = &Name>| of.cloned().collect::<BTreeSet<Name>>();
        let listed = names(&mut self.naive.entries.iter().map(|entry| &entry.name));
        assert_eq!(names(&mut self.tree.pages()), listed);
    }
}

#[test]
fn it_holds_finds_and_evicts_what_a_list_would() {
    for seed in 0..120 {
        let mut random = Random(seed);
        let window = (seed % 2 == 1).then_some(WINDOW);
        let mut both = Both::new(window);
        let budget = 60 + random.below(400);
        let charge = |both: &Both| both.tree.bytes().all;
        for _ in 0..400 {
            let key = random.below(2) as u8;
            // Two kinds of tokens, so that sequences have long beginnings in common.
            let len = 1 + random.below(22) as usize;
            let tokens: Vec<u32> = (0..len).map(|_| u32::from(random.below(5) == 0)).collect();
            match random.below(6) {
                0..=2 => {
                    let panes = if window.is_some() { 1 + random.below(3) as usize } else { 0 };
                    let path = both.insert(key, &tokens, panes);
                    if random.below(3) == 0 {
                        let panes = panes.min(path.len());
                        both.hold(path, panes);
                    }
                }
                3 => both.find(key, &tokens, random.below(24) as usize),
                4 if !both.held.is_empty() => both.let_go(random.below(both.held.len() as u64) as usize),
                _ => {
                    both.evict();
                }
            }
            // As an engine would, down to what somebody holds.
            while charge(&both) > budget && charge(&both) > both.tree.bytes().used {
                assert!(both.evict());
                both.check();
            }
            both.check();
            assert!(charge(&both) <= budget.max(both.tree.bytes().used));
        }
        while !both.held.is_empty() {
            both.let_go(0);
        }
        while both.evict() {
            both.check();
        }
        assert!(both.naive.entries.is_empty() && both.tree.roots.is_empty());
        assert_eq!(both.tree.bytes(), TreeBytes::default());
    }
}

#[test]
fn the_tokens_decide_and_a_key_keeps_trees_apart() {
    let mut tree = PrefixTree::new(2, None, false);
    let first = tree.insert('a', None, &[1, 2], "1 2", 1);
    let part = tree.insert('a', Some(first), &[3], "3", 1);
    assert_eq!(tree.find(&'a', &[1, 2, 3, 4], 9).nodes().collect::<Vec<_>>(), [first, part]);
    assert_eq!(tree.find(&'a', &[1, 2, 3, 4], 2).nodes().collect::<Vec<_>>(), [first]);
    assert_eq!(tree.find(&'a', &[1, 2, 3, 4], 1).part, Some((first, 1)));
    assert_eq!(tree.find(&'a', &[2, 1], 9), super::Found::default());
    assert_eq!(tree.find(&'b', &[1, 2], 9), super::Found::default());
    // One that goes further takes the place of the one that it begins with, unless that is in use.
    let longer = tree.insert('a', Some(first), &[3, 4], "3 4", 1);
    assert_eq!((tree.bytes().all, tree.find(&'a', &[1, 2, 3, 4], 9).whole), (2, vec![first, longer]));
    let part = tree.insert('a', Some(longer), &[5], "5", 1);
    tree.hold(part);
    tree.insert('a', Some(longer), &[5, 6], "5 6", 1);
    assert_eq!(tree.bytes().all, 4);
    tree.let_go(part);
    assert_eq!(tree.bytes().used, 0);
}

#[test]
fn sequences_begin_where_the_panes_are_that_they_see() {
    // The token after five sees those from the third on, in the second page and the third.
    let mut tree = PrefixTree::new(2, Some(3), false);
    let mut path = Vec::new();
    for page in [[1, 2], [3, 4], [5, 6], [7, 8]] {
        let node = tree.insert((), path.last().copied(), &page, page, 1);
        path.push(node);
    }
    let len = |tree: &PrefixTree<(), [u32; 2]>, most| {
        let found = tree.find(&(), &[1, 2, 3, 4, 5, 6, 7, 8], most);
        (found.whole.len() * 2 + found.part.map_or(0, |(_, len)| len), found.first)
    };
    assert_eq!(len(&tree, 8), (0, 0));
    tree.set_pane(path[0], [0, 0], 1);
    assert_eq!(len(&tree, 8), (2, 0));
    tree.set_pane(path[3], [0, 0], 1);
    assert_eq!(len(&tree, 8), (8, 3), "two before the next one are in the last page");
    assert_eq!(len(&tree, 7), (2, 0));
    // Of use were the first page's and the last one's; the second's is evicted first.
    tree.touch(&path[..1], 0);
    tree.touch(&path, 3);
    tree.set_pane(path[1], [0, 0], 1);
    assert!(tree.evict() && tree.pane(path[1]).is_none() && tree.pane(path[0]).is_some());
    assert!(tree.evict() && tree.pane(path[0]).is_none() && tree.pane(path[3]).is_some());
    assert_eq!(len(&tree, 8), (8, 3));
    // With the last leaf all goes that nothing can begin behind.
    assert!(tree.evict() && tree.bytes() == TreeBytes::default());
}

/// Anybody can name any number of salts.
#[test]
fn keys_without_pages_are_forgotten() {
    let mut tree: PrefixTree<u32, ()> = PrefixTree::new(PAGE, None, false);
    for key in 0..1000 {
        let node = tree.insert(key, None, &[1, 2, 3, 4], (), 1);
        let deeper = tree.insert(key, Some(node), &[5], (), 1);
        assert_eq!(tree.find(&key, &[1, 2, 3, 4, 5], 5).nodes().collect::<Vec<_>>(), [node, deeper]);
        if key % 10 > 0 {
            assert!(tree.evict() && tree.evict() && !tree.find(&key, &[1], 1).nodes().any(|_| true));
        }
        while tree.evict() {}
        assert!(tree.roots.len() <= 2, "{}", tree.roots.len());
    }
    assert!(tree.nodes.len() < 10, "{}", tree.nodes.len());
}

/// Where layers are recurrent, what is found ends at a snapshot.
#[test]
fn a_beginning_ends_where_there_is_a_snapshot() {
    let mut tree: PrefixTree<(), &str> = PrefixTree::new(4, None, true);
    let text = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    let first = tree.insert((), None, &text[..4], "first", 10);
    let part = tree.insert((), Some(first), &text[4..6], "part", 10);
    let len = |tree: &PrefixTree<(), &str>, tokens: &[u32]| {
        let found = tree.find(&(), tokens, tokens.len());
        4 * found.whole.len() + found.part.map_or(0, |(_, len)| len)
    };
    assert_eq!(len(&tree, &text), 0);
    tree.set_snapshot(first, "after 4", 3);
    assert_eq!((len(&tree, &text), len(&tree, &text[..3]), len(&tree, &text[..4])), (4, 0, 4));
    tree.set_snapshot(part, "after 6", 3);
    assert_eq!((len(&tree, &text), len(&tree, &text[..5]), len(&tree, &text[..6])), (6, 4, 6));
    // A page that goes on is beside the part of it, which stays for its snapshot, whatever comes then.
    let second = tree.insert((), Some(first), &text[4..8], "second", 10);
    assert_eq!((len(&tree, &text), tree.whole_child(&(), Some(first), &text[4..6])), (6, Some(part)));
    // Nor does what goes on behind it hide it.
    tree.insert((), Some(second), &text[8..], "third", 10);
    assert_eq!(len(&tree, &text), 6);
    for other in [0, 9] {
        assert_eq!(len(&tree, &[1, 2, 3, 4, 5, 6, other, 8]), 6, "{other}");
    }
    tree.set_snapshot(second, "after 8", 3);
    assert_eq!((len(&tree, &text), tree.bytes().all), (8, 49));
    assert_eq!(
        tree.find(&(), &text, 9).nodes().last().and_then(|node| tree.snapshot(node)),
        Some(&"after 8")
    );
    // The one that was not of use for longest goes first.
    tree.touch_snapshot(first);
    tree.touch(&[first, part], 2);
    tree.touch(&[first, second], 2);
    assert!(tree.evict());
    assert_eq!((tree.snapshot(part), tree.bytes().all, len(&tree, &text[..7])), (None, 46, 4));
    while tree.evict() {}
    assert_eq!(tree.bytes(), TreeBytes::default());
}
