//! Each family and rope scaling as a tiny random model whose logits transformers computed, and each kind of quantized
//! model with those of mlx-lm, or of transformers on the values that its publisher decodes.

use std::path::{Path, PathBuf};

use backstop::backend::batch::Batch;
use backstop::backend::kv::{CodeRows, GROUP, HostKv, KvType};
use backstop::backend::ops::StateSpec;
use backstop::backend::{LayerState, LlmBackendKind};
use backstop::engine::Runtime;
use backstop::quant::repack::MlxForm;
use backstop::tensor::DType;
use backstop::weights::Stored;
use backstop::{LoadOptions, Model, ModelFiles, Options};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::harness::{Expected, backends, close, load, options, root};
use crate::tolerance;

/// Every fixture directory.
pub(super) fn fixtures() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = ["models", "quantized"]
        .into_iter()
        .flat_map(|name| std::fs::read_dir(root().join("tests/fixtures").join(name)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").is_file())
        .collect();
    all.sort();
    assert!(all.len() >= 42, "only {} fixtures", all.len());
    all
}

/// The backends that compute the values of a model's file: MLX has forms for some that are only near.
pub(super) fn exact_backends(path: &Path) -> Vec<LlmBackendKind> {
    let files = ModelFiles::open(path).unwrap();
    let is_near = |tensor: &Stored| {
        let columns = tensor.shape.last().copied().unwrap_or(0);
        tensor.format.is_some_and(|format| {
            !matches!(format.on_mlx(columns), Some(MlxForm::Native | MlxForm::Equal(_)))
        })
    };
    let near = files.tensors().into_iter().find(is_near);
    let mut kinds = backends();
    if let Some(near) = near.filter(|_| kinds.contains(&LlmBackendKind::Mlx)) {
        // Ops are compared one by one, with the values that MLX then holds.
        println!(
            "skipped: {} on MLX, which holds {} in the nearest form that it has",
            path.display(),
            near.kind
        );
        kinds.retain(|kind| *kind != LlmBackendKind::Mlx);
    }
    kinds
}

/// Logits of prompt and continuation: the prompt in steps of at most `chunk` tokens, then token by token from the cache.
pub(super) fn cached(path: &Path, options: LoadOptions, expected: &Expected, chunk: usize) -> Vec<Vec<f32>> {
    cached_with_states(path, options, expected, chunk).0
}

/// The same, and each layer's cache at the end.
fn cached_with_states(
    path: &Path,
    options: LoadOptions,
    expected: &Expected,
    chunk: usize,
) -> (Vec<Vec<f32>>, Vec<HostKv>) {
    cached_of(&load(path, options), expected, chunk)
}

/// The same of a model that is loaded.
pub(super) fn cached_of(model: &Model, expected: &Expected, chunk: usize) -> (Vec<Vec<f32>>, Vec<HostKv>) {
    let (tokens, prompt) = (expected.tokens(), expected.prompt.len());
    model
        .engine()
        .with(move |runtime| {
            let mut state = runtime.sequence(prompt);
            let mut rows = Vec::new();
            let mut start = 0;
            while start < tokens.len() {
                let end = if start < prompt { (start + chunk).min(prompt) } else { start + 1 };
                let mut batch = Batch::of(&[(start, &tokens[start..end])]);
                batch.outputs = (0..end - start).collect();
                let logits = runtime.step(&batch, std::slice::from_mut(&mut state)).unwrap();
                rows.extend((0..end - start).map(|row| logits.row(row).to_vec()));
                start = end;
            }
            assert_eq!(state.kv.len(), tokens.len());
            let layers = state.kv.layers.iter();
            (rows, layers.map(|layer| runtime.dispatch().state_to_host(layer).unwrap()).collect())
        })
        .unwrap()
}

/// The logits of each token alone, behind what `caches` hold of all before it, and what each then wrote into them: what another
/// backend rounded is thereby no difference to what follows.
fn behind(
    path: &Path,
    options: LoadOptions,
    expected: &Expected,
    caches: Vec<HostKv>,
) -> (Vec<Vec<f32>>, Vec<Vec<[CodeRows; 2]>>) {
    let model = load(path, options);
    let (tokens, prompt) = (expected.tokens(), expected.prompt.len());
    assert!(caches.iter().all(|cache| cache.first() == 0), "pages were given back that are looked at here");
    let run = move |runtime: &Runtime| {
        let mut state = runtime.sequence(prompt);
        let one = |at: usize| {
            for (layer, cache) in state.kv.layers.iter_mut().zip(&caches) {
                let mut cache = cache.clone();
                cache.truncate(at);
                *layer = LayerState::Host(cache);
            }
            let batch = Batch::of(&[(at, &tokens[at..=at])]);
            let logits = runtime.step(&batch, std::slice::from_mut(&mut state)).unwrap().row(0).to_vec();
            let layers = state.kv.layers.iter();
            let kept = layers.map(|layer| {
                let codes = runtime.dispatch().state_to_host(layer).unwrap().read_codes().unwrap().unwrap();
                codes.map(|rows| row(&rows, at, at + 1))
            });
            (logits, kept.collect())
        };
        (0..tokens.len()).map(one).unzip()
    };
    model.engine().with(run).unwrap()
}

/// The row of the token at `at` among those of `len` tokens.
fn row(rows: &CodeRows, at: usize, len: usize) -> CodeRows {
    let [codes, groups] = [rows.codes.len() / len, rows.scales.len() / len];
    CodeRows {
        codes: rows.codes[at * codes..][..codes].to_vec(),
        scales: rows.scales[at * groups..][..groups].to_vec(),
        biases: rows.biases[at * groups..][..groups].to_vec(),
    }
}

#[test]
fn prompt_cached_decode_and_chunks_agree_with_the_reference() {
    for path in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let expected = Expected::load(&path);
        for kind in exact_backends(&path) {
            let dtype = load(&path, options(kind)).info().dtype;
            for chunk in [usize::MAX, 1, 7] {
                let got = cached(&path, options(kind), &expected, chunk);
                let what =
                    format!("{name} on {kind}, chunks of at most {}", chunk.min(expected.prompt.len()));
                let (apart, rms) = close(&what, &got, &expected.logits, tolerance::logits(dtype));
                println!("{what}: {apart:.2e} standard deviations, {rms:.2e} in the mean");
                assert!(rms <= tolerance::logits_rms(dtype), "{what}: {rms:.2e} in the mean");
            }
        }
    }
}

