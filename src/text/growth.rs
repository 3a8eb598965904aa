//! How much longer the steps of a `tokenizer.json` can make a text, counted before any of them runs. A kind whose growth is
//! not known is refused by its name.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::steps::{flat, kind};

/// How many times longer what a file writes out may make a text; `▁` for a space is 3.
const MAX_GROWTH: usize = 64;
/// How many times longer all steps may make a text that is encoded: precompiled characters with `▁` for spaces make 264. The
/// length of the text is bounded by this product.
const MAX_PRODUCT: usize = 1024;
/// How many tokens may be put around a text.
const MAX_ADDED: usize = 256;
/// The characters of a word that WordPiece looks for tokens in, which takes the square of them; published files have 100.
const MAX_WORD: u64 = 1000;

/// Bounds of what comes out of a tokenizer's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Growth {
    /// Bytes for a byte of a text that is encoded.
    pub encoded: usize,
    /// Bytes for a byte of the tokens that are decoded.
    pub decoded: usize,
}

/// Bounds the steps of a file.
///
/// # Errors
/// What has no bound, or one that is too large, with the name of its field.
pub(super) fn bound(
    [normalizer, pre_tokenizer, post_processor, decoder]: [&Value; 4],
) -> Result<Growth, String> {
    let limited = |what: &str, growth: Result<usize, String>, most: usize| match growth {
        Ok(growth) if growth <= most => Ok(growth),
        Ok(growth) => Err(format!("{what}: a text could get {growth} times longer, at most {most}")),
        Err(why) => Err(format!("{what}: {why}")),
    };
    limited("normalizer", product(normalizer, "normalizers", written), MAX_GROWTH)?;
    let normalized = limited("normalizer", product(normalizer, "normalizers", normalized), MAX_PRODUCT)?;
    let cut = limited("pre_tokenizer", product(pre_tokenizer, "pretokenizers", cut), MAX_PRODUCT)?;
    let encoded = limited("pre_tokenizer", Ok(normalized.saturating_mul(cut)), MAX_PRODUCT)?;
    let decoded = limited("decoder", product(decoder, "decoders", decoded), MAX_GROWTH)?;
    added(post_processor).map_err(|why| format!("post_processor: {why}"))?;
    Ok(Growth { encoded, decoded })
}

/// Bounds the work of a model beside its vocabulary.
///
/// # Errors
/// A WordPiece model that looks for tokens in words too long.
pub(super) fn check_word(max_chars: Option<u64>) -> Result<(), String> {
    match max_chars {
        Some(chars) if chars > MAX_WORD => {
            Err(format!("model.max_input_chars_per_word is {chars}, expected at most {MAX_WORD}"))
        }
        _ => Ok(()),
    }
}

fn product(json: &Value, list: &str, of: fn(&Value) -> Result<usize, String>) -> Result<usize, String> {
    flat(json, list)?
        .into_iter()
        .map(of)
        .try_fold(1, |product: usize, step| Ok(product.saturating_mul(step?)))
}

fn unknown(step: &Value) -> Result<usize, String> {
    let name: String = kind(step)?.chars().take(40).collect();
    Err(format!("{name:?} is no kind whose growth is known"))
}

/// What replacing a text or what a pattern matches makes of a byte.
fn replaced(step: &Value) -> Result<usize, String> {
    let content = step["content"].as_str().ok_or("Replace: expected content")?.len();
    Ok(match step["pattern"]["String"].as_str() {
        Some(pattern) if !pattern.is_empty() => content.div_ceil(pattern.len()).max(1),
        // A pattern may match nothing, before every character.
        _ => content.saturating_add(1),
    })
}

/// Of steps whose texts the file has.
fn written(step: &Value) -> Result<usize, String> {
    match kind(step)? {
        "Prepend" | "Replace" => normalized(step),
        _ => Ok(1),
    }
}

