//! Quantizing a model into one GGUF file, which llama.cpp loads.

use std::f64::consts::PI;
use std::path::Path;

use super::source::Source;
use super::types::GgufType;
use super::{ELEMENTS, Report, check_source, is_dropped, vocabulary};
use crate::config::{Activation, Config, Family, RopeScaling};
use crate::error::{Error, Result};
use crate::model::ModelFiles;
use crate::quant::{Format, affine, write_floats};
use crate::tensor::DType;
use crate::weights::gguf::write::{Entries, Spec, Writer};
use crate::weights::gguf::{Architecture, Metadata, TensorType};
use crate::weights::output::Output;

/// Layers of Gemma 2's 27B, for which alone llama.cpp divides scores by another root than that of a head's length.
const GEMMA2_27B_LAYERS: usize = 46;

/// Quantizes a model into the new GGUF file `out`, with its tokenizer and chat template.
///
/// Matrices get the type `of`, those whose rows are not whole blocks F16; vectors get F32. From a directory, Llama, Mistral,
/// Qwen2, Qwen3, Phi 3 and Gemma 2 are written, with a tokenizer that GGUF has a form for, or none. A Mistral's window is
/// written, but llama.cpp does not apply it. Of a GGUF file, names, order and metadata stay what they are. What is quantized
/// already is decoded first, which is said: the two errors add up. `out` and `progress` are as for
/// [`to_mlx`](super::to_mlx).
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
    let (entries, layout) = match checkpoint.gguf() {
        Some(metadata) => {
            if Architecture::of(metadata)? == Architecture::Phi2 {
                return Err(refuse("is a phi2 in GGUF".to_owned()));
            }
            (copied(metadata, of), Layout::Stored)
        }
        None => {
            let architecture = match config.family {
                Family::Llama | Family::Mistral => Architecture::Llama,
                Family::Qwen2 => Architecture::Qwen2,
                Family::Qwen3 => Architecture::Qwen3,
                Family::Phi3 => Architecture::Phi3,
                Family::Gemma2 => Architecture::Gemma2,
                family => return Err(refuse(format!("is a {family}"))),
            };
            let mut entries = entries(files, architecture, of).map_err(|what| refuse(what.to_owned()))?;
            vocabulary::put(&files.path, config, &mut entries)?;
            (entries, Layout::Made(architecture))
        }
    };

    let mut report = Report::default();
    let (mut specs, mut parts) = (Vec::new(), Vec::new());
    let extra = match layout {
        Layout::Stored => Vec::new(),
        Layout::Made(_) => factor_tensors(config),
    };
    for (name, factors) in &extra {
        let (kind, shape) = (TensorType::Dense(DType::F32), [factors.len()].as_slice().into());
        specs.push(Spec { name: (*name).to_owned(), kind, shape });
    }
    for source in Source::all(files)? {
        if is_dropped(&source.name, config.tie_word_embeddings) {
            continue;
        }
        let name = match layout {
            Layout::Stored => Some(source.stored_name().to_owned()),
            Layout::Made(architecture) => architecture.stored_name(&source.name),
        };
        let name = name.ok_or_else(|| source.fail("has no name in GGUF".to_owned()))?;
        let kind = match source.shape[..] {
            [_, columns] => {
                of.of(&source.name, columns, config.num_hidden_layers, config.tie_word_embeddings)
            }
            _ => TensorType::Dense(DType::F32),
        };
        match kind {
            TensorType::Blocks(_) => report.quantized += 1,
            TensorType::Dense(_) => {
                report.kept += 1;
                report.uneven += usize::from(source.shape.len() == 2 && of != GgufType::F16);
            }
        }
        report.bytes_in += source.bytes;
        specs.push(Spec { name, kind, shape: source.shape.clone() });
        parts.push((source, kind));
    }

    let output = Output::create(out)?;
    let mut writer = Writer::create(&output.path(), &entries, &specs)?;
    report.bytes_out = writer.total();
    for (_, factors) in &extra {
        let mut bytes = vec![0; factors.len() * 4];
        write_floats(DType::F32, factors, &mut bytes);
        writer.write(&bytes)?;
    }
    checkpoint.advise_sequential();
    let mut read = 0;
    for (source, kind) in parts {
        let mut step = |bytes| {
            read += bytes;
            progress(read, report.bytes_in)
        };
        let order = match layout {
            Layout::Stored => Order::STORED,
            Layout::Made(architecture) => Order::of(config, architecture, &source),
        };
        if !write(&source.held(), kind, order, &mut writer, &mut step)? {
            return Ok(None);
        }
    }
    writer.finish()?;
    output.commit()?;
    Ok(Some(report))
}

