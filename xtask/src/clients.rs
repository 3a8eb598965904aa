//! The server's tests by the clients that people use: Python's `openai` and `anthropic`, in an environment under `target`.

use std::env::consts::EXE_SUFFIX;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::util::{cargo, first_line, quiet, root, shown};

/// The packages, in the versions that are newest when the environment is made.
const PACKAGES: [&str; 2] = ["openai", "anthropic"];
/// What Python 3.12 and newer end with where a filter leaves no test.
const NO_TESTS: i32 = 5;

/// Runs `tests/clients` against the binary that the Rust tests were built with; with words in `filter`, the tests whose
/// name holds one of them.
pub fn test(filter: &[String]) -> Result<()> {
    let root = root()?;
    let target = target(&root);
    let python = environment(&target.join("clients"))?;
    let mut build = cargo();
    build.args(["build", "--workspace", "--bins", "--features", "fault-injection"]).current_dir(&root);
    let built = build.status().with_context(|| format!("cannot start `{}`", shown(&build)))?;
    ensure!(built.success(), "`{}` failed", shown(&build));
    let mut tests = Command::new(python);
    tests.args(["-m", "unittest", "discover", "--start-directory", "tests/clients"]);
    for word in filter.iter().filter(|word| !word.starts_with('-')) {
        tests.args(["-k", word]);
    }
    tests.env("BACKSTOP", target.join("debug").join(format!("backstop{EXE_SUFFIX}"))).current_dir(&root);
    eprintln!("   {}", shown(&tests));
    let status = tests.status().with_context(|| format!("cannot start `{}`", shown(&tests)))?;
    let none = !filter.is_empty() && status.code() == Some(NO_TESTS);
    ensure!(status.success() || none, "`{}` ended with {status}", shown(&tests));
    Ok(())
}

/// Where cargo builds.
pub fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// The interpreter of an environment under `home` that has the packages.
fn environment(home: &Path) -> Result<PathBuf> {
    let python = home.join("bin/python");
    let import = format!("import {}", PACKAGES.join(", "));
    let has = || quiet(Command::new(&python).args(["-c", &import])).is_ok();
    if !has() {
        let _ = fs::remove_dir_all(home);
        eprintln!("   installing {} into {}", PACKAGES.join(" and "), home.display());
        // Debian's Python makes no pip of its own without a package of its own: the system's serves as well.
        quiet(Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(home))?;
        let code = "import sysconfig; print(sysconfig.get_path('purelib'))";
        let packages = first_line(Command::new(&python).args(["-c", code]))?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--target", &packages])
            .args(PACKAGES);
        quiet(&mut pip)?;
        ensure!(has(), "{} cannot `{import}` after its installation", python.display());
    }
    Ok(python)
}
