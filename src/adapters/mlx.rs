//! mlx-lm's directories: `adapter_config.json` and `adapters.safetensors`, of LoRA and DoRA.

use super::{Leaf, Target, matrix, modules, open_in, vector};
use crate::error::Result;
use crate::files;
use crate::forward::Adapter;
use crate::json::{self, Fields, quote};
use crate::weights::Form;

pub(super) const TENSORS: &str = "adapters.safetensors";

pub(super) fn read(target: &Target<'_>) -> Result<Adapter> {
    let path = target.path.join("adapter_config.json");
    let object = json::parse_object(&path, &files::read_json(&path)?)?;
    let fields = Fields::new(&path, &object);
    let magnitudes = match fields.string("fine_tune_type")? {
        Some("lora") | None => false,
        Some("dora") => true,
        Some(other) => {
            let expected = "lora or dora: what was trained whole is a model of its own";
            return Err(fields.error("fine_tune_type", quote(other), expected));
        }
    };
    let parameters = fields
        .object("lora_parameters")?
        .ok_or_else(|| fields.missing("lora_parameters", "an object with rank and scale"))?;
    let scale = parameters
        .number("scale", -1e6, 1e6)?
        .ok_or_else(|| fields.missing("lora_parameters.scale", "a number"))?;
    let checkpoint = open_in(target.path, TENSORS)?;
    let mut updates = Vec::new();
    for (name, found) in &modules(&checkpoint, leaf)? {
        let [low, high] = found.pair()?;
        let module = target.module(name, low)?;
        let rows = module.rows.size;
        let magnitude = match (found.magnitude, magnitudes) {
            (Some(info), true) if info.shape() == [rows] => Some(vector(&checkpoint, info, module.form)?),
            (Some(info), true) => {
                return Err(info.fail(format!("shape is {:?}, expected [{rows}]", info.shape())));
            }
            (Some(info), false) => return Err(info.fail("fine_tune_type is lora".to_owned())),
            (None, true) => return Err(low.fail("its module has no magnitude, m".to_owned())),
            (None, false) => None,
        };
        if high.shape().last() != Some(&rows) {
            return Err(high.fail(format!("shape is {:?}, expected [r, {rows}]", high.shape())));
        }
        // Both are stored turned: `[K, r]` and `[r, N]`.
        let low = (low, matrix(&checkpoint, low, Form::Plain, true)?);
        let high = (high, matrix(&checkpoint, high, module.form, true)?);
        updates.push(target.update(module, 0, [low, high], scale, magnitude)?);
    }
    Ok(target.adapter(if magnitudes { "DoRA" } else { "LoRA" }, updates))
}

/// The module that a tensor is of, and what of it.
fn leaf(name: &str) -> Option<(&str, Leaf)> {
    let ends = [(".lora_a", Leaf::Low), (".lora_b", Leaf::High), (".m", Leaf::Magnitude)];
    ends.into_iter().find_map(|(end, leaf)| Some((name.strip_suffix(end)?, leaf)))
}
