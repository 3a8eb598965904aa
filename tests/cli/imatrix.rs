//! `backstop imatrix`, and `quantize --imatrix` of what it writes.

use std::fs;
use std::path::Path;

use backstop::imatrix::Imatrix;

use crate::support::*;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/perplexity/text.txt");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/stories");

fn failed(args: &[&str]) -> String {
    let ran = backstop(args);
    assert!(ran.code.is_some_and(|code| code > 0), "{args:?}: {}", ran.err);
    ran.err
}

fn divergence(quantized: &str) -> f64 {
    let shown = json(&ok(&[
        "perplexity",
        TEXT,
        "--model",
        MODEL,
        "--compare",
        quantized,
        "--window",
        "128",
        "--backend",
        "cpu",
        "--activations",
        "f32",
        "--json",
    ]));
    shown["other"]["kl"]["mean"]["value"].as_f64().unwrap()
}

#[test]
fn an_importance_matrix_makes_a_quantization_nearer() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let matrix = path("m.gguf");
    let told = ok(&["imatrix", TEXT, "--model", MODEL, "-o", &matrix, "--window", "64"]).err;
    let read = Imatrix::open(Path::new(&matrix)).unwrap();
    assert!(told.contains(&format!("{} matrices", read.entries.len())), "{told}");
    assert_eq!((&read.datasets[..], read.chunk_size), (&[TEXT.to_owned()][..], 64));
    assert!(read.chunk_count > 1 && read.entries.keys().all(|name| name.starts_with("blk.")));
    // It exists by now.
    assert!(failed(&["imatrix", TEXT, "--model", MODEL, "-o", &matrix, "--window", "64"]).contains("exists"));

    for (to, of) in [("gguf", ["--type", "Q4_1"]), ("mlx", ["--bits", "4"])] {
        let [plain, weighed] = ["plain", "weighed"].map(|name| path(&format!("{name}.{to}")));
        let quantize = [&["quantize", MODEL, "--to", to][..], &of, &["-o"]].concat();
        ok(&[&quantize[..], &[&plain]].concat());
        ok(&[&quantize[..], &[&weighed, "--imatrix", &matrix]].concat());
        if to == "gguf" {
            let pages = |path: &str| fs::metadata(path).unwrap().len() / 4096;
            assert_eq!(pages(&plain), pages(&weighed));
        }
        let (plain, weighed) = (divergence(&plain), divergence(&weighed));
        assert!(weighed < plain, "{to}: {weighed} with the matrix, {plain} without");
    }
}

#[test]
fn another_models_matrix_is_refused_and_a_part_of_one_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let whole = path("m.gguf");
    ok(&["imatrix", TEXT, "--model", MODEL, "-o", &whole, "--window", "64", "--tokens", "64"]);
    let whole = Imatrix::open(Path::new(&whole)).unwrap();
    let out = path("out.gguf");
    let quantize = |matrix: &str| {
        vec!["quantize".to_owned(), MODEL.into(), "--to".into(), "gguf".into(), "-o".into(), out.clone()]
            .into_iter()
            .chain(["--imatrix".into(), matrix.into()])
            .collect::<Vec<String>>()
    };
    let refused = |matrix: &Imatrix, name: &str, expected: &str| {
        let file = path(name);
        matrix.write(Path::new(&file)).unwrap();
        let args = quantize(&file);
        let error = failed(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(error.contains(expected) && error.contains(name), "{error}");
        assert!(!Path::new(&out).exists());
    };
    let mut other = whole.clone();
    other.entries = whole.entries.iter().map(|(name, of)| (format!("{name}s"), of.clone())).collect();
    refused(&other, "other.gguf", "another model's");
    let mut short = whole.clone();
    short.entries.get_mut("blk.0.attn_q.weight").unwrap().squares.pop();
    refused(&short, "short.gguf", "blk.0.attn_q.weight");
    // Without some of its matrices.
    let mut part = whole.clone();
    part.entries.remove("blk.0.attn_q.weight");
    part.entries.remove("blk.0.ffn_down.weight");
    let file = path("part.gguf");
    part.write(Path::new(&file)).unwrap();
    let args = quantize(&file);
    let told = ok(&args.iter().map(String::as_str).collect::<Vec<_>>()).err;
    assert!(told.contains("2 matrices") && told.contains("blk.0.ffn_down.weight"), "{told}");
    let mxfp4 = ["quantize", MODEL, "-o", &path("mlx"), "--mode", "mxfp4", "--imatrix", &file];
    assert!(failed(&mxfp4).contains("--imatrix is for affine groups, and for --to gguf"));
    assert!(
        failed(&["imatrix", TEXT, "--model", MODEL, "-o", &path("x"), "--window", "100000"])
            .contains("--window")
    );
}
