//! `cargo xtask apple`: what a Mac compiles, checked from Linux: lints and docs for Apple Silicon, where MLX is always compiled in.
//! The bindings are those that `cargo xtask mlx` makes here; nothing is linked, so what is C stays uncompiled.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::steps::{self, Steps};
use crate::util::APPLE;
use crate::{mlx, util, with_mlx};

/// What builds C for Apple in a build script: a program that does nothing and succeeds.
const NO_COMPILER: [(&str, &str); 2] =
    [("CC_aarch64_apple_darwin", "true"), ("AR_aarch64_apple_darwin", "true")];

const CHECKS: [(&str, &str); 2] = [
    ("Apple: clippy", "clippy --workspace --all-targets --features fault-injection,mlx"),
    ("Apple: docs", "doc --workspace --no-deps --features mlx"),
];

/// `cargo xtask apple`.
pub fn run() -> Result<()> {
    // Who asks for it alone wants no pass without it.
    possible(true, true)?;
    let mut steps = Steps::new("apple");
    steps.mlx = true;
    let ready = steps.step("MLX", || mlx::set_up().map(drop));
    self::steps(&mut steps, ready);
    steps.summary()
}

/// The same as a part of `cargo xtask test`, where MLX's set-up left it `ready`.
pub fn steps(steps: &mut Steps, ready: bool) {
    if let Err(error) = possible(steps.mlx, false) {
        steps.skip("Apple: clippy and docs", &error);
        return;
    }
    for (name, line) in CHECKS {
        steps.step(name, || {
            ensure!(ready, "not run, MLX could not be set up");
            check(line)
        });
    }
}

fn check(line: &str) -> Result<()> {
    let words = format!("{line} --target {APPLE}");
    let mut words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    if line.starts_with("clippy") {
        words.extend(["--", "--deny", "warnings"].map(str::to_owned));
    }
    steps::succeed(with_mlx::command(&words)?.envs(NO_COMPILER))
}

/// Fails where it cannot be done, or need not be, with the reason; `adds` the standard library where only that is missing.
fn possible(mlx: bool, adds: bool) -> Result<()> {
    ensure!(
        !cfg!(all(target_os = "macos", target_arch = "aarch64")),
        "this machine is one: what was checked is it"
    );
    ensure!(mlx, "MLX is to be left out, and no build for Apple Silicon is without it");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let has = || -> Result<bool> {
        let print = ["--print", "target-libdir", "--target", APPLE];
        Ok(Path::new(&util::first_line(Command::new(&rustc).args(print))?).is_dir())
    };
    ensure!(
        adds || has()?,
        "the toolchain lacks {APPLE}: `cargo xtask apple`, or `rustup target add {APPLE}`, adds it"
    );
    if !has()? {
        util::quiet(Command::new("rustup").args(["target", "add", APPLE]))
            .with_context(|| format!("the toolchain lacks {APPLE}, and rustup does not add it"))?;
        ensure!(has()?, "the toolchain lacks {APPLE}: rustup added it to another one");
    }
    // Crates that only Macs need.
    util::quiet(util::cargo().args(["fetch", "--quiet", "--locked", "--target", APPLE]))
        .context("what Macs depend on is not here and cannot be had")?;
    Ok(())
}
