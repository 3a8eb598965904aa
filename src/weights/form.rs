//! What is done to a tensor on its way from the file into a model: its rows are put into another order, or its values changed.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::alloc;
use crate::error::Result;
use crate::quant::{Plane, QuantWeight};

/// How a tensor lies in its file, where that is not as a model has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As a model has it.
    Plain,
    /// Of the first `dims` rows of each head, those that rotate together, `i` and `i + dims / 2`, lie side by side.
    Pairs {
        /// Heads.
        heads: usize,
        /// Rotated rows of a head, an even number.
        dims: usize,
    },
    /// Queries, keys and values of a head follow each other, before those of the next head.
    ByHead {
        /// Heads, of each of the three.
        heads: usize,
    },
    /// Heads of two parts: the first of all of them come before the second, in the model.
    HeadParts {
        /// Heads.
        heads: usize,
        /// Rows of the first part.
        first: usize,
        /// Whether rows of the second that rotate together, `i` and `i + half`, lie side by side.
        pairs: bool,
    },
    /// Heads of several parts: the first of all of them come before the second, and so on, in the model.
    ByParts {
        /// Heads.
        heads: usize,
        /// Rows of each part of a head.
        parts: [usize; 4],
    },
    /// Rows are columns.
    Transposed,
    /// Rows of two halves lie in turn: the first of each, then the second of each. Of dense matrices, rows are columns, too.
    Alternating,
    /// 1 was added to a vector.
    PlusOne,
}

impl Form {
    /// How the rows lie of what is read turned already where it has to be.
    pub fn turned(self) -> Self {
        if self == Self::Transposed { Self::Plain } else { self }
    }
}

/// What becomes of a tensor of a file.
#[derive(Debug, Clone)]
pub(crate) struct Adopted {
    /// The name that the model knows it by.
    pub name: String,
    /// How it lies in the file.
    pub form: Form,
    /// The rows of the tensor that these are, where it holds others, too.
    pub rows: Option<Range<usize>>,
    /// How many rows it then has: with another number, it stays whole, and is refused by its shape.
    pub of: Option<usize>,
    /// Where its dimensions are not those of the model.
    pub dims: AdoptedDims,
}

/// What becomes of a tensor's dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum AdoptedDims {
    /// They stay.
    #[default]
    Same,
    /// One row is a vector.
    Vector,
    /// All of them are one.
    Flat,
    /// A vector is one row.
    Row,
    /// A dimension of 1 behind the first is none.
    Squeezed,
    /// Dimensions of 1 are none, as long as there are more than two.
    Matrix,
}

