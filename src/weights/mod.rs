//! Checkpoints: named tensors in safetensors or GGUF files, memory-mapped, in the types of the file.
//!
//! Opening a checkpoint reads headers only. [`Checkpoint::get`] hands out views of the mapped bytes; a tensor that the
//! file does not align to its element type is copied into an aligned buffer, so every [`Weight`] that comes from here
//! starts at a multiple of its element's size.

mod form;
pub mod gguf;
mod gptq;
mod mmap;
pub(crate) mod output;
mod progress;
mod published;
pub(crate) mod quantized;
mod replaced;
pub(crate) mod safetensors;
mod source;
#[cfg(test)]
mod tests;
pub(crate) mod write;

/// What writes checkpoints, for the workspace's own tools: no part of the library's face.
#[doc(hidden)]
pub mod writers {
    pub use super::output::{Output, write_through};

    /// Directories of safetensors.
    pub mod safetensors {
        pub use ::safetensors::Dtype;

        pub use crate::weights::write::{SHARD, Shards, Spec};
    }

    /// GGUF files.
    pub mod gguf {
        pub use crate::weights::gguf::TensorType;
        pub use crate::weights::gguf::write::{Entries, Spec, Writer};
    }
}

use std::collections::btree_map::{self, BTreeMap};
use std::ffi::OsStr;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::safetensors::Dtype;
pub(crate) use form::{Adopted, AdoptedDims, Form};
pub use mmap::MappedFile;
pub use progress::LoadProgress;
pub use quantized::Stored;
use source::Source;
pub use source::{Access, Watch};

use crate::error::{Error, Result};
use crate::files::{self, Home, exists};
use crate::json::{self, Value, quote};
use crate::quant::{Format, Matrix, Plane, QuantWeight};
use crate::tensor::{Aligned, Bytes, DType, Shape, Weight};

/// Name of the index of a checkpoint in several files.
const INDEX: &str = "model.safetensors.index.json";
/// Name of a checkpoint in one file.
const SINGLE: &str = "model.safetensors";

/// A tensor of a checkpoint as its file declares it, in any type, those that cannot be computed with included.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    name: Box<str>,
    encoding: Encoding,
    form: Form,
    /// The name in the file, where it is another.
    stored: Option<Box<str>>,
    shape: Shape,
    /// The dimensions in the file, where some of 1 are none now.
    stored_shape: Option<Shape>,
    shard: usize,
    path: Arc<Path>,
    range: Range<usize>,
}

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy)]
enum Encoding {
    Safetensors(Dtype),
    Ggml(gguf::TensorType),
}

impl TensorInfo {
    /// What is done to it when it is loaded.
    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Whether its last dimension was 1, and is none now.
    pub(crate) fn has_lost_last(&self) -> bool {
        self.stored_shape.as_ref().is_some_and(|shape| shape.last() == Some(&1))
    }

    /// The dimensions in the file, where some of 1 are none now.
    pub(crate) fn stored_shape(&self) -> Option<&[usize]> {
        self.stored_shape.as_deref()
    }

    /// The name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The element type, if this version computes with it and the tensor is not in blocks.
    pub fn dtype(&self) -> Option<DType> {
        match self.encoding {
            Encoding::Safetensors(Dtype::F32) => Some(DType::F32),
            Encoding::Safetensors(Dtype::F16) => Some(DType::F16),
            Encoding::Safetensors(Dtype::BF16) => Some(DType::BF16),
            Encoding::Safetensors(_) => None,
            Encoding::Ggml(gguf::TensorType::Dense(dtype)) => Some(dtype),
            Encoding::Ggml(gguf::TensorType::Blocks(_)) => None,
        }
    }

    /// The format of a tensor in blocks.
    pub fn format(&self) -> Option<Format> {
        match self.encoding {
            Encoding::Ggml(gguf::TensorType::Blocks(of)) => Some(Format::Ggml(of)),
            _ => None,
        }
    }

    /// The type as the file names it, `BF16`, `F8_E4M3` or `Q4_K` say.
    pub fn dtype_name(&self) -> String {
        match self.encoding {
            Encoding::Safetensors(dtype) => dtype.to_string(),
            Encoding::Ggml(kind) => kind.name().to_owned(),
        }
    }

