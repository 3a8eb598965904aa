//! Clients of `backstop serve` that ask at once, beside as many sequences of llama.cpp: in a program that does what is inside of its
//! server's loop and nothing around it, and in the server itself where there is one.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{OWN, Options, Programs, answer, is_directory, median, model, peer_type, versions};
use crate::load::speed::{self, LoadWork, Measured};

/// llama.cpp without a server, and its server.
const SEQUENCES: &str = "llama.cpp, no server";
const SERVER: &str = "llama-server";

pub fn run(programs: &Programs, options: &Options, clients: usize, models: &Path) -> Result<()> {
    let (prompt, generate) = (options.prompt.get(), options.generate.get());
    let work = LoadWork { clients, requests: 1, prompt, generate };
    let mut rows = Vec::new();
    for shape in &options.shapes {
        for name in &options.types {
            if is_directory(name) {
                eprintln!(
                    "peers: {name} is skipped: its directories have no tokenizer, which a server needs"
                );
                continue;
            }
            let Some(theirs) = peer_type(name) else { continue };
            let (own, peer) = (model(models, shape, name)?, model(models, shape, theirs)?);
            for threads in options.threads.iter().map(usize::to_string) {
                let measured = rounds(programs, options, [&own, &peer], work, &threads)?;
                rows.extend(compared([shape, name, &threads], &measured));
            }
        }
    }
    ensure!(!rows.is_empty(), "no type among {} is a file", options.types.join(", "));
    if options.json {
        let (rounds, versions) = (options.rounds, versions(programs)?);
        println!(
            "{}",
            json!({ "rows": rows, "clients": clients, "prompt_tokens": prompt, "generated_tokens": generate, "rounds": rounds,
                    "versions": versions })
        );
    } else {
        println!("{clients} clients, {prompt} + {generate} tokens\n\n{}", table(&rows));
    }
    Ok(())
}

/// What each program measured, a value for each round.
fn rounds(
    programs: &Programs,
    options: &Options,
    [own, peer]: [&Path; 2],
    work: LoadWork,
    threads: &str,
) -> Result<BTreeMap<&'static str, Vec<Measured>>> {
    let mut measured = BTreeMap::<&'static str, Vec<Measured>>::new();
    for round in 0..options.rounds.get() {
        eprintln!("peers: {}, {threads} threads, round {} of {}", own.display(), round + 1, options.rounds);
        let of_own = speed::own_round(&programs.backstop, own, work, threads)?;
        measured.entry(OWN).or_default().push(of_own);
        let mut command = Command::new(&programs.llama);
        command.arg(programs.tools.join("llama_cpp_clients.py")).arg(peer).args(["--threads", threads]);
        for (name, value) in
            [("--clients", work.clients), ("--prompt", work.prompt), ("--generate", work.generate)]
        {
            command.args([name, &value.to_string()]);
        }
        measured.entry(SEQUENCES).or_default().push(parsed(&answer(&mut command)?)?);
        if let Some(server) = &options.llama_server {
            let of_server = speed::llama_round(server, peer, work, threads)?;
            measured.entry(SERVER).or_default().push(of_server);
        }
    }
    Ok(measured)
}

/// From what the script prints.
fn parsed(value: &Value) -> Result<Measured> {
    let rate = value["rate"].as_f64().with_context(|| format!("no rate in {value}"))?;
    let first = value["first"].as_array().with_context(|| format!("no first in {value}"))?;
    Ok(Measured { rate, first: first.iter().filter_map(Value::as_f64).collect() })
}

/// A row for each peer: medians of the rounds, of all requests, and of the rounds' ratios.
fn compared(
    [shape, name, threads]: [&str; 3],
    measured: &BTreeMap<&'static str, Vec<Measured>>,
) -> Vec<Value> {
    let Some(own) = measured.get(OWN) else { return Vec::new() };
    let rate = |of: &[Measured]| median(of.iter().map(|round| round.rate));
    let first = |of: &[Measured]| median(of.iter().flat_map(|round| round.first.iter().copied()));
    let peers = measured.iter().filter(|(peer, _)| **peer != OWN);
    let rows = peers.map(|(peer, theirs)| {
        let ratios = own.iter().zip(theirs).map(|(own, theirs)| own.rate / theirs.rate);
        json!({
            "shape": shape, "type": name, "threads": threads, "peer": peer, "ratio": median(ratios),
            "rate": rate(own), "peer_rate": rate(theirs), "first_token": first(own), "peer_first_token": first(theirs),
        })
    });
    rows.collect()
}

fn table(rows: &[Value]) -> String {
    let mut lines = vec![
        "| shape | type | threads | peer | tok/s of all | peer's | ratio | first token, ms | peer's |"
            .to_owned(),
        format!("|{}", "---|".repeat(9)),
    ];
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default();
        let number = |name: &str| row[name].as_f64().unwrap_or_default();
        lines.push(format!(
            "| {} | {} | {} | {} | {:.1} | {:.1} | {:.2} | {:.0} | {:.0} |",
            text("shape"),
            text("type"),
            text("threads"),
            text("peer"),
            number("rate"),
            number("peer_rate"),
            number("ratio"),
            1e3 * number("first_token"),
            1e3 * number("peer_first_token"),
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_rounds_and_first_tokens_of_all_requests() {
        let measured = |rate: f64, first: [f64; 2]| Measured { rate, first: first.to_vec() };
        let own = vec![measured(30.0, [0.1, 0.2]), measured(10.0, [0.3, 0.4]), measured(20.0, [0.5, 0.6])];
        let script = json!({ "rate": 10.0, "first": [1.0, 2.0], "peak_memory_bytes": 7 });
        let theirs = vec![parsed(&script).unwrap(), measured(5.0, [2.0, 3.0]), measured(2.0, [2.0, 2.0])];
        let rows = compared(["tiny", "q4_0", "2"], &BTreeMap::from([(OWN, own), (SEQUENCES, theirs)]));
        assert_eq!(rows.len(), 1);
        assert_eq!((&rows[0]["peer"], &rows[0]["ratio"]), (&SEQUENCES.into(), &3.0.into()));
        let shown = table(&rows);
        assert!(
            shown.ends_with("| tiny | q4_0 | 2 | llama.cpp, no server | 20.0 | 5.0 | 3.00 | 350 | 2000 |"),
            "{shown}"
        );
        assert!(parsed(&json!({ "rate": 1.0 })).is_err() && parsed(&json!({ "first": [] })).is_err());
    }
}
