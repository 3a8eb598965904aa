//! GGUF files of random blocks: the tensor types that llama.cpp's own converter would choose, and a vocabulary of the
//! right size, so that llama.cpp loads them too.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Result, ensure};

use super::{Random, Shape, bf16, f16, save};

/// Where tensors begin and at what their offsets are multiples, the format's default.
const ALIGNMENT: usize = 32;
/// Elements of a super-block: rows of other lengths take an older type.
const SUPER_BLOCK: usize = 256;

/// The types of a file, by the names that llama.cpp gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    F16,
    Bf16,
    Q4_0,
    Q8_0,
    Q4KM,
}

impl FileType {
    pub const ALL: [(&str, Self); 5] = [
        ("gguf-f16", Self::F16),
        ("gguf-bf16", Self::Bf16),
        ("q4_0", Self::Q4_0),
        ("q8_0", Self::Q8_0),
        ("q4_k_m", Self::Q4KM),
    ];

    /// `general.file_type`.
    fn number(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Bf16 => 32,
        }
    }
}

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q5_0,
    Q8_0,
    Q4K,
    Q6K,
}

impl Block {
    /// The type's number in the file, the elements of a block and its bytes.
    fn layout(self) -> (u32, usize, usize) {
        match self {
            Self::F32 => (0, 1, 4),
            Self::F16 => (1, 1, 2),
            Self::Bf16 => (30, 1, 2),
            Self::Q4_0 => (2, 32, 18),
            Self::Q5_0 => (6, 32, 22),
            Self::Q8_0 => (8, 32, 34),
            Self::Q4K => (12, 256, 144),
            Self::Q6K => (14, 256, 210),
        }
    }

    /// Overwrites the random bytes of a row of `columns` elements where not every value is a sensible one: with scales, so
    /// that products keep the size of what the row multiplies.
    fn settle(self, row: &mut [u8], columns: usize) {
        let deviation = 1.0 / (columns as f32).sqrt();
        // Uniform codes of ±`most` times a scale have a deviation of most / √3 scales.
        let scale = |most: f32| f16(3.0_f32.sqrt() / most * deviation).to_le_bytes();
        let blocks = row.chunks_exact_mut(self.layout().2);
        match self {
            Self::F32 => {}
            // Sign and mantissa are random; the exponent is that of half the deviation.
            Self::F16 => {
                let exponent = f16(0.5 * deviation).to_le_bytes()[1] & 0x7c;
                blocks.for_each(|block| block[1] = block[1] & 0x83 | exponent);
            }
            Self::Bf16 => {
                let [low, high] = bf16(0.5 * deviation).to_le_bytes();
                blocks.for_each(|block| {
                    block[0] = block[0] & 0x7f | low & 0x80;
                    block[1] = block[1] & 0x80 | high & 0x7f;
                });
            }
            Self::Q4_0 => blocks.for_each(|block| block[..2].copy_from_slice(&scale(8.0))),
            Self::Q5_0 => blocks.for_each(|block| block[..2].copy_from_slice(&scale(16.0))),
            Self::Q8_0 => blocks.for_each(|block| block[..2].copy_from_slice(&scale(128.0))),
            // Sub-blocks have 6-bit scales and minimums, 31.5 on average; the minimums take what codes are on average, 7.5.
            Self::Q4K => blocks.for_each(|block| {
                block[..2].copy_from_slice(&scale(8.0 * 32.0));
                block[2..4].copy_from_slice(&scale(8.0 * 32.0 / 7.5));
            }),
            // Sub-blocks have 8-bit scales of either sign.
            Self::Q6K => blocks.for_each(|block| block[208..].copy_from_slice(&scale(32.0 * 64.0))),
        }
    }
}

struct Tensor {
    name: String,
    /// Outermost first.
    shape: Vec<usize>,
    block: Block,
}

