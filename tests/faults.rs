//! Faults: every op failing at its first and at a later call, and evaluations failing, on MLX with the CPU behind it.
//! The tokens are those of a run without faults, the counters say what happened, and nothing is left behind.

use std::path::{Path, PathBuf};

use backstop::backend::ops::OpKind;
use backstop::backend::select::BackendRequest;
use backstop::backend::{Faults, Policy};
use backstop::{Error, LoadOptions, Model, ModelFiles, Options};

/// Families that between them use every op.
const MODELS: [&str; 3] = ["llama-yarn", "phi-partial", "gemma2-caps"];

/// Ops that MLX has no kernel for: the dispatch composes them, so that no call of them reaches it.
const COMPOSED: [OpKind; 3] = [OpKind::GateUp, OpKind::AddRmsNorm, OpKind::Qkv];

fn has_mlx() -> bool {
    let has = cfg!(any(feature = "mlx", all(target_os = "macos", target_arch = "aarch64")));
    if !has {
        println!("skipped: this build has no MLX (cargo xtask test has)");
    }
    has
}

fn load(name: &str, backend: BackendRequest, policy: Policy, faults: Faults) -> Model {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name);
    // A chunk shorter than the prompt, so that prefill has several steps.
    let options = LoadOptions {
        backend,
        policy,
        faults,
        prefill_chunk: Some(7),
        threads: Some(2),
        ..LoadOptions::default()
    };
    Model::load_with(ModelFiles::open(&path).unwrap(), options).unwrap()
}

fn generate(model: &Model) -> Result<Vec<u32>, Error> {
    let vocab = model.info().config.vocab_size as u32;
    let prompt = (0..20).map(|i| (i * 7 + 3) % vocab).collect();
    let options = Options { max_tokens: Some(8), ignore_eos: true, ..Options::default() };
    let mut generation = model.generate_tokens(prompt, &options)?;
    for piece in generation.by_ref() {
        piece?;
    }
    Ok(generation.tokens().to_vec())
}

/// The ops that a model calls on MLX.
fn ops_of(name: &str) -> Vec<OpKind> {
    let mut ops = vec![
        OpKind::Embedding,
        OpKind::Linear,
        OpKind::Add,
        OpKind::Rope,
        OpKind::KvWrite,
        OpKind::Attention,
        OpKind::TakeRows,
    ];
    match name {
        "phi-partial" => ops.extend([OpKind::LayerNorm, OpKind::Gelu]),
        "gemma2-caps" => ops.extend([OpKind::RmsNorm, OpKind::Gelu, OpKind::Mul, OpKind::SoftCap]),
        _ => ops.extend([OpKind::RmsNorm, OpKind::Silu, OpKind::Mul]),
    }
    ops
}

#[test]
fn an_op_that_fails_falls_back_alone_and_changes_no_token() {
    if !has_mlx() {
        return;
    }
    let mut covered = Vec::new();
    for name in MODELS {
        let expected = generate(&load(name, BackendRequest::Mlx, Policy::Deny, Faults::default())).unwrap();
        for op in ops_of(name) {
            covered.push(op);
            // The first calls are in prefill, which has 3 steps, the last ones in decode, which has 7. Rows are taken
            // once, when the prompt ends.
            let faults: &[(u64, u64)] = match op {
                OpKind::TakeRows => &[(0, 1)],
                OpKind::Embedding | OpKind::SoftCap => &[(0, 3), (5, 3)],
                _ => &[(0, 3), (9, 3)],
            };
            for &(k, count) in faults {
                let what = format!("{name}: call {k} of {op}");
                let model = load(name, BackendRequest::Mlx, Policy::Allow, Faults::op(op, k, count));
                assert_eq!(generate(&model).unwrap(), expected, "{what}");
                let report = model.engine().report();
                assert_eq!(report.fallbacks(), [(op, "injected fault".to_owned(), count)], "{what}");
                assert!(report.replays().is_empty(), "{what}");
                // The next request finds nothing changed.
                assert_eq!(generate(&model).unwrap(), expected, "{what}, the next request");

                let model = load(name, BackendRequest::Mlx, Policy::Deny, Faults::op(op, k, 1));
                let error = generate(&model).unwrap_err().to_string();
                assert_eq!(error, format!("{op} failed on mlx: injected fault"), "{what}");
                assert!(model.engine().report().is_clean(), "{what}");
                assert_eq!(generate(&model).unwrap(), expected, "{what}, the request after the error");
            }
        }
    }
    let forgotten: Vec<_> = OpKind::ALL
        .into_iter()
        .filter(|op| !covered.contains(op) && !COMPOSED.contains(op) && *op != OpKind::Scale)
        .collect();
    assert!(forgotten.is_empty(), "no model calls {forgotten:?}");
}

