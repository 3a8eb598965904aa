//! MLX directories of random codes: every matrix affine in groups of 64, the embedding too, scales in bf16. Rows that are not
//! whole groups of 64 have groups of 32, which `config.json` says.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::{Random, Shape, bf16, config, save, tensors, write_header};

/// Codes that share a scale and a bias, where they make up a row.
const GROUP: usize = 64;

/// A plane of a tensor as it lies in the file.
struct Plane {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    content: Content,
}

enum Content {
    /// Random bits.
    Codes,
    /// One value throughout.
    Constant(f32),
}

impl Plane {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * if self.dtype == "U32" { 4 } else { 2 }
    }
}

/// Writes `shape` with codes of `bits` to the directory `dir`.
pub fn write(shape: &Shape, bits: usize, dir: &Path) -> Result<()> {
    let mut config = config(shape, "bfloat16");
    config["quantization"] = json!({ "group_size": GROUP, "bits": bits, "mode": "affine" });
    let mut planes = Vec::new();
    for (name, dims) in tensors(shape) {
        let plane = |name: String, dtype, shape, content| Plane { name, dtype, shape, content };
        match (name.strip_suffix(".weight"), &dims[..]) {
            (Some(module), &[rows, columns]) => {
                // Codes from 0 to `most`, uniform, whose values keep the size of what a row multiplies.
                let most = ((1_u32 << bits) - 1) as f32;
                let end = (3.0 / columns as f32).sqrt();
                let scale = Content::Constant(2.0 * end / most);
                let group = if columns.is_multiple_of(GROUP) { GROUP } else { GROUP / 2 };
                if group != GROUP {
                    config["quantization"][module] = json!({ "group_size": group, "bits": bits });
                }
                let groups = vec![rows, columns / group];
                planes.push(plane(name.clone(), "U32", vec![rows, columns * bits / 32], Content::Codes));
                planes.push(plane(format!("{module}.scales"), "BF16", groups.clone(), scale));
                planes.push(plane(format!("{module}.biases"), "BF16", groups, Content::Constant(-end)));
            }
            _ => {
                let value = if name.ends_with("norm.weight") { 1.0 } else { 0.01 };
                planes.push(plane(name, "BF16", dims, Content::Constant(value)));
            }
        }
    }
    std::fs::write(dir.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    let table =
        planes.iter().map(|plane| (plane.name.as_str(), plane.dtype, &plane.shape[..], plane.bytes()));
    let table: Vec<_> = table.collect();
    let size: usize = table.iter().map(|of| of.3).sum();
    let path = dir.join("model.safetensors");
    save(&path, |file| {
        write_header(file, &table)?;
        let mut random = Random::new();
        for plane in &planes {
            let mut bytes = vec![0; plane.bytes()];
            match plane.content {
                Content::Codes => random.fill(&mut bytes),
                Content::Constant(value) => {
                    let value = bf16(value).to_le_bytes();
                    bytes.chunks_exact_mut(2).for_each(|of| of.copy_from_slice(&value));
                }
            }
            file.write_all(&bytes)?;
        }
        Ok(())
    })?;
    eprintln!("{}: {} tensors of {:.0} MB", path.display(), planes.len(), size as f64 / 1e6);
    Ok(())
}
