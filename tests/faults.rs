//! Faults: ops failing at their first and at a later call, evaluations failing, once and for good, kernels that compute wrong, on
//! MLX with the CPU behind it.
//! The tokens are those of a run without faults, the counters say what happened, and nothing is left behind.

use std::path::{Path, PathBuf};

use backstop::backend::batch::Batch;
use backstop::backend::cpu::Activations;
use backstop::backend::ops::OpKind;
use backstop::backend::select::BackendRequest;
use backstop::backend::{Faults, Policy};
use backstop::forward::step::SequenceState;
use backstop::{Drafts, Error, LoadOptions, Model, ModelFiles, Options};

/// Families that between them use every op.
const MODELS: [&str; 11] = [
    "llama-yarn",
    "phi-partial",
    "gemma2-caps",
    "nemotron-bias",
    "granite-scales",
    "qwen2_moe-shared",
    "mistral4-yarn",
    "qwen3_5-delta",
    "gemma3n-streams",
    "gemma4-shared",
    "granitemoehybrid-dense",
];

/// Ops that MLX has no kernel for: the dispatch composes them, so that no call of them reaches it.
const COMPOSED: [OpKind; 4] = [OpKind::GateUp, OpKind::AddRmsNorm, OpKind::Adapt, OpKind::Qkv];
/// What several ranks do together: nothing stands behind it (`tests/parity/models/ranks.rs`).
const RANKED: [OpKind; 1] = [OpKind::AllSum];
/// Ops of layers that guess, whose failures end no request.
const GUESSING: [OpKind; 1] = [OpKind::Join];

fn has_mlx() -> bool {
    let has = cfg!(any(feature = "mlx", all(target_os = "macos", target_arch = "aarch64")));
    if !has {
        println!("skipped: this build has no MLX (cargo xtask test has)");
    }
    has
}

fn load(name: &str, backend: BackendRequest, policy: Policy, faults: Faults) -> Model {
    load_with(&format!("models/{name}"), backend, policy, faults, &[])
}

/// A fixture, with some ops kept off MLX.
fn load_with(
    name: &str,
    backend: BackendRequest,
    policy: Policy,
    faults: Faults,
    cpu_ops: &[OpKind],
) -> Model {
    load_by(
        name,
        LoadOptions { backend, policy, faults, cpu_ops: cpu_ops.to_vec(), ..LoadOptions::default() },
    )
}

