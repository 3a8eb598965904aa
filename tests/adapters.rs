//! Adapters through the library: chosen by name, several at once, beside what is kept of prompts, loaded and unloaded while texts are
//! generated; and files that are wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backstop::backend::select::BackendRequest;
use backstop::{AdapterSource, Error, LoadOptions, Model, ModelFiles, Options};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

const BASE: &str = "models/llama-bias";
/// Tokens of a prompt: more than a page.
const PROMPT: usize = 150;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn source(name: &str) -> AdapterSource {
    AdapterSource { name: name.to_owned(), path: fixture(&format!("adapters/{name}")), scale: 1.0 }
}

fn load_with(options: LoadOptions) -> Result<Model, Error> {
    let options = LoadOptions { backend: BackendRequest::Cpu, threads: Some(2), ..options };
    Model::load_with(ModelFiles::open(&fixture(BASE)).unwrap(), options)
}

fn load(adapters: &[&str]) -> Model {
    let adapters = adapters.iter().map(|name| source(name)).collect();
    load_with(LoadOptions { adapters, ..LoadOptions::default() }).unwrap()
}

fn prompt(seed: u32) -> Vec<u32> {
    (0..PROMPT as u32).map(|i| 3 + (i * i + 7 * i * seed + seed) % 90).collect()
}

fn options(adapter: Option<&str>) -> Options {
    let adapter = adapter.map(Into::into);
    Options { max_tokens: Some(24), ignore_eos: true, adapter, ..Options::default() }
}

/// The tokens that follow a prompt, and how many of the prompt's were kept.
fn follow(model: &Model, seed: u32, options: &Options) -> (Vec<u32>, usize) {
    let mut generation = model.generate_tokens(prompt(seed), options).unwrap();
    generation.by_ref().for_each(|piece| drop(piece.unwrap()));
    (generation.tokens().to_vec(), generation.stats().unwrap().cached_tokens)
}

#[test]
fn texts_of_different_adapters_share_steps_and_nothing_else() {
    let names = [None, Some("lora"), Some("dora"), Some("rslora")];
    let alone: Vec<Vec<u32>> = names
        .iter()
        .map(|name| {
            let model = load(name.as_slice());
            follow(&model, 1, &options(*name)).0
        })
        .collect();
    for (i, one) in alone.iter().enumerate() {
        assert!(alone[..i].iter().all(|other| other != one), "{:?} changes nothing: {alone:?}", names[i]);
    }
    let model = load(&["lora", "dora", "rslora"]);
    // All at once, each several times: by the option, and by a clone that has the adapter.
    std::thread::scope(|scope| {
        for round in 0..3 {
            for (name, expected) in names.iter().zip(&alone) {
                let model = &model;
                scope.spawn(move || {
                    let got = match name {
                        Some(name) if round == 1 => {
                            follow(&model.with_adapter(name).unwrap(), 1, &options(None)).0
                        }
                        name => follow(model, 1, &options(*name)).0,
                    };
                    assert_eq!(got, *expected, "{name:?}");
                });
            }
        }
    });
}

