//! Quantized matrices of safetensors: which modules have them, in which format, and their planes.

#[cfg(test)]
mod tests;

use std::collections::HashSet;

use super::published::{self, Global};
use super::{Checkpoint, Form, TensorInfo, gptq};
use crate::error::{Error, Result};
use crate::quant::{
    Format, MlxFormat, MlxMode, MlxQuantization, Plane, Publisher, QuantWeight, Quantization,
};
use crate::tensor::{DType, Shape};

/// The matrix of `module`, `[rows, columns]`; `None` where the checkpoint does not quantize it.
///
/// # Errors
/// [`Error::Weight`] where tensors are missing, have types or shapes that do not fit each other and `shape`, or a format
/// that this version does not decode.
pub fn matrix(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    module: &str,
    shape: [usize; 2],
) -> Result<Option<QuantWeight>> {
    match quantization {
        Quantization::Mlx(mlx) => mlx_matrix(checkpoint, mlx, module, shape),
        Quantization::Gptq { v2 } => gptq::gptq(checkpoint, module, shape, *v2),
        Quantization::Awq => gptq::awq(checkpoint, module, shape),
        Quantization::Published(of) => published::matrix(checkpoint, of, module, shape),
    }
}

/// The format and the shape `[rows, columns]` of the matrix of `module` by its tensors' shapes, which may yet not fit each
/// other; `None` where it is not quantized, or they make no sense. `columns` decides where shapes alone leave a doubt.
pub fn describe(
    checkpoint: &Checkpoint,
    quantization: &Quantization,
    module: &str,
    columns: Option<usize>,
) -> Option<(Format, [usize; 2])> {
    match quantization {
        Quantization::Mlx(mlx) => {
            let format = mlx_format(checkpoint, mlx, module, columns).ok()??;
            let [rows, words] = checkpoint.matrix_shape(&format!("{module}.weight"))?;
            let bits = bits(format);
            let in_bytes =
                checkpoint.find(&format!("{module}.weight")).is_some_and(|of| of.dtype_name() == "U8");
            let bits_of_row =
                words.checked_mul(if in_bytes { 8 } else { 32 }).filter(|all| all.is_multiple_of(bits))?;
            Some((format, [rows, bits_of_row / bits]))
        }
        Quantization::Gptq { .. } => gptq::describe_gptq(checkpoint, module),
        Quantization::Awq => gptq::describe_awq(checkpoint, module),
        Quantization::Published(of) => published::describe(checkpoint, of, module, columns),
    }
}

/// A tensor as the model sees it: a quantized matrix is one, whatever number of tensors it is stored in.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The module's name for a quantized matrix, else the tensor's.
    pub name: String,
    /// The format, or the element type as the file names it: `affine4 g64`, `BF16`.
    pub kind: String,
    /// The format of a quantized matrix.
    pub format: Option<Format>,
    /// Dimensions, outermost first: of quantized matrices, what they stand for.
    pub shape: Shape,
    /// Bytes in the files.
    pub bytes: u64,
    /// Bytes once loaded: those of the file, unless the layout is turned into another.
    pub loaded: u64,
    /// Whether these are a copy in memory for as long as the model is loaded, beside whatever a backend makes of it.
    pub copied: bool,
}

impl Stored {
    /// How many numbers it stands for.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }
}

