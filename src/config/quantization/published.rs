//! Codes beside their scales, as `transformers`' FP8, compressed-tensors and ModelOpt declare them. Tensors say what they are;
//! here stands what they do not: the blocks of scales, and what would change values and has no form.
//!
//! How a server would quantize activations and caches is passed over: it changes no weight.

use crate::error::Result;
use crate::json::{Fields, Value, quote};
use crate::quant::{Published, Publisher, Quantization};

/// The default of `FineGrainedFP8Config`, and of ModelOpt's blocks.
const BLOCK: usize = 128;

/// Formats of compressed-tensors, those of a whole model and of one group alike.
const FORMATS: [&str; 9] = [
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
    "dense",
];

/// Scales of compressed-tensors.
const STRATEGIES: [&str; 5] = ["tensor", "channel", "group", "tensor_group", "block"];

/// ModelOpt's ways that scale nothing but the weights.
const ALGORITHMS: [&str; 7] =
    ["FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "W4A16_NVFP4", "MXFP8", "W8A16"];

/// `a, b or c`.
fn one_of(names: &[&str]) -> String {
    match names {
        [all @ .., last] if !all.is_empty() => format!("{} or {last}", all.join(", ")),
        _ => names.concat(),
    }
}

/// A string that is one of `names`, if it is there.
fn named<'a>(fields: &Fields<'a>, field: &str, names: &[&str]) -> Result<Option<&'a str>> {
    match fields.string(field)? {
        Some(name) if !names.contains(&name) => Err(fields.error(field, quote(name), one_of(names))),
        name => Ok(name),
    }
}

/// Rows and columns of a block: a list of two.
fn block(fields: &Fields<'_>, field: &str) -> Result<Option<[usize; 2]>> {
    let Some(value) = fields.get(field) else { return Ok(None) };
    let size = |value: &Value| match value {
        Value::UInt(n @ 1..=65_536) => usize::try_from(*n).ok(),
        _ => None,
    };
    let sizes = match value {
        Value::Array(sizes) => sizes.iter().map(size).collect::<Option<Vec<_>>>(),
        _ => None,
    };
    match sizes.as_deref() {
        Some(&[rows, columns]) => Ok(Some([rows, columns])),
        _ => Err(fields.error(field, value, "two integers from 1 to 65536")),
    }
}

/// DeepSeek's FP8, in the words of `FineGrainedFP8Config`.
pub(super) fn fp8(fields: &Fields<'_>) -> Result<Quantization> {
    named(fields, "fmt", &["e4m3", "float8_e4m3fn"])?;
    named(fields, "expert_dtype", &["fp8"])?;
    let powers = named(fields, "scale_fmt", &["float", "ue8m0"])? == Some("ue8m0");
    let block = match block(fields, "weight_block_size")? {
        None if !fields.is_null("weight_block_size") => Some([BLOCK; 2]),
        block => block,
    };
    Ok(Quantization::Published(Published { by: Publisher::Transformers, block, powers }))
}

/// compressed-tensors: groups of modules, each with the arguments of its weights.
pub(super) fn compressed_tensors(fields: &Fields<'_>) -> Result<Quantization> {
    if named(fields, "format", &FORMATS)?.is_none() {
        return Err(fields.missing("format", one_of(&FORMATS)));
    }
    for field in ["transform_config", "moe_sparsity_config"] {
        if let Some(other) = fields.object(field)? {
            let got = Value::Object(other.members().clone());
            return Err(fields.error(field, got, "nothing: this version has no form for it"));
        }
    }
    if let Some(sparsity) = fields.object("sparsity_config")? {
        named(&sparsity, "format", &["dense"])?;
    }
    let Some(groups) = fields.object("config_groups")? else {
        return Err(fields.missing("config_groups", "an object of groups"));
    };
    let mut common: Option<[usize; 2]> = None;
    for (name, group) in groups.members() {
        let Value::Object(members) = group else {
            return Err(groups.error(name, group, "an object"));
        };
        let group = groups.within(members);
        named(&group, "format", &FORMATS)?;
        let Some(weights) = group.object("weights")? else { continue };
        let widths: &[u64] = match named(&weights, "type", &["int", "float"])? {
            Some("float") => &[4, 8],
            _ => &[2, 3, 4, 5, 6, 8],
        };
        match weights.get("num_bits") {
            None => {}
            Some(Value::UInt(bits)) if widths.contains(bits) => {}
            Some(other) => {
                let listed: Vec<String> = widths.iter().map(u64::to_string).collect();
                let listed: Vec<&str> = listed.iter().map(String::as_str).collect();
                return Err(weights.error("num_bits", other, one_of(&listed)));
            }
        }
        named(&weights, "strategy", &STRATEGIES)?;
        let Some(own) = block(&weights, "block_structure")? else { continue };
        if let Some(other) = common.replace(own).filter(|other| *other != own) {
            let expected = format!("{other:?}, as another group has it");
            return Err(weights.error("block_structure", format!("{own:?}"), expected));
        }
    }
    let by = Publisher::CompressedTensors;
    Ok(Quantization::Published(Published { by, block: common, powers: false }))
}

/// ModelOpt's, as `config.json` has it, or inside `quantization` as `hf_quant_config.json` does.
pub(super) fn modelopt(fields: &Fields<'_>) -> Result<Quantization> {
    let nested = fields.object("quantization")?;
    let fields = nested.as_ref().unwrap_or(fields);
    let mut accepted = ALGORITHMS.to_vec();
    accepted.push("MIXED_PRECISION");
    let Some(algorithm) = named(fields, "quant_algo", &accepted)? else {
        return Err(fields.missing("quant_algo", one_of(&accepted)));
    };
    let mut has_blocks = algorithm == "FP8_PB_WO";
    if let Some(layers) = fields.object("quantized_layers")? {
        for (name, layer) in layers.members() {
            let Value::Object(members) = layer else {
                return Err(layers.error(name, layer, "an object"));
            };
            has_blocks |= named(&layers.within(members), "quant_algo", &ALGORITHMS)? == Some("FP8_PB_WO");
        }
    }
    for field in ["pre_quant_scale", "has_zero_point"] {
        if fields.flag(field)? == Some(true) {
            return Err(fields.error(field, true, "false: this version has no form for it"));
        }
    }
    let size = fields.size("group_size", 1, 65_536)?.unwrap_or(BLOCK);
    let block = has_blocks.then_some([size; 2]);
    Ok(Quantization::Published(Published { by: Publisher::ModelOpt, block, powers: false }))
}
