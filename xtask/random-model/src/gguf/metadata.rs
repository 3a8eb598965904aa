//! The metadata of a GGUF file, as llama.cpp's converter writes it, and a vocabulary of the right size.

use backstop::weights::writers::gguf::Entries;

use super::FileType;
use crate::shapes::{DeltaShape, ExpertShape, LatentShape, ModelShape, SCALE, STRETCHED, WINDOW};

/// All entries of a file of `shape`.
pub fn entries(shape: &ModelShape, file_type: FileType) -> Entries {
    let architecture = match shape.model_type {
        "gpt_oss" => "gpt-oss",
        "glm4_moe_lite" => "deepseek2",
        "qwen3_5_text" => "qwen35",
        // llama.cpp writes these names in one word.
        "qwen3_moe" => "qwen3moe",
        other => other,
    };
    let mut entries = Entries::default();
    entries.string("general.architecture", architecture);
    entries.string("general.name", shape.name);
    entries.uint("general.file_type", file_type.number());
    let mut uint = |name: &str, value: usize| entries.uint(&format!("{architecture}.{name}"), value as u32);
    uint("context_length", shape.context());
    uint("embedding_length", shape.hidden);
    uint("block_count", shape.layers);
    uint("feed_forward_length", shape.ffn);
    uint("attention.head_count", shape.heads);
    uint("vocab_size", shape.vocab);
    let rotates = match (shape.latent, shape.delta) {
        (Some(latent), _) => latent.rope,
        (None, Some(_)) => (shape.head_dim as f64 * DeltaShape::ROTATES) as usize,
        (None, None) => shape.head_dim,
    };
    uint("rope.dimension_count", rotates);
    match shape.latent {
        // What is kept of a token stands for one head of keys and values.
        Some(LatentShape { query_rank, rank, nope, rope, value }) => {
            uint("attention.head_count_kv", 1);
            uint("attention.q_lora_rank", query_rank);
            uint("attention.kv_lora_rank", rank);
            uint("attention.key_length", rank + rope);
            uint("attention.value_length", rank);
            uint("attention.key_length_mla", nope + rope);
            uint("attention.value_length_mla", value);
        }
        None => {
            uint("attention.head_count_kv", shape.kv_heads);
            uint("attention.key_length", shape.head_dim);
            uint("attention.value_length", shape.head_dim);
        }
    }
    if let Some(ExpertShape { count, used, ffn, shared, dense }) = shape.experts {
        uint("expert_count", count);
        uint("expert_used_count", used);
        uint("expert_feed_forward_length", ffn);
        if shape.latent.is_some() {
            uint("expert_shared_count", shared);
            uint("leading_dense_block_count", dense);
            uint("expert_group_count", 1);
            uint("expert_group_used_count", 1);
            // A sigmoid.
            uint("expert_gating_func", 2);
        }
    }
    if let Some(DeltaShape { heads, dim, conv }) = shape.delta {
        uint("full_attention_interval", DeltaShape::EVERY);
        uint("ssm.conv_kernel", conv);
        uint("ssm.state_size", dim);
        uint("ssm.group_count", heads);
        uint("ssm.time_step_rank", heads);
        uint("ssm.inner_size", heads * dim);
    }
    let key = |name: &str| format!("{architecture}.{name}");
    if shape.is_gpt_oss() {
        let (original, factor) = STRETCHED;
        entries.uint(&key("attention.sliding_window"), WINDOW as u32);
        entries.string(&key("rope.scaling.type"), "yarn");
        entries.float(&key("rope.scaling.factor"), factor as f32);
        entries.uint(&key("rope.scaling.original_context_length"), original as u32);
    }
    if shape.latent.is_some() {
        entries.float(&key("expert_weights_scale"), SCALE as f32);
        entries.flag(&key("expert_weights_norm"), true);
    }
    if shape.delta.is_some() {
        // Of time, height and width, which are one for text.
        let pairs = rotates as i32 / 2;
        let sections = [(pairs + 2) / 3, (pairs + 1) / 3, pairs / 3, 0];
        entries.ints(&key("rope.dimension_sections"), &sections);
    }
    entries.float(&key("attention.layer_norm_rms_epsilon"), shape.eps as f32);
    entries.float(&key("rope.freq_base"), shape.theta as f32);
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
