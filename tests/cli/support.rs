//! Running the binary, and a model to run it on.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use backstop::{LoadOptions, Model, ModelFiles, Options, SamplingOptions};
use serde_json::Value;

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

pub fn greedy(max_tokens: usize) -> Options {
    Options { max_tokens: Some(max_tokens), sampling: SamplingOptions::default(), ..Options::default() }
}

/// A model with a chat template: the fixture `chatml`'s tokenizer, and weights that are noise. It never ends by
/// itself.
pub struct Noise(pub tempfile::TempDir);

impl Noise {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(fixture("text/chatml").join(file), dir.path().join(file)).unwrap();
        }
        let config = r#"{"model_type": "llama", "vocab_size": 305, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "max_position_embeddings": 200000, "bos_token_id": null, "eos_token_id": null}"#;
        fs::write(dir.path().join("config.json"), config).unwrap();
        let layer = |name: &str| format!("model.layers.0.{name}.weight");
        let tensors = [
            ("model.embed_tokens.weight".to_owned(), vec![305, 32]),
            (layer("input_layernorm"), vec![32]),
            (layer("self_attn.q_proj"), vec![32, 32]),
            (layer("self_attn.k_proj"), vec![16, 32]),
            (layer("self_attn.v_proj"), vec![16, 32]),
            (layer("self_attn.o_proj"), vec![32, 32]),
            (layer("post_attention_layernorm"), vec![32]),
            (layer("mlp.gate_proj"), vec![48, 32]),
            (layer("mlp.up_proj"), vec![48, 32]),
            (layer("mlp.down_proj"), vec![32, 48]),
            ("model.norm.weight".to_owned(), vec![32]),
            ("lm_head.weight".to_owned(), vec![305, 32]),
        ];
        let (mut file, bytes) = header("F32", 4, &tensors);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..bytes / 4 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let uniform = (state >> 40) as f32 / (1 << 24) as f32;
            file.extend((uniform - 0.5).to_le_bytes());
        }
        fs::write(dir.path().join("model.safetensors"), file).unwrap();
        Self(dir)
    }

    /// Without a chat template.
    pub fn plain() -> Self {
        let noise = Self::new();
        fs::remove_file(noise.0.path().join("tokenizer_config.json")).unwrap();
        noise
    }

    pub fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    pub fn load(&self) -> Model {
        Model::load_with(ModelFiles::open(self.0.path()).unwrap(), LoadOptions::default()).unwrap()
    }
}

/// The header of a safetensors file, and the bytes of data that must follow it.
pub fn header(dtype: &str, size: usize, tensors: &[(String, Vec<usize>)]) -> (Vec<u8>, usize) {
    let mut end = 0;
    let entries = tensors.iter().map(|(name, shape)| {
        let start = end;
        end += size * shape.iter().product::<usize>();
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
    });
    let mut text = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    while text.len() % 8 != 0 {
        text.push(' ');
    }
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text.as_bytes());
    (file, end)
}