/// Factors are those of UTF-8: <https://www.unicode.org/faq/normalization.html> has the normal forms'.
fn normalized(step: &Value) -> Result<usize, String> {
    Ok(match kind(step)? {
        "NFC" | "NFD" => 3,
        "NFKC" | "NFKD" => 11,
        "Strip" | "StripAccents" | "Nmt" => 1,
        "Lowercase" | "ByteLevel" => 2,
        // Spaces around a character of three bytes, NFD, lower case.
        "BertNormalizer" => 2 * 3 * 2,
        // Once for each part of a text between added tokens, which may be of a byte.
        "Prepend" => step["prepend"].as_str().ok_or("Prepend: expected prepend")?.len().saturating_add(1),
        "Replace" => replaced(step)?,
        "Precompiled" => precompiled(step["precompiled_charsmap"].as_str().unwrap_or_default())?,
        _ => return unknown(step),
    })
}

/// The longest of the texts that a table of SentencePiece has for a character: behind the length of its trie and the trie,
/// texts that end with a zero byte.
fn precompiled(base64: &str) -> Result<usize, String> {
    let bytes = STANDARD.decode(base64).map_err(|e| format!("Precompiled: {e}"))?;
    let length = bytes.first_chunk().map(|chunk| u32::from_le_bytes(*chunk) as usize);
    let texts =
        length.and_then(|length| bytes.get(length.checked_add(4)?..)).ok_or("Precompiled: no table")?;
    Ok(texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1))
}

fn cut(step: &Value) -> Result<usize, String> {
    Ok(match kind(step)? {
        // A character for a byte, in up to two bytes; a space before each piece.
        "ByteLevel" => 2 * if step["add_prefix_space"] == false { 1 } else { 2 },
        // A character for a space, and one before each piece.
        "Metaspace" => 1 + step["replacement"].as_str().map_or(4, str::len),
        "BertPreTokenizer" | "CharDelimiterSplit" | "Delimiter" | "Digits" | "FixedLength"
        | "Punctuation" | "Split" | "UnicodeScripts" | "Whitespace" | "WhitespaceSplit" => 1,
        _ => return unknown(step),
    })
}

fn decoded(step: &Value) -> Result<usize, String> {
    Ok(match kind(step)? {
        "ByteLevel" | "ByteFallback" | "Fuse" | "Strip" => 1,
        // A space before each token, or for a suffix, which may be nothing before each character.
        "BPEDecoder" | "CTC" | "Metaspace" | "WordPiece" => 3,
        "Replace" if step["pattern"]["Regex"].is_string() => {
            return Err("Replace by a Regex is not supported in a decoder".into());
        }
        "Replace" => replaced(step)?,
        _ => return unknown(step),
    })
}

/// Refuses post-processors that repeat a text, or add many tokens to it.
fn added(json: &Value) -> Result<(), String> {
    let (mut tokens, mut copies) = (0_usize, 1_usize);
    for step in flat(json, "processors")? {
        match kind(step)? {
            "ByteLevel" => {}
            "BertProcessing" | "RobertaProcessing" => tokens = tokens.saturating_add(2),
            "TemplateProcessing" => {
                let [single, pair] = ["single", "pair"].map(|template| of_template(step, template));
                tokens = tokens.saturating_add(single.0.max(pair.0));
                copies = copies.saturating_mul(single.1.max(pair.1).max(1));
            }
            _ => return unknown(step).map(|_| ()),
        }
    }
    if copies > 1 {
        return Err(format!("it repeats a text {copies} times, expected once"));
    }
    if tokens > MAX_ADDED {
        return Err(format!("it adds {tokens} tokens to a text, at most {MAX_ADDED}"));
    }
    Ok(())
}

