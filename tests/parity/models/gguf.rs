//! The same models as GGUF files: their logits are those of the directories that they were made from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use backstop::backend::LlmBackendKind;
use backstop::backend::cpu::Activations;
use backstop::backend::kv::KvType;
use backstop::quant::Matrix;
use backstop::tensor::DType;
use backstop::{LoadOptions, Model, ModelFiles, Options};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::fixtures::cached;
use crate::harness::{Expected, backends, close, load, options, root};
use crate::tolerance;

/// Each file that has a directory of its name, the first of each split model, with that directory.
fn fixtures() -> Vec<(PathBuf, PathBuf)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(root().join("tests/fixtures/gguf")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let dir = root().join("tests/fixtures/models").join(name.trim_end_matches("-00001-of-00003"));
        if dir.is_dir() {
            all.push((path, dir));
        }
    }
    all.sort();
    assert!(all.len() >= 9, "only {} fixtures", all.len());
    all
}

#[test]
fn logits_are_those_of_the_directory() {
    for (path, dir) in fixtures() {
        let mut expected = Expected::load(&dir);
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        for kind in backends() {
            let dtype = load(&path, options(kind)).info().dtype;
            let got = cached(&path, options(kind), &expected, 7);
            let what = format!("{name} on {kind}");
            let (apart, rms) = close(&what, &got, &expected.logits, tolerance::logits(dtype));
            println!("{what}: {apart:.2e} standard deviations, {rms:.2e} in the mean");
            assert!(rms <= tolerance::logits_rms(dtype), "{what}: {rms:.2e} in the mean");
        }
        // Where types are narrow, a wrong row or factor would show least there: the CPU computes in f32.
        if let Some(wide) = expected.logits_wide.take() {
            let wider = LoadOptions { kv_type: Some(KvType::F32), ..options(LlmBackendKind::Cpu) };
            let got = cached(&path, wider, &expected, 7);
            close(&name, &got, &wide, tolerance::logits(DType::F32));
        }
    }
}

/// What a file says is what its directory's `config.json` says, where the format has a place for it.
#[test]
fn configurations_are_those_of_the_directory() {
    for (path, dir) in fixtures() {
        let (mut got, mut expected) = (
            ModelFiles::open(&path).unwrap().config().clone(),
            ModelFiles::open(&dir).unwrap().config().clone(),
        );
        let name = path.display();
        let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs();
        // Files of families whose heads do not rotate have an arbitrary number.
        if ["granitemoehybrid", "nemotron_h", "mamba2"].contains(&expected.model_type) {
            assert_eq!(got.max_position_embeddings, 1 << 20, "{name}");
            (got.max_position_embeddings, got.rope) =
                (expected.max_position_embeddings, expected.rope.clone());
        }
        // All multipliers are in the weights there.
        if expected.model_type == "falcon_h1" {
            assert_eq!((got.embedding_multiplier, got.logits_multiplier), (1.0, 1.0), "{name}");
            (got.embedding_multiplier, got.logits_multiplier) =
                (expected.embedding_multiplier, expected.logits_multiplier);
            got.attention_multiplier = expected.attention_multiplier;
        }
        for prompt in [5, 29, 200] {
            let (got, expected) = (got.rope.frequencies(prompt), expected.rope.frequencies(prompt));
            let pairs = got.inv_freq.iter().zip(&expected.inv_freq);
            assert_eq!(got.inv_freq.len(), expected.inv_freq.len(), "{name}");
            assert!(pairs.clone().all(|(a, b)| close(*a, *b)), "{name}: {got:?}, expected {expected:?}");
            assert!(close(got.attention_factor, expected.attention_factor), "{name}");
        }
        assert!(close(got.rope.theta as f32, expected.rope.theta as f32), "{name}");
        // Where there is one, it is made of a number of 32 bits there.
        let scales = [&got, &expected].map(|config| config.attention_multiplier);
        assert!(matches!(scales, [None, None] | [Some(_), Some(_)]), "{name}: {scales:?}");
        assert!(close(scales[0].unwrap_or(1.0), scales[1].unwrap_or(1.0)), "{name}: {scales:?}");
        for config in [&mut got, &mut expected] {
            config.attention_multiplier = None;
            // Compared above; or in the tokenizer, which these files do not have; or in the rows of Q.
            config.rope = backstop::config::Rope {
                theta: 1.0,
                dims: config.rope.dims,
                scaling: backstop::config::RopeScaling::None,
            };
            (config.bos_token_id, config.eos_token_ids) = (None, Vec::new());
            (config.query_pre_attn_scalar, config.dtype) = (None, None);
            // Of each tensor there.
            config.quantization = None;
            // The format's numbers have 32 bits.
            if let Some(scaling) = &mut config.query_scaling {
                scaling.beta = f64::from(scaling.beta as f32);
            }
            if let Some(rope) = &mut config.local_rope {
                rope.theta = f64::from(rope.theta as f32);
            }
        }
        // A Mistral without windows is written as what it then is: another name for the same.
        if expected.model_type == "mistral" && expected.sliding_window.is_none() {
            got.model_type = expected.model_type;
        }
        // Files do not say that they are not DeepSeek's.
        if (got.model_type, expected.model_type) == ("deepseek_v3", "glm4_moe_lite") {
            got.model_type = expected.model_type;
        }
        assert_eq!(got, expected, "{name}");
    }
}

