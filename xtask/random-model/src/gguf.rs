//! GGUF files of random blocks: the tensor types that llama.cpp's own converter would choose, and a vocabulary of the
//! right size, so that llama.cpp loads them too.

use std::path::Path;

use anyhow::Result;
use backstop::quant::{GgmlType, write_floats};
use backstop::tensor::DType;
use backstop::weights::writers::gguf::{Entries, Spec, TensorType, Writer};
use half::{bf16, f16};

use super::{ModelShape, Random};

/// Elements of a super-block: rows of other lengths take an older type.
const SUPER_BLOCK: usize = GgmlType::Q4_K.block().0;

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

/// Overwrites the random bytes of a row of `columns` elements where not every value is a sensible one: with scales, so that
/// products keep the size of what the row multiplies.
fn settle(kind: TensorType, row: &mut [u8], columns: usize) {
    let deviation = 1.0 / (columns as f32).sqrt();
    // Uniform codes of ±`most` times a scale have a deviation of most / √3 scales.
    let scale = |most: f32| f16::from_f32(3.0_f32.sqrt() / most * deviation).to_le_bytes();
    let blocks = row.chunks_exact_mut(kind.block().1);
    match kind {
        // Sign and mantissa are random; the exponent is that of half the deviation.
        TensorType::Dense(DType::F16) => {
            let exponent = f16::from_f32(0.5 * deviation).to_le_bytes()[1] & 0x7c;
            blocks.for_each(|block| block[1] = block[1] & 0x83 | exponent);
        }
        TensorType::Dense(DType::BF16) => {
            let [low, high] = bf16::from_f32(0.5 * deviation).to_le_bytes();
            blocks.for_each(|block| {
                block[0] = block[0] & 0x7f | low & 0x80;
                block[1] = block[1] & 0x80 | high & 0x7f;
            });
        }
        // Codes of -8 become 0: with a mean of its own, every product would add to one direction, and all rows be alike.
        TensorType::Blocks(GgmlType::Q4_0) => blocks.for_each(|block| {
            block[..2].copy_from_slice(&scale(8.0));
            for byte in &mut block[2..] {
                let low = if *byte & 0x0f == 0 { 0x08 } else { 0 };
                *byte |= low | if *byte & 0xf0 == 0 { 0x80 } else { 0 };
            }
        }),
        TensorType::Blocks(GgmlType::Q5_0) => {
            blocks.for_each(|block| block[..2].copy_from_slice(&scale(16.0)))
        }
        TensorType::Blocks(GgmlType::Q8_0) => {
            blocks.for_each(|block| block[..2].copy_from_slice(&scale(128.0)))
        }
        // Sub-blocks have 6-bit scales and minimums, 31.5 on average; the minimums take what codes are on average, 7.5.
        TensorType::Blocks(GgmlType::Q4_K) => blocks.for_each(|block| {
            block[..2].copy_from_slice(&scale(8.0 * 32.0));
            block[2..4].copy_from_slice(&scale(8.0 * 32.0 / 7.5));
        }),
        // Sub-blocks have 8-bit scales of either sign.
        TensorType::Blocks(GgmlType::Q6_K) => {
            blocks.for_each(|block| block[208..].copy_from_slice(&scale(32.0 * 64.0)));
        }
        other => unreachable!("no matrix is written in {}", other.name()),
    }
}

/// Writes `shape` to the file `path`; the number of its tensors, and their bytes.
pub fn write(shape: &ModelShape, file_type: FileType, path: &Path) -> Result<(usize, u64)> {
    let tensors = tensors(shape, file_type);
    let mut writer = Writer::create(path, &entries(shape, file_type), &tensors)?;
    let mut random = Random::new();
    for Spec { kind, shape, .. } in &tensors {
        let columns = shape[shape.len() - 1];
        let (elements, bytes) = kind.block();
        let mut row = vec![0; columns / elements * bytes];
        for _ in 0..shape.iter().product::<usize>() / columns {
            if *kind == TensorType::Dense(DType::F32) && shape.len() == 2 {
                // A router: random numbers of variance 1, so that every expert is chosen as often.
                let unit = |random: &mut Random| (random.next() >> 40) as f32 / (1 << 24) as f32;
                let spread = (12.0 / columns as f32).sqrt();
                let values: Vec<f32> = (0..columns).map(|_| (unit(&mut random) - 0.5) * spread).collect();
                write_floats(DType::F32, &values, &mut row);
            } else if *kind == TensorType::Dense(DType::F32) {
                let values: Vec<f32> = (0..columns).map(|i| 0.9 + 0.2 * (i % 7) as f32 / 6.0).collect();
                write_floats(DType::F32, &values, &mut row);
            } else {
                random.fill(&mut row);
                settle(*kind, &mut row, columns);
            }
            writer.write(&row)?;
        }
    }
    let bytes = writer.total();
    writer.finish()?;
    Ok((tensors.len(), bytes))
}

