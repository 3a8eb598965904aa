//! Importance matrices against sums that hooks in transformers collected (`tools/fixtures/imatrix.py`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use backstop::imatrix::{Collect, Imatrix, collect};
use backstop::{Activations, BackendRequest, LoadOptions, Model, ModelFiles};
use safetensors::SafeTensors;

const WINDOW: usize = 24;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let bytes = file.tensor(name).unwrap().data().to_vec();
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn collected(model: &Path, tokens: &[u32]) -> Imatrix {
    let files = ModelFiles::open(model).unwrap();
    let options =
        LoadOptions { backend: BackendRequest::Cpu, activations: Activations::F32, ..LoadOptions::default() };
    let loaded = Model::load_with(ModelFiles::open(model).unwrap(), options).unwrap();
    let mut told = Vec::new();
    let how = Collect { window: WINDOW, begin: Some(1), head: true };
    let matrix = collect(&files, &loaded, tokens, how, &mut |done, all| {
        told.push((done, all));
        true
    });
    assert_eq!(told, [(0, 3), (1, 3), (2, 3), (3, 3)]);
    assert_eq!(collect(&files, &loaded, tokens, how, &mut |done, _| done == 0).unwrap(), None);
    let long = Collect { window: tokens.len() + 1, ..how };
    let error = collect(&files, &loaded, tokens, long, &mut |_, _| true).unwrap_err().to_string();
    assert!(error.contains("expected at least 78"), "{error}");
    matrix.unwrap().unwrap()
}

#[test]
fn sums_are_those_of_transformers() {
    for case in ["llama-bias", "qwen2_moe-shared"] {
        let bytes = std::fs::read(fixture(&format!("imatrix/{case}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let ids = file.tensor("ids").unwrap().data().to_vec();
        let ids: Vec<u32> =
            ids.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        let ours = collected(&fixture(&format!("models/{case}")), &ids);
        assert_eq!((ours.chunk_count, ours.chunk_size), (3, 24));
        let wanted: BTreeSet<&str> =
            file.names().into_iter().filter_map(|name| name.strip_suffix(".in_sum2")).collect();
        let named: BTreeSet<&str> = ours.entries.keys().map(String::as_str).collect();
        assert_eq!(named, wanted, "{case}");
        for (name, entry) in &ours.entries {
            assert_eq!(entry.counts, floats(&file, &format!("{name}.counts")), "{case}: {name}");
            let theirs = floats(&file, &format!("{name}.in_sum2"));
            assert_eq!(entry.squares.len(), theirs.len(), "{case}: {name}");
            let most = theirs.iter().copied().fold(0.0, f32::max);
            for (at, (ours, theirs)) in entry.squares.iter().zip(&theirs).enumerate() {
                // Sums of 72 squares; small ones are of values that the layers before nearly cancel.
                let bound = 2e-5 * theirs + 1e-6 * most;
                assert!((ours - theirs).abs() <= bound, "{case}: {name}, column {at}: {ours}, not {theirs}");
            }
        }
    }
}

/// Names and numbers are those of a directory of the same model.
#[test]
fn a_gguf_file_has_the_matrix_of_its_directory() {
    let tokens: Vec<u32> = (0..77).map(|i| (i * i * 5 + 3) % 61).collect();
    let [file, dir] = ["gguf/qwen2_moe-plain.gguf", "models/qwen2_moe-plain"]
        .map(|model| collected(&fixture(model), &tokens).entries);
    assert_eq!(file.keys().collect::<Vec<_>>(), dir.keys().collect::<Vec<_>>());
    for (name, of_file) in &file {
        let of_dir = &dir[name];
        assert_eq!(of_file.counts, of_dir.counts, "{name}");
        let most = of_dir.squares.iter().copied().fold(0.0, f32::max);
        for (file, dir) in of_file.squares.iter().zip(&of_dir.squares) {
            assert!((file - dir).abs() <= 1e-4 * most, "{name}: {file}, not {dir}");
        }
    }
}
