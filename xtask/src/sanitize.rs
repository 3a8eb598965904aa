//! `cargo xtask sanitize`: what tests cannot find by themselves, by tools of their own. Those that this machine lacks are
//! skipped, and counted.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Error, Result, ensure};
use clap::ValueEnum;

use crate::clients;
use crate::steps::{Steps, succeed};
use crate::util;

/// What looks for faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tool {
    /// Undefined behaviour in the pool, the views and the portable kernels
    Miri,
    /// Every order in which the pool's threads can run
    Loom,
    /// Data races in the server's tests and the engine's
    Tsan,
    /// Accesses outside of memory that is owned, in the library's tests
    Asan,
    /// Licences, sources and advisories of the dependencies
    Deny,
}

/// What Miri runs: code with unsafe blocks, and what it stands on. The rest of the library would take hours.
const MIRI: &[&str] = &["backend::cpu::", "backend::kv::", "tensor::"];

pub fn run(tools: &[Tool]) -> Result<()> {
    let tools = if tools.is_empty() { Tool::value_variants() } else { tools };
    let mut steps = Steps::new("sanitize");
    for tool in tools {
        match tool {
            Tool::Miri => miri(&mut steps),
            Tool::Loom => loom(&mut steps),
            Tool::Tsan => sanitizer(&mut steps, &TSAN),
            Tool::Asan => sanitizer(&mut steps, &ASAN),
            Tool::Deny => deny(&mut steps),
        }
    }
    steps.summary()
}

fn miri(steps: &mut Steps) {
    const NAME: &str = "Miri: pool, views, portable kernels";
    let ready = util::quiet(nightly("cargo").args(["miri", "--version"]))
        .context("no Miri: `rustup toolchain install nightly --component miri,rust-src`");
    if let Err(error) = ready {
        return steps.skip(NAME, &error);
    }
    steps.step(NAME, || {
        let mut command = nightly("cargo");
        command.args(["miri", "test", "--package", "backstop", "--lib", "--no-default-features", "--"]);
        // Detection of the processor, files and clocks are the system's.
        let flags = joined("MIRIFLAGS", "-Zmiri-disable-isolation");
        command.args(MIRI).env("MIRIFLAGS", flags).env("CARGO_TARGET_DIR", folder("miri")?);
        // Backtraces of the panics that tests make on purpose take minutes here.
        command.env("RUST_BACKTRACE", "0");
        succeed(&mut command)
    });
}

fn loom(steps: &mut Steps) {
    steps.step("loom: the pool's protocol", || {
        let mut command = util::cargo();
        // Of the dependencies, tokio would change by this, too, and the server is not built.
        command.args(["test", "--package", "backstop", "--lib", "--no-default-features", "pool::models"]);
        command.env("RUSTFLAGS", joined("RUSTFLAGS", "--cfg loom")).env("CARGO_TARGET_DIR", folder("loom")?);
        succeed(&mut command)
    });
}

/// One of the compiler's sanitizers.
struct Sanitizer {
    name: &'static str,
    /// Its name in files and for rustc.
    short: &'static str,
    rustc: &'static str,
    /// The variable with its options, and those beside where reports go.
    options: (&'static str, &'static str),
    /// What cargo tests.
    tests: &'static [&'static str],
    /// Tests that cannot be run so, by a part of their names.
    skip: &'static [&'static str],
}

const TSAN: Sanitizer = Sanitizer {
    name: "ThreadSanitizer: server and engine",
    short: "tsan",
    rustc: "thread",
    // A second signal ends the server with threads that nobody joins: no leak.
    options: ("TSAN_OPTIONS", "second_deadlock_stack=1:report_thread_leaks=0"),
    tests: &["--lib", "--test", "server", "--features", "fault-injection"],
    skip: &[
        // ThreadSanitizer holds a signal back until its thread makes a call that it knows; ours wait in futexes.
        "ends::sigterm_lets_answers_end_and_takes_no_more",
        "ends::an_idle_connection_does_not_hold_it_up",
        "ends::a_second_signal_ends_it_at_once",
        "ends::after_nohup_a_hang_up_ends_nothing",
        "ends::an_answer_that_takes_too_long_is_cut_off",
        // Bounds of time, and everything takes ten times as long.
        "broken::templates_that_do_not_end_or_ask_too_much",
        "text::tests::hostile_templates_are_stopped",
    ],
};

/// Reports of ThreadSanitizer that are none.
const SUPPRESSIONS: &str = "xtask/src/sanitize.tsan";

const ASAN: Sanitizer = Sanitizer {
    name: "AddressSanitizer: the library",
    short: "asan",
    rustc: "address",
    // A refused allocation is an error of ours, and no fault.
    options: ("ASAN_OPTIONS", "detect_stack_use_after_return=1:allocator_may_return_null=1"),
    tests: &["--lib", "--no-default-features"],
    skip: &[
        // Bounds of time, and everything takes ten times as long.
        "sample::reply::tests::arguments_of_any_name_are_read_back",
        "sample::reply::tests::required_calls_are_calls_of_each_format",
        "weights::tests::floods_are_refused_in_time",
    ],
};