impl Tensor {
    fn bytes(&self) -> usize {
        let (_, elements, bytes) = self.block.layout();
        self.shape.iter().product::<usize>() / elements * bytes
    }
}

/// Writes `shape` to the file `path`.
pub fn write(shape: &Shape, file_type: FileType, path: &Path) -> Result<()> {
    let tensors = tensors(shape, file_type);
    for tensor in &tensors {
        let (_, elements, _) = tensor.block.layout();
        let columns = tensor.shape[tensor.shape.len() - 1];
        ensure!(
            columns % elements == 0,
            "{} of {}: rows of {columns} have no whole blocks of {elements}",
            tensor.name,
            shape.name
        );
    }
    let header = header(shape, file_type, &tensors);
    let size: usize = tensors.iter().map(|tensor| tensor.bytes().next_multiple_of(ALIGNMENT)).sum();
    save(path, |file| {
        file.write_all(&header)?;
        let mut random = Random::new();
        tensors.iter().try_for_each(|tensor| data(file, tensor, &mut random))
    })?;
    eprintln!("{}: {} tensors of {:.0} MB", path.display(), tensors.len(), size as f64 / 1e6);
    Ok(())
}

/// The bytes of a tensor, up to where the next begins.
fn data(file: &mut BufWriter<File>, tensor: &Tensor, random: &mut Random) -> Result<()> {
    let (_, elements, bytes) = tensor.block.layout();
    let columns = tensor.shape[tensor.shape.len() - 1];
    let norm = tensor.block == Block::F32;
    let mut row = vec![0; columns / elements * bytes];
    for _ in 0..tensor.shape.iter().product::<usize>() / columns {
        if norm {
            for (i, value) in row.chunks_exact_mut(4).enumerate() {
                value.copy_from_slice(&(0.9 + 0.2 * (i % 7) as f32 / 6.0).to_le_bytes());
            }
        } else {
            random.fill(&mut row);
            tensor.block.settle(&mut row, columns);
        }
        file.write_all(&row)?;
    }
    let written = tensor.bytes();
    file.write_all(&vec![0; written.next_multiple_of(ALIGNMENT) - written])?;
    Ok(())
}

/// Metadata and the table of tensors, padded to where the tensors begin.
fn header(shape: &Shape, file_type: FileType, tensors: &[Tensor]) -> Vec<u8> {
    let mut keys = Keys::default();
    let architecture = shape.model_type;
    let key = |name: &str| format!("{architecture}.{name}");
    keys.string("general.architecture", architecture);
    keys.string("general.name", shape.name);
    keys.u32("general.file_type", file_type.number());
    keys.u32(&key("context_length"), 8192);
    keys.u32(&key("embedding_length"), shape.hidden as u32);
    keys.u32(&key("block_count"), shape.layers as u32);
    keys.u32(&key("feed_forward_length"), shape.ffn as u32);
    keys.u32(&key("attention.head_count"), shape.heads as u32);
    keys.u32(&key("attention.head_count_kv"), shape.kv_heads as u32);
    keys.f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    keys.f32(&key("rope.freq_base"), shape.theta as f32);
    keys.u32(&key("rope.dimension_count"), shape.head_dim as u32);
    keys.u32(&key("vocab_size"), shape.vocab as u32);
    vocabulary(&mut keys, shape.vocab);

    let mut header = b"GGUF".to_vec();
    header.extend(3_u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(keys.count.to_le_bytes());
    header.extend(keys.bytes);
    let mut offset = 0;
    for tensor in tensors {
        put_string(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&dim| header.extend((dim as u64).to_le_bytes()));
        header.extend(tensor.block.layout().0.to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    header
}

/// A byte-level BPE vocabulary of `size` tokens: the 256 bytes, merges of what is there already, two control tokens. Merges are of
/// ASCII alone, so that nearly all tokens are whole characters: a server holds back what may be a part of one.
fn vocabulary(keys: &mut Keys, size: usize) {
    // Bytes as printable characters, as GPT-2 has them: the others follow from U+0100 on.
    let mut next = 0x100;
    let mut tokens: Vec<String> = (0..=255_u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte).to_string(),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap_or_default().to_string()
            }
        })
        .collect();
    let mut merges = Vec::new();
    let letters: Vec<usize> = (b'!'..=b'~').map(usize::from).collect();
    while tokens.len() < size - 2 {
        // Every text before it, followed by each letter: no text is made twice.
        let (first, second) = (merges.len() / letters.len(), letters[merges.len() % letters.len()]);
        let first = letters.get(first).copied().unwrap_or_else(|| 256 + first - letters.len());
        merges.push(format!("{} {}", tokens[first], tokens[second]));
        tokens.push(format!("{}{}", tokens[first], tokens[second]));
    }
    tokens.extend(["<|begin|>", "<|end|>"].map(str::to_owned));
    // 1 is text, 3 control.
    let kinds: Vec<i32> = (0..size).map(|id| if id < size - 2 { 1 } else { 3 }).collect();
    keys.string("tokenizer.ggml.model", "gpt2");
    keys.string("tokenizer.ggml.pre", "llama-bpe");
    keys.strings("tokenizer.ggml.tokens", &tokens);
    keys.i32s("tokenizer.ggml.token_type", &kinds);
    keys.strings("tokenizer.ggml.merges", &merges);
    keys.u32("tokenizer.ggml.bos_token_id", size as u32 - 2);
    keys.u32("tokenizer.ggml.eos_token_id", size as u32 - 1);
}

