//! `cargo xtask …`: the project's own chores.

mod clients;
mod load;
mod mlx;
mod peers;
mod random_model;
mod real_models;
mod test;
mod util;
mod with_mlx;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask mlx                          make MLX usable on Linux, under target/mlx (a no-op on Apple Silicon)
cargo xtask with-mlx CARGO-ARGS…         run cargo with MLX, adding `--features mlx` where it belongs
cargo xtask test [--no-mlx] [-- ARGS…]   format, lints, docs, and every test with and without MLX;
                                         with ARGS, only the tests, as `cargo test ARGS…`
cargo xtask test --quick [-- ARGS…]      for the inner loop: format, lints, and the tests without MLX and clients, unoptimised
cargo xtask clients [--agents] [WORDS…]  the server's tests by the clients that people use; with --agents, coding agents
cargo xtask random-model SHAPE TYPE PATH random weights of a real shape, for measuring speed and memory
cargo xtask peers [--json] [OPTIONS…]    backstop beside llama.cpp and mlx-lm on such models (--help lists the options)
cargo xtask real-models [NAME…]          trained models for tests/real.rs, under target/real-models (--help lists the options)
cargo xtask load speed|soak|slow         the server under load: beside llama.cpp, with clients that go away, with slow ones";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (task, rest) = match args.split_first() {
        Some((task, rest)) => (task.as_str(), rest),
        None => ("help", &args[..]),
    };
    match task {
        "mlx" if rest.is_empty() => {
            match mlx::set_up()? {
                Some(config) => println!("mlx: ready, `cargo xtask with-mlx …` uses {}", config.display()),
                None => println!("mlx: nothing to set up, on Apple Silicon mlx-sys builds MLX by itself"),
            }
            Ok(())
        }
        "with-mlx" if !rest.is_empty() => with_mlx::exec(rest),
        "test" => test::run(rest),
        "clients" => clients::run(rest),
        "random-model" => random_model::run(rest),
        "peers" => peers::run(rest),
        "real-models" => real_models::run(rest),
        "load" => load::run(rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("cannot run `cargo xtask {}`; usage:\n{USAGE}", args.join(" ")),
    }
}
