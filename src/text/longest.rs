//! How long a text one token may stand for, so that a text which can never fit is refused before it is encoded. Where a step can
//! drop any number of characters, or one token can stand for any number of them, there is no such length.

use std::collections::HashSet;

use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::raw::{File, Model};
use super::steps::{flat, kind};

/// What a file says of it, before its added tokens are known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Longest {
    /// Bytes of the longest token of the vocabulary.
    token: usize,
    /// Bytes of a text for a byte of what the normalizer makes of it, at most.
    shrink: usize,
    /// Bytes of what the steps make of a text, for one of its bytes, at most.
    growth: usize,
}

impl Longest {
    /// None where a token may stand for a text of any length. `growth`: how many times longer the steps make a text.
    pub(super) fn of(file: &File<'_>, growth: usize) -> Option<Self> {
        let steps = |json, list| flat(json, list).ok();
        let normalizers = steps(&file.normalizer, "normalizers")?;
        let pre_tokenizers = steps(&file.pre_tokenizer, "pretokenizers")?;
        let shrink = normalizers
            .iter()
            .map(|step| shrink(step))
            .try_fold(1, |product: usize, step| Some(product.saturating_mul(step?)))?;
        if !pre_tokenizers.iter().all(|step| keeps(step)) {
            return None;
        }
        let bytes_as_characters =
            normalizers.iter().chain(&pre_tokenizers).any(|step| kind(step) == Ok("ByteLevel"));
        if !spells_all(&file.model, bytes_as_characters) {
            return None;
        }
        // A character for each byte, or the text as it is.
        let bytes = |token: &str| if bytes_as_characters { token.chars().count() } else { token.len() };
        let token = file.model.vocab.0.iter().map(|(token, _)| bytes(token)).max()?;
        Some(Self { token, shrink, growth })
    }

    /// Bytes of a text that one token stands for, at most, where `added` are found in it, too.
    pub(super) fn with<'a>(self, added: impl Iterator<Item = &'a AddedToken>) -> Option<usize> {
        let mut longest = self.token.saturating_mul(self.shrink).max(1);
        for token in added {
            if token.lstrip || token.rstrip {
                // It takes all white space beside it.
                return None;
            }
            // One that is normalized is found in what the normalizer makes of a text.
            let factor = if token.normalized { self.growth.saturating_mul(self.shrink) } else { 1 };
            longest = longest.max(token.content.len().saturating_mul(factor));
        }
        Some(longest)
    }
}

/// How many times shorter a step may make a text, at most.
fn shrink(step: &Value) -> Option<usize> {
    match kind(step).ok()? {
        // Up to four characters, each of up to four bytes, become one of two bytes at least; a single one becomes one of one byte
        // at least.
        "NFC" | "NFKC" | "NFD" | "NFKD" => Some(8),
        // A character of up to four bytes becomes one of one byte at least.
        "Lowercase" => Some(4),
        "ByteLevel" | "Prepend" => Some(1),
        "Replace" => {
            let (pattern, content) = (step["pattern"]["String"].as_str()?, step["content"].as_str()?);
            (!pattern.is_empty() && !content.is_empty()).then(|| pattern.len().div_ceil(content.len()).max(1))
        }
        // Strip, StripAccents, Nmt, Precompiled and BertNormalizer drop characters.
        _ => None,
    }
}

/// Whether a step that cuts a text keeps all of it.
fn keeps(step: &Value) -> bool {
    match kind(step) {
        Ok("ByteLevel" | "Metaspace" | "Digits") => true,
        Ok("Split" | "Punctuation") => step["behavior"] != "Removed",
        _ => false,
    }
}

/// Whether the model has a token for each byte, or one for each character that it does not know: then it drops none, and takes
/// none together.
fn spells_all(model: &Model<'_>, bytes_as_characters: bool) -> bool {
    let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if set(&model.continuing_subword_prefix) || set(&model.end_of_word_suffix) {
        return false;
    }
    let tokens: HashSet<&str> = model.vocab.0.iter().map(|(token, _)| token.as_ref()).collect();
    let fallback = || {
        model.byte_fallback == Some(true)
            && (0..=255_u8).all(|byte| tokens.contains(format!("<{byte:#04X}>").as_str()))
    };
    match model.kind.as_deref() {
        Some("BPE") => {
            let characters = || {
                bytes_as_characters
                    && ByteLevel::alphabet()
                        .iter()
                        .all(|c| tokens.contains(c.encode_utf8(&mut [0; 4]) as &str))
            };
            let each = || set(&model.unk_token) && model.fuse_unk != Some(true);
            fallback() || characters() || each()
        }
        Some("Unigram") => fallback(),
        // A whole word that WordPiece or WordLevel does not know is one token.
        _ => false,
    }
}
