//! Names of what is kept: hashes of all that its bits depend on.

use std::fmt;

use crate::backend::rope::Frequencies;

/// A hash of what something was made of (BLAKE3): nobody finds two things of one hash, not by intent either.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// Of several parts, each with its length.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.into()
    }

    /// Of a beginning that `tokens` follow, at most those of a page.
    pub fn then(&self, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        tokens.iter().for_each(|token| {
            hasher.update(&token.to_le_bytes());
        });
        hasher.into()
    }

    /// Of the beginnings of one owner whose keys are rotated by `frequencies`.
    pub fn beginning(&self, space: Option<&str>, frequencies: &[impl AsRef<Frequencies>]) -> Self {
        let mut bytes = Vec::new();
        for frequencies in frequencies {
            let Frequencies { inv_freq, attention_factor } = frequencies.as_ref();
            bytes.extend((inv_freq.len() as u64).to_le_bytes());
            inv_freq.iter().chain([attention_factor]).for_each(|x| bytes.extend(x.to_le_bytes()));
        }
        let owner: [&[u8]; 2] = match space {
            Some(space) => [b"of", space.as_bytes()],
            None => [b"of all", b""],
        };
        Self::of([&self.0[..], owner[0], owner[1], &bytes])
    }

    /// Of 64 hexadecimal digits, as it is shown.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let (pairs, rest) = digits.as_chunks::<2>();
        let pairs: &[[u8; 2]; 32] = pairs.try_into().ok().filter(|_| rest.is_empty())?;
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = (16 * digit(*high)? + digit(*low)?) as u8;
        }
        Some(Self(bytes))
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<blake3::Hasher> for Key {
    fn from(hasher: blake3::Hasher) -> Self {
        Self(hasher.finalize().into())
    }
}

impl From<[u8; 32]> for Key {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}
