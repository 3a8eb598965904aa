//! What docs/architecture.md says of the code, held against the code: where `unsafe` is. Its order of the modules is held
//! against their imports by `cargo xtask layers`.

use std::fs;
use std::path::{Path, PathBuf};

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
