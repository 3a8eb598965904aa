//! Random weights of real shapes, as Hugging Face or MLX directories or GGUF files: for speed and memory, since no weights
//! can be downloaded everywhere. The same name and type give the same bytes.

mod gguf;
mod mlx;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use backstop::quant::write_floats;
use backstop::tensor::DType;
use backstop::weights::writers::safetensors::{Dtype, SHARD, Shards, Spec};
use backstop::weights::writers::{Output, write_through};
use clap::Parser;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

/// A real model's shape; all of them tie their embeddings.
#[derive(Debug)]
struct ModelShape {
    name: &'static str,
    model_type: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    /// Biases on the query, key and value projections.
    qkv_bias: bool,
    theta: f64,
    /// Experts in place of the MLP: how many, those that a token goes to, and their width.
    experts: Option<[usize; 3]>,
}

#[rustfmt::skip]
const SHAPES: [ModelShape; 6] = [
    ModelShape { name: "llama-1b", model_type: "llama", hidden: 2048, layers: 16, heads: 32, kv_heads: 8, head_dim: 64,
            ffn: 8192, vocab: 128_256, qkv_bias: false, theta: 500_000.0, experts: None },
    ModelShape { name: "qwen2.5-0.5b", model_type: "qwen2", hidden: 896, layers: 24, heads: 14, kv_heads: 2, head_dim: 64,
            ffn: 4864, vocab: 151_936, qkv_bias: true, theta: 1e6, experts: None },
    ModelShape { name: "smollm2-135m", model_type: "llama", hidden: 576, layers: 30, heads: 9, kv_heads: 3, head_dim: 64,
            ffn: 1536, vocab: 49_152, qkv_bias: false, theta: 100_000.0, experts: None },
    ModelShape { name: "tiny", model_type: "llama", hidden: 64, layers: 4, heads: 4, kv_heads: 2, head_dim: 16,
            ffn: 160, vocab: 512, qkv_bias: false, theta: 10_000.0, experts: None },
    // A sixth of the layers.
    ModelShape { name: "qwen3-30b-a3b-8", model_type: "qwen3_moe", hidden: 2048, layers: 8, heads: 32, kv_heads: 4, head_dim: 128,
            ffn: 6144, vocab: 151_936, qkv_bias: false, theta: 1e6, experts: Some([128, 8, 768]) },
    ModelShape { name: "tiny-moe", model_type: "qwen3_moe", hidden: 64, layers: 4, heads: 4, kv_heads: 2, head_dim: 16,
            ffn: 160, vocab: 512, qkv_bias: false, theta: 10_000.0, experts: Some([8, 2, 32]) },
];

/// What a model is written as.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A directory of weights in one type.
    Dense(DType),
    /// A directory of MLX's, in codes of so many bits.
    Mlx(usize),
    Gguf(gguf::FileType),
}

/// Every kind, by the name that it is asked for with.
fn kinds() -> impl Iterator<Item = (&'static str, Kind)> {
    let dense = [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];
    let dense = dense.map(|(name, dtype)| (name, Kind::Dense(dtype)));
    let mlx = [("mlx4", 4), ("mlx8", 8)].map(|(name, bits)| (name, Kind::Mlx(bits)));
    let gguf = gguf::FileType::ALL.map(|(name, of)| (name, Kind::Gguf(of)));
    dense.into_iter().chain(mlx).chain(gguf)
}

/// Random weights of a real shape.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask random-model")]
struct Args {
    #[arg(value_parser = PossibleValuesParser::new(SHAPES.map(|shape| shape.name)))]
    shape: String,
    #[arg(value_name = "TYPE", value_parser = PossibleValuesParser::new(kinds().map(|(name, _)| name)))]
    kind: String,
    /// The directory or the GGUF file; nothing may be there yet
    path: PathBuf,
}