/// Tokens that a template puts around its texts, and how often it has one of them, at most.
fn of_template(step: &Value, template: &str) -> (usize, usize) {
    let (mut tokens, mut texts) = (0_usize, [0_usize; 2]);
    for piece in step[template].as_array().into_iter().flatten() {
        if let Some(sequence) = piece.get("Sequence") {
            texts[usize::from(sequence["id"] == "B")] += 1;
        }
        let ids = piece["SpecialToken"]["id"].as_str().map(|id| &step["special_tokens"][id]["ids"]);
        tokens = tokens.saturating_add(ids.and_then(Value::as_array).map_or(0, Vec::len));
    }
    (tokens, texts[0].max(texts[1]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(
        normalizer: Value,
        pre_tokenizer: Value,
        post_processor: Value,
        decoder: Value,
    ) -> Result<Growth, String> {
        bound([&normalizer, &pre_tokenizer, &post_processor, &decoder])
    }

    #[test]
    fn growth_is_a_product() {
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let sequence = json!({"type": "Sequence", "normalizers": [prepend, replace]});
        let growth = of(sequence, Value::Null, Value::Null, json!({"type": "Fuse"})).unwrap();
        assert_eq!(growth, Growth { encoded: 12, decoded: 1 });
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false});
        let growth = of(json!({"type": "NFC"}), bytes, Value::Null, Value::Null).unwrap();
        assert_eq!(growth, Growth { encoded: 6, decoded: 1 });
        // A trie of four bytes, then the texts "ab" and "abcde".
        let table = "BAAAAAAAAABhYgBhYmNkZQA=";
        let table = json!({"type": "Precompiled", "precompiled_charsmap": table});
        assert_eq!(of(table, Value::Null, Value::Null, Value::Null).unwrap().encoded, 5);
    }

    #[test]
    fn what_grows_too_much_is_refused() {
        let null = || Value::Null;
        let error = |got: Result<Growth, String>| got.unwrap_err();
        let prepend = json!({"type": "Prepend", "prepend": "x".repeat(5 << 20)});
        assert_eq!(
            error(of(prepend, null(), null(), null())),
            "normalizer: a text could get 5242881 times longer, at most 64"
        );
        let dots = json!({"type": "Replace", "pattern": {"Regex": "."}, "content": ".".repeat(9999)});
        let sequence = json!({"type": "Sequence", "decoders": vec![dots; 3]});
        assert_eq!(
            error(of(null(), null(), null(), sequence)),
            "decoder: Replace by a Regex is not supported in a decoder"
        );
        let dots = json!({"type": "Replace", "pattern": {"String": "."}, "content": ".".repeat(99)});
        let sequence = json!({"type": "Sequence", "decoders": vec![dots; 3]});
        assert_eq!(
            error(of(null(), null(), null(), sequence)),
            "decoder: a text could get 970299 times longer, at most 64"
        );
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false});
        let sequence = json!({"type": "Sequence", "pretokenizers": vec![bytes; 11]});
        assert_eq!(
            error(of(null(), sequence, null(), null())),
            "pre_tokenizer: a text could get 2048 times longer, at most 1024"
        );
        let other = json!({"type": "Reverse"});
        assert_eq!(
            error(of(null(), null(), null(), other)),
            "decoder: \"Reverse\" is no kind whose growth is known"
        );
        let steps = json!({"type": "Sequence", "normalizers": vec![json!({"type": "Strip"}); 65]});
        assert_eq!(error(of(steps, null(), null(), null())), "normalizer: over 64 steps");
        assert_eq!(
            check_word(Some(1 << 40)).unwrap_err(),
            "model.max_input_chars_per_word is 1099511627776, expected at most 1000"
        );
    }

    #[test]
    fn what_is_added_to_a_text_is_counted() {
        let around = |pieces: usize, ids: usize| {
            let piece = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
            let mut single = vec![piece; pieces];
            single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
            json!({"type": "TemplateProcessing", "single": single, "pair": [],
                "special_tokens": {"<s>": {"id": "<s>", "ids": vec![1; ids], "tokens": vec!["<s>"; ids]}}})
        };
        assert!(added(&around(2, 1)).is_ok());
        assert_eq!(added(&around(1000, 1000)).unwrap_err(), "it adds 1000000 tokens to a text, at most 256");
        let many = json!({"type": "Sequence", "processors": vec![around(5, 1); 60]});
        assert_eq!(added(&many).unwrap_err(), "it adds 300 tokens to a text, at most 256");
        let twice = json!({"type": "TemplateProcessing", "single": vec![json!({"Sequence": {"id": "A", "type_id": 0}}); 2]});
        assert_eq!(added(&twice).unwrap_err(), "it repeats a text 2 times, expected once");
        let pair = |ids: &[&str]| {
            let pieces: Vec<Value> =
                ids.iter().map(|id| json!({"Sequence": {"id": id, "type_id": 0}})).collect();
            json!({"type": "TemplateProcessing", "single": [], "pair": pieces})
        };
        assert!(added(&pair(&["A", "B"])).is_ok());
        let error = added(&pair(&["A", "B", "B", "B"])).unwrap_err();
        assert_eq!(error, "it repeats a text 3 times, expected once");
    }
}
