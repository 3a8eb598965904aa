//! The tokenizer in the metadata, written as the `tokenizer.json` that transformers would have, so that one reader, with
//! its limits, takes both.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::{Value, json};

use super::Metadata;
use super::encoders;
use super::pretokenizer::{Bos, Letters, Pre};
use super::vocabulary::{Model, TokenKind, Vocabulary};
use crate::error::Result;
use crate::json::quote;
use crate::text::{Tokenizer, around};

/// The longest token, in characters, that is taken apart into merges: SentencePiece's are at most 16 unless trained so.
const MAX_PIECE: usize = 256;
/// Merges of a vocabulary, the double of the largest published one's.
const MAX_MERGES: usize = 1 << 20;

impl Metadata {
    /// The tokenizer as the bytes of a `tokenizer.json`; nothing where the model has none.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for lists of unequal length, two tokens of one text, what is not UTF-8, and kinds of
    /// tokenizers that are not known. An id outside the vocabulary counts as none.
    pub fn tokenizer_json(&self) -> Result<Option<Vec<u8>>> {
        let Some(vocabulary) = Vocabulary::read(self)? else { return Ok(None) };
        match of_encoder(&vocabulary)? {
            Some(json) => Ok(Some(json)),
            None => Ok(Some(Lists::of(&vocabulary)?.json(&vocabulary))),
        }
    }

    /// The tokenizer, for a model whose embedding has `embedding_rows` rows; nothing where the model has none.
    ///
    /// # Errors
    /// As [`Self::tokenizer_json`] and [`Tokenizer::from_bytes`].
    pub fn tokenizer(&self, embedding_rows: usize) -> Result<Option<Tokenizer>> {
        let Some(vocabulary) = Vocabulary::read(self)? else { return Ok(None) };
        if let Some(json) = of_encoder(&vocabulary)? {
            return Tokenizer::from_bytes(self.path(), &json, embedding_rows).map(Some);
        }
        let Lists { mut head, merges } = Lists::of(&vocabulary)?;
        head += "\"vocab\":{},\"merges\":[]}}";
        let tokens = vocabulary.tokens.iter().map(AsRef::as_ref).zip(0..);
        Tokenizer::from_lists(self.path(), &head, tokens, &merges, embedding_rows).map(Some)
    }

    /// The texts that a chat template calls `bos_token`, `eos_token` and `unk_token`.
    ///
    /// # Errors
    /// As [`Self::tokenizer_json`].
    pub fn special_tokens(&self) -> Result<Vec<(&'static str, String)>> {
        let Some(vocabulary) = Vocabulary::read(self)? else { return Ok(Vec::new()) };
        let named =
            [("bos_token", vocabulary.bos), ("eos_token", vocabulary.eos), ("unk_token", vocabulary.unknown)];
        Ok(named.into_iter().filter_map(|(name, id)| Some((name, vocabulary.text(id?).to_owned()))).collect())
    }

    /// The chat template, and those with a name of their own.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for a value of another type.
    pub fn chat_templates(&self) -> Result<Vec<(String, &str)>> {
        const KEY: &str = "tokenizer.chat_template";
        let mut all = Vec::new();
        if let Some(source) = self.string(KEY)? {
            all.push(("default".to_owned(), source));
        }
        for name in self.strings("tokenizer.chat_templates")?.into_iter().flatten().take(16) {
            let name = String::from_utf8_lossy(name);
            if let Some(source) = self.string(&format!("{KEY}.{name}"))? {
                all.push((name.into_owned(), source));
            }
        }
        Ok(all)
    }
}

/// The `tokenizer.json` of a model that has no merges.
fn of_encoder(vocabulary: &Vocabulary<'_>) -> Result<Option<Vec<u8>>> {
    match vocabulary.model {
        Model::Merges | Model::Sentences => Ok(None),
        Model::Words => {
            vocabulary.check_unique()?;
            encoders::words(vocabulary).map(Some)
        }
        Model::Scored => {
            vocabulary.check_unique()?;
            encoders::scored(vocabulary).map(Some)
        }
    }
}

/// A `tokenizer.json` up to the model's two long lists, and the merges.
struct Lists<'a> {
    head: String,
    merges: Vec<(&'a str, &'a str)>,
}

impl<'a> Lists<'a> {
    fn of(vocabulary: &'a Vocabulary<'_>) -> Result<Self> {
        vocabulary.check_unique()?;
        match vocabulary.model {
            Model::Merges => listed(vocabulary),
            Model::Sentences | Model::Words | Model::Scored => sentences(vocabulary),
        }
    }