#[test]
fn beginnings_are_kept_for_those_with_the_same_adapter() {
    let model = load(&["lora", "dora"]);
    let fresh = |name: Option<&str>| follow(&load(name.as_slice()), 2, &options(name)).0;
    for (name, cached) in [
        (None, false),
        (Some("lora"), false),
        (Some("dora"), false),
        (Some("lora"), true),
        (None, true),
        (Some("dora"), true),
    ] {
        let (tokens, kept) = follow(&model, 2, &options(name));
        assert_eq!(kept > 0, cached, "{name:?}: {kept} tokens were kept");
        assert_eq!(tokens, fresh(name), "{name:?}");
    }
    // Another scale is another adapter, and the same one under another name is the same.
    let lora = source("lora");
    model.load_adapter(&AdapterSource { name: "twice".into(), scale: 2.0, ..lora.clone() }).unwrap();
    model.load_adapter(&AdapterSource { name: "again".into(), ..lora }).unwrap();
    assert_eq!(follow(&model, 2, &options(Some("twice"))).1, 0);
    assert!(follow(&model, 2, &options(Some("again"))).1 > 0);
    // No owner's name is an adapter's.
    let key = model.with_adapter("lora").unwrap().adapter().unwrap().key.clone();
    for salt in [format!("\0adapter {key}"), format!("\0adapter {key} of a"), "a".to_owned()] {
        let salted = Options { cache_salt: Some(salt.as_str().into()), ..options(None) };
        assert_eq!(follow(&model, 2, &salted).1, 0, "{salt:?}");
        assert!(follow(&model, 2, &salted).1 > 0, "{salt:?}");
    }
    let salted = Options { cache_salt: Some("a".into()), ..options(Some("lora")) };
    assert_eq!(follow(&model, 2, &salted).1, 0);
}

#[test]
fn an_adapter_that_is_unloaded_stays_for_those_who_have_it() {
    let model = load(&["lora"]);
    let expected = follow(&model, 3, &options(Some("lora"))).0;
    let reserved = || model.engine().load().kv.reserved;
    let held = reserved();
    assert!(held >= model.adapters()[0].bytes && held > 0, "{held}");
    let mut generation = model.generate_tokens(prompt(3), &options(Some("lora"))).unwrap();
    generation.next().unwrap().unwrap();
    let own = model.with_adapter("lora").unwrap();
    model.unload_adapter("lora").unwrap();
    assert!(model.adapters().is_empty());
    let error = model.with_adapter("lora").unwrap_err().to_string();
    assert!(error.contains("no adapter \"lora\": none is loaded"), "{error}");
    assert!(model.generate_tokens(prompt(3), &options(Some("lora"))).is_err());
    assert!(model.unload_adapter("lora").is_err());
    // What has begun goes on with it, and so does the clone that holds it.
    generation.by_ref().for_each(|piece| drop(piece.unwrap()));
    assert_eq!(generation.tokens(), expected);
    assert_eq!(follow(&own, 3, &options(None)).0, expected);
    drop((own, generation));
    // Another of its name, then, whose memory is all that is taken.
    model.load_adapter(&AdapterSource { name: "lora".into(), ..source("dora") }).unwrap();
    let dora = follow(&load(&["dora"]), 3, &options(Some("dora"))).0;
    assert_eq!(follow(&model, 3, &options(Some("lora"))).0, dora);
    model.unload_adapter("lora").unwrap();
    follow(&model, 4, &options(None));
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while reserved() > 0 {
        assert!(std::time::Instant::now() < until, "{} bytes are reserved for nobody", reserved());
        std::thread::sleep(std::time::Duration::from_millis(5));
        follow(&model, 4, &Options { max_tokens: Some(1), ..options(None) });
    }
}

#[test]
fn names_and_memory_are_checked() {
    let model = load(&["lora"]);
    for name in ["", "a b", "a:b", "a=b", "../a", &"a".repeat(65)] {
        let error = model.load_adapter(&AdapterSource { name: name.into(), ..source("dora") }).unwrap_err();
        assert!(error.to_string().starts_with("the name of an adapter is "), "{error}");
    }
    let error = model.load_adapter(&source("lora")).unwrap_err().to_string();
    assert!(error.contains("has an adapter lora already"), "{error}");
    let error = model.load_adapter(&AdapterSource { scale: f32::NAN, ..source("dora") }).unwrap_err();
    assert!(error.to_string().contains("is NaN"), "{error}");
    // Less than an adapter takes beside nothing.
    let small =
        LoadOptions { kv_memory: Some(10_000), adapters: vec![source("lora")], ..LoadOptions::default() };
    let error = load_with(small).unwrap_err();
    assert!(matches!(error, Error::Memory { .. }), "{error}");
    assert_eq!(model.adapters().len(), 1);
    for (text, parsed) in [
        ("a=x", Some(("a", "x", 1.0))),
        ("a-1=x/y@0.5", Some(("a-1", "x/y", 0.5))),
        ("a=x@y", Some(("a", "x@y", 1.0))),
        ("a=x@y@-2", Some(("a", "x@y", -2.0))),
        ("a", None),
        ("a=", None),
        ("=x", None),
        ("a b=x", None),
        ("a=x@inf", None),
    ] {
        let got = text.parse::<AdapterSource>().ok();
        let expected =
            parsed.map(|(name, path, scale)| AdapterSource { name: name.into(), path: path.into(), scale });
        assert_eq!(got, expected, "{text}");
    }
}

