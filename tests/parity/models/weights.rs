//! The GPU weight cache: each weight is uploaded once, nothing else is ever in it, and it empties with its model.

#![cfg(any(feature = "mlx", all(target_os = "macos", target_arch = "aarch64")))]

use std::sync::Arc;

use backstop::backend::LlmBackendKind;
use backstop::backend::cpu::CpuBackend;
use backstop::backend::{Faults, LlmBackendDispatch, Policy, Routing};
use backstop::engine::Runtime;
use backstop::{LoadOptions, Model, ModelFiles, Options};

use crate::harness::{load, options, root};

fn generate(model: &Model, seed: u32, max_tokens: usize) {
    let vocab = model.info().config.vocab_size as u32;
    let prompt = (0..5).map(|i| (i * 7 + seed) % vocab).collect();
    let asked = Options { max_tokens: Some(max_tokens), ignore_eos: true, ..Options::default() };
    for piece in model.generate_tokens(prompt, &asked).unwrap() {
        piece.unwrap();
    }
}

/// Uploads so far, weights held and their bytes.
fn cache(model: &Model) -> (u64, usize, usize) {
    let read = |runtime: &Runtime| {
        let weights = runtime.dispatch().weight_cache().expect("MLX has a weight cache");
        (weights.uploads(), weights.len(), weights.bytes())
    };
    model.engine().with(read).unwrap()
}

#[test]
fn each_weight_is_uploaded_once_and_nothing_else() {
    for name in ["llama-bias", "llama-linear", "phi3-window", "gemma2-bf16"] {
        let path = root().join("tests/fixtures/models").join(name);
        let files = ModelFiles::open(&path).unwrap();
        // Phi 3's two fused projections are uploaded by their parts: q, k, v and gate, up.
        let fused = if name.starts_with("phi3") { 3 * files.config().num_hidden_layers } else { 0 };
        let (weights, bytes) = (files.checkpoint.tensors().len() + fused, files.checkpoint.total_bytes());
        let model = load(&path, options(LlmBackendKind::Mlx));
        assert_eq!(cache(&model), (0, 0, 0), "{name}");
        let expected = (weights as u64, weights, bytes as usize);
        generate(&model, 3, 1);
        assert_eq!(cache(&model), expected, "{name} after 1 token");
        generate(&model, 3, 20);
        generate(&model, 11, 20);
        assert_eq!(cache(&model), expected, "{name} after 41 tokens of two sequences");
    }
}

/// A quantized matrix is three planes, or two for the small floats; those of a tied embedding serve both of its uses.
#[test]
fn each_plane_is_uploaded_once() {
    for name in ["llama-affine4", "llama-mixed", "llama-mxfp4"] {
        let path = root().join("tests/fixtures/quantized").join(name);
        let files = ModelFiles::open(&path).unwrap();
        let (planes, bytes) = (files.checkpoint.tensors().len(), files.checkpoint.total_bytes());
        let model = load(&path, options(LlmBackendKind::Mlx));
        generate(&model, 3, 1);
        generate(&model, 11, 20);
        assert_eq!(cache(&model), (planes as u64, planes, bytes as usize), "{name}");
    }
}

/// The planes of GPTQ, AWQ and GGUF's reordered rows are made for the upload, and are in host memory for no longer.
#[test]
fn what_is_counted_beforehand_is_what_is_uploaded() {
    for name in [
        "models/llama-bias",
        "models/gemma2-bf16",
        "quantized/llama-affine4",
        "quantized/llama-mxfp4",
        "gguf/blocks-32",
        "gguf/blocks-256",
        "quantized/llama-awq4",
        "quantized/llama-gptq4-order",
    ] {
        let path = root().join("tests/fixtures").join(name);
        let files = ModelFiles::open(&path).unwrap();
        let setting = files.memory_setting(LlmBackendKind::Mlx, &LoadOptions::default());
        let counted = files.memory_need(setting).weights;
        let model = load(&path, options(LlmBackendKind::Mlx));
        generate(&model, 3, 2);
        let held = cache(&model).2 as u64;
        if name.contains("awq") || name.contains("gptq") {
            // Whether their scales are exact in f16 is in the values, which nobody has read yet.
            assert!((held..held * 5 / 4).contains(&counted), "{name}: {counted} counted, {held} held");
        } else {
            assert_eq!(counted, held, "{name}");
        }
    }
}

