//! Checkpoints: named tensors in safetensors files, memory-mapped, in the types of the file.
//!
//! Opening a checkpoint reads headers only. [`Checkpoint::get`] hands out views of the mapped bytes; a tensor that the
//! file does not align to its element type is copied into an aligned buffer, so every [`Weight`] that comes from here
//! starts at a multiple of its element's size.

mod mmap;
mod safetensors;
#[cfg(test)]
mod tests;

use std::collections::btree_map::{self, BTreeMap};
use std::ffi::OsStr;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::safetensors::Dtype;

pub use mmap::MappedFile;

use crate::error::{Error, Result};
use crate::json::{self, Value, quote};
use crate::tensor::{Bytes, DType, Shape, Weight};

/// Name of the index of a checkpoint in several files.
const INDEX: &str = "model.safetensors.index.json";
/// Name of a checkpoint in one file.
const SINGLE: &str = "model.safetensors";

/// A tensor of a checkpoint as its file declares it, in any type, those that cannot be computed with included.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    name: Box<str>,
    dtype: Dtype,
    shape: Shape,
    shard: usize,
    path: Arc<Path>,
    range: Range<usize>,
}

impl TensorInfo {
    /// The name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The element type if this version computes with it.
    pub fn dtype(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    /// The element type as the file names it, `BF16` or `F8_E4M3` say.
    pub fn dtype_name(&self) -> String {
        self.dtype.to_string()
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

/// One file of a checkpoint.
struct Shard {
    owner: Arc<dyn Bytes>,
    map: Option<Arc<MappedFile>>,
}

/// The tensors of a model, from one or several safetensors files.
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<Box<str>, TensorInfo>,
}

impl Checkpoint {
    /// Opens the checkpoint of a model directory, or one safetensors file.
    ///
    /// A directory's files are those that `model.safetensors.index.json` lists, else `model.safetensors`, else all
    /// `model*.safetensors`. Each must be a plain file name that resolves into the directory itself or, where the
    /// directory is a snapshot of the Hugging Face cache (`…/snapshots/<revision>`), into that repository's `blobs`.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be read; [`Error::Format`] where one is malformed, leaves the directory, is
    /// missing, or repeats a tensor.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut checkpoint = Self { path: dir.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        if std::fs::metadata(dir).map_err(|e| Error::io(dir, e))?.is_file() {
            checkpoint.map_shard(dir)?;
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
                checkpoint.map_shard(&home.shard(&index, name)?)?;
            }
            for (tensor, shard) in &weight_map {
                checkpoint.check_indexed(&index, tensor, shard)?;
            }
        } else if exists(&dir.join(SINGLE)) {
            checkpoint.map_shard(&home.shard(dir, SINGLE)?)?;
        } else {
            for name in glob(dir)? {
                checkpoint.map_shard(&home.shard(dir, &name)?)?;
            }
        }
        Ok(checkpoint)
    }

    /// A checkpoint that is part of the binary.
    ///
    /// # Errors
    /// [`Error::Format`] where the bytes are malformed; `name` takes the place of the path.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self> {
        let mut checkpoint = Self { path: PathBuf::from(name), shards: Vec::new(), tensors: BTreeMap::new() };
        checkpoint.add_shard(Path::new(name), Shard { owner: Arc::new(bytes), map: None })?;
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
        let fail = |path: &Path, what| Error::Weight { path: path.to_owned(), name: name.to_owned(), what };
        let info = self.find(name).ok_or_else(|| {
            fail(&self.path, format!("missing, expected shape {shape:?}{}", self.suggestion(name)))
        })?;
        if info.shape() != shape {
            return Err(fail(&info.path, format!("shape is {:?}, expected {shape:?}", info.shape())));
        }
        let dtype = info
            .dtype()
            .ok_or_else(|| fail(&info.path, format!("type is {}, expected F32, F16 or BF16", info.dtype)))?;
        let owner = &self.shards[info.shard].owner;
        let bytes = &owner.bytes()[info.range.clone()];
        if bytes.as_ptr().align_offset(dtype.size()) == 0 {
            return Ok(Weight::new(name, dtype, shape, Arc::clone(owner), info.range.clone()));
        }
        Ok(Weight::new(name, dtype, shape, Arc::new(Aligned::copy_of(bytes)), 0..bytes.len()))
    }

    /// Tells the system that the files will be read from front to back.
    pub fn advise_sequential(&self) {
        self.shards.iter().filter_map(|shard| shard.map.as_deref()).for_each(MappedFile::advise_sequential);
    }

    /// Tells the system to read all files ahead, in the background.
    pub fn advise_willneed(&self) {
        self.shards.iter().filter_map(|shard| shard.map.as_deref()).for_each(MappedFile::advise_willneed);
    }

    fn map_shard(&mut self, path: &Path) -> Result<()> {
        let map = Arc::new(MappedFile::open(path)?);
        self.add_shard(path, Shard { owner: Arc::clone(&map) as Arc<dyn Bytes>, map: Some(map) })
    }

    fn add_shard(&mut self, path: &Path, shard: Shard) -> Result<()> {
        let path: Arc<Path> = path.into();
        for entry in safetensors::parse(&path, shard.owner.bytes())? {
            match self.tensors.entry(entry.name.clone()) {
                btree_map::Entry::Occupied(first) => {
                    let what =
                        format!("tensor {} is also in {}", quote(&entry.name), first.get().path.display());
                    return Err(Error::format(&path, what));
                }
                btree_map::Entry::Vacant(free) => free.insert(TensorInfo {
                    name: entry.name,
                    dtype: entry.dtype,
                    shape: entry.shape,
                    shard: self.shards.len(),
                    path: Arc::clone(&path),
                    range: entry.range,
                }),
            };
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

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} tensors in {} files)", self.path.display(), self.tensors.len(), self.shards.len())
    }
}

