//! `cargo xtask fuzz`: libFuzzer on the targets of `src/fuzzing/`, with AddressSanitizer, on the nightly toolchain. The program is
//! built with the flags that cargo-fuzz gives, which need not be there.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::steps::Steps;
use crate::util;

/// Instruments for coverage and for faults of memory; numbers that overflow are faults, too.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Zsanitizer=address -Cdebug-assertions -Coverflow-checks --cfg fuzzing";
/// What is built for [`smoke`] instead of optimised whole: its inputs are few, and compiling takes longer than they do.
const QUICK: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "none"),
];
/// Seconds by the clock after which an input hangs, however busy the machine is. Of processor time the program allows a minute.
const PATIENCE: u64 = 300;
/// Megabytes of the whole program; the allocator's own bound for an input is lower.
const MEMORY: u64 = 4096;
/// Seconds of each target where nobody said.
const SMOKE: u64 = 20;
/// What each target has in [`smoke`]: seconds, and inputs, for most of which it takes less.
const SMOKED: (u64, u64) = (5, 500);

/// What `cargo xtask fuzz` takes.
#[derive(Debug, Default, clap::Args)]
pub struct Options {
    /// Only this target (src/fuzzing/mod.rs lists them); all of them, one after the other, without one
    pub target: Option<String>,
    /// How long each target runs; 20 seconds where this is not said
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=60 * 24 * 7))]
    pub minutes: Option<u64>,
}

/// A step of a task: each target for a moment, from its first inputs and one seed. It finds what breaks at once, and shows that all of them
/// still run.
pub fn smoke(steps: &mut Steps) {
    const NAME: &str = "every fuzzer for a moment";
    if let Err(error) = available() {
        return steps.skip(NAME, &error);
    }
    steps.step(NAME, || {
        let fuzzer = Fuzzer::build("target/quick", &QUICK)?;
        let corpora = fuzzer.dir.join("target/smoke");
        if corpora.exists() {
            fs::remove_dir_all(&corpora).with_context(|| corpora.display().to_string())?;
        }
        let (seconds, runs) = SMOKED;
        let more = [format!("-runs={runs}"), "-seed=1".to_owned()];
        Fuzzer::each(&fuzzer.targets, |name| fuzzer.run(name, seconds, &corpora, &more))
    });
}

pub fn run(options: &Options) -> Result<()> {
    let fuzzer = Fuzzer::build("target", &[("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")])?;
    let seconds = options.minutes.map_or(SMOKE, |minutes| minutes * 60);
    let names = match &options.target {
        Some(name) => {
            ensure!(
                fuzzer.targets.contains(name),
                "no target {name}; there are {}",
                fuzzer.targets.join(", ")
            );
            std::slice::from_ref(name)
        }
        None => &fuzzer.targets[..],
    };
    Fuzzer::each(names, |name| fuzzer.run(name, seconds, &fuzzer.dir.join("corpus"), &[]))
}

/// Fails where this machine cannot fuzz, with the reason.
fn available() -> Result<()> {
    // The bindings of AddressSanitizer that rustup's nightly has.
    let known = cfg!(any(target_os = "linux", target_os = "macos"));
    ensure!(known, "AddressSanitizer is not there on this system");
    util::quiet(nightly(Path::new(".")).arg("--version"))
        .map(drop)
        .context("there is no nightly toolchain (rustup toolchain install nightly)")
}

/// `cargo +nightly`, through rustup whichever cargo runs this.
fn nightly(dir: &Path) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo"]).current_dir(dir);
    // Those of the cargo that runs this.
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "CARGO_ENCODED_RUSTFLAGS"] {
        command.env_remove(name);
    }
    command
}

/// The program, built.
struct Fuzzer {
    dir: PathBuf,
    program: PathBuf,
    targets: Vec<String>,
}