impl Form {
    /// The row of the file that is row `row` of a model's `rows`.
    pub fn stored_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Pairs { heads, dims } => {
                let (size, half) = (rows / heads.max(1), dims / 2);
                let (head, at) = (row / size.max(1), row % size.max(1));
                match at < dims {
                    true => head * size + 2 * (at % half) + at / half,
                    false => row,
                }
            }
            Self::ByHead { heads } => {
                let size = (rows / (3 * heads).max(1)).max(1);
                let (third, head, at) = (row / (heads * size), row / size % heads, row % size);
                (3 * head + third) * size + at
            }
            Self::HeadParts { heads, first, pairs } => {
                let size = rows / heads.max(1);
                let second = size.saturating_sub(first).max(1);
                match row.checked_sub(heads * first) {
                    None => row / first * size + row % first,
                    Some(row) => {
                        let (head, at, half) = (row / second, row % second, second / 2);
                        let at = if pairs { 2 * (at % half.max(1)) + at / half.max(1) } else { at };
                        head * size + first + at
                    }
                }
            }
            Self::ByParts { heads, parts } => {
                let size: usize = parts.iter().sum();
                let (mut before, mut row) = (0, row);
                for part in parts {
                    if row < heads * part {
                        return row / part * size + before + row % part;
                    }
                    row -= heads * part;
                    before += part;
                }
                row
            }
            Self::Alternating => {
                let half = rows / 2;
                if row < half { 2 * row } else { 2 * (row - half) + 1 }
            }
            Self::Plain | Self::Transposed | Self::PlusOne => row,
        }
    }

    /// The row of a model's `rows` that is row `row` of the file: the inverse of [`Self::stored_row`].
    pub fn model_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Pairs { heads, dims } => {
                let (size, half) = (rows / heads.max(1), dims / 2);
                let (head, at) = (row / size.max(1), row % size.max(1));
                match at < dims {
                    true => head * size + at % 2 * half + at / 2,
                    false => row,
                }
            }
            Self::ByHead { heads } => {
                let size = (rows / (3 * heads).max(1)).max(1);
                let (head, third, at) = (row / (3 * size), row / size % 3, row % size);
                (third * heads + head) * size + at
            }
            Self::HeadParts { heads, first, pairs } => {
                let size = (rows / heads.max(1)).max(1);
                let (head, second) = (row / size, size.saturating_sub(first));
                match (row % size).checked_sub(first) {
                    None => head * first + row % size,
                    Some(at) => {
                        let at = if pairs { at / 2 + at % 2 * (second / 2) } else { at };
                        heads * first + head * second + at
                    }
                }
            }
            Self::ByParts { heads, parts } => {
                let size = parts.iter().sum::<usize>().max(1);
                let (head, mut at, mut before) = (row / size, row % size, 0);
                for part in parts {
                    if at < part {
                        return before + head * part + at;
                    }
                    at -= part;
                    before += heads * part;
                }
                row
            }
            Self::Alternating => row / 2 + row % 2 * (rows / 2),
            Self::Plain | Self::Transposed | Self::PlusOne => row,
        }
    }

    /// Whether rows of a dense tensor are columns.
    pub fn is_turned(self) -> bool {
        matches!(self, Self::Transposed | Self::Alternating)
    }

    /// Copies a tensor into a model's order; `shape` is the one that the model has, of elements of `size` bytes.
    pub fn copy(self, stored: &[u8], shape: &[usize], size: usize, to: &mut [u8]) {
        let rows = shape.first().copied().unwrap_or(0);
        if let (true, &[rows, columns]) = (self.is_turned(), shape) {
            // Tiles of 64 elements each way: their lines of both sides fit into the first cache.
            const TILE: usize = 64;
            for top in (0..rows).step_by(TILE) {
                for left in (0..columns).step_by(TILE) {
                    for row in top..(top + TILE).min(rows) {
                        for column in left..(left + TILE).min(columns) {
                            let from = (column * rows + self.stored_row(row, rows)) * size;
                            let at = (row * columns + column) * size;
                            to[at..at + size].copy_from_slice(&stored[from..from + size]);
                        }
                    }
                }
            }
            return;
        }
        let stride = stored.len().checked_div(rows).unwrap_or(0);
        for (row, to) in to.chunks_exact_mut(stride.max(1)).enumerate().take(rows) {
            to.copy_from_slice(&stored[self.stored_row(row, rows) * stride..][..stride]);
        }
    }

    /// A quantized matrix in a model's order of rows, which is made when it is asked for.
    pub fn reordered(self, weight: QuantWeight) -> QuantWeight {
        if !matches!(
            self,
            Self::Pairs { .. }
                | Self::ByHead { .. }
                | Self::HeadParts { .. }
                | Self::ByParts { .. }
                | Self::Alternating
        ) {
            return weight;
        }
        let (name, format, shape) = (weight.name().to_owned(), weight.format(), *weight.shape());
        let order = weight.order().map(Arc::clone);
        let make = move |wanted: Range<usize>| {
            let held = weight.held()?;
            let ordered = held.planes().iter().map(|plane| {
                let stride = plane.bytes().len() / shape[0];
                let mut rows = Vec::new();
                alloc::reserve(&mut rows, wanted.len() * stride, "weights in another order")?;
                for row in wanted.clone() {
                    let at = self.stored_row(row, shape[0]) * stride;
                    rows.extend_from_slice(&plane.bytes()[at..at + stride]);
                }
                Ok(Plane::owned(rows))
            });
            let ordered = ordered.collect::<Result<SmallVec<[Plane; 3]>>>()?;
            held.planes().iter().for_each(Plane::release);
            Ok(ordered)
        };
        let made = QuantWeight::made(name, format, shape, make);
        match order {
            Some(order) => made.with_order(order),
            None => made,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_there_and_back() {
        let forms = [
            (Form::Pairs { heads: 2, dims: 4 }, vec![0, 2, 1, 3, 4, 6, 5, 7]),
            (Form::Pairs { heads: 2, dims: 2 }, vec![0, 1, 2, 3, 4, 5, 6, 7]),
            (Form::Pairs { heads: 1, dims: 6 }, vec![0, 2, 4, 1, 3, 5, 6, 7]),
            (Form::ByHead { heads: 2 }, vec![0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]),
            (Form::HeadParts { heads: 2, first: 1, pairs: false }, vec![0, 5, 1, 2, 3, 4, 6, 7, 8, 9]),
            (Form::HeadParts { heads: 2, first: 1, pairs: true }, vec![0, 5, 1, 3, 2, 4, 6, 8, 7, 9]),
            (Form::HeadParts { heads: 1, first: 2, pairs: true }, vec![0, 1, 2, 4, 6, 3, 5, 7]),
            (Form::ByParts { heads: 2, parts: [1, 1, 2, 0] }, vec![0, 4, 1, 5, 2, 3, 6, 7]),
            (Form::Alternating, vec![0, 2, 4, 1, 3, 5]),
        ];
        for (form, expected) in forms {
            let rows = expected.len();
            let stored: Vec<usize> = (0..rows).map(|row| form.stored_row(row, rows)).collect();
            assert_eq!(stored, expected, "{form:?}");
            for row in 0..rows {
                assert_eq!(form.model_row(form.stored_row(row, rows), rows), row, "{form:?}");
            }
        }
    }

    #[test]
    fn a_transposed_matrix_is_turned() {
        let (rows, columns) = (70, 3);
        let stored: Vec<u8> = (0..rows * columns * 2).map(|i| i as u8).collect();
        let mut turned = vec![0; stored.len()];
        Form::Transposed.copy(&stored, &[rows, columns], 2, &mut turned);
        for (row, column) in [(0, 0), (69, 2), (3, 1), (64, 0)] {
            assert_eq!(turned[(row * columns + column) * 2..][..2], stored[(column * rows + row) * 2..][..2]);
        }
    }
}