/// Where names, the order of rows and the offsets of norms come from.
#[derive(Clone, Copy)]
enum Layout {
    /// They are those of the GGUF file that is read.
    Stored,
    /// Those of a Hugging Face checkpoint become those of an architecture.
    Made(Architecture),
}

/// The metadata of the file that is read, but for what says how it is quantized and split.
fn copied(metadata: &Metadata, of: GgufType) -> Entries {
    let mut entries = Entries::default();
    for (key, value) in metadata.stored() {
        let other = [&b"general.file_type"[..], b"general.quantization_version", b"general.alignment"];
        // An importance matrix was another quantizer's.
        if !other.contains(&key) && !key.starts_with(b"split.") && !key.starts_with(b"quantize.imatrix.") {
            entries.stored(key, value);
        }
    }
    entries.uint("general.file_type", of.file_type());
    entries.uint("general.quantization_version", 2);
    entries
}

/// The metadata but for the tokenizer; what llama.cpp has no form for is the error.
fn entries(files: &ModelFiles, architecture: Architecture, of: GgufType) -> Result<Entries, &'static str> {
    let config = &files.config;
    let mut entries = Entries::default();
    entries.string("general.architecture", architecture.name());
    entries.string("general.name", &files.name());
    entries.uint("general.file_type", of.file_type());
    entries.uint("general.quantization_version", 2);
    let gemma = config.family == Family::Gemma2;
    match config.hidden_act {
        Activation::GeluTanh if gemma => {}
        Activation::Silu if !gemma => {}
        _ => return Err("has an activation that llama.cpp does not give its architecture"),
    }
    let windowed = config.windows.iter().any(Option::is_some);
    if windowed && !matches!(config.family, Family::Mistral | Family::Gemma2 | Family::Phi3) {
        return Err("has layers with a window of attention");
    }
    if gemma {
        gemma2(config, &mut entries)?;
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
        if !gemma {
            tracing::warn!(
                "llama.cpp applies no window to this architecture: past {window} tokens its answers differ"
            );
        }
    }
    entries.float(&key("attention.layer_norm_rms_epsilon"), config.norm_eps);
    entries.float(&key("rope.freq_base"), config.rope.theta as f32);
    match config.rope.scaling {
        RopeScaling::None | RopeScaling::Llama3 { .. } => {}
        RopeScaling::Linear { factor } => {
            entries.string(&key("rope.scaling.type"), "linear");
            entries.float(&key("rope.scaling.factor"), factor as f32);
        }
        RopeScaling::LongRope { original, attention_factor, .. } if config.family == Family::Phi3 => {
            entries.uint(
                &key("rope.scaling.original_context_length"),
                u32::try_from(original).map_err(|_| "has a size over 32 bits")?,
            );
            entries.float(&key("rope.scaling.attn_factor"), attention_factor);
        }
        _ => return Err("stretches its rotary embedding in another way than linear and llama3"),
    }
    Ok(entries)
}

/// What Gemma 2 has beside the others.
fn gemma2(config: &Config, entries: &mut Entries) -> Result<(), &'static str> {
    for (key, cap) in [
        ("gemma2.attn_logit_softcapping", config.attn_logit_softcapping),
        ("gemma2.final_logit_softcapping", config.final_logit_softcapping),
    ] {
        // llama.cpp has caps of its own where a file names none.
        entries.float(key, cap.ok_or("caps no scores or logits")?);
    }
    let every_other = |(layer, window): (usize, &Option<usize>)| window.is_some() == (layer % 2 == 0);
    if !config.windows.iter().enumerate().all(every_other) {
        return Err("has no window of attention in every other layer");
    }
    Ok(())
}