    /// An error about the tensor, which goes by both of its names.
    pub(crate) fn fail(&self, what: String) -> Error {
        let name = match &self.stored {
            Some(stored) if *stored != self.name => format!("{} ({stored} in the file)", self.name),
            _ => self.name.to_string(),
        };
        Error::Weight { path: self.path.to_path_buf(), name, what }
    }

    /// The name in the file.
    pub(crate) fn stored_name(&self) -> &str {
        self.stored.as_deref().unwrap_or(&self.name)
    }

    /// Dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes of data.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// The file that holds the tensor.
    pub fn file(&self) -> &Path {
        &self.path
    }
}

/// The tensors of a model, from one or several safetensors or GGUF files.
pub struct Checkpoint {
    path: PathBuf,
    access: Access,
    shards: Vec<Source>,
    tensors: BTreeMap<Box<str>, TensorInfo>,
    gguf: Option<Arc<gguf::Metadata>>,
    /// What stands for matrices of the files, by module.
    replaced: BTreeMap<Box<str>, Matrix>,
    /// Told of what is read of tensors.
    progress: LoadProgress,
}

impl Checkpoint {
    /// The way to its bytes.
    pub fn access(&self) -> Access {
        self.access
    }

    fn empty(path: &Path, access: Access) -> Self {
        let (path, progress) = (path.to_owned(), LoadProgress::default());
        let (tensors, replaced) = (BTreeMap::new(), BTreeMap::new());
        Self { path, access, shards: Vec::new(), tensors, gguf: None, replaced, progress }
    }

    /// Tells `progress` of the bytes that are read of tensors from here on; of mapped ones nobody knows.
    pub(crate) fn tell(&mut self, progress: &LoadProgress) {
        self.progress = progress.clone();
    }

