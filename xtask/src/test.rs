//! `cargo xtask test`: the one test command, here and in CI.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::steps::Steps;
use crate::{apple, arm, clients, fuzz, layers, mlx, page, util};

/// Tests of files, names and the CPU's kernels alone: a build with MLX would run the same code again.
const SAME: [&str; 18] = [
    "adapters",
    "architecture",
    "bits",
    "converted",
    "ends",
    "hub",
    "imatrix",
    "load_limits",
    "quant",
    "quantize",
    "quantize_experts",
    "real",
    "refusals",
    "tasks",
    "templates",
    "text",
    "vocabularies",
    "weights_limits",
];

/// What `cargo xtask test` takes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Leave out what needs MLX
    #[arg(long)]
    pub no_mlx: bool,
    /// For the inner loop: format, lints, and the tests without MLX and clients, unoptimised
    #[arg(long)]
    pub quick: bool,
    /// Only the tests, as `cargo test ARGS…`
    #[arg(last = true, value_name = "ARGS")]
    pub filter: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let filter = &options.filter;
    if options.quick {
        return quick(filter);
    }

    let mut steps = Steps::new("test");
    steps.mlx = !options.no_mlx;
    let ready = !steps.mlx || steps.step("MLX", || mlx::set_up().map(drop));
    if !filter.is_empty() {
        eprintln!("no format, lints and docs: only the tests that `{}` selects", filter.join(" "));
    } else if let Err(error) = components() {
        steps.skip("format, lints and docs", &error);
    } else {
        steps.cargo("format", "fmt --all --check", &[]);
        steps.cargo("format of bindings", "fmt --manifest-path xtask/bindings/Cargo.toml --check", &[]);
        steps.cargo("format of fuzz", "fmt --manifest-path fuzz/Cargo.toml --check", &[]);
        steps.step("order of imports", layers::run);
        match page::missing() {
            Ok(()) => drop(steps.step("the page is what web/ gives", page::check)),
            Err(error) => steps.skip("the page is what web/ gives", &error),
        }
        let deny = ["--", "--deny", "warnings"].map(str::to_owned);
        let alone = "clippy --package backstop --all-targets --no-default-features";
        steps.cargo("clippy of the library alone", alone, &deny);
        steps.cargo("clippy of the server alone", &format!("{alone} --features server"), &deny);
        steps.cargo("clippy without MLX", "clippy --workspace --all-targets", &deny);
        steps.with_mlx(
            ready,
            "clippy with MLX",
            "clippy --workspace --all-targets --features mlx,fault-injection",
            &deny,
        );
        if steps.mlx {
            steps.with_mlx(ready, "docs", "doc --workspace --no-deps --features mlx", &[]);
        } else {
            steps.cargo("docs", "doc --workspace --no-deps", &[]);
        }
        apple::steps(&mut steps, ready);
    }
    let names = if filter.is_empty() { test_targets()? } else { Vec::new() };
    let alone = "test --workspace --features fault-injection --no-fail-fast";
    if ready && steps.mlx && filter.is_empty() {
        // Unit tests are those of the build with MLX, which has all the code: compiling them twice takes minutes.
        let targets = named(" --bins --examples", names.iter().map(String::as_str));
        steps.tests("tests without MLX", &format!("{alone}{targets}"), &[]);
        steps.tests("examples in the docs", &format!("{alone} --doc"), &[]);
    } else {
        steps.tests("tests without MLX", alone, filter);
    }
    arm::steps(&mut steps, filter);
    if filter.is_empty() {
        fuzz::smoke(&mut steps);
    }
    let mut skips = None;
    steps.step("tests by client libraries", || clients::test(filter).map(|found| skips = Some(found)));
    if let Some(skips) = skips.filter(|skips| skips.count() > 0) {
        steps.note(format!("tests by client libraries: {skips}"));
    }
    if let Err(error) = clients::has_npm() {
        steps.skip("tests by packages for Node.js", &error);
    }
    let mut mlx = "test --package backstop --no-fail-fast --features mlx,fault-injection".to_owned();
    if filter.is_empty() {
        mlx += &named(" --lib --bins", names.iter().map(String::as_str).filter(|name| !SAME.contains(name)));
    }
    steps.tests_with_mlx(ready, "tests with MLX", &mlx, filter);
    steps.summary()
}

/// Options of cargo: `kinds`, and these files of `tests/`.
fn named<'a>(kinds: &str, names: impl Iterator<Item = &'a str>) -> String {
    names.fold(kinds.to_owned(), |options, name| format!("{options} --test {name}"))
}

/// The files and folders of `tests/` that are programs, in order.
fn test_targets() -> Result<Vec<String>> {
    let tests = util::root()?.join("tests");
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(&tests).with_context(|| format!("cannot read {}", tests.display()))? {
        let path = entry?.path();
        let is_test = path.extension().is_some_and(|ending| ending == "rs") || path.join("main.rs").is_file();
        if let Some(name) = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_test) {
            names.push(name.to_owned());
        }
    }
    if let Some(gone) = SAME.iter().find(|same| !names.iter().any(|name| name == *same)) {
        bail!("xtask/src/test.rs leaves out tests/{gone}, which is not there");
    }
    names.sort_unstable();
    Ok(names)
}

/// Format, lints and the tests of the inner loop: without MLX and clients, and with the workspace's own crates unoptimised, in
/// a folder of their own. Kernels take longer so, and building takes a fraction.
fn quick(filter: &[String]) -> Result<()> {
    let target = crate::clients::target(&util::root()?).join("quick");
    let env = vec![
        ("CARGO_TARGET_DIR", target.into_os_string()),
        ("CARGO_PROFILE_DEV_OPT_LEVEL", "0".into()),
        ("CARGO_PROFILE_DEV_DEBUG", "0".into()),
        // tests/real.rs runs no model then.
        ("BACKSTOP_UNOPTIMISED", "1".into()),
    ];
    let mut steps = Steps::new("test");
    steps.env = env;
    if filter.is_empty() {
        steps.cargo("format", "fmt --all --check", &[]);
        steps.step("order of imports", layers::run);
        steps.cargo(
            "clippy",
            "clippy --workspace --all-targets",
            &["--", "--deny", "warnings"].map(str::to_owned),
        );
    }
    steps.tests("tests", "test --package backstop --no-fail-fast --features fault-injection", filter);
    steps.summary()
}

/// Adds rustfmt and clippy, which a minimal toolchain comes without.
fn components() -> Result<()> {
    let missing: Vec<&str> = ["rustfmt", "clippy"]
        .into_iter()
        .filter(|tool| {
            let subcommand = if *tool == "rustfmt" { "fmt" } else { tool };
            util::quiet(util::cargo().args([subcommand, "--version"])).is_err()
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    util::quiet(Command::new("rustup").args(["component", "add"]).args(&missing)).map(drop).with_context(
        || format!("the toolchain lacks {}, and rustup does not add them", missing.join(" and ")),
    )
}
