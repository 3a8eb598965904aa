//! Quantizing a model into a directory that MLX loads or a GGUF file, a few rows at a time, so that it need not fit into
//! memory.

mod gguf;
mod source;
mod types;
mod vocabulary;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use serde_json::json;

pub use gguf::to_gguf;
pub use types::GgufType;

use crate::alloc;
use crate::error::{Error, Result};
use crate::files::Home;
use crate::json;
use crate::model::ModelFiles;
use crate::quant::{Format, MlxFormat, MlxMode, write_floats};
use crate::tensor::DType;
use crate::weights::output::{Output, write_through};
use crate::weights::write::{SHARD, Shards, Spec};
use source::Source;

/// Elements that are read at once: 16 MiB in `f32`, enough to keep all cores busy.
const ELEMENTS: usize = 4 << 20;
/// Bytes of the largest small file, like a tokenizer, that is copied.
const MAX_COPY: u64 = json::MAX_FILE;

/// What memory is taken for.
const BUFFER: &str = "quantized rows";

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Matrices that were quantized.
    pub quantized: usize,
    /// Tensors that were copied as they are.
    pub kept: usize,
    /// Matrices among them whose rows are not whole groups.
    pub uneven: usize,
    /// Bytes of the tensors that were read.
    pub bytes_in: u64,
    /// Bytes of the tensors that were written.
    pub bytes_out: u64,
}

/// Quantizes the model in a directory into the new directory `out`, which mlx-lm and backstop load.
///
/// As in mlx-lm, every matrix is quantized, embeddings and output head too, but those whose rows are not whole groups; the
/// head of a model that shares its embedding is dropped. Other tensors, tokenizer and templates are copied, and `config.json`
/// gets `quantization` and `quantization_config`. Affine scales have the type of the matrix. A model that is quantized already
/// is decoded first, to the type that its configuration names, which is said: the two errors add up.
///
/// `out` appears when everything is on the disk, and not before; it is made beside its place, as
/// `.<name>.backstop-partial`, which the next run takes over where this one is killed. `progress` is told how many bytes of
/// how many are read; where it says `false`, nothing is left and the answer is `None`.
///
/// # Errors
/// [`Error::Option`] for a format that MLX has not or this version does not write; [`Error::Format`] where `out` exists, or
/// the model has experts, is a GGUF file or built in; [`Error::Weight`] for values that are not finite;
/// [`Error::Io`].
pub fn to_mlx(
    files: &ModelFiles,
    mlx: MlxFormat,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Option<Report>> {
    check_format(mlx)?;
    if files.checkpoint.gguf().is_some() {
        return Err(Error::format(&files.path, "is in GGUF; expected a directory of safetensors"));
    }
    check_source(files)?;
    let decoded = files.config().dtype.unwrap_or(DType::F16);
    let parts: Vec<PlannedTensor<'_>> = (Source::all(files)?.into_iter())
        .filter(|source| !is_dropped(&source.name, files.config().tie_word_embeddings))
        .map(|source| PlannedTensor::of(source, mlx, decoded))
        .collect();
    let mut report =
        Report { bytes_in: parts.iter().map(|part| part.source.bytes).sum(), ..Report::default() };
    for part in &parts {
        match part.format {
            Some(_) => report.quantized += 1,
            None => report.kept += 1,
        }
        report.uneven += usize::from(part.uneven);
    }
    if report.quantized == 0 {
        let what = format!("has no matrix whose rows are whole groups of {}", mlx.group);
        return Err(Error::format(&files.path, what));
    }

    let output = Output::create(out)?;
    let dir = output.path();
    fs::create_dir(&dir).map_err(|e| Error::io(&dir, e))?;
    copy_small_files(&files.path, &dir)?;
    let config = config(&files.path.join("config.json"), mlx)?;
    write_through(&dir.join("config.json"), config.as_bytes())?;
    let mut shards = Shards::create(&dir, parts.iter().flat_map(PlannedTensor::specs).collect(), SHARD)?;
    report.bytes_out = shards.total();
    files.checkpoint.advise_sequential();
    let mut read = 0;
    for part in &parts {
        let mut step = |bytes| {
            read += bytes;
            progress(read, report.bytes_in)
        };
        if !part.write(&mut shards, &mut step)? {
            return Ok(None);
        }
    }
    files.checkpoint.check()?;
    shards.finish()?;
    output.commit()?;
    Ok(Some(report))
}

/// A tensor of the source, and what becomes of it.
struct PlannedTensor<'a> {
    source: Source<'a>,
    /// The type that it has, or is decoded to.
    dtype: DType,
    /// The format it gets; none where it keeps its type.
    format: Option<Format>,
    /// Whether it is a matrix that has no format for its number of columns alone.
    uneven: bool,
}

