//! Rows and columns of a matrix in host memory, without a copy.

use std::ops::Range;

/// A matrix `[rows, columns]` of elements in host memory that somebody else keeps: all of them, or some rows and columns.
#[derive(Debug)]
pub struct MatrixView<'a, T = f32> {
    /// From the first element to the last.
    values: &'a [T],
    rows: usize,
    columns: usize,
    /// Elements from the beginning of a row to that of the next.
    stride: usize,
}

impl<T> Clone for MatrixView<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for MatrixView<'_, T> {}

impl<'a, T> MatrixView<'a, T> {
    /// All of a row-major matrix.
    ///
    /// # Panics
    /// Where the length is not the product of `shape`.
    pub fn new(values: &'a [T], [rows, columns]: [usize; 2]) -> Self {
        assert_eq!(
            Some(values.len()),
            rows.checked_mul(columns),
            "a matrix of {rows} rows, {columns} columns"
        );
        Self { values, rows, columns, stride: columns }
    }

    /// Rows and columns.
    pub fn shape(self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// These of its rows.
    ///
    /// # Panics
    /// Where it has fewer.
    pub fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let values = match rows.len().checked_sub(1) {
            Some(before) => {
                let start = rows.start * self.stride;
                &self.values[start..start + before * self.stride + self.columns]
            }
            None => &[],
        };
        Self { values, rows: rows.len(), ..self }
    }

    /// These of its columns.
    ///
    /// # Panics
    /// Where it has fewer.
    pub fn columns(self, columns: Range<usize>) -> Self {
        let all = self.columns;
        assert!(columns.start <= columns.end && columns.end <= all, "columns {columns:?} of {all}");
        let values = match self.rows {
            0 => self.values,
            _ => &self.values[columns.start..self.values.len() - (all - columns.end)],
        };
        Self { values, columns: columns.len(), ..self }
    }

    /// Row `row`.
    ///
    /// # Panics
    /// Where there is none.
    pub fn row(self, row: usize) -> &'a [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &self.values[row * self.stride..][..self.columns]
    }

    /// Its rows, first to last.
    pub fn iter(self) -> impl Iterator<Item = &'a [T]> {
        (0..self.rows).map(move |row| self.row(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_those_of_the_matrix() {
        let ids: Vec<u32> = (0..20).collect();
        let all = MatrixView::new(&ids, [4, 5]);
        let part = all.columns(1..4).rows(1..3);
        assert_eq!(part.shape(), [2, 3]);
        assert_eq!(part.iter().collect::<Vec<_>>(), [[6, 7, 8], [11, 12, 13]]);
        assert_eq!(all.rows(1..3).columns(1..4).row(1), part.row(1));
        assert_eq!(part.columns(2..3).rows(1..2).row(0), [13]);
        assert_eq!(all.row(3), [15, 16, 17, 18, 19]);
        for empty in [all.rows(4..4), all.columns(5..5), all.rows(2..2).columns(1..3)] {
            assert!(empty.iter().all(<[u32]>::is_empty), "{empty:?}");
        }
        assert_eq!(MatrixView::<f32>::new(&[], [3, 0]).iter().count(), 3);
    }

    #[test]
    #[should_panic(expected = "columns 2..4 of 3")]
    fn no_more_columns_are_seen_than_there_are() {
        let all = MatrixView::new(&[0.0; 20], [4, 5]);
        let _ = all.columns(1..4).columns(2..4);
    }

    #[test]
    #[should_panic(expected = "row 1 of 1")]
    fn no_more_rows_are_seen_than_there_are() {
        MatrixView::new(&[0.0; 20], [4, 5]).rows(1..2).row(1);
    }
}
