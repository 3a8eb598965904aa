//! Load on the server: its speed beside llama.cpp's server, what it outlives, what slow clients cost the others, and what a kept
//! beginning saves.

mod client;
mod llama;
mod prefix;
mod process;
mod slow;
mod soak;
pub mod speed;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Result;

/// What `cargo xtask load` takes.
#[derive(Debug, clap::Subcommand)]
pub enum Kind {
    /// Tokens per second and the time to the first one, of clients that ask without a pause, beside llama.cpp's server
    Speed(speed::Options),
    /// Many clients, of which some leave, some are slow, some hostile; every answer is compared with that of a single user
    Soak(soak::Options),
    /// Good clients alone, then beside others that send a byte now and then
    Slow(slow::Options),
    /// Time to the first token of a long prompt whose beginning is new and then kept
    Prefix(prefix::Options),
}

/// The server that is measured.
#[derive(Debug, clap::Args)]
pub struct Backstop {
    /// The program [default: built here, release]
    #[arg(long = "backstop", value_name = "PROGRAM")]
    program: Option<PathBuf>,
}

/// The model that it serves, and with how many threads.
#[derive(Debug, clap::Args)]
pub struct Setting {
    /// A GGUF file [default: a random SmolLM2-135M in Q4_0]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Threads [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl Setting {
    fn threads(&self) -> Result<NonZeroUsize> {
        Ok(self.threads.map_or_else(std::thread::available_parallelism, Ok)?)
    }
}

pub fn run(kind: &Kind) -> Result<()> {
    match kind {
        Kind::Speed(options) => speed::run(options),
        Kind::Soak(options) => soak::run(options),
        Kind::Slow(options) => slow::run(options),
        Kind::Prefix(options) => prefix::run(options),
    }
}

/// The value below which the part `p` of `values` lies.
pub fn quantile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count => values[((count - 1) as f64 * p).round() as usize],
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_values() {
        let mut values = vec![5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!((quantile(&mut values, 0.5), quantile(&mut values, 0.95)), (3.0, 5.0));
        assert!(quantile(&mut [], 0.5).is_nan());
    }

    #[test]
    fn options_are_checked() {
        #[derive(clap::Parser)]
        struct Args {
            #[command(subcommand)]
            kind: Kind,
        }
        let parse = |line: &str| {
            Args::try_parse_from(std::iter::once("load").chain(line.split_whitespace())).map(|args| args.kind)
        };
        let Ok(Kind::Soak(options)) = parse("soak --clients 3") else { panic!() };
        assert_eq!((options.clients.get(), options.requests.get()), (3, 5000));
        assert_eq!((options.kind, options.minutes, options.attack.len()), (soak::Kind::Mixed, None, 0));
        let line = "soak --kind hostile-neighbour --minutes 1.5 --attack multiples,half-heads --json";
        let Ok(Kind::Soak(options)) = parse(line) else { panic!() };
        assert_eq!((options.kind, options.attack.len()), (soak::Kind::HostileNeighbour, 2));
        assert_eq!(options.minutes, Some(std::time::Duration::from_secs(90)));
        for wrong in [
            "soak --clients 0",
            "soak --clients",
            "soak --what 1",
            "slow --clients 1",
            "soak --kind",
            "soak --kind some",
            "soak --minutes 0",
            "soak --minutes 1 --requests 1",
            "soak --attack some",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
