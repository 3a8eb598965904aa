//! `cargo xtask random-model`: a program of its own, since it needs the library, which the other tasks do without.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::util::{cargo, root, shown};

/// Writes the model of shape `name` in the type `kind` to `path`, where nothing may be yet.
pub fn write(name: &str, kind: &str, path: &Path) -> Result<()> {
    let mut run = cargo();
    run.args(["run", "--quiet", "--package", "random-model", "--manifest-path"]);
    run.arg(root()?.join("Cargo.toml")).args(["--", name, kind]).arg(path);
    let status = run.status().with_context(|| format!("cannot start `{}`", shown(&run)))?;
    ensure!(status.success(), "`{}` failed", shown(&run));
    Ok(())
}
