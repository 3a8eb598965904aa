//! SentencePiece's models: byte pairs merged by score, and unigrams.
//!
//! Its library normalizes a text, puts a space in front, finds user-defined pieces and then cuts the rest; the steps here are
//! the same, so that ids are the same. What would not be exactly the same is refused: a charsmap, which `tokenizers` has on
//! grapheme clusters, and unigrams over runs of spaces, whose cuts of one score fall otherwise where the other library rounds
//! to 24 bits.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use serde_json::{Value, json};

use super::merges::{self, MAX_PIECE};
use super::named::{Named, Token};
use super::proto::{Kind, Model, Piece};
use super::{Head, byte_pairs, ends, escape, split};
use crate::error::{Error, Result};
use crate::json::quote;
use crate::text::Tokenizer;

/// Classes of transformers that take the pieces as they are; T5's adds some.
const CLASSES: [&str; 7] = [
    "",
    "LlamaTokenizer",
    "CodeLlamaTokenizer",
    "GemmaTokenizer",
    "PreTrainedTokenizer",
    "TokenizersBackend",
    T5,
];
const T5: &str = "T5Tokenizer";
/// User-defined pieces that a pattern finds: it tries them one after the other.
const MAX_USER_DEFINED: usize = 256;

/// The two sides of each merge, the first one first.
type Merges<'a> = Vec<(&'a str, &'a str)>;

/// Makes the tokenizer of the file's `bytes`.
pub(super) fn load(path: &Path, bytes: &[u8], named: &Named, embedding_rows: usize) -> Result<Tokenizer> {
    let bad = |what: String| Error::format(path, what);
    let class = named.class();
    if !CLASSES.contains(&class) {
        return Err(named.refuse_class(path, &CLASSES));
    }
    let model = Model::read(bytes).map_err(|e| bad(e.trim_start_matches(": ").to_owned()))?;
    check(&model).map_err(bad)?;
    let (bos, eos) = (model.bos, model.eos);
    let extra = if class == T5 { named.count("extra_ids", 100, 1000)? } else { 0 };
    let vocabulary = Vocabulary::of(model, named, extra).map_err(bad)?;

    let mut named = named.clone();
    for (role, id) in [("bos_token", bos), ("eos_token", eos)] {
        let piece = usize::try_from(id).ok().and_then(|id| vocabulary.pieces.get(id));
        if let Some(piece) = piece.filter(|piece| piece.kind == Kind::Control) {
            named.add_role(role, &piece.text);
        }
    }
    let absent = [class != T5, class == T5];
    let [bos, eos] = named.ends(absent, |text| vocabulary.added_id(text))?;
    let post_processor = ends(bos, eos);
    let last = named.role("eos_token").and_then(|text| vocabulary.added_id(text));
    let legacy = named.flag("legacy", true)?;
    let tokenizer = match vocabulary.unigram {
        true => {
            let json = vocabulary.unigrams(legacy, post_processor).map_err(bad)?;
            Tokenizer::from_bytes(path, json.as_bytes(), embedding_rows)
        }
        false => {
            let (head, merges) = vocabulary.byte_pairs(legacy, post_processor).map_err(bad)?;
            let tokens = vocabulary.pieces.iter().map(|piece| &*piece.text).zip(0..);
            Tokenizer::from_lists(path, &head, tokens, &merges, embedding_rows)
        }
    };
    Ok(tokenizer?.ending_with(last))
}

/// Refuses what the steps here do not do.
fn check(model: &Model<'_>) -> Result<(), String> {
    if !matches!(model.kind, 1 | 2) {
        let kind = model.kind;
        return Err(format!("trainer_spec.model_type is {kind}, expected 1 (UNIGRAM) or 2 (BPE)"));
    }
    if model.whitespace_as_suffix {
        return Err("trainer_spec.treat_whitespace_as_suffix is true, which is not supported".into());
    }
    if !model.escape_whitespaces {
        return Err("normalizer_spec.escape_whitespaces is false, which is not supported".into());
    }
    if model.denormalizes {
        return Err("denormalizer_spec.precompiled_charsmap is there, which is not supported".into());
    }
    let exact =
        "which has no exact form here: a tokenizer.json made by transformers has what it is used with";
    if !model.charsmap.is_empty() {
        return Err(format!("normalizer_spec.precompiled_charsmap is there, {exact}"));
    }
    if model.kind == 1 && !model.remove_extra_whitespaces {
        return Err(format!(
            "normalizer_spec.remove_extra_whitespaces is false beside trainer_spec.model_type UNIGRAM, {exact}"
        ));
    }
    Ok(())
}

