//! The server's tests by the clients that people use, with their packages under `target/clients`.

use std::collections::BTreeSet;
use std::env::consts::EXE_SUFFIX;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::skips::Skips;
use crate::util::{cargo, first_line, quiet, root, shown};

/// Python packages that can be installed together, and the files of `tests/clients` that they are for.
struct Environment {
    name: &'static str,
    packages: &'static [&'static str],
    tests: &'static [&'static str],
}

/// `openai` and `anthropic` in the versions that are newest when the environment is made; what is built on them as it was
/// tried, in environments of its own where it holds them back.
const ENVIRONMENTS: [Environment; 6] = [
    Environment {
        name: "newest",
        packages: &["anthropic", "openai"],
        tests: &[
            "test_ai_sdk.py",
            "test_anthropic.py",
            "test_anthropic_loops.py",
            "test_openai.py",
            "test_openai_loops.py",
            "test_scripted.py",
            "test_several_ai_sdk.py",
            "test_structure.py",
        ],
    },
    Environment {
        name: "libraries",
        packages: &[
            "anthropic==2.14.0",
            "langchain==1.5.2",
            "langchain-anthropic==1.7.10",
            "langchain-openai==1.7.4",
            "litellm==1.110.2",
            "llm==0.36",
            "openai==3.57.0",
            "openai-agents==0.24.0",
            "pydantic-ai-slim[anthropic,openai]==2.68.0",
        ],
        tests: &[
            "test_langchain.py",
            "test_litellm.py",
            "test_llm.py",
            "test_openai_agents.py",
            "test_pydantic_ai.py",
            "test_several.py",
        ],
    },
    Environment {
        name: "instructor",
        packages: &["anthropic==2.14.0", "instructor==1.17.0", "openai==3.3.0"],
        tests: &["test_instructor.py"],
    },
    Environment {
        name: "llama_index",
        packages: &["llama-index-llms-openai-like==0.8.1", "openai==2.54.0"],
        tests: &["test_llama_index.py"],
    },
    Environment {
        name: "ollama",
        packages: &["ollama==0.6.3"],
        tests: &["test_ollama.py", "test_several_ollama.py"],
    },
    Environment {
        name: "page",
        packages: &["playwright==1.65.2"],
        tests: &[
            "test_page.py",
            "test_page_access.py",
            "test_page_answers.py",
            "test_page_habits.py",
            "test_page_keys.py",
            "test_page_long.py",
            "test_page_narrow.py",
            "test_page_queue.py",
            "test_page_several.py",
            "test_page_tabs.py",
            "test_page_troubles.py",
        ],
    },
];

/// What the Hugging Face cache is shared with, for tests/hub.
const HUB: Environment = Environment { name: "hub", packages: &["huggingface_hub==2.4.0"], tests: &[] };

const NODE_PACKAGES: [&str; 7] = [
    "@ai-sdk/anthropic@3.0.140",
    "@ai-sdk/openai@3.0.141",
    "@ai-sdk/openai-compatible@2.0.92",
    "ai@6.0.326",
    "axe-core@4.14.1",
    "ollama@0.6.4",
    "zod@4.6.7",
];

/// The installer: pip takes minutes to find versions that fit, where this takes seconds.
const UV: &str = "uv==0.13.9";
/// What Python 3.12 and newer end with where a filter leaves no test.
const NO_TESTS: i32 = 5;

/// Has coding agents do a task at the server, each in its default settings, and prints what became of it. They are installed
/// under `target/agents`, which takes minutes and two gigabytes.
pub fn agents(args: &[String]) -> Result<()> {
    let root = root()?;
    let target = target(&root);
    let mut drive = Command::new("python3");
    drive.arg("tests/clients/coding_agents.py").args(args).current_dir(&root);
    drive.env("BACKSTOP", built(&root, &target)?).env("AGENTS", target.join("agents"));
    eprintln!("   {}", shown(&drive));
    let status = drive.status().with_context(|| format!("cannot start `{}`", shown(&drive)))?;
    ensure!(status.success(), "`{}` ended with {status}", shown(&drive));
    Ok(())
}

/// The binary that the Rust tests are built with.
fn built(root: &Path, target: &Path) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--workspace", "--bins", "--features", "fault-injection"]).current_dir(root);
    let status = build.status().with_context(|| format!("cannot start `{}`", shown(&build)))?;
    ensure!(status.success(), "`{}` failed", shown(&build));
    Ok(target.join("debug").join(format!("backstop{EXE_SUFFIX}")))
}

