//! `cargo xtask test`: the one test command, here and in CI. Every step runs even if one before it failed; the summary
//! names each with its time.

use std::ffi::OsString;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};

use crate::{clients, layers, mlx, util, with_mlx};

/// What `cargo xtask test` takes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Leave out what needs MLX
    #[arg(long)]
    pub no_mlx: bool,
    /// For the inner loop: format, lints, and the tests without MLX and clients, unoptimised
    #[arg(long)]
    pub quick: bool,
    /// Only the tests, as `cargo test ARGS…`
    #[arg(last = true, value_name = "ARGS")]
    pub filter: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let filter = &options.filter;
    if options.quick {
        return quick(filter);
    }

    let mut steps = Steps { mlx: !options.no_mlx, env: Vec::new(), done: Vec::new() };
    let ready = !steps.mlx || steps.step("MLX", || mlx::set_up().map(drop));
    if !filter.is_empty() {
        eprintln!("no format, lints and docs: only the tests that `{}` selects", filter.join(" "));
    } else if let Err(error) = components() {
        steps.skip("format, lints and docs", &error);
    } else {
        steps.cargo("format", "fmt --all --check", &[]);
        steps.cargo("format of bindings", "fmt --manifest-path xtask/bindings/Cargo.toml --check", &[]);
        steps.step("order of imports", layers::run);
        let deny = ["--", "--deny", "warnings"].map(str::to_owned);
        let alone = "clippy --package backstop --all-targets --no-default-features";
        steps.cargo("clippy of the library alone", alone, &deny);
        steps.cargo("clippy of the server alone", &format!("{alone} --features server"), &deny);
        steps.cargo("clippy without MLX", "clippy --workspace --all-targets", &deny);
        steps.with_mlx(
            ready,
            "clippy with MLX",
            "clippy --workspace --all-targets --features mlx,fault-injection",
            &deny,
        );
        if steps.mlx {
            steps.with_mlx(ready, "docs", "doc --workspace --no-deps --features mlx", &[]);
        } else {
            steps.cargo("docs", "doc --workspace --no-deps", &[]);
        }
    }
    steps.cargo("tests without MLX", "test --workspace --no-fail-fast --features fault-injection", filter);
    steps.step("tests by client libraries", || clients::test(filter));
    steps.with_mlx(
        ready,
        "tests with MLX",
        "test --package backstop --no-fail-fast --features mlx,fault-injection",
        filter,
    );
    steps.summary()
}

/// Format, lints and the tests of the inner loop: without MLX and clients, and with the workspace's own crates unoptimised, in
/// a folder of their own. Kernels take longer so, and building takes a fraction.
fn quick(filter: &[String]) -> Result<()> {
    let target = crate::clients::target(&util::root()?).join("quick");
    let env = vec![
        ("CARGO_TARGET_DIR", target.into_os_string()),
        ("CARGO_PROFILE_DEV_OPT_LEVEL", "0".into()),
        ("CARGO_PROFILE_DEV_DEBUG", "0".into()),
        // tests/real.rs runs no model then.
        ("BACKSTOP_UNOPTIMISED", "1".into()),
    ];
    let mut steps = Steps { mlx: false, env, done: Vec::new() };
    if filter.is_empty() {
        steps.cargo("format", "fmt --all --check", &[]);
        steps.step("order of imports", layers::run);
        steps.cargo(
            "clippy",
            "clippy --workspace --all-targets",
            &["--", "--deny", "warnings"].map(str::to_owned),
        );
    }
    steps.cargo("tests", "test --package backstop --no-fail-fast --features fault-injection", filter);
    steps.summary()
}

/// Adds rustfmt and clippy, which a minimal toolchain comes without.
fn components() -> Result<()> {
    let missing: Vec<&str> = ["rustfmt", "clippy"]
        .into_iter()
        .filter(|tool| {
            let subcommand = if *tool == "rustfmt" { "fmt" } else { tool };
            util::quiet(util::cargo().args([subcommand, "--version"])).is_err()
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    util::quiet(Command::new("rustup").args(["component", "add"]).args(&missing)).map(drop).with_context(
        || format!("the toolchain lacks {}, and rustup does not add them", missing.join(" and ")),
    )
}

/// The words of `line`, then `more`.
fn words(line: &str, more: &[String]) -> Vec<String> {
    line.split(' ').map(str::to_owned).chain(more.iter().cloned()).collect()
}

fn succeed(command: &mut Command) -> Result<()> {
    eprintln!("   {}", util::shown(command));
    let flags = std::env::var("RUSTDOCFLAGS").unwrap_or_default();
    command.env("RUSTDOCFLAGS", format!("{flags} --deny warnings")).current_dir(util::root()?);
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "cargo ended with {status}");
    Ok(())
}

#[derive(PartialEq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

struct Steps {
    /// Whether steps with MLX run.
    mlx: bool,
    /// What cargo's environment has beside this one.
    env: Vec<(&'static str, OsString)>,
    done: Vec<(&'static str, Duration, Outcome)>,
}

impl Steps {
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> bool {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = work();
        if let Err(error) = &result {
            eprintln!("{name}: {error:#}");
        }
        let outcome = if result.is_ok() { Outcome::Passed } else { Outcome::Failed };
        self.done.push((name, start.elapsed(), outcome));
        result.is_ok()
    }

    fn skip(&mut self, name: &'static str, reason: &Error) {
        eprintln!("\n== {name}\nskipped: {reason:#}");
        self.done.push((name, Duration::ZERO, Outcome::Skipped));
    }

    /// Runs `cargo LINE MORE`.
    fn cargo(&mut self, name: &'static str, line: &str, more: &[String]) {
        let env = self.env.clone();
        self.step(name, || succeed(util::cargo().args(words(line, more)).envs(env)));
    }

    /// Runs `cargo LINE MORE` with MLX, if MLX was asked for; fails it if MLX is not `ready`.
    fn with_mlx(&mut self, ready: bool, name: &'static str, line: &str, more: &[String]) {
        if self.mlx {
            self.step(name, || {
                ensure!(ready, "not run, MLX could not be set up");
                succeed(&mut with_mlx::command(&words(line, more))?)
            });
        }
    }

    fn summary(&self) -> Result<()> {
        eprintln!("\n== cargo xtask test");
        for (name, time, outcome) in &self.done {
            let outcome = match outcome {
                Outcome::Passed => "passed",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "SKIPPED",
            };
            eprintln!("{outcome:7} {:7.1} s  {name}", time.as_secs_f32());
        }
        let count = |wanted| self.done.iter().filter(|(_, _, outcome)| *outcome == wanted).count();
        let failed = count(Outcome::Failed);
        let total: Duration = self.done.iter().map(|(_, time, _)| *time).sum();
        eprintln!(
            "{} passed, {failed} failed, {} skipped, {:.0} s",
            count(Outcome::Passed),
            count(Outcome::Skipped),
            total.as_secs_f32()
        );
        ensure!(failed == 0, "{failed} of {} steps failed", self.done.len());
        Ok(())
    }
}
