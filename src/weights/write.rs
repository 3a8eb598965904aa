//! Writing safetensors: a layout of shards that is known before the first byte of data, filled in any order, so that no
//! tensor need be whole in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::output::write_through;
use crate::error::{Error, Result};
use crate::refusals;
use crate::tensor::Shape;

/// Bytes of data in a shard at most, as mlx-lm and transformers have it; a larger tensor has one to itself.
pub const SHARD: u64 = 5_000_000_000;

/// A tensor to be written.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name in the checkpoint.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Outermost first.
    pub shape: Shape,
}

impl Spec {
    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product::<u64>() * self.dtype.bitsize() as u64 / 8
    }
}

/// The files of a checkpoint in the making.
#[derive(Debug)]
pub struct Shards {
    dir: PathBuf,
    files: Vec<(String, File)>,
    /// Tensor → shard, absolute position and bytes.
    places: BTreeMap<String, (usize, u64, u64)>,
    total: u64,
}

impl Shards {
    /// Creates the shards of `specs` in `dir`, at most `most` bytes of data each, their headers written. Shards take
    /// tensors in the order of `specs`; within one, types of larger elements come first, so that each tensor is aligned
    /// to its elements.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(dir: &Path, specs: Vec<Spec>, most: u64) -> Result<Self> {
        let mut shards: Vec<(u64, Vec<Spec>)> = Vec::new();
        let mut total = 0;
        for spec in specs {
            let bytes = spec.bytes();
            total += bytes;
            match shards.last_mut() {
                Some((held, shard)) if *held + bytes <= most => {
                    *held += bytes;
                    shard.push(spec);
                }
                _ => shards.push((bytes, vec![spec])),
            }
        }
        let (mut files, mut places) = (Vec::new(), BTreeMap::new());
        let count = shards.len();
        for (shard, (_, mut specs)) in shards.into_iter().enumerate() {
            let name = match count {
                1 => super::SINGLE.to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
            };
            specs.sort_by_key(|spec| std::cmp::Reverse(spec.dtype.bitsize()));
            let header = header(&specs);
            let mut at = header.len() as u64;
            for spec in specs {
                let bytes = spec.bytes();
                places.insert(spec.name, (shard, at, bytes));
                at += bytes;
            }
            let path = dir.join(&name);
            let file = File::create_new(&path)
                .and_then(|mut file| refusals::write_all(&mut file, &header).map(|()| file));
            files.push((name, file.map_err(|e| Error::io(&path, e))?));
        }
        Ok(Self { dir: dir.to_owned(), files, places, total })
    }

    /// Bytes of all tensors.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Writes bytes of the tensor `name`, `at` bytes from its beginning.
    ///
    /// # Errors
    /// [`Error::Io`], a full disk among them.
    ///
    /// # Panics
    /// Where there is no such tensor, or they leave it.
    pub fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> Result<()> {
        let (shard, start, len) = self.places[name];
        assert!(at + bytes.len() as u64 <= len, "{} bytes at {at} of the {len} of {name}", bytes.len());
        let (file_name, file) = &mut self.files[shard];
        let written = file.seek(SeekFrom::Start(start + at)).and_then(|_| refusals::write_all(file, bytes));
        written.map_err(|e| Error::io(&self.dir.join(file_name), e))
    }

    /// Writes everything through to the disk, and the index.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        for (name, file) in &self.files {
            file.sync_all().map_err(|e| Error::io(&self.dir.join(name), e))?;
        }
        let weight_map: Map<String, Value> = (self.places.iter())
            .map(|(tensor, (shard, ..))| (tensor.clone(), self.files[*shard].0.clone().into()))
            .collect();
        let index = json!({ "metadata": { "total_size": self.total }, "weight_map": weight_map });
        write_through(&self.dir.join(super::INDEX), format!("{index:#}\n").as_bytes())
    }
}

/// The length, and the JSON that describes `specs` in the order of their data; padded so that data is aligned.
fn header(specs: &[Spec]) -> Vec<u8> {
    let mut members = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "mlx" }))]);
    let mut at = 0;
    for spec in specs {
        let end = at + spec.bytes();
        let shape = spec.shape.as_slice();
        let entry = json!({ "dtype": spec.dtype.to_string(), "shape": shape, "data_offsets": [at, end] });
        members.insert(spec.name.clone(), entry);
        at = end;
    }
    let mut text = Value::Object(members).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.into_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;
    use crate::weights::Checkpoint;

    #[test]
    fn what_is_written_is_read_from_any_number_of_shards() {
        let spec =
            |name: &str, dtype, shape: &[usize]| Spec { name: name.into(), dtype, shape: shape.into() };
        let specs = vec![
            spec("a", Dtype::BF16, &[3]),
            spec("b", Dtype::F32, &[2, 2]),
            spec("c", Dtype::U8, &[5]),
            spec("d", Dtype::F16, &[0, 4]),
            spec("e", Dtype::F32, &[1]),
        ];
        for (most, files) in [(1, 5), (22, 2), (SHARD, 1)] {
            let dir = tempfile::tempdir().unwrap();
            let mut shards = Shards::create(dir.path(), specs.clone(), most).unwrap();
            assert_eq!(shards.total(), 31);
            // In another order than that of the file, and in pieces.
            shards.write("e", 0, &7_f32.to_le_bytes()).unwrap();
            shards.write("c", 2, &[3, 4, 5]).unwrap();
            shards.write("c", 0, &[1, 2]).unwrap();
            let floats: Vec<u8> = [1_f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
            shards.write("b", 0, &floats).unwrap();
            shards.write("a", 0, &[0, 0, 0x80, 0x3f, 0, 0]).unwrap();
            shards.finish().unwrap();

            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            let held: std::collections::BTreeSet<_> =
                checkpoint.tensors().map(|t| t.file().to_owned()).collect();
            assert_eq!(held.len(), files, "at most {most} bytes");
            let values = |name: &str, shape: &[usize]| checkpoint.get(name, shape).unwrap().to_f32();
            assert_eq!(values("a", &[3]), [0.0, 1.0, 0.0]);
            assert_eq!(values("b", &[2, 2]), [1.0, 2.0, 3.0, 4.0]);
            assert_eq!(values("e", &[1]), [7.0]);
            assert_eq!(checkpoint.get("d", &[0, 4]).unwrap().dtype(), DType::F16);
            let bytes = checkpoint.plane(checkpoint.find("c").unwrap()).unwrap();
            assert_eq!(bytes.bytes(), [1, 2, 3, 4, 5]);
        }
    }
}
