//! The tokenizers of encoders in the metadata: BERT's pieces of words, and the pieces of SentencePiece that a score each chooses.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::vocabulary::{TokenKind, Vocabulary};
use crate::error::Result;

/// What begins a word in the vocabulary of a GGUF file, where BERT's own marks what goes on with one.
const WORD: char = '▁';
const REST: &str = "##";
/// The longest word that pieces are looked for in, in characters: BERT's.
const MAX_WORD: u64 = 100;

/// BERT's, as the bytes of a `tokenizer.json`.
pub(super) fn words(vocabulary: &Vocabulary<'_>) -> Result<Vec<u8>> {
    let metadata = vocabulary.metadata;
    let flag = |name: &str| metadata.flag(&format!("tokenizer.ggml.normalizer.{name}"));
    let normalizer = json!({
        "type": "BertNormalizer",
        "clean_text": true,
        "handle_chinese_chars": true,
        "strip_accents": flag("strip_accents")?,
        "lowercase": flag("lowercase")?.unwrap_or(true),
    });
    let texts: Vec<String> = (vocabulary.tokens.iter().zip(&vocabulary.kinds))
        .map(|(token, kind)| match token.strip_prefix(WORD) {
            _ if is_special(*kind) => token.to_string(),
            Some(word) => word.to_owned(),
            None => format!("{REST}{token}"),
        })
        .collect();
    // llama.cpp's, where the file does not say.
    let [first, last, unknown] = [vocabulary.first()?, vocabulary.last()?, vocabulary.unknown_word()?];
    let named = |id: u32| (texts[id as usize].as_str(), id);
    let mut vocab = serde_json::Map::new();
    for (id, text) in texts.iter().enumerate() {
        if vocab.insert(text.clone(), id.into()).is_some() {
            let expected = "another text than that of an earlier token";
            return Err(metadata.error(
                &format!("tokenizer.ggml.tokens[{id}]"),
                crate::json::quote(text),
                expected,
            ));
        }
    }
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added(vocabulary, &texts),
        "normalizer": normalizer,
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": around(named(first), named(last), false),
        "decoder": { "type": "WordPiece", "prefix": REST, "cleanup": true },
        "model": {
            "type": "WordPiece",
            "unk_token": texts[unknown as usize],
            "continuing_subword_prefix": REST,
            "max_input_chars_per_word": MAX_WORD,
            "vocab": vocab,
        },
    });
    Ok(file.to_string().into_bytes())
}

/// That of XLM-RoBERTa and its kin, likewise.
pub(super) fn scored(vocabulary: &Vocabulary<'_>) -> Result<Vec<u8>> {
    const TABLE: &str = "tokenizer.ggml.precompiled_charsmap";
    let metadata = vocabulary.metadata;
    let mut normalizers = Vec::new();
    if let Some(table) = metadata.bytes(TABLE)?.filter(|table| !table.is_empty()) {
        normalizers.push(json!({ "type": "Precompiled", "precompiled_charsmap": STANDARD.encode(table) }));
    }
    let flag = |name: &str| metadata.flag(&format!("tokenizer.ggml.{name}"));
    let mut steps = Vec::new();
    if flag("remove_extra_whitespaces")?.unwrap_or(false) {
        steps.push(json!({ "type": "WhitespaceSplit" }));
    }
    let scheme = if flag("add_space_prefix")?.unwrap_or(true) { "always" } else { "never" };
    steps.push(json!({ "type": "Metaspace", "replacement": WORD, "prepend_scheme": scheme, "split": true }));
    let scores = vocabulary.scores()?;
    let texts: Vec<String> = vocabulary.tokens.iter().map(|token| token.to_string()).collect();
    let pairs: Vec<Value> = texts.iter().zip(scores).map(|(text, score)| json!([text, score])).collect();
    let unknown = vocabulary.kinds.iter().position(|kind| *kind == TokenKind::Unknown);
    let [first, last] = [vocabulary.first()?, vocabulary.last()?].map(|id| (texts[id as usize].as_str(), id));
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added(vocabulary, &texts),
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
        "post_processor": around(first, last, true),
        "decoder": { "type": "Metaspace", "replacement": WORD, "prepend_scheme": scheme, "split": true },
        "model": {
            "type": "Unigram",
            "unk_id": unknown.or(vocabulary.unknown.map(|id| id as usize)),
            "vocab": pairs,
            "byte_fallback": false,
        },
    });
    Ok(file.to_string().into_bytes())
}

fn is_special(kind: TokenKind) -> bool {
    matches!(kind, TokenKind::Control | TokenKind::Unknown)
}

/// The tokens that are found in texts before anything else.
fn added(vocabulary: &Vocabulary<'_>, texts: &[String]) -> Vec<Value> {
    let tokens = texts.iter().zip(&vocabulary.kinds).enumerate();
    let found = tokens.filter(|(_, (_, kind))| is_special(**kind) || **kind == TokenKind::UserDefined);
    found
        .map(|(id, (text, kind))| {
            json!({
                "id": id,
                "content": text,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": is_special(*kind),
            })
        })
        .collect()
}

/// A token before a text and one behind it. Of two texts BERT has the first token once, and says which of them a token is of; RoBERTa has
/// the last token twice between them (`twice`), and does not say.
fn around((first, first_id): (&str, u32), (last, last_id): (&str, u32), twice: bool) -> Value {
    let second = u32::from(!twice);
    let token = |text: &str, of: u32| json!({ "SpecialToken": { "id": text, "type_id": of } });
    let text = |name: &str, of: u32| json!({ "Sequence": { "id": name, "type_id": of } });
    let single = vec![token(first, 0), text("A", 0), token(last, 0)];
    let more = [text("B", second), token(last, second)];
    let between = twice.then(|| token(last, 0));
    let pair: Vec<Value> = single.iter().cloned().chain(between).chain(more).collect();
    let special = |text: &str, id: u32| json!({ "id": text, "ids": [id], "tokens": [text] });
    json!({
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": { first: special(first, first_id), last: special(last, last_id) },
    })
}
