//! Writing a GGUF file: metadata, then tensors one after the other, so that none need be whole in memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{DEFAULT_ALIGNMENT, MAGIC, TensorType};
use crate::error::{Error, Result};
use crate::refusals;
use crate::tensor::Shape;

/// The version of the format that is written.
const VERSION: u32 = 3;

/// Entries of metadata, as bytes. Type numbers are those of `ggml/docs/gguf.md`.
#[derive(Debug, Default)]
pub struct Entries {
    count: u64,
    bytes: Vec<u8>,
}

impl Entries {
    fn text(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn begin(&mut self, key: &str, kind: u32) {
        self.count += 1;
        self.text(key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn begin_list(&mut self, key: &str, kind: u32, len: usize) {
        self.begin(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }

    /// A key, and its value's type and bytes as another file has them.
    pub fn stored(&mut self, key: &[u8], value: &[u8]) {
        self.count += 1;
        self.bytes.extend((key.len() as u64).to_le_bytes());
        self.bytes.extend(key);
        self.bytes.extend(value);
    }

    /// A whole number.
    pub fn uint(&mut self, key: &str, value: u32) {
        self.begin(key, 4);
        self.bytes.extend(value.to_le_bytes());
    }

    /// A number.
    pub fn float(&mut self, key: &str, value: f32) {
        self.begin(key, 6);
        self.bytes.extend(value.to_le_bytes());
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &str, value: bool) {
        self.begin(key, 7);
        self.bytes.push(value.into());
    }

    /// A text.
    pub fn string(&mut self, key: &str, value: &str) {
        self.begin(key, 8);
        self.text(value);
    }

    /// A list of texts.
    pub fn strings(&mut self, key: &str, values: &[String]) {
        self.begin_list(key, 8, values.len());
        values.iter().for_each(|value| self.text(value));
    }

    /// A list of integers.
    pub fn ints(&mut self, key: &str, values: &[i32]) {
        self.begin_list(key, 5, values.len());
        values.iter().for_each(|value| self.bytes.extend(value.to_le_bytes()));
    }

    /// A list of flags.
    pub fn flags(&mut self, key: &str, values: &[bool]) {
        self.begin_list(key, 7, values.len());
        self.bytes.extend(values.iter().map(|&value| u8::from(value)));
    }

    /// A list of numbers.
    pub fn floats(&mut self, key: &str, values: &[f32]) {
        self.begin_list(key, 6, values.len());
        values.iter().for_each(|value| self.bytes.extend(value.to_le_bytes()));
    }
}

/// A tensor to be written.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name in the file.
    pub name: String,
    /// How its elements are stored.
    pub kind: TensorType,
    /// Outermost first.
    pub shape: Shape,
}

impl Spec {
    /// Bytes that it takes, what aligns the next one apart.
    pub fn bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|&dim| dim as u64).product();
        let (block, bytes) = self.kind.block();
        elements / block as u64 * bytes as u64
    }
}

/// A file in the making: its tensors are written in the order of their declaration.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    /// Bytes that are missing yet of each tensor, the next one last.
    left: Vec<u64>,
    total: u64,
}

impl Writer {
    /// Creates the file and writes all but the data.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path, entries: &Entries, specs: &[Spec]) -> Result<Self> {
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((specs.len() as u64).to_le_bytes());
        head.extend(entries.count.to_le_bytes());
        head.extend(&entries.bytes);
        let mut infos = Entries::default();
        let mut at = 0_u64;
        for spec in specs {
            infos.text(&spec.name);
            infos.bytes.extend((spec.shape.len() as u32).to_le_bytes());
            // The format has the innermost dimension first.
            spec.shape.iter().rev().for_each(|&dim| infos.bytes.extend((dim as u64).to_le_bytes()));
            infos.bytes.extend(spec.kind.number().to_le_bytes());
            infos.bytes.extend(at.to_le_bytes());
            at = (at + spec.bytes()).next_multiple_of(DEFAULT_ALIGNMENT);
        }
        head.extend(infos.bytes);
        head.resize(head.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
        let file =
            File::create_new(path).and_then(|mut file| refusals::write_all(&mut file, &head).map(|()| file));
        let file = BufWriter::new(file.map_err(|e| Error::io(path, e))?);
        let left: Vec<u64> = specs.iter().rev().map(Spec::bytes).collect();
        let total = left.iter().sum();
        Ok(Self { path: path.to_owned(), file, left, total })
    }

    /// Bytes of all tensors.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Writes the next bytes of the tensor that is next.
    ///
    /// # Errors
    /// [`Error::Io`], a full disk among them.
    ///
    /// # Panics
    /// Where they leave the tensor.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        while self.left.last() == Some(&0) {
            self.left.pop();
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let Some(left) = self.left.last_mut().filter(|left| **left >= bytes.len() as u64) else {
            panic!("{} bytes leave their tensor", bytes.len())
        };
        *left -= bytes.len() as u64;
        let ends = *left == 0;
        let mut write = || {
            refusals::write_all(&mut self.file, bytes)?;
            if !ends {
                return Ok(());
            }
            // Tensors begin at multiples of the alignment, and the last one ends at one.
            let at = std::io::Seek::stream_position(&mut self.file)?;
            let padding = at.next_multiple_of(DEFAULT_ALIGNMENT) - at;
            self.file.write_all(&[0; DEFAULT_ALIGNMENT as usize][..padding as usize])
        };
        write().map_err(|e| Error::io(&self.path, e))
    }

    /// Writes everything through to the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// Where a tensor is not whole.
    pub fn finish(mut self) -> Result<()> {
        assert!(self.left.iter().all(|&left| left == 0), "a tensor is not whole");
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        written.map_err(|e| Error::io(&self.path, e))
    }
}
