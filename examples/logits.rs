//! The logits after each of some tokens, as one JSON object `{"logits": [[…], …]}`, a row per position:
//! `cargo run --release --example logits -- MODEL --backend cpu --tokens 1,403,407`.
//!
//! Numbers are written so that they read back as the same `f32`, whether parsed as `f32` or as `f64`.

use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;

use anyhow::ensure;
use backstop::{BackendRequest, LoadOptions, Model, ModelFiles, Policy};
use clap::Parser;

#[derive(Parser)]
#[command(about = "Print the logits after each token as JSON")]
struct Args {
    /// The model's directory.
    model: PathBuf,
    /// auto, metal, mlx or cpu.
    #[arg(long, default_value = "auto")]
    backend: BackendRequest,
    /// Token ids, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// Fail where MLX cannot do an op, instead of computing it on the CPU.
    #[arg(long)]
    no_fallback: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let files = ModelFiles::open(&args.model)?;
    let options = LoadOptions {
        backend: args.backend,
        context: Some(args.tokens.len()),
        policy: if args.no_fallback { Policy::Deny } else { Policy::Allow },
        ..LoadOptions::default()
    };
    let rows = Model::load_with(files, options)?.logits(&args.tokens)?;

    for (position, row) in rows.iter().enumerate() {
        let bad = row.iter().position(|logit| !logit.is_finite());
        ensure!(bad.is_none(), "position {position}: the logit of token {} is not finite", bad.unwrap_or(0));
    }
    let mut out = BufWriter::new(stdout().lock());
    write!(out, "{{\"logits\": [")?;
    for (position, row) in rows.iter().enumerate() {
        let exact: Vec<f64> = row.iter().map(|&logit| f64::from(logit)).collect();
        let comma = if position == 0 { "" } else { ",\n " };
        write!(out, "{comma}{}", serde_json::to_string(&exact)?)?;
    }
    writeln!(out, "]}}")?;
    out.flush()?;
    Ok(())
}