impl<'a> PlannedTensor<'a> {
    fn of(source: Source<'a>, mlx: MlxFormat, decoded: DType) -> Self {
        let dtype = source.dtype().unwrap_or(decoded);
        let columns = match source.shape[..] {
            [_, columns] if source.name.ends_with(".weight") && source.bytes > 0 => columns,
            _ => return Self { source, dtype, format: None, uneven: false },
        };
        let format = match mlx.mode {
            MlxMode::Affine => Format::Affine { bits: mlx.bits, group: mlx.group, scales: dtype },
            MlxMode::Mxfp4 => Format::Mxfp4,
            MlxMode::Mxfp8 => Format::Mxfp8,
            MlxMode::Nvfp4 => Format::Nvfp4,
        };
        let uneven = !columns.is_multiple_of(format.group());
        Self { source, dtype, format: (!uneven).then_some(format), uneven }
    }

    /// The names of the planes.
    fn names(&self) -> [String; 3] {
        let name = &self.source.name;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        [name.clone(), format!("{module}.scales"), format!("{module}.biases")]
    }

    /// What is written of it.
    fn specs(&self) -> Vec<Spec> {
        let stored = match self.dtype {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
        };
        let Some(format) = self.format else {
            let (name, shape) = (self.source.name.clone(), self.source.shape.clone());
            return vec![Spec { name, dtype: stored, shape }];
        };
        let [rows, columns] = [self.source.shape[0], self.source.shape[1]];
        let scales = if let Format::Affine { .. } = format { stored } else { Dtype::U8 };
        let types = [Dtype::U32, scales, scales];
        let planes = format.row_bytes(columns).into_iter().zip(types).zip(self.names());
        planes
            .map(|((width, dtype), name)| Spec {
                name,
                dtype,
                shape: [rows, width * 8 / dtype.bitsize()].as_slice().into(),
            })
            .collect()
    }