fn main() -> ExitCode {
    let Args { shape, kind, path } = Args::parse();
    let shape = SHAPES.iter().find(|known| known.name == shape);
    let kind = kinds().find(|(name, _)| *name == kind);
    let (Some(shape), Some((_, kind))) = (shape, kind) else { unreachable!("clap takes no other names") };
    match write(shape, kind, &path) {
        Ok((tensors, bytes)) => {
            eprintln!("{}: {tensors} tensors of {:.0} MB", path.display(), bytes as f64 / 1e6);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the model to `path`, where nothing may be yet; the number of its tensors, and their bytes.
fn write(shape: &ModelShape, kind: Kind, path: &Path) -> Result<(usize, u64)> {
    let output = Output::create(path)?;
    let written = match kind {
        Kind::Gguf(of) => gguf::write(shape, of, &output.path())?,
        Kind::Dense(dtype) => dense(shape, dtype, &output.path())?,
        Kind::Mlx(bits) => mlx::write(shape, bits, &output.path())?,
    };
    output.commit()?;
    Ok(written)
}

/// `config.json` with weights of type `dtype` in PyTorch's name.
fn config(shape: &ModelShape, dtype: &str) -> Value {
    let architecture = match shape.model_type {
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3_moe" => "Qwen3MoeForCausalLM",
        _ => "LlamaForCausalLM",
    };
    let mut config = json!({
        "architectures": [architecture],
        "model_type": shape.model_type, "hidden_size": shape.hidden, "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "vocab_size": shape.vocab,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": shape.theta, "hidden_act": "silu",
        "tie_word_embeddings": true, "torch_dtype": dtype, "bos_token_id": 1, "eos_token_id": 2,
        "attention_bias": false, "mlp_bias": false,
    });
    if let Some([count, used, ffn]) = shape.experts {
        config["num_experts"] = count.into();
        config["num_experts_per_tok"] = used.into();
        config["moe_intermediate_size"] = ffn.into();
        config["norm_topk_prob"] = true.into();
    }
    config
}

/// Makes the directory `dir` with its `config.json` and the headers of its weights.
fn directory(dir: &Path, config: &Value, specs: Vec<Spec>) -> Result<Shards> {
    std::fs::create_dir(dir)?;
    write_through(&dir.join("config.json"), format!("{config:#}\n").as_bytes())?;
    Ok(Shards::create(dir, specs, SHARD)?)
}

fn dense(shape: &ModelShape, dtype: DType, dir: &Path) -> Result<(usize, u64)> {
    let (stored, long) = match dtype {
        DType::F32 => (Dtype::F32, "float32"),
        DType::F16 => (Dtype::F16, "float16"),
        DType::BF16 => (Dtype::BF16, "bfloat16"),
    };
    let tensors = each_expert(tensors(shape));
    let specs = tensors.iter().map(|(name, dims)| Spec {
        name: name.clone(),
        dtype: stored,
        shape: dims.as_slice().into(),
    });
    let mut shards = directory(dir, &config(shape, long), specs.collect())?;
    let mut random = Random::new();
    for (name, dims) in &tensors {
        let norm = name.ends_with("norm.weight");
        let columns = dims.last().copied().unwrap_or(1);
        // Rows of a product keep the size of what they multiply.
        let spread = if norm { 0.1 } else { 1.0 / (columns as f32).sqrt() };
        let (mut values, mut bytes) = (vec![0.0; columns], vec![0; columns * dtype.size()]);
        for row in 0..dims.iter().product::<usize>() / columns {
            for value in &mut values {
                // A uniform number of variance 1.
                let unit = (random.next() >> 40) as f32 / (1 << 24) as f32;
                *value = (unit - 0.5) * 12.0_f32.sqrt() * spread + if norm { 1.0 } else { 0.0 };
            }
            write_floats(dtype, &values, &mut bytes);
            shards.write(name, (row * bytes.len()) as u64, &bytes)?;
        }
    }
    let bytes = shards.total();
    shards.finish()?;
    Ok((tensors.len(), bytes))
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }
}

/// Names and shapes, in the order of the file.
fn tensors(shape: &ModelShape) -> Vec<(String, Vec<usize>)> {
    let (hidden, ffn) = (shape.hidden, shape.ffn);
    let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![shape.vocab, hidden])];
    for layer in 0..shape.layers {
        let mut push =
            |name: &str, dims: Vec<usize>| all.push((format!("model.layers.{layer}.{name}"), dims));
        push("input_layernorm.weight", vec![hidden]);
        for (name, rows) in [("q", width), ("k", kv_width), ("v", kv_width)] {
            push(&format!("self_attn.{name}_proj.weight"), vec![rows, hidden]);
            if shape.qkv_bias {
                push(&format!("self_attn.{name}_proj.bias"), vec![rows]);
            }
        }
        push("self_attn.o_proj.weight", vec![hidden, width]);
        push("post_attention_layernorm.weight", vec![hidden]);
        let Some([count, _, ffn]) = shape.experts else {
            push("mlp.gate_proj.weight", vec![ffn, hidden]);
            push("mlp.up_proj.weight", vec![ffn, hidden]);
            push("mlp.down_proj.weight", vec![hidden, ffn]);
            continue;
        };
        push("self_attn.q_norm.weight", vec![shape.head_dim]);
        push("self_attn.k_norm.weight", vec![shape.head_dim]);
        push("mlp.gate.weight", vec![count, hidden]);
        push("mlp.switch_mlp.gate_proj.weight", vec![count, ffn, hidden]);
        push("mlp.switch_mlp.up_proj.weight", vec![count, ffn, hidden]);
        push("mlp.switch_mlp.down_proj.weight", vec![count, hidden, ffn]);
    }
    all.push(("model.norm.weight".to_owned(), vec![hidden]));
    all
}

