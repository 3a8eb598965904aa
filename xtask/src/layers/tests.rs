use std::collections::BTreeSet;

use super::tree::{Import, Tree};
use super::{Exception, House};

/// The imports of a package whose library is `src/lib.rs`, as `FROM:LINE TO`.
fn imports(files: &[(&str, &str)]) -> Vec<String> {
    let read =
        |file: &str| Ok(files.iter().find(|(name, _)| *name == file).map(|(_, text)| (*text).to_owned()));
    let roots: Vec<&str> = ["src/lib.rs", "src/main.rs"]
        .into_iter()
        .filter(|root| files.iter().any(|(file, _)| file == root))
        .collect();
    let tree = Tree::new("house", &roots, &read).unwrap();
    tree.imports().iter().map(|Import { from, to, line }| format!("{from}:{line} {to}")).collect()
}

/// The imports of `src/a.rs` with this text, beside `src/b.rs` and its child `src/b/c.rs`.
fn of(text: &str) -> Vec<String> {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;\n"),
        ("src/a.rs", text),
        ("src/b.rs", "pub mod c;\npub struct B;\n"),
        ("src/b/c.rs", "pub struct C;\npub fn c() {}\n"),
    ];
    imports(&files)
}

#[test]
fn imports_are_found_in_every_form() {
    let b = ["src/a.rs:1 src/b.rs"];
    let c = ["src/a.rs:1 src/b/c.rs"];
    for (text, expected) in [
        ("use crate::b::B;", &b[..]),
        ("use super::b::B;", &b),
        ("pub use crate::b::B;", &b),
        ("pub(crate) use crate::b::B as Other;", &b),
        ("use crate::b::{self};", &b),
        ("use crate::b::*;", &b),
        ("use crate::b;", &b),
        ("use crate::{b as other};", &b),
        ("use crate::b::c;", &c),
        ("use crate::b::c::{C};", &c),
        ("use crate::{b::c::*};", &c),
        ("use crate::{b::{c::{C as D}}};", &c),
        ("mod inner { use super::super::b::B; }", &b),
        ("mod inner { mod deep { use crate::b::B; } }", &b),
        ("fn f() { use crate::b::B; }", &b),
        ("fn f() -> crate::b::B { todo!() }", &b),
        ("fn f() { crate::b::c::c::<u8>(&[1]) }", &c),
        ("struct S { b: Vec<(u8, crate::b::B)> }", &b),
        ("macro_rules! m { ($t:ident) => { $crate::b::c::$t() } }", &c),
        ("macro_rules! m { ($t:ident) => { use $crate::b::c::$t; } }", &c),
        ("#[cfg(not(test))] use crate::b::B;", &b),
        ("#[cfg(any(test, unix))] use crate::b::B;", &b),
        ("#[cfg(test)] fn only<A, B>() {} use crate::b::B;", &b),
        ("struct S { #[cfg(test)] only: crate::b::c::C, b: crate::b::B }", &b),
    ] {
        assert_eq!(of(text), expected, "{text}");
    }
    let both = ["src/a.rs:2 src/b.rs", "src/a.rs:3 src/b/c.rs"];
    assert_eq!(of("use crate::{\n    b::B,\n    b::c::{C, c},\n};"), both);
    // A module's name stands for the module wherever it was brought in.
    assert_eq!(of("use crate::b;\nfn f() { b::c::c() }"), ["src/a.rs:1 src/b.rs", "src/a.rs:2 src/b/c.rs"]);
}

#[test]
fn what_is_no_import_is_none() {
    for text in [
        "// use crate::b::B;",
        "/* use crate::b::B; /* crate::b */ */",
        "//! [`crate::b::B`]\n/// [`crate::b::c`]\nfn f() {}",
        r##"const S: &str = "use crate::b::B;"; const R: &str = r#"crate::b::c::c() "quoted" "#;"##,
        "const C: char = '\"'; // use crate::b::B;",
        "fn f<'a>(x: &'a str) -> &'a str { x } // 'crate::b'",
        "use std::b::B;",
        "use ::b::c::C;",
        "fn f() { ::b::c::c() }",
        "fn f() { other::b::c::c() }",
        "pub(in crate::b) fn f() {}",
        "fn f() -> impl Sized + use<'_> { 1 } fn g() { self::f(); }",
        "#[cfg(test)] use crate::b::B;",
        "#[cfg(test)]\nmod tests { use crate::b::B; mod deep { use crate::b::c::C; } }",
        "#[cfg(all(test, unix))] pub(crate) fn f<A, B>(_: crate::b::B) { crate::b::c::c() }",
        "#![cfg(test)]\nuse crate::b::B;",
        "#[cfg(test)] mod absent; #[cfg(test)] #[path = \"b.rs\"] mod tests;",
    ] {
        assert_eq!(of(text), [""; 0], "{text}");
    }
}

