//! `cargo xtask layers`: imports between the files of `src/` run down the module map of docs/architecture.md, and in no circle.

mod scan;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::util;
use tree::{Import, Tree};

const DOCUMENT: &str = "docs/architecture.md";
const MAP: &str = "## Module map\n";
const EXCEPTIONS: &str = "### Imports against the order\n";

/// Checks the project.
///
/// # Errors
/// Every import that runs upwards or in a circle without being excepted, every exception that nothing needs, and every file
/// without a row in the map, or row without a file.
pub fn run() -> Result<()> {
    let root = util::root()?;
    let document = fs::read_to_string(root.join(DOCUMENT)).context(DOCUMENT)?;
    let house = House::parse(&document)?;
    let read = |file: &str| match fs::read_to_string(root.join(file)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(file.to_owned()),
    };
    let tree = Tree::new("backstop", &["src/lib.rs", "src/main.rs"], &read)?;
    let imports = tree.imports();
    // A scanner that finds nothing would find no fault either.
    ensure!(imports.len() > 500, "only {} imports were found below src/", imports.len());
    let mut faults = house.check(&tree.files(), &imports);
    for place in house.rows.iter().flatten().filter(|place| !root.join(place).exists()) {
        faults.push(format!("{DOCUMENT}: the module map has a row for {place}, which does not exist"));
    }
    if faults.is_empty() {
        eprintln!(
            "{} imports between {} files run downwards, {} exceptions apart",
            imports.len(),
            tree.files().len(),
            house.exceptions.len()
        );
        return Ok(());
    }
    bail!("{} faults:\n{}", faults.len(), faults.join("\n"))
}

/// The order of the modules, and what departs from it.
#[derive(Debug, PartialEq)]
struct House {
    /// The places of each row, files or folders with `/` at their end; the uppermost row first.
    rows: Vec<Vec<String>>,
    exceptions: Vec<Exception>,
}

/// Imports that are allowed against the order.
#[derive(Debug, PartialEq)]
struct Exception {
    /// A file, or a folder with `/` at its end.
    from: String,
    to: String,
}

impl Exception {
    fn covers(&self, import: &Import) -> bool {
        covers(&self.from, &import.from) && covers(&self.to, &import.to)
    }
}

/// Whether a file is this place, or lies in it.
fn covers(place: &str, file: &str) -> bool {
    if place.ends_with('/') { file.starts_with(place) } else { file == place }
}

/// What stands between backticks in a cell, if it is a path into `src/`.
fn places(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).filter(|path| path.starts_with("src/")).map(str::to_owned).collect()
}

/// The cells of each row of a table whose first one names a path into `src/`.
fn table(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = text.lines().filter(|line| line.starts_with("| `src/"));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect())
}

impl House {
    fn parse(document: &str) -> Result<Self> {
        let section = document.split_once(MAP).map(|(_, rest)| rest.split("\n## ").next().unwrap_or(rest));
        let section = section.with_context(|| format!("{DOCUMENT} has no section {:?}", MAP.trim_end()))?;
        let (map, exceptions) = section.split_once(EXCEPTIONS).unwrap_or((section, ""));
        let rows: Vec<Vec<String>> = table(map).map(|row| places(row[0])).collect();
        ensure!(rows.len() > 1, "{DOCUMENT}: the module map has {} rows", rows.len());
        let exceptions = table(exceptions).map(|row| match row.as_slice() {
            [from, to, reason] if !reason.is_empty() => {
                match (places(from).as_slice(), places(to).as_slice()) {
                    ([from], [to]) => Ok(Exception { from: from.clone(), to: to.clone() }),
                    _ => bail!("{DOCUMENT}: an exception is from one path to one, not {row:?}"),
                }
            }
            _ => bail!("{DOCUMENT}: an exception has two paths and a reason, not {row:?}"),
        });
        Ok(Self { rows, exceptions: exceptions.collect::<Result<_>>()? })
    }

