//! Load on the server: its speed beside llama.cpp's server, what it outlives, what slow clients cost the others, and what a kept
//! beginning saves.

mod client;
mod llama;
mod prefix;
mod process;
mod slow;
mod soak;
mod speed;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask load speed [--clients N] [--requests N] [--prompt N] [--generate N] [--rounds N] [--threads N]
                              [--llama-server PROGRAM|none] [--backstop PROGRAM] [--model FILE]
           8 clients, 128 + 128 tokens, random SmolLM2-135M in Q4_0, in alternate rounds with llama.cpp's server, which is
           built under target/load unless it is named
       cargo xtask load soak  [--clients N] [--requests N] [--backstop PROGRAM]
           32 clients, 5,000 requests, 30 % cancelled, 5 % hostile; every answer is compared with that of a single user
       cargo xtask load slow  [--connections N] [--requests N] [--backstop PROGRAM]
           4 good clients alone, then beside 200 that send a byte now and then
       cargo xtask load prefix [--shared N] [--own N] [--rounds N] [--threads N] [--backstop PROGRAM] [--model FILE]
                              [--kv-memory SIZE]
           time to the first token of 1,000 + 16 tokens on a random SmolLM2-135M in Q4_0, the 1,000 new and then kept";

/// Options as typed: names and their values.
pub struct Options(Vec<(String, String)>);

impl Options {
    fn parse(args: &[String], known: &[&str]) -> Result<Self> {
        let mut options = Vec::new();
        for pair in args.chunks(2) {
            match pair {
                [name, value] if known.contains(&name.as_str()) => {
                    options.push((name.clone(), value.clone()))
                }
                _ => bail!("cannot take `{}`\n{USAGE}", pair.join(" ")),
            }
        }
        Ok(Self(options))
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    pub fn number(&self, name: &str, default: usize) -> Result<usize> {
        match self.text(name).map(str::parse) {
            None => Ok(default),
            Some(Ok(number)) if number > 0 => Ok(number),
            _ => bail!("{name} takes a whole number from 1\n{USAGE}"),
        }
    }
}

/// `load KIND [OPTIONS]`.
pub fn run(args: &[String]) -> Result<()> {
    match args.split_first() {
        Some((kind, rest)) if kind == "speed" => speed::run(&Options::parse(rest, &speed::OPTIONS)?),
        Some((kind, rest)) if kind == "soak" => soak::run(&Options::parse(rest, &soak::OPTIONS)?),
        Some((kind, rest)) if kind == "prefix" => prefix::run(&Options::parse(rest, &prefix::OPTIONS)?),
        Some((kind, rest)) if kind == "slow" => slow::run(&Options::parse(rest, &slow::OPTIONS)?),
        Some((help, _)) if ["--help", "-h"].contains(&help.as_str()) => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("{USAGE}"),
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
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_values() {
        let mut values = vec![5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!((quantile(&mut values, 0.5), quantile(&mut values, 0.95)), (3.0, 5.0));
        assert!(quantile(&mut [], 0.5).is_nan());
    }

    #[test]
    fn options_are_checked() {
        let parse = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
            Options::parse(&args, &["--clients"])
        };
        assert_eq!(parse(&["--clients", "3"]).unwrap().number("--clients", 8).unwrap(), 3);
        assert_eq!(parse(&[]).unwrap().number("--clients", 8).unwrap(), 8);
        assert!(parse(&["--clients", "0"]).unwrap().number("--clients", 8).is_err());
        assert!(parse(&["--clients"]).is_err() && parse(&["--what", "1"]).is_err());
    }
}
