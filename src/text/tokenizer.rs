//! `tokenizer.json` through `tokenizers`, behind checks that the library does not make.

mod cut;
mod encode;
mod infill;

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use aho_corasick::AhoCorasick;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, TokenizerImpl};

use super::growth::Growth;
use super::longest::Longest;
use super::raw::{self, Decoder};
use super::rebuilt::Rebuilt;
use super::sentinel::longest_first;
use super::special::SpecialTokens;
use super::steps::{Normalizers, PreTokenizers};
use crate::apart::{self, Lost};
use crate::error::{Error, Result};
use crate::error::{caught, panic_text};
use crate::files;
use crate::json;
pub use cut::Cut;
pub use infill::{Infill, InfillMarks};

/// The longest text that is encoded, in bytes: four times a server's body.
const MAX_TEXT: usize = 32 << 20;
/// When an encoding is given up on, by the clock, whatever the text and for each of its bytes. Its steps are counted, and are
/// over long before; a busy machine takes its time for them.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(100), Duration::from_micros(100));
/// How many texts may be late at once; one is no reason to refuse another.
const MAX_LATE: usize = 4;
/// Ids are counted, and masks have a bit for each: 64 times the largest published vocabulary.
const MAX_ID: u64 = 1 << 24;
/// The stack of the encoding thread: reserved, not touched.
const STACK: usize = 8 << 20;

/// What memory is taken for.
const TEXT: &str = "a text to encode";
const IDS: &str = "the tokens of a text";

/// The longest text that may be made of one on its way to tokens or from them, in bytes.
const MAX_MADE: usize = 1 << 30;

/// The library's tokenizer with our own patterns in it.
type Library = TokenizerImpl<ModelWrapper, Normalizers, PreTokenizers, PostProcessorWrapper, DecoderWrapper>;

/// What becomes of special tokens where a text is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Specials {
    /// Whether those are added that begin and end a text.
    pub add: bool,
    /// Whether the text of one becomes the token, or stays text.
    pub parse: bool,
}

/// Text to token ids and back. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    /// Parses special tokens in texts.
    trusting: Library,
    /// Leaves special tokens' texts as text; made when a text first holds one.
    literal: OnceLock<Library>,
    /// Likewise, for text that follows a special token.
    following: OnceLock<Library>,
    /// The special tokens, the longest first.
    special: Vec<Special>,
    /// Where a text holds them.
    finder: AhoCorasick,
    /// The pre-tokenizer as the file has it.
    pre_tokenizer: Value,
    growth: Growth,
    /// Bytes of a text that one token stands for, at most; none where there is no bound.
    longest: Option<usize>,
    /// The token that ends a text, where a file beside `tokenizer.json` names it.
    eos: Option<u32>,
    decoder: Decoder,
    ids: usize,
    patience: (Duration, Duration),
    /// Threads that were given up on.
    late: Mutex<Vec<JoinHandle<()>>>,
}

struct Special {
    text: String,
    id: u32,
    lstrip: bool,
    rstrip: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("ids", &self.0.ids).finish_non_exhaustive()
    }
}