/// The pieces, and what is done to a text before it is cut into them.
struct Vocabulary<'a> {
    unigram: bool,
    byte_fallback: bool,
    prefix: bool,
    remove_extra_whitespaces: bool,
    pieces: Vec<Piece<'a>>,
    unknown: usize,
    /// In the order of their ids.
    added: Vec<Token>,
    /// Whether user-defined pieces are found by a pattern: as added tokens they would come before the space that is put in
    /// front of a text.
    isolates: bool,
}

impl<'a> Vocabulary<'a> {
    fn of(model: Model<'a>, named: &Named, extra: usize) -> Result<Self, String> {
        let mut pieces = model.pieces;
        // T5's own tokens, the last first.
        for i in (0..extra).rev() {
            let text = Cow::Owned(format!("<extra_id_{i}>"));
            pieces.push(Piece { text, score: 0.0, kind: Kind::Control });
        }
        let mut unknown = pieces.iter().enumerate().filter(|(_, piece)| piece.kind == Kind::Unknown);
        let unknown = match (unknown.next(), unknown.next()) {
            (Some((id, _)), None) => id,
            (None, _) => return Err("no piece has type 2 (UNKNOWN), expected one".into()),
            (Some((first, _)), Some((second, _))) => {
                return Err(format!("pieces {first} and {second} have type 2 (UNKNOWN), expected one"));
            }
        };
        let mut this = Self {
            unigram: model.kind == 1,
            byte_fallback: model.byte_fallback,
            prefix: model.add_dummy_prefix,
            remove_extra_whitespaces: model.remove_extra_whitespaces,
            isolates: false,
            pieces,
            unknown,
            added: Vec::new(),
        };
        this.add(named)?;
        this.check_unique()?;
        this.check_bytes()?;
        this.add_user_defined()?;
        Ok(this)
    }

    /// Finds what is an added token, and takes the names that the configuration has for pieces.
    fn add(&mut self, named: &Named) -> Result<(), String> {
        let special: HashSet<&str> = named.special().collect();
        for (id, piece) in (0..).zip(&mut self.pieces) {
            let found_first = matches!(piece.kind, Kind::Unknown | Kind::Control);
            if let Some(token) = named.added.get(&id) {
                if piece.text != token.content.as_str() {
                    if piece.kind == Kind::Byte {
                        let (from, to) = (quote(&piece.text), quote(&token.content));
                        return Err(format!(
                            "pieces[{id}] {from} is a byte, and added_tokens_decoder names it {to}"
                        ));
                    }
                    piece.text = Cow::Owned(token.content.clone());
                }
                // Every text between added tokens gets a space in front: a normalized one would have to have it, too.
                let normalized = token.normalized && !self.prefix;
                self.added.push(Token { special: token.special || found_first, normalized, ..token.clone() });
            } else if found_first {
                self.added.push(Token::special(id, &piece.text));
            } else if special.contains(&*piece.text) && piece.kind != Kind::Byte {
                self.added.extend(named.special_token(id, &piece.text));
            } else {
                continue;
            }
            if matches!(piece.kind, Kind::Normal | Kind::UserDefined) {
                piece.kind = Kind::Control;
            }
        }
        for (_, token) in named.added.range((self.pieces.len() as u32)..) {
            self.added.push(Token { normalized: token.normalized && !self.prefix, ..token.clone() });
        }
        Ok(())
    }

    fn check_unique(&self) -> Result<(), String> {
        let mut seen: HashMap<&str, usize> = HashMap::with_capacity(self.pieces.len());
        for (id, piece) in self.pieces.iter().enumerate() {
            if let Some(first) = seen.insert(&piece.text, id) {
                let text = quote(&piece.text);
                return Err(format!("pieces[{id}] is {text}, expected another text than pieces[{first}]"));
            }
        }
        Ok(())
    }

    /// Refuses byte fallback without a piece for each byte.
    fn check_bytes(&self) -> Result<(), String> {
        if !self.byte_fallback {
            return Ok(());
        }
        let bytes: HashSet<&str> = self.of_kind(Kind::Byte).map(|(_, text)| text).collect();
        match (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).find(|text| !bytes.contains(text.as_str())) {
            Some(text) => {
                Err(format!("trainer_spec.byte_fallback is true, and no piece of type 6 (BYTE) is {text}"))
            }
            None => Ok(()),
        }
    }

