//! Quantizing a model into a directory that MLX loads or a GGUF file, a few rows at a time, so that it need not fit into
//! memory.

mod allot;
mod fuse;
mod gguf;
mod naming;
mod source;
mod stacks;
mod types;
mod vocabulary;
mod weights;

use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use half::f16;
use serde_json::json;

pub use allot::{Allotment, Container, Measure, Size, allot};
pub use fuse::fuse;
pub use gguf::to_gguf;
pub use types::GgufType;

use crate::alloc;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::files::Home;
use crate::forward::{InMlx, ModuleSpec, WeightList, modules};
use crate::imatrix::Imatrix;
use crate::json;
use crate::model::ModelFiles;
use crate::quant::{Format, MlxFormat, MlxMode, write_floats};
use crate::tensor::{DType, Shape};
use crate::weights::output::{Output, write_through};
use crate::weights::write::{SHARD, Shards, Spec};
use source::{Held, Source};
use stacks::{Joined, Piece, joined};
use weights::Weights;

/// Families whose modules have other names in mlx-lm than in their checkpoints; with latent attention all have.
const RENAMED: [&str; 2] = ["gpt_neox", "gpt2"];

/// Elements that are read at once: 16 MiB in `f32`, enough to keep all cores busy.
const ELEMENTS: usize = 4 << 20;
/// Bytes of the largest small file, like a tokenizer, that is copied.
const MAX_COPY: u64 = json::MAX_FILE;

/// What memory is taken for.
const BUFFER: &str = "quantized rows";

/// What was written; a stack of experts' matrices counts as one.
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

/// What [`to_gguf`] and [`to_mlx`] make of matrices: `of` a [`GgufType`] there, and an [`MlxFormat`] here.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'m, F> {
    /// Their types.
    pub of: F,
    /// What their columns are worth, where it is known: the square errors that are made small are weighed by it.
    pub imatrix: Option<&'m Imatrix>,
    /// The type of each, where they were chosen one by one.
    pub allotment: Option<&'m Allotment>,
}

impl<F> From<F> for Recipe<'_, F> {
    fn from(of: F) -> Self {
        Self { of, imatrix: None, allotment: None }
    }
}

/// Quantizes the model in a directory into the new directory `out`, which mlx-lm and backstop load.
///
/// As in mlx-lm, every matrix is quantized, embeddings and output head too, but those whose rows are not whole groups; the
/// head of a model that shares its embedding is dropped. Groups have mlx-lm's bits, but where it is known what columns are worth. Other tensors, tokenizer and templates are copied, and `config.json`
/// gets `quantization` and `quantization_config`. Affine scales have the type of the matrix. A model that is quantized already
/// is decoded first, to the type that its configuration names, which is said: the two errors add up.
///
/// The experts of a layer become three stacks, as mlx-lm has them, one expert at a time; routers get eight bits, the bits of all
/// or none, as mlx-lm gives the family. Experts of gpt-oss that are in MXFP4 stay as they are.
///
/// `out` appears when everything is on the disk, and not before; it is made beside its place, as
/// `.<name>.backstop-partial`, which the next run takes over where this one is killed. `progress` is told how many bytes of
/// how many are read; where it says `false`, nothing is left and the answer is `None`.
///
/// # Errors
/// [`Error::Option`] for a format that MLX has not or this version does not write; [`Error::Format`] where `out` exists, the
/// model is a GGUF file or built in, and for an importance matrix of another model; [`Error::Weight`] for values that are not finite, and experts that are missing;
/// [`Error::Io`].
pub fn to_mlx<'m>(
    files: &ModelFiles,
    recipe: impl Into<Recipe<'m, MlxFormat>>,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Option<Report>> {
    let Recipe { of, imatrix, allotment } = recipe.into();
    let mlx = allotment.and_then(Allotment::most_common).unwrap_or(of);
    check_format(mlx)?;
    check_directory(files)?;
    let list = files.architecture.weights();
    let sources = sources(files, &list)?;
    let names = Names::of(files, &list, &sources);
    let decoded = files.config().dtype.unwrap_or(DType::F16);
    let mut parts: Vec<PlannedTensor<'_>> = (joined(&list, &sources)?.into_iter())
        .map(|joined| {
            let names = names.of_tensor(&joined);
            PlannedTensor::of(joined, names, mlx, list.in_mlx(), decoded).allotted(allotment, mlx)
        })
        .collect();
    if imatrix.is_some() {
        let mut weights = Weights { imatrix, known: 0, unknown: Vec::new() };
        for part in &mut parts {
            match (part.format, part.gguf_name(&list)) {
                (Some(Format::Affine { .. }), Some(name)) => {
                    part.importance = weights.of(&name, &part.joined)?
                }
                (Some(Format::Affine { .. }), None) => weights.unknown.push(part.name.clone()),
                _ => {}
            }
        }
        weights.tell()?;
    }
    say_if_decoded(files, parts.iter().any(|part| part.joined.is_decoded()));
    let mut report =
        Report { bytes_in: parts.iter().map(|part| part.joined.bytes()).sum(), ..Report::default() };
    for part in &parts {
        match part.format {
            Some(_) if !part.is_kept => report.quantized += 1,
            _ => report.kept += 1,
        }
        report.uneven += usize::from(part.is_uneven);
    }
    if report.quantized == 0 {
        let what = format!("has no matrix whose rows are whole groups of {}", mlx.group);
        return Err(Error::format(&files.path, what));
    }

    let output = Output::create(out)?;
    let dir = output.path();
    fs::create_dir(&dir).map_err(|e| Error::io(&dir, e))?;
    copy_small_files(&files.path, &dir)?;
    let config = config(&files.path.join("config.json"), mlx, &parts)?;
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

