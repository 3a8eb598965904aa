//! What the parity tests share: backends, fixtures, and the comparison that prints its worst element.

use std::path::{Path, PathBuf};

use backstop::backend::cpu::Activations;
use backstop::backend::select::BackendRequest;
use backstop::backend::{LlmBackendKind, Policy};
use backstop::{LoadOptions, Model, ModelFiles};
use safetensors::SafeTensors;

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The backends of this build.
pub fn backends() -> Vec<LlmBackendKind> {
    let mut all = vec![LlmBackendKind::Cpu];
    if cfg!(any(feature = "mlx", all(target_os = "macos", target_arch = "aarch64"))) {
        all.push(LlmBackendKind::Mlx);
    } else {
        println!("skipped: this build has no MLX (cargo xtask test has)");
    }
    all
}

/// Load options that force `kind` and deny fallbacks.
pub fn options(kind: LlmBackendKind) -> LoadOptions {
    let backend = match kind {
        LlmBackendKind::Cpu => BackendRequest::Cpu,
        LlmBackendKind::Mlx => BackendRequest::Mlx,
    };
    LoadOptions {
        backend,
        policy: Policy::Deny,
        threads: Some(2),
        // Parity is of the same arithmetic: what rounding activations costs is stated by itself.
        activations: Activations::F32,
        ..LoadOptions::default()
    }
}

/// Loads the directory `path` with `options`.
pub fn load(path: &Path, options: LoadOptions) -> Model {
    let files = ModelFiles::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Model::load_with(files, options).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// stories260k, which is not part of the repository; absent, the test says so and is skipped.
pub fn stories260k() -> Option<PathBuf> {
    // Beside the checkout, or beside the one that a worktree belongs to.
    let places = ["../shared/models/stories260k", "../../shared/models/stories260k"];
    let found = places.iter().map(|place| root().join(place)).find(|path| path.join("config.json").is_file());
    if found.is_none() {
        println!("skipped: {} is absent", root().join(places[0]).display());
    }
    found
}

/// What transformers computed for a fixture.
pub struct Expected {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Ids that it continued with, greedily.
    pub greedy: Vec<u32>,
    /// Logits after each token of both, in the weights' type.
    pub logits: Vec<Vec<f32>>,
    /// The same with the weights widened to `f32`, where they are narrower.
    pub logits_wide: Option<Vec<Vec<f32>>>,
}

impl Expected {
    /// Reads `expected.safetensors` of a fixture.
    pub fn load(dir: &Path) -> Self {
        let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let ids = |name: &str| -> Vec<u32> {
            let view = tensors.tensor(name).unwrap();
            view.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let rows = |name: &str| -> Option<Vec<Vec<f32>>> {
            let view = tensors.tensor(name).ok()?;
            let width = view.shape()[1];
            let values: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            Some(values.chunks_exact(width).map(<[f32]>::to_vec).collect())
        };
        Self {
            prompt: ids("tokens"),
            greedy: ids("greedy"),
            logits: rows("logits").unwrap(),
            logits_wide: rows("logits_f32"),
        }
    }

    /// Prompt and continuation.
    pub fn tokens(&self) -> Vec<u32> {
        [&self.prompt[..], &self.greedy[..]].concat()
    }
}

/// Standard deviation of all elements.
pub fn deviation(rows: &[Vec<f32>]) -> f64 {
    let count = rows.iter().map(Vec::len).sum::<usize>() as f64;
    let all = || rows.iter().flatten().map(|&x| f64::from(x));
    let mean = all().sum::<f64>() / count;
    (all().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// Compares rows of logits: the largest difference, in units of the expected ones' standard deviation, is at most
/// `bound`. Returns it, and the root of the mean square of all.
#[track_caller]
pub fn close(what: &str, got: &[Vec<f32>], expected: &[Vec<f32>], bound: f32) -> (f32, f32) {
    assert_eq!(got.len(), expected.len(), "{what}: rows");
    let unit = deviation(expected);
    let mut worst = (0.0_f64, 0, 0);
    let (mut squares, mut count) = (0.0, 0.0);
    for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len(), "{what}: width of row {row}");
        for (column, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            let apart = (f64::from(got) - f64::from(expected)).abs() / unit;
            squares += apart * apart;
            count += 1.0;
            if apart > worst.0 || apart.is_nan() {
                worst = (apart, row, column);
            }
        }
    }
    let (apart, row, column) = worst;
    assert!(
        apart <= f64::from(bound),
        "{what}: row {row}, column {column}: got {}, expected {}: {apart:.3e} standard deviations, at most {bound:.0e}",
        got[row][column],
        expected[row][column],
    );
    (apart as f32, (squares / f64::max(count, 1.0)).sqrt() as f32)
}
