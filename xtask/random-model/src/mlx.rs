//! MLX directories of random codes: every matrix affine in groups of 64, the embedding too, scales in bf16. Rows that are not
//! whole groups of 64 have groups of 32, which `config.json` says; gpt-oss's experts are in MXFP4, whatever the rest is in.

use std::path::Path;

use anyhow::Result;
use backstop::tensor::DType;
use backstop::weights::writers::safetensors::{Dtype, Spec};
use half::bf16;
use serde_json::json;

use super::directory::{Content, Tensor, tensors};
use super::shapes::Form;
use super::{ModelShape, Random, begin, e8m0, row_of};

/// Codes that share a scale and a bias, where they make up a row.
const GROUP: usize = 64;

/// Codes that share a scale in MXFP4.
const MXFP4_GROUP: usize = 32;

/// What a plane of a tensor holds.
enum Plane {
    /// Random bits.
    Codes,
    /// One value throughout.
    Constant(f32),
    /// One byte throughout.
    Bytes(u8),
    /// What the tensor says, row by row.
    Rows(Tensor),
}

/// Makes the directory `dir` of `shape` with codes of `bits`; the number of its tensors, and their bytes.
pub fn write(shape: &ModelShape, bits: usize, dir: &Path) -> Result<(usize, u64)> {
    let mut config = shape.config(Form::Mlx, "bfloat16");
    config["quantization"] = json!({ "group_size": GROUP, "bits": bits, "mode": "affine" });
    let mut planes = Vec::new();
    for tensor in tensors(shape, Form::Mlx) {
        let Tensor { name, dims, content } = tensor.clone();
        let plane = |name: String, dtype, dims: &[usize], content| {
            (Spec { name, dtype, shape: dims.into() }, content)
        };
        // The same rows, of so many elements.
        let of = |columns: usize| {
            let mut dims = dims.clone();
            dims.splice(dims.len() - 1.., [columns]);
            dims
        };
        let columns = dims.last().copied().unwrap_or(1);
        match (name.strip_suffix(".weight"), content) {
            (Some(module), Content::Matrix) => {
                // Codes from 0 to `most`, uniform, whose values keep the size of what a row multiplies.
                let most = ((1_u32 << bits) - 1) as f32;
                let end = (3.0 / columns as f32).sqrt();
                let scale = Plane::Constant(2.0 * end / most);
                let group = if columns.is_multiple_of(GROUP) { GROUP } else { GROUP / 2 };
                if group != GROUP {
                    config["quantization"][module] = json!({ "group_size": group, "bits": bits });
                }
                let groups = of(columns / group);
                planes.push(plane(name.clone(), Dtype::U32, &of(columns * bits / 32), Plane::Codes));
                planes.push(plane(format!("{module}.scales"), Dtype::BF16, &groups, scale));
                planes.push(plane(format!("{module}.biases"), Dtype::BF16, &groups, Plane::Constant(-end)));
            }
            (Some(module), Content::Experts) => {
                config["quantization"][module] =
                    json!({ "group_size": MXFP4_GROUP, "bits": 4, "mode": "mxfp4" });
                let (codes, groups) = (of(columns / 8), of(columns / MXFP4_GROUP));
                planes.push(plane(name.clone(), Dtype::U32, &codes, Plane::Codes));
                let scales = Plane::Bytes(e8m0(columns));
                planes.push(plane(format!("{module}.scales"), Dtype::U8, &groups, scales));
            }
            (_, Content::Exact) => planes.push(plane(name.clone(), Dtype::BF16, &dims, Plane::Rows(tensor))),
            _ => {
                let value = if content == Content::Norm { 1.0 } else { 0.01 };
                planes.push(plane(name.clone(), Dtype::BF16, &dims, Plane::Constant(value)));
            }
        }
    }
    let specs = planes.iter().map(|(spec, _)| spec.clone()).collect();
    let mut shards = begin(dir, &config, specs)?;
    let mut random = Random::new();
    for (spec, content) in &planes {
        let mut bytes = vec![0; spec.bytes() as usize];
        match content {
            Plane::Codes => random.fill(&mut bytes),
            Plane::Constant(value) => {
                let value = bf16::from_f32(*value).to_le_bytes();
                bytes.chunks_exact_mut(2).for_each(|of| of.copy_from_slice(&value));
            }
            Plane::Bytes(value) => bytes.fill(*value),
            Plane::Rows(tensor) => {
                let rows = bytes.chunks_exact_mut(2 * tensor.columns());
                rows.for_each(|row| row.copy_from_slice(&row_of(tensor, DType::BF16, &mut random)));
            }
        }
        shards.write(&spec.name, 0, &bytes)?;
    }
    let bytes = shards.total();
    shards.finish()?;
    Ok((planes.len(), bytes))
}
