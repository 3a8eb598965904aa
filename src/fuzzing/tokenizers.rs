//! Tokenizers of any file: load, encode, decode.

use super::input::{CUT, Input, Scratch, parts, sound};
use crate::text::{Detokenizer, Specials, Tokenizer};

/// The files that a tokenizer is made of; the input's first byte says which it is.
pub(super) const FILES: [&str; 5] =
    ["tokenizer.json", "tokenizer.model", "tekken.json", "tiktoken.model", "vocab.json"];
/// Rows of the embedding that its ids index.
const ROWS: usize = 1 << 16;
/// Bytes of the text: some steps make it a thousand times longer.
const TEXT: usize = 2048;

/// The input's parts: the file, `tokenizer_config.json`, the text, and `merges.txt` where it belongs to the file.
///
/// What was loaded encodes any text, its ids are those of its vocabulary, and decoding them token by token gives what
/// decoding them at once does.
pub(super) fn tokenizer(data: &[u8]) {
    let mut input = Input(data);
    let name = input.pick(&FILES);
    let [file, config, text, merges] = parts(input.0);
    let scratch = Scratch::new();
    scratch.write(name, file);
    if !config.is_empty() {
        scratch.write("tokenizer_config.json", config);
    }
    if name == "vocab.json" {
        scratch.write("merges.txt", merges);
    }
    let Some(tokenizer) = sound_library(Tokenizer::open(scratch.dir(), ROWS)).flatten() else { return };
    let text = String::from_utf8_lossy(&text[..text.len().min(TEXT)]).into_owned();
    for (add, parse) in [(false, false), (false, true), (true, false), (true, true)] {
        let Some(ids) = sound_library(tokenizer.encode_with(&text, Specials { add, parse })) else {
            continue;
        };
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "{ids:?}");
        decode(&tokenizer, &ids);
    }
    // Ids that no text has, those of special tokens and those outside of the vocabulary among them.
    let ids: Vec<u32> = file.iter().take(64).map(|&byte| u32::from(byte) * 3).collect();
    decode(&tokenizer, &ids);
}

fn decode(tokenizer: &Tokenizer, ids: &[u32]) {
    let Some(whole) = sound_library(tokenizer.decode(ids)) else { return };
    let mut stream = Detokenizer::new(tokenizer, &[]);
    let mut text = String::new();
    for &id in ids {
        let Some(piece) = sound_library(stream.push(id)) else { return };
        text += &piece;
    }
    let Some(last) = sound_library(stream.finish()) else { return };
    text += &last;
    // A decoder that is not known is the library's own, which looks at neighbours.
    if tokenizer.token_bytes(0).is_ok() {
        assert_eq!(text, whole, "{ids:?}");
    }
}

/// As [`sound`], but for panics in the library, which are its own and become errors.
fn sound_library<T>(result: crate::error::Result<T>) -> Option<T> {
    match result {
        Err(error) if error.to_string().contains("the library panicked") => None,
        result => sound(result),
    }
}

/// An input that has these files.
pub(super) fn joined(name: &str, files: [&[u8]; 4]) -> Vec<u8> {
    let kind = FILES.iter().position(|file| *file == name).unwrap_or_default() as u8;
    [&[kind][..], &files.join(CUT)].concat()
}