/// A state grows in each token where a rate is above 0, which no conversion writes.
#[test]
fn rates_above_zero_are_refused() {
    const RATES: &str = "model.layers.2.linear_attn.A_log";
    let path = root().join("tests/fixtures/gguf/qwen3_5-tiled.gguf");
    let files = ModelFiles::open(&path).unwrap();
    let rates = files.checkpoint.get(&format!("{RATES}.weight"), &[6]).unwrap().to_f32();
    assert!(rates.iter().all(|&rate| rate < 0.0), "{rates:?}");
    let stored: Vec<u8> = rates.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut bytes = std::fs::read(&path).unwrap();
    let places: Vec<usize> =
        (0..=bytes.len() - stored.len()).filter(|&at| bytes[at..].starts_with(&stored)).collect();
    let [at] = places[..] else { panic!("{places:?}") };
    let dir = tempfile::tempdir().unwrap();
    let changed = dir.path().join("model.gguf");
    for wrong in [f32::NAN, 0.5, f32::INFINITY] {
        bytes[at..at + 4].copy_from_slice(&wrong.to_le_bytes());
        std::fs::write(&changed, &bytes).unwrap();
        let error = Model::load(&changed).map(drop).unwrap_err().to_string();
        assert!(error.contains(RATES) && error.contains("expected rates of at most 0"), "{error}");
    }
}

#[test]
fn one_file_is_a_whole_model() {
    let model = Model::load(root().join("tests/fixtures/gguf/whole.gguf")).unwrap();
    assert!(model.has_template());
    assert_eq!(model.info().name, "whole");
    assert_eq!(model.info().generation.temperature, Some(0.5));
    let ends = &model.info().config.eos_token_ids;
    let id = |text: &str| model.tokenizer().unwrap().token_id(text).unwrap();
    assert_eq!(*ends, [id("<|eot_id|>"), id("<|end_of_text|>")]);
    let prompt = model.encode_chat(&[backstop::text::Message::new("user", "Hi!")]).unwrap();
    assert_eq!(prompt[0], id("<|begin_of_text|>"));
    let logits = model.logits(&prompt).unwrap();
    assert!(logits.iter().flatten().all(|x| x.is_finite()));
}

/// Every block type as a model runs it, in whatever way its kernels read blocks.
#[test]
fn models_in_blocks_agree_with_transformers() {
    for name in ["blocks-32", "blocks-256"] {
        let dir = root().join("tests/fixtures/gguf").join(name);
        let expected = Expected::load(&dir);
        for kind in backends() {
            if (name, kind) == ("blocks-256", LlmBackendKind::Mlx) {
                // Rounded so in numpy, the same token moves by 0.4 standard deviations; ops are compared one by one.
                println!("skipped: {name} on {kind}, which holds Q2_K and Q6_K in the nearest 8 bits");
                continue;
            }
            let model = load(&dir, options(kind));
            assert_eq!(model.info().dtype, DType::F16);
            let got = cached(&dir, options(kind), &expected, 7);
            let what = format!("{name} on {kind}");
            let (apart, rms) = close(&what, &got, &expected.logits, tolerance::logits(DType::F16));
            println!("{what}: {apart:.2e} standard deviations, {rms:.2e} in the mean");
            let asked =
                Options { max_tokens: Some(expected.greedy.len()), ignore_eos: true, ..Options::default() };
            let mut generation = model.generate_tokens(expected.prompt.clone(), &asked).unwrap();
            generation.by_ref().for_each(|piece| drop(piece.unwrap()));
            assert_eq!(generation.tokens(), expected.greedy, "{what}");
        }
    }
}

