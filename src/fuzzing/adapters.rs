//! Adapters: files that are put beside a model's weights while others are served with it.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use super::input::{Input, Scratch, joined, parts, sound};
use super::seeds::fixture;
use crate::backend::select::BackendRequest;
use crate::model::{AdapterSource, LoadOptions, Model, ModelFiles};

/// Families whose modules are stored in other orders, experts, and weights in blocks.
const MODELS: [&str; 7] = [
    "models/llama-bias",
    "models/phi3-window",
    "models/gpt2-plain",
    "models/gpt_neox-parallel",
    "models/mixtral-window",
    "models/llama-yarn",
    "quantized/llama-affine4",
];
/// Adapters, the model of each, and what its files are called.
const ADAPTERS: [(&str, usize, Kind); 12] = [
    ("lora", 0, Kind::Peft),
    ("dora", 0, Kind::Peft),
    ("patterns", 0, Kind::Peft),
    ("fused", 1, Kind::Peft),
    ("fused-dora", 1, Kind::Peft),
    ("turned", 2, Kind::Peft),
    ("by-head", 3, Kind::Peft),
    ("experts", 4, Kind::Peft),
    ("gguf", 5, Kind::Gguf),
    ("quantized-dora", 6, Kind::Peft),
    ("mlx-lora", 6, Kind::Mlx),
    ("mlx-dora", 6, Kind::Mlx),
];
const KINDS: [Kind; 3] = [Kind::Peft, Kind::Mlx, Kind::Gguf];
const CONFIG: &str = "adapter_config.json";
/// What is asked of a model.
const TOKENS: [u32; 3] = [1, 2, 3];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Peft,
    Mlx,
    Gguf,
}

impl Kind {
    /// The file of its tensors.
    fn tensors(self) -> &'static str {
        match self {
            Self::Peft => "adapter_model.safetensors",
            Self::Mlx => "adapters.safetensors",
            Self::Gguf => "adapter.gguf",
        }
    }
}

/// A model, and its own logits.
type Loaded = (Model, Vec<Vec<f32>>);

/// The model `MODELS[which]`, loaded once in this process.
fn model(which: usize) -> Loaded {
    static LOADED: OnceLock<Mutex<BTreeMap<usize, Loaded>>> = OnceLock::new();
    let mut loaded = LOADED.get_or_init(Mutex::default).lock().expect("nobody panics with it");
    let load = || {
        let options =
            LoadOptions { backend: BackendRequest::Cpu, threads: Some(1), ..LoadOptions::default() };
        let files = ModelFiles::open(&fixture(MODELS[which])).expect("a fixture");
        let model = Model::load_with(files, options).expect("a fixture");
        let own = model.logits(&TOKENS).expect("a fixture");
        (model, own)
    };
    loaded.entry(which).or_insert_with(load).clone()
}

/// A model, a form, and a configuration and tensors in it.
///
/// An adapter is refused, or the model has logits with it, a row for each token; without it, those that it had before, to the
/// bit.
pub(super) fn adapter(data: &[u8]) {
    let mut input = Input(data);
    let (which, kind) = (input.below(MODELS.len()), input.pick(&KINDS));
    let [config, tensors] = parts(input.0);
    let scratch = Scratch::new();
    let file = scratch.write(kind.tensors(), tensors);
    let path = if kind == Kind::Gguf { file } else { scratch.dir().to_owned() };
    scratch.write(CONFIG, config);
    let (model, own) = model(which);
    let source = AdapterSource { name: "a".to_owned(), path, scale: 1.0 };
    let Some(loaded) = sound(model.load_adapter(&source)) else { return };
    assert!(loaded.modules > 0, "{loaded:?}");
    let adapted = sound(model.with_adapter("a")).expect("it was loaded");
    if let Some(rows) = sound(adapted.logits(&TOKENS)) {
        assert!(rows.iter().map(Vec::len).eq(own.iter().map(Vec::len)));
    }
    drop(adapted);
    sound(model.unload_adapter("a")).expect("it was loaded");
    assert!(model.adapters().is_empty());
    let bits = |rows: &[Vec<f32>]| -> Vec<u32> { rows.iter().flatten().map(|x| x.to_bits()).collect() };
    assert_eq!(bits(&sound(model.logits(&TOKENS)).expect("as before")), bits(&own));
}

pub(super) fn adapters() -> Vec<Vec<u8>> {
    let seed = |(name, which, kind): &(&str, usize, Kind)| {
        let read = |file: &str| std::fs::read(fixture(&format!("adapters/{name}")).join(file));
        let tensors = read(kind.tensors()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let form = KINDS.iter().position(|other| other == kind).unwrap_or_default();
        let files = joined(&[&read(CONFIG).unwrap_or_default(), &tensors]);
        [&[*which as u8, form as u8][..], &files].concat()
    };
    ADAPTERS.iter().map(seed).collect()
}
