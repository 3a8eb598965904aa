//! What docs/architecture.md says of the code, held against the code: the order of the modules, and where `unsafe` is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Imports that run upwards all the same; the document gives their reasons.
const UPWARDS: [(&str, &str); 1] = [("config", "weights")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn document() -> String {
    fs::read_to_string(root().join("docs/architecture.md")).unwrap()
}

/// All source files below `dir`, as paths from the repository's root with `/` between their parts.
fn sources(dir: &Path, found: &mut Vec<String>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let parts = path.strip_prefix(root()).unwrap().components();
            let parts: Vec<String> =
                parts.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
            found.push(parts.join("/"));
        }
    }
}

fn all_sources() -> Vec<String> {
    let mut found = Vec::new();
    sources(&root().join("src"), &mut found);
    assert!(found.len() > 50, "{} source files", found.len());
    found
}

/// The code of a file without its line comments.
fn code(path: &str) -> String {
    let text = fs::read_to_string(root().join(path)).unwrap();
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// What stands between backticks in a text, if it is a path into `src/`.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|path| path.starts_with("src/"))
}

/// The module of a path: `src/quant/mod.rs` and `src/quant.rs` are `quant`.
fn module(path: &str) -> &str {
    let path = path.strip_prefix("src/").unwrap();
    let first = path.split('/').next().unwrap();
    first.strip_suffix(".rs").unwrap_or(first)
}

/// The row of each module in the module map, the uppermost first.
fn rows() -> BTreeMap<String, usize> {
    let document = document();
    let map = document.split("\n## ").find(|part| part.starts_with("Module map")).unwrap();
    let mut rows = BTreeMap::new();
    for (row, line) in map.lines().filter(|line| line.starts_with("| `src/")).enumerate() {
        for path in paths(line.split('|').nth(1).unwrap()) {
            rows.entry(module(path).to_owned()).or_insert(row);
        }
    }
    rows
}

/// Modules of this crate that code names by `crate::`.
fn named(code: &str) -> BTreeSet<&str> {
    let word = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let group = after.strip_prefix('{').map(|inner| inner.split('}').next().unwrap_or(inner));
        for part in group.unwrap_or(&after[..word(after)]).split(',') {
            let part = part.trim();
            found.insert(&part[..word(part)]);
        }
    }
    found
}

#[test]
fn imports_run_downwards_in_the_module_map() {
    let rows = rows();
    let mut upwards = BTreeMap::<(String, String), Vec<String>>::new();
    let mut downwards = 0;
    for path in all_sources() {
        let own_tests = path.ends_with("/tests.rs") || path.contains("/tests/");
        if own_tests || path == "src/lib.rs" {
            continue;
        }
        let from = module(&path).to_owned();
        let above =
            *rows.get(&from).unwrap_or_else(|| panic!("{path}: {from} is in no row of the module map"));
        let code = code(&path);
        // Tests at the end of a file may use whatever helps them.
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for to in named(code) {
            let Some(&below) = rows.get(to) else { continue };
            if above < below {
                downwards += 1;
            } else if above > below {
                upwards.entry((from.clone(), to.to_owned())).or_default().push(path.clone());
            }
        }
    }
    assert!(downwards > 100, "{downwards} imports were found");
    let found: Vec<(&str, &str)> = upwards.keys().map(|(from, to)| (from.as_str(), to.as_str())).collect();
    assert_eq!(found, UPWARDS, "imports that run upwards: {upwards:#?}");
}

/// Whether code has an unsafe block, function, trait or implementation.
fn is_unsafe(code: &str) -> bool {
    let mut before = ' ';
    code.split("unsafe").collect::<Vec<_>>().windows(2).any(|pair| {
        before = pair[0].chars().last().unwrap_or(before);
        let whole = !before.is_alphanumeric() && before != '_';
        let forms = [" {", " fn ", " impl", " trait ", " extern "];
        whole && forms.iter().any(|form| pair[1].starts_with(form))
    })
}

#[test]
fn unsafe_code_is_where_the_document_says() {
    let document = document();
    let list = document.split("Unsafe code is in ").nth(1).expect("the list of unsafe code");
    let list: Vec<&str> = paths(list.split("\n\n").next().unwrap()).collect();
    let with: Vec<String> = all_sources().into_iter().filter(|path| is_unsafe(&code(path))).collect();
    let covers = |place: &str, path: &str| match place.ends_with('/') {
        true => path.starts_with(place),
        false => path == place,
    };
    for path in &with {
        assert!(
            list.iter().any(|place| covers(place, path)),
            "{path} has unsafe code, and is not in {list:?}"
        );
    }
    for place in list {
        assert!(
            with.iter().any(|path| covers(place, path)),
            "{place} is on the list, and has no unsafe code"
        );
    }
}
