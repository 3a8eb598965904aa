//! The ways in which tokens are made of two others.

use std::collections::HashMap;

use super::MAX_TOKENS;
use crate::json::quote;

/// The longest token, in characters, that is taken apart: SentencePiece's are at most 16 unless trained so, Tekken's 76.
pub(super) const MAX_PIECE: usize = 256;
/// Merges of a vocabulary, the double of the largest published one's.
pub(super) const MAX_MERGES: usize = 1 << 20;

/// A token that two others make.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub id: u32,
    /// Where the left one ends, in bytes.
    at: u32,
    /// Characters of the two.
    pub lengths: (u32, u32),
    /// Ids of the two.
    pub parts: (u32, u32),
}

impl Cut {
    /// The two, where `token` is the text of the whole.
    pub fn of<'a>(&self, token: &'a str) -> (&'a str, &'a str) {
        token.split_at(self.at as usize)
    }
}

/// Every cut of each token into two of them, in the order of the tokens.
pub(super) fn cuts<'a>(tokens: impl Iterator<Item = (u32, &'a str)> + Clone) -> Result<Vec<Cut>, String> {
    let ids: HashMap<&str, u32> = tokens.clone().take(MAX_TOKENS).map(|(id, token)| (token, id)).collect();
    let mut cuts = Vec::new();
    for (id, token) in tokens {
        let length = token.chars().take(MAX_PIECE + 1).count();
        if length > MAX_PIECE {
            let token = quote(token);
            return Err(format!("token {id} is {token}, expected at most {MAX_PIECE} characters"));
        }
        for (left, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (a, b) = token.split_at(at);
            if let (Some(&a), Some(&b)) = (ids.get(a), ids.get(b)) {
                let lengths = (left as u32, (length - left) as u32);
                cuts.push(Cut { id, at: at as u32, lengths, parts: (a, b) });
            }
        }
        if cuts.len() > MAX_MERGES {
            return Err(format!("its tokens are made of two others in over {MAX_MERGES} ways"));
        }
    }
    Ok(cuts)
}