/// All tensors in the order of their names.
pub fn stored(checkpoint: &Checkpoint, quantization: Option<&Quantization>) -> Vec<Stored> {
    let mut all = Vec::new();
    let mut taken = HashSet::new();
    for info in checkpoint.tensors() {
        let Some(quantization) = quantization else { break };
        let [marker, others @ ..] = parts(quantization) else { continue };
        let module = info.name().strip_suffix(marker).and_then(|name| name.strip_suffix('.'));
        let Some((module, (format, shape))) =
            module.and_then(|module| Some((module, describe(checkpoint, quantization, module, None)?)))
        else {
            continue;
        };
        let names = others.iter().map(|part| format!("{module}.{part}")).chain([info.name().to_owned()]);
        let bytes = names
            .filter_map(|name| checkpoint.find(&name))
            .inspect(|part| _ = taken.insert(part.name()))
            .map(|part| part.bytes() as u64)
            .sum();
        let loaded = match quantization {
            Quantization::Mlx(_) if !matches!(format, Format::Fp4 { .. }) => bytes,
            // Scales that `f16` does not hold exactly with their zero points are kept in `f32`.
            _ => format.row_bytes(shape[1]).iter().map(|&row| row as u64 * shape[0] as u64).sum(),
        };
        let shape = shape.as_slice().into();
        let (name, kind) = (module.to_owned(), format.to_string());
        all.push(Stored { name, kind, format: Some(format), shape, bytes, loaded, copied: false });
    }
    for info in checkpoint.tensors().filter(|info| !taken.contains(info.name())) {
        let (bytes, shape) = (info.bytes() as u64, info.shape().into());
        let (name, kind) = (info.name().to_owned(), info.dtype_name());
        let format = info.format();
        // Blocks in another order are made when somebody asks for them; dense rows are made once.
        let copied = format.is_none() && info.form != Form::Plain;
        all.push(Stored { name, kind, format, shape, bytes, loaded: bytes, copied });
    }
    all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Suffixes of the tensors that make up a quantized matrix, the first of which tells that it is one.
fn parts(quantization: &Quantization) -> &'static [&'static str] {
    match quantization {
        Quantization::Mlx(_) => &["scales", "weight", "biases", "global_scale"],
        Quantization::Gptq { .. } => &["qweight", "qzeros", "scales", "g_idx"],
        Quantization::Awq => &["qweight", "qzeros", "scales"],
        Quantization::Published(of) => match of.by {
            Publisher::Transformers => &["weight_scale_inv", "weight", "activation_scale"],
            Publisher::CompressedTensors => &[
                "weight_scale",
                "weight_packed",
                "weight",
                "weight_shape",
                "weight_zero_point",
                "weight_g_idx",
                "weight_global_scale",
                "input_scale",
                "input_zero_point",
                "input_global_scale",
            ],
            Publisher::ModelOpt => &["weight_scale", "weight", "weight_scale_2", "input_scale"],
        },
    }
}

/// Bits of a code.
fn bits(format: Format) -> usize {
    match format {
        Format::Affine { bits, .. } => usize::from(bits),
        Format::Mxfp8 => 8,
        _ => 4,
    }
}

/// The format of a module, as mlx-lm finds it: what the configuration names for its path; otherwise the model's, if the
/// shapes fit it, and else the one that the shapes imply.
fn mlx_format(
    checkpoint: &Checkpoint,
    mlx: &MlxQuantization,
    module: &str,
    columns: Option<usize>,
) -> Result<Option<Format>> {
    let name = format!("{module}.scales");
    let named = match mlx.modules.get(module) {
        Some(None) => return Ok(None),
        Some(Some(named)) => Some(*named),
        None => None,
    };
    let Some(scales) = checkpoint.find(&name) else {
        return match named {
            None => Ok(None),
            Some(_) => Err(checkpoint.missing(&name, "config.json says that the module is quantized")),
        };
    };
    let shapes = checkpoint.matrix_shape(&format!("{module}.weight")).zip(checkpoint.matrix_shape(&name));
    let Some(([_, words], [_, groups])) = shapes else {
        let got = scales.shape();
        return Err(scales.fail(format!("shape is {got:?}, expected it and {module}.weight to be matrices")));
    };
    // OpenAI's are bytes.
    let in_bytes = checkpoint.find(&format!("{module}.weight")).is_some_and(|of| of.dtype_name() == "U8");
    let word_bits = if in_bytes { 8 } else { 32 };
    let typed = |of: MlxFormat| match (of.mode, scales.dtype(), scales.dtype_name().as_str()) {
        (MlxMode::Affine, Some(dtype), _) => {
            Some(Format::Affine { bits: of.bits, group: of.group, scales: dtype })
        }
        (MlxMode::Mxfp4, _, "U8") => Some(Format::Mxfp4),
        (MlxMode::Mxfp8, _, "U8") => Some(Format::Mxfp8),
        (MlxMode::Nvfp4, _, "U8") => Some(match checkpoint.find(&format!("{module}.global_scale")) {
            Some(_) => Format::Fp4 { group: 16 },
            None => Format::Nvfp4,
        }),
        _ => None,
    };
    if let Some(named) = named {
        let wanted = if named.mode == MlxMode::Affine { "F32, F16 or BF16" } else { "U8" };
        let wrong = || {
            let (got, mode) = (scales.dtype_name(), named.mode.name());
            scales.fail(format!("type is {got}, expected {wanted}, as mode {mode} has it"))
        };
        return typed(named).map(Some).ok_or_else(wrong);
    }
    let fits = |of: &MlxFormat| {
        // A tensor without rows may have any number of columns.
        let width = groups.checked_mul(usize::from(of.group));
        let stored = words.checked_mul(word_bits);
        let wanted = width.and_then(|width| width.checked_mul(usize::from(of.bits)));
        stored.is_some() && stored == wanted && columns.is_none_or(|columns| Some(columns) == width)
    };
    if let Some(format) = Some(mlx.default).filter(fits).and_then(typed) {
        return Ok(Some(format));
    }
    let modes = [MlxMode::Affine, MlxMode::Mxfp4, MlxMode::Mxfp8, MlxMode::Nvfp4];
    let implied = modes.into_iter().find_map(|mode| {
        let (group, bits) = mode.accepted();
        let all =
            group.iter().flat_map(|&group| bits.iter().map(move |&bits| MlxFormat { mode, bits, group }));
        all.filter(fits).find_map(typed)
    });
    implied.map(Some).ok_or_else(|| {
        scales.fail(format!(
            "type {} and shape {:?} beside {words} words a row of {module}.weight fit no format of MLX{}",
            scales.dtype_name(),
            scales.shape(),
            columns.map(|columns| format!(" for {columns} columns")).unwrap_or_default(),
        ))
    })
}