#[test]
fn a_name_leads_to_the_file_that_defines_it() {
    let files = [
        ("src/lib.rs", "pub mod a;\nmod b;\npub use b::{c::C, *};\n"),
        ("src/a/mod.rs", "mod d;\nuse crate::C;\npub struct A;\nuse crate::B;\nuse crate::Gone;"),
        ("src/a/d.rs", "use super::*;\nfn f(_: C, _: super::B) {}\nuse super::A;"),
        ("src/b.rs", "pub mod c;\npub struct B;\n"),
        ("src/b/c.rs", "pub struct C;"),
        ("src/main.rs", "mod cli;\nuse house::C;\nfn main() { house::a::A; }"),
        ("src/cli.rs", "use crate::main;\nuse house::B;"),
    ];
    let expected = [
        "src/a/d.rs:1 src/a/mod.rs",
        "src/a/d.rs:2 src/b.rs",
        // The library's own names; one that no module defines where it can be seen is the asked one's.
        "src/a/mod.rs:2 src/lib.rs",
        "src/a/mod.rs:4 src/b.rs",
        "src/a/mod.rs:2 src/b/c.rs",
        "src/cli.rs:2 src/b.rs",
        "src/cli.rs:2 src/lib.rs",
        "src/cli.rs:1 src/main.rs",
        "src/lib.rs:3 src/b.rs",
        "src/lib.rs:3 src/b/c.rs",
        "src/main.rs:3 src/a/mod.rs",
        "src/main.rs:2 src/b/c.rs",
        "src/main.rs:2 src/lib.rs",
    ];
    assert_eq!(BTreeSet::from_iter(imports(&files)), BTreeSet::from(expected.map(str::to_owned)));
}

#[test]
fn files_are_where_rust_looks_for_them() {
    let files = [
        ("src/lib.rs", "mod a;\n#[path = \"elsewhere.rs\"]\nmod b;\nmod inline { mod c; }"),
        ("src/a/mod.rs", "#[path = \"d/e.rs\"]\nmod d;"),
        ("src/a/d/e.rs", "use crate::b;"),
        ("src/elsewhere.rs", "mod f;"),
        ("src/b/f.rs", "use crate::a;"),
        ("src/inline/c.rs", "use crate::a::d;"),
    ];
    let expected =
        ["src/a/d/e.rs:1 src/elsewhere.rs", "src/b/f.rs:1 src/a/mod.rs", "src/inline/c.rs:1 src/a/d/e.rs"];
    assert_eq!(imports(&files), expected);

    let read = |file: &str| Ok((file == "src/lib.rs").then(|| "mod gone;".to_owned()));
    let error = Tree::new("house", &["src/lib.rs"], &read).err().unwrap().to_string();
    assert_eq!(error, "src/lib.rs: its module gone is not in src/gone.rs or src/gone/mod.rs");
    let read = |_: &str| Ok(Some("fn f() { ) }".to_owned()));
    let error = Tree::new("house", &["src/lib.rs"], &read).err().unwrap();
    assert!(format!("{error:#}").starts_with("src/lib.rs: cannot be read as Rust"), "{error:#}");
}

/// A document whose module map has three rows, and these exceptions.
fn house(exceptions: &str) -> House {
    let map = "| path | what |\n|---|---|\n| `src/top.rs`, `src/lib.rs` | calls `src/x` |\n| `src/mid/` | |\n| `src/low.rs` | |\n";
    let document = format!(
        "# A\n\n## Module map\n\nText.\n\n{map}\n### Imports against the order\n\n{exceptions}\n## B\n"
    );
    House::parse(&document).unwrap()
}

