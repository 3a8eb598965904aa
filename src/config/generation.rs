//! `generation_config.json`: the model's own idea of how to sample and when to stop.

use std::path::Path;

use crate::error::Result;
use crate::files;
use crate::json;
use crate::json::Fields;

/// The sampling defaults that a model ships. `None` is what the file leaves open.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// The tokens that end a text; empty where the file names none, and then those of [`super::Config`] hold.
    pub eos_token_ids: Vec<u32>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// Whether to sample at all, or to take the most likely token.
    pub do_sample: Option<bool>,
    /// Logits are divided by this; 0 means the most likely token.
    pub temperature: Option<f32>,
    /// How many of the most likely tokens are kept; 0 keeps all.
    pub top_k: Option<usize>,
    /// Kept are the most likely tokens that together reach this probability.
    pub top_p: Option<f32>,
    /// Kept are tokens at least this likely relative to the most likely one.
    pub min_p: Option<f32>,
    /// Logits of tokens already seen are divided (if positive) or multiplied (if negative) by this.
    pub repetition_penalty: Option<f32>,
    /// Tokens that never come, in ascending order.
    pub suppress_tokens: Vec<u32>,
    /// Tokens to generate at most.
    pub max_new_tokens: Option<usize>,
    /// Tokens that prompt and text may have together; `max_new_tokens` beats it.
    pub max_length: Option<usize>,
}

impl GenerationConfig {
    /// Reads a `generation_config.json`; a model need not have one.
    ///
    /// # Errors
    /// As [`GenerationConfig::parse`]; [`crate::Error::Io`] where the file is there but cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        if files::is_absent(path) {
            return Ok(Self::default());
        }
        Self::parse(path, &files::read_json(path)?)
    }

    /// Resolves the bytes of a `generation_config.json`; `path` is for errors.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for what is not one JSON object without duplicate keys; [`crate::Error::Config`] for a
    /// mistyped value or one out of range.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let object = json::parse_object(path, bytes)?;
        Self::resolve(&Fields::new(path, &object))
    }

    pub(crate) fn resolve(fields: &Fields<'_>) -> Result<Self> {
        let number = |name, least, most| Ok(fields.number(name, least, most)?.map(|x| x as f32));
        let mut suppress_tokens = fields.tokens("suppress_tokens")?.unwrap_or_default();
        suppress_tokens.sort_unstable();
        suppress_tokens.dedup();
        Ok(Self {
            suppress_tokens,
            eos_token_ids: fields.tokens("eos_token_id")?.unwrap_or_default(),
            bos_token_id: fields.token("bos_token_id")?,
            do_sample: fields.flag("do_sample")?,
            temperature: number("temperature", 0.0, 100.0)?,
            top_k: fields.size("top_k", 0, 1 << 30)?,
            top_p: number("top_p", 0.0, 1.0)?,
            min_p: number("min_p", 0.0, 1.0)?,
            repetition_penalty: number("repetition_penalty", 1e-3, 1e3)?,
            max_new_tokens: fields.size("max_new_tokens", 1, 1 << 30)?,
            max_length: fields.size("max_length", 1, 1 << 30)?,
        })
    }
}
