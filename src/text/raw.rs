//! `tokenizer.json` as it is read beside the library: what has to be checked, and the long lists, which the library would
//! turn into ten times their text.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::growth::{self, Growth};
use crate::json::strict_member;

/// The file; `truncation` and `padding` are not read, so that no prompt is cut silently.
#[derive(Deserialize)]
pub(super) struct File<'a> {
    #[serde(borrow, default)]
    pub(super) version: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) added_tokens: Vec<Added<'a>>,
    #[serde(borrow)]
    pub(super) model: Model<'a>,
    #[serde(default, deserialize_with = "strict_member")]
    pub(super) normalizer: Value,
    #[serde(default, deserialize_with = "strict_member")]
    pub(super) pre_tokenizer: Value,
    #[serde(default, deserialize_with = "strict_member")]
    pub(super) post_processor: Value,
    #[serde(default, deserialize_with = "strict_member")]
    pub(super) decoder: Value,
}

/// A token added to the vocabulary.
#[derive(Deserialize)]
pub(super) struct Added<'a> {
    pub(super) id: u32,
    #[serde(borrow)]
    pub(super) content: Cow<'a, str>,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    pub(super) normalized: bool,
    pub(super) special: bool,
}

impl File<'_> {
    /// Whether the model is made from its lists; the library reads any other.
    pub(super) fn is_byte_pairs(&self) -> bool {
        self.model.kind.as_deref() == Some("BPE") && self.model.merges.is_some()
    }

    /// Bounds what the steps make of a text.
    pub(super) fn growth(&self) -> Result<Growth, String> {
        growth::check_word(self.model.max_input_chars_per_word)?;
        growth::bound([&self.normalizer, &self.pre_tokenizer, &self.post_processor, &self.decoder])
    }
}

/// Makes a pre-tokenizer that puts a space before a text's first word put none anywhere: for text that follows other text.
/// Whether there was one.
pub(super) fn prefix_nowhere(json: &mut Value) -> bool {
    let mut changed = false;
    if json["prepend_scheme"] == "first" {
        json["prepend_scheme"] = "never".into();
        changed = true;
    }
    for step in json.get_mut("pretokenizers").and_then(Value::as_array_mut).into_iter().flatten() {
        changed |= prefix_nowhere(step);
    }
    changed
}

#[derive(Deserialize)]
pub(super) struct Model<'a> {
    #[serde(borrow, default, rename = "type")]
    pub(super) kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) vocab: Vocab<'a>,
    #[serde(borrow, default)]
    pub(super) merges: Option<Merges<'a>>,
    #[serde(default)]
    pub(super) dropout: Option<f32>,
    #[serde(default)]
    pub(super) unk_token: Option<String>,
    #[serde(default)]
    pub(super) continuing_subword_prefix: Option<String>,
    #[serde(default)]
    pub(super) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) fuse_unk: Option<bool>,
    #[serde(default)]
    pub(super) byte_fallback: Option<bool>,
    #[serde(default)]
    pub(super) ignore_merges: Option<bool>,
    #[serde(default)]
    max_input_chars_per_word: Option<u64>,
}

impl Model<'_> {
    /// Whether it is WordPiece's, which some old files do not name.
    pub(super) fn is_word_pieces(&self) -> bool {
        match self.kind.as_deref() {
            Some(kind) => kind == "WordPiece",
            None => self.max_input_chars_per_word.is_some(),
        }
    }
}

/// A text, in the file where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Tokens with their ids: a map, or (Unigram) a list of `[token, score]` whose indices are the ids.
pub(super) struct Vocab<'a>(pub(super) Vec<(Cow<'a, str>, u64)>);

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocab<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map of tokens to ids, or a list of tokens with scores")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some((Text(token), id)) = map.next_entry::<Text<'de>, u64>()? {
                    all.push((token, id));
                }
                Ok(Vocab(all))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some((Text(token), _)) = seq.next_element::<(Text<'de>, f64)>()? {
                    all.push((token, all.len() as u64));
                }
                Ok(Vocab(all))
            }
        }
        deserializer.deserialize_any(Tokens)
    }
}

