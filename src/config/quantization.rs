//! How a directory's matrices are quantized: `quantization` as MLX writes it, or `quantization_config` as others do.

mod published;

use std::collections::BTreeMap;

use crate::error::Result;
use crate::json::Fields;
use crate::json::{Value, quote};
use crate::quant::{MlxFormat, MlxMode, MlxQuantization, Quantization};

/// Members of the object that are no paths of modules.
const SETTINGS: [&str; 4] = ["group_size", "bits", "mode", "quant_method"];

/// What `config.json` says. As in mlx-lm, `quantization` wins over `quantization_config`, and that over the one inside
/// `text_config`.
pub(super) fn resolve(fields: &Fields<'_>) -> Result<Option<Quantization>> {
    if let Some(own) = fields.object("quantization")? {
        return mlx(&own, None).map(Some);
    }
    let nested = match fields.object("text_config")? {
        Some(text) => text.object("quantization_config")?,
        None => None,
    };
    let Some(foreign) = fields.object("quantization_config")?.or(nested) else { return Ok(None) };
    let Some(method) = foreign.string("quant_method")? else { return mlx(&foreign, None).map(Some) };
    match method {
        "mlx" => mlx(&foreign, None).map(Some),
        "mxfp4" => mlx(&foreign, Some(MlxMode::Mxfp4)).map(Some),
        "mxfp8" => mlx(&foreign, Some(MlxMode::Mxfp8)).map(Some),
        "gptq" => gptq(&foreign).map(Some),
        "awq" => awq(&foreign).map(Some),
        "fp8" => published::fp8(&foreign).map(Some),
        "compressed-tensors" => published::compressed_tensors(&foreign).map(Some),
        "modelopt" => published::modelopt(&foreign).map(Some),
        other => Err(foreign.error(
            "quant_method",
            quote(other),
            "gptq, awq, fp8, compressed-tensors, modelopt, mxfp4 or mxfp8, or MLX's `quantization` (other methods have no \
             decoder in this version)",
        )),
    }
}

fn mlx(fields: &Fields<'_>, mode: Option<MlxMode>) -> Result<Quantization> {
    let default = format(fields, "", mode)?;
    let mut modules = BTreeMap::new();
    for (path, value) in fields.members().iter().filter(|(path, _)| !SETTINGS.contains(&path.as_str())) {
        let of = match value {
            Value::Bool(false) => None,
            Value::Bool(true) => Some(default),
            Value::Object(members) => Some(format(&fields.within(members), path, None)?),
            _ => continue,
        };
        modules.insert(path.clone(), of);
    }
    Ok(Quantization::Mlx(MlxQuantization { default, modules }))
}

/// `{group_size, bits, mode}`, of which each may be absent; `module` is the path that they are for.
fn format(fields: &Fields<'_>, module: &str, mode: Option<MlxMode>) -> Result<MlxFormat> {
    let name = |field: &str| if module.is_empty() { field.to_owned() } else { format!("{module}.{field}") };
    let mode = match fields.string("mode")? {
        None => mode.unwrap_or(MlxMode::Affine),
        Some(text) => MlxMode::ALL
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| fields.error(name("mode"), quote(text), "affine, mxfp4, mxfp8 or nvfp4"))?,
    };
    let (groups, widths) = mode.accepted();
    let number = |field: &str, accepted: &[usize]| {
        let Some(value) = fields.get(field) else { return Ok(accepted[0]) };
        let listed = match value {
            Value::UInt(n) => accepted.iter().copied().find(|&one| one as u64 == *n),
            _ => None,
        };
        listed.ok_or_else(|| {
            let mut accepted = accepted.to_vec();
            accepted.sort_unstable();
            let list: Vec<String> = accepted.iter().map(usize::to_string).collect();
            let expected = format!("{}, as mode {} has it", list.join(", "), mode.name());
            fields.error(name(field), value, expected)
        })
    };
    let groups: Vec<usize> = groups.iter().map(|&group| usize::from(group)).collect();
    let widths: Vec<usize> = widths.iter().map(|&bits| usize::from(bits)).collect();
    let (group, bits) = (number("group_size", &groups)?, number("bits", &widths)?);
    Ok(MlxFormat { mode, bits: bits as u8, group: group as u16 })
}

/// Bits and groups of each matrix come from its shapes: some writers mix them.
fn gptq(fields: &Fields<'_>) -> Result<Quantization> {
    if let Some(bits) = fields.get("bits").filter(|bits| !matches!(bits, Value::UInt(4 | 8))) {
        return Err(fields.error("bits", bits, "4 or 8"));
    }
    group_size(fields)?;
    fields.flag("sym")?;
    fields.flag("desc_act")?;
    let v2 = match fields.string("checkpoint_format")? {
        None | Some("gptq") => false,
        Some("gptq_v2") => true,
        Some(other) => return Err(fields.error("checkpoint_format", quote(other), "gptq or gptq_v2")),
    };
    Ok(Quantization::Gptq { v2 })
}

fn awq(fields: &Fields<'_>) -> Result<Quantization> {
    for name in ["bits", "w_bit"] {
        if let Some(bits) = fields.get(name).filter(|bits| **bits != Value::UInt(4)) {
            return Err(fields.error(name, bits, "4"));
        }
    }
    group_size(fields)?;
    fields.flag("zero_point")?;
    match fields.string("version")? {
        None => {}
        Some(version) if version.eq_ignore_ascii_case("gemm") => {}
        Some(other) => return Err(fields.error("version", quote(other), "gemm")),
    }
    Ok(Quantization::Awq)
}

/// −1 stands for one group a row. Shapes say what it is; here it must only be sane.
fn group_size(fields: &Fields<'_>) -> Result<()> {
    match fields.get("group_size") {
        None | Some(Value::Int(-1)) => Ok(()),
        Some(Value::UInt(n)) if (1..1 << 15).contains(n) && n.is_multiple_of(8) => Ok(()),
        Some(other) => Err(fields.error("group_size", other, "-1, or a multiple of 8 below 32768")),
    }
}
