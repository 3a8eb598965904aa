//! `examples/`.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::*;

#[test]
fn the_logits_example_prints_exact_numbers() {
    // Built by `cargo test`, not by `cargo test --test cli` alone.
    let example = Path::new(env!("CARGO_BIN_EXE_backstop")).with_file_name("examples").join("logits");
    if !example.exists() {
        println!("skipped: {} is not built (cargo build --examples)", example.display());
        return;
    }
    let noise = Noise::new();
    let run = |tokens: &str| {
        let args = [noise.path(), "--backend", "cpu", "--tokens", tokens];
        ended(
            Command::new(&example).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(),
        )
    };
    let ran = run("1,17,42");
    let printed: Vec<Vec<f64>> = serde_json::from_value(json(&ran)["logits"].clone()).unwrap();
    let expected = noise.load().logits(&[1, 17, 42]).unwrap();
    assert_eq!(printed.len(), 3);
    for (printed, expected) in printed.iter().zip(&expected) {
        let bits: Vec<u32> = printed.iter().map(|&logit| (logit as f32).to_bits()).collect();
        assert_eq!(bits, expected.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>());
    }
    let ran = run("305");
    assert!(ran.err.contains("token id 305 is outside the vocabulary of 305"), "{}", ran.err);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
}