/// A merge of two tokens.
pub(super) type Merge<'a> = (Cow<'a, str>, Cow<'a, str>);

/// Merges, the first to be made first: pairs, or in older files texts with a space between the two.
pub(super) struct Merges<'a>(pub(super) Vec<Merge<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Merges<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair<'a>(Option<Merge<'a>>);
        struct OfPair;
        impl<'de: 'a, 'a> Deserialize<'de> for Pair<'a> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(OfPair)
            }
        }
        impl<'de> Visitor<'de> for OfPair {
            type Value = Pair<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("two tokens")
            }
            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                if text.starts_with("#version") {
                    return Ok(Pair(None));
                }
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => {
                        Ok(Pair(Some((left.into(), right.into()))))
                    }
                    _ => {
                        Err(E::custom(format!("merge {text:?} is not two tokens with a space between them")))
                    }
                }
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
                let Pair(pair) = OfPair.visit_borrowed_str(text)?;
                Ok(Pair(pair.map(|(left, right)| (owned(left), owned(right)))))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut next = || seq.next_element::<Text<'de>>();
                match (next()?, next()?, next()?) {
                    (Some(Text(left)), Some(Text(right)), None) => Ok(Pair(Some((left, right)))),
                    _ => Err(A::Error::custom("a merge is not two tokens")),
                }
            }
        }
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Merges<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of merges")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(Pair(pair)) = seq.next_element::<Pair<'de>>()? {
                    all.extend(pair);
                }
                Ok(Merges(all))
            }
        }
        deserializer.deserialize_seq(All)
    }
}

/// How tokens become text; the kinds whose bytes can be told token by token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Decoder {
    /// GPT-2's bytes written as characters.
    ByteLevel,
    /// SentencePiece: `▁` is a space, `<0x0A>` a byte, and `strip` spaces go from the beginning of the text.
    Sentence { strip: usize },
    /// Anything else: the library decodes a window of tokens.
    Other,
}

impl Decoder {
    pub(super) fn from_json(json: &Value) -> Self {
        let kind = |v: &Value| v["type"].as_str().unwrap_or_default().to_owned();
        match kind(json).as_str() {
            "ByteLevel" => return Self::ByteLevel,
            "Sequence" => {}
            _ => return Self::Other,
        }
        let empty = Vec::new();
        let steps = json["decoders"].as_array().unwrap_or(&empty);
        if let [only] = &steps[..] {
            return Self::from_json(only);
        }
        let [replace, bytes, fuse, rest @ ..] = &steps[..] else { return Self::Other };
        let spaces = replace["pattern"]["String"] == "▁" && replace["content"] == " ";
        let names = (kind(replace), kind(bytes), kind(fuse));
        if !spaces || names != ("Replace".into(), "ByteFallback".into(), "Fuse".into()) {
            return Self::Other;
        }
        match rest {
            [] => Self::Sentence { strip: 0 },
            [s] if kind(s) == "Strip" && s["content"] == " " && s["stop"] == 0 => {
                s["start"].as_u64().map_or(Self::Other, |n| Self::Sentence { strip: n as usize })
            }
            _ => Self::Other,
        }
    }

    /// The bytes of one token's text.
    pub(super) fn bytes(&self, token: &str) -> Vec<u8> {
        if let Self::ByteLevel = self {
            let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
            return bytes.unwrap_or_else(|| token.as_bytes().to_vec());
        }
        let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
        let hex = hex.filter(|t| t.len() == 2 && t.bytes().all(|b| b.is_ascii_hexdigit()));
        if let Some(byte) = hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            return vec![byte];
        }
        token.replace('▁', " ").into_bytes()
    }
}

/// GPT-2's `bytes_to_unicode`, backwards: printable Latin-1 stands for itself, the other 68 bytes follow from U+0100.
fn byte_of_char(c: char) -> Option<u8> {
    let code = c as u32;
    let itself = |b: u32| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    if itself(code) {
        return Some(code as u8);
    }
    let index = code.checked_sub(0x100)? as usize;
    (0..=255u32).filter(|&b| !itself(b)).nth(index).map(|b| b as u8)
}