/// llama.cpp itself, which rounds activations to eight bits in blocks, in places of its own: exact ones are about as far from
/// it as rounded ones.
#[test]
fn models_have_the_logits_of_llama_cpp() {
    let bytes = std::fs::read(root().join("tests/fixtures/gguf/llama_cpp.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tokens = file.tensor("tokens").unwrap();
    let tokens: Vec<u32> =
        tokens.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    let names: Vec<&str> = file.names().into_iter().filter(|name| *name != "tokens").collect();
    assert_eq!(names.len(), 10);
    for name in names {
        let view = file.tensor(name).unwrap();
        let values: Vec<f32> =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let expected: Vec<Vec<f32>> = values.chunks_exact(view.shape()[1]).map(<[f32]>::to_vec).collect();
        let file = root().join("tests/fixtures/gguf").join(format!("{name}.gguf"));
        let path = if file.exists() { file } else { file.with_extension("") };
        for activations in [Activations::F32, Activations::Int8] {
            let exact = options(LlmBackendKind::Cpu);
            let model = load(&path, LoadOptions { activations, ..exact });
            let got = model.logits(&tokens).unwrap();
            let what = format!("{name}, {activations:?}");
            let (apart, rms) = close(&what, &got, &expected, tolerance::LLAMA_CPP);
            println!("{what}: {apart:.2e} standard deviations, {rms:.2e} in the mean");
            assert!(rms <= tolerance::LLAMA_CPP / 5.0, "{what}: {rms:.2e} in the mean");
        }
    }
}

/// Decoded and written as a directory of `f32` weights, a model in blocks has the logits that transformers computed from
/// what the `gguf` package decodes: names, order of rows and decoders are right.
#[test]
fn blocks_decode_to_the_weights_that_transformers_ran() {
    for name in ["blocks-32", "blocks-256"] {
        let dir = root().join("tests/fixtures/gguf").join(name);
        let files = ModelFiles::open(&dir).unwrap();
        let mut decoded = BTreeMap::new();
        for tensor in files.checkpoint.tensors() {
            let values = match *tensor.shape() {
                [rows, columns] => {
                    let module = tensor.name().strip_suffix(".weight").unwrap();
                    match files.checkpoint.matrix(module, [rows, columns]).unwrap() {
                        Matrix::Quantized(weight) => weight.to_f32(),
                        Matrix::Dense(weight) => panic!("{weight:?} is not in blocks"),
                    }
                }
                _ => files.checkpoint.get(tensor.name(), tensor.shape()).unwrap().to_f32(),
            };
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            decoded.insert(tensor.name().to_owned(), (tensor.shape().to_vec(), bytes));
        }
        let types: std::collections::BTreeSet<String> =
            files.checkpoint.tensors().map(|tensor| tensor.dtype_name()).collect();
        assert!(types.len() >= 7, "{name}: {types:?}");
        let views = decoded.iter().map(|(name, (shape, bytes))| {
            (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        });
        let plain = tempfile::tempdir().unwrap();
        let path = plain.path().join("model.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let config = files.config();
        let config = format!(
            r#"{{"model_type": "llama", "vocab_size": {}, "hidden_size": {}, "intermediate_size": {}, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": false}}"#,
            config.vocab_size, config.hidden_size, config.intermediate_size
        );
        std::fs::write(plain.path().join("config.json"), config).unwrap();
        let expected = Expected::load(&dir);
        let got = cached(plain.path(), options(LlmBackendKind::Cpu), &expected, 7);
        close(name, &got, &expected.logits, tolerance::logits(DType::F32));
    }
}
