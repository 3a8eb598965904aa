//! MLX on Linux without a fork: MLX from its wheel, mlx-c compiled from mlx-sys's own sources, bindings from bindgen, and
//! a cargo config that puts the three in the place of mlx-sys's build script (`links` override). On Apple Silicon
//! mlx-sys builds MLX with Metal by itself.
//!
//! Everything lies under `target/mlx`:
//! ```text
//! wheels/            as downloaded
//! sdk-<key>/wheel    MLX: headers, libmlx.so and its BLAS
//! sdk-<key>/lib      libmlxc.a
//! sdk-<key>/bindings bindings.rs
//! config.toml        for `cargo --config`
//! ```
//! `<key>` is a hash of all that went in, so a changed input changes the config and cargo rebuilds what depends on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::util;

const WHEELS: &str = include_str!("wheels.txt");
const SHIM: &str = include_str!("mlx_shim.cpp");
const FORMAT_SHIM: &str = include_str!("format_shim.hpp");
const BINDINGS: &str = include_str!("../bindings/src/main.rs");

/// `MLX_HALF_H` is half.h's guard: `mlx_shim.cpp` supplies the half types' functions on every architecture alike.
const CXX_FLAGS: &[&str] = &["-std=c++20", "-O2", "-fPIC", "-DMLX_HALF_H"];

/// The wheel is a manylinux_2_35 one.
const GLIBC: (u32, u32) = (2, 35);

/// Makes MLX usable, or finds it made: the file for `cargo --config`, `None` where mlx-sys needs no help.
pub fn set_up() -> Result<Option<PathBuf>> {
    if cfg!(all(target_os = "macos", target_arch = "aarch64")) {
        return Ok(None);
    }
    check_platform()?;
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = util::metadata(&target)?;
    let recipe = Recipe::new(&metadata)?;
    let target_dir =
        metadata["target_directory"].as_str().context("cargo metadata names no target_directory")?;
    let home = Path::new(target_dir).join("mlx");
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let home = home.canonicalize()?;
    let _lock = util::lock(&home.join("lock"), "mlx")?;

    let sdk = home.join(format!("sdk-{:016x}", util::fnv1a(&recipe.stamp)));
    let config = home.join("config.toml");
    if !sdk.is_dir() {
        recipe.build(&home, &sdk)?;
    }
    let text = config_text(&target, &sdk)?;
    if fs::read_to_string(&config).ok().as_deref() != Some(&text) {
        let new = home.join("config.toml.new");
        fs::write(&new, text)?;
        fs::rename(&new, &config)?;
    }
    Ok(Some(config))
}

fn check_platform() -> Result<()> {
    let without =
        "without MLX everything else works: leave the feature `mlx` off, `cargo xtask test --no-mlx`";
    ensure!(
        cfg!(all(
            target_os = "linux",
            target_env = "gnu",
            any(target_arch = "x86_64", target_arch = "aarch64")
        )),
        "MLX runs on Apple Silicon and on glibc Linux (x86_64, aarch64), not on this {} {} system; {without}",
        std::env::consts::ARCH,
        std::env::consts::OS,
    );
    // "glibc 2.36"; where getconf is missing, the link step will tell.
    let Ok(line) = util::first_line(Command::new("getconf").arg("GNU_LIBC_VERSION")) else { return Ok(()) };
    let mut numbers = line.split([' ', '.']).filter_map(|word| word.parse().ok());
    if let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) {
        ensure!(
            (major, minor) >= GLIBC,
            "MLX's wheel needs glibc {}.{} or newer, this system has {line}; {without}",
            GLIBC.0,
            GLIBC.1
        );
    }
    Ok(())
}

/// The inputs, all known before anything is made.
struct Recipe {
    mlx_c: PathBuf,
    cxx: Vec<String>,
    /// All that the SDK's content depends on, as text.
    stamp: String,
}

