//! Random weights of real shapes, as Hugging Face or MLX directories or GGUF files: for speed and memory, since no weights
//! can be downloaded everywhere. The same name and type give the same bytes.

mod gguf;
mod mlx;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// A real model's shape; all of them tie their embeddings.
struct Shape {
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
}

#[rustfmt::skip]
const SHAPES: [Shape; 4] = [
    Shape { name: "llama-1b", model_type: "llama", hidden: 2048, layers: 16, heads: 32, kv_heads: 8, head_dim: 64,
            ffn: 8192, vocab: 128_256, qkv_bias: false, theta: 500_000.0 },
    Shape { name: "qwen2.5-0.5b", model_type: "qwen2", hidden: 896, layers: 24, heads: 14, kv_heads: 2, head_dim: 64,
            ffn: 4864, vocab: 151_936, qkv_bias: true, theta: 1e6 },
    Shape { name: "smollm2-135m", model_type: "llama", hidden: 576, layers: 30, heads: 9, kv_heads: 3, head_dim: 64,
            ffn: 1536, vocab: 49_152, qkv_bias: false, theta: 100_000.0 },
    Shape { name: "tiny", model_type: "llama", hidden: 64, layers: 4, heads: 4, kv_heads: 2, head_dim: 16,
            ffn: 160, vocab: 512, qkv_bias: false, theta: 10_000.0 },
];

/// The shapes' names, for the usage text.
pub fn names() -> String {
    SHAPES.map(|shape| shape.name).join(", ")
}

/// `SHAPE TYPE PATH`: writes the directory, or the GGUF file, `PATH`.
pub fn run(args: &[String]) -> Result<()> {
    let [name, kind, path] = args else {
        bail!(
            "usage: cargo xtask random-model SHAPE TYPE PATH, SHAPE one of {}, TYPE one of {}",
            names(),
            types()
        );
    };
    write(name, kind, Path::new(path))
}

/// The types' names.
fn types() -> String {
    let gguf = gguf::FileType::ALL.map(|(name, _)| name);
    let directories = DIRECTORIES.join(", ");
    format!("{directories} (directories), {} (GGUF files)", gguf.join(", "))
}

const DIRECTORIES: [&str; 5] = ["f32", "f16", "bf16", "mlx4", "mlx8"];

/// Writes the model of shape `name` in the type `kind` to `path`.
pub fn write(name: &str, kind: &str, path: &Path) -> Result<()> {
    let Some(shape) = SHAPES.iter().find(|shape| shape.name == name) else {
        bail!("no shape is called {name}: one of {}", names());
    };
    if let Some((_, file_type)) = gguf::FileType::ALL.into_iter().find(|(name, _)| *name == kind) {
        return gguf::write(shape, file_type, path);
    }
    if !DIRECTORIES.contains(&kind) {
        bail!("no type is called {kind}: {}", types());
    }
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    match kind {
        "mlx4" => mlx::write(shape, 4, path),
        "mlx8" => mlx::write(shape, 8, path),
        dtype => dense(shape, dtype, path),
    }
}

/// `config.json` with weights of type `dtype` in PyTorch's name.
fn config(shape: &Shape, dtype: &str) -> Value {
    json!({
        "architectures": [if shape.model_type == "qwen2" { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" }],
        "model_type": shape.model_type, "hidden_size": shape.hidden, "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "vocab_size": shape.vocab,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": shape.theta, "hidden_act": "silu",
        "tie_word_embeddings": true, "torch_dtype": dtype, "bos_token_id": 1, "eos_token_id": 2,
        "attention_bias": false, "mlp_bias": false,
    })
}

fn dense(shape: &Shape, dtype: &str, dir: &Path) -> Result<()> {
    let (size, long) = match dtype {
        "f32" => (4, "float32"),
        "f16" => (2, "float16"),
        _ => (2, "bfloat16"),
    };
    let config = config(shape, long);
    fs::write(dir.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    let tensors = tensors(shape);
    let upper = dtype.to_uppercase();
    let table: Vec<_> = (tensors.iter())
        .map(|(name, dims)| (name.as_str(), upper.as_str(), &dims[..], dims.iter().product::<usize>() * size))
        .collect();
    let path = dir.join("model.safetensors");
    save(&path, |file| {
        write_header(file, &table)?;
        let mut random = Random::new();
        for (name, dims) in &tensors {
            let norm = name.ends_with("norm.weight");
            // Rows of a product keep the size of what they multiply.
            let spread = if norm { 0.1 } else { 1.0 / (*dims.last().unwrap_or(&1) as f32).sqrt() };
            for _ in 0..dims.iter().product::<usize>() {
                // A uniform number of variance 1.
                let unit = (random.next() >> 40) as f32 / (1 << 24) as f32;
                let value = (unit - 0.5) * 12.0_f32.sqrt() * spread + if norm { 1.0 } else { 0.0 };
                match dtype {
                    "f32" => file.write_all(&value.to_le_bytes())?,
                    "bf16" => file.write_all(&bf16(value).to_le_bytes())?,
                    _ => file.write_all(&f16(value).to_le_bytes())?,
                }
            }
        }
        Ok(())
    })?;
    let size: usize = table.iter().map(|of| of.3).sum();
    eprintln!("{}: {} tensors of {:.0} MB", path.display(), tensors.len(), size as f64 / 1e6);
    Ok(())
}

/// Writes the file `path` under another name, and renames it once it is whole.
fn save(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let file = File::create(partial).with_context(|| format!("creating {}", partial.display()))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    write(&mut file)?;
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(partial, path).with_context(|| format!("creating {}", path.display()))
}

/// The header of a safetensors file with tensors `(name, dtype, shape, bytes)` one after the other.
fn write_header(file: &mut impl Write, tensors: &[(&str, &str, &[usize], usize)]) -> Result<()> {
    let mut header = Map::new();
    let mut offset = 0;
    for &(name, dtype, shape, bytes) in tensors {
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [offset, offset + bytes] });
        header.insert(name.to_owned(), entry);
        offset += bytes;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    Ok(file.write_all(&header)?)
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
fn tensors(shape: &Shape) -> Vec<(String, Vec<usize>)> {
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
        push("mlp.gate_proj.weight", vec![ffn, hidden]);
        push("mlp.up_proj.weight", vec![ffn, hidden]);
        push("mlp.down_proj.weight", vec![hidden, ffn]);
    }
    all.push(("model.norm.weight".to_owned(), vec![hidden]));
    all
}

/// Rounded to nearest even; the values here are finite.
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Rounded to nearest (ties up); the values here are of the size of normal halves or flushed to zero.
fn f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let exponent = ((bits >> 23) & 0xff) as i32 - 127;
    if exponent < -14 {
        return sign;
    }
    let rounded = (bits & 0x7fff_ffff) + 0x1000;
    sign | (((rounded >> 13) - (112 << 10)) as u16)
}