/// The CPU widens narrow weights and computes in `f32`: with a cache in `f32` too, it is as close to transformers on the
/// widened weights as it is on `f32` ones.
#[test]
fn narrow_weights_on_the_cpu_agree_with_the_same_weights_widened() {
    let mut compared = 0;
    for path in fixtures() {
        let mut expected = Expected::load(&path);
        let Some(wide) = expected.logits_wide.take() else { continue };
        let wider = LoadOptions { kv_type: Some(KvType::F32), ..options(LlmBackendKind::Cpu) };
        let family = load(&path, options(LlmBackendKind::Cpu)).info().config.model_type;
        let got = cached(&path, wider, &expected, 7);
        let bound = match family {
            "gemma2" => tolerance::GEMMA2_SCALE,
            "gemma3n_text" | "gemma4_text" => tolerance::GEMMA4_SCALE,
            _ => tolerance::logits(DType::F32),
        };
        let (apart, _) = close(&path.display().to_string(), &got, &wide, bound);
        println!("{}: {apart:.2e} standard deviations", path.display());
        compared += 1;
    }
    assert!(compared >= 7, "only {compared} fixtures have narrow weights");
}

/// How two quantized caches differ.
#[derive(Debug, Default)]
struct Flips {
    /// Codes of both.
    codes: usize,
    /// Of these, the ones that are not the same.
    different: usize,
    /// The furthest that two are apart, of those with one scale and one bias on both sides: a bias far from zero that moves
    /// by its last bit is several codes.
    furthest: u8,
    /// Scales and biases that are not the same.
    scales: usize,
}

impl Flips {
    /// Codes, scales and biases that are not the same.
    fn turned(&self) -> usize {
        self.different + self.scales
    }