/// Runs `tests/clients` against the binary that the Rust tests were built with; with words in `filter`, the tests whose
/// name holds one of them. What was skipped.
///
/// # Errors
/// Where a test fails, or is skipped though `BACKSTOP_NO_SKIPS` is set.
pub fn test(filter: &[String]) -> Result<Skips> {
    let root = root()?;
    all_are_named(&root.join("tests/clients"))?;
    let target = target(&root);
    let home = target.join("clients");
    let pythons = ENVIRONMENTS.iter().map(|environment| made(environment, &home));
    let pythons = pythons.collect::<Result<Vec<_>>>()?;
    let hub = if filter.is_empty() { Some(made(&HUB, &home)?) } else { None };
    node_packages(&home)?;
    let binary = built(&root, &target)?;
    let skips = home.join("skips.txt");
    let _ = fs::remove_file(&skips);
    let mut failed = Vec::new();
    for (environment, python) in ENVIRONMENTS.iter().zip(&pythons) {
        for &file in environment.tests {
            let mut tests = Command::new(python);
            tests.args(["tests/clients/run.py", file]).arg(&skips);
            for word in filter.iter().filter(|word| !word.starts_with('-')) {
                tests.args(["-k", word]);
            }
            tests.env("BACKSTOP", &binary).env("NODE_PACKAGES", home.join("node_modules")).current_dir(&root);
            eprintln!("   {}: {}", environment.name, shown(&tests));
            let status = tests.status().with_context(|| format!("cannot start `{}`", shown(&tests)))?;
            let none = !filter.is_empty() && status.code() == Some(NO_TESTS);
            if !status.success() && !none {
                failed.push(file);
            }
        }
    }
    if let Some(python) = hub {
        let of =
            |name: &str| ENVIRONMENTS.iter().zip(&pythons).find(|(environment, _)| environment.name == name);
        let (_, ollama) = of("ollama").context("there is no environment with Ollama's package")?;
        let needs = [
            ("BACKSTOP_HF_PYTHON", python),
            ("BACKSTOP_OLLAMA_PYTHON", ollama.clone()),
            ("NODE_PACKAGES", home.join("node_modules")),
        ];
        for tests in ["cache::", "clients::"] {
            if !by_the_hub(&root, tests, &needs)? {
                failed.push("tests/hub");
            }
        }
    }
    let skips = Skips::read(&skips)?;
    ensure!(failed.is_empty(), "tests failed in {} ({skips})", failed.join(", "));
    skips.allowed()?;
    Ok(skips)
}

/// Whether tests with packages pass whose hub is the one of `tests/hub`: `huggingface_hub` finds what this program has downloaded,
/// and the other way around; Ollama's have a server pull models.
fn by_the_hub(root: &Path, filter: &str, needs: &[(&str, PathBuf)]) -> Result<bool> {
    let mut tests = cargo();
    tests.args(["test", "--workspace", "--features", "fault-injection", "--test", "hub", filter]);
    // Where there is no npm, what needs its packages is skipped.
    tests.envs(needs.iter().filter(|(_, place)| place.exists()).map(|(name, place)| (name, place)));
    tests.current_dir(root);
    eprintln!("   {}: {}", HUB.name, shown(&tests));
    let status = tests.status().with_context(|| format!("cannot start `{}`", shown(&tests)))?;
    Ok(status.success())
}

/// Where cargo builds.
pub fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// Refuses a file of tests that no environment names, and a name that is no file's.
fn all_are_named(folder: &Path) -> Result<()> {
    let mut there = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("test_") && name.ends_with(".py") {
            there.insert(name);
        }
    }
    let named: BTreeSet<String> =
        ENVIRONMENTS.iter().flat_map(|environment| environment.tests).map(|&name| name.to_owned()).collect();
    let wrong: Vec<&str> = there.symmetric_difference(&named).map(String::as_str).collect();
    ensure!(wrong.is_empty(), "xtask/src/clients.rs and {} differ in {}", folder.display(), wrong.join(", "));
    Ok(())
}

/// The interpreter of an environment that has the packages: made anew where Python or the list of packages is another one.
fn made(environment: &Environment, home: &Path) -> Result<PathBuf> {
    let folder = home.join(environment.name);
    let (python, stamp) = (folder.join("bin/python"), folder.join("packages.txt"));
    let version = first_line(Command::new("python3").args(["-c", "import sys; print(sys.version)"]))?;
    let wanted = format!("{version}\n{}\n", environment.packages.join("\n"));
    if python.exists() && is(&stamp, &wanted) {
        return Ok(python);
    }
    let _ = fs::remove_dir_all(&folder);
    eprintln!("   installing {} into {}", environment.packages.join(", "), folder.display());
    // Debian's Python makes no pip of its own without a package of its own: the system's serves as well.
    quiet(Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(&folder))?;
    let mut install = Command::new(uv(home)?);
    install.args(["pip", "install", "--quiet", "--python"]).arg(&python);
    install.arg("--cache-dir").arg(home.join("cache")).args(environment.packages);
    quiet(&mut install)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}

/// The installer, which pip installs.
fn uv(home: &Path) -> Result<PathBuf> {
    let folder = home.join("uv");
    let program = folder.join("bin/uv");
    if !program.exists() {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--target"]).arg(&folder).arg(UV);
        quiet(&mut pip)?;
    }
    Ok(program)
}

/// Whether there is what the tests of packages for Node.js need, the AI SDK and Ollama's.
///
/// # Errors
/// That there is none.
pub fn has_npm() -> Result<()> {
    quiet(Command::new("npm").arg("--version")).map(drop).context("there is no npm")
}

/// Puts the packages for Node.js beside the environments; where there is no npm, their tests are skipped.
fn node_packages(home: &Path) -> Result<()> {
    let (stamp, wanted) = (home.join("node_packages.txt"), NODE_PACKAGES.join("\n"));
    if is(&stamp, &wanted) {
        return Ok(());
    }
    if has_npm().is_err() {
        eprintln!("   there is no npm: the tests of the AI SDK, of Ollama's package and by axe are skipped");
        return Ok(());
    }
    eprintln!("   installing {} into {}", NODE_PACKAGES.join(", "), home.display());
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]).arg(home);
    quiet(npm.args(NODE_PACKAGES))?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Whether a file holds exactly this.
fn is(file: &Path, text: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|held| held == text)
}