    /// Makes user-defined pieces found before others.
    fn add_user_defined(&mut self) -> Result<(), String> {
        let found: Vec<(u32, String)> =
            self.of_kind(Kind::UserDefined).map(|(id, text)| (id, text.to_owned())).collect();
        if found.is_empty() {
            return Ok(());
        }
        self.isolates = self.prefix;
        if !self.prefix {
            let tokens = found.iter().map(|(id, text)| Token {
                special: false,
                normalized: true,
                ..Token::special(*id, text)
            });
            self.added.extend(tokens);
            self.added.sort_by_key(|token| token.id);
        } else if found.len() > MAX_USER_DEFINED {
            let count = found.len();
            return Err(format!(
                "{count} pieces are user-defined beside add_dummy_prefix, expected at most {MAX_USER_DEFINED}"
            ));
        }
        Ok(())
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (u32, &str)> + Clone {
        let pieces = (0..).zip(&self.pieces).filter(move |(_, piece)| piece.kind == kind);
        pieces.map(|(id, piece)| (id, &*piece.text))
    }

    /// The id of an added token.
    fn added_id(&self, text: &str) -> Option<u32> {
        self.added.iter().find(|token| token.content == text).map(|token| token.id)
    }

    /// What is done to a text, the model's own splits being `cuts`.
    fn head(&self, legacy: bool, cuts: Option<String>, post_processor: Value) -> Head {
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let mut normalizers = Vec::new();
        if self.remove_extra_whitespaces {
            // At the end of a text a `▁` is taken for a space.
            let ends = json!({"type": "Replace", "pattern": {"Regex": r"\A +|[ ▁]+\z"}, "content": ""});
            normalizers.push(ends);
            normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
        }
        let mut pre_tokenizers = Vec::new();
        if self.prefix && legacy {
            normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
        }
        normalizers.push(spaces);
        if self.prefix && !legacy {
            // Only at the beginning of all, not after a special token.
            pre_tokenizers.push(
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}),
            );
        }
        if self.isolates {
            // The longest of those that begin alike is found.
            let mut found: Vec<&str> = self.of_kind(Kind::UserDefined).map(|(_, text)| text).collect();
            found.sort_by_key(|text| Reverse(text.chars().count()));
            let regexes: Vec<String> = found.into_iter().map(escape).collect();
            pre_tokenizers.push(split(&regexes.join("|"), "Isolated"));
        }
        pre_tokenizers.extend(cuts.map(|regex| split(&regex, "MergedWithPrevious")));
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.prefix || self.remove_extra_whitespaces {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        Head {
            added: self.added.clone(),
            normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
            pre_tokenizer: match pre_tokenizers.is_empty() {
                true => Value::Null,
                false => json!({"type": "Sequence", "pretokenizers": pre_tokenizers}),
            },
            post_processor,
            decoder: json!({"type": "Sequence", "decoders": decoders}),
        }
    }

    /// The file without the lists, and the merges.
    fn byte_pairs(&self, legacy: bool, post_processor: Value) -> Result<(String, Merges<'_>), String> {
        let piece = |id: u32| &self.pieces[id as usize];
        let mut cuts = merges::cuts(self.of_kind(Kind::Normal)).map_err(|e| format!("pieces: {e}"))?;
        let mut scores: HashMap<u32, u32> = HashMap::new();
        for cut in &cuts {
            let score = piece(cut.id).score + 0.0;
            let other = *scores.entry(score.to_bits()).or_insert(cut.id);
            let (run, other_run) = (run_of(&piece(cut.id).text), run_of(&piece(other).text));
            // Which of two is merged first would depend on where they are in a text. Runs of spaces, which all have one
            // score, grow from the left.
            if other != cut.id && (run.is_none() || run != other_run) {
                let (first, second) = (quote(&piece(other).text), quote(&piece(cut.id).text));
                return Err(format!(
                    "pieces[{}] {second} has the score {score} of pieces[{other}] {first}, expected scores of their own",
                    cut.id
                ));
            }
        }
        cuts.sort_by(|a, b| {
            let by_score = piece(b.id).score.total_cmp(&piece(a.id).score);
            by_score.then(b.lengths.cmp(&a.lengths))
        });
        let merges = cuts.into_iter().map(|cut| cut.of(&self.pieces[cut.id as usize].text)).collect();
        // A piece that a pattern found is one token: whole texts that are tokens are taken as they are. A text that is
        // no piece to SentencePiece is cut so that it is none here.
        let cuts = self.isolates.then(|| {
            let mut regexes = vec![r"\A<(?=0x[0-9A-F]{2}>\z)".to_owned()];
            for (_, text) in self.of_kind(Kind::Unknown).chain(self.of_kind(Kind::Control)) {
                let mut rest = text.chars();
                if let Some(first) = rest.next()
                    && !rest.as_str().is_empty()
                {
                    let (first, rest) = (escape(&first.to_string()), escape(rest.as_str()));
                    regexes.push(format!(r"\A{first}(?={rest}\z)"));
                }
            }
            regexes.join("|")
        });
        let unknown = &*self.pieces[self.unknown].text;
        let model = byte_pairs(Some(unknown), self.byte_fallback, self.isolates);
        Ok((self.head(legacy, cuts, post_processor).around(&model), merges))
    }

