//! What is typed after `cargo xtask`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::{arm, fuzz, kills, load, newcomer, peers, real_models, sanitize, test};

/// The project's own chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    pub task: Task,
}

#[derive(Debug, Subcommand)]
pub enum Task {
    /// Make MLX usable on Linux, under target/mlx (nothing to do on Apple Silicon)
    Mlx,
    /// Run cargo with MLX, adding `--features mlx` where it belongs
    #[command(disable_help_flag = true)]
    WithMlx {
        /// As cargo takes them: a subcommand and its arguments
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "CARGO-ARGS"
        )]
        args: Vec<String>,
    },
    /// Check format, lints and docs, and run every test with and without MLX
    Test(test::Options),
    /// Look for undefined behaviour, races and unwanted dependencies, with tools that `test` does without
    Sanitize {
        /// All that this machine has, where none is named
        tools: Vec<sanitize::Tool>,
    },
    /// Fetch trained models for tests/real.rs, under target/real-models
    RealModels(real_models::Options),
    /// Check that imports run downwards in the module map of docs/architecture.md
    Layers,
    /// Check lints and docs of what Apple Silicon compiles, MLX included, from Linux
    Apple,
    /// Run the kernels' tests as on three ARM processors, by qemu and a Debian in a folder, from x86-64 Linux
    Arm(arm::Options),
    /// Fuzz with libFuzzer and AddressSanitizer, on the nightly toolchain
    Fuzz(fuzz::Options),
    /// Run the server's tests by the clients that people use
    Clients {
        /// Have coding agents do a task instead; words are their names
        #[arg(long)]
        agents: bool,
        /// Only the tests whose names hold one of these
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Make the page that the server embeds, of web/
    Page {
        /// Compare what is made with what is committed instead
        #[arg(long)]
        check: bool,
    },
    /// Make random weights of a real shape, for measuring speed and memory
    RandomModel {
        /// llama-1b, qwen2.5-0.5b, smollm2-135m, qwen3.5-0.8b; cut to 8 layers, qwen3-30b-a3b-8, gpt-oss-20b-8 and glm-4.7-flash-8;
        /// tiny, tiny-moe, tiny-gpt-oss, tiny-glm-flash and tiny-qwen3.5
        shape: String,
        /// f32, f16, bf16, mlx4 or mlx8, or mxfp4 of gpt-oss (directories); gguf-f16, gguf-bf16, q4_0, q8_0, q4_k_m or gguf-mxfp4
        /// (GGUF files)
        #[arg(value_name = "TYPE")]
        kind: String,
        /// The directory or the file
        path: PathBuf,
    },
    /// Measure backstop beside llama.cpp, mlx-lm and transformers on such models
    Peers(peers::Options),
    /// Put the server under load
    Load {
        #[command(subcommand)]
        kind: load::Kind,
    },
    /// Kill downloads at random moments, and check what they leave
    Kills(kills::Options),
    /// Type what README.md's first screen says, from a fresh clone to a conversation, and count keys and seconds
    Newcomer(newcomer::Options),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Task, clap::Error> {
        Args::try_parse_from(std::iter::once("xtask").chain(line.split_whitespace())).map(|args| args.task)
    }

    #[test]
    fn arguments_are_what_clap_takes() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_follows_is_handed_on_as_it_is() {
        for line in
            ["test -- --nocapture", "--config a=1 test", "build -h", "run --release -- run --backend mlx"]
        {
            let Ok(Task::WithMlx { args }) = parse(&format!("with-mlx {line}")) else { panic!("{line}") };
            assert_eq!(args.join(" "), line);
        }
        assert!(parse("with-mlx").is_err());
        let Ok(Task::Clients { agents, words }) = parse("clients --agents --keep x") else { panic!() };
        assert_eq!((agents, words.join(" ").as_str()), (true, "--keep x"));
        let Ok(Task::Clients { agents, words }) = parse("clients one two") else { panic!() };
        assert_eq!((agents, words.join(" ").as_str()), (false, "one two"));
    }

    #[test]
    fn tasks_take_their_own_arguments_alone() {
        for line in [
            "",
            "what",
            "mlx x",
            "test --what",
            "test x",
            "random-model tiny q4_0",
            "load",
            "load what",
            "sanitize what",
            "arm x",
            "kills --kills 0",
            "newcomer x",
            "arm --processor -x",
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
        let Ok(Task::Sanitize { tools }) = parse("sanitize miri deny") else { panic!() };
        assert_eq!(tools, [sanitize::Tool::Miri, sanitize::Tool::Deny]);
        for line in ["fuzz --minutes", "fuzz --minutes 0", "fuzz --minutes x", "fuzz gguf json"] {
            assert!(parse(line).is_err(), "{line:?}");
        }
        for (line, target, minutes) in [
            ("fuzz", None, None),
            ("fuzz gguf", Some("gguf"), None),
            ("fuzz --minutes 3", None, Some(3)),
            ("fuzz json --minutes 90", Some("json"), Some(90)),
        ] {
            let Ok(Task::Fuzz(options)) = parse(line) else { panic!("{line:?}") };
            assert_eq!((options.target.as_deref(), options.minutes), (target, minutes), "{line:?}");
        }
        for (line, kills) in [("kills", 500), ("kills --kills 3", 3)] {
            let Ok(Task::Kills(options)) = parse(line) else { panic!("{line:?}") };
            assert_eq!(options.kills, kills, "{line:?}");
        }
        let Ok(Task::Test(options)) = parse("test --no-mlx -- --lib json") else { panic!() };
        assert!(options.no_mlx && !options.quick && options.filter.join(" ") == "--lib json");
    }
}
