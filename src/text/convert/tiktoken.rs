//! tiktoken's file: a line for each token, its bytes in base64 and its rank. Neither the pattern nor special tokens are in
//! it: the first follows from the class of the tokenizer, the others are in `tokenizer_config.json`.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::named::{Named, Token};
use super::ranks::Ranks;
use super::{Head, MAX_TOKENS, byte_pairs, ends};
use crate::error::{Error, Result};
use crate::json::quote;
use crate::text::Tokenizer;
use crate::text::patterns::{KIMI, LLAMA3};

/// The pattern of a class: transformers has Llama 3's where no class is named, `TikTokenTokenizer` is Kimi's.
fn pattern(class: &str) -> Option<&'static str> {
    match class {
        "" | "PreTrainedTokenizer" | "TokenizersBackend" | "LlamaTokenizer" => Some(LLAMA3),
        "TikTokenTokenizer" => Some(KIMI),
        _ => None,
    }
}

/// Makes the tokenizer of the file's `bytes`.
pub(super) fn load(path: &Path, bytes: &[u8], named: &Named, embedding_rows: usize) -> Result<Tokenizer> {
    let bad = |what: String| Error::format(path, what);
    let known = ["PreTrainedTokenizer", "TokenizersBackend", "LlamaTokenizer", "TikTokenTokenizer"];
    let pattern = pattern(named.class()).ok_or_else(|| named.refuse_class(path, &known))?;
    let tokens = tokens(bytes).map_err(bad)?;
    let ranks = Ranks::of(tokens.into_iter()).map_err(bad)?;
    let merges = ranks.merges().map_err(bad)?;
    let added = added(&ranks.0, named).map_err(bad)?;
    let id = |text: &str| added.iter().find(|token| token.content == text).map(|token| token.id);
    let [bos, eos] = named.ends([false, false], id)?;
    let post_processor = ends(bos, eos);
    let last = named.role("eos_token").and_then(id);
    let head = Head::of_bytes(added, Some(pattern), false, post_processor);
    // A piece that is a token is taken whole, as tiktoken does.
    let head = head.around(&byte_pairs(None, false, true));
    let texts = ranks.0.iter().map(String::as_str);
    let tokenizer = Tokenizer::from_lists(path, &head, texts.zip(0..), &merges, embedding_rows)?;
    Ok(tokenizer.ending_with(last))
}

/// The bytes of each token, by rank.
fn tokens(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut tokens = Vec::new();
    for (i, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let number = i + 1;
        let shown = || quote(&String::from_utf8_lossy(&line[..line.len().min(200)]));
        let parts = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' '));
        let token =
            parts.and_then(|(token, rank)| Some((STANDARD.decode(token).ok()?, rank.parse::<usize>().ok()?)));
        let (token, rank) = token
            .ok_or_else(|| format!("line {number} is {}, expected base64, a space and a rank", shown()))?;
        if rank != tokens.len() {
            return Err(format!("line {number}: rank {rank}, expected {}", tokens.len()));
        }
        if rank == MAX_TOKENS {
            return Err(format!("over {MAX_TOKENS} tokens"));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// The tokens after those of the file, without a hole: those that no file names are reserved, as transformers names them.
fn added(ranks: &[String], named: &Named) -> Result<Vec<Token>, String> {
    let base = ranks.len() as u32;
    let Some((&last, _)) = named.added.last_key_value() else {
        return Err(
            "it has no special tokens, expected some in added_tokens_decoder of tokenizer_config.json".into(),
        );
    };
    if let Some((id, token)) = named.added.iter().find(|(id, _)| **id < base) {
        let content = quote(&token.content);
        return Err(format!("added_tokens_decoder names {id} {content}, expected an id from {base} on"));
    }
    Ok((base..=last)
        .map(|id| match named.added.get(&id) {
            Some(token) => Token { normalized: false, ..token.clone() },
            None => Token::special(id, &format!("<|reserved_token_{id}|>")),
        })
        .collect())
}