/// How tensors are called in a directory.
struct Names<'f> {
    files: &'f ModelFiles,
    list: &'f WeightList,
    /// Whether the text is a part of the model.
    is_part: bool,
}

impl<'f> Names<'f> {
    fn of(files: &'f ModelFiles, list: &'f WeightList, sources: &[Source<'_>]) -> Self {
        // A model by itself may leave out what its own names begin with.
        let is_renamed = |source: &Source<'_>| {
            files.architecture.in_layout(source.stored_name(), &source.name).is_some()
                && !source.name.ends_with(source.stored_name())
        };
        Self { files, list, is_part: sources.iter().any(is_renamed) }
    }

    /// The name of a tensor, and its module's path in mlx-lm's model.
    fn of_tensor(&self, joined: &Joined<'_>) -> [String; 2] {
        let source = joined.source();
        let module = match joined.stack {
            Some(stack) => stack.mlx.as_str(),
            None => source.name.rsplit_once('.').map_or(source.name.as_str(), |(module, _)| module),
        };
        let spec = self.list.of_tensor(&source.name);
        let name = match joined.stack {
            None if spec.is_some_and(ModuleSpec::is_bare) => module.to_owned(),
            None => source.name.clone(),
            Some(stack) => format!("{}.{}", stack.mlx, joined.leaf),
        };
        let name = match joined.stored_shape() {
            // mlx-lm knows by its name which of its dimensions is 1.
            Some(_) => source.stored_name().to_owned(),
            None => self.files.architecture.in_layout(source.stored_name(), &name).unwrap_or(name),
        };
        let path = match self.is_part && spec.is_some() {
            true => format!("language_model.{module}"),
            false => module.to_owned(),
        };
        [name, path]
    }
}

/// A tensor that is written, and how.
struct PlannedTensor<'s> {
    joined: Joined<'s>,
    /// The name in the directory.
    name: String,
    /// The module's path in mlx-lm's model.
    path: String,
    /// The type that it has, or is decoded to.
    dtype: DType,
    /// The format it gets; none where it keeps its type.
    format: Option<Format>,
    /// The same as the configuration names it, where that is another than the model's.
    named: Option<MlxFormat>,
    /// Whether it has this format and keeps it.
    is_kept: bool,
    /// Whether it is a matrix that has no format for its number of columns alone.
    is_uneven: bool,
    /// What an adapter makes of it.
    merge: Option<fuse::Merge<'s>>,
    /// What the columns are worth, of one piece after the other.
    importance: Option<Vec<f32>>,
}