    /// The whole file.
    fn json(self, vocabulary: &Vocabulary<'_>) -> Vec<u8> {
        // The lists are written by themselves: as values they would take ten times their text.
        let mut out = self.head;
        out += "\"vocab\":{";
        for (id, token) in vocabulary.tokens.iter().enumerate() {
            out += if id == 0 { "" } else { "," };
            out += &format!("{}:{id}", Value::from(token.as_ref()));
        }
        out += "},\"merges\":[";
        for (i, (left, right)) in self.merges.iter().enumerate() {
            out += if i == 0 { "" } else { "," };
            out += &format!("[{},{}]", Value::from(*left), Value::from(*right));
        }
        out += "]}}";
        out.into_bytes()
    }
}

/// A tokenizer whose merges the file lists.
fn listed<'a>(vocabulary: &'a Vocabulary<'_>) -> Result<Lists<'a>> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let metadata = vocabulary.metadata;
    let pre = Pre::of(metadata)?;
    let list = metadata.strings(MERGES)?.ok_or_else(|| metadata.refuse(MERGES, "a list of strings"))?;
    let mut merges = Vec::with_capacity(list.len().min(1 << 20));
    for (i, merge) in list.enumerate() {
        // A token may begin with a space, and then has more to it.
        let pair = std::str::from_utf8(merge).ok().and_then(|merge| {
            let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ')?.0;
            Some((&merge[..at], &merge[at + 1..]))
        });
        let pair = pair.ok_or_else(|| {
            let got = quote(&String::from_utf8_lossy(merge));
            metadata.error(&format!("{MERGES}[{i}]"), got, "two tokens with a space between them")
        })?;
        merges.push(pair);
    }
    let split = |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let mut steps: Vec<Value> = pre.splits.iter().map(split).collect();
    if pre.letters == Letters::Bytes {
        steps.push(
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
        );
    }
    let pre_tokenizer = json!({"type": "Sequence", "pretokenizers": steps});
    let parts = match pre.letters {
        Letters::Bytes => Parts {
            normalizer: if pre.nfc { json!({"type": "NFC"}) } else { Value::Null },
            pre_tokenizer,
            decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
            options: json!({"unk_token": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.ignore_merges}),
            bos: pre.bos,
        },
        Letters::Text => Parts {
            normalizer: spaces(),
            pre_tokenizer,
            decoder: text_decoder(false),
            options: text_options(vocabulary, pre.ignore_merges),
            bos: pre.bos,
        },
    };
    Ok(Lists { head: parts.head(vocabulary)?, merges })
}

/// SentencePiece's tokenizers.
fn sentences<'a>(vocabulary: &'a Vocabulary<'_>) -> Result<Lists<'a>> {
    let prefix = vocabulary.metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let parts = Parts {
        normalizer: match prefix {
            true => {
                json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces()]})
            }
            false => spaces(),
        },
        pre_tokenizer: Value::Null,
        decoder: text_decoder(prefix),
        options: text_options(vocabulary, false),
        bos: Bos::Usual,
    };
    Ok(Lists { head: parts.head(vocabulary)?, merges: merges_by_score(vocabulary)? })
}

/// Spaces as tokens have them that are written in the text's own characters.
fn spaces() -> Value {
    json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
}