/// A fixture, with the rest of its options.
fn load_by(name: &str, options: LoadOptions) -> Model {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    // A chunk shorter than the prompt, so that prefill has several steps.
    let options = LoadOptions {
        // What the CPU computes in place of MLX is to be as near to it as it can be.
        activations: Activations::F32,
        prefill_chunk: Some(7),
        threads: Some(2),
        ..options
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
    if name == "qwen3_5-delta" {
        // The rest is in one layer alone.
        return vec![OpKind::Linear, OpKind::RmsNorm, OpKind::Convolution, OpKind::DeltaRule];
    }
    if name == "granitemoehybrid-dense" {
        // Attention is in one layer alone.
        return vec![OpKind::Convolution, OpKind::Scan, OpKind::RmsNorm, OpKind::Mul, OpKind::Scale];
    }
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
        "nemotron-bias" => ops.extend([OpKind::LayerNorm, OpKind::Relu2]),
        "granite-scales" => ops.extend([OpKind::RmsNorm, OpKind::Silu, OpKind::Mul, OpKind::Scale]),
        "gemma2-caps" => ops.extend([OpKind::RmsNorm, OpKind::Gelu, OpKind::Mul, OpKind::SoftCap]),
        "gemma3n-streams" => {
            ops.extend([OpKind::RmsNorm, OpKind::Gelu, OpKind::Mul, OpKind::Scale, OpKind::SoftCap]);
            ops.extend([OpKind::Mix, OpKind::Cut]);
        }
        "gemma4-shared" => {
            ops.extend([OpKind::RmsNorm, OpKind::Gelu, OpKind::Mul, OpKind::Scale, OpKind::SoftCap]);
        }
        "qwen2_moe-shared" => {
            ops.extend([OpKind::RmsNorm, OpKind::Silu, OpKind::Mul]);
            ops.extend([OpKind::Route, OpKind::Experts, OpKind::Gate]);
        }
        "mistral4-yarn" => ops.extend([OpKind::RmsNorm, OpKind::HeadLinear, OpKind::ScaleRows]),
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
                // In one layer alone, as these are in one place.
                OpKind::Embedding | OpKind::SoftCap | OpKind::Route | OpKind::Experts | OpKind::Gate => {
                    &[(0, 3), (5, 3)]
                }
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
    let forgotten: Vec<_> =
        OpKind::ALL.into_iter().filter(|op| !covered.contains(op) && !COMPOSED.contains(op)).collect();
    assert_eq!(forgotten, [GUESSING, RANKED].concat(), "what no model calls");
}

/// What fails of a layer that guesses is computed on the CPU, or the text goes on without it.
#[test]
fn a_layer_ahead_that_fails_changes_no_token() {
    if !has_mlx() {
        return;
    }
    let load = |drafts, policy, faults| {
        let options =
            LoadOptions { backend: BackendRequest::Mlx, policy, faults, drafts, ..LoadOptions::default() };
        load_by("ahead/qwen3_5-tiled", options)
    };
    let expected = generate(&load(Drafts::Off, Policy::Deny, Faults::default())).unwrap();
    assert_eq!(generate(&load(Drafts::On, Policy::Deny, Faults::default())).unwrap(), expected);
    for op in GUESSING {
        for count in [1, u64::MAX] {
            let what = format!("{count} calls of {op}");
            let model = load(Drafts::On, Policy::Allow, Faults::op(op, 0, count));
            assert_eq!(generate(&model).unwrap(), expected, "{what}");
            let fallbacks = model.engine().report().fallbacks();
            let [(failed, reason, times)] = &fallbacks[..] else { panic!("{what}: {fallbacks:?}") };
            assert_eq!((*failed, &**reason), (op, "injected fault"), "{what}");
            assert!((1..=count).contains(times), "{what}: {times}");

            let model = load(Drafts::On, Policy::Deny, Faults::op(op, 0, count));
            for request in ["the request", "the next request"] {
                assert_eq!(generate(&model).unwrap(), expected, "{what}: {request}");
            }
            assert!(model.engine().report().is_clean(), "{what}");
        }
    }
    // An evaluation of the layer that fails is not one of the text's, which go on behind it.
    let mut replayed = Vec::new();
    for k in 0..12 {
        let model = load(Drafts::On, Policy::Allow, Faults::evaluation_at(k, 1));
        for request in ["the request", "the next request"] {
            assert_eq!(generate(&model).unwrap(), expected, "evaluation {k}: {request}");
        }
        let report = model.engine().report();
        assert!(report.left_mlx().is_none(), "evaluation {k}");
        replayed.push(!report.replays().is_empty());
    }
    let of_layer = replayed.iter().position(|replayed| !replayed);
    assert!(replayed[0] && of_layer.is_some_and(|k| replayed[k..].contains(&true)), "{replayed:?}");
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

/// A step with the next token of a sequence; the most likely token after it.
fn step(model: &Model, state: SequenceState, token: u32) -> (SequenceState, u32) {
    let stepped = model.engine().with(move |runtime| {
        let mut state = state;
        let batch = Batch::of(&[(state.history.len(), &[token])]);
        let logits = runtime.step(&batch, std::slice::from_mut(&mut state)).unwrap();
        let row = logits.row(0);
        let best = (0..row.len()).reduce(|best, i| if row[i] > row[best] { i } else { best }).unwrap();
        (state, best as u32)
    });
    stepped.unwrap()
}

fn sequence(model: &Model) -> SequenceState {
    model.engine().with(|runtime| runtime.sequence(16)).unwrap()
}

/// Tokens that follow `token`, greedily, each step with the faults that `faults` has for it.
fn follow(model: &Model, plan: &Faults, token: u32, faults: &[bool]) -> Vec<u32> {
    let (mut state, mut token) = (sequence(model), token);
    let mut tokens = Vec::new();
    for &fails in faults {
        plan.replace(&if fails { Faults::evaluation_at(0, 1) } else { Faults::default() });
        (state, token) = step(model, state, token);
        tokens.push(token);
    }
    tokens
}

#[test]
fn three_evaluations_that_fail_in_a_row_leave_mlx_for_good() {
    if !has_mlx() {
        return;
    }
    let reason = Some("injected fault".to_owned());
    for name in MODELS {
        let plan = Faults::default();
        let model = load(name, BackendRequest::Mlx, Policy::Deny, plan.clone());
        let expected = follow(&model, &plan, 5, &[false; 8]);

        // Two, a success, and two more are no three in a row.
        let model = load(name, BackendRequest::Mlx, Policy::Allow, plan.clone());
        let twice = [true, true, false, true, true, false, false, false];
        assert_eq!(follow(&model, &plan, 5, &twice), expected, "{name}");
        let report = model.engine().report();
        assert_eq!((report.left_mlx(), report.replays()[0].1), (None, 4), "{name}");

        // A sequence that MLX began, and that is not part of the steps that fail, goes on with what it has.
        let model = load(name, BackendRequest::Mlx, Policy::Allow, plan.clone());
        let (mut other, mut token) = step(&model, sequence(&model), 5);
        let mut tokens = vec![token];
        let thrice = [false, true, true, true, false, true, true, false];
        assert_eq!(follow(&model, &plan, 5, &thrice), expected, "{name}");
        let report = model.engine().report();
        // Nothing is evaluated any more, so that nothing fails.
        assert_eq!((report.left_mlx(), report.replays()[0].1), (reason.clone(), 3), "{name}");
        assert!(report.fallbacks().is_empty(), "{name}: {:?}", report.fallbacks());
        while tokens.len() < expected.len() {
            (other, token) = step(&model, other, token);
            tokens.push(token);
        }
        assert_eq!(tokens, expected, "{name}: the other sequence");
        #[cfg(any(feature = "mlx", all(target_os = "macos", target_arch = "aarch64")))]
        {
            let held = |runtime: &backstop::engine::Runtime| runtime.dispatch().weight_cache().unwrap().len();
            assert_eq!(model.engine().with(held).unwrap(), 0, "{name}: weights are still on MLX");
        }
        plan.replace(&Faults::default());
        let expected = generate(&load(name, BackendRequest::Mlx, Policy::Deny, plan)).unwrap();
        for request in ["the next request", "the one after"] {
            assert_eq!(generate(&model).unwrap(), expected, "{name}: {request}");
        }
    }
}

#[test]
fn requests_in_flight_go_on_when_mlx_is_left() {
    if !has_mlx() {
        return;
    }
    for name in MODELS {
        let expected = generate(&load(name, BackendRequest::Mlx, Policy::Deny, Faults::default())).unwrap();
        for k in [0, 2, 4] {
            let faults = Faults::evaluation_at(k, u64::MAX);
            let model = load(name, BackendRequest::Mlx, Policy::Allow, faults);
            assert_eq!(generate(&model).unwrap(), expected, "{name}: from evaluation {k} on");
            let report = model.engine().report();
            let replays = report.replays();
            assert_eq!((replays.len(), replays[0].1), (1, 3), "{name}: {replays:?}");
            assert_eq!(report.left_mlx().as_deref(), Some("injected fault"), "{name}");
            assert_eq!(generate(&model).unwrap(), expected, "{name}: the next request");
        }
        // Where replays are denied MLX is never left: each request ends with the error.
        let model = load(name, BackendRequest::Mlx, Policy::Deny, Faults::evaluation_at(0, 5));
        for _ in 0..5 {
            let error = generate(&model).unwrap_err().to_string();
            assert_eq!(error, "eval failed on mlx: injected fault", "{name}");
        }
        assert!(model.engine().report().left_mlx().is_none(), "{name}");
        assert_eq!(generate(&model).unwrap(), expected, "{name}: the request after the errors");
    }
}

#[test]
fn ops_that_were_asked_for_run_on_the_cpu() {
    if !has_mlx() {
        return;
    }
    for name in MODELS {
        let expected = generate(&load(name, BackendRequest::Mlx, Policy::Deny, Faults::default())).unwrap();
        let fused = [OpKind::Qkv, OpKind::GateUp];
        for asked in [&[OpKind::Attention][..], &[OpKind::Linear, OpKind::KvWrite], &fused] {
            // It is no failure, so that Deny does not deny it.
            for policy in [Policy::Allow, Policy::Deny] {
                let path = format!("models/{name}");
                let model = load_with(&path, BackendRequest::Mlx, policy, Faults::default(), asked);
                assert_eq!(generate(&model).unwrap(), expected, "{name}: {asked:?}");
                let fallbacks = model.engine().report().fallbacks();
                // Phi and Nemotron have no gate.
                let gated = !["phi-partial", "nemotron-bias"].contains(&name);
                let called = asked.iter().filter(|op| gated || **op != OpKind::GateUp);
                let mut called: Vec<OpKind> = called.copied().collect();
                called.sort_unstable();
                let counted: Vec<OpKind> = fallbacks.iter().map(|(op, ..)| *op).collect();
                assert_eq!(counted, called, "{name}: {asked:?}");
                let why = |(_, reason, count): &(OpKind, String, u64)| {
                    reason == "asked for by --cpu-ops" && *count > 0
                };
                assert!(fallbacks.iter().all(why), "{name}: {fallbacks:?}");
            }
        }
    }
}

#[test]
fn a_kernel_that_computes_wrong_is_kept_off_mlx() {
    if !has_mlx() {
        return;
    }
    for (name, op) in [
        ("models/llama-yarn", OpKind::Attention),
        ("quantized/llama-affine4", OpKind::Linear),
        ("quantized/llama-affine4", OpKind::Attention),
    ] {
        let load = |policy: Policy, faults: Faults| load_with(name, BackendRequest::Mlx, policy, faults, &[]);
        let expected = generate(&load(Policy::Deny, Faults::default())).unwrap();
        let model = load(Policy::Allow, Faults::wrong_in_check(op));
        assert_eq!(generate(&model).unwrap(), expected, "{name}: {op}");
        let fallbacks = model.engine().report().fallbacks();
        assert_eq!(fallbacks.len(), 1, "{name}: {fallbacks:?}");
        let (kept, reason, count) = &fallbacks[0];
        assert_eq!(*kept, op, "{name}");
        assert!(reason.starts_with("wrong in the start-up check: off by "), "{name}: {reason}");
        assert!(*count > 8, "{name}: {count} calls");

        let error = generate(&load(Policy::Deny, Faults::wrong_in_check(op))).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{op} failed on mlx: wrong in the start-up check")), "{error}");
    }
    // The products of dense weights are other kernels.
    let model = load("llama-yarn", BackendRequest::Mlx, Policy::Deny, Faults::wrong_in_check(OpKind::Linear));
    generate(&model).unwrap();
    assert!(model.engine().report().is_clean());
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