/// Of the embeddings for each layer MLX is given the rows of a step's tokens.
#[test]
fn a_table_of_which_rows_are_looked_up_is_never_uploaded() {
    let path = root().join("tests/fixtures/models/gemma4-shared");
    let files = ModelFiles::open(&path).unwrap();
    let setting = files.memory_setting(LlmBackendKind::Mlx, &LoadOptions::default());
    let counted = files.memory_need(setting).weights;
    let mut tensors = files.checkpoint.tensors();
    let table = tensors.find(|tensor| tensor.name() == "model.embed_tokens_per_layer.weight").unwrap();
    let table = table.bytes() as u64;
    let model = load(&path, options(LlmBackendKind::Mlx));
    generate(&model, 3, 20);
    let held = cache(&model).2 as u64;
    // Norms without weights are there, which no file holds.
    assert!(
        held > counted / 2 && held < counted + table,
        "{counted} counted, {held} held, {table} of the table"
    );
}

#[test]
fn dropping_the_model_frees_its_arrays_and_its_host_bytes() {
    let path = root().join("tests/fixtures/models/llama-bias");
    let files = ModelFiles::open(&path).unwrap();
    let weight = files.checkpoint.get("model.norm.weight", &[files.config().hidden_size]).unwrap();
    let owner = weight.owner();
    drop(weight);
    let before = Arc::strong_count(&owner);
    let model = Model::load_with(files, options(LlmBackendKind::Mlx)).unwrap();
    generate(&model, 3, 4);
    assert!(Arc::strong_count(&owner) > before, "the model holds no weight");
    drop(model);
    assert_eq!(Arc::strong_count(&owner), 1, "something outlives the model");
}

#[test]
fn an_address_is_not_reused_under_the_cache() {
    use backstop::backend::Op;
    use backstop::backend::ops::{Backend, Ids};
    use backstop::quant::Matrix;
    use backstop::tensor::{DType, Weight};
    let routing = Routing::new(Policy::Deny, Faults::default());
    let dispatch = LlmBackendDispatch::mlx(DType::F32, CpuBackend::new(Some(1), None), routing).unwrap();
    for round in 0..50_u16 {
        let values: Vec<f32> = (0..8).map(|i| f32::from(round) + i as f32).collect();
        // Made and dropped in turn: only the cache keeps the bytes where they are.
        let table = dispatch.matrix(&Matrix::Dense(Weight::from_f32("table", &[2, 4], &values)));
        let op = Op::Embedding { table: &table, tokens: Ids::Known(&[1, 0]), scale: 1.0 };
        let rows = dispatch.run1(&op).unwrap();
        let rows = dispatch.to_host(&rows).unwrap();
        assert_eq!(rows.row(0), &values[4..]);
        assert_eq!(rows.row(1), &values[..4]);
    }
    assert_eq!(dispatch.weight_cache().unwrap().uploads(), 50);
}

#[test]
fn the_offsets_of_one_norm_are_kept_apart() {
    use backstop::backend::Op;
    use backstop::backend::ops::Backend;
    use backstop::tensor::{DType, HostTensor, Weight};
    let routing = Routing::new(Policy::Deny, Faults::default());
    let dispatch = LlmBackendDispatch::mlx(DType::F32, CpuBackend::new(Some(1), None), routing).unwrap();
    let weight = Weight::from_f32("norm", &[2], &[0.5, -2.0]);
    // Prepared twice, and uploaded once all the same.
    let [weight, again] = [(); 2].map(|()| dispatch.vector(&weight));
    for offset in [0.0_f32, 1.0, 0.25, 1.0, 0.0] {
        // One row and several are computed in different ways.
        for rows in [1, 3] {
            let x = HostTensor::from_vec(&[rows, 2], [3.0, 4.0].repeat(rows));
            let x = dispatch.to_backend(x).unwrap();
            let weight = if rows == 1 { &weight } else { &again };
            let op = Op::RmsNorm { x: &x, weight, eps: 0.0, offset };
            let normed = dispatch.to_host(&dispatch.run1(&op).unwrap()).unwrap();
            let root = 12.5_f32.sqrt();
            let expected = [3.0 / root * (0.5 + offset), 4.0 / root * (offset - 2.0)].repeat(rows);
            for (got, expected) in normed.data().iter().zip(expected) {
                assert!((got - expected).abs() < 1e-6, "{rows} rows, offset {offset}: {:?}", normed.data());
            }
        }
    }
    assert_eq!(dispatch.weight_cache().unwrap().uploads(), 1);
}
