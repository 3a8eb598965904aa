//! A GGUF model as a [`Checkpoint`], its tensors under the names that the file has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::split::{self, Split};
use super::{Metadata, parse};
use crate::error::{Error, Result};
use crate::files::{self, Home};
use crate::json::quote;
use crate::weights::source::{Access, Source};
use crate::weights::{Checkpoint, Encoding, Form, TensorInfo};

impl Metadata {
    /// The metadata of one file, of whatever architecture.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Format`] for what is not a GGUF file.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(parse(&path.into(), &Source::open(path, Access::Read)?)?.0)
    }
}

impl Checkpoint {
    /// Opens the model whose first or only file is `path`.
    pub(in crate::weights) fn open_gguf(path: &Path, access: Access) -> Result<Self> {
        let mut checkpoint = Self::empty(path, access);
        let (split, mut tensors) = checkpoint.add_gguf(path, Source::open(path, access)?, None)?;
        let Some(split) = split else { return Ok(checkpoint) };
        let home = Home::of(path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new(".")))?;
        for (number, part) in split::siblings(path, split)?.into_iter().enumerate().skip(1) {
            let name = part.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !files::exists(&part) {
                return Err(Error::format(path, format!("part {} is missing beside it", quote(&name))));
            }
            home.resolve(&part, &name)?;
            let expected = Split { number: number as u64, ..split };
            tensors += checkpoint.add_gguf(&part, Source::open(&part, access)?, Some(expected))?.1;
        }
        if tensors as u64 != split.tensors {
            let what = format!("split.tensors.count is {}, but the parts have {tensors}", split.tensors);
            return Err(Error::format(path, what));
        }
        Ok(checkpoint)
    }

    /// A model in one file whose bytes are in memory; `path` names it in errors.
    #[cfg(test)]
    pub(in crate::weights) fn gguf_from_static(path: &Path, bytes: &'static [u8]) -> Result<Self> {
        let mut checkpoint = Self::empty(path, Access::Map);
        checkpoint.add_gguf(path, Source::Static(bytes), None)?;
        Ok(checkpoint)
    }

    /// Adds the tensors of one part, which must be the part that is `expected`, and counts them; its metadata are the
    /// model's if it is the first.
    fn add_gguf(
        &mut self,
        path: &Path,
        shard: Source,
        expected: Option<Split>,
    ) -> Result<(Option<Split>, usize)> {
        let path: Arc<Path> = path.into();
        let (metadata, entries) = parse(&path, &shard)?;
        let split = Split::of(&metadata)?;
        if let Some(expected) = expected
            && split != Some(expected)
        {
            let what = format!("split is {split:?}, expected {expected:?} of its siblings");
            return Err(Error::format(&path, what));
        }
        self.gguf.get_or_insert_with(|| Arc::new(metadata));
        let (at, count) = (self.shards.len(), entries.len());
        for entry in entries {
            self.add(TensorInfo {
                name: entry.name,
                encoding: Encoding::Ggml(entry.kind),
                form: Form::Plain,
                stored: None,
                shape: entry.shape,
                stored_shape: None,
                shard: at,
                path: Arc::clone(&path),
                range: entry.range,
            })?;
        }
        self.shards.push(shard);
        Ok((split, count))
    }

    /// The metadata of a GGUF model.
    pub fn gguf(&self) -> Option<&Arc<Metadata>> {
        self.gguf.as_ref()
    }

    /// The GGUF files of a directory that holds one model and no `config.json`: the path of its first or only part.
    ///
    /// # Errors
    /// [`Error::Io`] where the directory cannot be read; [`Error::Format`] where it holds several models.
    pub fn find_gguf(dir: &Path) -> Result<Option<PathBuf>> {
        let mut firsts = Vec::new();
        for name in files::names(dir)?.into_iter().filter(|name| name.ends_with(".gguf")) {
            if split::stem(&name).is_none_or(|(_, part, _)| part == 1) {
                firsts.push(name);
            }
        }
        firsts.sort_unstable();
        match &firsts[..] {
            [] => Ok(None),
            [one] => Ok(Some(dir.join(one))),
            [one, two, ..] => {
                let what = format!(
                    "{} GGUF models, {}, {}…; name one of them",
                    firsts.len(),
                    quote(one),
                    quote(two)
                );
                Err(Error::format(dir, what))
            }
        }
    }
}
