//! MLX directories of random codes: every matrix affine in groups of 64, the embedding too, scales in bf16. Rows that are not
//! whole groups of 64 have groups of 32, which `config.json` says.

use std::path::Path;

use anyhow::Result;
use backstop::weights::writers::safetensors::{Dtype, Spec};
use half::bf16;
use serde_json::json;

use super::{ModelShape, Random, config, directory, tensors};

/// Codes that share a scale and a bias, where they make up a row.
const GROUP: usize = 64;

/// What a plane of a tensor holds.
enum Content {
    /// Random bits.
    Codes,
    /// One value throughout.
    Constant(f32),
}

/// Makes the directory `dir` of `shape` with codes of `bits`; the number of its tensors, and their bytes.
pub fn write(shape: &ModelShape, bits: usize, dir: &Path) -> Result<(usize, u64)> {
    let mut config = config(shape, "bfloat16");
    config["quantization"] = json!({ "group_size": GROUP, "bits": bits, "mode": "affine" });
    let mut planes = Vec::new();
    for (name, dims) in tensors(shape) {
        let plane = |name: String, dtype, dims: &[usize], content| {
            (Spec { name, dtype, shape: dims.into() }, content)
        };
        match (name.strip_suffix(".weight"), &dims[..]) {
            (Some(module), &[.., _, columns]) => {
                // Codes from 0 to `most`, uniform, whose values keep the size of what a row multiplies.
                let most = ((1_u32 << bits) - 1) as f32;
                let end = (3.0 / columns as f32).sqrt();
                let scale = Content::Constant(2.0 * end / most);
                let group = if columns.is_multiple_of(GROUP) { GROUP } else { GROUP / 2 };
                if group != GROUP {
                    config["quantization"][module] = json!({ "group_size": group, "bits": bits });
                }
                let of = |columns: usize| {
                    let mut dims = dims.clone();
                    dims.splice(dims.len() - 1.., [columns]);
                    dims
                };
                let groups = of(columns / group);
                planes.push(plane(name.clone(), Dtype::U32, &of(columns * bits / 32), Content::Codes));
                planes.push(plane(format!("{module}.scales"), Dtype::BF16, &groups, scale));
                planes.push(plane(format!("{module}.biases"), Dtype::BF16, &groups, Content::Constant(-end)));
            }
            _ => {
                let value = if name.ends_with("norm.weight") { 1.0 } else { 0.01 };
                planes.push(plane(name, Dtype::BF16, &dims, Content::Constant(value)));
            }
        }
    }
    let specs = planes.iter().map(|(spec, _)| spec.clone()).collect();
    let mut shards = directory(dir, &config, specs)?;
    let mut random = Random::new();
    for (spec, content) in &planes {
        let mut bytes = vec![0; spec.bytes() as usize];
        match content {
            Content::Codes => random.fill(&mut bytes),
            Content::Constant(value) => {
                let value = bf16::from_f32(*value).to_le_bytes();
                bytes.chunks_exact_mut(2).for_each(|of| of.copy_from_slice(&value));
            }
        }
        shards.write(&spec.name, 0, &bytes)?;
    }
    let bytes = shards.total();
    shards.finish()?;
    Ok((planes.len(), bytes))
}