/// Runs the library; what it refuses and what it panics on become errors.
fn guard<T>(what: &str, f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match caught(f) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Error::Tokenizer(format!("{what}: {e}"))),
        Err(panic) => {
            let why = panic_text(&*panic);
            Err(Error::Tokenizer(format!("{what}: the library panicked: {why}")))
        }
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json` for a model whose embedding has `embedding_rows` rows.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] for a file over 64 MiB and whatever [`Self::from_bytes`] refuses.
    pub fn load(path: &Path, embedding_rows: usize) -> Result<Self> {
        let bytes = files::read_json(path)?;
        Self::from_bytes(path, &bytes, embedding_rows)
    }

    /// Reads a tokenizer from the bytes of a `tokenizer.json`; `path` names it in errors.
    ///
    /// A truncation or padding in the file is ignored: no prompt is cut silently.
    ///
    /// # Errors
    /// [`Error::Format`] for anything but UTF-8 JSON nested at most 32 deep, for a key, an id or a token given twice, what
    /// makes texts over 64 times longer or repeats them, and whatever the library refuses.
    pub fn from_bytes(path: &Path, bytes: &[u8], embedding_rows: usize) -> Result<Self> {
        Self::read(path, bytes, embedding_rows, &Default::default())
    }

    /// As [`Self::from_bytes`], with what other files say of special tokens and of steps.
    pub(crate) fn read(
        path: &Path,
        bytes: &[u8],
        embedding_rows: usize,
        (special, rebuilt): &(SpecialTokens, Rebuilt),
    ) -> Result<Self> {
        let mut file: raw::File = json::parse_typed(path, bytes, json::LONG)?;
        rebuilt.apply(file.model.is_word_pieces(), &mut file.normalizer, &mut file.pre_tokenizer);
        Self::of(path, file, Some(bytes), embedding_rows, special)
    }

    /// A byte-pair tokenizer whose long lists are not JSON: `head` is a `tokenizer.json` with an empty vocabulary and no
    /// merges; `vocabulary` has tokens with their ids, `merges` the first to be made first. Otherwise as
    /// [`from_bytes`](Self::from_bytes).
    pub(crate) fn from_lists<'a>(
        path: &Path,
        head: &str,
        vocabulary: impl Iterator<Item = (&'a str, u64)>,
        merges: &[(&'a str, &'a str)],
        embedding_rows: usize,
    ) -> Result<Self> {
        let bad = |what: String| Error::format(path, what);
        let mut file: raw::File = json::typed(head, json::LONG).map_err(|e| bad(e.to_string()))?;
        file.model.vocab.0 = vocabulary.map(|(token, id)| (Cow::Borrowed(token), id)).collect();
        let merges: Vec<raw::Merge> =
            merges.iter().map(|&(left, right)| (left.into(), right.into())).collect();
        let texts = file.model.vocab.0.iter().map(|(token, _)| token.len());
        let bytes: usize = texts.chain(merges.iter().map(|(left, right)| left.len() + right.len())).sum();
        if bytes as u64 > json::MAX_FILE {
            return Err(bad(format!(
                "{bytes} bytes of tokens and merges, expected at most {}",
                json::MAX_FILE
            )));
        }
        file.model.merges = Some(raw::Merges(merges));
        Self::of(path, file, None, embedding_rows, &SpecialTokens::default())
    }

    /// What a file says, with what others say `beside` it; `bytes` are those of the whole file, for the library, where there
    /// is one.
    fn of(
        path: &Path,
        file: raw::File<'_>,
        bytes: Option<&[u8]>,
        embedding_rows: usize,
        beside: &SpecialTokens,
    ) -> Result<Self> {
        let bad = |what: String| Error::format(path, what);
        if let Some(version) = file.version.as_deref().filter(|version| *version != "1.0") {
            return Err(bad(format!("version is {}, expected \"1.0\"", json::quote(version))));
        }
        let growth = file.growth().map_err(bad)?;
        let longest = Longest::of(&file, growth.encoded);
        let mut ids = check_ids(&file).map_err(bad)?;
        let raw::File { added_tokens, decoder, .. } = &file;
        let decoder = Decoder::from_json(decoder);
        let mut added: Vec<AddedToken> = added_tokens.iter().map(library_token).collect();
        let given: Vec<u32> = added_tokens.iter().map(|token| token.id).collect();
        let pre_tokenizer = file.pre_tokenizer.clone();
        let mut trusting = guard("load", || library(file, bytes, &added)).map_err(|e| bad(e.to_string()))?;
        for (token, id) in added.iter().zip(given) {
            let got = trusting.token_to_id(&token.content);
            if got != Some(id) {
                return Err(bad(format!("added_tokens: {:?} has id {id}, and {got:?}", token.content)));
            }
        }
        // As transformers does: a list replaces what the file has, and a name adds what neither has.
        let known: HashSet<&str> = added.iter().map(|token| token.content.as_str()).collect();
        let lacks = |token: &&AddedToken| !known.contains(token.content.as_str());
        let more: Vec<AddedToken> =
            beside.listed.iter().chain(beside.added.iter().filter(lacks)).cloned().collect();
        guard("special tokens", || trusting.add_tokens(more.iter().cloned()))?;
        let anew: HashSet<&str> = more.iter().map(|token| token.content.as_str()).collect();
        added.retain(|known| !anew.contains(known.content.as_str()));
        added.extend(more);
        let longest = longest.and_then(|longest| longest.with(added.iter()));
        let mut special: Vec<Special> = Vec::new();
        for token in added.into_iter().filter(|token| !token.content.is_empty()) {
            let Some(id) = trusting.token_to_id(&token.content) else { continue };
            ids = ids.max(id as usize + 1);
            if token.special {
                let AddedToken { content: text, lstrip, rstrip, .. } = token;
                special.push(Special { text, id, lstrip, rstrip });
            }
        }
        special.sort_by_key(|s| std::cmp::Reverse(s.text.len()));
        if ids > embedding_rows {
            tracing::warn!(
                "{}: tokens have ids up to {}, and the embedding {embedding_rows} rows: a prompt that uses those past \
                 them is refused",
                path.display(),
                ids - 1
            );
        }
        let eos = beside.eos().and_then(|text| trusting.token_to_id(text));
        Ok(Self(Arc::new(Inner {
            trusting,
            literal: OnceLock::new(),
            following: OnceLock::new(),
            finder: longest_first(special.iter().map(|special| &special.text))
                .map_err(|e| bad(e.to_string()))?,
            special,
            pre_tokenizer,
            growth,
            longest,
            eos,
            decoder,
            ids,
            patience: PATIENCE,
            late: Mutex::default(),
        })))
    }

    /// Names the token that ends a text.
    pub(super) fn ending_with(mut self, eos: Option<u32>) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.eos = eos;
        }
        self
    }

    /// How a text is cut before tokens are found in it.
    #[cfg(test)]
    pub(crate) fn pieces<'a>(&self, text: &'a str) -> Vec<&'a str> {
        use tokenizers::{OffsetReferential::Original, OffsetType, PreTokenizedString, PreTokenizer as _};
        let mut pieces = PreTokenizedString::from(text);
        self.0.trusting.get_pre_tokenizer().unwrap().pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(Original, OffsetType::Byte);
        splits.iter().map(|(_, (start, end), _)| &text[*start..*end]).collect()
    }

    /// Gives up on a text after `time`.
    #[cfg(test)]
    pub(super) fn with_patience(mut self, time: Duration) -> Self {
        let inner = Arc::get_mut(&mut self.0).expect("no clone");
        inner.patience = (time, Duration::ZERO);
        self
    }

    /// Does `work` for a text of `bytes` bytes, and gives up on it where a pattern of the file makes it endless: the
    /// library cannot be stopped. While some that were given up on still work, nothing else is done.
    fn patiently<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut late = self.0.late.lock();
        late.retain(|thread| !thread.is_finished());
        if late.len() >= MAX_LATE {
            let what = format!("encode: it is still busy with {MAX_LATE} earlier texts, which took too long");
            return Err(Error::Tokenizer(what));
        }
        drop(late);
        let (base, per_byte) = self.0.patience;
        let time = base + per_byte * u32::try_from(bytes).unwrap_or(u32::MAX);
        let this = self.clone();
        apart::run("tokenizer", STACK, time, move || work(&this)).unwrap_or_else(|lost| {
            let what = match lost {
                Lost::NoThread(source) => return Err(Error::Thread { what: "a text to encode", source }),
                Lost::Panicked => "it panicked".into(),
                Lost::Late(thread) => {
                    self.0.late.lock().push(thread);
                    let time = time.as_secs_f64();
                    format!("a text of {bytes} bytes took longer than {time} s, which no honest pattern does")
                }
            };
            Err(Error::Tokenizer(format!("encode: {what}")))
        })
    }

    /// The least number of tokens that a text of `bytes` bytes may have, without those that begin and end it; 0 where that cannot
    /// be told before it is encoded.
    pub fn least_tokens(&self, bytes: usize) -> usize {
        self.0.longest.map_or(0, |longest| bytes.div_ceil(longest))
    }

    fn check_length(&self, text: &str) -> Result<()> {
        if text.len() > MAX_TEXT {
            return Err(Error::Prompt(format!("{} bytes, at most {MAX_TEXT} are encoded", text.len())));
        }
        let made = text.len().saturating_mul(self.0.growth.encoded);
        if made > MAX_MADE {
            let what = format!(
                "{} bytes, of which this tokenizer could make {made}, at most {MAX_MADE}",
                text.len()
            );
            return Err(Error::Prompt(what));
        }
        Ok(())
    }

    /// The special tokens' texts, the longest first.
    pub fn special_texts(&self) -> impl Iterator<Item = &str> {
        self.0.special.iter().map(|s| s.text.as_str())
    }

    /// # Errors
    /// [`Error::Tokenizer`] where the library fails, or the text could be over 32 MiB.
    pub(super) fn library_decode(&self, ids: &[u32]) -> Result<String> {
        // A space may go before each.
        let bytes = ids.iter().map(|&id| self.token_text(id).map_or(0, |text| text.len() + 1));
        let made = bytes.fold(0, usize::saturating_add).saturating_mul(self.0.growth.decoded);
        if made > MAX_TEXT {
            let what = format!("decode: {} tokens could make {made} bytes, at most {MAX_TEXT}", ids.len());
            return Err(Error::Tokenizer(what));
        }
        guard("decode", || self.0.trusting.decode(ids, true))
    }

    pub(super) fn decoder(&self) -> &Decoder {
        &self.0.decoder
    }

    /// The id of a token, by its text in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.0.trusting.token_to_id(token)
    }

    /// A token's text as the vocabulary has it (`▁the`, `Ġthe`, `<0x0A>`).
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.0.trusting.id_to_token(id)
    }

    /// The bytes of the text that a token stands for, which may be part of a character; a special token's are those of its
    /// own text. None for an id that no token has.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where this tokenizer's decoder gives a token different bytes beside different neighbours.
    pub fn token_bytes(&self, id: u32) -> Result<Option<Vec<u8>>> {
        let Some(text) = self.token_text(id) else { return Ok(None) };
        if self.is_special(id) {
            return Ok(Some(text.into_bytes()));
        }
        if self.0.decoder == Decoder::Other {
            return Err(Error::Tokenizer("its decoder has no bytes for a single token".into()));
        }
        Ok(Some(self.0.decoder.bytes(&text)))
    }

    /// The texts that are found in a text before anything else, special or not.
    pub(crate) fn added_texts(&self) -> Vec<String> {
        self.0.trusting.get_added_tokens_decoder().into_values().map(|token| token.content).collect()
    }

    /// The token that ends a text, as the files beside `tokenizer.json` name it.
    pub(crate) fn eos(&self) -> Option<u32> {
        self.0.eos
    }

    /// One past the highest id.
    pub fn vocab_size(&self) -> usize {
        self.0.ids
    }

    /// Whether a token is special: never part of a decoded text.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.special.iter().any(|s| s.id == id)
    }
}

/// One past the highest id, each of which belongs to one token.
fn check_ids(file: &raw::File<'_>) -> Result<usize, String> {
    let vocab = file.model.vocab.0.iter().map(|(token, id)| (*id, token.as_ref(), "model.vocab"));
    let added = file.added_tokens.iter().map(|t| (u64::from(t.id), t.content.as_ref(), "added_tokens"));
    let mut all: Vec<(u64, &str, &str)> = vocab.chain(added).collect();
    // The vocabulary's before added ones, as they stood; files have them in this order, or nearly.
    all.sort_by_key(|(id, ..)| *id);
    for pair in all.windows(2) {
        let [(id, other, _), (next, token, field)] = pair else { continue };
        if id == next && (other != token || *field == "model.vocab") {
            return Err(format!("{field}: id {id} belongs to {other:?} and to {token:?}"));
        }
    }
    match all.last() {
        Some((id, ..)) if *id >= MAX_ID => Err(format!("id {id} is past {MAX_ID}")),
        last => Ok(last.map_or(0, |(id, ..)| *id as usize + 1)),
    }
}

/// A post-processor that puts a token, by its text and id, before a text and behind it: `TemplateProcessing` as
/// `tokenizer.json` has it.
pub(crate) fn around(bos: Option<(&str, u32)>, eos: Option<(&str, u32)>) -> Value {
    let token = |(text, _): (&str, u32), sequence: u32| serde_json::json!({"SpecialToken": {"id": text, "type_id": sequence}});
    let single = |name: &str, sequence: u32| {
        let text = serde_json::json!({"Sequence": {"id": name, "type_id": sequence}});
        let parts = [bos.map(|bos| token(bos, sequence)), Some(text), eos.map(|eos| token(eos, sequence))];
        parts.into_iter().flatten().collect::<Vec<_>>()
    };
    let special: serde_json::Map<String, Value> = bos
        .into_iter()
        .chain(eos)
        .map(|(text, id)| (text.to_owned(), serde_json::json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    let pair = [single("A", 0), single("B", 1)].concat();
    serde_json::json!({
        "type": "TemplateProcessing",
        "single": single("A", 0),
        "pair": pair,
        "special_tokens": special,
    })
}

fn library_token(token: &raw::Added<'_>) -> AddedToken {
    AddedToken::from(token.content.as_ref(), token.special)
        .single_word(token.single_word)
        .lstrip(token.lstrip)
        .rstrip(token.rstrip)
        .normalized(token.normalized)
}

/// The library's tokenizer of a file; `bytes` are those of all of it, for a model that is not made from its lists.
fn library(file: raw::File<'_>, bytes: Option<&[u8]>, added: &[AddedToken]) -> tokenizers::Result<Library> {
    #[derive(Deserialize)]
    struct Whole {
        model: ModelWrapper,
    }
    let normalizers = Normalizers::from_json(&file.normalizer).map_err(|e| format!("normalizer: {e}"))?;
    let pre_tokenizers =
        PreTokenizers::from_json(&file.pre_tokenizer).map_err(|e| format!("pre_tokenizer: {e}"))?;
    let post_processor = Option::<PostProcessorWrapper>::deserialize(&file.post_processor)
        .map_err(|e| format!("post_processor: {e}"))?;
    let decoder =
        Option::<DecoderWrapper>::deserialize(&file.decoder).map_err(|e| format!("decoder: {e}"))?;
    let model = match bytes {
        Some(bytes) if !file.is_byte_pairs() => serde_json::from_slice::<Whole>(bytes)?.model,
        _ => ModelWrapper::BPE(byte_pairs(file.model)?),
    };
    let mut tokenizer = Library::new(model);
    tokenizer.with_normalizer(normalizers)?;
    tokenizer.with_pre_tokenizer(pre_tokenizers);
    tokenizer.with_post_processor(post_processor);
    tokenizer.with_decoder(decoder);
    tokenizer.add_tokens(added.iter().cloned())?;
    Ok(tokenizer)
}

/// The library's model of lists. Its own reader goes by way of values, which takes a second and hundreds of megabytes for the
/// merges of a large vocabulary.
fn byte_pairs(file: raw::Model<'_>) -> tokenizers::Result<BPE> {
    let mut model = BPE::builder()
        .fuse_unk(file.fuse_unk.unwrap_or_default())
        .byte_fallback(file.byte_fallback.unwrap_or_default())
        .ignore_merges(file.ignore_merges.unwrap_or_default());
    if let Some(dropout) = file.dropout {
        model = model.dropout(dropout);
    }
    if let Some(token) = file.unk_token {
        model = model.unk_token(token);
    }
    if let Some(prefix) = file.continuing_subword_prefix {
        model = model.continuing_subword_prefix(prefix);
    }
    if let Some(suffix) = file.end_of_word_suffix {
        model = model.end_of_word_suffix(suffix);
    }
    let mut vocab = Vocab::default();
    vocab.reserve(file.vocab.0.len());
    for (token, id) in file.vocab.0 {
        let id = u32::try_from(id).map_err(|_| format!("id {id} is past 2^32"))?;
        if let Some(other) = vocab.insert(token.as_ref().to_owned(), id) {
            return Err(format!("model.vocab: {token:?} has the ids {other} and {id}").into());
        }
    }
    let merges = file.merges.map(|merges| merges.0).unwrap_or_default();
    let merges = merges.into_iter().map(|(left, right)| (left.into_owned(), right.into_owned()));
    model.vocab_and_merges(vocab, merges.collect()).build()
}