    /// The row of a file: that of the longest place that covers it.
    fn row(&self, file: &str) -> Option<usize> {
        let rows = self.rows.iter().enumerate();
        let places = rows.flat_map(|(row, places)| places.iter().map(move |place| (place, row)));
        let covering = places.filter(|(place, _)| covers(place, file));
        covering.max_by_key(|(place, _)| place.len()).map(|(_, row)| row)
    }

    /// Every fault, as a line that says where it is.
    fn check(&self, files: &BTreeSet<&str>, imports: &[Import]) -> Vec<String> {
        let mut faults = Vec::new();
        for file in files.iter().filter(|file| self.row(file).is_none()) {
            faults.push(format!("{file}: it is in no row of the module map of {DOCUMENT}"));
        }
        let upward = |import: &&Import| match (self.row(&import.from), self.row(&import.to)) {
            (Some(from), Some(to)) => from > to,
            _ => false,
        };
        let excepted = |import: &&Import| self.exceptions.iter().any(|exception| exception.covers(import));
        for import in imports.iter().filter(upward).filter(|import| !excepted(import)) {
            let Import { from, line, to } = import;
            faults.push(format!("{from}:{line} → {to}: it runs upwards in the module map"));
        }
        // A circle with an upward import in it was told of above.
        let level: Vec<&Import> = imports.iter().filter(|import| !upward(import)).collect();
        let strict: Vec<&Import> = level.iter().copied().filter(|import| !excepted(import)).collect();
        let (level, strict) = (Siblings::new(&level), Siblings::new(&strict));
        let mut told = BTreeSet::new();
        for import in strict.imports() {
            let Some(circle) = strict.circle(import).filter(|_| !told.contains(import)) else { continue };
            told.extend(circle.iter().copied());
            let step = |Import { from, line, to }: &Import| format!("{from}:{line} → {to}");
            let steps: Vec<String> = circle.into_iter().map(step).collect();
            faults.push(format!("{}: a circle", steps.join(", ")));
        }
        for exception in &self.exceptions {
            let needed = |import: &Import| upward(&import) || level.circle(import).is_some();
            if !imports.iter().any(|import| exception.covers(import) && needed(import)) {
                let Exception { from, to } = exception;
                faults.push(format!("{DOCUMENT}: nothing needs the exception from {from} to {to}"));
            }
        }
        faults
    }
}

/// The imports between modules that have one parent, by the module that has them, itself or below it. A module and those below
/// it are no circle, whatever they import of each other: a child sees what its parent keeps private.
struct Siblings<'a>(BTreeMap<String, Vec<(String, &'a Import)>>);

impl<'a> Siblings<'a> {
    fn new(imports: &[&'a Import]) -> Self {
        let mut siblings = BTreeMap::<_, Vec<_>>::new();
        for &import in imports {
            if let Some((from, to)) = Self::of(import) {
                siblings.entry(from).or_default().push((to, import));
            }
        }
        Self(siblings)
    }

    /// The modules next below the one that both files lie in; none where one file is that module.
    fn of(import: &Import) -> Option<(String, String)> {
        let [from, to] = [&import.from, &import.to].map(|file| {
            let path = file.strip_suffix(".rs").unwrap_or(file);
            path.strip_suffix("/mod").unwrap_or(path).split('/').collect::<Vec<_>>()
        });
        let common = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
        let below = |path: &[&str]| path.get(..=common).map(|path| path.join("/"));
        Some((below(&from)?, below(&to)?))
    }

    fn imports(&self) -> impl Iterator<Item = &'a Import> {
        self.0.values().flatten().map(|(_, import)| *import)
    }

    /// The shortest circle that begins with `import`.
    fn circle(&self, import: &'a Import) -> Option<Vec<&'a Import>> {
        let (start, first) = Self::of(import)?;
        let mut ways = BTreeMap::from([(first.clone(), vec![import])]);
        let mut queue = VecDeque::from([first]);
        while let Some(module) = queue.pop_front() {
            let way = ways[&module].clone();
            if module == start {
                return Some(way);
            }
            for (to, step) in self.0.get(&module).into_iter().flatten() {
                ways.entry(to.clone()).or_insert_with(|| {
                    queue.push_back(to.clone());
                    [way.as_slice(), &[*step]].concat()
                });
            }
        }
        None
    }
}
