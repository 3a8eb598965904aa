//! The steps of a task. Each runs even if one before it failed; the summary names each with its time.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};

use crate::{util, with_mlx};

/// The words of `line`, then `more`.
fn words(line: &str, more: &[String]) -> Vec<String> {
    line.split(' ').map(str::to_owned).chain(more.iter().cloned()).collect()
}

/// Runs cargo from the workspace root, with warnings of the documentation denied.
pub fn succeed(command: &mut Command) -> Result<()> {
    let status = prepared(command)?.status().context("cannot start cargo")?;
    ensure!(status.success(), "cargo ended with {status}");
    Ok(())
}

/// Shows cargo's `command`, from the workspace root and with warnings of the documentation denied.
fn prepared(command: &mut Command) -> Result<&mut Command> {
    eprintln!("   {}", util::shown(command));
    let flags = std::env::var("RUSTDOCFLAGS").unwrap_or_default();
    Ok(command.env("RUSTDOCFLAGS", format!("{flags} --deny warnings")).current_dir(util::root()?))
}

/// Of what a program of tests printed about its failures, as many lines.
const FAILURE_LINES: usize = 40;

/// As [`succeed`], for tests: what they print is passed on, and the failures in it are collected.
fn test(command: &mut Command, failures: &mut Vec<String>) -> Result<()> {
    let mut child = prepared(command)?.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let printed = BufReader::new(child.stdout.take().context("cargo has no output")?);
    let mut out = std::io::stdout();
    let mut found = Failures::default();
    for line in printed.split(b'\n') {
        let line = line.context("cannot read what cargo prints")?;
        out.write_all(&line).and_then(|()| out.write_all(b"\n")).context("cannot print")?;
        found.line(&String::from_utf8_lossy(&line));
    }
    failures.append(&mut found.lines);
    let status = child.wait().context("cannot wait for cargo")?;
    ensure!(status.success(), "cargo ended with {status}");
    Ok(())
}

/// What programs of tests said of the tests that failed: their names, and the first lines of what each printed.
#[derive(Default)]
struct Failures {
    lines: Vec<String>,
    /// How many lines of the test that is being told of may still be kept.
    left: usize,
}

impl Failures {
    /// Takes the next line of the output.
    fn line(&mut self, line: &str) {
        if line.starts_with("---- ") {
            self.left = FAILURE_LINES;
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.left = 0;
        }
        if self.left > 0 {
            self.left -= 1;
            self.lines.push(line.to_owned());
        } else if line.starts_with("test ") && line.ends_with(" ... FAILED") {
            self.lines.push(line.to_owned());
        }
    }
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

    /// Runs `cargo LINE MORE`, which tests; the summary repeats what failed.
    pub fn tests(&mut self, name: &'static str, line: &str, more: &[String]) {
        let env = self.env.clone();
        let mut failures = Vec::new();
        self.step(name, || test(util::cargo().args(words(line, more)).envs(env), &mut failures));
        self.failed(name, failures);
    }

    /// As [`Self::tests`], with MLX as in [`Self::with_mlx`].
    pub fn tests_with_mlx(&mut self, ready: bool, name: &'static str, line: &str, more: &[String]) {
        if self.mlx {
            let mut failures = Vec::new();
            self.step(name, || {
                ensure!(ready, "not run, MLX could not be set up");
                test(&mut with_mlx::command(&words(line, more))?, &mut failures)
            });
            self.failed(name, failures);
        }
    }

    /// Has the summary repeat `failures` of the step `name`.
    fn failed(&mut self, name: &str, failures: Vec<String>) {
        if !failures.is_empty() {
            self.notes.push(format!("{name}:"));
            self.notes.extend(failures);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_names_and_the_beginnings_of_what_they_printed() {
        let mut found = Failures::default();
        let long: Vec<String> = (0..100).map(|i| format!("line {i}")).collect();
        let before = ["test a ... ok", "test b ... FAILED", "", "failures:", "", "---- b stdout ----"];
        let after = ["failures:", "    b", "", "test result: FAILED. 1 passed; 1 failed", "test c ... ok"];
        let lines = before.into_iter().chain(long.iter().map(String::as_str)).chain(after);
        lines.for_each(|line| found.line(line));
        let mut expected = vec!["test b ... FAILED", "---- b stdout ----"];
        expected.extend(long.iter().take(FAILURE_LINES - 1).map(String::as_str));
        assert_eq!(found.lines, expected);
    }
}