fn sanitizer(steps: &mut Steps, sanitizer: &Sanitizer) {
    let host = match host_with_std() {
        Ok(host) => host,
        Err(error) => return steps.skip(sanitizer.name, &error),
    };
    steps.step(sanitizer.name, || {
        let folder = folder(sanitizer.short)?;
        // A server's standard error is read by its test, so reports go to files. What an earlier run left is not this one's.
        let reports = folder.join("reports");
        if reports.exists() {
            fs::remove_dir_all(&reports).with_context(|| format!("cannot empty {}", reports.display()))?;
        }
        fs::create_dir_all(&reports).with_context(|| format!("cannot make {}", reports.display()))?;
        let mut command = nightly("cargo");
        // The standard library has to be instrumented, too: what its locks and channels order would look unordered.
        command.args(["test", "-Zbuild-std", "--target", &host, "--package", "backstop", "--no-fail-fast"]);
        command.args(sanitizer.tests).arg("--");
        for name in sanitizer.skip {
            eprintln!("   without {name}");
            command.args(["--skip", name]);
        }
        let flags = joined("RUSTFLAGS", &format!("-Zsanitizer={}", sanitizer.rustc));
        let (variable, options) = sanitizer.options;
        let mut options = format!("log_path={}:{options}", reports.join("report").display());
        if sanitizer.rustc == TSAN.rustc {
            options += &format!(":suppressions={}", util::root()?.join(SUPPRESSIONS).display());
        }
        command.env("RUSTFLAGS", flags).env("CARGO_TARGET_DIR", &folder).env(variable, options);
        let ended = succeed(&mut command);
        let told = told(&reports)?;
        ensure!(told.is_empty(), "{} processes told of faults:\n{}", told.len(), told.join("\n"));
        ended
    });
}

/// The host, where there is a sanitizer for it, and the source of the standard library.
fn host_with_std() -> Result<String> {
    let install = "`rustup toolchain install nightly --component rust-src`";
    let version =
        util::quiet(nightly("rustc").arg("-vV")).context(format!("no nightly toolchain: {install}"))?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc has no host")?;
    let hosts = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin"];
    ensure!(hosts.contains(&host), "rustc has no sanitizers for {host}");
    let root = util::first_line(nightly("rustc").args(["--print", "sysroot"]))?;
    let source = Path::new(&root).join("lib/rustlib/src/rust/library/Cargo.lock");
    ensure!(source.exists(), "no source of the standard library: {install}");
    Ok(host.to_owned())
}

/// What a sanitizer writes of memory that was refused, which is no fault.
const REFUSED: &str = "WARNING: AddressSanitizer failed to allocate ";

/// What a sanitizer wrote of faults into its folder, a text a process.
fn told(reports: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(reports).with_context(|| format!("cannot read {}", reports.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    files.sort();
    let read = |path: &PathBuf| {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains(REFUSED)).collect();
        Ok(lines.join("\n"))
    };
    let texts = files.iter().map(read).collect::<Result<Vec<String>>>()?;
    Ok(texts.into_iter().filter(|text| !text.trim().is_empty()).collect())
}

fn deny(steps: &mut Steps) {
    const NAME: &str = "cargo-deny: licences, bans, sources";
    const ADVISORIES: &str = "cargo-deny: advisories";
    if util::quiet(util::cargo().args(["deny", "--version"])).is_err() {
        let missing = || Error::msg("no cargo-deny: `cargo install cargo-deny --locked`");
        steps.skip(NAME, &missing());
        return steps.skip(ADVISORIES, &missing());
    }
    steps.cargo(NAME, "deny --all-features check licenses bans sources", &[]);
    // The database is a repository on GitHub.
    match util::quiet(util::cargo().args(["deny", "fetch", "db"])) {
        Ok(_) => steps.cargo(ADVISORIES, "deny --all-features --offline check advisories", &[]),
        Err(error) => steps.skip(ADVISORIES, &error.context("no database of advisories")),
    }
}

/// `program` of the nightly toolchain.
fn nightly(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", program]);
    // Outer cargo's own.
    command.env_remove("CARGO").env_remove("RUSTC").env_remove("RUSTDOC");
    command
}

/// Where a tool builds: its flags would have everything else built anew.
fn folder(tool: &str) -> Result<PathBuf> {
    let folder = clients::target(&util::root()?).join("sanitize").join(tool);
    std::path::absolute(&folder).with_context(|| format!("no absolute path of {}", folder.display()))
}

/// The flags in `variable`, and `flag`.
fn joined(variable: &str, flag: &str) -> OsString {
    let mut flags = std::env::var_os(variable).unwrap_or_default();
    if !flags.is_empty() {
        flags.push(" ");
    }
    flags.push(flag);
    flags
}
