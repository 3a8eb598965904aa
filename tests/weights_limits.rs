//! What a hostile header may cost: a second, and 64 MiB beyond the file's own bytes. A process of its own, so that the
//! peak of its memory is that of these files.

#![cfg(target_os = "linux")]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

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
        // The file was built in memory: forget that peak.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let (before, start) = (peak(), Instant::now());
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        let (cost, time) = (peak() - before, start.elapsed());
        assert!(cost <= bytes + (64 << 20), "flood {i}: {cost} bytes for a file of {bytes}: {error}");
        assert!(time < Duration::from_secs(1), "flood {i}: {time:?}: {error}");
        println!("flood {i}: {} MiB beyond the file, {time:?}: {error}", cost.saturating_sub(bytes) >> 20);
    }
}
