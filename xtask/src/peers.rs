//! backstop beside llama.cpp, mlx-lm and transformers, on random models of real shapes: every round runs each of them once,
//! so that a machine that is busy is busy for all.

mod clients;

use std::collections::BTreeMap;
use std::env::consts::EXE_SUFFIX;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::random_model;
use crate::util::{cargo, first_line, quiet, root, shown};

/// A type of our own and the type that llama.cpp is given beside it; the last ones are for experts in MXFP4.
const TYPES: [(&str, &str); 9] = [
    ("q4_0", "q4_0"),
    ("mlx4", "q4_0"),
    ("q4_k_m", "q4_k_m"),
    ("q8_0", "q8_0"),
    ("mlx8", "q8_0"),
    ("gguf-f16", "gguf-f16"),
    ("gguf-bf16", "gguf-bf16"),
    ("gguf-mxfp4", "gguf-mxfp4"),
    ("mxfp4", "gguf-mxfp4"),
];

/// Those that are measured where none is named.
const COMMON: usize = 7;

fn common() -> impl Iterator<Item = &'static str> {
    TYPES.into_iter().take(COMMON).map(|(ours, _)| ours)
}

/// Whether a type is a directory, and no file.
fn is_directory(name: &str) -> bool {
    matches!(name, "mlx4" | "mlx8" | "mxfp4") || name == DENSE.1
}

/// The type that transformers is given the same weights of: it has no kernels for blocks.
const DENSE: (&str, &str) = ("gguf-bf16", "bf16");

/// Tokens of a prompt and of a generation that mlx-lm is given on MLX's CPU device, where it takes a second for each.
const MLX_ON_CPU: (usize, usize) = (16, 4);

/// What `cargo xtask peers` takes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Shapes of random-model
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "llama-1b,qwen2.5-0.5b,smollm2-135m"
    )]
    shapes: Vec<String>,
    /// Types of the weights
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values = common(),
          value_parser = TYPES.map(|(ours, _)| ours))]
    types: Vec<String>,
    /// Numbers of threads
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Tokens cached before
    #[arg(long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value = "512")]
    prompt: NonZeroUsize,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value = "128")]
    generate: NonZeroUsize,
    /// Measure the tokens per second of so many clients of `backstop serve` together, in place of a single sequence; beside as many
    /// sequences of llama.cpp, without a server
    #[arg(long, value_name = "N", conflicts_with = "depth")]
    clients: Option<NonZeroUsize>,
    /// With --clients: llama.cpp's server, as a further peer
    #[arg(long, value_name = "PROGRAM", requires = "clients")]
    llama_server: Option<PathBuf>,
    /// How often each is run
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroUsize,
    /// An interpreter that has llama_cpp [default: one made under target/peers]
    #[arg(long, value_name = "PYTHON")]
    llama_python: Option<PathBuf>,
    /// An interpreter that has mlx_lm [default: one made under target/peers]
    #[arg(long, value_name = "PYTHON")]
    mlx_python: Option<PathBuf>,
    /// Without mlx-lm
    #[arg(long)]
    no_mlx: bool,
    /// An interpreter that has transformers and torch [default: one made under target/peers]
    #[arg(long, value_name = "PYTHON")]
    transformers_python: Option<PathBuf>,
    /// Without transformers, which stands beside gguf-bf16 alone
    #[arg(long)]
    no_transformers: bool,
    /// The program to measure [default: built here, release]
    #[arg(long, value_name = "PROGRAM")]
    backstop: Option<PathBuf>,
    /// Where the models are made, and kept [default: target/peers/models]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
}

/// What llama.cpp is given beside our `name`.
fn peer_type(name: &str) -> Option<&'static str> {
    TYPES.iter().find(|(ours, _)| *ours == name).map(|(_, theirs)| *theirs)
}

/// One run of one program.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// Tokens per second.
    prompt: f64,
    generation: f64,
    /// Seconds.
    load: f64,
    /// Bytes.
    memory: f64,
    /// The part of the read bandwidth that generation takes; of backstop alone.
    bandwidth: f64,
}

impl Measured {
    /// From what a peer's script prints.
    fn peer(value: &Value) -> Result<Self> {
        let number = |name: &str| value[name].as_f64().with_context(|| format!("no {name} in {value}"));
        Ok(Self {
            prompt: number("prompt")?,
            generation: number("generation")?,
            load: number("load")?,
            memory: number("peak_memory_bytes")?,
            bandwidth: 0.0,
        })
    }