impl<'s> PlannedTensor<'s> {
    fn of(joined: Joined<'s>, names: [String; 2], mlx: MlxFormat, in_mlx: InMlx, decoded: DType) -> Self {
        let [name, path] = names;
        let dtype = joined.source().dtype().unwrap_or(decoded);
        let mut planned = Self {
            joined,
            name,
            path,
            dtype,
            format: None,
            named: None,
            is_kept: false,
            is_uneven: false,
            merge: None,
            importance: None,
        };
        if planned.joined.kept() == Some(Format::Mxfp4) {
            planned.is_kept = true;
            planned.format = Some(Format::Mxfp4);
            planned.named = Some(MlxFormat { mode: MlxMode::Mxfp4, bits: 4, group: 32 });
            return planned;
        }
        let columns = match planned.joined.columns() {
            Some(columns) if planned.joined.leaf == "weight" && planned.joined.bytes() > 0 => columns,
            _ => return planned,
        };
        let ends = |paths: &[&str]| paths.iter().any(|end| planned.path.ends_with(*end));
        if ends(in_mlx.exact) {
            return planned;
        }
        if !columns.is_multiple_of(usize::from(mlx.group)) {
            planned.is_uneven = true;
            return planned;
        }
        let mut of = mlx;
        if ends(in_mlx.eight_bits) {
            // mlx-lm's group, where it divides a row.
            let group = if columns.is_multiple_of(64) { 64 } else { 32 };
            of = MlxFormat { mode: MlxMode::Affine, bits: 8, group };
            planned.named = Some(of);
        }
        planned.format = Some(match of.mode {
            MlxMode::Affine => Format::Affine { bits: of.bits, group: of.group, scales: dtype },
            MlxMode::Mxfp4 => Format::Mxfp4,
            MlxMode::Mxfp8 => Format::Mxfp8,
            MlxMode::Nvfp4 => Format::Nvfp4,
        });
        planned
    }

    /// Whether it gets the format of most.
    fn gets_format(&self) -> bool {
        self.format.is_some() && self.named.is_none() && !self.is_kept
    }

    /// The same in the format that was chosen for it, where that of most is `mlx`.
    fn allotted(mut self, allotment: Option<&Allotment>, mlx: MlxFormat) -> Self {
        let chosen = allotment.filter(|_| self.gets_format()).and_then(|it| it.types.get(&self.path));
        match chosen {
            Some(Some(Format::Affine { bits, group, .. })) if *bits != mlx.bits => {
                self.format = Some(Format::Affine { bits: *bits, group: *group, scales: self.dtype });
                self.named = Some(MlxFormat { mode: MlxMode::Affine, bits: *bits, group: *group });
            }
            Some(None) => self.format = None,
            Some(Some(_)) | None => {}
        }
        self
    }

    /// What it is called in GGUF files, and so in an importance matrix.
    fn gguf_name(&self, list: &WeightList) -> Option<String> {
        let module = match self.joined.stack {
            Some(stack) => &stack.gguf,
            None => &list.of_tensor(&self.joined.source().name)?.gguf.as_ref()?.name,
        };
        Some(format!("{module}.weight"))
    }

    /// The names of the planes.
    fn names(&self) -> [String; 3] {
        let module = self.name.strip_suffix(".weight").unwrap_or(&self.name);
        [self.name.clone(), format!("{module}.scales"), format!("{module}.biases")]
    }

    /// What is written of it.
    fn specs(&self) -> Vec<Spec> {
        let stored = match self.dtype {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
        };
        let shape = &self.joined.shape;
        let (Some(format), Some((&columns, rows))) = (self.format, shape.split_last()) else {
            // With its dimensions of 1, which mlx-lm asks for.
            let shape = self.joined.stored_shape().map_or_else(|| shape.clone(), Shape::from_slice);
            return vec![Spec { name: self.name.clone(), dtype: stored, shape }];
        };
        let scales = if let Format::Affine { .. } = format { stored } else { Dtype::U8 };
        let types = [Dtype::U32, scales, scales];
        let planes = format.row_bytes(columns).into_iter().zip(types).zip(self.names());
        planes
            .map(|((width, dtype), name)| Spec {
                name,
                dtype,
                shape: rows.iter().copied().chain([width * 8 / dtype.bitsize()]).collect(),
            })
            .collect()
    }

    /// Writes it, one piece after the other; `step` is told of the bytes read since the last time. `false` where that says so.
    fn write(&self, shards: &mut Shards, step: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
        let mut first = 0;
        for (at, piece) in self.joined.pieces.iter().enumerate() {
            let columns = piece.source.columns();
            let importance = self.importance.as_ref().map(|all| &all[at * columns..(at + 1) * columns]);
            if !self.write_piece((piece, importance), first, shards, step)? {
                return Ok(false);
            }
            first += piece.rows.len();
        }
        Ok(true)
    }