#[test]
fn an_op_that_always_fails_runs_on_the_cpu_to_the_end() {
    if !has_mlx() {
        return;
    }
    let expected =
        generate(&load("llama-yarn", BackendRequest::Mlx, Policy::Deny, Faults::default())).unwrap();
    for op in [OpKind::Attention, OpKind::KvWrite, OpKind::Linear, OpKind::Embedding] {
        let model = load("llama-yarn", BackendRequest::Mlx, Policy::Allow, Faults::op(op, 0, u64::MAX));
        assert_eq!(generate(&model).unwrap(), expected, "{op}");
        let fallbacks = model.engine().report().fallbacks();
        assert!(fallbacks.len() == 1 && fallbacks[0].0 == op && fallbacks[0].2 > 8, "{op}: {fallbacks:?}");
    }
}

#[test]
fn an_evaluation_that_fails_is_replayed_on_the_cpu() {
    if !has_mlx() {
        return;
    }
    for name in MODELS {
        let expected = generate(&load(name, BackendRequest::Mlx, Policy::Deny, Faults::default())).unwrap();
        // Three steps of prefill, then decode.
        for k in [0, 1, 2, 3, 5] {
            for count in [1, 2] {
                let what = format!("{name}: evaluation {k}, {count} in a row");
                let model = load(name, BackendRequest::Mlx, Policy::Allow, Faults::evaluation_at(k, count));
                assert_eq!(generate(&model).unwrap(), expected, "{what}");
                let report = model.engine().report();
                assert!(report.fallbacks().is_empty(), "{what}: {:?}", report.fallbacks());
                let replays = report.replays();
                let reason = "eval failed on mlx: injected fault";
                assert!(
                    replays.len() == 1 && replays[0].0 == reason && (1..=count).contains(&replays[0].1),
                    "{what}: {replays:?}"
                );
                assert_eq!(generate(&model).unwrap(), expected, "{what}, the next request");
            }
            let model = load(name, BackendRequest::Mlx, Policy::Deny, Faults::evaluation_at(k, 1));
            let error = generate(&model).unwrap_err().to_string();
            assert_eq!(error, "eval failed on mlx: injected fault");
            assert!(model.engine().report().is_clean());
            assert_eq!(generate(&model).unwrap(), expected, "{name}: the request after the error");
        }
    }
}

#[test]
fn an_op_that_fails_on_the_cpu_ends_its_request_alone() {
    let expected =
        generate(&load("llama-yarn", BackendRequest::Cpu, Policy::Allow, Faults::default())).unwrap();
    for op in [OpKind::Embedding, OpKind::Qkv, OpKind::KvWrite, OpKind::Attention, OpKind::GateUp] {
        let model = load("llama-yarn", BackendRequest::Cpu, Policy::Allow, Faults::op(op, 1, 1));
        let error = generate(&model).unwrap_err().to_string();
        assert_eq!(error, format!("{op} failed on cpu: injected fault"));
        assert_eq!(generate(&model).unwrap(), expected, "{op}: the next request");
    }
}