    /// From what `backstop bench --json` prints.
    fn own(value: &Value) -> Result<Self> {
        let row = &value["rows"][0];
        let number = |path: &str| {
            row.pointer(path).and_then(Value::as_f64).with_context(|| format!("no {path} in {row}"))
        };
        Ok(Self {
            prompt: number("/rates/prompt/median")?,
            generation: number("/rates/generation/median")?,
            load: number("/load")?,
            memory: number("/peak_memory_bytes").unwrap_or(0.0),
            bandwidth: number("/fractions/read_bandwidth")?,
        })
    }
}

/// What is run, each by one call.
struct Programs {
    backstop: PathBuf,
    llama: PathBuf,
    mlx: Option<PathBuf>,
    transformers: Option<PathBuf>,
    tools: PathBuf,
}

pub fn run(options: &Options) -> Result<()> {
    let root = root()?;
    let alone = options.clients.is_some();
    let home =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("peers");
    let programs = Programs {
        backstop: options.backstop.clone().map_or_else(|| build(&home), Ok)?,
        llama: match &options.llama_python {
            Some(python) => python.clone(),
            // Built for this machine's instruction set, as one would who wants it fast.
            None => {
                install(&home, "llama_cpp", &["--no-binary=llama-cpp-python", "llama-cpp-python", "numpy"])?
            }
        },
        mlx: match (&options.mlx_python, options.no_mlx || alone) {
            (_, true) => None,
            (Some(python), _) => Some(python.clone()),
            (None, _) if cfg!(target_os = "macos") => Some(install(&home, "mlx_lm", &["mlx-lm"])?),
            (None, _) => Some(install(&home, "mlx_lm", &["mlx-lm", "mlx[cpu]"])?),
        },
        transformers: match (&options.transformers_python, options.no_transformers || alone) {
            (_, true) => None,
            _ if !options.types.iter().any(|name| name == DENSE.0) => None,
            (Some(python), _) => Some(python.clone()),
            // Its wheels for the CPU have an index of their own; without it come those for NVIDIA, which also run here.
            (None, _) => {
                let torch =
                    ["transformers", "torch", "--extra-index-url", "https://download.pytorch.org/whl/cpu"];
                Some(install(&home, "transformers", &torch)?)
            }
        },
        tools: root.join("tools/peers"),
    };
    let models = options.models.clone().unwrap_or_else(|| home.join("models"));
    if let Some(count) = options.clients {
        return clients::run(&programs, options, count.get(), &models);
    }
    let mut rows = Vec::new();
    for shape in &options.shapes {
        for name in &options.types {
            let Some(theirs) = peer_type(name) else { continue };
            let own = model(&models, shape, name)?;
            let peer = model(&models, shape, theirs)?;
            for &threads in &options.threads {
                let dense = match (&programs.transformers, name == DENSE.0) {
                    (Some(_), true) => Some(model(&models, shape, DENSE.1)?),
                    _ => None,
                };
                let directories = Paths { own: &own, llama: &peer, transformers: dense.as_deref() };
                let measured = rounds(&programs, options, directories, threads)?;
                rows.extend(compared(shape, name, threads, &measured));
            }
        }
    }
    if options.json {
        let versions = versions(&programs)?;
        let Options { depth, prompt, generate, rounds, .. } = options;
        println!(
            "{}",
            json!({ "rows": rows, "depth": depth, "prompt_tokens": prompt, "generated_tokens": generate,
                    "rounds": rounds, "versions": versions })
        );
    } else {
        println!("{}", table(&rows));
    }
    Ok(())
}

/// Builds backstop, and says where it is.
fn build(home: &Path) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--release", "--bin", "backstop"]).stdout(Stdio::null());
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(&command)))?;
    ensure!(status.success(), "`{}` failed", shown(&command));
    let target = home.parent().context("target/peers lies in target")?;
    Ok(target.join("release").join(format!("backstop{EXE_SUFFIX}")))
}

/// The interpreter of a virtual environment under `home` that has `module`; the newest of `packages` where it is made.
fn install(home: &Path, module: &str, packages: &[&str]) -> Result<PathBuf> {
    let venv = home.join(format!("venv-{module}"));
    let python = venv.join("bin/python");
    let has = |python: &Path| quiet(Command::new(python).args(["-c", &format!("import {module}")])).is_ok();
    if !python.exists() || !has(&python) {
        fs::create_dir_all(home).with_context(|| format!("creating {}", home.display()))?;
        eprintln!("peers: installing {} into {}", packages.join(" "), venv.display());
        quiet(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--upgrade"]).args(packages);
        quiet(pip.env("CMAKE_ARGS", "-DGGML_NATIVE=ON"))?;
        ensure!(has(&python), "{} cannot import {module} after its installation", python.display());
    }
    Ok(python)
}

/// A random model, made unless it is there.
fn model(models: &Path, shape: &str, kind: &str) -> Result<PathBuf> {
    let ending = if is_directory(kind) { "" } else { ".gguf" };
    let path = models.join(format!("{shape}-{kind}{ending}"));
    // What is there is whole: it is made beside its place and renamed.
    if !path.exists() {
        fs::create_dir_all(models).with_context(|| format!("creating {}", models.display()))?;
        eprintln!("peers: making {}", path.display());
        random_model::write(shape, kind, &path)?;
    }
    Ok(path)
}

/// The models of the programs.
#[derive(Clone, Copy)]
struct Paths<'a> {
    own: &'a Path,
    llama: &'a Path,
    transformers: Option<&'a Path>,
}