fn entries(shape: &ModelShape, file_type: FileType) -> Entries {
    let mut entries = Entries::default();
    // llama.cpp writes these names in one word.
    let architecture = shape.model_type.replace('_', "");
    let key = |name: &str| format!("{architecture}.{name}");
    entries.string("general.architecture", &architecture);
    entries.string("general.name", shape.name);
    entries.uint("general.file_type", file_type.number());
    entries.uint(&key("context_length"), 8192);
    entries.uint(&key("embedding_length"), shape.hidden as u32);
    entries.uint(&key("block_count"), shape.layers as u32);
    entries.uint(&key("feed_forward_length"), shape.ffn as u32);
    entries.uint(&key("attention.head_count"), shape.heads as u32);
    entries.uint(&key("attention.head_count_kv"), shape.kv_heads as u32);
    entries.float(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    entries.float(&key("rope.freq_base"), shape.theta as f32);
    entries.uint(&key("rope.dimension_count"), shape.head_dim as u32);
    entries.uint(&key("vocab_size"), shape.vocab as u32);
    if let Some([count, used, ffn]) = shape.experts {
        entries.uint(&key("attention.key_length"), shape.head_dim as u32);
        entries.uint(&key("attention.value_length"), shape.head_dim as u32);
        entries.uint(&key("expert_count"), count as u32);
        entries.uint(&key("expert_used_count"), used as u32);
        entries.uint(&key("expert_feed_forward_length"), ffn as u32);
    }
    vocabulary(&mut entries, shape.vocab);
    entries
}

/// A byte-level BPE vocabulary of `size` tokens: the 256 bytes, merges of what is there already, two control tokens. Merges are of
/// ASCII alone, so that nearly all tokens are whole characters: a server holds back what may be a part of one.
fn vocabulary(entries: &mut Entries, size: usize) {
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
    entries.string("tokenizer.ggml.model", "gpt2");
    entries.string("tokenizer.ggml.pre", "llama-bpe");
    entries.strings("tokenizer.ggml.tokens", &tokens);
    entries.ints("tokenizer.ggml.token_type", &kinds);
    entries.strings("tokenizer.ggml.merges", &merges);
    entries.uint("tokenizer.ggml.bos_token_id", size as u32 - 2);
    entries.uint("tokenizer.ggml.eos_token_id", size as u32 - 1);
}

/// The tensors with the types of llama.cpp's `llama_tensor_get_type` for this file type and an embedding that is the head.
fn tensors(shape: &ModelShape, file_type: FileType) -> Vec<Spec> {
    let (hidden, ffn) = (shape.hidden, shape.ffn);
    let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let mut all = Vec::new();
    let norm = |all: &mut Vec<Spec>, name: String, len| {
        all.push(Spec { name, kind: TensorType::Dense(DType::F32), shape: [len].as_slice().into() })
    };
    let stack = |all: &mut Vec<Spec>, name: String, dims: &[usize], finer| {
        let columns = dims.last().copied().unwrap_or(1);
        let kind = match (file_type, finer, columns.is_multiple_of(SUPER_BLOCK)) {
            (FileType::F16, ..) => TensorType::Dense(DType::F16),
            (FileType::Bf16, ..) => TensorType::Dense(DType::BF16),
            (FileType::Q8_0, ..) => TensorType::Blocks(GgmlType::Q8_0),
            (FileType::Q4_0, false, _) => TensorType::Blocks(GgmlType::Q4_0),
            (FileType::Q4_0 | FileType::Q4KM, true, true) => TensorType::Blocks(GgmlType::Q6_K),
            (FileType::Q4_0 | FileType::Q4KM, true, false) => TensorType::Blocks(GgmlType::Q8_0),
            (FileType::Q4KM, false, true) => TensorType::Blocks(GgmlType::Q4_K),
            (FileType::Q4KM, false, false) => TensorType::Blocks(GgmlType::Q5_0),
        };
        all.push(Spec { name, kind, shape: dims.into() });
    };
    let matrix = |all: &mut Vec<Spec>, name: String, rows, columns: usize, finer| {
        stack(all, name, &[rows, columns], finer);
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
        if let Some([count, _, ffn]) = shape.experts {
            norm(&mut all, name("attn_q_norm.weight"), shape.head_dim);
            norm(&mut all, name("attn_k_norm.weight"), shape.head_dim);
            let kind = TensorType::Dense(DType::F32);
            let dims = [count, hidden].as_slice().into();
            all.push(Spec { name: name("ffn_gate_inp.weight"), kind, shape: dims });
            stack(&mut all, name("ffn_gate_exps.weight"), &[count, ffn, hidden], false);
            stack(&mut all, name("ffn_up_exps.weight"), &[count, ffn, hidden], false);
            stack(&mut all, name("ffn_down_exps.weight"), &[count, hidden, ffn], finer);
            continue;
        }
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
    use crate::SHAPES;

    /// What llama.cpp's own conversion of such a model takes, metadata apart, in MB.
    #[test]
    fn sizes_are_those_of_llama_cpp() {
        let llama = SHAPES.iter().find(|shape| shape.name == "llama-1b").unwrap();
        for (file_type, expected) in
            [(FileType::Q4_0, 763), (FileType::Q4KM, 800), (FileType::Q8_0, 1313), (FileType::F16, 2472)]
        {
            let bytes: u64 = tensors(llama, file_type).iter().map(Spec::bytes).sum();
            assert_eq!((bytes + 500_000) / 1_000_000, expected, "{file_type:?}");
        }
    }

    #[test]
    fn rows_without_super_blocks_take_older_types() {
        let qwen = SHAPES.iter().find(|shape| shape.name == "qwen2.5-0.5b").unwrap();
        let tensors = tensors(qwen, FileType::Q4KM);
        let kind = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap().kind;
        assert_eq!(kind("token_embd.weight"), TensorType::Blocks(GgmlType::Q8_0));
        assert_eq!(kind("blk.0.attn_v.weight"), TensorType::Blocks(GgmlType::Q8_0));
        assert_eq!(kind("blk.0.attn_q.weight"), TensorType::Blocks(GgmlType::Q5_0));
        assert_eq!(
            [kind("blk.0.ffn_down.weight"), kind("blk.3.ffn_down.weight")],
            [TensorType::Blocks(GgmlType::Q6_K), TensorType::Blocks(GgmlType::Q4_K)]
        );
    }
}