    /// Writes it; `step` is told of the bytes read since the last time. `false` where that says so.
    fn write(&self, shards: &mut Shards, step: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
        let (source, names) = (self.source.held()?, self.names());
        if let (None, Some(bytes)) = (self.format, source.plain()) {
            for (at, piece) in bytes.chunks(ELEMENTS).enumerate() {
                shards.write(&names[0], (at * ELEMENTS) as u64, piece)?;
                if !step(piece.len() as u64) {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let (rows, columns) = (source.shape[0], source.shape[1]);
        let rows_at_once = (ELEMENTS / columns.max(1)).max(1);
        let widths = match self.format {
            Some(format) => format.row_bytes(columns),
            None => [columns * self.dtype.size()].as_slice().into(),
        };
        let mut planes: [Vec<u8>; 3] = Default::default();
        let (mut floats, mut values) = (Vec::new(), Vec::new());
        for first in (0..rows).step_by(rows_at_once) {
            let at = first..(first + rows_at_once).min(rows);
            floats.clear();
            source.read(at.clone(), |row| row, &mut floats)?;
            alloc::resize(&mut values, floats.len() * self.dtype.size(), BUFFER)?;
            write_floats(self.dtype, &floats, &mut values);
            for (plane, width) in planes.iter_mut().zip(&widths) {
                alloc::resize(plane, at.len() * width, BUFFER)?;
            }
            let wrong = match self.format {
                Some(format) => {
                    format.encode(self.dtype, columns, &values, planes.each_mut().map(|p| &mut p[..]))
                }
                None => {
                    planes[0].copy_from_slice(&values);
                    None
                }
            };
            if let Some(wrong) = wrong {
                let row = first + wrong;
                return Err(
                    source.fail(format!("row {row} holds a NaN or an infinity, expected finite values"))
                );
            }
            for ((name, plane), width) in names.iter().zip(&planes).zip(&widths) {
                shards.write(name, (first * width) as u64, plane)?;
            }
            if !step(source.bytes_of(at)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Tensors that mlx-lm does not take from a checkpoint.
fn is_dropped(name: &str, tied: bool) -> bool {
    name.ends_with("rotary_emb.inv_freq") || tied && name.starts_with("lm_head.")
}

fn check_format(mlx: MlxFormat) -> Result<()> {
    let (groups, bits) = mlx.mode.accepted();
    let refuse = |option, got: String, expected| Err(Error::Option { option, got, expected });
    match mlx.mode {
        MlxMode::Affine | MlxMode::Mxfp4 => {}
        mode => return refuse("mode", mode.name().to_owned(), "affine or mxfp4"),
    }
    if !bits.contains(&mlx.bits) {
        let expected =
            if mlx.mode == MlxMode::Affine { "2, 3, 4, 5, 6 or 8" } else { "4, the bits of mxfp4" };
        return refuse("bits", mlx.bits.to_string(), expected);
    }
    if !groups.contains(&mlx.group) {
        let expected = if mlx.mode == MlxMode::Affine { "32, 64 or 128" } else { "32, the group of mxfp4" };
        return refuse("group", mlx.group.to_string(), expected);
    }
    Ok(())
}

/// Refuses what is in no file, and says what a second quantization costs.
fn check_source(files: &ModelFiles) -> Result<()> {
    if files.is_builtin() {
        return Err(Error::format(&files.path, "is part of the binary; expected a directory or a GGUF file"));
    }
    if files.config().experts.is_some() {
        let what =
            "has experts, which this version does not write: they belong in stacks, and would be apart";
        return Err(Error::format(&files.path, what));
    }
    let blocks = |of: Format| matches!(of, Format::Ggml(_));
    let in_blocks = files.checkpoint.tensors().any(|info| info.format().is_some_and(blocks));
    if files.config().quantization.is_some() || in_blocks {
        tracing::warn!(
            "{} is quantized already: its values are decoded and rounded anew, which is less accurate than quantizing the original",
            files.name()
        );
    }
    Ok(())
}

/// `config.json`, its members in their order, with the quantization.
fn config(path: &Path, mlx: MlxFormat) -> Result<String> {
    let fail = |e: serde_json::Error| Error::format(path, format!("not valid JSON: {e}"));
    let mut config = json::parse_members(path, &json::read(path)?)?;
    let quantization = json!({ "group_size": mlx.group, "bits": mlx.bits, "mode": mlx.mode.name() });
    config.insert("quantization".to_owned(), quantization.clone());
    config.insert("quantization_config".to_owned(), quantization);
    serde_json::to_string_pretty(&config).map(|text| text + "\n").map_err(fail)
}

/// Copies what a model has beside its weights and `config.json`: tokenizer, templates, generation defaults, licences.
fn copy_small_files(from: &Path, to: &Path) -> Result<()> {
    let home = Home::of(from)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(from).map_err(|e| Error::io(from, e))? {
        let path = PathBuf::from(entry.map_err(|e| Error::io(from, e))?.file_name());
        let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        let name = path.to_str().unwrap_or_default();
        let wanted = ["json", "jinja", "model", "tiktoken", "txt"].contains(&ending)
            || ["LICENSE", "LICENCE", "NOTICE"].iter().any(|start| name.starts_with(start));
        // How GPTQ and AWQ made the model that was decoded.
        let stale = ["config.json", "quantize_config.json", "quant_config.json"].contains(&name);
        if wanted && !stale && !name.ends_with(".index.json") && !name.starts_with('.') {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    for name in names {
        let path = from.join(&name);
        let real = home.resolve(&path, &name)?;
        let meta = fs::metadata(&real).map_err(|e| Error::io(&path, e))?;
        if !meta.is_file() {
            continue;
        }
        if meta.len() > MAX_COPY {
            let what = format!("file is {} bytes, expected at most {MAX_COPY}", meta.len());
            return Err(Error::format(&path, what));
        }
        write_through(&to.join(&name), &fs::read(&real).map_err(|e| Error::io(&path, e))?)?;
    }
    Ok(())
}
