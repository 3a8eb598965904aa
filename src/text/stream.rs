//! Text from tokens as they come.

use super::raw::Decoder;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Tokens of context that the window decoder keeps in front of new ones.
const WINDOW_CONTEXT: usize = 8;
/// The most tokens that the window decoder waits with for a character to be complete.
const WINDOW_PENDING: usize = 16;

/// Turns a stream of tokens into text without ever splitting a character, in time linear in the tokens. Special tokens
/// give no text, but those that are made visible.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// Bytes of a character that is not complete.
    pending: Vec<u8>,
    /// Spaces still to be stripped from the beginning of the text.
    strip: usize,
    /// The window decoder's tokens; the text of the first `done` was given out.
    window: Vec<u32>,
    done: usize,
    /// Special tokens that give text, ascending.
    visible: Vec<u32>,
}

impl Detokenizer {
    /// A detokenizer for tokens that follow `context`: after a prompt, a leading space is part of the text.
    pub fn new(tokenizer: &Tokenizer, context: &[u32]) -> Self {
        let mut window: Vec<u32> = Vec::new();
        if *tokenizer.decoder() == Decoder::Other {
            window = context.iter().rev().filter(|&&id| !tokenizer.is_special(id)).copied().collect();
            window.truncate(WINDOW_CONTEXT);
            window.reverse();
        }
        let strip = match tokenizer.decoder() {
            Decoder::Sentence { strip } if context.iter().all(|&id| tokenizer.is_special(id)) => *strip,
            _ => 0,
        };
        let done = window.len();
        Self { tokenizer: tokenizer.clone(), pending: Vec::new(), strip, window, done, visible: Vec::new() }
    }

    /// Special tokens that give their own text.
    pub fn with_visible(mut self, ids: &[u32]) -> Self {
        self.visible = ids.iter().copied().filter(|&id| self.tokenizer.is_special(id)).collect();
        self.visible.sort_unstable();
        self
    }

    /// Gives out spaces at the beginning of the text that SentencePiece's decoder strips.
    pub fn unstripped(mut self) -> Self {
        self.strip = 0;
        self
    }

    /// Takes a token and returns the text that it completes, which may be empty. An id outside the vocabulary gives no
    /// text, as in the library.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`] where the library fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.tokenizer.is_special(id) {
            if self.visible.binary_search(&id).is_err() {
                return Ok(String::new());
            }
            // A character that is not complete here never will be.
            let mut text = self.finish()?;
            text += &self.tokenizer.token_text(id).unwrap_or_default();
            return Ok(text);
        }
        if *self.tokenizer.decoder() == Decoder::Other {
            self.window.push(id);
            return self.advance(false);
        }
        let Some(token) = self.tokenizer.token_text(id) else { return Ok(String::new()) };
        let mut bytes = self.tokenizer.decoder().bytes(&token);
        if self.strip > 0 {
            let spaces = bytes.iter().take(self.strip).take_while(|&&b| b == b' ').count();
            self.strip = if spaces == bytes.len() { self.strip - spaces } else { 0 };
            bytes.drain(..spaces);
        }
        self.pending.extend_from_slice(&bytes);
        Ok(self.take_complete())
    }

    /// What is left at the end of the stream: an incomplete character becomes U+FFFD.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(&mut self) -> Result<String> {
        if *self.tokenizer.decoder() == Decoder::Other {
            return self.advance(true);
        }
        let bytes = std::mem::take(&mut self.pending);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// All complete characters of `pending`; what can still become one stays.
    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut rest = &self.pending[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(bad) = e.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[bad..];
                }
            }
        }
        let left = rest.len();
        self.pending.drain(..self.pending.len() - left);
        text
    }

    fn advance(&mut self, last: bool) -> Result<String> {
        let before = self.tokenizer.library_decode(&self.window[..self.done])?;
        let text = self.tokenizer.library_decode(&self.window)?;
        let waits =
            text.ends_with(char::REPLACEMENT_CHARACTER) && self.window.len() - self.done < WINDOW_PENDING;
        if waits && !last {
            return Ok(String::new());
        }
        let same = before.char_indices().zip(text.chars()).find(|((_, a), b)| a != b);
        let cut = same.map_or(before.len().min(text.len()), |((at, _), _)| at);
        self.done = self.window.len();
        let drop = self.done.saturating_sub(WINDOW_CONTEXT);
        self.window.drain(..drop);
        self.done -= drop;
        Ok(text[cut..].to_owned())
    }
}

impl Tokenizer {
    /// Decodes ids to text, without special tokens; the concatenation of what [`Detokenizer`] gives. Bytes that
    /// are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`] where the library fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if *self.decoder() == Decoder::Other {
            return self.library_decode(ids);
        }
        let mut stream = Detokenizer::new(self, &[]);
        let mut text = String::new();
        for &id in ids {
            text += &stream.push(id)?;
        }
        text += &stream.finish()?;
        Ok(text)
    }
}