fn faults(house: &House, imports: &[(&str, &str)]) -> Vec<String> {
    let place = |name: &str| format!("src/{name}.rs");
    let imports: Vec<Import> =
        imports.iter().map(|(from, to)| Import { from: place(from), to: place(to), line: 7 }).collect();
    let files: BTreeSet<&str> =
        imports.iter().flat_map(|import| [import.from.as_str(), &import.to]).collect();
    house.check(&files, &imports)
}

#[test]
fn the_document_is_read() {
    let house = house("| from | to | why |\n|---|---|---|\n| `src/low.rs` | `src/mid/` | a reason |\n");
    let exception = Exception { from: "src/low.rs".into(), to: "src/mid/".into() };
    let rows = [&["src/top.rs", "src/lib.rs"][..], &["src/mid/"], &["src/low.rs"]];
    let rows = rows.map(|row| row.iter().map(|&place| place.to_owned()).collect::<Vec<_>>());
    assert_eq!(house, House { rows: rows.into(), exceptions: vec![exception] });
    let bad = |row: &str| {
        let map = "## Module map\n| `src/a.rs` | |\n| `src/b.rs` | |\n";
        House::parse(&format!("{map}### Imports against the order\n{row}\n")).unwrap_err().to_string()
    };
    assert!(bad("| `src/b.rs` | `src/a.rs` |").contains("two paths and a reason"));
    assert!(bad("| `src/b.rs` | `src/a.rs`, `src/c.rs` | why |").contains("from one path to one"));
    assert!(House::parse("## Module map\nno table\n").unwrap_err().to_string().contains("0 rows"));
    assert!(House::parse("# A\n").unwrap_err().to_string().contains("no section"));
}

#[test]
fn upward_imports_and_circles_are_faults() {
    let house = house("");
    assert_eq!(faults(&house, &[("top", "mid/a"), ("mid/a", "low"), ("mid/a", "mid/b")]), [""; 0]);
    assert_eq!(
        faults(&house, &[("top", "low"), ("low", "mid/a")]),
        ["src/low.rs:7 → src/mid/a.rs: it runs upwards in the module map"]
    );
    assert_eq!(
        faults(&house, &[("mid/a", "mid/b"), ("mid/b", "mid/c"), ("mid/c", "mid/a"), ("mid/c", "mid/d")]),
        [
            "src/mid/a.rs:7 → src/mid/b.rs, src/mid/b.rs:7 → src/mid/c.rs, src/mid/c.rs:7 → src/mid/a.rs: a circle"
        ]
    );
    // Siblings are a circle wherever below them the imports are; a module and its children are none.
    assert_eq!(
        faults(&house, &[("mid/a/x", "mid/b"), ("mid/b/y", "mid/a/mod")]),
        ["src/mid/a/x.rs:7 → src/mid/b.rs, src/mid/b/y.rs:7 → src/mid/a/mod.rs: a circle"]
    );
    assert_eq!(faults(&house, &[("mid/mod", "mid/a"), ("mid/a", "mid/mod"), ("mid/a/x", "mid/a")]), [""; 0]);
    assert_eq!(
        faults(&house, &[("top", "other")]),
        ["src/other.rs: it is in no row of the module map of docs/architecture.md"]
    );
}

#[test]
fn exceptions_are_allowed_while_they_are_needed() {
    let up = house("| `src/low.rs` | `src/mid/` | why |");
    assert_eq!(faults(&up, &[("low", "mid/a")]), [""; 0]);
    let unneeded = ["docs/architecture.md: nothing needs the exception from src/low.rs to src/mid/"];
    assert_eq!(faults(&up, &[("mid/a", "low")]), unneeded);

    let around = house("| `src/mid/b.rs` | `src/mid/a.rs` | why |");
    assert_eq!(faults(&around, &[("mid/a", "mid/b"), ("mid/b", "mid/a")]), [""; 0]);
    assert_eq!(faults(&around, &[("mid/b", "mid/a")]).len(), 1);
    // It excuses no other circle.
    let other = [("mid/a", "mid/b"), ("mid/b", "mid/a"), ("mid/b", "mid/c"), ("mid/c", "mid/a")];
    assert_eq!(faults(&around, &other).len(), 1);
}
