//! The vocabulary in the metadata: tokens, their kinds and scores, and the tokens with a role.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::Metadata;
use crate::error::Result;
use crate::json::quote;

/// Tokens of one vocabulary, the double of the largest published one. With it, a hostile list costs less than 64 MiB.
const MAX_TOKENS: usize = 1 << 19;

/// Texts that end a turn or a text in some family, of which `eos_token_id` can name only one. As llama.cpp has them.
const ENDS: [&str; 22] = [
    END,
    SENTENCE_END,
    "<|eot_id|>",
    "<|im_end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];
/// Ends a turn, or, beside what ends one, only a part of it.
const END: &str = "<|end|>";
/// Ends a text, or is a tag of HTML.
const SENTENCE_END: &str = "</s>";
/// Texts that begin the parts of a turn.
const MARKS: [&str; 4] = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"];

/// A token of models that fill in code. Where no key names it, its text tells it.
struct Fill {
    keys: &'static [&'static str],
    texts: &'static [&'static str],
    /// Whether a text ends with it.
    ends: bool,
}

static FILLS: [Fill; 6] = [
    Fill {
        keys: &["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
        texts: &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        ends: false,
    },
    Fill {
        keys: &["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
        texts: &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        ends: false,
    },
    Fill {
        keys: &["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
        texts: &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        ends: false,
    },
    Fill {
        keys: &["tokenizer.ggml.fim_pad_token_id"],
        texts: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        ends: true,
    },
    Fill {
        keys: &["tokenizer.ggml.fim_rep_token_id"],
        texts: &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
        ends: true,
    },
    Fill { keys: &["tokenizer.ggml.fim_sep_token_id"], texts: &["<|file_sep|>"], ends: true },
];

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";

/// How texts become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    /// `gpt2`, `gemma4`: merges that the file lists.
    Merges,
    /// `llama`: SentencePiece, merges by score.
    Sentences,
    /// `bert`: pieces of words, the longest first.
    Words,
    /// `t5`: SentencePiece, the pieces of the best sum of scores.
    Scored,
}

impl Model {
    /// That of a model; nothing where it has no tokenizer.
    pub fn of(metadata: &Metadata) -> Result<Option<Self>> {
        Ok(match metadata.string(MODEL)? {
            None | Some("none" | "no_vocab") => None,
            Some("gpt2" | "gemma4") => Some(Self::Merges),
            Some("llama") => Some(Self::Sentences),
            Some("bert") => Some(Self::Words),
            Some("t5") => Some(Self::Scored),
            Some(_) => return Err(metadata.refuse(MODEL, "gpt2, gemma4, llama, bert, t5 or none")),
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
    /// The tokens that end a turn or a text, `eos` first.
    ends: Vec<u32>,
    /// What the file says and is not followed.
    doubts: Vec<String>,
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
        let kinds = kinds(metadata, count)?;
        let mut this = Self {
            metadata,
            model,
            tokens,
            kinds,
            bos: None,
            eos: None,
            unknown: None,
            ends: Vec::new(),
            doubts: Vec::new(),
        };
        this.bos = this.named(BOS)?;
        this.eos = this.named(EOS)?;
        this.unknown = this.named("tokenizer.ggml.unknown_token_id")?;
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
        this.find_roles()?;
        Ok(Some(this))
    }

    /// The token that a key names.
    fn named(&mut self, key: &str) -> Result<Option<u32>> {
        named(self.metadata, key, self.tokens.len() as u64, &mut self.doubts)
    }

    /// Finds the tokens that end a turn or a text, and those that are control tokens by their texts, whatever the list of
    /// types says: converters forget some.
    fn find_roles(&mut self) -> Result<()> {
        let found = self.known_texts();
        let mut controls: Vec<u32> = MARKS.iter().filter_map(|text| found.get(text).copied()).collect();
        self.ends.extend(self.eos);
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            let id = self.named(key)?;
            self.ends.extend(id);
        }
        for fill in &FILLS {
            let mut id = None;
            for key in fill.keys {
                id = self.named(key)?.or(id);
            }
            if id.is_none() {
                id = fill.texts.iter().find_map(|text| found.get(text).copied());
                controls.extend(id);
            }
            if fill.ends {
                self.ends.extend(id);
            }
        }
        // Read for their warnings alone; spelt as the format spells them.
        for key in ["padding", "seperator", "mask"] {
            self.named(&format!("tokenizer.ggml.{key}_token_id"))?;
        }
        let mut by_text: Vec<u32> = ENDS.iter().filter_map(|text| found.get(text).copied()).collect();
        by_text.sort_unstable();
        self.ends.extend(&by_text);
        controls.extend(by_text);

        let has = |text: &str| found.contains_key(text);
        let calls = has("<|call|>") || has("<|calls|>");
        if let Some(&end) = found.get(END)
            && calls
            && (has("<|return|>") || has("<|flush|>"))
        {
            self.ends.retain(|&id| id != end);
        }
        let tags = has("<|tool_response>") || self.ends.iter().any(|&id| self.text(id) == "<|plamo:eos|>");
        if let Some(&tag) = found.get(SENTENCE_END)
            && tags
        {
            self.ends.retain(|&id| id != tag);
            controls.retain(|&id| id != tag);
            self.kinds[tag as usize] = TokenKind::Normal;
        }
        let mut seen = HashSet::new();
        self.ends.retain(|&id| seen.insert(id));
        self.mark(&controls);
        Ok(())
    }

    /// The ids of the texts that have a meaning of their own.
    fn known_texts(&self) -> HashMap<&'static str, u32> {
        let fills = FILLS.iter().flat_map(|fill| fill.texts);
        let known: HashSet<&'static str> = ENDS.iter().chain(&MARKS).chain(fills).copied().collect();
        let tokens = self.tokens.iter().zip(0_u32..);
        tokens.filter_map(|(token, id)| Some((*known.get(&**token)?, id))).collect()
    }

    /// Makes control tokens of those that are not.
    fn mark(&mut self, controls: &[u32]) {
        let mut marked = Vec::new();
        for &id in controls {
            let kind = &mut self.kinds[id as usize];
            if !matches!(*kind, TokenKind::Control | TokenKind::Unknown) {
                *kind = TokenKind::Control;
                marked.push(quote(&self.tokens[id as usize]));
            }
        }
        if !marked.is_empty() {
            let tokens = marked.join(", ");
            self.doubts.push(format!("{TYPES} has no control token in {tokens}, which are taken as such"));
        }
    }

    /// The token before a text of an encoder; llama.cpp's where the file does not say.
    pub fn first(&self) -> Result<u32> {
        let usual = if self.model == Model::Words { 101 } else { 0 };
        self.role(&["tokenizer.ggml.cls_token_id", BOS], usual)
    }

    /// The token behind one.
    pub fn last(&self) -> Result<u32> {
        match self.model {
            Model::Words => self.role(&["tokenizer.ggml.seperator_token_id"], 102),
            _ => self.role(&[EOS, "tokenizer.ggml.seperator_token_id"], 2),
        }
    }

    /// The token of words that have no pieces.
    pub fn unknown_word(&self) -> Result<u32> {
        self.role(&["tokenizer.ggml.unknown_token_id"], 100)
    }

    /// The token that the first of some keys names, where one does.
    fn role(&self, keys: &[&str], usual: u32) -> Result<u32> {
        let count = self.tokens.len() as u64;
        for key in keys {
            if let Some(id) = named(self.metadata, key, count, &mut Vec::new())? {
                return Ok(id);
            }
        }
        if u64::from(usual) < count {
            return Ok(usual);
        }
        Err(self.metadata.refuse(keys[0], format!("an id below {count}")))
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

/// The token that a key names. An id at or past `count` counts as none, as in llama.cpp: files have -1 for it.
fn named(metadata: &Metadata, key: &str, count: u64, doubts: &mut Vec<String>) -> Result<Option<u32>> {
    let id = metadata.uint(key)?;
    if let Some(id) = id.filter(|&id| id >= count) {
        doubts.push(format!(
            "{key} is {id}, expected an id below {count}, the tokens of the vocabulary: ignored"
        ));
        return Ok(None);
    }
    Ok(id.map(|id| id as u32))
}

/// The token that starts a text, and those that end one; `rows` is the length of the embedding. Warns of what the file says
/// and is not followed.
pub(crate) fn ends(metadata: &Metadata, rows: u64) -> Result<(Option<u32>, Vec<u32>)> {
    let (bos, ends, mut doubts) = match Vocabulary::read(metadata)? {
        Some(vocabulary) => {
            if vocabulary.tokens.len() as u64 > rows {
                let expected = format!("at most {rows}, the rows of token_embd.weight");
                return Err(metadata.refuse(TOKENS, expected));
            }
            (vocabulary.bos, vocabulary.ends, vocabulary.doubts)
        }
        None => {
            let mut doubts = Vec::new();
            let bos = named(metadata, BOS, rows, &mut doubts)?;
            let eos = named(metadata, EOS, rows, &mut doubts)?;
            (bos, eos.into_iter().collect(), doubts)
        }
    };
    if metadata.string(MODEL)? == Some("gpt2") && !metadata.has(PRE) {
        doubts.push(format!(
            "{PRE} is missing: texts are split as by default, which few models were trained with"
        ));
    }
    for doubt in doubts {
        tracing::warn!("{}: {doubt}", metadata.path().display());
    }
    Ok((bos, ends))
}
