//! Quantizing a model into one GGUF file, which llama.cpp loads.

use std::collections::HashSet;
use std::path::Path;

use super::allot::Allotment;
use super::naming::{Named, Naming, Order, factor_tensors, refused};
use super::stacks::{Joined, Piece, joined};
use super::types::{GgufType, Traits};
use super::weights::Weights;
use super::{BUFFER, ELEMENTS, Recipe, Report, say_if_decoded, sources, vocabulary};
use crate::alloc;
use crate::config::RopeScaling;
use crate::error::Result;
use crate::forward::Gguf;
use crate::model::ModelFiles;
use crate::quant::{Format, GgmlType, affine, repack, write_floats};
use crate::tensor::{DType, Shape};
use crate::weights::gguf::write::{Entries, Spec, Writer};
use crate::weights::gguf::{Metadata, TensorType};
use crate::weights::output::Output;

/// Quantizes a model into the new GGUF file `out`, with its tokenizer and chat template.
///
/// Matrices get the recipe's type, those whose rows are not whole blocks F16; vectors and routers get F32. The experts of a layer
/// become three stacks, one expert at a time; gpt-oss's that are in MXFP4 stay so.
///
/// Written are the families whose form in GGUF has `entries`: of the dense ones all that are read from GGUF files but Phi 1
/// and 2, Gemma 4, Muse Glimmer and those with recurrent layers, and of mixtures of experts Mixtral, Qwen2-MoE, Qwen3-MoE and gpt-oss. From a directory, with a tokenizer that GGUF has a form
/// for, or none. A window that llama.cpp does not apply to an architecture is written all the same, and said. Of a GGUF file,
/// names, order and metadata stay what they are. What is quantized already is decoded first, which is said: the two errors add
/// up. `out` and `progress` are as for [`to_mlx`](super::to_mlx).
///
/// # Errors
/// As [`to_mlx`](super::to_mlx); [`Error::Format`](crate::Error::Format) for what GGUF or llama.cpp has no form for, and for an importance matrix of another
/// model. Matrices that it does not know are quantized without, which is said.
pub fn to_gguf<'m>(
    files: &ModelFiles,
    recipe: impl Into<Recipe<'m, GgufType>>,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Option<Report>> {
    let Recipe { of, imatrix, allotment } = recipe.into();
    let of = allotment.map_or(of, Allotment::most_like);
    let list = files.architecture.weights();
    let sources = sources(files, &list)?;
    let naming = Naming::of(files, &list)?;
    let (config, checkpoint) = (files.config(), &files.checkpoint);
    let mut entries = metadata(files, &naming, of)?;

    let mut report = Report::default();
    let (mut specs, mut parts) = (Vec::new(), Vec::new());
    let extra = if naming.stored { Vec::new() } else { factor_tensors(config) };
    for (name, factors) in &extra {
        let (kind, shape) = (TensorType::Dense(DType::F32), [factors.len()].as_slice().into());
        specs.push(Spec { name: (*name).to_owned(), kind, shape });
    }
    let mut names = HashSet::new();
    let traits = Traits {
        layers: config.num_hidden_layers,
        tied: config.tie_word_embeddings,
        experts: config.experts.map_or(0, |experts| experts.count),
        sharing: config.num_attention_heads / config.num_key_value_heads.max(1),
        weighed: imatrix.is_some(),
    };
    let mut weights = Weights { imatrix, known: 0, unknown: Vec::new() };
    for joined in joined(&list, &sources)? {
        let source = joined.source();
        let Some(named) = naming.name(&joined)? else { continue };
        let allotted = allotment.and_then(|allotment| allotment.types.get(&named.name)).copied();
        let kind = match allotted {
            Some(Some(Format::Ggml(of)))
                if named.columns.is_some_and(|of_row| of_row.is_multiple_of(of.block().0)) =>
            {
                TensorType::Blocks(of)
            }
            Some(None) => TensorType::Dense(DType::F16),
            _ => named.kind(of, traits),
        };
        let Named { name, order, is_router, is_kept, .. } = named;
        match kind {
            TensorType::Blocks(_) if !is_kept => report.quantized += 1,
            _ => report.kept += 1,
        }
        let is_dense = matches!(kind, TensorType::Dense(_));
        let is_uneven =
            is_dense && allotted.is_none() && joined.columns().is_some() && !is_router && of != GgufType::F16;
        report.uneven += usize::from(is_uneven);
        if !names.insert(name.clone()) {
            return Err(source.fail(format!("is a part of {name}, which this version does not write")));
        }
        report.bytes_in += joined.bytes();
        let importance = match kind {
            TensorType::Blocks(of) if !is_kept && of != GgmlType::Q8_0 => weights.of(&name, &joined)?,
            _ => None,
        };
        // The gate of a shared expert is one row, and a vector there.
        let shape: Shape = match joined.shape[..] {
            [1, columns] if is_router => [columns].as_slice().into(),
            _ => joined.shape.clone(),
        };
        specs.push(Spec { name, kind, shape });
        parts.push(Planned { joined, kind, order, importance });
    }
    say_if_decoded(files, parts.iter().any(|part| part.joined.is_decoded()));
    weights.finish(&mut entries)?;

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
    for part in parts {
        let mut step = |bytes| {
            read += bytes;
            progress(read, report.bytes_in)
        };
        if !write(&part, &mut writer, &mut step)? {
            return Ok(None);
        }
    }
    checkpoint.check()?;
    writer.finish()?;
    output.commit()?;
    Ok(Some(report))
}

