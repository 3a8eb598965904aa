//! Quantizing a model into a directory that MLX loads or a GGUF file, a few rows at a time, so that it need not fit into
//! memory.

mod gguf;
mod vocabulary;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use serde_json::json;

pub use gguf::{GgufType, to_gguf};

use crate::config::{MlxFormat, MlxMode};
use crate::error::{Error, Result};
use crate::json;
use crate::model::ModelFiles;
use crate::quant::Format;
use crate::weights::output::{Output, write_through};
use crate::weights::write::{SHARD, Shards, Spec};
use crate::weights::{Checkpoint, Home, TensorInfo};

/// Elements that are read at once: 16 MiB in `f32`, enough to keep all cores busy.
const ELEMENTS: usize = 4 << 20;
/// Bytes of the largest small file, like a tokenizer, that is copied.
const MAX_COPY: u64 = json::MAX_FILE;

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
/// gets `quantization` and `quantization_config`. Affine scales have the type of the matrix.
///
/// `out` appears when everything is on the disk, and not before; it is made beside its place, as
/// `.<name>.backstop-partial`, which the next run takes over where this one is killed. `progress` is told how many bytes of
/// how many are read; where it says `false`, nothing is left and the answer is `None`.
///
/// # Errors
/// [`Error::Option`] for a format that MLX has not or this version does not write; [`Error::Format`] where `out` exists, or
/// the model is a GGUF file, built in, or quantized already; [`Error::Weight`] for values that are not finite;
/// [`Error::Io`].
pub fn to_mlx(
    files: &ModelFiles,
    mlx: MlxFormat,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Option<Report>> {
    check_format(mlx)?;
    check_source(files)?;
    let checkpoint = &files.checkpoint;
    let parts: Vec<Part<'_>> = (checkpoint.tensors())
        .filter(|info| !is_dropped(info.name(), files.config.tie_word_embeddings))
        .map(|info| Part::of(info, mlx))
        .collect();
    let mut report =
        Report { bytes_in: parts.iter().map(|part| part.info.bytes() as u64).sum(), ..Report::default() };
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
    let mut shards = Shards::create(&dir, parts.iter().flat_map(Part::specs).collect(), SHARD)?;
    report.bytes_out = shards.total();
    checkpoint.advise_sequential();
    let mut read = 0;
    for part in &parts {
        let mut step = |bytes| {
            read += bytes;
            progress(read, report.bytes_in)
        };
        if !part.write(checkpoint, &mut shards, &mut step)? {
            return Ok(None);
        }
    }
    shards.finish()?;
    output.commit()?;
    Ok(Some(report))
}

/// A tensor of the source, and what becomes of it.
struct Part<'a> {
    info: &'a TensorInfo,
    /// The format it gets; it is copied where there is none.
    format: Option<Format>,
    /// Whether it is a matrix that has no format for its number of columns alone.
    uneven: bool,
}

impl<'a> Part<'a> {
    fn of(info: &'a TensorInfo, mlx: MlxFormat) -> Self {
        let (dtype, matrix) = match (info.dtype(), info.shape()) {
            (Some(dtype), &[_, columns]) if info.name().ends_with(".weight") && info.bytes() > 0 => {
                (dtype, columns)
            }
            _ => return Self { info, format: None, uneven: false },
        };
        let format = match mlx.mode {
            MlxMode::Affine => Format::Affine { bits: mlx.bits, group: mlx.group, scales: dtype },
            MlxMode::Mxfp4 => Format::Mxfp4,
            MlxMode::Mxfp8 => Format::Mxfp8,
            MlxMode::Nvfp4 => Format::Nvfp4,
        };
        let uneven = !matrix.is_multiple_of(format.group());
        Self { info, format: (!uneven).then_some(format), uneven }
    }

    /// The names of the planes.
    fn names(&self) -> [String; 3] {
        let name = self.info.name();
        let module = name.strip_suffix(".weight").unwrap_or(name);
        [name.to_owned(), format!("{module}.scales"), format!("{module}.biases")]
    }

    /// What is written of it.
    fn specs(&self) -> Vec<Spec> {
        let Some(format) = self.format else {
            let (dtype, shape) = (self.info.safetensors_type(), self.info.shape().into());
            return vec![Spec { name: self.info.name().to_owned(), dtype, shape }];
        };
        let [rows, columns] = [self.info.shape()[0], self.info.shape()[1]];
        let scales =
            if let Format::Affine { .. } = format { self.info.safetensors_type() } else { Dtype::U8 };
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
    fn write(
        &self,
        checkpoint: &Checkpoint,
        shards: &mut Shards,
        step: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool> {
        let plane = checkpoint.plane(self.info);
        let bytes = plane.bytes();
        let (Some(format), Some(dtype)) = (self.format, self.info.dtype()) else {
            for (at, piece) in bytes.chunks(ELEMENTS).enumerate() {
                shards.write(self.info.name(), (at * ELEMENTS) as u64, piece)?;
                if !step(piece.len() as u64) {
                    return Ok(false);
                }
            }
            return Ok(true);
        };
        let columns = self.info.shape()[1];
        let rows_at_once = (ELEMENTS / columns).max(1);
        let widths = format.row_bytes(columns);
        let mut planes: [Vec<u8>; 3] = Default::default();
        let names = self.names();
        let row = columns * dtype.size();
        for (chunk, values) in bytes.chunks(rows_at_once * row).enumerate() {
            let rows = values.len() / row;
            planes.iter_mut().zip(&widths).for_each(|(plane, width)| plane.resize(rows * width, 0));
            let first = chunk * rows_at_once;
            if let Some(wrong) = format.encode(dtype, columns, values, planes.each_mut().map(|p| &mut p[..]))
            {
                let row = first + wrong;
                return Err(self
                    .info
                    .fail(format!("row {row} holds a NaN or an infinity, expected finite values")));
            }
            for ((name, plane), width) in names.iter().zip(&planes).zip(&widths) {
                shards.write(name, (first * width) as u64, plane)?;
            }
            if !step(values.len() as u64) {
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

fn check_source(files: &ModelFiles) -> Result<()> {
    let refuse =
        |what: &str| Err(Error::format(&files.path, format!("{what}; expected a directory of safetensors")));
    if files.is_builtin() {
        return refuse("is part of the binary");
    }
    if files.checkpoint.gguf().is_some() {
        return refuse("is in GGUF");
    }
    if files.config.quantization.is_some() {
        return refuse("is quantized already");
    }
    Ok(())
}

/// `config.json`, its members in their order, with the quantization.
fn config(path: &Path, mlx: MlxFormat) -> Result<String> {
    let fail = |e: serde_json::Error| Error::format(path, format!("not valid JSON: {e}"));
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&json::read(path)?).map_err(fail)?;
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
        if wanted && name != "config.json" && !name.ends_with(".index.json") && !name.starts_with('.') {
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