impl Recipe {
    fn new(metadata: &Value) -> Result<Self> {
        let (mlx_sys, version) = package(metadata, "mlx-sys")?;
        let mlx_c = mlx_sys.join("src/mlx-c");
        let pinned = pinned_mlx(&mlx_c)?;
        ensure!(
            pinned == wheel_version("mlx-cpu")?,
            "mlx-sys {version} pins MLX {pinned}, xtask/src/wheels.txt has mlx-cpu {}: put {pinned} and its hashes there",
            wheel_version("mlx-cpu")?
        );
        let (cxx, cxx_version) = cxx()?;
        let stamp = [
            &format!("mlx-sys {version}, {} {}, {cxx_version}", cxx.join(" "), CXX_FLAGS.join(" ")),
            WHEELS,
            SHIM,
            FORMAT_SHIM,
            BINDINGS,
        ]
        .join("\n");
        Ok(Self { mlx_c, cxx, stamp })
    }

    /// Makes everything beside `sdk` and renames it there: `sdk` is whole or absent.
    fn build(&self, home: &Path, sdk: &Path) -> Result<()> {
        let start = Instant::now();
        for entry in fs::read_dir(home)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("sdk-") || name.starts_with("tmp-") {
                fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        // An interrupted setup's compilers may still be writing into its own directory.
        let scratch = home.join(format!("tmp-{}", std::process::id()));
        let wheels = download(home, &scratch.join("wheels"))?;
        let made = scratch.join("sdk");
        unzip(&wheels, "mlx_cpu", &made.join("wheel"))?;
        self.compile(&scratch.join("objects"), &made)?;
        unzip(&wheels, "libclang", &scratch.join("clang"))?;
        self.bind(&scratch.join("clang"), &home.join("bindgen"), &made)?;
        fs::rename(&made, sdk).with_context(|| format!("cannot create {}", sdk.display()))?;
        fs::remove_dir_all(&scratch)?;
        eprintln!("mlx: set up in {:.0} s", start.elapsed().as_secs_f32());
        Ok(())
    }

    fn cxx(&self) -> Command {
        let mut command = Command::new(&self.cxx[0]);
        command.args(&self.cxx[1..]);
        command
    }

    /// mlx-c and the shims → `lib/libmlxc.a`.
    fn compile(&self, objects: &Path, made: &Path) -> Result<()> {
        fs::create_dir_all(objects)?;
        fs::create_dir_all(made.join("lib"))?;
        let format_shim = objects.join("format_shim.hpp");
        fs::write(&format_shim, FORMAT_SHIM)?;
        let shim = objects.join("mlx_shim.cpp");
        fs::write(&shim, SHIM)?;

        let mut sources = files(&self.mlx_c.join("mlx/c"), "cpp")?;
        sources.push(shim);
        let object = |source: &Path| objects.join(source.file_name().unwrap_or_default()).with_extension("o");
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        eprintln!(
            "mlx: compiling mlx-c, {} files, {workers} at a time, with `{}`",
            sources.len(),
            self.cxx.join(" ")
        );
        in_parallel(workers, &sources, |source| {
            let mut command = self.cxx();
            command.args(CXX_FLAGS).arg("-include").arg(&format_shim);
            command.arg("-I").arg(&self.mlx_c).arg("-I").arg(made.join("wheel/mlx/include"));
            command.arg("-c").arg(source).arg("-o").arg(object(source));
            util::quiet(&mut command).map(drop)
        })
        .context("cannot compile mlx-c: it takes a C++20 compiler (g++ 12 is known to do); CXX chooses another one")?;

        let ar = util::command_from_env("AR").unwrap_or_else(|| vec!["ar".to_owned()]);
        let mut command = Command::new(&ar[0]);
        command.args(&ar[1..]).arg("crs").arg(made.join("lib/libmlxc.a"));
        command.args(sources.iter().map(|source| object(source)));
        util::quiet(&mut command).context("cannot archive mlx-c; `ar` comes with binutils").map(drop)
    }

    /// mlx-c's headers → `bindings/bindings.rs`, by the wheel unzipped in `clang`.
    fn bind(&self, clang: &Path, target_dir: &Path, made: &Path) -> Result<()> {
        eprintln!("mlx: building bindgen and generating the bindings");
        let library = find(clang, "libclang.so")?.context("the wheel of libclang holds no libclang.so")?;
        fs::create_dir_all(made.join("bindings"))?;
        // The headers that come with a compiler (stddef.h …) are not in libclang's wheel.
        let include = util::first_line(self.cxx().arg("-print-file-name=include"))?;

        let mut command = util::cargo();
        command.args(["run", "--quiet", "--locked", "--manifest-path"]);
        command.arg(util::root()?.join("xtask/bindings/Cargo.toml"));
        command.arg("--target-dir").arg(target_dir).arg("--");
        command.arg(&self.mlx_c).arg(include).arg(made.join("bindings/bindings.rs"));
        command.env("LIBCLANG_PATH", library.parent().unwrap_or(clang));
        util::quiet(&mut command).context("cannot generate the bindings of mlx-c").map(drop)
    }
}

/// The directory and version of a dependency.
fn package(metadata: &Value, name: &str) -> Result<(PathBuf, String)> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let package = packages.iter().find(|package| package["name"] == name);
    let package = package.with_context(|| format!("{name} is not among the dependencies"))?;
    let (Some(manifest), Some(version)) = (package["manifest_path"].as_str(), package["version"].as_str())
    else {
        bail!("cargo metadata says too little of {name}");
    };
    let dir = Path::new(manifest).parent().context("a manifest lies in a directory")?;
    Ok((dir.to_owned(), version.to_owned()))
}

