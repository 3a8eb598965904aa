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

/// The cargo command for `args` with MLX set up. It finds libmlx.so at link and run time by itself.
pub fn command(args: &[String]) -> Result<Command> {
    let mut command = util::cargo();
    if let Some(sdk) = mlx::set_up()? {
        command.arg("--config").arg(&sdk.config);
    }
    command.args(with_feature(args));
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

/// `--features mlx` after the subcommand (for nextest, after its own subcommand) if it is one of [`BUILDS`], unless the
/// arguments already choose MLX, or another package or manifest, which may have no such feature.
fn with_feature(args: &[String]) -> Vec<String> {
    let mut args = args.to_vec();
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let given = &args[..end];
    let mut at = 0;
    while at < end && given[at].starts_with('-') {
        at += if GLOBAL_VALUES.contains(&given[at].as_str()) { 2 } else { 1 };
    }
    let Some(subcommand) = given.get(at) else { return args };
    let nested = usize::from(subcommand == "nextest");
    if BUILDS.contains(&subcommand.as_str()) && !chooses(given) && at + nested < end {
        args.splice(at + 1 + nested..at + 1 + nested, ["--features".to_owned(), "mlx".to_owned()]);
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
    use super::with_feature;

    fn line(args: &str) -> String {
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        with_feature(&args).join(" ")
    }

    #[test]
    fn the_feature_follows_the_subcommand() {
        assert_eq!(line("build --release"), "build --features mlx --release");
        assert_eq!(line("test -p backstop -- --nocapture"), "test --features mlx -p backstop -- --nocapture");
        assert_eq!(line("nextest run --lib"), "nextest run --features mlx --lib");
        assert_eq!(line("--color always -v t"), "--color always -v t --features mlx");
        assert_eq!(line("test --features fault-injection"), "test --features mlx --features fault-injection");
        assert_eq!(
            line("run -- run -p xtask --all-features"),
            "run --features mlx -- run -p xtask --all-features"
        );
    }

    #[test]
    fn what_chooses_for_itself_is_left_alone() {
        for args in [
            "test --features fault-injection,mlx",
            "test --features=backstop/mlx",
            "check -Fmlx",
            "clippy --all-features",
            "run -p xtask -- mlx",
            "test --package=xtask",
            "build --manifest-path /elsewhere/Cargo.toml",
            "fmt --all",
            "metadata",
            "--version",
            "nextest",
        ] {
            assert_eq!(line(args), args);
        }
    }
}
