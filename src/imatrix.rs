//! Importance matrices: how large the inputs of each column of each matrix are on a text, by which `quantize` weighs its errors.
//!
//! The file is llama.cpp's: a GGUF file with tensors `NAME.in_sum2`, the sums of squares of the inputs of tensor `NAME`'s columns, and
//! `NAME.counts`, the rows that were added up, of each expert. Its older form, `.dat`, is read as well.

mod collect;
mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use collect::{Collect, collect};

use crate::error::{Error, Result};

/// An importance matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imatrix {
    /// The file that it was read from; empty of one that was collected.
    pub path: PathBuf,
    /// The texts that it was collected on, as they were called.
    pub datasets: Vec<String>,
    /// Windows of the texts.
    pub chunk_count: u32,
    /// Tokens of a window.
    pub chunk_size: u32,
    /// By the names of tensors in GGUF files.
    pub entries: BTreeMap<String, Entry>,
}

/// What is known of the inputs of a tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entry {
    /// `Σ x²` of each column, of one expert after the other: `[E, K]`.
    pub squares: Vec<f32>,
    /// Rows that each expert was given, `[E]`; or one number for all.
    pub counts: Vec<f32>,
}

impl Imatrix {
    /// Reads a file of either form.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Format`] for what is no importance matrix.
    pub fn open(path: &Path) -> Result<Self> {
        file::open(path)
    }

    /// Writes the new file `path`, which appears when it is whole.
    ///
    /// # Errors
    /// [`Error::Format`] where it exists; [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        file::write(self, path)
    }

    /// The mean square of the inputs of tensor `name`'s columns, of each of `experts`: `[E, K]`. Those of an expert that was given
    /// nothing are 1, as are all where all are zero. None of a tensor that the file does not know.
    ///
    /// # Errors
    /// [`Error::Format`] where the file's tensor has other columns or experts.
    pub fn means(&self, name: &str, experts: usize, columns: usize) -> Result<Option<Vec<f32>>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let of_all = entry.counts.len() == 1;
        if entry.squares.len() != experts * columns || !of_all && entry.counts.len() != experts {
            let (got, counts) = (entry.squares.len(), entry.counts.len());
            let what = format!(
                "{name} has {got} columns in all and {counts} counts, expected {experts} × {columns} of the model: it is another model's"
            );
            return Err(Error::format(&self.path, what));
        }
        let mut means = entry.squares.clone();
        for (expert, means) in means.chunks_exact_mut(columns.max(1)).enumerate() {
            let count = entry.counts[if of_all { 0 } else { expert }];
            if count > 0.0 && means.iter().any(|&square| square > 0.0) {
                means.iter_mut().for_each(|square| *square /= count);
            } else {
                means.fill(1.0);
            }
        }
        Ok(Some(means))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix() -> Imatrix {
        let entry =
            |squares: &[f32], counts: &[f32]| Entry { squares: squares.into(), counts: counts.into() };
        Imatrix {
            datasets: vec!["a text.txt".into(), "another".into()],
            chunk_count: 3,
            chunk_size: 128,
            entries: [
                ("blk.0.attn_q.weight".to_owned(), entry(&[2.0, 0.0, 8.0], &[4.0])),
                (
                    "blk.0.ffn_up_exps.weight".to_owned(),
                    entry(&[1.0, 2.0, 0.0, 0.0, 6.0, 3.0], &[2.0, 0.0, 3.0]),
                ),
            ]
            .into(),
            ..Imatrix::default()
        }
    }

    #[test]
    fn a_file_holds_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let wanted = Imatrix { path: path.clone(), ..matrix() };
        wanted.write(&path).unwrap();
        assert_eq!(Imatrix::open(&path).unwrap(), wanted);
        assert!(wanted.write(&path).unwrap_err().to_string().contains("exists"));
    }

    #[test]
    fn means_are_of_each_expert() {
        let of = matrix();
        assert_eq!(of.means("blk.0.attn_q.weight", 1, 3).unwrap().unwrap(), [0.5, 0.0, 2.0]);
        let experts = of.means("blk.0.ffn_up_exps.weight", 3, 2).unwrap().unwrap();
        assert_eq!(experts, [0.5, 1.0, 1.0, 1.0, 2.0, 1.0]);
        assert_eq!(of.means("blk.1.attn_q.weight", 1, 3).unwrap(), None);
        for (name, experts, columns) in [
            ("blk.0.attn_q.weight", 1, 4),
            ("blk.0.ffn_up_exps.weight", 2, 3),
            ("blk.0.ffn_up_exps.weight", 6, 1),
        ] {
            let error = of.means(name, experts, columns).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(&format!("{experts} × {columns}")), "{error}");
        }
    }

    fn legacy(entries: &[(&str, i32, &[f32])]) -> Vec<u8> {
        let mut bytes = (entries.len() as i32).to_le_bytes().to_vec();
        for (name, calls, values) in entries {
            bytes.extend((name.len() as i32).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(calls.to_le_bytes());
            bytes.extend((values.len() as i32).to_le_bytes());
            values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        }
        bytes
    }

    #[test]
    fn the_older_form_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.dat");
        let mut bytes = legacy(&[("blk.0.attn_q.weight", 4, &[2.0, 8.0]), ("output.weight", 1, &[1.0])]);
        let short = bytes.clone();
        bytes.extend(7_i32.to_le_bytes());
        bytes.extend(8_i32.to_le_bytes());
        bytes.extend(b"wiki.txt");
        std::fs::write(&path, &bytes).unwrap();
        let read = Imatrix::open(&path).unwrap();
        assert_eq!((read.datasets, read.chunk_count), (vec!["wiki.txt".to_owned()], 7));
        assert_eq!(read.entries["blk.0.attn_q.weight"], Entry { squares: vec![2.0, 8.0], counts: vec![4.0] });
        // What is behind the entries is missing in the oldest.
        std::fs::write(&path, &short).unwrap();
        assert_eq!(Imatrix::open(&path).unwrap().entries.len(), 2);
        // Cut anywhere within them, it is refused.
        for len in 0..short.len() {
            std::fs::write(&path, &short[..len]).unwrap();
            assert!(Imatrix::open(&path).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn what_is_no_importance_matrix_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.dat");
        let refused = |bytes: &[u8], expected: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = Imatrix::open(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused(&legacy(&[]), "entries");
        refused(&legacy(&[("a", 1, &[f32::NAN])]), "a");
        refused(&legacy(&[("a", 1, &[-1.0])]), "a");
        refused(&legacy(&[("a", 1, &[1.0]), ("a", 1, &[1.0])]), "twice");
        refused(&i32::MAX.to_le_bytes(), "importance matrix");
        refused(b"no such thing at all, and long enough", "importance matrix");
        // A model.
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf/qwen3-bf16.gguf");
        let error = Imatrix::open(Path::new(model)).unwrap_err().to_string();
        assert!(error.contains("importance matrix"), "{error}");
    }
}