/// What every program measured, by its name, a value for each round.
fn rounds(
    programs: &Programs,
    options: &Options,
    models: Paths<'_>,
    threads: usize,
) -> Result<BTreeMap<&'static str, Vec<Measured>>> {
    let own = models.own;
    let lengths = |command: &mut Command, prompt: usize, generate: usize| {
        command.args(["--depth", &options.depth.to_string()]);
        command.args(["--prompt", &prompt.to_string(), "--generate", &generate.to_string()]);
    };
    let threads_text = threads.to_string();
    let most = options.threads.iter().max() == Some(&threads);
    let mut measured = BTreeMap::<&'static str, Vec<Measured>>::new();
    for round in 0..options.rounds.get() {
        eprintln!("peers: {}, {threads} threads, round {} of {}", own.display(), round + 1, options.rounds);
        let mut command = Command::new(&programs.backstop);
        command.args(["bench", "--json", "--reps", "1", "--backend", "cpu", "--threads", &threads_text]);
        command.arg("--model").arg(own);
        lengths(&mut command, options.prompt.get(), options.generate.get());
        measured.entry(OWN).or_default().push(Measured::own(&answer(&mut command)?)?);
        for (name, repack) in [("llama.cpp", None), ("llama.cpp, not repacked", Some("--no-repack"))] {
            let mut command = Command::new(&programs.llama);
            command.arg(programs.tools.join("llama_cpp_bench.py")).arg(models.llama).args(repack);
            command.args(["--threads", &threads_text]);
            lengths(&mut command, options.prompt.get(), options.generate.get());
            measured.entry(name).or_default().push(Measured::peer(&answer(&mut command)?)?);
        }
        // MLX takes the threads that it takes.
        if let Some(python) = &programs.mlx
            && own.is_dir()
            && most
        {
            let gpu = cfg!(all(target_os = "macos", target_arch = "aarch64"));
            let (prompt, generate) =
                if gpu { (options.prompt.get(), options.generate.get()) } else { MLX_ON_CPU };
            let mut command = Command::new(python);
            command.arg(programs.tools.join("mlx_lm_bench.py")).arg(own);
            lengths(&mut command, prompt, generate);
            measured.entry("mlx-lm").or_default().push(Measured::peer(&answer(&mut command)?)?);
        }
        if let (Some(python), Some(model)) = (&programs.transformers, models.transformers) {
            let mut command = Command::new(python);
            command.arg(programs.tools.join("transformers_bench.py")).arg(model);
            command.args(["--threads", &threads_text]);
            lengths(&mut command, options.prompt.get(), options.generate.get());
            measured.entry("transformers").or_default().push(Measured::peer(&answer(&mut command)?)?);
        }
    }
    Ok(measured)
}

/// The JSON that a command prints in its last line.
fn answer(command: &mut Command) -> Result<Value> {
    let output = quiet(command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().with_context(|| format!("`{}` is silent", shown(command)))?;
    serde_json::from_str(line).with_context(|| format!("`{}` printed {line}", shown(command)))
}

const OWN: &str = "backstop";

/// A row for each peer: medians, and the medians of the rounds' ratios.
fn compared(
    shape: &str,
    name: &str,
    threads: usize,
    measured: &BTreeMap<&'static str, Vec<Measured>>,
) -> Vec<Value> {
    let Some(own) = measured.get(OWN) else { return Vec::new() };
    let of = |runs: &[Measured], value: fn(&Measured) -> f64| median(runs.iter().map(value));
    let peers = measured.iter().filter(|(peer, _)| **peer != OWN);
    let rows = peers.map(|(peer, theirs)| {
        let ratio = |value: fn(&Measured) -> f64| {
            median(own.iter().zip(theirs).map(|(own, theirs)| value(own) / value(theirs)))
        };
        json!({
            "shape": shape, "type": name, "threads": threads, "peer": peer,
            "prompt_ratio": ratio(|of| of.prompt), "generation_ratio": ratio(|of| of.generation),
            "prompt": of(own, |of| of.prompt), "generation": of(own, |of| of.generation),
            "peer_prompt": of(theirs, |of| of.prompt), "peer_generation": of(theirs, |of| of.generation),
            "bandwidth": of(own, |of| of.bandwidth),
            "load": of(own, |of| of.load), "peer_load": of(theirs, |of| of.load),
            "peak_memory_bytes": of(own, |of| of.memory), "peer_peak_memory_bytes": of(theirs, |of| of.memory),
        })
    });
    rows.collect()
}

/// Between the two in the middle, their mean.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    (values[last / 2] + values[last.div_ceil(2)]) / 2.0
}