    fn add(&mut self, head_dim: usize, a: &[[CodeRows; 2]], b: &[[CodeRows; 2]]) {
        assert!(!a.is_empty() && a.len() == b.len());
        for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
            assert_eq!((a.codes.len(), a.scales.len()), (b.codes.len(), b.scales.len()));
            self.codes += a.codes.len();
            let same =
                |group: usize| (a.scales[group], a.biases[group]) == (b.scales[group], b.biases[group]);
            let groups = head_dim.div_ceil(GROUP);
            // Of layers whose heads are others, which have one group here, too.
            let head_dim = if groups == 1 { a.codes.len() / a.scales.len().max(1) } else { head_dim };
            let pairs = a.codes.iter().zip(&b.codes).enumerate();
            for (at, (a, b)) in pairs.filter(|(_, (a, b))| a != b) {
                self.different += 1;
                if same(at / head_dim * groups + at % head_dim / GROUP) {
                    self.furthest = self.furthest.max(a.abs_diff(*b));
                }
            }
            let edges = a.scales.iter().chain(&a.biases).zip(b.scales.iter().chain(&b.biases));
            self.scales += edges.filter(|(a, b)| a != b).count();
        }
    }
}

/// Both backends round K and V to the same codes. An activation that differs in its last bits may take the neighbouring code,
/// or move a scale, which later layers and later tokens then amplify. So the CPU computes each token behind the codes of the other
/// backend: in `f32` a token whose own codes are the same has the logits that it has with a cache of floats, and few have others.
/// Against a cache of floats, rounding shows.
#[test]
fn quantized_caches_agree_between_the_backends_and_with_floats() {
    for path in fixtures() {
        let states = ModelFiles::open(&path).unwrap().architecture.states();
        // Nothing but states of fixed size, which are never rounded.
        if states.iter().all(|state| matches!(state, StateSpec::Recurrent(_))) {
            continue;
        }
        let expected = Expected::load(&path);
        let on = |kind, kv_type| {
            cached_with_states(&path, LoadOptions { kv_type: Some(kv_type), ..options(kind) }, &expected, 7)
        };
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let info = load(&path, options(LlmBackendKind::Cpu)).info().clone();
        let (dtype, head_dim) = (info.dtype, info.config.head_dim);
        if info.config.latent.is_some() {
            for kv_type in [KvType::Q8, KvType::Q4] {
                let with_codes = LoadOptions { kv_type: Some(kv_type), ..options(LlmBackendKind::Cpu) };
                let error = Model::load_with(ModelFiles::open(&path).unwrap(), with_codes).unwrap_err();
                let said = format!(
                    "kv_type is {kv_type}, expected f32, f16 or bf16, in which latent vectors can be kept"
                );
                assert_eq!(error.to_string(), said, "{name}");
            }
            continue;
        }
        let has_experts = info.config.experts.is_some();
        let undivided = info.config.attention_multiplier == Some(1.0);
        let (floats, caches) = on(LlmBackendKind::Cpu, KvType::F32);
        assert!(caches.iter().all(|cache| cache.read_codes().unwrap().is_none()));
        for kv_type in [KvType::Q8, KvType::Q4] {
            let (cpu, _) = on(LlmBackendKind::Cpu, kv_type);
            let rms = match has_experts {
                true => tolerance::routed_cache(kv_type),
                false if undivided => tolerance::quantized_cache_of_undivided_scores(kv_type),
                false => tolerance::quantized_cache(kv_type),
            };
            let (apart, mean) = close(&format!("{name}, {kv_type} on the CPU"), &cpu, &floats, f32::INFINITY);
            println!(
                "{name}, {kv_type}: {apart:.2e} standard deviations from floats, {mean:.2e} in the mean"
            );
            assert!(mean > 0.0 && mean <= rms, "{name}, {kv_type}: {mean:.2e} in the mean");
            for kind in exact_backends(&path).into_iter().filter(|kind| *kind != LlmBackendKind::Cpu) {
                let what = format!("{name}, {kv_type} on {kind}");
                let (got, caches) = on(kind, kv_type);
                let codes: Vec<_> = caches.iter().map(|cache| cache.read_codes().unwrap().unwrap()).collect();
                let on_cpu = LoadOptions { kv_type: Some(kv_type), ..options(LlmBackendKind::Cpu) };
                let (alone, kept) = behind(&path, on_cpu, &expected, caches);
                let mut flips = Flips::default();
                let mut same = [Vec::new(), Vec::new()];
                for (at, kept) in kept.iter().enumerate() {
                    let of_row = |rows: &[CodeRows; 2]| rows.each_ref().map(|rows| row(rows, at, got.len()));
                    let before = flips.turned();
                    flips.add(head_dim, &codes.iter().map(of_row).collect::<Vec<_>>(), kept);
                    if flips.turned() == before {
                        same[0].push(got[at].clone());
                        same[1].push(alone[at].clone());
                    }
                }
                let turned = got.len() - same[0].len();
                let (apart, mean) = close(&what, &got, &alone, f32::INFINITY);
                println!(
                    "{what}: {apart:.2e} standard deviations from the CPU, {mean:.2e} in the mean; {flips:?} in {turned} tokens"
                );
                let rms = tolerance::quantized_cache_parity(dtype, kv_type, has_experts);
                assert!(mean <= rms, "{what}: {mean:.2e} in the mean; {flips:?}");
                if dtype == DType::F32 {
                    assert!(flips.furthest <= 1, "{what}: {flips:?}");
                    // One that turned moves what later layers round of its token: seen are 2 of 6,240, in 2 of 34 tokens.
                    assert!(flips.different * 100 <= flips.codes, "{what}: {flips:?}");
                    assert!(turned * 5 <= got.len(), "{what}: codes of {turned} of {} tokens", got.len());
                    let (_, mean) = close(&what, &same[0], &same[1], tolerance::logits(dtype));
                    assert!(mean <= tolerance::logits_rms(dtype), "{what}: {mean:.2e} with the same codes");
                }
            }
        }
    }
}