impl Fuzzer {
    /// Builds it in a folder of `fuzz/`, with these settings of the profile.
    fn build(target: &str, profile: &[(&str, &str)]) -> Result<Self> {
        available()?;
        let dir = util::root()?.join("fuzz");
        let target = dir.join(target);
        let host = host(&util::first_line(&mut nightly_rustc(&dir))?)?;
        // With a target named, build scripts and macros are not instrumented.
        let mut command = nightly(&dir);
        command.args(["build", "--release", "--target", &host, "--locked"]).env("RUSTFLAGS", FLAGS);
        command.env("CARGO_TARGET_DIR", &target).envs(profile.iter().copied());
        eprintln!("   {}", util::shown(&command));
        let status = command.status().context("cannot start cargo")?;
        ensure!(status.success(), "the build ended with {status}");
        let program = target.join(host).join("release/fuzz");
        let targets = targets(&fs::read_to_string(dir.with_file_name("src/fuzzing/mod.rs"))?);
        ensure!(!targets.is_empty(), "src/fuzzing/mod.rs lists no target");
        Ok(Self { dir, program, targets })
    }

    /// Does the same about each of these targets, also behind one that failed.
    fn each(names: &[String], fuzz: impl Fn(&str) -> Result<()>) -> Result<()> {
        let failed = |name: &&str| fuzz(name).inspect_err(|error| eprintln!("{error:#}")).is_err();
        let failed: Vec<&str> = names.iter().map(String::as_str).filter(failed).collect();
        ensure!(failed.is_empty(), "found: {}", failed.join(", "));
        Ok(())
    }

    /// Fuzzes one target, with the inputs in its folder of `corpora` and options of libFuzzer's. What it finds is written to
    /// `fuzz/artifacts/`.
    fn run(&self, target: &str, seconds: u64, corpora: &Path, more: &[String]) -> Result<()> {
        eprintln!("\n-- {target}, {seconds} s");
        let [corpus, artifacts] = [corpora.join(target), self.dir.join("artifacts").join(target)];
        for dir in [&corpus, &artifacts] {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        let mut command = Command::new(&self.program);
        command.env("BACKSTOP_FUZZ_TARGET", target).env("BACKSTOP_FUZZ_CORPUS", &corpus);
        // Threads and tables that live as long as the program are no leaks.
        command.env("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1");
        let mut prefix = OsString::from("-artifact_prefix=");
        prefix.push(artifacts.join(""));
        command.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={PATIENCE}"));
        command.arg(format!("-rss_limit_mb={MEMORY}")).args(["-print_final_stats=1", "-verbosity=1"]);
        // To name each new function, a symbolizer would read a program of 200 MB.
        command.arg("-print_funcs=0");
        command.args(more).arg(prefix).arg(&corpus);
        let regressions = self.dir.join("regressions").join(target);
        if regressions.is_dir() {
            command.arg(regressions);
        }
        let status = command.current_dir(&self.dir).status().context("cannot start the fuzzer")?;
        if !status.success() {
            bail!(
                "{target}: it ended with {status}; the input is in {}. Mend the fault, and put the input into \
                 fuzz/regressions/{target}/",
                artifacts.display()
            );
        }
        Ok(())
    }
}

fn nightly_rustc(dir: &Path) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "rustc", "--print", "host-tuple"]).current_dir(dir);
    command
}

/// A target triple, for the name of a folder.
fn host(line: &str) -> Result<String> {
    let good =
        line.contains('-') && line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    ensure!(good, "rustc names this machine {line:?}");
    Ok(line.to_owned())
}

/// The names in the list of targets.
fn targets(source: &str) -> Vec<String> {
    let lines = source.lines().filter_map(|line| line.trim().strip_prefix("Target { name: \""));
    lines.filter_map(|line| Some(line.split_once('"')?.0.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_those_of_the_list() {
        let source = fs::read_to_string(util::root().unwrap().join("src/fuzzing/mod.rs")).unwrap();
        let names = targets(&source);
        assert_eq!(names.len(), source.matches(", run: ").count());
        assert!(
            ["gguf", "json", "http"].iter().all(|name| names.iter().any(|other| other == name)),
            "{names:?}"
        );
        assert_eq!(targets("Target { name: \"a\", run: x },\n    Target { name: \"b\""), ["a", "b"]);
    }

    #[test]
    fn a_machine_is_a_triple() {
        assert_eq!(host("x86_64-unknown-linux-gnu").unwrap(), "x86_64-unknown-linux-gnu");
        assert!(host("error: /etc").is_err() && host("").is_err());
    }
}