fn table(rows: &[Value]) -> String {
    let mut lines = vec![
        "| shape | type | threads | peer | prompt, tok/s | peer's | ratio | generation, tok/s | peer's | ratio | of bandwidth \
         | load, s | peer's | memory, MB | peer's |"
            .to_owned(),
        format!("|{}", "---|".repeat(15)),
    ];
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default();
        let number = |name: &str| row[name].as_f64().unwrap_or_default();
        lines.push(format!(
            "| {} | {} | {} | {} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} % | {:.2} | {:.2} | {:.0} | {:.0} |",
            text("shape"),
            text("type"),
            row["threads"],
            text("peer"),
            number("prompt"),
            number("peer_prompt"),
            number("prompt_ratio"),
            number("generation"),
            number("peer_generation"),
            number("generation_ratio"),
            100.0 * number("bandwidth"),
            number("load"),
            number("peer_load"),
            number("peak_memory_bytes") / 1e6,
            number("peer_peak_memory_bytes") / 1e6,
        ));
    }
    lines.join("\n")
}

/// Which releases were measured.
fn versions(programs: &Programs) -> Result<Value> {
    let of = |python: &Path, package: &str| {
        let code = format!("import importlib.metadata as m; print(m.version('{package}'))");
        first_line(Command::new(python).args(["-c", &code]))
    };
    let mut versions = json!({ "llama-cpp-python": of(&programs.llama, "llama-cpp-python")? });
    if let Some(python) = &programs.transformers {
        versions["transformers"] = of(python, "transformers")?.into();
        versions["torch"] = of(python, "torch")?.into();
    }
    if let Some(python) = &programs.mlx {
        versions["mlx-lm"] = of(python, "mlx-lm")?.into();
        versions["mlx"] = of(python, "mlx")?.into();
    }
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn measured(prompt: f64, generation: f64) -> Measured {
        Measured { prompt, generation, load: 1.0, memory: 1e6, bandwidth: 0.5 }
    }

    #[test]
    fn ratios_are_medians_of_the_rounds() {
        let own = vec![measured(10.0, 8.0), measured(30.0, 8.0), measured(20.0, 8.0)];
        let theirs = vec![measured(10.0, 2.0), measured(10.0, 4.0), measured(5.0, 8.0)];
        let rows = compared("tiny", "q4_0", 2, &BTreeMap::from([(OWN, own), ("llama.cpp", theirs)]));
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!(
            (&row["shape"], &row["type"], &row["threads"]),
            (&"tiny".into(), &"q4_0".into(), &2.into())
        );
        assert_eq!((&row["peer"], &row["prompt_ratio"]), (&"llama.cpp".into(), &3.0.into()));
        assert_eq!((&row["generation_ratio"], &row["prompt"]), (&2.0.into(), &20.0.into()));
        assert!(table(&rows).contains("| llama.cpp | 20.0 | 10.0 | 3.00 | 8.00 | 4.00 | 2.00 | 50 % |"));
    }

    #[test]
    fn options_are_checked() {
        #[derive(clap::Parser)]
        struct Args {
            #[command(flatten)]
            options: Options,
        }
        let parse =
            |line: &str| Args::try_parse_from(std::iter::once("peers").chain(line.split_whitespace()));
        let options = parse("--types q4_0,mlx8 --threads 1,3 --rounds 2 --json").unwrap().options;
        assert_eq!((options.types, options.threads), (vec!["q4_0".to_owned(), "mlx8".into()], vec![1, 3]));
        assert!(options.json && !options.no_mlx && !options.no_transformers && options.rounds.get() == 2);
        let options = parse("").unwrap().options;
        assert_eq!((options.shapes.len(), options.types.len(), options.threads), (3, COMMON, vec![1, 2]));
        let options = parse("--clients 8 --types gguf-mxfp4 --llama-server x").unwrap().options;
        assert_eq!(options.clients.map(NonZeroUsize::get), Some(8));
        for wrong in [
            "--types q3",
            "--rounds 0",
            "--threads x",
            "--depth",
            "--what 1",
            "--clients 0",
            "--clients 2 --depth 8",
            "--llama-server x",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
