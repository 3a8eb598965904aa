//! Quantizing a model into one GGUF file, which llama.cpp loads.

use std::f64::consts::PI;
use std::path::Path;

use super::{ELEMENTS, Report, check_source, is_dropped, vocabulary};
use crate::config::{Activation, Config, Family, RopeScaling};
use crate::error::{Error, Result};
use crate::model::ModelFiles;
use crate::quant::{Format, GgmlType, affine, write_floats};
use crate::tensor::DType;
use crate::weights::gguf::write::{Entries, Spec, Writer};
use crate::weights::gguf::{Architecture, TensorType};
use crate::weights::output::Output;
use crate::weights::{Checkpoint, TensorInfo};

/// What the matrices of a GGUF file are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)]
pub enum GgufType {
    F16,
    Q8_0,
    Q4_0,
}

impl GgufType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::F16, Self::Q8_0, Self::Q4_0];

    /// The name that llama.cpp prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
        }
    }

    const fn kind(self) -> TensorType {
        match self {
            Self::F16 => TensorType::Dense(DType::F16),
            Self::Q8_0 => TensorType::Blocks(GgmlType::Q8_0),
            Self::Q4_0 => TensorType::Blocks(GgmlType::Q4_0),
        }
    }

    /// Its number as `general.file_type`: `enum llama_ftype`.
    const fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
        }
    }
}

/// Quantizes the model in a directory into the new GGUF file `out`, with its tokenizer and chat template.
///
/// Matrices get the type `of`, those whose rows are not whole blocks F16; vectors get F32. Llama, Mistral, Qwen2 and Qwen3
/// are written, with a tokenizer that GGUF has a form for, or none. A Mistral's window is written, but llama.cpp does not
/// apply it. `out` and `progress` are as for [`to_mlx`](super::to_mlx).
///
/// # Errors
/// As [`to_mlx`](super::to_mlx); [`Error::Format`] for what GGUF or llama.cpp has no form for.
pub fn to_gguf(
    files: &ModelFiles,
    of: GgufType,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Option<Report>> {
    check_source(files)?;
    let (config, checkpoint) = (&files.config, &files.checkpoint);
    let refuse =
        |what: String| Error::format(&files.path, format!("{what}; this version writes no such GGUF file"));
    let architecture = match config.family {
        Family::Llama | Family::Mistral => Architecture::Llama,
        Family::Qwen2 => Architecture::Qwen2,
        Family::Qwen3 => Architecture::Qwen3,
        family => return Err(refuse(format!("is a {family}"))),
    };
    let mut entries = entries(files, architecture, of).map_err(|what| refuse(what.to_owned()))?;
    vocabulary::put(&files.path, config, &mut entries)?;

    let mut report = Report::default();
    let (mut specs, mut parts) = (Vec::new(), Vec::new());
    if let RopeScaling::Llama3 { .. } = config.rope.scaling {
        let (kind, shape) = (TensorType::Dense(DType::F32), [config.rope.dims / 2].as_slice().into());
        specs.push(Spec { name: "rope_freqs.weight".to_owned(), kind, shape });
    }
    for info in checkpoint.tensors().filter(|info| !is_dropped(info.name(), config.tie_word_embeddings)) {
        let name = architecture.stored_name(info.name());
        let name = name.ok_or_else(|| info.fail("has no name in GGUF".to_owned()))?;
        if info.dtype().is_none() {
            return Err(info.fail(format!("type is {}, expected F32, F16 or BF16", info.dtype_name())));
        }
        let kind = match *info.shape() {
            [_, columns] => {
                let even = match of.kind() {
                    TensorType::Dense(_) => true,
                    TensorType::Blocks(of) => columns.is_multiple_of(of.block().0),
                };
                report.uneven += usize::from(!even);
                if even { of.kind() } else { TensorType::Dense(DType::F16) }
            }
            _ => TensorType::Dense(DType::F32),
        };
        match kind {
            TensorType::Blocks(_) => report.quantized += 1,
            TensorType::Dense(_) => report.kept += 1,
        }
        report.bytes_in += info.bytes() as u64;
        specs.push(Spec { name, kind, shape: info.shape().into() });
        parts.push((info, kind));
    }

    let output = Output::create(out)?;
    let mut writer = Writer::create(&output.path(), &entries, &specs)?;
    report.bytes_out = writer.total();
    if let Some(factors) = llama3_factors(config) {
        let mut bytes = vec![0; factors.len() * 4];
        write_floats(DType::F32, &factors, &mut bytes);
        writer.write(&bytes)?;
    }
    checkpoint.advise_sequential();
    let mut read = 0;
    for (info, kind) in parts {
        let mut step = |bytes| {
            read += bytes;
            progress(read, report.bytes_in)
        };
        let heads = heads(config, architecture, info.name());
        if !write(checkpoint, info, kind, heads, &mut writer, &mut step)? {
            return Ok(None);
        }
    }
    writer.finish()?;
    output.commit()?;
    Ok(Some(report))
}

/// The metadata but for the tokenizer; what llama.cpp has no form for is the error.
fn entries(files: &ModelFiles, architecture: Architecture, of: GgufType) -> Result<Entries, &'static str> {
    let config = &files.config;
    let mut entries = Entries::default();
    entries.string("general.architecture", architecture.name());
    entries.string("general.name", &files.name());
    entries.uint("general.file_type", of.file_type());
    entries.uint("general.quantization_version", 2);
    if config.hidden_act != Activation::Silu {
        return Err("has an activation other than silu");
    }
    let windowed = config.windows.iter().any(Option::is_some);
    if windowed && config.family != Family::Mistral {
        return Err("has layers with a window of attention");
    }
    let key = |name: &str| format!("{}.{name}", architecture.name());
    for (name, value) in [
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.rope.dims),
        ("vocab_size", config.vocab_size),
    ] {
        entries.uint(&key(name), u32::try_from(value).map_err(|_| "has a size over 32 bits")?);
    }
    if let Some(window) = config.sliding_window.filter(|_| windowed) {
        entries.uint(&key("attention.sliding_window"), u32::try_from(window).unwrap_or(u32::MAX));
        tracing::warn!(
            "llama.cpp applies no window to this architecture: past {window} tokens its answers differ"
        );
    }
    entries.float(&key("attention.layer_norm_rms_epsilon"), config.norm_eps);
    entries.float(&key("rope.freq_base"), config.rope.theta as f32);
    match config.rope.scaling {
        RopeScaling::None | RopeScaling::Llama3 { .. } => {}
        RopeScaling::Linear { factor } => {
            entries.string(&key("rope.scaling.type"), "linear");
            entries.float(&key("rope.scaling.factor"), factor as f32);
        }
        _ => return Err("stretches its rotary embedding in another way than linear and llama3"),
    }
    Ok(entries)
}

