//! The modules of a package, and the file that a path in one of them leads to.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use super::scan::{self, Body, Module, Path};

/// Gives the text of a file, named by its path from the package's root; none where there is no such file.
pub type Read<'a> = dyn Fn(&str) -> Result<Option<String>> + 'a;

/// An import: code in one file that names what another one holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub from: String,
    pub to: String,
    /// The line in `from`, counted from 1.
    pub line: usize,
}

/// The modules of the crates of a package.
pub struct Tree<'a> {
    read: &'a Read<'a>,
    modules: Vec<Node>,
    /// The name by which other crates of the package know the first one, the library.
    library: String,
}

/// A module in the tree.
struct Node {
    file: String,
    /// The folder in which the files of its child modules are.
    folder: String,
    parent: Option<usize>,
    /// The root of its crate.
    root: usize,
    children: Vec<(String, usize)>,
    text: Module,
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Module(usize),
    /// Something else, which this module defines.
    Item(usize),
}

impl<'a> Tree<'a> {
    /// Reads the crates whose roots are the files `roots`, the library's first.
    ///
    /// # Errors
    /// A module without a file, and a file that is not Rust.
    pub fn new(library: &str, roots: &[&str], read: &'a Read<'a>) -> Result<Self> {
        let mut tree = Self { read, modules: Vec::new(), library: library.to_owned() };
        for root in roots {
            let text = tree.scan(root)?.with_context(|| format!("{root}: there is no such file"))?;
            let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
            tree.add((*root).to_owned(), folder, None, text)?;
        }
        Ok(tree)
    }

    fn scan(&self, file: &str) -> Result<Option<Module>> {
        let text = (self.read)(file)?;
        text.map(|text| scan::scan(&text).with_context(|| file.to_owned())).transpose()
    }

    fn add(
        &mut self,
        file: String,
        folder: String,
        parent: Option<usize>,
        mut text: Module,
    ) -> Result<usize> {
        let index = self.modules.len();
        let children = std::mem::take(&mut text.children);
        let root = parent.map_or(index, |parent| self.modules[parent].root);
        self.modules.push(Node { file, folder, parent, root, children: Vec::new(), text });
        for child in children {
            let Node { file, folder, .. } = &self.modules[index];
            let own = format!("{folder}/{}", child.name);
            let (file, text) = match child.body {
                Body::Inline(text) => (file.clone(), text),
                Body::File(path) => {
                    // `#[path]` starts at the folder of the file, not at that of its child modules.
                    let beside = file.rsplit_once('/').map_or("", |(beside, _)| beside);
                    let places = match path {
                        Some(path) => vec![format!("{beside}/{path}")],
                        None => vec![format!("{own}.rs"), format!("{own}/mod.rs")],
                    };
                    let found = places.iter().find_map(|place| {
                        let text = self.scan(place).transpose()?;
                        Some(text.map(|text| (place.clone(), text)))
                    });
                    let absent =
                        || format!("{file}: its module {} is not in {}", child.name, places.join(" or "));
                    found.with_context(absent)??
                }
            };
            let added = self.add(file, own, Some(index), text)?;
            self.modules[index].children.push((child.name, added));
        }
        Ok(index)
    }

    /// All files, in order.
    pub fn files(&self) -> BTreeSet<&str> {
        self.modules.iter().map(|module| module.file.as_str()).collect()
    }

    /// All imports from one file into another, in order, each with the first line that makes it. A name that is brought in
    /// from where it is re-exported leads to the file that defines it, and to the root of its crate where that re-exports it.
    pub fn imports(&self) -> Vec<Import> {
        let mut found = BTreeSet::new();
        for (index, module) in self.modules.iter().enumerate() {
            let uses = module.text.uses.iter().map(|import| &import.path);
            for path in uses.chain(&module.text.paths) {
                let Some(Target::Module(to) | Target::Item(to)) = self.resolve(index, path, &mut Vec::new())
                else {
                    continue;
                };
                let face = self.face(index, path).map(|root| &self.modules[root].file);
                for to in [&self.modules[to].file].into_iter().chain(face).filter(|to| **to != module.file) {
                    found.insert(Import { from: module.file.clone(), to: to.clone(), line: path.line });
                }
            }
        }
        let mut found = Vec::from_iter(found);
        found.dedup_by(|next, kept| (&next.from, &next.to) == (&kept.from, &kept.to));
        found
    }

    /// The root of the crate whose own name, not a module's, `path` takes.
    fn face(&self, from: usize, path: &Path) -> Option<usize> {
        let [first, name, ..] = path.segments.as_slice() else { return None };
        let Node { root, parent, .. } = self.modules[from];
        let asked = match first.as_str() {
            "crate" => root,
            "super" => parent.filter(|parent| *parent == root)?,
            library if library == self.library && root != 0 => 0,
            _ => return None,
        };
        let is_module = self.modules[asked].children.iter().any(|(child, _)| child == name);
        (!is_module && name != "self" && name != "super").then_some(asked)
    }

    /// What `path` leads to, as code in module `from` writes it; none where that is another crate's or no path to a module.
    /// `seen`: names that are being looked up.
    fn resolve(&self, from: usize, path: &Path, seen: &mut Vec<(usize, String)>) -> Option<Target> {
        let (first, rest) = path.segments.split_first()?;
        let mut at = match first.as_str() {
            "crate" => Target::Module(self.modules[from].root),
            "self" => Target::Module(from),
            "super" => Target::Module(self.modules[from].parent?),
            name => match self.lookup(from, name, seen) {
                Some(Target::Item(_)) if rest.is_empty() => return None,
                Some(target) => target,
                None if name == self.library && self.modules[from].root != 0 => Target::Module(0),
                None => return None,
            },
        };
        for name in rest {
            let Target::Module(module) = at else { break };
            at = match name.as_str() {
                "super" => Target::Module(self.modules[module].parent?),
                name => self.lookup(module, name, seen).unwrap_or(Target::Item(module)),
            };
        }
        Some(at)
    }

    /// What `name` is in `module`: a module, an item, or what a `use` made of it; none where it is not known there.
    fn lookup(&self, module: usize, name: &str, seen: &mut Vec<(usize, String)>) -> Option<Target> {
        let Node { children, text, .. } = &self.modules[module];
        if let Some((_, child)) = children.iter().find(|(child, _)| child == name) {
            return Some(Target::Module(*child));
        }
        if text.items.contains(name) {
            return Some(Target::Item(module));
        }
        let key = (module, name.to_owned());
        if seen.contains(&key) {
            return None;
        }
        seen.push(key);
        let named = text.uses.iter().find(|import| import.name.as_deref() == Some(name));
        let found = match named {
            Some(import) => self.resolve(module, &import.path, seen),
            None => text.uses.iter().filter(|import| import.name.is_none()).find_map(|glob| {
                match self.resolve(module, &glob.path, seen)? {
                    Target::Module(inside) => self.lookup(inside, name, seen),
                    Target::Item(_) => None,
                }
            }),
        };
        seen.pop();
        found
    }
}
