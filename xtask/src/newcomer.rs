//! `cargo xtask newcomer`: from a fresh clone to a conversation, by what the README says to type; each step with its keys and seconds.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::util::{self, cargo, quiet, root};

/// The test that types the last line at a terminal, with a model from the tests' hub; it prints a table of its steps.
const TEST: &str = "first::the_first_conversation_of_the_readme_is_one";
const PROGRAM: &str = "BACKSTOP_FIRST_PROGRAM";
const GGUF: &str = "BACKSTOP_FIRST_GGUF";
/// What it downloads where nothing else is named.
const USUAL: &str = "tests/fixtures/gguf/whole.gguf";

/// What `cargo xtask newcomer` takes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The model that is downloaded [default: that of the tests, which is tiny]
    #[arg(long, value_name = "FILE")]
    gguf: Option<PathBuf>,
    /// Print one JSON object, and no table
    #[arg(long)]
    json: bool,
}

/// Something that a person does and waits for.
#[derive(Debug, PartialEq)]
struct Step {
    what: String,
    /// Enter included; none of a clone, whose address is not the README's.
    keys: Option<usize>,
    seconds: f64,
    /// Of all cores together, where that was told.
    core_seconds: Option<f64>,
}

impl Step {
    fn row(&self) -> String {
        let keys = self.keys.map_or_else(String::new, |keys| keys.to_string());
        let short =
            |seconds: f64| if seconds < 10.0 { format!("{seconds:.2}") } else { format!("{seconds:.0}") };
        let cores = self.core_seconds.map(|seconds| format!(" ({} of a core)", short(seconds)));
        format!("| {} | {keys} | {}{} |\n", self.what, short(self.seconds), cores.unwrap_or_default())
    }

    fn json(&self) -> Value {
        json!({ "step": self.what, "keys": self.keys, "seconds": self.seconds, "core_seconds": self.core_seconds })
    }
}

/// What the README has one type on its first screen: lines for a shell, and the conversation.
#[derive(Debug, PartialEq)]
struct Typed {
    shell: Vec<String>,
    chat: String,
}