/// Such tokens as text; `strip` takes the space from its beginning.
fn text_decoder(strip: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strip {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

/// Options of their model: what no token has is written in bytes.
fn text_options(vocabulary: &Vocabulary<'_>, ignore_merges: bool) -> Value {
    let unknown = vocabulary.unknown.map(|id| vocabulary.text(id));
    json!({"unk_token": unknown, "fuse_unk": true, "byte_fallback": true, "ignore_merges": ignore_merges})
}

/// The merges that lead to each token, the best score first: transformers' `generate_merges`.
fn merges_by_score<'a>(vocabulary: &'a Vocabulary<'_>) -> Result<Vec<(&'a str, &'a str)>> {
    struct Merge<'a> {
        score: f32,
        lengths: (usize, usize),
        pair: (&'a str, &'a str),
    }
    let scores = vocabulary.scores()?;
    let merges_to = |kind| matches!(kind, TokenKind::Normal | TokenKind::UserDefined);
    let usable = || {
        let tokens = vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate();
        tokens.filter(|(_, (_, kind))| merges_to(**kind)).map(|(id, (token, _))| (id, token.as_ref()))
    };
    let ids: HashMap<&str, usize> = usable().map(|(id, token)| (token, id)).collect();
    let mut merges: Vec<Merge<'_>> = Vec::new();
    for (id, token) in usable() {
        let length = token.chars().take(MAX_PIECE + 1).count();
        if length > MAX_PIECE {
            let expected = format!("at most {MAX_PIECE} characters");
            return Err(vocabulary.metadata.error(
                &format!("tokenizer.ggml.tokens[{id}]"),
                quote(token),
                expected,
            ));
        }
        let mut local: Vec<((usize, usize), Merge<'_>)> = Vec::new();
        for (left, (at, _)) in token.char_indices().enumerate().skip(1) {
            let pair = token.split_at(at);
            if let (Some(&a), Some(&b)) = (ids.get(pair.0), ids.get(pair.1)) {
                let lengths = (left, length - left);
                local.push(((a, b), Merge { score: scores[id], lengths, pair }));
            }
        }
        local.sort_by_key(|(ids, _)| *ids);
        if merges.len() + local.len() > MAX_MERGES {
            let expected = format!("tokens that merge in at most {MAX_MERGES} ways");
            return Err(vocabulary.metadata.refuse("tokenizer.ggml.tokens", expected));
        }
        merges.extend(local.into_iter().map(|(_, merge)| merge));
    }
    let by_score = |a: &Merge<'_>, b: &Merge<'_>| b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
    merges.sort_by(|a, b| by_score(a, b).then(b.lengths.cmp(&a.lengths)));
    Ok(merges.into_iter().map(|merge| merge.pair).collect())
}

/// What differs between kinds of tokenizers.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    /// Of the model.
    options: Value,
    bos: Bos,
}

impl Parts {
    /// The `tokenizer.json` up to the vocabulary and the merges, which are to follow.
    fn head(self, vocabulary: &Vocabulary<'_>) -> Result<String> {
        let mut model = json!({"type": "BPE", "dropout": null, "continuing_subword_prefix": null, "end_of_word_suffix": null});
        if let (Value::Object(model), Value::Object(options)) = (&mut model, self.options) {
            model.extend(options);
        }
        let head = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added(vocabulary, self.normalizer == spaces())?,
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": ends(vocabulary, self.bos)?,
            "decoder": self.decoder,
        });
        let mut out = head.to_string();
        out.pop();
        out += ",\"model\":";
        out += &model.to_string();
        out.pop();
        out += ",";
        Ok(out)
    }
}

/// The tokens that are found in texts before anything else. Converters write spaces into those of Gemma that have `▁`, so that one
/// is found by either where a text's own spaces are made `▁` and `spaced` says that nothing else is.
fn added(vocabulary: &Vocabulary<'_>, spaced: bool) -> Result<Vec<Value>> {
    // Phi 3's special tokens take the spaces after them, all but these; the format has no place to say so.
    let phi3 = vocabulary.model == Model::Sentences
        && matches!(vocabulary.metadata.string("general.architecture"), Ok(Some("phi3")));
    let rstrip = |token: &str| phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&token);
    let tokens = vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate();
    Ok(tokens
        .filter_map(|(id, (token, kind))| {
            let special = match kind {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => return None,
            };
            Some(json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": special && rstrip(token),
                "normalized": spaced && !special && token.contains(' '),
                "special": special,
            }))
        })
        .collect())
}

/// BOS and EOS around a text.
fn ends(vocabulary: &Vocabulary<'_>, bos: Bos) -> Result<Value> {
    let metadata = vocabulary.metadata;
    let wanted = |role: &str, absent: bool, id: Option<u32>| {
        let key = format!("tokenizer.ggml.add_{role}_token");
        match (metadata.flag(&key)?.unwrap_or(absent), id) {
            (true, Some(id)) => Ok(Some(id)),
            // One that the vocabulary does not have is warned of elsewhere.
            (true, None)
                if metadata.has(&key) && !metadata.has(&format!("tokenizer.ggml.{role}_token_id")) =>
            {
                Err(metadata.refuse(&key, "false: the file names no such token"))
            }
            _ => Ok(None),
        }
    };
    let asked = wanted("bos", bos != Bos::Asked, vocabulary.bos)?;
    let bos = if bos == Bos::Always { vocabulary.bos } else { asked };
    let eos = wanted("eos", false, vocabulary.eos)?;
    if bos.is_none() && eos.is_none() {
        return Ok(Value::Null);
    }
    let named = |id: u32| (vocabulary.text(id), id);
    Ok(around(bos.map(named), eos.map(named)))
}
