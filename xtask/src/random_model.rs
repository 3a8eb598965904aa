//! Random weights of real shapes, as Hugging Face directories: for speed and memory, since no weights can be downloaded
//! everywhere. The same name and type give the same bytes.

use std::fs;
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

/// `SHAPE TYPE DIR`: writes the directory `DIR`.
pub fn run(args: &[String]) -> Result<()> {
    let [name, dtype, dir] = args else {
        bail!("usage: cargo xtask random-model SHAPE f32|f16|bf16 DIR, SHAPE one of {}", names());
    };
    let Some(shape) = SHAPES.iter().find(|shape| shape.name == name) else {
        bail!("no shape is called {name}: one of {}", names());
    };
    let size = match dtype.as_str() {
        "f32" => 4,
        "f16" | "bf16" => 2,
        _ => bail!("no type is called {dtype}: f32, f16 or bf16"),
    };
    let dir = Path::new(dir);
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let long = match dtype.as_str() {
        "f32" => "float32",
        "f16" => "float16",
        _ => "bfloat16",
    };
    let config = json!({
        "architectures": [if shape.model_type == "qwen2" { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" }],
        "model_type": shape.model_type, "hidden_size": shape.hidden, "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "vocab_size": shape.vocab,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": shape.theta, "hidden_act": "silu",
        "tie_word_embeddings": true, "torch_dtype": long, "bos_token_id": 1, "eos_token_id": 2,
        "attention_bias": false, "mlp_bias": false,
    });
    fs::write(dir.join("config.json"), serde_json::to_string_pretty(&config)?)?;

    let tensors = tensors(shape);
    let mut header = Map::new();
    let mut offset = 0;
    for (name, dims) in &tensors {
        let bytes = dims.iter().product::<usize>() * size;
        let entry =
            json!({ "dtype": dtype.to_uppercase(), "shape": dims, "data_offsets": [offset, offset + bytes] });
        header.insert(name.clone(), entry);
        offset += bytes;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let path = dir.join("model.safetensors");
    let partial = dir.join("model.safetensors.partial");
    let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(&partial)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (name, dims) in &tensors {
        let norm = name.ends_with("norm.weight");
        // Rows of a product keep the size of what they multiply.
        let spread = if norm { 0.1 } else { 1.0 / (*dims.last().unwrap_or(&1) as f32).sqrt() };
        for _ in 0..dims.iter().product::<usize>() {
            // xorshift64*, its upper half as a uniform number of variance 1.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let unit = (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1 << 24) as f32;
            let value = (unit - 0.5) * 12.0_f32.sqrt() * spread + if norm { 1.0 } else { 0.0 };
            match size {
                4 => file.write_all(&value.to_le_bytes())?,
                _ if dtype == "bf16" => file.write_all(&bf16(value).to_le_bytes())?,
                _ => file.write_all(&f16(value).to_le_bytes())?,
            }
        }
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&partial, &path)?;
    println!("{}: {} of {:.0} MB", path.display(), tensors.len(), offset as f64 / 1e6);
    Ok(())
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