/// The MLX that mlx-c is written against: `GIT_TAG v0.32.2)`.
fn pinned_mlx(mlx_c: &Path) -> Result<String> {
    let path = mlx_c.join("CMakeLists.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let tag = text.lines().find_map(|line| line.trim().strip_prefix("GIT_TAG v"));
    let tag = tag.with_context(|| format!("{} pins no MLX version (GIT_TAG v…)", path.display()))?;
    Ok(tag.trim_end_matches(')').to_owned())
}

fn wheel_version(name: &str) -> Result<&'static str> {
    let pin = WHEELS.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("=="));
    let version = pin.and_then(|pin| pin.split_whitespace().next());
    version.with_context(|| format!("xtask/src/wheels.txt pins no {name}"))
}

/// The C++ compiler and its version: `CXX`, or the first usual name there is.
fn cxx() -> Result<(Vec<String>, String)> {
    if let Some(words) = util::command_from_env("CXX") {
        let version = util::first_line(Command::new(&words[0]).args(&words[1..]).arg("--version"))
            .context("the compiler in CXX does not run")?;
        return Ok((words, version));
    }
    for name in ["c++", "g++", "clang++"] {
        if let Ok(version) = util::first_line(Command::new(name).arg("--version")) {
            return Ok((vec![name.to_owned()], version));
        }
    }
    bail!(
        "MLX needs a C++20 compiler to link against: install g++ (Debian, Ubuntu: `apt install g++`) or set CXX"
    )
}

/// A Python with pip.
fn python() -> Result<Vec<String>> {
    let from_env = util::command_from_env("PYTHON");
    let usual = ["python3", "python"].map(|name| vec![name.to_owned()]);
    for words in from_env.into_iter().chain(usual) {
        if util::quiet(Command::new(&words[0]).args(&words[1..]).args(["-m", "pip", "--version"])).is_ok() {
            return Ok(words);
        }
    }
    bail!(
        "MLX on Linux comes from PyPI: install Python 3 with pip (Debian, Ubuntu: `apt install python3-pip`), or name it \
         in PYTHON"
    )
}

/// The wheels, checked by pip against the hashes in wheels.txt; made in `new`, kept in `home`.
fn download(home: &Path, new: &Path) -> Result<PathBuf> {
    let wheels = home.join("wheels");
    let pinned = wheels.join("wheels.txt");
    if fs::read_to_string(&pinned).ok().as_deref() == Some(WHEELS) {
        return Ok(wheels);
    }
    eprintln!(
        "mlx: downloading mlx-cpu {} (10 MB) and libclang {} (25 MB) from PyPI",
        wheel_version("mlx-cpu")?,
        wheel_version("libclang")?
    );
    fs::create_dir_all(new)?;
    let requirements = new.join("wheels.txt");
    fs::write(&requirements, WHEELS)?;
    let python = python()?;
    let mut command = Command::new(&python[0]);
    command.args(&python[1..]).args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]);
    command.args(["--require-hashes", "--ignore-requires-python", "--disable-pip-version-check"]);
    command.arg("--dest").arg(new).arg("-r").arg(requirements);
    util::quiet(&mut command).context("cannot download MLX's wheels from PyPI")?;
    if wheels.exists() {
        fs::remove_dir_all(&wheels)?;
    }
    fs::rename(new, &wheels)?;
    Ok(wheels)
}

