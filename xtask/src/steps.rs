//! The steps of a task. Each runs even if one before it failed; the summary names each with its time.

use std::ffi::OsString;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};

use crate::{util, with_mlx};

/// The words of `line`, then `more`.
fn words(line: &str, more: &[String]) -> Vec<String> {
    line.split(' ').map(str::to_owned).chain(more.iter().cloned()).collect()
}

/// Runs cargo from the workspace root, with warnings of the documentation denied.
pub fn succeed(command: &mut Command) -> Result<()> {
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

pub struct Steps {
    task: &'static str,
    /// Whether steps with MLX run.
    pub mlx: bool,
    /// What cargo's environment has beside this one.
    pub env: Vec<(&'static str, OsString)>,
    done: Vec<(&'static str, Duration, Outcome)>,
    notes: Vec<String>,
}

impl Steps {
    /// Those of `cargo xtask TASK`, without MLX.
    pub fn new(task: &'static str) -> Self {
        Self { task, mlx: false, env: Vec::new(), done: Vec::new(), notes: Vec::new() }
    }

    /// Does `work`, and says whether it succeeded.
    pub fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> bool {
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

    /// Counts what cannot be done here.
    pub fn skip(&mut self, name: &'static str, reason: &Error) {
        eprintln!("\n== {name}\nskipped: {reason:#}");
        self.done.push((name, Duration::ZERO, Outcome::Skipped));
    }

    /// Has the summary say something more.
    pub fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// Runs `cargo LINE MORE`.
    pub fn cargo(&mut self, name: &'static str, line: &str, more: &[String]) {
        let env = self.env.clone();
        self.step(name, || succeed(util::cargo().args(words(line, more)).envs(env)));
    }

    /// Runs `cargo LINE MORE` with MLX, if MLX was asked for; fails it if MLX is not `ready`.
    pub fn with_mlx(&mut self, ready: bool, name: &'static str, line: &str, more: &[String]) {
        if self.mlx {
            self.step(name, || {
                ensure!(ready, "not run, MLX could not be set up");
                succeed(&mut with_mlx::command(&words(line, more))?)
            });
        }
    }

    /// Says how each step ended.
    ///
    /// # Errors
    /// Where one failed.
    pub fn summary(&self) -> Result<()> {
        eprintln!("\n== cargo xtask {}", self.task);
        for (name, time, outcome) in &self.done {
            let outcome = match outcome {
                Outcome::Passed => "passed",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "SKIPPED",
            };
            eprintln!("{outcome:7} {:7.1} s  {name}", time.as_secs_f32());
        }
        for note in &self.notes {
            eprintln!("        {note}");
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
