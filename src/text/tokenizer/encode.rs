//! Text to ids.

use std::sync::OnceLock;

use super::{Cut, IDS, Library, Specials, TEXT, Tokenizer, guard};
use crate::alloc;
use crate::error::{Error, Result};
use crate::text::message::Rendered;
use crate::text::raw;
use crate::text::steps::PreTokenizers;

impl Tokenizer {
    /// Encodes a text as it is, without a chat template: with the tokens that the post-processor adds (BOS), and with special
    /// tokens where their texts are written. An empty text gives what the post-processor adds alone.
    ///
    /// # Errors
    /// [`Error::Prompt`] where no token comes out (an empty text without BOS) or the text is over 32 MiB;
    /// [`Error::Tokenizer`] where the library fails, or a pattern takes too many steps.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_prompt(text, true)
    }

    /// As [`Self::encode`]; `parse`: whether special tokens are read where their texts are written.
    ///
    /// # Errors
    /// Those of [`Self::encode`].
    pub fn encode_prompt(&self, text: &str, parse: bool) -> Result<Vec<u32>> {
        let ids = self.encode_with(text, Specials { add: true, parse })?;
        if ids.is_empty() {
            return Err(Error::Prompt("it is empty, and this model's tokenizer adds no BOS".into()));
        }
        Ok(ids)
    }

    /// As [`Self::encode`], with special tokens as asked; an empty text may give no token.
    ///
    /// # Errors
    /// Those of [`Self::encode`].
    pub fn encode_with(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        self.check_length(text)?;
        let owned = alloc::text_of(text, TEXT)?;
        self.patiently(text.len(), move |this| {
            let encoder = if specials.parse { &this.0.trusting } else { this.literal(&owned)? };
            this.run(encoder, &owned, specials.add)
        })
    }

    /// Encodes two texts as one, as the post-processor joins them: the tokens, and where those of the second text begin, as far as it
    /// tells them apart; past all of them where it does not. `parse`: whether special tokens are read where their texts are
    /// written.
    ///
    /// # Errors
    /// Those of [`Self::encode`], and a post-processor that mixes the two.
    pub fn encode_pair(&self, first: &str, second: &str, parse: bool) -> Result<(Vec<u32>, usize)> {
        self.encode_pair_cut(first, second, parse, Cut::default())
    }

    /// Encodes a rendered chat template. Nothing is added: a template writes BOS itself. Its special tokens are
    /// parsed; those written in messages stay text.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<u32>> {
        self.check_length(rendered.text())?;
        let owned = rendered.copy()?;
        let ids = self.patiently(rendered.text().len(), move |this| {
            if !owned.literal().is_empty() {
                return this.encode_mixed(owned.text(), owned.literal());
            }
            let encoding = guard("encode", || this.0.trusting.encode_fast(owned.text(), false))?;
            alloc::copy_of(encoding.get_ids(), IDS)
        })?;
        if ids.is_empty() {
            return Err(Error::Prompt("the chat template rendered to nothing".into()));
        }
        Ok(ids)
    }

    pub(super) fn run(&self, encoder: &Library, text: &str, add: bool) -> Result<Vec<u32>> {
        alloc::copy_of(guard("encode", || encoder.encode_fast(text, add))?.get_ids(), IDS)
    }

    /// An encoder that leaves the special tokens' texts in `text` as they are.
    pub(super) fn literal(&self, text: &str) -> Result<&Library> {
        let none = !self.0.finder.is_match(text);
        if none { Ok(&self.0.trusting) } else { self.copy(&self.0.literal, |_| Ok(())) }
    }

    /// As [`Self::literal`], of text that follows other text: it does not begin as a text begins.
    pub(super) fn following(&self) -> Result<&Library> {
        self.copy(&self.0.following, |copy| {
            let mut json = self.0.pre_tokenizer.clone();
            if raw::prefix_nowhere(&mut json) {
                copy.with_pre_tokenizer(PreTokenizers::from_json(&json)?);
            }
            Ok(())
        })
    }

    /// A copy that leaves special tokens' texts as text, changed by `change`; made once, in `place`.
    fn copy<'a>(
        &self,
        place: &'a OnceLock<Library>,
        change: impl FnOnce(&mut Library) -> tokenizers::Result<()>,
    ) -> Result<&'a Library> {
        if place.get().is_none() {
            let mut copy = guard("copy", || Ok(self.0.trusting.clone()))?;
            copy.set_encode_special_tokens(true);
            guard("copy", || change(&mut copy))?;
            let _ = place.set(copy);
        }
        place.get().ok_or_else(|| Error::Tokenizer("no copy".into()))
    }

    /// Splits at the special tokens outside the `literal` ranges; all between them is text.
    fn encode_mixed(&self, text: &str, literal: &[std::ops::Range<usize>]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let (mut start, mut at, mut next) = (0, 0, 0);
        let mut after_rstrip = false;
        let flush =
            |ids: &mut Vec<u32>, range: std::ops::Range<usize>, rstrip: bool, lstrip: bool| -> Result<()> {
                let first = range.start == 0;
                let piece = &text[range];
                let piece = if rstrip { piece.trim_start() } else { piece };
                let piece = if lstrip { piece.trim_end() } else { piece };
                if !piece.is_empty() {
                    let encoder = if first { self.literal(piece)? } else { self.following()? };
                    let more = self.run(encoder, piece, false)?;
                    alloc::reserve_more(ids, more.len(), IDS)?;
                    ids.extend(more);
                }
                Ok(())
            };
        while at < text.len() {
            while literal.get(next).is_some_and(|r| r.end <= at) {
                next += 1;
            }
            let range = literal.get(next);
            if let Some(range) = range.filter(|r| r.start <= at) {
                at = range.end;
                continue;
            }
            let limit = range.map_or(text.len(), |r| r.start);
            let Some(found) = self.0.finder.find(&text[at..limit]) else {
                at = limit;
                continue;
            };
            let special = &self.0.special[found.pattern().as_usize()];
            flush(&mut ids, start..at + found.start(), after_rstrip, special.lstrip)?;
            alloc::reserve_more(&mut ids, 1, IDS)?;
            ids.push(special.id);
            at += found.end();
            start = at;
            after_rstrip = special.rstrip;
        }
        flush(&mut ids, start..text.len(), after_rstrip, false)?;
        Ok(ids)
    }
}