fn unzip(wheels: &Path, name: &str, to: &Path) -> Result<()> {
    let wheel = files(wheels, "whl")?
        .into_iter()
        .find(|path| path.file_name().unwrap_or_default().to_string_lossy().starts_with(name))
        .with_context(|| format!("{} holds no wheel of {name}", wheels.display()))?;
    fs::create_dir_all(to)?;
    let python = python()?;
    let mut command = Command::new(&python[0]);
    command.args(&python[1..]).args(["-m", "zipfile", "-e"]).arg(wheel).arg(to);
    util::quiet(&mut command).map(drop)
}

/// The files of `dir` that end in `.extension`, sorted.
fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The file of that name somewhere under `dir`.
fn find(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|found| found == name) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Runs `work` on every item, `workers` at a time; after the first error no further item starts.
fn in_parallel<T: Sync>(workers: usize, items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(Ok(()));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = work(item) {
                        next.store(items.len(), Ordering::Relaxed);
                        *failure.lock().unwrap() = Err(error);
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap()
}

/// Replaces mlx-sys's build script, also for `cargo xtask apple`, where nothing is linked. `rpath` reaches the build scripts of
/// direct dependents as `DEP_MLX_RPATH`: an rpath in `rustflags` would rebuild every crate whenever builds with and without MLX alternate.
fn config_text(target: &str, sdk: &Path) -> Result<String> {
    let quoted =
        |path: &str| serde_json::to_string(&sdk.join(path)).context("the target directory is not UTF-8");
    Ok(format!(
        r#"# Written by `cargo xtask mlx`.
[target.{target}.mlx]
rustc-link-lib = ["static=mlxc", "dylib=mlx", "dylib=stdc++"]
rustc-link-search = [{lib}, {mlx}]
rustc-env = {{ OUT_DIR = {bindings} }}
rpath = {mlx}

[target.{apple}.mlx]
rustc-link-lib = []
rustc-env = {{ OUT_DIR = {bindings} }}
"#,
        apple = util::APPLE,
        lib = quoted("lib")?,
        mlx = quoted("wheel/mlx/lib")?,
        bindings = quoted("bindings")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_are_read() {
        assert_eq!(wheel_version("mlx-cpu").unwrap().split('.').count(), 3);
        assert_eq!(wheel_version("libclang").unwrap().split('.').count(), 3);
        assert!(wheel_version("mlx").is_err());
    }

    #[test]
    fn parallel_work_reaches_every_item_or_says_what_failed() {
        let items: Vec<usize> = (0..100).collect();
        let sum = AtomicUsize::new(0);
        let add = |item: &usize| {
            sum.fetch_add(*item, Ordering::Relaxed);
            Ok(())
        };
        in_parallel(3, &items, add).unwrap();
        assert_eq!(sum.into_inner(), 4950);

        let started = AtomicUsize::new(0);
        let fail = |item: &usize| {
            started.fetch_add(1, Ordering::Relaxed);
            if *item == 5 { bail!("item 5") } else { Ok(()) }
        };
        assert_eq!(in_parallel(1, &items, fail).unwrap_err().to_string(), "item 5");
        assert_eq!(started.into_inner(), 6);
    }

    #[test]
    fn the_config_names_the_target_and_quotes_the_paths() {
        let text = config_text("x86_64-unknown-linux-gnu", Path::new("/a \"b\"")).unwrap();
        assert!(text.contains("[target.x86_64-unknown-linux-gnu.mlx]"));
        assert!(text.contains("[target.aarch64-apple-darwin.mlx]"));
        assert_eq!(text.matches(r#"OUT_DIR = "/a \"b\"/bindings""#).count(), 2);
    }
}
