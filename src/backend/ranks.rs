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

/// What the other ranks are to do before the next step, in this order. Sequences and pages are numbers that the first rank gave them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// To keep pages of a sequence that has `len` tokens, from page `first` on, under the numbers `pages`.
    Keep {
        /// Whose.
        sequence: u32,
        /// Tokens that it has.
        len: u32,
        /// The first of its pages.
        first: u32,
        /// What they are called.
        pages: Vec<u32>,
    },
    /// To begin a sequence with the first `len` tokens of pages.
    Begin {
        /// What it is called.
        sequence: u32,
        /// The length of its prompt.
        prompt: u32,
        /// Tokens that it begins with.
        len: u32,
        /// The pages that hold them.
        pages: Vec<u32>,
    },
    /// To forget a sequence.
    Forget(u32),
    /// To forget a page.
    ForgetPage(u32),
}

impl Order {
    /// Adds its words to `words`.
    pub fn write(&self, words: &mut Vec<u32>) {
        let (kind, fields, pages): (u32, [u32; 3], &[u32]) = match self {
            Self::Keep { sequence, len, first, pages } => (0, [*sequence, *len, *first], pages),
            Self::Begin { sequence, prompt, len, pages } => (1, [*sequence, *prompt, *len], pages),
            Self::Forget(sequence) => (2, [*sequence, 0, 0], &[]),
            Self::ForgetPage(page) => (3, [*page, 0, 0], &[]),
        };
        words.extend([kind, pages.len() as u32]);
        words.extend(fields);
        words.extend(pages);
    }

    /// The first order in `words`, and what follows it; none where there is none.
    pub fn read(words: &[u32]) -> Option<(Self, &[u32])> {
        let (&[kind, count, a, b, c], rest) = words.split_first_chunk::<5>()?;
        let (pages, rest) = rest.split_at_checked(count as usize)?;
        let pages = pages.to_vec();
        let order = match (kind, count) {
            (0, _) => Self::Keep { sequence: a, len: b, first: c, pages },
            (1, _) => Self::Begin { sequence: a, prompt: b, len: c, pages },
            (2, 0) => Self::Forget(a),
            (3, 0) => Self::ForgetPage(a),
            _ => return None,
        };
        Some((order, rest))
    }
}

/// What the other ranks were not told yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Orders(Arc<Mutex<Vec<Order>>>);

impl Orders {
    pub fn add(&self, order: Order) {
        self.0.lock().push(order);
    }

    /// Those since it was asked last.
    pub fn take(&self) -> Vec<Order> {
        std::mem::take(&mut self.0.lock())
    }
}

/// What the other ranks call a sequence or a page; when it is dropped, they are to forget that.
#[derive(Debug)]
pub struct Told {
    number: u32,
    forget: fn(u32) -> Order,
    orders: Orders,
}

impl Told {
    pub(crate) fn sequence(number: u32, orders: &Orders) -> Self {
        Self { number, forget: Order::Forget, orders: orders.clone() }
    }

    pub(crate) fn page(number: u32, orders: &Orders) -> Self {
        Self { number, forget: Order::ForgetPage, orders: orders.clone() }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.orders.add((self.forget)(self.number));
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
    fn orders_are_read_as_they_were_written_and_in_their_order() {
        let orders = Orders::default();
        let pages = vec![5, 6];
        orders.add(Order::Keep { sequence: 1, len: 100, first: 0, pages: pages.clone() });
        orders.add(Order::Begin { sequence: 2, prompt: 90, len: 80, pages });
        let (sequence, page) = (Told::sequence(1, &orders), Told::page(6, &orders));
        assert_eq!((sequence.number(), page.number()), (1, 6));
        drop(sequence);
        drop(page);
        let told = orders.take();
        assert_eq!(told[2..], [Order::Forget(1), Order::ForgetPage(6)]);
        assert_eq!(orders.take(), []);
        let mut words = Vec::new();
        told.iter().for_each(|order| order.write(&mut words));
        let (mut rest, mut read) = (&words[..], Vec::new());
        while let Some((order, more)) = Order::read(rest) {
            read.push(order);
            rest = more;
        }
        assert!(rest.is_empty() && read == told, "{read:?}, and {rest:?}");
        for wrong in [&[2, 1, 7, 0, 0, 9][..], &[4, 0, 0, 0, 0], &[0, 2, 1, 1, 1, 5], &[3, 0, 1]] {
            assert_eq!(Order::read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn equal_parts_follow_each_other() {
        let of = |index| Rank::new(index, 3).unwrap().share(2..14);
        assert_eq!([of(0), of(1), of(2)], [2..6, 6..10, 10..14]);
        assert_eq!(Rank::ALONE.share(2..14), 2..14);
        let error = Rank::new(2, 2).unwrap_err().to_string();
        assert!(error.contains("rank"), "{error}");
    }
}
