//! `tekken.json`, Mistral's own: special tokens first, then tokens by rank, and the pattern that cuts a text.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::named::{Named, Token};
use super::ranks::Ranks;
use super::{Head, MAX_TOKENS, byte_pairs, ends};
use crate::error::{Error, Result};
use crate::json::{self, quote};
use crate::text::Tokenizer;

/// The special tokens of files up to version 7, which do not name them.
const UNNAMED: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];
/// The versions of such files.
const OLD: [&str; 4] = ["v1", "v2", "v3", "v7"];

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    config: Config<'a>,
    #[serde(borrow)]
    vocab: Vec<Rank<'a>>,
    #[serde(borrow, default)]
    special_tokens: Option<Vec<Special<'a>>>,
}

#[derive(Deserialize)]
struct Config<'a> {
    #[serde(borrow)]
    pattern: Cow<'a, str>,
    /// Tokens of the model, special ones among them: the vocabulary may have more.
    default_vocab_size: usize,
    default_num_special_tokens: usize,
    #[serde(borrow, default)]
    version: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Rank<'a> {
    rank: usize,
    #[serde(borrow)]
    token_bytes: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Special<'a> {
    rank: usize,
    #[serde(borrow)]
    token_str: Cow<'a, str>,
}

/// Makes the tokenizer of the file's `bytes`.
pub(super) fn load(path: &Path, bytes: &[u8], named: &Named, embedding_rows: usize) -> Result<Tokenizer> {
    let bad = |what: String| Error::format(path, what);
    let file: File<'_> = json::parse_typed(path, bytes, json::LONG)?;
    let special = special(&file).map_err(bad)?;
    let Config { default_vocab_size: size, .. } = file.config;
    let count = size.checked_sub(special.len()).filter(|&count| count <= file.vocab.len());
    let count = count.filter(|_| size <= MAX_TOKENS).ok_or_else(|| {
        let (special, ranks) = (special.len(), file.vocab.len());
        let most = (special + ranks).min(MAX_TOKENS);
        bad(format!("config.default_vocab_size is {size}, expected {special} to {most}"))
    })?;
    let mut tokens = Vec::with_capacity(count);
    for (i, Rank { rank, token_bytes }) in file.vocab[..count].iter().enumerate() {
        if *rank != i {
            return Err(bad(format!("vocab[{i}].rank is {rank}, expected {i}")));
        }
        let bytes = STANDARD.decode(token_bytes.as_bytes()).map_err(|e| {
            bad(format!("vocab[{i}].token_bytes is {}, expected base64: {e}", quote(token_bytes)))
        })?;
        tokens.push(bytes);
    }
    let ranks = Ranks::of(tokens.into_iter()).map_err(|e| bad(format!("vocab: {e}")))?;
    let merges = ranks.merges().map_err(|e| bad(format!("vocab: {e}")))?;
    let mut added: Vec<Token> = Vec::with_capacity(special.len());
    for (id, content) in (0..).zip(&special) {
        added.push(Token::special(id, content));
    }
    let id = |content: &str| {
        let at = special.iter().position(|special| special == content)?;
        u32::try_from(at).ok()
    };
    // mistral-common has no other names for these two, whatever else is in the directory.
    let end = |key: &str, absent: bool, content: &'static str| {
        Ok::<_, Error>(match named.flag(key, absent)? {
            true => Some((content, id(content).ok_or_else(|| bad(format!("special_tokens: no {content}")))?)),
            false => None,
        })
    };
    let post_processor = ends(end("add_bos_token", true, "<s>")?, end("add_eos_token", false, "</s>")?);
    let head = Head::of_bytes(added, Some(&*file.config.pattern), false, post_processor);
    let texts = special.iter().map(|token| &**token).chain(ranks.0.iter().map(String::as_str));
    // A piece that is a token is taken whole, as tiktoken does.
    let head = head.around(&byte_pairs(None, false, true));
    let tokenizer = Tokenizer::from_lists(path, &head, texts.zip(0..), &merges, embedding_rows)?;
    Ok(tokenizer.ending_with(id("</s>")))
}

/// The special tokens, which have the first ids.
fn special<'a>(file: &'a File<'_>) -> Result<Vec<Cow<'a, str>>, String> {
    let count = file.config.default_num_special_tokens;
    let mut special: Vec<Cow<'a, str>> = Vec::new();
    match &file.special_tokens {
        Some(tokens) => {
            for (i, Special { rank, token_str }) in tokens.iter().enumerate() {
                if *rank != i {
                    return Err(format!("special_tokens[{i}].rank is {rank}, expected {i}"));
                }
                if token_str.is_empty() {
                    return Err(format!("special_tokens[{i}].token_str is empty"));
                }
                special.push(Cow::Borrowed(token_str.as_ref()));
            }
        }
        None if OLD.contains(&file.config.version.as_ref()) => {
            special.extend(UNNAMED.iter().map(|&token| Cow::Borrowed(token)));
        }
        None => {
            let version = quote(&file.config.version);
            let old = OLD.join(", ");
            return Err(format!("config.version is {version} without special_tokens, expected one of {old}"));
        }
    }
    if count < special.len() || count > MAX_TOKENS {
        let least = special.len();
        return Err(format!(
            "config.default_num_special_tokens is {count}, expected {least} to {MAX_TOKENS}"
        ));
    }
    special.extend((special.len()..count).map(|id| Cow::Owned(format!("<SPECIAL_{id}>"))));
    check_unique(&special)?;
    Ok(special)
}

fn check_unique(special: &[Cow<'_, str>]) -> Result<(), String> {
    let mut seen: HashSet<&str> = HashSet::with_capacity(special.len());
    for token in special {
        if !seen.insert(token) {
            return Err(format!("special_tokens: {} is there twice", quote(token)));
        }
    }
    Ok(())
}
