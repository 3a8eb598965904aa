//! Texts that are cut, where one asks for it: of the tokens that a text has, the first that fit beside those that are put around it, as
//! transformers' `truncation` does it.

use tokenizers::{Encoding, PostProcessor as _, Token};

use super::{IDS, Library, TEXT, Tokenizer, guard};
use crate::alloc;
use crate::error::{Error, Result};

/// What a request says of the tokens that its texts may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// Of a text, or of both of a pair, with those that are put around them.
    pub most: Option<usize>,
    /// Of the second text of a pair alone.
    pub second: Option<usize>,
}

impl Tokenizer {
    /// As [`Self::encode_prompt`], of a text that has at most `most` tokens in the end: those behind are left out.
    ///
    /// # Errors
    /// Those of [`Self::encode_prompt`], and fewer tokens than are put around a text.
    pub fn encode_cut(&self, text: &str, parse: bool, most: usize) -> Result<Vec<u32>> {
        self.check_length(text)?;
        let owned = alloc::text_of(text, TEXT)?;
        let ids = self.patiently(text.len(), move |this| {
            let encoder = if parse { &this.0.trusting } else { this.literal(&owned)? };
            let room = room(encoder, false, most)?;
            let encoding = guard("encode", || encoder.encode_fast(owned.as_str(), false))?;
            let encoding = first(&encoding, room, 0)?;
            let encoding = guard("encode", || encoder.post_process(encoding, None, true))?;
            alloc::copy_of(encoding.get_ids(), IDS)
        })?;
        if ids.is_empty() {
            return Err(Error::Prompt("it is empty, and this model's tokenizer adds no BOS".into()));
        }
        Ok(ids)
    }

    /// As [`Self::encode_pair`], of texts that have as many tokens as `cut` says: of the two, the longer is cut first.
    ///
    /// # Errors
    /// Those of [`Self::encode_pair`], and fewer tokens than are put around a pair.
    pub fn encode_pair_cut(
        &self,
        one: &str,
        other: &str,
        parse: bool,
        cut: Cut,
    ) -> Result<(Vec<u32>, usize)> {
        self.check_length(one)?;
        self.check_length(other)?;
        let (one, other) = (alloc::text_of(one, TEXT)?, alloc::text_of(other, TEXT)?);
        self.patiently(one.len() + other.len(), move |this| {
            let written = if this.0.finder.is_match(&*one) { &one } else { &other };
            let encoder = if parse { &this.0.trusting } else { this.literal(written)? };
            let encoding = if cut == Cut::default() {
                guard("encode", || encoder.encode_fast((one.as_str(), other.as_str()), true))?
            } else {
                let [one, other] =
                    [&one, &other].map(|text| guard("encode", || encoder.encode_fast(text.as_str(), false)));
                let (one, other) = (one?, other?);
                let lengths = [one.len(), other.len().min(cut.second.unwrap_or(usize::MAX))];
                let [a, b] = match cut.most {
                    Some(most) => shared(lengths, room(encoder, true, most)?),
                    None => lengths,
                };
                let (one, other) = (first(&one, a, 0)?, first(&other, b, 1)?);
                guard("encode", || encoder.post_process(one, Some(other), true))?
            };
            let of = encoding.get_type_ids();
            let begins = of.iter().position(|&of| of != 0);
            if begins.is_some_and(|at| of[at..].iter().any(|&of| of != 1)) {
                let what =
                    "post_processor: tokens of a pair are not of its first text and then of its second";
                return Err(Error::Tokenizer(what.into()));
            }
            Ok((alloc::copy_of(encoding.get_ids(), IDS)?, begins.unwrap_or(usize::MAX)))
        })
    }

    /// The beginning of a text that its first `tokens` tokens stand for, in which no special token is read; all of it where it has no
    /// more.
    ///
    /// # Errors
    /// Those of [`Self::encode_with`].
    pub fn beginning<'t>(&self, text: &'t str, tokens: usize) -> Result<&'t str> {
        self.check_length(text)?;
        let owned = alloc::text_of(text, TEXT)?;
        let end = self.patiently(text.len(), move |this| {
            let encoder = this.literal(&owned)?;
            let encoding = guard("encode", || encoder.encode(owned.as_str(), false))?;
            Ok(match encoding.get_offsets() {
                offsets if offsets.len() > tokens => {
                    offsets[..tokens].iter().map(|(_, end)| *end).max().unwrap_or(0)
                }
                _ => owned.len(),
            })
        })?;
        // A token may end within a character.
        let end = (0..=end.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        Ok(&text[..end])
    }
}

/// The tokens of texts that fit into `most` beside those that are put around them.
fn room(encoder: &Library, pair: bool, most: usize) -> Result<usize> {
    let around = encoder.get_post_processor().map_or(0, |processor| processor.added_tokens(pair));
    most.checked_sub(around)
        .ok_or_else(|| Error::Prompt(format!("it is cut to {most} tokens, and {around} are put around it")))
}

/// The lengths of two texts that fit into `room` together: the longer one is cut to that of the shorter, then both are.
fn shared([a, b]: [usize; 2], room: usize) -> [usize; 2] {
    if a.saturating_add(b) <= room {
        return [a, b];
    }
    let (short, long) = if a <= b {
        (a, b.min(room.saturating_sub(a).max(a)))
    } else {
        (b, a.min(room.saturating_sub(b).max(b)))
    };
    let (short, long) = match short + long > room {
        true => (room / 2, room / 2 + room % 2),
        false => (short, long),
    };
    if a <= b { [short, long] } else { [long, short] }
}

/// The first `count` tokens, as those of the text `of`.
fn first(encoding: &Encoding, count: usize, of: u32) -> Result<Encoding> {
    let (ids, texts, offsets) = (encoding.get_ids(), encoding.get_tokens(), encoding.get_offsets());
    let tokens = ids.iter().zip(texts).zip(offsets).take(count);
    let tokens = tokens.map(|((&id, text), &offsets)| Token { id, value: text.clone(), offsets });
    Ok(Encoding::from_tokens(alloc::collect(tokens, IDS)?, of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_texts_share_what_room_there_is() {
        for (lengths, room, expected) in [
            ([3, 4], 7, [3, 4]),
            ([3, 9], 7, [3, 4]),
            ([9, 3], 7, [4, 3]),
            ([9, 8], 7, [4, 3]),
            ([8, 9], 7, [3, 4]),
            ([8, 9], 6, [3, 3]),
            ([0, 9], 6, [0, 6]),
            ([9, 9], 1, [0, 1]),
            ([9, 9], 0, [0, 0]),
        ] {
            assert_eq!(shared(lengths, room), expected, "{lengths:?} in {room}");
        }
    }
}
