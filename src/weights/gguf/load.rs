//! A GGUF model as a [`Checkpoint`]: its tensors under the names, in the row order and with the offsets of a Hugging Face
//! checkpoint.

use std::collections::btree_map;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::split::{self, Split};
use super::{Architecture, Metadata, TensorType, parse};
use crate::error::{Error, Result};
use crate::json::quote;
use crate::tensor::Bytes;
use crate::weights::{Checkpoint, Encoding, Form, Home, MappedFile, Shard, TensorInfo};

/// Heads whose rows are stored in pairs.
struct Heads {
    queries: usize,
    keys: usize,
}

impl Heads {
    fn of(metadata: &Metadata, architecture: Architecture) -> Result<Self> {
        let arch = architecture.name();
        let (queries, keys) =
            (format!("{arch}.attention.head_count"), format!("{arch}.attention.head_count_kv"));
        let heads = |key: &str| match metadata.per_layer(key)? {
            Some(0) => Err(metadata.refuse(key, "1 or more")),
            heads => Ok(heads),
        };
        let Some(q) = heads(&queries)? else { return Err(metadata.refuse(&queries, "an integer")) };
        let kv = heads(&keys)?.unwrap_or(q);
        Ok(Self { queries: q as usize, keys: kv as usize })
    }
}

impl Metadata {
    /// The metadata of one file, of whatever architecture.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Format`] for what is not a GGUF file.
    pub fn open(path: &Path) -> Result<Self> {
        let owner: Arc<dyn Bytes> = Arc::new(MappedFile::open(path)?);
        Ok(parse(&path.into(), &owner)?.0)
    }
}

impl Checkpoint {
    /// Opens the model whose first or only file is `path`.
    pub(in crate::weights) fn open_gguf(path: &Path) -> Result<Self> {
        let map = Arc::new(MappedFile::open(path)?);
        let owner = Arc::clone(&map) as Arc<dyn Bytes>;
        let mut checkpoint = Self::empty(path);
        let (split, mut tensors) = checkpoint.add_gguf(path, Shard { owner, map: Some(map) }, None)?;
        let Some(split) = split else { return Ok(checkpoint) };
        let home = Home::of(path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new(".")))?;
        for (number, part) in split::siblings(path, split)?.into_iter().enumerate().skip(1) {
            let name = part.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if part.symlink_metadata().is_err() {
                return Err(Error::format(path, format!("part {} is missing beside it", quote(&name))));
            }
            home.resolve(&part, &name)?;
            let map = Arc::new(MappedFile::open(&part)?);
            let owner = Arc::clone(&map) as Arc<dyn Bytes>;
            let expected = Split { number: number as u64, ..split };
            tensors += checkpoint.add_gguf(&part, Shard { owner, map: Some(map) }, Some(expected))?.1;
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
        let mut checkpoint = Self::empty(path);
        let shard = Shard { owner: Arc::new(bytes), map: None };
        checkpoint.add_gguf(path, shard, None)?;
        Ok(checkpoint)
    }

    /// Adds the tensors of one part, which must be the part that is `expected`, and counts them; its metadata are the
    /// model's if it is the first.
    fn add_gguf(
        &mut self,
        path: &Path,
        shard: Shard,
        expected: Option<Split>,
    ) -> Result<(Option<Split>, usize)> {
        let path: Arc<Path> = path.into();
        let (metadata, entries) = parse(&path, &shard.owner)?;
        let split = Split::of(&metadata)?;
        if let Some(expected) = expected
            && split != Some(expected)
        {
            let what = format!("split is {split:?}, expected {expected:?} of its siblings");
            return Err(Error::format(&path, what));
        }
        let metadata = Arc::clone(self.gguf.get_or_insert_with(|| Arc::new(metadata)));
        let architecture = Architecture::of(&metadata)?;
        let heads = Heads::of(&metadata, architecture)?;
        let (at, count) = (self.shards.len(), entries.len());
        for entry in entries {
            let name = architecture.translate(&entry.name);
            let mut info = TensorInfo {
                name: name.into(),
                encoding: Encoding::Ggml(entry.kind),
                form: Form::Plain,
                stored: Some(entry.name),
                shape: entry.shape,
                shard: at,
                path: Arc::clone(&path),
                range: entry.range,
            };
            info.form = form(&metadata, architecture, &heads, &info)?;
            match fused_parts(architecture, &heads, &info) {
                Some(parts) => parts.into_iter().try_for_each(|part| self.add(part))?,
                None => self.add(info)?,
            }
        }
        self.shards.push(shard);
        Ok((split, count))
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
        for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
            let name = entry.map_err(|e| Error::io(dir, e))?.file_name();
            let Some(name) = name.to_str().filter(|name| name.ends_with(".gguf")) else { continue };
            if split::stem(name).is_none_or(|(_, part, _)| part == 1) {
                firsts.push(name.to_owned());
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

/// What of a tensor's bytes has to be undone.
fn form(metadata: &Metadata, architecture: Architecture, heads: &Heads, info: &TensorInfo) -> Result<Form> {
    let name = info.name();
    if architecture.pairs_rows() {
        let heads = [(".self_attn.q_proj.", heads.queries, ""), (".self_attn.k_proj.", heads.keys, "_kv")];
        for (module, heads, kv) in heads {
            if !name.contains(module) {
                continue;
            }
            let rows = info.shape().first().copied().unwrap_or(0);
            if !rows.is_multiple_of(2 * heads) {
                let key = format!("{}.attention.head_count{kv}", architecture.name());
                let expected = format!("twice of it to divide {rows}, the rows of {name}");
                return Err(metadata.error(&key, heads, expected));
            }
            return Ok(Form::Pairs { heads });
        }
    }
    let norm = name.ends_with("norm.weight") && info.shape().len() == 1;
    let dense = matches!(info.encoding, Encoding::Ggml(TensorType::Dense(_)));
    Ok(if architecture.adds_one() && norm && dense { Form::PlusOne } else { Form::Plain })
}

/// Phi 2's fused projection as the three that its checkpoints have: rows of queries, of keys, of values.
fn fused_parts(architecture: Architecture, heads: &Heads, info: &TensorInfo) -> Option<[TensorInfo; 3]> {
    const FUSED: &str = "qkv_proj";
    if architecture != Architecture::Phi2 || !info.name.contains(FUSED) {
        return None;
    }
    let rows = *info.shape.first()?;
    let head = rows / (heads.queries + 2 * heads.keys);
    if head * (heads.queries + 2 * heads.keys) != rows {
        return None;
    }
    let stride = info.range.len() / rows;
    let mut row = 0;
    Some([("q_proj", heads.queries), ("k_proj", heads.keys), ("v_proj", heads.keys)].map(|(part, heads)| {
        let mut part = TensorInfo { name: info.name.replace(FUSED, part).into(), ..info.clone() };
        part.shape[0] = heads * head;
        let start = info.range.start + row * stride;
        row += heads * head;
        part.range = start..info.range.start + row * stride;
        part
    }))
}