    /// Opens the checkpoint of a model directory, one safetensors file, or a GGUF file with its parts. A GGUF file's
    /// tensors go by the names of a Hugging Face checkpoint.
    ///
    /// A directory's files are those that `model.safetensors.index.json` lists, else `model.safetensors`, else all
    /// `model*.safetensors`. Each must be a plain file name that resolves into the directory itself or, where the
    /// directory is a snapshot of the Hugging Face cache (`…/snapshots/<revision>`), into that repository's `blobs`.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be read; [`Error::Format`] where one is malformed, leaves the directory, is
    /// missing, or repeats a tensor.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_by(dir, Access::Map)
    }

    /// As [`Self::open`], with another way to the tensors' bytes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_by(dir: &Path, access: Access) -> Result<Self> {
        let mut checkpoint = Self::empty(dir, access);
        if !files::is_dir(dir) {
            if gguf::is_gguf(dir)? {
                return Self::open_gguf(dir, access);
            }
            checkpoint.open_shard(dir)?;
            return Ok(checkpoint);
        }
        let home = Home::of(dir)?;
        let index = dir.join(INDEX);
        if exists(&index) {
            let weight_map = read_index(&home.resolve(&index, INDEX)?, &index)?;
            let mut names: Vec<&str> = weight_map.values().map(String::as_str).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                checkpoint.open_shard(&shard(&home, &index, name)?)?;
            }
            for (tensor, shard) in &weight_map {
                checkpoint.check_indexed(&index, tensor, shard)?;
            }
        } else if exists(&dir.join(SINGLE)) {
            checkpoint.open_shard(&shard(&home, dir, SINGLE)?)?;
        } else {
            for name in glob(dir)? {
                checkpoint.open_shard(&shard(&home, dir, &name)?)?;
            }
        }
        Ok(checkpoint)
    }

    /// A checkpoint that is part of the binary.
    ///
    /// # Errors
    /// [`Error::Format`] where the bytes are malformed; `name` takes the place of the path.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self> {
        let mut checkpoint = Self::empty(Path::new(name), Access::Map);
        checkpoint.add_shard(Path::new(name), Source::Static(bytes))?;
        Ok(checkpoint)
    }

    /// The directory or file that was opened, or the name of the built-in model.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors in the order of their names.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// What the checkpoint says about a tensor, in whatever type it is.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The dimensions of a tensor that is a matrix.
    pub(crate) fn matrix_shape(&self, name: &str) -> Option<[usize; 2]> {
        self.find(name)?.shape().try_into().ok()
    }

    /// Bytes of all tensors, without headers.
    pub fn total_bytes(&self) -> u64 {
        self.tensors().map(|tensor| tensor.bytes() as u64).sum()
    }

    /// A tensor as a weight, in the type of the file: a view of the mapped bytes, or a copy where the file does not
    /// align it.
    ///
    /// # Errors
    /// [`Error::Weight`] where there is no such tensor (similar names are listed), it has another shape, or a type
    /// that this version does not compute with.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let info = self.of_shape(name, shape)?;
        let dtype = info
            .dtype()
            .ok_or_else(|| info.fail(format!("type is {}, expected F32, F16 or BF16", info.dtype_name())))?;
        let (owner, range) = self.bytes(info, dtype)?;
        let bytes = &owner.bytes()[range.clone()];
        let view = if bytes.as_ptr().align_offset(dtype.size()) == 0 {
            Weight::new(name, dtype, shape, owner, range)
        } else {
            Weight::new(name, dtype, shape, Arc::new(Aligned::copy_of(bytes)?), 0..bytes.len())
        };
        if info.form != Form::PlusOne {
            return Ok(view);
        }
        let mut values = view.widened()?;
        values.iter_mut().for_each(|x| *x -= 1.0);
        Ok(Weight::of_values(name, shape, values))
    }

    /// The matrix of the module `name`, in blocks or not, as [`Self::get`] gives a weight.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn matrix(&self, module: &str, shape: [usize; 2]) -> Result<Matrix> {
        let name = format!("{module}.weight");
        let info = self.of_shape(&name, &shape)?;
        let Some(format) = info.format() else { return self.get(&name, &shape).map(Matrix::Dense) };
        let stored = self.plane(info)?;
        let weight = QuantWeight::new(name, format, shape, [stored]);
        Ok(Matrix::Quantized(info.form.reordered(weight)))
    }

    /// A tensor that must be there and have this shape.
    fn of_shape(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let info = self.find(name).ok_or_else(|| self.missing(name, format!("expected shape {shape:?}")))?;
        if info.shape() != shape {
            return Err(info.fail(format!("shape is {:?}, expected {shape:?}", info.shape())));
        }
        Ok(info)
    }

    /// A tensor of one of the types `types`, by their names in files, and of exactly this shape.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn typed(&self, name: &str, types: &[&str], shape: &[usize]) -> Result<&TensorInfo> {
        let info = self.of_shape(name, shape)?;
        let kind = info.dtype_name();
        if !types.contains(&kind.as_str()) {
            return Err(info.fail(format!("type is {kind}, expected {}", types.join(" or "))));
        }
        Ok(info)
    }

    /// A tensor's bytes, as they lie in the file.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn plane(&self, info: &TensorInfo) -> Result<Plane> {
        let (owner, range) = self.stored_bytes(info)?;
        Ok(Plane::new(owner, range))
    }

    /// A tensor's bytes, as they lie in the file.
    fn stored_bytes(&self, info: &TensorInfo) -> Result<(Arc<dyn Bytes>, Range<usize>)> {
        let bytes = self.shards[info.shard].bytes(&info.range)?;
        if self.access == Access::Read {
            self.progress.came(info.range.len() as u64);
        }
        Ok(bytes)
    }

    /// A tensor that is not there.
    pub(crate) fn missing(&self, name: &str, what: impl fmt::Display) -> Error {
        let what = format!("missing, {what}{}", self.suggestion(name));
        Error::Weight { path: self.path.clone(), name: name.to_owned(), what }
    }

    /// A tensor's bytes in the form that a model has them in: as they lie in the file, or a copy of other order.
    fn bytes(&self, info: &TensorInfo, dtype: DType) -> Result<(Arc<dyn Bytes>, Range<usize>)> {
        let (owner, range) = self.stored_bytes(info)?;
        if matches!(info.form, Form::Plain | Form::PlusOne) {
            return Ok((owner, range));
        }
        let mut copy = Aligned::zeros(range.len())?;
        info.form.copy(&owner.bytes()[range.clone()], &info.shape, dtype.size(), copy.bytes_mut());
        owner.release(range.clone());
        Ok((Arc::new(copy), 0..range.len()))
    }

    /// Gives tensors the names and forms that a model knows them by: `of` says what becomes of the tensor of a name, which
    /// stays as it is where that is nothing. One tensor may become several, of some of its rows each.
    ///
    /// # Errors
    /// [`Error::Format`] where two tensors get one name.
    pub(crate) fn adopt(&mut self, of: impl Fn(&TensorInfo) -> Vec<Adopted>) -> Result<()> {
        for info in std::mem::take(&mut self.tensors).into_values() {
            let adopted = of(&info);
            if adopted.is_empty() {
                self.add(info)?;
                continue;
            }
            for Adopted { name, form, rows, of, dims } in adopted {
                let mut part = info.clone();
                if *name != *part.name {
                    part.stored = Some(info.stored_name().into());
                }
                (part.name, part.form) = (name.into(), form);
                match (&rows, info.shape.as_slice()) {
                    // Rows are counted over all experts.
                    (Some(_), &[experts, each, columns]) => {
                        part.shape = [experts.saturating_mul(each), columns].as_slice().into();
                    }
                    // A row is groups of bytes.
                    (Some(_), &[experts, each, groups, bytes]) => {
                        let shape = [experts.saturating_mul(each), groups.saturating_mul(bytes)];
                        part.shape = shape.as_slice().into();
                    }
                    _ => {}
                }
                let is_cut = rows.is_some();
                if let (Some(rows), Some(&all)) = (rows, part.shape.clone().first())
                    && of.is_none_or(|of| of == all)
                {
                    // What the list says of a tensor that turns out otherwise is found when it is loaded.
                    let rows = rows.start.min(all)..rows.end.min(all);
                    let stride = info.range.len().checked_div(all).unwrap_or(0);
                    part.shape[0] = rows.len();
                    part.range = info.range.start + rows.start * stride..info.range.start + rows.end * stride;
                }
                match dims {
                    AdoptedDims::Vector if matches!(*part.shape, [1, _]) => _ = part.shape.remove(0),
                    AdoptedDims::Flat => {
                        let all = part.shape.iter().fold(1, |all: usize, &size| all.saturating_mul(size));
                        part.shape = [all].as_slice().into();
                    }
                    AdoptedDims::Squeezed => {
                        if let Some(at) = part.shape.iter().skip(1).rposition(|&size| size == 1) {
                            part.shape.remove(at + 1);
                        }
                    }
                    AdoptedDims::Matrix => {
                        while part.shape.len() > 2
                            && let Some(at) = part.shape.iter().position(|&size| size == 1)
                        {
                            part.shape.remove(at);
                        }
                    }
                    AdoptedDims::Row if part.shape.len() == 1 && !is_cut => part.shape.insert(0, 1),
                    _ => {}
                }
                if form.is_turned() {
                    part.shape.reverse();
                }
                if dims != AdoptedDims::Same && form == Form::Plain && part.range == info.range {
                    part.stored_shape = Some(info.shape.clone());
                }
                self.add(part)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, info: TensorInfo) -> Result<()> {
        match self.tensors.entry(info.name.clone()) {
            btree_map::Entry::Occupied(first) => {
                let what = format!("tensor {} is also in {}", quote(&info.name), first.get().path.display());
                Err(Error::format(&info.path, what))
            }
            btree_map::Entry::Vacant(free) => {
                free.insert(info);
                Ok(())
            }
        }
    }

    /// Tells the system that the files will be read from front to back.
    pub fn advise_sequential(&self) {
        self.maps().for_each(|map| map.advise_sequential());
    }

    /// Tells the system to read all files ahead, in the background.
    pub fn advise_willneed(&self) {
        self.maps().for_each(|map| map.advise_willneed());
    }

    fn maps(&self) -> impl Iterator<Item = &Arc<MappedFile>> {
        self.shards.iter().filter_map(Source::map)
    }

    /// The files that weights of this checkpoint may go on to be read from.
    pub fn watch(&self) -> Watch {
        Watch::new(self.maps())
    }

    /// Whether what was read is what the files had when they were opened.
    ///
    /// # Errors
    /// [`Error::Changed`] where another program wrote to one.
    pub fn check(&self) -> Result<()> {
        self.shards.iter().try_for_each(Source::check)
    }

    fn open_shard(&mut self, path: &Path) -> Result<()> {
        self.add_shard(path, Source::open(path, self.access)?)
    }

    fn add_shard(&mut self, path: &Path, shard: Source) -> Result<()> {
        let path: Arc<Path> = path.into();
        for entry in safetensors::parse(&path, shard.len(), |range| shard.copy(range))? {
            self.add(TensorInfo {
                name: entry.name,
                encoding: Encoding::Safetensors(entry.dtype),
                form: Form::Plain,
                stored: None,
                shape: entry.shape,
                stored_shape: None,
                shard: self.shards.len(),
                path: Arc::clone(&path),
                range: entry.range,
            })?;
        }
        self.shards.push(shard);
        Ok(())
    }

    /// The index and the headers must agree on where a tensor is.
    fn check_indexed(&self, index: &Path, tensor: &str, shard: &str) -> Result<()> {
        let found = self.find(tensor).map(|info| info.path.file_name());
        if found == Some(Some(OsStr::new(shard))) {
            return Ok(());
        }
        let place = match found.flatten() {
            Some(file) => format!("it is in {}", quote(&file.to_string_lossy())),
            None => "no file has it".to_owned(),
        };
        Err(Error::format(
            index,
            format!("weight_map puts {} in {}, but {place}", quote(tensor), quote(shard)),
        ))
    }

    /// Up to three names that share most of their beginning and end with `name`.
    fn suggestion(&self, name: &str) -> String {
        let common = |a: &mut dyn Iterator<Item = (u8, u8)>| a.take_while(|(x, y)| x == y).count();
        let mut near: Vec<(usize, &str)> = self
            .tensors
            .keys()
            .filter_map(|other| {
                let head = common(&mut name.bytes().zip(other.bytes()));
                let tail = common(&mut name.bytes().rev().zip(other.bytes().rev()));
                let shared = (head + tail).min(name.len()).min(other.len());
                (shared * 3 >= name.len().max(other.len()) * 2).then_some((shared, &**other))
            })
            .collect();
        near.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        let near: Vec<String> = near.iter().take(3).map(|(_, other)| quote(other)).collect();
        match &near[..] {
            [] => format!("; the checkpoint has {} tensors", self.tensors.len()),
            near => format!("; near names: {}", near.join(", ")),
        }
    }
}

/// A copy of bytes that starts where elements of every type may.
pub(crate) fn aligned(bytes: &[u8]) -> Result<Arc<dyn Bytes>> {
    Ok(Arc::new(Aligned::copy_of(bytes)?))
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} tensors in {} files)", self.path.display(), self.tensors.len(), self.shards.len())
    }
}

