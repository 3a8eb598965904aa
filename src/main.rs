//! The `backstop` command: parses its arguments, calls, and turns the result into an exit code.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::complete();
    let typed = match cli::arguments(std::env::args_os().collect()) {
        Ok(typed) => typed,
        Err(error) => return cli::report(&error.into()),
    };
    let args = cli::Args::parse_from(typed);
    cli::start_logging(args.verbose);
    cli::let_large_writes_fail();
    cli::keep_little_that_is_freed();
    cli::call(args.command).unwrap_or_else(|error| cli::report(&error))
}
