//! The tokenizer of a directory that has no `tokenizer.json`, made of what it has in its place: Mistral's `tekken.json`,
//! SentencePiece's `tokenizer.model`, tiktoken's ranks, or GPT-2's `vocab.json` with `merges.txt`.
//!
//! A text gets the ids that the file's own library gives it; a file that asks for what cannot be had so is refused by name.

mod bpe;
mod merges;
mod named;
mod proto;
mod ranks;
mod sentencepiece;
mod tekken;
mod tiktoken;

#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::{Value, json};

use self::named::{Named, Token};
use super::rebuilt::Rebuilt;
use super::special::SpecialTokens;
use super::tokenizer::{Tokenizer, around};
use crate::error::Result;
use crate::files;

/// Tokens of one vocabulary, the double of the largest published one.
const MAX_TOKENS: usize = 1 << 19;

impl Tokenizer {
    /// The tokenizer of a model's directory: `tokenizer.json`, with the special tokens that `tokenizer_config.json` and
    /// `special_tokens_map.json` name, and with the steps of a class that transformers builds anew, or where there is none one that is made of `tekken.json`, `tokenizer.model`,
    /// `tiktoken.model`, or `vocab.json` with `merges.txt`, the first that is there. None for a directory without any.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), or [`Error::Format`](crate::Error::Format) for a file over 64 MiB, whatever
    /// [`Self::from_bytes`] refuses, and another file than `tokenizer.json` that asks for what would not become exactly the
    /// same tokenizer; [`Error::Config`](crate::Error::Config) for a setting of such a tokenizer.
    pub fn open(dir: &Path, embedding_rows: usize) -> Result<Option<Self>> {
        let path = dir.join("tokenizer.json");
        if !files::exists(&path) {
            return load(dir, embedding_rows);
        }
        let bytes = files::read_json(&path)?;
        let beside = (SpecialTokens::load(dir)?, Rebuilt::load(dir)?);
        Self::read(&path, &bytes, embedding_rows, &beside).map(Some)
    }
}

/// The tokenizer of a directory, for a model whose embedding has `embedding_rows` rows; nothing where it has no such file.
fn load(dir: &Path, embedding_rows: usize) -> Result<Option<Tokenizer>> {
    let there = |name: &str| Some(dir.join(name)).filter(|path| files::exists(path));
    // Mistral's own file comes first: what is beside it is made of it.
    if let Some(path) = there("tekken.json") {
        let (bytes, named) = (files::read_json(&path)?, Named::read(dir)?);
        return tekken::load(&path, &bytes, &named, embedding_rows).map(Some);
    }
    if let Some(path) = there("tokenizer.model") {
        let (bytes, named) = (files::read_json(&path)?, Named::read(dir)?);
        return if proto::is_message(&bytes) {
            sentencepiece::load(&path, &bytes, &named, embedding_rows).map(Some)
        } else {
            // Llama 3 has its ranks under this name.
            tiktoken::load(&path, &bytes, &named, embedding_rows).map(Some)
        };
    }
    if let Some(path) = there("tiktoken.model") {
        let (bytes, named) = (files::read_json(&path)?, Named::read(dir)?);
        return tiktoken::load(&path, &bytes, &named, embedding_rows).map(Some);
    }
    match (there("vocab.json"), there("merges.txt")) {
        (Some(vocab), Some(merges)) => {
            bpe::load(&vocab, &merges, &Named::read(dir)?, embedding_rows).map(Some)
        }
        _ => Ok(None),
    }
}

/// A `tokenizer.json` but for its model.
struct Head {
    added: Vec<Token>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
}

impl Head {
    /// That of a vocabulary of bytes written as characters; GPT-2's pattern, which the library has built in, where there is
    /// no other.
    fn of_bytes(added: Vec<Token>, pattern: Option<&str>, prefix_space: bool, post_processor: Value) -> Self {
        let bytes = json!({
            "type": "ByteLevel",
            "add_prefix_space": prefix_space,
            "trim_offsets": true,
            "use_regex": pattern.is_none(),
        });
        let pre_tokenizer = match pattern {
            Some(regex) => json!({"type": "Sequence", "pretokenizers": [split(regex, "Isolated"), bytes]}),
            None => bytes,
        };
        let decoder =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        Self { added, normalizer: Value::Null, pre_tokenizer, post_processor, decoder }
    }

    /// The whole file around `model`, which is JSON.
    fn around(&self, model: &str) -> String {
        let head = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added.iter().map(Token::json).collect::<Vec<_>>(),
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": self.post_processor,
            "decoder": self.decoder,
        });
        let mut out = head.to_string();
        out.pop();
        out += ",\"model\":";
        out += model;
        out += "}";
        out
    }
}

/// A byte-pair model whose lists are still to come; `ignore_merges` takes whole pieces that are tokens as they are.
fn byte_pairs(unknown: Option<&str>, byte_fallback: bool, ignore_merges: bool) -> String {
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": unknown.is_some(),
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": {},
        "merges": [],
    })
    .to_string()
}

fn split(regex: &str, behavior: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": false})
}

/// BOS and EOS around a text.
fn ends(bos: Option<(&str, u32)>, eos: Option<(&str, u32)>) -> Value {
    if bos.is_none() && eos.is_none() { Value::Null } else { around(bos, eos) }
}

/// A text as a pattern that matches it.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if r"\.^$*+?{}[]()|-/#".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
