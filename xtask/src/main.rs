//! `cargo xtask …`: the project's own chores.

mod apple;
mod args;
mod arm;
mod clients;
mod fuzz;
mod kills;
mod layers;
mod load;
mod mlx;
mod newcomer;
mod page;
mod peers;
mod random_model;
mod real_models;
mod sanitize;
mod skips;
mod steps;
mod test;
mod util;
mod with_mlx;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use args::{Args, Task};

fn main() -> ExitCode {
    match run(Args::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Mlx => {
            match mlx::set_up()? {
                Some(config) => println!("mlx: ready, `cargo xtask with-mlx …` uses {}", config.display()),
                None => println!("mlx: nothing to set up, on Apple Silicon mlx-sys builds MLX by itself"),
            }
            Ok(())
        }
        Task::WithMlx { args } => with_mlx::exec(&args),
        Task::Test(options) => test::run(&options),
        Task::Sanitize { tools } => sanitize::run(&tools),
        Task::Layers => layers::run(),
        Task::Apple => apple::run(),
        Task::Arm(options) => arm::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::RealModels(options) => real_models::run(&options),
        Task::Clients { agents: true, words } => clients::agents(&words),
        Task::Clients { agents: false, words } => clients::test(&words).map(|skips| eprintln!("\n{skips}")),
        Task::Page { check: true } => page::check(),
        Task::Page { check: false } => page::make(),
        Task::RandomModel { shape, kind, path } => random_model::write(&shape, &kind, &path),
        Task::Peers(options) => peers::run(&options),
        Task::Load { kind } => load::run(&kind),
        Task::Kills(options) => kills::run(&options),
        Task::Newcomer(options) => newcomer::run(&options),
    }
}
