//! Adapters in GGUF files, as llama.cpp's converter writes them: LoRA alone.

use super::{Leaf, Target, matrix, modules, open};
use crate::error::{Error, Result};
use crate::forward::Adapter;
use crate::json::quote;
use crate::weights::Form;

pub(super) fn read(target: &Target<'_>) -> Result<Adapter> {
    let checkpoint = open(target.path)?;
    let Some(metadata) = checkpoint.gguf() else {
        return Err(Error::format(target.path, "not a GGUF file"));
    };
    for (key, wanted) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        match metadata.string(key)? {
            Some(value) if value == wanted => {}
            Some(value) => {
                return Err(metadata.error(key, quote(value), format!("{wanted}, as an adapter has it")));
            }
            None => return Err(metadata.error(key, "missing", format!("{wanted}, as an adapter has it"))),
        }
    }
    let alpha = metadata.number("adapter.lora.alpha")?;
    let alpha = alpha.ok_or_else(|| metadata.error("adapter.lora.alpha", "missing", "a number"))?;
    let mut updates = Vec::new();
    for (name, found) in &modules(&checkpoint, leaf)? {
        let [low, high] = found.pair()?;
        let rank = low.shape().first().copied().unwrap_or(0);
        // As llama.cpp has it: an alpha of 0 leaves the sum as it is.
        let scale = if alpha == 0.0 || rank == 0 { 1.0 } else { alpha / rank as f64 };
        let (held, all) = target.list.of_gguf(name);
        if held.is_empty() || high.shape().first() != Some(&all) {
            let model = target.architecture.config().model_type;
            let what = match held.is_empty() {
                true => format!("{name} is no module of this {model} model that adapters are built for"),
                false => format!("B is {:?}, expected [{all}, {rank}]", high.shape()),
            };
            return Err(high.fail(what));
        }
        let a = matrix(&checkpoint, low, Form::Plain, false)?;
        let b = matrix(&checkpoint, high, Form::Plain, false)?;
        for (module, rows, form) in held {
            let part = super::reordered(&b.rows("high", rows), form)?;
            updates.push(target.update(module, 0, [(low, a.clone()), (high, part)], scale, None)?);
        }
    }
    Ok(target.adapter("LoRA", updates))
}

/// The module that a tensor is of, and what of it.
fn leaf(name: &str) -> Option<(&str, Leaf)> {
    let ends = [(".weight.lora_a", Leaf::Low), (".weight.lora_b", Leaf::High)];
    ends.into_iter().find_map(|(end, leaf)| Some((name.strip_suffix(end)?, leaf)))
}
