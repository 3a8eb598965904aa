//! `vocab.json` with `merges.txt`, as GPT-2 has them: bytes written as characters, tokens with ids, and merges in order. The
//! pattern that cuts a text follows from the class of the tokenizer.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::merges::MAX_MERGES;
use super::named::{Named, Token};
use super::{Head, MAX_TOKENS, byte_pairs, ends};
use crate::error::{Error, Result};
use crate::files;
use crate::json::{self, quote};
use crate::text::patterns::QWEN2;
use crate::text::{Tokenizer, raw};

/// A class whose pattern is known.
enum Class {
    Gpt2,
    Qwen2,
}

impl Class {
    /// That which the directory names, or else the one of the model's family.
    fn of(named: &Named) -> Option<Self> {
        match named.class() {
            "GPT2Tokenizer" | "CodeGenTokenizer" => Some(Self::Gpt2),
            "Qwen2Tokenizer" => Some(Self::Qwen2),
            "" => match named.family.as_str() {
                "gpt2" | "phi" | "opt" | "starcoder2" => Some(Self::Gpt2),
                "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe" => Some(Self::Qwen2),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Makes the tokenizer of the two files.
pub(super) fn load(vocab: &Path, merges: &Path, named: &Named, embedding_rows: usize) -> Result<Tokenizer> {
    let known = ["GPT2Tokenizer", "CodeGenTokenizer", "Qwen2Tokenizer"];
    let class = Class::of(named).ok_or_else(|| named.refuse_class(vocab, &known))?;
    let (vocab_bytes, merges_bytes) = (files::read_json(vocab)?, files::read_json(merges)?);
    let tokens: raw::Vocab<'_> = json::parse_typed(vocab, &vocab_bytes, json::LONG)?;
    let tokens = tokens.0;
    if tokens.len() > MAX_TOKENS {
        let count = tokens.len();
        return Err(Error::format(vocab, format!("{count} tokens, expected at most {MAX_TOKENS}")));
    }
    let mut ids: HashMap<&str, u64> = HashMap::with_capacity(tokens.len());
    for (token, id) in &tokens {
        if let Some(other) = ids.insert(token, *id) {
            return Err(Error::format(vocab, format!("{} has the ids {other} and {id}", quote(token))));
        }
    }
    let pairs = pairs(merges, utf8(merges, &merges_bytes)?, &ids)?;

    let end = "<|endoftext|>";
    let mut named = named.clone();
    let roles: &[&str] = match class {
        Class::Gpt2 => &["bos_token", "eos_token", "unk_token"],
        Class::Qwen2 => &["eos_token", "pad_token", "unk_token"],
    };
    roles.iter().for_each(|role| named.add_role(role, end));
    let mut added: BTreeMap<u32, Token> = named.added.clone();
    for content in named.special() {
        // What is special without an id is in no text of the model.
        let id = ids.get(content).and_then(|&id| u32::try_from(id).ok());
        if let Some(id) = id.filter(|id| !added.contains_key(id)) {
            added.extend(named.special_token(id, content).map(|token| (id, token)));
        }
    }
    let added: Vec<Token> = added.into_values().collect();
    let id = |text: &str| {
        let token = added.iter().find(|token| token.content == text);
        token.map(|token| token.id)
    };
    let [bos, eos] = named.ends([false, false], id)?;
    let post_processor = ends(bos, eos);
    let last = named.role("eos_token").and_then(id);
    let prefix = named.flag("add_prefix_space", false)?;
    let mut head = Head::of_bytes(
        added,
        match class {
            Class::Gpt2 => None,
            Class::Qwen2 => Some(QWEN2),
        },
        prefix,
        post_processor,
    );
    if let Class::Qwen2 = class {
        head.normalizer = serde_json::json!({"type": "NFC"});
    }
    let head = head.around(&byte_pairs(None, false, false));
    let tokens = tokens.iter().map(|(token, id)| (token.as_ref(), *id));
    let tokenizer = Tokenizer::from_lists(vocab, &head, tokens, &pairs, embedding_rows)?;
    Ok(tokenizer.ending_with(last))
}

fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| Error::format(path, format!("not UTF-8: {e}")))
}

/// The merges, a line each.
fn pairs<'a>(path: &Path, text: &'a str, ids: &HashMap<&str, u64>) -> Result<Vec<(&'a str, &'a str)>> {
    let mut pairs = Vec::new();
    let mut whole = String::new();
    for (i, line) in text.lines().enumerate() {
        if line.starts_with("#version") {
            continue;
        }
        let bad = |what: String| Error::format(path, format!("line {} {what}", i + 1));
        let pair = line.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.contains(' '));
        let (left, right) = pair.ok_or_else(|| {
            bad(format!("is {}, expected two tokens with a space between them", quote(line)))
        })?;
        whole.clear();
        whole += left;
        whole += right;
        for token in [left, right, whole.as_str()] {
            if !ids.contains_key(token) {
                return Err(bad(format!("needs {}, which vocab.json does not have", quote(token))));
            }
        }
        if pairs.len() == MAX_MERGES {
            return Err(bad(format!("is more than {MAX_MERGES} merges")));
        }
        pairs.push((left, right));
    }
    Ok(pairs)
}
