//! A Debian in a folder, with its compiler, cross compiler and qemu. The machine's own toolchain need not know ARM, and the
//! machine's libraries stay as they are: debootstrap makes the folder, and what runs in it has it as its root.
//!
//! ```text
//! debian-<key>    made beside and renamed, so it is whole or absent; <key> is a hash of its packages
//! making          what it is until then
//! lock            held by who makes it
//! build-<hash>    where cargo builds in it, of this checkout
//! ```

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::util;

/// Its release has rustc of at least the workspace's `rust-version`.
const RELEASE: &str = "sid";

const PACKAGES: &[&str] = &[
    "cargo",
    "rustc",
    "gcc",
    "g++",
    "libc6-dev",
    "gcc-aarch64-linux-gnu",
    "g++-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "libstd-rust-dev:arm64",
    "qemu-user",
    "rust-src",
];

/// Installs the packages that are the arguments. A mirror may be weeks behind; what it has is signed all the same.
const INSTALL: &str = r#"
set -e
export DEBIAN_FRONTEND=noninteractive
dpkg --add-architecture arm64
apt-get -o Acquire::Check-Valid-Until=false update
apt-get install --yes --no-install-recommends "$@"
apt-get clean
"#;

/// Runs what follows `--` with the folder `$1` as its root and in it the folders before `--`. The mounts are of the mount
/// namespace that this runs in: nothing is left of them when it ends, however that comes.
const ENTER: &str = r#"
set -e
debian=$1
shift
for place in /proc /dev; do mount --rbind "$place" "$debian$place"; done
while [ "$1" != -- ]; do
  mkdir -p "$debian$1"
  mount --bind "$1" "$debian$1"
  shift
done
shift
exec chroot "$debian" "$@"
"#;