/// The metadata of the file that is written, but for what an importance matrix adds.
///
/// # Errors
/// What GGUF or llama.cpp has no form for.
pub(super) fn metadata(files: &ModelFiles, naming: &Naming<'_>, of: GgufType) -> Result<Entries> {
    if let Some(metadata) = files.checkpoint.gguf() {
        return Ok(copied(metadata, of));
    }
    let config = files.config();
    let mut entries = entries(files, naming.gguf, of).map_err(|what| refused(files, what))?;
    (naming.own_entries)(config, &mut entries).map_err(|what| refused(files, what))?;
    vocabulary::put(&files.path, config, &mut entries)?;
    Ok(entries)
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

/// The metadata that all families have; what llama.cpp has no form for is the error.
fn entries(files: &ModelFiles, gguf: &Gguf, of: GgufType) -> Result<Entries, &'static str> {
    let config = files.config();
    let mut entries = Entries::default();
    entries.string("general.architecture", gguf.architecture);
    entries.string("general.name", &files.name());
    entries.uint("general.file_type", of.file_type());
    entries.uint("general.quantization_version", 2);
    if !gguf.activations.contains(&config.hidden_act) {
        return Err("has an activation that llama.cpp does not give its architecture");
    }
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
        entries.uint(&gguf.key(name), u32::try_from(value).map_err(|_| "has a size over 32 bits")?);
    }
    if let Some(experts) = config.experts {
        // Where it is not the width of the MLP, by the family's definition.
        let width = gguf
            .experts
            .and_then(|experts| experts.width)
            .map(|_| ("expert_feed_forward_length", experts.inner));
        let counts = [("expert_count", experts.count), ("expert_used_count", experts.used)];
        for (name, value) in counts.into_iter().chain(width) {
            entries.uint(&gguf.key(name), u32::try_from(value).map_err(|_| "has a size over 32 bits")?);
        }
    }
    if let Some(window) = config.sliding_window.filter(|_| config.windows.iter().any(Option::is_some)) {
        entries.uint(&gguf.key("attention.sliding_window"), u32::try_from(window).unwrap_or(u32::MAX));
    }
    if config.bidirectional {
        entries.flag(&gguf.key("attention.causal"), false);
    }
    entries.float(&gguf.key(gguf.eps), config.norm_eps);
    entries.float(&gguf.key("rope.freq_base"), config.rope.theta as f32);
    match config.rope.scaling {
        RopeScaling::None | RopeScaling::Llama3 { .. } => {}
        RopeScaling::Linear { factor } => {
            entries.string(&gguf.key("rope.scaling.type"), "linear");
            entries.float(&gguf.key("rope.scaling.factor"), factor as f32);
        }
        // The families that are trained with these write them themselves.
        RopeScaling::LongRope { .. } if config.model_type == "phi3" => {}
        RopeScaling::Yarn { .. } if ["ministral3", "gpt_oss"].contains(&config.model_type) => {}
        // Of the others llama.cpp reads the factor and the original context alone.
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor }
            if (beta_fast, beta_slow, truncate) == (32.0, 1.0, true)
                && (f64::from(attention_factor) - (0.1 * factor.max(1.0).ln() + 1.0)).abs() < 1e-6 =>
        {
            let original = u32::try_from(original).map_err(|_| "has a size over 32 bits")?;
            entries.string(&gguf.key("rope.scaling.type"), "yarn");
            entries.float(&gguf.key("rope.scaling.factor"), factor as f32);
            entries.uint(&gguf.key("rope.scaling.original_context_length"), original);
        }
        _ => return Err("stretches its rotary embedding in a way that llama.cpp has no form for"),
    }
    Ok(entries)
}

/// A tensor that is written, and how.
struct Planned<'s> {
    joined: Joined<'s>,
    kind: TensorType,
    order: Order,
    /// What the columns are worth, of one piece after the other.
    importance: Option<Vec<f32>>,
}