fn mlx_matrix(
    checkpoint: &Checkpoint,
    mlx: &MlxQuantization,
    module: &str,
    shape: [usize; 2],
) -> Result<Option<QuantWeight>> {
    let [rows, columns] = shape;
    let Some(format) = mlx_format(checkpoint, mlx, module, Some(columns))? else { return Ok(None) };
    let group = format.group();
    let name = |part: &str| format!("{module}.{part}");
    if !columns.is_multiple_of(group) || !(columns * bits(format)).is_multiple_of(32) {
        let what = format!("{columns} columns are not whole groups of {group} in {format}");
        return Err(Error::Weight { path: checkpoint.path().to_owned(), name: name("weight"), what });
    }
    let in_bytes = checkpoint.find(&name("weight")).is_some_and(|of| of.dtype_name() == "U8");
    let (kind, word) = if in_bytes { ("U8", 8) } else { ("U32", 32) };
    let words = checkpoint.typed(&name("weight"), &[kind], &[rows, columns * bits(format) / word])?;
    let kind = match format {
        Format::Affine { scales: DType::F32, .. } => "F32",
        Format::Affine { scales: DType::F16, .. } => "F16",
        Format::Affine { scales: DType::BF16, .. } => "BF16",
        _ => "U8",
    };
    let mut tensors: Vec<&TensorInfo> = vec![words];
    tensors.push(checkpoint.typed(&name("scales"), &[kind], &[rows, columns / group])?);
    if matches!(format, Format::Affine { .. }) {
        tensors.push(checkpoint.typed(&name("biases"), &[kind], &[rows, columns / group])?);
    } else if let Some(biases) = checkpoint.find(&name("biases")) {
        return Err(biases.fail(format!("is there, and {format} has none")));
    }
    let planes = tensors.into_iter().map(|info| checkpoint.plane(info)).collect::<Result<Vec<_>>>()?;
    let Some(info) = checkpoint.find(&name("global_scale")) else {
        return Ok(Some(QuantWeight::new(name("weight"), format, shape, planes)));
    };
    let (Format::Fp4 { .. }, Ok(planes)) = (format, <[Plane; 2]>::try_from(planes)) else {
        return Err(info.fail(format!("is there, and {format} has none")));
    };
    // The largest magnitude, which the largest code times the largest scale stands for.
    let global = Global::Times(published::one_float(checkpoint, info)? / (448.0 * 6.0));
    Ok(Some(published::with_global(name("weight"), shape, planes, global)))
}
