//! `cargo xtask with-mlx ARGS…`: cargo with MLX, one rule on where `--features mlx` goes.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{mlx, util};

/// Subcommands that take `--features`.
const BUILDS: &[&str] = &[
    "build", "b", "run", "r", "test", "t", "bench", "check", "c", "clippy", "doc", "d", "rustc", "rustdoc",
    "nextest", "tree", "fix",
];

/// Options whose value is the next argument and could be mistaken for a subcommand.
const GLOBAL_VALUES: &[&str] = &["--color", "--config", "-C", "-Z"];

/// The cargo command for `args` with MLX set up.
pub fn command(args: &[String]) -> Result<Command> {
    let config = mlx::set_up()?;
    let config = config.as_deref().map(|path| path.to_str().context("the target directory is not UTF-8"));
    let mut command = util::cargo();
    command.args(with_options(args, config.transpose()?));
    Ok(command)
}

/// Becomes that command.
pub fn exec(args: &[String]) -> Result<()> {
    let mut command = command(args)?;
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        Err(command.exec()).with_context(|| format!("cannot start `{}`", util::shown(&command)))
    }
    #[cfg(not(unix))]
    {
        let status = command.status().with_context(|| format!("cannot start `{}`", util::shown(&command)))?;
        std::process::exit(status.code().unwrap_or(1))
    }
}

/// `args` with `--config CONFIG` and `--features mlx` after the subcommand (for nextest, after its own subcommand) if it is
/// one of [`BUILDS`]. The feature stays out if the arguments already choose it, or choose another package or manifest,
/// which may have no such feature. The config cannot stand before the subcommand: cargo does not hand it on to
/// subcommands that are programs of their own, clippy and nextest.
fn with_options(args: &[String], config: Option<&str>) -> Vec<String> {
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let given = &args[..end];
    let mut at = 0;
    while at < end && given[at].starts_with('-') {
        at += if GLOBAL_VALUES.contains(&given[at].as_str()) { 2 } else { 1 };
    }
    let builds = given.get(at).is_some_and(|subcommand| BUILDS.contains(&subcommand.as_str()));
    at += 1 + usize::from(given.get(at).is_some_and(|subcommand| subcommand == "nextest"));
    let mut args = args.to_vec();
    if builds && at <= end {
        let config = config.into_iter().flat_map(|config| ["--config", config]);
        let feature = if chooses(given) { &[][..] } else { &["--features", "mlx"] };
        let options: Vec<String> = config.chain(feature.iter().copied()).map(str::to_owned).collect();
        args.splice(at..at, options);
    }
    args
}

fn chooses(given: &[String]) -> bool {
    let value = |long: &str, short: &str, index: usize| -> Option<&str> {
        let arg = given[index].as_str();
        if arg == long || arg == short {
            return given.get(index + 1).map(String::as_str);
        }
        arg.strip_prefix(long)
            .and_then(|rest| rest.strip_prefix('='))
            .or_else(|| arg.strip_prefix(short).filter(|rest| !rest.is_empty() && !arg.starts_with("--")))
    };
    (0..given.len()).any(|index| {
        given[index] == "--all-features"
            || given[index].starts_with("--manifest-path")
            || value("--package", "-p", index).is_some_and(|package| package != "backstop")
            || value("--features", "-F", index)
                .is_some_and(|features| features.split([',', ' ']).any(|f| f == "mlx" || f == "backstop/mlx"))
    })
}

#[cfg(test)]
mod tests {
    use super::with_options;

    fn line(args: &str, config: Option<&str>) -> String {
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        with_options(&args, config).join(" ")
    }

    #[test]
    fn options_follow_the_subcommand() {
        for (args, expected) in [
            ("build --release", "build --config C --features mlx --release"),
            ("test -p backstop -- --nocapture", "test --config C --features mlx -p backstop -- --nocapture"),
            ("nextest run --lib", "nextest run --config C --features mlx --lib"),
            ("--color always -v t", "--color always -v t --config C --features mlx"),
            ("test --features fault-injection", "test --config C --features mlx --features fault-injection"),
            ("run -- -p xtask --all-features", "run --config C --features mlx -- -p xtask --all-features"),
        ] {
            assert_eq!(line(args, Some("C")), expected);
        }
        assert_eq!(line("run -- chat", None), "run --features mlx -- chat");
    }

    #[test]
    fn a_choice_of_features_or_package_is_kept() {
        for args in [
            "test --features fault-injection,mlx",
            "test --features=backstop/mlx",
            "check -Fmlx",
            "clippy --all-features",
            "run -p xtask -- mlx",
            "test --package=xtask",
            "build --manifest-path /elsewhere/Cargo.toml",
        ] {
            assert_eq!(line(args, None), args);
            assert!(line(args, Some("C")).contains(" --config C "));
        }
    }

    #[test]
    fn what_does_not_build_is_left_alone() {
        for args in ["fmt --all", "metadata", "--version", "nextest", "--", "-- build"] {
            assert_eq!(line(args, Some("C")), args);
        }
    }
}