#[test]
fn greedy_tokens_equal_those_of_the_reference() {
    for path in fixtures() {
        let expected = Expected::load(&path);
        for kind in exact_backends(&path) {
            for prefill_chunk in [None, Some(7)] {
                let model = load(&path, LoadOptions { prefill_chunk, ..options(kind) });
                let asked = Options {
                    max_tokens: Some(expected.greedy.len()),
                    ignore_eos: true,
                    ..Options::default()
                };
                let mut generation = model.generate_tokens(expected.prompt.clone(), &asked).unwrap();
                for piece in generation.by_ref() {
                    piece.unwrap();
                }
                assert_eq!(generation.tokens(), expected.greedy, "{} on {kind}", path.display());
                assert!(model.engine().report().is_clean());
            }
        }
    }
}

/// mlx-lm leaves values and biases as they are when it multiplies the other weights: what such a directory stands for is not what it says.
#[test]
fn weights_that_are_multiplied_already_leave_nothing_out() {
    let source = root().join("tests/fixtures/quantized/falcon_h1-affine4");
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), &bytes).unwrap();
    let with = |old: &str, new: &str| {
        assert!(config.contains(old), "{old}");
        std::fs::write(dir.path().join("config.json"), config.replace(old, new)).unwrap();
        Model::load_with(ModelFiles::open(dir.path()).unwrap(), options(LlmBackendKind::Cpu)).map(drop)
    };
    with("\"key_multiplier\": 1.0", "\"key_multiplier\": 0.5").unwrap();
    let error = with("\"attention_in_multiplier\": 1.0", "\"attention_in_multiplier\": 0.5").unwrap_err();
    let expected = "model.layers.0.self_attn.v_proj: is not multiplied by attention_in_multiplier";
    assert!(error.to_string().contains(expected), "{error}");

    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let bias = [0; 64 * 4];
    let mut all: Vec<_> = tensors.tensors();
    let name = "model.layers.0.feed_forward.down_proj.bias";
    all.push((name.to_owned(), TensorView::new(Dtype::F32, vec![64], &bias).unwrap()));
    std::fs::write(dir.path().join("model.safetensors"), safetensors::serialize(all, None).unwrap()).unwrap();
    let error = with("\"mlp_bias\": false", "\"mlp_bias\": true").unwrap_err();
    let expected = "model.layers.0.feed_forward.down_proj: has a bias, expected none beside weights";
    assert!(error.to_string().contains(expected), "{error}");
}
