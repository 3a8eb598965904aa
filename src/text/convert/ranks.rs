//! Tokens as bytes in the order in which they are merged: what tiktoken and Tekken keep.

use std::collections::HashMap;

use super::merges::{self, Cut};
use crate::json::quote;

/// Tokens by rank, their bytes written as characters.
pub(super) struct Ranks(pub Vec<String>);

impl Ranks {
    /// The tokens of `bytes`, the first of which has rank 0.
    ///
    /// # Errors
    /// A byte that is no token, and two equal tokens.
    pub fn of(bytes: impl Iterator<Item = Vec<u8>>) -> Result<Self, String> {
        let characters = characters();
        let write = |bytes: Vec<u8>| -> String {
            bytes.into_iter().map(|byte| characters[usize::from(byte)]).collect()
        };
        let this = Self(bytes.map(write).collect());
        this.check(&characters)?;
        Ok(this)
    }

    fn check(&self, characters: &[char; 256]) -> Result<(), String> {
        let mut seen: HashMap<&str, usize> = HashMap::with_capacity(self.0.len());
        for (rank, token) in self.0.iter().enumerate() {
            if token.is_empty() {
                return Err(format!("the token of rank {rank} is empty"));
            }
            if let Some(first) = seen.insert(token, rank) {
                return Err(format!("ranks {first} and {rank} have one token, {}", quote(token)));
            }
        }
        let mut buffer = [0; 4];
        for (byte, character) in characters.iter().enumerate() {
            let token: &str = character.encode_utf8(&mut buffer);
            if !seen.contains_key(token) {
                return Err(format!("no token is the byte 0x{byte:02X}, expected one for each byte"));
            }
        }
        Ok(())
    }

    /// The merges, those to the lowest rank first. tiktoken looks for the lowest rank alone: which two make a token decides
    /// only between cuts of the same one.
    pub fn merges(&self) -> Result<Vec<(&str, &str)>, String> {
        let tokens = (0..).zip(self.0.iter().map(String::as_str));
        let mut cuts = merges::cuts(tokens)?;
        cuts.sort_by_key(|cut: &Cut| (cut.id, cut.parts));
        Ok(cuts.into_iter().map(|cut| cut.of(&self.0[cut.id as usize])).collect())
    }
}

/// GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself, the other 68 bytes follow from U+0100.
fn characters() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => char::from(byte),
        _ => others.next().unwrap_or_default(),
    })
}
