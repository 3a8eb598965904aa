//! What the columns of matrices are worth, of an importance matrix.

use super::stacks::Joined;
use crate::error::{Error, Result};
use crate::imatrix::Imatrix;
use crate::weights::gguf::write::Entries;

/// Names that a warning holds, at most.
const NAMED: usize = 8;

/// What an importance matrix knows of a model.
pub(super) struct Weights<'m> {
    pub imatrix: Option<&'m Imatrix>,
    /// Matrices that it knows.
    pub known: usize,
    /// The names of those that it does not.
    pub unknown: Vec<String>,
}

impl Weights<'_> {
    /// What the columns of tensor `name` are worth, of one expert after the other.
    pub fn of(&mut self, name: &str, joined: &Joined<'_>) -> Result<Option<Vec<f32>>> {
        let Some((imatrix, columns)) = self.imatrix.zip(joined.columns()) else { return Ok(None) };
        let means = imatrix.means(name, joined.pieces.len(), columns)?;
        match means {
            Some(_) => self.known += 1,
            // Rows of the embedding are looked up, and the head is left out of most files.
            None if ["token_embd.", "output."].iter().any(|begin| name.starts_with(begin)) => {}
            None => self.unknown.push(name.to_owned()),
        }
        Ok(means)
    }

    /// Says which matrices it does not know, and writes where it comes from.
    ///
    /// # Errors
    /// One that knows none.
    pub fn finish(self, entries: &mut Entries) -> Result<()> {
        let imatrix = self.imatrix;
        let (Some(imatrix), true) = (imatrix, self.tell()?) else { return Ok(()) };
        let number = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        entries.string("quantize.imatrix.file", &imatrix.path.display().to_string());
        entries.string("quantize.imatrix.dataset", &imatrix.datasets.join(", "));
        entries.uint("quantize.imatrix.entries_count", number(imatrix.entries.len()));
        entries.uint("quantize.imatrix.chunks_count", imatrix.chunk_count);
        Ok(())
    }

    /// Says which matrices it does not know; whether it knows any.
    ///
    /// # Errors
    /// One that knows none.
    pub fn tell(self) -> Result<bool> {
        let Some(imatrix) = self.imatrix else { return Ok(false) };
        let path = imatrix.path.display();
        let count = self.unknown.len();
        if count > 0 {
            let mut names = self.unknown;
            names.truncate(NAMED);
            let more = if count > NAMED { ", …" } else { "" };
            let names = names.join(", ");
            if self.known == 0 {
                let what = format!("has none of the model's matrices ({names}{more}): it is another model's");
                return Err(Error::format(&imatrix.path, what));
            }
            tracing::warn!("{count} matrices are not in {path} and are quantized without it: {names}{more}");
        }
        if self.known == 0 {
            tracing::warn!("{path} changes nothing: no matrix gets a type that is chosen by it");
        }
        Ok(self.known > 0)
    }
}
