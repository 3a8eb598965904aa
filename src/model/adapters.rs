//! The adapters of a loaded model: loaded, chosen and unloaded by name while others are generated with.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::Model;
use crate::adapters;
use crate::error::{Error, Result};
use crate::forward::Adapter;
use crate::json::quote;

/// The longest name of an adapter, in bytes.
const MOST_NAME: usize = 64;

/// An adapter that is to be loaded: `NAME=PATH` or `NAME=PATH@SCALE`.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSource {
    /// What it is chosen by.
    pub name: String,
    /// A directory of PEFT or mlx-lm, or a GGUF file.
    pub path: PathBuf,
    /// What the sum it adds is multiplied by, beside its own scale.
    pub scale: f32,
}

impl FromStr for AdapterSource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Option {
            option: "adapter",
            got: quote(text),
            expected: "NAME=PATH or NAME=PATH@SCALE, with a name of letters, digits, `.`, `_` and `-`",
        };
        let (name, path) = text.split_once('=').ok_or_else(wrong)?;
        let scaled = path.rsplit_once('@').and_then(|(path, scale)| Some((path, scale.parse::<f32>().ok()?)));
        let (path, scale) = scaled.unwrap_or((path, 1.0));
        if !is_name(name) || path.is_empty() || !scale.is_finite() {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), path: path.into(), scale })
    }
}

/// Whether an adapter may have this name: beside a model's it is told apart by a colon.
fn is_name(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MOST_NAME).contains(&name.len()) && name.bytes().all(is_part)
}

/// An adapter that is loaded.
#[derive(Debug, Clone)]
pub struct AdapterInfo {
    /// What it is chosen by.
    pub name: String,
    /// What it was read from.
    pub path: PathBuf,
    /// What the sum it adds is multiplied by, beside its own scale.
    pub scale: f32,
    /// Its method and rank, in words.
    pub kind: String,
    /// How many modules it adds to.
    pub modules: usize,
    /// Bytes that it takes of the memory of the KV cache.
    pub bytes: u64,
}

/// A loaded adapter, under its name.
pub(super) struct Named {
    info: AdapterInfo,
    adapter: Arc<Adapter>,
}

impl Model {
    /// Loads an adapter beside the model's weights, which stay as they are, and takes its memory from that of the KV cache. It is
    /// then there for [`Self::with_adapter`], of every clone of this model.
    ///
    /// # Errors
    /// Those of [`adapters::read`]; a name that is taken, or none; an adapter that the memory has no room for.
    pub fn load_adapter(&self, source: &AdapterSource) -> Result<AdapterInfo> {
        let AdapterSource { name, path, scale } = source;
        if !is_name(name) {
            let expected = "a name of letters, digits, `.`, `_` and `-`, of at most 64 bytes";
            return Err(Error::Option { option: "the name of an adapter", got: quote(name), expected });
        }
        self.check_free(name)?;
        let adapter = Arc::new(adapters::read(path, *scale, &self.architecture)?);
        self.engine.load_adapter(&adapter)?;
        let info = AdapterInfo {
            name: name.clone(),
            path: path.clone(),
            scale: *scale,
            kind: adapter.kind.clone(),
            modules: adapter.updates.len(),
            bytes: adapter.bytes(),
        };
        let mut all = self.adapters.write();
        if all.iter().any(|named| named.info.name == *name) {
            drop((all, adapter));
            self.engine.free_adapters()?;
            return Err(self.taken(name));
        }
        all.push(Named { info: info.clone(), adapter });
        Ok(info)
    }

    /// Unloads an adapter. Texts that are being generated with it are to their end, and its memory is free then.
    ///
    /// # Errors
    /// A name that no adapter has.
    pub fn unload_adapter(&self, name: &str) -> Result<()> {
        let gone = {
            let mut all = self.adapters.write();
            let at = all.iter().position(|named| named.info.name == name);
            at.map(|at| all.remove(at))
        };
        let gone = gone.ok_or_else(|| self.no_adapter(name))?;
        drop(gone);
        self.engine.free_adapters()
    }

    /// The adapters that are loaded, in the order in which they were.
    pub fn adapters(&self) -> Vec<AdapterInfo> {
        self.adapters.read().iter().map(|named| named.info.clone()).collect()
    }

    /// This model with the adapter `name`: all that is asked of the clone that is returned is computed with it, also after it was
    /// unloaded. Texts with different adapters, and with none, share the steps of one engine.
    ///
    /// # Errors
    /// A name that no adapter has.
    pub fn with_adapter(&self, name: &str) -> Result<Self> {
        let adapter = self.adapter_named(name)?;
        Ok(Self { adapter: Some(adapter), ..self.clone() })
    }

    /// This model with an adapter that has no name.
    pub(crate) fn probed(&self, adapter: &Arc<Adapter>) -> Result<Self> {
        self.engine.load_adapter(adapter)?;
        Ok(Self { adapter: Some(Arc::clone(adapter)), ..self.clone() })
    }

    /// The adapter that all that is asked of this clone is computed with.
    #[doc(hidden)]
    pub fn adapter(&self) -> Option<&Arc<Adapter>> {
        self.adapter.as_ref()
    }

    pub(crate) fn adapter_named(&self, name: &str) -> Result<Arc<Adapter>> {
        let all = self.adapters.read();
        let found = all.iter().find(|named| named.info.name == name);
        let found = found.map(|named| Arc::clone(&named.adapter));
        drop(all);
        found.ok_or_else(|| self.no_adapter(name))
    }

    fn check_free(&self, name: &str) -> Result<()> {
        if !self.adapters.read().iter().any(|named| named.info.name == name) {
            return Ok(());
        }
        Err(self.taken(name))
    }

    fn taken(&self, name: &str) -> Error {
        let what = format!("it has an adapter {name} already: unload that first, or take another name");
        Error::Task { model: self.info.name.clone(), what }
    }

    fn no_adapter(&self, name: &str) -> Error {
        let names: Vec<String> = self.adapters.read().iter().map(|named| named.info.name.clone()).collect();
        let has = match names.is_empty() {
            true => "none is loaded".to_owned(),
            false => format!("it has {}", names.join(", ")),
        };
        Error::Task { model: self.info.name.clone(), what: format!("no adapter {}: {has}", quote(name)) }
    }
}
