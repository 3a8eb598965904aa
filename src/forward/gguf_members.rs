//! Members of a `config.json` as a GGUF file has them: each beside the key that it comes from.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::json::{Fields, Object, Value};
use crate::weights::gguf::Metadata;

/// The key of norms by the root mean square.
pub(crate) const RMS_EPS: &str = "attention.layer_norm_rms_epsilon";
/// The key of layer norms.
pub(crate) const LAYER_EPS: &str = "attention.layer_norm_epsilon";
/// A member that GGUF files alone have: what transformers does not read of a configuration, llama.cpp does.
pub(super) const LLAMA_CPP: &str = "llama.cpp";

/// Members of a `config.json`, and the keys that they come from.
pub(crate) struct Members<'a> {
    pub metadata: &'a Metadata,
    pub arch: &'static str,
    object: Object,
    scaling: Object,
    names: BTreeMap<String, String>,
}

impl<'a> Members<'a> {
    /// None yet, of a file of `arch`.
    pub fn new(metadata: &'a Metadata, arch: &'static str) -> Self {
        Self { metadata, arch, object: Object::new(), scaling: Object::new(), names: BTreeMap::new() }
    }

    /// All of them.
    pub fn fields(&mut self) -> Fields<'_> {
        if !self.scaling.is_empty() {
            let scaling = std::mem::take(&mut self.scaling);
            self.object.insert("rope_scaling".to_owned(), Value::Object(scaling));
        }
        Fields::renamed(self.metadata.path(), &self.object, &self.names)
    }

    /// A key of the architecture, in full.
    pub fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    /// Sets a member, which errors call `key`.
    pub fn put(&mut self, name: &str, key: impl Into<String>, value: Value) {
        self.names.insert(name.to_owned(), key.into());
        self.object.insert(name.to_owned(), value);
    }

    /// The same of the scaling of rotary embeddings.
    pub fn put_scaling(&mut self, name: &str, key: impl Into<String>, value: Value) {
        self.names.insert(format!("rope_scaling.{name}"), key.into());
        self.scaling.insert(name.to_owned(), value);
    }

    /// Whether a member of the scaling was set.
    pub fn has_scaling(&self, name: &str) -> bool {
        self.scaling.contains_key(name)
    }

    /// A number of the scaling that was set.
    pub fn scaling_number(&self, name: &str) -> Option<f64> {
        match self.scaling.get(name) {
            Some(Value::Float(x)) => Some(*x),
            _ => None,
        }
    }

    /// An integer that was set.
    pub fn uint(&self, name: &str) -> u64 {
        match self.object.get(name) {
            Some(Value::UInt(n)) => *n,
            _ => 0,
        }
    }

    /// A positive integer that may differ from layer to layer, and does not.
    pub fn size(&mut self, name: &str, key: &str) -> Result<Option<u64>> {
        let key = self.key(key);
        let value = self.metadata.per_layer(&key)?;
        match value {
            Some(0) => return Err(self.metadata.refuse(&key, "1 or more")),
            Some(n) => self.put(name, key, Value::UInt(n)),
            None => {}
        }
        Ok(value)
    }

    /// The same of the first layer, whatever the others have.
    pub fn size_of_first(&mut self, name: &str, key: &str) -> Result<Option<u64>> {
        let key = self.key(key);
        let value = self.metadata.layers(&key)?.and_then(|all| all.first().copied());
        match value {
            Some(0) => return Err(self.metadata.refuse(&key, "1 or more")),
            Some(n) => self.put(name, key, Value::UInt(n)),
            None => {}
        }
        Ok(value)
    }

    /// The same of the layers that have any: others have 0. None where no layer has.
    pub fn size_of_some(&mut self, name: &str, key: &str) -> Result<Option<u64>> {
        let key = self.key(key);
        let all = self.metadata.layers(&key)?.unwrap_or_default();
        let mut some = all.into_iter().filter(|&n| n > 0);
        let Some(first) = some.next() else { return Ok(None) };
        if some.any(|n| n != first) {
            return Err(self
                .metadata
                .refuse(&key, "the same integer for each layer that has any, 0 for others"));
        }
        self.put(name, key, Value::UInt(first));
        Ok(Some(first))
    }

    /// Integers that are not negative, one for each of `layers` layers.
    pub fn by_layer(&self, key: &str, layers: u64) -> Result<Vec<u64>> {
        let key = self.key(key);
        let mut all = self.metadata.layers(&key)?.unwrap_or_else(|| vec![0]);
        if let [same] = all[..] {
            all = vec![same; layers as usize];
        }
        if all.len() as u64 == layers {
            return Ok(all);
        }
        let expected = format!("a number for each of {layers} layers");
        Err(self.metadata.error(&key, format!("a list of {}", all.len()), expected))
    }

    /// The same, which must be there.
    pub fn required(&mut self, name: &str, key: &str) -> Result<u64> {
        self.size(name, key)?.ok_or_else(|| self.metadata.refuse(&self.key(key), "an integer"))
    }

    /// A number, where the file has it.
    pub fn number(&mut self, name: &str, key: &str) -> Result<Option<f64>> {
        let key = self.key(key);
        let value = self.metadata.number(&key)?;
        if let Some(x) = value {
            self.put(name, key, Value::Float(x));
        }
        Ok(value)
    }

    /// The window, where the file has one; `null` where it says that there is none, or does not say and `or_none`.
    pub fn window(&mut self, or_none: bool) -> Result<bool> {
        const NAME: &str = "sliding_window";
        let key = self.key("attention.sliding_window");
        match self.metadata.uint(&key)? {
            Some(0) => self.put(NAME, key, Value::Null),
            Some(window) => {
                self.put(NAME, key, Value::UInt(window));
                return Ok(true);
            }
            None if or_none => self.put(NAME, key, Value::Null),
            None => {}
        }
        Ok(false)
    }

    /// Which layers slide: each, where the file has a flag for each; else all but every `every`-th.
    pub fn window_pattern(&mut self, default: u64) -> Result<()> {
        let layers = self.metadata.uint(&self.key("block_count"))?.unwrap_or(0).min(1024);
        let key = self.key("attention.sliding_window_pattern");
        let slides: Vec<bool> = match self.metadata.flags(&key)? {
            Some(flags) if flags.len() as u64 == layers => flags,
            Some(flags) => {
                let expected = format!("a flag for each of {layers} layers");
                return Err(self.metadata.error(&key, format!("a list of {}", flags.len()), expected));
            }
            None => {
                let every = self.metadata.uint(&key)?.unwrap_or(default);
                (0..layers).map(|layer| every == 0 || !(layer + 1).is_multiple_of(every)).collect()
            }
        };
        let kind = |slides| if slides { "sliding_attention" } else { "full_attention" };
        let types = slides.into_iter().map(|slides| Value::String(kind(slides).to_owned())).collect();
        self.put("layer_types", key, Value::Array(types));
        Ok(())
    }
}
