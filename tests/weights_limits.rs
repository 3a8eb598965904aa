//! What a hostile header may cost: a second, and 64 MiB beyond the file's own bytes. A process of its own, so that the
//! peak of its memory is that of these files.

#![cfg(target_os = "linux")]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use backstop::Error;
use backstop::forward::Architecture;
use backstop::weights::Checkpoint;

/// The process's peak resident memory in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Appends the item of this number.
type Flood<'a> = dyn FnMut(&mut String, usize) + 'a;

/// Writes a file whose header is `items`, over and over, up to `len` bytes.
fn write(path: &std::path::Path, len: usize, item: &mut Flood<'_>) -> u64 {
    let mut bytes = (len as u64).to_le_bytes().to_vec();
    bytes.push(b'{');
    let mut text = String::new();
    for i in 0.. {
        text.clear();
        item(&mut text, i);
        if bytes.len() + text.len() > len {
            break;
        }
        bytes.extend(text.as_bytes());
    }
    bytes.resize(len + 8, b' ');
    std::fs::write(path, &bytes).unwrap();
    bytes.len() as u64
}

#[test]
fn a_hostile_header_costs_at_most_a_second_and_64_mib() {
    const LEN: usize = 90_000_000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let info = r#"{"dtype":"U8","shape":[0,0,0,0,0,0,0,0],"data_offsets":[0,0]}"#;
    let name = "n".repeat(100);
    let floods: [&mut Flood<'_>; 4] = [
        &mut |text, i| write!(text, "\"{i}\":{info},").unwrap(),
        &mut |text, i| write!(text, "\"\\u0061{name}{i}\":{info},").unwrap(),
        &mut |text, _| text.push_str("\"\\u0061"),
        &mut |text, _| text.push_str("          "),
    ];
    for (i, flood) in floods.into_iter().enumerate() {
        let bytes = write(&path, LEN, flood);
        costs_little(&format!("flood {i}"), bytes, || Checkpoint::open(dir.path()).unwrap_err());
    }

    let path = dir.path().join("m.gguf");
    for (i, flood) in gguf_floods().into_iter().enumerate() {
        std::fs::write(&path, &flood).unwrap();
        let bytes = flood.len() as u64;
        drop(flood);
        costs_little(&format!("GGUF flood {i}"), bytes, || {
            Checkpoint::open(&path).and_then(|checkpoint| Architecture::from_gguf(&checkpoint)).unwrap_err()
        });
    }
}

fn costs_little(what: &str, bytes: u64, open: impl FnOnce() -> Error) {
    // The file was built in memory: forget that peak.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, start) = (peak(), Instant::now());
    let error = open().to_string();
    let (cost, time) = (peak() - before, start.elapsed());
    assert!(cost <= bytes + (64 << 20), "{what}: {cost} bytes for a file of {bytes}: {error}");
    assert!(time < Duration::from_secs(1), "{what}: {time:?}: {error}");
    println!("{what}: {} MiB beyond the file, {time:?}: {error}", cost.saturating_sub(bytes) >> 20);
}

/// Files as large as their limits let them be: keys, an endless list of empty strings, tensors, tokens.
fn gguf_floods() -> [Vec<u8>; 4] {
    let head = |tensors: u64, entries: u64| {
        [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &entries.to_le_bytes()].concat()
    };
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let mut keys = head(0, 1 << 16);
    for i in 0..1 << 16 {
        text(&mut keys, &format!("{i:01000}"));
        keys.extend([0, 0, 0, 0, 7]);
    }
    let list = |out: &mut Vec<u8>, key: &str, len: u64| {
        text(out, key);
        out.extend([9, 0, 0, 0, 8, 0, 0, 0]);
        out.extend(len.to_le_bytes());
    };
    let mut empty = head(0, 1);
    list(&mut empty, "k", 10_000_000);
    empty.resize(empty.len() + 80_000_000, 0);

    let model = |out: &mut Vec<u8>| {
        for (key, value) in [("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2")] {
            text(out, key);
            out.extend([8, 0, 0, 0]);
            text(out, value);
        }
        for key in ["attention.head_count", "context_length", "embedding_length", "block_count", "vocab_size"]
        {
            text(out, &format!("llama.{key}"));
            out.extend([4, 0, 0, 0, 2, 0, 0, 0]);
        }
        text(out, "llama.feed_forward_length");
        out.extend([4, 0, 0, 0, 2, 0, 0, 0]);
        text(out, "llama.attention.layer_norm_rms_epsilon");
        out.extend([6, 0, 0, 0, 0, 0, 128, 63]);
    };
    let mut tensors = head(1 << 17, 9);
    model(&mut tensors);
    for i in 0..1 << 17 {
        text(&mut tensors, &format!("{i:063}"));
        tensors.extend([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    tensors.resize(tensors.len() + 64, 0);
    let mut tokens = head(0, 10);
    model(&mut tokens);
    list(&mut tokens, "tokenizer.ggml.tokens", 1 << 19);
    for i in 0..1 << 19 {
        text(&mut tokens, &format!("{:0150}", i.min((1 << 19) - 2)));
    }
    [keys, empty, tensors, tokens]
}
