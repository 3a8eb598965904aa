//! Which of the processes that compute a model together this one is.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// What MLX's ring reads: the number of this process, and a file of JSON with a list of addresses for each.
pub const VARIABLES: [&str; 2] = ["MLX_RANK", "MLX_HOSTFILE"];

/// One of the processes that compute a model together. The first one has the engine; the others do what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    index: usize,
    of: usize,
}

impl Rank {
    /// The only one.
    pub const ALONE: Self = Self { index: 0, of: 1 };

    /// The `index`-th of `of`.
    ///
    /// # Errors
    /// An index that is not below `of`.
    pub fn new(index: usize, of: usize) -> Result<Self> {
        if index < of {
            return Ok(Self { index, of });
        }
        Err(Error::Option {
            option: "rank",
            got: index.to_string(),
            expected: "a number below that of ranks",
        })
    }

    /// Whether there is no other.
    pub fn is_alone(self) -> bool {
        self.of == 1
    }

    /// Its number, from 0.
    pub fn index(self) -> usize {
        self.index
    }

    /// How many there are.
    pub fn of(self) -> usize {
        self.of
    }

    /// Whether it is the first one.
    pub fn leads(self) -> bool {
        self.index == 0
    }

    /// Its part of what begins at `range.start`, of which all parts are equal.
    pub fn share(self, range: Range<usize>) -> Range<usize> {
        let each = range.len() / self.of;
        let start = range.start + self.index * each;
        start..start + each
    }
}

/// Numbers of sequences that are no longer there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gone(Arc<Mutex<Vec<u32>>>);

impl Gone {
    /// Those since it was asked last.
    pub fn take(&self) -> Vec<u32> {
        std::mem::take(&mut self.0.lock())
    }
}

/// The number by which the other ranks know a sequence; when it is dropped, they are to forget it.
#[derive(Debug)]
pub struct Told {
    number: u32,
    gone: Gone,
}

impl Told {
    pub(crate) fn new(number: u32, gone: &Gone) -> Self {
        Self { number, gone: gone.clone() }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.gone.0.lock().push(self.number);
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.index, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_parts_follow_each_other() {
        let of = |index| Rank::new(index, 3).unwrap().share(2..14);
        assert_eq!([of(0), of(1), of(2)], [2..6, 6..10, 10..14]);
        assert_eq!(Rank::ALONE.share(2..14), 2..14);
        let error = Rank::new(2, 2).unwrap_err().to_string();
        assert!(error.contains("rank"), "{error}");
    }
}