/// Metadata in the file's form.
#[derive(Default)]
struct Keys {
    count: u64,
    bytes: Vec<u8>,
}

impl Keys {
    const U32: u32 = 4;
    const I32: u32 = 5;
    const F32: u32 = 6;
    const STRING: u32 = 8;
    const ARRAY: u32 = 9;

    fn key(&mut self, name: &str, kind: u32) {
        self.count += 1;
        put_string(&mut self.bytes, name);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn array(&mut self, name: &str, kind: u32, len: usize) {
        self.key(name, Self::ARRAY);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }

    fn string(&mut self, name: &str, value: &str) {
        self.key(name, Self::STRING);
        put_string(&mut self.bytes, value);
    }

    fn u32(&mut self, name: &str, value: u32) {
        self.key(name, Self::U32);
        self.bytes.extend(value.to_le_bytes());
    }

    fn f32(&mut self, name: &str, value: f32) {
        self.key(name, Self::F32);
        self.bytes.extend(value.to_le_bytes());
    }

    fn strings(&mut self, name: &str, values: &[String]) {
        self.array(name, Self::STRING, values.len());
        values.iter().for_each(|value| put_string(&mut self.bytes, value));
    }

    fn i32s(&mut self, name: &str, values: &[i32]) {
        self.array(name, Self::I32, values.len());
        values.iter().for_each(|value| self.bytes.extend(value.to_le_bytes()));
    }
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// The tensors with the types of llama.cpp's `llama_tensor_get_type` for this file type and an embedding that is the head.
fn tensors(shape: &Shape, file_type: FileType) -> Vec<Tensor> {
    let (hidden, ffn) = (shape.hidden, shape.ffn);
    let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let mut all = Vec::new();
    let norm = |all: &mut Vec<Tensor>, name: String, len| {
        all.push(Tensor { name, shape: vec![len], block: Block::F32 })
    };
    let matrix = |all: &mut Vec<Tensor>, name: String, rows, columns: usize, finer| {
        let block = match (file_type, finer, columns.is_multiple_of(SUPER_BLOCK)) {
            (FileType::F16, ..) => Block::F16,
            (FileType::Bf16, ..) => Block::Bf16,
            (FileType::Q8_0, ..) => Block::Q8_0,
            (FileType::Q4_0, false, _) => Block::Q4_0,
            (FileType::Q4_0 | FileType::Q4KM, true, true) => Block::Q6K,
            (FileType::Q4_0 | FileType::Q4KM, true, false) => Block::Q8_0,
            (FileType::Q4KM, false, true) => Block::Q4K,
            (FileType::Q4KM, false, false) => Block::Q5_0,
        };
        all.push(Tensor { name, shape: vec![rows, columns], block });
    };
    matrix(&mut all, "token_embd.weight".to_owned(), shape.vocab, hidden, true);
    for layer in 0..shape.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        // `use_more_bits`: the first and the last eighth, and every third between.
        let eighth = shape.layers / 8;
        let important = layer < eighth || layer >= 7 * shape.layers / 8 || (layer - eighth) % 3 == 2;
        let finer = file_type == FileType::Q4KM && important;
        norm(&mut all, name("attn_norm.weight"), hidden);
        for (part, rows, finer) in [("q", width, false), ("k", kv_width, false), ("v", kv_width, finer)] {
            matrix(&mut all, name(&format!("attn_{part}.weight")), rows, hidden, finer);
            if shape.qkv_bias {
                norm(&mut all, name(&format!("attn_{part}.bias")), rows);
            }
        }
        matrix(&mut all, name("attn_output.weight"), hidden, width, false);
        norm(&mut all, name("ffn_norm.weight"), hidden);
        matrix(&mut all, name("ffn_gate.weight"), ffn, hidden, false);
        matrix(&mut all, name("ffn_up.weight"), ffn, hidden, false);
        matrix(&mut all, name("ffn_down.weight"), hidden, ffn, finer);
    }
    norm(&mut all, "output_norm.weight".to_owned(), hidden);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random_model::SHAPES;

    /// What llama.cpp's own conversion of such a model takes, metadata apart, in MB.
    #[test]
    fn sizes_are_those_of_llama_cpp() {
        let llama = SHAPES.iter().find(|shape| shape.name == "llama-1b").unwrap();
        for (file_type, expected) in
            [(FileType::Q4_0, 763), (FileType::Q4KM, 800), (FileType::Q8_0, 1313), (FileType::F16, 2472)]
        {
            let bytes: usize = tensors(llama, file_type).iter().map(Tensor::bytes).sum();
            assert_eq!((bytes + 500_000) / 1_000_000, expected, "{file_type:?}");
        }
    }

    #[test]
    fn rows_without_super_blocks_take_older_types() {
        let qwen = SHAPES.iter().find(|shape| shape.name == "qwen2.5-0.5b").unwrap();
        let tensors = tensors(qwen, FileType::Q4KM);
        let block = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap().block;
        assert_eq!(block("token_embd.weight"), Block::Q8_0);
        assert_eq!(block("blk.0.attn_v.weight"), Block::Q8_0);
        assert_eq!(block("blk.0.attn_q.weight"), Block::Q5_0);
        assert_eq!(
            [block("blk.0.ffn_down.weight"), block("blk.3.ffn_down.weight")],
            [Block::Q6K, Block::Q4K]
        );
    }

    #[test]
    fn a_file_is_as_long_as_its_header_says() {
        let tiny = SHAPES.iter().find(|shape| shape.name == "tiny").unwrap();
        for (name, file_type) in FileType::ALL {
            let path = std::env::temp_dir().join(format!("backstop-xtask-{}-{name}", std::process::id()));
            write(tiny, file_type, &path).unwrap();
            let file = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            let tensors = tensors(tiny, file_type);
            let header = header(tiny, file_type, &tensors);
            assert!(header.len().is_multiple_of(ALIGNMENT) && file.starts_with(&header));
            let bytes: usize = tensors.iter().map(|of| of.bytes().next_multiple_of(ALIGNMENT)).sum();
            assert_eq!(file.len(), header.len() + bytes, "{name}");
        }
    }
}
