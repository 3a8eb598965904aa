//! Sums of squares of what matrices are multiplied with, while someone asks for them.

use std::collections::BTreeMap;

/// What one matrix was multiplied with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputSum {
    /// `Σ x²` of each of its columns.
    pub squares: Vec<f64>,
    /// Rows that were added.
    pub rows: u64,
}

/// By the names of the matrices, those of parts without what says which part.
#[derive(Debug, Clone, Default)]
pub struct InputSums(pub BTreeMap<String, InputSum>);

impl InputSums {
    /// Adds `rows` `[T, K]` to the sums of matrix `name`.
    pub(super) fn add(&mut self, name: &str, columns: usize, rows: &[f32]) {
        if !self.0.contains_key(name) {
            self.0.insert(name.to_owned(), InputSum { squares: vec![0.0; columns], rows: 0 });
        }
        let Some(sum) = self.0.get_mut(name).filter(|sum| sum.squares.len() == columns) else { return };
        for row in rows.chunks_exact(columns.max(1)) {
            sum.squares.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
            sum.rows += 1;
        }
    }

    /// Adds what another run collected.
    pub fn merge(&mut self, other: Self) {
        for (name, more) in other.0 {
            let sum = self.0.entry(name).or_default();
            sum.squares.resize(sum.squares.len().max(more.squares.len()), 0.0);
            sum.squares.iter_mut().zip(&more.squares).for_each(|(sum, more)| *sum += more);
            sum.rows += more.rows;
        }
    }
}