/// What frequencies are divided by, one for each pair: `rope_freqs.weight`.
fn llama3_factors(config: &Config) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } = config.rope.scaling
    else {
        return None;
    };
    let factors = (0..config.rope.dims).step_by(2).map(|i| {
        let wavelength = 2.0 * PI * config.rope.theta.powf(i as f64 / config.rope.dims as f64);
        let turns = original as f64 / wavelength;
        let smooth = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    });
    Some(factors.collect())
}

/// The heads of a matrix or bias whose rows llama.cpp has in another order.
fn heads(config: &Config, architecture: Architecture, name: &str) -> Option<usize> {
    if architecture != Architecture::Llama {
        return None;
    }
    let (module, _) = name.rsplit_once('.')?;
    match module.rsplit_once('.')?.1 {
        "q_proj" => Some(config.num_attention_heads),
        "k_proj" => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// Writes a tensor, its rows in llama.cpp's order; `step` is told of the bytes read. `false` where that says so.
fn write(
    checkpoint: &Checkpoint,
    info: &TensorInfo,
    kind: TensorType,
    heads: Option<usize>,
    writer: &mut Writer,
    step: &mut dyn FnMut(u64) -> bool,
) -> Result<bool> {
    let (Some(dtype), Some(&rows)) = (info.dtype(), info.shape().first()) else {
        return Err(info.fail("is a scalar, expected a matrix or a vector".to_owned()));
    };
    let columns: usize = info.shape()[1..].iter().product();
    let plane = checkpoint.plane(info);
    let bytes = plane.bytes();
    let stride = columns * dtype.size();
    // Rows `i` and `i + half` of a head, which rotate together, lie side by side.
    let source = |row: usize| match heads.filter(|&heads| heads > 0) {
        Some(heads) => {
            let half = rows / heads / 2;
            let (head, pair, second) = (row / (2 * half), row / 2 % half, row % 2);
            (2 * head + second) * half + pair
        }
        None => row,
    };
    if heads.is_some_and(|heads| heads == 0 || !rows.is_multiple_of(2 * heads)) {
        return Err(info.fail(format!("{rows} rows are not heads of whole pairs")));
    }
    let at_once = (ELEMENTS / columns.max(1)).max(1);
    let (mut values, mut encoded, mut floats) = (Vec::new(), Vec::new(), Vec::new());
    for first in (0..rows).step_by(at_once) {
        let last = (first + at_once).min(rows);
        values.clear();
        (first..last).for_each(|row| values.extend(&bytes[source(row) * stride..][..stride]));
        let wrong = match kind {
            TensorType::Blocks(of) => {
                let format = Format::Ggml(of);
                encoded.resize((last - first) * format.row_bytes(columns)[0], 0);
                format.encode(dtype, columns, &values, [&mut encoded, &mut [], &mut []])
            }
            TensorType::Dense(to) => {
                floats.resize((last - first) * columns, 0.0);
                affine::read_floats(dtype, &values, &mut floats);
                encoded.resize(floats.len() * to.size(), 0);
                write_floats(to, &floats, &mut encoded);
                // F16 ends at 65,504.
                affine::read_floats(to, &encoded, &mut floats);
                floats.iter().position(|x| !x.is_finite()).map(|at| at / columns.max(1))
            }
        };
        if let Some(wrong) = wrong {
            let row = source(first + wrong);
            return Err(info.fail(format!("row {row} holds a value that is not finite in {}", kind.name())));
        }
        writer.write(&encoded)?;
        if !step(values.len() as u64) {
            return Ok(false);
        }
    }
    Ok(true)
}
