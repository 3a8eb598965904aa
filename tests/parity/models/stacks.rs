//! Experts in one tensor a projection, as `transformers` writes FP8 ones, are the experts that have each their own.

use std::path::Path;

use backstop::backend::LlmBackendKind;
use backstop::{Model, ModelFiles};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::fixtures::{cached_of, exact_backends};
use crate::harness::{Expected, options, root};

const EXPERTS: usize = 4;
const MLP: &str = "model.layers.0.mlp.experts";

/// A tensor of a file: name, type, shape and bytes.
type Made = (String, Dtype, Vec<usize>, Vec<u8>);

/// How many scales a stack has for each expert.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scales {
    /// One of each block of 32 rows and columns.
    Blocks,
    /// One of each projection: two of gate and up.
    Projections,
    /// One, `[E, 1, 1]`.
    Ones,
    /// One, `[E]`.
    Flat,
}

fn fixture() -> std::path::PathBuf {
    root().join("tests/fixtures/quantized/qwen3_moe-fp8")
}

/// What a projection of an expert is multiplied by, where that is one number.
fn whole(scales: Scales, expert: usize, part: &str) -> f32 {
    let number = 2 * expert + usize::from(part == "up_proj" && scales == Scales::Projections);
    0.002 + number as f32 / 7000.0
}

/// The fixture's model with `scales`, each expert's tensors by themselves, and stacked.
fn directories(scales: Scales, each: &Path, stacked: &Path) {
    let config = std::fs::read_to_string(fixture().join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    if scales != Scales::Blocks {
        config["quantization_config"].as_object_mut().unwrap().remove("scale_fmt").unwrap();
    }
    let bytes = std::fs::read(fixture().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |name: &str| -> Made {
        let view = file.tensor(name).unwrap();
        (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec())
    };
    let mut alone: Vec<Made> =
        file.names().into_iter().filter(|name| !name.starts_with(MLP)).map(tensor).collect();
    let mut together = alone.clone();
    for (stack, parts) in [("gate_up_proj", &["gate_proj", "up_proj"][..]), ("down_proj", &["down_proj"])] {
        let (mut all_codes, mut all_scales, mut shapes) = (Vec::new(), Vec::new(), None);
        for expert in 0..EXPERTS {
            for part in parts {
                let name = format!("{MLP}.{expert}.{part}.weight");
                let (codes, mut scale) = (tensor(&name), tensor(&format!("{name}_scale_inv")));
                if scales != Scales::Blocks {
                    let value = whole(scales, expert, part).to_le_bytes().to_vec();
                    scale = (scale.0, Dtype::F32, Vec::new(), value);
                }
                all_codes.extend_from_slice(&codes.3);
                if part == &parts[0] || matches!(scales, Scales::Blocks | Scales::Projections) {
                    all_scales.extend_from_slice(&scale.3);
                }
                shapes = Some((codes.2.clone(), scale.2.clone()));
                alone.extend([codes, scale]);
            }
        }
        let (codes, grid) = shapes.unwrap();
        let grid = match scales {
            Scales::Blocks => vec![EXPERTS, parts.len() * grid[0], grid[1]],
            Scales::Projections => vec![EXPERTS, parts.len(), 1],
            Scales::Ones => vec![EXPERTS, 1, 1],
            Scales::Flat => vec![EXPERTS],
        };
        let shape = vec![EXPERTS, parts.len() * codes[0], codes[1]];
        together.push((format!("{MLP}.{stack}"), Dtype::F8_E4M3, shape, all_codes));
        together.push((format!("{MLP}.{stack}_scale_inv"), Dtype::F32, grid, all_scales));
    }
    for (dir, tensors) in [(each, &alone), (stacked, &together)] {
        write(dir, tensors);
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    }
}

fn write(dir: &Path, tensors: &[Made]) {
    let views = tensors
        .iter()
        .map(|(name, kind, shape, bytes)| (name, TensorView::new(*kind, shape.clone(), bytes).unwrap()));
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn fp8_experts_in_stacks_are_those_by_themselves() {
    let expected = Expected::load(&fixture());
    for scales in [Scales::Blocks, Scales::Projections, Scales::Ones, Scales::Flat] {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        directories(scales, dirs[0].path(), dirs[1].path());
        for kind in exact_backends(dirs[0].path()) {
            let [each, stacked] = [&dirs[0], &dirs[1]].map(|dir| {
                let model = Model::load_with(ModelFiles::open(dir.path()).unwrap(), options(kind)).unwrap();
                cached_of(&model, &expected, 7).0
            });
            assert_eq!(each, stacked, "{scales:?} on {kind}");
            // As the fixture has it; others are other models.
            let pairs = each.iter().flatten().zip(expected.logits.iter().flatten());
            let apart = pairs.map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max);
            assert_eq!(apart < 1e-3, scales == Scales::Blocks, "{scales:?} on {kind}: {apart:e}");
        }
    }
}

#[test]
fn a_block_of_two_projections_is_refused_by_name() {
    let (each, stacked) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    directories(Scales::Ones, each.path(), stacked.path());
    let bytes = std::fs::read(stacked.path().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let name = format!("{MLP}.gate_up_proj_scale_inv");
    let tensors: Vec<Made> = file
        .tensors()
        .into_iter()
        .map(|(of, view)| {
            // 64 rows in three blocks.
            let (shape, bytes) = match of == name {
                true => (vec![EXPERTS, 3, 1], view.data().repeat(3)),
                false => (view.shape().to_vec(), view.data().to_vec()),
            };
            (of, view.dtype(), shape, bytes)
        })
        .collect();
    write(stacked.path(), &tensors);
    let files = ModelFiles::open(stacked.path()).unwrap();
    let error = Model::load_with(files, options(LlmBackendKind::Cpu)).unwrap_err();
    let expected = "experts.0.gate_proj.weight_scale_inv: missing, model.layers.0.mlp.experts.0.gate_proj.weight is F8_E4M3";
    assert!(error.to_string().contains(expected), "{error}");
}