/// A copy of bytes that starts at a multiple of 8.
#[derive(Debug)]
struct Aligned {
    words: Vec<u64>,
    len: usize,
}

impl Aligned {
    fn copy_of(bytes: &[u8]) -> Self {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { words, len: bytes.len() }
    }
}

impl Bytes for Aligned {
    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

/// Where the files of a model directory may resolve to.
struct Home {
    dir: PathBuf,
    /// The directory, links followed.
    real: PathBuf,
    /// `blobs` of the repository in the Hugging Face cache, where `real` is one of its snapshots.
    blobs: Option<PathBuf>,
}

impl Home {
    fn of(dir: &Path) -> Result<Self> {
        let real = dir.canonicalize().map_err(|e| Error::io(dir, e))?;
        let blobs = match real.parent() {
            Some(parent) if parent.file_name() == Some(OsStr::new("snapshots")) => {
                parent.parent().map(|repository| repository.join("blobs"))
            }
            _ => None,
        };
        Ok(Self { dir: dir.to_owned(), real, blobs })
    }

    /// The path of a shard that `source` (the index, or the directory) names.
    fn shard(&self, source: &Path, name: &str) -> Result<PathBuf> {
        let plain =
            !name.contains(['/', '\\', '\0']) && !name.starts_with('.') && name.ends_with(".safetensors");
        if !plain {
            let what = format!("file name is {}, expected a plain name ending in .safetensors", quote(name));
            return Err(Error::format(source, what));
        }
        let path = self.dir.join(name);
        if !exists(&path) {
            return Err(Error::format(source, format!("file {} is missing from the directory", quote(name))));
        }
        self.resolve(&path, name)?;
        Ok(path)
    }

    /// Follows links, and refuses what lies elsewhere.
    fn resolve(&self, path: &Path, name: &str) -> Result<PathBuf> {
        let real = path.canonicalize().map_err(|e| Error::io(path, e))?;
        let parent = real.parent();
        if parent == Some(&self.real) || (self.blobs.is_some() && parent == self.blobs.as_deref()) {
            return Ok(real);
        }
        let what = format!("{} is a link to {}, outside the model's directory", quote(name), real.display());
        Err(Error::format(path, what))
    }
}

/// Whether something has this name, a dangling link included: it is an error then, not another layout.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// `model*.safetensors`, sorted.
fn glob(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let name = entry.map_err(|e| Error::io(dir, e))?.file_name();
        match name.to_str() {
            Some(name) if name.starts_with("model") && name.ends_with(".safetensors") => {
                names.push(name.to_owned())
            }
            _ => {}
        }
    }
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
    let mut members = json::parse_object(index, &json::read(real)?)?;
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
