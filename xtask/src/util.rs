//! Where the project is, and commands that say what they were when they fail.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Apple Silicon, as rustc calls it.
pub const APPLE: &str = "aarch64-apple-darwin";

/// The cargo that runs this xtask, ready for arguments.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The workspace root.
pub fn root() -> Result<PathBuf> {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask …`")?;
    let root = Path::new(&xtask).parent().context("xtask lies in no workspace")?;
    Ok(root.to_owned())
}

/// `cargo metadata` of the workspace as built for `target`, with MLX's crates in it.
pub fn metadata(target: &str) -> Result<Value> {
    let mut command = cargo();
    command.args(["metadata", "--format-version=1", "--features=mlx", "--filter-platform", target]);
    command.arg("--manifest-path").arg(root()?.join("Cargo.toml"));
    // Cargo's own progress shows while a fresh machine downloads the crates.
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "{} failed", shown(&command));
    serde_json::from_slice(&output.stdout).context("cannot parse `cargo metadata`")
}

/// Runs `command` quietly; where it fails, the error carries all it printed.
pub fn quiet(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}):\n{}{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// Held until the file closes: at most one set-up of `what` at a time where `path` lies.
pub fn lock(path: &Path, what: &str) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("{what}: waiting for another set-up");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// The first line that `command` prints.
pub fn first_line(command: &mut Command) -> Result<String> {
    let output = quiet(command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .next()
        .map(|line| line.trim().to_owned())
        .with_context(|| format!("`{}` is silent", shown(command)))
}

/// `command` as one would type it.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words: Vec<_> =
        std::iter::once(program).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// A command from an environment variable such as `CXX="ccache g++"`.
pub fn command_from_env(variable: &str) -> Option<Vec<String>> {
    let value = std::env::var(variable).ok()?;
    let words: Vec<String> = value.split_whitespace().map(str::to_owned).collect();
    (!words.is_empty()).then_some(words)
}

/// 64-bit FNV-1a: names a directory after what is in it.
pub fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