/// Stacks of experts as a tensor for each, as Hugging Face directories have them.
fn each_expert(tensors: Vec<(String, Vec<usize>)>) -> Vec<(String, Vec<usize>)> {
    let each = |(name, dims): (String, Vec<usize>)| match dims[..] {
        [count, rows, columns] => {
            let of = |expert| name.replace("switch_mlp", &format!("experts.{expert}"));
            (0..count).map(|expert| (of(expert), vec![rows, columns])).collect()
        }
        _ => vec![(name, dims)],
    };
    tensors.into_iter().flat_map(each).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    use backstop::ModelFiles;

    use super::*;

    /// The names and bytes of a file, or of a directory's files.
    fn files(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
        let paths: Vec<PathBuf> = match path.is_dir() {
            true => path.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect(),
            false => vec![path.to_owned()],
        };
        paths.iter().map(|path| (path.file_name().unwrap().into(), std::fs::read(path).unwrap())).collect()
    }

    /// Each kind is read back by the library, twice gives the same bytes, and nothing is overwritten.
    #[test]
    fn what_is_written_is_a_checkpoint() {
        let tiny = SHAPES.iter().filter(|shape| shape.name.starts_with("tiny"));
        for (tiny, (name, kind)) in tiny.flat_map(|tiny| kinds().map(move |kind| (tiny, kind))) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("model.gguf");
            let written = write(tiny, kind, &path).unwrap();
            let model = ModelFiles::open(&path).unwrap();
            if tiny.experts.is_none() {
                assert_eq!(model.checkpoint.tensors().count(), written.0, "{name}");
            }
            // Every weight is there.
            let options = backstop::LoadOptions { threads: Some(1), ..backstop::LoadOptions::default() };
            backstop::Model::load_with(ModelFiles::open(&path).unwrap(), options).unwrap();
            assert_eq!(model.config().num_hidden_layers, tiny.layers, "{name}");
            let one = files(&path);
            let again = write(tiny, kind, &path).unwrap_err().to_string();
            assert!(again.contains("exists"), "{again}");
            match path.is_dir() {
                true => std::fs::remove_dir_all(&path).unwrap(),
                false => std::fs::remove_file(&path).unwrap(),
            }
            assert_eq!(write(tiny, kind, &path).unwrap(), written, "{name}");
            assert!(files(&path) == one, "{name}: other bytes");
        }
    }
}
