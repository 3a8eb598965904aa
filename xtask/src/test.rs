//! `cargo xtask test`: the one test command, here and in CI. Every step runs even if one before it failed; the summary
//! names each with its time.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{mlx, util, with_mlx};

/// Options and what to pass on to `cargo test`.
struct Plan {
    mlx: bool,
    filter: Vec<String>,
}

pub fn run(args: &[String]) -> Result<()> {
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    if let Some(unknown) = args[..end].iter().find(|arg| *arg != "--no-mlx") {
        bail!("cargo xtask test: {unknown}? It takes --no-mlx, and what follows `--` goes to cargo test");
    }
    let plan = Plan { mlx: end == 0, filter: args[(end + 1).min(args.len())..].to_vec() };

    let mut steps = Steps(Vec::new());
    if plan.mlx {
        steps.step("MLX", || mlx::set_up().map(drop));
    }
    if plan.filter.is_empty() {
        lints(&plan, &mut steps);
    }
    steps.cargo("tests without MLX", cargo_line("test --workspace --features fault-injection", &plan.filter));
    if plan.mlx {
        let features = "test --package backstop --features mlx,fault-injection";
        steps
            .step("tests with MLX", || succeed(&mut with_mlx::command(&cargo_line(features, &plan.filter))?));
    }
    steps.summary()
}

/// Formatting, clippy with and without MLX, rustdoc.
fn lints(plan: &Plan, steps: &mut Steps) {
    steps.step("tools", components);
    steps.cargo("format", cargo_line("fmt --all --check", &[]));
    steps.cargo(
        "format of bindings",
        cargo_line("fmt --manifest-path xtask/bindings/Cargo.toml --check", &[]),
    );
    let deny: Vec<String> = ["--", "--deny", "warnings"].map(str::to_owned).into();
    steps.cargo("clippy without MLX", cargo_line("clippy --workspace --all-targets", &deny));
    if plan.mlx {
        let line = cargo_line("clippy --workspace --all-targets --features mlx,fault-injection", &deny);
        steps.step("clippy with MLX", || succeed(&mut with_mlx::command(&line)?));
    }
    steps.step("docs", || {
        let line = cargo_line("doc --workspace --no-deps", &[]);
        let mut command = if plan.mlx { with_mlx::command(&line)? } else { cargo(&line) };
        let flags = std::env::var("RUSTDOCFLAGS").unwrap_or_default();
        succeed(command.env("RUSTDOCFLAGS", format!("{flags} --deny warnings")))
    });
}

/// rustfmt and clippy, which a minimal toolchain comes without.
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
    util::quiet(Command::new("rustup").args(["component", "add"]).args(&missing))
        .map(drop)
        .with_context(|| format!("the toolchain lacks {}", missing.join(" and ")))
}

/// The words of `line`, then `more`.
fn cargo_line(line: &str, more: &[String]) -> Vec<String> {
    line.split(' ').map(str::to_owned).chain(more.iter().cloned()).collect()
}

fn cargo(args: &[String]) -> Command {
    let mut command = util::cargo();
    command.args(args);
    command
}

fn succeed(command: &mut Command) -> Result<()> {
    eprintln!("   {}", util::shown(command));
    let status = command.current_dir(util::root()?).status().context("cannot start cargo")?;
    ensure!(status.success(), "cargo ended with {status}");
    Ok(())
}

/// What ran, how long it took, whether it passed.
struct Steps(Vec<(&'static str, Duration, bool)>);

impl Steps {
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = work();
        if let Err(error) = &result {
            eprintln!("{name}: {error:#}");
        }
        self.0.push((name, start.elapsed(), result.is_ok()));
    }

    fn cargo(&mut self, name: &'static str, args: Vec<String>) {
        self.step(name, || succeed(&mut cargo(&args)));
    }

    fn summary(&self) -> Result<()> {
        eprintln!("\n== cargo xtask test");
        for (name, time, passed) in &self.0 {
            eprintln!("{} {:7.1} s  {name}", if *passed { "ok    " } else { "FAILED" }, time.as_secs_f32());
        }
        let failed = self.0.iter().filter(|(_, _, passed)| !passed).count();
        let total: Duration = self.0.iter().map(|(_, time, _)| *time).sum();
        eprintln!("{} steps, {failed} failed, {:.0} s", self.0.len(), total.as_secs_f32());
        ensure!(failed == 0, "{failed} of {} steps failed", self.0.len());
        Ok(())
    }
}
