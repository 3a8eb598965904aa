//! Running the binary, and a model to run it on.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use backstop::{Options, SamplingOptions};
use serde_json::Value;

#[path = "../support/noise.rs"]
mod noise;
pub use noise::{Noise, header};
#[path = "../support/signals.rs"]
mod signals;
pub use signals::{hangs_up, send, under_nohup};

pub const PROMPT: &str = "Once upon a time";

pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstop"));
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    hangs_up(&mut command);
    signals::without_models(&mut command);
    command
}

pub fn backstop(args: &[&str]) -> Ran {
    ended(command(args).spawn().unwrap())
}

pub fn backstop_with(stdin: impl AsRef<[u8]>, args: &[&str]) -> Ran {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    // A process that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_ref());
    ended(child)
}

pub fn ended(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs to success.
pub fn ok(args: &[&str]) -> Ran {
    let ran = backstop(args);
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
    ran
}

/// Runs to an error that is the one line `expected` of the whole stderr.
pub fn refused(args: &[&str], code: i32, expected: &str) {
    let ran = backstop(args);
    assert_eq!((ran.err.trim_end(), ran.code, ran.out.as_str()), (expected, Some(code), ""), "{args:?}");
}

pub fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {}", ran.out))
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The built-in model's files as a model that was downloaded into the Hugging Face cache `hub`.
pub fn cached(hub: &Path, folder: &str) {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = hub.join(folder);
    let snapshot = repository.join("snapshots").join(commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories").join(name);
        std::fs::copy(from, snapshot.join(name)).unwrap();
    }
}

pub fn greedy(max_tokens: usize) -> Options {
    Options { max_tokens: Some(max_tokens), sampling: SamplingOptions::default(), ..Options::default() }
}

/// A model whose weights are mostly holes of a file, of which 500 MB are read where they are not mapped.
#[cfg(target_os = "linux")]
pub struct Wide {
    noise: Noise,
    /// Its size, as a person is told.
    pub size: String,
}

#[cfg(target_os = "linux")]
impl Wide {
    pub fn new() -> Self {
        Self::of(1_400_000)
    }

    /// With so many columns in the middle, of 384 bytes each.
    pub fn of(wide: usize) -> Self {
        let noise = Noise::new();
        let dir = noise.0.path();
        let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let config = config.replace("\"intermediate_size\": 48", &format!("\"intermediate_size\": {wide}"));
        std::fs::write(dir.join("config.json"), config).unwrap();
        let layer = |name: &str| format!("model.layers.0.{name}.weight");
        let tensors = [
            ("model.embed_tokens.weight".to_owned(), vec![305, 32]),
            (layer("input_layernorm"), vec![32]),
            (layer("self_attn.q_proj"), vec![32, 32]),
            (layer("self_attn.k_proj"), vec![16, 32]),
            (layer("self_attn.v_proj"), vec![16, 32]),
            (layer("self_attn.o_proj"), vec![32, 32]),
            (layer("post_attention_layernorm"), vec![32]),
            (layer("mlp.gate_proj"), vec![wide, 32]),
            (layer("mlp.up_proj"), vec![wide, 32]),
            (layer("mlp.down_proj"), vec![32, wide]),
            ("model.norm.weight".to_owned(), vec![32]),
            ("lm_head.weight".to_owned(), vec![305, 32]),
        ];
        let (head, bytes) = header("F32", 4, &tensors);
        let path = dir.join("model.safetensors");
        std::fs::write(&path, &head).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len((head.len() + bytes) as u64).unwrap();
        Self { noise, size: backstop::backend::select::Bytes(bytes as u64).to_string() }
    }

    pub fn path(&self) -> &str {
        self.noise.path()
    }
}

/// Bytes of memory that a process has.
#[cfg(target_os = "linux")]
pub fn resident(child: &Child) -> Option<usize> {
    let told = std::fs::read_to_string(format!("/proc/{}/statm", child.id())).ok()?;
    let pages: usize = told.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size())
}
