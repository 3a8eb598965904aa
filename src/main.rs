//! The `backstop` command: parses its arguments, calls, and turns the result into an exit code.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::complete();
    let args = cli::Args::parse_from(cli::arguments(std::env::args_os().collect()));
    cli::start_logging(args.verbose);
    cli::let_large_writes_fail();
    cli::call(args.command).unwrap_or_else(|error| cli::report(&error))
}