    /// The whole file.
    fn unigrams(&self, legacy: bool, post_processor: Value) -> Result<String, String> {
        let normal = || self.pieces.iter().enumerate().filter(|(_, piece)| piece.kind == Kind::Normal);
        let single = |text: &str| {
            let mut chars = text.chars();
            chars.next().filter(|_| chars.as_str().is_empty())
        };
        let known: HashSet<char> = normal().filter_map(|(_, piece)| single(&piece.text)).collect();
        let mut low = 0.0f32;
        for (id, Piece { text, score, .. }) in normal() {
            if *score > 0.0 {
                return Err(format!("pieces[{id}].score is {score}, expected a logarithm of at most 0"));
            }
            low = low.min(*score);
            // Then the score of an unknown character, which is different here, never decides.
            if let Some(c) = text.chars().find(|c| !known.contains(c)) {
                let text = quote(text);
                return Err(format!("pieces[{id}] is {text}, and no piece is its character {c:?}"));
            }
        }
        let low = f64::from(low);
        // The library takes every piece for one that a text may hold. One that SentencePiece does not look for gets a score
        // below that of its characters; where some are unknown, it is cut beside them.
        let never = (MAX_PIECE as f64) * (low - 1.0);
        let mut cuts = BTreeSet::new();
        let mut vocab = String::from("[");
        for (id, Piece { text, score, kind }) in self.pieces.iter().enumerate() {
            let score = match kind {
                Kind::Normal => f64::from(*score),
                // More than any other cut of the same text.
                Kind::UserDefined => (text.chars().count() as f64).powi(2),
                Kind::Unknown | Kind::Control | Kind::Byte if text.chars().all(|c| known.contains(&c)) => {
                    never
                }
                Kind::Unknown | Kind::Control | Kind::Byte => {
                    cuts.insert(border(text, &known).ok_or_else(|| {
                        let text = quote(text);
                        format!("pieces[{id}] {text} is in no text, and no piece is one of its characters")
                    })?);
                    low
                }
            };
            if *kind != Kind::Normal && text.chars().count() > MAX_PIECE {
                return Err(format!(
                    "pieces[{id}] is {}, expected at most {MAX_PIECE} characters",
                    quote(text)
                ));
            }
            vocab += if id == 0 { "" } else { "," };
            vocab += &format!("[{},{}]", Value::from(&**text), Value::from(score));
        }
        vocab += "]";
        let cuts = (!cuts.is_empty()).then(|| cuts.into_iter().collect::<Vec<_>>().join("|"));
        let (unknown, byte_fallback) = (self.unknown, self.byte_fallback);
        let model = format!(
            "{{\"type\":\"Unigram\",\"unk_id\":{unknown},\"byte_fallback\":{byte_fallback},\"vocab\":{vocab}}}"
        );
        Ok(self.head(legacy, cuts, post_processor).around(&model))
    }
}

/// The character that a text repeats.
fn run_of(text: &str) -> Option<char> {
    let first = text.chars().next()?;
    text.chars().all(|c| c == first).then_some(first)
}

/// A pattern for the beginning of `text` up to the first border of known and unknown characters, before the rest: there no
/// piece goes on.
fn border(text: &str, known: &HashSet<char>) -> Option<String> {
    let first = known.contains(&text.chars().next()?);
    let (at, _) = text.char_indices().find(|(_, c)| known.contains(c) != first)?;
    let (before, after) = text.split_at(at);
    Some(format!("{}(?={})", escape(before), escape(after)))
}
