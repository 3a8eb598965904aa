//! The vocabulary in the metadata: tokens, their kinds and scores, and the tokens with a role.

use std::borrow::Cow;
use std::collections::HashMap;

use super::Metadata;
use crate::error::Result;
use crate::json::quote;

/// Tokens of one vocabulary, the double of the largest published one. With it, a hostile list costs less than 64 MiB.
const MAX_TOKENS: usize = 1 << 19;
/// Texts that end a turn or a text in some family, of which `eos_token_id` can name only one. As llama.cpp has them.
const ENDS: [&str; 12] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
];

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";

/// How texts become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    /// `gpt2`: merges of bytes.
    Bytes,
    /// `llama`: SentencePiece, merges by score.
    Sentences,
}

impl Model {
    /// That of a model; nothing where it has no tokenizer.
    pub fn of(metadata: &Metadata) -> Result<Option<Self>> {
        const KEY: &str = "tokenizer.ggml.model";
        Ok(match metadata.string(KEY)? {
            None | Some("none" | "no_vocab") => None,
            Some("gpt2") => Some(Self::Bytes),
            Some("llama") => Some(Self::Sentences),
            Some(_) => return Err(metadata.refuse(KEY, "gpt2, llama or none")),
        })
    }
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Every token of a model.
pub(super) struct Vocabulary<'a> {
    pub metadata: &'a Metadata,
    pub model: Model,
    pub tokens: Vec<Cow<'a, str>>,
    pub kinds: Vec<TokenKind>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
}

impl<'a> Vocabulary<'a> {
    /// Reads and checks the lists, but for texts that occur twice; nothing where the model has no tokenizer.
    pub fn read(metadata: &'a Metadata) -> Result<Option<Self>> {
        let Some(model) = Model::of(metadata)? else { return Ok(None) };
        let list = metadata.strings(TOKENS)?.ok_or_else(|| metadata.refuse(TOKENS, "a list of strings"))?;
        if list.len() == 0 || list.len() > MAX_TOKENS {
            return Err(metadata.refuse(TOKENS, format!("1 to {MAX_TOKENS} tokens")));
        }
        let mut tokens: Vec<Cow<'a, str>> = Vec::with_capacity(list.len());
        for (id, token) in list.enumerate() {
            let text = std::str::from_utf8(token).map_err(|_| {
                let got = quote(&String::from_utf8_lossy(token));
                metadata.error(&format!("{TOKENS}[{id}]"), got, "UTF-8")
            })?;
            // An empty text would be found everywhere; llama.cpp renames it, too.
            tokens.push(if text.is_empty() { format!("[EMPTY_{id}]").into() } else { text.into() });
        }
        let count = tokens.len();
        let mut this = Self {
            metadata,
            model,
            kinds: kinds(metadata, count)?,
            tokens,
            bos: id(metadata, "tokenizer.ggml.bos_token_id", count as u64)?,
            eos: id(metadata, "tokenizer.ggml.eos_token_id", count as u64)?,
            unknown: id(metadata, "tokenizer.ggml.unknown_token_id", count as u64)?,
        };
        if model == Model::Sentences {
            // SentencePiece's own order, where the file does not say.
            let usual = |id: u32| Some(id).filter(|&id| (id as usize) < count);
            this.unknown = this.unknown.or(usual(0));
            this.bos = this.bos.or(usual(1));
            this.eos = this.eos.or(usual(2));
        }
        if !metadata.has(TYPES) {
            for id in [this.bos, this.eos].into_iter().flatten() {
                this.kinds[id as usize] = TokenKind::Control;
            }
        }
        Ok(Some(this))
    }

    /// Refuses two tokens of one text.
    pub fn check_unique(&self) -> Result<()> {
        let mut seen = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = seen.insert(token.as_ref(), id) {
                let expected = format!("another text than token {first}");
                return Err(self.metadata.error(&format!("{TOKENS}[{id}]"), quote(token), expected));
            }
        }
        Ok(())
    }

    /// The scores, one for each token.
    pub fn scores(&self) -> Result<Vec<f32>> {
        let (metadata, count) = (self.metadata, self.tokens.len());
        match metadata.floats(SCORES)? {
            Some(scores) if scores.len() == count => match scores.iter().position(|score| score.is_nan()) {
                Some(id) => Err(metadata.error(&format!("{SCORES}[{id}]"), "NaN", "a number")),
                None => Ok(scores),
            },
            _ => Err(metadata.refuse(SCORES, format!("a list of {count} numbers, one for each token"))),
        }
    }

    /// A token's text.
    pub fn text(&self, id: u32) -> &str {
        &self.tokens[id as usize]
    }
}

fn kinds(metadata: &Metadata, count: usize) -> Result<Vec<TokenKind>> {
    let Some(types) = metadata.ints(TYPES)? else { return Ok(vec![TokenKind::Normal; count]) };
    if types.len() != count {
        return Err(metadata.refuse(TYPES, format!("a list of {count}, one for each token")));
    }
    let kind = |(id, kind): (usize, &i64)| {
        Ok(match kind {
            0 | 1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            other => return Err(metadata.error(&format!("{TYPES}[{id}]"), other, "0 to 6")),
        })
    };
    types.iter().enumerate().map(kind).collect()
}

/// A token's id below `count`.
fn id(metadata: &Metadata, key: &str, count: u64) -> Result<Option<u32>> {
    match metadata.uint(key)? {
        Some(id) if id >= count => {
            Err(metadata.refuse(key, format!("an id below {count}, the tokens of the vocabulary")))
        }
        id => Ok(id.map(|id| id as u32)),
    }
}

/// The token that starts a text, and those that end one; `rows` is the length of the embedding.
pub(crate) fn ends(metadata: &Metadata, rows: u64) -> Result<(Option<u32>, Vec<u32>)> {
    let vocabulary = Vocabulary::read(metadata)?;
    let mut all = Vec::new();
    let Some(vocabulary) = vocabulary else {
        all.extend(id(metadata, "tokenizer.ggml.eos_token_id", rows)?);
        return Ok((id(metadata, "tokenizer.ggml.bos_token_id", rows)?, all));
    };
    let count = vocabulary.tokens.len() as u64;
    if count > rows {
        let expected = format!("at most {rows}, the rows of token_embd.weight");
        return Err(metadata.refuse(TOKENS, expected));
    }
    all.extend(vocabulary.eos);
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        all.extend(id(metadata, key, count)?);
    }
    for (id, (token, kind)) in vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate() {
        if matches!(kind, TokenKind::Control | TokenKind::UserDefined) && ENDS.contains(&token.as_ref()) {
            all.push(id as u32);
        }
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|id| seen.insert(*id));
    Ok((vocabulary.bos, all))
}