    /// Writes a piece, whose first row is row `first` of all.
    fn write_piece(
        &self,
        (piece, importance): (&Piece<'_>, Option<&[f32]>),
        first: usize,
        shards: &mut Shards,
        step: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool> {
        let (held, names) = (piece.source.held()?, self.names());
        let columns = piece.source.columns();
        if let (None, None, Some(bytes)) = (self.format, &self.merge, piece.plain(held.plain())) {
            let start = first * columns * self.dtype.size();
            for (at, part) in bytes.chunks(ELEMENTS).enumerate() {
                shards.write(&names[0], (start + at * ELEMENTS) as u64, part)?;
                if !step(part.len() as u64) {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let rows = piece.rows.len();
        let rows_at_once = (ELEMENTS / columns.max(1)).max(1);
        let widths = match self.format {
            Some(format) => format.row_bytes(columns),
            None => [columns * self.dtype.size()].as_slice().into(),
        };
        let mut planes: [Vec<u8>; 3] = Default::default();
        let mut buffers = Default::default();
        for start in (0..rows).step_by(rows_at_once) {
            let at = start..(start + rows_at_once).min(rows);
            if self.is_kept {
                held.copy(at.clone(), |row| piece.source_row(row), &mut planes)?;
            } else if let Some(wrong) =
                self.encode((piece, importance), &held, at.clone(), &mut buffers, &mut planes)?
            {
                let row = piece.source_row(start + wrong);
                let what = format!("row {row} holds a NaN or an infinity, expected finite values");
                return Err(piece.source.fail(what));
            }
            for ((name, plane), width) in names.iter().zip(&planes).zip(&widths) {
                shards.write(name, ((first + start) * width) as u64, plane)?;
            }
            if !step(piece.bytes_of(at)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the planes of rows `at` of a piece; the first of them that has no code, if any.
    fn encode(
        &self,
        (piece, importance): (&Piece<'_>, Option<&[f32]>),
        held: &Held<'_>,
        at: Range<usize>,
        (floats, values): &mut (Vec<f32>, Vec<u8>),
        planes: &mut [Vec<u8>; 3],
    ) -> Result<Option<usize>> {
        let (columns, rows) = (piece.source.columns(), at.len());
        floats.clear();
        held.read(at.clone(), |row| piece.source_row(row), floats)?;
        if let Some(merge) = &self.merge {
            merge.apply(at, columns, floats);
        }
        alloc::resize(values, floats.len() * self.dtype.size(), BUFFER)?;
        write_floats(self.dtype, floats, values);
        let Some(format) = self.format else {
            alloc::resize(&mut planes[0], values.len(), BUFFER)?;
            planes[0].copy_from_slice(values);
            // A type may be too narrow for what an adapter makes of a value.
            let most = if self.dtype == DType::F16 { f16::MAX.to_f32() } else { f32::MAX };
            let fits = |value: &f32| value.abs() <= most;
            let wrong = self.merge.as_ref().and_then(|_| floats.iter().position(|value| !fits(value)));
            return Ok(wrong.map(|wrong| wrong / columns.max(1)));
        };
        for (plane, width) in planes.iter_mut().zip(format.row_bytes(columns)) {
            alloc::resize(plane, rows * width, BUFFER)?;
        }
        let planes = planes.each_mut().map(|plane| &mut plane[..]);
        Ok(format.encode_weighed(self.dtype, columns, values, importance, planes))
    }
}

/// Tensors that mlx-lm does not take from a checkpoint: those of layers behind the last, which predict further tokens, and what
/// servers round activations and caches by, too.
fn is_dropped(name: &str, config: &Config, list: &WeightList) -> bool {
    let layer =
        name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
    let has_head_bias = name == "lm_head.bias" && list.of_tensor(name).is_some();
    name.ends_with("rotary_emb.inv_freq")
        || config.tie_word_embeddings && name.starts_with("lm_head.") && !has_head_bias
        || layer.is_some_and(|layer| layer >= config.num_hidden_layers)
        || is_of_activations(name) && list.get(name).is_none()
}

/// Whether a tensor says how a server would quantize activations or caches, which changes no weight: `k_proj.k_scale`.
fn is_of_activations(name: &str) -> bool {
    let leaf = name.rsplit_once('.').map_or(name, |(_, leaf)| leaf);
    let mut of = ["_scale", "_global_scale", "_zero_point"].iter().filter_map(|end| leaf.strip_suffix(*end));
    of.any(|of| ["q", "k", "v", "prob", "prob_output", "activation", "input", "output"].contains(&of))
}

/// Refuses what types cannot be chosen for, one by one.
fn check(files: &ModelFiles, container: Container) -> Result<()> {
    let list = files.architecture.weights();
    match container {
        Container::Gguf => gguf::metadata(files, &naming::Naming::of(files, &list)?, GgufType::F16).map(drop),
        Container::Mlx { .. } => {
            check_directory(files)?;
            let config = files.config();
            if RENAMED.contains(&config.model_type) || config.latent.is_some() {
                let of = config.model_type;
                let what = format!(
                    "is a {of}, whose modules mlx-lm calls otherwise: types are not chosen one by one"
                );
                return Err(Error::format(&files.path, what));
            }
            Ok(())
        }
    }
}

fn check_directory(files: &ModelFiles) -> Result<()> {
    match files.checkpoint.gguf() {
        Some(_) => Err(Error::format(&files.path, "is in GGUF; expected a directory of safetensors")),
        None => Ok(()),
    }
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

/// The tensors of a model that are quantized or copied; what is in no file is refused.
fn sources<'f>(files: &'f ModelFiles, list: &WeightList) -> Result<Vec<Source<'f>>> {
    if files.is_builtin() {
        return Err(Error::format(&files.path, "is part of the binary; expected a directory or a GGUF file"));
    }
    let mut sources = Source::all(files)?;
    sources.retain(|source| !is_dropped(&source.name, files.config(), list));
    Ok(sources)
}

/// Says what a second quantization costs.
fn say_if_decoded(files: &ModelFiles, is_decoded: bool) {
    if is_decoded {
        tracing::warn!(
            "{} is quantized already: its values are decoded and rounded anew, which is less accurate than quantizing the original",
            files.name()
        );
    }
}

/// `config.json`, its members in their order, with the quantization, and that of modules that have another.
fn config(path: &Path, mlx: MlxFormat, planned: &[PlannedTensor<'_>]) -> Result<String> {
    let fail = |e: serde_json::Error| Error::format(path, format!("not valid JSON: {e}"));
    let mut config = json::parse_members(path, &json::of_python(&files::read_json(path)?))?;
    let format = |of: MlxFormat| json!({ "group_size": of.group, "bits": of.bits, "mode": of.mode.name() });
    let mut quantization = format(mlx);
    for part in planned {
        if let Some(named) = part.named {
            quantization[&part.path] = format(named);
        }
    }
    config.insert("quantization".to_owned(), quantization.clone());
    config.insert("quantization_config".to_owned(), quantization);
    serde_json::to_string_pretty(&config).map(|text| text + "\n").map_err(fail)
}

/// Copies what a model has beside its weights and `config.json`: tokenizer, templates, generation defaults, licences.
fn copy_small_files(from: &Path, to: &Path) -> Result<()> {
    let home = Home::of(from)?;
    let mut names = Vec::new();
    for name in files::names(from)? {
        let path = PathBuf::from(name);
        let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        let name = path.to_str().unwrap_or_default();
        let wanted = ["json", "jinja", "model", "tiktoken", "txt"].contains(&ending)
            || ["LICENSE", "LICENCE", "NOTICE"].iter().any(|start| name.starts_with(start));
        // How GPTQ, AWQ and ModelOpt made the model that was decoded.
        let stale = ["config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json"];
        let stale = stale.contains(&name);
        if wanted && !stale && !name.ends_with(".index.json") && !name.starts_with('.') {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    for name in names {
        copy(&home, &from.join(&name), &name, &to.join(&name))?;
    }
    // What makes vectors of hidden states.
    for folder in modules::folders(from)? {
        let Some(name) = folder.file_name().filter(|_| files::is_dir(&folder)) else { continue };
        let made = to.join(name);
        fs::create_dir_all(&made).map_err(|e| Error::io(&made, e))?;
        let home = Home::of(&folder)?;
        for file in ["config.json", "model.safetensors"] {
            let path = folder.join(file);
            if files::exists(&path) {
                let shown = format!("{}/{file}", name.to_string_lossy());
                copy(&home, &path, &shown, &made.join(file))?;
            }
        }
    }
    Ok(())
}

/// Copies a file of the directory `home`, if it is one; `name` is for errors.
fn copy(home: &Home, path: &Path, name: &str, to: &Path) -> Result<()> {
    let real = home.resolve(path, name)?;
    if files::is_dir(&real) {
        return Ok(());
    }
    write_through(to, &files::read(&real, MAX_COPY)?)
}
