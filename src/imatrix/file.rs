//! The two forms of the file.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use super::{Entry, Imatrix};
use crate::alloc;
use crate::error::{Error, Result};
use crate::files;
use crate::quant::write_floats;
use crate::tensor::DType;
use crate::weights::Checkpoint;
use crate::weights::gguf::TensorType;
use crate::weights::gguf::write::{Entries, Spec, Writer};
use crate::weights::output::Output;

/// What memory is taken for.
const WHAT: &str = "an importance matrix";
/// What follows the name of a tensor.
const SQUARES: &str = ".in_sum2";
const COUNTS: &str = ".counts";
/// The largest file of the older form.
const MAX_FILE: u64 = 4 << 30;

pub(super) fn open(path: &Path) -> Result<Imatrix> {
    let mut magic = [0; 4];
    let mut file = files::open(path)?;
    let is_gguf = file.read_exact(&mut magic).is_ok() && magic == *b"GGUF";
    let matrix = if is_gguf { gguf(path)? } else { legacy(path)? };
    if matrix.entries.is_empty() {
        return Err(Error::format(path, "has no entries, expected an importance matrix"));
    }
    let wrong = |values: &[f32]| values.iter().any(|value| !value.is_finite() || *value < 0.0);
    let found = matrix.entries.iter().find(|(_, entry)| wrong(&entry.squares) || wrong(&entry.counts));
    match found {
        Some((name, _)) => {
            let what =
                format!("{name} holds a value that is not finite or below 0, expected sums of squares");
            Err(Error::format(path, what))
        }
        None => Ok(matrix),
    }
}

fn gguf(path: &Path) -> Result<Imatrix> {
    let checkpoint = Checkpoint::open(path)?;
    let refuse = |what: String| Error::format(path, format!("{what}, expected an importance matrix"));
    let Some(metadata) = checkpoint.gguf() else { return Err(refuse("is no GGUF file".into())) };
    match metadata.string("general.type")? {
        Some("imatrix") => {}
        Some(other) => return Err(refuse(format!("general.type is {other:?}"))),
        None => return Err(refuse("has no general.type".into())),
    }
    let number = |key: &str| -> Result<u32> {
        u32::try_from(metadata.uint(key)?.unwrap_or(0)).map_err(|_| metadata.refuse(key, "at most 32 bits"))
    };
    let datasets = metadata.strings("imatrix.datasets")?;
    let mut matrix = Imatrix {
        path: path.to_owned(),
        datasets: datasets.into_iter().flatten().map(|name| String::from_utf8_lossy(name).into()).collect(),
        chunk_count: number("imatrix.chunk_count")?,
        chunk_size: number("imatrix.chunk_size")?,
        entries: BTreeMap::new(),
    };
    for info in checkpoint.tensors() {
        let Some(name) = info.name().strip_suffix(SQUARES) else { continue };
        let values = |name: &str| -> Result<Vec<f32>> {
            let Some(info) = checkpoint.find(name) else {
                return Err(Error::format(path, format!("tensor {name} is missing")));
            };
            if info.dtype() != Some(DType::F32) {
                return Err(info.fail(format!("type is {}, expected F32", info.dtype_name())));
            }
            Ok(checkpoint.get(name, info.shape())?.to_f32())
        };
        let entry = Entry { squares: values(info.name())?, counts: values(&format!("{name}{COUNTS}"))? };
        if entry.counts.is_empty() || !entry.squares.len().is_multiple_of(entry.counts.len()) {
            let (squares, counts) = (entry.squares.len(), entry.counts.len());
            return Err(info.fail(format!("has {squares} values beside {counts} counts")));
        }
        matrix.entries.insert(name.to_owned(), entry);
    }
    Ok(matrix)
}

/// Numbers of a file of the older form.
struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// An `i32` that is not negative.
    fn count(&mut self) -> Option<u32> {
        let word = self.take(4)?.try_into().ok()?;
        u32::try_from(i32::from_le_bytes(word)).ok()
    }

    fn text(&mut self) -> Option<String> {
        let len = self.count()? as usize;
        String::from_utf8(self.take(len)?.to_vec()).ok()
    }

    fn entry(&mut self) -> Option<(String, Entry)> {
        let (name, calls, len) = (self.text()?, self.count()?, self.count()? as usize);
        let words = self.take(len.checked_mul(4)?)?.chunks_exact(4);
        let squares = words.map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
        Some((name, Entry { squares, counts: vec![calls as f32] }))
    }
}

fn legacy(path: &Path) -> Result<Imatrix> {
    let io = |e| Error::io(path, e);
    let file = files::open(path)?;
    let len = file.metadata().map_err(io)?.len();
    if len > MAX_FILE {
        let what = format!("has {len} bytes, expected an importance matrix of at most {MAX_FILE}");
        return Err(Error::format(path, what));
    }
    let mut bytes = Vec::new();
    alloc::reserve(&mut bytes, len as usize, WHAT)?;
    file.take(len).read_to_end(&mut bytes).map_err(io)?;
    let mut words = Words(&bytes);
    let refuse =
        |what: String| Error::format(path, format!("{what}: no importance matrix, or one that was cut"));
    let count = words.count().ok_or_else(|| refuse("does not begin with a number of entries".into()))?;
    let mut matrix = Imatrix { path: path.to_owned(), ..Imatrix::default() };
    for at in 0..count {
        let entry = words.entry();
        let (name, entry) = entry.ok_or_else(|| refuse(format!("entry {at} of {count} cannot be read")))?;
        if matrix.entries.insert(name.clone(), entry).is_some() {
            return Err(refuse(format!("has {name} twice")));
        }
    }
    // Later versions say what it is of.
    matrix.chunk_count = words.count().unwrap_or(0);
    matrix.datasets = words.text().into_iter().collect();
    Ok(matrix)
}

pub(super) fn write(matrix: &Imatrix, path: &Path) -> Result<()> {
    let mut entries = Entries::default();
    entries.string("general.type", "imatrix");
    entries.strings("imatrix.datasets", &matrix.datasets);
    entries.uint("imatrix.chunk_count", matrix.chunk_count);
    entries.uint("imatrix.chunk_size", matrix.chunk_size);
    let mut specs = Vec::new();
    for (name, entry) in &matrix.entries {
        let experts = entry.counts.len();
        let spec = |leaf: &str, columns: usize| Spec {
            name: format!("{name}{leaf}"),
            kind: TensorType::Dense(DType::F32),
            // As ggml writes a matrix of one row.
            shape: if experts == 1 {
                [columns].as_slice().into()
            } else {
                [experts, columns].as_slice().into()
            },
        };
        specs.push(spec(SQUARES, entry.squares.len() / experts.max(1)));
        specs.push(spec(COUNTS, 1));
    }
    let output = Output::create(path)?;
    let mut writer = Writer::create(&output.path(), &entries, &specs)?;
    let mut bytes = Vec::new();
    for values in matrix.entries.values().flat_map(|entry| [&entry.squares, &entry.counts]) {
        alloc::resize(&mut bytes, values.len() * 4, WHAT)?;
        write_floats(DType::F32, values, &mut bytes);
        writer.write(&bytes)?;
    }
    writer.finish()?;
    output.commit()
}