/// What the environment in the folder has of this one, and that of debootstrap.
const KEPT: &[&str] = &[
    "TERM",
    "CARGO_TERM_COLOR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];

/// Files that what runs in the folder needs to reach the network as this machine does.
const NETWORK: &[&str] = &["etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"];

/// The folder, made.
pub struct Debian {
    folder: PathBuf,
    build: PathBuf,
}

impl Debian {
    fn at(home: &Path) -> Self {
        let key = util::fnv1a(&format!("{RELEASE} {} {INSTALL}", PACKAGES.join(" ")));
        // Two checkouts' libraries are no versions of one.
        let root = util::root().map(|root| root.display().to_string()).unwrap_or_default();
        let build = home.join(format!("build-{:016x}", util::fnv1a(&root)));
        Self { folder: home.join(format!("debian-{key:016x}")), build }
    }

    /// The folder below `home`, where it is there and can be used.
    pub fn here(home: &Path) -> Result<Self> {
        enterable()?;
        let debian = Self::at(home);
        let name = debian.folder.display();
        ensure!(debian.folder.is_dir(), "{name} is not there: `cargo xtask arm` makes it, in ten minutes");
        Ok(debian)
    }

    /// Fails where the folder cannot be made or used on this machine, with the reason.
    pub fn possible(home: &Path) -> Result<()> {
        enterable()?;
        if !Self::at(home).folder.is_dir() {
            util::quiet(Command::new("debootstrap").arg("--version"))
                .context("there is no debootstrap: `apt-get install debootstrap`")?;
        }
        Ok(())
    }

    /// The same folder, made where it is not there: ten minutes, and 3 GB.
    pub fn set_up(home: &Path) -> Result<Self> {
        let debian = Self::at(home);
        if debian.folder.is_dir() {
            return Ok(debian);
        }
        fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
        let _lock = util::lock(&home.join("lock"), "arm")?;
        if debian.folder.is_dir() {
            return Ok(debian);
        }
        eprintln!("   making {}, which takes ten minutes", debian.folder.display());
        let folder = home.join("making");
        if folder.exists() {
            // What may be mounted in it is not ours to empty.
            util::quiet(Command::new("rm").args(["-rf", "--one-file-system"]).arg(&folder))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // It mounts a /proc in the folder, too.
        let mut bootstrap = namespace();
        bootstrap
            .args(["debootstrap", "--variant=minbase", "--include=ca-certificates", RELEASE])
            .arg(&folder);
        let kept = KEPT.iter().chain(&["PATH"]);
        bootstrap.env_clear().envs(kept.filter_map(|name| Some((name, std::env::var_os(name)?))));
        util::quiet(&mut bootstrap)?;
        let made = Self { folder, build: debian.build.clone() };
        let mut install = made.enter(&[], &[])?;
        install.args(["/bin/sh", "-c", INSTALL, "sh"]).args(PACKAGES);
        util::quiet(&mut install)?;
        fs::rename(&made.folder, &debian.folder)
            .with_context(|| format!("cannot rename {}", made.folder.display()))?;
        Ok(debian)
    }

    /// Runs a command of the folder at the workspace's root, with an environment of its own; cargo's registry is this machine's.
    pub fn run(&self, words: &[&str], environment: &[(&str, String)]) -> Result<()> {
        let root = util::root()?;
        let registry = registry()?;
        fs::create_dir_all(&self.build).with_context(|| format!("cannot make {}", self.build.display()))?;
        let own = [("CARGO_HOME", registry.as_os_str()), ("CARGO_TARGET_DIR", self.build.as_os_str())];
        let given = environment.iter().map(|(name, value)| (*name, OsStr::new(value)));
        let environment: Vec<_> = own.into_iter().chain(given).collect();
        let mut command = self.enter(&[&root, &self.build, &registry], &environment)?;
        command.args(["/usr/bin/env", "-C"]).arg(&root);
        command.args(words);
        eprintln!("   in Debian: {}", words.join(" "));
        let status = command.status().context("cannot start unshare")?;
        ensure!(status.success(), "`{}` ended with {status}", words.join(" "));
        Ok(())
    }

    /// What runs a command, which follows, in the folder and these folders of the machine, with an environment of its own.
    fn enter(&self, folders: &[&Path], environment: &[(&str, &OsStr)]) -> Result<Command> {
        for file in NETWORK {
            let from = Path::new("/").join(file);
            if from.is_file() {
                let to = self.folder.join(file);
                let folder = to.parent().context("a file of etc")?;
                fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
                // The folder's own may be a link to what is not there.
                let _ = fs::remove_file(&to);
                fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            }
        }
        let mut command = namespace();
        command.args(["/bin/sh", "-c", ENTER, "sh"]).arg(&self.folder).args(folders).arg("--");
        command.args(["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]);
        let set =
            |name: &str, value: &OsStr| [OsStr::new(name), OsStr::new("="), value].into_iter().collect();
        let kept = KEPT.iter().filter_map(|name| Some(set(name, &std::env::var_os(name)?)));
        let words: Vec<OsString> =
            kept.chain(environment.iter().map(|(name, value)| set(name, value))).collect();
        command.args(words);
        Ok(command)
    }
}

/// `unshare` with mounts of its own.
fn namespace() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    command
}

/// Fails where this machine cannot enter such a folder, with the reason.
fn enterable() -> Result<()> {
    if cfg!(target_arch = "aarch64") {
        bail!("this machine is an ARM itself: `cargo xtask test` runs on it");
    }
    let known = cfg!(all(target_os = "linux", target_arch = "x86_64"));
    ensure!(known, "Debian's tools for ARM are taken from its x86-64, on Linux");
    let id = util::first_line(Command::new("id").arg("-u"))?;
    ensure!(id == "0", "a folder of Debian's takes root to make and to enter");
    util::quiet(namespace().arg("true")).map(drop).context("no mounts of one's own are allowed here")
}

/// Where cargo keeps what it downloads.
fn registry() -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let home = home.context("neither CARGO_HOME nor HOME is set")?;
    std::path::absolute(&home).with_context(|| format!("no absolute path of {}", home.display()))
}
