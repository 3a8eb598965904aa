//! The page that the server embeds, made of `web/` by Node.js, with its packages under `target/page`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::clients;
use crate::util::{quiet, root};

/// What is made, and where it is committed.
const MADE: [(&str, &str); 2] = [("page.html", "src/server/page.html"), ("licences.txt", "web/licences.txt")];

/// Makes the page and puts it where it is committed.
pub fn make() -> Result<()> {
    let (root, folder) = (root()?, built()?);
    for (made, committed) in MADE {
        let (from, to) = (folder.join(made), root.join(committed));
        fs::copy(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

/// Makes it afresh and compares each byte with what is committed.
pub fn check() -> Result<()> {
    let (root, folder) = (root()?, built()?);
    for (made, committed) in MADE {
        let read = |path: PathBuf| fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
        ensure!(
            read(folder.join(made))? == read(root.join(committed))?,
            "{committed} is not what web/ gives: run `cargo xtask page`, and commit what it makes"
        );
    }
    Ok(())
}

/// Why it cannot be made here, where it cannot.
pub fn missing() -> Result<()> {
    for tool in ["node", "npm"] {
        quiet(Command::new(tool).arg("--version")).with_context(|| format!("there is no {tool} here"))?;
    }
    Ok(())
}

/// The folder in which the page is made, with the packages that the lock file names.
fn built() -> Result<PathBuf> {
    missing()?;
    let root = root()?;
    let (web, folder) = (root.join("web"), clients::target(&root).join("page"));
    copy(&web, &folder)?;
    let mut packages = Command::new("npm");
    packages.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder);
    quiet(&mut packages)?;
    quiet(Command::new("npx").args(["--no-install", "tsc", "--noEmit"]).current_dir(&folder))?;
    quiet(Command::new("node").args(["build.mjs", "."]).current_dir(&folder))?;
    Ok(folder)
}

/// Copies the sources, in place of those that were there, without the packages of who works on them.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(to.join("src"));
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if !path.is_dir() {
            fs::copy(&path, &to).with_context(|| format!("cannot write {}", to.display()))?;
        } else if entry.file_name() != "node_modules" {
            copy(&path, &to)?;
        }
    }
    Ok(())
}