/// Writes a tensor, one piece after the other; `step` is told of the bytes read. `false` where that says so.
fn write(
    Planned { joined, kind, order, importance }: &Planned<'_>,
    writer: &mut Writer,
    step: &mut dyn FnMut(u64) -> bool,
) -> Result<bool> {
    let is_kept = joined.kept().is_some();
    for (at, piece) in joined.pieces.iter().enumerate() {
        if piece.source.shape.is_empty() {
            return Err(piece.source.fail("is a scalar, expected a matrix or a vector".to_owned()));
        }
        let written = match is_kept {
            true => write_kept(piece, writer, step)?,
            false => {
                let columns = piece.source.columns();
                let importance = importance.as_ref().map(|all| &all[at * columns..(at + 1) * columns]);
                write_piece(piece, *kind, *order, importance, writer, step)?
            }
        };
        if !written {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes the rows of a piece that is in MXFP4, in blocks of the same codes.
fn write_kept(piece: &Piece<'_>, writer: &mut Writer, step: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
    let (held, rows) = (piece.source.held()?, piece.rows.len());
    let width = Format::Ggml(GgmlType::MXFP4).row_bytes(piece.source.columns())[0];
    let at_once = (ELEMENTS / piece.source.columns().max(1)).max(1);
    let (mut planes, mut blocks) = (<[Vec<u8>; 3]>::default(), Vec::<u8>::new());
    for first in (0..rows).step_by(at_once) {
        let at = first..(first + at_once).min(rows);
        held.copy(at.clone(), |row| piece.source_row(row), &mut planes)?;
        let [codes, scales, _] = &planes;
        let bytes = if piece.source.format() == Some(Format::Mxfp4) {
            alloc::resize(&mut blocks, at.len() * width, BUFFER)?;
            repack::mxfp4_blocks(codes, scales, &mut blocks);
            &blocks
        } else {
            codes
        };
        writer.write(bytes)?;
        if !step(piece.bytes_of(at)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes the rows of a piece in the type `kind`.
fn write_piece(
    piece: &Piece<'_>,
    kind: TensorType,
    order: Order,
    importance: Option<&[f32]>,
    writer: &mut Writer,
    step: &mut dyn FnMut(u64) -> bool,
) -> Result<bool> {
    let (held, rows, columns) = (piece.source.held()?, piece.rows.len(), piece.source.columns());
    let from = |row: usize| piece.source_row(order.from.stored_row(order.to.model_row(row, rows), rows));
    let at_once = (ELEMENTS / columns.max(1)).max(1);
    let (mut values, mut encoded) = (Vec::new(), Vec::new());
    for first in (0..rows).step_by(at_once) {
        let last = (first + at_once).min(rows);
        values.clear();
        held.read(first..last, from, &mut values)?;
        if (order.factor, order.offset) != (1.0, 0.0) {
            values.iter_mut().for_each(|value| *value = *value * order.factor + order.offset);
        }
        let wrong = match kind {
            TensorType::Blocks(of) => {
                let format = Format::Ggml(of);
                alloc::resize(&mut encoded, (last - first) * format.row_bytes(columns)[0], BUFFER)?;
                let bytes = bytemuck::cast_slice(&values);
                let planes = [&mut encoded[..], &mut [], &mut []];
                format.encode_weighed(DType::F32, columns, bytes, importance, planes)
            }
            TensorType::Dense(to) => {
                alloc::resize(&mut encoded, values.len() * to.size(), BUFFER)?;
                write_floats(to, &values, &mut encoded);
                // F16 ends at 65,504.
                affine::read_floats(to, &encoded, &mut values);
                values.iter().position(|x| !x.is_finite()).map(|at| at / columns.max(1))
            }
        };
        if let Some(wrong) = wrong {
            let (row, name) = (from(first + wrong), kind.name());
            let what = format!("row {row} holds a value that is not finite in {name}, or too large for it");
            return Err(piece.source.fail(what));
        }
        writer.write(&encoded)?;
        if !step(piece.bytes_of(first..last)) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use crate::forward::{FAMILIES, Gguf};

    fn names(of: &[(&'static str, &Gguf)]) -> Vec<&'static str> {
        of.iter().map(|(name, _)| *name).collect()
    }

    /// All others that have a form in GGUF are written, as [`to_gguf`](super::to_gguf) says.
    #[test]
    fn these_are_read_and_not_written() {
        let read = FAMILIES.iter().filter_map(|family| Some((family.model_type, family.gguf.as_ref()?)));
        let (written, others): (Vec<_>, Vec<_>) = read.partition(|(_, gguf)| gguf.entries.is_some());
        assert_eq!(
            names(&others),
            [
                "phi",
                "olmoe",
                "granitemoe",
                "glm4_moe",
                "dots1",
                "ernie4_5_moe",
                "minimax_m2",
                "hunyuan_v1_moe",
                "qwen3_vl_moe_text",
                "afmoe",
                "deepseek_v2",
                "deepseek_v3",
                "mistral4",
                "qwen3_5_text",
                "qwen3_5_moe_text",
                "qwen3_next",
                "kimi_linear",
                "lfm2",
                "lfm2_moe",
                "gemma3n_text",
                "gemma4_text",
                "muse_glimmer_text",
                "granitemoehybrid",
                "nemotron_h",
                "mamba2",
                "falcon_h1",
                "bert",
                "nomic_bert",
            ]
        );
        let experts: Vec<_> = written.into_iter().filter(|(_, gguf)| gguf.experts.is_some()).collect();
        assert_eq!(names(&experts), ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"]);
    }
}