/// What frequencies are divided by, one for each pair, as tensors.
fn factor_tensors(config: &Config) -> Vec<(&'static str, Vec<f32>)> {
    match &config.rope.scaling {
        RopeScaling::LongRope { short_factor, long_factor, .. } => vec![
            ("rope_factors_long.weight", long_factor.clone()),
            ("rope_factors_short.weight", short_factor.clone()),
        ],
        _ => llama3_factors(config).map(|factors| ("rope_freqs.weight", factors)).into_iter().collect(),
    }
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

/// What llama.cpp divides Gemma 2's scores by the root of, whatever the checkpoint says.
fn gemma2_scalar(config: &Config) -> f32 {
    match config.num_hidden_layers {
        GEMMA2_27B_LAYERS => config.hidden_size as f32 / config.num_attention_heads as f32,
        _ => config.head_dim as f32,
    }
}

/// What of a tensor's rows and values llama.cpp has otherwise.
#[derive(Clone, Copy)]
struct Order {
    /// Rows `i` and `i + half` of each of these heads, which rotate together, lie side by side.
    heads: Option<usize>,
    /// What the values are multiplied with: queries, where scores are divided by another number.
    factor: f32,
    /// What is then added to them: 1 to the weights of Gemma's norms.
    offset: f32,
}

impl Order {
    /// All as it is stored.
    const STORED: Self = Self { heads: None, factor: 1.0, offset: 0.0 };

    fn of(config: &Config, architecture: Architecture, source: &Source<'_>) -> Self {
        let module = source.name.rsplit_once('.').map_or("", |(module, _)| module);
        let heads = match module.rsplit_once('.').map_or("", |(_, part)| part) {
            _ if architecture != Architecture::Llama => None,
            "q_proj" => Some(config.num_attention_heads),
            "k_proj" => Some(config.num_key_value_heads),
            _ => None,
        };
        if architecture != Architecture::Gemma2 {
            return Self { heads, ..Self::STORED };
        }
        let scalar = config.query_pre_attn_scalar.unwrap_or_else(|| gemma2_scalar(config));
        let queries = module.ends_with(".q_proj");
        Self {
            heads,
            factor: if queries { (gemma2_scalar(config) / scalar).sqrt() } else { 1.0 },
            offset: if source.name.ends_with("norm.weight") { 1.0 } else { 0.0 },
        }
    }
}

/// Writes a tensor; `step` is told of the bytes read. `false` where that says so.
fn write(
    source: &Source<'_>,
    kind: TensorType,
    order: Order,
    writer: &mut Writer,
    step: &mut dyn FnMut(u64) -> bool,
) -> Result<bool> {
    let Some(&rows) = source.shape.first() else {
        return Err(source.fail("is a scalar, expected a matrix or a vector".to_owned()));
    };
    let columns: usize = source.shape[1..].iter().product();
    let from = |row: usize| match order.heads.filter(|&heads| heads > 0) {
        Some(heads) => {
            let half = rows / heads / 2;
            let (head, pair, second) = (row / (2 * half), row / 2 % half, row % 2);
            (2 * head + second) * half + pair
        }
        None => row,
    };
    if order.heads.is_some_and(|heads| heads == 0 || !rows.is_multiple_of(2 * heads)) {
        return Err(source.fail(format!("{rows} rows are not heads of whole pairs")));
    }
    let at_once = (ELEMENTS / columns.max(1)).max(1);
    let (mut values, mut encoded) = (Vec::new(), Vec::new());
    for first in (0..rows).step_by(at_once) {
        let last = (first + at_once).min(rows);
        values.clear();
        source.read(first..last, from, &mut values);
        if (order.factor, order.offset) != (1.0, 0.0) {
            values.iter_mut().for_each(|value| *value = *value * order.factor + order.offset);
        }
        let wrong = match kind {
            TensorType::Blocks(of) => {
                let format = Format::Ggml(of);
                encoded.resize((last - first) * format.row_bytes(columns)[0], 0);
                let bytes = bytemuck::cast_slice(&values);
                format.encode(DType::F32, columns, bytes, [&mut encoded, &mut [], &mut []])
            }
            TensorType::Dense(to) => {
                encoded.resize(values.len() * to.size(), 0);
                write_floats(to, &values, &mut encoded);
                // F16 ends at 65,504.
                affine::read_floats(to, &encoded, &mut values);
                values.iter().position(|x| !x.is_finite()).map(|at| at / columns.max(1))
            }
        };
        if let Some(wrong) = wrong {
            let row = from(first + wrong);
            return Err(source.fail(format!("row {row} holds a value that is not finite in {}", kind.name())));
        }
        writer.write(&encoded)?;
        if !step(source.bytes_of(first..last)) {
            return Ok(false);
        }
    }
    Ok(true)
}
