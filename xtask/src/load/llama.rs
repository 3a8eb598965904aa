//! llama.cpp's own server, built for this machine of the sources that the package llama-cpp-python ships.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::clients::target;
use crate::util::{quiet, root};

/// The package whose source archive holds llama.cpp, and the archive's SHA-256 on PyPI.
const PACKAGE: &str = "llama-cpp-python";
const VERSION: &str = "0.3.36";
const HASH: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";

/// As llama.cpp is built for one's own machine: for speed, without the page, and without what loads models from elsewhere.
const SETTINGS: [&str; 11] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_TOOLS_INSTALL=OFF",
];

/// `llama-server` as `--llama-server` names it, else built under `target/load`, which takes half an hour on two cores; none
/// where it is called `none`.
pub fn server(given: Option<&Path>) -> Result<Option<PathBuf>> {
    match given {
        Some(none) if none == Path::new("none") => return Ok(None),
        Some(program) => return Ok(Some(program.to_owned())),
        None => {}
    }
    let home = target(&root()?).join("load").join(format!("{PACKAGE}-{VERSION}"));
    let program = home.join("llama-server");
    if !program.exists() {
        fs::create_dir_all(&home)?;
        let built =
            build(&home).with_context(|| format!("llama-server is not built in {}", home.display()))?;
        // Beside its name first, so that it is whole where it is there.
        let new = home.join("llama-server.new");
        fs::copy(built, &new)?;
        fs::rename(new, &program)?;
    }
    Ok(Some(program))
}

fn build(home: &Path) -> Result<PathBuf> {
    eprintln!("   building llama-server of {PACKAGE} {VERSION} in {}", home.display());
    let pip = |args: &[&str]| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check"]).args(args).current_dir(home);
        quiet(&mut pip).map(drop)
    };
    fs::write(home.join("requirements.txt"), format!("{PACKAGE}=={VERSION} --hash=sha256:{HASH}\n"))?;
    pip(&["download", "--no-deps", "--no-binary", PACKAGE, "--require-hashes", "-r", "requirements.txt"])?;
    pip(&["install", "--target", "tools", "--upgrade", "cmake", "ninja"])?;
    let name = format!("{}-{VERSION}", PACKAGE.replace('-', "_"));
    quiet(Command::new("tar").arg("xzf").arg(format!("{name}.tar.gz")).current_dir(home))?;
    let sources = home.join(name).join("vendor/llama.cpp");
    ensure!(sources.join("tools/server").is_dir(), "{} has no server", sources.display());
    let tools = home.join("tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(
        std::iter::once(tools.join("bin")).chain(std::env::split_paths(&path).collect::<Vec<_>>()),
    )?;
    let cmake = |args: &[&str]| {
        let mut cmake = Command::new(tools.join("bin/cmake"));
        quiet(cmake.args(args).env("PYTHONPATH", &tools).env("PATH", &path).current_dir(home)).map(drop)
    };
    let mut configure = vec!["-G", "Ninja", "-B", "build", "-S"];
    let sources = sources.to_string_lossy();
    configure.push(&sources);
    configure.extend(SETTINGS);
    cmake(&configure)?;
    cmake(&["--build", "build", "--target", "llama-server"])?;
    Ok(home.join("build/bin/llama-server"))
}