/// Tensors by their names.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A change of an adapter's tensors, and what is told of it.
type Wrong = (Box<dyn FnOnce(&mut Tensors)>, &'static str);

fn wrong(change: impl FnOnce(&mut Tensors) + 'static, told: &'static str) -> Wrong {
    (Box::new(change), told)
}

/// A copy of an adapter of PEFT, whose settings and tensors are changed.
fn changed(
    of: &str,
    settings: impl FnOnce(&mut Value),
    tensors: impl FnOnce(&mut Tensors),
) -> tempfile::TempDir {
    let from = fixture(&format!("adapters/{of}"));
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    settings(&mut config);
    let bytes = std::fs::read(from.join("adapter_model.safetensors")).unwrap();
    let mut all: Tensors = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| {
            let values = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            (name.to_owned(), (view.shape().to_vec(), values.collect()))
        })
        .collect();
    tensors(&mut all);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    let all: Vec<(String, Vec<usize>, Vec<u8>)> = all
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = all
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    std::fs::write(
        dir.path().join("adapter_model.safetensors"),
        safetensors::serialize(views, None).unwrap(),
    )
    .unwrap();
    dir
}

#[test]
fn what_is_not_built_or_does_not_fit_is_refused_by_name() {
    let files = ModelFiles::open(&fixture(BASE)).unwrap();
    let refused = |path: &Path, wrong: &str| {
        let error = backstop::adapters::read(path, 1.0, &files.architecture).unwrap_err().to_string();
        assert!(error.contains(wrong), "{error}, expected {wrong}");
    };
    for (field, value, wrong) in [
        ("peft_type", json!("IA3"), "peft_type is \"IA3\", expected LORA"),
        ("peft_type", Value::Null, "peft_type is missing"),
        ("r", json!(0), "r is 0, expected an integer from 1 to 4096"),
        ("r", json!(5), "shape is [4, 36], expected 5 rows"),
        ("lora_alpha", json!("6"), "lora_alpha is "),
        ("lora_alpha", Value::Null, "lora_alpha is missing"),
        ("bias", json!("all"), "bias is \"all\", expected none"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save is "),
        ("target_parameters", json!(["mlp.experts"]), "target_parameters is "),
        ("lora_bias", json!(true), "lora_bias is true"),
        ("init_lora_weights", json!("pissa"), "init_lora_weights is "),
        ("use_dora", json!(true), "has no lora_magnitude_vector"),
        ("rank_pattern", json!({ "(": 4 }), "rank_pattern.( is no pattern"),
        ("rank_pattern", json!({ "q_proj": 4.5 }), "rank_pattern.q_proj is 4.5"),
        ("alpha_pattern", json!({ "q_proj": 4, ".*q_.*": 5 }), "expected one number for "),
    ] {
        let dir = changed("lora", |config| config[field] = value, |_| ());
        refused(dir.path(), wrong);
    }
    const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    let named = |from: &'static str, to: &'static str| {
        move |all: &mut Tensors| {
            let tensor = all.remove(from).unwrap();
            all.insert(to.to_owned(), tensor);
        }
    };
    let shaped = |name: &'static str, shape: [usize; 2]| {
        move |all: &mut Tensors| {
            all.insert(name.to_owned(), (shape.to_vec(), vec![0.5; shape[0] * shape[1]]));
        }
    };
    let cases = [
        wrong(|all: &mut Tensors| _ = all.remove(A), "the other matrix of its pair is missing"),
        wrong(|all: &mut Tensors| all.clear(), "it has no tensor of an adapter"),
        wrong(shaped(A, [4, 31]), "A is [4, 31], expected [1 to 4096, 32]"),
        wrong(shaped(B, [47, 4]), "B has 47 rows, expected 48"),
        wrong(shaped(B, [49, 4]), "B is [49, 4], expected [48, 4]"),
        wrong(shaped(B, [48, 3]), "B is [48, 3], expected [48, 4]"),
        wrong(|all: &mut Tensors| all.get_mut(A).unwrap().1[7] = f32::NAN, "a number that is not finite"),
        wrong(
            named(A, "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"),
            "the other matrix of its pair is missing",
        ),
        wrong(
            |all: &mut Tensors| {
                for leaf in ["A", "B"] {
                    let of = |layer| {
                        format!("base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{leaf}.weight")
                    };
                    let tensor = all.remove(&of(0)).unwrap();
                    all.insert(of(9), tensor);
                }
            },
            "model.layers.9.self_attn.q_proj is no module of this llama model",
        ),
        wrong(
            named(A, "base_model.model.model.embed_tokens.lora_embedding_A"),
            "it is no matrix of an adapter that is built",
        ),
    ];
    for (change, told) in cases {
        refused(changed("lora", |_| (), change).path(), told);
    }
    let dora = changed("dora", |config| config["use_dora"] = false.into(), |_| ());
    refused(dora.path(), "use_dora is false");
    // Patterns are compiled, and tried on every module.
    let many: serde_json::Map<String, Value> = (0..65).map(|i| (format!(".*{i}"), json!(4))).collect();
    for patterns in [Value::Object(many), json!({ (format!(".*{}", "x".repeat(260))): 4 })] {
        let dir = changed("lora", |config| config["rank_pattern"] = patterns, |_| ());
        refused(dir.path(), "expected at most 64 that are no plain names, of 256 bytes each");
    }
    // No link leads out of its directory.
    let (dir, other) = (changed("lora", |_| (), |_| ()), tempfile::tempdir().unwrap());
    let (file, elsewhere) = (dir.path().join("adapter_model.safetensors"), other.path().join("tensors"));
    std::fs::rename(&file, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
    refused(dir.path(), "outside the model's directory");
    // A head is multiplied by rows of its own.
    let head = changed(
        "rslora",
        |_| (),
        |all| {
            for (leaf, shape) in [("A", [4, 32]), ("B", [97, 4])] {
                shaped_into(all, &format!("base_model.model.lm_head.lora_{leaf}.weight"), shape);
            }
        },
    );
    let model = load(&[]);
    let source = AdapterSource { name: "head".into(), path: head.path().to_owned(), scale: 1.0 };
    let error = model.load_adapter(&source).unwrap_err().to_string();
    assert!(error.contains("lm_head") && error.contains("adapters of this module are not built"), "{error}");
    assert_eq!(model.engine().load().kv.reserved, 0);
    // What a magnitude is divided by is the norm of its row.
    let huge = changed(
        "dora",
        |_| (),
        |all| {
            let magnitudes = all.iter_mut().filter(|(name, _)| name.contains("magnitude"));
            magnitudes.for_each(|(_, (_, values))| values.fill(f32::MAX));
        },
    );
    let source = AdapterSource { name: "huge".into(), path: huge.path().to_owned(), scale: 1.0 };
    let error = model.load_adapter(&source).unwrap_err().to_string();
    assert!(error.contains("a magnitude over the norm of its row is no finite number"), "{error}");
    assert_eq!(model.engine().load().kv.reserved, 0);
    // Another model's, and none at all.
    refused(&fixture("adapters/turned"), "is no module of this llama model");
    refused(&fixture(BASE), "holds no adapter: expected a directory of PEFT");
    refused(&fixture("adapters/nothing"), "does not exist: expected");
    refused(&fixture("gguf/llama-yarn.gguf"), "general.type is ");
    let encoder = ModelFiles::open(&fixture("encoders/bert-mean")).unwrap();
    let error = backstop::adapters::read(&fixture("adapters/lora"), 1.0, &encoder.architecture).unwrap_err();
    assert!(error.to_string().contains("adapters of encoders are not built"), "{error}");
}

fn shaped_into(all: &mut Tensors, name: &str, shape: [usize; 2]) {
    all.insert(name.to_owned(), (shape.to_vec(), vec![0.5; shape[0] * shape[1]]));
}

/// A model with an adapter in its weights computes what PEFT does, and what the adapter does beside them.
#[test]
fn models_are_written_with_adapters_in_them() {
    for (name, base) in [
        ("lora", BASE),
        ("dora", BASE),
        ("fused-dora", "models/phi3-window"),
        ("by-head", "models/gpt_neox-parallel"),
        ("quantized-dora", "quantized/llama-affine4"),
        ("mlx-lora", "quantized/llama-affine4"),
    ] {
        let files = ModelFiles::open(&fixture(base)).unwrap();
        let from = fixture(&format!("adapters/{name}"));
        let adapter = backstop::adapters::read(&from, 1.0, &files.architecture).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("fused");
        // Where it is told to stop, nothing is left.
        let stopped = backstop::quantize::fuse(&files, &adapter, &out, &mut |_, _| false).unwrap();
        assert!(stopped.is_none() && !out.exists(), "{name}");
        let mut told = (0, 0);
        let mut progress = |done, all| {
            told = (done, all);
            true
        };
        let report = backstop::quantize::fuse(&files, &adapter, &out, &mut progress).unwrap().unwrap();
        assert_eq!(report.quantized, adapter.updates.len(), "{name}");
        assert!(told.0 == told.1 && told.1 == report.bytes_in, "{name}: {told:?}");
        let error = backstop::quantize::fuse(&files, &adapter, &out, &mut |_, _| true).unwrap_err();
        assert!(error.to_string().contains("fused"), "{error}");

        let options = LoadOptions { backend: BackendRequest::Cpu, ..LoadOptions::default() };
        let model = Model::load_with(ModelFiles::open(&out).unwrap(), options).unwrap();
        let bytes = std::fs::read(from.join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| tensors.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
        let tokens: Vec<u32> = words("tokens").into_iter().map(u32::from_le_bytes).collect();
        let expected: Vec<f32> = words("logits").into_iter().map(f32::from_le_bytes).collect();
        let got: Vec<f32> = model.logits(&tokens).unwrap().concat();
        let mean = expected.iter().sum::<f32>() / expected.len() as f32;
        let square = expected.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / expected.len() as f32;
        let apart = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / square.sqrt();
        assert_eq!(got.len(), expected.len());
        assert!(apart < 1e-4, "{name}: {apart} standard deviations apart");
    }
    let adapter = |name: &str, base: &str| {
        let files = ModelFiles::open(&fixture(base)).unwrap();
        let adapter =
            backstop::adapters::read(&fixture(&format!("adapters/{name}")), 1.0, &files.architecture)
                .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("fused");
        let error = backstop::quantize::fuse(&files, &adapter, &out, &mut |_, _| true).unwrap_err();
        assert!(!out.exists());
        error.to_string()
    };
    for (name, base, wrong) in [
        ("gguf-base", "gguf/llama-yarn.gguf", "is in GGUF; expected a directory of safetensors"),
        ("turned", "models/gpt2-plain", "is stored turned"),
        ("experts", "models/mixtral-window", "has stacks of experts"),
    ] {
        let error = adapter(name, base);
        assert!(error.contains(wrong), "{error}");
    }
}