/// The path of a shard that `source` (the index, or the directory) names.
fn shard(home: &Home, source: &Path, name: &str) -> Result<PathBuf> {
    let plain = !name.contains(['/', '\\', '\0']) && !name.starts_with('.') && name.ends_with(".safetensors");
    if !plain {
        let what = format!("file name is {}, expected a plain name ending in .safetensors", quote(name));
        return Err(Error::format(source, what));
    }
    let path = home.dir().join(name);
    if !exists(&path) {
        return Err(Error::format(source, format!("file {} is missing from the directory", quote(name))));
    }
    home.resolve(&path, name)?;
    Ok(path)
}

/// `model*.safetensors`, sorted.
fn glob(dir: &Path) -> Result<Vec<String>> {
    let mut names = files::names(dir)?;
    names.retain(|name| name.starts_with("model") && name.ends_with(".safetensors"));
    if names.is_empty() {
        return Err(Error::format(
            dir,
            format!("no weights: expected {INDEX}, {SINGLE} or model*.safetensors"),
        ));
    }
    names.sort_unstable();
    Ok(names)
}

/// The `weight_map` of an index: tensor names to file names.
fn read_index(real: &Path, index: &Path) -> Result<BTreeMap<String, String>> {
    let mut members = json::parse_object(index, &files::read_json(real)?)?;
    let weight_map = match members.remove("weight_map") {
        Some(Value::Object(weight_map)) => weight_map,
        Some(other) => {
            return Err(Error::format(index, format!("weight_map is {other}, expected an object")));
        }
        None => return Err(Error::format(index, "weight_map is missing")),
    };
    weight_map
        .into_iter()
        .map(|(tensor, file)| match file {
            Value::String(file) => Ok((tensor, file)),
            other => Err(Error::format(
                index,
                format!("weight_map.{} is {other}, expected a string", quote(&tensor)),
            )),
        })
        .collect()
}