impl Typed {
    fn of(readme: &str) -> Result<Self> {
        let lines = |heading: &str| {
            let missing = || format!("README.md has no commands under {heading:?}");
            let (_, section) = readme.split_once(&format!("\n## {heading}\n")).with_context(missing)?;
            let section = section.split("\n## ").next().unwrap_or_default();
            let (_, block) = section.split_once("```sh\n").with_context(missing)?;
            let block = block.split("```").next().unwrap_or_default();
            // Without what it says of them.
            let plain = |line: &str| line.split(" #").next().unwrap_or_default().trim_end().to_owned();
            let lines: Vec<String> = block.lines().map(plain).filter(|line| !line.is_empty()).collect();
            ensure!(!lines.is_empty(), missing());
            Ok(lines)
        };
        // The second line of the set-up is for those who work on it.
        let mut shell = vec![lines("Set-up")?.swap_remove(0)];
        let mut first = lines("First conversation")?;
        let chat = first.pop().context("README.md has no first conversation")?;
        ensure!(chat.starts_with("backstop chat "), "README.md's first conversation ends with `{chat}`");
        shell.append(&mut first);
        Ok(Self { shell, chat })
    }
}

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("backstop-newcomer-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays is in the folder for what is temporary.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn run(options: &Options) -> Result<()> {
    let root = root()?;
    let readme = root.join("README.md");
    let text =
        std::fs::read_to_string(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
    let git = |args: &[&str]| quiet(Command::new("git").arg("-C").arg(&root).args(args));
    let committed = git(&["show", "HEAD:README.md"])?.stdout;
    ensure!(committed == text.as_bytes(), "a clone has another README.md than this tree: commit it first");
    let commit = String::from_utf8_lossy(&git(&["rev-parse", "HEAD"])?.stdout).trim().to_owned();
    let typed = Typed::of(&text)?;
    let model = match &options.gguf {
        // The test runs elsewhere.
        Some(path) => path.canonicalize().with_context(|| format!("cannot read {}", path.display()))?,
        None => root.join(USUAL),
    };
    let bytes = model.metadata().with_context(|| format!("cannot read {}", model.display()))?.len();

    let folder = Folder::new()?;
    let (clone, installed) = (folder.0.join("backstop"), folder.0.join("installed"));
    let mut steps = Vec::new();
    let begun = Instant::now();
    quiet(Command::new("git").args(["clone", "--quiet"]).arg(&root).arg(&clone))?;
    let seconds = begun.elapsed().as_secs_f64();
    steps.push(Step { what: "a clone, from this disk".into(), keys: None, seconds, core_seconds: None });
    for line in &typed.shell {
        eprintln!("\n== {line}");
        steps.push(shell(line, &clone, &installed)?);
    }
    eprintln!("\n== {}", typed.chat);
    let program = installed.join("bin/backstop");
    ensure!(program.is_file(), "README.md's first conversation installs no {}", program.display());
    let told = conversation(&root, &program, &model)?;
    ensure!(told[0].what.contains(&format!("`{}`", typed.chat)), "{TEST} types something else: {told:?}");
    steps.extend(told);

    let keys: usize = steps.iter().filter_map(|step| step.keys).sum();
    let seconds: f64 = steps.iter().map(|step| step.seconds).sum();
    let cores = std::thread::available_parallelism()?;
    if options.json {
        let steps: Vec<Value> = steps.iter().map(Step::json).collect();
        let model = json!({ "file": model.display().to_string(), "bytes": bytes });
        let told = json!({
            "commit": commit, "cores": cores.get(), "model": model, "keys": keys, "seconds": seconds, "steps": steps,
        });
        println!("{told}");
        return Ok(());
    }
    let rows: String = steps.iter().map(Step::row).collect();
    println!("| step | keys | seconds |\n|---|---|---|\n{rows}");
    println!(
        "{keys} keys and {seconds:.0} s from a clone of {commit} to an answer, on {cores} cores; the model is {} ({:.2} MB)",
        model.display(),
        bytes as f64 / 1e6
    );
    println!("crates that cargo had are not downloaded again");
    Ok(())
}

/// What a line takes in a shell of somebody who has `cargo`, in a clone of theirs.
fn shell(line: &str, clone: &Path, installed: &Path) -> Result<Step> {
    let mut command = Command::new("sh");
    // What it says shows; of the shell's own words, only what its children took is read.
    let script = format!("{{ {line}\n}} >&2\ncode=$?\ntimes\nexit $code");
    command.args(["-c", &script]).current_dir(clone).stdin(Stdio::null()).stdout(Stdio::piped());
    // This program is a child of cargo's, which is set up for another tree.
    let kept = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let cargos = name.starts_with("CARGO") && !kept.iter().any(|kept| name.starts_with(kept));
        if cargos || name == "RUSTFLAGS" {
            command.env_remove(&*name);
        }
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(installed.join("bin")).chain(std::env::split_paths(&paths));
    command.env("CARGO_INSTALL_ROOT", installed).env("PATH", std::env::join_paths(paths)?);
    let begun = Instant::now();
    let mut child = command.spawn().context("cannot start sh")?;
    let mut told = String::new();
    child.stdout.take().context("sh has no stdout")?.read_to_string(&mut told)?;
    let status = child.wait()?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(status.success(), "README.md's line `{line}` ends with {status}");
    let (keys, core_seconds) = (Some(line.chars().count() + 1), children(&told));
    Ok(Step { what: format!("`{line}`, Enter"), keys, seconds, core_seconds })
}

/// The seconds of a shell's children, in what `times` prints: `0m1.5s 0m0.25s` of the shell itself, then of them.
fn children(times: &str) -> Option<f64> {
    let seconds = |text: &str| {
        let (minutes, seconds) = text.strip_suffix('s')?.split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.replace(',', ".").parse::<f64>().ok()?)
    };
    times.lines().nth(1)?.split(' ').map(seconds).sum()
}

