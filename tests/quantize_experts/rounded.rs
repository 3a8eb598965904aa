//! Models to compare with: wider than the fixtures, and with values that are rounded as quantizing rounds them.

use std::path::{Path, PathBuf};

use backstop::quant::{Format, write_floats};
use backstop::tensor::DType;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{decoded, fixture, floats};

/// A model, and what mlx-lm quantizes otherwise than the rest of it: ends of names.
pub struct Case {
    pub name: &'static str,
    pub eight_bits: &'static [&'static str],
    pub exact: &'static [&'static str],
}

/// The planes of a matrix.
pub fn encoded(format: Format, dtype: DType, columns: usize, values: &[f32]) -> [Vec<u8>; 3] {
    let rows = values.len() / columns;
    let mut widths = format.row_bytes(columns);
    widths.resize(3, 0);
    let mut planes: [Vec<u8>; 3] = std::array::from_fn(|plane| vec![0; rows * widths[plane]]);
    let mut bytes = vec![0; values.len() * dtype.size()];
    write_floats(dtype, values, &mut bytes);
    assert_eq!(format.encode(dtype, columns, &bytes, planes.each_mut().map(|plane| &mut plane[..])), None);
    planes
}

/// Values of `dtype`, little-endian.
pub fn values_of(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / dtype.size()];
    backstop::quant::affine::read_floats(dtype, bytes, &mut values);
    values
}

/// Each matrix `[N, K]` of `shape` turned.
fn turned(values: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let turn = |matrix: &[f32]| -> Vec<f32> {
        (0..columns)
            .flat_map(|column| (0..rows).map(move |row| (row, column)))
            .map(|(row, column)| matrix[row * columns + column])
            .collect()
    };
    values.chunks_exact(rows * columns).flat_map(turn).collect()
}

/// The model in `from` with the values that its matrices stand for in affine codes of four bits in groups of 32, in `f32` and in its
/// own layout.
pub fn rounded(case: &Case, from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let has_turned = ["gpt_oss", "qwen3_vl_moe"].iter().any(|family| case.name.starts_with(family));
    let mut tensors: Vec<Tensor> = Vec::new();
    for (name, view) in file.tensors() {
        let shape = view.shape().to_vec();
        let Some((dtype, values)) = floats(&view) else {
            tensors.push((name, view.dtype(), shape, view.data().to_vec()));
            continue;
        };
        let is_bare = name.ends_with("experts.gate_up_proj") || name.ends_with("experts.down_proj");
        let is_matrix = shape.len() == 2 && name.ends_with(".weight") || shape.len() == 3;
        let is_turned = is_bare && has_turned;
        let columns = match shape[..] {
            [_, columns, _] if is_turned => columns,
            _ => shape.last().copied().unwrap_or(1),
        };
        let ends = |names: &[&str]| names.iter().any(|end| name.ends_with(*end));
        let values = if !is_matrix || !columns.is_multiple_of(32) || ends(case.exact) {
            values
        } else {
            let is_eight = ends(case.eight_bits);
            let group = if is_eight && columns.is_multiple_of(64) { 64 } else { 32 };
            let format = Format::Affine { bits: if is_eight { 8 } else { 4 }, group, scales: dtype };
            let round = |values: &[f32]| decoded(format, columns, encoded(format, dtype, columns, values));
            match shape[..] {
                [_, columns, rows] if is_turned => {
                    turned(&round(&turned(&values, [columns, rows])), [rows, columns])
                }
                _ => round(&values),
            }
        };
        tensors.push((name, Dtype::F32, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect()));
    }
    write(&tensors, to);
}

/// A model of the fixture's kind with dimensions of other sizes, `(12, 96)` making 96 of each 12, in the directory `dir`.
pub fn widened(name: &str, sizes: &[(usize, usize)], dir: &Path) -> PathBuf {
    let from = fixture("models").join(name);
    let to = dir.join(name);
    if to.exists() {
        return to;
    }
    std::fs::create_dir(&to).unwrap();
    let bytes = std::fs::read(from.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let widen = |size: usize| sizes.iter().find(|(old, _)| *old == size).map_or(size, |(_, new)| *new);
    let text = if config["text_config"].is_object() { &mut config["text_config"] } else { &mut config };
    for field in ["hidden_size", "intermediate_size"] {
        text[field] = widen(text[field].as_u64().unwrap() as usize).into();
    }
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<Tensor> = Vec::new();
    let mut state = 1_u64;
    let mut names = file.names();
    names.sort_unstable();
    for name in names {
        let shape: Vec<usize> = file.tensor(name).unwrap().shape().iter().map(|&size| widen(size)).collect();
        // Norms are near one, products as large as their inputs.
        let (middle, width) = match shape[..] {
            [_] => (1.0, 0.25),
            [.., columns] => (0.0, 3.0 / (columns as f32).sqrt()),
            [] => (0.0, 0.0),
        };
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            middle + width * ((state >> 40) as f32 / (1 << 24) as f32 - 0.5)
        };
        let values = (0..shape.iter().product::<usize>()).flat_map(|_| next().to_le_bytes()).collect();
        tensors.push((name.to_owned(), Dtype::F32, shape, values));
    }
    write(&tensors, &to);
    to
}

/// A tensor: name, type, shape and bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn write(tensors: &[Tensor], to: &Path) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(to.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}