/// The steps of the conversation, by the test that has it.
fn conversation(root: &Path, program: &Path, model: &Path) -> Result<Vec<Step>> {
    // As the usual tests are built, so that nothing is built twice.
    let line = "test --package backstop --features fault-injection --test hub";
    let test = || {
        let mut command = cargo();
        command.args(line.split(' ')).current_dir(root);
        command
    };
    let status = test().arg("--no-run").status().context("cannot start cargo")?;
    ensure!(status.success(), "the tests' hub is not built");
    let mut run = test();
    run.args(["--", "--exact", TEST, "--nocapture"]).env(PROGRAM, program).env(GGUF, model);
    let mut child = run
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", util::shown(&run)))?;
    let mut steps = Vec::new();
    for line in BufReader::new(child.stdout.take().context("cargo has no stdout")?).lines() {
        let line = line?;
        eprintln!("{line}");
        steps.extend(told(&line));
    }
    ensure!(child.wait()?.success(), "the conversation of README.md fails");
    ensure!(!steps.is_empty(), "{TEST} has not run");
    Ok(steps)
}

/// A step, where a line is a row of one in the test's table.
fn told(line: &str) -> Option<Step> {
    let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
    let what = cells.next()?.to_owned();
    let (keys, seconds) = (cells.next()?.parse().ok()?, cells.next()?.parse().ok()?);
    Some(Step { what, keys: Some(keys), seconds, core_seconds: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readme() -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        std::fs::read_to_string(root.join("README.md")).unwrap()
    }

    #[test]
    fn the_readme_says_what_to_type() {
        let typed = Typed::of(&readme()).unwrap();
        assert_eq!(typed.shell.len(), 2, "{typed:?}");
        assert!(
            typed.shell[0].starts_with("cargo run --release") && typed.shell[1].starts_with("cargo install")
        );
        assert!(
            typed.shell.iter().chain([&typed.chat]).all(|line| !line.contains('#') && *line == line.trim())
        );
        for (from, to) in [
            ("## Set-up", "## Setup"),
            ("## First conversation", "## First"),
            ("backstop chat", "backstop talk"),
        ] {
            Typed::of(&readme().replace(from, to)).unwrap_err();
        }
    }

    #[test]
    fn the_test_of_the_conversation_is_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = std::fs::read_to_string(root.join("tests/hub/first.rs")).unwrap();
        let (_, name) = TEST.split_once("::").unwrap();
        for part in [&format!("\nfn {name}() {{"), "| step | keys | seconds |", PROGRAM, GGUF] {
            assert!(text.contains(part), "{part}");
        }
        assert!(root.join(USUAL).is_file());
    }

    #[cfg(unix)]
    #[test]
    fn a_line_is_timed_and_one_that_fails_is_named() {
        let folder = Folder::new().unwrap();
        let step = shell(
            "test \"$CARGO_INSTALL_ROOT\" = x && test -z \"$CARGO_MANIFEST_DIR\"",
            &folder.0,
            Path::new("x"),
        );
        let step = step.unwrap();
        assert_eq!((step.keys, &step.what[..6]), (Some(64), "`test "));
        assert!(step.core_seconds.is_some_and(|seconds| (0.0..60.0).contains(&seconds)), "{step:?}");
        let error = shell("echo said; false", &folder.0, Path::new("x")).unwrap_err().to_string();
        assert!(error.starts_with("README.md's line `echo said; false` ends with "), "{error}");
    }

    #[test]
    fn tables_and_times_are_read() {
        assert_eq!(children("0m0.00s 0m0.00s\n9m10.5s 0m0.25s\n"), Some(550.75));
        assert_eq!((children("0m0.00s 0m0.00s\n"), children("a b\nc d\n")), (None, None));
        let step = Step { what: "Enter: loaded".into(), keys: Some(1), seconds: 12.5, core_seconds: None };
        assert_eq!(told("| Enter: loaded | 1 | 12.50 |"), Some(step));
        for other in ["| step | keys | seconds |", "|---|---|---|", "32 keys to an answer"] {
            assert_eq!(told(other), None, "{other}");
        }
        let step = Step { what: "x".into(), keys: None, seconds: 351.2, core_seconds: Some(550.0) };
        assert_eq!(step.row(), "| x |  | 351 (550 of a core) |\n");
    }
}
